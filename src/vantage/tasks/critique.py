"""What would an oracle say of an unfinished response? What all worlds share, and worlds whose solutions are computed in lines.

Each finished line is written as it should be behind the lines before it, then the result that the response has, then `.`
where they agree. The first error that can not be made good any more gets `x`, and nothing follows: what comes behind is worth
no word. `~` stands behind a wrong result that does no harm. Whole lines, since to write such lines is what a policy of these
worlds has learned; both results side by side, since a small model compares neighbours only. Then come the number of
computations that are left and `:`; a solver that gets each right with probability q succeeds with qᵐ from m of them, and q is
what makes the mean over problems its known success rate.
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
    go_on: Callable[[Sequence[str]], Sequence[str] | None], partial: str, step_rate: float, opening: str = ""
) -> Critique:
    """Check a partial response line by line; an unfinished last line must be the beginning of its own.

    `opening` is said before.
    `go_on` gives the lines of a response that begins with these results and makes no error from there, the finished ones
    included; None where no such response is right.
    """
    *whole, rest = partial.split("\n")
    lines, results, said = go_on([]) or (), list[str](), [opening]
    for line in whole:
        expected = lines[len(results)] if len(results) < len(lines) else ""
        results.append(result_of(line))
        following = go_on(results) if expected else None
        said.append(f"{expected}/{results[-1]}")
        if following is None:
            return concluded([*said, "x"], LOST, step_rate)
        said.append("." if results[-1] == result_of(expected) else "~")
        lines = following
    expected = lines[len(results)] if len(results) < len(lines) else ""
    if not result_of(expected).startswith(result_of(rest)):
        return concluded([*said, f"{expected}/{result_of(rest)}x"], LOST, step_rate)
    return concluded(said, max(0, len(lines) - 1 - len(results)), step_rate)


def mark(right: bool) -> str:
    """`.` for what is right, `x` for what is wrong."""
    return "." if right else "x"


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
