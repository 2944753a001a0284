"""Which broker, with whose credentials, and what it is told of the client."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from gatekeeper import app as app_module
from gatekeeper.server import upstreams as module
from gatekeeper.server.proxy_protocol import parse
from tests.server.local import LocalGate, gate
from tests.server.peers import BrokerSession, FakeBroker
from tests.support.amqp import RefusedError
from tests.support.amqp_codec import Raw, method_frame, table, typed
from tests.support.process import LOOPBACK, free_port
from tests.support.rabbit import RabbitNode, TlsFiles

DEFAULT = "upstreams.default."


async def test_the_next_server_where_one_is_away(tmp_path: Path) -> None:
    async with FakeBroker() as one, FakeBroker() as two:
        values = {
            DEFAULT + "servers.2": f"{LOOPBACK}:{one.port}",
            DEFAULT + "servers.3": f"{LOOPBACK}:{two.port}",
        }
        async with gate(tmp_path, free_port(), values) as local:
            for _ in range(6):
                async with await local.login():
                    pass
            assert len(one.sessions) + len(two.sessions) == 6
            assert one.sessions
            assert two.sessions
            one.stop_listening()
            two.stop_listening()
            with pytest.raises(RefusedError):
                await local.login()
            why = await local.log.wait_for("no broker can be reached")
            assert why.count("Connection refused") == 3


async def test_vhosts_are_routed(tmp_path: Path, fake: FakeBroker) -> None:
    async with FakeBroker() as east:
        values: dict[str, str | int] = {
            "upstreams.east.servers.1": f"{LOOPBACK}:{east.port}",
            "upstreams.east.vhosts.1": "v2",
            "upstreams.east.username": "other",
            "upstreams.east.password": "pw",
        }
        async with gate(tmp_path, fake.port, values) as local:
            for vhost, broker in ((b"v2", east), (b"/", fake)):
                async with await local.login(vhost=vhost):
                    opened = broker.sessions[0].methods[-1][1]
                    assert opened["virtual_host"] == vhost
            assert len(east.sessions) == len(fake.sessions) == 1
            start_ok = east.sessions[0].methods[0][1]
            assert start_ok["response"] == b"\0other\0pw"
            # The gate's own question to it opens a vhost that it has.
            assert east.all[0].methods[2][1]["virtual_host"] == b"v2"


async def test_the_clients_own_credentials(tmp_path: Path, fake: FakeBroker) -> None:
    values = {DEFAULT + "credentials": "client"}
    async with gate(tmp_path, fake.port, values) as local:
        async with await local.login():
            start_ok = fake.sessions[0].methods[0][1]
            assert (start_ok["mechanism"], start_ok["response"]) == (b"PLAIN", b"\0alice\0alice")
        client = await local.connect()
        await client.greet()
        login = table({"LOGIN": "alice", "PASSWORD": "alice"})[4:]
        client.send(
            0,
            "connection.start-ok",
            client_properties={},
            mechanism="AMQPLAIN",
            response=login,
            locale="en_US",
        )
        tune = await client.expect("connection.tune")
        client.send(
            0,
            "connection.tune-ok",
            channel_max=tune["channel_max"],
            frame_max=tune["frame_max"],
        )
        client.send(0, "connection.open", virtual_host="/")
        await client.expect("connection.open-ok")
        start_ok = fake.sessions[1].methods[0][1]
        assert (start_ok["mechanism"], start_ok["response"]) == (b"AMQPLAIN", login)
        await client.close()


async def test_the_clients_own_credentials_refused(tmp_path: Path, fake: FakeBroker) -> None:
    fake.login = lambda session: session.refuse(403, b"ACCESS_REFUSED - Login was refused")
    async with gate(tmp_path, fake.port, {DEFAULT + "credentials": "client"}) as local:
        with pytest.raises(RefusedError) as caught:
            await local.login()
        text = b"NOT_ALLOWED - access to vhost '/' refused for user 'alice' by the upstream broker"
        assert caught.value.text == text


async def properties_seen(
    local: LocalGate, fake: FakeBroker, properties: object
) -> dict[bytes, object]:
    async with await local.login(properties=properties):
        return dict(fake.sessions[-1].properties)


async def test_what_the_broker_is_told_of_the_client(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        seen = await properties_seen(
            local, fake, {"product": "p", "information": "i", "gatekeeper": {"user": "mallory"}}
        )
        assert seen[b"product"] == b"p"
        assert seen[b"information"] == b"i"
        assert seen[b"gatekeeper"][b"user"] == b"alice"  # type: ignore[index]
        assert seen[b"connection_name"].startswith(b"alice@127.0.0.1:")  # type: ignore[attr-defined]
        seen = await properties_seen(local, fake, {"connection_name": "mine"})
        assert seen[b"connection_name"] == b"mine"
        # More than a broker takes before the tuning: only what matters is left.
        capabilities = {"capabilities": {"basic.nack": True}}
        large = {**capabilities, "product": "p", "junk": "x" * 6000}
        seen = await properties_seen(local, fake, large)
        own = {b"capabilities", b"connection_name", b"gatekeeper"}
        assert set(seen) == own | {b"product"}
        assert seen[b"capabilities"][b"basic.nack"] is True  # type: ignore[index]
        seen = await properties_seen(local, fake, {**capabilities, "product": "p" * 6000})
        assert set(seen) == own
        assert seen[b"capabilities"][b"basic.nack"] is True  # type: ignore[index]


async def test_clients_are_shown_the_brokers_own_properties(tmp_path: Path) -> None:
    async with FakeBroker() as fake:
        fake.server_properties = {
            "product": "Rarity",
            "cluster_name": "c",
            "odd": Raw(typed([1, {"x": True}])),
        }
        async with gate(tmp_path, fake.port) as local:
            client = await local.connect()
            start = await client.greet()
            assert start["server_properties"] == {
                b"product": b"Rarity",
                b"cluster_name": b"c",
                b"odd": [1, {b"x": True}],
            }


async def test_before_any_broker_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "FIRST_ANSWER", 0.05)
    async with gate(tmp_path, free_port()) as local:
        client = await local.connect()
        properties = (await client.greet())["server_properties"]
        assert properties[b"product"] == b"RabbitMQ"
        assert properties[b"capabilities"][b"authentication_failure_close"] is True


async def test_a_broker_that_changed_is_asked_again(tmp_path: Path, fake: FakeBroker) -> None:
    """It allows less than it did: one client is refused, the next is offered less."""
    async with gate(tmp_path, fake.port) as local:
        fake.limits = (5, 131072, 60)
        with pytest.raises(RefusedError):
            await local.login()
        why = await local.log.wait_for("no session with the broker")
        assert "lower channel_max here to 5 or raise the broker's" in why
        await local.until(lambda: sum(s.purpose == b"probe" for s in fake.all) == 2, "asked")
        await asyncio.sleep(0.05)
        client = await local.connect()
        await client.greet()
        client.start_ok("alice", "alice")
        assert (await client.expect("connection.tune"))["channel_max"] == 5


async def test_it_is_asked_again_from_time_to_time(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.REFRESH == 60.0
    monkeypatch.setattr(module, "REFRESH", 0.05)
    async with gate(tmp_path, fake.port) as local:
        await local.until(lambda: sum(s.purpose == b"probe" for s in fake.all) >= 4, "asked")
        # Who has only just connected has not said yet what for.
        assert all(session.purpose == b"probe" for session in fake.all if session.properties)
        async with asyncio.timeout(2):
            await fake.all[0].ended.wait()
        assert fake.all[0].names[-1] == "connection.close"


async def test_a_service_vhost_that_is_not_there_is_no_obstacle(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """The limits come before it, and they are what is asked for."""

    async def without_a_vhost(session: BrokerSession) -> None:
        await session.greet()
        await session.tune()
        await session.refuse(530, b"NOT_ALLOWED - vhost / not found")

    fake.raw = without_a_vhost
    fake.limits = (9, 131072, 60)
    async with gate(tmp_path, fake.port) as local:
        await local.log.wait_for("upstream default: Fake 1.2.3 answers")
        assert local.app._upstreams.offer(local.app._settings.limits)[0] == 9


async def test_a_service_account_that_is_refused_is_told_to_the_operator(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "FIRST_ANSWER", 0.1)

    async def refuses(session: BrokerSession) -> None:
        await session.greet()
        await session.refuse(403, b"ACCESS_REFUSED - Login was refused")

    fake.raw = refuses
    async with gate(tmp_path, fake.port) as local:
        warning = await local.log.wait_for("clients are refused until it is back")
        assert "403 ACCESS_REFUSED" in warning
        assert "s3rvice" not in warning


# --- the client's address for the broker ---


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_the_broker_is_told_the_clients_address(
    tmp_path: Path, fake: FakeBroker, version: str
) -> None:
    headers: list[bytes] = []

    async def behind_a_header(session: BrokerSession) -> None:
        data = b""
        while parse(data) is None:
            data += await session.exactly(1)
        headers.append(data)
        await session.greet()
        await session.accept()
        await session.serve()

    fake.raw = behind_a_header
    async with gate(tmp_path, fake.port, {DEFAULT + "proxy_protocol": version}) as local:
        async with await local.login() as client:
            client_address = client.writer.get_extra_info("sockname")
        own, header = (parse(data) for data in headers[:2])
        assert header is not None
        assert header.source == client_address
        assert header.destination == (LOOPBACK, local.port)
        # The gate's own connections tell their own.
        assert own is not None
        assert own.destination == (LOOPBACK, fake.port)


async def test_the_header_goes_out_ahead_of_tls(
    tmp_path: Path, fake: FakeBroker, tls_files: TlsFiles
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls_files.certificate, tls_files.key)
    headers: list[bytes] = []

    async def tls_behind_a_header(session: BrokerSession) -> None:
        headers.append(await session.exactly(28))  # v2 with IPv4, and not a byte of TLS
        await session.writer.start_tls(context)
        await session.greet()
        await session.accept()
        await session.serve()

    fake.raw = tls_behind_a_header
    values: dict[str, str | int] = {
        DEFAULT + "proxy_protocol": "v2",
        DEFAULT + "ssl": "true",
        DEFAULT + "ssl_options.cacertfile": str(tls_files.ca),
    }
    async with gate(tmp_path, fake.port, values) as local:
        async with await local.login(channel=True) as client:
            client_address = client.writer.get_extra_info("sockname")
            assert (await client.call(1, "queue.declare", queue="q"))["queue"] == b"q"
        header = parse(headers[1])
        assert header is not None
        assert header.source == client_address


# --- a real broker ---


async def test_a_real_broker_behind_the_gate(tmp_path: Path, broker: RabbitNode) -> None:
    async with gate(tmp_path, broker.port) as local:
        client = await local.login(channel=True)
        declared = await client.call(1, "queue.declare", queue="real", auto_delete=True)
        assert declared["queue"] == b"real"
        client.publish(1, b"", b"real", b"hello", properties={"user_id": "alice"})
        got = await client.call(1, "basic.get", queue="real", no_ack=True)
        assert (got.name, got.body) == ("basic.get-ok", b"hello")
        # Earlier replies come before a refusal, on a real broker's time.
        bob = await local.login("bob", channel=True)
        bob.write(
            method_frame(1, "basic.qos", prefetch_count=1)
            + method_frame(1, "queue.declare", queue="not his")
            + method_frame(1, "basic.qos", prefetch_count=2)
        )
        await bob.expect("basic.qos-ok", 1)
        assert (await bob.expect("channel.close", 1))["reply_code"] == 403
        bob.send(1, "channel.close-ok")
        await bob.open_channel()
        await bob.close()
        # The broker's own refusals come through, in the client's terms.
        missing = await client.call(1, "queue.declare", queue="missing", passive=True)
        assert missing["reply_text"] == b"NOT_FOUND - no queue 'missing' in vhost '/'"
        client.send(1, "channel.close-ok")
        await client.close()


async def test_a_vhost_that_only_the_gate_has(tmp_path: Path, broker: RabbitNode) -> None:
    async with gate(tmp_path, broker.port) as local:
        local.store.add_vhost(b"here only")
        local.store.set_permissions(b"alice", b"here only", b"", b"", b"")
        with pytest.raises(RefusedError) as caught:
            await local.login(vhost=b"here only")
        assert caught.value.text == b"NOT_ALLOWED - vhost here only not found"
