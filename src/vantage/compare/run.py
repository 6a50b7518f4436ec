"""How are the runs of a comparison made? Each in a process of its own, one after another or side by side, going on where it
stopped."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vantage.compare.board import Board, Clock
from vantage.compare.cells import last_row, share_done, state_of
from vantage.compare.plan import Cell
from vantage.errors import UserError
from vantage.interrupts import Interrupts
from vantage.page import duration
from vantage.settings.configfile import dump_yaml

LOOK_EVERY = 1.0
"""Seconds between looks at a run on a live terminal."""
STOPPED = {128 + number: number.name for number in (signal.SIGINT, signal.SIGTERM)}


class Stopped(Exception):  # noqa: N818 (an interruption is no error)
    """The comparison was interrupted; `str()` says where."""

    def __init__(self, number: int, where: str) -> None:
        self.signal = number
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")


@dataclass(frozen=True)
class Ended:
    """How a run's process ended."""

    status: int
    note: str = ""
    """Its last words, if it failed."""


class Runner(Protocol):
    """Makes one run; `alive()` must be called from time to time and returns the signal that asks it to stop, or 0."""

    def __call__(self, cell: Cell, alive: Callable[[], int]) -> Ended:
        """Make the run in `cell.path`, which may have begun; returns when it is finished, has failed or was stopped."""


def run_process(cell: Cell, alive: Callable[[], int]) -> Ended:
    """`vantage train` in a process of its own; what it prints goes to a log beside the run's folder.

    The process gets a signal once (and again if it comes again): it finishes its step and writes a checkpoint.
    """
    settings, log = cell.path.with_name(cell.path.name + ".yaml"), cell.path.with_name(cell.path.name + ".log")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(dump_yaml(cell.config), encoding="utf-8")
    command = [sys.executable, "-m", "vantage", "train", str(settings), "--out", str(cell.path), "--resume", "auto"]
    with log.open("w", encoding="utf-8") as file:
        # A session of its own: Ctrl-C reaches only us, so that the run does not get it twice and stop at once.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **cell.environment},
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
        try:
            sent = False
            while True:
                try:
                    status = process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    if (number := alive()) and not sent:
                        sent = True
                        process.send_signal(number)
        except BaseException:
            process.kill()
            process.wait()
            raise
    return Ended(status, "" if status == 0 else _last_words(log.read_text(encoding="utf-8", errors="replace"), status))


def _die_with_parent() -> None:
    """A comparison that is killed must not leave a run behind, which the next attempt would meet in its folder."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _last_words(log: str, status: int) -> str:
    """The last line that a failed process wrote, in one line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    if status in STOPPED:
        return f"stopped by {STOPPED[status]} from outside"
    said = lines[-1] if lines else f"ended with status {status}"
    return said.removeprefix("vantage: error: ")[:300]


@dataclass
class Progressed:
    """Where a sequence of runs stands, across tuning and reporting."""

    board: Board
    done: int = 0
    finished: int = 0
    """Runs that ended well."""
    notes: dict[str, str] = field(default_factory=dict)
    """By run folder: why it failed."""
    clock: Clock = field(default_factory=Clock)


def run_cells(
    cells: Sequence[Cell],
    later: Sequence[Cell],
    runner: Runner,
    where: Progressed,
    after_each: Callable[[Mapping[str, str]], Any],
    slots: Sequence[Mapping[str, str]] = ({},),
) -> None:
    """Make the runs that are not finished yet; what fails leaves a note in `where`, and the others go on.

    Args:
        cells: Runs to make, in this order.
        later: Runs that come after these, for the time that is left.
        runner: Makes one run.
        where: Counts on.
        after_each: Called with the notes after each run.
        slots: As many runs go side by side; each has the environment that its runs get.

    Raises:
        Stopped: a signal came; the running run has written its checkpoint.
        UserError: the very first run says that the input is wrong: no other run would fare better.
    """
    with Interrupts() as interrupts:
        if len(slots) > 1:
            side_by_side(cells, later, runner, where, after_each, slots, interrupts)
            return
        for index, cell in enumerate(cells):
            where.done += 1
            if state_of(cell) == "finished":
                where.finished += 1
                _tell(where, where.done, cell, "already finished", [*cells[index + 1 :], *later])
                continue
            waiting = [c for c in (*cells[index:], *later) if state_of(c) != "finished"]
            _run_one(where.done, dataclasses.replace(cell, environment=slots[0]), waiting, runner, where, interrupts)
            if not interrupts.caught:
                after_each(where.notes)
            if interrupts.caught:
                raise Stopped(interrupts.caught, f"in run {where.done} of {where.board.total} ({cell.name})")


class Caught(Protocol):
    """What knows whether a signal came."""

    @property
    def caught(self) -> int | None:
        """Its number, or None."""


def side_by_side(
    cells: Sequence[Cell], later: Sequence[Cell], runner: Runner, where: Progressed,
    after_each: Callable[[Mapping[str, str]], Any], slots: Sequence[Mapping[str, str]], interrupts: Interrupts,
) -> None:  # fmt: skip
    """As `run_cells`, with a thread for each slot; what is seen of the runs is told as they end."""
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

    ending, free = Ending(interrupts), list(slots)
    waiting, running = list(cells), dict[Future[None], tuple[Cell, Mapping[str, str]]]()
    with ThreadPoolExecutor(len(slots)) as pool:
        try:
            while waiting or running:
                while waiting and free and not ending.caught:
                    cell, number = waiting.pop(0), where.done + 1
                    where.done = number
                    if state_of(cell) == "finished":
                        where.finished += 1
                        _tell(where, number, cell, "already finished", [*waiting, *later])
                        continue
                    slot = free.pop(0)
                    left = [cell, *(c for c in (*waiting, *later) if state_of(c) != "finished")]
                    made = dataclasses.replace(cell, environment=slot)
                    running[pool.submit(_run_one, number, made, left, runner, where, ending)] = (cell, slot)
                if not running:
                    break
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    free.append(running.pop(future)[1])
                    future.result()
                    if not ending.caught:
                        after_each(where.notes)
        except BaseException as error:
            ending.why = error  # the others are told to stop
            raise
    if interrupts.caught:
        raise Stopped(interrupts.caught, f"after {where.finished} of {where.board.total} runs")


@dataclass
class Ending:
    """Whether runs that go side by side must come to an end: a signal, or a mistake that one of them found."""

    interrupts: Interrupts
    why: BaseException | None = None

    @property
    def caught(self) -> int | None:
        """The signal to pass on; SIGTERM after a mistake."""
        if isinstance(self.why, KeyboardInterrupt):
            raise KeyboardInterrupt
        return signal.SIGTERM if self.why is not None else self.interrupts.caught


def _run_one(
    number: int, cell: Cell, waiting: Sequence[Cell], runner: Runner, where: Progressed, interrupts: Caught
) -> None:
    started, looked, board = time.perf_counter(), 0.0, where.board
    begun = share_done(last_row(cell)[0], cell.config)

    def alive() -> int:
        nonlocal looked
        running = time.perf_counter() - started
        if board.live and running - looked >= LOOK_EVERY:
            looked = running
            row, accuracy = last_row(cell)
            fresh = max(0.0, share_done(row, cell.config) - begun) / max(1e-9, 1 - begun)
            left = where.clock.left(waiting, running, fresh)
            board.show(number, cell, int(row.get("step") or 0), accuracy, left)
        return interrupts.caught or 0

    if board.live:
        board.show(number, cell, 0, None, where.clock.left(waiting))
    ended = runner(cell, alive)
    seconds = time.perf_counter() - started
    if interrupts.caught:
        return
    if ended.status == 0 and state_of(cell) == "finished":
        where.finished += 1
        where.notes.pop(str(cell.path), None)
        where.clock.add(cell.algorithm, seconds)
        _tell(where, number, cell, f"{seconds:.0f} s", waiting[1:])
    elif ended.status == 2 and where.finished == 0 and not where.notes and state_of(cell) == "new":
        _leave_nothing(cell)
        raise UserError(f"{cell.name}: {ended.note}")
    else:
        note = ended.note or "ended without a result"
        where.notes[str(cell.path)] = note
        board.say(f"run {number} of {board.total}: {cell.name} failed: {note}")


def _leave_nothing(cell: Cell) -> None:
    """Remove what was written for a run that could not begin, and the folders that are empty then."""
    for ending in (".yaml", ".log"):
        cell.path.with_name(cell.path.name + ending).unlink(missing_ok=True)
    for folder in cell.path.parents[:2]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _tell(where: Progressed, number: int, cell: Cell, how: str, waiting: Sequence[Cell]) -> None:
    _, accuracy = last_row(cell)
    left = where.clock.left([c for c in waiting if state_of(c) != "finished"])
    known = "" if accuracy is None else f"accuracy {accuracy:.3f}, "
    remaining = "" if not left else f", {duration(left)} left"
    where.board.say(f"run {number} of {where.board.total}: {cell.name}: {known}{how}{remaining}")
