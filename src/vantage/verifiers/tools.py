"""Are the tool calls in a response the expected ones? Names and arguments are compared, never run.

A response holds its calls in one of three ways, looked for in this order: `<tool_call>…</tool_call>` tags, fenced blocks
of JSON, or nothing but JSON. A call is an object with a `name` and `arguments` (or `parameters`; an object, or JSON in a
string), or the same under `function`; a list holds several. Text around tags and fences does not matter.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vantage.errors import UserError
from vantage.verifiers.guarded import LIMITS, Guarded
from vantage.verifiers.jsontext import JsonError, canonical, decode, decode_all
from vantage.verifiers.schemas import Tool, ToolsError, read_tools
from vantage.verifiers.thinking import after_thinking
from vantage.verifiers.workers import WorkerLimits

MAX_CHARACTERS = 200_000
"""A longer response holds no calls that anyone meant."""
OPENING, CLOSING = "<tool_call>", "</tool_call>"
# A fence within a string of JSON neither starts nor ends a line, as such strings have no line breaks.
_FENCE_OPENS = re.compile(r"^[^\n`]*```([^\n`]*)\n", re.MULTILINE)
_FENCE_CLOSES = re.compile(r"^[ \t]*```|```[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any]


class ToolCallVerifier:
    """1 if the calls of a response are the expected ones; with `share`, the share of them that is.

    It judges in the process that calls it. `isolated` gives one that judges in worker processes, as `--reward tools` does.

    Arguments match whatever their order; 1 equals 1.0; strings match exactly. Where the tools are described, every call
    must be of one of them and its arguments valid by its JSON Schema (extra `tools`), and an argument that is left out
    counts as given with the schema's `default`. Without expected calls, valid calls alone are asked for, at least one.

    Args:
        calls_column: Column with the expected calls: a list of calls or JSON of one; an empty list expects none.
        tools_column: Column with the descriptions of tools, see `vantage.verifiers.schemas.read_tools`; may be missing.
        ordered: Whether the order of the calls matters.
        share: Matching calls over the larger of the numbers of expected and of given calls, instead of 1 or 0.
        short: Whether `{"TOOL": {ARGUMENTS}}` is a call as well.
    """

    name = "tools"
    version = "1"

    def __init__(
        self,
        *,
        calls_column: str = "calls",
        tools_column: str = "tools",
        ordered: bool = False,
        share: bool = False,
        short: bool = False,
    ) -> None:
        self.calls_column = calls_column
        self.tools_column = tools_column
        self.ordered = ordered
        self.share = share
        self.short = short

    def prepare(self) -> None:
        """Import what schemas are checked with, where it is installed."""
        with contextlib.suppress(UserError):
            read_tools([{"name": "f", "parameters": {"type": "object"}}])["f"].allows({})

    def score(self, text: str, columns: Mapping[str, Any]) -> float | None:
        """0 to 1, or `None` where the columns can not be read.

        Raises:
            UserError: tools are described and the package `jsonschema` is missing.
        """
        try:
            expected, tools = self._read(columns)
            wanted = None if expected is None else [_key(call, tools) for call in expected]
        except (JsonError, ToolsError):
            return None
        try:
            given = read_calls(text, short=self.short)
            keys = [_key(call, tools) for call in given]
        except JsonError:
            return 0.0
        valid = [tools is None or (call.name in tools and tools[call.name].allows(call.arguments)) for call in given]
        if wanted is None:
            right = sum(valid)
            return _score(right, max(len(given), 1), self.share)
        # An invalid call matches nothing, not even an expected one that is as invalid.
        matched = _matched(wanted, [key if good else None for key, good in zip(keys, valid, strict=True)], self.ordered)
        return _score(matched, max(len(wanted), len(keys)), self.share)

    def complaint(self, columns: Mapping[str, Any]) -> str | None:
        """What is wrong with a problem's columns, in one line; `None` if nothing.

        Raises:
            UserError: tools are described and the package `jsonschema` is missing.
        """
        try:
            expected, tools = self._read(columns)
        except (JsonError, ToolsError) as error:
            return " ".join(str(error).split())[:200]
        for call in expected or ():
            if tools is not None and call.name not in tools:
                return (
                    f"column {self.calls_column!r} expects a call of {call.name!r}, which {self.tools_column!r} lacks"
                )
            if tools is not None and not tools[call.name].allows(call.arguments):
                return f"column {self.calls_column!r} expects arguments of {call.name!r} that its schema does not allow"
        return None

    def _read(self, columns: Mapping[str, Any]) -> tuple[list[Call] | None, Mapping[str, Tool] | None]:
        """Expected calls and tools by name, each `None` where there are none; raises `JsonError` or `ToolsError`."""
        expected = _expected(columns.get(self.calls_column), self.calls_column, self.short)
        described = columns.get(self.tools_column)
        if expected is None and described is None:
            raise JsonError(f"neither the column {self.calls_column!r} nor {self.tools_column!r} is there")
        return expected, None if described is None else read_tools(described, self.tools_column)


def isolated(*, workers: int | None = None, limits: WorkerLimits = LIMITS, **options: Any) -> Guarded:
    """The verifier in worker processes, behind a cache: no response and no schema can hang, crash or fill the run.

    Args:
        workers: processes; by default one a core, at most 8.
        limits: time and memory of each; 5 s for one response.
        options: see `ToolCallVerifier`.
    """
    columns = (str(options.get("calls_column", "calls")), str(options.get("tools_column", "tools")))
    return Guarded("vantage.verifiers.tools:ToolCallVerifier", options, columns=columns, workers=workers, limits=limits)


def read_calls(text: str, *, short: bool = False) -> list[Call]:
    """The calls in a response, none where it has no tags, no fenced JSON and does not start as JSON.

    Args:
        text: The response; what was thought before `</think>` is left out.
        short: Whether `{"TOOL": {ARGUMENTS}}` is a call as well.

    Raises:
        JsonError: it tries to call and does not succeed: malformed JSON, an unclosed tag, an object that is no call.
    """
    if len(text) > MAX_CHARACTERS:
        raise JsonError(f"more than {MAX_CHARACTERS} characters")
    text = after_thinking(text)
    if OPENING in text:
        parts = _between_tags(text)
    else:
        parts = _fenced(text)
        if not parts and text.lstrip().startswith(("{", "[")):
            parts = [text]
    return [call for part in parts for value in decode_all(part) for call in _calls(value, short)]


def _between_tags(text: str) -> list[str]:
    """What stands between tags, searched forward only: a text of opening tags takes no longer than another."""
    parts, position = [], text.find(OPENING)
    while position >= 0:
        end = text.find(CLOSING, position)
        if end < 0:
            raise JsonError("an unclosed tag")
        parts.append(text[position + len(OPENING) : end])
        position = text.find(OPENING, end)
    return parts


def _fenced(text: str) -> list[str]:
    """Bodies of fenced blocks that are JSON by their label, or by their first character where they have none."""
    bodies = []
    opening = _FENCE_OPENS.search(text)
    while opening:
        closing = _FENCE_CLOSES.search(text, opening.end())
        body = text[opening.end() : closing.start() if closing else len(text)]
        label = opening[1].strip().lower()
        if label == "json" or (not label and body.lstrip().startswith(("{", "["))):
            if not closing:
                raise JsonError("an unclosed fence")
            bodies.append(body)
        opening = _FENCE_OPENS.search(text, closing.end()) if closing else None
    return bodies


def _calls(value: Any, short: bool) -> list[Call]:
    """The calls that a decoded value is: one object, or a list of them."""
    if isinstance(value, list | tuple):
        return [_call(item, short) for item in value]
    return [_call(value, short)]


def _call(value: Any, short: bool) -> Call:
    inner = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(inner, Mapping):
        raise JsonError(f"{value!r:.80} is no call")
    if short and len(inner) == 1:
        [(name, arguments)] = inner.items()
        if isinstance(arguments, Mapping):
            return Call(str(name), arguments)
    name = inner.get("name")
    arguments = inner.get("arguments", inner.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = decode(arguments)
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise JsonError(f"{value!r:.80} is no call with a name and arguments")
    return Call(name, arguments)


def _expected(value: Any, column: str, short: bool) -> list[Call] | None:
    """Calls of a column: `None` where it is missing; raises `JsonError` that names the column."""
    if value is None:
        return None
    try:
        calls = _calls(decode(value) if isinstance(value, str) else value, short)
        for call in calls:
            canonical(dict(call.arguments))
    except JsonError as error:
        raise JsonError(
            f"column {column!r}: {error}; it must be a list of {{'name': …, 'arguments': {{…}}}}"
        ) from error
    return calls


def _key(call: Call, tools: Mapping[str, Tool] | None) -> Hashable:
    """What equal calls have in common; raises `JsonError`."""
    arguments = dict(call.arguments)
    if tools is not None and call.name in tools:
        arguments = {**tools[call.name].defaults, **arguments}
    key: Hashable = (call.name, canonical(arguments))
    return key


def _matched(wanted: Sequence[Hashable], given: Sequence[Hashable], ordered: bool) -> int:
    """How many of the wanted are given: of equal ones as many as both have, or the longest common subsequence."""
    if not ordered:
        return sum((Counter(wanted) & Counter(given)).values())
    row = [0] * (len(wanted) + 1)
    for key in given:
        diagonal = 0
        for index, other in enumerate(wanted):
            diagonal, row[index + 1] = row[index + 1], diagonal + 1 if key == other else max(row[index], row[index + 1])
    return row[-1]


def _score(right: int, of: int, share: bool) -> float:
    """`of` is 0 where no call was wanted and none given."""
    if not of:
        return 1.0
    return right / of if share else float(right == of)
