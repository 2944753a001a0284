"""Both ends of the gate for tests inside its event loop: a client, and a broker that misbehaves.

Bytes are made and read by tests.support.amqp_codec, which is independent of the package. The
fake broker answers like a broker until a test replaces one of its hooks; it keeps every method
that it was sent, so that a test can say what must never have reached a broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

from tests.support.amqp import CAPABILITIES, LostError, RefusedError
from tests.support.amqp_codec import (
    BODY,
    CONTENT_METHODS,
    FRAME_END,
    HEADER,
    HEARTBEAT,
    METHOD,
    PROTOCOL_HEADER,
    Method,
    decode_header,
    decode_method,
    method_frame,
    publish_frames,
)
from tests.support.process import LOOPBACK

PATIENCE = 10.0
"""Seconds within which anything that a test waits for must have come."""


class Talker:
    """One end of an AMQP connection over asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.raw = bytearray()
        """Everything that was read, as it came."""

    async def exactly(self, count: int) -> bytes:
        """LostError at the end of the stream."""
        try:
            data = await self.reader.readexactly(count)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if isinstance(error, asyncio.IncompleteReadError):
                self.raw += error.partial
            raise LostError(str(error)) from error
        self.raw += data
        return data

    async def frame(self) -> tuple[int, int, bytes]:
        """Type, channel, payload."""
        async with asyncio.timeout(PATIENCE):
            kind, channel, size = struct.unpack(">BHI", await self.exactly(7))
            payload = await self.exactly(size)
            end = await self.exactly(1)
        assert end[0] == FRAME_END
        return kind, channel, payload

    async def read(self) -> tuple[int, Method]:
        """The next whole method and its channel; heartbeats are passed over.

        A content must come in one piece: no test here interleaves channels.
        """
        while True:
            kind, channel, payload = await self.frame()
            if kind == HEARTBEAT:
                continue
            assert kind == METHOD, f"frame of type {kind}"
            method = decode_method(payload)
            if method.name not in CONTENT_METHODS:
                return channel, method
            kind, _, payload = await self.frame()
            assert kind == HEADER
            size, properties = decode_header(payload)
            body = bytearray()
            while len(body) < size:
                kind, _, payload = await self.frame()
                assert kind == BODY
                body += payload
            return channel, Method(method.name, method.arguments, properties, bytes(body))

    async def expect(self, name: str, channel: int = 0) -> Method:
        """The next method, which must be this one; RefusedError on connection.close."""
        got, method = await self.read()
        if method.name == "connection.close" != name:
            raise RefusedError(method)
        assert (got, method.name) == (channel, name), f"{method} on {got}"
        return method

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def send(self, channel: int, name: str, **arguments: Any) -> None:
        self.writer.write(method_frame(channel, name, **arguments))

    async def at_eof(self, within: float = PATIENCE) -> float:
        """Wait for the end of the TCP connection; the seconds that took. TimeoutError."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.timeout(within):
            with contextlib.suppress(ConnectionError):
                while data := await self.reader.read(1 << 16):
                    self.raw += data
        return loop.time() - started

    def abort(self) -> None:
        self.writer.transport.abort()


class Client(Talker):
    @classmethod
    async def connect(
        cls,
        port: int,
        *,
        host: str = LOOPBACK,
        tls: ssl.SSLContext | None = None,
        first: bytes = b"",
        source: str | None = None,
    ) -> Self:
        """A TCP or TLS connection. first: sent ahead of everything, TLS included."""
        sock = socket.create_connection(
            (host, port), source_address=None if source is None else (source, 0)
        )
        sock.sendall(first)
        sock.setblocking(False)
        name = host if tls is not None else None
        return cls(*await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name))

    async def greet(self) -> Method:
        """Protocol header out, connection.start in."""
        self.write(PROTOCOL_HEADER)
        return await self.expect("connection.start")

    def start_ok(
        self, username: str, password: str, properties: Mapping[Any, Any] | None = None
    ) -> None:
        if properties is None:
            properties = {"product": "test", "capabilities": CAPABILITIES}
        self.send(
            0,
            "connection.start-ok",
            client_properties=properties,
            mechanism="PLAIN",
            response=f"\0{username}\0{password}".encode(),
            locale="en_US",
        )

    async def shake(
        self,
        username: str,
        password: str,
        vhost: bytes | str = b"/",
        *,
        properties: Mapping[Any, Any] | None = None,
        heartbeat: int = 0,
        frame_max: int | None = None,
        channel_max: int | None = None,
    ) -> None:
        await self.greet()
        self.start_ok(username, password, properties)
        tune = await self.expect("connection.tune")
        self.send(
            0,
            "connection.tune-ok",
            channel_max=tune["channel_max"] if channel_max is None else channel_max,
            frame_max=tune["frame_max"] if frame_max is None else frame_max,
            heartbeat=heartbeat,
        )
        self.send(0, "connection.open", virtual_host=vhost)
        await self.expect("connection.open-ok")

    async def open_channel(self, channel: int = 1) -> None:
        self.send(channel, "channel.open")
        await self.expect("channel.open-ok", channel)

    def publish(
        self, channel: int, exchange: bytes, key: bytes, body: bytes = b"x", **more: Any
    ) -> None:
        self.write(publish_frames(channel, exchange, key, body, **more))

    async def call(self, channel: int, name: str, **arguments: Any) -> Method:
        """Send a method; the next that comes on its channel or on channel 0."""
        self.send(channel, name, **arguments)
        while True:
            got, method = await self.read()
            if got in {0, channel}:
                return method

    async def closed(self) -> Method:
        """The connection.close that must come next, answered."""
        method = await self.expect("connection.close")
        self.send(0, "connection.close-ok")
        return method

    async def close(self) -> None:
        """Politely, reading past everything else."""
        with contextlib.suppress(LostError):
            self.send(0, "connection.close", reply_code=200, reply_text=b"bye")
            while (await self.read())[1].name not in {"connection.close-ok", "connection.close"}:
                pass
        self.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.close()
        self.abort()


_REPLIES: dict[str, tuple[str, dict[str, Any]]] = {
    "channel.open": ("channel.open-ok", {}),
    "channel.close": ("channel.close-ok", {}),
    "exchange.declare": ("exchange.declare-ok", {}),
    "exchange.delete": ("exchange.delete-ok", {}),
    "queue.bind": ("queue.bind-ok", {}),
    "queue.purge": ("queue.purge-ok", {}),
    "basic.qos": ("basic.qos-ok", {}),
    "basic.get": ("basic.get-empty", {}),
    "connection.close": ("connection.close-ok", {}),
}


class BrokerSession(Talker):
    """One connection that the gate has made to the fake broker."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, broker: FakeBroker
    ) -> None:
        super().__init__(reader, writer)
        self.broker = broker
        self.properties: Mapping[bytes, Any] = {}
        self.methods: list[tuple[int, Method]] = []
        self.opened = asyncio.Event()
        self.ended = asyncio.Event()

    @property
    def purpose(self) -> bytes | None:
        """Of a connection of the gate's own; None where a client is behind it."""
        own = self.properties.get(b"gatekeeper", {})
        purpose: bytes | None = own.get(b"purpose")
        return purpose

    @property
    def names(self) -> list[str]:
        return [method.name for _, method in self.methods]

    async def read(self) -> tuple[int, Method]:
        channel, method = await super().read()
        self.methods.append((channel, method))
        return channel, method

    async def greet(self) -> None:
        """Up to start-ok."""
        assert await self.exactly(8) == PROTOCOL_HEADER
        self.send(
            0,
            "connection.start",
            version_minor=9,
            server_properties=self.broker.server_properties,
            mechanisms=b"AMQPLAIN PLAIN",
            locales=b"en_US",
        )
        start_ok = await self.expect("connection.start-ok")
        self.properties = start_ok["client_properties"]

    async def tune(self) -> None:
        """From connection.tune to connection.open, which stays unanswered."""
        channel_max, frame_max, heartbeat = self.broker.limits
        self.send(
            0,
            "connection.tune",
            channel_max=channel_max,
            frame_max=frame_max,
            heartbeat=heartbeat,
        )
        await self.expect("connection.tune-ok")
        await self.expect("connection.open")

    async def accept(self) -> None:
        await self.tune()
        self.send(0, "connection.open-ok")
        self.opened.set()

    async def refuse(self, code: int, text: bytes) -> None:
        self.send(0, "connection.close", reply_code=code, reply_text=text)
        while (await self.read())[1].name != "connection.close-ok":
            pass  # what was sent before the refusal was read

    async def serve(self) -> None:
        """Answer what a broker would, until either side closes."""
        while True:
            try:
                async with asyncio.timeout(None):
                    channel, method = await self.read()
            except TimeoutError:
                continue
            if method.name == "queue.declare":
                name = method["queue"] or b"amq.gen-fake"
                self.send(channel, "queue.declare-ok", queue=name)
            elif method.name in {"basic.consume", "basic.cancel"} and not method["nowait"]:
                # No queue here ever has a message.
                self.send(channel, f"{method.name}-ok", consumer_tag=method["consumer_tag"])
            elif method.name in _REPLIES:
                reply, arguments = _REPLIES[method.name]
                self.send(channel, reply, **arguments)
            if method.name in {"connection.close", "connection.close-ok"}:
                return

    async def never(self) -> None:
        """Neither read nor write again, and stay."""
        await self.broker.over.wait()


Hook = Callable[[BrokerSession], Awaitable[None]]


class FakeBroker:
    """``async with FakeBroker() as broker``. Hooks, replaceable while it runs:

    raw: has a connection from its first byte, the gate's own included.
    login: has a client's connection from start-ok on, instead of tune to open-ok.
    session: has a client's connection from open-ok on.
    service: has a connection of the gate's own from open-ok on.
    """

    def __init__(
        self,
        *,
        limits: tuple[int, int, int] = (2047, 131072, 60),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.limits = limits
        self.tls = tls
        self.server_properties: dict[str, Any] = {"product": "Fake", "version": "1.2.3"}
        self.raw: Hook | None = None
        self.login: Hook = BrokerSession.accept
        self.session: Hook = BrokerSession.serve
        self.service: Hook = BrokerSession.serve
        self.all: list[BrokerSession] = []
        self.over = asyncio.Event()
        self.failures: list[BaseException] = []
        self._arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._connected, LOOPBACK, self.port, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.over.set()
        self.stop_listening()
        for task in self._tasks.copy():
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in self.all:
            session.abort()
        assert not self.failures, self.failures

    def stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def sessions(self) -> list[BrokerSession]:
        """Those with a client behind them that have come as far as start-ok."""
        return [each for each in self.all if each.properties and each.purpose is None]

    async def client(self, index: int = 0) -> BrokerSession:
        """The session of the ``index``-th client, as soon as it is open."""
        async with asyncio.timeout(PATIENCE):
            while len(self.sessions) <= index:
                self._arrived.clear()
                await self._arrived.wait()
            await self.sessions[index].opened.wait()
        return self.sessions[index]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        session = BrokerSession(reader, writer, self)
        self.all.append(session)
        try:
            await self._talk(session)
        except (LostError, ConnectionError, TimeoutError):
            pass
        except asyncio.CancelledError:
            pass  # the test is over; the streams' own callback must not see it
        except RefusedError:
            session.send(0, "connection.close-ok")
        except Exception as error:  # noqa: BLE001 - told to the test at the end
            self.failures.append(error)
        finally:
            session.ended.set()
            self._tasks.discard(task)
            with contextlib.suppress(Exception):
                writer.close()

    async def _talk(self, session: BrokerSession) -> None:
        if self.raw is not None:
            await self.raw(session)
            return
        await session.greet()
        self._arrived.set()
        if session.purpose is not None:
            await session.accept()
            await self.service(session)
            return
        await self.login(session)
        if session.opened.is_set():
            await self.session(session)
