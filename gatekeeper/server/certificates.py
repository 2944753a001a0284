"""Client certificates: as RabbitMQ prints them (``rabbit_cert_info``), and whom they stand for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509
from cryptography.x509.oid import NameOID

from gatekeeper.config.settings import CertLogin

TEXT_LIMIT = 800
"""Characters of a subject or an issuer that are shown."""

_SPECIAL = frozenset(b',+"\\<>;')
_SPACE, _HASH = b" #"


@dataclass(frozen=True, slots=True)
class Certificate:
    """validity: ``FROM - UNTIL``, in UTC."""

    subject: str = ""
    issuer: str = ""
    validity: str = ""


_ATTRIBUTES = MappingProxyType(
    {
        NameOID.SURNAME: "SN",
        NameOID.GIVEN_NAME: "GIVENNAME",
        NameOID.INITIALS: "INITIALS",
        NameOID.GENERATION_QUALIFIER: "GENERATIONQUALIFIER",
        NameOID.COMMON_NAME: "CN",
        NameOID.LOCALITY_NAME: "L",
        NameOID.STATE_OR_PROVINCE_NAME: "ST",
        NameOID.ORGANIZATION_NAME: "O",
        NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
        NameOID.TITLE: "TITLE",
        NameOID.COUNTRY_NAME: "C",
        NameOID.SERIAL_NUMBER: "SERIALNUMBER",
        NameOID.PSEUDONYM: "PSEUDONYM",
        NameOID.DOMAIN_COMPONENT: "DC",
        NameOID.EMAIL_ADDRESS: "EMAILADDRESS",
        NameOID.USER_ID: "UID",
    }
)
"""``rabbit_cert_info:format_rdn`` (whose STREET never applies); others go by their number."""


def certificate(der: bytes) -> Certificate:
    """As ``rabbit_cert_info`` prints it; empty where it cannot be read."""
    try:
        parsed = x509.load_der_x509_certificate(der)
        return Certificate(
            distinguished_name(parsed.subject)[:TEXT_LIMIT],
            distinguished_name(parsed.issuer)[:TEXT_LIMIT],
            f"{_shown_time(parsed.not_valid_before_utc)} - "
            f"{_shown_time(parsed.not_valid_after_utc)}",
        )
    except (ValueError, x509.InvalidVersion):
        return Certificate()


def login_name(der: bytes, settings: CertLogin) -> bytes | None:
    """The user that a client's certificate stands for; None where it names nobody.

    Source: ``rabbit_ssl:peer_cert_auth_name``.
    """
    try:
        parsed = x509.load_der_x509_certificate(der)
        match settings.source:
            case "distinguished_name":
                return distinguished_name(parsed.subject).encode()
            case "common_name":
                names = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
                return ",".join(_text(each.value) for each in names).encode() if names else None
            case "subject_alternative_name":
                return _alternative_name(parsed, settings)
    except (ValueError, x509.InvalidVersion, x509.DuplicateExtension):
        return None


def _alternative_name(parsed: x509.Certificate, settings: CertLogin) -> bytes | None:
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.UnsupportedGeneralNameType):
        return None
    kind = _KINDS[settings.san_type]
    of_kind = [each for each in names if isinstance(each, kind)]
    if settings.san_index >= len(of_kind):
        return None
    chosen = of_kind[settings.san_index]
    if isinstance(chosen, x509.IPAddress):
        address = chosen.value
        # RabbitMQ takes the octets as they are for a name.
        return address.packed if hasattr(address, "packed") else None
    if isinstance(chosen, x509.OtherName):
        return _directory_string(chosen.value)
    return str(chosen.value).encode()


_KINDS: Mapping[str, type[x509.GeneralName]] = MappingProxyType(
    {
        "dns": x509.DNSName,
        "ip": x509.IPAddress,
        "email": x509.RFC822Name,
        "uri": x509.UniformResourceIdentifier,
        "other_name": x509.OtherName,
    }
)

_DIRECTORY_STRINGS: Mapping[int, str] = MappingProxyType(
    {12: "utf-8", 19: "ascii", 20: "latin-1", 28: "utf-32-be", 30: "utf-16-be"}
)
"""The ASN.1 tags of a DirectoryString, and how their octets are text."""


def _directory_string(der: bytes) -> bytes | None:
    """The text of a DER DirectoryString; None for anything else, an explicit tag included."""
    if len(der) < 2 or der[0] not in _DIRECTORY_STRINGS:
        return None
    length, at = der[1], 2
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(der[2 : 2 + size], "big"), 2 + size
    if at + length != len(der):
        return None
    try:
        return der[at:].decode(_DIRECTORY_STRINGS[der[0]]).encode()
    except UnicodeDecodeError:
        return None


def distinguished_name(name: x509.Name) -> str:
    """Most specific part first, as in RFC 4514 (``rabbit_cert_info:format_rdn_sequence``)."""
    return ",".join("+".join(_shown(each) for each in rdn) for rdn in reversed(name.rdns))


def _shown(attribute: x509.NameAttribute[str | bytes]) -> str:
    key = _ATTRIBUTES.get(attribute.oid, attribute.oid.dotted_string)
    return f"{key}={escaped(attribute.value)}"


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def escaped(value: str | bytes) -> str:
    """``rabbit_cert_info:escape_rdn_value``: RFC 4514, and what is not printable ASCII by octet."""
    octets = value if isinstance(value, bytes) else value.encode("utf-8")
    last = len(octets) - 1
    parts = []
    for at, octet in enumerate(octets):
        at_edge = (octet == _SPACE and at in {0, last}) or (octet == _HASH and at == 0)
        if octet < 32 or octet >= 126:
            parts.append(f"\\{octet:02X}")
        elif at_edge or octet in _SPECIAL:
            parts.append(f"\\{octet:c}")
        else:
            parts.append(chr(octet))
    return "".join(parts)


def _shown_time(time: dt.datetime) -> str:
    """``format_asn1_value``: from 2050 on a certificate has another type of time, for which
    RabbitMQ has no format; before, it has no century, for which RabbitMQ has one."""
    if time.year >= 2050:
        return f'{{generalTime,"{time:%Y%m%d%H%M%SZ}"}}'
    return f"20{time:%y-%m-%dT%H:%M:%SZ}"
