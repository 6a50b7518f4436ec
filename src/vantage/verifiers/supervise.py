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
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

Reason = Literal["exit", "wall", "cpu", "output", "disk", "stopped"]
TICK = 0.05
"""Seconds between looks at the disk and at the caller's wish to stop."""
MOST_FILES = 4096
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
            remove(self.scratch)
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
    total, count, waiting = 0, 0, [folder]
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # gone meanwhile
                        continue
                    count, total = count + 1, total + found.st_blocks * 512
                    if count > MOST_FILES or total > most:
                        return False
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(entry.path)
    except FileNotFoundError:
        return True
    except OSError:  # no permission, or a path too long to be meant well
        return False
    return True


def remove(folder: str) -> None:
    """Remove a folder whatever is in it: no permissions, or folders nested deeper than a path can say."""
    with contextlib.suppress(OSError):
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # Every round lifts the contents of folders one level up, until only empty ones are left.
            while entries := os.listdir(top):
                for name in entries:
                    _remove_entry(top, name)
        finally:
            os.close(top)
        os.rmdir(folder)


def _remove_entry(top: int, name: str) -> None:
    if not stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
        os.unlink(name, dir_fd=top)
        return
    os.chmod(name, 0o700, dir_fd=top)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        for child in os.listdir(inner):
            if stat.S_ISDIR(os.lstat(child, dir_fd=inner).st_mode):
                os.chmod(child, 0o700, dir_fd=inner)
                os.rename(child, os.urandom(16).hex(), src_dir_fd=inner, dst_dir_fd=top)
            else:
                os.unlink(child, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)
