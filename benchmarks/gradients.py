"""What P5 and P6 measure with: one policy that stands still, estimators that have learnt from its past, gradients of groups.

At ratio 1 the gradient is linear in the advantages. So where a response has one advantage, the gradient of any group follows
from the gradients at advantage 1 of its rollouts, one backward pass each for all estimators; where the baseline is a function
of the prefix, from the gradients of its rollouts. Both come out of the trainer's own code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vantage import PoiseToken
from vantage.audit.plan import Audit
from vantage.audit.setting import Setting
from vantage.audit.statistics import across, left_out
from vantage.audit.statistics import interval as jackknife
from vantage.batch import Batch
from vantage.estimators.base import Algorithm, Estimate, Estimator, Reads, Setup
from vantage.update import PolicyUpdate

MEMBERS = 16
"""Rollouts of every prompt that gradients are taken of."""
BLOCKS = 12
"""Blocks of prompts for the jackknife."""


@dataclass(frozen=True)
class One(Algorithm):
    """Advantage 1 for every token."""

    name: ClassVar[str] = "one"

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator."""
        return OneEstimator()


class OneEstimator(Estimator):
    """See `One`."""

    def advantages(self, batch: Batch, reads: Reads) -> Estimate:
        """Ones."""
        return Estimate(batch.response_mask_BT.double(), torch.zeros(batch.response_mask_BT.shape))


@dataclass
class Measured:
    """Gradients of the groups of one estimator at one m: by block of prompts."""

    square_C: list[float]
    """Mean ‖group gradient‖²."""
    mean_CP: Tensor
    """Mean gradient."""

    def left_out(self) -> list[tuple[float, float]]:
        """Mean square and squared norm of the expected gradient, of all blocks, then without each of them."""
        square_C, mean_CP = np.array(self.square_C), self.mean_CP.double().numpy()
        return list(zip(left_out(square_C).tolist(), across(mean_CP @ mean_CP.T).tolist()))

    def trace(self, m: int, rollouts: int) -> list[float]:
        """tr Cov of a step's gradient: the estimate, then the jackknife's."""
        return [m / rollouts * (square - signal) for square, signal in self.left_out()]


def interval(values: Sequence[float]) -> dict[str, float]:
    """Estimate and its 95 % interval by the jackknife."""
    return jackknife(np.array(values)).as_dict()


def relative_bias(biased: Measured, unbiased: Measured) -> float | None:
    """‖E g − E g₁‖ / ‖E g₁‖, unbiased under the roots; 0 where the upper estimate is negative, None where the lower is."""
    off_CP, mean_CP = ((biased.mean_CP - unbiased.mean_CP).numpy(), unbiased.mean_CP.numpy())
    signal, off = (float(across(each.astype(np.float64) @ each.astype(np.float64).T)[0]) for each in (mean_CP, off_CP))
    return math.sqrt(max(0.0, off) / signal) if signal > 0 else None


class Laboratory:
    """One policy, its rollouts in groups of any size, and estimators that have learnt from some of them."""

    def __init__(self, task: str, model: str, rollouts: int, fills: int, seed: int) -> None:
        settings = {"task": task, "seed": seed}
        audit = Audit(model, {}, settings, Path("unused"), rollouts_per_step=rollouts, fill_steps=fills)
        self.setting, self.rollouts, self.fills = Setting(audit), rollouts, fills
        self.one = self.update(One(), 1)

    def update(self, algo: Algorithm, m: int) -> PolicyUpdate:
        """Forward and backward with an estimator that has learnt from the past in groups of m."""
        return self.setting.update(algo, m)

    def present(self, prompts: int) -> Batch:
        """16 rollouts of each of some prompts that no probe has seen."""
        source = self.setting.trainer(PoiseToken(), MEMBERS, rollouts_per_step=prompts * MEMBERS)
        return source.collector(self.fills + 1, source.stream, self.fills * self.rollouts).batch

    def gradient(self, update: PolicyUpdate, group: Batch) -> Tensor:
        """Mean gradient of a group's rollouts, all parameters in one vector [P]."""
        update.policy.model.zero_grad(set_to_none=True)
        update.gradient(group)
        parameters = [p for p in update.policy.model.parameters() if p.requires_grad]
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])

    def single(self, update: PolicyUpdate, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Gradient of each rollout by itself [G, P]."""
        return torch.stack([self.gradient(update, batch.select([row])) for row in rows])

    def of_prefix(self, update: PolicyUpdate, batch: Batch, sizes: Sequence[int]) -> list[Measured]:
        """Groups of each size where a rollout's advantages do not depend on the others'."""
        weights = [grouped(torch.ones(MEMBERS), m) for m in sizes]
        return measured(batch, ((self.single(update, batch, rows), weights) for rows in in_turn(batch)))

    def of_response(self, updates: Sequence[tuple[PolicyUpdate, int]], batch: Batch) -> list[Measured]:
        """Groups of the given sizes where every response has one advantage."""
        return measured(
            batch,
            (
                (self.single(self.one, batch, rows), [self.weights(u, batch.select(rows), m) for u, m in updates])
                for rows in in_turn(batch)
            ),
        )

    def weights(self, update: PolicyUpdate, whole: Batch, m: int) -> Tensor:
        """What the gradient of each group of m is made of, by rollout [N, G]; `whole` is one prompt's rollouts."""
        reads = update.prepare(whole).reads if update.estimator.needs.reads_policy else {}
        advantage_G = torch.cat(
            [
                self.advantages(update, whole.select(part), {name: found[part] for name, found in reads.items()})
                for part in torch.arange(MEMBERS).view(-1, m).tolist()
            ]
        )
        return grouped(advantage_G, m)

    @staticmethod
    def advantages(update: PolicyUpdate, group: Batch, reads: Reads) -> Tensor:
        """The advantage of each response; raises `ValueError` where tokens differ."""
        found_BT, mask_BT = update.estimator.advantages(group, reads).advantage_BT, group.response_mask_BT
        first_B = found_BT[:, 0]
        if not torch.equal(torch.where(mask_BT, found_BT, first_B[:, None]), first_B[:, None].expand(mask_BT.shape)):
            raise ValueError(f"{type(update.estimator).__name__} pays tokens of a response differently")
        return first_B.float()


def grouped(value_G: Tensor, m: int) -> Tensor:
    """The mean over each of the groups of m as weights [N, G]: value/m at a group's members, 0 elsewhere."""
    return torch.block_diag(*(value_G.view(-1, m) / m).split(1))


def in_turn(batch: Batch) -> Iterator[list[int]]:
    """Rows of each prompt, block after block."""
    groups = batch.groups()
    for i in range(min(BLOCKS, len(groups))):
        yield from groups[i::BLOCKS]


def measured(batch: Batch, prompts: Iterator[tuple[Tensor, list[Tensor]]]) -> list[Measured]:
    """From the gradients [G, P] of each prompt's rollouts, in the order of `in_turn`, and the groups' weights [N, G] of each
    estimator."""
    total = len(batch.groups())
    sizes = [len(range(i, total, BLOCKS)) for i in range(min(BLOCKS, total))]
    squares: list[list[float]] = []
    means: list[list[Tensor]] = []
    for size in sizes:
        square_E, mean_EP = 0.0, 0.0
        for _ in range(size):
            gradient_GP, weights = next(prompts)
            inner_GG = (gradient_GP @ gradient_GP.T).double()
            square_E = square_E + torch.stack([((w.double() @ inner_GG) * w).sum(1).mean() for w in weights])
            mean_EP = mean_EP + torch.stack([w.mean(0) for w in weights]) @ gradient_GP
        squares.append((square_E / size).tolist())
        means.append(list(mean_EP / size))
    return [Measured(list(s), torch.stack(m)) for s, m in zip(zip(*squares), zip(*means))]
