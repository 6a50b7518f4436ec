"""TensorBoard, by the package `tensorboard` (through torch) or by `tensorboardX`: event files in RUN/tensorboard."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from vantage.trackers.base import Rows, Tracker, table

ESCAPES = str.maketrans({mark: f"&#{ord(mark)};" for mark in "&<>\\|`*_[]~#"} | {"\n": "<br>"})
"""What keeps text as it is in a cell of a Markdown table."""


class TensorBoardTracker(Tracker):
    """Scalars, the configuration and samples as tables; look at them with `tensorboard --logdir RUN`."""

    def start(self, config: Mapping[str, Any], run_name: str, resume_id: str | None, step: int) -> str:
        """See `Tracker`; the id is the folder's name, for there is one folder a run."""
        logdir = resume_id or "tensorboard"
        # On resume TensorBoard drops what a killed run may have written behind the last step that is on record.
        purge = None if resume_id is None else step + 1
        # tensorboardX names a file by the second: without a suffix, two parts within one second would be one file.
        suffix = f".{step + 1:08d}"
        self.writer = _writer_class()(str(self.folder / logdir), purge_step=purge, filename_suffix=suffix)
        if step < 0:
            entries = [{"setting": name, "value": value} for name, value in _flat(config)]
            self.writer.add_text("config", markdown(entries), 0)
        return logdir

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """See `Tracker`. Flushed at once: who looks at a run wants its last step, and a kill must not lose it."""
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def samples(self, step: int, rows: Rows) -> None:
        """See `Tracker`; a table in the text tab."""
        self.writer.add_text("samples", markdown(rows), step)

    def finish(self) -> None:
        """See `Tracker`."""
        self.writer.close()


def _writer_class() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError:
        return importlib.import_module("tensorboardX").SummaryWriter


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Settings by dotted name."""
    found: list[tuple[str, Any]] = []
    for name, value in config.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return found


def markdown(rows: Rows) -> str:
    """Sample rows as a Markdown table whose cells show their text as it is, line breaks included."""
    columns, cells = table(rows)
    lines = [columns, ["---"] * len(columns), *([_text(value) for value in row] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    """A cell; what HTML or Markdown would take for markup is escaped."""
    if isinstance(value, str):
        return value.replace("\r", "").translate(ESCAPES)
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
