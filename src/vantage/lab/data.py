"""What do estimators see? Rollouts that they learn from, and states whose value they are asked for.

B rollouts, N states. Rewards are shares of the reward range in [0, 1], as predictions shall be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vantage.batch import Batch
from vantage.lab.metrics import Target
from vantage.montecarlo import State
from vantage.tasks.base import Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rollouts:
    """Responses to prompts; those of one prompt are adjacent."""

    problems: list[Problem]
    """One for each rollout."""
    prompt_ids: list[list[int]]
    response_ids: list[list[int]]
    """Tokens of each response, the end token included where it was sampled."""
    texts: list[str]
    """What the verifier saw."""
    prompt_B: Ints
    """Number of each rollout's prompt."""
    reward_B: Floats
    """Share of the reward range; NaN where the verifier had nothing to say."""
    truncated_B: NDArray[np.bool_]
    logp: list[list[float]] | None = None
    """Log-prob of each token when it was sampled, where that is known."""
    features_BP: Floats | None = None
    """Features that came with rollouts from elsewhere."""

    def __len__(self) -> int:
        return len(self.response_ids)

    def take(self, rows: Sequence[int] | Ints) -> Rollouts:
        """Some of them, in the given order."""
        chosen = [int(row) for row in rows]
        index = np.array(chosen, dtype=np.int64)
        return Rollouts(
            [self.problems[i] for i in chosen],
            [self.prompt_ids[i] for i in chosen],
            [self.response_ids[i] for i in chosen],
            [self.texts[i] for i in chosen],
            self.prompt_B[index],
            self.reward_B[index],
            self.truncated_B[index],
            None if self.logp is None else [self.logp[i] for i in chosen],
            None if self.features_BP is None else self.features_BP[index],
        )

    def of_prompts(self, prompts: Sequence[int] | Ints) -> Rollouts:
        """The rollouts of some prompts."""
        return self.take(np.flatnonzero(np.isin(self.prompt_B, np.asarray(prompts))))

    def chunks(self, size: int) -> list[Rollouts]:
        """Parts of about `size` rollouts with whole prompts, in order, as equal as can be."""
        prompts = list(dict.fromkeys(self.prompt_B.tolist()))
        count = max(1, round(len(self) / size))
        bounds = [round(i * len(prompts) / count) for i in range(count + 1)]
        return [self.of_prompts(prompts[a:b]) for a, b in pairwise(bounds) if b > a]

    def batch(self, step: int, reward_range: tuple[float, float]) -> Batch:
        """As the trainer sees them, in units of the reward."""
        low, high = reward_range
        outcome_B = torch.from_numpy(low + (high - low) * self.reward_B)
        return Batch(
            step=step,
            prompt_ids=self.prompt_ids,
            response_ids=self.response_ids,
            group_B=torch.from_numpy(self.prompt_B),
            outcome_B=outcome_B,
            reward_B=outcome_B,
            scorable_B=outcome_B.isfinite(),
            domains=[problem.domain for problem in self.problems],
            truncated_B=torch.from_numpy(self.truncated_B),
        )

    def others_mean(self) -> Floats:
        """Mean reward of each rollout's siblings [B], its own left out; NaN without any."""
        return _others(self.reward_B, self.prompt_B)

    def batch_mean(self) -> Floats:
        """Mean reward of all other rollouts [B]."""
        return _others(self.reward_B, np.zeros_like(self.prompt_B))


def _others(reward_B: Floats, group_B: Ints) -> Floats:
    known_B = np.isfinite(reward_B)
    _, place_B = np.unique(group_B, return_inverse=True)
    total = np.bincount(place_B, np.where(known_B, reward_B, 0.0))[place_B] - np.where(known_B, reward_B, 0.0)
    count = np.bincount(place_B, known_B.astype(float))[place_B] - known_B
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


@dataclass(frozen=True)
class States:
    """Places in rollouts: prefixes of responses. An estimate for a state may look at `prefix_ids`, not at what follows.

    The rollouts that the states lie on are there whole, with their rewards: baselines such as the mean of the siblings use
    the rewards of *other* rollouts. What looks at a state's own rollout behind the state says so (`sees_response`).
    """

    rollouts: Rollouts
    rollout_N: Ints
    """Row of the rollout that a state lies on."""
    cut_N: Ints
    """Response tokens before the state; 0 is the prompt."""
    tokenizer: Any = None
    limit: int = 0
    """Response budget in tokens."""

    def __len__(self) -> int:
        return len(self.rollout_N)

    @property
    def prompt_N(self) -> Ints:
        """Number of each state's prompt."""
        found: Ints = self.rollouts.prompt_B[self.rollout_N]
        return found

    def problem(self, i: int) -> Problem:
        """The problem of state i."""
        return self.rollouts.problems[int(self.rollout_N[i])]

    def prompt_ids(self, i: int) -> list[int]:
        """Tokens of the prompt of state i."""
        return self.rollouts.prompt_ids[int(self.rollout_N[i])]

    def prefix_ids(self, i: int) -> list[int]:
        """Response tokens before state i."""
        return self.rollouts.response_ids[int(self.rollout_N[i])][: int(self.cut_N[i])]

    def prefix_text(self, i: int) -> str:
        """Text of the response before state i."""
        text: str = self.tokenizer.decode(self.prefix_ids(i), skip_special_tokens=True)
        return text

    def state(self, i: int) -> State:
        """State i as Monte-Carlo truth takes it."""
        return State(self.problem(i), tuple(self.prefix_ids(i)))

    def few(self, count: int) -> States:
        """The first states, on as few rollouts of whole prompts as that takes."""
        prompts = list(dict.fromkeys(self.prompt_N[:count].tolist()))
        kept = np.flatnonzero(np.isin(self.rollouts.prompt_B, prompts))
        place = {int(row): i for i, row in enumerate(kept)}
        rows = list(range(min(count, len(self))))
        return States(
            self.rollouts.take(kept),
            np.array([place[int(self.rollout_N[i])] for i in rows], dtype=np.int64),
            self.cut_N[rows],
            self.tokenizer,
            self.limit,
        )


@dataclass(frozen=True)
class TestSet:
    """States with their truth."""

    __test__ = False
    name: str
    states: States
    target: Target
    generated: int
    """Tokens that the truth took; what came from the cache does not count."""


@dataclass(frozen=True)
class Pools:
    """Candidate next steps of some states, as states behind them: `pool_N` has the number of the pool of each."""

    states: States
    pool_N: Ints
    truth_N: Floats
    prompts: list[int]
    """Prompt of each pool."""
    continuations: int
    generated: int
