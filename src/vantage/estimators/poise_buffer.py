"""POISE's buffer: the newest rollouts of a domain, from which whole prompt groups leave, oldest first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vantage.probes.moments import Moments


@dataclass(frozen=True)
class Rows:
    """Rollouts of one step, sorted by prompt group."""

    step: int
    features_NP: Tensor
    target_N: Tensor
    group_N: Tensor

    @cached_property
    def moments(self) -> Moments:
        """Their sums for a fit, taken once."""
        return Moments.of(self.features_NP, self.target_N)


class Buffer:
    """The newest rows, at most `steps` steps and `rows` rows; whole prompt groups leave, oldest first."""

    def __init__(self, steps: int, rows: int) -> None:
        self.max_steps, self.max_rows = steps, rows
        self.steps: list[Rows] = []

    def __len__(self) -> int:
        return sum(len(s.target_N) for s in self.steps)

    def append(self, rows: Rows) -> None:
        """Add a step's rows and let the oldest go."""
        self.steps = [*self.steps, rows][-self.max_steps :]
        while (excess := len(self) - self.max_rows) > 0 and len(self):
            oldest = self.steps[0]
            kept = _without_first(oldest, excess)
            self.steps[:1] = [kept] if len(kept.target_N) else []

    def data(self) -> tuple[Tensor, Tensor]:
        """All features [N, P] and targets [N]."""
        return torch.cat([s.features_NP for s in self.steps]), torch.cat([s.target_N for s in self.steps])

    def age(self, step: int) -> float:
        """Mean age of the rows in steps."""
        return sum((step - s.step) * len(s.target_N) for s in self.steps) / max(1, len(self))


def _without_first(rows: Rows, excess: int) -> Rows:
    """Drop as many leading whole groups as cover `excess` rows."""
    _, sizes = torch.unique_consecutive(rows.group_N, return_counts=True)
    cut = 0
    for size in sizes.tolist():
        if cut >= excess:
            break
        cut += size
    return Rows(rows.step, rows.features_NP[cut:], rows.target_N[cut:], rows.group_N[cut:])
