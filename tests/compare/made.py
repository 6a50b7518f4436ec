"""Runs that look like those of `vantage train`, written in a moment: a runner for tests that need no training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vantage.compare import Ended
from vantage.compare.plan import Cell, resolved, workload
from vantage.settings.configfile import dump_yaml

Accuracy = Callable[[Cell], float]


def rows_of(
    final: float, *, steps: int = 4, start: float = 0.4, seconds: float = 2.0, tokens: float = 100.0, **fixed: Any
) -> list[dict[str, Any]]:
    """Rows whose accuracy rises along a line, evaluated at every second step; each step costs the same."""
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        row: dict[str, Any] = {"step": step}
        if step % 2 == 0:
            accuracy = start + (final - start) * step / steps
            row |= {"eval/accuracy": accuracy, "eval/accuracy_low": accuracy - 0.03, "time/eval": 0.5}
            row |= {"eval/accuracy_high": accuracy + 0.03}
        if step:
            spent = tokens + fixed.get("tokens/value_extra", 0.0)
            row |= {"tokens/generated": tokens, "tokens/total": spent * step, "tokens/trained": tokens}
            row |= {"tokens/value_extra": 0.0, "time/total": seconds * step, "time/step": seconds, "time/reward": 0.0}
            row |= {"time/rollout": 0.25 * seconds, "time/forward_backward": 0.5 * seconds, "time/value": 0.1 * seconds}
            row |= {"policy/grad_norm": float(step), "value/mae": 0.4, "value/variance_reduction": 0.2 + 0.01 * step}
            row |= {
                "value/pearson": 0.3,
                "reward/mean": 0.5,
                "policy/entropy": 0.4,
                "mem/peak_gb": 0.5 + 0.1 * step,
                **fixed,
            }
        rows.append(row)
    return rows


def write_run(cell: Cell, rows: Sequence[Mapping[str, Any]], finished: bool = True) -> None:
    """The files of a run in the cell's folder."""
    cell.path.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(resolved(cell, workload(cell.config)), resume="never")
    (cell.path / "config.yaml").write_text(dump_yaml(config) + "versions:\n  torch: '2.13.0'\n")
    (cell.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        (cell.path / "summary.json").write_text(json.dumps({"run": str(cell.path)}))


class MadeRuns:
    """A runner that writes the files of a run instead of training; remembers what it was asked for."""

    def __init__(self, final: Accuracy = lambda cell: 0.6, **shape: Any) -> None:
        self.final, self.shape = final, shape
        self.asked: list[str] = []

    def __call__(self, cell: Cell, alive: Callable[[], int]) -> Ended:
        self.asked.append(cell.path.name)
        alive()
        write_run(cell, rows_of(self.final(cell), **self.shape))
        return Ended(0)


def files_in(folder: Path) -> set[str]:
    """Relative paths of all files."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
