"""Advantages from rewards within prompt groups: pure functions of tensors.

Everywhere `group_B` [B] holds an integer for each rollout, equal for rollouts of the same prompt, and `valid_B` [B]
is False for unscorable rollouts, which take part in no statistic. B rollouts, T response tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vantage.distributed.world import World


def leave_one_out(value_B: Tensor, group_B: Tensor, valid_B: Tensor) -> Tensor:
    """Mean of `value_B` over the *other* valid rollouts of the group [B]; NaN where there is none.

    As a target it is POISE's V_{−i} (arXiv 2605.07579 §3.1), as a baseline that of RLOO (arXiv 2402.14740 Eq. 5).
    """
    total_B, count_B = group_sums(value_B, group_B, valid_B)
    own_B = torch.where(valid_B, value_B, torch.zeros_like(value_B))
    others_B = count_B - valid_B.to(value_B.dtype)
    mean_B = (total_B - own_B) / others_B.clamp(min=1)
    return torch.where(others_B > 0, mean_B, torch.full_like(mean_B, float("nan")))


def group_sums(value_B: Tensor, group_B: Tensor, valid_B: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count of the valid values of each rollout's group, both [B] in `value_B`'s dtype."""
    _, index_B = torch.unique(group_B, return_inverse=True)
    groups = int(index_B.max()) + 1 if len(index_B) else 0
    valid = valid_B.to(value_B.dtype)
    clean_B = torch.where(valid_B, value_B, torch.zeros_like(value_B))
    total = torch.zeros(groups, dtype=value_B.dtype).index_add_(0, index_B, clean_B)
    count = torch.zeros(groups, dtype=value_B.dtype).index_add_(0, index_B, valid)
    return total[index_B], count[index_B]


def rloo_advantages(reward_B: Tensor, group_B: Tensor, valid_B: Tensor) -> Tensor:
    """R_i − mean of the others' rewards [B] (arXiv 2402.14740); 0 where there is no other, or for the unscorable.

    Groups of equal rewards get exact zeros.
    """
    advantage_B = reward_B - leave_one_out(reward_B, group_B, valid_B)
    differs_B = group_spread(reward_B, group_B, valid_B) > 0
    return torch.where(valid_B & differs_B & advantage_B.isfinite(), advantage_B, torch.zeros_like(advantage_B))


def grpo_advantages(reward_B: Tensor, group_B: Tensor, valid_B: Tensor, eps: float, scale: bool = True) -> Tensor:
    """(R_i − group mean) / (group std + eps) [B] (arXiv 2402.03300 §4.1.2; std with n − 1, as TRL and verl take it).

    `scale=False` leaves the division out (Dr. GRPO, arXiv 2503.20783). Groups of equal rewards get exact zeros.
    """
    total_B, count_B = group_sums(reward_B, group_B, valid_B)
    mean_B = total_B / count_B.clamp(min=1)
    centred_B = torch.where(valid_B, reward_B - mean_B, torch.zeros_like(reward_B))
    if scale:
        square_B, _ = group_sums(centred_B**2, group_B, valid_B)
        centred_B = centred_B / ((square_B / (count_B - 1).clamp(min=1)).sqrt() + eps)
    equal_B = group_spread(reward_B, group_B, valid_B) == 0
    return torch.where(equal_B, torch.zeros_like(centred_B), centred_B)


def group_spread(reward_B: Tensor, group_B: Tensor, valid_B: Tensor) -> Tensor:
    """Largest minus smallest valid reward of each rollout's group [B]; 0 for a group without any."""
    _, index_B = torch.unique(group_B, return_inverse=True)
    groups = int(index_B.max()) + 1 if len(index_B) else 0
    low = reward_B.new_full((groups,), float("inf"))
    high = reward_B.new_full((groups,), float("-inf"))
    low = low.scatter_reduce(0, index_B[valid_B], reward_B[valid_B], "amin")
    high = high.scatter_reduce(0, index_B[valid_B], reward_B[valid_B], "amax")
    return torch.where(high >= low, high - low, torch.zeros_like(low))[index_B]


def over_tokens(value_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Copy a response-level number to every token of its response [B, T]; 0 outside of `mask_BT`."""
    return torch.where(mask_BT, value_B[:, None], torch.zeros((), dtype=value_B.dtype))


def batch_statistics(value_B: Tensor, weight_B: Tensor, world: World) -> tuple[float, float]:
    """Weighted mean and population variance of `value_B` over all processes; (0, 0) where no weight is positive.

    In float64 and in two passes, so that a large mean can not swallow a small variance.
    """
    weight_B, value_B = weight_B.double(), torch.where(weight_B > 0, value_B.double(), 0.0)
    total, first = world.sum(torch.stack([weight_B.sum(), (weight_B * value_B).sum()])).tolist()
    if total == 0:
        return 0.0, 0.0
    mean = first / total
    return mean, float(world.sum((weight_B * (value_B - mean) ** 2).sum())) / total


def whiten(value_B: Tensor, weight_B: Tensor, world: World, eps: float = 1e-8) -> Tensor:
    """(value − mean) / √(variance + eps) with the statistics of `batch_statistics` [B]; 0 where the weight is 0.

    Where all values are equal the result is exactly 0.
    """
    mean, variance = batch_statistics(value_B, weight_B, world)
    white_B = (value_B - mean) / math.sqrt(variance + eps)
    return torch.where((weight_B > 0) & (variance > 0), white_B, torch.zeros_like(white_B))


def leave_one_out_of_batch(value_B: Tensor, valid_B: Tensor, world: World) -> Tensor:
    """Mean of `value_B` over all *other* valid rollouts of the step, whatever their prompt [B]; NaN if there is none."""
    clean_B = torch.where(valid_B, value_B, torch.zeros_like(value_B)).double()
    total, count = world.sum(torch.stack([clean_B.sum(), valid_B.double().sum()])).tolist()
    others_B = count - valid_B.double()
    mean_B = (total - clean_B) / others_B.clamp(min=1)
    return torch.where(others_B > 0, mean_B, torch.full_like(mean_B, math.nan)).to(value_B.dtype)
