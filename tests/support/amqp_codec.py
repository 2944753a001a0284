"""AMQP 0-9-1 as bytes, for tests: one table of methods, an encoder that obeys, a decoder.

Written from the specification and independent of the package and of pamqp, so that an error of
either shows. The encoder never judges: names of any bytes, tables of raw bytes, too few or too
many arguments all go out. The decoder is exact and raises ValueError on anything left over.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE
BASIC = 60

# name: (class, method, arguments). o octet, h short, l long, q longlong, s shortstr,
# S longstr, t table, b bit. An argument is NAME:TYPE; reserved ones are called r1, r2, ...
_METHODS = """
connection.start 10 10 version_major:o version_minor:o server_properties:t mechanisms:S locales:S
connection.start-ok 10 11 client_properties:t mechanism:s response:S locale:s
connection.secure 10 20 challenge:S
connection.secure-ok 10 21 response:S
connection.tune 10 30 channel_max:h frame_max:l heartbeat:h
connection.tune-ok 10 31 channel_max:h frame_max:l heartbeat:h
connection.open 10 40 virtual_host:s r1:s r2:b
connection.open-ok 10 41 r1:s
connection.close 10 50 reply_code:h reply_text:s class_id:h method_id:h
connection.close-ok 10 51
connection.blocked 10 60 reason:s
connection.unblocked 10 61
connection.update-secret 10 70 new_secret:S reason:s
connection.update-secret-ok 10 71
channel.open 20 10 r1:s
channel.open-ok 20 11 r1:S
channel.flow 20 20 active:b
channel.flow-ok 20 21 active:b
channel.close 20 40 reply_code:h reply_text:s class_id:h method_id:h
channel.close-ok 20 41
access.request 30 10 realm:s exclusive:b passive:b active:b write:b read:b
access.request-ok 30 11 ticket:h
exchange.declare 40 10 r1:h exchange:s type:s passive:b durable:b auto_delete:b internal:b nowait:b arguments:t
exchange.declare-ok 40 11
exchange.delete 40 20 r1:h exchange:s if_unused:b nowait:b
exchange.delete-ok 40 21
exchange.bind 40 30 r1:h destination:s source:s routing_key:s nowait:b arguments:t
exchange.bind-ok 40 31
exchange.unbind 40 40 r1:h destination:s source:s routing_key:s nowait:b arguments:t
exchange.unbind-ok 40 51
queue.declare 50 10 r1:h queue:s passive:b durable:b exclusive:b auto_delete:b nowait:b arguments:t
queue.declare-ok 50 11 queue:s message_count:l consumer_count:l
queue.bind 50 20 r1:h queue:s exchange:s routing_key:s nowait:b arguments:t
queue.bind-ok 50 21
queue.purge 50 30 r1:h queue:s nowait:b
queue.purge-ok 50 31 message_count:l
queue.delete 50 40 r1:h queue:s if_unused:b if_empty:b nowait:b
queue.delete-ok 50 41 message_count:l
queue.unbind 50 50 r1:h queue:s exchange:s routing_key:s arguments:t
queue.unbind-ok 50 51
basic.qos 60 10 prefetch_size:l prefetch_count:h global:b
basic.qos-ok 60 11
basic.consume 60 20 r1:h queue:s consumer_tag:s no_local:b no_ack:b exclusive:b nowait:b arguments:t
basic.consume-ok 60 21 consumer_tag:s
basic.cancel 60 30 consumer_tag:s nowait:b
basic.cancel-ok 60 31 consumer_tag:s
basic.publish 60 40 r1:h exchange:s routing_key:s mandatory:b immediate:b
basic.return 60 50 reply_code:h reply_text:s exchange:s routing_key:s
basic.deliver 60 60 consumer_tag:s delivery_tag:q redelivered:b exchange:s routing_key:s
basic.get 60 70 r1:h queue:s no_ack:b
basic.get-ok 60 71 delivery_tag:q redelivered:b exchange:s routing_key:s message_count:l
basic.get-empty 60 72 r1:s
basic.ack 60 80 delivery_tag:q multiple:b
basic.reject 60 90 delivery_tag:q requeue:b
basic.recover-async 60 100 requeue:b
basic.recover 60 110 requeue:b
basic.recover-ok 60 111
basic.nack 60 120 delivery_tag:q multiple:b requeue:b
tx.select 90 10
tx.select-ok 90 11
tx.commit 90 20
tx.commit-ok 90 21
tx.rollback 90 30
tx.rollback-ok 90 31
confirm.select 85 10 nowait:b
confirm.select-ok 85 11
"""  # noqa: E501 - one line a method


@dataclass(frozen=True, slots=True)
class MethodSpec:
    name: str
    class_id: int
    method_id: int
    arguments: tuple[tuple[str, str], ...]


def _specs() -> dict[str, MethodSpec]:
    specs = {}
    for line in _METHODS.strip().splitlines():
        name, class_id, method_id, *arguments = line.split()
        pairs = tuple((a.split(":")[0], a.split(":")[1]) for a in arguments)
        specs[name] = MethodSpec(name, int(class_id), int(method_id), pairs)
    return specs


METHODS = _specs()
# exchange.unbind-ok is 40,51: RabbitMQ's number, not the next free one.
BY_ID = {(spec.class_id, spec.method_id): spec for spec in METHODS.values()}
CONTENT_METHODS = frozenset({"basic.publish", "basic.return", "basic.deliver", "basic.get-ok"})

# In the order of their flag bits, from bit 15 down.
PROPERTIES = (
    ("content_type", "s"),
    ("content_encoding", "s"),
    ("headers", "t"),
    ("delivery_mode", "o"),
    ("priority", "o"),
    ("correlation_id", "s"),
    ("reply_to", "s"),
    ("expiration", "s"),
    ("message_id", "s"),
    ("timestamp", "q"),
    ("type", "s"),
    ("user_id", "s"),
    ("app_id", "s"),
    ("cluster_id", "s"),
)


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that go out as they are: a whole table with its length, or a typed table value."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Method:
    """A decoded method, with its content where it carries one."""

    name: str
    arguments: Mapping[str, Any]
    properties: Mapping[str, Any] | None = None
    body: bytes | None = None

    def __getitem__(self, key: str) -> Any:
        return self.arguments[key]

    def __str__(self) -> str:
        shown = ", ".join(
            f"{key}={value!r}"
            for key, value in self.arguments.items()
            if key[0] != "r" or key[1:2] > "9"
        )
        content = "" if self.body is None else f" {dict(self.properties or {})} {self.body!r}"
        return f"{self.name}({shown}){content}"


@dataclass(slots=True)
class _Reader:
    data: bytes
    at: int = 0
    bits: int = 0
    bit: int = field(default=8)

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError(f"{count} bytes wanted at {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f">{code}", self.take(struct.calcsize(f">{code}")))[0]

    def value(self, kind: str) -> Any:
        if kind == "b":
            if self.bit > 7:
                self.bits, self.bit = self.number("B"), 0
            self.bit += 1
            return bool(self.bits >> (self.bit - 1) & 1)
        self.bit = 8
        match kind:
            case "o":
                return self.number("B")
            case "h":
                return self.number("H")
            case "l":
                return self.number("I")
            case "q":
                return self.number("Q")
            case "s":
                return self.take(self.number("B"))
            case "S":
                return self.take(self.number("I"))
            case "t":
                return _Reader(self.take(self.number("I"))).table()
        raise ValueError(f"unknown type {kind}")

    def table(self) -> dict[bytes, Any]:
        result: dict[bytes, Any] = {}
        while self.at < len(self.data):
            key = self.take(self.number("B"))
            result.setdefault(key, self.typed())
        return result

    def typed(self) -> Any:
        tag = self.take(1)
        numbers = {
            b"b": "b",
            b"B": "B",
            b"s": "h",
            b"u": "H",
            b"I": "i",
            b"i": "I",
            b"l": "q",
            b"L": "q",
            b"f": "f",
            b"d": "d",
            b"T": "Q",
        }
        if tag in numbers:
            return self.number(numbers[tag])
        match tag:
            case b"t":
                return bool(self.number("B"))
            case b"S" | b"x":
                return self.take(self.number("I"))
            case b"D":
                return (self.number("B"), self.number("I"))
            case b"V":
                return None
            case b"F":
                return self.value("t")
            case b"A":
                inner = _Reader(self.take(self.number("I")))
                items = []
                while inner.at < len(inner.data):
                    items.append(inner.typed())
                return items
        raise ValueError(f"unknown table tag {tag!r}")


def shortstr(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">B", len(data)) + data


def longstr(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">I", len(data)) + data


def typed(value: Any) -> bytes:
    """A table value: bytes and str as longstr, bool, int as ``l``, list, dict, None, or Raw."""
    match value:
        case Raw(data):
            return data
        case None:
            return b"V"
        case bool():
            return b"t" + bytes([value])
        case int():
            return b"l" + struct.pack(">q", value)
        case float():
            return b"d" + struct.pack(">d", value)
        case bytes() | str():
            return b"S" + longstr(value)
        case Mapping():
            return b"F" + table(value)
        case Sequence():
            return b"A" + longstr(b"".join(typed(item) for item in value))
    raise TypeError(f"no AMQP type for {value!r}")


def table(value: Mapping[Any, Any] | Sequence[tuple[Any, Any]] | Raw) -> bytes:
    """A field table with its length; a list of pairs allows duplicate keys."""
    if isinstance(value, Raw):
        return value.data
    pairs = value.items() if isinstance(value, Mapping) else value
    return longstr(b"".join(shortstr(key) + typed(item) for key, item in pairs))


def _encode(kind: str, value: Any) -> bytes:
    match kind:
        case "o":
            return struct.pack(">B", value)
        case "h":
            return struct.pack(">H", value)
        case "l":
            return struct.pack(">I", value)
        case "q":
            return struct.pack(">Q", value)
        case "s":
            return shortstr(value)
        case "S":
            return longstr(value)
        case "t":
            return table(value)
    raise ValueError(f"unknown type {kind}")


_EMPTY: dict[str, Any] = {"s": b"", "S": b"", "t": {}, "b": False}


def encode_method(name: str, arguments: Mapping[str, Any]) -> bytes:
    """The payload of a method frame; what is not given is zero or empty."""
    spec = METHODS[name]
    unknown = set(arguments) - {key for key, _ in spec.arguments}
    if unknown:
        raise TypeError(f"{name} has no argument {sorted(unknown)}")
    out = [struct.pack(">HH", spec.class_id, spec.method_id)]
    bits = count = 0
    for key, kind in spec.arguments:
        value = arguments.get(key, _EMPTY.get(kind, 0))
        if kind == "b":
            bits |= bool(value) << count
            count += 1
            continue
        if count:
            out.append(bytes([bits]))
            bits = count = 0
        out.append(_encode(kind, value))
    if count:
        out.append(bytes([bits]))
    return b"".join(out)


def decode_method(payload: bytes) -> Method:
    class_id, method_id = struct.unpack(">HH", payload[:4])
    spec = BY_ID[class_id, method_id]
    reader = _Reader(payload, 4)
    arguments = {key: reader.value(kind) for key, kind in spec.arguments}
    if reader.at != len(payload):
        raise ValueError(f"{len(payload) - reader.at} bytes after {spec.name}")
    return Method(spec.name, arguments)


def encode_header(
    size: int, properties: Mapping[str, Any], *, class_id: int = BASIC, weight: int = 0
) -> bytes:
    flags, out = 0, []
    for bit, (key, kind) in enumerate(PROPERTIES):
        if key in properties:
            flags |= 1 << (15 - bit)
            out.append(_encode(kind, properties[key]))
    return struct.pack(">HHQH", class_id, weight, size, flags) + b"".join(out)


def decode_header(payload: bytes) -> tuple[int, dict[str, Any]]:
    """Body size and properties."""
    reader = _Reader(payload)
    _class, _weight, size, flags = struct.unpack(">HHQH", reader.take(14))
    properties = {
        key: reader.value(kind)
        for bit, (key, kind) in enumerate(PROPERTIES)
        if flags & 1 << (15 - bit)
    }
    if reader.at != len(payload):
        raise ValueError("bytes after the properties")
    return size, properties


def frame(kind: int, channel: int, payload: bytes, *, end: int = FRAME_END) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])


def method_frame(channel: int, name: str, **arguments: Any) -> bytes:
    return frame(METHOD, channel, encode_method(name, arguments))


def publish_frames(
    channel: int,
    exchange: bytes,
    routing_key: bytes,
    body: bytes = b"",
    properties: Mapping[str, Any] | None = None,
    *,
    mandatory: bool = False,
    immediate: bool = False,
    frame_max: int = 131072,
) -> bytes:
    """Method, header and body frames of one publish."""
    out = method_frame(
        channel,
        "basic.publish",
        exchange=exchange,
        routing_key=routing_key,
        mandatory=mandatory,
        immediate=immediate,
    )
    out += frame(HEADER, channel, encode_header(len(body), properties or {}))
    room = frame_max - 8
    for start in range(0, len(body), room):
        out += frame(BODY, channel, body[start : start + room])
    return out
