"""POISE: a linear probe on the policy's own hidden states and entropies predicts the expected reward.

φ = [h_p; h_r; u]: mean state of the last prompt tokens, of the last reasoning tokens, three mean entropies. A ridge probe g
is fitted on a buffer of past steps, where the row of rollout i has the leave-one-out mean reward of its siblings as
target. The baseline of rollout i comes from the *other* rollouts' features (Choi et al., arXiv 2605.07579, §3):

    b_i = (1/(G−1)) Σ_{j≠i} clip(g(φ_j)),    A_i = R_i − b_i,    no normalisation.

b_i is independent of rollout i given the prompt, and g was fitted on earlier steps only, so the gradient stays unbiased
(docs/poise.md lists what else must hold). Before the probe can be trusted, b_i is the mean reward of the siblings (RLOO).
`features` has two controls: `prompt` leaves φ = h_p, and `own` takes b_i = clip(g(φ_i)), which depends on the response that it
is subtracted for and biases the gradient. With `shrink`, b_i = w·(probe's baseline) + (1 − w)·(mean reward of the siblings)
from the start, where w minimises the squared error of past steps.

Stored: for each task domain the buffer rows and the squared errors of the last steps. The probe itself is a function of
the rows and is fitted again on resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from vantage.errors import UserError
from vantage.estimators.base import (
    Algorithm,
    Defaults,
    Estimate,
    Estimator,
    Needs,
    Reads,
    Setup,
    State,
)
from vantage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from vantage.batch import Batch
    from vantage.estimators.poise_domain import Domain
    from vantage.policy import Forward

PAPER_DEPTH = 20 / 36
"""Block 19 (0-based) of Qwen3-4B's 36 is entry 20 of `hidden_states`."""
PCA_FROM = 1024
"""More raw features than this are reduced by PCA unless the options say otherwise."""
PCA_DEFAULT = (32, 64)


@dataclass(frozen=True)
class Poise(Algorithm):
    """Options of POISE."""

    name: ClassVar[str] = "poise"
    rollouts_min: ClassVar[int] = 2
    rollouts_default: ClassVar[int] = 2
    defaults: ClassVar[Defaults] = Defaults(clip_low=0.2, clip_high=0.28, dual_clip=10.0)

    layer: int | None = None
    """Layer of the hidden states, as transformers' hidden_states counts (0 = embeddings; the paper's block 19 is 20 here).
    Default: the paper's relative depth."""
    prompt_layer: int | None = None
    """Another layer for the prompt's states. Default: the same."""
    prompt_window: int = 10
    """Last prompt tokens whose states are averaged."""
    reasoning_window: int = 10
    """Last reasoning tokens whose states are averaged."""
    pca_prompt: int | None = None
    """Principal components of the prompt's states; 0 is off. Default: 32 where the features are more than 1024, else off."""
    pca_response: int | None = None
    """Principal components of the reasoning states; 0 is off. Default: 64 where the features are more than 1024, else off."""
    pca_order: Literal["pca-first", "scale-first"] = "pca-first"
    """PCA, then scaling (as the official code), or scaling, then PCA and ridge on unscaled components."""
    alpha: float | Literal["auto"] = "auto"
    """Ridge penalty; auto takes the one with the smallest leave-one-out error (the paper has 0.01, its code 100)."""
    buffer_steps: int = 8
    """Steps whose rollouts the probe is fitted on."""
    buffer_rows: int = 4096
    """Rollouts at most in the buffer of a domain; the oldest prompt groups leave first."""
    bootstrap: int | Literal["auto"] = "auto"
    """Steps with leave-one-out baselines before the probe takes over (the official code has 16); auto switches as soon
    as the probe's baselines had the smaller squared error over the last steps."""
    shrink: bool = False
    """Mix the probe's baseline with the mean reward of the siblings, by the weight that would have been best over the last
    steps; worth the more, the more rollouts a prompt has."""

    features: Literal["cross", "own", "prompt"] = "cross"
    """Whose features make a rollout's baseline: those of its siblings (cross), its own (own: a biased control), or those of
    the prompt alone (prompt)."""

    def __post_init__(self) -> None:
        for name in ("prompt_window", "reasoning_window", "buffer_steps", "buffer_rows"):
            if getattr(self, name) < 1:
                raise UserError(f"--poise.{name.replace('_', '-')} is {getattr(self, name)}, it must be at least 1")
        for name in ("pca_prompt", "pca_response"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"--poise.{name.replace('_', '-')} is {getattr(self, name)}, it must not be negative")
        if self.alpha != "auto" and not self.alpha > 0:
            raise UserError(f"--poise.alpha is {self.alpha}, it must be greater than 0, or auto")
        if self.bootstrap != "auto" and self.bootstrap < 0:
            raise UserError(f"--poise.bootstrap is {self.bootstrap}, it must be 0 or more steps, or auto")

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator; refuses layers that the policy has not, and a buffer that holds no group."""
        if self.buffer_rows < setup.rollouts_per_prompt:
            raise UserError(
                f"--poise.buffer-rows is {self.buffer_rows}, less than the {setup.rollouts_per_prompt} rollouts of a prompt"
            )
        return PoiseEstimator(self, setup)


class PoiseEstimator(Estimator):
    """Cross-rollout baselines from a probe; see the module."""

    def __init__(self, options: Poise, setup: Setup) -> None:
        self.options, self.setup = options, setup
        default = max(1, round(PAPER_DEPTH * setup.num_layers))
        self.layer = self._layer("layer", options.layer, default)
        self.prompt_layer = self._layer("prompt-layer", options.prompt_layer, self.layer)
        self.needs = Needs(hidden_layers=tuple(sorted({self.layer, self.prompt_layer})), reads_policy=True)
        self.domains: dict[str, Domain] = {}

    def _layer(self, name: str, given: int | None, default: int) -> int:
        layer = default if given is None else given
        if not 0 <= layer <= self.setup.num_layers:
            raise UserError(
                f"--poise.{name} is {layer}, this model has layers 0 (embeddings) to {self.setup.num_layers}"
            )
        return layer

    def read(self, forward: Forward) -> Reads:
        """`features` [M, 2·D+3]: pooled states of prompt and reasoning, and the entropies; float32 on the CPU."""
        from vantage.probes.features import entropy_statistics, last_tokens_mean, reasoning_length

        options, setup = self.options, self.setup
        prompt_M, length_M = forward.prompt_length_M, forward.length_M
        thoughts = [reasoning_length(ids, setup.think_end_ids) for ids in forward.response_ids]
        kept = [len(ids) if t is None else t for ids, t in zip(forward.response_ids, thoughts)]
        kept_M = torch.tensor(kept, device=length_M.device)
        pooled = [
            last_tokens_mean(forward.hidden[self.prompt_layer].detach(), prompt_M, prompt_M, options.prompt_window),
            last_tokens_mean(forward.hidden[self.layer].detach(), prompt_M + kept_M, kept_M, options.reasoning_window),
        ]
        entropies = entropy_statistics(forward.entropy_MT, forward.response_ids, setup.think_end_ids, setup.end_ids)
        if options.features == "prompt":  # columns without variance tell the probe nothing
            pooled[1], entropies = torch.zeros_like(pooled[1]), torch.zeros_like(entropies)
        return {"features": torch.cat([*(p.cpu() for p in pooled), entropies], dim=1)}

    def advantages(self, batch: Batch, reads: Reads) -> Estimate:
        """Reward minus the mean prediction from the siblings (or their mean reward during bootstrap)."""
        from vantage.advantages import leave_one_out, over_tokens

        value_B = leave_one_out(batch.outcome_B, batch.group_B, batch.scorable_B)
        for name, rows_N in batch.rows_by_domain().items():
            domain = self.domains.get(name)
            if domain is not None and (weight := domain.weight(batch.step)) > 0:
                cross_N = self._cross(batch, reads, domain, rows_N).to(value_B.dtype)
                value_B[rows_N] = cross_N if weight == 1 else weight * cross_N + (1 - weight) * value_B[rows_N]
        known_B = batch.scorable_B & value_B.isfinite()
        advantage_B = torch.where(known_B, batch.reward_B - value_B, torch.zeros_like(value_B))
        mask_BT = batch.response_mask_BT
        return Estimate(over_tokens(advantage_B, mask_BT), over_tokens(value_B, mask_BT))

    def _cross(self, batch: Batch, reads: Reads, domain: Domain, rows_N: Tensor) -> Tensor:
        from vantage.advantages import leave_one_out

        predicted_N = domain.predict(reads["features"][rows_N], batch.step)
        if self.options.features == "own":
            return predicted_N
        return leave_one_out(predicted_N, batch.group_B[rows_N], batch.scorable_B[rows_N])

    def learn(self, batch: Batch, reads: Reads, estimate: Estimate) -> Mapping[str, float]:
        """Compare the old probe with what came, add the rows to the buffer, and fit the probe again."""
        from vantage.batch import gathered
        from vantage.estimators.poise_domain import Domain, merge_metrics

        # Rows travel, not sums over them: a step's rows are fewer numbers than their Gram matrix where features are many.
        batch, reads = gathered(batch, reads, self.setup.world)
        logged = []
        for name, rows_N in batch.rows_by_domain().items():
            domain = self.domains.setdefault(name, Domain(self.options, self.setup))
            logged.append(domain.learn(batch, reads["features"][rows_N], rows_N))
        return merge_metrics(logged)

    def state_dict(self) -> State:
        """Buffer rows as tensors, error history as JSON, by domain."""
        tensors: dict[str, Tensor] = {}
        values: dict[str, object] = {}
        for i, (name, domain) in enumerate(sorted(self.domains.items())):
            state = domain.state_dict()
            tensors |= {f"{i}.{key}": value for key, value in state.tensors.items()}
            values[name] = {"index": i, **state.values}
        return State(tensors, {"domains": values})

    def load_state_dict(self, state: State) -> None:
        """Restore the buffers and fit the probes."""
        from vantage.estimators.poise_domain import Domain

        self.domains = {}
        for name, values in state.values["domains"].items():
            prefix = f"{values['index']}."
            tensors = {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}
            self.domains[name] = Domain(self.options, self.setup)
            self.domains[name].load_state_dict(State(tensors, values))
