"""Runs asynchronous reward functions side by side, whether or not the caller is inside an event loop already."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Sequence
from typing import Any


class PrivateLoop:
    """An event loop on a thread of its own.

    It lives as long as its owner: clients, locks and sessions that a reward function keeps between calls belong to
    one loop, and a new loop for every call would break them.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="vantage-rewards", daemon=True)
        thread.start()
        weakref.finalize(self, _stop, self._loop, thread)

    def gather(self, awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
        """Await all together. The place of one that raised holds its exception; nothing is raised for it here."""
        future = asyncio.run_coroutine_threadsafe(_gather(awaitables), self._loop)
        try:
            return future.result()
        except BaseException:  # the caller's thread was interrupted: leave nothing running behind it
            future.cancel()
            raise


async def _gather(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*(_outcome(awaitable) for awaitable in awaitables)))


async def _outcome(awaitable: Awaitable[Any]) -> Any:
    """The result or the exception. SystemExit must not reach the loop: it would end it with the caller waiting."""
    try:
        return await awaitable
    except BaseException as error:
        return error


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if loop.is_closed():
        return
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(timeout=1.0)
    if not loop.is_running():
        loop.close()
