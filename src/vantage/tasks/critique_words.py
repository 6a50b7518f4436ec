"""What would an oracle say of unfinished words under constraints? Where each constraint stands, then what is left to do.

    2/3 e. o1/2 fig- A. *1/2 3:

Of three words there are two, no `e` so far, one of two `o`, `fig` not yet, all capitals, one of two bullet points; three steps
are left (a word, a bullet point, the mark at the end). `.` is kept, `-` not done yet, `x` broken or no longer to be had, which
ends the critique. A solver that gets each step right with probability q succeeds with qᵐ from m of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vantage.tasks.critique import LOST, Critique, concluded, mark
from vantage.verifiers.counting import bullets, titled, words

if TYPE_CHECKING:
    from vantage.tasks.constraints import Request


def criticise_words(request: Request, partial: str, step_rate: float) -> Critique:
    """Say how each constraint stands behind the words so far."""
    said = list[str]()
    for text, fine in _standing(request, partial):
        said.append(text)
        if not fine:
            return concluded(said, LOST, step_rate)
    return concluded(said, left(request, partial), step_rate)


def steps_of(request: Request) -> int:
    """Words, the mark at the end, and the layout."""
    return left(request, "")


def left(request: Request, partial: str) -> int:
    """Steps of the response that are still to be made; a word at its end is one of the words."""
    mark_due = bool(request.end) and not request.end.isalpha() and not partial.endswith(request.end)
    layout_due = bool(request.layout) and _layout(request, partial) != "."
    return max(0, request.words - words(partial)) + mark_due + layout_due


def _standing(request: Request, partial: str) -> list[tuple[str, bool]]:
    """Each constraint in words, and whether it can still be met."""
    done, lower = words(partial), partial.lower()
    room = request.words - done
    found = [(f"{done}/{request.words}{'x' if room < 0 else ''} ", room >= 0)]
    if request.no:
        kept = request.no not in lower
        found.append((f"{request.no}{mark(kept)} ", kept))
    if request.least:
        count = lower.count(request.least)
        fine = count >= request.times or room > 0
        found.append((f"{request.least}{count}/{request.times}{'' if fine else 'x'} ", fine))
    if request.use:
        there = request.use in lower
        found.append((f"{request.use}{'.' if there else '-' if room > 0 else 'x'} ", there or room > 0))
    if request.caps:
        kept = partial == partial.upper()
        found.append((f"A{mark(kept)} ", kept))
    if request.layout:
        stands = _layout(request, partial)
        found.append((f"{stands} ", not stands.endswith("x")))
    return found


def _layout(request: Request, partial: str) -> str:
    """`.` where the layout is there, `"-`, `<-` or `*1/2` where it is due; with `x` at the end where it is lost."""
    room = request.words - words(partial)
    if request.bullets:
        count = bullets(partial)
        lost = count > request.bullets or (room <= 0 and count < request.bullets)
        return "." if count == request.bullets else f"*{count}/{request.bullets}{'x' if lost else ''}"
    if request.layout == "quoted":
        if partial and not partial.startswith('"'):
            return '"x'
        return "." if len(partial) > 1 and partial.rstrip().endswith('"') else '"-'
    if titled(partial):
        return "."
    return "<-" if room > 0 else "<x"
