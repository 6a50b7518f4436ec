"""What came out? Aggregates over seeds, paired differences, time to target, the tuning; as JSON and CSV."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vantage.compare.cells import measure
from vantage.compare.plan import Cell, Comparison
from vantage.compare.statistics import LEVEL, censored_median, first_reach, mean_interval, paired_difference
from vantage.settings.configfile import config_to_dict
from vantage.tracking import finite, git_commit, versions

JSON_FILE, CSV_FILE = "comparison.json", "comparison.csv"
UNITS = ("step", "tokens", "seconds")
NOT_SCALAR = ("evaluations", "curves", "versions")
"""Keys of a run that do not fit a cell of a table."""
NOT_AVERAGED = ("algorithm", "seed", "run", "status", "note", "learning_rate", *NOT_SCALAR)
COMPARED = (
    "final_accuracy", "gain", "seconds", "tokens", "value/mae", "value/pearson", "value/variance_reduction",
    "grad_norm_mean", "grad_norm_relative_std", "peak_memory_gb",
)  # fmt: skip
"""Numbers whose paired differences between algorithms are taken."""

Measured = Mapping[str, Any]


def results(comparison: Comparison, notes: Mapping[str, str], chosen: Mapping[str, float] | None) -> dict[str, Any]:
    """Everything of comparison.json, from what the folders of the runs hold now.

    Args:
        comparison: What was asked for.
        notes: Why runs failed, by folder.
        chosen: Learning rates after tuning; None without tuning, or before it is finished.
    """
    tuned = tuning_table(comparison, measured_tuning(comparison, notes))
    rates = (chosen or {}) if comparison.learning_rates else None
    cells = [_measured(cell, notes) for cell in comparison.cells(rates)]
    target = choose_target(comparison, cells)
    for cell in cells:
        cell["to_target"] = _to_target(cell, target["accuracy"])
    found = {
        "what": "vantage compare",
        "algorithms_compared": list(comparison.names),
        "configuration": _configuration(comparison),
        "budget": dict(zip(("unit", "amount"), comparison.budget)),
        "seeds": {"reporting": list(comparison.reporting_seeds), "tuning": list(comparison.tuning_seeds)},
        "interval": f"Student's t over seeds, {LEVEL:.0%}",
        "versions": versions(),
        "git_commit": git_commit(),
        "machine": machine(),
        "target": target,
        "algorithms": {name: _aggregate(name, cells, target) for name in comparison.names},
        "differences": differences(comparison.names, cells),
        "tuning": tuned,
        "cells": cells,
    }
    found["problems"] = problems(found)
    plain = finite(found)
    assert isinstance(plain, dict)  # of a mapping it makes a mapping
    return plain


def measured_tuning(comparison: Comparison, notes: Mapping[str, str]) -> list[dict[str, Any]]:
    """The numbers of all tuning runs."""
    return [_measured(cell, notes) for cell in comparison.tuning_cells()]


def _measured(cell: Cell, notes: Mapping[str, str]) -> dict[str, Any]:
    return measure(cell, notes.get(str(cell.path), ""))


def _configuration(comparison: Comparison) -> dict[str, Any]:
    """What all runs share, and the options of each algorithm."""
    shared = config_to_dict(comparison.base)
    shared.pop(comparison.base.algo.name, None)
    for name in ("algo", "out", "resume", "seed"):
        shared.pop(name)
    options = {name: dict(vars(algorithm)) for name, algorithm in comparison.named.items()}
    return {"shared": shared, "options": options}


def machine() -> dict[str, Any]:
    """What the times were measured on."""
    return {
        "processor": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def finished(cells: Sequence[Measured], algorithm: str | None = None) -> list[Measured]:
    """The runs that have a result, of one algorithm or of all."""
    return [c for c in cells if c["status"] == "finished" and algorithm in (None, c["algorithm"])]


def choose_target(comparison: Comparison, cells: Sequence[Measured]) -> dict[str, Any]:
    """The accuracy for "time to target", and what a whole training of the algorithm behind it costs.

    Given by the user, else the mean final accuracy of `dapo`, else that of the algorithm that ended lowest.
    """
    means = {
        name: statistics.fmean(c["final_accuracy"] for c in runs)
        for name in comparison.names
        if (runs := finished(cells, name))
    }
    if comparison.target is not None:
        return {"accuracy": comparison.target, "reference": None, "why": "given", "cost": None}
    if not means:
        return {"accuracy": None, "reference": None, "why": "no finished run", "cost": None}
    reference = "dapo" if "dapo" in means else min(means, key=lambda name: means[name])
    runs = finished(cells, reference)
    cost = {unit: statistics.fmean(c[_TOTAL[unit]] for c in runs) for unit in UNITS}
    lowest = "" if reference == "dapo" else ", the lowest"
    why = f"mean final accuracy of {reference}{lowest}"
    return {"accuracy": means[reference], "reference": reference, "why": why, "cost": cost}


_TOTAL = {"step": "steps", "tokens": "tokens", "seconds": "seconds"}


def _to_target(cell: Measured, target: float | None) -> dict[str, float | None] | None:
    """Steps, tokens and seconds until the target; null where it was not reached, null as a whole without a result."""
    if target is None or cell["status"] != "finished":
        return None
    accuracies = [e["accuracy"] for e in cell["evaluations"]]
    return {unit: first_reach([e[unit] for e in cell["evaluations"]], accuracies, target) for unit in UNITS}


def _aggregate(name: str, cells: Sequence[Measured], target: Mapping[str, Any]) -> dict[str, Any]:
    """Means over seeds with intervals of every number, and the time to target with its censoring."""
    runs = finished(cells, name)
    keys = [k for k in dict.fromkeys(k for run in runs for k in run) if k not in (*NOT_AVERAGED, "to_target")]
    means = {key: mean_interval([run[key] for run in runs if run.get(key) is not None]) for key in keys}
    rates = {run["learning_rate"] for run in runs}
    return {
        "finished": len(runs),
        "of": sum(cell["algorithm"] == name for cell in cells),
        "learning_rate": rates.pop() if len(rates) == 1 else None,
        "means": {key: found.as_dict() for key, found in means.items() if found is not None},
        "to_target": {unit: _reached(runs, unit, target) for unit in UNITS} if runs else None,
    }


def _reached(runs: Sequence[Measured], unit: str, target: Mapping[str, Any]) -> dict[str, Any]:
    """How many seeds reached the target, and the median over all seeds.

    Where the median seed never got there (it is censored), `median` is null and `median_at_least` is the median with the
    whole run of each seed that did not in its place.
    """
    needed = [run["to_target"][unit] if run["to_target"] else None for run in runs]
    median = censored_median(needed)
    known = [run[_TOTAL[unit]] if value is None else value for run, value in zip(runs, needed)]
    cost = (target.get("cost") or {}).get(unit)
    return {
        "reached": sum(value is not None for value in needed),
        "of": len(needed),
        "median": median,
        "median_at_least": statistics.median(known),
        "share_of_reference": median / cost if median is not None and cost else None,
    }


def differences(names: Sequence[str], cells: Sequence[Measured]) -> list[dict[str, Any]]:
    """Ours − theirs over the same seeds for every pair of algorithms, each number of `COMPARED` with its t-interval."""
    found = []
    for ours, theirs in itertools.combinations(names, 2):
        entry: dict[str, Any] = {"ours": ours, "theirs": theirs}
        for key in COMPARED:
            a, b = ({c["seed"]: c[key] for c in finished(cells, n) if c.get(key) is not None} for n in (ours, theirs))
            difference = paired_difference(a, b)
            entry[key] = None if difference is None else difference.as_dict()
        found.append(entry)
    return found


def tuning_table(comparison: Comparison, cells: Sequence[Measured]) -> dict[str, Any] | None:
    """Every tuning run, the mean of every learning rate, and the choice; None without tuning.

    The best mean final accuracy wins, of equal ones the smaller rate; a rate with a failed run can not win.
    """
    if not comparison.learning_rates:
        return None
    table = {}
    for name in comparison.names:
        rows = []
        for rate in comparison.learning_rates:
            runs = [c for c in cells if c["algorithm"] == name and _same_rate(c["learning_rate"], rate)]
            ended = finished(runs)
            mean = statistics.fmean(c["final_accuracy"] for c in ended) if ended and len(ended) == len(runs) else None
            rows.append({"learning_rate": rate, "accuracy": mean, "finished": len(ended), "of": len(runs)})
        known = [row for row in rows if row["accuracy"] is not None]
        # The grid ascends, and of equal ones max takes the first.
        best = max(known, key=lambda row: row["accuracy"] or 0.0)["learning_rate"] if known else None
        edge = best in (comparison.learning_rates[0], comparison.learning_rates[-1])
        table[name] = {"rates": rows, "chosen": best, "at_edge": edge}
    return {"grid": list(comparison.learning_rates), "algorithms": table, "cells": list(cells)}


def _same_rate(found: float | None, asked: float) -> bool:
    return found is not None and abs(found - asked) <= 1e-9 * asked


def problems(found: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the numbers are believed."""
    said = []
    tuning = found["tuning"] or {"cells": [], "algorithms": {}, "grid": []}
    for cell in (*tuning["cells"], *found["cells"]):
        rate = f" at learning rate {cell['learning_rate']:g}" if cell["run"].startswith("tuning") else ""
        what = f"{cell['algorithm']} seed {cell['seed']}{rate}"
        if cell["status"] == "failed":
            said.append(f"{what} failed: {cell['note']}")
        elif cell["status"] == "missing":
            said.append(f"{what} is not finished")
    for name, row in tuning["algorithms"].items():
        if row["chosen"] is None:
            said.append(f"{name} has no tuned learning rate, and so no reported run: see its tuning runs")
        elif row["at_edge"]:
            end = "smallest" if row["chosen"] == tuning["grid"][0] else "largest"
            said.append(
                f"{name} was best at learning rate {row['chosen']:g}, the {end} of the grid: a better one may lie "
                "beyond it; widen --learning-rates"
            )
    target = found["target"]["accuracy"]
    starts = [c["start_accuracy"] for c in finished(found["cells"]) if c["start_accuracy"] is not None]
    if target is not None and any(start >= target for start in starts):
        said.append(
            f"the target of {target:.3f} was there before training in {sum(start >= target for start in starts)} of "
            f"{len(starts)} runs: times to it say nothing; give a higher --target"
        )
    made_with = {json.dumps(c["versions"], sort_keys=True) for c in finished([*tuning["cells"], *found["cells"]])}
    if len(made_with) > 1:
        said.append("runs were made with different versions of the software; comparison.json has those of each run")
    return said


def write_results(found: Mapping[str, Any], folder: Path) -> None:
    """comparison.json and comparison.csv, each replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / JSON_FILE, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    _replace(folder / CSV_FILE, csv_of(found))


def csv_of(found: Mapping[str, Any]) -> str:
    """A row for each run, tuning runs first; numbers in full precision, empty where there is none."""
    tuning = (found["tuning"] or {}).get("cells", [])
    rows = [{"purpose": purpose, **_flat(c)} for purpose, part in (("tuning", tuning), ("report", found["cells"]))
            for c in part]  # fmt: skip
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def _flat(cell: Measured) -> dict[str, Any]:
    plain = {key: value for key, value in cell.items() if key not in (*NOT_SCALAR, "to_target")}
    return plain | {f"{unit}_to_target": value for unit, value in (cell.get("to_target") or {}).items()}


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
