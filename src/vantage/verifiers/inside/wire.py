"""How do values cross between a judged program and whoever judges it? Plain data by value, everything else by number.

The form is JSON, which can not carry code; pickle could. Subclasses of plain types are sent as the plain type, read by
the plain type's own methods, so an object that claims to equal everything arrives as what it holds. One-key objects mark
what JSON has no form for.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

DEEPEST = 200
KINDS: tuple[tuple[Any, str], ...] = ((list, ""), (tuple, "t"), (set, "s"), (frozenset, "f"), (deque, "q"))
SEQUENCES: dict[str, Callable[[Any], Any]] = {"t": tuple, "s": set, "f": frozenset, "q": deque}


class NotPlainError(Exception):
    """A value that can not be sent."""


def refuse(value: object) -> Any:
    """For `encode`: no references."""
    raise NotPlainError(f"a result of type {type(value).__name__} can not be compared")


def encode(value: Any, reference: Callable[[Any], Any] = refuse, depth: int = 0) -> Any:
    """What stands for a value in JSON; `reference` gives what stands for a value that is not plain.

    Raises `NotPlainError` for data nested too deeply.
    """
    if depth > DEEPEST:
        raise NotPlainError("data nested too deeply")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        number = int.__add__(value, 0)
        return number if number.bit_length() < 64 else {"i": hex(number)}
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return {"b" if isinstance(value, bytes) else "a": bytes(memoryview(value)).hex()}
    if isinstance(value, dict):
        pairs = [(key, dict.__getitem__(value, key)) for key in dict.__iter__(value)]
        return {"d": [[encode(x, reference, depth + 1) for x in pair] for pair in pairs]}
    for kind, tag in KINDS:
        if isinstance(value, kind):
            found = [encode(x, reference, depth + 1) for x in kind.__iter__(value)]
            return {tag: found} if tag else found
    return _encode_number(value, reference, depth)


def _encode_number(value: Any, reference: Callable[[Any], Any], depth: int) -> Any:
    kind = type(value)
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if kind is Fraction:
        return {"n": [hex(value.numerator), hex(value.denominator)]}
    if kind is Decimal:
        return {"m": str(value)}
    if kind is range:
        return {"r": [hex(value.start), hex(value.stop), hex(value.step)]}
    if kind.__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return encode(value.item(), reference, depth + 1)
    return reference(value)


def decode(data: Any, resolve: Callable[[Any], Any] = refuse) -> Any:
    """The value that `data` stands for; `resolve` gives what a reference stands for. Raises `NotPlainError`, `ValueError`."""
    if isinstance(data, list):
        return [decode(x, resolve) for x in data]
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    if tag in SEQUENCES:
        return SEQUENCES[tag](decode(x, resolve) for x in content)
    if tag == "d":
        return {decode(key, resolve): decode(value, resolve) for key, value in content}
    if tag == "i":
        return int(content, 16)
    if tag in "ba":
        return (bytes if tag == "b" else bytearray).fromhex(content)
    if tag == "c":
        return complex(*content)
    if tag in "nr":
        return (Fraction if tag == "n" else range)(*(int(x, 16) for x in content))
    if tag == "m":
        return Decimal(content)
    return resolve(data)


def dumps(message: Any) -> bytes:
    """JSON on one line, ASCII: lone surrogates survive."""
    return json.dumps(message, separators=(",", ":")).encode("ascii")
