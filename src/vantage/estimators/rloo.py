"""RLOO: the baseline of a rollout is the mean reward of the other rollouts of its prompt.

A_i = R_i − (1/(G−1)) Σ_{j≠i} R_j (Ahmadian et al., arXiv 2402.14740, Eq. 5). The baseline does not depend on rollout i,
so the gradient is unbiased wherever the loss weighs tokens by a constant. Stores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vantage.estimators.base import Algorithm, Estimate, Estimator, Reads, Setup

if TYPE_CHECKING:
    from vantage.batch import Batch


@dataclass(frozen=True)
class Rloo(Algorithm):
    """RLOO has no options of its own."""

    name: ClassVar[str] = "rloo"
    rollouts_min: ClassVar[int] = 2
    rollouts_default: ClassVar[int] = 8

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator."""
        return RlooEstimator()


class RlooEstimator(Estimator):
    """Leave-one-out means; see the module."""

    def advantages(self, batch: Batch, reads: Reads) -> Estimate:
        """Reward minus the mean of the siblings; the value is that mean of raw outcomes."""
        from vantage.advantages import leave_one_out, over_tokens, rloo_advantages

        advantage_B = rloo_advantages(batch.reward_B, batch.group_B, batch.scorable_B)
        value_B = leave_one_out(batch.outcome_B, batch.group_B, batch.scorable_B)
        mask_BT = batch.response_mask_BT
        return Estimate(over_tokens(advantage_B, mask_BT), over_tokens(value_B, mask_BT))
