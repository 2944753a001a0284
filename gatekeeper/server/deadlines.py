"""Time limits that many tasks have at once, and few ever reach: one timer for all of a kind.

A login has three of them. ``asyncio.timeout`` would make and take back a timer for each, which was
a tenth of a login's work in Python. Those of one length end in the order in which they began, so
the one timer follows the first of them; a task that is done takes its own out of the row.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class TimeLimit:
    """``seconds`` for whoever asks: ``with limit.begin(): ...``. None is no limit."""

    __slots__ = ("_row", "_timer", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._row: dict[Deadline, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> Deadline:
        return Deadline(self)

    def add(self, deadline: Deadline) -> None:
        if self.seconds is None:
            return
        loop = asyncio.get_running_loop()
        at = self._row[deadline] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(at, self._look)

    def remove(self, deadline: Deadline) -> None:
        self._row.pop(deadline, None)

    def _look(self) -> None:
        """The timer stays behind those that were taken out, and may find nothing to do."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._row:
            first, at = next(iter(self._row.items()))
            if at > now:
                self._timer = loop.call_at(at, self._look)
                return
            del self._row[first]
            first.reach()


class Deadline:
    """One task's: as ``asyncio.timeout``, whose rules for cancellation these are.

    The block raises TimeoutError when the time is over, unless the task was cancelled besides.
    """

    __slots__ = ("_cancelling", "_limit", "_reached", "_task")

    def __init__(self, limit: TimeLimit) -> None:
        self._limit = limit
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._reached = False

    def __enter__(self) -> Self:
        task = self._task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline is a task's")
        self._cancelling = task.cancelling()
        self._limit.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._limit.remove(self)
        task, self._task = self._task, None
        if not self._reached or task is None or task.uncancel() > self._cancelling:
            return
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error

    def lift(self) -> None:
        """From here on there is no limit."""
        self._limit.remove(self)

    def reach(self) -> None:
        """The time is over (the limit says so)."""
        self._reached = True
        if self._task is not None:
            self._task.cancel()
