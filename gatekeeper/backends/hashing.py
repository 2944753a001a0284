"""Threads for password hashes that are slow on purpose.

Strategy: few threads, for each computes in its own 19 MiB and more, and no job is given to them
before one is free. Who has to wait for one waits in order, at the price of a future, and may
give up: the handshake's deadline is also the bound of the queue. A job that nobody waits for any
more keeps its thread until it is done, so that hanging up does not make room for another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 2
"""About 100 logins a second."""

_T = TypeVar("_T")


class HashingThreads:
    """For one event loop. The threads start with the first jobs, and end with the process."""

    def __init__(self, threads: int = THREADS) -> None:
        self._free = asyncio.Semaphore(threads)
        self._executor = ThreadPoolExecutor(threads, "gatekeeper-hash")

    async def run(self, job: Callable[[], _T]) -> _T:
        """The job's result, or whatever it raises."""
        await self._free.acquire()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, job)
        except BaseException:
            self._free.release()
            raise
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    def _done(self, future: asyncio.Future[_T]) -> None:
        self._free.release()
        if not future.cancelled():
            future.exception()  # has been seen, also where nobody waits for it any more
