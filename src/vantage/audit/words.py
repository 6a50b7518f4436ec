"""What does an audit say in words? A verdict for each algorithm, and what was held equal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Found = Mapping[str, Any]


def percent(share: float) -> str:
    """`0.4 %`, `12 %`: two digits, and no more where there are none."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %" if value >= 0.1 or value == 0 else f"{value:.1g} %"


def verdict(entry: Found, tolerance: float, confidence: float, exact: bool) -> str:
    """Whether a bias was found, how large it is, or how large it could be without having been seen."""
    bias, sure = entry["bias"], f"{confidence:.0%}"
    if not bias["resolved"]:
        return f"nothing can be said yet: these rollouts do not tell the gradient from its noise{_takes(entry)}"
    share = bias["share"]
    if exact:
        said = f"bias of {percent(share['mean'])}" if bias["found"] else "no bias (exactly)"
        return f"{said}{_scaled(bias, exact)}"
    if bias["found"]:
        return (
            f"bias of {percent(share['mean'])}, between {percent(share['low'])} and {percent(share['high'])} of the gradient's "
            f"norm with {sure} confidence{_scaled(bias, exact)}"
        )
    if share["high"] <= tolerance:
        return f"no bias found at {percent(tolerance)} of the gradient's norm ({sure} confidence){_scaled(bias, exact)}"
    return (
        f"no bias found; one of more than {percent(share['high'])} of the gradient's norm is excluded with {sure} confidence"
        f"{_takes(entry)}{_scaled(bias, exact)}"
    )


def _takes(entry: Found) -> str:
    """How many rollouts would say more."""
    outlook = entry.get("outlook")
    if outlook is None:
        return "; give more --blocks" if not entry["bias"]["resolved"] else ""
    some = ", ".join(
        f"{rounded(one['rollouts'])} rollouts (--blocks {one['blocks']}) for one of {percent(one['share'])}"
        for one in outlook["statements"]
    )
    return f"; to find or exclude a bias takes {how_sure(entry)} {some}"


def how_sure(entry: Found) -> str:
    """The word before a number of an outlook: the less the gradient stands out, the less is known of its length."""
    if not entry["outlook"]["sure"]:
        return "more than"
    return "about" if entry["bias"]["resolved"] else "roughly"


def rounded(count: int) -> str:
    """`420,000`: two digits of a count that is an estimate."""
    digits = max(0, len(str(count)) - 2)
    return f"{round(count, -digits):,}"


def _scaled(bias: Found, exact: bool) -> str:
    """The factor, where it is not 1."""
    scale = bias["scale"]
    if exact:
        return (
            ""
            if math.isclose(scale["mean"], 1, abs_tol=1e-9)
            else f"; the gradient comes out {scale['mean']:.3g} times as long"
        )
    if scale["low"] <= 1 <= scale["high"]:
        return ""
    return f"; the gradient comes out {scale['mean']:.3g} times as long ({scale['low']:.3g} to {scale['high']:.3g})"


def closing_words(found: Found, report: Path) -> str:
    """A line for each algorithm, and where the report is."""
    width = max(map(len, found["algorithms"]))
    lines = [f"{name:{width}}  {entry['verdict']}" for name, entry in found["algorithms"].items()]
    return "\n".join(["", *lines, f"report   {report}", f"numbers  {report.parent / 'audit.json'}"])
