"""Endpoints on real sockets: one buffer for all of them, and none sees another's bytes.

The consumer in these tests takes records, a length of four octets and that many more, so an
incomplete record is what an incomplete frame is to the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gatekeeper.server import endpoint as module
from gatekeeper.server.endpoint import (
    BUFFER_SIZE,
    HOLD_CLOSED,
    HOLD_INBOX,
    HOLD_PRESSURE,
    HOLD_STALLED,
    INBOX_LIMIT,
    WRITE_HIGH,
    WRITE_LOW,
    Endpoint,
    SharedBuffer,
)

Make = Callable[[], Awaitable[tuple[Endpoint, socket.socket]]]


@pytest.fixture
def shared() -> SharedBuffer:
    return SharedBuffer()


@pytest.fixture
async def make(shared: SharedBuffer) -> AsyncIterator[Make]:
    """Makes an endpoint and the (non-blocking) socket of its peer."""
    made: list[tuple[Endpoint, socket.socket]] = []

    async def pair() -> tuple[Endpoint, socket.socket]:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        for sock in (near, far):
            sock.setblocking(False)
        _, endpoint = await loop.connect_accepted_socket(lambda: Endpoint(shared), near)
        made.append((endpoint, far))
        return endpoint, far

    yield pair
    for endpoint, far in made:
        endpoint.abort()
        far.close()
    await asyncio.sleep(0)


class Records:
    """A consumer. wait: records to leave until it is allowed to take them."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.calls = 0
        self.open = True

    def __call__(self, buf: bytearray, pos: int, end: int) -> int:
        self.calls += 1
        while self.open and end - pos >= 4:
            past = pos + 4 + int.from_bytes(buf[pos : pos + 4], "big")
            if past > end:
                break
            self.taken.append(bytes(buf[pos + 4 : past]))
            pos = past
        return pos


def record(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


# --- the handshake's way of reading ---


async def test_receive_gives_what_came_and_then_the_end(make: Make) -> None:
    endpoint, peer = await make()
    peer.send(b"one")
    assert await endpoint.receive() == b"one"
    waiting = asyncio.get_running_loop().create_task(endpoint.receive())
    await asyncio.sleep(0)
    peer.send(b"two")
    assert await waiting == b"two"
    peer.send(b"three")
    await asyncio.sleep(0.02)
    peer.close()
    await until(lambda: endpoint.lost)
    assert await endpoint.receive() == b"three"
    assert await endpoint.receive() == b""
    assert await endpoint.receive() == b""


async def test_an_unread_handshake_is_bounded(make: Make) -> None:
    endpoint, peer = await make()
    loop = asyncio.get_running_loop()
    flood = loop.create_task(loop.sock_sendall(peer, bytes(8 << 20)))
    await until(lambda: endpoint.held)
    await asyncio.sleep(0.05)
    got = len(await endpoint.receive())
    assert INBOX_LIMIT <= got <= INBOX_LIMIT + BUFFER_SIZE
    while got < 8 << 20:
        got += len(await endpoint.receive())
    await flood
    assert got == 8 << 20


async def test_what_the_handshake_read_comes_first(make: Make) -> None:
    endpoint, peer = await make()
    whole = b"".join(record(bytes([n]) * 9) for n in range(5))
    peer.send(whole[7:20])
    await until(lambda: bool(endpoint._inbox))
    records = Records()
    endpoint.consume(records, whole[:7])
    assert records.taken == [b"\0" * 9]
    peer.send(whole[20:])
    await until(lambda: len(records.taken) == 5)
    assert b"".join(map(record, records.taken)) == whole


async def test_a_full_inbox_does_not_stop_the_session(make: Make) -> None:
    endpoint, peer = await make()
    loop = asyncio.get_running_loop()
    data = record(bytes(1000)) * 400
    sending = loop.create_task(loop.sock_sendall(peer, data))
    await until(lambda: endpoint.held)
    records = Records()
    endpoint.consume(records, b"")
    await sending
    await until(lambda: len(records.taken) == 400)
    assert not endpoint.held


# --- the shared buffer ---


async def test_interleaved_connections_never_see_each_others_bytes(
    make: Make, shared: SharedBuffer
) -> None:
    choose = random.Random(7)
    loop = asyncio.get_running_loop()
    ends = [await make() for _ in range(6)]
    consumers = [Records() for _ in ends]
    expected: list[list[bytes]] = []

    async def talk(index: int, peer: socket.socket) -> None:
        mine = [
            bytes([65 + index]) * choose.choice((0, 1, 7, 500, 70_000, 300_000)) for _ in range(25)
        ]
        expected.append(mine)
        data = b"".join(map(record, mine))
        at = 0
        while at < len(data):
            step = choose.choice((1, 3, 1000, 65_536, 200_000))
            await loop.sock_sendall(peer, data[at : at + step])
            at += step
            await asyncio.sleep(0)

    for (endpoint, _), consumer in zip(ends, consumers, strict=True):
        endpoint.consume(consumer, b"")
    async with asyncio.TaskGroup() as group:
        for index, (_, peer) in enumerate(ends):
            group.create_task(talk(index, peer))
    await until(lambda: all(len(each.taken) == 25 for each in consumers))
    for consumer, mine in zip(consumers, expected, strict=True):
        assert consumer.taken == mine
    for endpoint, _ in ends:
        assert not endpoint._tail
        assert endpoint._buffer is shared


async def test_a_frame_larger_than_the_shared_buffer(make: Make, shared: SharedBuffer) -> None:
    """It gets a buffer of its own, a few times its size at most, and gives it back."""
    endpoint, peer = await make()
    loop = asyncio.get_running_loop()
    records = Records()
    endpoint.consume(records, b"")
    large = random.Random(1).randbytes(2 * BUFFER_SIZE)
    data = record(b"before") + record(large) + record(b"after")
    await loop.sock_sendall(peer, data[:-40])
    await until(lambda: len(endpoint._tail) > BUFFER_SIZE)
    private = endpoint._buffer
    assert private is not shared
    assert len(private.data) <= 4 * len(large)
    await loop.sock_sendall(peer, data[-40:])
    await until(lambda: len(records.taken) == 3)
    assert records.taken == [b"before", large, b"after"]
    assert endpoint._buffer is shared
    assert len(shared.data) == BUFFER_SIZE


async def test_a_large_tail_is_offered_again_whole(make: Make) -> None:
    """What waits for an answer may be larger than the shared buffer."""
    endpoint, _ = await make()
    records = Records()
    records.open = False
    data = record(bytes(BUFFER_SIZE + 50_000)) + record(b"x")
    endpoint.consume(records, data)
    assert not records.taken
    records.open = True
    endpoint.refeed()
    assert records.taken == [bytes(BUFFER_SIZE + 50_000), b"x"]
    calls = records.calls
    endpoint.refeed()  # nothing left: the consumer may have kept something back itself
    assert records.calls == calls + 1
    assert len(records.taken) == 2


async def test_what_is_left_over_is_not_copied_for_every_turn(make: Make) -> None:
    """A consumer may take a megabyte in many small turns; what comes then follows the rest."""
    endpoint, peer = await make()
    buffers: list[int] = []
    taken = bytearray()

    def some(buf: bytearray, pos: int, end: int) -> int:
        buffers.append(id(buf))
        past = min(pos + 10, end)
        taken.extend(buf[pos:past])
        return past

    data = random.Random(2).randbytes(100)
    endpoint.consume(some, data)
    for _ in range(5):
        endpoint.refeed()
    assert taken == data[:60]
    assert len(set(buffers)) == 1
    await asyncio.get_running_loop().sock_sendall(peer, b"more")
    await until(lambda: len(taken) > 60)
    while len(taken) < 104:
        endpoint.refeed()
    assert taken == data + b"more"


# --- holding ---


async def test_reading_stops_until_the_last_reason_is_gone(make: Make) -> None:
    endpoint, peer = await make()
    records = Records()
    endpoint.consume(records, b"")
    endpoint.hold(HOLD_STALLED)
    endpoint.hold(HOLD_PRESSURE)
    endpoint.hold(HOLD_PRESSURE)
    peer.send(record(b"a"))
    for reason in (HOLD_PRESSURE, HOLD_CLOSED, HOLD_INBOX):
        endpoint.release(reason)
    await asyncio.sleep(0.03)
    assert endpoint.held
    assert not records.taken
    endpoint.release(HOLD_STALLED)
    assert not endpoint.held
    await until(lambda: records.taken == [b"a"])


async def test_after_the_loss_everything_is_harmless(make: Make) -> None:
    endpoint, peer = await make()
    lost: list[Exception | None] = []
    endpoint.on_lost = lost.append
    endpoint.consume(Records(), b"")
    endpoint.hold(HOLD_STALLED)
    endpoint.release(HOLD_STALLED)
    peer.close()
    await until(lambda: endpoint.lost)
    assert lost == [None]
    endpoint.hold(HOLD_PRESSURE)
    endpoint.release(HOLD_PRESSURE)
    chunks: list[bytes | memoryview] = [b"too", b"late"]
    endpoint.send(chunks)
    assert not chunks
    endpoint.refeed()
    endpoint.close()
    endpoint.abort()


async def test_between_close_and_loss_everything_is_harmless(make: Make) -> None:
    for ending in ("close", "abort"):
        endpoint, _ = await make()
        endpoint.consume(Records(), b"")
        getattr(endpoint, ending)()
        assert not endpoint.lost
        chunks: list[bytes | memoryview] = [b"too late"]
        endpoint.send(chunks)
        assert not chunks
        endpoint.hold(HOLD_CLOSED)
        endpoint.release(HOLD_CLOSED)
        endpoint.close()
        endpoint.abort()
        await until(lambda endpoint=endpoint: endpoint.lost)  # type: ignore[misc]


# --- writing ---


async def test_the_other_side_is_told_between_the_marks(make: Make) -> None:
    """A peer that does not read: told above the high mark, and again below the low one."""
    endpoint, peer = await make()
    loop = asyncio.get_running_loop()
    told: list[tuple[bool, int]] = []
    endpoint.on_writable = lambda yes: told.append(
        (yes, endpoint.transport.get_write_buffer_size())
    )
    choose = random.Random(3)
    sent = bytearray()
    while not told:
        pieces: list[bytes | memoryview] = []
        for _ in range(choose.randint(1, 5)):
            piece = choose.randbytes(choose.choice((1, 100, 30_000)))
            # A view of memory that is written over later, as the shared buffer is.
            pieces.append(memoryview(bytearray(piece)) if choose.random() < 0.5 else piece)
            sent += piece
        views = [piece for piece in pieces if isinstance(piece, memoryview)]
        endpoint.send(pieces)
        for view in views:
            view[:] = bytes(len(view))
        await asyncio.sleep(0)
    assert told[0][0] is False
    assert WRITE_HIGH < told[0][1] < WRITE_HIGH + 200_000
    assert not endpoint.writable
    got = bytearray()
    while len(got) < len(sent):
        got += await loop.sock_recv(peer, 1 << 16)
    assert got == sent
    await until(lambda: len(told) == 2)
    assert told[1][0] is True
    assert told[1][1] <= WRITE_LOW
    assert endpoint.writable


async def test_nothing_overtakes_what_is_queued(make: Make) -> None:
    """The peer has made room and the loop has not turned: the socket would take the next bytes."""
    endpoint, peer = await make()
    piece = random.Random(4).randbytes(WRITE_HIGH)
    sent = bytearray()
    while not endpoint.transport.get_write_buffer_size():
        endpoint.send([piece])
        sent += piece
    got = bytearray()
    with contextlib.suppress(BlockingIOError):
        while True:  # no await: the transport cannot act on it
            got += peer.recv(1 << 16)
    endpoint.send([b"after"])
    sent += b"after"
    while len(got) < len(sent):
        got += await asyncio.get_running_loop().sock_recv(peer, 1 << 16)
    assert got == sent
    # And once all is written the way is straight again.
    await until(lambda: not endpoint.transport.get_write_buffer_size())
    endpoint.send([b"straight"])
    assert not endpoint.transport.get_write_buffer_size()
    assert peer.recv(100) == b"straight"


async def test_close_sends_what_is_written_or_gives_up(make: Make) -> None:
    loop = asyncio.get_running_loop()
    endpoint, peer = await make()
    endpoint.send([b"goodbye"])
    endpoint.close()
    assert await loop.sock_recv(peer, 100) == b"goodbye"
    assert await loop.sock_recv(peer, 100) == b""
    # One that does not read is given its time, and no more.
    endpoint, peer = await make()
    endpoint.transport.write(bytes(16 << 20))
    started = loop.time()
    endpoint.close(0.3)
    await until(lambda: endpoint.lost)
    assert 0.25 < loop.time() - started < 1.5


async def test_a_peer_that_ends_its_side_and_does_not_read(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.LINGER == 5.0
    monkeypatch.setattr(module, "LINGER", 0.3)
    endpoint, peer = await make()
    endpoint.transport.write(bytes(16 << 20))
    await asyncio.sleep(0.05)
    peer.shutdown(socket.SHUT_WR)
    await until(lambda: endpoint.lost)
