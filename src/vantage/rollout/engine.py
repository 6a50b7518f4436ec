"""The engine protocol: prompts with random keys in, token ids with behaviour log-probs and finish reasons out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    stop: tuple[str, ...] = ()
    """Strings that end a response; they stay in it."""


@dataclass(frozen=True)
class Request:
    """A prompt and one random key for each rollout of it (`vantage.randomness.key`)."""

    prompt_ids: list[int]
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """A sampled response."""

    response_ids: list[int]
    """The end token included where it was sampled."""
    logp: list[float]
    """Log-prob of each token at the sampling temperature, before top-p and top-k."""
    finish_reason: FinishReason


class Engine(Protocol):
    """Generates rollouts from the current weights of the policy."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        """The rollouts of each request, in the order of its keys; a function of weights, prompts and keys alone."""
        ...
