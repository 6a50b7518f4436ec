"""What does a critic minimise? Token losses on values, pure functions of tensors of one shape.

`clipped` and `mse` are PPO's (Schulman et al., arXiv 1707.06347; with the factor ½ and the pessimistic maximum that public
implementations take); `bce` is the cross-entropy on two bins at the ends of the reward range.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ValueLoss = Literal["mse", "clipped", "bce"]


def squared_error(value: Tensor, target: Tensor) -> Tensor:
    """½ (V − R)² of each entry."""
    return 0.5 * (value - target) ** 2


def clipped_squared_error(value: Tensor, old: Tensor, target: Tensor, clip: float) -> Tensor:
    """½ max((V − R)², (V_clipped − R)²), V_clipped within `clip` of the value before the update.

    No gradient where V has moved towards the target by more than `clip`.
    """
    near = torch.minimum(torch.maximum(value, old - clip), old + clip)
    return torch.maximum(squared_error(value, target), squared_error(near, target))


def two_bin_cross_entropy(logit: Tensor, share: Tensor) -> Tensor:
    """−p log σ(z) − (1 − p) log(1 − σ(z)) of each entry, in nats; `share` is p, the target's place in the range, in [0, 1].

    The two bins are the ends of the range, and a target in between is split over them so that their mean is the target.
    """
    return torch.nn.functional.binary_cross_entropy_with_logits(logit, share, reduction="none")
