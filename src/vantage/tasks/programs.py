"""The embedded world `programs`: find a tiny expression in x that meets given examples, such as `4:23 5:28 2:13=`.

The first two inputs are neighbours, so their outputs' difference is the slope of a line; the third example says whether the
function is one. A response works this out a step a line and ends with `>` and the expression:

    28-23=5
    5*4=20
    23-20=3
    5*2=10
    10+3=13
    >5*x+3

It is right if the expression gives the outputs of all examples and of two inputs that are not shown; many expressions do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vantage.rewards.functions import completion_text
from vantage.tasks.base import Message, Problem, SolvedInLines
from vantage.tasks.embedded import EmbeddedTask, falls_outside
from vantage.tasks.expressions import ExpressionError, parse

HIDDEN_INPUTS = (10, 13)


@dataclass(frozen=True)
class Polynomial:
    """square·x² + slope·x + constant, square 0 or 1."""

    square: int
    slope: int
    constant: int

    def __call__(self, x: int) -> int:
        """The value at x."""
        return self.square * x * x + self.slope * x + self.constant

    def __str__(self) -> str:
        """As a response writes it: `5*x+3`, `x-2`, `x*x+x`, `7`."""
        slope = {0: "", 1: "x"}.get(self.slope, f"{self.slope}*x")
        text = "+".join(part for part in ("x*x" * self.square, slope) if part)
        if self.constant or not text:
            text += f"{self.constant:+d}" if text else str(self.constant)
        return text


@dataclass(frozen=True)
class Split:
    """Kinds of functions, in equal shares: each is (square, slopes, constants); inputs are 1 … `inputs`."""

    kinds: tuple[tuple[int, range, range], ...]
    inputs: int
    max_new_tokens: int


SPLITS = {
    "": Split(
        kinds=(
            (0, range(1, 2), range(1, 61)),
            (0, range(2, 21), range(1)),
            (0, range(2, 10), range(1, 41)),
            (0, range(2, 10), range(-20, 0)),
            (1, range(1), range(1, 41)),
        ),
        inputs=9,
        max_new_tokens=96,
    ),
    "larger": Split(
        kinds=(
            (0, range(1, 2), range(61, 200)),
            (0, range(10, 20), range(1, 100)),
            (0, range(10, 20), range(-60, 0)),
            (1, range(1), range(41, 200)),
        ),
        inputs=19,
        max_new_tokens=120,
    ),
    "curves": Split(kinds=((1, range(1, 10), range(1, 41)),), inputs=9, max_new_tokens=160),
}


class Programs(EmbeddedTask[Split], SolvedInLines):
    """Functions to be found from three examples; see the module.

    A fifth of all *functions* is held out: no evaluation problem asks for a function that a training problem asks for.
    Training problem i depends on the split and on i only; kinds of functions take turns.

    Args:
        split: `""`, `larger` (larger numbers) or `curves` (x*x+a*x+b).

    Raises:
        UserError: there is no such split.
    """

    world = "programs"
    version = "1"
    step_separator = "\n"
    alphabet = "0123456789:+-*()x=> \n"

    def __init__(self, split: str = "") -> None:
        super().__init__(programs_reward, SPLITS, split)
        self._curves = any(square and max(slopes) > 0 for square, slopes, _ in self.split.kinds)

    def solution(self, problem: Problem) -> str | None:
        """The derivation of the problem's function, or `None` if it is no problem of this world."""
        examples = parse_prompt(problem.prompt) if isinstance(problem.prompt, str) else None
        return None if examples is None else "\n".join(derivation(examples, self._curves))

    def complaint(self, problem: Problem) -> str | None:
        """Whether the function that was meant gives the outputs."""
        pairs = [*problem.columns["examples"], *problem.columns["hidden"]]
        right = meets(str(problem.columns["answer"]), pairs)
        return None if right else f"{problem.columns['answer']} does not give the outputs of {problem.prompt!r}"

    def demonstration(self, problem: Problem, slips: float, rng: random.Random) -> str | None:
        """The derivation with a wrong digit in each computed number with probability `slips`; the rest builds on it."""
        examples = parse_prompt(problem.prompt) if isinstance(problem.prompt, str) else None
        if examples is None:
            return None
        return "\n".join(derivation(examples, self._curves, lambda value: _slip(value, slips, rng)))

    def go_on(self, problem: Problem, results: Sequence[str]) -> Sequence[str] | None:
        """Go on from these results without a slip: None where what comes out does not meet the examples.

        A wrong slope is never put right, while a slip in a line that was tried in vain does no harm.
        """
        examples = parse_prompt(str(problem.prompt)) or []
        known = list(results)
        try:
            lines = derivation(examples, self._curves, lambda value: int(known.pop(0)) if known else value)
        except ValueError:  # a line without a number
            return None
        answer = known[0] if known else lines[-1][1:]
        return lines if len(known) <= 1 and meets(answer, examples) else None

    def opening(self, problem: Problem) -> str:
        """The slope of the line through the first two examples, and whether a line will do (`.`) or is tried in vain (`~`)."""
        lines = (self.solution(problem) or "").split("\n")
        return f"{lines[0]}{'~' if 'x*x' in lines[-1] else '.'}"

    def draw(self, rng: random.Random, index: int, held_out: bool) -> Problem:
        """Draw functions and inputs until the function lies on the wanted side and no output is negative."""
        square, slopes, constants = self.split.kinds[index % len(self.split.kinds)]
        while True:
            function = Polynomial(square, rng.choice(slopes), rng.choice(constants))
            first = rng.randrange(1, self.split.inputs)
            third = rng.choice([x for x in range(1, self.split.inputs + 1) if x not in (first, first + 1)])
            examples = [(x, function(x)) for x in (first, first + 1, third)]
            if is_held_out(function) == held_out and min(y for _, y in examples) >= 0:
                hidden = [[x, function(x)] for x in HIDDEN_INPUTS]
                return Problem(
                    prompt=prompt_of(examples),
                    columns={"examples": [list(e) for e in examples], "hidden": hidden, "answer": str(function)},
                    domain="programs",
                )


Examples = Sequence[tuple[int, int]]


def prompt_of(examples: Examples) -> str:
    """`4:23 5:28 2:13=` for the inputs 4, 5, 2 with the outputs 23, 28, 13."""
    return " ".join(f"{x}:{y}" for x, y in examples) + "="


def parse_prompt(prompt: str) -> list[tuple[int, int]] | None:
    """The examples of a prompt, or `None` if it is not three of them, the first two with neighbouring inputs."""
    parts = prompt.removesuffix("=").split(" ")
    pairs = [part.split(":") for part in parts]
    if not prompt.endswith("=") or len(pairs) != 3 or any(len(p) != 2 or not all(map(_is_number, p)) for p in pairs):
        return None
    found = [(int(x), int(y)) for x, y in pairs]
    return found if found[1][0] == found[0][0] + 1 else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def derivation(examples: Examples, curves: bool = False, written: Callable[[int], int] = int) -> list[str]:
    """The lines of the correct response: try a line through the first two examples, check the third, else take off x².

    What is left then is a constant, or with `curves` a line again. `written` may put down another number than the one
    computed, with which the next line goes on.
    """
    work = _Work(written)
    (x, y), (_, z), (u, v) = examples
    slope, constant = work.line(x, y, z)
    product = work.times(slope, u)
    if (work.minus(product, -constant) if constant < 0 else work.plus(product, constant)) == v:
        return [*work.lines, f">{Polynomial(0, slope, constant)}"]
    below, slope = work.less(y, work.times(x, x)), 0
    constant = below
    if curves:
        slope, constant = work.line(x, below, work.less(z, work.times(x + 1, x + 1)))
    return [*work.lines, f">{Polynomial(1, slope, constant)}"]


class _Work:
    """Lines of arithmetic, and what they say the results are."""

    def __init__(self, written: Callable[[int], int]) -> None:
        self.written, self.lines = written, list[str]()

    def _line(self, left: int, sign: str, right: int, value: int) -> int:
        value = self.written(value)
        self.lines.append(f"{left}{sign}{right}={value}")
        return value

    def plus(self, left: int, right: int) -> int:
        return self._line(left, "+", right, left + right)

    def minus(self, left: int, right: int) -> int:
        return self._line(left, "-", right, left - right)

    def times(self, left: int, right: int) -> int:
        return self._line(left, "*", right, left * right)

    def less(self, left: int, right: int) -> int:
        """left − right, with the larger number first, as this world has no negative numbers in its lines."""
        return self.minus(left, right) if left >= right else -self.minus(right, left)

    def line(self, x: int, y: int, z: int) -> tuple[int, int]:
        """Slope and constant of the line through (x, y) and (x + 1, z)."""
        slope = self.less(z, y)
        return slope, self.less(y, self.times(slope, x))


def _slip(value: int, probability: float, rng: random.Random) -> int:
    """With this probability the number with one digit replaced by another one."""
    if rng.random() >= probability:
        return value
    digits = list(str(abs(value)))
    place = rng.randrange(len(digits))
    digits[place] = rng.choice([d for d in "0123456789" if d != digits[place] and (d != "0" or place)])
    return int("".join(digits)) * (-1 if value < 0 else 1)


def is_held_out(function: Polynomial) -> bool:
    """Whether a function belongs to the held-out side, whatever the inputs that show it."""
    identity = f"{function.square},{function.slope},{function.constant}"
    return falls_outside(identity)


def programs_reward(
    completions: Sequence[str | list[Message]],
    examples: Sequence[Sequence[Sequence[int]]],
    hidden: Sequence[Sequence[Sequence[int]]],
    **kwargs: Any,
) -> list[float]:
    """1 if the expression after the last `>` gives the outputs of all examples and of the hidden inputs, else 0."""
    rewards = []
    for completion, shown, others in zip(completions, examples, hidden, strict=True):
        _, mark, text = completion_text(completion).rpartition(">")
        rewards.append(1.0 if mark and meets(text, [*shown, *others]) else 0.0)
    return rewards


def meets(expression: str, pairs: Sequence[Sequence[int]]) -> bool:
    """Whether the expression parses and gives the output of every input."""
    try:
        function = parse(expression)
        return all(function(x) == y for x, y in pairs)
    except ExpressionError:
        return False
