"""Any bytes to the readers: read or refused, nothing else; what was written comes back."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.protocol import wire
from gatekeeper.protocol.wire import Reader, WireError

fields = st.recursive(
    st.one_of(
        st.tuples(st.sampled_from("Sx"), st.binary(max_size=20)),
        st.tuples(st.just("t"), st.booleans()),
        st.tuples(st.just("b"), st.integers(-128, 127)),
        st.tuples(st.just("u"), st.integers(0, 2**16 - 1)),
        st.tuples(st.sampled_from("lL"), st.integers(-(2**63), 2**63 - 1)),
        st.tuples(st.just("d"), st.floats(allow_nan=False, allow_infinity=False)),
        st.tuples(st.just("D"), st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1))),
        st.just(("V", None)),
    ),
    lambda inner: st.one_of(
        st.tuples(st.just("A"), st.lists(inner, max_size=4)),
        st.tuples(st.just("F"), st.dictionaries(st.binary(max_size=4), inner, max_size=4)),
    ),
    max_leaves=20,
)
tables = st.dictionaries(st.binary(max_size=8), fields, max_size=6)
table_like = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from([b"\0V", b"\1kF\0\0\0\4", b"\0A\0\0\0\2", b"\1kt\1", b"\0S\0\0\0\1"]),
    ),
    max_size=30,
).map(b"".join)


@given(tables)
def test_tables_come_back(table: dict[bytes, wire.Value]) -> None:
    raw = wire.table(table.items())
    assert wire.read_table(raw) == table
    assert wire.edit_table(raw, set()) == raw


@given(tables, st.data())
def test_a_changed_octet_never_escapes(table: dict[bytes, wire.Value], data: st.DataObject) -> None:
    raw = bytearray(wire.table(table.items()) + b"\0V")
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = wire.read_table(bytes(raw))
    except WireError:
        return
    assert set(read) == {e.key for e in wire.table_entries(bytes(raw))}


@given(st.one_of(st.binary(max_size=200), table_like))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (wire.read_table, wire.table_entries, wire.read_properties):
        with suppress(WireError):
            assert read(data) is not None


@given(
    st.binary(max_size=60),
    st.lists(st.sampled_from(["octet", "short", "long", "longlong", "shortstr", "longstr"])),
)
def test_the_reader_stays_in_bounds(data: bytes, reads: list[str]) -> None:
    reader = Reader(data)
    taken = 0
    with suppress(WireError):
        for name in reads:
            value = getattr(reader, name)()
            taken += len(value) if isinstance(value, bytes) else 0
        reader.finish()
    assert taken <= len(data)
