"""What would an oracle say of an unfinished response? What all worlds share, and worlds whose solutions are computed in lines.

Each finished line is written as it should be, then the result that the response has, then `.` where they agree, or `x`. Whole
lines, since to write such lines is what a policy of these worlds has learned; the two results side by side, since a small model
compares neighbours only. The number of computations that are left follows, then `:`; a solver that gets each right with
probability q succeeds with qᵐ from m of them, and q is what makes the mean over problems its known success rate. Where the
answer is lost, nothing follows. Whether it is lost is the world's to say: by default, if the last finished line is wrong
(with running results, an earlier error that was put right does no harm).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LOST = None
"""What stands for the number of steps that are left where no step can save the answer."""


@dataclass(frozen=True)
class Critique:
    """Reasoning about an unfinished response, and the chance of success that it comes to."""

    text: str
    value: float


def concluded(said: Sequence[str], left: int | None, step_rate: float) -> Critique:
    """What was said, then how many steps are left and what that is worth; without any number where the answer is lost."""
    if left is LOST:
        return Critique("".join(said), 0.0)
    return Critique("".join([*said, f"{left}:"]), step_rate**left)


def computations(solution: str) -> int:
    """Lines of a solution but the last, which only repeats a result."""
    return solution.count("\n")


def criticise(
    solution: str, partial: str, step_rate: float, left_of: Callable[[Sequence[str]], int | None] | None = None
) -> Critique:
    """Check a partial response line by line against the solution; an unfinished last line must be the beginning of its own.

    `left_of` says from the results of the finished lines how many computations are left, or that the answer is lost.
    """
    right, said = solution.split("\n"), []
    *whole, rest = partial.split("\n")
    results = [result_of(line) for line in whole]
    for number, found in enumerate(results):
        expected = right[number] if number < len(right) else ""
        said.append(f"{expected}/{found}{mark(number < len(right) and found == result_of(expected))}")
    left = left_of(results) if left_of is not None else left_by_last_line(right, results)
    expected = right[len(whole)] if len(whole) < len(right) else ""
    if left is not LOST and not result_of(expected).startswith(result_of(rest)):
        said.append(f"{expected}/{result_of(rest)}x")
        left = LOST
    return concluded(said, left, step_rate)


def mark(right: bool) -> str:
    """`.` for what is right, `x` for what is wrong."""
    return "." if right else "x"


def left_by_last_line(right: Sequence[str], results: Sequence[str]) -> int | None:
    """Computations that are left of a solution's lines, where the last finished one has the right result; else None."""
    done = len(results)
    if done and not (done <= len(right) and results[-1] == result_of(right[done - 1])):
        return LOST
    return max(0, len(right) - 1 - done)


def result_of(line: str) -> str:
    """What stands behind the last `=` or `>` of a line; empty without one."""
    return line.rpartition("=")[2].rpartition(">")[2] if "=" in line or ">" in line else ""


def success_rate(step_rate: float, counts: Sequence[int]) -> float:
    """Mean over problems of qⁿ, for their numbers of steps n."""
    return math.fsum(step_rate**n for n in counts) / len(counts)


@functools.lru_cache(maxsize=1024)
def step_rate(success: float, counts: tuple[int, ...]) -> float:
    """The q with which a solver has this success rate, to 1e-6, by halving [0, 1]."""
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if success_rate(middle, counts) < success else (low, middle)
    return (low + high) / 2
