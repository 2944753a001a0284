"""Whom a client certificate stands for: RabbitMQ's names, out of real certificates."""

from __future__ import annotations

import datetime as dt
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier

from gatekeeper.config.settings import CertLogin
from gatekeeper.server.certificates import certificate, escaped, login_name

CN, ORG, OU, DC = (
    NameOID.COMMON_NAME,
    NameOID.ORGANIZATION_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
    NameOID.DOMAIN_COMPONENT,
)
UID, EMAIL = NameOID.USER_ID, NameOID.EMAIL_ADDRESS
UTF8, PRINTABLE = b"\x0c", b"\x13"


def made(
    rdns: list[list[tuple[ObjectIdentifier, str]]],
    names: list[x509.GeneralName] | bytes | None = None,
) -> bytes:
    """The DER of a certificate with this subject and these alternative names."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.RelativeDistinguishedName(
                [x509.NameAttribute(*one, _validate=False) for one in rdn]
            )
            for rdn in rdns
        ]
    )
    now = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
    )
    if isinstance(names, bytes):
        raw = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, names)
        builder = builder.add_extension(raw, critical=False)
    elif names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def der_string(tag: bytes, text: bytes) -> bytes:
    return tag + bytes([len(text)]) + text


@pytest.mark.parametrize(
    ("rdns", "name"),
    [
        ([[(CN, "alice")]], "CN=alice"),
        ([[(DC, "org")], [(DC, "ex")], [(OU, "a b")], [(CN, "x")]], "CN=x,OU=a b,DC=ex,DC=org"),
        ([[(CN, "x"), (OU, "y")]], "CN=x+OU=y"),
        ([[(UID, "u1")], [(EMAIL, "a@b.c")]], "EMAILADDRESS=a@b.c,UID=u1"),
        ([[(NameOID.SURNAME, "s")], [(NameOID.GIVEN_NAME, "g")]], "GIVENNAME=g,SN=s"),
        ([[(NameOID.TITLE, "t")]], "TITLE=t"),
        ([[(NameOID.STREET_ADDRESS, "Main")]], "2.5.4.9=Main"),
        ([[(NameOID.POSTAL_CODE, "123")]], "2.5.4.17=123"),
        ([[(CN, 'a,b+c"d\\e<f>g;h=i/j')]], 'CN=a\\,b\\+c\\"d\\\\e\\<f\\>g\\;h=i/j'),
        ([[(CN, " x ")]], "CN=\\ x\\ "),
        ([[(CN, "#x#")]], "CN=\\#x#"),
        ([[(CN, "a~b")]], "CN=a\\7Eb"),
        ([[(CN, "Zoë")]], "CN=Zo\\C3\\AB"),
        ([], ""),
    ],
)
def test_distinguished_name(rdns: list[list[tuple[ObjectIdentifier, str]]], name: str) -> None:
    der = made(rdns)
    assert login_name(der, CertLogin()) == name.encode()
    assert certificate(der).subject == name
    assert certificate(der).validity == "2026-01-02T03:04:05Z - 2026-01-03T03:04:05Z"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("", ""), (" ", "\\ "), ("  ", "\\ \\ "), ("a\n", "a\\0A"), ("\x7f", "\\7F")],
)
def test_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


@pytest.mark.parametrize(
    ("rdns", "name"),
    [
        ([[(CN, "alice")]], b"alice"),
        ([[(CN, "a,b")], [(ORG, "x")], [(CN, "Zoë")]], "a,b,Zoë".encode()),
        ([[(ORG, "x")]], None),
    ],
)
def test_common_name(rdns: list[list[tuple[ObjectIdentifier, str]]], name: bytes | None) -> None:
    assert login_name(made(rdns), CertLogin(source="common_name")) == name


NAMES: list[x509.GeneralName] = [
    x509.DNSName("one.example.com"),
    x509.IPAddress(ipaddress.ip_address("10.1.2.3")),
    x509.RFC822Name("alice@example.com"),
    x509.DNSName("two.example.com"),
    x509.UniformResourceIdentifier("spiffe://example.com/alice"),
    x509.OtherName(ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), der_string(UTF8, "Zoë".encode())),
    x509.IPAddress(ipaddress.ip_address("::1")),
    x509.OtherName(ObjectIdentifier("1.2.3.4"), der_string(PRINTABLE, b"plain")),
    x509.OtherName(ObjectIdentifier("1.2.3.4"), der_string(b"\x16", b"ia5")),
    x509.OtherName(ObjectIdentifier("1.2.3.4"), der_string(UTF8, b"\xff")),
]


@pytest.mark.parametrize(
    ("kind", "index", "name"),
    [
        ("dns", 0, b"one.example.com"),
        ("dns", 1, b"two.example.com"),
        ("dns", 2, None),
        ("ip", 0, b"\x0a\x01\x02\x03"),
        ("ip", 1, b"\0" * 15 + b"\x01"),
        ("email", 0, b"alice@example.com"),
        ("email", 1, None),
        ("uri", 0, b"spiffe://example.com/alice"),
        ("other_name", 0, "Zoë".encode()),
        ("other_name", 1, b"plain"),
        ("other_name", 2, None),
        ("other_name", 3, None),
    ],
)
def test_alternative_name(kind: str, index: int, name: bytes | None) -> None:
    how = CertLogin(source="subject_alternative_name", san_type=kind, san_index=index)  # type: ignore[arg-type]
    assert login_name(made([[(CN, "x")]], NAMES), how) == name


def test_no_alternative_names() -> None:
    how = CertLogin(source="subject_alternative_name")
    assert login_name(made([[(CN, "x")]]), how) is None


@pytest.mark.parametrize("der", [b"", b"0", b"\x30\x03\x02\x01\x01", made([[(CN, "x")]])[:-20]])
def test_what_is_no_certificate_names_nobody(der: bytes) -> None:
    for source in ("distinguished_name", "common_name", "subject_alternative_name"):
        assert login_name(der, CertLogin(source=source)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [b"\x30\x05\x82\x01a\xa3\x00", b"\x30\x02\xa5\x00"])
@pytest.mark.parametrize("san_type", ["dns", "ip", "other_name"])
def test_alternative_names_that_cannot_be_read_name_nobody(names: bytes, san_type: str) -> None:
    """x400Address and ediPartyName (RFC 5280): no name, and no crash on the way in."""
    settings = CertLogin(source="subject_alternative_name", san_type=san_type)  # type: ignore[arg-type]
    assert login_name(made([[(CN, "alice")]], names), settings) is None
