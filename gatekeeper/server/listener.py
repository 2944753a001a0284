"""Listeners: sockets, TLS and the PROXY protocol, up to a client endpoint and its real address."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import socket
import ssl
from collections.abc import Callable, Iterator

from gatekeeper.config.settings import Address, Settings, SocketOptions
from gatekeeper.errors import ConfigError
from gatekeeper.logs import Logger
from gatekeeper.model import Peer
from gatekeeper.server.endpoint import Endpoint, SharedBuffer
from gatekeeper.server.proxy_protocol import (
    TIMEOUT,
    V2_MAX,
    ProxyHeader,
    ProxyHeaderError,
    is_loopback,
    parse,
)
from gatekeeper.server.tasks import Owner
from gatekeeper.tls import server_context

Accept = Callable[[Endpoint, Peer, int], None]
"""Takes a connected client: its endpoint, its address, and the connection's number."""


def listening_socket(
    address: Address, options: SocketOptions, *, shared: bool = False, keys: str = "listeners.*"
) -> socket.socket:
    """A bound socket. Raises ConfigError that names the address and the remedy.

    shared: other processes of the same user may listen on the same address (SO_REUSEPORT); the
    kernel spreads the clients over them. keys: what to change where it cannot be used.
    """
    try:
        if address.host:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            host = address.host
        elif socket.has_dualstack_ipv6():
            sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            host = "::"
        else:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            host = "0.0.0.0"  # noqa: S104 - the operator asked for all interfaces
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _options(sock, options)
        sock.bind((host, address.port))
        sock.listen(options.backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"cannot listen on {address}: the port is in use; stop the other program (see "
                f"'ss -ltnp') or change {keys}"
            ) from None
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror}; check {keys} and tcp_listen_options.*"
        ) from None
    return sock


def _options(sock: socket.socket, options: SocketOptions) -> None:
    """Options that accepted sockets inherit.

    linger is not among them where it is RabbitMQ's default (on, 0 seconds): on Linux that throws
    away what is still to be sent, and a client would lose its close reason.
    """
    if options.nodelay:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    on, seconds = options.linger
    if on and seconds:
        packed = int(on).to_bytes(4, "little") + seconds.to_bytes(4, "little")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, packed)
    for value, level, name in (
        (options.keepalive, socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (options.sndbuf, socket.SOL_SOCKET, socket.SO_SNDBUF),
        (options.recbuf, socket.SOL_SOCKET, socket.SO_RCVBUF),
        (options.tos, socket.IPPROTO_IP, socket.IP_TOS),
        (options.priority, socket.SOL_SOCKET, getattr(socket, "SO_PRIORITY", 12)),
    ):
        if value is not None:
            sock.setsockopt(level, name, int(value))


class Listeners:
    """All listeners of the gate. Sockets are bound in the constructor (raises ConfigError).

    numbers: of a worker among several, whose numbers are its own; such a one shares its ports.
    """

    def __init__(
        self,
        settings: Settings,
        buffer: SharedBuffer,
        accept: Accept,
        owner: Owner,
        log: Logger,
        numbers: Iterator[int] | None = None,
    ) -> None:
        self._settings = settings
        self._buffer = buffer
        self._accept = accept
        self._owner = owner
        self._log = log
        self._numbers = itertools.count(1) if numbers is None else numbers
        self._servers: list[asyncio.Server] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._context = None if settings.tls is None else server_context(settings.tls)
        self._sockets: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        plain = len(settings.tcp_listeners)
        try:
            for at, address in enumerate((*settings.tcp_listeners, *settings.ssl_listeners)):
                context = None if at < plain else self._context
                sock = listening_socket(address, settings.socket, shared=numbers is not None)
                self._sockets.append((sock, context))
        except BaseException:
            self._close_sockets()
            raise

    @property
    def addresses(self) -> list[str]:
        """Where it listens, with the ports that the system chose."""
        shown = []
        for sock, context in self._sockets:
            host, port = sock.getsockname()[:2]
            address = Address(host=host, port=port)
            shown.append(f"{'amqps' if context else 'amqp'}://{address}")
        return shown

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for sock, context in self._sockets:
            if self._settings.proxy_protocol:
                self._accepting.append(self._owner.start(self._accept_behind_proxy(sock, context)))
                continue
            server = await loop.create_server(
                lambda tls=context is not None: self._endpoint(None, tls=tls),
                sock=sock,
                ssl=context,
                ssl_handshake_timeout=self._settings.ssl_handshake_timeout if context else None,
                backlog=self._settings.socket.backlog,
            )
            self._servers.append(server)

    def close(self) -> None:
        """Accept nothing more; connections live on."""
        for server in self._servers:
            server.close()
        for task in self._accepting:
            task.cancel()  # at once, for a socket that is waited on is not closed
        self._close_sockets()

    def _close_sockets(self) -> None:
        for sock, _ in self._sockets:
            with contextlib.suppress(OSError):
                sock.close()

    def _endpoint(self, header: ProxyHeader | None, *, tls: bool) -> Endpoint:
        def ready(endpoint: Endpoint) -> None:
            endpoint.ready = None
            peer = peer_of(endpoint, header, tls=tls)
            self._accept(endpoint, peer, next(self._numbers))

        return Endpoint(self._buffer, ready)

    # --- behind a load balancer ---

    async def _accept_behind_proxy(
        self, listener: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                if listener.fileno() < 0:
                    return
                # Out of descriptors, most likely: wait for some to be freed.
                self._log.error(f"cannot accept a connection: {error.strerror}")
                await asyncio.sleep(0.5)
                continue
            self._owner.start(self._behind_proxy(sock, context))

    async def _behind_proxy(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        """Read the header off the bare socket, exactly, for TLS may begin right behind it."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TIMEOUT):
                header = await self._header(sock)
        except (ProxyHeaderError, TimeoutError, OSError) as error:
            reason = "timeout" if isinstance(error, TimeoutError) else str(error)
            self._log.debug(f"error when receiving proxy header: {reason}")
            sock.close()
            return
        try:
            await loop.connect_accepted_socket(
                lambda: self._endpoint(header, tls=context is not None),
                sock,
                ssl=context,
                ssl_handshake_timeout=self._settings.ssl_handshake_timeout if context else None,
            )
        except (OSError, ssl.SSLError, TimeoutError) as error:
            self._log.debug(f"a connection failed behind its proxy header: {error}")
            sock.close()

    @staticmethod
    async def _header(sock: socket.socket) -> ProxyHeader:
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        seen = 0
        while True:
            # Readable means more than what was there: the kernel wakes us for news only.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(sock, _settle, readable)
            try:
                await readable
            finally:
                loop.remove_reader(sock)
            data = sock.recv(V2_MAX, socket.MSG_PEEK)
            if len(data) == seen:
                raise ProxyHeaderError("the peer closed the connection")
            header = parse(data)
            if header is not None:
                sock.recv(header.size)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
                return header
            seen = len(data)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def peer_of(endpoint: Endpoint, header: ProxyHeader | None, *, tls: bool) -> Peer:
    """Who the client is: by the PROXY header if there is one with addresses, else by the socket."""
    transport = endpoint.transport
    source = transport.get_extra_info("peername") or ("", 0)
    local = transport.get_extra_info("sockname") or ("", 0)
    if header is not None and header.source is not None and header.destination is not None:
        source, local = header.source, header.destination
    host, local_host = plain_host(source[0]), plain_host(local[0])
    return Peer(
        host=host,
        port=source[1],
        local_host=local_host,
        local_port=local[1],
        loopback=is_loopback(host),
        tls=tls,
    )


def plain_host(host: str) -> str:
    """``::ffff:1.2.3.4`` as ``1.2.3.4``, as RabbitMQ prints it."""
    return host.removeprefix("::ffff:") if host.startswith("::ffff:") and "." in host else host
