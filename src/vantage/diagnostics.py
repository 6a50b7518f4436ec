"""How good a value estimate is: one piece of code for every algorithm (keys `value/*`; glossary in docs/metrics.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vantage.estimators.base import Estimate


def first_value(estimate: Estimate, mask_BT: Tensor) -> Tensor:
    """The value at the first response token [B]; NaN for an empty response or where there is no estimate."""
    if mask_BT.shape[1] == 0:
        return torch.full((mask_BT.shape[0],), float("nan"))
    value_B = estimate.value_BT[:, 0]
    return torch.where(mask_BT[:, 0], value_B, torch.full_like(value_B, float("nan")))


def largest_advantage(estimate: Estimate) -> Tensor:
    """Largest |advantage| of each response [B], that of the estimator's own loss included; 0 for an empty response."""
    advantage_BT = estimate.advantage_BT
    largest_B = advantage_BT.abs().amax(1) if advantage_BT.shape[1] else torch.zeros(len(advantage_BT))
    return largest_B if estimate.pull_B is None else torch.maximum(largest_B.double(), estimate.pull_B.abs().double())


def zero_advantage_groups(largest_B: Tensor, group_B: Tensor) -> float:
    """Share of prompt groups all of whose advantages are 0: they cost rollouts and teach nothing.

    `largest_B` is `largest_advantage`, `group_B` the prompt of each rollout [B].
    """
    groups, index_B = torch.unique(group_B, return_inverse=True)
    largest_G = torch.zeros(len(groups), dtype=largest_B.dtype).scatter_reduce(0, index_B, largest_B, "amax")
    return float((largest_G == 0).double().mean())


def value_metrics(value_B: Tensor, outcome_B: Tensor) -> dict[str, float]:
    """Compare values [B] with the rollouts' own raw outcomes [B]; rows with a NaN in either are left out.

    mae: mean |outcome − value|. pearson: correlation. explained_variance: 1 − mean (outcome − value)² / Var(outcome),
    which also punishes an offset. variance_reduction: 1 − Var(outcome − value) / Var(outcome). brier_skill: 1 − MSE of
    the value over the MSE of the best constant. NaN where outcomes (or values) do not vary. Population variances.
    """
    known_B = value_B.isfinite() & outcome_B.isfinite()
    value, outcome = value_B[known_B].double(), outcome_B[known_B].double()
    if len(value) == 0:
        return {}
    error = outcome - value
    spread, mse = float(outcome.var(correction=0)), float((error**2).mean())
    value_spread = float(value.var(correction=0))
    covariance = float(((value - value.mean()) * (outcome - outcome.mean())).mean())
    varies = spread > 1e-12
    correlated = varies and value_spread > 1e-12
    return {
        "value/mean": float(value.mean()),
        "value/mae": float(error.abs().mean()),
        "value/pearson": covariance / math.sqrt(spread * value_spread) if correlated else math.nan,
        "value/explained_variance": 1 - mse / spread if varies else math.nan,
        "value/brier_skill": brier_skill(value, outcome) if varies else math.nan,
        "value/variance_reduction": 1 - float(error.var(correction=0)) / spread if varies else math.nan,
    }


def brier_skill(value: Tensor, outcome: Tensor) -> float:
    """1 − Brier score of the values over that of the constant mean outcome, for outcomes and values in [0, 1]."""
    return 1 - float(((outcome - value) ** 2).mean()) / float(((outcome - outcome.mean()) ** 2).mean())
