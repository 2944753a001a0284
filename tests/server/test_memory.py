"""The gate's memory is bounded, whoever does not read and whoever does not log in.

The real process, so that its memory is its own: growth is measured up to the highest mark.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gatekeeper.protocol.parking import MAX_OCTETS
from gatekeeper.server.endpoint import BUFFER_SIZE, WRITE_HIGH
from tests.server.peers import BrokerSession, Client, FakeBroker
from tests.support.amqp_codec import (
    BODY,
    HEADER,
    PROTOCOL_HEADER,
    encode_header,
    frame,
    method_frame,
)
from tests.support.gate import Gate, GateConfig
from tests.support.process import LOOPBACK, Process, listens
from tests.support.rabbit import definitions, permission, user

MEGABYTE = 1 << 20
SIZE = 200 * MEGABYTE
CHUNK = frame(BODY, 1, bytes(range(256)) * 512)
"""A body frame of 128 KiB."""
FRAMES = SIZE // (128 * 1024)
ALLOWED = 6 * MEGABYTE
"""Write buffers of 512 KiB, the receive buffer, and what the allocator does with them."""
HALF_OPEN = 2000


MANY = 24
EACH = WRITE_HIGH + BUFFER_SIZE + 256 * 1024
"""Of a connection one side of which reads nothing: up to the mark and what one read brings, or all
that may wait apart and the rest of one read; the last for half a frame, and for the allocator."""


def peak(process: Process) -> int:
    """The most bytes of memory that the process has ever had."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise KeyError("VmHWM")


@contextlib.asynccontextmanager
async def child(folder: Path, fake: FakeBroker) -> AsyncIterator[tuple[Process, int]]:
    config = GateConfig(folder, upstream=fake.port).with_definitions(
        definitions(users=[user("alice", "alice")], permissions=[permission("alice")])
    )
    # The clients log in behind a frame of 128 KiB and its 8 octets.
    config.set("frame_max", 131_080)
    config.set("log.console.level", "error")
    process = Gate(config).process
    config.write()
    process.start()
    try:
        await asyncio.to_thread(process.wait_for, lambda: listens(config.port), what="listens")
        yield process, config.port
        assert process.running
        assert "Traceback" not in process.output()
    finally:
        process.kill()


async def stalled(progress: list[int]) -> int:
    """Wait until the number at the end of ``progress`` stops growing; that number."""
    async with asyncio.timeout(20):
        while True:
            before = progress[-1]
            await asyncio.sleep(0.3)
            if progress[-1] == before > 0:
                return before


async def push(sock: socket.socket, head: bytes, progress: list[int]) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, head)
    for _ in range(FRAMES):
        await loop.sock_sendall(sock, CHUNK)
        progress.append(progress[-1] + len(CHUNK))


async def pull(sock: socket.socket, count: int) -> int:
    """Read ``count`` bytes; their CRC-32."""
    loop = asyncio.get_running_loop()
    crc = 0
    buffer = bytearray(MEGABYTE)
    view = memoryview(buffer)
    while count:
        got = await loop.sock_recv_into(sock, view[: min(count, MEGABYTE)])
        assert got, "the connection ended"
        crc = zlib.crc32(view[:got], crc)
        count -= got
    return crc


def crc_of(head: bytes) -> tuple[int, int]:
    """Bytes and CRC-32 of ``head`` and the frames behind it."""
    crc = zlib.crc32(head)
    for _ in range(FRAMES):
        crc = zlib.crc32(CHUNK, crc)
    return len(head) + FRAMES * len(CHUNK), crc


def taken_over(talker: BrokerSession | Client) -> socket.socket:
    """The socket below the streams, which are not used again."""
    talker.writer.transport.pause_reading()
    sock: socket.socket = talker.writer.get_extra_info("socket").dup()
    sock.setblocking(False)
    return sock


async def test_neither_side_can_make_it_hold_what_the_other_does_not_read(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with FakeBroker(limits=(2047, 131_080, 0)) as fake:

        async def open_channel_and_leave(session: BrokerSession) -> None:
            await session.expect("channel.open", 1)
            session.send(1, "channel.open-ok")
            await session.never()

        fake.session = open_channel_and_leave
        async with child(tmp_path, fake) as (process, port):
            client = await Client.connect(port)
            await client.shake("alice", "alice")
            await client.open_channel()
            near, far = taken_over(client), taken_over(await fake.client())
            header = frame(HEADER, 1, encode_header(FRAMES * (len(CHUNK) - 8), {}))
            to_broker = method_frame(1, "basic.publish", routing_key="q") + header
            deliver = method_frame(1, "basic.deliver", consumer_tag="t", delivery_tag=1)
            to_client = deliver + header
            before = peak(process)
            for source, sink, head in ((near, far, to_broker), (far, near, to_client)):
                progress = [0]
                pushing = loop.create_task(push(source, head, progress))
                assert await stalled(progress) < SIZE / 4
                assert peak(process) - before < ALLOWED
                # And now that it is read, every byte comes, in order.
                count, crc = crc_of(head)
                async with asyncio.timeout(30):
                    assert await pull(sink, count) == crc
                    await pushing
                assert peak(process) - before < ALLOWED
            for sock in (near, far):
                sock.close()
            client.abort()


@pytest.mark.parametrize("who", ["client", "broker", "channel"])
async def test_connections_that_are_stuck_cost_as_much_as_they_may(
    tmp_path: Path, who: str
) -> None:
    """Many at once: a client that reads no deliveries; a broker that reads no publishes; a channel
    that waits for an answer with more than may wait apart."""
    assert MAX_OCTETS <= WRITE_HIGH
    loop = asyncio.get_running_loop()
    async with FakeBroker(limits=(2047, 131_080, 0)) as fake:

        async def say_little(session: BrokerSession) -> None:
            await session.expect("channel.open", 1)
            session.send(1, "channel.open-ok")
            if who == "channel":
                await session.expect("queue.declare", 1)
            await session.never()

        fake.session = say_little
        async with child(tmp_path, fake) as (process, port):
            clients = [await Client.connect(port) for _ in range(MANY)]
            for client in clients:
                await client.shake("alice", "alice")
                await client.open_channel()
            sessions = [session for session in fake.sessions if session.purpose is None]
            idle: list[Client] | list[BrokerSession] = clients if who == "client" else sessions
            if who != "channel":
                for silent in idle:
                    silent.writer.transport.pause_reading()
            head = frame(HEADER, 1, encode_header(FRAMES * (len(CHUNK) - 8), {}))
            if who == "client":
                head = method_frame(1, "basic.deliver", consumer_tag="t", delivery_tag=1) + head
            else:
                head = method_frame(1, "basic.publish", routing_key="q") + head
            if who == "channel":
                head = method_frame(1, "basic.consume", queue="") + head
                head = method_frame(1, "queue.declare", queue="") + head
            socks = [taken_over(s) for s in (sessions if who == "client" else clients)]
            before, progress = peak(process), [[0] for _ in socks]
            pushing = [
                loop.create_task(push(sock, head, sent))
                for sock, sent in zip(socks, progress, strict=True)
            ]
            for sent in await asyncio.gather(*map(stalled, progress)):
                assert sent < SIZE / 4
            each = (peak(process) - before) / MANY
            for task in pushing:
                task.cancel()
            await asyncio.wait(pushing)
            assert MAX_OCTETS < each < EACH
            for sock in socks:
                sock.close()
            for client in clients:
                client.abort()


async def test_clients_that_do_not_log_in_cost_little(tmp_path: Path, fake: FakeBroker) -> None:
    """2,000 of them, each with as much of a frame sent as is taken before the login."""
    loop = asyncio.get_running_loop()
    partial = PROTOCOL_HEADER + frame(1, 0, bytes(8000))[:-1]
    async with child(tmp_path, fake) as (process, port):
        before = peak(process)
        socks: list[socket.socket] = []
        try:
            while len(socks) < HALF_OPEN:
                batch = [socket.create_connection((LOOPBACK, port)) for _ in range(100)]
                socks += batch  # fewer at once than the listener's backlog
                for sock in batch:
                    sock.setblocking(False)
                    sock.send(partial)
                for sock in batch:
                    assert (await loop.sock_recv(sock, 4096))[:4] == b"\x01\0\0\0"
            # 8 KiB of those are the client's own bytes.
            assert (peak(process) - before) / HALF_OPEN < 40 * 1024
            # They are in nobody's way.
            client = await Client.connect(port)
            await client.shake("alice", "alice")
            await client.close()
        finally:
            for sock in socks:
                sock.close()
