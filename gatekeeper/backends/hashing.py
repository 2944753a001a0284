"""Threads for password hashes that are slow on purpose.

Strategy: few threads, for each computes in its own 19 MiB and more, and no job is given to them
before one is free. Who has to wait for one waits in turn, at the price of a future, and may give
up: the handshake's deadline is also the bound of the queue. A job that nobody waits for any more
keeps its thread until it is done, so that hanging up does not make room for another one.

Every host has its turn, and at each host every name: whoever tries a thousand passwords waits for
them alone.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 2
"""About 100 logins a second."""

_T = TypeVar("_T")

_Waiter = asyncio.Future[None]


class Turns:
    """Who waits: by host, there by user name, there in order."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[str, OrderedDict[bytes, deque[_Waiter]]] = OrderedDict()

    def add(self, host: str, name: bytes, waiter: _Waiter) -> None:
        names = self._hosts.setdefault(host, OrderedDict())
        names.setdefault(name, deque()).append(waiter)

    def next(self) -> _Waiter | None:
        """Whose turn it is, who waits no more; None: nobody waits."""
        while self._hosts:
            host, names = self._hosts.popitem(last=False)
            name, waiters = names.popitem(last=False)
            waiter = waiters.popleft()
            if waiters:
                names[name] = waiters
            if names:
                self._hosts[host] = names
            if not waiter.done():
                return waiter
        return None

    def remove(self, host: str, name: bytes, waiter: _Waiter) -> None:
        """The waiter has given up, whether or not it has been forgotten already."""
        names = self._hosts.get(host, OrderedDict())
        waiters = names.get(name, deque())
        if waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del names[name]
            if not names:
                del self._hosts[host]


class HashingThreads:
    """For one event loop. The threads start with the first jobs, and end with the process."""

    def __init__(self, threads: int = THREADS) -> None:
        self._free = threads
        self._turns = Turns()
        self._executor = ThreadPoolExecutor(threads, "gatekeeper-hash")

    async def run(self, job: Callable[[], _T], host: str, name: bytes) -> _T:
        """The job's result, or whatever it raises. host, name: who is to wait for it."""
        await self._acquire(host, name)
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, job)
        except BaseException:
            self._release()
            raise
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    async def _acquire(self, host: str, name: bytes) -> None:
        if self._free:
            self._free -= 1
            return
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._turns.add(host, name, waiter)
        try:
            await waiter
        except BaseException:
            if waiter.cancelled():
                self._turns.remove(host, name, waiter)
            else:
                self._release()  # its turn came while it gave up
            raise

    def _release(self) -> None:
        waiter = self._turns.next()
        if waiter is None:
            self._free += 1
        else:
            waiter.set_result(None)

    def _done(self, future: asyncio.Future[_T]) -> None:
        self._release()
        if not future.cancelled():
            future.exception()  # has been seen, also where nobody waits for it any more
