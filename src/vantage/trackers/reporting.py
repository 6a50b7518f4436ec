"""How do a run's rows reach its trackers without ever getting into the run's way?

`Reporting` holds the trackers of a run. A tracker that raises is named in one line and not called again. What it prints
goes to standard error (standard output is the run's own), and what it draws from the global random generators is put
back, so that a run is the same with and without trackers.

RUN/trackers.json has, for each tracker, the id of its run and the last step that it was sent. A resumed run goes on under
that id. Steps that the tracker has, but that a kill took from metrics.jsonl, are made again and are not sent twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vantage.plugins import one_line
from vantage.trackers import check, load
from vantage.trackers.base import Rows, Tracker, numbers

FILE = "trackers.json"


class Reporting:
    """The trackers of a run; without names (or on a process that is not the main one) it does nothing."""

    def __init__(self, report_to: str | Sequence[str], folder: Path, say: Callable[[str], None] | None = None) -> None:
        """Import the trackers; `say` prints a line (default: to standard error).

        Raises `UserError` as `vantage.trackers.check` does.
        """
        self.folder, self.say = folder, say or _to_standard_error
        self.kept: dict[str, dict[str, Any]] = {}
        self.had: dict[str, int] = {}
        self.open: dict[str, Tracker] = {}
        self.keeping = True
        for name, kind in [(name, load(name)) for name in check(report_to)]:
            with self._guard(name):
                self.open[name] = kind(folder)

    def start(self, config: Mapping[str, Any], run_name: str) -> None:
        """Open a run in each tracker, or go on with the one that the run directory names."""
        self.kept = _read(self.folder / FILE)
        for name, tracker in list(self.open.items()):
            known = self.kept.get(name, {})
            with self._guard(name):
                self.had[name] = int(known.get("step", -1))
                identity = tracker.start(config, run_name, known.get("id"), self.had[name])
                self.kept[name] = {"id": identity, "step": self.had[name]}
        self._keep()

    def log(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""
        step = int(row["step"])
        for name, tracker in list(self.open.items()):
            if step > self.had[name]:
                with self._guard(name):
                    tracker.log(step, numbers(row))
                    self.kept[name]["step"] = step
        self._keep()

    def samples(self, rows: Rows) -> None:
        """Rows of samples.jsonl, all of one step."""
        for name, tracker in list(self.open.items()):
            if rows and int(rows[0]["step"]) > self.had[name]:
                with self._guard(name):
                    tracker.samples(int(rows[0]["step"]), rows)

    def finish(self) -> None:
        """Close every tracker."""
        for name, tracker in list(self.open.items()):
            with self._guard(name):
                tracker.finish()
        self.open = {}

    def _keep(self) -> None:
        """Write ids and steps, atomically; where that fails the trackers' runs can not be resumed, which is said once."""
        if not (self.open and self.keeping):
            return
        draft = self.folder / f".{FILE}.tmp"
        try:
            draft.write_text(json.dumps(self.kept, indent=1), encoding="utf-8")
            os.replace(draft, self.folder / FILE)
        except OSError as error:
            self.keeping = False
            self.say(
                f"trackers: {self.folder / FILE} can not be written ({error.strerror}); a resumed run starts new ones"
            )

    @contextlib.contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        """Let go of a tracker that fails; keep its output and its random draws out of the run."""
        state = _random_state()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except (Exception, SystemExit) as error:
            self.open.pop(name, None)
            self.say(f"tracker {name}: {one_line(error)}; nothing more is sent to it, metrics.jsonl has every row")
        finally:
            _restore(state)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What an earlier part of the run has kept; a file that can not be read means a fresh start."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict)}


def _to_standard_error(text: str) -> None:
    print(f"vantage: {text}", file=sys.stderr, flush=True)


def _random_state() -> tuple[Any, Any]:
    import numpy as np

    return random.getstate(), np.random.get_state()


def _restore(state: tuple[Any, Any]) -> None:
    import numpy as np

    random.setstate(state[0])
    np.random.set_state(state[1])
