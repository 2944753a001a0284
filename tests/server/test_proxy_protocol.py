"""The PROXY protocol parser: versions 1 and 2, whole, in pieces, with trailing bytes, fuzzed.

Source of the cases: haproxy.org/download/2.6/doc/proxy-protocol.txt sections 2.1 and 2.2.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.server.proxy_protocol import (
    SIGNATURE,
    TIMEOUT,
    V1_MAX,
    V2_MAX,
    ProxyHeader,
    ProxyHeaderError,
    build,
    is_loopback,
    parse,
)

Pair = tuple[str, int]


def v2(command: int, family: int, payload: bytes, *, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return SIGNATURE + bytes((command, family)) + struct.pack(">H", size) + payload


def inet(source: str, destination: str, ports: Pair | tuple[int, int]) -> bytes:
    return socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack(">HH", *ports)


def inet6(source: str, destination: str, ports: tuple[int, int]) -> bytes:
    return (
        socket.inet_pton(socket.AF_INET6, source)
        + socket.inet_pton(socket.AF_INET6, destination)
        + struct.pack(">HH", *ports)
    )


@dataclass(frozen=True, slots=True)
class Good:
    data: bytes
    source: Pair | None
    destination: Pair | None


GOOD = {
    "v1 tcp4": Good(
        b"PROXY TCP4 10.0.0.1 192.168.7.9 56324 5672\r\n",
        ("10.0.0.1", 56324),
        ("192.168.7.9", 5672),
    ),
    "v1 tcp6": Good(b"PROXY TCP6 2001:db8::1 ::1 0 65535\r\n", ("2001:db8::1", 0), ("::1", 65535)),
    "v1 unknown, bare": Good(b"PROXY UNKNOWN\r\n", None, None),
    "v1 unknown, the rest is ignored": Good(b"PROXY UNKNOWN ff x y z\r\n", None, None),
    "v1 at its longest": Good(
        b"PROXY UNKNOWN " + b"f" * (V1_MAX - 16) + b"\r\n",
        None,
        None,
    ),
    "v2 tcp4": Good(
        v2(0x21, 0x11, inet("10.0.0.1", "10.0.0.2", (1, 5672))), ("10.0.0.1", 1), ("10.0.0.2", 5672)
    ),
    "v2 tcp6": Good(
        v2(0x21, 0x21, inet6("2001:db8::1", "::1", (65535, 5671))),
        ("2001:db8::1", 65535),
        ("::1", 5671),
    ),
    "v2 with TLVs": Good(
        v2(0x21, 0x11, inet("1.2.3.4", "5.6.7.8", (9, 10)) + b"\x02\x00\x03a.b"),
        ("1.2.3.4", 9),
        ("5.6.7.8", 10),
    ),
    "v2 at its longest": Good(
        v2(0x21, 0x11, inet("1.2.3.4", "5.6.7.8", (9, 10)) + bytes(V2_MAX - 16 - 12)),
        ("1.2.3.4", 9),
        ("5.6.7.8", 10),
    ),
    "v2 local": Good(v2(0x20, 0x00, b""), None, None),
    "v2 local, its addresses are ignored": Good(
        v2(0x20, 0x11, inet("10.0.0.1", "10.0.0.2", (1, 2))), None, None
    ),
}

BAD = {
    "AMQP": b"AMQP\x00\x00\x09\x01",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "lower case": b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "v1 other family": b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "v1 no family": b"PROXY \r\n",
    "v1 too few words": b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
    "v1 too many words": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
    "v1 two spaces": b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
    "v1 IPv6 in TCP4": b"PROXY TCP4 ::1 5.6.7.8 1 2\r\n",
    "v1 IPv4 in TCP6": b"PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
    "v1 name": b"PROXY TCP4 localhost 5.6.7.8 1 2\r\n",
    "v1 leading zero": b"PROXY TCP4 127.0.0.01 5.6.7.8 1 2\r\n",
    "v1 not ASCII": b"PROXY TCP4 1.2.3.\xb2 5.6.7.8 1 2\r\n",
    "v1 port too large": b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n",
    "v1 port signed": b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
    "v1 port empty": b"PROXY TCP4 1.2.3.4 5.6.7.8  2\r\n",
    "v1 port very long": b"PROXY TCP4 1.2.3.4 5.6.7.8 000001 2\r\n",
    "v1 too long": b"PROXY TCP4 " + b"1" * (V1_MAX - 11),
    "v1 line feed only, too long": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n" + b"x" * V1_MAX,
    "v2 version 1": v2(0x11, 0x11, inet("1.2.3.4", "5.6.7.8", (1, 2))),
    "v2 unknown command": v2(0x22, 0x11, inet("1.2.3.4", "5.6.7.8", (1, 2))),
    "v2 UDP": v2(0x21, 0x12, inet("1.2.3.4", "5.6.7.8", (1, 2))),
    "v2 unspecified family": v2(0x21, 0x00, b""),
    "v2 unix": v2(0x21, 0x31, bytes(216)),
    "v2 too short for its addresses": v2(0x21, 0x11, bytes(11)),
    "v2 too short for its IPv6 addresses": v2(0x21, 0x21, bytes(35)),
    "v2 too long, told by its head": v2(0x21, 0x11, b"", length=V2_MAX - 15),
}


def test_the_time_limit_is_rabbitmqs() -> None:
    assert TIMEOUT == 3.0


@pytest.mark.parametrize("case", GOOD.values(), ids=list(GOOD))
@pytest.mark.parametrize("trailing", [b"", b"AMQP\0\0\x09\x01", b"\r\n", b"\x16\x03\x01"])
def test_good(case: Good, trailing: bytes) -> None:
    expected = ProxyHeader(len(case.data), case.source, case.destination)
    assert parse(case.data + trailing) == expected


@pytest.mark.parametrize("case", GOOD.values(), ids=list(GOOD))
def test_good_byte_by_byte(case: Good) -> None:
    for end in range(len(case.data)):
        assert parse(case.data[:end]) is None
    assert parse(case.data) is not None


@pytest.mark.parametrize("data", BAD.values(), ids=list(BAD))
def test_bad(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        parse(data)


@pytest.mark.parametrize("data", BAD.values(), ids=list(BAD))
def test_bad_byte_by_byte_is_never_good(data: bytes) -> None:
    """Asked again with every byte, it is refused by the time the header would be complete."""
    for end in range(len(data) + 1):
        try:
            assert parse(data[:end]) is None
        except ProxyHeaderError:
            return
    raise AssertionError("never refused")


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE]))
def test_any_bytes(data: bytes, head: bytes) -> None:
    """One of the three answers, for any bytes; and more bytes never change a header."""
    whole = head + data
    try:
        header = parse(whole)
    except ProxyHeaderError:
        return
    if header is None:
        assert len(whole) < V2_MAX
        return
    assert 0 < header.size <= len(whole)
    assert parse(whole[: header.size]) == header
    assert parse(whole[: header.size - 1]) is None


addresses = st.ip_addresses().map(str)
ports = st.integers(0, 65535)


def as_sent(host: str, other: str) -> str:
    """An IPv4 address beside an IPv6 one can only be told in mapped form."""
    address, beside = ipaddress.ip_address(host), ipaddress.ip_address(other)
    if address.version == beside.version:
        return str(address)
    return str(ipaddress.IPv6Address(f"::ffff:{host}") if address.version == 4 else address)


@given(addresses, addresses, ports, ports, st.sampled_from(["v1", "v2"]))
def test_what_we_build_is_read_back(
    here: str, there: str, port: int, other: int, version: Literal["v1", "v2"]
) -> None:
    data = build(version, (here, port), (there, other))
    source, destination = as_sent(here, there), as_sent(there, here)
    expected = ProxyHeader(len(data), (source, port), (destination, other))
    assert parse(data + b"AMQP") == expected


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_host_that_is_no_address_is_told_as_unknown(version: str) -> None:
    data = build(version, ("", 0), ("10.0.0.1", 5672))
    assert parse(data) == ProxyHeader(len(data), None, None)


LOOPBACK = {
    "127.0.0.1": True,
    "127.255.255.254": True,
    "::1": True,
    "::1%lo": True,
    "::ffff:127.0.0.1": True,
    "::ffff:127.9.9.9": True,
    "0.0.0.0": False,
    "10.0.0.1": False,
    "128.0.0.1": False,
    "::": False,
    "::2": False,
    "::ffff:10.0.0.1": False,
    "::127.0.0.1": False,
    "fe80::1%eth0": False,
    "localhost": False,
    "": False,
}


@pytest.mark.parametrize(("host", "expected"), LOOPBACK.items())
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
