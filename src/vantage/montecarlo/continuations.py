"""How does a response go on from here? States, and continuations of them by the policy, sampled and judged as rollouts are.

A state is a problem with the first tokens of a response to it. `Continuer` completes many states in one pass of the
engine, which prefills each of them once, and has prefix and continuation judged together. What reward functions log
meanwhile (`log_extra`, `log_metric`) reaches nobody. `vantage.montecarlo` makes truth of it, VinePPO its baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vantage.evaluation.scoring import repeat_columns
from vantage.montecarlo.cache import digest
from vantage.policy import Policy
from vantage.prompting import Chat, decode_response, encode_prompt
from vantage.randomness import Stream, key
from vantage.rollout.engine import Engine, Request, Sampling
from vantage.rollout.stopping import ended
from vantage.tasks.base import Problem

if TYPE_CHECKING:
    from vantage.rewards.functions import RewardSet


@dataclass(frozen=True)
class State:
    """A problem and the first tokens of a response to it; without any, the state is the prompt."""

    problem: Problem
    prefix_ids: tuple[int, ...] = ()


def prefixes(problem: Problem, response_ids: Sequence[int], cuts: Sequence[int]) -> list[State]:
    """The states of a finished rollout after `cuts` of its tokens each: 0 is the prompt, all of them its end."""
    if wrong := [cut for cut in cuts if not 0 <= cut <= len(response_ids)]:
        raise ValueError(f"cut {wrong[0]} is not in 0..{len(response_ids)}, the length of the response")
    return [State(problem, tuple(response_ids[:cut])) for cut in cuts]


@dataclass(frozen=True)
class Place:
    """A state as the engine sees it."""

    state: State
    prompt_ids: list[int]
    problem_name: bytes
    """See `problem_name`; equal for all states of a problem, whose columns may be long."""
    terminal: bool = False
    """Whether the prefix is a whole response already."""

    @property
    def length(self) -> int:
        """Tokens so far."""
        return len(self.prompt_ids) + len(self.state.prefix_ids)

    @cached_property
    def draw(self) -> int:
        """What its continuations draw from: the tokens of prompt and prefix alone."""
        return int.from_bytes(digest([self.prompt_ids, list(self.state.prefix_ids)])[:8], "big")

    @cached_property
    def name(self) -> bytes:
        """Its identity (32 bytes): the tokens, and whatever the verifier reads of the problem."""
        return digest([self.prompt_ids, list(self.state.prefix_ids), self.problem_name.hex()])


def problem_name(problem: Problem) -> bytes:
    """What verifiers read of a problem besides the response, in 32 bytes."""
    return digest([problem.prompt, dict(problem.columns)])


def places(policy: Policy, engine: Engine, states: Sequence[State], sampling: Sampling, chat: Chat) -> list[Place]:
    """States with their tokens; whether one is a whole response is found out as the engine would."""
    prompts: dict[int, tuple[list[int], bytes]] = {}
    found = []
    for state in states:
        number = id(state.problem)  # states of one problem are many, and templates are slow
        if number not in prompts:
            ids = encode_prompt(policy.tokenizer, state.problem.prompt, chat)
            prompts[number] = (ids, problem_name(state.problem))
        limit = sampling.max_new_tokens - len(state.prefix_ids)
        reason = ended(state.prefix_ids, limit, engine.end_ids, sampling.stop, policy.tokenizer)
        found.append(Place(state, *prompts[number], reason is not None))
    return found


@dataclass(frozen=True)
class Continued:
    """K continuations of one state."""

    response_ids: list[list[int]]
    """Tokens behind the prefix, one list a continuation; empty at a terminal state."""
    outcome_K: NDArray[np.float64]
    """Total reward of prefix and continuation; NaN where it could not be judged."""

    @property
    def tokens_K(self) -> NDArray[np.int64]:
        """Tokens behind the prefix."""
        return np.array([len(ids) for ids in self.response_ids], dtype=np.int64)


@dataclass
class Continuer:
    """Generates and judges continuations; counts tokens and collects what went wrong."""

    policy: Policy
    engine: Engine
    rewards: RewardSet
    sampling: Sampling
    seed: tuple[int, ...]
    """Continuation j of a state draws from these numbers, the state's tokens and j alone."""
    judged_together: int | None = None
    """Most responses in one call of the reward functions, whose time may be limited; None: all."""
    trainer_state: Any = None
    """What reward functions may ask about the run."""
    generated: int = 0
    problems: dict[str, None] = field(default_factory=dict)

    def __call__(self, wanted: Sequence[tuple[Place, range]]) -> list[Continued]:
        """For each place its continuations of these numbers: one pass of the engine for all, then the verdicts."""
        requests = []
        for place, numbers in wanted:
            first, *rest = self.seed
            keys = tuple(key(first, Stream.CONTINUATION, *rest, place.draw, j) for j in numbers)
            requests.append(Request(place.prompt_ids, keys, place.state.prefix_ids))
        drawn = [[r.response_ids for r in rollouts] for rollouts in self.engine.generate(requests, self.sampling)]
        self.generated += sum(len(ids) for found in drawn for ids in found)
        outcomes = self._judge([(place.state, ids) for (place, _), found in zip(wanted, drawn) for ids in found])
        pieces = np.split(outcomes, np.cumsum([len(found) for found in drawn])[:-1])
        return [Continued(found, outcome_K) for found, outcome_K in zip(drawn, pieces)]

    def _judge(self, continued: Sequence[tuple[State, list[int]]]) -> NDArray[np.float64]:
        most = self.judged_together or max(1, len(continued))
        totals: list[float] = []
        for start in range(0, len(continued), most):
            totals += self._judge_some(continued[start : start + most])
        return np.array(totals, dtype=np.float64)

    def _judge_some(self, continued: Sequence[tuple[State, list[int]]]) -> list[float]:
        """Total rewards of whole responses, prefix and continuation."""
        whole = [[*state.prefix_ids, *ids] for state, ids in continued]
        scored = self.rewards(
            prompts=[state.problem.prompt for state, _ in continued],
            completions=[decode_response(self.policy.tokenizer, ids) for ids in whole],
            completion_ids=whole,
            columns=repeat_columns([state.problem for state, _ in continued]),
            trainer_state=self.trainer_state,
        )
        self.problems.update(dict.fromkeys(scored.problems))
        return scored.total
