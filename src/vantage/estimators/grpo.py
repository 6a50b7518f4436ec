"""GRPO: rewards standardised within the group of rollouts of a prompt.

A_i = (R_i − mean(R)) / (std(R) + eps) (Shao et al., arXiv 2402.03300, §4.1.2). The mean includes the rollout's own reward,
which shrinks the expected gradient by 1 − 1/G, and the division weighs prompts by 1/std; `--grpo.scale none` leaves the
division out. The value that diagnostics see is the leave-one-out mean. Stores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from vantage.errors import UserError
from vantage.estimators.base import Algorithm, Defaults, Estimate, Estimator, Reads, Setup

if TYPE_CHECKING:
    from vantage.batch import Batch


@dataclass(frozen=True)
class Grpo(Algorithm):
    """Options of GRPO."""

    name: ClassVar[str] = "grpo"
    rollouts_min: ClassVar[int] = 2
    rollouts_default: ClassVar[int] = 8
    defaults: ClassVar[Defaults] = Defaults(aggregation="seq-mean-token-mean")

    scale: Literal["group", "none"] = "group"
    """Divide by the group's standard deviation, or not."""
    eps: float = 1e-4
    """Added to the standard deviation."""

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise UserError(f"--grpo.eps is {self.eps}, it must be greater than 0")

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator."""
        return GrpoEstimator(self)


class GrpoEstimator(Estimator):
    """Group-standardised rewards; see the module."""

    def __init__(self, options: Grpo) -> None:
        self.options = options

    def advantages(self, batch: Batch, reads: Reads) -> Estimate:
        """Standardised rewards; the value is the mean outcome of the siblings."""
        from vantage.advantages import grpo_advantages, leave_one_out, over_tokens

        options = self.options
        advantage_B = grpo_advantages(
            batch.reward_B, batch.group_B, batch.scorable_B, options.eps, scale=options.scale == "group"
        )
        value_B = leave_one_out(batch.outcome_B, batch.group_B, batch.scorable_B)
        mask_BT = batch.response_mask_BT
        return Estimate(over_tokens(advantage_B, mask_BT), over_tokens(value_B, mask_BT))
