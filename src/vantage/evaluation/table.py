"""How does an evaluation look on the screen? One table for one benchmark, a row each for several, one for a comparison."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from vantage.protocols import PRESETS

METRICS = ("pass@k", "pass^k", "majority@k")
SHOWN = ("pass@k", "majority@k")
"""Of several benchmarks at once; the JSON has all."""


def print_results(result: dict[str, Any]) -> None:
    """Print what `vantage.evaluation.command.run_eval` found."""
    console = Console(highlight=False)
    for part in (result, result.get("against")):
        if part is not None:
            rows = part["benchmarks"]
            console.print(_one(part["model"], rows[0]) if len(rows) == 1 else _several(part))
    if "against" in result:
        console.print(_comparison(result))
    if result["preset"]:
        console.print(f"preset {result['preset']}: {PRESETS[result['preset']].note}", soft_wrap=True, markup=False)


def _one(model: str, row: dict[str, Any]) -> Table:
    table = Table(title=f"{model} on {row['task']}, {row['problems']} problems × {row['k']} responses")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_row(f"avg@{row['k']}", _with_interval(row["avg@k"], row["low"], row["high"]))
    for metric in METRICS:
        for k, value in row.get(metric, {}).items():
            table.add_row(metric.replace("k", k), _with_interval(value, *row[f"{metric} interval"][k]))
    table.add_row("response length", f"{row['length_mean']:.1f} tokens")
    table.add_row("truncated", f"{row['truncated']:.3f}")
    table.add_row("unscorable", f"{row['unscorable']:.3f}")
    return table


def _several(part: dict[str, Any]) -> Table:
    table = _plain(part["model"], ("n × k", "avg@k", *SHOWN, "tokens", "cut"))
    for row in part["benchmarks"]:
        best = [(row[metric], max(row[metric], key=int)) if metric in row else None for metric in SHOWN]
        table.add_row(
            row["task"], f"{row['problems']} × {row['k']}", _short(row["avg@k"], row["low"], row["high"]),
            *(f"{found[0][found[1]]:.3f} @{found[1]}" if found else "-" for found in best),
            f"{row['length_mean']:.0f}", f"{row['truncated']:.0%}",
        )  # fmt: skip
    macro = part["macro"]
    table.add_row("macro average", "", _short(macro["avg@k"], macro["low"], macro["high"]))
    unscorable = [f"{row['task']} {row['unscorable']:.0%}" for row in part["benchmarks"] if row["unscorable"] > 0]
    if unscorable:
        table.caption = f"unscorable, counted as wrong: {', '.join(unscorable)}"
    return table


def _plain(title: str, columns: tuple[str, ...]) -> Table:
    """A table without lines, so that it fits 80 characters."""
    table = Table(title=title, box=None, title_justify="left", caption_justify="left", padding=(0, 2, 0, 0))
    table.add_column("benchmark", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _comparison(result: dict[str, Any]) -> Table:
    other, difference = result["against"], result["against"]["difference"]
    title = f"{result['model']} minus {other['model']}, on the same problems and seeds"
    table = _plain(title, ("avg@k", "against", "difference", "better", "worse", "equal"))
    for row, before in zip(result["benchmarks"], other["benchmarks"], strict=True):
        change = difference["benchmarks"][row["task"]]
        table.add_row(
            row["task"], f"{row['avg@k']:.3f}", f"{before['avg@k']:.3f}",
            _short(change["mean"], change["low"], change["high"], "+"),
            *(str(change[count]) for count in ("better", "worse", "equal")),
        )  # fmt: skip
    if (macro := difference["macro"]) is not None:
        table.add_row(
            "macro average", f"{result['macro']['avg@k']:.3f}", f"{other['macro']['avg@k']:.3f}",
            _short(macro["mean"], macro["low"], macro["high"], "+"),
        )  # fmt: skip
    return table


def _with_interval(mean: float, low: float, high: float) -> str:
    # An escaped bracket: the console would take the interval for markup.
    return f"{mean:.3f}  \\[{low:.3f}, {high:.3f}]"


def _short(mean: float, low: float, high: float, sign: str = "") -> str:
    return f"{mean:{sign}.3f} \\[{low:{sign}.2f}, {high:{sign}.2f}]"
