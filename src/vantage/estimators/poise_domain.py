"""What POISE keeps for one task domain: a buffer of rollouts, the probe fitted on it, and how well it has predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from vantage.advantages import group_sums, leave_one_out
from vantage.errors import UserError
from vantage.estimators.base import Setup, State
from vantage.estimators.poise_buffer import Buffer, Rows
from vantage.probes.linear import Probe, fit_probe, fit_probe_to_moments
from vantage.probes.moments import Moments

if TYPE_CHECKING:
    from vantage.batch import Batch
    from vantage.estimators.poise import Poise

CHOOSE_EVERY = 4
"""Refits between two choices of the ridge penalty once the buffer is full; before, every refit chooses."""
ON_DEVICE_FROM = 1024
"""With more features than this the probe is fitted on the policy's CUDA device."""
TRUST_STEPS = 4
"""Past steps over which the probe's errors are compared with those of the leave-one-out mean."""


@dataclass(frozen=True)
class Errors:
    """Sums over one step: squared errors of probe and leave-one-out baselines, the within-prompt variance, and the product
    of both baselines' errors."""

    rows: int
    probe: float
    leave_one_out: float
    within: float
    product: float = 0.0


class Domain:
    """Buffer, probe and error history of a domain."""

    def __init__(self, options: Poise, setup: Setup) -> None:
        self.options, self.setup = options, setup
        self.buffer = Buffer(options.buffer_steps, options.buffer_rows)
        self.probe: Probe | None = None
        self.history: list[Errors] = []
        self.observed = 0
        self.alpha: float | None = None
        """The penalty last chosen by `auto`."""

    def trusted(self, step: int) -> bool:
        """Whether the probe gives the baselines of this step: a function of earlier steps only."""
        if self.probe is None:
            return False
        if self.options.bootstrap != "auto":
            return self.observed >= self.options.bootstrap
        return bool(self.history) and sum(e.probe for e in self.history) < sum(e.leave_one_out for e in self.history)

    def weight(self, step: int) -> float:
        """Share of the probe in the baselines of this step, the rest being the mean of the siblings: a function of the past."""
        if not self.options.shrink:
            return float(self.trusted(step))
        fixed = self.options.bootstrap != "auto" and self.observed < self.options.bootstrap
        return 0.0 if self.probe is None or fixed else mixing_weight(self.history)

    def predict(self, features_NP: Tensor, step: int) -> Tensor:
        """Clipped predictions [N] by a probe that has not seen this step."""
        if self.probe is None or self.probe.step >= step:
            seen = None if self.probe is None else self.probe.step
            raise RuntimeError(f"baselines of step {step} asked from a probe fitted on step {seen}")
        return self.probe(features_NP)

    def learn(self, batch: Batch, features_NP: Tensor, rows_N: Tensor) -> dict[str, float]:
        """Score the old probe on the new rows, then append them and refit."""
        outcome_N, group_N, valid_N = batch.outcome_B[rows_N], batch.group_B[rows_N], batch.scorable_B[rows_N]
        target_N = leave_one_out(outcome_N, group_N, valid_N)
        weight = self.weight(batch.step)
        metrics = {"poise/trusted": float(weight > 0)} | ({"poise/weight": weight} if self.options.shrink else {})
        if self.probe is not None:
            metrics |= self._score(features_NP, outcome_N, target_N, group_N, valid_N, batch.step)
        usable_N = (valid_N & target_N.isfinite()).nonzero().squeeze(1)
        order_N = usable_N[torch.argsort(group_N[usable_N], stable=True)]
        if len(order_N):
            self.buffer.append(
                Rows(batch.step, features_NP[order_N].float(), target_N[order_N].float(), group_N[order_N])
            )
            self.probe = self._fit(self._alpha())
            self.alpha = self.probe.ridge.alpha
            metrics["poise/alpha"] = self.alpha
            if math.isfinite(self.probe.ridge.condition):
                metrics["poise/condition"] = self.probe.ridge.condition
        self.observed += 1
        return metrics | {"poise/buffer_rows": float(len(self.buffer)), "poise/buffer_age": self.buffer.age(batch.step)}

    def _score(
        self, features_NP: Tensor, outcome_N: Tensor, target_N: Tensor, group_N: Tensor, valid_N: Tensor, step: int
    ) -> dict[str, float]:
        predicted_N = self.predict(features_NP, step)
        baseline_N = leave_one_out(predicted_N, group_N, valid_N)
        known_N = valid_N & target_N.isfinite()
        if not bool(known_N.any()):
            return {}
        outcome_N = outcome_N.double()
        error_N = (outcome_N - baseline_N)[known_N]
        mean_N, count_N = group_means(outcome_N, group_N, valid_N)
        within_N = ((outcome_N - mean_N) ** 2 * count_N / (count_N - 1))[known_N]
        loo_N = (outcome_N - target_N.double())[known_N]
        sums = (float(e.sum()) for e in (error_N**2, loo_N**2, within_N, error_N * loo_N))
        errors = Errors(len(error_N), *sums)
        self.history = [*self.history, errors][-TRUST_STEPS:]
        low, high = self.setup.reward_range
        clipped = (predicted_N <= low) | (predicted_N >= high)
        return {
            "poise/bias": -float(error_N.mean()),
            "poise/clipped": float(clipped.double().mean()),
            **worth(self.history),
        }

    def _alpha(self) -> float | Literal["auto"]:
        """The penalty for the next fit; a full buffer changes slowly, so the choice holds for some refits."""
        filling = len(self.buffer.steps) < self.options.buffer_steps and len(self.buffer) < self.options.buffer_rows
        if self.options.alpha != "auto" or self.alpha is None or filling or self.observed % CHOOSE_EVERY == 0:
            return self.options.alpha
        return self.alpha

    def _fit(self, alpha: float | Literal["auto"]) -> Probe:
        hidden, steps = self.setup.hidden_size, self.buffer.steps
        low, high = self.setup.reward_range
        columns = {"prompt": (0, hidden), "response": (hidden, 2 * hidden), "entropy": (2 * hidden, 2 * hidden + 3)}
        kept = components(self.options, hidden)
        newest, condition = steps[-1].step, self.observed % CHOOSE_EVERY == 0
        if not any(kept.values()) and self.options.pca_order == "pca-first" and len(self.buffer) >= 2 * hidden + 3:
            moments = Moments.merged([s.moments for s in steps])
            return fit_probe_to_moments(
                moments, self.buffer.data,
                columns=columns, alpha=alpha, low=low, high=high, step=newest, condition=condition,
            )  # fmt: skip
        features_NP, target_N = self.buffer.data()
        device = self._device(features_NP.shape[1])
        return fit_probe(
            features_NP.to(device), target_N.to(device), columns=columns, components=kept, alpha=alpha,
            scale_first=self.options.pca_order == "scale-first", low=low, high=high, step=newest, condition=condition,
        ).to(features_NP.device)  # fmt: skip

    def _device(self, features: int) -> torch.device:
        """Where wide features are fitted on: the policy's GPU, if it has one."""
        services = self.setup.services
        there = services is not None and services.policy.device.type == "cuda" and features > ON_DEVICE_FROM
        return services.policy.device if services is not None and there else torch.device("cpu")

    def state_dict(self) -> State:
        """Rows of all steps, one tensor a field; history and counters."""
        if not self.buffer.steps:
            return State(values={"observed": self.observed, "history": []})
        features_NP, target_N = self.buffer.data()
        group_N = torch.cat([s.group_N for s in self.buffer.steps])
        sizes = [[s.step, len(s.target_N)] for s in self.buffer.steps]
        history = [[e.rows, e.probe, e.leave_one_out, e.within, e.product] for e in self.history]
        values = {"observed": self.observed, "history": history, "steps": sizes, "alpha": self.alpha}
        return State({"features": features_NP, "target": target_N, "group": group_N}, values)

    def load_state_dict(self, state: State) -> None:
        """Restore rows and history, and fit the probe on them."""
        self.observed = int(state.values["observed"])
        self.history = [Errors(int(n), *map(float, sums)) for n, *sums in state.values["history"]]
        if "features" not in state.tensors:
            return
        width, expected = state.tensors["features"].shape[1], 2 * self.setup.hidden_size + 3
        if width != expected:
            raise UserError(f"--resume: the probe's buffer has {width} features, this policy gives {expected}")
        sizes = [n for _, n in state.values["steps"]]
        fields = [torch.split(state.tensors[k], sizes) for k in ("features", "target", "group")]
        steps = [step for step, _ in state.values["steps"]]
        self.buffer.steps = [Rows(*row) for row in zip(steps, *fields)]
        self.alpha = float(state.values["alpha"])
        self.probe = self._fit(self.alpha)


def components(options: Poise, hidden: int) -> dict[str, int]:
    """Principal components for each block: as given, else 32 and 64 where the raw features are many."""
    from vantage.estimators.poise import PCA_DEFAULT, PCA_FROM

    default = PCA_DEFAULT if 2 * hidden + 3 > PCA_FROM else (0, 0)
    prompt = default[0] if options.pca_prompt is None else options.pca_prompt
    response = default[1] if options.pca_response is None else options.pca_response
    return {"prompt": prompt, "response": response}


def group_means(value_N: Tensor, group_N: Tensor, valid_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and count of each row's group, both [N]."""
    total_N, count_N = group_sums(value_N, group_N, valid_N)
    return total_N / count_N.clamp(min=1), count_N


def mixing_weight(history: Sequence[Errors]) -> float:
    """The w in [0, 1] that minimises the squared error of w·probe + (1 − w)·leave-one-out over the given steps; 0 without any.

    With errors e_p and e_l of the two, w = Σ e_l (e_l − e_p) / Σ (e_l − e_p)². In expectation that is
    (σ²/(G−1) − κ) / (σ²/(G−1) + M − 2κ), where σ² is the within-prompt variance, M the probe's mean squared error about V
    and κ the mean product of both baselines' errors about V.
    """
    probe, siblings = sum(e.probe for e in history), sum(e.leave_one_out for e in history)
    product = sum(e.product for e in history)
    spread = siblings + probe - 2 * product
    if spread <= 1e-12 * (siblings + probe):
        return float(bool(history) and probe < siblings)
    return min(1.0, max(0.0, (siblings - product) / spread))


def worth(history: Sequence[Errors]) -> dict[str, float]:
    """The probe's error without knowing the truth, and how many RLOO rollouts it is worth, over the last steps.

    MSE_g = mean (r − b)² − E[V(1−V)], where the within-prompt variance is estimated without bias from the siblings (for
    G = 2: ½ mean (r₁ − r₂)²); n_eff = 1 + E[V(1−V)]/MSE_g, NaN (unbounded) where the estimate of MSE_g is not positive.
    """
    rows = sum(e.rows for e in history)
    within = sum(e.within for e in history) / rows
    mse = sum(e.probe for e in history) / rows - within
    return {"poise/mse_estimate": mse, "poise/n_eff": 1 + within / mse if mse > 0 else math.nan}


def merge_metrics(logged: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over domains of each metric, buffer rows summed."""
    keys = sorted({key for metrics in logged for key in metrics})
    merged = {k: [m[k] for m in logged if k in m] for k in keys}
    return {k: sum(v) if k == "poise/buffer_rows" else sum(v) / len(v) for k, v in merged.items()}
