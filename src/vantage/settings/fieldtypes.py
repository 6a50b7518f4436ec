"""What is a field of a settings dataclass to a person: its help, the values it takes, and how a plain value becomes one.

Command line and YAML share this, so that both name the same types in the same words. Fields may be bool, int, float,
str, Path, Literal, tuples or lists of these, and unions of them with each other or with None.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vantage.errors import UserError
from vantage.plugins import one_line

_WORDS = {
    bool: ("true or false", "booleans"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    type(None): ("null", "nulls"),
}
_METAVARS = {bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")

GROUPS = ("lora", "vllm")
"""First words of fields that are options of one thing: `--lora.rank`."""


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    group, _, rest = name.partition("_")
    return f"--{group}.{rest.replace('_', '-')}" if group in GROUPS and rest else "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Field:
    """A field of a settings dataclass."""

    name: str
    type: Any
    help: str
    """The docstring below the field, on one line; empty if there is none."""
    default: Any
    """`dataclasses.MISSING` where a value is required."""


def fields_of(cls: type) -> dict[str, Field]:
    """The fields of a dataclass by name; raises `UserError` for a type that neither command line nor YAML can show."""
    try:
        hints = get_type_hints(cls)
    except (NameError, TypeError) as error:
        raise UserError(f"{cls.__name__}: the types of its fields can not be read ({one_line(error)})") from error
    docs = docstrings(cls)
    found = {}
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        found[field.name] = Field(field.name, hints[field.name], docs.get(field.name, ""), default)
    return found


def require_supported(cls: type, fields: dict[str, Field]) -> None:
    """Raise `UserError` for a field of a type that has no spelling on the command line and in YAML."""
    for field in fields.values():
        if not supported(field.type):
            raise UserError(
                f"{cls.__name__}.{field.name} has the type {field.type}; an option can be a bool, int, float, str, Path, "
                "Literal, a tuple or list of these, or a union of them with None"
            )


@functools.cache
def docstrings(cls: type) -> dict[str, str]:
    """The string literal below each field of a class and of its bases, whitespace collapsed."""
    found: dict[str, str] = {}
    for base in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue  # made in a shell or by code: there is no source to read, so no help
        (node,) = tree.body
        body = node.body if isinstance(node, ast.ClassDef) else []
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def members(tp: Any) -> tuple[Any, ...]:
    """The alternatives of a union, None left out; any other type is its own only one."""
    if get_origin(tp) in (Union, types.UnionType):
        return tuple(member for member in get_args(tp) if member is not type(None))
    return (tp,)


def optional(tp: Any) -> bool:
    """Whether None is one of the values."""
    return get_origin(tp) in (Union, types.UnionType) and type(None) in get_args(tp)


def supported(tp: Any) -> bool:
    """Whether values of the type can be given on the command line and in YAML."""
    if get_origin(tp) in (Union, types.UnionType):
        return all(supported(member) for member in members(tp))
    if get_origin(tp) in (tuple, list):
        return all(part is Ellipsis or part in _METAVARS for part in get_args(tp))
    return get_origin(tp) is Literal or tp in _METAVARS


def counts(tp: Any) -> tuple[int, float]:
    """Fewest and most command-line words that make a value; a flag of its own (bool) takes none."""
    bounds = []
    for member in members(tp):
        if get_origin(member) is list or Ellipsis in get_args(member):
            bounds.append((0.0, float("inf")))
        elif get_origin(member) is tuple:
            bounds.append((float(len(get_args(member))),) * 2)
        else:
            bounds.append((0.0, 0.0) if tp is bool else (1.0, 1.0))
    return int(min(low for low, _ in bounds)), max(high for _, high in bounds)


def describe(tp: Any) -> str:
    """The values of a type in words: `a whole number`, `one of a, b`, `2 numbers`."""
    return " or ".join(_describe(member) for member in members(tp))


def _describe(tp: Any) -> str:
    if get_origin(tp) is Literal:
        choices = ", ".join(map(str, get_args(tp)))
        return f"one of {choices}" if len(get_args(tp)) > 1 else choices
    if get_origin(tp) in (tuple, list):
        parts = get_args(tp)
        many = _WORDS[parts[0]][1]
        return f"a list of {many}" if counts(tp)[1] == float("inf") else f"{len(parts)} {many}"
    return _WORDS[tp][0]


def metavar(tp: Any) -> str:
    """What stands for the value in the help: `INT`, `{a,b}`, `FLOAT FLOAT`."""
    return "|".join(_metavar(member) for member in members(tp))


def _metavar(tp: Any) -> str:
    if get_origin(tp) is Literal:
        return "{" + ",".join(map(str, get_args(tp))) + "}"
    if get_origin(tp) in (tuple, list):
        parts = [_METAVARS[part] for part in get_args(tp) if part is not Ellipsis]
        return f"[{parts[0]} ...]" if counts(tp)[1] == float("inf") else " ".join(parts)
    return _METAVARS[tp]


def coerce(value: Any, tp: Any) -> Any:
    """The value of type `tp` that a plain one (as YAML has them) means; raises `ValueError` if it means none."""
    if value is None and optional(tp):
        return None
    for member in members(tp):
        try:
            return _coerce(value, member)
        except ValueError:
            continue
    raise ValueError(value)


def _coerce(value: Any, tp: Any) -> Any:
    if get_origin(tp) is Literal:
        choice = next((c for c in get_args(tp) if c == value and type(c) is type(value)), MISSING)
        return _fitting(choice, choice is not MISSING)
    if get_origin(tp) in (tuple, list):
        return _sequence(value, tp)
    if tp is float:
        # YAML 1.1 reads 1e-4, without a point, as text.
        numeric = isinstance(value, str) and _NUMBER.fullmatch(value) is not None
        return float(_fitting(value, numeric or type(value) in (int, float)))
    if tp is Path:
        return Path(_fitting(value, isinstance(value, str)))
    return _fitting(value, type(value) is tp)


def _sequence(value: Any, tp: Any) -> Any:
    parts = get_args(tp)
    low, high = counts(tp)
    _fitting(value, isinstance(value, list | tuple) and low <= len(value) <= high)
    each = [parts[0]] * len(value) if high == float("inf") else parts
    made = [coerce(item, part) for item, part in zip(value, each, strict=True)]
    return made if get_origin(tp) is list else tuple(made)


def _fitting(value: Any, fits: bool) -> Any:
    if not fits:
        raise ValueError(value)
    return value
