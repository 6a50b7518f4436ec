"""The gradients of a block of rollouts, part by part, through the trainer's own code.

A part is one group of rollouts of each of some prompts. Where an algorithm pays all tokens of a response alike and has no
loss of its own, the gradient is Σ_i w_i A_i ∇ log π(y_i): the scores ∇ log π(y_i) are then taken once and serve all such
algorithms. Everything else goes through forward and backward of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vantage.audit.projection import Projection
from vantage.audit.setting import Setting, asked, kept_groups, picked, shaped
from vantage.audit.statistics import Gradients
from vantage.collect import Collected
from vantage.estimators.base import Estimator
from vantage.objectives import Objective
from vantage.update import Prepared

if TYPE_CHECKING:
    from vantage.policy import Policy
    from vantage.update import PolicyUpdate

PARTS = 4
"""Parts that a block's prompts are cut into where every part takes a backward pass of its own."""


class Scores:
    """∇ log π(y | x) of every rollout of a block [N, D], projected; taken at first use."""

    def __init__(self, policy: Policy, projection: Projection) -> None:
        self.policy, self.projection = policy, projection
        self._found: dict[int, Tensor] = {}

    def of(self, index: int, block: Collected) -> Tensor:
        """Those of block number `index`."""
        if index not in self._found:
            rows = [self._score(block, row) for row in range(block.batch.size)]
            self._found[index] = torch.stack(rows)
        return self._found[index]

    def _score(self, block: Collected, row: int) -> Tensor:
        model = self.policy.model
        model.zero_grad(set_to_none=True)
        logp_MT = self.policy.forward(block.batch.select([row])).logp_MT
        logp_MT.sum().backward()  # type: ignore[no-untyped-call]
        return self.projection()


@dataclass
class Spent:
    """What a measurement cost."""

    rollouts: int = 0
    tokens: float = 0.0
    tokens_extra: float = 0.0
    seconds: float = 0.0
    kept: list[float] = field(default_factory=list)
    """Share of each step's rollouts that a group filter left."""
    by_scores: bool | None = None
    """How gradients are taken, decided at the first step."""


def measure(
    update: PolicyUpdate,
    members: int,
    blocks: list[Collected],
    setting: Setting,
    scores: Scores,
    projection: Projection,
) -> tuple[Gradients, Spent]:
    """Gradients of an algorithm on every block; `members` rollouts of a prompt make a group."""
    spent, means, squares, withins, prompts = Spent(), [], [], [], 1
    started = time.perf_counter()
    for index, block in enumerate(blocks):
        part_QJD, prompts = Columns(update, members, block, setting, scores, projection, spent).parts(index)
        means.append(part_QJD.mean((0, 1)).numpy())
        squares.append(_by_layer((part_QJD**2).mean((0, 1)), projection))
        count = part_QJD.shape[1]
        if count > 1:
            off_QJD = part_QJD - part_QJD.mean(1, keepdim=True)
            withins.append(_by_layer((off_QJD**2).sum(1).mean(0) / (count - 1), projection))
    update.policy.model.zero_grad(set_to_none=True)
    spent.seconds = time.perf_counter() - started
    found = Gradients(
        np.stack(means).astype(np.float32), np.stack(squares), np.stack(withins) if withins else None, members, prompts,
        spent.tokens / spent.rollouts, spent.tokens_extra / spent.rollouts,
    )  # fmt: skip
    return found, spent


def _by_layer(square_D: Tensor, projection: Projection) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([float(square_D[start:end].double().sum()) for start, end in projection.spans.values()])


class Columns:
    """A block cut into steps: column j has the j-th group of every prompt, and a step has one or more whole columns."""

    def __init__(
        self, update: PolicyUpdate, members: int, block: Collected, setting: Setting, scores: Scores,
        projection: Projection, spent: Spent,
    ) -> None:  # fmt: skip
        self.update, self.members, self.block, self.setting = update, members, block, setting
        self.scores, self.projection, self.spent = scores, projection, spent
        audit = setting.audit
        self.prompts, self.drawn = audit.prompts, audit.drawn
        self.together = max(1, audit.rollouts_per_step // (audit.prompts * members))
        """Columns of a step."""
        self.columns = self.drawn // members // self.together * self.together

    def parts(self, index: int) -> tuple[Tensor, int]:
        """Parts of the block [Q, J, D], each as large as the step's gradient in the mean; and the prompts of a part."""
        steps = [self._step(index, first) for first in range(0, self.columns, self.together)]
        bundles = self.prompts if self.spent.by_scores is not False else self._bundles()
        empty_QJD = torch.zeros(bundles, self.together, self.projection.size)
        return torch.cat([empty_QJD if step is None else step for step in steps], 1), self.prompts // bundles

    def _bundles(self) -> int:
        """Parts that the prompts are cut into where each takes a backward pass."""
        return max(b for b in range(1, min(PARTS, self.prompts) + 1) if self.prompts % b == 0)

    def _step(self, index: int, first: int) -> Tensor | None:
        """One step of the algorithm: parts [Q, columns of the step, D]; None where a filter leaves nothing."""
        update, members = self.update, self.members
        columns = range(first, first + self.together)
        rows = [q * self.drawn + j * members + i for j in columns for q in range(self.prompts) for i in range(members)]
        group = [g for g in range(len(rows) // members) for _ in range(members)]
        step = picked(self.block, rows, group, self.setting.next_step())
        self.spent.rollouts += len(rows)
        self.spent.tokens += float(step.batch.length_B.sum())
        step = replace(step, batch=shaped(step.batch, update.config))
        kept = kept_groups(step.batch, update.config)
        self.spent.kept.append(len(kept) / len(rows))
        if not kept:
            return None
        if len(kept) < len(rows):
            step = picked(step, kept, [group[i] for i in kept], step.batch.step)
        batch, extra = asked(update, step)
        self.spent.tokens_extra += extra
        prepared = update.prepare(batch)
        place = [(group[i] % self.prompts, group[i] // self.prompts) for i in kept]
        plain = pays_responses(update.estimator, prepared, update.objective)
        if self.spent.by_scores is None:
            self.spent.by_scores = plain
        if self.spent.by_scores and not plain:
            raise RuntimeError(
                f"{update.config.algo.name} pays tokens of a response alike in one step and not in another"
            )
        if self.spent.by_scores:
            return self._from_scores(prepared, [rows[i] for i in kept], place, index)
        return self._by_backward(prepared, place)

    def _from_scores(self, prepared: Prepared, rows: list[int], place: list[tuple[int, int]], index: int) -> Tensor:
        groups = self.prompts * self.together
        score_ND = self.scores.of(index, self.block)[torch.tensor(rows)]
        first_B = prepared.estimate.advantage_BT[:, 0].double()
        weight_B = groups * prepared.weight_B * torch.where(prepared.batch.length_B > 0, first_B, 0.0)
        part_QJD = torch.zeros(self.prompts, self.together, self.projection.size, dtype=score_ND.dtype)
        q, j = (torch.tensor(axis) for axis in zip(*place))
        part_QJD.index_put_((q, j), weight_B.to(score_ND.dtype)[:, None] * score_ND, accumulate=True)
        return part_QJD

    def _by_backward(self, prepared: Prepared, place: list[tuple[int, int]]) -> Tensor:
        bundles, found = self._bundles(), []
        for bundle in range(bundles):
            for column in range(self.together):
                rows = [i for i, (q, j) in enumerate(place) if q % bundles == bundle and j == column]
                self.update.policy.model.zero_grad(set_to_none=True)
                if rows:
                    self.update.add_gradient(prepared, rows)
                found.append(-bundles * self.together * self.projection())
        return torch.stack(found).reshape(bundles, self.together, -1)


def pays_responses(estimator: Estimator, prepared: Prepared, objective: Objective) -> bool:
    """Whether the gradient is a sum of scores, one weight a rollout."""
    plain = objective.entropy_coef == 0 and objective.kl_coef == 0 and not objective.mask_truncated
    if not plain or objective.policy_loss != "clip" or type(estimator).loss is not Estimator.loss:
        return False
    advantage_BT, mask_BT = prepared.estimate.advantage_BT, prepared.batch.response_mask_BT
    return bool(((advantage_BT - advantage_BT[:, :1]).abs() * mask_BT <= 1e-12).all())
