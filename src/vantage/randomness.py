"""Random numbers that depend only on (seed, stream, step, prompt, rollout, token), whatever else was drawn.

A counter-based generator: coordinates are mixed into a 64-bit key, and the key and a token number into a uniform number,
both with the finaliser of SplitMix64 (Steele et al., OOPSLA 2014). Nothing has to be saved for a resume, and neither
batch shape nor process count can change what a rollout draws.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


class Stream(IntEnum):
    """Named streams: what is drawn from one never shifts another."""

    ROLLOUT = 1
    DATA = 2
    EVAL = 3
    NOISE = 4
    SFT = 5
    CONTINUATION = 6
    CRITIC = 7
    PROBE = 8


def mix(value: int) -> int:
    """SplitMix64's finaliser: a bijection of 64-bit integers with good avalanche."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def key(seed: int, stream: Stream, *coordinates: int) -> int:
    """A 64-bit key for a place, for example `key(seed, Stream.ROLLOUT, step, prompt, rollout)`."""
    state = 0
    for coordinate in (seed, int(stream), *coordinates):
        # The state is mixed, the coordinate is not: equal coordinates in a row can not cancel each other.
        state = mix(state ^ ((coordinate + 1) * GOLDEN & MASK))
    return state


def uniforms(keys: NDArray[np.uint64], start: int, count: int) -> NDArray[np.float64]:
    """Numbers `start` … `start + count − 1` of each key's sequence, uniform in [0, 1) [len(keys), count]."""
    with np.errstate(over="ignore"):
        counter = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        z = keys.astype(np.uint64)[:, None] + counter[None]
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    drawn: NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn


def permutation(seed: int, stream: Stream, epoch: int, size: int) -> NDArray[np.int64]:
    """A random order of `size` items for an epoch."""
    return np.random.default_rng(key(seed, stream, epoch)).permutation(size)
