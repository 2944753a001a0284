"""A blocking AMQP client that costs next to nothing: it must never be what is measured.

Strategy: the handshake is a real one (SASL PLAIN, tune, open) with constant bytes; after it
the socket is used raw. ``blast`` sends one prepared chunk again and again, ``count`` lets the
kernel throw arriving bytes away and only adds up how many there were.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import zlib
from types import TracebackType
from typing import Self

from tests.bench import wire
from tests.bench.wire import BenchError

USER = "bench"
PASSWORD = "bench"
CIPHER = "TLS_AES_128_GCM_SHA256"
"""What every TLS route must speak: a ratio of two ciphers would say nothing about proxies."""
TIMEOUT = 30.0
"""Seconds of silence after which a measurement is given up."""

_SCRATCH = 4 * 1024 * 1024
_TUNE = struct.Struct(">HLH")
_NO_HEARTBEAT = 0


class RefusedError(BenchError):
    """The peer closed the channel or the connection; ``code`` and text are its own."""

    def __init__(self, scope: str, code: int, text: str) -> None:
        super().__init__(f"{scope} closed: {code} {text}")
        self.code = code


def start_ok(user: bytes, password: bytes) -> bytes:
    return wire.method(
        0,
        10,
        11,
        wire.table({"product": "bench", "capabilities": {"basic.nack": True}})
        + wire.short(b"PLAIN")
        + wire.long(b"\x00" + user + b"\x00" + password)
        + wire.short(b"en_US"),
    )


def tune_ok_open(tune: bytes) -> bytes:
    """The answer to the payload of a connection.tune, and the opening of the vhost ``/``."""
    channels, frame_max, _ = _TUNE.unpack_from(tune, 4)
    return wire.method(0, 10, 31, _TUNE.pack(channels, frame_max, _NO_HEARTBEAT)) + wire.method(
        0, 10, 40, wire.short(b"/") + b"\x00\x00"
    )


def close_request() -> bytes:
    return wire.method(0, 10, 50, struct.pack(">H", 200) + wire.short(b"") + b"\0\0\0\0")


def _encrypted(sock: socket.socket, tls: ssl.SSLContext) -> ssl.SSLSocket:
    wrapped = tls.wrap_socket(sock)
    found = wrapped.cipher()
    if found is None or found[0] != CIPHER:
        wrapped.close()
        raise BenchError(f"expected the cipher {CIPHER}, got {found}")
    return wrapped


class Client:
    """One logged-in connection. Raises BenchError, or OSError where the socket fails.

    tls: talk TLS, and only with the cipher CIPHER; then bytes cannot be counted.
    """

    timeout = TIMEOUT

    def __init__(
        self,
        port: int,
        user: str = USER,
        password: str = PASSWORD,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._inbox = bytearray()
        self._scratch = memoryview(b"")
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=self.timeout)
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self.sock = _encrypted(self.sock, tls)
            self.server_start = self._log_in(user.encode(), password.encode())
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        with self.sock:
            if error is None:
                self.close()

    def _log_in(self, user: bytes, password: bytes) -> bytes:
        self.sock.sendall(wire.HEADER)
        start = self._expect(10, 10)
        self.sock.sendall(start_ok(user, password))
        self.sock.sendall(tune_ok_open(self._expect(10, 30)))
        self._expect(10, 41)
        return start

    def close(self) -> None:
        """Say goodbye and wait for the answer; the socket stays for ``__exit__`` to close."""
        self.sock.sendall(close_request())
        self._expect(10, 51)

    def call(
        self, channel: int, class_id: int, method_id: int, arguments: bytes, *, reply: int
    ) -> bytes:
        """Send one method and wait for method ``reply`` of the same class; its arguments."""
        self.sock.sendall(wire.method(channel, class_id, method_id, arguments))
        return self._expect(class_id, reply)[4:]

    def _expect(self, class_id: int, method_id: int) -> bytes:
        while True:
            for kind, _, payload in wire.split(self._inbox):
                if kind == wire.HEARTBEAT:
                    continue
                ids = wire.method_ids(payload) if kind == wire.METHOD else None
                if ids == (class_id, method_id):
                    return payload
                if ids in {(10, 50), (20, 40)}:
                    scope = "connection" if ids == (10, 50) else "channel"
                    code = int.from_bytes(payload[4:6], "big")
                    text, _ = wire.read_short(payload, 6)
                    raise RefusedError(scope, code, text.decode("utf-8", "replace"))
                raise BenchError(f"expected method {class_id}.{method_id}, got frame {kind}, {ids}")
            received = self.sock.recv(65536)
            if not received:
                raise BenchError(f"peer gone while waiting for method {class_id}.{method_id}")
            self._inbox += received

    def open_channel(self, channel: int = 1) -> None:
        self.call(channel, 20, 10, b"\x00", reply=11)

    def declare_exchange(self, name: bytes = wire.EXCHANGE, kind: bytes = b"fanout") -> None:
        arguments = b"\0\0" + wire.short(name) + wire.short(kind) + b"\0" + wire.table({})
        self.call(1, 40, 10, arguments, reply=11)

    def declare_queue(
        self, name: bytes, *, exclusive: bool = False, arguments: dict[str, object] | None = None
    ) -> int:
        """Declare a queue; the message count that the broker answers."""
        bits = b"\x04" if exclusive else b"\x00"
        fields = b"\0\0" + wire.short(name) + bits + wire.table(arguments or {})
        answer = self.call(1, 50, 10, fields, reply=11)
        _, offset = wire.read_short(answer, 0)
        count: int = struct.unpack_from(">L", answer, offset)[0]
        return count

    def bind_queue(self, queue: bytes) -> None:
        names = wire.short(queue) + wire.short(wire.EXCHANGE) + wire.short(wire.ROUTING_KEY)
        self.call(1, 50, 20, b"\0\0" + names + b"\0" + wire.table({}), reply=21)

    def consume(self, queue: bytes, tag: bytes) -> None:
        """Start a consumer without acknowledgements; deliveries may follow at once."""
        arguments = b"\0\0" + wire.short(queue) + wire.short(tag) + b"\x02" + wire.table({})
        self.call(1, 60, 20, arguments, reply=21)

    def confirm_select(self) -> None:
        self.call(1, 85, 10, b"\0", reply=11)

    def blast(self, unit: bytes, count: int) -> None:
        """Send ``count`` copies of ``unit``; returns when the kernel has taken them all."""
        stream = wire.Stream(unit, count)
        while stream.left:
            stream.advance(self.sock.send(stream.pending()))

    def blast_confirmed(self, unit: bytes, count: int, confirms: int) -> None:
        """``blast`` while ``confirms`` bytes come back; returns when all of them have come."""
        failed: list[Exception] = []

        def read() -> None:
            try:
                self.count(confirms)
            except (BenchError, OSError) as error:
                failed.append(error)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        self.blast(unit, count)
        reader.join()
        if failed:
            raise BenchError(f"the confirms did not come: {failed[0]}")

    def count(self, total: int) -> None:
        """Wait until ``total`` bytes have arrived behind the last answer, and drop them."""
        left = total
        while left:
            left -= self.count_some(left)

    def take_buffered(self) -> bytearray:
        """What came behind the last answer: the caller's from now on."""
        taken, self._inbox = self._inbox, bytearray()
        return taken

    @property
    def buffered(self) -> int:
        """Bytes that came with an answer: the socket will not announce them again."""
        return len(self._inbox)

    def count_some(self, most: int) -> int:
        """Wait for bytes, drop ``most`` of them at most, and say how many it were."""
        taken = min(most, len(self._inbox))
        if taken:
            del self._inbox[:taken]
            return taken
        if not self._scratch:
            self._scratch = memoryview(bytearray(_SCRATCH))
        size = self.sock.recv_into(self._scratch, min(most, _SCRATCH), socket.MSG_TRUNC)
        if not size:
            raise BenchError(f"peer gone with {most} bytes still to come")
        return size

    def digest(self, total: int) -> int:
        """The CRC-32 of the next ``total`` bytes."""
        while len(self._inbox) < total:
            received = self.sock.recv(65536)
            if not received:
                raise BenchError(f"peer gone after {len(self._inbox)} of {total} bytes")
            self._inbox += received
        crc = zlib.crc32(memoryview(self._inbox)[:total])
        del self._inbox[:total]
        return crc
