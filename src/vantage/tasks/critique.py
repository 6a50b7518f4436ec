"""What would an oracle say of an unfinished response? For worlds whose solutions are lines of computations and a last one.

Each finished line is written as it should be, then the result that the response has, then `.` where they agree, or `x`. Whole
lines, since to write such lines is what a policy of these worlds has learned; the two results side by side, since a small model
compares neighbours only. Where the last finished line is right (an earlier
error was put right) the number of computations that are left follows, then `:`; a solver that gets each right with
probability q succeeds with qᵐ from m of them, and q is what makes the mean over problems its known success rate. Where the
last line is wrong, so will be the answer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Critique:
    """Reasoning about an unfinished response, and the chance of success that it comes to."""

    text: str
    value: float


def computations(solution: str) -> int:
    """Lines of a solution but the last, which only repeats a result."""
    return solution.count("\n")


def criticise(solution: str, partial: str, step_rate: float) -> Critique:
    """Check a partial response line by line against the solution; an unfinished last line must be the beginning of its own."""
    right, said, fine = solution.split("\n"), [], True
    *whole, rest = partial.split("\n")
    for number, line in enumerate(whole):
        expected = right[number] if number < len(right) else ""
        fine = number < len(right) and result_of(line) == result_of(expected)
        said.append(f"{expected}/{result_of(line)}{'.' if fine else 'x'}")
    expected = right[len(whole)] if len(whole) < len(right) else ""
    if fine and not _may_become(rest, expected):
        fine = False
        said.append(f"{expected}/{result_of(rest)}x")
    if not fine:
        return Critique("".join(said), 0.0)
    left = max(0, len(right) - 1 - len(whole))
    return Critique("".join([*said, f"{left}:"]), step_rate**left)


def result_of(line: str) -> str:
    """What stands behind the last `=` or `>` of a line; empty without one."""
    return line.rpartition("=")[2].rpartition(">")[2] if "=" in line or ">" in line else ""


def _may_become(rest: str, expected: str) -> bool:
    """Whether an unfinished line has no result yet, or the beginning of the right one."""
    return result_of(expected).startswith(result_of(rest))


def success_rate(step_rate: float, counts: Sequence[int]) -> float:
    """Mean over problems of qⁿ, for their numbers of computations n."""
    return math.fsum(step_rate**n for n in counts) / len(counts)


@functools.lru_cache(maxsize=1024)
def step_rate(success: float, counts: tuple[int, ...]) -> float:
    """The q with which a solver has this success rate, to 1e-6, by halving [0, 1]."""
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if success_rate(middle, counts) < success else (low, middle)
    return (low + high) / 2
