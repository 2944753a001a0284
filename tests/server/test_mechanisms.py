"""SASL mechanisms through a running gate: what is offered where, and who gets in as whom."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest
import trustme

from tests.server.local import LocalGate, gate
from tests.server.peers import Client, FakeBroker
from tests.server.test_tls import VERIFY, pem
from tests.support.amqp import CAPABILITIES
from tests.support.amqp_codec import Method
from tests.support.rabbit import TlsFiles

ALL = {
    f"auth_mechanisms.{at}": name
    for at, name in enumerate(("PLAIN", "AMQPLAIN", "EXTERNAL", "ANONYMOUS", "RABBIT-CR-DEMO"), 1)
}
EXTERNAL = {**ALL, **VERIFY, "ssl_cert_login_from": "common_name"}


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def certified(folder: Path, trusting: ssl.SSLContext, authority: trustme.CA, name: str) -> None:
    leaf = authority.issue_cert("client.example.com", common_name=name)
    trusting.load_cert_chain(*pem(folder, leaf))


async def answer(client: Client, mechanism: str, response: bytes = b"") -> Method:
    """What follows connection.start-ok."""
    client.send(
        0,
        "connection.start-ok",
        client_properties={"capabilities": CAPABILITIES},
        mechanism=mechanism,
        response=response,
        locale="en_US",
    )
    _, method = await client.read()
    return method


async def opened(client: Client, vhost: str = "/") -> Method:
    client.send(0, "connection.tune-ok", channel_max=10, frame_max=131072, heartbeat=0)
    client.send(0, "connection.open", virtual_host=vhost)
    _, method = await client.read()
    return method


def mechanisms(start: Method) -> list[str]:
    return bytes(start["mechanisms"]).decode().split(" ")


def refused(method: Method, mechanism: str) -> bool:
    text = (
        f"ACCESS_REFUSED - Login was refused using authentication mechanism {mechanism}. "
        "For details see the broker logfile."
    )
    assert method.name == "connection.close", method
    return (method["reply_code"], method["reply_text"]) == (403, text.encode())


async def test_external(
    tmp_path: Path,
    fake: FakeBroker,
    tls_files: TlsFiles,
    trusting: ssl.SSLContext,
    authority: trustme.CA,
) -> None:
    """The certificate's name is the user; the response does not matter; permissions are theirs."""
    certified(tmp_path, trusting, authority, "bob")
    async with gate(tmp_path, fake.port, EXTERNAL, tls=tls_files) as local:
        client = await local.connect(tls=trusting)
        start = await client.greet()
        assert mechanisms(start) == list(ALL.values())
        assert (await answer(client, "EXTERNAL", b"alice")).name == "connection.tune"
        assert (await opened(client)).name == "connection.open-ok"
        await client.open_channel()
        closed = await client.call(1, "queue.declare", queue="bob")
        assert closed.name == "channel.close"
        assert b"for user 'bob'" in closed["reply_text"]
        assert [live.user for live in local.registry] == [b"bob"]
        plain = await local.connect()
        assert "EXTERNAL" not in mechanisms(await plain.greet())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nobody", "user 'nobody' - invalid credentials"),
        (None, "EXTERNAL login refused: connection peer presented no TLS (x.509) certificate"),
    ],
)
async def test_external_without_a_user(
    tmp_path: Path,
    fake: FakeBroker,
    tls_files: TlsFiles,
    trusting: ssl.SSLContext,
    authority: trustme.CA,
    name: str | None,
    reason: str,
) -> None:
    values = {**EXTERNAL, "ssl_options.fail_if_no_peer_cert": "false"}
    if name is not None:
        certified(tmp_path, trusting, authority, name)
    async with gate(tmp_path, fake.port, values, tls=tls_files) as local:
        client = await local.connect(tls=trusting)
        assert "EXTERNAL" in mechanisms(await client.greet())
        assert refused(await answer(client, "EXTERNAL"), "EXTERNAL")
        assert reason in str(local.log.lines)
        assert not fake.sessions


async def test_external_where_the_certificate_names_nobody(
    tmp_path: Path,
    fake: FakeBroker,
    tls_files: TlsFiles,
    trusting: ssl.SSLContext,
    authority: trustme.CA,
) -> None:
    certified(tmp_path, trusting, authority, "alice")
    values = {
        **EXTERNAL,
        "ssl_cert_login_from": "subject_alternative_name",
        "ssl_cert_login_san_type": "email",
    }
    async with gate(tmp_path, fake.port, values, tls=tls_files) as local:
        client = await local.connect(tls=trusting)
        await client.greet()
        assert refused(await answer(client, "EXTERNAL"), "EXTERNAL")
        await local.log.wait_for("EXTERNAL login refused: no name found")


async def test_external_is_invalid_where_it_is_not_offered(
    tmp_path: Path, fake: FakeBroker, tls_files: TlsFiles
) -> None:
    async with gate(tmp_path, fake.port, EXTERNAL, tls=tls_files) as local:
        client = await local.connect()
        await client.greet()
        client.send(
            0,
            "connection.start-ok",
            client_properties={"capabilities": CAPABILITIES},
            mechanism="EXTERNAL",
            response=b"",
            locale="en_US",
        )
        started = time.monotonic()
        await client.at_eof()
        assert time.monotonic() - started > 2
        assert local.log.matching("invalid authentication mechanism 'EXTERNAL'")


async def anonymous(local: LocalGate, response: bytes = b"whoever") -> tuple[Client, Method]:
    client = await local.connect()
    await client.greet()
    return client, await answer(client, "ANONYMOUS", response)


async def test_anonymous(tmp_path: Path, fake: FakeBroker) -> None:
    values = {"anonymous_login_user": "alice", "anonymous_login_pass": "alice"}
    async with gate(tmp_path, fake.port, values) as local:
        client, method = await anonymous(local)
        assert method.name == "connection.tune"
        assert (await opened(client)).name == "connection.open-ok"
        assert [live.user for live in local.registry] == [b"alice"]


async def test_anonymous_is_judged_like_anybody(tmp_path: Path, fake: FakeBroker) -> None:
    """A wrong password, and by default the user guest, who is not there."""
    values = {"anonymous_login_user": "alice", "anonymous_login_pass": "wrong"}
    async with gate(tmp_path, fake.port, values) as local:
        assert refused((await anonymous(local))[1], "ANONYMOUS")
        await local.log.wait_for("user 'alice' - invalid credentials")
    async with gate(tmp_path, fake.port) as local:
        assert refused((await anonymous(local))[1], "ANONYMOUS")
        await local.log.wait_for("user 'guest' - invalid credentials")


async def test_anonymous_is_not_offered_without_a_user(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port, {"anonymous_login_user": "none"}) as local:
        client = await local.connect()
        assert mechanisms(await client.greet()) == ["PLAIN", "AMQPLAIN"]


async def test_cr_demo(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port, {"auth_mechanisms.1": "RABBIT-CR-DEMO"}) as local:
        for response, expected in (
            (b"My password is alice", "connection.tune"),
            (b"My password is bob", "connection.close"),
        ):
            client = await local.connect()
            assert mechanisms(await client.greet()) == ["RABBIT-CR-DEMO"]
            secure = await answer(client, "RABBIT-CR-DEMO", b"alice")
            assert secure.name == "connection.secure"
            assert secure["challenge"] == b"Please tell me your password"
            client.send(0, "connection.secure-ok", response=response)
            _, method = await client.read()
            assert method.name == expected
            if expected == "connection.close":
                assert refused(method, "RABBIT-CR-DEMO")
