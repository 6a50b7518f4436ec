"""Reward functions: TRL's contract, where they are loaded from, and the set that calls them."""

from __future__ import annotations

from vantage.rewards.functions import RewardFunction, Rewards, RewardSet, completion_text
from vantage.rewards.loading import from_spec
from vantage.rewards.verl import from_verl_reward

__all__ = ["RewardFunction", "RewardSet", "Rewards", "completion_text", "from_spec", "from_verl_reward"]
