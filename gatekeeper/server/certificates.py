"""Client certificates as RabbitMQ prints them (``rabbit_cert_info``)."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509
from cryptography.x509.oid import NameOID

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
            distinguished_name(parsed.subject),
            distinguished_name(parsed.issuer),
            f"{_shown_time(parsed.not_valid_before_utc)} - "
            f"{_shown_time(parsed.not_valid_after_utc)}",
        )
    except (ValueError, x509.InvalidVersion):
        return Certificate()


def distinguished_name(name: x509.Name) -> str:
    """Most specific part first, as in RFC 4514 (``rabbit_cert_info:format_rdn_sequence``)."""
    parts = ["+".join(_shown(each) for each in rdn) for rdn in reversed(name.rdns)]
    return ",".join(parts)[:TEXT_LIMIT]


def _shown(attribute: x509.NameAttribute[str | bytes]) -> str:
    key = _ATTRIBUTES.get(attribute.oid, attribute.oid.dotted_string)
    return f"{key}={_escaped(attribute)}"


def _escaped(attribute: x509.NameAttribute[str | bytes]) -> str:
    """``rabbit_cert_info:escape_rdn_value``: RFC 4514, and what is not printable ASCII by octet."""
    value = attribute.value
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
