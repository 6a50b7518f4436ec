"""VIMPO: the value that policy and reference imply together, anchored at the end of the response.

KL-regularised optimality says β·log(π*/π_ref) = r + V*(s') − V*(s) + β·KL(s). So the log-ratios of the policy imply a
temporal difference at every token, δ_t = β·(log π(a_t) − log π_ref(a_t) − KL_t), and no critic is needed: given the group's
mean reward as V(s_0), the value after the last token is Σ δ_t − (R − mean R), which must be 0 (Kang et al., arXiv 2606.20008):

    loss = mean over rollouts of ½ (Σ_t β (log-ratio_t − sg KL_t) − (R − mean R))²  +  actor_coef · clipped surrogate,

whose advantages are λ-sums of the detached δ of the *current* policy, whitened over all tokens of the optimizer step.
`value_type soft` anchors β·log Z instead: no KL in the sum, and V(s_0) = mean(R − β Σ KL). Stores nothing: the reference is
the trainer's. docs/vimpo.md tells what the actor branch does and does not do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from vantage.errors import UserError
from vantage.estimators.base import Algorithm, Defaults, Estimate, Estimator, Needs, Reads, Setup
from vantage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from vantage.batch import Batch
    from vantage.config import TrainConfig
    from vantage.policy import Forward

PAPER_ACTOR_COEF = 5e-3
PAPER_BUDGET = 4096
"""Response budget in tokens for which the paper's actor coefficient was chosen."""


@dataclass(frozen=True)
class Vimpo(Algorithm):
    """Options of VIMPO."""

    name: ClassVar[str] = "vimpo"
    rollouts_min: ClassVar[int] = 2
    rollouts_default: ClassVar[int] = 8
    defaults: ClassVar[Defaults] = Defaults(clip_low=0.2, clip_high=0.28, dual_clip=10.0, aggregation="token-mean")
    compares: ClassVar[bool] = True

    beta: float = 5e-4
    """Temperature of the KL-regularised problem: what a nat of log-ratio is worth in reward. To make the anchor matter at
    D nats of log-ratio in a response take about 0.5/D."""
    actor_coef: float | None = None
    """Weight of the actor branch; 0 is the value loss alone, which needs no pre-pass. Default: 0.005 · budget/4096, the
    paper's balance between the two losses at any response length."""
    value_type: Literal["raw", "soft"] = "raw"
    """`raw`, the paper's, takes the KL from each log-ratio; `soft` anchors the soft value, and has no actor branch."""
    kl: Literal["exact", "k1", "k2", "k3"] = "exact"
    """The KL of each state: over the whole vocabulary, or estimated from the sampled token (k1 only with value_type soft)."""
    baseline: Literal["group", "leave_one_out"] = "group"
    """The value of the prompt: mean of the group with the rollout itself (the paper's) or without it."""
    gae_lambda: float = 1.0
    """Decay of later δ in a token's advantage."""
    gamma: float = 1.0
    """Discount; only 1 is possible, since the reward leaves the token terms only there."""
    whiten: bool = True
    """Whether advantages are brought to mean 0 and variance 1 over the tokens of the optimizer step."""
    whiten_eps: float = 1e-8
    """Added to the variance: what spreads less than its root is not blown up."""
    huber: float = 0.0
    """Residuals beyond this count linearly; 0 is off."""
    kl_bonus: float = 0.0
    """An explicit reward for KL to the reference, a control for what the actor branch does; 0 is off."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UserError(f"--vimpo.beta is {self.beta}, it must be greater than 0")
        if self.gamma != 1:
            raise UserError(
                f"--vimpo.gamma is {self.gamma}, only 1 is possible: the value loss is derived for it alone"
            )
        if not 0 <= self.gae_lambda <= 1:
            raise UserError(f"--vimpo.gae-lambda is {self.gae_lambda}, it must be in [0, 1]")
        for name in ("actor_coef", "huber", "kl_bonus"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"--vimpo.{name.replace('_', '-')} is {getattr(self, name)}, it must not be negative")
        if not self.whiten_eps > 0:
            raise UserError(f"--vimpo.whiten-eps is {self.whiten_eps}, it must be greater than 0")
        if self.kl == "k1" and self.value_type == "raw":
            raise UserError(
                "--vimpo.kl k1 is the log-ratio itself, so every token term of value_type raw would be 0; "
                "take exact, k2 or k3"
            )
        if self.value_type == "soft" and self.actor_coef:
            raise UserError(
                "--vimpo.actor-coef: the soft value has no actor branch; leave it out, or take value_type raw"
            )
        if self.kl_bonus and self.kl != "exact":
            raise UserError("--vimpo.kl-bonus needs --vimpo.kl exact, whose gradient is that of the KL")

    def check(self, config: TrainConfig) -> None:
        """A second pull to the reference would change the problem whose optimum the loss describes."""
        if config.kl_coef > 0:
            raise UserError(f"--kl-coef is {config.kl_coef}, but VIMPO has its KL inside; use --vimpo.beta instead")

    def warnings(self, config: TrainConfig) -> Sequence[str]:
        """Log-probs must be those of the distribution that was sampled."""
        cut = {"--top-p": config.top_p < 1, "--top-k": config.top_k > 0}
        return [
            f"{name} cuts the distribution that VIMPO's KL and log-ratios are taken under, so token terms have no mean of 0; "
            "leave it out"
            for name, found in cut.items()
            if found
        ]

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator."""
        return VimpoEstimator(self, setup)


class VimpoEstimator(Estimator):
    """Implied values, their anchor, and the advantages that they give; see the module."""

    def __init__(self, options: Vimpo, setup: Setup) -> None:
        self.options, self.world = options, setup.world
        scaled = PAPER_ACTOR_COEF * setup.max_new_tokens / PAPER_BUDGET
        chosen = scaled if options.actor_coef is None else options.actor_coef
        self.actor_coef = 0.0 if options.value_type == "soft" else chosen
        acts, soft = self.actor_coef > 0, options.value_type == "soft"
        self.needs = Needs(
            reads_policy=acts or soft,
            whole_batch=acts,
            live=acts,
            reference="kl" if options.kl == "exact" else "logp",
            kl_grad=options.kl_bonus > 0,
        )

    def read(self, forward: Forward) -> Reads:
        """`ratio_MT`, `kl_MT` and `anchor_MT` [M, T]: log-ratio, KL, and what is taken from log π in the sum; on the CPU."""
        ratio_MT = (forward.logp_MT - _reference(forward)).detach()
        kl_MT = self._kl(forward)
        return {
            "ratio_MT": _inside(ratio_MT, forward.mask_MT).cpu(),
            "kl_MT": _inside(kl_MT, forward.mask_MT).cpu(),
            "anchor_MT": _inside(self._anchor(forward, kl_MT), forward.mask_MT).cpu(),
        }

    def _kl(self, forward: Forward) -> Tensor:
        from vantage.objectives import sampled_kl

        if self.options.kl != "exact":
            return sampled_kl(forward.logp_MT.detach(), _reference(forward), self.options.kl)
        assert forward.kl_MT is not None
        return forward.kl_MT.detach()

    def _anchor(self, forward: Forward, kl_MT: Tensor) -> Tensor:
        return _reference(forward) + (kl_MT if self.options.value_type == "raw" else 0.0)

    def advantages(self, batch: Batch, reads: Reads) -> Estimate:
        """Targets of the value loss from rewards; advantages of the actor branch from the reads."""
        from vantage.advantages import leave_one_out, over_tokens
        from vantage.gae import discounted_suffix_sums

        options, mask_BT = self.options, batch.response_mask_BT
        value_B = leave_one_out(batch.outcome_B, batch.group_B, batch.scorable_B)
        zero_BT = torch.zeros(mask_BT.shape, dtype=torch.float64)
        reads = reads or dict.fromkeys(("ratio_MT", "kl_MT", "anchor_MT"), zero_BT)
        pay_B = batch.reward_B.double()
        if options.value_type == "soft":
            pay_B = pay_B - options.beta * reads["kl_MT"].double().sum(1)
        target_B = batch.reward_B.double() - self._start(pay_B, batch)
        known_B = batch.scorable_B & target_B.isfinite()
        target_B = torch.where(known_B, target_B, torch.zeros_like(target_B))
        kept = {"target": target_B, "known": known_B}
        advantage_BT, metrics = zero_BT, self._root_mean_square("target_rms", target_B, known_B)
        if self.needs.reads_policy:
            kept["anchor"] = reads["anchor_MT"]
        if self.actor_coef > 0:
            delta_BT = options.beta * (reads["ratio_MT"] - reads["kl_MT"]).double()
            raw_BT = discounted_suffix_sums(delta_BT, mask_BT, options.gae_lambda)
            white_BT = self._whitened(raw_BT, mask_BT & known_B[:, None])
            advantage_BT = self.actor_coef * white_BT
            metrics |= self._root_mean_square("terminal_rmse", delta_BT.sum(1) - target_B, known_B)
            metrics |= self._root_mean_square("advantage_rms", raw_BT.reshape(-1), mask_BT.reshape(-1))
        return Estimate(advantage_BT, over_tokens(value_B, mask_BT), metrics, kept, pull_B=target_B)

    def _root_mean_square(self, name: str, value_N: Tensor, known_N: Tensor) -> dict[str, float]:
        """A metric over all processes; of this micro-batch where advantages are made on the way (the soft value)."""
        from vantage.advantages import batch_statistics
        from vantage.distributed.world import World

        world = World() if self.options.value_type == "soft" else self.world
        mean, _ = batch_statistics(value_N**2, known_N.double(), world)
        return {f"vimpo/{name}": float(mean**0.5)}

    def _start(self, pay_B: Tensor, batch: Batch) -> Tensor:
        """V(s_0): the mean pay of each rollout's group, with or without the rollout itself [B]."""
        from vantage.advantages import group_sums, leave_one_out

        if self.options.baseline == "leave_one_out":
            return leave_one_out(pay_B, batch.group_B, batch.scorable_B)
        total_B, count_B = group_sums(pay_B, batch.group_B, batch.scorable_B)
        return total_B / count_B.clamp(min=1)

    def _whitened(self, raw_BT: Tensor, mask_BT: Tensor) -> Tensor:
        from vantage.advantages import whiten

        if not self.options.whiten:
            return torch.where(mask_BT, raw_BT, torch.zeros_like(raw_BT))
        white_N = whiten(raw_BT.reshape(-1), mask_BT.reshape(-1).double(), self.world, self.options.whiten_eps)
        return white_N.reshape(raw_BT.shape)

    def loss(self, forward: Forward, batch: Batch, estimate: Estimate, weight_M: Tensor) -> Tensor:
        """The value loss ½ e² (or Huber's) of the terminal residual e; gradient through the sampled log-probs alone."""
        kept, logp_MT = estimate.kept, forward.logp_MT
        if "anchor" in kept:
            anchor_MT = kept["anchor"].to(logp_MT)
        else:
            anchor_MT = self._anchor(forward, self._kl(forward))
        implied_M = implied_value(logp_MT, anchor_MT, forward.mask_MT, self.options.beta)
        target_M, known_M = kept["target"].to(implied_M), kept["known"].to(implied_M)
        loss = (terminal_loss(implied_M - target_M, self.options.huber) * known_M * weight_M).sum()
        if self.options.kl_bonus > 0:
            assert forward.kl_MT is not None
            loss = loss - self.options.kl_bonus * (_inside(forward.kl_MT, forward.mask_MT).sum(1) * weight_M).sum()
        return loss


def implied_value(logp_MT: Tensor, anchor_MT: Tensor, mask_MT: Tensor, beta: float) -> Tensor:
    """S = Σ_t β·(log π(a_t) − anchor_t) over each response [M]; the anchor is log π_ref, plus the KL for the raw value."""
    return _inside(beta * (logp_MT - anchor_MT), mask_MT).sum(1)


def terminal_loss(residual_M: Tensor, huber: float = 0.0) -> Tensor:
    """½ e² of each residual [M]; beyond `huber`, if it is not 0, huber·(|e| − huber/2)."""
    square_M = 0.5 * residual_M**2
    if huber == 0:
        return square_M
    size_M = residual_M.abs()
    return torch.where(size_M <= huber, square_M, huber * (size_M - 0.5 * huber))


def _reference(forward: Forward) -> Tensor:
    assert forward.reference_logp_MT is not None
    return forward.reference_logp_MT.to(forward.logp_MT)


def _inside(value_MT: Tensor, mask_MT: Tensor) -> Tensor:
    return torch.where(mask_MT, value_MT, torch.zeros_like(value_MT))
