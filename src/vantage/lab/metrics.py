"""How good are value predictions? Pure functions of predictions and Monte-Carlo truth, and intervals over prompts.

N states. A prediction p is compared with the mean m of K continuations of its state, which is V plus noise of a known size
(`vantage.montecarlo`). Where that noise would flatter or punish a predictor it is taken out: `mse_corrected`,
`pearson_corrected`, `explained_variance`. Absolute errors and ranks have no such correction, so they need a large K.
Everything is a share of the reward range, so that 0 is failure and 1 success. NaN stands for "can not be said".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vantage.montecarlo import noise_corrected_mse, noise_corrected_pearson

__all__ = [
    "METRICS", "Interval", "Target", "auc", "bootstrap", "brier", "brier_skill", "calibration", "ece",
    "explained_variance", "mae", "measured", "mse", "mse_corrected", "mse_penalised", "noise_corrected_mse",
    "noise_corrected_pearson", "paired", "pearson", "resampled_rows", "spearman",
]  # fmt: skip

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RESAMPLES = 1000


@dataclass(frozen=True)
class Target:
    """What predictions are compared with, N states."""

    mean_N: Floats
    """Mean outcome of each state's continuations."""
    variance_N: Floats
    """Sampling variance of that mean; 0 where it is exact."""
    within_N: Floats
    """Population variance of the outcomes themselves: m(1 − m) where they are 0 or 1."""
    prompt_N: Ints
    """Number of the prompt that a state belongs to: the unit of chance."""
    constant: float
    """What the constant predictor says: the mean outcome of the rollouts that estimators learned from."""

    @staticmethod
    def of(outcome_NK: Floats, prompt_N: Sequence[int] | Ints, constant: float) -> Target:
        """From the outcomes of K continuations of each state, NaN where one could not be judged."""
        count_N = np.isfinite(outcome_NK).sum(1)
        known_N = np.where(count_N > 0, count_N, 1)
        mean_N = np.where(count_N > 0, np.nansum(outcome_NK, 1) / known_N, np.nan)
        within_N = np.nansum((outcome_NK - mean_N[:, None]) ** 2, 1) / known_N
        within_N = np.where(count_N > 0, within_N, np.nan)
        variance_N = np.where(count_N > 1, within_N / np.maximum(1, count_N - 1), np.nan)
        return Target(mean_N, variance_N, within_N, np.asarray(prompt_N, dtype=np.int64), constant)

    def __len__(self) -> int:
        return len(self.mean_N)

    def take(self, rows: Any) -> Target:
        """Some of the states: an index array, or a mask."""
        return Target(self.mean_N[rows], self.variance_N[rows], self.within_N[rows], self.prompt_N[rows], self.constant)


def mae(predicted_N: Floats, target: Target) -> float:
    """Mean |p − m|. Noise in m adds to it, the less the larger the true errors are."""
    return _mean(np.abs(predicted_N - target.mean_N))


def mse(predicted_N: Floats, target: Target) -> float:
    """Mean (p − m)², the noise of m included: even V itself does not reach 0."""
    return _mean((predicted_N - target.mean_N) ** 2)


def mse_corrected(predicted_N: Floats, target: Target) -> float:
    """Unbiased estimate of mean (p − V)²; see `vantage.montecarlo.noise_corrected_mse`."""
    return noise_corrected_mse(predicted_N, target.mean_N, target.variance_N)


def mse_penalised(predicted_N: Floats, target: Target, penalty: float = 1.0) -> float:
    """`mse` where a missing prediction (NaN: a generative critic that can not be parsed) has the error `penalty`."""
    error_N = (predicted_N - target.mean_N) ** 2
    return _mean(np.where(np.isfinite(predicted_N), error_N, penalty)[np.isfinite(target.mean_N)])


def brier(predicted_N: Floats, target: Target) -> float:
    """Mean squared error against the single outcomes: mean (p − m)² + their variance within each state."""
    return _mean((predicted_N - target.mean_N) ** 2 + target.within_N)


def brier_skill(predicted_N: Floats, target: Target) -> float:
    """1 − Brier score over that of the constant predictor; 0 is no better than the mean training outcome.

    Below 1 even for V itself, as outcomes are random. NaN where the constant predictor makes no error.
    """
    reference_N = np.where(np.isfinite(predicted_N), target.constant, np.nan)
    worst = brier(reference_N, target)
    return 1 - brier(predicted_N, target) / worst if worst > 0 else math.nan


def explained_variance(predicted_N: Floats, target: Target) -> float:
    """1 − `mse_corrected` over the variance of the true values; an offset is punished too.

    1 for V itself, 0 for its mean. NaN where the means differ by no more than noise.
    """
    p_N, m_N, v_N = _finite(predicted_N, target.mean_N, target.variance_N)
    spread = float(m_N.var(ddof=1) - v_N.mean()) if len(m_N) > 1 else 0.0
    return 1 - noise_corrected_mse(p_N, m_N, v_N) / spread if spread > 0 else math.nan


def pearson(predicted_N: Floats, target: Target) -> float:
    """Correlation with the means; NaN where either does not vary."""
    return _correlation(*_finite(predicted_N, target.mean_N))


def pearson_corrected(predicted_N: Floats, target: Target) -> float:
    """Correlation with the true values; see `vantage.montecarlo.noise_corrected_pearson`."""
    return noise_corrected_pearson(predicted_N, target.mean_N, target.variance_N)


def spearman(predicted_N: Floats, target: Target) -> float:
    """Correlation of ranks, equal values sharing their mean rank (Spearman, Am. J. Psychol. 15, 1904)."""
    p_N, m_N = _finite(predicted_N, target.mean_N)
    return _correlation(ranks(p_N), ranks(m_N))


def auc(predicted_N: Floats, target: Target) -> float:
    """Chance that a state that went on to succeed is ranked above one that went on to fail, ties counting half.

    Over pairs of single continuations: state i stands m_i times among successes and 1 − m_i times among failures
    (the weighted Mann-Whitney statistic). NaN without a success or without a failure; a fractional outcome counts as that
    share of a success.
    """
    p_N, m_N = _finite(predicted_N, target.mean_N)
    if not 0 < m_N.sum() < len(m_N):
        return math.nan
    _, place_N = np.unique(p_N, return_inverse=True)
    positive_U, negative_U = np.bincount(place_N, m_N), np.bincount(place_N, 1 - m_N)
    below_U = negative_U.cumsum() - negative_U
    return float((positive_U * (below_U + negative_U / 2)).sum() / (m_N.sum() * (1 - m_N).sum()))


@dataclass(frozen=True)
class Calibration:
    """Bins of predictions, C of them that are not empty."""

    predicted_C: Floats
    """Mean prediction in the bin."""
    mean_C: Floats
    """Mean truth in the bin."""
    count_C: Ints


def calibration(predicted_N: Floats, target: Target, bins: int = 10) -> Calibration:
    """Predictions in equal-width bins of [0, 1] against what came: a calibrated predictor lies on the diagonal.

    Values outside of [0, 1] go into the first and the last bin. The noise of the truth averages out within a bin.
    """
    p_N, m_N = _finite(predicted_N, target.mean_N)
    place_N = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p_N)
    count_C = np.bincount(place_N, minlength=bins)
    full_C = count_C > 0
    sums = [np.bincount(place_N, values, minlength=bins)[full_C] / count_C[full_C] for values in (p_N, m_N)]
    return Calibration(sums[0], sums[1], count_C[full_C])


def ece(predicted_N: Floats, target: Target, bins: int = 10) -> float:
    """Expected calibration error: mean |prediction − truth| of the bins, weighted by their states."""
    found = calibration(predicted_N, target, bins)
    total = int(found.count_C.sum())
    return float((found.count_C * np.abs(found.predicted_C - found.mean_C)).sum() / total) if total else math.nan


Metric = Callable[[Floats, Target], float]
METRICS: Mapping[str, Metric] = {
    "mae": mae, "mse": mse, "mse_corrected": mse_corrected, "pearson": pearson, "pearson_corrected": pearson_corrected,
    "spearman": spearman, "auc": auc, "brier_skill": brier_skill, "explained_variance": explained_variance, "ece": ece,
}  # fmt: skip
"""What the lab reports of every estimator, by name."""


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval."""

    mean: float
    low: float
    high: float


def resampled_rows(prompt_N: Ints, resamples: int = RESAMPLES, seed: int = 0) -> list[Ints]:
    """Rows of `resamples` samples of prompts, drawn with replacement, each with all its states.

    The states of a prompt stand and fall together, so that their number does not narrow an interval (Efron, Ann. Stat. 7,
    1979). The same rows for several predictors make their differences paired.
    """
    prompts, place_N = np.unique(prompt_N, return_inverse=True)
    members = [np.flatnonzero(place_N == i) for i in range(len(prompts))]
    draw = np.random.default_rng(seed)
    if not members:
        return []
    chosen = draw.integers(len(members), size=(resamples, len(members))).tolist()
    return [np.concatenate([members[i] for i in row]) for row in chosen]


def measured(
    predicted_N: Floats, target: Target, rows: Sequence[Ints], metrics: Mapping[str, Metric] = METRICS
) -> dict[str, Interval]:
    """Every metric with its percentile interval over the resamples `rows` (`resampled_rows`)."""
    samples = [(predicted_N[r], target.take(r)) for r in rows]
    return {
        name: _interval(metric(predicted_N, target), np.array([metric(p_N, t) for p_N, t in samples]))
        for name, metric in metrics.items()
    }


def bootstrap(metric: Metric, predicted_N: Floats, target: Target, rows: Sequence[Ints]) -> Interval:
    """A metric and its 95 % percentile interval; NaN ends where it can not be said in most of the resamples."""
    return measured(predicted_N, target, rows, {"it": metric})["it"]


def paired(metric: Metric, one_N: Floats, other_N: Floats, target: Target, rows: Sequence[Ints]) -> Interval:
    """Metric of one predictor − that of another on the same states, with the interval of the difference."""
    both_N = np.isfinite(one_N) & np.isfinite(other_N)
    one_N, other_N = np.where(both_N, one_N, np.nan), np.where(both_N, other_N, np.nan)
    parts = [target.take(r) for r in rows]
    found = np.array([metric(one_N[r], t) - metric(other_N[r], t) for r, t in zip(rows, parts)])
    return _interval(metric(one_N, target) - metric(other_N, target), found)


def _interval(value: float, found: Floats) -> Interval:
    known = found[np.isfinite(found)]
    if 2 * len(known) < len(found) or not len(known):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(known, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def ranks(value_N: Floats) -> Floats:
    """Ranks from 1, equal values sharing their mean rank."""
    _, place_N, count_U = np.unique(value_N, return_inverse=True, return_counts=True)
    ends_U = count_U.cumsum()
    shared_N: Floats = ((2 * ends_U - count_U + 1) / 2)[place_N]
    return shared_N


def _correlation(one_N: Floats, other_N: Floats) -> float:
    if len(one_N) < 2:
        return math.nan
    a_N, b_N = one_N - one_N.mean(), other_N - other_N.mean()
    scale = math.sqrt(float((a_N**2).sum()) * float((b_N**2).sum()))
    # A column of equal numbers keeps a rest of rounding, which is no variation.
    steady = np.ptp(one_N) == 0 or np.ptp(other_N) == 0
    return math.nan if steady or scale == 0 else float((a_N * b_N).sum()) / scale


def _mean(value_N: Floats) -> float:
    known_N = value_N[np.isfinite(value_N)]
    return float(known_N.mean()) if len(known_N) else math.nan


def _finite(*columns: Floats) -> tuple[Floats, ...]:
    """The states for which every column has a finite number."""
    arrays = np.stack([np.asarray(column, dtype=np.float64) for column in columns])
    return tuple(arrays[:, np.isfinite(arrays).all(0)])
