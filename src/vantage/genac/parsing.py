"""What did the critic say? The one tag with an integer 0..10 in its completion, strictly; and what that was worth."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vantage.errors import UserError

TOP = 10
"""Scores are 0 … 10; a value is a tenth of one."""


@dataclass(frozen=True)
class Tag:
    """The texts around the score. The closing one ends a completion and stays in it, so that it is learned."""

    opening: str = "<score>"
    closing: str = "</score>"

    def __post_init__(self) -> None:
        for name, text in (("opening", self.opening), ("closing", self.closing)):
            if not text or text != text.strip() or re.search(r"[0-9]", text):
                raise UserError(
                    f"the {name} tag of the score is {text!r}; it needs a text without spaces around and digits"
                )

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """A whole tag with an integer 0..10 without leading zero; white space around the number is fine."""
        return re.compile(rf"{re.escape(self.opening)}\s*(10|[0-9])\s*{re.escape(self.closing)}")

    def score(self, completion: str) -> int | None:
        """The score in a completion; None unless there is exactly one well-formed tag.

        Only what the critic wrote may be given: tags in its prompt or in the solver's text are not its answer.
        """
        found = self.pattern.findall(completion)
        return int(found[0]) if len(found) == 1 else None

    def value(self, completion: str) -> float | None:
        """The score as a probability: a tenth of it. None is a failure, and never stands for 0."""
        score = self.score(completion)
        return None if score is None else score / TOP

    def label(self, score: int) -> str:
        """How a score is written."""
        return f"{self.opening}{score}{self.closing}"

    def endings(self) -> list[str]:
        """What may follow the opening tag, one text a score, the closing tag included: `1` and `10` begin alike."""
        return [f"{score}{self.closing}" for score in range(TOP + 1)]


def score_of(value: float) -> int:
    """The score for a probability: ⌊10 v + ½⌋."""
    if not 0 <= value <= 1:
        raise ValueError(f"{value} is no probability")
    return math.floor(TOP * value + 0.5)


def critic_reward(target: float, value: float | None) -> float:
    """1 − (r − v)², and 0 for a completion that can not be parsed.

    It is proper: its expectation over r is highest at the grid point nearest to P(r = 1). Raises `ValueError` for a
    target outside of [0, 1] or one that is not finite.
    """
    if not 0 <= target <= 1:
        raise ValueError(f"the target {target} is not in [0, 1]")
    return 0.0 if value is None else 1.0 - (target - value) ** 2


def expected_value(logp: Sequence[float]) -> float:
    """Mean value under the eleven labels' log-probs, which are normalised among themselves."""
    most = max(logp)
    weights = [math.exp(x - most) for x in logp]
    return math.fsum(w * score / TOP for score, w in enumerate(weights)) / math.fsum(weights)
