"""Listeners: the PROXY protocol and TLS in front of AMQP, and sockets that cannot be had."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from gatekeeper.app import App
from gatekeeper.config.load import load_settings
from gatekeeper.config.settings import Address, Settings, SocketOptions
from gatekeeper.errors import ConfigError
from gatekeeper.server import listener
from gatekeeper.server.listener import listening_socket
from gatekeeper.server.proxy_protocol import SIGNATURE, build
from tests.server.local import gate
from tests.server.peers import Client, FakeBroker
from tests.support.amqp import LostError, RefusedError
from tests.support.gate import GateConfig
from tests.support.process import LOOPBACK, free_port
from tests.support.rabbit import TlsFiles

BEHIND = {"proxy_protocol": "true"}
FAR, NEAR, HERE = ("203.0.113.7", 40001), ("127.0.0.9", 40002), ("192.0.2.1", 5672)
LOCAL_COMMAND = SIGNATURE + b"\x20\x00\x00\x00"


@pytest.fixture
def context(authority: trustme.CA) -> ssl.SSLContext:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return trusting


# --- behind a load balancer ---


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_the_real_address_decides_the_loopback_rule(
    tmp_path: Path,
    fake: FakeBroker,
    tls_files: TlsFiles,
    context: ssl.SSLContext,
    version: str,
    over_tls: bool,
) -> None:
    """``local`` may log in from loopback only, and the balancer is always on loopback here."""
    tls = context if over_tls else None
    async with gate(tmp_path, fake.port, BEHIND, tls=tls_files) as local:
        far = build(version, FAR, HERE)
        with pytest.raises(RefusedError):
            await local.login("local", tls=tls, first=far)
        reason = await local.log.wait_for("can only connect via localhost")
        assert reason.startswith("User 'local' failed to authenticate")
        async with await local.login("alice", tls=tls, first=far):
            name = f"{FAR[0]}:{FAR[1]} -> {HERE[0]}:{HERE[1]}"
            await local.log.wait_for(f"^connection {name}: user 'alice' authenticated")
        async with await local.login("local", tls=tls, first=build(version, NEAR, HERE)):
            pass


async def test_the_balancers_own_connections_have_its_address(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with gate(tmp_path, fake.port, BEHIND) as local:
        for header in (LOCAL_COMMAND, b"PROXY UNKNOWN\r\n"):
            async with await local.login("local", first=header):
                pass
        assert local.log.matching(rf"accepting AMQP connection {LOOPBACK}:\d+ -> {LOOPBACK}:")


@pytest.mark.parametrize("first", [b"AMQP\0\0\x09\x01", b"\x16\x03\x01", b"\0", b"PROXY X"])
async def test_without_a_header_it_is_dropped_without_a_word(
    tmp_path: Path, fake: FakeBroker, first: bytes
) -> None:
    async with gate(tmp_path, fake.port, BEHIND) as local:
        client = await local.connect(first=first + b"\r\n")
        assert await client.at_eof() < 1
        assert not client.raw
        await local.log.wait_for("error when receiving proxy header: ")
        assert not local.log.of("connection")


async def test_a_header_in_pieces_and_one_that_never_ends(
    tmp_path: Path,
    fake: FakeBroker,
    tls_files: TlsFiles,
    context: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "TIMEOUT", 0.6)
    async with gate(tmp_path, fake.port, BEHIND, tls=tls_files) as local:
        # Half a header, and a byte now and then: the limit is for the whole of it.
        dripped = await local.connect()
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in build("v1", FAR, HERE) * 9:
                dripped.write(bytes((byte,)))
                await asyncio.sleep(0.05)
                await dripped.writer.drain()
        assert 0.5 < time.monotonic() - started < 2
        await local.log.wait_for("error when receiving proxy header: timeout")
        # In pieces, with the first bytes of TLS in the last segment.
        header = build("v2", FAR, HERE)
        sock = socket.create_connection((LOOPBACK, local.tls_port))
        for end in range(1, len(header), 7):
            sock.sendall(header[end - 1 : min(end + 6, len(header))])
            await asyncio.sleep(0.02)
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=context, server_hostname=LOOPBACK
        )
        client = Client(reader, writer)
        await client.shake("alice", "alice")
        await client.close()


async def test_a_peer_that_leaves_in_the_header(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port, BEHIND) as local:
        client = await local.connect(first=b"PROXY TCP4 1.2")
        client.writer.write_eof()
        await local.log.wait_for("proxy header: the peer closed the connection")


async def test_no_new_clients_behind_a_balancer_while_draining(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """A listener must be closed at once when the gate stops, whichever way it accepts."""
    for values in (BEHIND, {}):
        async with gate(tmp_path / str(len(values)), fake.port, values) as local:
            local.app._listeners.close()
            await asyncio.sleep(0)  # libuv closes a handle in its next turn
            with pytest.raises(ConnectionRefusedError):
                await local.connect()


# --- TLS ---


async def test_tls_handshakes_that_come_to_nothing(
    tmp_path: Path, fake: FakeBroker, tls_files: TlsFiles, context: ssl.SSLContext
) -> None:
    """Silent or garbage on the TLS port: dropped in time, and others are served meanwhile."""
    values: dict[str, str | int] = {"ssl_handshake_timeout": 600}
    async with gate(tmp_path, fake.port, values, tls=tls_files) as local:
        silent = await Client.connect(local.tls_port)
        garbage = await Client.connect(local.tls_port, first=b"AMQP\0\0\x09\x01")
        dripping = await Client.connect(local.tls_port, first=b"\x16\x03\x01\x02\x00")
        assert await garbage.at_eof() < 0.4
        async with await local.login(tls=context):
            assert local.log.matching("accepting AMQP connection")
        for waiting in (silent, dripping):
            assert await waiting.at_eof() < 1.5
            waiting.abort()
        garbage.abort()


async def test_a_tls_client_is_closed_without_delay(
    tmp_path: Path, fake: FakeBroker, tls_files: TlsFiles, context: ssl.SSLContext
) -> None:
    async with gate(tmp_path, fake.port, tls=tls_files) as local:
        client = await local.login(tls=context)
        client.send(0, "connection.close", reply_code=200, reply_text=b"")
        await client.expect("connection.close-ok")
        assert await client.at_eof() < 1
        async with await local.login(tls=context):
            local.store.delete_user(b"alice")
            # told, though the client has not read anything yet
        await local.log.wait_for("user 'alice' is deleted")


async def test_a_plain_client_on_the_tls_port_and_the_other_way_round(
    tmp_path: Path, fake: FakeBroker, tls_files: TlsFiles, context: ssl.SSLContext
) -> None:
    async with gate(tmp_path, fake.port, tls=tls_files) as local:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Client.connect(local.port, tls=context)
        await local.log.wait_for("TLS client detected on non-TLS AMQP port")
        client = await Client.connect(local.tls_port)
        client.write(b"AMQP\0\0\x09\x01")
        with pytest.raises(LostError):
            await client.frame()
        client.abort()


async def test_proxy_header_then_no_tls(
    tmp_path: Path, fake: FakeBroker, tls_files: TlsFiles
) -> None:
    async with gate(tmp_path, fake.port, BEHIND, tls=tls_files) as local:
        client = await Client.connect(
            local.tls_port, first=build("v1", FAR, HERE) + b"AMQP\0\0\x09\x01"
        )
        await client.at_eof(2)
        client.abort()
        await local.log.wait_for("a connection failed behind its proxy header")


# --- sockets ---


def test_a_port_in_use_names_the_port_and_the_remedy() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            listening_socket(Address(host=LOOPBACK, port=port), SocketOptions())
    assert f"{LOOPBACK}:{port}" in str(caught.value)
    assert "in use" in str(caught.value)
    assert "listeners.*" in str(caught.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_is_not_ours(host: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on .*; check listeners"):
        listening_socket(Address(host=host, port=free_port()), SocketOptions())


def test_socket_options_are_set() -> None:
    options = SocketOptions(
        backlog=7, nodelay=True, linger=(True, 5), keepalive=True, sndbuf=65536, recbuf=65536
    )
    with listening_socket(Address(host=LOOPBACK, port=0), options) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 65536
        packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        assert packed == (1).to_bytes(4, "little") + (5).to_bytes(4, "little")
    with listening_socket(Address(host=LOOPBACK, port=0), SocketOptions()) as sock:
        # RabbitMQ's default would throw the close reason away on Linux.
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)


def test_all_interfaces_means_both_families() -> None:
    with listening_socket(Address(host="", port=0), SocketOptions()) as sock:
        port = sock.getsockname()[1]
        for host in (LOOPBACK, "::1"):
            with socket.create_connection((host, port), timeout=2):
                pass


def settings_for(folder: Path, port: int) -> Settings:
    config = GateConfig(folder, upstream=free_port(), port=port)
    return load_settings(config.write(), {})


async def test_one_bad_listener_stops_the_start_and_frees_the_others(tmp_path: Path) -> None:
    port = free_port()
    settings = settings_for(tmp_path, port)
    bad = replace(
        settings,
        tcp_listeners=(*settings.tcp_listeners, Address(host="192.0.2.1", port=port)),
    )
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        App(bad)
    with socket.create_server((LOOPBACK, port)):
        pass


async def test_ipv6_and_mapped_addresses_are_shown_as_rabbitmq_does(
    tmp_path: Path, fake: FakeBroker
) -> None:
    port = free_port()
    values = {"listeners.tcp.1": f":::{port}"}
    async with gate(tmp_path, fake.port, values) as local:
        mapped = await Client.connect(port)
        await mapped.greet()
        await local.log.wait_for(
            rf"accepting AMQP connection 127\.0\.0\.1:\d+ -> 127\.0\.0\.1:{port}"
        )
        six = await Client.connect(port, host="::1")
        await six.greet()
        await local.log.wait_for(rf"accepting AMQP connection \[::1\]:\d+ -> \[::1\]:{port}")
        for client in (mapped, six):
            client.abort()
