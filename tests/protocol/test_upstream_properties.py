"""The client properties that a broker is shown: the client's bytes, and what the gate changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.protocol import wire
from gatekeeper.protocol.upstream import upstream_properties

TELL = {
    b"authentication_failure_close": ("t", True),
    b"consumer_cancel_notify": ("t", True),
}
OURS = {"version": "1.0", "raw": b"\xff", "port": 5672, "big": 2**40, "tls": True}
OURS_READ = {
    b"version": ("S", b"1.0"),
    b"raw": ("S", b"\xff"),
    b"port": ("I", 5672),
    b"big": ("l", 2**40),
    b"tls": ("t", True),
}


def shown_to_broker(*entries: tuple[bytes, wire.Value]) -> tuple[bytes, dict[bytes, wire.Value]]:
    raw = upstream_properties(wire.table(entries), OURS, b"default name")
    return raw, wire.read_table(raw)


def test_nothing_from_the_client() -> None:
    _, read = shown_to_broker()
    assert read == {
        b"capabilities": ("F", TELL),
        b"connection_name": ("S", b"default name"),
        b"gatekeeper": ("F", OURS_READ),
    }


def test_everything_else_keeps_its_bytes() -> None:
    product = wire.table([(b"product", ("S", b"app\xff")), (b"product", ("V", None))])
    odd_bool = b"\1ot\x7f"
    forged = wire.table([(b"gatekeeper", ("F", {b"version": ("S", b"forged")}))])
    name = wire.table([(b"connection_name", ("S", b"mine"))])
    client = forged + product + odd_bool + forged + name
    raw = upstream_properties(client, OURS, b"default name")
    assert raw.startswith(product + odd_bool + name)
    assert b"forged" not in raw
    assert b"default name" not in raw
    assert raw.count(b"gatekeeper") == 1
    assert wire.read_table(raw)[b"gatekeeper"] == ("F", OURS_READ)


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ({}, {}),
        ({b"authentication_failure_close": ("t", False)}, {}),
        ({b"authentication_failure_close": ("I", 1)}, {}),
        (
            {b"consumer_cancel_notify": ("t", False), b"basic.nack": ("t", False)},
            {b"basic.nack": ("t", False)},
        ),
        ({b"connection.blocked": ("B", 1)}, {b"connection.blocked": ("B", 1)}),
    ],
)
def test_capabilities(client: dict[bytes, wire.Value], expected: dict[bytes, wire.Value]) -> None:
    _, read = shown_to_broker((b"capabilities", ("F", client)))
    assert read[b"capabilities"] == ("F", {**expected, **TELL})


def test_capabilities_keep_their_bytes() -> None:
    inner = b"\1at\x7f" + b"\1aV"
    raw = upstream_properties(b"\x0ccapabilitiesF" + wire.longstr(inner), OURS, b"n")
    assert b"\x0ccapabilitiesF\0\0\0\x3f" + inner + b"\x1cauth" in raw


def test_the_first_capabilities_are_the_client_s() -> None:
    raw, read = shown_to_broker(
        (b"capabilities", ("F", {b"a": ("t", True)})), (b"capabilities", ("F", {b"b": ("V", None)}))
    )
    assert raw.count(b"capabilities") == 1
    assert read[b"capabilities"] == ("F", {b"a": ("t", True), **TELL})
    _, read = shown_to_broker(
        (b"capabilities", ("S", b"x")), (b"capabilities", ("F", {b"b": ("t", True)}))
    )
    assert read[b"capabilities"] == ("F", TELL)


def test_a_client_s_own_name_stays_whatever_its_type() -> None:
    raw, _ = shown_to_broker((b"connection_name", ("I", 7)))
    assert raw.count(b"connection_name") == 1


def test_malformed_properties() -> None:
    with pytest.raises(wire.WireError):
        upstream_properties(b"\1k", OURS, b"n")


@given(st.binary(max_size=80))
def test_any_client_properties(data: bytes) -> None:
    try:
        before = wire.read_table(data)
    except wire.WireError:
        with pytest.raises(wire.WireError):
            upstream_properties(data, {}, b"n")
        return
    after = wire.read_table(upstream_properties(data, {}, b"n"))
    ours = {b"capabilities", b"gatekeeper", b"connection_name"}
    assert {k: v for k, v in after.items() if k not in ours} == {
        k: v for k, v in before.items() if k not in ours
    }
    assert after[b"gatekeeper"] == ("F", {})
