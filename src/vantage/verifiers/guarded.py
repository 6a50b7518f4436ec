"""How do verifiers that read hostile text in Python (`tools`, `instructions`, `gym`) come to be unable to harm a run?

They judge in worker processes (`workers`), which have given up whatever judging does not need, behind a cache (`cache`). A
response that takes its judge's time, memory or life scores 0 if an empty response to the same row can be judged; what remains
unjudged has a problem of the row's own. Rows are looked at for faults in these processes too: a schema's `pattern` is a
regular expression of whoever wrote the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vantage.errors import UserError
from vantage.verifiers.base import BatchVerifier, UnjudgedError, Verdict
from vantage.verifiers.cache import Cached
from vantage.verifiers.worker import make as made
from vantage.verifiers.workers import Isolated, WorkerLimits

LIMITS = WorkerLimits(seconds=5.0)
MOST_SLOW_ROWS = 3
"""Rows that may take a worker's time or life while they are looked at; after these no more are."""


class Inside:
    """A verifier as a worker has it: asked for the score of None, it says what is wrong with the row.

    Args:
        make: `MODULE:NAME` or `FILE.py:NAME` of the verifier.
        options: its keywords.
    """

    def __init__(self, make: str, options: Mapping[str, Any]) -> None:
        self.verifier = made(make, options)
        self.name, self.version = self.verifier.name, self.verifier.version

    def prepare(self) -> None:
        """Whatever the first response should not pay for."""
        if hasattr(self.verifier, "prepare"):
            self.verifier.prepare()

    def score(self, text: str | None, columns: Mapping[str, Any]) -> float | None:
        """The verifier's score; of None 1, or `UnjudgedError` with the verifier's complaint."""
        if text is None:
            said = self.verifier.complaint(columns)
            if said is not None:
                raise UnjudgedError(said)
            return 1.0
        score: float | None = self.verifier.score(text, columns)
        return score


class Guarded(BatchVerifier):
    """A verifier with `score` and `complaint` in worker processes, behind a cache.

    Args:
        make: what gives the verifier, see `vantage.verifiers.workers.Isolated`.
        options: its keywords.
        columns: names of the columns that it reads; others are not sent, and do not count for the cache.
        workers: processes; by default one a core, at most 8.
        limits: time and memory of each.

    Raises:
        UserError: there is no such verifier, or it can not be isolated.
    """

    def __init__(
        self,
        make: str,
        options: Mapping[str, Any] | None = None,
        *,
        columns: Sequence[str],
        workers: int | None = None,
        limits: WorkerLimits = LIMITS,
    ) -> None:
        inside = {"make": make, "options": dict(options or {})}
        self._isolated = Isolated(
            "vantage.verifiers.guarded:Inside", inside, columns=columns, count=workers, limits=limits, confined=True
        )
        self.name, self.version = self._isolated.name, self._isolated.version
        self._judge = Cached(self._isolated, columns=columns)
        self._slow_rows = 0

    def judge(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """A verdict a response."""
        verdicts = self._judge.judge(texts, rows)
        fatal = [index for index, verdict in enumerate(verdicts) if verdict.fatal]
        if fatal:
            innocent = self._judge.judge([""] * len(fatal), [rows[index] for index in fatal])
            for index, alone in zip(fatal, innocent, strict=True):
                if alone.score is not None:
                    verdicts[index] = Verdict(0.0, verdicts[index].note)
        return verdicts

    def complaint(self, columns: Mapping[str, Any]) -> str | None:
        """What is wrong with the columns of a row, in one line; None if nothing.

        Raises:
            UserError: the verifier lacks a package to read them with.
        """
        if self._slow_rows >= MOST_SLOW_ROWS:
            return None
        [verdict] = self._judge.judge([None], [columns])  # type: ignore[list-item]
        if verdict.fatal:
            self._slow_rows += 1
            return f"looking at its columns {verdict.note}"
        note = verdict.note
        if note is not None and note.startswith("raised UserError: "):
            raise UserError(note.removeprefix("raised UserError: "))
        return note

    def close(self) -> None:
        """End the worker processes; more work starts new ones."""
        self._isolated.close()
