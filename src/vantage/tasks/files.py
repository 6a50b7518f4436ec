"""Tasks made of the user's own data: JSONL, Parquet, Hub datasets, and datasets in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vantage.errors import UserError
from vantage.plugins import did_you_mean
from vantage.rewards.calls import DROPPED_COLUMNS
from vantage.rewards.functions import RewardFunction
from vantage.tasks.base import LazyProblems, Message, Problem, Prompt, Task
from vantage.tasks.readers import Row, Source, read_source, source_of

_DOMAIN_COLUMNS = ("domain", "data_source")  # the second is verl's
_HELD_OUT_ONE_IN = 10
_HELD_OUT_MOST = 1000


def read_task(
    spec: str, *, eval_spec: str | None = None, prompt_column: str = "prompt", domain_column: str | None = None
) -> Task:
    """The task of a data file or Hub dataset (see `read_source` for the forms of `spec`), without reward functions.

    Args:
        spec: Data to train on.
        eval_spec: Data to evaluate on. Default: the last tenth of the training data, 1000 rows at most, which is then
            not trained on.
        prompt_column: Column of the prompts: text, or a conversation as a list of messages.
        domain_column: Column that becomes `Problem.domain`. Default: `domain` or verl's `data_source` if there is one.

    Raises:
        UserError: a file is missing, corrupt or empty, a column is missing, or rows differ in kind.
    """
    return DatasetTask(
        read_source(spec),
        name=spec,
        evaluation=read_source(eval_spec, "eval_spec") if eval_spec else None,
        prompt_column=prompt_column,
        domain_column=domain_column,
    )


def from_dataset(
    data: Any,
    *,
    evaluation: Any = None,
    prompt_column: str = "prompt",
    domain_column: str | None = None,
    reward_funcs: Sequence[RewardFunction] = (),
    name: str = "train_data",
) -> Task:
    """The task of a `datasets.Dataset`, a list of dicts or any sequence of mappings; arguments as for `read_task`."""
    return DatasetTask(
        source_of(data, name),
        name=name,
        evaluation=None if evaluation is None else source_of(evaluation, "eval_data"),
        prompt_column=prompt_column,
        domain_column=domain_column,
        reward_funcs=reward_funcs,
    )


class DatasetTask(Task):
    """Problems from rows. All prompts are checked at once, all else of a row when its problem is asked for."""

    version = "1"

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        evaluation: Source | None = None,
        prompt_column: str = "prompt",
        domain_column: str | None = None,
        reward_funcs: Sequence[RewardFunction] = (),
    ) -> None:
        self.name = name
        self.reward_funcs = tuple(reward_funcs)
        table = _Table(source, prompt_column, domain_column)
        count = len(source.rows)
        held_out = 0 if evaluation else min(count // _HELD_OUT_ONE_IN, _HELD_OUT_MOST)
        self._rows = count
        self.train = LazyProblems(table.problem, range(count - held_out))
        if evaluation:
            other = _Table(evaluation, prompt_column, domain_column)
            self._held_out = LazyProblems(other.problem, range(len(evaluation.rows)))
        else:
            self._held_out = LazyProblems(table.problem, range(count - held_out, count))

    def evaluation(self, n: int) -> Sequence[Problem]:
        """`n` held-out rows, evenly spaced since files are often sorted; all of them where there are fewer."""
        available = len(self._held_out)
        if not available:
            raise UserError(
                f"--task {self.name}: {self._rows} rows are too few to hold a tenth of them out for evaluation; "
                f"bring {_HELD_OUT_ONE_IN} or more, or evaluation data of their own"
            )
        count = min(n, available)
        return LazyProblems(self._held_out.__getitem__, [index * available // count for index in range(count)])


@dataclass(frozen=True)
class _Table:
    """A source whose columns have been checked; makes problems of its rows."""

    source: Source
    prompt_column: str
    domain_column: str | None

    def __post_init__(self) -> None:
        columns = self.source.columns()
        for option, column in (("--prompt-column", self.prompt_column), ("domain_column", self.domain_column)):
            if column is not None and column not in columns:
                raise UserError(
                    f"{self.source.name}: it has no column {column!r} ({option}), it has: {', '.join(columns)}"
                    f"{did_you_mean(column, columns)}"
                )
        if not self.source.columnar:
            self._check_keys(set(columns))
        kind: type | None = None
        for index, value in enumerate(self.source.values(self.prompt_column)):
            prompt = _prompt(value)
            if isinstance(prompt, _Wrong):
                raise UserError(
                    f"{self.source.name}: {self.source.place(index)}, column {self.prompt_column!r}: {prompt.reason}"
                )
            kind = kind or type(prompt)
            if type(prompt) is not kind:
                raise UserError(
                    f"{self.source.name}: {self.source.place(index)} has a prompt of another kind than "
                    f"{self.source.place(0)}; make all of them text or all of them lists of messages"
                )

    def problem(self, index: int) -> Problem:
        row = self.source.rows[index]
        prompt = _prompt(row[self.prompt_column])
        if isinstance(prompt, _Wrong):
            raise UserError(f"{self.source.name}: {self.source.place(index)}: {prompt.reason}")
        left_out = (self.prompt_column, *DROPPED_COLUMNS)
        columns = {str(name): value for name, value in row.items() if name not in left_out}
        return Problem(prompt=prompt, columns=columns, domain=self._domain(row))

    def _domain(self, row: Row) -> str:
        names = (self.domain_column,) if self.domain_column else _DOMAIN_COLUMNS
        return next((str(row[name]) for name in names if row.get(name) is not None), "default")

    def _check_keys(self, expected: set[str]) -> None:
        for index in range(len(self.source.rows)):
            row = self.source.rows[index]
            place = f"{self.source.name}: {self.source.place(index)}"
            if not isinstance(row, Mapping):
                raise UserError(f"{place} is a {type(row).__name__}, it must be a mapping")
            if row.keys() != expected:
                lacking, first = sorted(expected - row.keys(), key=str), self.source.place(0)
                verb, names = ("lacks", lacking) if lacking else ("adds", sorted(row.keys() - expected, key=str))
                raise UserError(
                    f"{place} {verb} the column {', '.join(map(repr, names))} compared with {first}; "
                    "reward functions need the same columns in every row"
                )


@dataclass(frozen=True)
class _Wrong:
    """Why a value is no prompt."""

    reason: str


def _prompt(value: Any) -> Prompt | _Wrong:
    """The value as a prompt. Arrow fills keys that a message lacks with None; these are taken out again."""
    if isinstance(value, str):
        return str(value) or _Wrong("the prompt is empty")
    if hasattr(value, "tolist"):  # pandas gives out lists as numpy arrays
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return _Wrong(f"a prompt is text or a list of messages, this is a {type(value).__name__}")
    if not value:
        return _Wrong("the prompt has no messages")
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, Mapping):
            return _Wrong(f'a message is {{"role": ..., "content": ...}}, this is a {type(message).__name__}')
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                return _Wrong(f"a message's {key!r} must be text, here it is {type(message.get(key)).__name__}")
        messages.append({key: content for key, content in message.items() if content is not None})
    return messages
