"""What the policy is paid besides the verifier's outcome. Value estimates and metrics never see it."""

from __future__ import annotations

import torch
from torch import Tensor


def overlong_penalty(length_B: Tensor, budget: int, buffer: int) -> Tensor:
    """Soft overlong punishment in [0, 1] (DAPO, arXiv 2503.14476, Eq. 13) [B], float64; to be subtracted.

    0 up to `budget − buffer` tokens, then a line up to 1 at `budget` and beyond. `buffer` 0 is off.
    """
    if buffer <= 0:
        return torch.zeros(len(length_B), dtype=torch.float64)
    return ((length_B.double() - (budget - buffer)) / buffer).clamp(0, 1)
