"""Accuracy of a policy on held-out problems: responses to several benchmarks, scored and counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vantage.answers import spelling
from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.evaluation.ballots import joined
from vantage.evaluation.statistics import macro_average, mean_interval
from vantage.policy import Policy
from vantage.prompting import Chat, decode_response, encode_prompt
from vantage.randomness import Stream, key
from vantage.rollout.engine import Engine, Request, Sampling

if TYPE_CHECKING:
    from vantage.evaluation.ballots import Ballot
    from vantage.rewards.functions import RewardSet
    from vantage.tasks.base import Problem
    from vantage.workload import Workload

LOOKED_AT = 16
"""Problems of a benchmark that are looked at for columns that nothing can be judged by."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of P problems with K responses each; NaN where a response was unscorable."""

    score_PK: NDArray[np.float64]
    """Outcome as a share of the reward range: 1 correct, 0 wrong."""
    length_PK: NDArray[np.int64]
    """Tokens of each response."""
    truncated_PK: NDArray[np.bool_]
    """Whether a response ran into the length limit."""
    responses: list[list[str]]
    votes: list[list[str | None]] = field(default_factory=list)
    """The answer of each response in one spelling, None where it gives none; empty where nobody asked."""

    @property
    def length_mean(self) -> float:
        """Mean number of tokens."""
        return float(self.length_PK.mean())

    @property
    def truncated(self) -> float:
        """Share of responses that ran into the length limit."""
        return float(self.truncated_PK.mean())

    @property
    def scored_PK(self) -> NDArray[np.float64]:
        """The scores, 0 where a response was unscorable."""
        return np.nan_to_num(self.score_PK, nan=0.0)

    @property
    def correct_PK(self) -> NDArray[np.bool_]:
        """Whether a response has the full score."""
        correct: NDArray[np.bool_] = self.scored_PK >= 1 - 1e-9
        return correct

    def accuracy(self) -> tuple[float, float, float]:
        """avg@k and its 95 % interval; unscorable responses count as wrong."""
        return mean_interval(self.scored_PK)

    def metrics(self, prefix: str = "eval/") -> dict[str, float]:
        """The keys of metrics.jsonl."""
        mean, low, high = self.accuracy()
        return {
            f"{prefix}accuracy": mean,
            f"{prefix}accuracy_low": low,
            f"{prefix}accuracy_high": high,
            f"{prefix}length_mean": self.length_mean,
            f"{prefix}truncated": self.truncated,
        }


def evaluate(
    policy: Policy,
    engine: Engine,
    problems: Sequence[Problem],
    rewards: RewardSet,
    sampling: Sampling,
    *,
    reward_range: tuple[float, float],
    seed: int,
    k: int = 1,
    chat: Chat = Chat(),  # noqa: B008  # it is frozen
    world: World | None = None,
    answer_of: Callable[[str], str | None] | None = None,
) -> Evaluation:
    """Generate and score k responses for each problem; the draws depend on (seed, problem, sample) only.

    In a `world` of several processes each does its share of the problems, and all get the whole. `answer_of` reads the
    answers for majority votes out of the responses, unless a reward function has a way of its own (`RewardSet.ballot`).
    """
    world = world or World()
    mine = list(world.share(len(problems)))
    requests = [
        Request(
            encode_prompt(policy.tokenizer, problems[i].prompt, chat),
            tuple(key(seed, Stream.EVAL, i, j) for j in range(k)),
        )
        for i in mine
    ]
    rollouts = [r for group in engine.generate(requests, sampling) for r in group]
    texts = [decode_response(policy.tokenizer, r.response_ids) for r in rollouts]
    repeated = [problems[i] for i in mine for _ in range(k)]
    scored = rewards(
        prompts=[p.prompt for p in repeated],
        completions=texts,
        completion_ids=[r.response_ids for r in rollouts],
        columns=repeat_columns(repeated),
    )
    lengths = [len(r.response_ids) for r in rollouts]
    truncated = [r.finish_reason == "length" for r in rollouts]
    by_problem = [slice(j * k, (j + 1) * k) for j in range(len(mine))]
    votes = _votes([texts[s] for s in by_problem], rewards.ballot, answer_of)
    found = world.together(
        [(scored.total[s], lengths[s], truncated[s], texts[s], votes[j]) for j, s in enumerate(by_problem)]
    )
    low, high = reward_range
    shape = (len(problems), k)
    return Evaluation(
        (np.array([row[0] for row in found], dtype=np.float64).reshape(shape) - low) / (high - low),
        np.array([row[1] for row in found], dtype=np.int64).reshape(shape),
        np.array([row[2] for row in found], dtype=np.bool_).reshape(shape),
        [row[3] for row in found],
        [row[4] for row in found] if answer_of or rewards.ballot else [],
    )


def _votes(
    texts: Sequence[Sequence[str]], ballot: Ballot | None, answer_of: Callable[[str], str | None] | None
) -> list[list[str | None]]:
    """The answer of every response to every problem; those that the ballot holds for equal are in one spelling."""
    if ballot is None:
        return [[answer_of(text) if answer_of else None for text in row] for row in texts]
    found = [[ballot.answer_of(text) for text in row] for row in texts]
    return joined([[None if a is None else spelling(a) or None for a in row] for row in found], ballot.same_answers)


def repeat_columns(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """Dataset columns as lists aligned with the rollouts; a column that a problem lacks is None there."""
    names = dict.fromkeys(name for p in problems for name in p.columns)
    return {name: [p.columns.get(name) for p in problems] for name in names}


@dataclass(frozen=True)
class Benchmark:
    """Problems to be measured on, what judges responses, and how these are drawn."""

    name: str
    """What tables and metrics call it."""
    problems: Sequence[Problem]
    rewards: RewardSet
    reward_range: tuple[float, float]
    sampling: Sampling
    k: int = 1
    """Responses to each problem."""
    answer_of: Callable[[str], str | None] | None = None
    """Reads the answer for majority votes out of a response."""

    @staticmethod
    def of(
        spec: str,
        *,
        problems: int,
        k: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int | None = None,
        reward: Sequence[str] = (),
        fallback_reward: Sequence[str] = (),
        name: str | None = None,
        whole: bool = False,
        timeout: float | None = None,
        **data: Any,
    ) -> Benchmark:
        """The benchmark that a task's spec names, its problems read.

        Args:
            spec: As `vantage.tasks.get_task` takes it; `data` has its columns and templates.
            problems: Held-out problems at most.
            k, temperature, top_p, top_k, max_new_tokens: How responses are drawn; the length is the task's by default.
            reward: Reward functions instead of the task's own.
            fallback_reward: Reward functions for a task that has none of its own.
            name: What it is called; by default after the spec.
            whole: Of data, all rows and not only those that are held out from training on it.
            timeout: Seconds that a call of a reward function may take, see `RewardSet`.

        Raises:
            UserError: there is no such task, it has no held-out problems, or nothing judges responses to it.
        """
        from vantage.tasks import get_task
        from vantage.tasks.base import DEFAULT_LENGTH
        from vantage.tasks.readers import is_file_spec
        from vantage.workload import Workload

        if whole and is_file_spec(spec):
            data["eval_spec"] = spec
        task = get_task(spec, **data)
        work = Workload.of(task, reward or (() if task.reward_funcs else fallback_reward), timeout=timeout)
        chosen = list(task.evaluation(problems))
        work.rewards.check(chosen[0].columns)
        work.faults(chosen[:LOOKED_AT])
        length = max_new_tokens or task.max_new_tokens or DEFAULT_LENGTH
        sampling = Sampling(length, temperature, top_p, top_k, tuple(task.stop))
        return Benchmark(name or short_name(spec), chosen, work.rewards, work.reward_range, sampling, k, task.answer_of)


def training_benchmarks(
    work: Workload,
    sampling: Sampling,
    reward_range: tuple[float, float],
    problems: int,
    eval_task: str | None = None,
    reward: Sequence[str] = (),
    **data: Any,
) -> list[Benchmark]:
    """What a run is measured on as it goes, with one response to a problem; raises `UserError`.

    Without an `eval_task` these are the held-out problems of the task that is trained on. With one, or several with
    commas between them, each is judged by its own verifier, or by the run's `reward` functions if it has none. Responses
    are drawn as in training; where they end is each task's own. All rows of data are used, unless it is what is trained
    on. `data` is what `get_task` was given for the training data: all of it holds for data among the tasks, and the system
    prompt for every task that takes one.
    """
    from vantage.tasks import options_of, task_specs
    from vantage.tasks.readers import is_file_spec

    if problems == 0:
        return []
    if eval_task is None:
        task, held_out = work.task, list(work.task.evaluation(problems))
        return [Benchmark(short_name(task.name), held_out, work.rewards, reward_range, sampling, 1, task.answer_of)]
    specs = task_specs(eval_task, "--eval-task")
    names = [short_name(spec) for spec in specs]
    system = {key: value for key, value in data.items() if key == "system_prompt"}
    try:
        return [
            Benchmark.of(
                spec,
                problems=problems,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_new_tokens=sampling.max_new_tokens,
                fallback_reward=reward,
                name=name if names.count(name) == 1 else spec,
                whole=spec != work.task.name,
                timeout=work.rewards.timeout,
                **(data if is_file_spec(spec) else system if "system_prompt" in options_of(spec) else {}),
            )
            for spec, name in zip(specs, names, strict=True)
        ]
    except UserError as error:  # what reads tasks knows them as those of --task
        raise UserError(re.sub("^--task", "--eval-task", str(error))) from error


def evaluate_all(
    policy: Policy,
    engine: Engine,
    benchmarks: Sequence[Benchmark],
    *,
    seed: int,
    chat: Chat = Chat(),  # noqa: B008  # it is frozen
    world: World | None = None,
    announce: Callable[[Benchmark], None] | None = None,
) -> dict[str, Evaluation]:
    """Evaluate on several benchmarks in order, by name. Each comes out as it would alone, see `evaluate`.

    `announce` is told of each benchmark before it starts.
    """
    found = {}
    for b in benchmarks:
        if announce:
            announce(b)
        found[b.name] = evaluate(
            policy, engine, b.problems, b.rewards, b.sampling, reward_range=b.reward_range, seed=seed, k=b.k,
            chat=chat, world=world, answer_of=b.answer_of,
        )  # fmt: skip
    return found


def eval_metrics(found: Mapping[str, Evaluation]) -> dict[str, float]:
    """The keys of metrics.jsonl for evaluations by name.

    One has the keys `eval/accuracy` and so on. Several have `eval/NAME/accuracy` each, and `eval/accuracy` with its
    interval is their macro average, as are length and truncation.
    """
    if len(found) == 1:
        return next(iter(found.values())).metrics()
    macro = macro_average([one.scored_PK.mean(axis=1) for one in found.values()])
    row = {
        "eval/accuracy": macro.mean,
        "eval/accuracy_low": macro.low,
        "eval/accuracy_high": macro.high,
        "eval/length_mean": float(np.mean([one.length_mean for one in found.values()])),
        "eval/truncated": float(np.mean([one.truncated for one in found.values()])),
    }
    for name, one in found.items():
        row |= one.metrics(f"eval/{name}/")
    return row


def short_name(spec: str) -> str:
    """What metrics call a task: `aime24`, `data` for jsonl:some/data.jsonl, `name` for hub:owner/name, else the spec."""
    from vantage.tasks.readers import is_file_spec

    if not is_file_spec(spec):
        return Path(spec.partition(":")[0]).stem + ":" + spec.partition(":")[2] if ".py:" in spec else spec
    scheme, _, place = spec.partition(":")
    if scheme == "hub":
        return place.rpartition("/")[2]
    return Path(place or spec).stem
