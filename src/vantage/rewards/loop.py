"""Runs asynchronous reward functions side by side, whether or not the caller is inside an event loop already."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Sequence
from typing import Any

from vantage.rewards.limits import TooSlow

GRACE = 1.0
"""Seconds beyond the limit that the loop has to answer."""


class PrivateLoop:
    """An event loop on a thread of its own.

    It lives as long as its owner: clients, locks and sessions that a reward function keeps between calls belong to
    one loop, and a new loop for every call would break them.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._blocked = False
        thread = threading.Thread(target=self._loop.run_forever, name="vantage-rewards", daemon=True)
        thread.start()
        weakref.finalize(self, _stop, self._loop, thread)

    @property
    def alive(self) -> bool:
        """Whether it can still be used: not once a function has blocked it."""
        return not self._blocked

    def gather(self, awaitables: Sequence[Awaitable[Any]], limit: float | None = None) -> list[Any]:
        """Await all together, each for `limit` seconds. The place of one that raised or took longer holds an exception."""
        found: list[Any] = [None if limit is None else TooSlow(limit)] * len(awaitables)
        future = asyncio.run_coroutine_threadsafe(_gather(awaitables, limit, found), self._loop)
        try:
            # One that blocks the loop itself can not be cancelled there: after some grace it is left behind.
            future.result(None if limit is None else limit + GRACE)
        except TimeoutError:
            self._blocked = True
        except BaseException:  # the caller's thread was interrupted: leave nothing running behind it
            future.cancel()
            raise
        return list(found)


async def _gather(awaitables: Sequence[Awaitable[Any]], limit: float | None, found: list[Any]) -> None:
    await asyncio.gather(*(_outcome(awaitable, limit, found, i) for i, awaitable in enumerate(awaitables)))


async def _outcome(awaitable: Awaitable[Any], limit: float | None, found: list[Any], place: int) -> None:
    """Put down the result or the exception. SystemExit must not reach the loop: it would end it with the caller waiting."""
    try:
        async with asyncio.timeout(limit) as scope:
            found[place] = await awaitable
    except BaseException as error:
        found[place] = TooSlow(limit or 0.0) if scope.expired() else error


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if loop.is_closed():
        return
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(timeout=1.0)
    if not loop.is_running():
        loop.close()
