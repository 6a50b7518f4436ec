"""The contract of a reward function, which is TRL's (`GRPOTrainer(reward_funcs=...)`), and what calls them.

A reward function is called with keywords only: `prompts`, `completions`, `completion_ids`, every column of the dataset
(each a list with one entry a rollout), `trainer_state`, `log_extra(column, values)` and `log_metric(name, value)`.
It returns one number a rollout; `None` says that it does not apply to that one. On chat data the prompts are lists of
messages and a completion is `[{"role": "assistant", "content": text}]`; on plain text both are strings.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vantage.errors import UserError
from vantage.plugins import did_you_mean
from vantage.rewards.calls import (
    DROPPED_COLUMNS,
    STANDARD_KEYWORDS,
    CallLog,
    Function,
    Result,
    Rows,
    read_result,
    what_went_wrong,
)
from vantage.rewards.limits import TooSlow, within

if TYPE_CHECKING:
    from vantage.evaluation.ballots import Ballot
    from vantage.rewards.loop import PrivateLoop
    from vantage.tasks.base import Message, Prompt

RewardFunction = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]

_RETRY_PROBES = 16  # a function that fails on this many single samples is broken, not unlucky
_REASONS_SHOWN = 3


@dataclass(frozen=True)
class Rewards:
    """What a batch of B rollouts earned.

    Attributes:
        total: Weighted sum over the functions that apply, length B; NaN where the sample can not be scored.
        components: Unweighted rewards of every function by its name, each of length B; NaN where it returned `None`
            or failed.
        extras: What `log_extra` was given, each of length B, for the table of samples.
        metrics: Mean of what `log_metric` was given in this call.
        problems: One line for each kind of failure.
    """

    total: list[float]
    components: dict[str, list[float]]
    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class RewardSet:
    """Several reward functions and their weights, called together.

    `None` is "does not apply": the function is left out of that sample's sum. A function *fails* on a sample when it
    raises, or returns NaN, an infinity, something that is not a number or a list of another length; then a part of
    the reward is missing and the sample's total is NaN. A function that raises on a whole batch is called again
    sample by sample, so that one hostile completion costs one sample. A function of weight 0 is only logged: neither
    does its failure matter nor does its number make a sample scorable.

    With a `timeout`, a function that takes longer on a call fails on its samples (`vantage.rewards.limits` says what can
    not be ended). Called again sample by sample it has a sixteenth of the time for each, so that a function that always
    hangs costs about twice the limit.

    Functions that return awaitables (coroutine functions, objects with an asynchronous `__call__`) are awaited
    together on an event loop of this set's own. Functions without `**kwargs` get the keywords that they name.

    Args:
        functions: At least one reward function.
        weights: One a function; 1 each if left out.
        timeout: Seconds that one call of a function may take; None is no limit.

    Raises:
        UserError: no functions, one that can not be called as a reward function, or weights that do not fit.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        timeout: float | None = None,
    ) -> None:
        if not functions:
            raise UserError("--reward: this task has no reward function of its own; name one with FILE.py:FUNCTION")
        for position, function in enumerate(functions):
            _require_function(function, position)
        self._functions = [
            Function(name, function) for name, function in zip(_unique_names(functions), functions, strict=True)
        ]
        self.names: tuple[str, ...] = tuple(function.name for function in self._functions)
        self.weights: tuple[float, ...] = _checked_weights(weights, self.names)
        self.timeout = timeout
        self._loop: PrivateLoop | None = None

    def check(self, columns: Iterable[str]) -> None:
        """Raise `UserError` if a function requires a column that the data lacks; call it before generating anything."""
        columns = [column for column in columns if column not in DROPPED_COLUMNS]
        for function in self._functions:
            for name in function.required:
                if name not in columns and name not in STANDARD_KEYWORDS:
                    raise UserError(
                        f"--reward: {function.name!r} needs the column {name!r}; the data has "
                        f"{', '.join(columns) or 'none besides the prompt'}"
                        f"{did_you_mean(name, [*columns, *STANDARD_KEYWORDS])}"
                    )

    def complaint(self, columns: Mapping[str, Any]) -> str | None:
        """What is wrong with the columns of one row, as the first function with a `complaint(columns)` of its own says."""
        said = (function.complaint(columns) for function in self._functions)
        return next((words for words in said if words is not None), None)

    @property
    def ballot(self) -> Ballot | None:
        """How answers are read and compared for majority votes: the way of the first function that has one."""
        return next((function.ballot for function in self._functions if function.ballot is not None), None)

    def __call__(
        self,
        *,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
        trainer_state: Any = None,
    ) -> Rewards:
        """Score B rollouts; every list has one entry a rollout, so prompts and columns are repeated already.

        A column named like one of the other keywords (`prompts`, `log_extra`, ...) does not reach the functions.

        Raises:
            UserError: a function requires a column that is not there.
            ValueError: lists of different lengths.
        """
        self.check(columns)
        rows = Rows(prompts, completions, completion_ids, columns, trainer_state)
        if not len(rows):
            return Rewards([], {name: [] for name in self.names})
        results = self._invoke([(function, rows) for function in self._functions], self.timeout)
        results = [
            result if result.error is None or len(rows) == 1 else self._retry(function, rows, result)
            for function, result in zip(self._functions, results, strict=True)
        ]
        return _collect(self.names, self.weights, results)

    def _invoke(self, calls: Sequence[tuple[Function, Rows]], limit: float | None) -> list[Result]:
        """Make the calls in order, then await together what they returned to be awaited; each has `limit` seconds."""
        logs = [CallLog(len(rows)) for _, rows in calls]
        returned: list[Any] = []
        for (function, rows), log in zip(calls, logs, strict=True):
            try:
                returned.append(within(limit, functools.partial(function.call, rows, log)))
            except (Exception, TooSlow) as error:
                returned.append(error)
        waiting = [index for index, value in enumerate(returned) if inspect.isawaitable(value)]
        if waiting:
            from vantage.rewards.loop import PrivateLoop  # asyncio is slow to import and seldom needed

            self._loop = self._loop if self._loop and self._loop.alive else PrivateLoop()
            for index, value in zip(waiting, self._loop.gather([returned[i] for i in waiting], limit), strict=True):
                returned[index] = value
        return [read_result(value, log) for value, log in zip(returned, logs, strict=True)]

    def _retry(self, function: Function, rows: Rows, failed: Result) -> Result:
        """Score sample by sample; gives up, with the batch's own failure, if not one of the first samples works."""
        count = len(rows)
        limit = None if self.timeout is None else self.timeout / _RETRY_PROBES
        results = self._invoke([(function, rows.only(index)) for index in range(min(count, _RETRY_PROBES))], limit)
        if all(result.error is not None for result in results):
            return failed
        results += self._invoke([(function, rows.only(index)) for index in range(len(results), count)], limit)
        joined = Result(CallLog(count))
        if failed.error is not None:
            joined.log.problem(f"{what_went_wrong(failed.error)} on the whole batch and was called sample by sample")
        for index, result in enumerate(results):
            joined.values += result.values
            joined.failed += result.failed
            joined.log.merge(result.log, index)
        return joined


def completion_text(completion: str | Sequence[Message]) -> str:
    """The text of a completion as reward functions get it: plain, or the last message of a conversation."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    return content if isinstance(content, str) else ""


def _collect(names: Sequence[str], weights: Sequence[float], results: Sequence[Result]) -> Rewards:
    """Sum up sample by sample, and bring the functions' logs together."""
    count = results[0].log.count
    counting = [(weight, result) for weight, result in zip(weights, results, strict=True) if weight]
    total = []
    for index in range(count):
        parts = [weight * result.values[index] for weight, result in counting if not math.isnan(result.values[index])]
        failed = any(result.failed[index] for _, result in counting)
        amount = sum(parts)
        total.append(math.nan if failed or not parts or not math.isfinite(amount) else amount)
    rewards = Rewards(total, {name: result.values for name, result in zip(names, results, strict=True)})
    metrics: dict[str, list[float]] = {}
    for name, log in zip(names, (result.log for result in results), strict=True):
        rewards.extras.update(log.extras)
        for metric, numbers in log.metrics.items():
            metrics.setdefault(metric, []).extend(numbers)
        rewards.problems.extend(_problem_lines(name, log))
    rewards.metrics.update({metric: sum(numbers) / len(numbers) for metric, numbers in metrics.items()})
    return rewards


def _problem_lines(name: str, log: CallLog) -> list[str]:
    """The commonest reasons, one line each; messages that quote the sample could fill a screen at every step."""
    reasons = sorted(log.problems.items(), key=lambda item: -item[1])
    lines = [
        f"reward function {name!r} {reason}" + (f": {samples} of {log.count} samples not scored" if samples else "")
        for reason, samples in reasons[:_REASONS_SHOWN]
    ]
    if len(reasons) > _REASONS_SHOWN:
        lines.append(f"reward function {name!r} had {len(reasons) - _REASONS_SHOWN} more kinds of problems")
    return lines


def _require_function(function: Any, position: int) -> None:
    torch = sys.modules.get("torch")  # who passes a module has imported it
    kind = None
    if not callable(function):
        kind = f"a {type(function).__name__}"
    elif inspect.isclass(function):
        kind = f"the class {function.__name__}, not an instance of it"
    elif torch is not None and isinstance(function, torch.nn.Module):
        kind = f"the model {type(function).__name__} (wrap it in a function that returns its scores)"
    if kind:
        raise UserError(f"reward_funcs: entry {position} is {kind}; it must be a function of completions and columns")


def _unique_names(functions: Sequence[RewardFunction]) -> list[str]:
    """`__name__`, or the class's for an object; the second `f` becomes `f_2`."""
    names: list[str] = []
    for function in functions:
        inner: Any = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        base = name = str(getattr(inner, "__name__", type(inner).__name__))
        number = 1
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names.append(name)
    return names


def _checked_weights(weights: Sequence[float] | None, names: Sequence[str]) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * len(names)
    if len(weights) != len(names):
        raise UserError(
            f"--reward-weights: {len(weights)} weights for {len(names)} reward functions ({', '.join(names)}); "
            "give one each"
        )
    checked = tuple(float(weight) for weight in weights)
    if not all(math.isfinite(weight) for weight in checked) or not any(checked):
        raise UserError(f"--reward-weights: {list(weights)} must be finite numbers, and one of them not 0")
    return checked
