"""REINFORCE++: one rollout a prompt, advantages normalised over the whole step.

A_i = (R_i − μ) / √(σ² + eps), where μ and σ² are mean and population variance of the rewards over *all* rollouts of the step
(Hu, arXiv 2501.03262, Eq. 10). `over` says what is counted: `tokens`, as in the official code (a response counts as often
as it has tokens), or `responses` (each once). With several rollouts a prompt, `baseline group` takes the group mean from
each reward first (the paper's REINFORCE++-baseline). The value that diagnostics see is the mean outcome of all
other rollouts of the step (of the siblings for `baseline group`). Stores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from vantage.errors import UserError
from vantage.estimators.base import Algorithm, Defaults, Estimate, Estimator, Reads, Setup

if TYPE_CHECKING:
    from vantage.batch import Batch


@dataclass(frozen=True)
class Reinforce(Algorithm):
    """Options of REINFORCE++."""

    name: ClassVar[str] = "reinforce"
    rollouts_min: ClassVar[int] = 1
    rollouts_default: ClassVar[int] = 1
    defaults: ClassVar[Defaults] = Defaults(aggregation="token-mean")

    over: Literal["tokens", "responses"] = "tokens"
    """What mean and variance are taken over: every token of the step (as the official code), or every response once."""
    baseline: Literal["none", "group"] = "none"
    """`group` subtracts the mean of the prompt's rollouts before the normalisation (REINFORCE++-baseline)."""
    eps: float = 1e-8
    """Added to the variance."""

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise UserError(f"--reinforce.eps is {self.eps}, it must be greater than 0")

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator; a group baseline needs groups."""
        if self.baseline == "group" and setup.rollouts_per_prompt < 2:
            raise UserError("--reinforce.baseline group needs --rollouts-per-prompt of at least 2")
        return ReinforceEstimator(self, setup)


class ReinforceEstimator(Estimator):
    """Rewards normalised over the step; see the module."""

    def __init__(self, options: Reinforce, setup: Setup) -> None:
        self.options, self.world = options, setup.world

    def advantages(self, batch: Batch, reads: Reads) -> Estimate:
        """Normalised rewards, with statistics over all processes."""
        from vantage.advantages import grpo_advantages, leave_one_out, leave_one_out_of_batch, over_tokens, whiten

        options, valid_B, mask_BT = self.options, batch.scorable_B, batch.response_mask_BT
        if options.baseline == "group":
            centred_B = grpo_advantages(batch.reward_B, batch.group_B, valid_B, eps=0.0, scale=False)
            value_B = leave_one_out(batch.outcome_B, batch.group_B, valid_B)
        else:
            centred_B = batch.reward_B
            value_B = leave_one_out_of_batch(batch.outcome_B, valid_B, self.world)
        count_B = batch.length_B if options.over == "tokens" else batch.length_B.clamp(max=1)
        advantage_B = whiten(centred_B, count_B * valid_B, self.world, options.eps)
        return Estimate(over_tokens(advantage_B, mask_BT), over_tokens(value_B, mask_BT))
