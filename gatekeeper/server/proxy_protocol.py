"""The PROXY protocol, versions 1 and 2: whose connection this really is.

A pure parser for what a load balancer in front of the gate sends, and a writer for what the
gate may tell the broker. Source: haproxy.org/download/2.6/doc/proxy-protocol.txt. As in
RabbitMQ the header is mandatory where ``proxy_protocol = true``: anything else is refused, or
a client could pretend to come from loopback by leaving it out.
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from dataclasses import dataclass

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1_MAX = 107
V2_MAX = 16 + 2048
TIMEOUT = 3.0
"""Seconds within which the whole header must have come (RabbitMQ's value)."""


class ProxyHeaderError(Exception):
    """Not a PROXY header that can be trusted."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """size: bytes of the header. source, destination: (host, port), None for LOCAL or UNKNOWN."""

    size: int
    source: tuple[str, int] | None
    destination: tuple[str, int] | None


def parse(data: bytes) -> ProxyHeader | None:
    """The header that ``data`` begins with; None while incomplete. Raises ProxyHeaderError."""
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        return _v2(data) if len(data) >= 16 else None
    if data[:6] == b"PROXY "[: len(data)]:
        return _v1(data)
    raise ProxyHeaderError("no PROXY protocol header")


def _v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, V1_MAX)
    if end < 0:
        if len(data) >= V1_MAX:
            raise ProxyHeaderError("PROXY v1 line too long")
        return None
    words = data[:end].split(b" ")
    if words[1:2] == [b"UNKNOWN"]:
        return ProxyHeader(end + 2, None, None)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise ProxyHeaderError("malformed PROXY v1 line")
    version = 4 if words[1] == b"TCP4" else 6
    source, destination = ((_address(words[i], version), _port(words[i + 2])) for i in (2, 3))
    return ProxyHeader(end + 2, source, destination)


def _address(text: bytes, version: int) -> str:
    try:
        address = ipaddress.ip_address(text.decode("ascii"))
    except ValueError:
        raise ProxyHeaderError("malformed address in PROXY v1 line") from None
    if address.version != version:
        raise ProxyHeaderError("address family differs in PROXY v1 line")
    return str(address)


def _port(text: bytes) -> int:
    if not text.isdigit() or len(text) > 5 or int(text) > 65535:
        raise ProxyHeaderError("malformed port in PROXY v1 line")
    return int(text)


def _v2(data: bytes) -> ProxyHeader | None:
    version_command, family = data[12], data[13]
    length = int.from_bytes(data[14:16], "big")
    size = 16 + length
    if size > V2_MAX:
        raise ProxyHeaderError(f"PROXY v2 header of {size} bytes")
    if version_command >> 4 != 2 or version_command & 15 > 1:
        raise ProxyHeaderError("unknown PROXY v2 version or command")
    if len(data) < size:
        return None
    if version_command & 15 == 0:  # LOCAL: the balancer's own connection
        return ProxyHeader(size, None, None)
    if family == 0x11:
        layout = ">4s4sHH"
    elif family == 0x21:
        layout = ">16s16sHH"
    else:
        raise ProxyHeaderError(f"PROXY v2 address family {family:#04x} is not TCP")
    if length < struct.calcsize(layout):
        raise ProxyHeaderError("PROXY v2 header too short for its addresses")
    source, destination, source_port, destination_port = struct.unpack_from(layout, data, 16)
    return ProxyHeader(
        size,
        (str(ipaddress.ip_address(source)), source_port),
        (str(ipaddress.ip_address(destination)), destination_port),
    )


def build(version: str, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """A header for the broker. ``version``: v1 or v2. Addresses that are not IP give UNKNOWN."""
    try:
        here, there = (ipaddress.ip_address(host) for host, _port in (source, destination))
    except ValueError:
        return b"PROXY UNKNOWN\r\n" if version == "v1" else SIGNATURE + b"\x20\x00\x00\x00"
    if here.version != there.version:
        here, there = (
            ipaddress.IPv6Address(f"::ffff:{a}") if a.version == 4 else a for a in (here, there)
        )
    ports = struct.pack(">HH", source[1], destination[1])
    if version == "v1":
        family = "TCP4" if here.version == 4 else "TCP6"
        return f"PROXY {family} {here} {there} {source[1]} {destination[1]}\r\n".encode()
    payload = here.packed + there.packed + ports
    family_byte = 0x11 if here.version == 4 else 0x21
    return SIGNATURE + bytes((0x21, family_byte)) + len(payload).to_bytes(2, "big") + payload


@functools.lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """127/8, ::1 and v4-mapped ::ffff:127/104 (RabbitMQ ``rabbit_net:is_loopback``)."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
