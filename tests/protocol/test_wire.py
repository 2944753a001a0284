"""The strict readers and the writers: what is read, what is refused, and at what cost."""

from __future__ import annotations

import math
import struct
import sys
import time
from collections.abc import Callable

import pytest
from pamqp import commands, decode, encode
from pamqp import frame as pamqp_frame

from gatekeeper.protocol import wire
from gatekeeper.protocol.wire import MAX_DEPTH, Properties, Reader, Utf8Error, WireError


def entry(key: bytes, value: bytes) -> bytes:
    return bytes((len(key),)) + key + value


# tag, encoded value (without the tag), what is read
VALUES = [
    ("S", b"\0\0\0\2ab", b"ab"),
    ("S", b"\0\0\0\2\xff\0", b"\xff\0"),
    ("x", b"\0\0\0\1\0", b"\0"),
    ("t", b"\0", False),
    ("t", b"\1", True),
    ("t", b"\x80", True),
    ("b", b"\xff", -1),
    ("B", b"\xff", 255),
    ("s", b"\xff\xfe", -2),
    ("u", b"\xff\xfe", 65534),
    ("I", b"\xff\xff\xff\xff", -1),
    ("i", b"\xff\xff\xff\xff", 2**32 - 1),
    ("l", b"\xff" * 8, -1),
    ("L", b"\xff" * 8, -1),
    ("T", b"\xff" * 8, 2**64 - 1),
    ("f", struct.pack(">f", 1.5), 1.5),
    ("d", struct.pack(">d", -0.1), -0.1),
    ("D", b"\2\xff\xff\xff\xff", (2, 2**32 - 1)),
    ("V", b"", None),
    ("F", b"\0\0\0\0", {}),
    ("F", b"\0\0\0\3\1aV", {b"a": ("V", None)}),
    ("A", b"\0\0\0\0", []),
    ("A", b"\0\0\0\3Vt\1", [("V", None), ("t", True)]),
    ("A", b"\0\0\0\6F\0\0\0\0V", [("F", {}), ("V", None)]),
]


@pytest.mark.parametrize(("tag", "raw", "expected"), VALUES)
def test_values(tag: str, raw: bytes, expected: object) -> None:
    whole = entry(b"k", tag.encode() + raw)
    assert wire.read_table(whole) == {b"k": (tag, expected)}
    # In front of another entry, and inside a table and an array.
    assert wire.read_table(whole + b"\1zV") == {b"k": (tag, expected), b"z": ("V", None)}
    nested = entry(b"n", b"F" + wire.longstr(whole)) + b"\1zV"
    assert wire.read_table(nested)[b"n"] == ("F", {b"k": (tag, expected)})
    array = entry(b"n", b"A" + wire.longstr(tag.encode() + raw)) + b"\1zV"
    assert wire.read_table(array)[b"n"] == ("A", [(tag, expected)])
    assert wire.read_table(array)[b"z"] == ("V", None)


@pytest.mark.parametrize(("tag", "raw", "expected"), VALUES)
def test_values_cut_short_or_with_a_rest(tag: str, raw: bytes, expected: object) -> None:
    whole = entry(b"k", tag.encode() + raw)
    for size in range(1, len(whole)):
        with pytest.raises(WireError):
            wire.read_table(whole[:size])
    with pytest.raises(WireError):
        wire.read_table(whole + b"\0")
    # A value that its enclosing table cuts is not completed from what follows the table.
    for size in range(1, len(whole)):
        with pytest.raises(WireError):
            wire.read_table(entry(b"n", b"F" + wire.longstr(whole[:size])) + whole[size:] + b"\0V")


@pytest.mark.parametrize(("tag", "raw", "expected"), VALUES)
def test_values_written(tag: str, raw: bytes, expected: object) -> None:
    written = wire.table([(b"k", (tag, expected))])
    assert wire.read_table(written) == {b"k": (tag, expected)}
    if raw != b"\x80":
        assert written == entry(b"k", tag.encode() + raw)


@pytest.mark.parametrize("tag", [t for t in range(256) if chr(t) not in wire.RABBIT_TYPES])
def test_unknown_types(tag: int) -> None:
    with pytest.raises(WireError, match=f"unknown field type {tag}"):
        wire.read_table(entry(b"k", bytes((tag,)) + bytes(16)))


def test_every_type_has_a_name_and_a_sample() -> None:
    assert set(wire.RABBIT_TYPES) == {tag for tag, _, _ in VALUES}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_nan_and_no_infinity(value: float) -> None:
    for tag, layout in (("f", ">f"), ("d", ">d")):
        with pytest.raises(WireError, match="NaN or infinity"):
            wire.read_table(entry(b"k", tag.encode() + struct.pack(layout, value)))


def test_first_duplicate_wins_at_every_level() -> None:
    inner = entry(b"a", b"t\1") + entry(b"a", b"t\0")
    raw = entry(b"k", b"F" + wire.longstr(inner)) + entry(b"k", b"V")
    assert wire.read_table(raw) == {b"k": ("F", {b"a": ("t", True)})}


def test_a_losing_duplicate_must_be_well_formed() -> None:
    with pytest.raises(WireError):
        wire.read_table(entry(b"k", b"V") + entry(b"k", b"F\0\0\0\1x"))


def test_keys_are_any_bytes_and_case_matters() -> None:
    raw = b"".join(entry(key, b"V") for key in (b"", b"\xff\0\r\n", b"CC", b"cc", b"x" * 255))
    assert list(wire.read_table(raw)) == [b"", b"\xff\0\r\n", b"CC", b"cc", b"x" * 255]


def nest(depth: int, kind: bytes) -> bytes:
    raw = b""
    for _ in range(depth - 1):
        raw = (b"\0" if kind == b"F" else b"") + kind + wire.longstr(raw)
    return b"\0" + kind + wire.longstr(raw)


@pytest.mark.parametrize("kind", [b"F", b"A"])
def test_depth(kind: bytes) -> None:
    value: object = ("F", wire.read_table(nest(MAX_DEPTH, kind)))
    depth = 0
    while isinstance(value, tuple) and value[1]:
        value = value[1][b""] if isinstance(value[1], dict) else value[1][0]
        depth += 1
    assert depth == MAX_DEPTH
    for deeper in (MAX_DEPTH + 1, 20_000):
        with pytest.raises(WireError, match="nested deeper"):
            wire.read_table(nest(deeper, kind))


def worst(size: int) -> dict[str, bytes]:
    return {
        "void": b"\0V" * (size // 2),
        "bool": b"\0t\1" * (size // 3),
        "empty tables": b"\0F\0\0\0\0" * (size // 6),
        "distinct keys": b"".join(b"\2" + i.to_bytes(2, "big") + b"V" for i in range(size // 4)),
        "array": b"\0A" + wire.longstr(b"V" * size),
        "array of arrays": b"\0A" + wire.longstr(b"A\0\0\0\0" * (size // 5)),
        "deep": nest(MAX_DEPTH, b"F") * (size // (6 * MAX_DEPTH)),
    }


SIZE = 128 * 1024
WORST, EIGHTH = worst(SIZE), worst(SIZE // 8)


def cost(read: Callable[[bytes], object], data: bytes) -> float:
    """CPU seconds, the best of three."""
    best = math.inf
    for _ in range(3):
        start = time.process_time()
        read(data)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize("read", [wire.read_table, wire.table_entries])
@pytest.mark.parametrize("name", WORST)
def test_time_is_linear(name: str, read: Callable[[bytes], object]) -> None:
    whole = cost(read, WORST[name])
    # Quadratic would be 64 times an eighth.
    assert whole < 32 * max(cost(read, EIGHTH[name]), 0.0005)
    if sys.gettrace() is None:
        assert whole < 0.5


def test_agrees_with_pamqp_on_valid_tables() -> None:
    values = {"s": "text", "i": 70_000, "l": 1 << 40, "b": True, "n": None, "t": {"a": ["x", {}]}}
    raw = encode.field_table(values)
    assert wire.read_table(raw[4:]) == {
        b"s": ("S", b"text"),
        b"i": ("I", 70_000),
        b"l": ("l", 1 << 40),
        b"b": ("t", True),
        b"n": ("V", None),
        b"t": ("F", {b"a": ("A", [("S", b"x"), ("F", {})])}),
    }
    assert decode.field_table(wire.longstr(wire.table(wire.read_table(raw[4:]).items())))[1] == (
        values
    )


# --- table_entries, edit_table --------------------------------------------------------------


def test_entries_cover_the_table() -> None:
    raw = entry(b"a", b"t\2") + entry(b"", b"F" + wire.longstr(b"\1xV")) + entry(b"a", b"V")
    entries = wire.table_entries(raw)
    assert [(e.key, e.tag) for e in entries] == [(b"a", "t"), (b"", "F"), (b"a", "V")]
    assert b"".join(raw[e.start : e.end] for e in entries) == raw
    assert raw[entries[1].value : entries[1].end] == wire.longstr(b"\1xV")
    assert wire.table_entries(b"") == []


def test_edit_keeps_other_bytes() -> None:
    keep = entry(b"a", b"t\x7f"), entry(b"b", b"D\1\0\0\0\1"), entry(b"a", b"V")
    raw = keep[0] + entry(b"x", b"V") + keep[1] + entry(b"x", b"t\1") + keep[2]
    assert wire.edit_table(raw, {b"x"}) == b"".join(keep)
    assert wire.edit_table(raw, set()) == raw
    appended = wire.edit_table(raw, {b"x"}, [(b"x", ("S", b"\xff"))])
    assert appended == b"".join(keep) + b"\1xS\0\0\0\1\xff"


def test_edit_refuses_malformed() -> None:
    with pytest.raises(WireError):
        wire.edit_table(b"\1x", set())


# --- Reader ---------------------------------------------------------------------------------


def test_reader() -> None:
    reader = Reader(b"\1\0\2\0\0\0\3\0\0\0\0\0\0\0\4\2ab\0\0\0\1c\0\0\0\3\1kV\5\1\xff", 0)
    assert reader.octet() == 1
    assert reader.short() == 2
    assert reader.long() == 3
    assert reader.longlong() == 4
    assert reader.shortstr() == b"ab"
    assert reader.longstr() == b"c"
    assert wire.read_table(reader.table()) == {b"k": ("V", None)}
    assert reader.bits(3) == (True, False, True)
    assert reader.bits(9) == (True,) + (False,) * 7 + (True,)
    reader.finish()
    assert Reader(b"xx\7", 2).octet() == 7


@pytest.mark.parametrize(
    ("read", "whole"),
    [
        (Reader.octet, b"\0"),
        (Reader.short, b"\0\0"),
        (Reader.long, bytes(4)),
        (Reader.longlong, bytes(8)),
        (Reader.shortstr, b"\2ab"),
        (Reader.longstr, b"\0\0\0\2ab"),
        (Reader.table, b"\0\0\0\2\0V"),
        (lambda reader: reader.bits(9), b"\0\0"),
    ],
)
def test_reader_bounds(read: object, whole: bytes) -> None:
    assert callable(read)
    reader = Reader(whole)
    read(reader)
    reader.finish()
    for size in range(len(whole)):
        with pytest.raises(WireError, match="cut short"):
            read(Reader(whole[:size]))
    longer = Reader(whole + b"\0")
    read(longer)
    with pytest.raises(WireError, match="trailing"):
        longer.finish()


@pytest.mark.parametrize("text", [b"", b"a\0b\r\n", "é€😀".encode()])
def test_utf8(text: bytes) -> None:
    wire.check_utf8(b"a", text)


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3"]
)
def test_not_utf8(text: bytes) -> None:
    with pytest.raises(Utf8Error, match="Malformed UTF-8 in shortstr"):
        wire.check_utf8(b"a", text)


# --- Properties -----------------------------------------------------------------------------


def test_properties_as_pamqp_writes_them() -> None:
    header = commands.Basic.Properties(
        content_type="ct",
        content_encoding="ce",
        headers={"CC": ["a", "b"]},
        delivery_mode=2,
        priority=9,
        correlation_id="ci",
        reply_to="rt",
        expiration="60000",
        message_id="mi",
        message_type="mt",
        user_id="ui",
        app_id="ai",
    ).marshal()
    assert wire.read_properties(header) == Properties(
        content_type=b"ct",
        content_encoding=b"ce",
        headers={b"CC": ("A", [("S", b"a"), ("S", b"b")])},
        delivery_mode=2,
        priority=9,
        correlation_id=b"ci",
        reply_to=b"rt",
        expiration=b"60000",
        message_id=b"mi",
        type=b"mt",
        user_id=b"ui",
        app_id=b"ai",
    )


# flag bit, field, encoded, read
PROPERTIES = [
    (15, "content_type", b"\1a", b"a"),
    (14, "content_encoding", b"\1b", b"b"),
    (13, "headers", b"\0\0\0\3\1kV", {b"k": ("V", None)}),
    (12, "delivery_mode", b"\2", 2),
    (11, "priority", b"\xff", 255),
    (10, "correlation_id", b"\0", b""),
    (9, "reply_to", b"\1\xff", b"\xff"),
    (8, "expiration", b"\1x", b"x"),
    (7, "message_id", b"\1c", b"c"),
    (6, "timestamp", bytes(7) + b"\1", 1),
    (5, "type", b"\1d", b"d"),
    (4, "user_id", b"\5guest", b"guest"),
    (3, "app_id", b"\1e", b"e"),
    (2, "cluster_id", b"\1f", b"f"),
]


@pytest.mark.parametrize(("bit", "name", "raw", "expected"), PROPERTIES)
def test_each_property(bit: int, name: str, raw: bytes, expected: object) -> None:
    for ignored in range(4):
        flags = (1 << bit | ignored).to_bytes(2, "big")
        read = wire.read_properties(flags + raw)
        assert read == Properties(**{name: expected})  # type: ignore[arg-type]
    for size in range(len(flags + raw)):
        with pytest.raises(WireError):
            wire.read_properties((flags + raw)[:size])
    with pytest.raises(WireError, match="trailing"):
        wire.read_properties(flags + raw + b"\0")


def test_no_second_flags_word_is_read() -> None:
    # A reader that honours the continuation bit would take the user id from the next word.
    with pytest.raises(WireError):
        wire.read_properties(b"\0\1\0\x10\5guest")
    assert wire.read_properties(b"\0\3") == Properties()


def test_malformed_headers() -> None:
    with pytest.raises(WireError):
        wire.read_properties(b"\x20\0" + wire.longstr(b"\1kQ"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"A" + wire.longstr(b""), []),
        (b"A" + wire.longstr(b"S\0\0\0\1aVx\0\0\0\1bS\0\0\0\0"), [b"a", b""]),
        (b"S\0\0\0\1a", "S"),
        (b"V", "V"),
        (b"F\0\0\0\0", "F"),
    ],
)
def test_cc_and_bcc(value: bytes, expected: object) -> None:
    for key in (b"CC", b"BCC"):
        raw = entry(key, value) + entry(key, b"A" + wire.longstr(b"S\0\0\0\1z"))
        read = wire.read_properties(b"\x20\0" + wire.longstr(raw))
        assert (read.cc, read.bcc) == ((expected, None) if key == b"CC" else (None, expected))


def test_no_headers_no_cc() -> None:
    assert wire.read_properties(b"\0\0").cc is None
    assert wire.read_properties(b"\x20\0\0\0\0\0").bcc is None
    assert wire.read_properties(b"\x20\0" + wire.longstr(entry(b"cc", b"V"))).cc is None


# --- Writers --------------------------------------------------------------------------------


def test_frames_as_pamqp_writes_them() -> None:
    close = commands.Channel.Close(403, "ACCESS_REFUSED - no", 60, 40)
    assert wire.close_method(7, 20, 403, b"ACCESS_REFUSED - no", 60, 40) == pamqp_frame.marshal(
        close, 7
    )
    close_connection = commands.Connection.Close(530, "NOT_ALLOWED - no", 10, 40)
    assert wire.close_method(0, 10, 530, b"NOT_ALLOWED - no", 10, 40) == pamqp_frame.marshal(
        close_connection, 0
    )
    assert wire.method(0, 10, 51) == pamqp_frame.marshal(commands.Connection.CloseOk(), 0)
    assert wire.frame(8, 0, b"") == b"\x08\0\0\0\0\0\0\xce"


def test_writers_take_any_bytes() -> None:
    assert wire.close_method(1, 20, 404, b"\xff\0", 0, 0)[11:] == b"\1\x94\2\xff\0\0\0\0\0\xce"


@pytest.mark.parametrize(
    "write",
    [
        lambda: wire.shortstr(bytes(256)),
        lambda: wire.table([(bytes(256), ("V", None))]),
        lambda: wire.table([(b"k", ("b", 128))]),
        lambda: wire.table([(b"k", ("D", (256, 0)))]),
        lambda: wire.close_method(0, 10, 403, bytes(256), 0, 0),
    ],
)
def test_writers_refuse_what_does_not_fit(write: object) -> None:
    assert callable(write)
    with pytest.raises(ValueError):
        write()
