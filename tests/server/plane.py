"""A hub and members with the real duties, over real socket pairs, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from gatekeeper.errors import StoreError
from gatekeeper.logs import Logger
from gatekeeper.model import Peer
from gatekeeper.protocol.session import Session
from gatekeeper.protocol.states import State
from gatekeeper.server.control import Hub, Link
from gatekeeper.server.member import Member
from gatekeeper.server.registry import Live
from gatekeeper.server.shared import SharedRegistry, WorkerDuties


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, text: str, **_fields: object) -> None:
        self.lines.append(text)


class Worker:
    """A member with the real duties over a real registry."""

    def __init__(self, member: Member, link: Link) -> None:
        self.member = member
        self.link = link
        self.registry = SharedRegistry(member)
        self.refreshed = 0
        self.failure: StoreError | None = None
        self.stops: list[bool] = []
        self.exchanges: list[tuple[bytes, bytes]] = []
        self.cleared: list[bytes | None] = []
        member.serve(
            WorkerDuties(
                self.registry,
                self._refresh,
                self._exchange_changed,
                self._stop,
                self._clear_caches,
            )
        )

    def _exchange_changed(self, vhost: bytes, exchange: bytes) -> None:
        self.exchanges.append((vhost, exchange))

    def _refresh(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.refreshed += 1

    def _clear_caches(self, user: bytes | None) -> int:
        self.cleared.append(user)
        return len(self.cleared)

    def _stop(self, *, hurry: bool) -> None:
        self.stops.append(hurry)

    def running(self, number: int, user: bytes = b"alice") -> Live:
        """A connection that runs, as far as its channels go: ``open_channel`` opens them."""
        live = self.live(number, user)
        live.session = cast("Session", SimpleNamespace(channels={}, state=State.RUNNING))
        self.registry.add(live)
        self.member.opened(number, user, b"/")
        return live

    async def open_channel(self, live: Live, limit: int | None = None) -> str:
        """As ``Authority.open_channel`` and the session do it."""
        place = self.registry.channel_place(live, limit)
        if not isinstance(place, str):
            place = await place
        if place == "granted" and live.session is not None:
            self.registry.channel_opened(live)
            channels = cast("dict[int, object]", live.session.channels)
            channels[max(channels, default=0) + 1] = object()
        return place

    def close_channel(self, live: Live) -> None:
        assert live.session is not None
        live.session.channels.popitem()
        self.registry.channel_ended(live)

    def live(self, number: int, user: bytes = b"alice", vhost: bytes = b"/") -> Live:
        return Live(number, Peer("10.0.0.1", 1000 + number, "10.0.0.2", 5672), user, vhost)

    async def admit(
        self, live: Live, vhost_limit: int | None = None, user_limit: int | None = None
    ) -> str:
        return await self.registry.admit(live, vhost_limit=vhost_limit, user_limit=user_limit)


class Plane:
    def __init__(self) -> None:
        self.log = Log()
        self.changed: list[int] = []
        self.exchanges: list[tuple[bytes, bytes]] = []
        self.hub = Hub(
            cast("Logger", self.log),
            self.changed.append,
            lambda vhost, exchange: self.exchanges.append((vhost, exchange)),
        )
        self.stack = contextlib.AsyncExitStack()

    async def worker(self, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        member = await Member.over(theirs, cast("Logger", self.log))
        link = await self.hub.add(number, ours)
        self.stack.push_async_callback(member.close)
        return Worker(member, link)

    async def raw(self, number: int) -> tuple[socket.socket, Link]:
        """A worker that says what the test wants."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.stack.callback(theirs.close)
        return theirs, await self.hub.add(number, ours)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(3):
        while not condition():
            await asyncio.sleep(0.002)
