"""What does the end of a lab look like in a terminal? One table, and where the rest is."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vantage.page import figure


def closing_words(found: Mapping[str, Any], out: Path) -> str:
    """A table of the held-out states, best squared error first."""
    from rich.console import Console
    from rich.table import Table

    test = found["sets"][0]["name"]
    table = Table(title=f"{found['model']} on {found['task']}: values of {found['sets'][0]['states']} held-out states")
    for head in ("estimator", "squared error", "correlation", "at prompts", "at later steps", "ms a state"):
        table.add_column(head, justify="left" if head == "estimator" else "right")

    def error(name: str, part: str) -> float | None:
        entry = found["estimators"][name]["sets"][test].get(part)
        value: float | None = None if entry is None else entry["metrics"]["mse_corrected"]["mean"]
        return value

    def order(name: str) -> float:
        value = error(name, "all")
        return float("inf") if value is None else value

    for name in sorted(found["estimators"], key=order):
        row = found["estimators"][name]
        whole = row["sets"][test]["all"]["metrics"]
        table.add_row(
            name + (" *" if row["sees_response"] else ""), interval(whole["mse_corrected"], "{:.4f}"),
            interval(whole["pearson_corrected"], "{:.3f}"), figure(error(name, "prompt"), "{:.4f}"),
            figure(error(name, "step"), "{:.4f}"), figure(1000 * row["cost"]["seconds_per_state"], "{:.2f}"),
        )  # fmt: skip
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    starred = any(row["sees_response"] for row in found["estimators"].values())
    note = "* sees how the response goes on: no estimate of later states\n" if starred else ""
    return (
        f"{text.getvalue()}{note}report: {out / 'report.html'}\neverything: {out / 'lab.json'}, {out / 'states.jsonl'}"
    )


def interval(metric: Mapping[str, Any], template: str) -> str:
    """`0.0123 [0.0100, 0.0150]`."""
    if metric["mean"] is None:
        return "–"
    return f"{figure(metric['mean'], template)} [{figure(metric['low'], template)}, {figure(metric['high'], template)}]"
