"""Which stage of its training is the critic in, and may it go on? SFT → RL pretraining with a frozen actor → joint PPO.

Gates look at states that the critic has never learned from: those of the newest step, before it learns from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vantage.genac.panel import Judged

Stage = Literal["sft", "pretrain", "joint"]
ORDER: tuple[Stage, ...] = ("sft", "pretrain", "joint")


@dataclass(frozen=True)
class Gates:
    """What a critic must reach before its values move the actor."""

    parse_rate: float = 0.98
    beat_constant: bool = True
    """Whether its Brier score, failures counted as 1, must be below that of the best constant."""

    rival_steps: int = 0
    """Steps that a discriminative critic learns beside it before the two are compared; 0: there is none."""

    def complaints(self, found: Judged, rival: tuple[int, float] | None = None) -> list[str]:
        """What is not good enough, each with both numbers; empty if the gates are open.

        `rival` has the steps that the discriminative critic has learned from, and its squared error on the same states.
        """
        complaints = []
        if not found.parse_rate >= self.parse_rate:
            complaints.append(
                f"it can be parsed in {found.parse_rate:.3f} of its answers, {self.parse_rate} are wanted"
            )
        if self.beat_constant and not found.brier_penalised < found.brier_constant:
            complaints.append(
                f"its squared error is {found.brier_penalised:.4f}, that of the best constant {found.brier_constant:.4f}"
            )
        if rival is not None:
            steps, error = rival
            if steps < self.rival_steps:
                complaints.append(
                    f"the discriminative critic beside it has learned from {steps} of {self.rival_steps} steps"
                )
            elif not found.brier_penalised < error:
                complaints.append(
                    f"its squared error is {found.brier_penalised:.4f}, that of a discriminative critic {error:.4f}"
                )
        return complaints
