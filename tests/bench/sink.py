"""A broker that only shakes hands: ``python -m tests.bench.sink --port PORT``.

Strategy: one thread, one epoll set. A connection is parsed frame by frame until it asks, by a
name, for one of four things; then its bytes are no longer looked at:

* ``queue.declare "discard:N"``: the next N bytes are thrown away inside the kernel
  (MSG_TRUNC), not even copied. After them frames are parsed again, so the answer to the
  method that the client sends behind them proves that every byte came through.
* ``queue.declare "confirm:N:SIZE:EVERY"``: the same, and for every EVERY messages of SIZE bytes
  among them one basic.ack of all so far goes back on the channel.
* ``queue.declare "digest:N"``: the same, but the bytes are read and their CRC-32 comes back
  as the message count of the next declare-ok.
* ``basic.consume`` with the consumer tag ``flood:N:SIZE``: N deliveries of SIZE bytes.

Anybody may log in. A method that is not in the table ends the process: a yardstick that
guesses is worse than none.
"""

from __future__ import annotations

import argparse
import contextlib
import selectors
import socket
import struct
import zlib

from tests.bench import wire
from tests.bench.wire import BenchError

_READ = 4 * 1024 * 1024
_TURN = 4
"""Reads in one turn of a connection: the others come to their turn, however fast it sends."""
_START = wire.method(
    0,
    10,
    10,
    b"\x00\x09"
    + wire.table(
        {
            "capabilities": {
                "publisher_confirms": True,
                "exchange_exchange_bindings": True,
                "basic.nack": True,
                "consumer_cancel_notify": True,
                "connection.blocked": True,
                "consumer_priorities": True,
                "authentication_failure_close": True,
                "per_consumer_qos": True,
                "direct_reply_to": True,
            },
            "cluster_name": "sink@localhost",
            "platform": "Python",
            "product": "RabbitMQ",
            "version": "3.10.8",
        }
    )
    + wire.long(b"AMQPLAIN PLAIN")
    + wire.long(b"en_US"),
)
_TUNE = wire.method(0, 10, 30, struct.pack(">HLH", 2047, 131072, 60))

# What is answered without looking at the arguments: (class, method) -> (reply, arguments).
# None: no answer is due.
_ANSWERS: dict[tuple[int, int], tuple[int, bytes] | None] = {
    (10, 31): None,  # tune-ok
    (10, 40): (41, b"\x00"),  # open
    (10, 70): (71, b""),  # update-secret
    (20, 10): (11, wire.long(b"")),  # channel.open
    (20, 20): (21, b"\x01"),  # channel.flow
    (20, 40): (41, b""),  # channel.close
    (20, 41): None,  # channel.close-ok
    (40, 20): (21, b""),  # exchange.delete
    (50, 20): (21, b""),  # queue.bind
    (50, 40): (41, b"\x00\x00\x00\x00"),  # queue.delete
    (60, 10): (11, b""),  # basic.qos
    (60, 40): None,  # basic.publish
    (60, 70): (72, wire.short(b"")),  # basic.get: there is nothing
    (60, 80): None,  # basic.ack
    (85, 10): (11, b""),  # confirm.select
}


class _Peer:
    """One connection: what it sent and is not parsed yet, what it is owed, and its mode."""

    __slots__ = (
        "acked",
        "channel",
        "closing",
        "crc",
        "digest",
        "discard",
        "each",
        "every",
        "flood",
        "greeted",
        "inbox",
        "outbox",
        "sock",
        "taken",
    )

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.greeted = False
        self.closing = False
        self.discard = 0  # bytes still to throw away before frames are parsed again
        self.digest = False
        self.crc = 0
        self.every = 0  # messages that one ack confirms; 0: none are due
        self.each = 0  # bytes of one message
        self.channel = 0
        self.taken = 0  # bytes of messages that are to be confirmed, so far
        self.acked = 0  # acks sent for them
        self.flood: wire.Stream | None = None


class Sink:
    """The event loop. ``serve`` returns only by an exception."""

    def __init__(self, port: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._buffer = memoryview(bytearray(_READ))
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def serve(self) -> None:
        while True:
            for key, events in self._selector.select():
                peer: _Peer | None = key.data
                if peer is None:
                    self._accept()
                    continue
                try:
                    self._turn(peer, events)
                except (ConnectionError, TimeoutError):
                    self._drop(peer)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._selector.register(sock, selectors.EVENT_READ, _Peer(sock))

    def _drop(self, peer: _Peer) -> None:
        self._selector.unregister(peer.sock)
        peer.sock.close()

    def _turn(self, peer: _Peer, events: int) -> None:
        if events & selectors.EVENT_READ and not self._read(peer):
            self._drop(peer)
            return
        drained = self._write(peer)
        if drained and peer.closing:
            self._drop(peer)
            return
        wanted = selectors.EVENT_READ if drained else selectors.EVENT_READ | selectors.EVENT_WRITE
        if self._selector.get_key(peer.sock).events != wanted:
            self._selector.modify(peer.sock, wanted, peer)

    def _read(self, peer: _Peer) -> bool:
        """Read what is there; False once the peer has gone."""
        for _ in range(_TURN):
            if not peer.discard or peer.digest:
                break
            try:
                count = peer.sock.recv_into(
                    self._buffer, min(peer.discard, _READ), socket.MSG_TRUNC
                )
            except BlockingIOError:
                return True
            if not count:
                return False
            self._took(peer, count)
        else:
            return True
        try:
            count = peer.sock.recv_into(self._buffer)
        except BlockingIOError:
            return True
        if not count:
            return False
        peer.inbox += self._buffer[:count]
        self._parse(peer)
        return True

    def _parse(self, peer: _Peer) -> None:
        if not peer.greeted:
            if len(peer.inbox) < len(wire.HEADER):
                return
            if not peer.inbox.startswith(wire.HEADER):
                raise BenchError(f"sink: no protocol header: {bytes(peer.inbox[:8])!r}")
            del peer.inbox[: len(wire.HEADER)]
            peer.greeted = True
            peer.outbox += _START
        while True:
            self._skip(peer)
            if peer.discard:
                return
            item = next(wire.split(peer.inbox), None)
            if item is None:
                return
            kind, channel, payload = item
            if kind == wire.METHOD:
                self._method(peer, channel, payload)

    def _skip(self, peer: _Peer) -> None:
        """Throw away what is to be discarded and has been read already."""
        count = min(peer.discard, len(peer.inbox))
        if count:
            if peer.digest:
                peer.crc = zlib.crc32(memoryview(peer.inbox)[:count], peer.crc)
            del peer.inbox[:count]
            self._took(peer, count)

    def _took(self, peer: _Peer, count: int) -> None:
        peer.discard -= count
        if not peer.every:
            return
        peer.taken += count
        due = peer.taken // (peer.each * peer.every)
        while peer.acked < due:
            peer.acked += 1
            peer.outbox += wire.ack(peer.channel, peer.acked * peer.every, multiple=True)

    def _method(self, peer: _Peer, channel: int, payload: bytes) -> None:
        ids = wire.method_ids(payload)
        class_id, method_id = ids
        match ids:
            case (10, 11):  # start-ok
                peer.outbox += _TUNE
            case (10, 50):  # connection.close
                peer.outbox += wire.method(0, 10, 51)
                peer.closing = True
            case (10, 51):  # connection.close-ok
                peer.closing = True
            case (40, 10):  # exchange.declare
                _, offset = wire.read_short(payload, 6)
                _, offset = wire.read_short(payload, offset)
                if not payload[offset] & 0b10000:
                    peer.outbox += wire.method(channel, 40, 11)
            case (50, 10):
                self._queue_declare(peer, channel, payload)
            case (60, 20):
                self._consume(peer, channel, payload)
            case (60, 30):  # basic.cancel
                tag, _ = wire.read_short(payload, 4)
                peer.outbox += wire.method(channel, 60, 31, wire.short(tag))
            case _:
                if ids not in _ANSWERS:
                    raise BenchError(f"sink: no answer to method {class_id}.{method_id}")
                answer = _ANSWERS[ids]
                if answer is not None:
                    peer.outbox += wire.method(channel, class_id, *answer)

    def _queue_declare(self, peer: _Peer, channel: int, payload: bytes) -> None:
        name, offset = wire.read_short(payload, 6)
        if not payload[offset] & 0b10000:
            counts = struct.pack(">LL", peer.crc, 0)
            peer.outbox += wire.method(channel, 50, 11, wire.short(name) + counts)
        verb, *amounts = name.split(b":")
        if verb in {b"discard", b"digest", b"confirm"}:
            peer.discard = int(amounts[0])
            peer.digest = verb == b"digest"
            peer.crc = peer.every = 0
        if verb == b"confirm":
            peer.each, peer.every = int(amounts[1]), int(amounts[2])
            peer.channel, peer.taken, peer.acked = channel, 0, 0

    def _consume(self, peer: _Peer, channel: int, payload: bytes) -> None:
        _, offset = wire.read_short(payload, 6)
        tag, offset = wire.read_short(payload, offset)
        if not payload[offset] & 0b1000:
            peer.outbox += wire.method(channel, 60, 21, wire.short(tag))
        verb, *amounts = tag.split(b":")
        if verb == b"flood":
            count, size = map(int, amounts)
            peer.flood = wire.Stream(wire.deliver(channel, tag, size), count)

    def _write(self, peer: _Peer) -> bool:
        """Send what is owed; True when nothing is left."""
        try:
            while peer.outbox:
                del peer.outbox[: peer.sock.send(peer.outbox)]
            flood = peer.flood
            while flood is not None and flood.left:
                flood.advance(peer.sock.send(flood.pending()))
        except BlockingIOError:
            return False
        peer.flood = None
        return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sink")
    parser.add_argument("--port", type=int, required=True)
    Sink(parser.parse_args().port).serve()


if __name__ == "__main__":
    main()
