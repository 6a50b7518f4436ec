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
        return "nothing can be said: these rollouts do not tell the gradient from its noise; give more --blocks"
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
        f"{_scaled(bias, exact)}"
    )


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
