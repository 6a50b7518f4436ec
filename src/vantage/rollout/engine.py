"""The engine protocol: prompts with random keys in, token ids with behaviour log-probs and finish reasons out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from vantage.errors import UserError

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
    """A prompt, or a prompt with the beginning of its response, and one random key for each rollout of it."""

    prompt_ids: list[int]
    keys: tuple[int, ...]
    """See `vantage.randomness.key`."""
    prefix_ids: tuple[int, ...] = ()
    """Response tokens that are there already; the rollouts go on behind them and do not repeat them."""
    max_new_tokens: int | None = None
    """Limit on tokens behind the prefix; None: what the prefix leaves of the Sampling's limit."""

    def limit(self, sampling: Sampling) -> int:
        """New tokens that a rollout of this request may have; not above 0 where there is no room for one."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return sampling.max_new_tokens - len(self.prefix_ids)


@dataclass(frozen=True)
class Rollout:
    """A sampled response, or what was sampled behind the prefix of the request."""

    response_ids: list[int]
    """The end token included where it was sampled; empty if the prefix is a whole response already."""
    logp: list[float]
    """Log-prob of each token at the sampling temperature, before top-p and top-k."""
    finish_reason: FinishReason


class Engine(Protocol):
    """Generates rollouts from the current weights of the policy.

    What has a body here is for engines that keep weights of their own; those that work on the policy's inherit it as it is.
    """

    separate: bool = False
    """Whether log-probs are computed by other kernels than the policy's, so that the two may differ."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a response."""
        ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        """The rollouts of each request, in the order of its keys; a function of weights, requests and keys alone.

        A rollout ends with an end token, with the token that completes a stop string (one that the prefix completed
        does not count, one that it began does), or at its request's limit. A prefix that has ended so itself gets
        rollouts without tokens.
        """
        ...

    def update_weights(self) -> None:
        """Take over the policy's weights, where they have changed. With several processes every one calls it."""
        return

    def sleep(self) -> None:
        """Free what memory can be freed until the next call of `generate` or `update_weights`."""
        return

    def close(self) -> None:
        """End what runs outside of this process; the next call of `generate` starts it again."""
        return


class EngineLost(UserError):  # noqa: N818 (named for what happened)
    """An engine outside of this process is gone and could not be had again; `str()` says what happened, in one line."""


class StaleWeights(EngineLost):
    """An engine does not compute with the weights of the policy; `str()` says by how much it is off."""
