"""How does the critic learn from outcomes? REINFORCE on its own completions, one optimizer step over all of them.

    L = −Σ_i w_i Σ_t log p(z_it) / (generated tokens of the optimizer step),    w_i = R_i − baseline_i,

with R_i = 1 − (r − v_i)² and 0 for a failure. `token-mean` divides by tokens, `seq-mean` (the textbook's) by completions;
both count the step's on all processes, so neither micro-batches nor processes change anything. Baselines: `none` (the
paper's), `leave_one_out` (mean of all others), `leave_one_out_by_outcome` (of the others of the same target). Each is
independent of the completion whose weight it enters, so the expected gradient is the same for all three.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from vantage.batch import plan_microbatches
from vantage.distributed.world import World
from vantage.genac.critic import completions_batch
from vantage.optimization import add_up_gradients, clip_gradient, make_optimizer, set_learning_rate
from vantage.policy import Policy

Baseline = Literal["none", "leave_one_out", "leave_one_out_by_outcome"]
Aggregation = Literal["token-mean", "seq-mean"]


@dataclass(frozen=True)
class Example:
    """A completion of the critic's and what it earned."""

    prompt_ids: list[int]
    response_ids: list[int]
    reward: float
    target: float
    """What its state turned out to be worth, in [0, 1]: completions of equal targets are compared with each other."""
    scale: float = 1.0
    """Weight in the loss: 1/p where its state was drawn for training with probability p."""


def weights(
    rewards: Sequence[float],
    baseline: Baseline,
    keys: Sequence[Hashable] = (),
    *,
    same: Sequence[Hashable] | None = None,
    world: World | None = None,
) -> list[float]:
    """w_i = R_i − the mean reward of the others, or R_i alone for `none` and where there is no other.

    `keys` are what `leave_one_out_by_outcome` compares by. `same` names the completion that a row is a copy of: copies count
    once, and all get the weight of the one. Sums are over the rows of all processes in a `world`, which all must call this.
    """
    if baseline == "none":
        return list(rewards)
    rows = list(zip(rewards, keys if baseline == "leave_one_out_by_outcome" else [None] * len(rewards), strict=True))
    names = list(range(len(rows))) if same is None else list(same)
    once = dict(zip(reversed(names), reversed(rows)))
    sums: defaultdict[Hashable, list[float]] = defaultdict(list)
    for part in (world or World()).exchange(list(once.values())):
        for reward, key in part:
            sums[key].append(reward)
    totals = {key: (math.fsum(found), len(found)) for key, found in sums.items()}
    return [_weight(reward, *totals[key]) for reward, key in rows]


def _weight(reward: float, total: float, count: int) -> float:
    return reward if count == 1 else reward - (total - reward) / (count - 1)


def outcome_class(target: float) -> int:
    """What pooled targets are compared by: the grid point of the score that is nearest."""
    return math.floor(10 * target + 0.5)


@dataclass(frozen=True)
class Learned:
    """What an optimizer step did."""

    loss: float
    grad_norm: float
    stepped: bool
    """False where nothing was generated, all weights are 0, or the gradient is not finite."""
    entropy: float
    """Mean entropy of the generated tokens, in nats."""
    tokens: int


class CriticTrainer:
    """The critic's optimizer. `step` is called by every process, one without completions too."""

    def __init__(
        self,
        policy: Policy,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        aggregation: Aggregation = "token-mean",
        tokens_per_microbatch: int = 16384,
        world: World | None = None,
    ) -> None:
        self.policy, self.learning_rate, self.max_grad_norm = policy, learning_rate, max_grad_norm
        self.aggregation, self.budget, self.world = aggregation, tokens_per_microbatch, world or World()
        self.optimizer = make_optimizer(policy.model, weight_decay=weight_decay)

    def gradient(self, examples: Sequence[Example], weight: Sequence[float]) -> tuple[float, float, int]:
        """Accumulate the gradient of the loss in `.grad`; returns loss, summed entropy and tokens, of all processes.

        Completions without tokens are left out. Equal completions of a state are one row with the sum of their weights: the
        gradient is the same, and siblings' shared states say the same thing often.
        """
        rows = [(e, w) for e, w in zip(examples, weight, strict=True) if e.response_ids]
        tokens = sum(len(e.response_ids) for e, _ in rows)
        counts = self.world.sum(torch.tensor([len(rows), tokens], dtype=torch.float64)).tolist()
        total = counts[1] if self.aggregation == "token-mean" else counts[0]
        loss, entropy = 0.0, 0.0
        merged: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}
        for e, w in rows:
            merged.setdefault((tuple(e.prompt_ids), tuple(e.response_ids)), []).append(w * e.scale / total)
        batch = completions_batch([(list(prompt), list(ids)) for prompt, ids in merged])
        factor_B = torch.tensor([math.fsum(found) for found in merged.values()], dtype=torch.float64)
        count_B = torch.tensor([len(found) for found in merged.values()], dtype=torch.float64)
        for some in self.policy.in_step(plan_microbatches(batch.tokens(), batch.groups(), self.budget).micro):
            if not some:
                self.policy.idle()
                continue
            forward = self.policy.forward(batch.select(some))
            factor_M = factor_B[some].to(forward.logp_MT)
            part = -(forward.logp_MT.sum(1) * factor_M).sum()
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
            entropy += float((forward.entropy_MT.detach().double().sum(1).cpu() * count_B[some]).sum())
        add_up_gradients(self.policy.model, self.world)
        found = self.world.sum(torch.tensor([loss, entropy], dtype=torch.float64)).tolist()
        return found[0], found[1], int(counts[1])

    def step(self, examples: Sequence[Example], weight: Sequence[float]) -> Learned:
        """One AdamW step; all processes step, or none does."""
        signal = self.world.largest(max((abs(w) for e, w in zip(examples, weight) if e.response_ids), default=0.0))
        if not signal > 0:
            return Learned(0.0, 0.0, False, math.nan, 0)
        loss, entropy, tokens = self.gradient(examples, weight)
        set_learning_rate(self.optimizer, self.learning_rate)
        norm = clip_gradient(self.policy.model.parameters(), self.max_grad_norm)
        stepped = math.isfinite(norm)
        if stepped:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Learned(loss, norm, stepped, entropy / max(1, tokens), tokens)
