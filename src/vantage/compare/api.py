"""The whole comparison: tune, run, aggregate, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vantage.compare.board import Board
from vantage.compare.cells import refuse_other
from vantage.compare.plan import Cell, Comparison, plan, resolved, workload
from vantage.compare.results import JSON_FILE, measured_tuning, results, tuning_table, write_results
from vantage.compare.run import Progressed, Runner, run_cells, run_process
from vantage.compare.slots import slots_of
from vantage.errors import UserError
from vantage.estimators.base import Algorithm
from vantage.workload import Workload


@dataclass(frozen=True)
class Outcome:
    """A finished comparison."""

    out: Path
    report: Path
    results: dict[str, Any]
    """What comparison.json holds."""
    failed: dict[str, str]
    """Why runs failed, by folder; empty if all went well."""


def compare(
    algos: Sequence[str | Algorithm] | Mapping[str, str | Algorithm],
    *,
    runner: Runner = run_process,
    silent: bool = False,
    **request: Any,
) -> Outcome:
    """Compare algorithms on the same work; arguments as `vantage.compare.plan.plan` takes them.

    Args:
        algos: What `--algo` takes, or algorithms with their options; a mapping names variants of one algorithm.
        runner: Makes one run; another than the default may run it elsewhere.
        silent: Print nothing.
        request: `seeds`, `steps` or `budget_tokens` or `budget_seconds`, `tune`, `learning_rates`, `tune_seeds`,
            `target`, `out`, and any field of `TrainConfig`.

    Raises:
        UserError: a mistake in what is asked for, before anything is written.
        Stopped: SIGINT or SIGTERM; the same call goes on.
    """
    return run_comparison(plan(algos, **request), runner=runner, silent=silent)


def run_comparison(comparison: Comparison, runner: Runner = run_process, silent: bool = False) -> Outcome:
    """Make what is missing of a planned comparison, and write results and report; raises as `compare` does."""
    work = workload(comparison.base)
    check_folder(comparison, work)
    tuning, cells = comparison.tuning_cells(), comparison.cells()
    chosen: dict[str, float] | None = None
    with Board(len(tuning) + len(cells), silent) as board:
        where, slots = Progressed(board), slots_of(comparison.jobs, comparison.base.device)
        run_cells(tuning, cells, runner, where, lambda notes: save(comparison, notes, None), slots)
        if tuning:
            chosen = choose(comparison, where.notes)
            cells = comparison.cells(chosen)
            refuse_others(cells, work)
            for name, rate in chosen.items():
                board.say(f"{name}: learning rate {rate:g} was the best on the tuning seeds")
        run_cells(cells, [], runner, where, lambda notes: save(comparison, notes, chosen), slots)
        found = save(comparison, where.notes, chosen)
    from vantage.compare.report import write_comparison_report

    return Outcome(comparison.out, write_comparison_report(found, comparison.out), found, where.notes)


def check_folder(comparison: Comparison, work: Workload) -> None:
    """Raise `UserError` where the folder, or a run in it, is not of this comparison; nothing is written."""
    out = comparison.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: this is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in (JSON_FILE, *FOLDERS)):
        raise UserError(f"--out {out}: this folder holds other files and no comparison; choose another")
    refuse_others(comparison.tuning_cells(), work)
    if not comparison.learning_rates:
        refuse_others(comparison.cells(), work)


FOLDERS = ("cells", "tuning")


def refuse_others(cells: Sequence[Cell], work: Workload) -> None:
    """Raise `UserError` for a run that is there already and was made with another configuration."""
    for cell in cells:
        refuse_other(cell, resolved(cell, work))


def choose(comparison: Comparison, notes: Mapping[str, str]) -> dict[str, float]:
    """The learning rate of each algorithm from the tuning runs; an algorithm without one is missing."""
    table = tuning_table(comparison, measured_tuning(comparison, notes))
    found = {} if table is None else {name: row["chosen"] for name, row in table["algorithms"].items()}
    return {name: rate for name, rate in found.items() if rate is not None}


def save(comparison: Comparison, notes: Mapping[str, str], chosen: Mapping[str, float] | None) -> dict[str, Any]:
    """Write what is known now, so that an interrupted comparison leaves its numbers too."""
    found = results(comparison, notes, chosen)
    write_results(found, comparison.out)
    return found
