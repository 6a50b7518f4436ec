"""A safe evaluator of tiny integer expressions in `x`: what a policy writes is parsed and computed here, never executed.

    sum     = product (("+" | "-") product)*
    product = factor ("*" factor)*
    factor  = digits | "x" | "-" factor | "(" sum ")"

Length, nesting, digits and magnitude are bounded, so that any text is answered in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_LENGTH = 64
MAX_DEPTH = 16
MAX_DIGITS = 6
MAX_VALUE = 10**9

Function = Callable[[int], int]


class ExpressionError(ValueError):
    """The text is no expression of the grammar, or breaks a bound."""


def parse(text: str) -> Function:
    """The function of `x` that the text means; raises `ExpressionError`, and so does a call whose value is too large."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH} characters")
    parser = _Parser(text)
    function = parser.sum(0)
    if parser.place != len(text):
        raise ExpressionError(f"unexpected {text[parser.place]!r}")
    return function


class _Parser:
    """Recursive descent; `place` is the next character."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def next(self) -> str:
        return self.text[self.place : self.place + 1]

    def take(self) -> str:
        self.place += 1
        return self.text[self.place - 1]

    def sum(self, depth: int) -> Function:
        total = self.product(depth)
        while self.next() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            total = _added(total, self.product(depth), sign)
        return total

    def product(self, depth: int) -> Function:
        total = self.factor(depth)
        while self.next() == "*":
            self.take()
            total = _multiplied(total, self.factor(depth))
        return total

    def factor(self, depth: int) -> Function:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"nested deeper than {MAX_DEPTH}")
        start = self.next()
        if start == "x":
            self.take()
            return _bounded
        if start == "-":
            self.take()
            return _multiplied(_constant(-1), self.factor(depth + 1))
        if start == "(":
            self.take()
            inside = self.sum(depth + 1)
            if self.next() != ")":
                raise ExpressionError("a parenthesis is not closed")
            self.take()
            return inside
        return self.number()

    def number(self) -> Function:
        start = self.place
        while self.next() in "0123456789" and self.next():  # isdigit() would let other scripts' digits in
            self.take()
        digits = self.text[start : self.place]
        if not 0 < len(digits) <= MAX_DIGITS:
            raise ExpressionError(f"a number of 1 to {MAX_DIGITS} digits was due at character {start + 1}")
        return _constant(int(digits))


def _constant(value: int) -> Function:
    return lambda x: value


def _bounded(value: int) -> int:
    if abs(value) > MAX_VALUE:
        raise ExpressionError(f"a value beyond {MAX_VALUE}")
    return value


def _added(left: Function, right: Function, sign: int) -> Function:
    return lambda x: _bounded(left(x) + sign * right(x))


def _multiplied(left: Function, right: Function) -> Function:
    return lambda x: _bounded(left(x) * right(x))
