"""Is the generative critic better than a discriminative one would be? A critic of the policy's size learns beside it.

It is what PPO has by default, a copy of the policy with a linear head, and learns by cross-entropy from the outcomes of the
very states that the generative critic learns from, in pretraining alone.
"""

from __future__ import annotations

import math
from collections.abc import Set

import torch
from torch import Tensor

from vantage.batch import Batch
from vantage.critics.building import build_critic
from vantage.critics.training import Targets
from vantage.estimators.base import Setup, State
from vantage.estimators.ppo import Ppo
from vantage.genac.asking import Asked
from vantage.genac.panel import judge
from vantage.genac.states import States

PREFIX = "rival."


class Rival:
    """A discriminative critic of the policy's size."""

    def __init__(self, setup: Setup) -> None:
        self.critic, self.world = build_critic(Ppo(critic="copy", loss="bce"), setup), setup.world
        self.steps = 0
        """Steps that it has learned from."""

    def brier(self, batch: Batch, asked: Asked) -> float:
        """Mean squared error against the outcomes at every place of a state, over all processes; NaN without any.

        As for the generative critic, these are states that it has not learned from yet.
        """
        head, value_BT = self.critic.head, self.critic.values(batch)
        assert value_BT is not None, "a critic that is a model needs no forward pass of the policy"
        met = [
            ((float(value_BT[b, start]) - head.low) / head.span, asked.share_B[b])
            for b, starts in enumerate(asked.states.starts())
            for start in starts
        ]
        met = [pair for part in self.world.exchange(met) for pair in part]
        return judge([v for v, _ in met], [r for _, r in met]).brier

    def learn(self, batch: Batch, asked: Asked, held_out: Set[str]) -> None:
        """Learn from the targets of the step's states, but those of the problems held out; every process must call it."""
        wanted = [
            math.nan if view.problem in held_out else target
            for view, target in zip(asked.states.views, asked.targets, strict=True)
        ]
        head = self.critic.head
        target_BT, mask_BT = state_targets(asked.states, wanted, batch.response_mask_BT)
        target_BT = head.low + head.span * target_BT
        self.critic.begin(target_BT, mask_BT)
        self.critic.fit(batch, {}, Targets(target_BT, target_BT, mask_BT))
        self.steps += 1

    def state_dict(self) -> State:
        """Weights, optimizer and steps."""
        found = self.critic.training.state_dict()
        tensors = {PREFIX + name: value for name, value in found.tensors.items()}
        return State(tensors, {**found.values, "steps": self.steps})

    def load_state_dict(self, state: State) -> None:
        """What `state_dict` gave; other tensors are passed over."""
        tensors = {k.removeprefix(PREFIX): v for k, v in state.tensors.items() if k.startswith(PREFIX)}
        self.critic.training.load_state_dict(State(tensors, state.values))
        self.steps = int(state.values["steps"])


def state_targets(states: States, targets: list[float], mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of states at the places where they begin, and which places these are [B, T]; NaN is no target."""
    target_BT, known_BT = torch.zeros(mask_BT.shape, dtype=torch.float64), torch.zeros_like(mask_BT)
    for b, (starts, index) in enumerate(zip(states.starts(), states.unique.index, strict=True)):
        for start, u in zip(starts, index, strict=True):
            if math.isfinite(targets[u]):
                target_BT[b, start], known_BT[b, start] = targets[u], True
    return target_BT, known_BT
