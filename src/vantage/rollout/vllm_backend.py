"""What the vLLM engine needs of a vLLM, wherever it runs: complete prompts, score tokens, take over weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vantage.rollout.engine import FinishReason, Sampling


class BackendDied(Exception):  # noqa: N818 (named for what happened)
    """vLLM is gone; `str()` says what is known of it."""


@dataclass(frozen=True)
class Ask:
    """One rollout to be sampled."""

    ids: list[int]
    """Prompt and prefix."""
    limit: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """What was sampled."""

    ids: list[int]
    logp: list[float]
    reason: FinishReason


def finished(reason: str | None) -> FinishReason:
    """vLLM's reason as the protocol has it; raises `BackendDied` for a rollout that vLLM gave up."""
    if reason == "stop":
        return "stop"
    if reason == "length":
        return "length"
    raise BackendDied(f"it gave up a rollout ({reason})")


class Backend(Protocol):
    """A vLLM. Every method starts it if it does not run, and raises `BackendDied` where it is gone."""

    where: str
    """What messages call it."""
    elsewhere: bool
    """Whether it may be started again without this process's knowledge, with other weights."""

    def complete(self, asks: Sequence[Ask], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        """Sample behind each prompt, from its own seed."""
        ...

    def score(self, sequences: Sequence[list[int]]) -> list[list[float]]:
        """Log-probs of all but the first token of each sequence, at temperature 1."""
        ...

    def load(self, folder: Path) -> list[dict[str, Any]]:
        """Take over weights, forget what was cached under the old ones; the `vantage_state` of each worker."""
        ...

    def state(self) -> list[dict[str, Any]]:
        """The `vantage_state` of each worker."""
        ...

    def sleep(self) -> None:
        """Free memory until the next call."""
        ...

    def close(self) -> None:
        """End it; the next call starts it again, with weights that mean nothing."""
        ...


def parameters(ask: Ask, sampling: Sampling, end_ids: Sequence[int]) -> dict[str, Any]:
    """vLLM's sampling parameters of one rollout, under the names that in-process and HTTP requests share.

    End tokens are given in full and vLLM's own are switched off, so that both engines end a response alike.
    """
    return {
        "max_tokens": ask.limit,
        "seed": ask.seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop": list(sampling.stop),
        "include_stop_str_in_output": True,
        "stop_token_ids": list(end_ids),
        "ignore_eos": True,
        "logprobs": 0,
    }
