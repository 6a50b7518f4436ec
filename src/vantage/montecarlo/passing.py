"""Which samples does a state have besides its own? Whole responses that pass through it on their way from an earlier state.

A response that was sampled from a state u and begins with the tokens of a later state s goes on from s as a fresh
continuation of s would: given that it comes by, its outcome has the mean V(s). So it may count for s without bias, under two
conditions that `value_samples` keeps: it was sampled from s or from before (from behind s it would know an action of
somebody's), and it is not the rollout whose baseline is wanted. A low-entropy policy takes the same step again and again,
so later states have several times the samples that were paid for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampled:
    """A whole response to one prompt, the state that it was sampled from, and its verdict."""

    response_ids: Sequence[int]
    start: int
    """Tokens of the state; 0 is the prompt."""
    outcome: float
    pay: float
    rollout: int | None = None
    """Row of the batch, where it is a rollout and no continuation."""


def passing(samples: Iterable[Sampled], prefixes: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], list[Sampled]]:
    """For each prefix (of the same prompt) the samples that come by, having been sampled from it or from before."""
    found: dict[tuple[int, ...], list[Sampled]] = {prefix: [] for prefix in prefixes}
    lengths = sorted({len(prefix) for prefix in found})
    for sample in samples:
        for length in lengths:
            if sample.start <= length <= len(sample.response_ids):
                here = found.get(tuple(sample.response_ids[:length]))
                if here is not None:
                    here.append(sample)
    return found


def value_samples(samples: Sequence[Sampled], rollout: int) -> list[Sampled]:
    """Those of a state's samples that may make the baseline of a rollout: all but its own."""
    return [sample for sample in samples if sample.rollout != rollout]
