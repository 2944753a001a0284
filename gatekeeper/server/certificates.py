"""Client certificates as RabbitMQ prints them (``rabbit_cert_info``)."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509
from cryptography.x509.oid import NameOID

TEXT_LIMIT = 800
"""Characters of a subject or an issuer that are shown."""


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
        NameOID.STREET_ADDRESS: "STREET",
        NameOID.USER_ID: "UID",
    }
)
"""``rabbit_cert_info:format_rdn``; others are shown by their number."""


def certificate(der: bytes) -> Certificate:
    """As ``rabbit_cert_info`` prints it; empty where it cannot be read."""
    try:
        parsed = x509.load_der_x509_certificate(der)
        return Certificate(
            distinguished_name(parsed.subject),
            distinguished_name(parsed.issuer),
            f"{parsed.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ} - "
            f"{parsed.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
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
    """``rabbit_cert_info:escape_rdn_value``."""
    value = attribute.value
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    escaped = "".join("\\" + c if c in ',+"\\<>;' else "\\00" if c == "\0" else c for c in text)
    if text.startswith((" ", "#")):
        escaped = "\\" + escaped
    if text.endswith(" ") and len(text) > 1:
        escaped = escaped[:-1] + "\\ "
    return escaped
