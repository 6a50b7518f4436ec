"""One call of a reward function: the arguments it gets, what it may log, and how what it returns is read."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vantage.plugins import one_line
from vantage.rewards.limits import TooSlow

if TYPE_CHECKING:
    from vantage.evaluation.ballots import Ballot
    from vantage.rewards.functions import RewardFunction
    from vantage.tasks.base import Prompt

STANDARD_KEYWORDS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
DROPPED_COLUMNS = ("prompt", "completion", "completion_ids")  # as TRL does


class Rows:
    """The arguments of one call; every call gets lists of its own, since functions do pop from them."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
        trainer_state: Any,
    ) -> None:
        lists = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
        for name, values in lists.items():
            if len(values) != len(prompts):
                raise ValueError(f"{name} has {len(values)} entries for {len(prompts)} prompts")
        self._prompts, self._completions, self._completion_ids = prompts, completions, completion_ids
        self._columns = {name: values for name, values in columns.items() if name not in DROPPED_COLUMNS}
        self._trainer_state = trainer_state

    def __len__(self) -> int:
        return len(self._prompts)

    def only(self, index: int) -> Rows:
        """The arguments for one sample."""
        one = slice(index, index + 1)
        columns = {name: values[one] for name, values in self._columns.items()}
        return Rows(self._prompts[one], self._completions[one], self._completion_ids[one], columns, self._trainer_state)

    def keywords(self, log: CallLog) -> dict[str, Any]:
        """All keywords of a call that logs to `log`; standard ones win over columns of the same name."""
        return {
            **{name: list(values) for name, values in self._columns.items()},
            "prompts": list(self._prompts),
            "completions": [
                text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
                for prompt, text in zip(self._prompts, self._completions, strict=True)
            ],
            "completion_ids": [list(ids) for ids in self._completion_ids],
            "trainer_state": self._trainer_state,
            "log_extra": log.extra,
            "log_metric": log.metric,
        }


class CallLog:
    """What a function logged in one call, and what went wrong in it. Thrown away with a call that is made again."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.extras: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}
        self.problems: dict[str, int] = {}  # reason -> samples that it made unscorable

    def extra(self, column: str, values: Iterable[Any]) -> None:
        """What functions get as `log_extra`: a column for the table of samples."""
        values = list(values)
        if len(values) == self.count:
            self.extras[str(column)] = values
        else:
            self.problem(f"log_extra({column!r}) was given {len(values)} values for {self.count} samples, not logged")

    def metric(self, name: str, value: Any) -> None:
        """What functions get as `log_metric`: a scalar, averaged over the calls."""
        number, reason = as_number(value)
        if reason is None and not math.isnan(number):
            self.metrics.setdefault(str(name), []).append(number)
        else:
            self.problem(f"log_metric({name!r}) was given {reason or None}, not logged")

    def problem(self, reason: str, samples: int = 0) -> None:
        """Count a reason, and the samples that it made unscorable."""
        self.problems[reason] = self.problems.get(reason, 0) + samples

    def merge(self, other: CallLog, index: int) -> None:
        """Take over what a call on the one sample `index` logged."""
        for column, values in other.extras.items():
            self.extras.setdefault(column, [None] * self.count)[index] = values[0]
        for name, numbers in other.metrics.items():
            self.metrics.setdefault(name, []).extend(numbers)
        for reason, samples in other.problems.items():
            self.problem(reason, samples)


@dataclass
class Result:
    """One call, read: a value a sample (NaN: none) and whether it failed there; `error` if the call raised."""

    log: CallLog
    values: list[float] = field(default_factory=list)
    failed: list[bool] = field(default_factory=list)
    error: BaseException | None = None


class Function:
    """A reward function, its name, and the keywords that it takes (`accepted` is None for all) and needs."""

    def __init__(self, name: str, function: RewardFunction) -> None:
        self.name = name
        self._function = function
        self._accepted: frozenset[str] | None = None
        self.required: tuple[str, ...] = ()
        try:
            # The wrapper is what gets called, so its parameters count and not those of what it wraps.
            parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())
        except (TypeError, ValueError):  # builtins and extension functions may have no signature
            return
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.required = tuple(p.name for p in named if p.default is p.empty)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            self._accepted = frozenset(p.name for p in named)

    def call(self, rows: Rows, log: CallLog) -> Any:
        """Call it; the result is as the function gave it, to be awaited or not."""
        keywords = rows.keywords(log)
        if self._accepted is not None:
            keywords = {name: value for name, value in keywords.items() if name in self._accepted}
        return self._function(**keywords)

    def complaint(self, columns: Mapping[str, Any]) -> str | None:
        """What the function says is wrong with the columns of one row, where it has a `complaint` method."""
        own = getattr(self._function, "complaint", None)
        return own(columns) if callable(own) else None

    @property
    def ballot(self) -> Ballot | None:
        """How the function reads and compares answers, where it has an attribute `ballot`."""
        return getattr(self._function, "ballot", None)


def read_result(returned: Any, log: CallLog) -> Result:
    """Turn what a call returned or raised into numbers and failures."""
    if isinstance(returned, (KeyboardInterrupt, SystemExit)):  # these are not the function's to fail with
        raise returned
    if isinstance(returned, BaseException):
        log.problem(what_went_wrong(returned), log.count)
        return Result(log, [math.nan] * log.count, [True] * log.count, returned)
    try:
        if isinstance(returned, (str, bytes, Mapping)):
            raise TypeError
        items = list(returned)
    except Exception:
        log.problem(f"returned {type(returned).__name__} instead of a list of numbers", log.count)
        return Result(log, [math.nan] * log.count, [True] * log.count)
    if len(items) != log.count:
        log.problem(f"returned {len(items)} rewards for {log.count} completions", log.count)
        return Result(log, [math.nan] * log.count, [True] * log.count)
    numbers = [as_number(item) for item in items]
    for _, reason in numbers:
        if reason is not None:
            log.problem(f"returned {reason}", 1)
    return Result(log, [number for number, _ in numbers], [reason is not None for _, reason in numbers])


def what_went_wrong(error: BaseException) -> str:
    """`raised ValueError: ...`, or that a call took too long."""
    return str(error) if isinstance(error, TooSlow) else f"raised {one_line(error)}"


def as_number(value: Any) -> tuple[float, str | None]:
    """The value as a float and what is wrong with it; `None` is NaN and right. Takes numpy and torch scalars."""
    if value is None:
        return math.nan, None
    if isinstance(value, complex) or not hasattr(type(value), "__float__"):
        return math.nan, f"{type(value).__name__} where a number is due"
    try:
        number = float(value)
    except Exception as error:
        return math.nan, f"{type(value).__name__} that is no number ({one_line(error, 80)})"
    return (number, None) if math.isfinite(number) else (math.nan, str(number))
