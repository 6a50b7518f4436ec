"""What do k responses to each problem say? avg@k, pass@k, pass^k, majority@k and their intervals, as pure functions.

Problems are the unit of chance everywhere: the responses to one problem are one observation, whatever their number.
P problems, K responses each.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
RESAMPLES = 10_000
"""Bootstrap resamples: the ends of a 95 % interval then move by about a hundredth of its width from seed to seed."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased chance that one of k responses is correct: 1 − C(n−c, k)/C(n, k) from n ≥ k samples, c of them correct.

    Chen et al., arXiv 2107.03374, equation 1. Raises `ValueError` unless 1 ≤ k ≤ n and 0 ≤ c ≤ n.
    """
    _check(correct, samples, k)
    if samples - correct < k:
        return 1.0
    return 1.0 - math.prod((samples - correct - i) / (samples - i) for i in range(k))


def pass_all_k(correct: int, samples: int, k: int) -> float:
    """Unbiased chance that all of k responses are correct (pass^k): C(c, k)/C(n, k). Raises as `pass_at_k` does."""
    _check(correct, samples, k)
    return math.prod((correct - i) / (samples - i) for i in range(k)) if correct >= k else 0.0


def majority_at_k(votes: Sequence[str | None], scores: Sequence[float], k: int) -> float:
    """Expected score of the answer that most of k responses give, over all subsets of k of the n samples, exactly.

    Among answers with equally many votes each wins equally often. An answer's score is the mean over the responses
    that give it. None abstains: it takes a place among the k but is no answer; if all k abstain the score is 0.

    Args:
        votes: The answer of each response, already brought into one spelling.
        scores: The score of each response.
        k: Size of the subsets, 1 to n.

    Raises:
        ValueError: k is no such number, or votes and scores differ in length.
    """
    if not 1 <= k <= len(votes) or len(votes) != len(scores):
        raise ValueError(f"k is {k} for {len(votes)} votes and {len(scores)} scores")
    counts = Counter(vote for vote in votes if vote is not None)
    shares = _winning_chances(tuple(sorted(counts.values())), len(votes) - counts.total(), k)
    total = dict.fromkeys(counts, 0.0)
    for vote, score in zip(votes, scores, strict=True):
        if vote is not None:
            total[vote] += score
    return math.fsum(total[vote] / count * float(shares[count]) for vote, count in counts.items())


@functools.lru_cache(maxsize=4096)
def _winning_chances(counts: tuple[int, ...], abstaining: int, k: int) -> dict[int, Fraction]:
    """Chance that one answer wins, by how many of the samples give it; `counts` has that number for every answer.

    For an answer with m of the k votes, the other answers must have m at most; the ways to draw them are counted by the
    number of votes used and the number of answers that also have m, among whom the win is shared.
    """
    everything = math.comb(sum(counts) + abstaining, k)
    chances: dict[int, Fraction] = {}
    for count in set(counts):
        others = list(counts)
        others.remove(count)
        won = Fraction(0)
        for m in range(1, min(count, k) + 1):
            ways = {(0, 0): 1}
            for other in others:
                ways = _with_another(ways, other, m, k - m)
            mine = math.comb(count, m)
            for (used, tied), number in ways.items():
                won += Fraction(mine * number * math.comb(abstaining, k - m - used), tied + 1)
        chances[count] = won / everything
    return chances


def _with_another(ways: dict[tuple[int, int], int], count: int, most: int, room: int) -> dict[tuple[int, int], int]:
    """The ways to draw votes once one more answer takes part, with `most` votes or fewer, within `room` votes in all."""
    found: dict[tuple[int, int], int] = {}
    for (used, tied), number in ways.items():
        for drawn in range(min(count, most, room - used) + 1):
            place = (used + drawn, tied + (drawn == most))
            found[place] = found.get(place, 0) + number * math.comb(count, drawn)
    return found


def wilson(share: float, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (J. Am. Stat. Assoc. 22, 1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(score_PK: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean and 95 % interval over problems: normal over the problems' means, which allows for any spread within them.

    Wilson's interval where each problem has one 0/1 score, and where all problems agree on 0 or on 1 (as 30 problems
    that all fail do not prove that nothing can be solved). NaN without problems.
    """
    if len(score_PK) == 0:
        return math.nan, math.nan, math.nan
    value_P = score_PK.mean(axis=1)
    mean = float(value_P.mean())
    binary = score_PK.shape[1] == 1 and bool(np.isin(score_PK, (0.0, 1.0)).all())
    if binary or (mean in (0.0, 1.0) and bool((value_P == mean).all())):
        return mean, *wilson(mean, len(value_P))
    half = Z95 * standard_error(value_P)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def standard_error(value_P: NDArray[np.float64]) -> float:
    """Of the mean over problems: s/√P with s² = Σ(v − v̄)²/(P − 1); infinite for fewer than two problems."""
    return float(value_P.std(ddof=1)) / math.sqrt(len(value_P)) if len(value_P) > 1 else math.inf


def bootstrap_interval(
    value_P: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Mean and 95 % percentile interval over problems drawn with replacement (Efron, Ann. Stat. 7, 1979)."""
    if len(value_P) == 0:
        return math.nan, math.nan, math.nan
    mean_R = _resampled_means(value_P, resamples, np.random.default_rng(seed))
    low, high = np.quantile(mean_R, (0.025, 0.975))
    return float(value_P.mean()), float(low), float(high)


def _resampled_means(value_P: NDArray[np.float64], resamples: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """Means of resampled problems [R], in chunks, so that memory does not grow with problems × resamples."""
    count = len(value_P)
    chunk = max(1, 2_000_000 // count)
    parts = [
        value_P[draw.integers(count, size=(min(chunk, resamples - start), count))].mean(axis=1)
        for start in range(0, resamples, chunk)
    ]
    return np.concatenate(parts)


def problem_estimate(value_P: NDArray[np.float64], method: str = "normal") -> Estimate:
    """Mean of one value in [0, 1] for each problem, `normal` (see `mean_interval`) or `bootstrap`."""
    if method == "bootstrap":
        return Estimate(*bootstrap_interval(value_P))
    return Estimate(*mean_interval(value_P[:, None]))


def macro_average(values: Sequence[NDArray[np.float64]], method: str = "normal", least: float = 0.0) -> Estimate:
    """Mean of benchmarks' means, each benchmark counting once; the interval's variance is Σ_b s_b²/P_b over B².

    `values` has one value a problem, from `least` to 1, for each of B benchmarks. `bootstrap` resamples within each
    benchmark. Where all problems of a benchmark agree on 0 or on 1, half of Wilson's interval over 1.96 stands for its
    standard error; differences (`least` −1) that all agree have none.
    """
    mean = float(np.mean([value_P.mean() for value_P in values]))
    if method == "bootstrap":
        draw = np.random.default_rng(0)
        mean_R = np.mean([_resampled_means(value_P, RESAMPLES, draw) for value_P in values], axis=0)
        low, high = np.quantile(mean_R, (0.025, 0.975))
        return Estimate(mean, float(low), float(high))
    errors = [standard_error(value_P) for value_P in values]
    if least == 0:
        errors = [_unanimous_error(value_P) or error for value_P, error in zip(values, errors, strict=True)]
    half = min(2.0, Z95 * math.sqrt(sum(error**2 for error in errors)) / len(values))
    return Estimate(mean, max(least, mean - half), min(1.0, mean + half))


def _unanimous_error(value_P: NDArray[np.float64]) -> float:
    """Wilson's half width over 1.96 where all problems have the value 0, or all have 1; else 0."""
    share = float(value_P[0])
    if share not in (0.0, 1.0) or bool((value_P != share).any()):
        return 0.0
    low, high = wilson(share, len(value_P))
    return (high - low) / (2 * Z95)


@dataclass(frozen=True)
class Paired:
    """How one model differs from another on the same problems."""

    difference: Estimate
    """Mean of (one − other) over the problems, with its interval."""
    better: int
    """Problems on which the one scores higher."""
    worse: int
    equal: int


def paired_difference(one_P: NDArray[np.float64], other_P: NDArray[np.float64], method: str = "normal") -> Paired:
    """Mean difference over the same problems; what problems have in common does not widen its interval.

    The interval is normal over the P differences, ±1.96 s/√P, or the bootstrap's over problems.

    Raises:
        ValueError: the two are not about equally many problems, or there are none.
    """
    if one_P.shape != other_P.shape or len(one_P) == 0:
        raise ValueError(f"{len(one_P)} values for one, {len(other_P)} for the other")
    change_P = one_P - other_P
    better, worse = int((change_P > 1e-9).sum()), int((change_P < -1e-9).sum())
    return Paired(macro_average([change_P], method, -1.0), better, worse, len(change_P) - better - worse)


def powers_of_two(k: int) -> list[int]:
    """1, 2, 4, … up to k, and k itself."""
    return sorted({*_doubling(k), k})


def _doubling(k: int) -> Iterator[int]:
    power = 1
    while power <= k:
        yield power
        power *= 2


def _check(correct: int, samples: int, k: int) -> None:
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"k is {k} and {correct} are correct, of {samples} samples")
