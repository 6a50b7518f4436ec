"""The policy objective: surrogates of the importance ratio, KL to a reference, aggregation of token losses. Pure functions.

Every aggregation is a sum of token losses with one weight per rollout, fixed by the lengths of the whole optimizer
batch; so a micro-batch needs nothing but its rows' weights, and cutting can not change the result. M or B rollouts, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vantage.config import Aggregation, KlEstimator, PolicyLoss, TrainConfig
from vantage.mismatch import Correction

MAX_LOG_RATIO = 20.0
"""Log importance ratios are clamped to ± this before the exponential."""


@dataclass(frozen=True)
class Objective:
    """Clip range, aggregation, KL and bonus, resolved."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    """0 is off."""
    aggregation: Aggregation = "seq-mean-token-sum-norm"
    constant: int = 1
    """Divides the token sum in `seq-mean-token-sum-norm`: the response budget, a constant of the run."""
    entropy_coef: float = 0.0
    policy_loss: PolicyLoss = "clip"
    kl_coef: float = 0.0
    kl_estimator: KlEstimator = "k3"
    kl_weighting: Literal["ratio", "none"] = "ratio"
    mask_truncated: bool = False
    mismatch_correction: Correction = "none"
    mismatch_cap: float = 2.0

    @staticmethod
    def of(config: TrainConfig) -> Objective:
        """From a resolved configuration (`vantage.config.resolve`)."""
        if None in (config.clip_low, config.clip_high, config.dual_clip, config.aggregation, config.max_new_tokens):
            raise ValueError("the configuration must be resolved first")
        return Objective(
            clip_low=config.clip_low or 0.0,
            clip_high=config.clip_high or 0.0,
            dual_clip=config.dual_clip or 0.0,
            aggregation=config.aggregation or "token-mean",
            constant=config.max_new_tokens or 1,
            entropy_coef=config.entropy_coef,
            policy_loss=config.policy_loss,
            kl_coef=config.kl_coef,
            kl_estimator=config.kl_estimator,
            kl_weighting=config.kl_weighting,
            mask_truncated=config.mask_truncated,
            mismatch_correction=config.mismatch_correction or "none",
            mismatch_cap=config.mismatch_cap,
        )


def rollout_weights(
    aggregation: Aggregation, length_B: Tensor, constant: int, totals: tuple[float, float] | None = None
) -> Tensor:
    """The weight of each rollout's token losses [B], float64.

    `token-mean`: 1/Σ lengths (DAPO). `seq-mean-token-mean`: 1/(B·length) (GRPO; POISE Eq. 14).
    `seq-mean-token-sum`: 1/B. `seq-mean-token-sum-norm`: 1/(B·constant) (Dr. GRPO). Only the last two do not depend on
    the sampled lengths, and so keep the gradient with an independent baseline unbiased. `totals` has the rollouts and
    tokens of the whole optimizer step where `length_B` is only a part of it.
    """
    length_B = length_B.double()
    rows, tokens = totals or (float(len(length_B)), float(length_B.sum()))
    rows = max(1.0, rows)
    if aggregation == "token-mean":
        return torch.full_like(length_B, 1 / max(1.0, tokens))
    if aggregation == "seq-mean-token-mean":
        return 1 / (rows * length_B.clamp(min=1))
    if aggregation == "seq-mean-token-sum":
        return torch.full_like(length_B, 1 / rows)
    return torch.full_like(length_B, 1 / (rows * constant))


@dataclass(frozen=True)
class TokenLoss:
    """Loss of each token and what diagnostics need; all [M, T]."""

    loss_MT: Tensor
    clipped_MT: Tensor
    ratio_MT: Tensor


def clipped_surrogate(logp_MT: Tensor, old_logp_MT: Tensor, advantage_MT: Tensor, objective: Objective) -> TokenLoss:
    """PPO's clipped surrogate with separate bounds, as a loss (Schulman et al., arXiv 1707.06347, Eq. 7).

    max(−A·ρ, −A·clip(ρ, 1−low, 1+high)); where A < 0 capped at −A·dual_clip (Ye et al., arXiv 1912.09729).
    A clipped token is one whose gradient the ratio's bounds remove; those that the dual clip caps are not counted.
    """
    ratio_MT = (logp_MT - old_logp_MT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    plain_MT = -advantage_MT * ratio_MT
    bounded_MT = -advantage_MT * ratio_MT.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    loss_MT = torch.maximum(plain_MT, bounded_MT)
    clipped_MT = bounded_MT > plain_MT
    if objective.dual_clip > 0:
        cap_MT = -advantage_MT * objective.dual_clip
        capped_MT = (advantage_MT < 0) & (loss_MT > cap_MT)
        loss_MT = torch.where(capped_MT, cap_MT, loss_MT)
    return TokenLoss(loss_MT, clipped_MT.detach(), ratio_MT.detach())


def sequence_ratio(logp_MT: Tensor, old_logp_MT: Tensor, mask_MT: Tensor) -> Tensor:
    """Log of GSPO's ratio at every token [M, T]: the mean token log-ratio of the response (arXiv 2507.18071, Eq. 7)."""
    log_ratio_MT = torch.where(mask_MT, logp_MT - old_logp_MT, torch.zeros_like(logp_MT))
    mean_M = log_ratio_MT.sum(1) / mask_MT.sum(1).clamp(min=1)
    return mean_M[:, None].expand_as(logp_MT)


def clipped_sequences(
    logp_MT: Tensor, old_logp_MT: Tensor, advantage_MT: Tensor, mask_MT: Tensor, objective: Objective
) -> TokenLoss:
    """GSPO (arXiv 2507.18071, Eq. 5): the clipped surrogate of the length-normalised ratio of the whole response.

    Every token carries its response's loss, so `seq-mean-token-mean` gives the mean over responses.
    """
    log_ratio_MT = sequence_ratio(logp_MT, old_logp_MT, mask_MT)
    return clipped_surrogate(log_ratio_MT, torch.zeros_like(log_ratio_MT), advantage_MT, objective)


def capped_weights(logp_MT: Tensor, old_logp_MT: Tensor, advantage_MT: Tensor, objective: Objective) -> TokenLoss:
    """CISPO (MiniMax-M1, arXiv 2506.13585, Eq. 4): −sg(clip(ρ))·A·log π, so that no token loses its gradient.

    A clipped token is one whose weight is not its ratio.
    """
    ratio_MT = (logp_MT - old_logp_MT).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    weight_MT = ratio_MT.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    return TokenLoss(-weight_MT * advantage_MT * logp_MT, weight_MT != ratio_MT, ratio_MT)


def policy_loss(
    logp_MT: Tensor, old_logp_MT: Tensor, advantage_MT: Tensor, mask_MT: Tensor, objective: Objective
) -> TokenLoss:
    """The token losses of the objective's kind."""
    if objective.policy_loss == "gspo":
        return clipped_sequences(logp_MT, old_logp_MT, advantage_MT, mask_MT, objective)
    if objective.policy_loss == "cispo":
        return capped_weights(logp_MT, old_logp_MT, advantage_MT, objective)
    return clipped_surrogate(logp_MT, old_logp_MT, advantage_MT, objective)


def sampled_kl(logp_MT: Tensor, reference_logp_MT: Tensor, estimator: KlEstimator) -> Tensor:
    """Estimates of KL(policy ‖ reference) from the sampled tokens [M, T], in nats (Schulman, "Approximating KL divergence").

    With d = log π − log π_ref: k1 = d, k2 = d²/2, k3 = e^{−d} − 1 + d. As a value k1 and k3 have the right
    expectation; as a *loss* on sampled tokens the gradient of k1 has expectation 0, that of k2 is the KL's own, and
    that of k3 the forward KL's (e^{−d} is bounded here by e^20). `exact` needs the whole vocabulary, see `Policy.forward`.
    """
    difference_MT = (logp_MT - reference_logp_MT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return difference_MT
    if estimator == "k2":
        return difference_MT**2 / 2
    if estimator == "k3":
        return torch.expm1(-difference_MT) + difference_MT
    raise ValueError(f"{estimator} can not be taken from sampled tokens")


def kl_penalty(logp_MT: Tensor, old_logp_MT: Tensor, reference_logp_MT: Tensor, objective: Objective) -> Tensor:
    """The sampled KL as a loss [M, T]: times the importance ratio, if the objective says so (arXiv 2512.02556 §3.1).

    The ratio is differentiated for k1 and k3, whose own gradients lack that of the sampling, and held fixed for k2, whose
    gradient is right already; at the policy that sampled, all three then have the gradient of KL(policy ‖ reference).
    """
    kl_MT = sampled_kl(logp_MT, reference_logp_MT, objective.kl_estimator)
    if objective.kl_weighting == "none":
        return kl_MT
    ratio_MT = (logp_MT - old_logp_MT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return kl_MT * (ratio_MT.detach() if objective.kl_estimator == "k2" else ratio_MT)


def weighted_sum(value_MT: Tensor, mask_MT: Tensor, weight_M: Tensor) -> Tensor:
    """Σ weight·value over the tokens of `mask_MT`; a scalar."""
    masked_MT = torch.where(mask_MT, value_MT, torch.zeros((), dtype=value_MT.dtype, device=value_MT.device))
    return (masked_MT.sum(1) * weight_M.to(value_MT.dtype)).sum()
