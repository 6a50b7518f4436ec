"""What would an oracle say of unfinished tool calls? Verb, number and item of each call beside what it should be.

    add/add.12/7x

for a second call `{"add":{"n":7,"of":"egg"}}` that should add 12: parts that agree get `.`, the first one that does not gets
`x`, and with it the response is lost, as calls are judged all together. Else the number of calls that are left follows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from vantage.tasks.critique import LOST, Critique, concluded, mark


def criticise_calls(
    expected: Sequence[Sequence[str]], lines: Sequence[str], partial: str, step_rate: float
) -> Critique:
    """Check finished calls part by part, and an unfinished one as the beginning of its line.

    Args:
        expected: The parts of each call.
        lines: The same calls as a response writes them.
        partial: The response so far.
        step_rate: Probability that the solver gets a call right.
    """
    *whole, rest = partial.split("\n")
    said = list[str]()
    for number, line in enumerate(whole):
        right = expected[number] if number < len(expected) else ()
        given = parts_of(line)
        for k in range(max(len(right), len(given), 1)):
            wanted, found = (row[k] if k < len(row) else "" for row in (right, given))
            fine = bool(wanted) and wanted == found
            said.append(f"{wanted}/{found}{mark(fine)}")
            if not fine:
                return concluded(said, LOST, step_rate)
    following = lines[len(whole)] if len(whole) < len(lines) else ""
    if not following.startswith(rest):
        return concluded([*said, f"{following}/{rest}x"], LOST, step_rate)
    return concluded(said, max(0, len(expected) - len(whole)), step_rate)


def parts_of(line: str) -> tuple[str, ...]:
    """Name, number and item (or place) of a call in the short form `{"add":{"n":7,"of":"fig"}}`; empty for anything else."""
    try:
        call = json.loads(line)
    except ValueError:
        return ()
    if not isinstance(call, dict) or len(call) != 1:
        return ()
    ((name, arguments),) = call.items()
    if not isinstance(arguments, dict):
        return ()
    return (name, *(str(arguments[k]) for k in ("n", "of", "to") if k in arguments))
