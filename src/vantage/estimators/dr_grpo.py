"""Dr. GRPO: GRPO without the two normalisations that bias it.

A_i = R_i − mean(R), not divided by the group's standard deviation, and token losses summed and divided by a constant, the
response budget, instead of by each response's length (Liu et al., arXiv 2503.20783, §3.2). What remains is RLOO's
gradient times 1 − 1/G, since the mean includes the rollout's own reward. Stores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vantage.estimators.base import Algorithm, Defaults, Estimator, Setup
from vantage.estimators.grpo import Grpo, GrpoEstimator


@dataclass(frozen=True)
class DrGrpo(Algorithm):
    """Dr. GRPO has no options of its own."""

    name: ClassVar[str] = "dr_grpo"
    rollouts_min: ClassVar[int] = 2
    rollouts_default: ClassVar[int] = 8
    defaults: ClassVar[Defaults] = Defaults(aggregation="seq-mean-token-sum-norm")

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator."""
        return GrpoEstimator(Grpo(scale="none"))
