"""Which continuations are on disk already? Samples of states, kept by the setting that they were drawn in.

A folder has one subfolder for each setting (weights, tokenizer, template, verifier, sampling, seed); in it lie
`setting.json`, which says which one it is, and safetensors files of samples. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from vantage.errors import UserError
from vantage.policy import Policy
from vantage.rollout.engine import Engine, Sampling

if TYPE_CHECKING:
    from vantage.prompting import Chat
    from vantage.rewards.functions import RewardSet

FORMAT = 2
"""Of these files, of how states are named, and of how a continuation's draws come from its state."""
STALE_SECONDS = 3600.0
"""A draft this old belongs to no living process: one takes milliseconds."""
UNREMARKABLE = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Entries of a model's configuration that saving and loading change, and values do not depend on."""


@dataclass
class Samples:
    """The first continuations of a state: outcomes, NaN where they could not be judged, and lengths in tokens."""

    outcome_K: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    tokens_K: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class Cache:
    """Continuations on disk: a folder with one subfolder for each setting in which outcomes can be had again.

    `verifier` names what judges: task and its version, such as `sums 1`. What else the outcomes depend on (weights,
    tokenizer, template, sampling, seed, reward functions by name and weight) `truth` finds out by itself.
    """

    folder: Path
    verifier: str

    def open(
        self, policy: Policy, engine: Engine, rewards: RewardSet, sampling: Sampling, seed: int, chat: Chat
    ) -> Store:
        """The samples that belong to this setting and no other."""
        setting = {
            "format": FORMAT,
            "weights": model_digest(policy.model),
            "tokenizer": tokenizer_digest(policy.tokenizer),
            "template": f"{chat}|{getattr(policy.tokenizer, 'chat_template', None)}",
            "verifier": self.verifier,
            "rewards": [[name, weight] for name, weight in zip(rewards.names, rewards.weights)],
            "sampling": asdict(sampling),
            "end_ids": list(engine.end_ids),
            "engine": type(engine).__name__,
            "seed": seed,
        }
        fingerprint = digest(setting).hex()
        store = Store(self.folder / fingerprint[:16], fingerprint)
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            store.sweep()
            store.put("setting.json", json.dumps(setting, indent=1, default=repr).encode())
        except OSError as error:
            raise UserError(f"the cache of Monte-Carlo values {self.folder} can not be written: {error}") from error
        return store


@dataclass(frozen=True)
class Store:
    """The samples of one setting: files that are written once, each under a name of its own, and never changed.

    So processes that write at the same time can not spoil each other's files, and a file is whole or absent. Where
    files know the same state, the one with most samples wins: as sample j is a function of the state and j, a longer
    list only goes on where the shorter one ends.
    """

    folder: Path
    fingerprint: str

    def load(self, wanted: set[bytes]) -> dict[bytes, Samples]:
        """What is known of the wanted states; files of another setting are not looked at, broken ones with a warning."""
        found: dict[bytes, Samples] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="np") as file:
                    if (file.metadata() or {}).get("fingerprint") != self.fingerprint:
                        continue
                    name_NC, drawn_N, outcome_M, tokens_M = map(
                        file.get_tensor, ("name_NC", "drawn_N", "outcome_M", "tokens_M")
                    )
            except (OSError, SafetensorError) as error:
                warnings.warn(f"cache of Monte-Carlo values: {path} is left out, unreadable ({error})", stacklevel=2)
                continue
            ends_N = drawn_N.cumsum()
            for row, (drawn, end) in enumerate(zip(drawn_N.tolist(), ends_N.tolist())):
                name = name_NC[row].tobytes()
                if name in wanted and (name not in found or len(found[name].outcome_K) < drawn):
                    span = slice(end - drawn, end)
                    found[name] = Samples(outcome_M[span].copy(), tokens_M[span].copy())
        return found

    def write(self, samples: Mapping[bytes, Samples]) -> None:
        """Add one file with the samples of these states; raises `UserError` where the disk refuses."""
        if not samples:
            return
        arrays = {
            "name_NC": np.stack([np.frombuffer(name, dtype=np.uint8) for name in samples]),
            "drawn_N": np.array([len(s.outcome_K) for s in samples.values()], dtype=np.int64),
            "outcome_M": np.concatenate([s.outcome_K for s in samples.values()]),
            "tokens_M": np.concatenate([s.tokens_K for s in samples.values()]),
        }
        try:
            self.put(f"{uuid.uuid4().hex}.safetensors", save(arrays, metadata={"fingerprint": self.fingerprint}))
        except OSError as error:
            raise UserError(f"the cache of Monte-Carlo values {self.folder} can not be written: {error}") from error

    def sweep(self) -> None:
        """Remove drafts of processes that were killed while they wrote: those of long ago."""
        for draft in self.folder.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > STALE_SECONDS:
                    draft.unlink()

    def put(self, name: str, content: bytes) -> None:
        """Write a file that appears under its name when it is complete."""
        draft = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.folder / name)
        finally:
            draft.unlink(missing_ok=True)


def digest(value: Any) -> bytes:
    """SHA-256 of a value's JSON; what JSON does not know goes in as a list where it is an array, else by its `repr`."""
    text = json.dumps(value, sort_keys=True, default=lambda v: v.tolist() if hasattr(v, "tolist") else repr(v))
    return hashlib.sha256(text.encode()).digest()


def model_digest(model: nn.Module) -> str:
    """SHA-256 of every weight and buffer that is saved with the model, and of its configuration."""
    found = hashlib.sha256()
    config: Any = getattr(model, "config", None)
    entries = config.to_dict() if hasattr(config, "to_dict") else {}
    entries = {name: v for name, v in entries.items() if name not in UNREMARKABLE and not name.startswith("_")}
    found.update(digest(entries))
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        found.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return found.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of a fast tokenizer's whole definition, of any other one's vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = json.loads(backend.to_str())
        # What the last call asked for is no part of the tokenizer.
        return digest({name: part for name, part in whole.items() if name not in ("padding", "truncation")}).hex()
    return digest(tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else repr(type(tokenizer))).hex()
