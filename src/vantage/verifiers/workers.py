"""How does a verifier that may hang or die on hostile text stay away from the run? It works in processes of its own.

`Workers` keeps a few processes, each with one verifier, and gives them responses one at a time. They are fresh interpreters,
not forks: a fork of a process that holds torch, its threads and its memory is neither safe nor cheap. Whatever takes longer
than its time on the clock is killed and replaced, and so is whatever dies. `Isolated` is any verifier behind such workers.
"""

from __future__ import annotations

import importlib.util
import math
import os
import pickle
import selectors
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vantage.errors import UserError
from vantage.plugins import one_line
from vantage.verifiers.base import BatchVerifier, Verdict
from vantage.verifiers.process import Worker, framed
from vantage.verifiers.worker import EXHAUSTED, make

MOST_STARTS = 3
"""Starts in a row that may fail."""


@dataclass(frozen=True)
class WorkerLimits:
    """What a worker may use; seconds are on the clock."""

    seconds: float = 10.0
    """For one response."""
    batch_seconds: float | None = 120.0
    """For a whole batch: what is not judged by then stays unjudged. None: no limit. Should be well below `--reward-timeout`."""
    start_seconds: float = 60.0
    """For a start with all its imports."""
    memory_bytes: int | None = 2 << 30
    """Address space, where the system limits it (Linux). None: no limit."""

    def __post_init__(self) -> None:
        for name in ("seconds", "batch_seconds", "start_seconds", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"verifier workers: {name} must be above 0, got {value}")


class Workers:
    """A few processes that judge responses.

    A response that takes too long is unjudged, with a note; so is one whose worker dies twice over it, since a first death
    may have had its cause in what the worker did before. Processes are started when there is work, at most as many as there
    is work for, and end with this object or with this process. Several threads may use it; it does one batch at a time.

    Args:
        make: what the worker calls for its verifier: `MODULE:NAME` or `FILE.py:NAME`.
        options: keywords of that call; they must pickle.
        count: processes; by default one a core, at most 8, shared among the processes that a launcher started here.
        limits: time and memory.
        confined: whether they give up network, new processes and changes to files, see `vantage.verifiers.worker.confine`.

    Raises:
        UserError: options that can not be sent, a count below 1, or a system without such processes.
    """

    def __init__(
        self,
        make: str,
        options: Mapping[str, Any] | None = None,
        *,
        count: int | None = None,
        limits: WorkerLimits | None = None,
        confined: bool = False,
    ) -> None:
        if sys.platform == "win32":
            raise UserError("verifier workers: they need Linux or macOS, this is Windows")
        if count is not None and count < 1:
            raise UserError(f"verifier workers: count must be 1 or more, got {count}")
        self.limits = limits or WorkerLimits()
        self.count = count or default_count()
        setup = {
            "make": make,
            "options": dict(options or {}),
            "seconds": self.limits.seconds,
            "memory_bytes": self.limits.memory_bytes,
            "confined": confined,
        }
        try:
            self._setup = framed(pickle.dumps(setup))
        except Exception as error:
            raise UserError(f"verifier workers: options can not be sent to a process: {one_line(error)}") from error
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._pid = os.getpid()
        weakref.finalize(self, _end_all, self._workers, self._pid)

    def judge(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """A verdict a response, in the time that the limits give; never raises because of one."""
        with self._lock:
            if os.getpid() != self._pid:  # after a fork, the processes and the pipes are the parent's
                self._workers, self._pid = [], os.getpid()
                weakref.finalize(self, _end_all, self._workers, self._pid)
            batch = _Batch(self, texts, rows)
            try:
                batch.run()
            except BaseException:  # interrupted: what the workers are at is not known any more
                _end_all(self._workers, self._pid)
                raise
            return [verdict or Verdict(None, "was not judged") for verdict in batch.verdicts]

    def close(self) -> None:
        """End all processes; further work starts new ones."""
        with self._lock:
            _end_all(self._workers, self._pid)

    def start(self) -> Worker:
        """One more process."""
        worker = Worker(self._setup, self.limits.start_seconds)
        self._workers.append(worker)
        return worker

    def drop(self, worker: Worker, lost: bool = False) -> str:
        """End a process; says how it had ended if it was `lost` by itself."""
        self._workers.remove(worker)
        return worker.end(lost)

    @property
    def workers(self) -> list[Worker]:
        """Those that are there."""
        return self._workers


class _Batch:
    """The work on one batch."""

    def __init__(self, pool: Workers, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self.pool, self.limits = pool, pool.limits
        self.verdicts: list[Verdict | None] = [None] * len(texts)
        self.requests: list[bytes] = []
        self.deaths = [0] * len(texts)
        self.failed_starts = 0
        self.last_failure = ""
        self.deadline = time.monotonic() + (self.limits.batch_seconds or math.inf)
        for index, (text, row) in enumerate(zip(texts, rows, strict=True)):
            try:
                self.requests.append(framed(pickle.dumps((text, dict(row)))))
            except Exception as error:
                self.requests.append(b"")
                self.verdicts[index] = Verdict(None, f"has columns that can not be sent: {one_line(error)}")
        self.waiting = deque(index for index, verdict in enumerate(self.verdicts) if verdict is None)

    def run(self) -> None:
        """Judge what can be judged; what is left without a verdict was not."""
        while self.waiting or self._busy():
            if time.monotonic() >= self.deadline:
                return self._give_up(f"was not judged: the batch took longer than {self.limits.batch_seconds:g} s")
            if self.failed_starts >= MOST_STARTS:
                return self._give_up(f"was not judged: no worker starts: {self.last_failure}")
            self._hand_out()
            self._wait()
            self._kill_late_ones()
        return None

    def _busy(self) -> list[Worker]:
        return [worker for worker in self.pool.workers if worker.state == "busy"]

    def _hand_out(self) -> None:
        for worker in self.pool.workers:
            if worker.state == "idle" and self.waiting:
                task = self.waiting.popleft()
                worker.give(task, self.requests[task], self.limits.seconds)
        there = len(self.pool.workers)
        coming = sum(worker.state == "starting" for worker in self.pool.workers)
        for _ in range(min(self.pool.count - there, len(self.waiting) - coming)):
            try:
                self.pool.start()
            except OSError as error:
                self.failed_starts, self.last_failure = self.failed_starts + 1, one_line(error)
                return

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            soonest = self.deadline
            for worker in self.pool.workers:
                selector.register(worker.back, selectors.EVENT_READ, worker)
                if worker.outbox:
                    selector.register(worker.to, selectors.EVENT_WRITE, worker)
                if worker.state != "idle":
                    soonest = min(soonest, worker.deadline)
            ready = selector.select(min(max(0.0, soonest - time.monotonic()), 1.0))
        for key, events in ready:
            worker = key.data
            if worker not in self.pool.workers:
                continue
            if events & selectors.EVENT_WRITE:
                worker.write()
            else:
                self._hear(worker)

    def _hear(self, worker: Worker) -> None:
        try:
            message = worker.read()
            if message is not None:
                self._take(worker, message)
        except EOFError:
            self._lose(worker)

    def _take(self, worker: Worker, message: dict[str, Any]) -> None:
        if worker.state == "starting" and message == {"ready": True}:
            worker.state, self.failed_starts = "idle", 0
        elif worker.state == "starting" and isinstance(message.get("failed"), str):
            self._lose(worker, message["failed"])
        elif worker.state == "busy" and (verdict := _verdict(message)) is not None:
            if verdict.note == EXHAUSTED:
                self._lose(worker, EXHAUSTED)
            else:
                self.verdicts[worker.task], worker.state = verdict, "idle"
        else:
            raise EOFError

    def _lose(self, worker: Worker, reason: str = "") -> None:
        """A worker has ended, or will be of no use any more."""
        ended = self.pool.drop(worker, lost=not reason)
        if worker.state == "starting":
            self.failed_starts, self.last_failure = self.failed_starts + 1, reason or ended
        elif worker.state == "busy":
            self.deaths[worker.task] += 1
            if self.deaths[worker.task] < 2:
                self.waiting.append(worker.task)
            else:
                self.verdicts[worker.task] = Verdict(None, reason or ended, fatal=True)

    def _kill_late_ones(self) -> None:
        now = time.monotonic()
        for worker in [w for w in self.pool.workers if w.state != "idle" and now >= w.deadline]:
            if worker.state == "starting":
                self._lose(worker, f"it took longer than {self.limits.start_seconds:g} s")
            else:
                self.pool.drop(worker)
                self.verdicts[worker.task] = Verdict(None, f"took longer than {self.limits.seconds:g} s", fatal=True)

    def _give_up(self, note: str) -> None:
        for worker in self._busy():
            self.pool.drop(worker)
        self.verdicts = [verdict or Verdict(None, note) for verdict in self.verdicts]
        self.waiting.clear()


class Isolated(BatchVerifier):
    """Any verifier, in worker processes.

    Args:
        make: what gives the verifier: `MODULE:NAME` or `FILE.py:NAME`. It is called here once for name and version, and in
            every worker, so the module should be quick to import.
        options: its keywords.
        columns: names of the columns that it reads; others are not sent. None: all.
        count, limits, confined: see `Workers`.

    Raises:
        UserError: there is no such verifier, or it can not be isolated.
    """

    def __init__(
        self,
        make: str,
        options: Mapping[str, Any] | None = None,
        *,
        columns: Sequence[str] | None = None,
        count: int | None = None,
        limits: WorkerLimits | None = None,
        confined: bool = False,
    ) -> None:
        verifier = _made(make, options or {})
        self.name, self.version = str(verifier.name), str(verifier.version)
        self.columns = None if columns is None else frozenset(columns)
        if ".py:" in make:  # a worker may run elsewhere
            file, _, name = make.rpartition(":")
            make = f"{Path(file).expanduser().resolve()}:{name}"
        self.workers = Workers(make, options, count=count, limits=limits, confined=confined)

    def judge(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """A verdict a response, see `Workers.judge`."""
        if self.columns is not None:
            rows = [{name: value for name, value in row.items() if name in self.columns} for row in rows]
        return self.workers.judge(texts, rows)

    def close(self) -> None:
        """End the processes."""
        self.workers.close()


def _made(spec: str, options: Mapping[str, Any]) -> Any:
    module, _, name = spec.partition(":")
    if ".py:" not in spec and not (module and name and importlib.util.find_spec(module.partition(".")[0])):
        raise UserError(f"verifier workers: {spec!r} is neither MODULE:NAME nor FILE.py:NAME")
    try:
        return make(spec, options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"verifier workers: {spec} gives no verifier: {one_line(error)}") from error


def default_count() -> int:
    """One process a core that this process may use, at most 8, shared with the other processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, min(8, cores // max(1, int(beside) if beside.isdecimal() else 1)))


def _verdict(message: dict[str, Any]) -> Verdict | None:
    """A worker's answer as a verdict; None if it is not one."""
    if message.keys() != {"score", "note"}:
        return None
    score, note = message["score"], message["note"]
    if not (note is None or isinstance(note, str)):
        return None
    if score is None or (isinstance(score, float) and math.isfinite(score)):
        return Verdict(score, note)
    return None


def _end_all(workers: list[Worker], pid: int) -> None:
    if os.getpid() == pid:  # a fork must not end what is not its own
        while workers:
            workers.pop().end()
