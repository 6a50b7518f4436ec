"""What a policy is trained or tested on: a task's problems together with the reward functions that judge them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vantage.errors import UserError
from vantage.randomness import Stream, permutation
from vantage.rewards.functions import RewardSet

if TYPE_CHECKING:
    from vantage.tasks.base import Problem, Task


@dataclass(frozen=True)
class Workload:
    """Problems, verifier, and the range of the total reward."""

    task: Task
    rewards: RewardSet
    reward_range: tuple[float, float]

    @staticmethod
    def of(
        task: str | Task,
        reward_specs: Sequence[str] = (),
        weights: Sequence[float] = (),
        prompt_column: str = "prompt",
        domain_column: str | None = None,
        functions: Sequence[Callable[..., Any]] | None = None,
        timeout: float | None = None,
        **data: Any,
    ) -> Workload:
        """Resolve a task (a `--task` value or an object) and its reward functions; raises `UserError`.

        `functions`, else FILE.py:FUNCTION `reward_specs`, replace the task's own. `timeout`: see `RewardSet`.
        `data` has more of what `vantage.tasks.get_task` takes, such as `answer_column`, for a `--task` value.
        """
        from vantage.rewards.loading import adapted, from_spec
        from vantage.rewards.verifiers import verifier_names
        from vantage.tasks import get_task

        columns: dict[str, Any] = {"prompt_column": prompt_column, "domain_column": domain_column}
        found = get_task(task, **columns, **data) if isinstance(task, str) else task
        chosen = (
            [adapted(f) for f in functions or ()] or [from_spec(s) for s in reward_specs] or list(found.reward_funcs)
        )
        if not chosen:
            raise UserError(
                f"--reward: task {found.name!r} brings no reward function; give FILE.py:FUNCTION or a verifier: "
                f"{', '.join(verifier_names())}"
            )
        rewards = RewardSet(chosen, list(weights) or None, timeout)
        low, high = found.reward_range
        # Weighted sums of several functions reach further than one of them.
        total = list(weights) or [1.0] * len(chosen)
        least = sum(min(w * low, w * high) for w in total)
        most = sum(max(w * low, w * high) for w in total)
        return Workload(found, rewards, (least, most))

    def faults(self, problems: Sequence[Problem]) -> list[str | None]:
        """What is wrong with each problem's columns, as the reward functions see them; None where nothing is.

        Raises:
            UserError: there is one reward function, and it can judge none of them.
        """
        found = [self.rewards.complaint(problem.columns) for problem in problems]
        if found and None not in found and len(self.rewards.names) == 1:
            raise UserError(
                f"--reward: none of the first {len(found)} problems of {self.task.name} can be judged: {found[0]}"
            )
        return found


class PromptStream:
    """The seeded order of training problems: a function of (seed, position), the same for every algorithm."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self.problems, self.seed = problems, seed
        self._epoch, self._order = -1, permutation(seed, Stream.DATA, 0, 0)

    def take(self, position: int, count: int) -> list[Problem]:
        """Problems number `position` … `position + count − 1` of the stream; every epoch has its own order."""
        found = []
        for place in range(position, position + count):
            epoch, offset = divmod(place, len(self.problems))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, permutation(self.seed, Stream.DATA, epoch, len(self.problems))
            found.append(self.problems[int(self._order[offset])])
        return found
