"""Estimates with a model of their own or of fresh samples: sequence critic, continuations, generative critic, VIMPO."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from vantage.batch import plan_microbatches
from vantage.critics.sequence import SequenceCritic
from vantage.errors import UserError
from vantage.genac.actor import ActorFacts
from vantage.genac.prompt import StateView
from vantage.genac.start import begin
from vantage.genac.states import problem_text
from vantage.lab.algorithms import validation_split
from vantage.lab.protocol import Floats, Level, ValueEstimator
from vantage.models.reference import make_reference
from vantage.montecarlo.cache import digest
from vantage.randomness import Stream, key

if TYPE_CHECKING:
    from vantage.genac.critic import Critic
    from vantage.lab.bench import Bench
    from vantage.lab.data import Rollouts, States
    from vantage.policy import Policy

RATES = (1 / 3, 1.0, 3.0)
"""Learning rates that are compared, in multiples of the default."""
OTHER_SEED = 7_368_787
"""Added to the seed for continuations that are an estimate, so that they are not those of the truth."""


class SequenceValues(ValueEstimator):
    """The critic of POISE's comparison (arXiv 2605.07579 §D.1): a copy of the policy reads the prompt and says one probability.

    Trained on each prompt's mean reward by cross-entropy; of learning rates and numbers of epochs the pair with the least
    squared error on a fifth of the prompts is taken, and trained anew on all.
    """

    level: ClassVar[Level] = "response"

    def __init__(self, rate: float, epochs: tuple[int, ...] = (2, 6), batch_size: int = 64) -> None:
        self.rate, self.epochs, self.batch_size = rate, epochs, batch_size
        self.critic: SequenceCritic | None = None
        self.chosen = (rate, epochs[0])

    def fit(self, rollouts: Rollouts, bench: Bench) -> None:
        """See `ValueEstimator`."""
        rest, held = validation_split(rollouts)
        prompts, target = _by_prompt(held)
        errors = {}
        for factor in RATES:
            for epochs in self.epochs:
                predicted = self._trained(rest, bench, self.rate * factor, epochs).predict(prompts).numpy()
                errors[self.rate * factor, epochs] = float(((predicted - target) ** 2).mean())
        self.chosen = min(errors, key=lambda pair: errors[pair])
        self.critic = self._trained(rollouts, bench, *self.chosen)

    def _trained(self, rollouts: Rollouts, bench: Bench, rate: float, epochs: int) -> SequenceCritic:
        critic = SequenceCritic.of(bench.policy)
        prompts, target = _by_prompt(rollouts)
        critic.fit(
            prompts, target.tolist(), epochs=epochs, batch_size=self.batch_size, learning_rate=rate, seed=bench.seed
        )  # fmt: skip
        return critic

    def predict(self, states: States) -> Floats:
        """See `ValueEstimator`."""
        assert self.critic is not None
        first: dict[int, int] = {}
        for row, prompt in enumerate(states.rollouts.prompt_B.tolist()):
            first.setdefault(prompt, row)
        value = self.critic.predict([states.rollouts.prompt_ids[row] for row in first.values()]).tolist()
        known = dict(zip(first, value))
        return np.array([known[int(prompt)] for prompt in states.prompt_N], dtype=np.float64)

    def size_bytes(self) -> int:
        """Weights of trunk and head."""
        assert self.critic is not None
        return sum(p.numel() * p.element_size() for p in self.critic.model.parameters())


def _by_prompt(rollouts: Rollouts) -> tuple[list[list[int]], Floats]:
    """Each prompt once, with the mean reward of its rollouts."""
    rows: dict[int, list[int]] = {}
    for row, prompt in enumerate(rollouts.prompt_B.tolist()):
        if math.isfinite(rollouts.reward_B[row]):
            rows.setdefault(prompt, []).append(row)
    mean = [float(rollouts.reward_B[some].mean()) for some in rows.values()]
    return [rollouts.prompt_ids[some[0]] for some in rows.values()], np.array(mean, dtype=np.float64)


class Continuations(ValueEstimator):
    """VinePPO's estimate (arXiv 2410.01679): the mean of K fresh continuations of every state."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.bench: Bench | None = None

    def fit(self, rollouts: Rollouts, bench: Bench) -> None:
        """See `ValueEstimator`."""
        self.bench = bench

    def predict(self, states: States) -> Floats:
        """See `ValueEstimator`."""
        assert self.bench is not None
        wanted = [states.state(i) for i in range(len(states))]
        outcome_NK, tokens = self.bench.values(wanted, self.k, self.bench.seed + OTHER_SEED, keep=False)
        self.extra_tokens += tokens
        count_N = np.isfinite(outcome_NK).sum(1)
        found: Floats = np.where(count_N > 0, np.nansum(outcome_NK, 1) / np.maximum(1, count_N), math.nan)
        return found

    def size_bytes(self) -> int:
        """Nothing is kept."""
        return 0


class Generative(ValueEstimator):
    """GenAC's critic (arXiv 2604.10701): it reads problem and prefix, reasons, and ends with an integer 0..10.

    Equal states are asked about once. NaN where its answer can not be parsed. The success rate that its prompt shows is that
    of the training rollouts.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.critic: Critic | None = None
        self.actor: ActorFacts | None = None
        self.seed = 0

    def fit(self, rollouts: Rollouts, bench: Bench) -> None:
        """Loads the critic; raises `UserError` where there is none."""
        model, task = bench.train.model, bench.train.task
        if self.folder is None:
            raise UserError(
                f"--estimators genac: no critic comes with {model} on {task}; give genac:FOLDER (of vantage critic, or a run)"
            )
        begun = begin(self.folder, model=model, task=task, policy=bench.policy, device=bench.policy.device, icc=None)
        self.critic, self.seed = begun.critic, bench.seed
        size = sum(p.numel() for p in bench.policy.model.parameters())
        self.actor = ActorFacts(model, size, rate=float(np.nanmean(rollouts.reward_B)))

    def predict(self, states: States) -> Floats:
        """See `ValueEstimator`."""
        assert self.critic is not None
        assert self.actor is not None
        names = [digest([states.prompt_ids(i), states.prefix_ids(i)]) for i in range(len(states))]
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        views = [
            StateView(problem_text(states.problem(i).prompt), states.prefix_text(i), int(states.cut_N[i]), states.limit)
            for i in first.values()
        ]
        keys = [[key(self.seed, Stream.CRITIC, 9, int.from_bytes(name[:8], "big"))] for name in first]
        opinions = self.critic.ask(views, keys, self.actor)
        self.extra_tokens += sum(len(r.response_ids) for o in opinions for r in o.rollouts)
        known = {name: math.nan if o.value is None else o.value for name, o in zip(first, opinions)}
        return np.array([known[name] for name in names], dtype=np.float64)

    def size_bytes(self) -> int:
        """The critic's weights."""
        assert self.critic is not None
        return sum(p.numel() * p.element_size() for p in self.critic.policy.model.parameters())


class Implied(ValueEstimator):
    """VIMPO's value (arXiv 2606.20008): mean of the siblings + β Σ (log-ratio − KL) over the tokens so far.

    β is the run's own where VIMPO has trained it; else the one with the least squared error of the value at the end against
    the reward, on training rollouts.
    """

    def __init__(self, reference: str, beta: float | None = None) -> None:
        self.name_of_reference, self.beta = reference, beta
        self.policy: Policy | None = None
        self.reference: Policy | None = None

    def fit(self, rollouts: Rollouts, bench: Bench) -> None:
        """See `ValueEstimator`."""
        self.policy, self.reference = bench.policy, make_reference(bench.policy, self.name_of_reference)
        if self.beta is None:
            drift_B = np.array([row[-1] if len(row) else 0.0 for row in self._drift(rollouts)])
            rest_B = rollouts.reward_B - rollouts.others_mean()
            known_B = np.isfinite(rest_B)
            square = float((drift_B[known_B] ** 2).sum())
            self.beta = float((rest_B * drift_B)[known_B].sum()) / square if square > 0 else 0.0

    def _drift(self, rollouts: Rollouts) -> list[Floats]:
        """Σ (log-ratio − KL) up to and with each token of each response."""
        assert self.policy is not None
        batch = rollouts.batch(0, (0.0, 1.0))
        found: list[Floats] = [np.zeros(0)] * batch.size
        plan = plan_microbatches(batch.tokens(), [[i] for i in range(batch.size)], 4096)
        for rows in plan.micro:
            with torch.no_grad():
                forward = self.policy.forward(batch.select(rows), reference=self.reference)
            assert forward.kl_MT is not None
            assert forward.reference_logp_MT is not None
            step_MT = (forward.logp_MT - forward.reference_logp_MT - forward.kl_MT).double().cpu()
            for i, row in enumerate(rows):
                found[row] = step_MT[i, : len(batch.response_ids[row])].cumsum(0).numpy()
        return found

    def predict(self, states: States) -> Floats:
        """See `ValueEstimator`."""
        drift, start_B = self._drift(states.rollouts), states.rollouts.others_mean()
        so_far = [
            float(drift[row][cut - 1]) if cut else 0.0
            for row, cut in zip(states.rollout_N.tolist(), states.cut_N.tolist())
        ]
        found: Floats = np.clip(start_B[states.rollout_N] + (self.beta or 0.0) * np.array(so_far), 0.0, 1.0)
        return found

    def size_bytes(self) -> int:
        """The reference's weights."""
        assert self.reference is not None
        return sum(p.numel() * p.element_size() for p in self.reference.model.parameters())
