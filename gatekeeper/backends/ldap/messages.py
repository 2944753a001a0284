"""LDAPv3 on the wire (RFC 4511): the few messages that a check needs. Pure: bytes and values.

Strategy: requests are built from the inside out; answers are read by one strict, bounded reader
of definite lengths. Asked are simple binds, searches with one filter, StartTLS, unbind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gatekeeper.config.ldap_queries import Scope

MESSAGE_LIMIT = 4 * 1024 * 1024
"""Octets of one answer."""

START_TLS = b"1.3.6.1.4.1.1466.20037"

_SEQUENCE, _INTEGER, _OCTETS, _ENUMERATED, _BOOLEAN, _SET = 0x30, 0x02, 0x04, 0x0A, 0x01, 0x31
_BIND_REQUEST, _UNBIND_REQUEST, _SEARCH_REQUEST, _EXTENDED_REQUEST = 0x60, 0x42, 0x63, 0x77
_BIND_RESPONSE, _ENTRY, _DONE, _REFERENCE, _EXTENDED_RESPONSE = 0x61, 0x64, 0x65, 0x73, 0x78
_SIMPLE, _REQUEST_NAME = 0x80, 0x80
_EQUALITY, _PRESENT = 0xA3, 0x87
_VERSION = 3
_DEREF_ALWAYS = 3
_LONG = 0x80


SUCCESS, SIZE_LIMIT_EXCEEDED, REFERRED, INVALID_CREDENTIALS = 0, 4, 10, 49

_CODES: Mapping[int, str] = MappingProxyType(
    {
        0: "success",
        1: "operationsError",
        2: "protocolError",
        3: "timeLimitExceeded",
        4: "sizeLimitExceeded",
        7: "authMethodNotSupported",
        8: "strongerAuthRequired",
        10: "referral",
        11: "adminLimitExceeded",
        13: "confidentialityRequired",
        16: "noSuchAttribute",
        17: "undefinedAttributeType",
        18: "inappropriateMatching",
        21: "invalidAttributeSyntax",
        32: "noSuchObject",
        33: "aliasProblem",
        34: "invalidDNSyntax",
        36: "aliasDereferencingProblem",
        48: "inappropriateAuthentication",
        49: "invalidCredentials",
        50: "insufficientAccessRights",
        51: "busy",
        52: "unavailable",
        53: "unwillingToPerform",
        80: "other",
    }
)


def code_name(code: int) -> str:
    """A result code by eldap's name (RFC 4511 section 4.1.9), or its number."""
    return _CODES.get(code, str(code))


class MessageError(Exception):
    """The octets are no LDAP message; the connection is lost."""


@dataclass(frozen=True, slots=True)
class Result:
    """How an operation ended: a bind, a search, StartTLS."""

    code: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that a search found: its DN and attributes as the server spells them."""

    dn: bytes
    attributes: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()

    def values(self, name: bytes) -> tuple[bytes, ...]:
        """Of the first attribute with exactly this name."""
        return next((values for key, values in self.attributes if key == name), ())


@dataclass(frozen=True, slots=True)
class Reference:
    """A search result reference; nobody follows it."""


Operation = Result | Entry | Reference


@dataclass(frozen=True, slots=True)
class Message:
    """number: of the request that it answers; 0 is the server's own notice of disconnection."""

    number: int
    operation: Operation


# -- requests --------------------------------------------------------------------------------


def bind(number: int, dn: bytes, password: bytes) -> bytes:
    """A simple bind."""
    body = _integer(_VERSION) + _tlv(_OCTETS, dn) + _tlv(_SIMPLE, password)
    return _message(number, _tlv(_BIND_REQUEST, body))


def unbind(number: int) -> bytes:
    return _message(number, _tlv(_UNBIND_REQUEST, b""))


def start_tls(number: int) -> bytes:
    return _message(number, _tlv(_EXTENDED_REQUEST, _tlv(_REQUEST_NAME, START_TLS)))


def equality(attribute: bytes, value: bytes) -> bytes:
    """The filter ``(attribute=value)``, where the value is only ever a value."""
    return _tlv(_EQUALITY, _tlv(_OCTETS, attribute) + _tlv(_OCTETS, value))


def present(attribute: bytes) -> bytes:
    """The filter ``(attribute=*)``."""
    return _tlv(_PRESENT, attribute)


def search(number: int, base: bytes, scope: Scope, filter_: bytes, attribute: bytes) -> bytes:
    """A search for one attribute, without limits; aliases are followed, as eldap asks for it."""
    body = (
        _tlv(_OCTETS, base)
        + _tlv(_ENUMERATED, bytes((scope,)))
        + _tlv(_ENUMERATED, bytes((_DEREF_ALWAYS,)))
        + _integer(0)
        + _integer(0)
        + _tlv(_BOOLEAN, b"\0")
        + filter_
        + _tlv(_SEQUENCE, _tlv(_OCTETS, attribute))
    )
    return _message(number, _tlv(_SEARCH_REQUEST, body))


def _message(number: int, operation: bytes) -> bytes:
    return _tlv(_SEQUENCE, _integer(number) + operation)


def _integer(value: int) -> bytes:
    return _tlv(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _tlv(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < _LONG:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, _LONG | len(octets))) + octets + content


# -- answers ---------------------------------------------------------------------------------


def split(buffer: bytes | bytearray) -> int | None:
    """The length of the message at the buffer's start; None: more octets are needed.

    Raises MessageError: it is none, or longer than MESSAGE_LIMIT.
    """
    if len(buffer) < 2:
        if buffer and buffer[0] != _SEQUENCE:
            raise MessageError("not an LDAP message")
        return None
    if buffer[0] != _SEQUENCE:
        raise MessageError("not an LDAP message")
    count = buffer[1] & 0x7F if buffer[1] & _LONG else 0
    if count > 4 or buffer[1] == _LONG:
        raise MessageError("a length that LDAP does not allow")
    if len(buffer) < 2 + count:
        return None
    length = int.from_bytes(buffer[2 : 2 + count], "big") if count else buffer[1]
    if length > MESSAGE_LIMIT:
        raise MessageError(f"an answer of more than {MESSAGE_LIMIT} octets")
    whole = 2 + count + length
    return whole if len(buffer) >= whole else None


def parse(data: bytes) -> Message:
    """One whole message, as :func:`split` measured it. Raises MessageError.

    Controls are not read: none was asked for.
    """
    parts = _elements(_only(data, _SEQUENCE))
    number = _number(_next(parts, _INTEGER))
    tag, body = next(parts, (0, b""))
    read = _OPERATIONS.get(tag)
    if read is None:
        raise MessageError("an answer that no request of ours has")
    return Message(number, read(body))


def _result(body: bytes) -> Result:
    """LDAPResult; the server's diagnostic text is not read, for it may quote what was sent."""
    parts = _elements(body)
    code = _number(_next(parts, _ENUMERATED))
    for _ in ("matchedDN", "diagnosticMessage"):
        _next(parts, _OCTETS)
    return Result(code)


def _entry(body: bytes) -> Entry:
    parts = _elements(body)
    dn = _next(parts, _OCTETS)
    attributes: list[tuple[bytes, tuple[bytes, ...]]] = []
    for tag, content in _elements(_next(parts, _SEQUENCE)):
        _expect(tag, _SEQUENCE)
        inner = _elements(content)
        name = _next(inner, _OCTETS)
        values = tuple(
            _expect(kind, _OCTETS, value) for kind, value in _elements(_next(inner, _SET))
        )
        attributes.append((name, values))
    return Entry(dn, tuple(attributes))


_OPERATIONS: Mapping[int, Callable[[bytes], Operation]] = {
    _BIND_RESPONSE: _result,
    _DONE: _result,
    _EXTENDED_RESPONSE: _result,
    _ENTRY: _entry,
    _REFERENCE: lambda _: Reference(),
}


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element, which together fill the data exactly."""
    at, end = 0, len(data)
    while at < end:
        if at + 2 > end:
            raise MessageError("an element that is cut off")
        tag, length = data[at], data[at + 1]
        at += 2
        if length & _LONG:
            count = length & 0x7F
            if not 1 <= count <= 4 or at + count > end:
                raise MessageError("a length that LDAP does not allow")
            length = int.from_bytes(data[at : at + count], "big")
            at += count
        if length > end - at:
            raise MessageError("an element that is cut off")
        yield tag, data[at : at + length]
        at += length


def _next(parts: Iterator[tuple[int, bytes]], tag: int) -> bytes:
    found, content = next(parts, (None, b""))
    return _expect(found, tag, content)


def _expect(found: int | None, tag: int, content: bytes = b"") -> bytes:
    if found != tag:
        raise MessageError("an element of another type than LDAP has there")
    return content


def _only(data: bytes, tag: int) -> bytes:
    parts = _elements(data)
    content = _next(parts, tag)
    if next(parts, None) is not None:
        raise MessageError("more than one message")
    return content


def _number(content: bytes) -> int:
    if not 1 <= len(content) <= 4:
        raise MessageError("a number that LDAP does not allow")
    return int.from_bytes(content, "big", signed=True)
