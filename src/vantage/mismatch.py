"""The engine that samples and the policy that learns compute apart: truncated importance weights for the difference.

    w_t = min(π(a_t) / μ(a_t), cap)    per token,    or    w = min(Π_t π(a_t) / μ(a_t), cap)    per response,

with μ what the engine sampled with and π the policy before its update, both at the sampling temperature. The token form has
little variance and leaves the bias of earlier tokens' difference; the sequence form has only that of the cap (truncated
importance sampling: Ionides, "Truncated Importance Sampling", JCGS 2008). Pure functions; M rollouts, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Correction = Literal["none", "token", "sequence"]
MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to ± this before the exponential."""


@dataclass(frozen=True)
class Mismatch:
    """How far a micro-batch's engine and policy are apart, and the weights that correct for it."""

    weight_MT: Tensor
    """Detached weights, 1 outside of the mask and without a correction."""
    capped_MT: Tensor
    """Where the cap was less than the ratio."""
    kl_MT: Tensor
    """π/μ − 1 − log π/μ of each token, whose expectation is KL(μ ‖ π) in nats; 0 outside of the mask."""

    def of_rollouts(self, mask_MT: Tensor) -> Tensor:
        """Mean weight of each response's tokens [M], for a loss that has no tokens; 1 for a response without any."""
        count_M = mask_MT.sum(1)
        sum_M = torch.where(mask_MT, self.weight_MT, torch.zeros_like(self.weight_MT)).sum(1)
        return torch.where(count_M > 0, sum_M / count_M.clamp(min=1), torch.ones_like(sum_M))


def compare(
    policy_logp_MT: Tensor, behaviour_logp_MT: Tensor, mask_MT: Tensor, correction: Correction, cap: float
) -> Mismatch:
    """Weights and divergence from the log-probs of policy and engine."""
    zero_MT = torch.zeros_like(policy_logp_MT)
    log_ratio_MT = torch.where(mask_MT, (policy_logp_MT - behaviour_logp_MT).detach(), zero_MT)
    log_ratio_MT = log_ratio_MT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    kl_MT = torch.expm1(log_ratio_MT) - log_ratio_MT
    if correction == "sequence":
        whole_M1 = log_ratio_MT.sum(1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        log_ratio_MT = torch.where(mask_MT, whole_M1.expand_as(log_ratio_MT), zero_MT)
    elif correction == "none":
        log_ratio_MT = zero_MT
    ratio_MT = log_ratio_MT.exp()
    return Mismatch(ratio_MT.clamp(max=cap), ratio_MT > cap, kl_MT)
