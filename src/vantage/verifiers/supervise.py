"""What does the parent do while a sandboxed process runs? Reads a limited amount of output, watches clock and disk, kills.

Nothing here waits for the process to be well-behaved: not for its pipes to close, not for its children to end.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

Reason = Literal["exit", "wall", "cpu", "output", "disk", "stopped"]
TICK = 0.05
"""Seconds between looks at the disk and at the caller's wish to stop."""
MOST_FILES, DEEPEST = 1000, 64
"""Files, and folders within folders, beyond which a scratch folder counts as full."""
PATIENCE = 1.0
"""Seconds to wait for a folder to be removed; there are file systems where a folder takes milliseconds."""
CHUNK = 1 << 16


class Process:
    """A process group with pipes to read from.

    Args:
        popen: started in a session of its own.
        pipes: name → (descriptor to read, most bytes to take); one byte more ends the process.
        scratch: folder to watch and to remove at the end, if it is on disk.
        scratch_bytes: what may lie in it.
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        pipes: Mapping[str, tuple[int, int]],
        scratch: str | None,
        scratch_bytes: int,
    ) -> None:
        self.popen, self.scratch, self.scratch_bytes = popen, scratch, scratch_bytes
        self.pipes = dict(pipes)
        self.data = {name: bytearray() for name in pipes}
        self.reason: Reason = "exit"
        self.started = time.monotonic()
        for descriptor, _ in self.pipes.values():
            os.set_blocking(descriptor, False)

    def read(self, name: str) -> bool:
        """Take what is there; False at the end of the pipe."""
        descriptor, most = self.pipes[name]
        try:
            chunk = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        taken = self.data[name]
        if len(taken) + len(chunk) > most:
            self.end("output")
            chunk = chunk[: most - len(taken)]
            taken += chunk
            return False
        taken += chunk
        return bool(chunk)

    def exited(self) -> bool:
        """Whether it has ended by itself. It is not reaped: its group must stay its own until it has been killed."""
        try:
            return os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def end(self, reason: Reason) -> None:
        """Kill the whole group and remember why."""
        if self.reason == "exit":
            self.reason = reason
        self._kill()

    def close(self) -> None:
        """Kill what is left, take what it has written, remove its folder."""
        self._kill()
        self.popen.wait()
        for name, (descriptor, _) in self.pipes.items():
            # What is in a pipe now is all that counts; a process that has escaped may hold it open for ever.
            before = -1
            while self.reason == "exit" and len(self.data[name]) > before:
                before = len(self.data[name])
                self.read(name)
            os.close(descriptor)
        self.pipes = {}
        if self.scratch is not None:
            thread = threading.Thread(target=remove, args=(self.scratch,))
            thread.start()
            thread.join(PATIENCE)
            self.scratch = None

    def _kill(self) -> None:
        if self.popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)


def supervise(processes: Sequence[Process], seconds: float, stop: Callable[[], bool] | None = None) -> None:
    """Watch until the first process has ended, the time is up, or `stop` says so; then all are ended.

    `stop` is asked after every read and at every tick.
    """
    first, deadline = processes[0], time.monotonic() + seconds
    selector = selectors.DefaultSelector()
    looked = 0.0
    try:
        for process in processes:
            for name, (descriptor, _) in process.pipes.items():
                selector.register(descriptor, selectors.EVENT_READ, (process, name))
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                first.end("wall")
                return
            _read(selector, min(left, TICK))
            if stop is not None and stop():
                first.end("stopped")
                return
            if first.exited() or first.reason != "exit":
                return
            if time.monotonic() >= looked + TICK:
                looked = time.monotonic()
                for process in processes:
                    if process.scratch is not None and not within(process.scratch, process.scratch_bytes):
                        process.end("disk")
    finally:
        selector.close()
        for process in processes:
            process.close()


def _read(selector: selectors.BaseSelector, seconds: float) -> None:
    if not selector.get_map():  # it has closed all its pipes
        time.sleep(min(seconds, TICK / 5))
        return
    for key, _ in selector.select(seconds):
        process, name = key.data
        if not process.read(name):
            selector.unregister(key.fileobj)


def within(folder: str, most: int) -> bool:
    """Whether a folder holds at most so many bytes in a sane number of files; one that can not be read does not."""
    total, count, waiting = 0, 0, [(folder, 0)]
    try:
        while waiting:
            path, depth = waiting.pop()
            with os.scandir(path) as entries:
                for entry in entries:
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # gone meanwhile
                        continue
                    count, total = count + 1, total + found.st_blocks * 512
                    if count > MOST_FILES or total > most or depth > DEEPEST:
                        return False
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append((entry.path, depth + 1))
    except FileNotFoundError:
        return True
    except OSError:  # no permission
        return False
    return True


def remove(folder: str) -> None:
    """Remove a folder whatever is in it: no permissions, or folders nested deeper than a path or a stack can say."""
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)
        here = _opened(folder)
        try:
            names: list[str] = []
            while True:
                inner = _emptied(here)
                if inner is not None:  # down
                    names.append(inner)
                    os.chmod(inner, 0o700, dir_fd=here)
                    here = _moved(here, inner)
                elif names:  # up, and remove what is empty now
                    here = _moved(here, "..")
                    os.rmdir(names.pop(), dir_fd=here)
                else:
                    break
        finally:
            os.close(here)
        os.rmdir(folder)


def _opened(path: str, within: int | None = None) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)


def _moved(here: int, path: str) -> int:
    there = _opened(path, here)
    os.close(here)
    return there


def _emptied(folder: int) -> str | None:
    """Unlink the files of a folder, and give the name of one that is a folder, if there is any."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                return entry.name
            os.unlink(entry.name, dir_fd=folder)
    return None
