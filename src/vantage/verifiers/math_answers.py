r"""Where in a response is the answer, and where in a row the reference answer?

One answer is taken, never several: a response that lists candidates must not score because one of them is right.
Everything here takes time linear in the length of the text, whatever is in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vantage.answers import after_answer, after_hashes, boxed, tagged

COLUMNS = ("answer", "solution", "ground_truth", "reward_model", "final_answer", "gold")
"""Columns of the reference answer, in this order; `reward_model` is verl's mapping with `ground_truth`."""
_PHRASE = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*[:=])(?:\*\*)?", re.IGNORECASE)
_LEAD = re.compile(r"(?:(?:therefore|thus|simply|just|exactly|equal to)\b\s*)+", re.IGNORECASE)
_MATHS = re.compile(r"(\$\$?)(?P<dollars>[^$]*)\1|\\\((?P<round>.*?)\\\)|\\\[(?P<square>.*?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?|[-+]?\.\d+%?")
LONGEST_WHOLE = 200
"""Characters of a response that may itself be the answer."""


def after_phrase(text: str) -> str | None:
    """What follows the last `answer is` or `answer:`: the maths between dollar signs there, else the rest of the sentence."""
    last = None
    for last in _PHRASE.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    line = text[last.end() :].lstrip().partition("\n")[0].strip()
    if lead := _LEAD.match(line):
        line = line[lead.end() :]
    if maths := _MATHS.match(line):
        return next(part for part in (maths["dollars"], maths["round"], maths["square"]) if part is not None).strip()
    return re.split(r"[.;!?](?:\s|$)", line, maxsplit=1)[0].strip(" *")


def last_value(text: str) -> str | None:
    """The last `$…$` or, where that comes later, the last number."""
    last, end = None, 0
    for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        # From the end: a regular expression takes quadratic time on a text of opening brackets only.
        stop = text.rfind(closing)
        while closing == "$" and text[stop - 1 : stop] == "$":
            stop -= 1
        start = text.rfind(opening, 0, max(stop, 0))
        if start >= 0 and stop > end and (inner := text[start + len(opening) : stop].strip()):
            last, end = inner, stop
    numbers = _NUMBER.findall(text, end)
    return str(numbers[-1]).rstrip(",") if numbers else last


def whole(text: str) -> str | None:
    """The text itself, if it is short."""
    stripped = text.strip()
    return stripped if len(stripped) <= LONGEST_WHOLE else None


SOURCES: dict[str, Callable[[str], str | None]] = {
    "boxed": boxed,
    "tag": tagged,
    "line": after_answer,
    "hashes": after_hashes,
    "phrase": after_phrase,
    "last": last_value,
    "whole": whole,
}
"""Ways to find an answer by name."""
USUAL = ("boxed", "tag", "line", "hashes", "phrase")


def find_answer(
    text: str, sources: Sequence[str] = USUAL, think_end: str = "</think>", need_think_end: bool = False
) -> str | None:
    """The answer that the first of the sources finds, None if none does.

    Only what follows the last `think_end` counts, where there is one; while the tag that opens it stands open, or where
    `need_think_end` misses it, there is no answer yet.
    """
    _, tag, rest = text.rpartition(think_end) if think_end else ("", "", text)
    opening = think_end.replace("/", "", 1)
    if (need_think_end and not tag) or (opening and opening != think_end and opening in rest):
        return None
    return next((found for source in sources if (found := SOURCES[source](rest))), None)


def reference(columns: Mapping[str, Any], column: str | None = None) -> list[str]:
    r"""The reference answer of a row, in its parts; empty if there is none.

    A worked solution gives what it boxes, or what follows `####`. Numbers become text; a list, or JSON of a list of texts,
    has several parts.
    """
    for name in (column,) if column is not None else COLUMNS:
        cell = columns.get(name)
        if isinstance(cell, Mapping):
            cell = cell.get("ground_truth")
        if parts := _parts(cell):
            return parts
    return []


def _parts(cell: Any) -> list[str]:
    if hasattr(cell, "tolist"):  # numpy
        cell = cell.tolist()
    if isinstance(cell, str) and cell.lstrip().startswith('["'):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return _parts_of_text(str(cell))
    if isinstance(cell, list | tuple):
        parts = [_parts(item) for item in cell if not isinstance(item, list | tuple)]
        return [part for found in parts for part in found] if len(parts) == len(cell) and all(parts) else []
    if isinstance(cell, bool) or cell is None:
        return []
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        cell = int(cell)
    return _parts_of_text(str(cell)) if isinstance(cell, int | float | str) else []


def _parts_of_text(text: str) -> list[str]:
    found = (boxed(text) if "boxed" in text else None) or (after_hashes(text) if "####" in text else None) or text
    return [found.strip()] if found.strip() else []
