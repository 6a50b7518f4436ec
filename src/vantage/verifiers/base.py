"""What is a verifier, and how does it become a reward function?

A verifier has a name, a version, and `score(text, columns)`: 0 to 1 for a response and the columns of its row, or None where
the response can not be judged. That is all; what follows makes more of it. A verifier that judges a batch faster than one by
one, or that can say why it could not judge, extends `BatchVerifier`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vantage.plugins import one_line
from vantage.rewards.calls import STANDARD_KEYWORDS, as_number
from vantage.rewards.functions import RewardFunction, completion_text


@dataclass(frozen=True)
class Verdict:
    """What became of one response.

    Attributes:
        score: 0 to 1; None where it could not be judged.
        note: What went wrong, such as `took longer than 5 s`. Without a note, None says that the verifier does not apply:
            the row has nothing to judge by.
        fatal: Whether judging this response, and nothing else, took too long, too much memory, or its process's life.
    """

    score: float | None
    note: str | None = None
    fatal: bool = False


class UnjudgedError(Exception):
    """Raised by a verifier that can not judge a response; the message becomes the note."""


class Verifier(Protocol):
    """What every verifier has."""

    @property
    def name(self) -> str:
        """What it is called in logs."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever a score may change."""
        ...

    def score(self, text: str, columns: Mapping[str, Any]) -> float | None:
        """0 to 1, or None where the response can not be judged."""
        ...


class BatchVerifier(ABC):
    """A verifier that judges many responses at once."""

    name: str
    version: str

    @abstractmethod
    def judge(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """A verdict a response; `rows` holds the columns of each one's row."""

    def score(self, text: str, columns: Mapping[str, Any]) -> float | None:
        """The score of one response, None where it can not be judged."""
        return self.judge([text], [columns])[0].score

    def score_many(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """The scores of many."""
        return [verdict.score for verdict in self.judge(texts, rows)]

    def complaint(self, columns: Mapping[str, Any]) -> str | None:
        """What is wrong with the columns of a row, in one line; None if nothing, or if the verifier does not look."""
        return None


def judge(verifier: Verifier, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Verdicts of any verifier. One that raises on a response has not judged it; the others are judged all the same."""
    if len(texts) != len(rows):
        raise ValueError(f"{len(texts)} responses for {len(rows)} rows")
    if isinstance(verifier, BatchVerifier):
        return verifier.judge(texts, rows)
    many: Callable[..., Sequence[Any]] | None = getattr(verifier, "score_many", None)  # a plugin's own way
    if many is not None:
        return [verdict_of(found) for found in many(texts, rows)]
    return [judge_one(verifier, text, row) for text, row in zip(texts, rows, strict=True)]


def judge_one(verifier: Verifier, text: str, columns: Mapping[str, Any]) -> Verdict:
    """The verdict on one response; what the verifier raises becomes a note."""
    try:
        return verdict_of(verifier.score(text, columns))
    except MemoryError:
        raise
    except UnjudgedError as error:
        return Verdict(None, str(error))
    except Exception as error:
        return Verdict(None, f"raised {one_line(error)}")


def verdict_of(found: Any) -> Verdict:
    """What a verifier returned as a verdict: what is no finite number is a problem of the verifier."""
    if isinstance(found, Verdict):
        return found
    number, problem = as_number(found)
    if problem is not None:
        return Verdict(None, f"returned {problem}")
    return Verdict(None if math.isnan(number) else number)


def reward_function(verifier: Verifier) -> RewardFunction:
    """A verifier under the contract of reward functions (`vantage.rewards.functions`).

    A response that the verifier does not apply to gets `None`, and other functions' rewards count alone. One that it could
    not judge gets NaN, so that the sample is left out rather than paid in part. Notes become the sample column `NAME_note`,
    and their share the metric `NAME_notes`. A verifier that compares answers (`vantage.evaluation.ballots.Ballot`) is asked for
    majority votes too.
    """

    def scored(
        completions: Sequence[Any], log_extra: Any = None, log_metric: Any = None, **columns: Any
    ) -> list[float | None]:
        texts = [completion_text(completion) for completion in completions]
        own = {key: values for key, values in columns.items() if key not in STANDARD_KEYWORDS}
        rows = [{key: values[index] for key, values in own.items()} for index in range(len(texts))]
        verdicts = judge(verifier, texts, rows)
        notes = [verdict.note for verdict in verdicts]
        if any(notes) and log_extra is not None:
            log_extra(f"{verifier.name}_note", notes)
        if notes and log_metric is not None:
            log_metric(f"{verifier.name}_notes", sum(note is not None for note in notes) / len(notes))
        return [math.nan if v.score is None and v.note is not None else v.score for v in verdicts]

    scored.__name__ = verifier.name
    scored.verifier_version = f"{verifier.name}-{verifier.version}"  # type: ignore[attr-defined]
    scored.ballot = verifier if hasattr(verifier, "same_answers") else None  # type: ignore[attr-defined]
    return scored
