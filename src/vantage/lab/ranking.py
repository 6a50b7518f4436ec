"""Does a value estimate find the best of several ways to go on? Top-1 credit, chance, pairs and regret, ties counted right.

N candidates of one state (GenAC, arXiv 2604.10701). With T the candidates that the predictor puts on top and B those
that truth puts on top, credit is |T ∩ B| / |T|: what a guess among the predictor's best would get in expectation. Chance is
|B| / N. A pool in which all truths are equal has nothing to find and is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIZES", "PoolScore", "Ranked", "pairwise", "pool_score", "ranked", "regret", "subsets", "top1"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SIZES = (2, 4, 8, 16)
SUBSETS = 200
"""Subsets of one state's candidates at most for each size; all of them where there are no more."""


def top1(predicted_N: Sequence[float] | Floats, truth_N: Sequence[float] | Floats) -> tuple[float, float]:
    """Credit of the predictor's top candidates, and what chance gets."""
    p_N, v_N = _pool(predicted_N, truth_N)
    chosen_N, best_N = p_N == p_N.max(), v_N == v_N.max()
    return float((chosen_N & best_N).sum() / chosen_N.sum()), float(best_N.mean())


def pairwise(predicted_N: Sequence[float] | Floats, truth_N: Sequence[float] | Floats) -> float:
    """Share of pairs with different truths that are put in the right order, half for a tie; NaN without such a pair."""
    p_N, v_N = _pool(predicted_N, truth_N)
    i, j = np.triu_indices(len(v_N), 1)
    told = v_N[i] != v_N[j]
    right, tie = (v_N[i] > v_N[j]) == (p_N[i] > p_N[j]), p_N[i] == p_N[j]  # no difference is taken: two may be −inf
    return float(np.where(tie, 0.5, right)[told].mean()) if told.any() else math.nan


def regret(predicted_N: Sequence[float] | Floats, truth_N: Sequence[float] | Floats) -> float:
    """Best truth − expected truth of a guess among the predictor's top candidates; in reward, never negative."""
    p_N, v_N = _pool(predicted_N, truth_N)
    return float(v_N.max() - v_N[p_N == p_N.max()].mean())


def subsets(count: int, size: int, limit: int = SUBSETS, seed: int = 0) -> Ints:
    """Subsets [subset, candidate] of `size` of `count` candidates: all, or `limit` drawn at random."""
    if not 1 <= size <= count:
        raise ValueError(f"no subsets of {size} of {count} candidates")
    if math.comb(count, size) <= limit:
        return np.array(list(itertools.combinations(range(count), size)), dtype=np.int64)
    draw = np.random.default_rng((seed, count, size))
    return np.argsort(draw.random((limit, count)), axis=1)[:, :size].astype(np.int64)


@dataclass(frozen=True)
class PoolScore:
    """Means over one state's subsets of one size."""

    credit: float
    chance: float
    pairwise: float
    regret: float


def pool_score(
    predicted_N: Sequence[float] | Floats,
    truth_N: Sequence[float] | Floats,
    size: int,
    limit: int = SUBSETS,
    seed: int = 0,
) -> PoolScore | None:
    """Scores of the subsets of `size` among one state's candidates; None if the truths of all of them are equal.

    Subsets of one pool, so that sizes are compared on the same candidates. A candidate without a prediction is last.
    """
    p_N, v_N = _pool(predicted_N, truth_N)
    rows_SN = subsets(len(p_N), size, limit, seed)
    p_SN, v_SN = p_N[rows_SN], v_N[rows_SN]
    told_S = v_SN.min(1) < v_SN.max(1)
    if not told_S.any():
        return None
    p_SN, v_SN = p_SN[told_S], v_SN[told_S]
    best_SN, chosen_SN = v_SN == v_SN.max(1, keepdims=True), p_SN == p_SN.max(1, keepdims=True)
    chosen_S = chosen_SN.sum(1)
    credit_S = (best_SN & chosen_SN).sum(1) / chosen_S
    regret_S = v_SN.max(1) - (v_SN * chosen_SN).sum(1) / chosen_S
    pairs = [pairwise(p, v) for p, v in zip(p_SN, v_SN)]
    return PoolScore(float(credit_S.mean()), float(best_SN.mean()), float(np.mean(pairs)), float(regret_S.mean()))


@dataclass(frozen=True)
class Ranked:
    """Scores of pools of one size over states, each state counting once, with 95 % bootstrap intervals over prompts."""

    size: int
    states: int
    credit: tuple[float, float, float]
    """Mean, low, high."""
    chance: float
    pairwise: tuple[float, float, float]
    regret: tuple[float, float, float]


def ranked(
    predicted: Sequence[Floats],
    truth: Sequence[Floats],
    prompt: Sequence[int],
    size: int,
    *,
    limit: int = SUBSETS,
    seed: int = 0,
    resamples: int = 1000,
) -> Ranked | None:
    """Top-1 ranking over the pools of several states, as subsets of `size` of each; None where no pool has that many.

    `predicted` and `truth` have one array a state, `prompt` the state's prompt.
    """
    rows = [
        (score, p)
        for one, other, p in zip(predicted, truth, prompt, strict=True)
        if len(one) >= size and (score := pool_score(one, other, size, limit, seed))
    ]
    if not rows:
        return None
    _, place = np.unique([p for _, p in rows], return_inverse=True)
    columns = np.array([[s.credit, s.pairwise, s.regret, s.chance] for s, _ in rows])
    sums, counts = np.zeros((place.max() + 1, 4)), np.bincount(place)
    np.add.at(sums, place, columns)
    chosen = np.random.default_rng(seed).integers(len(counts), size=(resamples, len(counts)))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)[:, None]
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    centre = columns.mean(0)
    found = [(float(centre[i]), float(low[i]), float(high[i])) for i in range(3)]
    return Ranked(size, len(rows), found[0], float(centre[3]), found[1], found[2])


def _pool(predicted_N: Sequence[float] | Floats, truth_N: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    p_N, v_N = np.asarray(predicted_N, dtype=np.float64), np.asarray(truth_N, dtype=np.float64)
    if p_N.shape != v_N.shape or not len(p_N):
        raise ValueError(f"{len(p_N)} predictions for {len(v_N)} candidates")
    if not np.isfinite(v_N).all():
        raise ValueError("a candidate has no truth")
    return np.where(np.isfinite(p_N), p_N, -np.inf), v_N
