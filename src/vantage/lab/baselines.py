"""Estimates that need no model: means of rewards, and ridge regression on features that somebody else has made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from vantage.errors import UserError
from vantage.lab.protocol import Floats, Level, ValueEstimator
from vantage.probes.linear import Probe, fit_probe

if TYPE_CHECKING:
    from vantage.lab.bench import Bench
    from vantage.lab.data import Rollouts, States


class Constant(ValueEstimator):
    """The mean training reward, everywhere."""

    level: ClassVar[Level] = "response"
    mean = math.nan

    def fit(self, rollouts: Rollouts, bench: Bench) -> None:
        """See `ValueEstimator`."""
        self.mean = float(np.nanmean(rollouts.reward_B))

    def predict(self, states: States) -> Floats:
        """See `ValueEstimator`."""
        return np.full(len(states), self.mean)


class BatchMean(ValueEstimator):
    """The mean reward of all other rollouts that are tested together: REINFORCE++'s baseline (arXiv 2501.03262)."""

    level: ClassVar[Level] = "response"

    def predict(self, states: States) -> Floats:
        """See `ValueEstimator`."""
        found: Floats = states.rollouts.batch_mean()[states.rollout_N]
        return found


class LeaveOneOut(ValueEstimator):
    """The mean reward of the prompt's other rollouts: RLOO's baseline (arXiv 2402.14740). NaN without siblings."""

    level: ClassVar[Level] = "response"

    def predict(self, states: States) -> Floats:
        """See `ValueEstimator`."""
        found: Floats = states.rollouts.others_mean()[states.rollout_N]
        return found


class GivenFeatures(ValueEstimator):
    """Ridge regression of the reward on features that came with the rollouts; the penalty by leave-one-out errors."""

    level: ClassVar[Level] = "response"
    sees_response: ClassVar[bool] = True
    probe: Probe | None = None

    def fit(self, rollouts: Rollouts, bench: Bench) -> None:
        """Targets are the siblings' mean rewards where there are siblings, so that a feature of the outcome does not pay."""
        features_BP = rollouts.features_BP
        if features_BP is None:
            raise UserError(
                "--estimators features: these rollouts have none; give --rollouts-from with a column `features`"
            )
        siblings_B = rollouts.others_mean()
        target_B = np.where(np.isfinite(siblings_B), siblings_B, rollouts.reward_B)
        known_B = np.isfinite(target_B)
        self.probe = fit_probe(torch.from_numpy(features_BP[known_B]), torch.from_numpy(target_B[known_B]))

    def predict(self, states: States) -> Floats:
        """See `ValueEstimator`."""
        features_BP = states.rollouts.features_BP
        if features_BP is None or self.probe is None:
            return np.full(len(states), math.nan)
        found: Floats = self.probe(torch.from_numpy(features_BP)).numpy()[states.rollout_N]
        return found

    def size_bytes(self) -> int:
        """See `ValueEstimator`."""
        return 0 if self.probe is None else self.probe.ridge.beta_P.numel() * 8
