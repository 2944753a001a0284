"""Between the sockets and the session: answers that take time, and who may not be read from.

With a slow backend every check is a question whose answer comes later: the client must not see
any difference but time.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import zlib
from pathlib import Path

import pytest
import trustme

from gatekeeper.model import Access, Decision, Kind, Permission
from gatekeeper.policy.engine import Engine
from gatekeeper.server import endpoint as endpoint_module
from gatekeeper.server import pump as pump_module
from gatekeeper.server.endpoint import Endpoint
from tests.server.local import LocalGate, gate
from tests.server.peers import BrokerSession, Client, FakeBroker, Talker
from tests.support.amqp import LostError, RefusedError
from tests.support.amqp_codec import (
    BODY,
    HEADER,
    encode_header,
    frame,
    method_frame,
    publish_frames,
)
from tests.support.process import LOOPBACK
from tests.support.rabbit import RabbitNode, TlsFiles

WRITE = Permission.WRITE


class Slow:
    """Makes every check of a gate's engine take time. asked: how many there were.

    open: while it is cleared no answer comes; ``stuck``: to none but questions of this exchange.
    """

    def __init__(self, local: LocalGate, pause: float = 0.002, stuck: bytes | None = None) -> None:
        self.asked = 0
        self.stuck = stuck
        self.pause = pause
        self.open = asyncio.Event()
        self.open.set()
        engine: Engine = local.app._gate.engine
        original = engine.check

        async def later(*args: object) -> object:
            await asyncio.sleep(self.pause)
            if self.stuck is None or args[-1] == Access(WRITE, Kind.EXCHANGE, self.stuck):
                await self.open.wait()
            return original(*args)  # type: ignore[arg-type]

        def check(*args: object) -> object:
            self.asked += 1
            return later(*args)

        engine.check = check  # type: ignore[method-assign,assignment]


async def test_a_slow_backend_changes_nothing_but_time(tmp_path: Path, broker: RabbitNode) -> None:
    """Everything pipelined, on a real broker: generated names, publishes, consumers, refusals."""
    async with gate(tmp_path, broker.port) as local:
        slow = Slow(local)
        client = await local.login(channel=True)
        client.write(
            method_frame(1, "queue.declare", queue="", exclusive=True)
            + method_frame(1, "basic.consume", queue="", consumer_tag="t", no_ack=True)
            + method_frame(1, "queue.bind", queue="", exchange="amq.topic", routing_key="k.#")
            + b"".join(publish_frames(1, b"amq.topic", b"k.%d" % n, b"%d" % n) for n in range(20))
            + method_frame(1, "basic.qos", prefetch_count=1)
        )
        assert (await client.expect("queue.declare-ok", 1))["queue"].startswith(b"amq.gen")
        await client.expect("basic.consume-ok", 1)
        await client.expect("queue.bind-ok", 1)
        bodies, names = [], []
        while len(bodies) < 20 or len(names) < 1:
            method = (await client.read())[1]
            if method.name == "basic.deliver":
                bodies.append(method.body)
            else:
                names.append(method.name)
        assert bodies == [b"%d" % n for n in range(20)]
        assert names == ["basic.qos-ok"]
        assert slow.asked >= 4
        bob = await local.login("bob", channel=True)
        bob.write(
            method_frame(1, "basic.qos", prefetch_count=3)
            + publish_frames(1, b"amq.topic", b"k.no", b"refused")
            + method_frame(1, "basic.qos", prefetch_count=4)
        )
        await bob.expect("basic.qos-ok", 1)
        assert (await bob.expect("channel.close", 1))["reply_code"] == 403
        bob.send(1, "channel.close-ok")
        await bob.close()
        await client.close()


async def test_a_name_that_the_broker_makes_up_is_judged_late(
    tmp_path: Path, broker: RabbitNode
) -> None:
    """The declare-ok waits for the answer, and so does everything behind it."""
    async with gate(tmp_path, broker.port) as local:
        Slow(local)
        local.store.set_permissions(b"bob", b"/", b"^amq.gen", b"^$", b".*")
        bob = await local.login("bob", channel=True)
        bob.write(
            method_frame(1, "queue.declare", queue="", exclusive=True)
            + method_frame(1, "basic.qos", prefetch_count=1)
        )
        await bob.expect("queue.declare-ok", 1)
        await bob.expect("basic.qos-ok", 1)
        await bob.close()


async def test_while_an_answer_is_awaited_the_client_is_not_read_from(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """Bounded: what it sends meanwhile stays in its own socket. The broker is still relayed."""
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        session = await fake.client()
        slow = Slow(local)
        slow.open.clear()
        client.publish(1, b"amq.fanout", b"k", b"first")
        await local.until(lambda: slow.asked == 1, "asked")
        rest = publish_frames(1, b"amq.fanout", b"k", bytes(100_000)) * 100
        client.write(rest)
        await asyncio.sleep(0.1)
        transport = client.writer.transport
        assert transport.get_write_buffer_size() > 1 << 20  # type: ignore[attr-defined]
        session.send(0, "connection.blocked", reason="memory")
        await client.expect("connection.blocked")
        assert "basic.publish" not in session.names
        slow.open.set()
        await local.until(lambda: session.names.count("basic.publish") == 101, "all published")
        assert slow.asked == 2  # the exchange, the routing key; then no more
        bodies = [method.body for _, method in session.methods if method.body]
        assert bodies == [b"first", *[bytes(100_000)] * 100]
        await client.close()


async def test_only_the_channel_that_asks_waits(tmp_path: Path, fake: FakeBroker) -> None:
    """Its backend hangs: another channel publishes, declares and asks the same backend."""
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        await client.open_channel(2)
        session = await fake.client()
        slow = Slow(local, stuck=b"amq.fanout")
        slow.open.clear()
        client.publish(1, b"amq.fanout", b"k", b"first")
        client.send(1, "basic.qos", prefetch_count=7)
        await local.until(lambda: slow.asked == 1, "asked")
        for n in range(20):
            await client.call(2, "basic.qos", prefetch_count=n)
            await client.call(2, "queue.declare", queue=f"q{n}")
            client.publish(2, b"amq.direct", b"k", b"%d" % n)
        await local.until(lambda: session.names.count("basic.publish") == 20, "published")
        assert {n for n, method in session.methods if method.name == "basic.publish"} == {2}
        slow.open.set()
        await client.expect("basic.qos-ok", 1)
        on_1 = [method for n, method in session.methods if n == 1]
        assert [method.name for method in on_1[-2:]] == ["basic.publish", "basic.qos"]
        assert on_1[-2].body == b"first"
        await client.close()


async def test_a_refusal_that_comes_late_is_of_one_channel(
    tmp_path: Path, broker: RabbitNode
) -> None:
    """On a real broker, with what the client does next already on the way."""
    async with gate(tmp_path, broker.port) as local:
        bob = await local.login("bob", channel=True)
        await bob.open_channel(2)
        slow = Slow(local, stuck=b"amq.fanout")
        slow.open.clear()
        bob.publish(1, b"amq.fanout", b"k", b"refused")
        bob.write(method_frame(1, "channel.close-ok") + method_frame(1, "channel.open"))
        for n in range(5):
            await bob.call(2, "basic.qos", prefetch_count=n)
        slow.open.set()
        assert (await bob.expect("channel.close", 1))["reply_code"] == 403
        await bob.expect("channel.open-ok", 1)
        await bob.call(1, "basic.qos", prefetch_count=1)
        await bob.close()


async def test_a_permission_that_goes_while_the_answer_is_awaited(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        slow = Slow(local)
        slow.open.clear()
        client.publish(1, b"amq.fanout", b"k")
        await local.until(lambda: slow.asked == 1, "asked")
        local.store.clear_permissions(b"alice", b"/")
        slow.open.set()
        assert (await client.expect("channel.close", 1))["reply_code"] == 403
        assert "basic.publish" not in (await fake.client()).names


@pytest.mark.parametrize("who", ["client", "broker"])
async def test_a_peer_that_leaves_while_an_answer_is_awaited(
    tmp_path: Path, fake: FakeBroker, who: str
) -> None:
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        session = await fake.client()
        slow = Slow(local)
        slow.open.clear()
        client.publish(1, b"amq.fanout", b"k")
        await local.until(lambda: slow.asked == 1, "asked")
        if who == "broker":
            session.abort()
            assert (await client.closed())["reply_code"] == 320
            await client.at_eof(1)
        else:
            client.abort()
        slow.open.set()
        await local.until(lambda: len(local.registry) == 0, "ended")
        async with asyncio.timeout(2):
            await session.ended.wait()
        if who == "broker":
            assert "basic.publish" not in session.names


async def test_what_a_client_sent_before_it_left_is_done(tmp_path: Path, fake: FakeBroker) -> None:
    """There are clients that publish and close their socket."""
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        session = await fake.client()
        slow = Slow(local)
        slow.open.clear()
        client.publish(1, b"amq.fanout", b"k", b"last")
        client.publish(1, b"amq.direct", b"k", b"words")
        await local.until(lambda: slow.asked == 1, "asked")
        client.writer.close()
        await asyncio.sleep(0.05)
        assert len(local.registry) == 1
        slow.open.set()
        await local.until(lambda: len(local.registry) == 0, "ended")
        async with asyncio.timeout(2):
            await session.ended.wait()
        assert [method.body for _, method in session.methods if method.body] == [b"last", b"words"]


async def test_what_a_client_sent_before_its_error_is_done_though_it_has_left(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """Two channels wait; the one whose answer comes first ends the connection."""
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        await client.open_channel(2)
        session = await fake.client()
        slow = Slow(local, pause=0.2, stuck=b"amq.fanout")
        slow.open.clear()
        client.publish(1, b"amq.fanout", b"k", b"last words")
        client.publish(2, b"amq.direct", b"k")
        immediate = method_frame(2, "basic.publish", routing_key="k", immediate=True)
        client.write(immediate + frame(HEADER, 2, encode_header(0, {})))
        await local.until(lambda: slow.asked == 2, "asked")
        client.writer.close()
        await local.until(lambda: "channel.close" in session.names, "refused")
        slow.open.set()
        async with asyncio.timeout(3):
            await local.until(lambda: len(local.registry) == 0, "ended")
            await session.ended.wait()
        on_1 = [method.body for n, method in session.methods if n == 1 and method.body]
        assert on_1 == [b"last words"]


@pytest.mark.parametrize("end", ["time", "broker"])
async def test_nobody_waits_for_ever_for_a_client_that_left(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    if end == "time":
        monkeypatch.setattr(pump_module, "GONE_TIMEOUT", 0.05)
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        session = await fake.client()
        slow = Slow(local)
        slow.open.clear()
        client.publish(1, b"amq.fanout", b"k")
        await local.until(lambda: slow.asked == 1, "asked")
        client.writer.close()
        await asyncio.sleep(0.05)
        if end == "broker":
            session.abort()
        async with asyncio.timeout(3):
            await local.until(lambda: len(local.registry) == 0, "ended")
        slow.open.set()
        async with asyncio.timeout(2):
            await session.ended.wait()
        assert "basic.publish" not in session.names


async def test_a_client_that_is_gone_when_the_broker_is_there(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost between the last look at it and the start of the pump."""
    original = Endpoint.write

    def abort_at_open_ok(endpoint: Endpoint, data: bytes) -> None:
        if data[7:11] == b"\0\x0a\0\x29":
            endpoint.abort()
            endpoint.lost = True
        original(endpoint, data)

    async with gate(tmp_path, fake.port) as local:
        monkeypatch.setattr(Endpoint, "write", abort_at_open_ok)
        client = await local.connect()
        task = asyncio.get_running_loop().create_task(client.shake("alice", "alice"))
        await local.log.wait_for("client unexpectedly closed TCP connection")
        monkeypatch.undo()
        await asyncio.wait([task])
        assert task.exception() is not None
        async with asyncio.timeout(2):
            await fake.sessions[0].ended.wait()


async def test_a_client_that_ends_its_side_and_does_not_read(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has asked for a flood, shuts its own side down and stays: not for ever."""
    monkeypatch.setattr(endpoint_module, "LINGER", 0.3)

    async def flood(session: BrokerSession) -> None:
        deliver = method_frame(1, "basic.deliver", consumer_tag="t")
        data = (
            deliver + frame(HEADER, 1, encode_header(100_000, {})) + frame(BODY, 1, bytes(100_000))
        )
        while not session.writer.is_closing():
            session.write(data)
            await session.writer.drain()

    async with gate(tmp_path, fake.port) as local:
        fake.session = flood
        client = await local.login()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0.1)
        with client.writer.get_extra_info("socket").dup() as sock:
            sock.shutdown(socket.SHUT_WR)
        await local.until(lambda: len(local.registry) == 0, "ended")
        async with asyncio.timeout(2):
            await fake.sessions[0].ended.wait()


async def test_a_mistake_of_ours_ends_the_connection_and_nothing_else(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """Never open, always closed, and the operator reads where it happened."""
    async with gate(tmp_path, fake.port) as local:
        engine = local.app._gate.engine

        async def broken(*_: object) -> Decision:
            raise ZeroDivisionError("ours")

        original, engine.vhost_access = engine.vhost_access, broken  # type: ignore[method-assign,assignment]
        with pytest.raises(LostError):
            await local.login()
        assert await local.log.wait_for("internal error in a connection")
        assert isinstance(local.log.fields[-1]["exc_info"], ZeroDivisionError)
        local.log.lines.clear()
        assert len(local.registry) == 0
        engine.vhost_access = original  # type: ignore[method-assign]
        async with await local.login():
            pass


async def test_a_backend_that_breaks_its_contract_at_the_vhost(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with gate(tmp_path, fake.port) as local:
        engine = local.app._gate.engine

        async def crashed(*_: object) -> Decision:
            return Decision(False, crashed=True)

        engine.vhost_access = crashed  # type: ignore[method-assign,assignment]
        with pytest.raises(RefusedError) as caught:
            await local.login()
        assert (caught.value.code, caught.value.text) == (541, b"INTERNAL_ERROR")
        assert not fake.sessions


# --- bytes, over TLS on both sides ---

SIZE = 12 << 20


def content(seed: int) -> tuple[bytes, int]:
    """A header and body frames of odd sizes, and the CRC-32 of the body."""
    choose = random.Random(seed)
    body = choose.randbytes(1 << 20) * (SIZE >> 20)
    frames = [frame(HEADER, 1, encode_header(SIZE, {}))]
    at = 0
    while at < SIZE:
        size = choose.choice((1, 100, 8000, 131_000))
        frames.append(frame(BODY, 1, body[at : at + size]))
        at += size
    return b"".join(frames), zlib.crc32(body)


async def received(talker: Talker) -> tuple[str, int]:
    method = (await talker.read())[1]
    assert method.body is not None
    return method.name, zlib.crc32(method.body)


async def test_every_byte_over_tls_and_slow_readers(
    tmp_path: Path, tls_files: TlsFiles, authority: trustme.CA
) -> None:
    """12 MB each way at once, while neither side reads for a while."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(LOOPBACK).configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    values: dict[str, str | int] = {
        "upstreams.default.ssl": "true",
        "upstreams.default.ssl_options.cacertfile": str(tls_files.ca),
    }
    got: list[tuple[str, int]] = []
    down, down_crc = content(1)
    up, up_crc = content(2)

    async def exchange(session: BrokerSession) -> None:
        await session.expect("channel.open", 1)
        session.send(1, "channel.open-ok")
        session.write(method_frame(1, "basic.deliver", consumer_tag="t") + down)
        await asyncio.sleep(0.3)
        got.append(await received(session))
        await session.serve()

    async with FakeBroker(tls=server) as fake:
        fake.session = exchange
        async with gate(tmp_path, fake.port, values, tls=tls_files) as local:
            client: Client = await local.login(tls=trusting, channel=True)
            client.write(method_frame(1, "basic.publish", routing_key="q") + up)
            await asyncio.sleep(0.3)
            assert await received(client) == ("basic.deliver", down_crc)
            await local.until(lambda: got == [("basic.publish", up_crc)], "published")
            await client.close()


async def test_frames_of_a_megabyte(tmp_path: Path) -> None:
    """Larger than the buffer that all share, in both directions, and small ones between."""
    big = 1 << 20
    async with FakeBroker(limits=(2047, big + 8, 60)) as fake:

        async def echo(session: BrokerSession) -> None:
            await session.expect("channel.open", 1)
            session.send(1, "channel.open-ok")
            while True:
                _, method = await session.read()
                if method.name == "connection.close":
                    session.send(0, "connection.close-ok")
                    return
                assert method.body is not None
                session.write(method_frame(1, "basic.deliver", consumer_tag="t"))
                session.write(frame(HEADER, 1, encode_header(len(method.body), {})))
                session.write(frame(BODY, 1, method.body))

        fake.session = echo
        async with gate(tmp_path, fake.port, {"frame_max": big + 8}) as local:
            client = await local.login(channel=True)
            small = await local.login(channel=True)
            for size in (big, 10, big - 1, 300_000):
                body = random.Random(size).randbytes(size)
                client.write(publish_frames(1, b"", b"q", body, frame_max=big + 8))
                small.publish(1, b"", b"q", b"small")
                assert (await small.read())[1].body == b"small"
                assert (await client.read())[1].body == body
            await client.close()
            await small.close()


async def test_a_frame_larger_than_was_negotiated(tmp_path: Path, fake: FakeBroker) -> None:
    async def close_amid_content(session: BrokerSession) -> None:
        await session.expect("channel.open", 1)
        session.send(1, "channel.open-ok")
        while (await session.frame())[1]:
            pass
        session.send(0, "connection.close-ok")

    fake.session = close_amid_content
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True, frame_max=8192)
        client.write(method_frame(1, "basic.publish", routing_key="q"))
        client.write(frame(HEADER, 1, encode_header(10_000, {})) + frame(BODY, 1, bytes(8193)))
        close = await client.expect("connection.close")
        assert close["reply_code"] == 501
        assert b"frame_too_large" in close["reply_text"]


async def test_a_login_with_nothing_to_do_for_the_engine(tmp_path: Path, fake: FakeBroker) -> None:
    """A user without any permission in the vhost gets no session, and no broker hears of it."""
    async with gate(tmp_path, fake.port) as local:
        with pytest.raises(RefusedError):
            await local.login("bob", vhost=b"v2")
        assert not fake.sessions
