"""The value estimates of training algorithms, asked outside of training: their own code on rollouts of a policy at rest.

An estimator of `vantage.estimators` is built as a trainer builds it, and sees the training rollouts as steps: it queries, reads
the policy's forward pass, estimates and learns, while the policy stays as it is. At a state it then says what it would have
said as the baseline of the token drawn there. So what is measured is what trains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from vantage.batch import Batch
from vantage.collect import Collected
from vantage.estimators.base import Algorithm, Estimate, Estimator, Reads
from vantage.estimators.poise import Poise, PoiseEstimator
from vantage.lab.protocol import Floats, Level, ValueEstimator
from vantage.rollout.engine import Rollout
from vantage.update import PolicyUpdate

if TYPE_CHECKING:
    from vantage.lab.bench import Bench
    from vantage.lab.data import Rollouts, States
    from vantage.policy import Forward

STEPS = 8
"""Steps that the training rollouts are cut into."""
VALIDATION = 0.2
"""Share of the training prompts on which learning rates are compared."""


class AlgorithmValues(ValueEstimator):
    """`value_BT` of an algorithm's estimator."""

    def __init__(self, candidates: Sequence[Algorithm], passes: int = 1) -> None:
        """Of several `candidates` (learning rates) the one with the least squared error on held-back prompts is taken."""
        self.candidates, self.passes = list(candidates), passes
        self.chosen = self.candidates[0]
        self.update: PolicyUpdate | None = None
        self.range = (0.0, 1.0)
        self.step = 0

    def fit(self, rollouts: Rollouts, bench: Bench) -> None:
        """See `ValueEstimator`."""
        self.range = bench.reward_range
        if len(self.candidates) > 1:
            rest, held = validation_split(rollouts)
            errors = [self._error(algo, rest, held, bench) for algo in self.candidates]
            self.chosen = self.candidates[int(np.nanargmin(errors))]
        self.update = self._trained(self.chosen, rollouts, bench)

    def _error(self, algo: Algorithm, rest: Rollouts, held: Rollouts, bench: Bench) -> float:
        """Mean squared error of the values of all tokens against the outcome, every response counting once."""
        update = self._trained(algo, rest, bench)
        batch, _, estimate = self._run(update, held)
        mask_BT, known_B = batch.response_mask_BT, batch.scorable_B
        square_BT = torch.where(mask_BT, (estimate.value_BT - batch.outcome_B[:, None]) ** 2, 0.0)
        return float((square_BT.sum(1) / mask_BT.sum(1).clamp(min=1))[known_B].mean())

    def build(self, algo: Algorithm, bench: Bench) -> Estimator:
        """The estimator as a trainer makes it."""
        return algo.build(bench.setup(bench.config.train_rollouts_per_prompt))

    def _trained(self, algo: Algorithm, rollouts: Rollouts, bench: Bench) -> PolicyUpdate:
        estimator = self.build(algo, bench)
        estimator.update_policy = False
        update = PolicyUpdate(bench.policy, estimator, replace(bench.train, algo=algo))
        self.step = 0
        for _ in range(self.passes):
            for part in rollouts.chunks(-(-len(rollouts) // STEPS)):
                batch, reads, estimate = self._run(update, part)
                estimator.learn(batch, reads, estimate)
                estimator.update_policy = False
        return update

    def _run(self, update: PolicyUpdate, rollouts: Rollouts) -> tuple[Batch, Reads, Estimate]:
        self.step += 1
        batch = rollouts.batch(self.step, self.range)
        batch = replace(batch, queried=update.estimator.query(_collected(batch, rollouts)).reads)
        if not update.estimator.needs.reads_policy:
            with torch.no_grad():
                return batch, {}, update.estimator.advantages(batch, {})
        result = update.run(batch)
        return batch, result.reads, result.estimate

    def predict(self, states: States) -> Floats:
        """See `ValueEstimator`."""
        assert self.update is not None
        batch, reads, estimate = self._run(self.update, states.rollouts)
        value_BT = self._values(batch, reads, estimate).double().numpy()
        low, high = self.range
        # A whole response has no token behind it; it is nobody's baseline.
        inside_N = states.cut_N < np.array([len(ids) for ids in states.rollouts.response_ids])[states.rollout_N]
        cut_N = np.where(inside_N, states.cut_N, 0)
        found: Floats = (value_BT[states.rollout_N, cut_N] - low) / (high - low)
        return np.where(inside_N, found, math.nan)

    def _values(self, batch: Batch, reads: Reads, estimate: Estimate) -> Tensor:
        return estimate.value_BT

    def size_bytes(self) -> int:
        """Of what a checkpoint would keep for it: buffers, critics, their optimizer."""
        assert self.update is not None
        return sum(t.numel() * t.element_size() for t in self.update.estimator.state_dict().tensors.values())


class PoiseValues(AlgorithmValues):
    """POISE's probe, fitted on all training rollouts, read from the siblings (`cross`), or from the rollout itself (`self`)."""

    level: ClassVar[Level] = "response"
    reading: ClassVar[str] = "cross"

    def __init__(self) -> None:
        super().__init__([Poise(bootstrap=0, buffer_steps=10_000, buffer_rows=10**9)])

    def _values(self, batch: Batch, reads: Reads, estimate: Estimate) -> Tensor:
        if self.reading == "cross":
            return estimate.value_BT
        assert self.update is not None
        estimator = self.update.estimator
        assert isinstance(estimator, PoiseEstimator)
        value_B = torch.full((batch.size,), math.nan, dtype=torch.float64)
        for name, rows_N in batch.rows_by_domain().items():
            domain = estimator.domains.get(name)
            if domain is not None and domain.probe is not None:
                value_B[rows_N] = domain.predict(reads["features"][rows_N], batch.step)
        return value_B[:, None].expand(-1, max(1, batch.response_mask_BT.shape[1]))


class PoiseSelf(PoiseValues):
    """Read from the rollout whose baseline it would be: it has seen how that one goes on, which biases a gradient."""

    sees_response: ClassVar[bool] = True
    reading: ClassVar[str] = "self"


class PoisePrompt(PoiseValues):
    """With the prompt's states alone: the other features are put to 0, which a scaler makes of any constant."""

    reading: ClassVar[str] = "self"

    def build(self, algo: Algorithm, bench: Bench) -> Estimator:
        """See `AlgorithmValues`."""
        assert isinstance(algo, Poise)
        return _PromptOnly(algo, bench.setup(bench.config.train_rollouts_per_prompt))


class _PromptOnly(PoiseEstimator):
    def read(self, forward: Forward) -> Reads:
        """See `PoiseEstimator`."""
        features = super().read(forward)["features"].clone()
        features[:, self.setup.hidden_size :] = 0.0
        return {"features": features}


def validation_split(rollouts: Rollouts) -> tuple[Rollouts, Rollouts]:
    """Rollouts of four fifths of the prompts, and of the last fifth."""
    prompts = list(dict.fromkeys(rollouts.prompt_B.tolist()))
    cut = max(1, round((1 - VALIDATION) * len(prompts)))
    return rollouts.of_prompts(prompts[:cut]), rollouts.of_prompts(prompts[cut:])


def _collected(batch: Batch, rollouts: Rollouts) -> Collected:
    """Rollouts as a step's collector hands them on."""
    logp = rollouts.logp or [[0.0] * len(ids) for ids in rollouts.response_ids]
    drawn = [
        Rollout(ids, some, "length" if cut else "stop")
        for ids, some, cut in zip(rollouts.response_ids, logp, rollouts.truncated_B.tolist())
    ]
    return Collected(
        batch,
        rollouts.problems,
        rollouts.texts,
        drawn,
        [{} for _ in drawn],
        {},
        [],
        len(batch.groups()),
        len(batch.groups()),
    )
