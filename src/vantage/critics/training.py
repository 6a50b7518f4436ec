"""How does a critic learn from a batch? Its own AdamW and schedule, mini-batches of whole prompt groups, one global mean.

The loss of an optimizer step is a sum over this process's tokens divided by the tokens of all processes, so neither
micro-batches nor the number of processes change the result. B rollouts, X places of a rollout where a value is learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vantage.advantages import batch_statistics
from vantage.checkpoint import load_optimizer, optimizer_state
from vantage.critics.losses import ValueLoss, clipped_squared_error, squared_error, two_bin_cross_entropy
from vantage.critics.model import ValueHead
from vantage.distributed.dealt import load_weights
from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.estimators.base import State
from vantage.optimization import Schedule, add_up_gradients, clip_gradient, make_optimizer, scheduled, set_learning_rate

MEMORY = 0.9
"""What running statistics of the targets keep of the past at each batch."""

LEAST_SPREAD = 0.01
"""Whitened targets are divided by at least this share of the reward range."""


@dataclass(frozen=True)
class CriticSettings:
    """How a critic is trained."""

    learning_rate: float
    updates_total: int
    """Optimizer steps of the whole run, for the schedule."""
    schedule: Schedule = "constant"
    warmup: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    epochs: int = 1
    minibatches: int = 1
    loss: ValueLoss = "mse"
    clip: float = 0.2
    """Reach of the clipped loss, as a share of the reward range."""
    whiten: bool = False
    """Whether targets are brought to mean 0 and variance 1 by running statistics."""


@dataclass(frozen=True)
class Targets:
    """What values should have been [B, X]; all on the CPU."""

    target_BX: Tensor
    old_BX: Tensor
    """Values before the update."""
    mask_BX: Tensor


Scores = Callable[[list[int]], Tensor]
"""Differentiable scores [M, ≤X] of some rows; of no rows, those of anything."""
Plan = Callable[[list[int]], list[list[int]]]
"""Cuts rows into micro-batches; an empty one is a pass that changes nothing, in step with other processes."""


class CriticTraining:
    """A module with a value head, and its optimizer."""

    def __init__(self, module: nn.Module, head: ValueHead, settings: CriticSettings, world: World) -> None:
        self.module, self.head, self.settings, self.world = module, head, settings, world
        self.optimizer = make_optimizer(module, weight_decay=settings.weight_decay)
        self.updates_done = 0
        self.weight = 0.0
        """Of the running statistics of targets."""

    def fit(self, targets: Targets, parts: Sequence[list[int]], plan: Plan, scores: Scores) -> dict[str, float]:
        """Train on the mini-batches `parts` (row numbers), as often as the settings say; returns `critic/...` metrics.

        Every process must call it, with as many parts as all others.
        """
        if self.settings.whiten:
            self._whiten(targets)
        losses, norms, rate = list[float](), list[float](), 0.0
        for _ in range(self.settings.epochs):
            for rows in parts:
                loss = self._accumulate(targets, rows, plan, scores)
                if loss is None:
                    continue
                rate, norm = self._step()
                losses.append(loss)
                norms.append(norm)
        count = max(1, len(losses))
        return {
            "critic/loss": sum(losses) / count, "critic/grad_norm": sum(norms) / count, "critic/learning_rate": rate,
            "critic/skipped_updates": float(sum(not math.isfinite(n) for n in norms)),
        }  # fmt: skip

    def _accumulate(self, targets: Targets, rows: list[int], plan: Plan, scores: Scores) -> float | None:
        """Gradients of a mini-batch, summed over processes, and its mean loss; None where nothing is to be learned."""
        count = float(self.world.sum(targets.mask_BX[rows].sum().double()))
        if count == 0:
            return None
        total = torch.zeros((), dtype=torch.float64)
        for micro in plan(rows):
            score_MX = scores(micro)
            if not micro:
                score_MX.backward(torch.zeros_like(score_MX))  # type: ignore[no-untyped-call]
                continue
            loss_MX, mask_MX = self._loss(targets, micro, score_MX)
            loss = torch.where(mask_MX, loss_MX, torch.zeros_like(loss_MX)).sum() / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        add_up_gradients(self.module, self.world)
        return float(self.world.sum(total))

    def _loss(self, targets: Targets, rows: list[int], score_MX: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of the places [M, X] that the rows' scores reach, and which of them count."""
        head, width, settings = self.head, score_MX.shape[1], self.settings
        target_MX, old_MX, mask_MX = (
            found[rows, :width].to(score_MX.device) for found in (targets.target_BX, targets.old_BX, targets.mask_BX)
        )
        if head.probability:
            share_MX = ((target_MX - head.low) / head.span).clamp(0, 1).nan_to_num(0.5).to(score_MX)
            return two_bin_cross_entropy(head.logit(score_MX), share_MX), mask_MX
        # In units in which the score is the value, so that no reward range needs another learning rate.
        target_MX, old_MX = (((found - head.mean) / head.scale).to(score_MX) for found in (target_MX, old_MX))
        if settings.loss == "clipped":
            reach = settings.clip * head.span / float(head.scale)
            return clipped_squared_error(score_MX, old_MX, target_MX, reach), mask_MX
        return squared_error(score_MX, target_MX), mask_MX

    def _step(self) -> tuple[float, float]:
        """One optimizer step; returns learning rate and gradient norm. A gradient that is not finite is left out."""
        settings = self.settings
        rate = scheduled(
            settings.learning_rate, settings.schedule, settings.warmup, self.updates_done, settings.updates_total
        )
        set_learning_rate(self.optimizer, rate)
        norm = clip_gradient(self.module.parameters(), settings.max_grad_norm)
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates_done += 1
        return rate, norm

    def _whiten(self, targets: Targets) -> None:
        """Move the head's statistics towards those of the batch's targets; values stay as they are."""
        mean, variance = batch_statistics(
            targets.target_BX.reshape(-1), targets.mask_BX.reshape(-1).double(), self.world
        )
        if not self.world.sum(targets.mask_BX.sum()):
            return
        share = 1 / (1 + self.weight)  # the whole at first, then towards 1 − MEMORY
        self.weight = MEMORY * (1 + self.weight)
        before, spread = float(self.head.mean), float(self.head.scale) ** 2
        spread += share * (variance - spread) + share * (1 - share) * (mean - before) ** 2
        least = LEAST_SPREAD * self.head.span
        self.head.rescale(before + share * (mean - before), max(math.sqrt(max(spread, 0.0)), least))

    def state_dict(self) -> State:
        """Weights and moments, by parameter name."""
        tensors = {f"model.{name}": value for name, value in self.module.state_dict().items()}
        moments = optimizer_state(self.optimizer, self.module).tensors
        tensors |= {f"optimizer.{name}": value for name, value in moments.items()}
        return State(tensors, {"updates_done": self.updates_done, "weight": self.weight})

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned; raises `UserError` if it is of another critic."""
        weights, moments = (
            {k.removeprefix(p): v for k, v in state.tensors.items() if k.startswith(p)}
            for p in ("model.", "optimizer.")
        )
        try:
            load_weights(self.module, weights)
            load_optimizer(self.optimizer, self.module, State(moments))
        except (RuntimeError, KeyError) as error:  # a message with a line for each tensor
            raise UserError("--resume: the checkpoint's critic is not the one that --ppo.critic says") from error
        self.updates_done, self.weight = int(state.values["updates_done"]), float(state.values["weight"])


def explained_variance(value_N: Tensor, target_N: Tensor, mask_N: Tensor, world: World) -> float:
    """1 − mean (target − value)² / Var(target) over the entries of the mask of all processes; NaN where targets are equal."""
    weight_N = mask_N.double()
    _, spread = batch_statistics(target_N, weight_N, world)
    error, _ = batch_statistics((target_N - value_N).double() ** 2, weight_N, world)
    return 1 - error / spread if spread > 0 else math.nan
