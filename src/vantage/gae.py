"""Generalised advantage estimation over tokens (Schulman et al., arXiv 1506.02438), without a loop over time.

Masked positions (padding, tool output) are transparent: sums pass over them as if they were not there, and they get 0.
B rollouts, T response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_suffix_sums(value_BT: Tensor, mask_BT: Tensor, decay: float | Tensor) -> Tensor:
    """Σ_{l≥0} decay^l · value_{t+l} over the unmasked positions from t on [B, T]; 0 where masked.

    `decay` is one number in [0, 1], or one for each rollout [B]. A plain cumulative sum where it is 1; else the sum over
    2^k positions is made from two sums over 2^(k−1), so the work is T·log T and the loop has log T passes.
    """
    packed_BT, place_BT, inside_BT = _pack(value_BT, mask_BT)
    if not isinstance(decay, Tensor) and decay == 1:
        found_BT = packed_BT.flip(1).cumsum(1).flip(1)
    else:
        found_BT = _doubling(packed_BT, torch.as_tensor(decay, dtype=value_BT.dtype, device=value_BT.device))
    found_BT = torch.where(inside_BT, found_BT, torch.zeros_like(found_BT))
    return torch.zeros_like(value_BT).scatter(1, place_BT, found_BT)


def gae(value_BT: Tensor, reward_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0, lam: float | Tensor = 1.0) -> Tensor:
    """Advantages A_t = δ_t + γ λ A_{t+1} with δ_t = r_t + γ V_{t+1} − V_t over the unmasked positions [B, T]; 0 where masked.

    The state behind the last unmasked position is worth 0. `lam` is one number in [0, 1], or one for each rollout [B]. Where
    it is the number 1, A_t = Σ γ^l r_{t+l} − V_t: one sum of rewards, and no value of a later state can enter.
    """
    if not isinstance(lam, Tensor) and lam == 1:
        earned_BT = discounted_suffix_sums(reward_BT, mask_BT, gamma)
        return torch.where(mask_BT, earned_BT - value_BT, torch.zeros_like(value_BT))
    delta_BT = reward_BT + gamma * next_values(value_BT, mask_BT) - value_BT
    return discounted_suffix_sums(delta_BT, mask_BT, gamma * lam)


def next_values(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The value at the next unmasked position [B, T]; 0 where there is none, and where masked."""
    packed_BT, place_BT, _ = _pack(value_BT, mask_BT)
    later_BT = torch.zeros_like(packed_BT)
    later_BT[:, :-1] = packed_BT[:, 1:]
    next_BT = torch.zeros_like(value_BT).scatter(1, place_BT, later_BT)
    return torch.where(mask_BT, next_BT, torch.zeros_like(next_BT))


def paid_at_the_end(reward_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Rewards of tokens [B, T] where the whole reward comes with the last unmasked one."""
    position_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = torch.where(mask_BT, position_T, -1).amax(1) if mask_BT.shape[1] else position_T.new_zeros(len(mask_BT))
    return torch.where(position_T[None] == last_B[:, None], reward_B[:, None], torch.zeros_like(reward_B)[:, None])


def length_adaptive_lambda(length_B: Tensor, alpha: float) -> Tensor:
    """λ = 1 − 1/(α·L) for responses of L tokens [B], float64 (VAPO, arXiv 2504.05118 §4.2), 0 where L ≤ 1/α.

    Over L tokens the λ-return then looks about α·L tokens ahead, whatever the length.
    """
    return (1 - 1 / (alpha * length_B.double().clamp(min=1))).clamp(min=0.0)


def _pack(value_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unmasked positions moved to the left in order, where each came from, and which places hold one."""
    place_BT = torch.argsort((~mask_BT).to(torch.int8), dim=1, stable=True)
    inside_BT = mask_BT.gather(1, place_BT)
    packed_BT = value_BT.gather(1, place_BT)
    return torch.where(inside_BT, packed_BT, torch.zeros_like(packed_BT)), place_BT, inside_BT


def _doubling(value_BT: Tensor, decay: Tensor) -> Tensor:
    found_BT, power, span = value_BT.clone(), decay[..., None] if decay.dim() else decay, 1
    while span < value_BT.shape[1]:
        later_BT = torch.zeros_like(found_BT)
        later_BT[:, :-span] = found_BT[:, span:]
        found_BT, power, span = found_BT + power * later_BT, power * power, 2 * span
    return found_BT
