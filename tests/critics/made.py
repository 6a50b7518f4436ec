"""Critics that several tests share."""

from __future__ import annotations

import torch

from tests.helpers import small_policy
from vantage.critics.model import ValueHead, ValueModel, copied_trunk
from vantage.critics.token import ModelCritic, StateCritic, TokenCritic
from vantage.critics.training import CriticSettings
from vantage.distributed.world import World
from vantage.policy import Policy

SETTINGS = CriticSettings(learning_rate=1e-2, updates_total=100, minibatches=3, max_grad_norm=0)
POLICY = small_policy()  # made once: its weights come from the global generator


def model_critic(
    settings: CriticSettings = SETTINGS, world: World | None = None, budget: int = 200, reward_range=(0.0, 1.0),
    probability: bool = False, policy: Policy = POLICY,
) -> ModelCritic:  # fmt: skip
    """A value model on a copy of a small random policy's trunk, in float64."""
    head = ValueHead(policy.hidden_size, reward_range, probability)
    return ModelCritic(ValueModel(copied_trunk(policy), head), settings, world or World(), budget)


def state_critic(settings: CriticSettings = SETTINGS, world: World | None = None, keep: int = 5) -> StateCritic:
    """A head on the last layer of the small policy."""
    return StateCritic(ValueHead(POLICY.hidden_size, (0.0, 1.0)), 3, keep, settings, world or World())


def stirred(critic: TokenCritic, size: float = 0.3) -> None:
    """Give the head random weights, the same every time."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        critic.head.weight.copy_(size * torch.randn(critic.head.weight.shape, generator=draw))
