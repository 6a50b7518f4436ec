"""`gym:NAME`: the tasks of reasoning-gym, made by its generators and scored by its own verifiers in worker processes.

Stojanovski et al., arXiv 2505.24760. The package is an extra: `pip install 'vantage-rl[gym]'`. Its problem number i of
seed s depends on s + i, so training and evaluation draw from ranges of seeds that do not meet. A generator with few
different problems may still make the same one in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vantage.answers import THINK_END, tagged
from vantage.errors import UserError
from vantage.plugins import did_you_mean, one_line
from vantage.rewards.functions import RewardFunction
from vantage.tasks.base import LazyProblems, Problem, Task
from vantage.tasks.rowformat import RowFormat
from vantage.verifiers.base import UnjudgedError, reward_function
from vantage.verifiers.guarded import LIMITS, Guarded

SCHEME = "gym:"
TRAIN_SIZE = 1_000_000
EVAL_SIZE = 100_000
EVAL_SEED = 1_000_000_000
TEMPLATE = (
    "{prompt}\n\nThink step by step, then give your final answer, and nothing else, within <answer></answer> tags."
)


class ReasoningGym(Task):
    """The task `gym:NAME` or `gym:NAME:SEED`; `prompt_template` replaces the text around a question."""

    reward_range = (0.0, 1.0)
    max_new_tokens = 1024

    def __init__(self, spec: str, prompt_template: str | None = None, system_prompt: str | None = None) -> None:
        name, _, seed = spec.removeprefix(SCHEME).partition(":")
        if seed and not seed.isdecimal():
            raise UserError(f"--task {spec}: the seed {seed!r} must be a whole number, as in {SCHEME}{name}:7")
        self.name = spec
        self._form = RowFormat("question", prompt_template=prompt_template or TEMPLATE, system_prompt=system_prompt)
        first = int(seed or 0) * TRAIN_SIZE
        if first + TRAIN_SIZE > EVAL_SEED:
            raise UserError(f"--task {spec}: the seed must be less than {EVAL_SEED // TRAIN_SIZE}")
        training = _generator(name, TRAIN_SIZE, first, spec)
        self._evaluation = _generator(name, EVAL_SIZE, EVAL_SEED, spec)
        self.version = f"1 reasoning-gym-{_version()}"
        self.reward_funcs = (_reward(name, first),)
        self.train = LazyProblems(lambda index: self._problem(training, index), range(TRAIN_SIZE))

    def evaluation(self, n: int) -> Sequence[Problem]:
        """The first `n` problems of seeds that training never sees."""
        return LazyProblems(lambda index: self._problem(self._evaluation, index), range(min(n, EVAL_SIZE)))

    def solution(self, problem: Problem) -> str | None:
        """The generator's own answer in its tags, where it has one."""
        answer = problem.columns["answer"]
        return None if answer is None else f"<answer>{answer}</answer>"

    def answer_of(self, response: str) -> str | None:
        """What stands in the last `<answer>` tags."""
        return _given(response)

    def _problem(self, generator: Any, index: int) -> Problem:
        entry = generator[index]
        columns = {"answer": entry["answer"], "entry": entry}
        return Problem(self._form.prompt(entry), columns, "other")


class GymJudge:
    """A generator's own verifier, as a worker process has it. Some of them evaluate what the policy wrote as Python."""

    name = "gym"

    def __init__(self, generator: str, seed: int) -> None:
        self.generator, self.seed = generator, seed
        self.version = _version()

    def prepare(self) -> None:
        """Import reasoning-gym and make the generator."""
        self._made = _generator(self.generator, TRAIN_SIZE, self.seed, SCHEME + self.generator)

    def score(self, text: str, columns: Mapping[str, Any]) -> float:
        """0 to 1 for the answer in tags, 0 without one; raises what the generator raises, and `UnjudgedError`."""
        answer = _given(text)
        if answer is None:
            return 0.0
        score = float(self._made.score_answer(answer, columns["entry"]))
        if not math.isfinite(score):
            raise UnjudgedError(f"was scored {score}")
        return min(max(score, 0.0), 1.0)


def _given(response: str) -> str | None:
    return tagged(response.rpartition(THINK_END)[2]) or None


def _reward(name: str, seed: int) -> RewardFunction:
    """The generator's own verifier, in worker processes."""
    judge = Guarded(
        "vantage.tasks.reasoning:GymJudge", {"generator": name, "seed": seed}, columns=("entry",), limits=LIMITS
    )
    scored = reward_function(judge)
    scored.__name__ = name
    return scored


def _generator(name: str, size: int, seed: int, spec: str) -> Any:
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(
            f"--task {spec}: this needs the package reasoning-gym: pip install 'vantage-rl[gym]' ({one_line(error)})"
        ) from error
    if name not in DATASETS:
        hint = (
            did_you_mean(name, DATASETS)
            or "; python -c 'import reasoning_gym.factory as f; print(*f.DATASETS)' lists all"
        )
        raise UserError(f"--task {spec}: reasoning-gym has no {name!r}{hint}")
    try:
        return create_dataset(name, size=size, seed=seed)
    except Exception as error:
        raise UserError(f"--task {spec}: reasoning-gym can not make it: {one_line(error)}") from error


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("reasoning-gym")
    except PackageNotFoundError:
        return "unknown"
