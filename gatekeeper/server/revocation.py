"""After a change of rights: every connection that it may concern judges its consumers again.

Everything else is judged by the next frame, because the epoch has moved. A consumer sends
nothing, so the change itself must be what sets this off.

Strategy: changes are noted, and worked off in slices of the loop's turns, so that neither
thousands of connections nor thousands of changes (an import) hold up the traffic. One pass over
the connections serves all changes noted by then.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable

from gatekeeper.server.registry import Live

SLICE = 0.005
"""Seconds of a loop's turn. A connection takes 2 us without consumers, some 20 with a few."""


class Revocation:
    """connections: those that are open, whenever it is iterated. For the loop's thread only."""

    def __init__(self, connections: Iterable[Live]) -> None:
        self._connections = connections
        self._users: set[bytes] = set()
        self._permissions: set[tuple[bytes, bytes]] = set()
        self._everybody = False
        self._due: deque[Live] = deque()
        self._scheduled = False

    def user_changed(self, user: bytes) -> None:
        self._users.add(user)
        self._schedule()

    def permissions_changed(self, user: bytes, vhost: bytes) -> None:
        self._permissions.add((user, vhost))
        self._schedule()

    def everything_changed(self) -> None:
        self._everybody = True
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._collect()
        until = time.monotonic() + SLICE
        try:
            while self._due and time.monotonic() < until:
                live = self._due.popleft()
                if live.recheck is not None:
                    live.recheck()
        finally:  # one that fails must not keep the others' consumers alive
            if self._due:
                self._schedule()

    def _collect(self) -> None:
        """Queue whom the changes concern. Who waits already will be judged by the newest rules."""
        if not (self._everybody or self._users or self._permissions):
            return
        everybody, users, permissions = self._everybody, self._users, self._permissions
        self._everybody, self._users, self._permissions = False, set(), set()
        waiting = set(self._due)
        self._due.extend(
            live
            for live in self._connections
            if live not in waiting
            and (everybody or live.user in users or (live.user, live.vhost) in permissions)
        )
