"""How do we talk to one worker process, start it and end it? Nothing here waits for the process to behave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any, Literal

from vantage.verifiers.worker import HEADER

BOOT = "import sys; sys.path[:] = {path!r}; from vantage.verifiers.worker import main; main()"
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Variables that workers inherit. Secrets are often among the others."""
LONGEST_ANSWER = 1 << 16
"""Bytes of a worker's answer; one that sends more has gone astray."""
CHUNK = 1 << 16


class Worker:
    """One process and the state of our talk with it.

    Args:
        setup: the first message, framed: what the verifier is and what it may use, see `vantage.verifiers.worker`.
        start_seconds: time on the clock until it must be ready.
    """

    def __init__(self, setup: bytes, start_seconds: float) -> None:
        path = [folder or os.getcwd() for folder in sys.path]
        self.popen = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-c", BOOT.format(path=path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True,
            env={"OMP_NUM_THREADS": "1", **{name: os.environ[name] for name in ENVIRONMENT if name in os.environ}},
        )  # fmt: skip
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.to, self.back = self.popen.stdin.fileno(), self.popen.stdout.fileno()
        os.set_blocking(self.to, False)
        os.set_blocking(self.back, False)
        self.state: Literal["starting", "idle", "busy"] = "starting"
        self.deadline = time.monotonic() + start_seconds
        self.task = -1
        self.outbox = memoryview(setup)
        self.inbox = bytearray()

    def give(self, task: int, request: bytes, seconds: float) -> None:
        """Have it judge a response; the request is framed."""
        self.state, self.task, self.outbox = "busy", task, memoryview(request)
        self.deadline = time.monotonic() + seconds

    def write(self) -> None:
        """Send as much of what is to be sent as it takes now."""
        # A worker that has died shows it at the other pipe.
        with contextlib.suppress(BlockingIOError):
            try:
                self.outbox = self.outbox[os.write(self.to, self.outbox[:CHUNK]) :]
            except BrokenPipeError:
                self.outbox = memoryview(b"")

    def read(self) -> dict[str, Any] | None:
        """A message if one is complete, else None. Raises EOFError from a worker that has died or talks nonsense."""
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self.back, CHUNK)
            if not chunk:
                raise EOFError
            self.inbox += chunk
        if len(self.inbox) < HEADER:
            return None
        end = HEADER + int.from_bytes(self.inbox[:HEADER], "big")
        if end > LONGEST_ANSWER or len(self.inbox) > end:
            raise EOFError
        if len(self.inbox) < end:
            return None
        try:
            message = json.loads(self.inbox[HEADER:])
        except (ValueError, RecursionError):
            raise EOFError from None
        if not isinstance(message, dict):
            raise EOFError
        self.inbox.clear()
        return message

    def end(self, lost: bool = False) -> str:
        """Kill it with all that it has started. Says what became of it if it was `lost` by itself."""
        for pipe in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        if lost:  # its pipe has closed, it is about to end with a status of its own
            time.sleep(0.02)
        # Not reaped before: the number of its group can not have become another's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(1.0)
        status = self.popen.returncode
        return f"its worker died ({_signal_name(-status) if status and status < 0 else f'status {status}'})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def framed(content: bytes) -> bytes:
    """A message with its length before it."""
    return len(content).to_bytes(HEADER, "big") + content
