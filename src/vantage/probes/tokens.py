"""What `poise_token` keeps for one task domain: sums over rows that fade with the steps, and the ridge probes of a grid.

Rows of one rollout share its outcome, so leaving one row out tells nothing about a penalty. Every penalty of the grid is
fitted instead, and judged by what it predicted of the steps after: the same errors say whether the probe is to be trusted.
N rows of one step, P features, A penalties. Everything that is used in a step was fitted on earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.estimators.base import State
from vantage.probes.linear import Scaler

TRUST_STEPS = 4
"""Past steps whose errors choose the penalty and are compared with those of the constant baseline."""
ON_DEVICE_FROM = 1024
"""With more features than this, sums and solutions are taken on the policy's CUDA device."""


@dataclass(frozen=True)
class Sums:
    """Weighted count, means, and sums of products about the means; float64."""

    weight: float
    mean_P: Tensor
    target: float
    scatter_PP: Tensor
    cross_P: Tensor

    @staticmethod
    def of(x_NP: Tensor, y_N: Tensor, world: World, device: torch.device | None = None) -> Sums | None:
        """Of the rows of all processes; None where there is none. The means come first, so no digits are lost to them."""
        x_NP, y_N = x_NP.to(device=device).double(), y_N.to(device=device).double()
        count = y_N.new_tensor([len(y_N)])
        first = world.sum(torch.cat([count, y_N.sum()[None], x_NP.sum(0)]))
        weight = float(first[0])
        if weight == 0:
            return None
        mean_P, target = first[2:] / weight, float(first[1]) / weight
        x_NP = x_NP - mean_P.to(x_NP)
        scatter_PP, cross_P = world.sum(x_NP.T @ x_NP), world.sum(x_NP.T @ (y_N - target))
        return Sums(weight, mean_P, target, scatter_PP, cross_P)

    def faded(self, share: float, newer: Sums) -> Sums:
        """These rows with their weight cut to `share`, together with newer ones."""
        old = share * self.weight
        weight, off_P, off = old + newer.weight, newer.mean_P - self.mean_P, newer.target - self.target
        between, part = old * newer.weight / weight, newer.weight / weight
        return Sums(
            weight,
            self.mean_P + part * off_P,
            self.target + part * off,
            share * self.scatter_PP + newer.scatter_PP + between * torch.outer(off_P, off_P),
            share * self.cross_P + newer.cross_P + between * off * off_P,
        )


def ridge_path(sums: Sums, alphas: Sequence[float], device: torch.device | None = None) -> Tensor:
    """Ridge weights for unscaled, centred features [P, A]: standardise, solve (ZᵀZ + αI)β = Zᵀy, divide by the scale."""
    scaler = Scaler.of(sums.mean_P, sums.scatter_PP.diagonal() / sums.weight, max(1, round(sums.weight)))
    scale_P = scaler.scale_P.to(device=device)
    matrix = sums.scatter_PP.to(device=device) / (scale_P[:, None] * scale_P)
    right_P1 = (sums.cross_P.to(device=device) / scale_P)[:, None]
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    betas = [torch.cholesky_solve(right_P1, torch.linalg.cholesky(matrix + alpha * identity)) for alpha in alphas]
    return (torch.cat(betas, dim=1) / scale_P[:, None]).cpu()


@dataclass(frozen=True)
class Errors:
    """Of one step: its rows, squared errors of the probe with each penalty, and of the constant baseline."""

    rows: float
    probe_A: tuple[float, ...]
    constant: float


class TokenDomain:
    """Faded sums, probes and error history of a domain."""

    def __init__(
        self, alphas: Sequence[float], memory: float, bootstrap: int | None, low: float, high: float,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.alphas, self.fade, self.bootstrap = tuple(alphas), 1 - 1 / memory, bootstrap
        self.low, self.high, self.device = low, high, device
        self.sums: Sums | None = None
        self.path_PA: Tensor | None = None
        self.history: list[Errors] = []
        self.observed = 0
        self.step: int | None = None
        """Newest step that the probes have seen."""
        self.outcome = math.nan
        """Faded mean outcome of past rollouts."""

    @property
    def chosen(self) -> int:
        """Number of the penalty in use: the one with the smallest error over the last steps, else the middle one."""
        if not self.history:
            return len(self.alphas) // 2
        totals = [sum(errors) for errors in zip(*(e.probe_A for e in self.history))]
        return totals.index(min(totals))

    @property
    def alpha(self) -> float:
        """The penalty in use."""
        return self.alphas[self.chosen]

    def trusted(self) -> bool:
        """Whether the probe gives the next step's values: a function of earlier steps only."""
        if self.path_PA is None:
            return False
        if self.bootstrap is not None:
            return self.observed >= self.bootstrap
        constant = sum(e.constant for e in self.history)
        return bool(self.history) and sum(e.probe_A[self.chosen] for e in self.history) < constant

    def weights(self) -> tuple[Tensor, Tensor, float] | None:
        """Mean [P] and weight [P] of the features and the offset of the probe in use; None before the first fit."""
        if self.path_PA is None or self.sums is None:
            return None
        return self.sums.mean_P, self.path_PA[:, self.chosen], self.sums.target

    def require_unseen(self, step: int) -> None:
        """Raise `RuntimeError` if the probes were fitted on this step: its values would know its rewards."""
        if self.step is not None and self.step >= step:
            raise RuntimeError(f"values of step {step} asked from a probe fitted on step {self.step}")

    def clip(self, value: Tensor) -> Tensor:
        """Predictions within the range of the reward."""
        return value.clamp(self.low, self.high)

    def learn(
        self, step: int, x_NP: Tensor, y_N: Tensor, outcome_N: Tensor, constant_N: Tensor, world: World
    ) -> dict[str, float]:
        """Score the probes on this process's new rows, fade the old sums, add the new ones, fit again.

        `y_N` are the targets of the fit, `outcome_N` what really came, `constant_N` the baseline without a probe.
        """
        metrics = {"trusted": float(self.trusted())}
        if self.path_PA is not None:
            metrics |= self._score(x_NP, outcome_N, constant_N, world)
        new = Sums.of(x_NP, y_N, world, self.device)
        if new is not None:
            self.sums = new if self.sums is None else self.sums.faded(self.fade, new)
            self.path_PA, self.step = ridge_path(self.sums, self.alphas, self.device), step
            metrics |= {"alpha": self.alpha, "rows": self.sums.weight}
        self.observed += 1
        return metrics

    def _score(self, x_NP: Tensor, outcome_N: Tensor, constant_N: Tensor, world: World) -> dict[str, float]:
        assert self.sums is not None
        assert self.path_PA is not None
        raw_NA = self.sums.target + (x_NP.double() - self.sums.mean_P) @ self.path_PA
        error_NA, constant_N = outcome_N[:, None] - self.clip(raw_NA), outcome_N - constant_N
        used_N, i = raw_NA[:, self.chosen], self.chosen
        outside = ((used_N <= self.low) | (used_N >= self.high)).double().sum()
        summed = world.sum(
            torch.cat(
                [
                    torch.tensor([float(len(outcome_N)), float((constant_N**2).sum())], dtype=torch.float64),
                    torch.stack([outside, -error_NA[:, i].sum()]),
                    (error_NA**2).sum(0),
                ]
            )
        ).tolist()
        rows, constant, clipped, bias, *squares = summed
        if rows == 0:
            return {}
        self.history = [*self.history, Errors(rows, tuple(squares), constant)][-TRUST_STEPS:]
        skill = {"skill": 1 - squares[i] / constant} if constant > 0 else {}
        return {**skill, "bias": bias / rows, "clipped": clipped / rows}

    def note_outcomes(self, total: float, count: float) -> None:
        """Let the mean outcome of a step's rollouts into the faded mean."""
        if count:
            new = total / count
            self.outcome = new if math.isnan(self.outcome) else self.fade * self.outcome + (1 - self.fade) * new

    def state_dict(self) -> State:
        """Sums as tensors, history and counters as JSON; the probes are a function of the sums."""
        history = [[e.rows, list(e.probe_A), e.constant] for e in self.history]
        outcome = None if math.isnan(self.outcome) else self.outcome
        values = {"observed": self.observed, "history": history, "step": self.step, "outcome": outcome}
        if self.sums is None:
            return State(values=values)
        sums = self.sums
        values |= {"weight": sums.weight, "target": sums.target, "alphas": list(self.alphas)}
        return State({"mean": sums.mean_P, "scatter": sums.scatter_PP, "cross": sums.cross_P}, values)

    def load_state_dict(self, state: State, features: int) -> None:
        """Restore sums and history and fit the probes; raises `UserError` where the policy has other features."""
        values = state.values
        self.observed, self.step = int(values["observed"]), values["step"]
        self.outcome = math.nan if values["outcome"] is None else float(values["outcome"])
        self.history = [Errors(float(n), tuple(map(float, e)), float(c)) for n, e, c in values["history"]]
        if "mean" not in state.tensors:
            return
        if len(state.tensors["mean"]) != features:
            raise UserError(
                f"--resume: the token probe was fitted on {len(state.tensors['mean'])} features, this policy gives {features}"
            )
        tensors = (state.tensors["mean"], float(values["target"]), state.tensors["scatter"], state.tensors["cross"])
        self.sums = Sums(float(values["weight"]), *tensors)
        self.path_PA = ridge_path(self.sums, self.alphas, self.device)
