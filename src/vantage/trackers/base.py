"""What is a tracker? The four calls that a run makes, and what it promises about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]


class Tracker:
    """A sink for a run's rows. Subclass it; whatever a call raises ends the reporting, never the run.

    Only the main process makes one. Calls come in order: `start`, then for each step `samples` (where it has any) and
    `log`, then `finish`. Steps are increasing, and no step comes twice, over interruptions too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """The run directory; what a sink keeps on disk goes below it."""

    def start(self, config: Mapping[str, Any], run_name: str, resume_id: str | None, step: int) -> str:
        """Open the run and return its id, which is kept in the run directory.

        `config` is the resolved configuration, as config.yaml has it. With a `resume_id` the run of that id goes on; the
        last step that it was sent is `step`, −1 for none.
        """
        raise NotImplementedError

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """The numbers of a step, by their names in metrics.jsonl; all of them finite."""
        raise NotImplementedError

    def samples(self, step: int, rows: Rows) -> None:
        """Sampled rollouts of a step, as samples.jsonl has them, as a table."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write out what is pending and close; the run may still be resumed later."""


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row of metrics.jsonl, without its step."""
    return {
        name: value
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def table(rows: Rows) -> tuple[list[str], list[list[Any]]]:
    """Columns, in order of first appearance, and cells of sample rows.

    Numbers stay numbers, so that trackers can sort by them; what is neither text nor number becomes text. A row without an
    entry has None.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[_cell(row.get(name)) for name in columns] for row in rows]


def _cell(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
