"""TLS contexts: whose certificate is asked for, who is believed, and what an operator is told."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from gatekeeper.config.settings import ClientTls, ServerTls
from gatekeeper.errors import ConfigError
from gatekeeper.model import Secret
from gatekeeper.tls import client_context, server_context
from tests.server.local import gate
from tests.server.peers import FakeBroker
from tests.support.amqp import LostError, RefusedError
from tests.support.process import LOOPBACK
from tests.support.rabbit import TlsFiles

VERIFY = {"ssl_options.verify": "verify_peer", "ssl_options.fail_if_no_peer_cert": "true"}


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def pem(folder: Path, certificate: trustme.LeafCert, name: str = "c") -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    for part in certificate.cert_chain_pems:
        part.write_to_path(cert, append=True)
    certificate.private_key_pem.write_to_path(key)
    return cert, key


# --- clients ---


async def test_a_client_certificate_is_demanded_and_verified(
    tmp_path: Path,
    fake: FakeBroker,
    tls_files: TlsFiles,
    trusting: ssl.SSLContext,
    authority: trustme.CA,
) -> None:
    async with gate(tmp_path, fake.port, VERIFY, tls=tls_files) as local:
        for issuer in (None, trustme.CA()):
            if issuer is not None:
                trusting.load_cert_chain(*pem(tmp_path, issuer.issue_cert("mallory"), "m"))
            # TLS 1.3: the client thinks that it is connected, and is told by an alert.
            with pytest.raises((ssl.SSLError, ConnectionError, LostError)):
                await local.login(tls=trusting)
        trusting.load_cert_chain(*pem(tmp_path, authority.issue_cert("alice"), "a"))
        async with await local.login(tls=trusting):
            pass
        assert len(fake.sessions) == 1


async def test_a_client_certificate_that_is_optional(
    tmp_path: Path, fake: FakeBroker, tls_files: TlsFiles, trusting: ssl.SSLContext
) -> None:
    values = {**VERIFY, "ssl_options.fail_if_no_peer_cert": "false"}
    async with gate(tmp_path, fake.port, values, tls=tls_files) as local:
        async with await local.login(tls=trusting):
            pass
        trusting.load_cert_chain(*pem(tmp_path, trustme.CA().issue_cert("mallory")))
        with pytest.raises((ssl.SSLError, ConnectionError, LostError)):
            await local.login(tls=trusting)


async def test_old_versions_are_refused(
    tmp_path: Path, fake: FakeBroker, tls_files: TlsFiles, trusting: ssl.SSLContext
) -> None:
    async with gate(
        tmp_path, fake.port, {"ssl_options.versions.1": "tlsv1.3"}, tls=tls_files
    ) as local:
        trusting.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await local.login(tls=trusting)
        trusting.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        async with await local.login(tls=trusting):
            pass


# --- brokers ---

Broker = tuple[FakeBroker, Path]


def broker_context(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def upstream_tls(authority: trustme.CA, tmp_path: Path) -> dict[str, str | int]:
    ca = tmp_path / "upstream-ca.pem"
    authority.cert_pem.write_to_path(ca)
    return {
        "upstreams.default.ssl": "true",
        "upstreams.default.ssl_options.cacertfile": str(ca),
        "upstreams.default.ssl_options.verify": "verify_peer",
    }


async def outcome(tmp_path: Path, broker: FakeBroker, values: dict[str, str | int]) -> str:
    """ "served", or why the broker cannot be used and the client was refused."""
    async with gate(tmp_path, broker.port, values) as local:
        try:
            async with await local.login():
                return "served"
        except RefusedError:
            return await local.log.wait_for("no session with the broker")


@pytest.mark.parametrize(
    ("names", "more", "expected"),
    [
        ((LOOPBACK,), {}, "served"),
        (("localhost",), {}, "its certificate is not trusted (IP address mismatch"),
        (("broker.example",), {"sni": "broker.example"}, "served"),
        (("other.example",), {"sni": "broker.example"}, "not trusted (Hostname mismatch"),
        (("other.example",), {"sni": "none"}, "served"),
        (("other.example",), {"verify": "verify_none"}, "served"),
    ],
)
async def test_the_brokers_name_is_checked(
    tmp_path: Path,
    authority: trustme.CA,
    upstream_tls: dict[str, str | int],
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    more: dict[str, str],
    expected: str,
) -> None:
    monkeypatch.setattr("gatekeeper.app.FIRST_ANSWER", 0.1)
    prefix = "upstreams.default.ssl_options."
    values = upstream_tls | {prefix + key: value for key, value in more.items()}
    context = broker_context(authority, *names)
    asked: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with FakeBroker(tls=context) as broker:
        assert expected in await outcome(tmp_path, broker, values)
    # An address is never sent as a name, nor is anything where the operator says none.
    assert set(asked) == {more.get("sni") if more.get("sni") != "none" else None}


async def test_a_broker_of_another_authority(
    tmp_path: Path, upstream_tls: dict[str, str | int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatekeeper.app.FIRST_ANSWER", 0.1)
    async with FakeBroker(tls=broker_context(trustme.CA(), LOOPBACK)) as broker:
        why = await outcome(tmp_path, broker, upstream_tls)
        assert "its certificate is not trusted (unable to get local issuer certificate)" in why
        # The service account's password has not been sent to it.
        assert not any(session.raw for session in broker.all)


async def test_a_broker_without_tls(
    tmp_path: Path, upstream_tls: dict[str, str | int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatekeeper.app.FIRST_ANSWER", 0.1)
    async with FakeBroker() as broker:
        broker.raw = lambda session: session.refuse(320, b"what is this")
        assert "no broker can be reached" in await outcome(tmp_path, broker, upstream_tls)


async def test_the_gates_own_certificate_is_shown_to_the_broker(
    tmp_path: Path, authority: trustme.CA, upstream_tls: dict[str, str | int]
) -> None:
    cert, key = pem(tmp_path, authority.issue_cert("gatekeeper"))
    context = broker_context(authority, LOOPBACK)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    prefix = "upstreams.default.ssl_options."
    values = upstream_tls | {prefix + "certfile": str(cert), prefix + "keyfile": str(key)}
    async with FakeBroker(tls=context) as broker:
        assert await outcome(tmp_path, broker, values) == "served"


# --- what an operator may get wrong ---


def server_tls(files: TlsFiles) -> ServerTls:
    return ServerTls(cacertfile=files.ca, certfile=files.certificate, keyfile=files.key)


def test_options_reach_the_context(tls_files: TlsFiles) -> None:
    plain = server_tls(tls_files)
    assert server_context(plain).verify_mode is ssl.CERT_NONE
    assert server_context(replace(plain, verify_peer=True)).verify_mode is ssl.CERT_OPTIONAL
    strict = server_context(replace(plain, verify_peer=True, fail_if_no_peer_cert=True))
    assert strict.verify_mode is ssl.CERT_REQUIRED
    assert strict.minimum_version is ssl.TLSVersion.TLSv1_2
    assert strict.options & ssl.OP_NO_RENEGOTIATION
    for order in (True, False):
        ordered = server_context(replace(plain, honor_cipher_order=order))
        assert bool(ordered.options & ssl.OP_CIPHER_SERVER_PREFERENCE) is order
    cipher = "ECDHE-RSA-AES256-GCM-SHA384"
    chosen = server_context(replace(plain, ciphers=(cipher,))).get_ciphers()
    assert [each["name"] for each in chosen if each["protocol"] != "TLSv1.3"] == [cipher]
    versions = server_context(replace(plain, versions=("tlsv1.3",)))
    assert versions.minimum_version is versions.maximum_version is ssl.TLSVersion.TLSv1_3


def test_the_systems_authorities_are_the_default_for_brokers() -> None:
    context = client_context(ClientTls(), "x.ssl_options")
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    lax = client_context(ClientTls(verify_peer=False), "x.ssl_options")
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_NONE, False)


def encrypted(folder: Path) -> Path:
    from cryptography.hazmat.primitives import serialization as to
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    path = folder / "encrypted.key"
    path.write_bytes(
        key.private_bytes(
            to.Encoding.PEM, to.PrivateFormat.PKCS8, to.BestAvailableEncryption(b"right")
        )
    )
    return path


def test_mistakes_are_one_line_that_names_the_key(tls_files: TlsFiles, tmp_path: Path) -> None:
    good = server_tls(tls_files)
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    locked = encrypted(tmp_path)
    mistakes: list[tuple[ServerTls, str]] = [
        (replace(good, certfile=empty), "ssl_options.certfile"),
        (replace(good, keyfile=tls_files.ca), "ssl_options.keyfile"),
        (replace(good, certfile=tmp_path / "none"), "ssl_options.certfile"),
        (replace(good, keyfile=locked), "ssl_options.password"),
        (replace(good, keyfile=locked, password=Secret(b"wr0ng")), "ssl_options.password"),
        (replace(good, verify_peer=True, cacertfile=empty), "ssl_options.cacertfile"),
        (replace(good, verify_peer=True, cacertfile=tmp_path / "none"), "ssl_options.cacertfile"),
        (replace(good, ciphers=("NOT-A-CIPHER",)), "ssl_options.ciphers"),
    ]
    for tls, key in mistakes:
        with pytest.raises(ConfigError) as caught:
            server_context(tls)
        text = str(caught.value)
        assert text.startswith("ssl_options.")
        assert key in text
        assert "\n" not in text
        assert "wr0ng" not in text
    bad = ClientTls(cacertfile=empty)
    with pytest.raises(ConfigError, match=r"^upstreams\.east\.ssl_options\.cacertfile "):
        client_context(bad, "upstreams.east.ssl_options")
