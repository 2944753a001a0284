"""One socket, read into a buffer that all connections of the event loop share.

Strategy (DESIGN section 3): bytes land in one large buffer, the consumer walks them in place
and says how far it got; only what is left of an incomplete unit is copied to the connection.
An idle connection owns no buffer. That is sound because the loop calls ``get_buffer``, reads,
and calls ``buffer_updated`` without anything in between, for TCP and for TLS.

Before a consumer is set, bytes collect in a small inbox, which :meth:`Endpoint.receive` empties:
the handshakes are read that way.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

BUFFER_SIZE = 1024 * 1024
"""Bytes of one read at most. The fewer the reads and writes, the less a message costs: half of what
it does with 256 KiB (measured: tests/bench/README.md). Only pages that were used are resident."""
TURN = 2
"""Full buffers that one peer is read in one go, then the others have their turn. libuv reads 32
times while a peer sends as fast as it is read, and everybody else waits for those (measured:
tests/bench/README.md, fairness)."""
INBOX_LIMIT = 64 * 1024
"""Bytes that may wait unread during a handshake before reading stops."""
WRITE_HIGH, WRITE_LOW = 256 * 1024, 64 * 1024
"""Write buffer marks, in bytes: the other side is not read from between high and low. For a peer
that reads nothing more, up to WRITE_HIGH and what one read brings is kept."""

IOV_MAX = 1024
"""Pieces that one writev takes."""

LINGER = 5.0
"""Seconds that a peer has to read what was written before its socket was closed."""

_NOTHING = bytearray()
"""Nothing is left over. Never changed."""

Consumer = Callable[[bytearray, int, int], int]
"""Takes a buffer, a start and an end; answers up to which offset it is done."""


class SharedBuffer:
    """The receive buffer of one event loop."""

    __slots__ = ("data", "view")

    def __init__(self, size: int = BUFFER_SIZE) -> None:
        self.data = bytearray(size)
        self.view = memoryview(self.data)


class Endpoint(asyncio.BufferedProtocol):
    """One peer. ``on_lost`` and ``on_writable`` are set by whoever has taken the endpoint over.

    Reading stops for as long as any reason given to :meth:`hold` has not been released.
    held: is it not being read from? received, sent: bytes so far.

    Every wake-up passes through here, so what is due seldom stands in methods of its own, behind
    one look at an attribute (tests/bench/wake.py counts).
    """

    __slots__ = (
        "_at",
        "_buffer",
        "_consumer",
        "_fd",
        "_full",
        "_inbox",
        "_queued",
        "_reasons",
        "_shared",
        "_tail",
        "_waiter",
        "error",
        "held",
        "lost",
        "on_lost",
        "on_writable",
        "ready",
        "received",
        "sent",
        "transport",
        "writable",
    )

    def __init__(self, buffer: SharedBuffer, ready: Callable[[Endpoint], None] | None = None):
        self._buffer = self._shared = buffer
        self._tail = _NOTHING
        self._at = 0
        self._inbox = b""
        self._consumer: Consumer | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._fd = -1
        self._full = 0
        self._queued = False
        self._reasons = 0
        self.held = False
        self.ready = ready
        self.received = 0
        self.sent = 0
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # connection_made
        self.lost = False
        self.error: Exception | None = None
        self.writable = True
        self.on_lost: Callable[[Exception | None], None] | None = None
        self.on_writable: Callable[[bool], None] | None = None

    # --- called by the event loop ---

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH, low=WRITE_LOW)
        # INVARIANT: never the socket itself where TLS is on it, also if TLS began later (start_tls
        # calls this a second time): what is written there goes out unencrypted.
        self._fd = -1
        if transport.get_extra_info("sslcontext") is None:
            sock = transport.get_extra_info("socket")
            self._fd = -1 if sock is None else sock.fileno()
        if self.ready is not None:
            self.ready(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if not self._tail:
            return self._buffer.view
        n = len(self._tail) - self._at
        if n * 4 > len(self._buffer.data) * 3:
            # A single frame that outgrows the shared buffer (frame_max is that large).
            self._buffer = SharedBuffer(n * 4)
        self._buffer.view[:n] = memoryview(self._tail)[self._at :]
        return self._buffer.view[n:]

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        consumer = self._consumer
        if consumer is None:
            self._collect(nbytes)
            return
        data = self._buffer.data
        if self._tail:
            end = len(self._tail) - self._at + nbytes
            self._feed(data, 0, end)
        else:  # the same by the shortest way
            end = nbytes
            done = consumer(data, 0, end)
            if done < end:
                self._tail = data[done:end]
        if end == len(data):
            self._one_more_full()
        else:
            self._full = 0

    def _collect(self, nbytes: int) -> None:
        """Nobody takes the bytes yet."""
        self._inbox += self._buffer.view[:nbytes]
        if len(self._inbox) >= INBOX_LIMIT:
            self.hold(HOLD_INBOX)
        self._wake()

    def _one_more_full(self) -> None:
        """The peer sends as fast as it is read."""
        self._full += 1
        if self._full >= TURN:
            self._full = 0
            self.hold(HOLD_TURN)
            asyncio.get_running_loop().call_soon(self.release, HOLD_TURN)

    def eof_received(self) -> bool:
        # Closed here, not by the transport, which would wait for ever for a peer that ends its
        # side and does not read what was written.
        self.close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._fd = -1
        self.error = exc
        self._wake()
        if self.on_lost is not None:
            self.on_lost(exc)
        self.on_lost = self.on_writable = self._consumer = None

    def pause_writing(self) -> None:
        self.writable = False
        if self.on_writable is not None:
            self.on_writable(False)

    def resume_writing(self) -> None:
        self.writable = True
        if self.on_writable is not None:
            self.on_writable(True)

    # --- handshake: read by hand ---

    async def receive(self) -> bytes:
        """The bytes that have come, at least one; ``b""`` once the peer is gone."""
        while not self._inbox:
            if self.lost:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data, self._inbox = self._inbox, b""
        self.release(HOLD_INBOX)
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- session: consumed in place ---

    def consume(self, consumer: Consumer, first: bytes) -> None:
        """From now on ``consumer`` takes the bytes; ``first`` are those already read."""
        self._consumer = consumer
        data, self._inbox = first + self._inbox, b""
        self.release(HOLD_INBOX)
        if data:
            self._tail = bytearray(data)
            self.refeed()

    def refeed(self) -> None:
        """Offer what was left over again, be it nothing (an answer has come)."""
        if not self.lost:
            self._feed(self._tail, self._at, len(self._tail))

    def _feed(self, data: bytearray, pos: int, end: int) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        tail, self._tail, self._at = self._tail, _NOTHING, 0
        done = consumer(data, pos, end)
        if done < end:
            if data is tail:
                # What is left stays where it is: it may be offered in many small turns.
                self._tail, self._at = tail, done
            else:
                self._tail = data[done:end]
        else:
            self._buffer = self._shared

    def hold(self, reason: int) -> None:
        """Stop reading, for ``reason`` (one of the HOLD constants)."""
        self._reasons |= reason
        if not self.held and not self.lost:
            self.held = True
            self.transport.pause_reading()

    def release(self, reason: int) -> None:
        if self._reasons & reason:
            self._reasons &= ~reason
            if not self._reasons and self.held and not self.lost:
                self.held = False
                self.transport.resume_reading()

    def send(self, chunks: list[bytes | bytearray | memoryview]) -> None:
        """Write the chunks, in order, and clear the list; they may be views that change later.

        On plain TCP with nothing queued they go straight to the socket, uncopied; the transport
        gets (a copy of) what the socket does not take, and everything else.
        """
        if self.lost or self.transport.is_closing():
            chunks.clear()
            return
        single = len(chunks) == 1
        sent = 0
        if self._fd >= 0 and not (self._queued and self._waits()):
            try:
                if single:
                    sent = os.write(self._fd, chunks[0])
                else:
                    sent = os.writev(self._fd, chunks[:IOV_MAX])
            except OSError:
                pass  # it takes nothing now, or the transport will meet the error and report it
        size = len(chunks[0]) if single else sum(map(len, chunks))
        self.sent += size
        if sent < size:
            self._queued = True
            self.transport.write(bytes(chunks[0][sent:]) if single else b"".join(chunks)[sent:])
        chunks.clear()

    def _waits(self) -> bool:
        """Is something still queued in the transport?"""
        self._queued = self.transport.get_write_buffer_size() > 0
        return self._queued

    def write(self, data: bytes) -> None:
        """Send ``data``; nothing at all where the connection is lost (the loop would raise)."""
        self.send([data])

    def close(self, linger: float | None = None) -> None:
        """Close when what is written has gone out, or by force after ``linger`` seconds."""
        if self.lost or self.transport.is_closing():
            return
        self.transport.close()
        asyncio.get_running_loop().call_later(LINGER if linger is None else linger, self.abort)

    def abort(self) -> None:
        if not self.lost:
            self.transport.abort()


HOLD_INBOX = 1
HOLD_STALLED = 2  # the next frame waits for an answer
HOLD_PRESSURE = 4  # the other side takes no more
HOLD_CLOSED = 8  # nothing more will be read
HOLD_UNREAD = 16  # the peer does not read the gate's own answers
HOLD_TURN = 32  # the others first
