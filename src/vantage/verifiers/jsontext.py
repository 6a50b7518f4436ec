"""Which JSON does a text hold? Decoding that hostile text can neither crash nor delay, and equality of what was decoded.

Python's decoder takes NaN, duplicated keys and any depth; here these are errors, because two readers of such a text would
disagree on what it says.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 64
"""Brackets within brackets."""

# The closing quote may be missing: an unclosed string runs to the end instead of being tried again from every quote in it.
_STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*")


class JsonError(ValueError):
    """The text is not the JSON that was asked for."""


def decode(text: str) -> Any:
    """The one value that the text is; raises `JsonError`."""
    values = decode_all(text)
    if len(values) != 1:
        raise JsonError(f"{len(values)} values instead of one")
    return values[0]


def decode_all(text: str) -> list[Any]:
    """The values that the text is made of, with nothing but white space around them; raises `JsonError`."""
    if deeper_than(text, MAX_DEPTH):
        raise JsonError(f"more than {MAX_DEPTH} brackets deep")
    found = []
    try:
        position = _after_space(text, 0)
        while position < len(text):
            value, position = _DECODER.raw_decode(text, position)
            found.append(value)
            position = _after_space(text, position)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more digits than Python converts
        raise JsonError(str(error)) from error
    return found


def deeper_than(text: str, depth: int) -> bool:
    """Whether brackets outside of strings nest deeper; takes time in proportion to the text, and stops at the first."""
    level = 0
    for match in _STRINGS_AND_BRACKETS.finditer(text):
        character = text[match.start()]
        if character in "[{":
            level += 1
            if level > depth:
                return True
        elif character in "]}":
            level -= 1
    return False


def canonical(value: Any) -> Any:
    """A hashable form that is equal for equal JSON: the order of keys does not matter, 1 equals 1.0 and not `true`.

    Args:
        value: Something that JSON can say; tuples count as lists.

    Raises:
        JsonError: it is something else, or deeper than `MAX_DEPTH`.
    """
    return _canonical(value, MAX_DEPTH)


def _canonical(value: Any, depth: int) -> Any:
    if depth < 0:
        raise JsonError(f"more than {MAX_DEPTH} brackets deep")
    if value is None or isinstance(value, bool | str):
        return type(value).__name__, value
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return "number", value
    if isinstance(value, list | tuple):
        return "list", tuple(_canonical(item, depth - 1) for item in value)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return "object", frozenset((key, _canonical(item, depth - 1)) for key, item in value.items())
    raise JsonError(f"{value!r:.80} is nothing that JSON can say")


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise JsonError("a key comes twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JsonError("a number beyond all bounds")
    return number


def _constant(text: str) -> Any:
    raise JsonError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_constant)
