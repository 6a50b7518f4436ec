"""What is known of the solver that the critic judges? Its name, its size, and its success rate on earlier batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class ActorFacts:
    """The solver as the critic's prompt describes it.

    `rate` is the smoothed success rate ρ: the first batch sets it, later ones move it by ρ ← m ρ + (1 − m) mean. It is shown
    before a batch and updated after it, since a rate with the batch inside would give away its outcomes.
    """

    name: str
    parameters: int
    """Number of parameters."""
    momentum: float = 0.9
    rate: float | None = None

    @property
    def size(self) -> str:
        """Parameters as people write them: 812K, 0.6B, 8.2B."""
        for unit, letter in ((10**9, "B"), (10**6, "M")):
            if self.parameters >= unit / 2:
                return f"{self.parameters / unit:.1f}{letter}"
        return f"{self.parameters / 1000:.0f}K"

    @property
    def percent(self) -> str:
        """The success rate as an integer percentage; `unknown` before the first batch."""
        return "unknown" if self.rate is None else str(math.floor(100 * self.rate + 0.5))

    def observe(self, mean: float) -> None:
        """Take in the success rate of a batch, all its rollouts, before any filter; one without known outcomes says nothing."""
        if math.isfinite(mean):
            self.rate = mean if self.rate is None else self.momentum * self.rate + (1 - self.momentum) * mean

    def state(self) -> dict[str, Any]:
        """What must survive a restart."""
        return {"rate": self.rate}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        self.rate = state["rate"]
