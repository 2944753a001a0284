"""Just enough AMQP 0-9-1 to shake hands and to make a stream of messages.

Strategy: nothing here runs per message. A message is built once as bytes (a *unit*), units
are joined to one chunk, and both ends of a measurement send that chunk again and again and
only count what arrives. The package's own codec is left out on purpose: the yardstick must
not change with the thing it measures.

Source of the formats: AMQP 0-9-1, sections 2.3 and 4.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pamqp import encode

HEADER = b"AMQP\x00\x00\x09\x01"
METHOD, CONTENT_HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE
CHUNK = 256 * 1024
"""Bytes that one send hands to the kernel, at most."""

EXCHANGE = b"bench"
ROUTING_KEY = b"bench"

_FRAME = struct.Struct(">BHL")
_METHOD_IDS = struct.Struct(">HH")
_DELIVERY_MODE = 0x1000
_HEADERS = 0x2000
_USER_ID = 0x0010
_TRANSIENT = b"\x01"


class BenchError(Exception):
    """A measurement cannot be made or cannot be trusted; ``str`` is one line."""


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return _FRAME.pack(kind, channel, len(payload)) + payload + bytes((FRAME_END,))


def method(channel: int, class_id: int, method_id: int, arguments: bytes = b"") -> bytes:
    return frame(METHOD, channel, _METHOD_IDS.pack(class_id, method_id) + arguments)


def method_ids(payload: bytes) -> tuple[int, int]:
    """(class, method) of a method frame's payload."""
    if len(payload) < _METHOD_IDS.size:
        raise BenchError(f"method frame of {len(payload)} bytes")
    class_id, method_id = _METHOD_IDS.unpack_from(payload)
    return class_id, method_id


def short(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def long(text: bytes) -> bytes:
    return struct.pack(">L", len(text)) + text


def table(fields: dict[str, object]) -> bytes:
    return encode.field_table(fields)  # type: ignore[arg-type]


def read_short(payload: bytes, offset: int) -> tuple[bytes, int]:
    """The short string at ``offset``, and the offset behind it."""
    end = offset + 1 + payload[offset]
    return payload[offset + 1 : end], end


def split(inbox: bytearray) -> Iterator[tuple[int, int, bytes]]:
    """Take the complete frames out of ``inbox``: (type, channel, payload) of each.

    A frame leaves ``inbox`` before it is yielded, so that a caller may stop at any frame and
    find there exactly what followed it.
    """
    while len(inbox) >= _FRAME.size:
        kind, channel, size = _FRAME.unpack_from(inbox)
        end = _FRAME.size + size
        if len(inbox) <= end:
            return
        if inbox[end] != FRAME_END:
            raise BenchError(f"frame of type {kind} and {size} bytes has no frame end")
        payload = bytes(inbox[_FRAME.size : end])
        del inbox[: end + 1]
        yield kind, channel, payload


def publish(
    channel: int,
    size: int,
    exchange: bytes = EXCHANGE,
    key: bytes = ROUTING_KEY,
    *,
    headers: dict[str, object] | None = None,
    user_id: bytes = b"",
) -> bytes:
    """One basic.publish unit: method, content header and a body of ``size`` bytes.

    headers, user_id: properties of the message; absent where empty.
    """
    arguments = b"\x00\x00" + short(exchange) + short(key) + b"\x00"
    return method(channel, 60, 40, arguments) + _content(channel, size, headers, user_id)


def ack(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """A basic.ack frame, as a broker confirms with."""
    return method(channel, 60, 80, struct.pack(">QB", tag, multiple))


def deliver(
    channel: int, tag: bytes, size: int, exchange: bytes = EXCHANGE, key: bytes = ROUTING_KEY
) -> bytes:
    """One basic.deliver unit (delivery tag 1, not redelivered) with a body of ``size`` bytes."""
    arguments = short(tag) + struct.pack(">QB", 1, 0) + short(exchange) + short(key)
    return method(channel, 60, 60, arguments) + _content(channel, size)


def _content(
    channel: int, size: int, headers: dict[str, object] | None = None, user_id: bytes = b""
) -> bytes:
    # The body holds every octet value, the frame end among them: a proxy that looks for
    # frame ends instead of counting would lose its way and the byte count would tell.
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    flags = _DELIVERY_MODE | (_HEADERS if headers else 0) | (_USER_ID if user_id else 0)
    properties = struct.pack(">HHQH", 60, 0, size, flags)
    properties += (table(headers) if headers else b"") + _TRANSIENT
    properties += short(user_id) if user_id else b""
    return frame(CONTENT_HEADER, channel, properties) + frame(BODY, channel, body)


class Stream:
    """``count`` copies of ``unit``, sent from one chunk; no allocation on the way.

    ``pending`` is the next stretch to send, at most CHUNK bytes; ``advance`` says how much of
    it the kernel took.
    """

    __slots__ = ("_at", "_chunk", "left")

    def __init__(self, unit: bytes, count: int) -> None:
        self._chunk = memoryview(unit * max(1, min(count, CHUNK // len(unit))))
        self._at = 0
        self.left = len(unit) * count

    def pending(self) -> memoryview:
        return self._chunk[self._at : self._at + self.left]

    def advance(self, sent: int) -> None:
        self.left -= sent
        self._at = (self._at + sent) % len(self._chunk)
