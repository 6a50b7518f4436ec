"""What does a comparison say on the terminal, before it begins and at its end?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vantage.compare.plan import Comparison
from vantage.page import duration


def listing(comparison: Comparison) -> str:
    """The runs that a comparison takes, in their order."""
    unit, amount = comparison.budget
    tuning, cells = comparison.tuning_cells(), comparison.cells()
    lines = [f"# {len(tuning) + len(cells)} runs of {amount:g} {unit} each, in {comparison.out}"]
    lines += [f"tuning   {cell.path.relative_to(comparison.out)}" for cell in tuning]
    lines += [f"report   {cell.path.relative_to(comparison.out)}" for cell in cells]
    if tuning:
        lines.append("# the reported runs take the learning rate that was best on the tuning seeds")
    return "\n".join(lines)


def closing_words(found: Mapping[str, Any], report: Path) -> str:
    """Final accuracy and time to target of each algorithm, what went wrong, and where the report is."""
    target, lines = found["target"]["accuracy"], [""]
    width = max(map(len, found["algorithms_compared"]))
    for name in found["algorithms_compared"]:
        entry = found["algorithms"][name]
        if final := entry["means"].get("final_accuracy"):
            interval = "" if final["low"] is None else f" [{final['low']:.3f}, {final['high']:.3f}]"
            lines.append(
                f"{name:{width}}  accuracy {final['mean']:.3f}{interval}, {entry['finished']} "
                f"seed{'s' if entry['finished'] != 1 else ''}{_reach(entry, target)}"
            )
    lines += [f"note     {problem}" for problem in found["problems"]]
    return "\n".join([*lines, f"report   {report}", f"numbers  {report.parent / 'comparison.json'}, comparison.csv"])


def _reach(entry: Mapping[str, Any], target: float | None) -> str:
    reach = (entry["to_target"] or {}).get("seconds")
    if reach is None or target is None:
        return ""
    if reach["median"] is None:
        return f"; {target:.3f} not reached by {reach['of'] - reach['reached']} of {reach['of']}"
    if reach["median"] == 0:
        return ""  # it had that before training: the note on the target says so
    return f"; {target:.3f} after {duration(reach['median'])}"
