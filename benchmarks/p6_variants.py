"""POISE with its baseline read from elsewhere than the sibling: the two other rows of the paper's ablation, for p6.py.

Everything else is POISE's own code: two rollouts a prompt, features, buffer, ridge, penalty, bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vantage import Poise
from vantage.batch import Batch
from vantage.estimators.base import Estimate, Estimator, Reads, Setup
from vantage.estimators.poise import PoiseEstimator
from vantage.estimators.poise_domain import Domain
from vantage.policy import Forward


@dataclass(frozen=True)
class PromptOnly(Poise):
    """The probe sees the prompt's states only: V(x), known before the rollout."""

    name: ClassVar[str] = "prompt_only"

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator."""
        return PromptOnlyEstimator(self, setup)


class PromptOnlyEstimator(PoiseEstimator):
    """See `PromptOnly`."""

    def read(self, forward: Forward) -> Reads:
        """POISE's features, those of the response blanked: a constant column weighs nothing."""
        features_MP = super().read(forward)["features"].clone()
        features_MP[:, self.setup.hidden_size :] = 0
        return {"features": features_MP}


@dataclass(frozen=True)
class SameRollout(Poise):
    """The baseline of a rollout is what its own features predict, and the probe learns each rollout's own reward."""

    name: ClassVar[str] = "same_rollout"

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator; two rollouts a prompt, since it is POISE's code with the siblings' rewards changed over."""
        if setup.rollouts_per_prompt != 2:
            raise ValueError("same_rollout is made for 2 rollouts a prompt")
        return SameRolloutEstimator(self, setup)


class SameRolloutEstimator(PoiseEstimator):
    """See `SameRollout`."""

    def _cross(self, batch: Batch, reads: Reads, domain: Domain, rows_N: Tensor) -> Tensor:
        return domain.predict(reads["features"][rows_N], batch.step)

    def learn(self, batch: Batch, reads: Reads, estimate: Estimate) -> Mapping[str, float]:
        """POISE's learning with the outcomes of siblings changed over: a row's target is then its own outcome."""
        return super().learn(changed_over(batch), reads, estimate)


def changed_over(batch: Batch) -> Batch:
    """Each rollout with its sibling's outcome, groups being pairs."""
    other_B = torch.empty(batch.size, dtype=torch.long)
    for one, two in batch.groups():
        other_B[one], other_B[two] = two, one
    fields: dict[str, Any] = {name: getattr(batch, name)[other_B] for name in ("outcome_B", "scorable_B")}
    return replace(batch, **fields)
