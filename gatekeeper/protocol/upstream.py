"""The handshake towards a broker, as its client; and the properties we show it.

Strategy: the same shape as the client's side: one table, (stage, method) -> handler, and a
missing entry is an error. The broker is trusted with messages, not with our stability: its
frames are bounded and its methods are read as strictly as a client's. Anything but the expected
or an orderly connection.close makes it Broken, with a reason for the operator.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from gatekeeper.errors import AmqpError
from gatekeeper.model import Secret
from gatekeeper.protocol import wire
from gatekeeper.protocol.erlang import erlang_binary
from gatekeeper.protocol.events import (
    Broken,
    Learned,
    Opened,
    Refused,
    Send,
    Stage,
    Tuned,
    UpstreamEvent,
)
from gatekeeper.protocol.header import HEADER_0_9_1, HEADER_LENGTH
from gatekeeper.protocol.layouts import Abort, decode
from gatekeeper.protocol.methods import method_name
from gatekeeper.protocol.stream import FrameBuffer, FrameError

FRAME_CAP: Final = 131072
"""Octets of payload: no frame of a broker's handshake may be larger."""
BUFFER_LIMIT: Final = 512 * 1024
"""Bytes that may wait at once: a whole receive buffer behind open-ok, and a frame."""
SHOWN: Final = 200
"""At most these many bytes of a broker's own words go into a reason."""


CLOSE: Final = "connection.close"


class UpstreamHandshake:
    """One connection's login at a broker.

    username, password: of the service account, or the client's own. vhost: the exact bytes.
    client_properties: raw table content, see :func:`upstream_properties`. wanted: channel_max,
    frame_max and heartbeat as negotiated with the client (the broker must allow them), or None
    to take what the broker offers. eager: the broker is known to offer the mechanism, so send
    everything at once with the protocol header and save two round trips; what it answers is
    checked all the same. Bytes of any content never raise.
    """

    def __init__(
        self,
        *,
        mechanism: Literal["PLAIN", "AMQPLAIN", "EXTERNAL"],
        username: bytes,
        password: Secret,
        vhost: bytes,
        client_properties: bytes,
        wanted: tuple[int, int, int] | None,
        eager: bool = False,
    ) -> None:
        self.stage = Stage.START
        self._lost = False
        self._mechanism = mechanism
        self._username = username
        self._password = password
        self._vhost = vhost
        self._client_properties = client_properties
        self._wanted = wanted
        self._eager = eager and wanted is not None and not self._plain_cannot_carry()
        self._buffer = FrameBuffer()
        self._events: deque[UpstreamEvent] = deque()

    def start(self) -> bytes:
        """What is to be sent first: the protocol header, and all the rest where ``eager``."""
        if self._wanted is None or not self._eager:
            return HEADER_0_9_1
        return HEADER_0_9_1 + self._start_ok() + self._tune_ok_and_open(self._wanted)

    @property
    def wants_data(self) -> bool:
        """False when all is over: opened, refused or broken."""
        return self.stage is not Stage.DONE

    def feed(self, data: bytes) -> None:
        """Take bytes from the broker, BUFFER_LIMIT of them at most; after a failure none."""
        if self._lost:
            return
        if len(self._buffer) + len(data) > BUFFER_LIMIT:
            self._events.clear()
            self._break(f"more than {BUFFER_LIMIT} bytes during the handshake")
            return
        self._buffer.feed(data)

    def next_event(self) -> UpstreamEvent | None:
        """The next event; None: more data, or nothing at all, is to come."""
        while not self._events and self.stage is not Stage.DONE:
            if not self._step():
                return None
        return self._events.popleft() if self._events else None

    def leftover(self) -> bytes:
        """After Opened: what the broker has sent behind connection.open-ok, once."""
        return self._buffer.drain()

    # --- Frames ---------------------------------------------------------------------------

    def _step(self) -> bool:
        """Take one frame; False if none is complete."""
        if self.stage is Stage.START and self._buffer.starts_with(b"AMQP"):
            header = self._buffer.take(HEADER_LENGTH)
            if header is None:
                return False
            # A refusal of the protocol itself; a frame starts with an octet of 1, 2, 3 or 8.
            self._break(f"the broker answered with protocol header {erlang_binary(header[4:])}")
            return True
        try:
            frame = self._buffer.next(FRAME_CAP)
        except FrameError as error:
            self._break(f"malformed frame of type {error.type}: {error.reason}")
            return True
        if frame is None:
            return False
        if frame.channel:
            self._break(f"frame on channel {frame.channel} during the handshake")
        elif frame.type == wire.FRAME_METHOD and len(frame.payload) >= 4:
            self._method(frame.payload)
        elif frame.type != wire.FRAME_HEARTBEAT or frame.payload:
            self._break(f"unexpected frame of type {frame.type} during the handshake")
        return True

    def _method(self, payload: bytes) -> None:
        ids = (int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big"))
        name = method_name(*ids)
        handler = TRANSITIONS.get((self.stage, name))
        if handler is None:
            self._break(f"unexpected {name} at stage {self.stage}")
            return
        try:
            fields = _close_fields(payload) if name == CLOSE else _known_fields(payload)
        except (Abort, AmqpError, wire.WireError):
            self._break(f"malformed {name}")
            return
        handler(self, fields)

    # --- Transitions: see TRANSITIONS -----------------------------------------------------

    def _start(self, fields: tuple[Any, ...]) -> None:
        major, minor, properties, offered, _locales = fields
        if (major, minor) != (0, 9):
            self._break(f"the broker speaks AMQP {major}-{minor}, not 0-9-1")
            return
        mechanisms = tuple(offered.decode("utf-8", "backslashreplace").split())
        known = wire.known_table(properties)
        self._events.append(
            Learned(
                server_properties=properties,
                mechanisms=mechanisms,
                product=_string(known.get(b"product")),
                version=_string(known.get(b"version")),
            )
        )
        if self._mechanism not in mechanisms:
            shown = erlang_binary(offered[:SHOWN])
            self._break(f"the broker does not offer {self._mechanism}, but {shown}")
            return
        self.stage = Stage.LOGIN
        if self._plain_cannot_carry():
            # PLAIN separates by NUL: the broker could read another name out of it.
            self._break("user name or password holds a NUL octet, which PLAIN cannot carry")
        elif not self._eager:
            self._events.append(Send(self._start_ok()))

    def _plain_cannot_carry(self) -> bool:
        return self._mechanism == "PLAIN" and b"\0" in self._username + self._password.value

    def _start_ok(self) -> bytes:
        match self._mechanism:
            case "PLAIN":
                response = b"\0" + self._username + b"\0" + self._password.value
            case "AMQPLAIN":
                response = wire.table(
                    [(b"LOGIN", ("S", self._username)), (b"PASSWORD", ("S", self._password.value))]
                )
            case "EXTERNAL":
                response = b""  # the certificate says it
        args = (
            wire.longstr(self._client_properties)
            + wire.shortstr(self._mechanism.encode())
            + wire.longstr(response)
            + wire.shortstr(b"en_US")
        )
        return wire.method(0, 10, 11, args)

    def _tune_ok_and_open(self, limits: tuple[int, int, int]) -> bytes:
        channel_max, frame_max, heartbeat = limits
        args = channel_max.to_bytes(2, "big") + frame_max.to_bytes(4, "big")
        tune_ok = wire.method(0, 10, 31, args + heartbeat.to_bytes(2, "big"))
        open_args = wire.shortstr(self._vhost) + wire.shortstr(b"") + b"\x00"
        return tune_ok + wire.method(0, 10, 40, open_args)

    def _tune(self, fields: tuple[Any, ...]) -> None:
        offered = Tuned(*fields)
        limits = self._wanted or (offered.channel_max, offered.frame_max, offered.heartbeat)
        channel_max, frame_max, _heartbeat = limits
        self._events.append(offered)
        fault = _exceeds("channel_max", channel_max, offered.channel_max) or _exceeds(
            "frame_max", frame_max, offered.frame_max
        )
        if fault:
            self._break(fault)
            return
        self.stage = Stage.OPEN
        if not self._eager:
            self._events.append(Send(self._tune_ok_and_open(limits)))

    def _open_ok(self, _fields: tuple[Any, ...]) -> None:
        self.stage = Stage.DONE
        self._events.append(Opened())

    def _close(self, fields: tuple[Any, ...]) -> None:
        code, text, class_id, method_id = fields
        self._events.append(Send(wire.method(0, 10, 51)))
        self._events.append(Refused(code, text, class_id, method_id, self.stage))
        self._finish()

    def _break(self, reason: str) -> None:
        self._events.append(Broken(reason))
        self._finish()

    def _finish(self) -> None:
        self.stage = Stage.DONE
        self._lost = True
        self._buffer.drain()


Handler = Callable[[UpstreamHandshake, tuple[Any, ...]], None]
"""Takes the fields of its method; what each of them is follows from the method's layout."""

TRANSITIONS: Final[Mapping[tuple[Stage, str], Handler]] = MappingProxyType(
    {
        (Stage.START, "connection.start"): UpstreamHandshake._start,
        (Stage.START, CLOSE): UpstreamHandshake._close,
        (Stage.LOGIN, "connection.tune"): UpstreamHandshake._tune,
        (Stage.LOGIN, CLOSE): UpstreamHandshake._close,
        (Stage.OPEN, "connection.open-ok"): UpstreamHandshake._open_ok,
        (Stage.OPEN, CLOSE): UpstreamHandshake._close,
    }
)
"""What a broker may send on channel 0, and when. Heartbeats are ignored throughout."""


def _fields(payload: bytes) -> tuple[Any, ...]:
    """Of any method but a close. Raises Abort, AmqpError."""
    ids = (int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big"))
    return decode(0, ids, payload[4:])


_remembered_fields = functools.lru_cache(maxsize=64)(_fields)


def _known_fields(payload: bytes) -> tuple[Any, ...]:
    """As :func:`_fields`: a broker says the same at every login, of itself and otherwise."""
    return _remembered_fields(payload) if len(payload) <= 4096 else _fields(payload)


def _close_fields(payload: bytes) -> tuple[int, bytes, int, int]:
    """Code, text, class, method of a connection.close, whose text may be any bytes.

    RabbitMQ before 4.0.5 cuts a long text by octets, and so within a UTF-8 sequence. Raises
    WireError.
    """
    reader = wire.Reader(payload, 4)
    fields = (reader.short(), reader.shortstr(), reader.short(), reader.short())
    reader.finish()
    return fields


def _exceeds(field: str, wanted: int, offered: int) -> str | None:
    """Why the broker does not allow ``wanted``; 0 is no limit on either side."""
    if not offered or 0 < wanted <= offered:
        return None
    return (
        f"the broker allows {field} {offered}, the client was promised {wanted or 'no limit'}: "
        f"lower {field} here to {offered} or raise the broker's"
    )


def _string(value: wire.Value | None) -> bytes:
    return value[1] if value is not None and isinstance(value[1], bytes) else b""


# --- Client properties ----------------------------------------------------------------------

_OWN_KEY: Final = b"gatekeeper"
_OWN_ENTRY: Final = wire.shortstr(_OWN_KEY) + b"F"
_OURS: Final = (b"authentication_failure_close", b"consumer_cancel_notify")
"""Capabilities that the gate needs itself: to be told of refusals, and of consumers that ended
(whose tags are free again); the session hides the latter from a client that did not ask."""


def upstream_properties(
    client_raw: bytes,
    gatekeeper_entries: Mapping[str, bytes | str | int | bool],
    default_name: bytes,
) -> bytes:
    """The client's properties as the broker is to see them: raw table content in and out.

    Everything of the client keeps its bytes, except: every ``gatekeeper`` key is replaced by
    ours (a client must not speak in our name); ``connection_name`` is added where there is
    none; in ``capabilities`` those of _OURS become true. Of duplicate ``capabilities`` the
    first, which is what RabbitMQ reads, is kept. Raises WireError if ``client_raw`` is malformed.
    """
    mirrored, named = _known_mirror(client_raw) if len(client_raw) <= 4096 else _mirror(client_raw)
    name = b"" if named else _entry("connection_name", default_name)
    own = b"".join(_entry(key, value) for key, value in gatekeeper_entries.items())
    return mirrored + name + _OWN_ENTRY + wire.longstr(own)


def _mirror(client_raw: bytes) -> tuple[bytes, bool]:
    """What of the client's properties goes on, and whether it has a name of its own."""
    entries = wire.table_entries(client_raw)
    capabilities = next((entry for entry in entries if entry.key == b"capabilities"), None)
    content = b""
    if capabilities is not None and capabilities.tag == "F":
        content = client_raw[capabilities.value + 4 : capabilities.end]
    content = wire.edit_table(content, set(_OURS), [(name, ("t", True)) for name in _OURS])
    added = wire.shortstr(b"capabilities") + b"F" + wire.longstr(content)
    kept = wire.edit_table(client_raw, {_OWN_KEY, b"capabilities"})
    return kept + added, any(entry.key == b"connection_name" for entry in entries)


_known_mirror = functools.lru_cache(maxsize=64)(_mirror)
"""Clients of one kind show the same properties."""


def _entry(key: str, value: bytes | str | int | bool) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):  # as all are at a client's login
        return wire.shortstr(key.encode()) + b"S" + wire.longstr(value)
    if isinstance(value, bool):
        return wire.table([(key.encode(), ("t", value))])
    return wire.table([(key.encode(), ("I" if -(2**31) <= value < 2**31 else "l", value))])
