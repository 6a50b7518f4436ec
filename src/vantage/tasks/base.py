"""What a task is: problems to train on, held-out problems, and the reward functions that verify responses."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from vantage.errors import UserError
from vantage.rewards.functions import RewardFunction
from vantage.tasks.critique import Critique, computations, criticise, result_of, step_rate

Message = dict[str, str]
Prompt = str | list[Message]


@dataclass(frozen=True)
class Problem:
    """One prompt with what its verification needs.

    Attributes:
        prompt: Plain text, or a conversation as a list of `{"role": ..., "content": ...}`.
        columns: What reward functions are called with besides prompts and completions, such as `{"answer": "114"}`.
        domain: Kind of problem; probes and reports may treat domains apart.
    """

    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict)
    domain: str = "default"


class Task:
    """Base class of tasks. A subclass sets `name`, `version`, `train` and, for accuracy, defines `evaluation`.

    Attributes:
        name: What `--task` was given to get it.
        version: Version of verifier and prompt template together; a checkpoint made with another one is refused.
        train: Problems to train on: random access and `len()`, made or read when they are asked for.
        reward_funcs: Reward functions as TRL calls them; empty where the user must bring one.
        reward_range: Smallest and largest total reward.
        step_separator: Text that ends a step of reasoning.
        min_segment_tokens: Shortest step that gets a value of its own.
        max_new_tokens: Response length that the task proposes, in tokens.
        stop: Texts that end a response besides the end-of-sequence token.
        alphabet: Every character that prompts and solutions need, where that is a short list.
    """

    name: str
    version: str
    train: Sequence[Problem]
    reward_funcs: tuple[RewardFunction, ...] = ()
    reward_range: tuple[float, float] = (0.0, 1.0)
    step_separator: str = "\n"
    min_segment_tokens: int = 32
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    alphabet: str | None = None

    def evaluation(self, n: int) -> Sequence[Problem]:
        """`n` held-out problems, or all where there are fewer; the same ones at every call.

        Raises:
            UserError: the task holds no problems out.
        """
        raise UserError(f"--task {self.name}: it has no held-out problems to evaluate {n} of them")

    def solution(self, problem: Problem) -> str | None:
        """A full correct response, where the task knows one (for a supervised warm start)."""
        return None

    def complaint(self, problem: Problem) -> str | None:
        """What is wrong with a problem's own data, such as an answer that the verifier can not read; None if nothing."""
        return None

    def answer_of(self, response: str) -> str | None:
        """The final answer of a response in one spelling, for majority votes; None if it gives none.

        The default is for tasks whose responses have no short answer that could be compared, such as programs.
        """
        return None

    def demonstration(self, problem: Problem, slips: float, rng: random.Random) -> str | None:
        """A solution in which every step goes wrong with probability `slips`, and the rest follows from the wrong step.

        A policy warm-started on such responses knows the steps but is unsure of each, as a language model is: there
        is something to gain by reinforcement. The default knows no wrong steps and gives the solution.
        """
        return self.solution(problem)

    def critique(self, problem: Problem, partial: str, success: float) -> Critique | None:
        """What an oracle says of an unfinished response by a solver of this success rate; None where the task knows none.

        GenAC's critic learns from it how to reason, before it learns from outcomes.
        """
        return None


class Criticised(Task):
    """A task with critiques of its own: it knows how many steps a problem takes, each of which a solver may get wrong."""

    def steps(self, problem: Problem) -> int:
        """Steps of a right response that can go wrong."""
        raise NotImplementedError

    @functools.cached_property
    def step_counts(self) -> tuple[int, ...]:
        """Steps of the first training problems, which stand for all."""
        return tuple(self.steps(self.train[i]) for i in range(min(100, len(self.train))))

    def step_rate(self, success: float) -> float:
        """With which probability a solver of this success rate gets a step right, if all steps are alike."""
        return step_rate(success, self.step_counts)


class SolvedInLines(Criticised):
    """A task whose `solution` is computations, one a line, and a last line that repeats a result: its critiques come free."""

    def steps(self, problem: Problem) -> int:
        """Computations of the solution."""
        return computations(self.solution(problem) or "")

    def critique(self, problem: Problem, partial: str, success: float) -> Critique | None:
        """See `vantage.tasks.critique`."""
        if self.solution(problem) is None:
            return None
        return criticise(
            lambda results: self.go_on(problem, results), partial, self.step_rate(success), self.opening(problem)
        )

    def opening(self, problem: Problem) -> str:
        """What a critique says of the problem itself, before the response; nothing by default."""
        return ""

    def go_on(self, problem: Problem, results: Sequence[str]) -> Sequence[str] | None:
        """Lines of a right response whose first ones have these results; None where there is none.

        The default knows one right response only.
        """
        lines = (self.solution(problem) or "").split("\n")
        return lines if list(map(result_of, lines[: len(results)])) == list(results) else None


DEFAULT_LENGTH = 512
"""Tokens of the longest response to a task that proposes no length."""


class LazyProblems(Sequence[Problem]):
    """Problems that `make(index)` makes when they are asked for; a slice of it is lazy as well."""

    def __init__(self, make: Callable[[int], Problem], indices: Sequence[int]) -> None:
        self._make = make
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> LazyProblems: ...
    def __getitem__(self, index: int | slice) -> Problem | LazyProblems:
        if isinstance(index, slice):
            return LazyProblems(self._make, self._indices[index])
        return self._make(self._indices[index])
