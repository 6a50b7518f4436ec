"""PPO: a learned critic says what every prefix is worth, and generalised advantage estimation turns that into advantages.

V(s_t) is the critic's value of prompt and tokens before y_t; the reward R comes with the last token, γ and λ as usual:

    δ_t = r_t + γ V(s_{t+1}) − V(s_t),   A_t = δ_t + γ λ_actor A_{t+1}      (Schulman et al., arXiv 1506.02438, 1707.06347)
    target of V(s_t) = V(s_t) + the same sum with λ_critic                   (two λ: VC-PPO, arXiv 2503.01491)

At λ_actor = 1 the advantage is R − V(s_t): a wrong critic costs variance and no bias. `length_adaptive_alpha` takes
λ_actor = 1 − 1/(α·L) for a response of L tokens (VAPO, arXiv 2504.05118). The critic is asked before the update (`query`, or
`read` for a head on the policy's own states) and trained after it (`learn`), so no advantage comes from a critic that has
seen the batch. In the first step, before anything is known, V is the mean outcome of all other rollouts.

Stored: the critic's weights and its optimizer's moments, and how far value pretraining has come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from vantage.errors import UserError
from vantage.estimators.base import Algorithm, Estimate, Estimator, Needs, Queried, Reads, Setup, State
from vantage.lazy import torch

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from vantage.batch import Batch
    from vantage.collect import Collected
    from vantage.config import TrainConfig
    from vantage.critics.token import TokenCritic
    from vantage.policy import Forward

FLAT = 0.01
"""Explained variance that gains less than this has become flat."""


@dataclass(frozen=True)
class Ppo(Algorithm):
    """Options of PPO."""

    name: ClassVar[str] = "ppo"

    critic: str = "copy"
    """What estimates values: `copy` (a copy of the policy's trunk with a value head), `head` (a head on the policy's own
    hidden states, which it does not change), a critic that a run has left (RUN or RUN/critic), or any other model."""
    loss: Literal["mse", "clipped", "bce"] = "mse"
    """The critic's loss: squared error; squared error clipped around the old value; cross-entropy on the two ends of the
    reward range."""
    value_clip: float = 0.2
    """With --ppo.loss clipped: how far a value may move in an update, as a share of the reward range."""
    gamma: float = 1.0
    """Discount of a token."""
    lam_critic: float = 1.0
    """λ of the critic's targets; 1 is the Monte-Carlo return."""
    lam_actor: float = 1.0
    """λ of the policy's advantages; below 1 they are biased wherever the critic is."""
    length_adaptive_alpha: float = 0.0
    """λ of the policy's advantages becomes 1 − 1/(alpha·L) for a response of L tokens, at least 0 (VAPO has 0.05); 0 is off."""
    whiten: Literal["full", "scale", "none"] = "full"
    """Advantages over the tokens of the step: mean 0 and variance 1, only divided by their deviation, or as they are."""
    whiten_values: bool = False
    """Whether the critic learns targets brought to mean 0 and variance 1 by running statistics (not with --ppo.loss bce)."""
    critic_learning_rate: float | None = None
    """Peak learning rate of the critic's AdamW. Default: ten times the policy's, at most 3e-4; for `head` 0.04 over the
    width of the states."""
    critic_lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of that learning rate after its warm-up."""
    critic_lr_warmup: int = 0
    """Optimizer steps of the critic over which its learning rate rises linearly from 0."""
    critic_weight_decay: float = 0.0
    """Decoupled weight decay of the critic."""
    critic_max_grad_norm: float = 1.0
    """The critic's gradients are scaled down to this norm; 0 is off."""
    critic_epochs: int = 1
    """The critic's passes over each batch."""
    critic_minibatches: int = 8
    """The critic's optimizer steps in a pass; prompt groups stay whole."""
    value_warmup_steps: int = 0
    """First steps at most in which only the critic learns and the policy rests (value pretraining)."""
    value_warmup_patience: int = 5
    """Value pretraining ends early when explained variance has gained less than 0.01 from so many steps to the next so
    many; 0 never ends it early."""
    head_layer: int | None = None
    """With --ppo.critic head: layer of the states, as transformers' hidden_states counts. Default: three
    quarters of the depth."""
    head_tokens: int = 16
    """With --ppo.critic head: states of a response at most that are kept to learn from."""

    def __post_init__(self) -> None:
        for name in ("gamma", "lam_critic", "lam_actor"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{_flag(name)} is {getattr(self, name)}, it must be in [0, 1]")
        for name in ("value_clip", "critic_learning_rate", "critic_epochs", "critic_minibatches", "head_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{_flag(name)} is {value}, it must be greater than 0")
        for name in (
            "length_adaptive_alpha", "critic_lr_warmup", "critic_weight_decay", "critic_max_grad_norm",
            "value_warmup_steps", "value_warmup_patience",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{_flag(name)} is {getattr(self, name)}, it must not be negative")
        if self.length_adaptive_alpha and self.lam_actor != 1:
            raise UserError(
                f"--ppo.lam-actor is {self.lam_actor}, but --ppo.length-adaptive-alpha sets λ by length; give one of them"
            )
        if self.whiten_values and self.loss == "bce":
            raise UserError("--ppo.whiten-values: --ppo.loss bce learns probabilities; leave it out, or take mse")
        if not self.critic:
            raise UserError("--ppo.critic is empty; give copy, head, a critic's folder or a model")
        if self.head_layer is not None and self.critic in ("copy",):
            raise UserError("--ppo.head-layer is for --ppo.critic head; leave it out")

    def check(self, config: TrainConfig) -> None:
        """Some steps must be left for the policy."""
        if self.value_warmup_steps >= config.steps:
            raise UserError(
                f"--ppo.value-warmup-steps is {self.value_warmup_steps}, of --steps {config.steps} none is left for the policy"
            )

    def warnings(self, config: TrainConfig) -> Sequence[str]:
        """Per-token λ takes the terminal reward away from early tokens."""
        kept = (self.gamma * self.lam_actor) ** (config.max_new_tokens or 1)
        if kept < 0.01:
            return [
                f"γλ of the policy's advantages is {self.gamma * self.lam_actor:g} a token: over {config.max_new_tokens} "
                f"tokens {kept:.0e} of the reward reaches the first; give --ppo.lam-actor 1 or --ppo.length-adaptive-alpha"
            ]
        return ()

    def trained_beside(self) -> tuple[Literal["none", "values", "language"], str | None]:
        """A model with a value head, unless the head is on the policy's own states."""
        if self.critic == "head":
            return "none", None
        return "values", None if self.critic == "copy" else self.critic

    def build(self, setup: Setup) -> Estimator:
        """Make critic and estimator; raises `UserError` for a critic that can not be had or does not fit."""
        from vantage.critics.building import build_critic

        return PpoEstimator(self, setup, build_critic(self, setup))


def _flag(name: str) -> str:
    return f"--ppo.{name.replace('_', '-')}"


class PpoEstimator(Estimator):
    """Values of a critic, advantages from them, and the critic's own learning; see the module."""

    def __init__(self, options: Ppo, setup: Setup, critic: TokenCritic) -> None:
        self.options, self.setup, self.world, self.critic = options, setup, setup.world, critic
        reads = critic.kind == "head"
        self.needs = Needs(
            hidden_layers=critic.layers, reads_policy=reads, whole_batch=reads and options.whiten != "none"
        )
        self.update_policy = options.value_warmup_steps == 0
        self.dealt_out = getattr(critic, "shards", None) is not None
        self.explained: list[float] = []
        """Explained variance in the steps of value pretraining."""

    def query(self, collected: Collected) -> Queried:
        """`value_MT` of a critic with a model of its own; in the very first step `start` [B], for every critic."""
        from vantage.advantages import leave_one_out_of_batch

        batch = collected.batch
        if not bool(self.critic.head.begun):
            start_B = leave_one_out_of_batch(batch.outcome_B, batch.scorable_B, self.world)
            return Queried({"start": torch.where(start_B.isfinite(), start_B, self.critic.head.mean.cpu())})
        value_BT = self.critic.values(batch)
        return Queried({} if value_BT is None else {"value_MT": value_BT})

    def read(self, forward: Forward) -> Reads:
        """Values and kept states, for a head on the policy."""
        return self.critic.read(forward)

    def advantages(self, batch: Batch, reads: Reads) -> Estimate:
        """λ-sums of the critic's temporal differences; what can not be scored gets 0."""
        from vantage.gae import gae, length_adaptive_lambda, paid_at_the_end

        options, mask_BT = self.options, batch.response_mask_BT
        value_BT = self._values(batch, reads)
        known_BT = mask_BT & batch.scorable_B[:, None]
        reward_B = torch.where(batch.scorable_B, batch.reward_B, 0.0).double()
        lam: float | Tensor = options.lam_actor
        if options.length_adaptive_alpha:
            lam = length_adaptive_lambda(batch.length_B, options.length_adaptive_alpha)
        advantage_BT = gae(value_BT, paid_at_the_end(reward_B, mask_BT), known_BT, options.gamma, lam)
        return Estimate(self._whitened(advantage_BT, known_BT), value_BT)

    def _values(self, batch: Batch, reads: Reads) -> Tensor:
        """Values of the states before the tokens [B, T], float64; 0 outside of the responses."""
        from vantage.advantages import over_tokens

        if "start" in batch.queried:
            return over_tokens(batch.queried["start"].double(), batch.response_mask_BT)
        found = batch.queried.get("value_MT", reads.get("value_MT"))
        return torch.zeros(batch.response_mask_BT.shape, dtype=torch.float64) if found is None else found.double()

    def _whitened(self, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        from vantage.segment_credit import whiten_tokens

        if self.options.whiten == "none":
            return advantage_BT
        return whiten_tokens(advantage_BT, mask_BT, self.world, centre=self.options.whiten == "full")

    def learn(self, batch: Batch, reads: Reads, estimate: Estimate) -> Mapping[str, float]:
        """Compare the values with what came, then train the critic towards its λ-returns of the raw outcomes."""
        from vantage.critics.training import Targets, explained_variance
        from vantage.gae import gae, paid_at_the_end

        options, mask_BT, value_BT = self.options, batch.response_mask_BT, estimate.value_BT.double()
        outcome_B = torch.where(batch.scorable_B, batch.outcome_B, 0.0).double()
        known_BT = mask_BT & batch.scorable_B[:, None]
        paid_BT = paid_at_the_end(outcome_B, mask_BT)
        returns_BT = gae(torch.zeros_like(value_BT), paid_BT, known_BT, options.gamma)
        explained = explained_variance(value_BT.flatten(), returns_BT.flatten(), known_BT.flatten(), self.world)
        target_BT = gae(value_BT, paid_BT, known_BT, options.gamma, options.lam_critic) + value_BT
        if not self.critic.begin(outcome_B, batch.scorable_B):
            return {}
        metrics = self.critic.fit(batch, reads, Targets(target_BT, value_BT, known_BT))
        metrics |= {
            "critic/explained_variance": explained,
            "critic/within_response_std": self._spread(value_BT, mask_BT),
            "critic/warming_up": float(not self.update_policy),
        }
        self._end_of_warmup(explained)
        return metrics

    def _spread(self, value_BT: Tensor, mask_BT: Tensor) -> float:
        """Mean over all responses of the values' deviation within a response; near 0 for a critic that only knows prompts."""
        count_B = mask_BT.sum(1).clamp(min=1)
        mean_B = value_BT.sum(1) / count_B
        square_B = (torch.where(mask_BT, value_BT - mean_B[:, None], 0.0) ** 2).sum(1) / count_B
        total, rows = self.world.sum(torch.stack([square_B.sqrt().sum(), mask_BT.any(1).double().sum()])).tolist()
        return float(total / max(1.0, rows))

    def _end_of_warmup(self, explained: float) -> None:
        """Let the policy train once value pretraining is over or gains nothing more."""
        if self.update_policy:
            return
        self.explained.append(explained if math.isfinite(explained) else 0.0)
        over = len(self.explained) >= self.options.value_warmup_steps
        self.update_policy = over or is_flat(self.explained, self.options.value_warmup_patience)

    def state_dict(self) -> State:
        """Critic, its optimizer, and the explained variances of value pretraining."""
        found = self.critic.training.state_dict()
        pretraining = {"explained": list(self.explained), "update_policy": self.update_policy}
        return replace(found, values={**found.values, **pretraining})

    def load_state_dict(self, state: State) -> None:
        """Restore all of it."""
        self.critic.training.load_state_dict(state)
        self.explained, self.update_policy = list(state.values["explained"]), bool(state.values["update_policy"])

    def save_pretrained(self, folder: Path) -> None:
        """The critic, for --ppo.critic of another run."""
        from vantage.critics.building import save

        save(folder, self.options, self.setup, self.critic)


def is_flat(explained: Sequence[float], patience: int) -> bool:
    """Whether the mean of the last `patience` numbers is not `FLAT` above that of as many before; 0 is never."""
    if patience == 0 or len(explained) < 2 * patience:
        return False
    last, before = explained[-patience:], explained[-2 * patience : -patience]
    return sum(last) / patience < sum(before) / patience + FLAT
