"""Is an output of a program the expected one? Comparison of printed text and of returned values."""

from __future__ import annotations

import math
from collections import deque
from typing import Any


def same_output(got: str, expected: str, tolerance: float = 0.0) -> bool:
    """Whether two printed texts agree line by line and word by word; spacing and empty lines do not count.

    A word that is expected to be a decimal fraction may differ by `tolerance`, absolutely or relatively; an integer may
    not, nor may it be written as a fraction.
    """
    if got == expected:
        return True
    lines, wanted = _lines(got), _lines(expected)
    if len(lines) != len(wanted):
        return False
    return all(
        len(line) == len(want) and all(_same_word(x, y, tolerance) for x, y in zip(line, want, strict=True))
        for line, want in zip(lines, wanted, strict=True)
    )


def _lines(text: str) -> list[list[str]]:
    return [words for line in text.split("\n") if (words := line.split())]


def _same_word(got: str, expected: str, tolerance: float) -> bool:
    if got == expected:
        return True
    if tolerance <= 0 or not any(mark in expected for mark in ".eE"):
        return False
    try:
        return _close(float(got), float(expected), tolerance)
    except ValueError:
        return False


def same_value(got: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Whether a returned value is the expected one, both plain data.

    Tuples count as lists, as JSON has no tuples; an expected list of one may be answered by its element, as in rows of
    the APPS form. True is not 1. Numbers of which one is a float may differ by `tolerance`, absolutely or relatively.
    """
    try:
        return _same(got, expected, tolerance) or (
            isinstance(expected, list) and len(expected) == 1 and _same(got, expected[0], tolerance)
        )
    except RecursionError:
        return False


def _same(got: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(got, bool) or isinstance(expected, bool) or got is None or expected is None:
        return got is expected
    if isinstance(got, list | tuple | deque) and isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(_same(x, y, tolerance) for x, y in zip(got, expected, strict=True))
    if isinstance(got, dict) and isinstance(expected, dict):
        # Keys of JSON are strings; a program may well use the numbers.
        named = {key if isinstance(key, str) else str(key): value for key, value in got.items()}
        return named.keys() == expected.keys() and all(_same(named[key], expected[key], tolerance) for key in named)
    if isinstance(got, int) and isinstance(expected, int):
        return got == expected
    if isinstance(got, int | float) and isinstance(expected, int | float):
        try:
            return got == expected or (tolerance > 0 and _close(float(got), float(expected), tolerance))
        except OverflowError:
            return False
    return type(got) is type(expected) and bool(got == expected)


def _close(got: float, expected: float, tolerance: float) -> bool:
    return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)
