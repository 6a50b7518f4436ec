r"""Is the answer of a response the reference answer? The verifier `math`.

One answer is taken out of the response (`math_answers`). Plain numbers, fractions, percentages, units and words are compared
exactly and at once (`math_numbers`); everything else goes to math-verify (`math_judge`), in worker processes that are killed
when they take too long (`workers`), through a cache (`cache`).

A response that takes its judge's time, memory or life scores 0 if the reference answer alone can be judged, which is tried
then; what remains unjudged has a problem that is not the response's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vantage.errors import UserError
from vantage.plugins import did_you_mean
from vantage.verifiers.base import BatchVerifier, Verdict
from vantage.verifiers.cache import Cached, VerdictCache
from vantage.verifiers.math_answers import COLUMNS, SOURCES, USUAL, find_answer, reference
from vantage.verifiers.math_judge import installed_version
from vantage.verifiers.math_numbers import agree, number, same_text, text_answer, undressed, unnamed, unspaced
from vantage.verifiers.workers import Isolated, WorkerLimits

JUDGE = "vantage.verifiers.math_judge:MathJudge"
INSTALL = "pip install math-verify"
LONGEST_ANSWER = 1000
"""Characters; a longer answer is wrong, unless the reference is about as long."""
MOST_WORDS = 8
"""Words; an answer of more words is prose, and wrong, unless the reference has about as many."""
LONGEST_REFERENCE = 10_000
"""Characters; what is longer is no answer but a solution without one."""
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


@dataclass(eq=False)
class MathVerifier(BatchVerifier):
    """1 if the answer of a response is the reference answer of its row, else 0; None where the row has none."""

    name = "math"

    column: str | None = None
    """Column of the reference answer; by default the first of `vantage.verifiers.math_answers.COLUMNS` that has one."""
    sources: Sequence[str] = USUAL
    r"""Where an answer is looked for, in this order: boxed (`\boxed{}`), tag (`<answer>`), line (`Answer:`), hashes (`####`),
    phrase (`the answer is`), last (the last `$…$` or number), whole (a short response itself)."""
    think_end: str = "</think>"
    """The tag after which the answer is given; empty if there is none."""
    need_think_end: bool = False
    """A response without this tag has no answer; for templates that open the thinking in the prompt."""
    alternatives: bool = False
    """A list of reference answers has alternatives, of which one is enough. Otherwise it has parts, which are all needed."""
    seconds: float = 5.0
    """Seconds on the clock for one comparison."""
    memory_bytes: int = 2 << 30
    """Memory of a worker process."""
    workers: int | None = None
    """Worker processes; by default one a core, at most 8."""
    cache_file: str | None = None
    """A file that keeps verdicts beyond this run."""
    version: str = field(init=False, default="")
    """Of this verifier and of math-verify."""

    def __post_init__(self) -> None:
        unknown = [source for source in self.sources if source not in SOURCES]
        if unknown or not self.sources or isinstance(self.sources, str):
            hint = did_you_mean(unknown[0], SOURCES) if unknown else ""
            raise UserError(
                f"math verifier: sources must name some of {', '.join(SOURCES)}; got {self.sources!r}{hint}"
            )
        if not self.seconds > 0:
            raise UserError(f"math verifier: seconds must be above 0, got {self.seconds}")
        installed = installed_version()
        if installed is None:
            raise UserError(f"math verifier: it needs the package math-verify, install it with: {INSTALL}")
        self.version = f"1+math-verify-{installed}"
        limits = WorkerLimits(seconds=self.seconds, memory_bytes=self.memory_bytes)
        self._isolated = Isolated(JUDGE, count=self.workers, limits=limits, confined=True)
        self._judge = Cached(self._isolated, VerdictCache(path=self.cache_file))

    def judge(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """A verdict a response."""
        verdicts: list[Verdict | None] = []
        asked: list[tuple[int, str, str]] = []  # place, reference, answer
        for place, (text, row) in enumerate(zip(texts, rows, strict=True)):
            golds = self._references(row)
            answer = self.answer_of(text)
            settled = [_settled(gold, answer) for gold in golds if len(gold) <= LONGEST_REFERENCE]
            if not golds:
                verdicts.append(Verdict(None))
            elif max(map(len, golds)) > LONGEST_REFERENCE:
                verdicts.append(Verdict(None, f"its reference answer has more than {LONGEST_REFERENCE} characters"))
            elif None not in settled or 1.0 in settled:
                verdicts.append(Verdict(max(score for score in settled if score is not None)))
            else:
                verdicts.append(None)
                unsettled = [gold for gold, score in zip(golds, settled, strict=True) if score is None]
                asked += [(place, gold, answer or "") for gold in unsettled]
        found: dict[int, list[Verdict]] = {}
        for (place, _, _), verdict in zip(asked, self._asked([pair[1:] for pair in asked]), strict=True):
            found.setdefault(place, []).append(verdict)
        return [verdict or _best(found[place]) for place, verdict in enumerate(verdicts)]

    def answer_of(self, text: Any) -> str | None:
        """The answer that a response gives, None if it gives none."""
        return find_answer(text, self.sources, self.think_end, self.need_think_end) if isinstance(text, str) else None

    def complaint(self, columns: Mapping[str, Any]) -> str | None:
        """That a row has no reference answer; None if it has one."""
        if self._references(columns):
            return None
        where = f"its column {self.column!r}" if self.column else f"any of its columns {', '.join(COLUMNS)}"
        return f"there is no reference answer in {where}; --answer-column names another one"

    def same_answers(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Of each pair of answers whether the second would be right if the first were the reference.

        One of more than 1,000 characters equals none but itself.
        """
        settled = [float(one == other) if len(one) > LONGEST_ANSWER else _settled(one, other) for one, other in pairs]
        unsettled = [pair for pair, score in zip(pairs, settled, strict=True) if score is None]
        judged = iter(self._compared(unsettled))
        return [(next(judged).score if score is None else score) == 1.0 for score in settled]

    def close(self) -> None:
        """End the worker processes; more work starts new ones."""
        self._isolated.close()

    def _references(self, row: Mapping[str, Any]) -> list[str]:
        parts = reference(row, self.column)
        return parts if self.alternatives or len(parts) < 2 else [", ".join(parts)]

    def _asked(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """What math-verify says of pairs of reference and answer."""
        verdicts = self._compared(pairs)
        golds = sorted({gold for (gold, _), verdict in zip(pairs, verdicts, strict=True) if verdict.fatal})
        alone = dict(zip(golds, self._compared([(gold, gold) for gold in golds]), strict=True))
        return [
            Verdict(0.0, verdict.note) if verdict.fatal and alone[gold].score is not None else verdict
            for (gold, _), verdict in zip(pairs, verdicts, strict=True)
        ]

    def _compared(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        if not pairs:
            return []
        dressed = [(undressed(gold), undressed(answer)) for gold, answer in pairs]
        return self._judge.judge([answer for _, answer in dressed], [{"gold": gold} for gold, _ in dressed])


def _best(verdicts: Sequence[Verdict]) -> Verdict:
    """The best of alternatives; a wrong one says nothing beside one that could not be judged."""
    right = [verdict for verdict in verdicts if verdict.score]
    unjudged = [verdict for verdict in verdicts if verdict.score is None]
    return (right or unjudged or list(verdicts))[0]


def _settled(gold: str, answer: str | None) -> float | None:
    """The score where it is certain without math-verify, None where it is not."""
    if answer is None or len(answer) > max(LONGEST_ANSWER, 2 * len(gold)):
        return 0.0
    wanted, given = undressed(gold), undressed(answer)
    if not given:
        return 0.0
    if unspaced(wanted) == unspaced(given):
        return 1.0
    words = text_answer(gold, wanted)
    if words is not None:
        return float(same_text(words, given))
    if unnamed(wanted) == wanted:  # `x = 5` for 5, and 5 for `x = 5`, but not `y = 5` for `x = 5`
        given = unnamed(given)
    elif unnamed(given) == given:
        wanted = unnamed(wanted)
    if unspaced(wanted) == unspaced(given):
        return 1.0
    numbers = number(wanted), number(given)
    if numbers[0] is None or numbers[1] is None:
        return 0.0 if _is_prose(given, wanted) else None
    if agree(numbers[0], numbers[1]):
        return 1.0
    return None if numbers[0].words or numbers[1].words else 0.0


def _is_prose(answer: str, gold: str) -> bool:
    return len(_WORD.findall(answer)) > max(MOST_WORDS, 2 * len(_WORD.findall(gold)))
