"""POISE as its own verifier: the probe learns each rollout's own reward, and its baseline is what its own features predict.

The row of the paper's ablation that `--poise.features own` is not: there the probe's targets stay the siblings' rewards.
Everything else is POISE's own code: two rollouts a prompt, features, buffer, ridge, penalty, bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from vantage import Poise
from vantage.batch import Batch
from vantage.estimators.base import Estimate, Estimator, Reads, Setup
from vantage.estimators.poise import PoiseEstimator


@dataclass(frozen=True)
class SameRollout(Poise):
    """The baseline of a rollout is what its own features predict, and the probe learns each rollout's own reward."""

    name: ClassVar[str] = "same_rollout"
    features: Literal["cross", "own", "prompt"] = "own"
    """The rollout's own."""

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator; two rollouts a prompt, since it is POISE's code with the siblings' rewards changed over."""
        if setup.rollouts_per_prompt != 2:
            raise ValueError("same_rollout is made for 2 rollouts a prompt")
        return SameRolloutEstimator(self, setup)


class SameRolloutEstimator(PoiseEstimator):
    """See `SameRollout`."""

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
