"""The embedded world `sums`: additions such as `17+5+88+4=`, solved by running sums, one a line."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vantage.rewards.functions import completion_text
from vantage.tasks.base import Message, Problem, SolvedInLines
from vantage.tasks.embedded import EmbeddedTask, falls_outside


@dataclass(frozen=True)
class Split:
    """A distribution of problems: numbers of terms in equal shares, and each number's digits in equal shares.

    `max_new_tokens` leaves about a third more than the longest solution and its end token take at one character a
    token (59, 92 and 75 tokens).
    """

    terms: tuple[int, ...]
    digits: tuple[int, ...]
    max_new_tokens: int


SPLITS = {
    "": Split(terms=(2, 3, 4, 5, 6), digits=(1, 2), max_new_tokens=80),
    "more-terms": Split(terms=(7, 8, 9), digits=(1, 2), max_new_tokens=124),
    "three-digits": Split(terms=(2, 3, 4, 5, 6), digits=(3,), max_new_tokens=100),
}


class Sums(EmbeddedTask[Split], SolvedInLines):
    """Sums of 2 to 6 numbers of one or two digits; the splits `more-terms` and `three-digits` shift that.

    A problem is held out or not by what it adds up, whatever the order: no training problem is an evaluation problem
    with its terms rearranged. A fifth of all problems is held out; some 2,000 of them have two terms, so about 6,000
    can be evaluated before one comes twice. Few of those have one-digit numbers only: two-term problems are somewhat
    larger there than in training. Training problem i depends on the split and on i only; numbers of terms take turns,
    so every stretch of the sequence has them in equal shares.

    Args:
        split: `""`, `more-terms` or `three-digits`.

    Raises:
        UserError: there is no such split.
    """

    world = "sums"
    version = "1"
    step_separator = "\n"
    alphabet = "0123456789+=>\n"

    def __init__(self, split: str = "") -> None:
        super().__init__(sums_reward, SPLITS, split)

    def solution(self, problem: Problem) -> str | None:
        """The trace of the problem's terms, or `None` if it is no problem of this world."""
        terms = parse_prompt(problem.prompt) if isinstance(problem.prompt, str) else None
        return None if terms is None else "\n".join(trace(terms))

    def answer_of(self, response: str) -> str | None:
        """What stands after the last `>`."""
        _, mark, given = response.rpartition(">")
        return given if mark else None

    def complaint(self, problem: Problem) -> str | None:
        """Whether the answer is the sum."""
        terms = parse_prompt(problem.prompt) if isinstance(problem.prompt, str) else None
        right = terms is not None and problem.columns.get("answer") == str(sum(terms))
        return None if right else f"{problem.prompt!r} has the answer {problem.columns.get('answer')!r}"

    def demonstration(self, problem: Problem, slips: float, rng: random.Random) -> str | None:
        """The trace with a wrong digit in each running sum with probability `slips`; what follows builds on it."""
        terms = parse_prompt(problem.prompt) if isinstance(problem.prompt, str) else None
        return None if terms is None else "\n".join(trace(terms, lambda total: _slip(total, slips, rng)))

    def draw(self, rng: random.Random, index: int, held_out: bool) -> Problem:
        """Draw terms until they lie on the wanted side."""
        count = self.split.terms[index % len(self.split.terms)]
        while True:
            terms = [_number(rng, rng.choice(self.split.digits)) for _ in range(count)]
            if is_held_out(terms) == held_out:
                return Problem(prompt=prompt_of(terms), columns={"answer": str(sum(terms))}, domain="sums")


def prompt_of(terms: Sequence[int]) -> str:
    """`17+5+88+4=` for the terms 17, 5, 88, 4."""
    return "+".join(map(str, terms)) + "="


def parse_prompt(prompt: str) -> list[int] | None:
    """The terms of a prompt, or `None` if it is not a sum of two or more numbers."""
    if not re.fullmatch(r"[0-9]+(\+[0-9]+)+=", prompt):
        return None
    return [int(term) for term in prompt[:-1].split("+")]


def trace(terms: Sequence[int], written: Callable[[int], int] = int) -> list[str]:
    """The lines of the correct response: a running sum a line, then `>` and the answer.

    17, 5, 88, 4 gives `17+5=22`, `22+88=110`, `110+4=114`, `>114`. `written` may put down another number than the
    running sum, with which the next line goes on.
    """
    lines, total = [], terms[0]
    for term in terms[1:]:
        before, total = total, written(total + term)
        lines.append(f"{before}+{term}={total}")
    return [*lines, f">{total}"]


def _slip(total: int, probability: float, rng: random.Random) -> int:
    """With this probability the number with one digit replaced by another one."""
    if rng.random() >= probability:
        return total
    digits = list(str(total))
    place = rng.randrange(len(digits))
    digits[place] = rng.choice([d for d in "0123456789" if d != digits[place] and (d != "0" or place)])
    return int("".join(digits))


def is_held_out(terms: Sequence[int]) -> bool:
    """Whether a problem belongs to the held-out side; the order of its terms does not matter."""
    identity = "+".join(map(str, sorted(terms)))
    return falls_outside(identity)


def sums_reward(completions: Sequence[str | list[Message]], answer: Sequence[str], **kwargs: Any) -> list[float]:
    """1 if the text after the last `>` is the answer, character for character, else 0."""
    rewards = []
    for completion, expected in zip(completions, answer, strict=True):
        _, mark, given = completion_text(completion).rpartition(">")
        rewards.append(1.0 if mark and given == expected else 0.0)
    return rewards


def _number(rng: random.Random, digits: int) -> int:
    """A number of that many digits, uniformly; zero is none of them."""
    return rng.randrange(10 ** (digits - 1), 10**digits)
