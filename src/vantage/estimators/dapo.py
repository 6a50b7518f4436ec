"""DAPO: GRPO's advantages with four changes around them (Yu et al., arXiv 2503.14476, §3).

- Clip-higher (§3.1): the importance ratio may fall by 0.2 and rise by 0.28.
- Dynamic sampling (§3.2): groups whose outcomes are all equal are thrown away, and others generated until the step is full.
- Token-level loss (§3.3): every token of the step counts alike, whatever its response's length.
- Overlong reward shaping (§3.4): over the last fifth of the response budget the reward falls by up to 1.

All four are settings of the trainer (`clip_low`, `clip_high`, `group_filter`, `aggregation`, `overlong_buffer`) with defaults
of this algorithm's own: each can be switched off, and each is there for every other algorithm. Stores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vantage.errors import UserError
from vantage.estimators.base import Algorithm, Defaults, Estimator, Setup
from vantage.estimators.grpo import Grpo, GrpoEstimator


@dataclass(frozen=True)
class Dapo(Algorithm):
    """Options of DAPO; its other settings are flags of the trainer."""

    name: ClassVar[str] = "dapo"
    rollouts_min: ClassVar[int] = 2
    rollouts_default: ClassVar[int] = 8
    defaults: ClassVar[Defaults] = Defaults(
        clip_low=0.2, clip_high=0.28, aggregation="token-mean", overlong_share=0.2, group_filter="equal"
    )

    eps: float = 1e-4
    """Added to the group's standard deviation."""

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise UserError(f"--dapo.eps is {self.eps}, it must be greater than 0")

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator."""
        return GrpoEstimator(Grpo(eps=self.eps))
