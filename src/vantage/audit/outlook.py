"""How many rollouts would a statement take? From the noise that was measured, for an audit that can say little yet.

With a bias of 0 the estimate of ‖E ĝ/c − ∇J‖² is a mean of products ⟨d_i, d_j⟩ of different blocks' differences
d = a/c − r, whose deviation is √(2 mean⟨d_i, d_j⟩² / K(K − 1)): it falls with the number K of blocks, as that of ‖∇J‖²
does while the noise is larger than the gradient. The jackknife's intervals, by which an audit judges, are √2 times as
wide as these deviations say (it counts a product of two blocks twice). The length of the gradient is the least certain
part: where ‖∇J‖² is not told from 0, an estimate above 0 is more often too large than too small, and the numbers of
blocks too small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vantage.audit.statistics import Gradients, across, interval
from vantage.compare.statistics import LEVEL, t_quantile

COARSE = 0.1
"""The share of the gradient's norm for which an outlook is given beside the tolerance."""
LEAST = 4
"""Blocks that an audit takes at least."""
MANY = 400
"""Blocks from which on Student's quantile is as good as the normal one."""
MARGIN = 1.0
"""Deviations by which the next estimate may turn out worse and the statement still be had: five times in six."""


def deviation(gram_KK: NDArray[np.float64]) -> float:
    """Deviation of `across` where the mean is 0, from inner products of K blocks."""
    count = len(gram_KK)
    pairs = count * (count - 1)
    squares = float((gram_KK**2).sum() - (gram_KK.diagonal() ** 2).sum())
    return math.sqrt(2 * squares / pairs / pairs)


def outlook(
    ours: Gradients, reference: Gradients, shares: Iterable[float], rollouts: int, scale: float | None = None,
    level: float = LEVEL,
) -> dict[str, Any] | None:  # fmt: skip
    """Blocks that would tell a bias of each of `shares` of the gradient's norm, if there is none.

    Args:
        ours, reference: What was measured, on the same blocks.
        rollouts: Those of a block.
        scale: The factor c between the two, where it is known; otherwise that of their noise.

    Returns:
        For JSON: `sure` whether ‖∇J‖² was estimated above 0 (otherwise the upper end of its interval stands for it, and
        the numbers are bounds from below), and the `statements`, each with its `share`, its `blocks` and their
        `rollouts`. None where not even that end is above 0, or an algorithm has no gradient.
    """
    a_KD, r_KD = ours.mean_KD.astype(np.float64), reference.mean_KD.astype(np.float64)
    gram_KK = r_KD @ r_KD.T
    factor = float((a_KD * r_KD).sum() / gram_KK.trace()) if scale is None else scale
    if not (math.isfinite(factor) and factor):
        return None
    off_KD = a_KD / factor - r_KD
    signal = interval(across(gram_KK), level)
    strength = signal.mean if signal.mean > 0 else signal.high
    if strength <= 0:
        return None
    noise, apart = deviation(gram_KK), deviation(off_KD @ off_KD.T)
    statements = []
    for share in shares:
        blocks = _blocks(len(r_KD), max(noise, apart / share**2) / strength, level)
        statements.append({"share": share, "blocks": blocks, "rollouts": blocks * rollouts})
    return {"sure": signal.mean > 0, "statements": statements}


def _blocks(count: int, deviation_to_limit: float, level: float) -> int:
    """Fewest blocks at which interval and margin fit below a limit that one deviation of `count` blocks is so many times of."""

    def enough(blocks: int) -> bool:
        width = math.sqrt(2) * t_quantile(min(blocks, MANY) - 1, level) + MARGIN
        return blocks >= count * width * deviation_to_limit

    high = LEAST
    while not enough(high):
        high *= 2
    low = max(LEAST, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
