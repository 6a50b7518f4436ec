"""What an engine outside of the trainer is given of a policy: its weights as a checkpoint, and log-probs to check them by."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vantage.models.holding import is_adapted
from vantage.policy import Policy
from vantage.rollout.fingerprint import fingerprint

MEMORY_DISK = Path("/dev/shm")
"""Files here never touch a disk."""
SPARE = 1.2


def weights_of(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The policy's state under the names of its checkpoint, floating numbers in `dtype`, adapters added into the weights.

    A tensor that stands under two names comes once, as it does in a checkpoint. Neither the policy nor its adapters are
    touched. Sharded weights are whole inside of `Policy.gathered`; elsewhere every process must exhaust this.
    """
    network: Any = policy.model
    adapted = is_adapted(network)
    deltas = _deltas(network) if adapted else {}
    base = network.get_base_model() if adapted else network
    for name, value in _state(base):
        if ".lora_" in name:
            continue
        whole = _whole(value)
        whole = whole + _whole(deltas[name]()) if name in deltas else whole
        yield name.replace(".base_layer.", "."), whole.to(dtype) if whole.is_floating_point() else whole


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What `state_dict` has, each tensor once; asking for that one would deal out again what has been put together."""
    yield from module.named_parameters()
    passing = {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        for name in part._non_persistent_buffers_set
    }
    yield from ((name, value) for name, value in module.named_buffers() if name not in passing)


def _deltas(network: Any) -> dict[str, Callable[[], Tensor]]:
    """What each adapted weight gains, by its name in the base model."""

    def gain(module: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
        return found

    return {
        f"{name}.base_layer.weight": partial(gain, module)
        for name, module in network.get_base_model().named_modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
    }


def _whole(value: Tensor) -> Tensor:
    gather = getattr(value, "full_tensor", None)
    found: Tensor = value.detach() if gather is None else gather().detach()
    return found


def sharded(policy: Policy) -> bool:
    """Whether this process holds only a part of the weights."""
    return any(hasattr(p, "full_tensor") for p in policy.model.parameters())


def fingerprint_of(policy: Policy, dtype: torch.dtype) -> str:
    """The fingerprint of what an engine of that type is given; nothing is copied off the device for it."""
    return fingerprint(value for _, value in weights_of(policy, dtype))


@contextmanager
def written(policy: Policy, dtype: torch.dtype, folder: str | None) -> Iterator[Path]:
    """The weights as safetensors in a fresh folder that is removed at the end: below `folder`, else in memory if they fit."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    network: Any = policy.model
    base = network.get_base_model() if is_adapted(network) else network
    weights = {name: value.cpu() for name, value in weights_of(policy, dtype)}
    path = Path(tempfile.mkdtemp(prefix="vantage-weights-", dir=folder or _roomy(weights)))
    try:
        base.save_pretrained(path, state_dict=weights)
        path.chmod(0o755)  # a server may run as somebody else
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _roomy(weights: dict[str, Tensor]) -> str | None:
    size = sum(value.numel() * value.element_size() for value in weights.values())
    fits = MEMORY_DISK.is_dir() and shutil.disk_usage(MEMORY_DISK).free > SPARE * size
    return str(MEMORY_DISK) if fits else None


PROBES, PROBE_TOKENS = 2, 32


def probe_ids(policy: Policy) -> list[list[int]]:
    """Token sequences by which weights are told apart: drawn at random once and for all, the same for every policy."""
    vocabulary = min(int(policy.text_config.vocab_size), len(policy.tokenizer))
    generator = torch.Generator().manual_seed(0)
    found: list[list[int]] = torch.randint(0, vocabulary, (PROBES, PROBE_TOKENS), generator=generator).tolist()
    return found


@torch.no_grad()
def probe_logp(policy: Policy, ids: list[list[int]]) -> Tensor:
    """The policy's own log-probs of all but the first token of sequences of equal length, at temperature 1 [P, T − 1]."""
    ids_PT = torch.tensor(ids, device=policy.device)
    logp: Tensor = policy.logits(ids_PT)[:, :-1].float().log_softmax(-1).gather(-1, ids_PT[:, 1:, None])[..., 0]
    return logp.cpu()
