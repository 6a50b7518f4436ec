"""Sums over rows that a linear fit needs, step by step: those of a buffer are merged from those of its steps.

A refit after every training step then costs the Gram matrix of the newest step's rows, not of the whole buffer's. N rows, P
features. Sums are about each step's own mean and merged as Chan, Golub and LeVeque do (The American Statistician 37, 1983), so
a mean far larger than the spread costs no digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, means, and sums of products about the means; float64."""

    count: int
    mean_P: Tensor
    target: float
    """Mean of the targets."""
    scatter_PP: Tensor
    """Σ (x − mean)(x − mean)ᵀ."""
    cross_P: Tensor
    """Σ (x − mean)(y − mean y)."""

    @staticmethod
    def of(x_NP: Tensor, y_N: Tensor) -> Moments:
        """Of at least one row."""
        x_NP, y_N = x_NP.double(), y_N.double()
        mean_P, target = x_NP.mean(0), float(y_N.mean())
        x_NP = x_NP - mean_P
        return Moments(len(x_NP), mean_P, target, x_NP.T @ x_NP, x_NP.T @ (y_N - target))

    @staticmethod
    def merged(parts: Sequence[Moments]) -> Moments:
        """Of all rows of the parts together; at least one part."""
        count_K = torch.tensor([part.count for part in parts], dtype=torch.float64)
        total = int(count_K.sum())
        mean_KP = torch.stack([part.mean_P for part in parts])
        target_K = torch.tensor([part.target for part in parts], dtype=torch.float64)
        mean_P, target = count_K @ mean_KP / total, float(count_K @ target_K / total)
        off_KP, weighted_KP = mean_KP - mean_P, count_K[:, None] * (mean_KP - mean_P)
        scatter_PP = weighted_KP.T @ off_KP
        for part in parts:
            scatter_PP += part.scatter_PP
        cross_P = torch.stack([part.cross_P for part in parts]).sum(0) + weighted_KP.T @ (target_K - target)
        return Moments(total, mean_P, target, scatter_PP, cross_P)
