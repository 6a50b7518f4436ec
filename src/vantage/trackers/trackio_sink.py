"""trackio: a local dashboard (`trackio show`), or a Space where TRACKIO_SPACE_ID names one; TRACKIO_PROJECT or `vantage`."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Mapping
from typing import Any

from vantage.trackers.base import Rows, Tracker, table


class TrackioTracker(Tracker):
    """A run of trackio, which knows its runs by name: the id is the name with a suffix that makes it the only one."""

    def start(self, config: Mapping[str, Any], run_name: str, resume_id: str | None, step: int) -> str:
        """See `Tracker`."""
        self.trackio = importlib.import_module("trackio")
        identity = resume_id or f"{run_name}-{uuid.uuid4().hex[:6]}"
        self.run = self.trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or "vantage",
            name=identity,
            space_id=os.environ.get("TRACKIO_SPACE_ID") or None,
            config=dict(config),
            resume="never" if resume_id is None else "allow",
        )
        return identity

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.run.log(dict(row), step=step)

    def samples(self, step: int, rows: Rows) -> None:
        """See `Tracker`; the table is `samples`."""
        columns, cells = table(rows)
        self.run.log({"samples": self.trackio.Table(columns=columns, data=cells)}, step=step)

    def finish(self) -> None:
        """See `Tracker`."""
        self.run.finish()
