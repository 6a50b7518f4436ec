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
