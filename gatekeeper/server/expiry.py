"""The end of a user's credentials, as a timer.

Source: ``rabbit_reader:maybe_start_credential_expiry_timer`` (4.3.5).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LONGEST = 3600.0
"""Seconds between looks at the clock, which may be set, and which no event loop's timers follow."""


class Expiry:
    """Calls ``expired`` once, when the clock has reached ``at`` (Unix seconds)."""

    __slots__ = ("_at", "_clock", "_expired", "_timer")

    def __init__(
        self, at: int, expired: Callable[[], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._at = at
        self._expired = expired
        self._clock = clock
        self._timer = self._started()

    def cancel(self) -> None:
        self._timer.cancel()

    def _started(self) -> asyncio.TimerHandle:
        # Compared before it is made a float: a token may end in the year 10^30.
        now = self._clock()
        wait = LONGEST if self._at > now + LONGEST else max(0.0, self._at - now)
        return asyncio.get_running_loop().call_later(wait, self._look)

    def _look(self) -> None:
        if self._clock() < self._at:
            self._timer = self._started()
        else:
            self._expired()
