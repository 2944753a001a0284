"""Strict readers and plain writers of AMQP 0-9-1 bytes, on RabbitMQ's terms.

Strategy: a gate must read exactly what the broker reads, else a client can show one thing to
the one and another to the other. So these readers follow RabbitMQ's parser, not the
specification, where they differ: the first of duplicate keys wins, ``s`` is a 16-bit integer,
only the first flags word of a content header counts, and nothing may be missing or left over.

Every reader is bounded by its input, linear in it, and raises :class:`WireError` and nothing
else. Tables are read by a loop with its own stack, so nesting costs no interpreter stack.
The writers take bytes that libraries refuse (names of any octets), and raise ``ValueError``
where a value does not fit its field, which is a mistake of the caller.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

FRAME_METHOD: Final = 1
FRAME_HEADER: Final = 2
FRAME_BODY: Final = 3
FRAME_HEARTBEAT: Final = 8
FRAME_END: Final = 0xCE
FRAME_HEAD: Final = struct.Struct(">BHI")
"""Type, channel, payload size."""

MAX_DEPTH: Final = 128
"""Tables and arrays inside each other. RabbitMQ has no limit; beyond this it is an attack."""

Value = tuple[str, object]
"""A field value: its type tag and what it holds. By tag:

``S`` ``x`` bytes; ``t`` bool; ``b`` ``B`` ``s`` ``u`` ``I`` ``i`` ``l`` ``L`` ``T`` int;
``f`` ``d`` float; ``D`` (scale, unsigned value); ``V`` None; ``F`` dict[bytes, Value];
``A`` list[Value].
"""

Table = dict[bytes, Value]

RABBIT_TYPES: Final = {
    "S": "longstr",
    "I": "signedint",
    "D": "decimal",
    "T": "timestamp",
    "F": "table",
    "A": "array",
    "b": "byte",
    "B": "unsignedbyte",
    "d": "double",
    "f": "float",
    "l": "long",
    "L": "long",
    "s": "short",
    "t": "bool",
    "u": "unsignedshort",
    "i": "unsignedint",
    "x": "binary",
    "V": "void",
}
"""Type tag -> what RabbitMQ calls the type in its error texts."""


class WireError(Exception):
    """The bytes are not what AMQP 0-9-1, as RabbitMQ reads it, allows at this place."""


class Utf8Error(WireError):
    """A short string of a method is not UTF-8."""


# --- Field tables ---------------------------------------------------------------------------

_VOID: Value = ("V", None)
_BOOLS: tuple[Value, Value] = (("t", False), ("t", True))

_NUMBERS: Final = {
    ord(tag): (tag, struct.Struct(layout))
    for tag, layout in (
        ("b", ">b"),
        ("B", ">B"),
        ("s", ">h"),
        ("u", ">H"),
        ("I", ">i"),
        ("i", ">I"),
        ("l", ">q"),
        ("L", ">q"),
        ("T", ">Q"),
        ("f", ">f"),
        ("d", ">d"),
        ("D", ">BI"),
    )
}
_LENGTH: Final = struct.Struct(">I")


def read_table(data: bytes) -> Table:
    """The content of a field table (without its length). The first of duplicate keys wins.

    Raises WireError: unknown tag, entry cut short or running over its table's end, NaN or an
    infinity, nesting beyond MAX_DEPTH.
    Source: RabbitMQ ``rabbit_binary_parser:parse_table``, ``rabbit_misc:table_lookup``.
    """
    return _scan_table(data, None)


MEMO_SIZE: Final = 1024
"""Bytes of a table that is worth remembering."""


def known_table(data: bytes) -> Table:
    """As :func:`read_table`, for tables that come again and again: the result must not be changed.

    Client properties and queue arguments are few in a system, and read often. Never for tables
    that hold a secret: what was read last is remembered.
    """
    return _remembered_table(data) if len(data) <= MEMO_SIZE else read_table(data)


_remembered_table = functools.lru_cache(maxsize=256)(read_table)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a table: where its key starts, where its value (after the tag) starts, ends."""

    key: bytes
    tag: str
    start: int
    value: int
    end: int


def table_entries(data: bytes) -> list[Entry]:
    """The top-level entries of a table's content, in order, duplicates included.

    Raises WireError as :func:`read_table` does, nested values included.
    """
    starts: list[int] = []
    _scan_table(data, starts)
    entries = []
    for start, end in pairwise([*starts, len(data)]):
        tag = start + 1 + data[start]
        entries.append(Entry(data[start + 1 : tag], chr(data[tag]), start, tag + 1, end))
    return entries


def _scan_table(data: bytes, starts: list[int] | None) -> Table:
    """Read a table; note in ``starts`` where each top-level entry begins.

    One loop for all levels: ``table`` or ``array`` is what is being filled, up to ``end``;
    ``stack`` holds the enclosing ones.
    """
    root: Table = {}
    table: Table | None = root
    array: list[Value] = []
    stack: list[tuple[Table | None, list[Value], int]] = []
    pos, end = 0, len(data)
    while True:
        if pos == end:
            if not stack:
                return root
            table, array, end = stack.pop()
            continue
        key = b""
        if table is not None:
            if starts is not None and not stack:
                starts.append(pos)
            begin = pos + 1
            pos = begin + data[pos]
            if pos >= end:
                raise WireError("table entry without a value")
            key = data[begin:pos]
        tag = data[pos]
        pos += 1
        inner: Table | list[Value] | None = None
        stop = pos
        value: Value
        if tag in _NUMBERS:
            value, stop = _number(data, pos, end, tag)
        elif tag in b"SxFA":
            begin, stop = _extent(data, pos, end)
            if tag == 0x46:
                value = ("F", inner := {})
            elif tag == 0x41:
                value = ("A", inner := [])
            else:
                value = (chr(tag), data[begin:stop])
        elif tag == 0x74:
            if pos >= end:
                raise WireError("field value cut short")
            value, stop = _BOOLS[data[pos] != 0], pos + 1
        elif tag == 0x56:
            value = _VOID
        else:
            raise WireError(f"unknown field type {tag}")
        if table is None:
            array.append(value)
        else:
            table.setdefault(key, value)
        pos = stop
        if inner is not None:
            if len(stack) >= MAX_DEPTH:
                raise WireError(f"field values nested deeper than {MAX_DEPTH}")
            stack.append((table, array, end))
            table, array = (inner, []) if isinstance(inner, dict) else (None, inner)
            pos, end = begin, stop


def _number(data: bytes, pos: int, end: int, tag: int) -> tuple[Value, int]:
    name, layout = _NUMBERS[tag]
    stop = pos + layout.size
    if stop > end:
        raise WireError("field value cut short")
    fields = layout.unpack_from(data, pos)
    if name == "D":
        return (name, fields), stop
    # Erlang has no NaN and no infinities: RabbitMQ's parser does not match them.
    if name in "fd" and not math.isfinite(fields[0]):
        raise WireError("NaN or infinity in a field value")
    return (name, fields[0]), stop


def _extent(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Start and end of what a four-octet length at ``pos`` announces."""
    begin = pos + 4
    if begin > end:
        raise WireError("field value cut short")
    stop: int = begin + _LENGTH.unpack_from(data, pos)[0]
    if stop > end:
        raise WireError("field value runs over the end of its table")
    return begin, stop


def edit_table(
    raw: bytes, remove: AbstractSet[bytes], append: Iterable[tuple[bytes, Value]] = ()
) -> bytes:
    """Table content without the top-level entries named in ``remove``, plus ``append``.

    Every other entry, duplicates included, keeps its bytes and its place. Raises WireError if
    ``raw`` is malformed.
    """
    kept = [raw[entry.start : entry.end] for entry in table_entries(raw) if entry.key not in remove]
    return b"".join(kept) + table(append)


# --- Method arguments -----------------------------------------------------------------------


class Reader:
    """Method arguments in the order of their fields. Every read may raise WireError.

    Short strings come raw: RabbitMQ matches the whole layout first and checks UTF-8 after, so
    read all fields, :meth:`finish`, then :func:`check_utf8` those that want it.
    """

    __slots__ = ("_data", "_pos")

    def __init__(self, data: bytes, pos: int = 0) -> None:
        self._data = data
        self._pos = pos

    def _take(self, size: int) -> bytes:
        stop = self._pos + size
        chunk = self._data[self._pos : stop]
        if len(chunk) != size:
            raise WireError("arguments cut short")
        self._pos = stop
        return chunk

    def octet(self) -> int:
        return self._take(1)[0]

    def short(self) -> int:
        return int.from_bytes(self._take(2), "big")

    def long(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def longlong(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def shortstr(self) -> bytes:
        return self._take(self.octet())

    def longstr(self) -> bytes:
        return self._take(self.long())

    def table(self) -> bytes:
        """A table's raw content, not yet looked into: give it to :func:`read_table`."""
        return self._take(self.long())

    def bits(self, count: int) -> tuple[bool, ...]:
        """``count`` consecutive bits, lowest first, eight to an octet; spare bits are ignored."""
        octets = self._take((count + 7) // 8)
        return tuple(bool(octets[i // 8] & 1 << i % 8) for i in range(count))

    def finish(self) -> None:
        """Raises WireError unless everything was read."""
        if self._pos != len(self._data):
            raise WireError("trailing bytes after the arguments")


def check_utf8(*strings: bytes) -> None:
    """Raises Utf8Error unless all are UTF-8: strictly, as RabbitMQ 4.3.0 on."""
    for string in strings:
        try:
            string.decode("utf-8")
        except UnicodeDecodeError:
            raise Utf8Error("Malformed UTF-8 in shortstr") from None


# --- Content header properties --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Properties:
    """The fourteen properties of a basic content header; None where absent."""

    content_type: bytes | None = None
    content_encoding: bytes | None = None
    headers: Table | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: bytes | None = None
    reply_to: bytes | None = None
    expiration: bytes | None = None
    message_id: bytes | None = None
    timestamp: int | None = None
    type: bytes | None = None
    user_id: bytes | None = None
    app_id: bytes | None = None
    cluster_id: bytes | None = None

    @property
    def cc(self) -> list[bytes] | str | None:
        """Further routing keys: None if absent, the type tag if it is not an array.

        Elements that are not long strings are ignored, as ``rabbit_basic:header_routes`` does.
        """
        return self._routes(b"CC")

    @property
    def bcc(self) -> list[bytes] | str | None:
        """As :attr:`cc`."""
        return self._routes(b"BCC")

    def _routes(self, key: bytes) -> list[bytes] | str | None:
        found = None if self.headers is None else self.headers.get(key)
        if found is None:
            return None
        tag, elements = found
        if not isinstance(elements, list):
            return tag
        return [route for kind, route in elements if kind == "S"]


def read_properties(data: bytes) -> Properties:
    """What follows the body size in a content header: a flags word, then the properties.

    The low two flag bits are ignored: RabbitMQ reads no second flags word. Raises WireError for
    data cut short, trailing bytes or a malformed headers table. Nothing is checked for UTF-8.
    Source: ``rabbit_framing_amqp_0_9_1:decode_properties``.
    """
    reader = Reader(data)
    flags = reader.short()
    string = reader.shortstr
    properties = Properties(
        content_type=string() if flags & 0x8000 else None,
        content_encoding=string() if flags & 0x4000 else None,
        headers=read_table(reader.table()) if flags & 0x2000 else None,
        delivery_mode=reader.octet() if flags & 0x1000 else None,
        priority=reader.octet() if flags & 0x0800 else None,
        correlation_id=string() if flags & 0x0400 else None,
        reply_to=string() if flags & 0x0200 else None,
        expiration=string() if flags & 0x0100 else None,
        message_id=string() if flags & 0x0080 else None,
        timestamp=reader.longlong() if flags & 0x0040 else None,
        type=string() if flags & 0x0020 else None,
        user_id=string() if flags & 0x0010 else None,
        app_id=string() if flags & 0x0008 else None,
        cluster_id=string() if flags & 0x0004 else None,
    )
    reader.finish()
    return properties


# --- Writers --------------------------------------------------------------------------------


def shortstr(value: bytes) -> bytes:
    if len(value) > 255:
        raise ValueError(f"short string of {len(value)} bytes")
    return bytes((len(value),)) + value


def longstr(value: bytes) -> bytes:
    """A long string; also a whole table from its content, which is laid out alike."""
    return len(value).to_bytes(4, "big") + value


def _pack(tag: str, layout: struct.Struct) -> Callable[[Any], bytes]:
    def write(value: Any) -> bytes:
        try:
            return layout.pack(*value) if tag == "D" else layout.pack(value)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"value does not fit field type {tag}: {error}") from None

    return write


def _array(values: Iterable[Value]) -> bytes:
    return b"".join(_field(value) for value in values)


_WRITERS: Final[dict[str, Callable[[Any], bytes]]] = {
    **{tag: _pack(tag, layout) for tag, layout in _NUMBERS.values()},
    "S": longstr,
    "x": longstr,
    "t": lambda value: b"\x01" if value else b"\x00",
    "V": lambda _: b"",
    "F": lambda value: longstr(table(value.items())),
    "A": lambda value: longstr(_array(value)),
}


def _field(value: Value) -> bytes:
    tag, content = value
    return tag.encode() + _WRITERS[tag](content)


def table(entries: Iterable[tuple[bytes, Value]]) -> bytes:
    """Table *content*: put :func:`longstr` around it where a whole table is wanted."""
    return b"".join(shortstr(key) + _field(value) for key, value in entries)


def frame(frame_type: int, channel: int, payload: bytes) -> bytes:
    return FRAME_HEAD.pack(frame_type, channel, len(payload)) + payload + bytes((FRAME_END,))


def method(channel: int, class_id: int, method_id: int, args: bytes = b"") -> bytes:
    """A whole method frame from its encoded arguments."""
    ids = class_id.to_bytes(2, "big") + method_id.to_bytes(2, "big")
    return frame(FRAME_METHOD, channel, ids + args)


CLOSE_IDS: Final = {10: 50, 20: 40}
"""Class -> its close method. The close-ok of either is the id after it."""


def close_method(
    channel: int, class_id: int, code: int, text: bytes, failing_class: int, failing_method: int
) -> bytes:
    """A connection.close (class 10) or channel.close (class 20) frame.

    text: the whole reply text, at most 255 bytes, see ``errors.reply_text``.
    failing_class, failing_method: the method that is answered so; 0, 0 for none.
    """
    ids = failing_class.to_bytes(2, "big") + failing_method.to_bytes(2, "big")
    args = code.to_bytes(2, "big") + shortstr(text) + ids
    return method(channel, class_id, CLOSE_IDS[class_id], args)
