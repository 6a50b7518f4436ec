"""What every benchmark shares: medians with intervals, versions and machine, one JSON a script."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import signal
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vantage.compare.plan import Cell
from vantage.compare.run import Ended
from vantage.interrupts import Interrupted
from vantage.tracking import git_commit, versions

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores, threads."""
    import torch

    return {"processor": platform.machine(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()}


def run_here(cell: Cell, alive: Callable[[], int]) -> Ended:
    """Make a run of a comparison in this process, which saves what starting one costs; for many short runs."""
    from vantage import Trainer

    try:
        Trainer(cell.config).train()
    except Interrupted as stopped:
        signal.raise_signal(stopped.signal)  # the run has taken it; the comparison must know too
        return Ended(128 + stopped.signal, str(stopped))
    return Ended(0)


def median_interval(values: Sequence[float], draws: int = 2000, seed: int = 0) -> dict[str, float]:
    """Median with its 95 % bootstrap interval."""
    rng = random.Random(seed)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return {
        "median": statistics.median(values),
        "low": medians[int(0.025 * draws)],
        "high": medians[int(0.975 * draws) - 1],
    }


def write(name: str, result: dict[str, Any], out: Path | None = None) -> Path:
    """Write RESULT with versions, machine and commit beside it; returns the path."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"benchmark": name, "versions": versions(), "git_commit": git_commit(), "machine": machine()}
    path.write_text(readable(header | result) + "\n")
    return path


SCALARS = re.compile(r"\[\n\s*([^\[\]{}\"]*?)\n\s*\]")
"""An indented list of numbers, truth values and nulls."""


def readable(result: dict[str, Any]) -> str:
    """JSON with a line for each field, and one for a list of numbers."""
    return SCALARS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", json.dumps(result, indent=1))
