"""Live connections: who is connected where, counted for limits, closed on revocation.

A limit of a user or a vhost holds for the whole gate. Where the gate is one process this registry
is all there is to count; of several, ``shared.py`` asks the supervisor.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from gatekeeper.errors import AmqpError, ReplyCode, printable
from gatekeeper.model import Peer
from gatekeeper.protocol.events import Tuned
from gatekeeper.protocol.session import Session
from gatekeeper.server.endpoint import Endpoint
from gatekeeper.server.infos import ClientProperties

Limit = Literal["none", "vhost", "user"]
"""Which limit a connection has met."""
ChannelPlace = Literal["granted", "reached", "unknown"]
"""unknown: it cannot be told now, which refuses."""
_NO_PROPERTIES = ClientProperties(b"")
_NOT_TUNED = Tuned(0, 0, 0)


@dataclass(eq=False, slots=True)
class Live:
    """One connection from connection.open on.

    close: ends it with the error; until the session runs, ``doomed`` keeps the error instead.
    mechanism, properties, tuned, connected_at (ms since the epoch), client: for listings.
    session: once it runs. reserved: a place for one more channel that it has been given and has
    not taken yet (``shared.py``).
    recheck: has its consumers judged again; None while there is no session.
    """

    number: int
    peer: Peer
    user: bytes
    vhost: bytes
    mechanism: str = ""
    properties: ClientProperties = _NO_PROPERTIES
    tuned: Tuned = _NOT_TUNED
    connected_at: int = 0
    client: Endpoint | None = field(default=None, repr=False)
    session: Session | None = field(default=None, repr=False)
    reserved: bool = False
    doomed: AmqpError | None = None
    close: Callable[[AmqpError], None] | None = field(default=None, repr=False)
    recheck: Callable[[], None] | None = field(default=None, repr=False)

    @property
    def channels(self) -> int:
        return 0 if self.session is None else len(self.session.channels)

    def end(self, error: AmqpError) -> None:
        if self.close is not None:
            self.close(error)
        else:
            self.doomed = error


@dataclass(eq=False, slots=True, weakref_slot=True)
class Arrival:
    """A client that logs in, until it is a Live. What dooms it in the meantime is kept."""

    user: bytes
    doomed: AmqpError | None = None


class Registry:
    def __init__(self) -> None:
        self._live: set[Live] = set()
        self._arrivals: weakref.WeakSet[Arrival] = weakref.WeakSet()
        self._users: Counter[bytes] = Counter()
        self._vhosts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Live]:
        return iter(tuple(self._live))

    def user_count(self, user: bytes) -> int:
        return self._users[user]

    def channel_count(self, user: bytes) -> int:
        """Channels that the user has open, on all connections. Walks all connections: for users
        with a limit only."""
        return sum(live.channels + live.reserved for live in self._live if live.user == user)

    def channel_place(
        self, live: Live, limit: int | None
    ) -> ChannelPlace | Awaitable[ChannelPlace]:
        """May it open one more channel, of ``limit`` for its user? None is no limit."""
        reached = limit is not None and self.channel_count(live.user) >= limit
        return "reached" if reached else "granted"

    def channel_opened(self, live: Live) -> None:
        """It takes the place, or opens a channel without a limit."""

    def channel_ended(self, live: Live) -> None:
        """A channel of a connection that goes on is gone."""

    def vhost_count(self, vhost: bytes) -> int:
        return self._vhosts[vhost]

    async def admit(self, live: Live, *, vhost_limit: int | None, user_limit: int | None) -> Limit:
        """Add a connection, unless it meets a limit: the vhost's is looked at first (RabbitMQ).

        It counts at once, so that two logins cannot share the last place.
        """
        if vhost_limit is not None and self.vhost_count(live.vhost) >= vhost_limit:
            return "vhost"
        if user_limit is not None and self.user_count(live.user) >= user_limit:
            return "user"
        self.add(live)
        return "none"

    def add(self, live: Live) -> None:
        self._live.add(live)
        self._users[live.user] += 1
        self._vhosts[live.vhost] += 1

    def remove(self, live: Live) -> None:
        if live in self._live:
            self._live.discard(live)
            _less(self._users, live.user)
            _less(self._vhosts, live.vhost)

    def arriving(self, user: bytes) -> Arrival:
        """Somebody is about to prove to be this user. Forgotten with the Arrival itself."""
        arrival = Arrival(user)
        self._arrivals.add(arrival)
        return arrival

    def user_deleted(self, user: bytes) -> int:
        """RabbitMQ closes a deleted user's connections (``rabbit_connection_tracking``)."""
        return self._end_user(user, b"user '%b' is deleted" % printable(user))

    def password_changed(self, user: bytes) -> int:
        """What RabbitMQ does not do (``gatekeeper.password_change_closes_connections``)."""
        return self._end_user(user, b"password of user '%b' is changed" % printable(user))

    def _end_user(self, user: bytes, explanation: bytes) -> int:
        for arrival in self._arrivals:
            if arrival.user == user:
                arrival.doomed = AmqpError(ReplyCode.CONNECTION_FORCED, explanation)
        return self._end(lambda live: live.user == user, explanation)

    def vhost_deleted(self, vhost: bytes) -> int:
        text = b"vhost '%b' is deleted" % printable(vhost)
        return self._end(lambda live: live.vhost == vhost, text)

    def close(
        self, number: int | None, user: bytes | None, vhost: bytes | None, reason: bytes
    ) -> int:
        """Close those that match all that is not None; ``reason`` is told to the client."""

        def matches(live: Live) -> bool:
            return (
                number in {None, live.number}
                and user in {None, live.user}
                and vhost in {None, live.vhost}
            )

        return self._end(matches, reason)

    def shutdown(self) -> int:
        text = b"broker forced connection closure with reason 'shutdown'"
        return self._end(lambda _live: True, text)

    def _end(self, which: Callable[[Live], bool], explanation: bytes) -> int:
        doomed = [live for live in self if which(live)]
        for live in doomed:
            live.end(AmqpError(ReplyCode.CONNECTION_FORCED, explanation))
        return len(doomed)


def _less(counter: Counter[bytes], key: bytes) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


def process_figures(registry: Registry) -> dict[str, int]:
    """pid, connections, cpu_ms of this process."""
    return {
        "pid": os.getpid(),
        "connections": len(registry),
        "cpu_ms": time.process_time_ns() // 1_000_000,
    }
