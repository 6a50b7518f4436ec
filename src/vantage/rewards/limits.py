"""A wall-clock limit for a call into code that is not ours: a reward function that hangs must not hang the run.

A watchdog thread interrupts the calling thread once the time is up. In the main thread it sends a signal whose handler
raises, which also ends `time.sleep` and a read from a socket; a timer of processor time sends the same signal, for code that
keeps the interpreter to itself and lets no watchdog run, such as a runaway regular expression. (SIGVTALRM: verifiers such as
math-verify use SIGALRM themselves.) In other threads the exception is planted and takes effect at the next bytecode.

What this can not end: a C extension that does not come back to the interpreter, and a loop that swallows `BaseException`.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
AGAIN_AFTER = 0.5
"""Seconds after which a function that has caught the interruption gets the next one."""


class TooSlow(BaseException):
    """A call was ended because its time was up."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(f"took longer than {seconds:g} s")


def within(seconds: float | None, call: Callable[[], T]) -> T:
    """What `call` returns; raises `TooSlow` once it has taken so many seconds (None: no limit)."""
    if seconds is None:
        return call()
    watch = _Watch(seconds)
    try:
        watch.start()
        try:
            return call()
        finally:
            watch.over = True
    except TooSlow:
        raise TooSlow(seconds) from None
    finally:
        watch.stop()


class _Watch:
    """Interrupts the thread that made it, again and again, from `seconds` after the start until the stop."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.over = seconds, False
        self._deadline = time.monotonic() + seconds
        self._done = threading.Event()
        self._target = threading.get_ident()
        self._by_signal = threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_kill")
        self._before: Any = None
        self._thread = threading.Thread(target=self._run, name="vantage-reward-limit", daemon=True)

    def start(self) -> None:
        if self._by_signal:
            self._before = signal.signal(signal.SIGVTALRM, self._raise)
            signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds, AGAIN_AFTER)
        self._thread.start()

    def stop(self) -> None:
        while True:
            # An interruption that was on its way may still arrive in here; it means nothing any more.
            with contextlib.suppress(TooSlow):
                self.over = True
                self._done.set()
                self._thread.join()
                if self._by_signal:
                    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                    signal.signal(signal.SIGVTALRM, self._before)
                else:
                    _plant(self._target, None)
                return

    def _run(self) -> None:
        wait = self.seconds
        while not self._done.wait(wait):
            if self._by_signal:
                signal.pthread_kill(self._target, signal.SIGVTALRM)
            else:
                _plant(self._target, TooSlow)
            wait = AGAIN_AFTER

    def _raise(self, number: int, frame: object) -> None:
        # Processor time of several threads runs ahead of the clock.
        if not self.over and time.monotonic() >= self._deadline:
            raise TooSlow(self.seconds)


def _plant(thread: int, exception: type[BaseException] | None) -> None:
    """Have a thread raise an exception at its next bytecode, or take back one that it has not raised yet."""
    planted = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), planted)
