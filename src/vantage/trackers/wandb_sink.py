"""Weights & Biases. WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and the like act as they always do; the project is `vantage`."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Mapping
from typing import Any

from vantage.trackers.base import Rows, Tracker, table


class WandbTracker(Tracker):
    """A run of wandb; its files go to RUN/wandb."""

    def start(self, config: Mapping[str, Any], run_name: str, resume_id: str | None, step: int) -> str:
        """See `Tracker`; the id is wandb's run id."""
        self.wandb = importlib.import_module("wandb")
        identity = resume_id or uuid.uuid4().hex[:12]
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "vantage",
            name=run_name,
            id=identity,
            resume="allow",
            dir=str(self.folder),
            config=dict(config),
            allow_val_change=True,  # a resumed run may have more steps than the first part
        )
        return identity

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.run.log(dict(row), step=step)

    def samples(self, step: int, rows: Rows) -> None:
        """See `Tracker`; the table is `samples`."""
        columns, cells = table(rows)
        self.run.log({"samples": self.wandb.Table(columns=columns, data=cells)}, step=step)

    def finish(self) -> None:
        """See `Tracker`."""
        self.run.finish()
