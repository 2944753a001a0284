"""What the administration is told of the gate's processes: one process, and several."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier

from gatekeeper.protocol import wire
from gatekeeper.server.certificates import Certificate, certificate
from gatekeeper.server.control import Hub
from gatekeeper.server.describe import PROPERTIES_LIMIT, Suite, shown_properties, suites
from gatekeeper.server.fleet import HubFleet, SilentWorkersError, worst
from gatekeeper.server.infos import UpstreamStatus
from gatekeeper.server.messages import Listed, encode
from tests.server.local import LocalGate, gate
from tests.server.peers import FakeBroker
from tests.server.plane import Plane
from tests.server.test_control_messages import INFO
from tests.server.test_tls import VERIFY, pem
from tests.support.rabbit import TlsFiles


def address(client: Any) -> tuple[str, int]:
    host, port = client.writer.get_extra_info("sockname")[:2]
    return host, port


async def test_a_connection(tmp_path: Path, fake: FakeBroker) -> None:
    properties = {"product": "p", "connection_name": "mine", "capabilities": {"basic.nack": True}}
    async with gate(tmp_path, fake.port) as local:
        before = time.time_ns() // 1_000_000
        client = await local.login(
            vhost=b"v2", properties=properties, heartbeat=7, frame_max=8192, channel_max=9
        )
        await client.open_channel()
        (info,) = await local.app.fleet.connections()
        assert (info.host, info.port) == address(client)
        assert (info.local_host, info.local_port) == ("127.0.0.1", local.port)
        assert info.name == f"127.0.0.1:{info.port} -> 127.0.0.1:{local.port}"
        assert (info.user, info.vhost, info.auth_mechanism) == (b"alice", b"v2", "PLAIN")
        assert (info.timeout, info.frame_max, info.channel_max) == (7, 8192, 9)
        assert (info.state, info.channels, info.number) == ("running", 1, 1)
        assert before <= info.connected_at <= time.time_ns() // 1_000_000
        assert info.user_provided_name == b"mine"
        table = wire.read_table(info.client_properties)
        assert table[b"capabilities"] == ("F", {b"basic.nack": ("t", True)})
        assert not info.tls
        assert {info.ssl_protocol, info.ssl_cipher, info.ssl_key_exchange, info.ssl_hash} == {""}
        assert {info.peer_cert_subject, info.peer_cert_issuer, info.peer_cert_validity} == {""}


async def test_the_octets_are_those_of_the_clients_socket(tmp_path: Path, fake: FakeBroker) -> None:
    """As the kernel counts them on the client's side, a backlog of writes included."""

    async def flood(session: Any) -> None:
        await session.expect("channel.open", 1)
        session.send(1, "channel.open-ok")
        session.write(b"\x08\0\0\0\0\0\0\xce" * 300_000)
        await session.never()

    fake.session = flood
    async with gate(tmp_path, fake.port) as local:
        client = await local.login()
        await client.open_channel()
        client.write(b"\x08\0\0\0\0\0\0\xce" * 1000)
        await client.exactly(2_400_000)
        sock = client.writer.get_extra_info("socket")

        def counted(fmt_at: int) -> int:
            """tcpi_bytes_acked (at 120) and tcpi_bytes_received (at 128) of struct tcp_info."""
            raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
            return int.from_bytes(raw[fmt_at : fmt_at + 8], "little")

        live = next(iter(local.registry))
        assert live.client is not None
        # The kernel counts the SYN as an octet that is acknowledged.
        sent = counted(120) - 1
        await local.until(lambda: live.client.received == sent, "all read")
        (info,) = await local.app.fleet.connections()
        assert (info.recv_oct, info.send_oct) == (sent, counted(128))


async def test_channels(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        await local.login("bob")
        client = await local.login()
        for number in (7, 1):
            await client.open_channel(number)
        client.send(7, "basic.consume", queue="q", consumer_tag="t")
        while [info.consumer_count for info in await local.app.fleet.channels()] != [0, 1]:
            await asyncio.sleep(0.01)
        first, second = await local.app.fleet.channels()
        assert (first.connection, first.number, first.consumer_count) == (2, 1, 0)
        assert (second.connection, second.number, second.consumer_count) == (2, 7, 1)
        assert (first.user, first.vhost, first.state) == (b"alice", b"/", "running")
        assert (first.host, first.port) == address(client)
        assert second.name == f"127.0.0.1:{second.port} -> 127.0.0.1:{local.port} (7)"
        assert (first.prefetch_count, first.messages_unacknowledged) == (None, None)


@pytest.mark.parametrize(
    ("version", "ciphers", "expected"),
    [
        ("TLSv1_3", None, ("tlsv1.3", "aes_256_gcm", "any", "aead")),
        ("TLSv1_2", "ECDHE+AES128+SHA256+aECDSA", None),
        ("TLSv1_2", "ECDHE+AESGCM", None),
    ],
)
async def test_tls(
    tmp_path: Path,
    fake: FakeBroker,
    tls_files: TlsFiles,
    authority: trustme.CA,
    version: str,
    ciphers: str | None,
    expected: tuple[str, ...] | None,
) -> None:
    trusting = ssl.create_default_context(cafile=str(tls_files.ca))
    trusting.maximum_version = ssl.TLSVersion[version]
    if ciphers is not None:
        trusting.set_ciphers(ciphers)
    trusting.load_cert_chain(*pem(tmp_path, authority.issue_cert("alice", common_name="alice")))
    async with gate(tmp_path, fake.port, VERIFY, tls=tls_files) as local:
        client = await local.login(tls=trusting)
        (info,) = await local.app.fleet.connections()
        assert info.tls
        shown = (info.ssl_protocol, info.ssl_cipher, info.ssl_key_exchange, info.ssl_hash)
        if expected is not None:
            assert shown == expected
        else:
            agreed = client.writer.get_extra_info("cipher")[0]
            assert shown[0] == "tlsv1.2"
            assert shown[1:] == ERLANG[agreed]
        assert info.peer_cert_subject.startswith("CN=alice,OU=Testing cert #")
        assert "O=trustme" in info.peer_cert_issuer
        assert info.peer_cert_validity.startswith("2000-01-01T00:00:00Z - ")


ERLANG = {
    "TLS_AES_256_GCM_SHA384": ("aes_256_gcm", "any", "aead"),
    "TLS_CHACHA20_POLY1305_SHA256": ("chacha20_poly1305", "any", "aead"),
    "ECDHE-RSA-AES256-GCM-SHA384": ("aes_256_gcm", "ecdhe_rsa", "aead"),
    "ECDHE-ECDSA-AES128-GCM-SHA256": ("aes_128_gcm", "ecdhe_ecdsa", "aead"),
    "ECDHE-ECDSA-AES256-GCM-SHA384": ("aes_256_gcm", "ecdhe_ecdsa", "aead"),
    "ECDHE-ECDSA-AES128-SHA256": ("aes_128_cbc", "ecdhe_ecdsa", "sha256"),
    "ECDHE-RSA-AES256-SHA": ("aes_256_cbc", "ecdhe_rsa", "sha"),
    "ECDHE-ECDSA-AES128-CCM8": ("aes_128_ccm_8", "ecdhe_ecdsa", "aead"),
    "DHE-RSA-AES128-SHA256": ("aes_128_cbc", "dhe_rsa", "sha256"),
    "AES128-SHA": ("aes_128_cbc", "rsa", "sha"),
}
"""``ssl:str_to_suite/1`` of OTP 25."""


def test_suites_in_erlangs_words() -> None:
    known = suites()
    assert {name: known[name] for name in ERLANG} == {
        name: Suite(*words) for name, words in ERLANG.items()
    }


def test_a_certificate_as_rabbitmq_prints_it() -> None:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'A, "B" & <C>; D+E\\'),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "#1 "),
            x509.NameAttribute(ObjectIdentifier("1.2.3.4"), "odd"),
            x509.NameAttribute(NameOID.COMMON_NAME, "ünï~\n"),
        ]
    )
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x" * 64)] * 40)
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(dt.datetime(2020, 1, 2, 3, 4, 5, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2055, 1, 2, 3, 4, 5, tzinfo=dt.UTC))
        .sign(key, hashes.SHA256())
    )
    from cryptography.hazmat.primitives.serialization import Encoding

    shown = certificate(made.public_bytes(Encoding.DER))
    assert shown.subject == (
        "CN=\\C3\\BCn\\C3\\AF\\7E\\0A,1.2.3.4=odd,OU=\\#1\\ ,"
        'O=A\\, \\"B\\" & \\<C\\>\\; D\\+E\\\\,C=DE'
    )
    assert shown.validity == '2020-01-02T03:04:05Z - {generalTime,"20550102030405Z"}'
    assert len(shown.issuer) == 800
    assert certificate(b"nonsense") == Certificate()


def test_properties_that_are_too_long() -> None:
    short = wire.table([(b"product", ("S", b"p")), (b"x", ("I", 1))])
    assert shown_properties(short) == short
    mixed = wire.table(
        [(b"connection_name", ("S", b"mine")), (b"blob", ("S", bytes(PROPERTIES_LIMIT)))]
    )
    assert shown_properties(mixed) == wire.table([(b"connection_name", ("S", b"mine"))])
    many = wire.table((b"k%d" % n, ("S", b"v" * 200)) for n in range(100))
    assert shown_properties(many) == b""


async def end_of(local: LocalGate, client: Any) -> bytes:
    return bytes((await client.closed())["reply_text"])


async def test_a_change_in_a_thread_is_carried_out_in_the_loop(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """When ``settle`` returns, the connections of the deleted have been told."""
    async with gate(tmp_path, fake.port) as local:
        clients = [await local.login(), await local.login(vhost=b"v2"), await local.login("bob")]
        loop = asyncio.get_running_loop()
        told: list[bytes] = []
        for live in local.registry:
            close = live.close
            assert close is not None

            def record(error: Any, close: Any = close, user: bytes = live.user) -> None:
                assert asyncio.get_running_loop() is loop
                told.append(user)
                close(error)

            live.close = record
        await asyncio.to_thread(local.store.delete_vhost, b"v2")
        await local.app.fleet.settle()
        assert told == [b"alice"]
        await asyncio.to_thread(local.store.delete_user, b"bob")
        await local.app.fleet.settle()
        assert told == [b"alice", b"bob"]
        assert await end_of(local, clients[1]) == b"CONNECTION_FORCED - vhost 'v2' is deleted"
        assert await end_of(local, clients[2]) == b"CONNECTION_FORCED - user 'bob' is deleted"
        await local.until(lambda: len(local.registry) == 1, "the others are gone")
        assert await local.app.fleet.close(reason=b"go", user=b"alice") == 1
        assert await end_of(local, clients[0]) == b"CONNECTION_FORCED - go"
        assert set(await local.app.fleet.statistics()) == {0}


async def test_upstreams_of_one_process(tmp_path: Path) -> None:
    async with FakeBroker() as fake, gate(tmp_path, fake.port) as local:
        (info,) = local.app.fleet.upstreams()
        assert (info.name, info.servers, info.vhosts) == (
            "default",
            (f"127.0.0.1:{fake.port}",),
            (),
        )
        assert (info.status.reachable, info.status.error) == (True, "")
        assert info.status.product
        assert info.status.since > 1_700_000_000_000
        link = local.app._upstreams.links["default"]
        fake.stop_listening()
        link._stale.set()
        await local.until(lambda: link.status.reachable is False, "is noticed")
        (gone,) = local.app.fleet.upstreams()
        assert "no broker can be reached" in gone.status.error
        assert gone.status.product == info.status.product
        assert gone.status.since >= info.status.since


def test_the_worst_of_what_workers_say() -> None:
    def status(reachable: bool | None, since: int) -> UpstreamStatus:
        return UpstreamStatus("u", reachable, since, "", "", "")

    assert worst("u", []) == status(None, 0)
    assert worst("u", [status(True, 9), status(None, 0)]) == status(None, 0)
    assert worst("u", [status(True, 9), status(False, 1), status(False, 3)]) == status(False, 3)


# --- several processes ---


async def test_who_is_silent_is_part_of_the_result(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gatekeeper.server import control, fleet

    short: tuple[Any, ...] = (0.05,)
    for ask in (
        Hub.list_connections,
        Hub.list_channels,
        Hub.statistics,
    ):
        monkeypatch.setattr(ask, "__defaults__", short)
    assert control.ANSWER_TIMEOUT == 5.0
    monkeypatch.setattr(fleet, "SETTLE_TIMEOUT", 0.05)
    one = await plane.worker(1)
    await plane.raw(2)
    one.running(1)
    several = HubFleet(plane.hub, {}, lambda _user: 0)
    for asked in (several.connections, several.channels, several.statistics, several.settle):
        with pytest.raises(SilentWorkersError, match=r"worker 2: no answer within 0\.05 s") as told:
            await asked()
        assert list(told.value.silent) == [2]
    with pytest.raises(SilentWorkersError) as told:
        await several.connections()
    assert isinstance(told.value.answered, dict)
    assert [info.number for info in told.value.answered[1]] == [1]


async def test_a_worker_that_dies_does_not_keep_a_change_from_being_in_force(
    plane: Plane,
) -> None:
    one = await plane.worker(1)
    silent, link = await plane.raw(2)
    several = HubFleet(plane.hub, {}, lambda _user: 0)
    settling = asyncio.get_running_loop().create_task(several.settle())
    await asyncio.sleep(0.02)
    silent.close()
    await settling
    assert link.gone.is_set()
    assert one.refreshed == 1


async def test_upstreams_of_several_processes(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    good = UpstreamStatus("default", True, 5, "RabbitMQ", "4.3.5", "")
    bad = UpstreamStatus("default", False, 6, "RabbitMQ", "4.3.5", "it is gone")
    one.member.upstream_changed(good)
    two.member.upstream_changed(bad)
    async with asyncio.timeout(3):
        while len(plane.hub.upstreams().get("default", ())) < 2:
            await asyncio.sleep(0.002)
    assert worst("default", plane.hub.upstreams()["default"]) == bad
    await two.member.close()
    async with asyncio.timeout(3):
        await two.link.gone.wait()
    assert plane.hub.upstreams() == {"default": [good]}


async def test_a_long_list_comes_in_parts(plane: Plane) -> None:
    """Properties as long as they may be."""
    one = await plane.worker(1)
    lives = [one.running(number) for number in range(1, 60, 2)]
    for live in lives:
        live.properties = shown_properties(wire.table([(b"k", ("S", bytes(PROPERTIES_LIMIT - 7)))]))
        assert len(live.properties) == PROPERTIES_LIMIT
    infos = await HubFleet(plane.hub, {}, lambda _user: 0).connections()
    assert [info.number for info in infos] == list(range(1, 60, 2))
    assert infos[0].client_properties == lives[0].properties


async def test_a_list_may_take_its_time_as_long_as_it_comes(plane: Plane) -> None:
    sock, _ = await plane.raw(1)
    asked = asyncio.get_running_loop().create_task(plane.hub.list_connections(within=0.3))
    for number in range(1, 7):
        await asyncio.sleep(0.1)
        sock.send(encode(Listed(1, (replace(INFO, number=number),), more=number < 6)))
    answers = await asked
    assert not answers.silent
    assert [info.number for info in answers.by_worker[1]] == [1, 2, 3, 4, 5, 6]
