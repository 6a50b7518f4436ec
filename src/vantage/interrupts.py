"""SIGINT and SIGTERM while training: the running step is finished, then a checkpoint, then a message how to go on."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(Exception):  # noqa: N818 (an interruption is no error)
    """Training stopped on a signal, after a checkpoint; `str()` says how to go on."""

    def __init__(self, signal_number: int, step: int, steps: int, run: Path) -> None:
        self.signal = signal_number
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after step {step} of {steps}, checkpoint written; "
            f"go on with: vantage train {run / 'config.yaml'} --out {run} --resume auto"
        )


class Abandoned(Exception):  # noqa: N818 (named for what happened)
    """Training stopped because another process was lost; `str()` says what there is to go on from."""

    def __init__(self, reason: str, step: int, run: Path) -> None:
        from vantage.checkpoint import newest

        saved = newest(run / "checkpoints")
        found = f"the newest checkpoint is {saved}" if saved else "there is no checkpoint yet"
        super().__init__(
            f"{reason} in step {step}; {found}; go on with the same command and --out {run} --resume auto "
            "(any number of processes)"
        )


class Interrupts:
    """Context in which the first SIGINT or SIGTERM is only noted in `caught`; a second one acts as usual."""

    def __init__(self, loud: bool = True) -> None:
        self.loud = loud
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        signal.signal(number, self._before[number])
        name = signal.Signals(number).name
        if not self.loud:
            return
        print(f"\n{name}: finishing this step, then a checkpoint; once more stops at once", file=sys.stderr, flush=True)
