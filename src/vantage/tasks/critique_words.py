"""What would an oracle say of unfinished words under constraints? Word by word how far they got, then what is left to do.

    *1FIG=.2TO+O+.* 1! 2:

A bullet point, the first word, which is the one that must occur (`=`), and a second with the letter that must (`+` behind
each); `.` says that no constraint is broken. Behind the blank is what is left to do: one word, and the mark at the end; that
makes two steps. What else could be due: letters that must still occur (`oo`), a word that must (`fig`), a word at the end,
bullet points (`*`), a closing quotation mark (`"`) or a title (`<`). `x` ends the critique where a constraint is broken for
good, right behind the character that breaks it, or where more is to be done than words are left. What is said of a character
or a word stands beside it, since a small model compares neighbours only. A solver that gets each step right with probability
q succeeds with qᵐ from m.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vantage.tasks.critique import LOST, Critique, concluded
from vantage.verifiers.counting import bullets, titled, words

if TYPE_CHECKING:
    from vantage.tasks.constraints import Request

_CHUNK = re.compile(r"\S+")


def criticise_words(request: Request, partial: str, step_rate: float) -> Critique:
    """Follow the words so far, then say what is due."""
    said = list[str]()
    for chunk in _CHUNK.finditer(partial):
        if chunk.group() != "*":
            said.append(str(words(partial[: chunk.end()])))
        for place in range(*chunk.span()):
            said.append(partial[place] + ("+" if partial[place].lower() == request.least else ""))
            if broken(request, partial[: place + 1]):
                return concluded([*said, "x"], LOST, step_rate)
        if request.use and request.use in chunk.group().lower():
            said.append("=")
        said.append("" if chunk.group() == "*" else ".")
    room, tasks = request.words - words(partial), due(request, partial)
    said.append(f" {room}{''.join(tasks)}")
    if _too_late(request, partial, room, tasks):
        return concluded([*said, "x"], LOST, step_rate)
    return concluded([*said, " "], room + _steps(request, tasks), step_rate)


def steps_of(request: Request) -> int:
    """Words, letters and words that must occur, the mark at the end, and the layout."""
    return request.words + _steps(request, due(request, ""))


def broken(request: Request, partial: str) -> bool:
    """Whether a constraint can not be met any more, whatever follows."""
    lower = partial.lower()
    return (
        words(partial) > request.words
        or bool(request.no and request.no in lower)
        or (request.caps and partial != partial.upper())
        or (request.layout == "quoted" and not partial.startswith('"'))
        or (bool(request.bullets) and bullets(partial) > request.bullets)
    )


def due(request: Request, partial: str) -> list[str]:
    """What must still be done besides writing so many words; an entry is a step, but a word at the end is one of the words."""
    lower = partial.lower()
    found = [request.least] * max(0, request.times - lower.count(request.least)) if request.least else []
    if request.use and request.use not in lower:
        found.append(request.use)
    if request.layout == "quoted":
        found += [] if len(partial) > 1 and partial.rstrip().endswith('"') else ['"']
    elif request.layout == "title":
        found += [] if titled(partial) else ["<"]
    found += ["*"] * max(0, request.bullets - bullets(partial))
    if request.end and not lower.rstrip('"').endswith(request.end):
        found.append(request.end)
    return found


def _steps(request: Request, tasks: list[str]) -> int:
    """A word at the end is one of the words."""
    return len(tasks) - (request.end.isalpha() and request.end in tasks)


def _too_late(request: Request, partial: str, room: int, tasks: list[str]) -> bool:
    """Whether more is due than the words that are left can do; behind a blank, another word is going to follow."""
    whole = sum(task.isalpha() and task != request.least for task in tasks)
    needed = max(whole, tasks.count("*"), "<" in tasks, request.least in tasks)
    return room < max(needed, partial[-1:].isspace())
