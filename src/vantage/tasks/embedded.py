"""What the embedded worlds share: splits by name, and one endless, reproducible draw of problems on either side of a line."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

from vantage.errors import UserError
from vantage.plugins import did_you_mean
from vantage.rewards.functions import RewardFunction
from vantage.tasks.base import LazyProblems, Problem, Task

TRAIN_SIZE = 100_000
TRIES_FOR_A_NEW_PROBLEM = 400


class Bounded(Protocol):
    """A distribution of problems that knows how long responses to them may be."""

    @property
    def max_new_tokens(self) -> int:
        """Response budget in tokens."""
        ...


S = TypeVar("S", bound=Bounded)


class EmbeddedTask(Task, Generic[S]):
    """A world that draws its problems. A subclass sets `world`, `splits` and `reward`, and defines `draw`.

    Training problem i depends on the world, the split and i only.

    Attributes:
        world: Name of the task without its split.
        splits: Distributions of problems by name; `""` is the one that policies are warm-started on.
        reward: The verifier.
        split: The distribution in use.

    Raises:
        UserError: there is no such split.
    """

    world: ClassVar[str]
    splits: ClassVar[Mapping[str, Bounded]]
    split: S
    min_segment_tokens = 1

    def __init__(self, reward: RewardFunction, splits: Mapping[str, S], split: str) -> None:
        if split not in splits:
            shifted = [name for name in splits if name]
            hint = did_you_mean(split, shifted) or f"; it has: {', '.join(shifted)}"
            raise UserError(f"--task: {self.world} has no split {split!r}{hint}")
        self.name = f"{self.world}:{split}" if split else self.world
        self.split = splits[split]
        self.max_new_tokens = self.split.max_new_tokens
        self.reward_funcs = (reward,)
        self.train = LazyProblems(self._train_problem, range(TRAIN_SIZE))

    def draw(self, rng: random.Random, index: int, held_out: bool) -> Problem:
        """A problem on the wanted side; `index` lets kinds of problems take turns."""
        raise NotImplementedError

    def evaluation(self, n: int) -> Sequence[Problem]:
        """The first `n` of one fixed sequence of held-out problems; none comes twice while new ones can be found."""
        problems: list[Problem] = []
        seen: set[str] = set()
        for index in range(n):
            rng = random.Random(f"{self.name}/evaluation/{index}")
            for _ in range(TRIES_FOR_A_NEW_PROBLEM):
                problem = self.draw(rng, index, held_out=True)
                if problem.prompt not in seen:
                    break
            seen.add(str(problem.prompt))
            problems.append(problem)
        return problems

    def _train_problem(self, index: int) -> Problem:
        return self.draw(random.Random(f"{self.name}/train/{index}"), index, held_out=False)


def falls_outside(identity: str) -> bool:
    """Whether training never sees what a problem is about: so it is for a fifth of everything, by a fixed hash."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") % 5 == 0
