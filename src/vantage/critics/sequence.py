"""How likely is a response to this prompt to succeed? The sequence critic of the POISE paper (arXiv 2605.07579 §D.1).

A trunk reads the prompt; a linear head on the state of its last token gives one logit z, and V = σ(z). It is fitted by binary
cross-entropy on rewards, or on mean rewards of a prompt, in [0, 1]. For comparisons of value estimates: what the prompt
alone tells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vantage.batch import plan_microbatches
from vantage.critics.losses import two_bin_cross_entropy
from vantage.critics.model import ValueHead, ValueModel, copied_trunk
from vantage.optimization import clip_gradient, make_optimizer, scheduled, set_learning_rate
from vantage.policy import Policy
from vantage.randomness import Stream, permutation

Prompts = Sequence[Sequence[int]]


class SequenceCritic:
    """Prompt in, one probability out. N prompts."""

    def __init__(self, trunk: nn.Module, width: int, *, pad_id: int = 0, tokens_per_microbatch: int = 8192) -> None:
        self.model = ValueModel(trunk, ValueHead(width, (0.0, 1.0), probability=True), pad_id)
        self.budget = tokens_per_microbatch

    @staticmethod
    def of(policy: Policy, tokens_per_microbatch: int = 8192) -> SequenceCritic:
        """On a copy of the policy's trunk, as in the paper."""
        trunk = copied_trunk(policy)
        return SequenceCritic(
            trunk, policy.hidden_size, pad_id=policy.pad_id, tokens_per_microbatch=tokens_per_microbatch
        )

    def fit(
        self,
        prompts: Prompts,
        target_N: Tensor | Sequence[float],
        *,
        epochs: int = 1,
        batch_size: int = 64,
        learning_rate: float = 1e-5,
        warmup: int = 0,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        seed: int = 0,
    ) -> list[float]:
        """Train on token ids of prompts with their rewards; returns the mean loss of each epoch, in nats.

        AdamW, the learning rate falling along a line to 0; prompts in a seeded order. Before the first fit the head starts at
        the mean target. Raises `ValueError` for targets outside of [0, 1], or not one a prompt.
        """
        targets = torch.as_tensor(target_N, dtype=torch.float64)
        self._check(prompts, targets)
        if not self.model.head.begun:
            self.model.head.begin(float(targets.mean()))
        optimizer = make_optimizer(self.model, weight_decay=weight_decay)
        steps, losses = -(-len(prompts) // batch_size), list[float]()
        for epoch in range(epochs):
            order, total = permutation(seed, Stream.CRITIC, epoch, len(prompts)).tolist(), 0.0
            for step in range(steps):
                rows = order[step * batch_size : (step + 1) * batch_size]
                total += self._accumulate(prompts, targets, rows) * len(rows)
                done = epoch * steps + step
                set_learning_rate(optimizer, scheduled(learning_rate, "linear", warmup, done, epochs * steps))
                clip_gradient(self.model.parameters(), max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(total / len(prompts))
        return losses

    @torch.no_grad()
    def predict(self, prompts: Prompts) -> Tensor:
        """Probability of success for each prompt [N], float64."""
        found_N = torch.zeros(len(prompts), dtype=torch.float64)
        for rows in self._plan(prompts, list(range(len(prompts)))):
            found_N[rows] = self.model.head.value(self._scores(prompts, rows)).double().cpu()
        return found_N

    def _accumulate(self, prompts: Prompts, target_N: Tensor, rows: list[int]) -> float:
        total = 0.0
        for micro in self._plan(prompts, rows):
            score_M = self._scores(prompts, micro)
            loss = two_bin_cross_entropy(self.model.head.logit(score_M), target_N[micro].to(score_M)).sum() / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _scores(self, prompts: Prompts, rows: list[int]) -> Tensor:
        """Scores [M] of the last token's state."""
        chosen = [prompts[row] for row in rows]
        last_M = torch.tensor([len(ids) - 1 for ids in chosen], device=self.model.device)
        states_MSD = self.model.states(chosen)
        scores: Tensor = self.model.head(states_MSD[torch.arange(len(rows), device=last_M.device), last_M])
        return scores

    def _plan(self, prompts: Prompts, rows: list[int]) -> list[list[int]]:
        tokens = [len(prompts[row]) for row in rows]
        plan = plan_microbatches(tokens, [[i] for i in range(len(rows))], self.budget)
        return [[rows[i] for i in micro] for micro in plan.micro]

    @staticmethod
    def _check(prompts: Prompts, target_N: Tensor) -> None:
        if len(prompts) != len(target_N) or not len(prompts):
            raise ValueError(f"{len(prompts)} prompts have {len(target_N)} targets; one each is needed")
        if not bool(((target_N >= 0) & (target_N <= 1)).all()):
            raise ValueError("the sequence critic's targets are probabilities: all must be in [0, 1]")
