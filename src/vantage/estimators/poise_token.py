"""POISE at every token: a linear probe reads the policy's state before each token and predicts the expected reward from there.

The baseline of token t is V(x, y_<t) = clip(c + w·φ_t), where φ_t sees the prompt and the tokens before t only: the hidden
state that predicts token t, the mean of such states since the response began, and running statistics of entropies and of
the probabilities of the tokens drawn so far (`vantage.probes.token_features`). With R the reward,

    A_t = Σ_l λ^l δ_{t+l},   δ_t = V_{t+1} − V_t, and R − V_t at the last token;   at λ = 1 (default) A_t = R − V_t.

E[V_t ∇log π(y_t | x, y_<t)] = 0 for any function V of the prefix, so no sibling is needed: one rollout a prompt, which
Corollary 1 of arXiv 2605.07579 calls the best allocation, and whose authors name values within a trajectory as future work.
At λ = 1 the gradient is unbiased however wrong V is; below, errors of V bias it. w and c are a ridge fit on earlier steps'
rollouts (Monte-Carlo returns, or TD(λ)), streamed through sums that fade with the steps; before the probe has beaten it on
past steps, the baseline is the mean reward of the step's other rollouts, which is independent of this one.

Stored, by task domain: faded sums, squared errors of the last steps, the mean reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from vantage.errors import UserError
from vantage.estimators.base import Algorithm, Defaults, Estimate, Estimator, Needs, Queried, Reads, Setup, State
from vantage.estimators.poise import PAPER_DEPTH
from vantage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from vantage.batch import Batch
    from vantage.collect import Collected
    from vantage.policy import Forward
    from vantage.probes.tokens import TokenDomain


@dataclass(frozen=True)
class PoiseToken(Algorithm):
    """Options of POISE at every token."""

    name: ClassVar[str] = "poise_token"
    defaults: ClassVar[Defaults] = Defaults(clip_low=0.2, clip_high=0.28, dual_clip=10.0)

    layers: tuple[int, ...] | None = None
    """Layers whose states are read, as transformers' hidden_states counts (0 = embeddings). Default: one, at POISE's relative
    depth."""
    positions: int = 8
    """Tokens of each rollout that the probe is fitted on, spread over the response; values are read at all of them."""
    targets: Literal["mc", "td"] = "mc"
    """What the probe is fitted to: the rollout's reward (mc), or the λ-return of the probe's own later values (td), once it is
    trusted."""
    td_lambda: float = 0.95
    """λ of the returns with `targets td`."""
    gae_lambda: float = 1.0
    """λ of the advantages; below 1 they have less variance, and the probe's errors bias them."""
    alpha: float | Literal["auto"] = "auto"
    """Ridge penalty; auto takes the one whose predictions of the last steps, made before they were seen, were best."""
    memory: float = 16.0
    """Steps after which a rollout's weight in the fit has faded to 1/e, roughly; at least 1 (the newest step only)."""
    bootstrap: int | Literal["auto"] = "auto"
    """Steps with the mean reward as baseline before the probe takes over; auto switches as soon as the probe had the smaller
    squared error over the last steps."""

    def __post_init__(self) -> None:
        for name in ("td_lambda", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"--poise_token.{name.replace('_', '-')} is {getattr(self, name)}, it must be in [0, 1]"
                )
        for name in ("positions", "memory"):
            if not getattr(self, name) >= 1:
                raise UserError(f"--poise_token.{name} is {getattr(self, name)}, it must be at least 1")
        if self.alpha != "auto" and not self.alpha > 0:
            raise UserError(f"--poise_token.alpha is {self.alpha}, it must be greater than 0, or auto")
        if self.bootstrap != "auto" and self.bootstrap < 0:
            raise UserError(f"--poise_token.bootstrap is {self.bootstrap}, it must be 0 or more steps, or auto")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            given = " ".join(map(str, self.layers)) or "empty"
            raise UserError(f"--poise_token.layers is {given}, it must name at least one layer, and each once")

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator; refuses layers that the policy has not."""
        for layer in self.layers or ():
            if not 0 <= layer <= setup.num_layers:
                raise UserError(
                    f"--poise_token.layers has {layer}, this model has layers 0 (embeddings) to {setup.num_layers}"
                )
        return PoiseTokenEstimator(self, setup)


class PoiseTokenEstimator(Estimator):
    """Prefix-only baselines from a probe at every position; see the module."""

    def __init__(self, options: PoiseToken, setup: Setup) -> None:
        self.options, self.setup = options, setup
        self.layers = options.layers or (max(1, round(PAPER_DEPTH * setup.num_layers)),)
        self.needs = Needs(hidden_layers=tuple(sorted(self.layers)), reads_policy=True)
        self.seed = setup.services.config.seed if setup.services else 0
        self.domains: dict[str, TokenDomain] = {}

    @property
    def features(self) -> int:
        """Width of a row, P."""
        from vantage.probes.token_features import STATISTICS

        return 2 * len(self.layers) * self.setup.hidden_size + len(STATISTICS)

    def query(self, collected: Collected) -> Queried:
        """`others` [B]: mean outcome of all other rollouts of the step and domain, on all processes; NaN if there is none."""
        batch = collected.batch
        own = {name: self._total(batch, rows_N) for name, rows_N in batch.rows_by_domain().items()}
        parts = self.setup.world.exchange(own)
        others_B = torch.full((batch.size,), float("nan"), dtype=torch.float64)
        for name, rows_N in batch.rows_by_domain().items():
            total, count = (sum(part[name][i] for part in parts if name in part) for i in (0, 1))
            valid_N = batch.scorable_B[rows_N].double()
            outcome_N = torch.where(valid_N > 0, batch.outcome_B[rows_N].double(), 0.0)
            others_N = count - valid_N
            others_B[rows_N] = torch.where(others_N > 0, (total - outcome_N) / others_N, float("nan"))
        return Queried({"others": others_B})

    @staticmethod
    def _total(batch: Batch, rows_N: Tensor) -> tuple[float, float]:
        valid_N = batch.scorable_B[rows_N]
        return float(batch.outcome_B[rows_N][valid_N].sum()), float(valid_N.sum())

    def read(self, forward: Forward) -> Reads:
        """`positions` [M, K] and `rows` [M, K, P] for the fit, and each domain's values `value0_MT`, ... [M, T]; on the CPU."""
        from vantage.probes import token_features as features

        mask_MT = forward.mask_MT
        states = [features.predicting_states(forward.hidden[k], forward.prompt_length_M, mask_MT) for k in self.layers]
        statistics_MTS = features.running_statistics(
            forward.logp_MT, forward.entropy_MT, mask_MT, self.setup.max_new_tokens
        )
        position_MK = features.chosen_positions(forward.response_ids, self.options.positions, self.seed)
        rows_MKP = features.feature_rows(states, statistics_MTS, position_MK.to(mask_MT.device))
        found = {"positions": position_MK, "rows": rows_MKP.cpu()}
        fitted = {name: weights for name, domain in self.domains.items() if (weights := domain.weights())}
        if fitted:
            mean_PW = torch.stack([mean_P for mean_P, _, _ in fitted.values()], dim=1)
            weight_PW = torch.stack([weight_P for _, weight_P, _ in fitted.values()], dim=1)
            offset_W = torch.tensor([offset for _, _, offset in fitted.values()], dtype=torch.float64)
            value_MTW = features.linear_values(states, statistics_MTS, mean_PW, weight_PW, offset_W).double().cpu()
            for i, name in enumerate(fitted):
                clipped_MT = self.domains[name].clip(value_MTW[..., i])
                found[f"value{self._number(name)}_MT"] = clipped_MT.masked_fill(~mask_MT.cpu(), 0.0)
        return found

    def _number(self, name: str) -> int:
        return list(self.domains).index(name)

    def advantages(self, batch: Batch, reads: Reads) -> Estimate:
        """λ-advantages under the probe's values; reward minus the mean reward until the probe is trusted."""
        from vantage.probes.token_features import lambda_advantages

        mask_BT, reward_B = batch.response_mask_BT, batch.reward_B.double()
        value_BT = self._constant(batch)[:, None].expand(mask_BT.shape)
        advantage_BT = lambda_advantages(value_BT, reward_B, mask_BT, 1.0)
        value_BT = torch.where(mask_BT, value_BT, 0.0)
        for name, rows_N in batch.rows_by_domain().items():
            if (probed_NT := self._probed(name, rows_N, batch.step, reads)) is not None:
                value_BT[rows_N] = probed_NT
                advantage_BT[rows_N] = lambda_advantages(
                    probed_NT, reward_B[rows_N], mask_BT[rows_N], self.options.gae_lambda
                )
        known_B = batch.scorable_B[:, None] & advantage_BT.isfinite()
        return Estimate(torch.where(known_B, advantage_BT, 0.0), value_BT)

    def _probed(self, name: str, rows_N: Tensor, step: int, reads: Reads) -> Tensor | None:
        """The trusted probe's values of a domain's rollouts [N, T]; None where there is none."""
        domain = self.domains.get(name)
        if domain is None or not domain.trusted():
            return None
        domain.require_unseen(step)
        return reads[f"value{self._number(name)}_MT"][rows_N]

    def _constant(self, batch: Batch) -> Tensor:
        """The baseline without a probe [B]: the mean of the step's other rollouts, else that of the past; else NaN."""
        past = {name: domain.outcome for name, domain in self.domains.items()}
        past_B = torch.tensor([past.get(name, float("nan")) for name in batch.domains], dtype=torch.float64)
        others_B = batch.queried.get("others", past_B)
        return torch.where(others_B.isfinite(), others_B, past_B)

    def learn(self, batch: Batch, reads: Reads, estimate: Estimate) -> Mapping[str, float]:
        """Score the old probes on what came, and fit them again with it."""
        from vantage.estimators.poise_domain import merge_metrics

        world, own = self.setup.world, batch.rows_by_domain()
        totals = world.exchange({name: self._total(batch, rows_N) for name, rows_N in own.items()})
        logged = []
        for name in sorted({name for part in totals for name in part}):
            rows_N = own.get(name, torch.zeros(0, dtype=torch.long))
            x_NP, y_N, outcome_N, constant_N = self._rows(batch, reads, name, rows_N)
            domain = self.domains.setdefault(name, self._domain())
            metrics = domain.learn(batch.step, x_NP, y_N, outcome_N, constant_N, world)
            domain.note_outcomes(*(sum(part[name][i] for part in totals if name in part) for i in (0, 1)))
            logged.append({f"poise_token/{key}": value for key, value in metrics.items()})
        return merge_metrics(logged)

    def _rows(self, batch: Batch, reads: Reads, name: str, rows_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, targets, outcomes and constant baselines of this process's chosen positions of a domain."""
        if not len(rows_N):
            none_N = torch.zeros(0, dtype=torch.float64)
            return torch.zeros((0, self.features)), none_N, none_N, none_N
        constant_N, outcome_N = self._constant(batch)[rows_N], batch.outcome_B[rows_N].double()
        position_NK = reads["positions"][rows_N]
        used_NK = (position_NK >= 0) & batch.scorable_B[rows_N][:, None]
        target_NT = outcome_N[:, None].expand(batch.response_mask_BT[rows_N].shape)
        if self.options.targets == "td" and (value_NT := self._probed(name, rows_N, batch.step, reads)) is not None:
            from vantage.probes.token_features import lambda_advantages

            mask_NT = batch.response_mask_BT[rows_N]
            target_NT = value_NT + lambda_advantages(value_NT, outcome_N, mask_NT, self.options.td_lambda)
        target_NK = target_NT.gather(1, position_NK.clamp(min=0))
        spread = position_NK.shape
        # Without any baseline (a first step of one rollout) the probe is compared with nothing.
        constant_NK = constant_N.nan_to_num(0.0)[:, None].expand(spread)
        outcome_NK = outcome_N[:, None].expand(spread)
        return reads["rows"][rows_N][used_NK], target_NK[used_NK], outcome_NK[used_NK], constant_NK[used_NK]

    def _domain(self) -> TokenDomain:
        from vantage.probes.linear import ALPHA_GRID
        from vantage.probes.tokens import ON_DEVICE_FROM, TokenDomain

        options, services = self.options, self.setup.services
        device = services.policy.device if services else None
        on_device = device is not None and device.type == "cuda" and self.features > ON_DEVICE_FROM
        return TokenDomain(
            ALPHA_GRID if options.alpha == "auto" else (options.alpha,), options.memory,
            None if options.bootstrap == "auto" else options.bootstrap, *self.setup.reward_range,
            device=device if on_device else None,
        )  # fmt: skip

    def state_dict(self) -> State:
        """Sums as tensors, history as JSON, by domain."""
        tensors: dict[str, Tensor] = {}
        values: list[dict[str, object]] = []
        for i, (name, domain) in enumerate(self.domains.items()):
            state = domain.state_dict()
            tensors |= {f"{i}.{key}": value for key, value in state.tensors.items()}
            values.append({"name": name, **state.values})
        return State(tensors, {"domains": values})

    def load_state_dict(self, state: State) -> None:
        """Restore the sums and fit the probes."""
        self.domains = {}
        for i, values in enumerate(state.values["domains"]):
            tensors = {k.removeprefix(f"{i}."): v for k, v in state.tensors.items() if k.startswith(f"{i}.")}
            self.domains[values["name"]] = self._domain()
            self.domains[values["name"]].load_state_dict(State(tensors, values), self.features)
