"""Tasks made of the user's own data: JSONL, Parquet, Hub datasets, and datasets in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vantage.answers import final_answer
from vantage.errors import UserError
from vantage.plugins import did_you_mean
from vantage.rewards.functions import RewardFunction
from vantage.tasks.base import LazyProblems, Problem, Task
from vantage.tasks.readers import Source, read_source, source_of
from vantage.tasks.rowformat import RowError, RowFormat, as_prompt

_HELD_OUT_ONE_IN = 10
_HELD_OUT_MOST = 1000


def read_task(
    spec: str,
    *,
    eval_spec: str | None = None,
    prompt_column: str = "prompt",
    answer_column: str | None = None,
    domain_column: str | None = None,
    prompt_template: str | None = None,
    system_prompt: str | None = None,
    hold_out: bool = True,
) -> Task:
    """The task of a data file or Hub dataset (see `read_source` for the forms of `spec`), without reward functions.

    Args:
        spec: Data to train on.
        eval_spec: Data to evaluate on. Default: the last tenth of the training data, 1000 rows at most, which is then
            not trained on.
        prompt_column, answer_column, domain_column, prompt_template, system_prompt: See `vantage.tasks.rowformat`.
        hold_out: Whether rows are held out where there is no `eval_spec`; without, all are trained on.

    Raises:
        UserError: a file is missing, corrupt or empty, a column is missing, or rows differ in kind.
    """
    return DatasetTask(
        read_source(spec),
        name=spec,
        evaluation=read_source(eval_spec, "eval_spec") if eval_spec else None,
        form=RowFormat(prompt_column, answer_column, domain_column, prompt_template, system_prompt),
        hold_out=hold_out,
    )


def from_dataset(
    data: Any,
    *,
    evaluation: Any = None,
    prompt_column: str = "prompt",
    answer_column: str | None = None,
    domain_column: str | None = None,
    prompt_template: str | None = None,
    system_prompt: str | None = None,
    hold_out: bool = True,
    reward_funcs: Sequence[RewardFunction] = (),
    name: str = "train_data",
) -> Task:
    """The task of a `datasets.Dataset`, a list of dicts or any sequence of mappings; arguments as for `read_task`."""
    return DatasetTask(
        source_of(data, name),
        name=name,
        evaluation=None if evaluation is None else source_of(evaluation, "eval_data"),
        form=RowFormat(prompt_column, answer_column, domain_column, prompt_template, system_prompt),
        reward_funcs=reward_funcs,
        hold_out=hold_out,
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
        form: RowFormat,
        reward_funcs: Sequence[RewardFunction] = (),
        hold_out: bool = True,
    ) -> None:
        self.name = name
        self.reward_funcs = tuple(reward_funcs)
        table = _Table(source, form)
        count = len(source.rows)
        held_out = held_out_rows(count) if hold_out and not evaluation else 0
        self._rows = count
        self.train = LazyProblems(table.problem, range(count - held_out))
        if evaluation:
            other = _Table(evaluation, form)
            self._held_out = LazyProblems(other.problem, range(len(evaluation.rows)))
        else:
            self._held_out = LazyProblems(table.problem, range(count - held_out, count))

    def evaluation(self, n: int) -> Sequence[Problem]:
        """`n` held-out rows, evenly spaced since files are often sorted; all of them where there are fewer."""
        if not len(self._held_out):
            if self._rows >= _HELD_OUT_ONE_IN:
                raise UserError(f"--task {self.name}: no rows were held out for evaluation, all are trained on")
            raise UserError(
                f"--task {self.name}: {self._rows} rows are too few to hold a tenth of them out for evaluation; "
                f"bring {_HELD_OUT_ONE_IN} or more, name other data with --eval-task, or give --eval-problems 0"
            )
        return evenly(self._held_out, n)

    def answer_of(self, response: str) -> str | None:
        """The answer that a response marks as its last, see `vantage.answers.final_answer`."""
        return final_answer(response)


def held_out_rows(count: int) -> int:
    """How many of `count` rows are kept from training where there is no evaluation data."""
    return min(count // _HELD_OUT_ONE_IN, _HELD_OUT_MOST)


def evenly(problems: Sequence[Problem], n: int) -> Sequence[Problem]:
    """`n` of the problems, evenly spaced; all where there are fewer."""
    available = len(problems)
    count = min(n, available)
    return LazyProblems(problems.__getitem__, [index * available // count for index in range(count)])


@dataclass(frozen=True)
class _Table:
    """A source whose columns have been checked; makes problems of its rows."""

    source: Source
    form: RowFormat

    def __post_init__(self) -> None:
        columns = self.source.columns()
        for option, column in self.form.named():
            if column not in columns and (option != "--answer-column" or self.form.answer_column not in columns):
                raise UserError(
                    f"{self.source.name}: it has no column {column!r} ({option}), it has: {', '.join(columns)}"
                    f"{did_you_mean(column, columns)}"
                )
        if not self.source.columnar:
            self._check_keys(set(columns))
        column = self.form.prompt_column
        kind: type | None = None
        for index, value in enumerate(self.source.values(column)):
            try:
                prompt = as_prompt(value)
            except RowError as wrong:
                raise UserError(f"{self.source.name}: {self.source.place(index)}, column {column!r}: {wrong}") from None
            kind = kind or type(prompt)
            if type(prompt) is not kind:
                raise UserError(
                    f"{self.source.name}: {self.source.place(index)} has a prompt of another kind than "
                    f"{self.source.place(0)}; make all of them text or all of them lists of messages"
                )
        self.problem(0)  # whether template and answer fit is seen at the first row

    def problem(self, index: int) -> Problem:
        row = self.source.rows[index]
        try:
            return Problem(self.form.prompt(row), self.form.columns(row), self.form.domain(row))
        except RowError as wrong:
            raise UserError(f"{self.source.name}: {self.source.place(index)}: {wrong}") from None

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
