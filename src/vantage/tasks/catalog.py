r"""Which datasets have a name of their own? For each one: where it lies, its columns, its prompt and its verifier.

`--task gsm8k` needs nothing else. Rows are read when the first problem is asked for: from `$VANTAGE_DATA` where there is
a copy (see `vantage.tasks.readers.hub_split`), else through `datasets` from its cache or the Hub.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from vantage.answers import after_hashes, boxed, final_answer
from vantage.errors import UserError
from vantage.plugins import did_you_mean
from vantage.rewards.verifiers import verifier_reward
from vantage.tasks.base import LazyProblems, Problem, Task
from vantage.tasks.files import evenly, held_out_rows
from vantage.tasks.readers import Row, Source, hub_split, require_rows
from vantage.tasks.rowformat import RowError, RowFormat

VERSION = "1"
"""Of the prompts below and of how answers are read; the verifier has a version of its own."""
BOXED = "{prompt}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
FUNCTION = "Complete this Python function. Answer with the whole function in one ```python block.\n\n{prompt}"
TESTED = (
    "{prompt}\n\nWrite it in Python. Your code must pass these tests:\n\n{test_list}\n\n"
    "Answer with the code alone, in one ```python block."
)
CONTEST = (
    "{prompt}\n\n{starter_code}\n\nSolve this in Python. Where a beginning is given above, complete it; else read standard "
    "input and print to standard output. Answer with the whole program in one ```python block."
)


@dataclass(frozen=True)
class Dataset:
    """A dataset with a name of its own.

    Attributes:
        hub: Its id on the Hub.
        prompt: Column of the problem statement.
        answer: Column of the reference answer, or what reads it out of a row; None where the verifier reads others.
        config: Its configuration on the Hub.
        train: Split to train on; None where it is for evaluation only.
        evaluation: Split to evaluate on; None holds a tenth of the training split out, at most 1000 rows.
        template: The prompt, see `vantage.tasks.rowformat.fill`.
        verifier: What judges responses, see `vantage.rewards.verifiers`.
        max_new_tokens: Response length that it proposes, in tokens.
        extra: Columns that are made out of the row for the verifier.
        about: What it is, in a few words, with its number of rows.
    """

    hub: str
    prompt: str
    answer: str | Callable[[Row], Any] | None = "answer"
    config: str | None = None
    train: str | None = None
    evaluation: str | None = "test"
    template: str = BOXED
    verifier: str = "math"
    max_new_tokens: int = 8192
    extra: Mapping[str, Callable[[Row], Any]] = field(default_factory=dict)
    about: str = ""


def hashes_answer(row: Row) -> str | None:
    """GSM8K: what follows `####` in the worked solution."""
    found = after_hashes(str(row["answer"]))
    return found.replace(",", "") if found else None


def boxed_answer(row: Row) -> str | None:
    """MATH: what the worked solution boxes."""
    return boxed(str(row["solution"]))


def joined_answer(row: Row) -> str | None:
    """OlympiadBench: a list of answers, in nearly every row of one."""
    found = row["final_answer"]
    return ", ".join(map(str, found)) if isinstance(found, list | tuple) else found


def contest_tests(row: Row) -> list[Any]:
    """LiveCodeBench: public and hidden tests. The hidden ones are JSON, or JSON in a pickled string, compressed."""
    return [*json.loads(row["public_test_cases"]), *json.loads(_unpacked(row["private_test_cases"]))]


def _unpacked(cell: str) -> str:
    if cell.lstrip()[:1] == "[":
        return cell
    text = _TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(cell)))).load()
    if not isinstance(text, str):
        raise pickle.UnpicklingError(f"a {type(text).__name__} where text was expected")
    return text


class _TextOnly(pickle.Unpickler):
    """Reads built-in data and nothing else: a dataset must not be able to run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


CATALOG: dict[str, Dataset] = {
    "gsm8k": Dataset(
        "openai/gsm8k", "question", hashes_answer, config="main", train="train", max_new_tokens=1024,
        about="grade-school word problems, 7,473 and 1,319",
    ),
    "math": Dataset(
        "DigitalLearningGmbH/MATH-lighteval", "problem", boxed_answer, config="default", train="train",
        max_new_tokens=4096, about="competition mathematics, 7,500 and 5,000",
    ),
    "dapo-math": Dataset(
        "open-r1/DAPO-Math-17k-Processed", "prompt", "solution", config="en", train="train", evaluation=None,
        about="DAPO-Math-17K without duplicates, English, integer answers, 14,116",
    ),
    "math500": Dataset(
        "HuggingFaceH4/MATH-500", "problem", max_new_tokens=4096, about="500 of MATH's test problems",
    ),
    "aime24": Dataset("HuggingFaceH4/aime_2024", "problem", evaluation="train", about="AIME 2024, 30"),
    "aime25": Dataset("math-ai/aime25", "problem", about="AIME 2025, 30"),
    "aime26": Dataset("MathArena/aime_2026", "problem", evaluation="train", about="AIME 2026, 30"),
    "amc23": Dataset("math-ai/amc23", "question", about="AMC 2023, 40"),
    "hmmt25": Dataset("MathArena/hmmt_feb_2025", "problem", evaluation="train", about="HMMT February 2025, 30"),
    "brumo25": Dataset("MathArena/brumo_2025", "problem", evaluation="train", about="BRUMO 2025, 30"),
    "olympiadbench": Dataset(
        "math-ai/olympiadbench", "question", joined_answer, about="OlympiadBench, English mathematics in text, 674",
    ),
    "minerva": Dataset("math-ai/minervamath", "question", about="undergraduate quantitative problems, 272"),
    "ifeval": Dataset(
        "google/IFEval", "prompt", None, evaluation="train", template="{prompt}", verifier="instructions",
        max_new_tokens=2048, about="checkable instructions, 541",
    ),
    "humaneval": Dataset(
        "openai/openai_humaneval", "prompt", None, template=FUNCTION, verifier="code", max_new_tokens=2048,
        about="functions from docstrings, 164",
    ),
    "mbpp": Dataset(
        "google-research-datasets/mbpp", "text", None, config="full", train="train", template=TESTED, verifier="code",
        max_new_tokens=2048, about="short functions, 374 and 500",
    ),
    "livecodebench": Dataset(
        "livecodebench/code_generation_lite", "question_content", None, config="release_latest", template=CONTEST,
        verifier="code", extra={"tests": contest_tests}, about="contest programs, 1,055; some gigabytes of tests",
    ),
}  # fmt: skip
DOMAINS = {"math": "math", "code": "code"}
"""Verifier to the domain of its problems; all others are `other`, as in POISE's three probes."""


class CatalogTask(Task):
    """A dataset of the catalogue as a task. `prompt_template` and `system_prompt` replace and precede its prompts.

    Without `hold_out` a dataset without a split for evaluation is trained on whole.
    """

    reward_range = (0.0, 1.0)

    def __init__(
        self,
        name: str,
        prompt_template: str | None = None,
        system_prompt: str | None = None,
        hold_out: bool = True,
    ) -> None:
        self.name = name
        self._hold_out = hold_out
        self.dataset = dataset = CATALOG[name]
        judge = verifier_reward(dataset.verifier, f"--task {name}")
        self.reward_funcs = (judge,)
        self.version = f"{VERSION} {judge.verifier_version}"  # type: ignore[attr-defined]
        self.max_new_tokens = dataset.max_new_tokens
        template = prompt_template or dataset.template
        self._form = RowFormat(dataset.prompt, prompt_template=template, system_prompt=system_prompt)
        self._sources: dict[str, Source] = {}
        self.train = Deferred(self._training)

    def evaluation(self, n: int) -> Sequence[Problem]:
        """`n` problems of the split for evaluation, evenly spaced, or all where there are fewer; raises `UserError`."""
        if self.dataset.evaluation is not None:
            return evenly(self._problems(self.dataset.evaluation), n)
        assert self.dataset.train is not None
        every = self._problems(self.dataset.train)
        held_out = held_out_rows(len(every))
        if not self._hold_out:
            raise UserError(f"--task {self.name}: no rows were held out for evaluation, all are trained on")
        if not held_out:
            raise UserError(f"--task {self.name}: {len(every)} rows are too few to hold some out; bring ten or more")
        return evenly(every[len(every) - held_out :], n)

    def answer_of(self, response: str) -> str | None:
        """The marked answer where the verifier compares answers; None for programs and texts."""
        return final_answer(response) if self.dataset.verifier == "math" else None

    def _training(self) -> Sequence[Problem]:
        if self.dataset.train is None:
            raise UserError(
                f"--task {self.name}: this benchmark is for evaluation only; train on {', '.join(trainable())}, and "
                f"measure with `vantage eval MODEL --task {self.name}`"
            )
        every = self._problems(self.dataset.train)
        if self.dataset.evaluation or not self._hold_out:
            return every
        return every[: len(every) - held_out_rows(len(every))]

    def _problems(self, split: str) -> LazyProblems:
        if split not in self._sources:
            self._sources[split] = self._read(split)
        source = self._sources[split]
        return LazyProblems(lambda index: self._problem(source, index), range(len(source.rows)))

    def _read(self, split: str) -> Source:
        dataset = self.dataset
        source = require_rows(hub_split(dataset.hub, dataset.config, split, f"--task {self.name}", alias=self.name))
        columns = source.columns()
        needed = [dataset.prompt, *([dataset.answer] if isinstance(dataset.answer, str) else [])]
        for column in needed:
            if column not in columns:
                raise UserError(
                    f"{source.name}: its rows have no column {column!r}, they have: {', '.join(columns)}"
                    f"{did_you_mean(column, columns)}"
                )
        return source

    def _problem(self, source: Source, index: int) -> Problem:
        row, dataset = source.rows[index], self.dataset
        try:
            prompt, columns = self._form.prompt(row), self._form.columns(row)
            columns |= {name: make(row) for name, make in dataset.extra.items()}
            if dataset.answer is not None:
                answer = dataset.answer(row) if callable(dataset.answer) else row[dataset.answer]
                if answer is None or not str(answer).strip():
                    raise RowError("it has no answer")
                columns["answer"] = str(answer)
        except KeyError as error:
            raise UserError(f"{source.name}: {source.place(index)} has no column {error}") from error
        except (ValueError, pickle.UnpicklingError, zlib.error, EOFError) as error:
            raise UserError(f"{source.name}: {source.place(index)} can not be used: {error}") from error
        return Problem(prompt, columns, DOMAINS.get(dataset.verifier, "other"))


def trainable() -> list[str]:
    """Names of the datasets that have a split to train on."""
    return [name for name, dataset in CATALOG.items() if dataset.train]


class Deferred(Sequence[Problem]):
    """Problems that are loaded when the first of them, or their number, is asked for."""

    def __init__(self, load: Callable[[], Sequence[Problem]]) -> None:
        self._load = load
        self._loaded: Sequence[Problem] | None = None

    def _problems(self) -> Sequence[Problem]:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def __len__(self) -> int:
        return len(self._problems())

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | Sequence[Problem]:
        return self._problems()[index]
