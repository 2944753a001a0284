"""Is this a topic exchange? Does it exist? Asked of the broker where the gate cannot know.

DESIGN section 5: an active ``exchange.declare`` that can never create anything (type topic,
internal, and an alternate-exchange argument of a wrong type) is always refused, and the text of
the refusal tells. Answers are kept for seconds, declares and deletes that pass through the gate
change them, and where an answer "not a topic" had let anything pass, its end bumps the epoch,
so no approval outlives what it was built on. An unknown exchange counts as a topic exchange,
and so does one that a client is deleting or redeclaring: its next type is not known yet.

RabbitMQ: ``rabbit_exchange:assert_equivalence`` compares the type first; the wrong argument
type is only looked at for a new exchange (``rabbit_misc:r_arg``).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Callable
from typing import Final

from gatekeeper.errors import GatekeeperError
from gatekeeper.policy.epoch import Epoch
from gatekeeper.protocol import wire
from gatekeeper.protocol.layouts import encode
from gatekeeper.protocol.stream import FrameBuffer
from gatekeeper.server.tasks import Owner
from gatekeeper.server.upstreams import UpstreamConnection, Upstreams, say_goodbye

KEEP: Final = 5.0
"""Seconds for which an answer holds."""
ANSWER_TIMEOUT: Final = 5.0
IDLE: Final = 30.0
"""Seconds after which an idle asking connection is closed."""
BOUND: Final = 10_000
"""Answers kept at most."""


class ExchangeKind(enum.Enum):
    TOPIC = "topic"
    OTHER = "other"
    MISSING = "missing"
    UNKNOWN = "unknown"


PREDECLARED: Final = {
    b"amq.direct": ExchangeKind.OTHER,
    b"amq.fanout": ExchangeKind.OTHER,
    b"amq.headers": ExchangeKind.OTHER,
    b"amq.match": ExchangeKind.OTHER,
    b"amq.topic": ExchangeKind.TOPIC,
    b"amq.rabbitmq.trace": ExchangeKind.TOPIC,
}


class _Prober:
    """A connection of the gate's own to one vhost; one question at a time."""

    def __init__(self, upstreams: Upstreams, vhost: bytes) -> None:
        self._upstreams = upstreams
        self._vhost = vhost
        self._lock = asyncio.Lock()
        self._connection: UpstreamConnection | None = None
        self._frames = FrameBuffer()
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, exchange: bytes) -> ExchangeKind:
        async with self._lock:
            for attempt in (1, 2):
                if self._timer is not None:
                    self._timer.cancel()
                fresh = self._connection is None
                try:
                    async with asyncio.timeout(ANSWER_TIMEOUT):
                        return await self._ask(exchange)
                except (TimeoutError, GatekeeperError, wire.WireError):
                    self._drop()
                    if fresh or attempt == 2:
                        return ExchangeKind.UNKNOWN
                except BaseException:
                    self._drop()
                    raise
                finally:
                    loop = asyncio.get_running_loop()
                    self._timer = loop.call_later(IDLE, self._drop)
        return ExchangeKind.UNKNOWN

    async def _ask(self, exchange: bytes) -> ExchangeKind:
        link = self._upstreams.route(self._vhost)
        if self._connection is not None and link is not None and link.outdated(self._connection):
            self._drop()
        if self._connection is None:
            if link is None or not link.has_service_account:
                return ExchangeKind.UNKNOWN
            self._connection = await link.service(self._vhost, "exchange types")
            self._frames = FrameBuffer()
            self._frames.feed(self._connection.first)
        endpoint = self._connection.endpoint
        table = wire.table([(b"alternate-exchange", ("t", True))])
        question = encode(1, (40, 10), (0, exchange, b"topic", 0b1000, table))
        endpoint.write(wire.method(1, 20, 10, b"\0") + question)
        while True:
            frame = self._frames.next(131072)
            if frame is None:
                data = await endpoint.receive()
                if not data:
                    raise wire.WireError("the broker closed the connection")
                self._frames.feed(data)
                continue
            ids = frame.payload[:4]
            if frame.type != wire.FRAME_METHOD or ids == b"\0\x14\0\x0b":
                continue
            if ids != b"\0\x14\0\x28":
                raise wire.WireError("the broker answered something else")
            reader = wire.Reader(frame.payload, 6)
            text = reader.shortstr()
            endpoint.write(wire.method(1, 20, 41))
            return _meaning(text)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.endpoint.abort()
            self._connection = None

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            await say_goodbye(connection.endpoint)


def _meaning(text: bytes) -> ExchangeKind:
    if b"inequivalent arg 'type'" in text:
        return ExchangeKind.OTHER
    if b"inequivalent arg" in text:
        return ExchangeKind.TOPIC
    if b"invalid type" in text or b"reserved prefix" in text:
        return ExchangeKind.MISSING
    return ExchangeKind.UNKNOWN


class Exchanges:
    """The answers, for all vhosts; implements ``policy.ports.ExchangeTypes``."""

    def __init__(
        self, upstreams: Upstreams, epoch: Epoch, on_error: Callable[[BaseException], None]
    ) -> None:
        self._upstreams = upstreams
        self._epoch = epoch
        self._on_error = on_error
        self._owner = Owner(on_error)
        self._known: dict[tuple[bytes, bytes], ExchangeKind] = {}
        self._relied: set[tuple[bytes, bytes]] = set()
        self._asking: dict[tuple[bytes, bytes], asyncio.Task[ExchangeKind]] = {}
        self._changed: set[tuple[bytes, bytes]] = set()
        self._changes = 0
        self._doubts: dict[int, tuple[bytes, bytes]] = {}
        self._doubtful: dict[tuple[bytes, bytes], int] = {}
        self._all_doubtful = 0.0
        self._probers: dict[bytes, _Prober] = {}

    def is_topic(self, vhost: bytes, exchange: bytes) -> bool | Awaitable[bool]:
        kind = self._kind(vhost, exchange)
        if kind is None:
            if self._in_doubt((vhost, exchange)):
                return True
            return self._is_topic_later(vhost, exchange)
        return self._topic(vhost, exchange, kind)

    async def _is_topic_later(self, vhost: bytes, exchange: bytes) -> bool:
        return self._topic(vhost, exchange, await self._ask(vhost, exchange))

    def _topic(self, vhost: bytes, exchange: bytes, kind: ExchangeKind) -> bool:
        if kind is not ExchangeKind.OTHER:
            return True
        if exchange not in PREDECLARED:
            self._relied.add((vhost, exchange))
        return False

    def exists(self, vhost: bytes, exchange: bytes) -> bool | Awaitable[bool]:
        """Does it exist? Where the broker does not tell: yes, so that a refusal stays one."""
        kind = self._kind(vhost, exchange)
        if kind is None:
            return self._exists_later(vhost, exchange)
        return True

    async def _exists_later(self, vhost: bytes, exchange: bytes) -> bool:
        return await self._ask(vhost, exchange) is not ExchangeKind.MISSING

    def _kind(self, vhost: bytes, exchange: bytes) -> ExchangeKind | None:
        return PREDECLARED.get(exchange) or self._known.get((vhost, exchange))

    async def _ask(self, vhost: bytes, exchange: bytes) -> ExchangeKind:
        key = (vhost, exchange)
        task = self._asking.get(key)
        if task is None:
            prober = self._probers.get(vhost)
            if prober is None:
                prober = self._probers[vhost] = _Prober(self._upstreams, vhost)
            task = self._asking[key] = self._owner.start(self._learn(key, prober))
        return await asyncio.shield(task)

    async def _learn(self, key: tuple[bytes, bytes], prober: _Prober) -> ExchangeKind:
        try:
            kind = await prober.ask(key[1])
            if key in self._changed:
                # The broker may have answered before the change that we have seen since.
                return ExchangeKind.UNKNOWN
        except Exception as error:  # noqa: BLE001 - whatever it is, the stricter answer holds
            self._on_error(error)
            return ExchangeKind.UNKNOWN
        finally:
            self._asking.pop(key, None)
            self._changed.discard(key)
        if kind in (ExchangeKind.TOPIC, ExchangeKind.OTHER):
            self._keep(key, kind)
        return kind

    def _keep(self, key: tuple[bytes, bytes], kind: ExchangeKind) -> None:
        if len(self._known) >= BOUND:
            for old in list(self._known):
                self._forget(old)
        self._known[key] = kind
        asyncio.get_running_loop().call_later(KEEP, self._forget, key)

    def _forget(self, key: tuple[bytes, bytes]) -> None:
        self._known.pop(key, None)
        if key in self._relied:
            self._relied.discard(key)
            self._epoch.bump()

    def changing(self, vhost: bytes, exchange: bytes) -> int:
        """A declare or delete is on its way: what was known no longer counts.

        Until it is answered (or seconds have passed) the exchange is in doubt: the broker could
        still tell of the old one, while what the client sends next meets the new one. Every
        change has its own doubt, which no other's late answer can end.
        """
        key = (vhost, exchange)
        self._changed_while_asking(key)
        self._forget(key)
        self._changes += 1
        loop = asyncio.get_running_loop()
        if len(self._doubts) >= BOUND:
            self._all_doubtful = loop.time() + KEEP
        else:
            self._doubts[self._changes] = key
            self._doubtful[key] = self._doubtful.get(key, 0) + 1
            loop.call_later(KEEP, self._no_doubt, self._changes)
        return self._changes

    def changed(self, vhost: bytes, exchange: bytes, kind: bytes | None, change: int) -> None:
        """The broker has answered a change: the exchange is of type ``kind``, None: gone.

        Only the stricter half is believed: the client may have read the answer so late that it
        is no longer true.
        """
        key = (vhost, exchange)
        self._changed_while_asking(key)
        doubted = self._no_doubt(change)
        if kind == b"topic" and (doubted or key in self._relied or key in self._known):
            self._forget(key)
            self._keep(key, ExchangeKind.TOPIC)
        else:
            self._forget(key)

    def changed_elsewhere(self, vhost: bytes, exchange: bytes) -> None:
        """By a client of another process."""
        key = (vhost, exchange)
        self._changed_while_asking(key)
        self._forget(key)

    def _changed_while_asking(self, key: tuple[bytes, bytes]) -> None:
        if key in self._asking:
            self._changed.add(key)

    def _no_doubt(self, change: int) -> bool:
        """End the doubt of one change; True if there was one."""
        key = self._doubts.pop(change, None)
        if key is None:
            return False
        self._doubtful[key] -= 1
        if not self._doubtful[key]:
            del self._doubtful[key]
        return True

    def _in_doubt(self, key: tuple[bytes, bytes]) -> bool:
        return key in self._doubtful or asyncio.get_running_loop().time() < self._all_doubtful

    async def close(self) -> None:
        await self._owner.close()
        for prober in self._probers.values():
            with contextlib.suppress(Exception):
                await prober.close()
