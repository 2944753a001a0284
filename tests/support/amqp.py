"""A raw AMQP 0-9-1 client over a blocking socket: sends anything, reads everything in order.

Nothing is hidden or answered on its own except what a test asks for: no heartbeats, no replies
to closes. Every read has a deadline. Pipelining is ``send_raw(a + b + c)``.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

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

CAPABILITIES: dict[str, Any] = {
    "publisher_confirms": True,
    "exchange_exchange_bindings": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}
DEFAULT_TIMEOUT = 10.0


class LostError(Exception):
    """The peer ended the TCP connection (FIN or reset)."""


class DeadlineError(Exception):
    """Nothing complete came before the deadline."""


class RefusedError(Exception):
    """The handshake ended with this connection.close."""

    def __init__(self, method: Method) -> None:
        super().__init__(str(method))
        self.method = method
        self.code: int = method["reply_code"]
        self.text: bytes = method["reply_text"]


class Client:
    """One connection. ``frame`` answers raw frames, ``read`` whole methods with content."""

    def __init__(
        self,
        port: int,
        *,
        host: str = LOOPBACK,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.timeout = timeout
        raw = socket.create_connection((host, port), timeout=timeout)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock: socket.socket = (
            tls.wrap_socket(raw, server_hostname=server_hostname or host) if tls else raw
        )
        self.server_properties: Mapping[bytes, Any] = {}
        self.mechanisms: list[bytes] = []
        self.tune: Method | None = None
        self._input = bytearray()
        self._pending: dict[int, tuple[Method, int, dict[str, Any], bytearray] | Method] = {}

    @classmethod
    def login(
        cls,
        port: int,
        username: str = "guest",
        password: str = "guest",
        vhost: bytes | str = b"/",
        **options: Any,
    ) -> Self:
        """A connection in state running; RefusedError or LostError when it does not get there.

        options: those of the constructor and of :meth:`handshake`.
        """
        shake = {
            key: options.pop(key)
            for key in ("client_properties", "channel_max", "frame_max", "heartbeat")
            if key in options
        }
        client = cls(port, **options)
        try:
            client.handshake(username, password, vhost, **shake)
        except BaseException:
            client.abort()
            raise
        return client

    def handshake(
        self,
        username: str,
        password: str,
        vhost: bytes | str = b"/",
        *,
        client_properties: Mapping[Any, Any] | None = None,
        channel_max: int | None = None,
        frame_max: int | None = None,
        heartbeat: int = 0,
    ) -> None:
        self.start(client_properties, f"\0{username}\0{password}".encode())
        self.tune = self.expect("connection.tune")
        self.send(
            0,
            "connection.tune-ok",
            channel_max=self.tune["channel_max"] if channel_max is None else channel_max,
            frame_max=self.tune["frame_max"] if frame_max is None else frame_max,
            heartbeat=heartbeat,
        )
        self.send(0, "connection.open", virtual_host=vhost)
        self.expect("connection.open-ok")

    def start(
        self,
        client_properties: Mapping[Any, Any] | None,
        response: bytes,
        mechanism: str = "PLAIN",
    ) -> None:
        """Protocol header, connection.start, start-ok."""
        self.send_raw(PROTOCOL_HEADER)
        start = self.expect("connection.start")
        self.server_properties = start["server_properties"]
        self.mechanisms = start["mechanisms"].split(b" ")
        if client_properties is None:
            client_properties = {"product": "test", "capabilities": CAPABILITIES}
        self.send(
            0,
            "connection.start-ok",
            client_properties=client_properties,
            mechanism=mechanism,
            response=response,
            locale="en_US",
        )

    def send_raw(self, data: bytes) -> None:
        self.sock.settimeout(self.timeout)
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise LostError(str(error)) from error

    def send(self, channel: int, name: str, **arguments: Any) -> None:
        self.send_raw(method_frame(channel, name, **arguments))

    def publish(
        self,
        channel: int,
        exchange: bytes,
        routing_key: bytes,
        body: bytes = b"x",
        properties: Mapping[str, Any] | None = None,
        **flags: Any,
    ) -> None:
        self.send_raw(publish_frames(channel, exchange, routing_key, body, properties, **flags))

    def frame(self, timeout: float | None = None) -> tuple[int, int, bytes]:
        """Type, channel, payload. LostError, DeadlineError, ValueError (bad frame end)."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while len(self._input) < 7:
            self._fill(deadline)
        kind, channel, size = struct.unpack_from(">BHI", self._input)
        while len(self._input) < size + 8:
            self._fill(deadline)
        if self._input[size + 7] != FRAME_END:
            raise ValueError(f"frame end {self._input[size + 7]:#x}")
        payload = bytes(self._input[7 : size + 7])
        del self._input[: size + 8]
        return kind, channel, payload

    def read(self, timeout: float | None = None) -> tuple[int, Method]:
        """The next whole method, its channel first; heartbeats are passed over."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            kind, channel, payload = self.frame(max(0.0, deadline - time.monotonic()))
            if kind == HEARTBEAT:
                continue
            method = self._assemble(kind, channel, payload)
            if method is not None:
                return channel, method

    def expect(self, name: str, channel: int = 0, timeout: float | None = None) -> Method:
        """The next method, which must be this one; RefusedError on connection.close."""
        got_channel, method = self.read(timeout)
        if method.name == "connection.close" != name:
            raise RefusedError(method)
        if (got_channel, method.name) != (channel, name):
            raise AssertionError(f"expected {name} on {channel}, got {method} on {got_channel}")
        return method

    def call(self, channel: int, name: str, **arguments: Any) -> Method:
        """Send a method and answer the next one that comes on its channel or on channel 0."""
        self.send(channel, name, **arguments)
        deadline = time.monotonic() + self.timeout
        while True:
            got_channel, method = self.read(deadline - time.monotonic())
            if got_channel in {0, channel}:
                return method

    def open_channel(self, channel: int = 1) -> int:
        self.send(channel, "channel.open")
        self.expect("channel.open-ok", channel)
        return channel

    def at_eof(self, timeout: float | None = None) -> float:
        """Wait for the end of the TCP connection; seconds that took. DeadlineError otherwise."""
        started = time.monotonic()
        deadline = started + (self.timeout if timeout is None else timeout)
        try:
            while True:
                self._fill(deadline)
        except LostError:
            return time.monotonic() - started

    def close(self) -> None:
        """Close politely, reading past everything else."""
        try:
            self.send(0, "connection.close", reply_code=200, reply_text=b"bye")
            while self.read(5)[1].name not in {"connection.close-ok", "connection.close"}:
                pass
        except (LostError, DeadlineError):
            pass
        self.abort()

    def abort(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        self.abort()

    def _fill(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError
        self.sock.settimeout(left)
        try:
            data = self.sock.recv(1 << 16)
        except TimeoutError:
            raise DeadlineError from None
        except OSError as error:
            raise LostError(str(error)) from error
        if not data:
            raise LostError("end of stream")
        self._input += data

    def _assemble(self, kind: int, channel: int, payload: bytes) -> Method | None:
        pending = self._pending.get(channel)
        if kind == METHOD:
            if pending is not None:
                raise ValueError(f"method amid content on channel {channel}")
            method = decode_method(payload)
            if method.name not in CONTENT_METHODS:
                return method
            self._pending[channel] = method
            return None
        if kind == HEADER and isinstance(pending, Method):
            method, body = pending, bytearray()
            size, properties = decode_header(payload)
            self._pending[channel] = (method, size, properties, body)
        elif kind == BODY and isinstance(pending, tuple):
            method, size, properties, body = pending
            body += payload
        else:
            raise ValueError(f"unexpected frame type {kind} on channel {channel}")
        if len(body) < size:
            return None
        del self._pending[channel]
        return Method(method.name, method.arguments, properties, bytes(body))
