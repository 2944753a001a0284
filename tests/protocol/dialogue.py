"""A session between scripted client bytes and a simulated broker, for tests of the pure rooms.

The broker answers what RabbitMQ would answer to operations that it allows, in order. Policy is
a set of refused names. Nothing here opens a socket.
"""

from __future__ import annotations

import itertools
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType

from gatekeeper.errors import AmqpError
from gatekeeper.model import Access, AnyAccess, Check, Decision, TopicAccess
from gatekeeper.policy.epoch import Epoch
from gatekeeper.protocol import session as session_module
from gatekeeper.protocol import wire
from gatekeeper.protocol.checks import Context
from gatekeeper.protocol.layouts import decode, encode
from gatekeeper.protocol.session import Session
from gatekeeper.protocol.states import State

OPEN = wire.method
RECHECK = -2
"""Asks in the place of a channel where what was granted is asked again."""


def frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """(type, channel, payload) of each frame; fails on anything incomplete."""
    out = []
    pos = 0
    while pos < len(data):
        kind, channel, size = struct.unpack_from(">BHI", data, pos)
        assert data[pos + 7 + size] == 0xCE, "not at a frame boundary"
        out.append((kind, channel, bytes(data[pos + 7 : pos + 7 + size])))
        pos += size + 8
    assert pos == len(data)
    return out


def by_channel(data: bytes | bytearray) -> dict[int, list[tuple[int, bytes]]]:
    out: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for kind, number, payload in frames(bytes(data)):
        out[number].append((kind, payload))
    return dict(out)


def ids(payload: bytes) -> tuple[int, int]:
    return struct.unpack_from(">HH", payload)


def call(channel: int, name: tuple[int, int], *fields: int | bytes) -> bytes:
    return encode(channel, name, fields)


def open_channel(channel: int) -> bytes:
    return call(channel, (20, 10), b"")


def publish(
    channel: int,
    exchange: bytes = b"ok",
    key: bytes = b"k",
    body: bytes = b"hello",
    *,
    properties: bytes = b"\x10\x00\x02",
    bits: int = 0,
    parts: int = 1,
) -> bytes:
    """A whole publish: method, header, body in ``parts`` frames."""
    data = call(channel, (60, 40), 0, exchange, key, bits)
    header = struct.pack(">HHQ", 60, 0, len(body)) + properties
    data += wire.frame(2, channel, header)
    size = max(1, -(-len(body) // parts))
    for at in range(0, len(body), size):
        data += wire.frame(3, channel, body[at : at + size])
    return data


ANSWERS: dict[tuple[int, int], Callable[[tuple[int | bytes, ...]], tuple[int | bytes, ...]]] = {
    (20, 10): lambda _f: (b"",),
    (20, 20): lambda f: (f[0],),
    (20, 40): lambda _f: (),
    (40, 10): lambda _f: (),
    (40, 20): lambda _f: (),
    (40, 30): lambda _f: (),
    (50, 20): lambda _f: (),
    (50, 30): lambda _f: (0,),
    (50, 40): lambda _f: (0,),
    (50, 50): lambda _f: (),
    (60, 10): lambda _f: (),
    (60, 30): lambda f: (f[0],),
    (60, 70): lambda _f: (b"",),
    (60, 110): lambda _f: (),
    (85, 10): lambda _f: (),
    (90, 10): lambda _f: (),
    (90, 20): lambda _f: (),
    (90, 30): lambda _f: (),
    (10, 50): lambda _f: (),
    (10, 70): lambda _f: (),
}
NOWAIT = {(40, 10): 16, (40, 20): 2, (40, 30): 1, (40, 40): 1, (50, 10): 16, (50, 20): 1}
NOWAIT |= {(50, 30): 1, (50, 40): 4, (60, 20): 8, (60, 30): 1, (85, 10): 1}


@dataclass
class Broker:
    """Answers in order; remembers all that it was sent."""

    received: bytearray = field(default_factory=bytearray)
    methods: list[tuple[int, tuple[int, int], tuple[int | bytes, ...]]] = field(
        default_factory=list
    )
    _rest: bytes = b""
    _names: dict[int, itertools.count[int]] = field(
        default_factory=lambda: defaultdict(lambda: itertools.count(1))
    )

    def answer(self, data: bytes) -> bytes:
        self.received += data
        out = b""
        for kind, channel, payload in frames(data):
            if kind != 1:
                continue
            name = ids(payload)
            fields = decode(channel, name, payload[4:])
            self.methods.append((channel, name, fields))
            out += self._reply(channel, name, fields)
        return out

    def _reply(self, channel: int, name: tuple[int, int], fields: tuple[int | bytes, ...]) -> bytes:
        bits = next((f for f in reversed(fields) if isinstance(f, int)), 0)
        if bits & NOWAIT.get(name, 0) and not (name == (60, 30) and not bits):
            return b""
        if name == (50, 10):
            queue = fields[1] or b"amq.gen-%011d%011d" % (channel - 1, next(self._names[channel]))
            return call(channel, (50, 11), queue, 0, 0)
        if name == (60, 20):
            return call(channel, (60, 21), fields[2] or b"amq.ctag-%d" % next(self._names[channel]))
        if name == (40, 40):
            return call(channel, (40, 51))
        if name == (60, 70):
            return call(channel, (60, 72), b"")
        maker = ANSWERS.get(name)
        return b"" if maker is None else call(channel, (name[0], name[1] + 1), *maker(fields))


@dataclass(frozen=True, slots=True)
class Keys:
    """Of a policy that answers at once, those of one exchange."""

    policy: Policy
    exchange: bytes
    prefix: bytes | None

    def allows(self, routing_key: bytes) -> bool:
        return self.exchange not in self.policy.topics or self.policy.allows(
            self.exchange, routing_key
        )


@dataclass
class Policy:
    """Refuses what mentions a name in ``denied``; ``topics``: exchanges with a topic rule.

    prefixes: of some of these, how a routing key must begin. slow: each question takes a turn.
    """

    denied: set[bytes] = field(default_factory=lambda: {b"no"})
    topics: set[bytes] = field(default_factory=set)
    prefixes: dict[bytes, bytes] = field(default_factory=dict)
    missing: set[bytes] = field(default_factory=set)
    slow: bool = False
    asked: list[Check] = field(default_factory=list)
    log: list[tuple[int, AmqpError]] = field(default_factory=list)
    learned: list[tuple[bytes, bytes]] = field(default_factory=list)
    forgotten: list[bytes] = field(default_factory=list)
    cancelled: list[bytes] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    impersonator: bool = False
    secret: AmqpError | bool = True
    place: AmqpError | bool = True
    open_channels: int = 0
    settlements: int = 0
    turn: int = 0
    _asked: dict[tuple[int, object], int] = field(default_factory=dict)

    def _late(self, key: tuple[int, object]) -> bool:
        """In slow mode a question is answered only in a later turn than it was asked in."""
        if self.slow and self._asked.setdefault(key, self.turn) == self.turn:
            return True
        self._asked.pop(key, None)
        return False

    def check(self, check: Check, channel: int) -> Decision | None:
        if self._late((channel, check)):
            return None
        self.asked.append(check)
        match check:
            case Access(_, _, name) | AnyAccess(_, name):
                # "no" may turn up in a made-up name by chance, which must not fail a test.
                made_up = name.startswith(b"amq.gen-")
                denied = self.denied - {b"no"} if made_up else self.denied
                return Decision(not any(bad in name for bad in denied))
            case TopicAccess(_, exchange, key):
                return Decision(exchange not in self.topics or self.allows(exchange, key))

    def allows(self, exchange: bytes, key: bytes) -> bool:
        """On a topic exchange."""
        if exchange in self.prefixes:
            return key.startswith(self.prefixes[exchange])
        return b"no" not in key

    def exchange_exists(self, exchange: bytes, channel: int) -> bool | None:
        return None if self._late((channel, exchange)) else exchange not in self.missing

    def topic_rule(self, exchange: bytes) -> bool:
        return exchange in self.topics

    def routing_keys(self, exchange: bytes) -> Keys | None:
        if self.slow:
            return None
        prefix = self.prefixes.get(exchange) if exchange in self.topics else b""
        return Keys(self, exchange, prefix)

    def open_channel(self, channel: int) -> AmqpError | bool | None:
        if self._late((channel, "place")):
            return None
        self.open_channels += self.place is True
        return self.place

    def channel_ended(self) -> None:
        self.open_channels -= 1

    def update_secret(self, secret: bytes, reason: bytes) -> AmqpError | bool | None:
        return None if self._late((0, "secret")) else self.secret

    def exchange_changing(self, exchange: bytes) -> int:
        self.forgotten.append(exchange)
        return len(self.forgotten)

    def exchange_changed(self, exchange: bytes, kind: bytes | None, change: int) -> None:
        if kind is None:
            self.forgotten.append(exchange)
        else:
            self.learned.append((exchange, kind))

    def settled(self, channel: int) -> None:
        self.settlements += 1

    def refused(self, channel: int, error: AmqpError) -> None:
        self.log.append((channel, error))

    def rights_changed(self) -> None:
        self._asked = {key: at for key, at in self._asked.items() if key[0] != RECHECK}

    def recheck(self, check: Check) -> Decision | None:
        return self.check(check, RECHECK)

    def may_impersonate(self) -> bool:
        return self.impersonator

    def consumer_cancelled(self, channel: int, tag: bytes, queue: bytes, cause: str) -> None:
        self.cancelled.append(tag)
        self.causes.append(cause)


class Dialogue:
    """Client bytes in, by chunks; what broker and client got out."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        context: Context | None = None,
        scanner: ModuleType | None = None,
        frame_max: int = 131072,
        channel_max: int = 2047,
        cancel_notify: bool = True,
        relay_secret: bool = False,
    ) -> None:
        self.policy = policy or Policy()
        self.policy.impersonator = context is not None and context.impersonator
        self.epoch = Epoch()
        self.broker = Broker()
        self.client = bytearray()
        self.scanner = scanner
        self.session = Session(
            context or Context(b"/", b"alice"),
            self.policy,
            self.epoch,
            frame_max=frame_max,
            channel_max=channel_max,
            cancel_notify=cancel_notify,
            relay_secret=relay_secret,
        )
        self._tail = b""
        self._broker_tail = b""

    def send(self, data: bytes, *, sizes: Iterable[int] = (), answer: bool = True) -> None:
        """Feed client bytes, in chunks of ``sizes``, then the rest; the broker may answer each."""
        pos = 0
        for size in sizes:
            if pos >= len(data):
                break
            self._chunk(data[pos : pos + size], answer=answer)
            pos += size
        self._chunk(data[pos:], answer=answer)

    def _chunk(self, data: bytes, *, answer: bool) -> None:
        self._tail += data
        for _ in range(2000):
            before = (len(self._tail), self.session.state, len(self.client))
            buf = bytearray(self._tail)
            self.policy.turn += 1
            done = self.session.client_data(buf, 0, len(buf))
            self._tail = self._tail[done:]
            out, moved = self._take()
            buf[:] = b"\xff" * len(buf)  # the shared buffer is used again
            self._to_broker(out, answer=answer)
            if not moved and before == (len(self._tail), self.session.state, len(self.client)):
                if self.session.client_tired:
                    continue
                waits = self.session.parked or (self.session.client_stalled and self._tail)
                if not waits or not self.policy.slow:
                    return
        raise AssertionError("the session does not come to rest")

    def flush(self, *, answer: bool = True) -> bool:
        """Move what waits to be sent; True if there was anything."""
        out, moved = self._take()
        self._to_broker(out, answer=answer)
        return moved

    def _take(self) -> tuple[bytes, bool]:
        session = self.session
        moved = bool(session.to_broker or session.to_client)
        self.client += b"".join(session.to_client)
        session.to_client.clear()
        out = b"".join(session.to_broker)
        session.to_broker.clear()
        return out, moved

    def _to_broker(self, out: bytes, *, answer: bool) -> None:
        reply = self.broker.answer(out)
        if answer and reply:
            self.reply(reply)

    def reply(self, data: bytes) -> None:
        """Bytes from the broker."""
        session = self.session
        self._broker_tail += data
        for _ in range(100):
            buf = bytearray(self._broker_tail)
            self.policy.turn += 1
            done = session.broker_data(buf, 0, len(buf))
            self._broker_tail = self._broker_tail[done:]
            self.client += b"".join(session.to_client)
            session.to_client.clear()
            buf[:] = b"\xff" * len(buf)
            if not session.broker_stalled:
                break

    # --- what came out ---

    def sent(self) -> dict[int, list[tuple[int, bytes]]]:
        """(type, payload) of each frame that the broker got, by channel: RabbitMQ's channels have
        no order among them."""
        return by_channel(self.broker.received)

    def to_client(self, channel: int | None = None) -> list[tuple[int, tuple[int, int]]]:
        return [
            (number, ids(payload))
            for kind, number, payload in frames(bytes(self.client))
            if kind == 1 and channel in (None, number)
        ]

    def by_channel(self) -> dict[int, list[tuple[int, bytes]]]:
        return by_channel(self.client)

    def closes(self) -> list[tuple[int, int, bytes, tuple[int, int]]]:
        """(channel, code, text, ids) of every close that the client got."""
        out = []
        for kind, number, payload in frames(bytes(self.client)):
            if kind == 1 and ids(payload) in ((10, 50), (20, 40)):
                code, text, class_id, method_id = decode(number, ids(payload), payload[4:])
                out.append((number, code, text, (class_id, method_id)))
        return out

    def at_broker(self) -> list[tuple[int, tuple[int, int]]]:
        return [(channel, name) for channel, name, _ in self.broker.methods]

    def bodies(self) -> list[bytes]:
        """Content bodies that reached the broker, one per frame."""
        return [p for kind, _, p in frames(bytes(self.broker.received)) if kind == 3]

    @property
    def state(self) -> State:
        return self.session.state


def everything_slow(monkeypatch: object) -> None:
    """Take the fast lane away: every client frame is judged by the readable code."""

    def scan(lane: object, buf: bytearray, pos: int, end: int) -> int:
        lane.stop = 0  # type: ignore[attr-defined]
        if end - pos < 7:
            return pos
        size = int.from_bytes(buf[pos + 3 : pos + 7], "big")
        if size <= lane.frame_max and pos + size + 8 > end:  # type: ignore[attr-defined]
            return pos
        lane.stop = 1  # type: ignore[attr-defined]
        return pos

    monkeypatch.setattr(session_module, "scan_client", scan)  # type: ignore[attr-defined]
