"""What do a few seeds say? Means with t-intervals, differences over the same seeds, and when a curve first gets there."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with Student's 95 % interval; no interval (and no spread) for a single seed."""

    n: int
    mean: float
    std: float | None
    """Sample standard deviation (n − 1)."""
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def t_probability(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's distribution with whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    return (2 / math.pi) * (theta + sine * total) if odd else sine * total


@functools.cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t with P(|T| < t) = level: 12.706 for one degree of freedom, 4.303 for two; raises `ValueError` below one."""
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom")
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Mean of one value a seed with its t-interval; None without values."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Interval(1, mean, None, None, None)
    std = statistics.stdev(values)
    half = t_quantile(len(values) - 1) * std / math.sqrt(len(values))
    return Interval(len(values), mean, std, mean - half, mean + half)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Mean of ours − theirs over the seeds that both have, with its t-interval; None if there is no such seed."""
    return mean_interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def first_reach(xs: Sequence[float], accuracies: Sequence[float], target: float) -> float | None:
    """Where the straight lines through the evaluations first reach `target`; None if they never do (censored)."""
    for i, (x, accuracy) in enumerate(zip(xs, accuracies)):
        if accuracy >= target:
            if i == 0:
                return x
            before = accuracies[i - 1]
            return xs[i - 1] + (x - xs[i - 1]) * (target - before) / (accuracy - before)
    return None


def censored_median(reached: Sequence[float | None]) -> float | None:
    """Median of what each seed needed, those that never got there above all others; None if it is one of them."""
    ordered = sorted(math.inf if value is None else value for value in reached)
    if not ordered:
        return None
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return median if math.isfinite(median) else None
