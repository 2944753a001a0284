"""The management HTTP API on the wire: aiohttp's HTTP server, RabbitMQ's bounds.

Strategy: aiohttp reads and writes HTTP; every decision is ``api/dispatch.py``'s. Nobody can hold
more than a connection: heads are bounded in size and time (``request_timeout``, also between two
requests), bodies in size and time, answers in time, connections in number. A body is read only
after the login, except the small one of ``/api/login``.

aiohttp is imported only where the API is switched on (extra ``management``).
"""

from __future__ import annotations

import asyncio
import gzip
import logging
from dataclasses import dataclass

from aiohttp import web, web_protocol
from aiohttp.http_exceptions import HttpProcessingError

from gatekeeper.admin.api.call import ProblemError, Reply, Service, bad_request
from gatekeeper.admin.api.dispatch import Dispatcher, Incoming
from gatekeeper.admin.service import Administration
from gatekeeper.config.settings import Management, ManagementListener, SocketOptions
from gatekeeper.logs import Logger
from gatekeeper.model import Peer
from gatekeeper.server.listener import listening_socket, plain_host
from gatekeeper.server.proxy_protocol import is_loopback
from gatekeeper.tls import server_context

SERVER = "gatekeeper"
HEAD_LIMIT = 8190
"""Bytes of a request line and of a header field."""
HEADERS = 100
PIECE = 64 * 1024
"""Bytes of an answer that are written in one go; each may take ``idle_timeout``."""
COMPRESSED_FROM = 300
"""Bytes of an answer that is worth compressing (Cowboy's threshold)."""
CLOSING = 1.0
"""Seconds for requests under way when the API is closed."""
TOO_LARGE = "Exceeded HTTP request body size limit"


class HttpServer:
    """The API on every listener of the settings. For use in one event loop.

    log: category ``default``, for what goes wrong.
    """

    def __init__(self, administration: Administration, management: Management, log: Logger) -> None:
        self._management = management
        self._log = log
        self._dispatcher = Dispatcher(Service(administration, management), log)
        self._accepting: list[asyncio.Server] = []
        self._protocols: list[_Server] = []
        self._addresses: list[tuple[str, int]] = []

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of every listener, in the order of the settings."""
        return tuple(self._addresses)

    async def start(self) -> None:
        """Raises ConfigError where an address or a certificate cannot be used."""
        try:
            for listener in self._management.listeners:
                await self._listen(listener)
        except BaseException:
            await self.close()
            raise

    async def _listen(self, listener: ManagementListener) -> None:
        context = None if listener.tls is None else server_context(listener.tls, listener.tls_keys)
        sock = listening_socket(listener.address, SocketOptions(), keys="management.*")
        host, port = sock.getsockname()[:2]
        protocols = _Server(self._dispatcher, listener)
        accepting = await asyncio.get_running_loop().create_server(
            protocols,
            sock=sock,
            ssl=context,
            ssl_handshake_timeout=None if context is None else listener.request_timeout,
            ssl_shutdown_timeout=None if context is None else CLOSING,
        )
        self._accepting.append(accepting)
        self._protocols.append(protocols)
        self._addresses.append((host, port))
        self._log.info(f"management: listening on {host}:{port}", tls=context is not None)

    async def close(self) -> None:
        """No new requests; those under way get a moment."""
        for accepting in self._accepting:
            accepting.close()
        for protocols in self._protocols:
            protocols.pre_shutdown()
            await protocols.shutdown(CLOSING)
            for client in protocols.clients.values():
                client.transport.abort()  # it does not read what is still to be sent
        await asyncio.sleep(0)  # for the transports to end
        self._accepting.clear()
        self._protocols.clear()
        self._addresses.clear()


@dataclass(slots=True)
class _Client:
    """A connection. requests: so far. deadline: when it must be gone, if it is to end by then."""

    transport: asyncio.Transport
    requests: int = 0
    deadline: asyncio.TimerHandle | None = None

    def end_if_closing(self) -> None:
        """Closing waits until all is sent; who does not read would be waited for for ever."""
        if self.transport.is_closing():
            self.transport.abort()


class _Handler(web_protocol.RequestHandler):
    """aiohttp's protocol, with as little to say to nonsense as Cowboy, and nothing to the log:
    whoever can connect could fill it."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionAbortedError  # an answer is on its way already
        response = web.Response(status=status, headers={"Server": SERVER})
        response.force_close()
        return response


class _Server(web.Server):
    """aiohttp's protocol server with a bound on connections and on requests in each."""

    def __init__(self, dispatcher: Dispatcher, listener: ManagementListener) -> None:
        super().__init__(self._serve)
        self._dispatcher = dispatcher
        self._listener = listener
        self.clients: dict[web_protocol.RequestHandler, _Client] = {}

    def __call__(self) -> web_protocol.RequestHandler:
        return _Handler(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._listener.request_timeout,
            max_line_size=HEAD_LIMIT,
            max_field_size=HEAD_LIMIT,
            max_headers=HEADERS,
            lingering_time=self._listener.request_timeout,
            # Cowboy does not inflate bodies either: nothing can grow behind the size limit.
            auto_decompress=False,
            access_log=_QUIET,
            logger=_QUIET,
        )

    def connection_made(
        self, handler: web_protocol.RequestHandler, transport: asyncio.Transport
    ) -> None:
        super().connection_made(handler, transport)
        limit = self._listener.max_connections
        if limit is not None and len(self.clients) >= limit:
            transport.abort()
            return
        self.clients[handler] = _Client(transport)

    def connection_lost(
        self, handler: web_protocol.RequestHandler, exc: BaseException | None = None
    ) -> None:
        client = self.clients.pop(handler, None)
        if client is not None and client.deadline is not None:
            client.deadline.cancel()
        super().connection_lost(handler, exc)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        client = self.clients.get(request.protocol)
        if client is None:
            raise ConnectionAbortedError  # one too many, or gone already
        client.requests += 1
        if client.deadline is not None:
            client.deadline.cancel()
        body = _Body(request, self._listener)
        reply = await self._dispatcher.answer(
            Incoming(
                method=request.method,
                target=_target(request),
                headers=_headers(request),
                peer=_peer(client.transport, tls=request.secure),
                read=body.read,
            )
        )
        keep = (
            request.keep_alive
            and client.requests < self._listener.max_keepalive
            and not body.spoiled
        )
        response = await self._write(request, reply, keep=keep)
        client.deadline = asyncio.get_running_loop().call_later(
            self._listener.request_timeout + CLOSING, client.end_if_closing
        )
        return response

    async def _write(
        self, request: web.BaseRequest, reply: Reply, *, keep: bool
    ) -> web.StreamResponse:
        body, headers = reply.body, [*reply.headers, ("Server", SERVER)]
        if body:
            headers.append(("Content-Type", reply.content_type))
        if self._listener.compress and _wants_gzip(request) and len(body) > COMPRESSED_FROM:
            body = await asyncio.get_running_loop().run_in_executor(None, gzip.compress, body, 5)
            headers.append(("Content-Encoding", "gzip"))
        response = web.StreamResponse(status=reply.status)
        for name, value in headers:
            response.headers.add(name, value)
        if reply.status not in {204, 304}:
            response.content_length = len(body)
        if not keep:
            response.force_close()
        try:
            async with asyncio.timeout(self._listener.inactivity_timeout):
                await response.prepare(request)
                if request.method != "HEAD":
                    await self._write_pieces(response, body)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _write_pieces(self, response: web.StreamResponse, body: bytes) -> None:
        for start in range(0, len(body), PIECE):
            async with asyncio.timeout(self._listener.idle_timeout):
                await response.write(body[start : start + PIECE])


class _Body:
    """The body of a request, read once. spoiled: not to the end, so no request can follow."""

    def __init__(self, request: web.BaseRequest, listener: ManagementListener) -> None:
        self._request = request
        self._listener = listener
        self.spoiled = False

    async def read(self, limit: int) -> bytes:
        """Raises ProblemError: it is larger, or does not come in time."""
        declared = self._request.content_length
        if declared is not None and declared > limit:
            self.spoiled = True
            raise bad_request(TOO_LARGE)
        try:
            async with asyncio.timeout(self._listener.inactivity_timeout):
                return await self._pieces(limit)
        except (TimeoutError, HttpProcessingError, web.RequestPayloadError):
            self.spoiled = True
            raise ProblemError(Reply(408), "the body did not come") from None

    async def _pieces(self, limit: int) -> bytes:
        found: list[bytes] = []
        size = 0
        while True:
            async with asyncio.timeout(self._listener.idle_timeout):
                piece = await self._request.content.readany()
            if not piece:
                return b"".join(found)
            size += len(piece)
            if size > limit:
                self.spoiled = True
                raise bad_request(TOO_LARGE)
            found.append(piece)


def _headers(request: web.BaseRequest) -> dict[str, str]:
    """By name in lower case; several of the same name are one list, as Cowboy has it: two logins
    are none, whichever of them somebody in front of us has looked at."""
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        key = name.lower()
        found[key] = f"{found[key]}, {value}" if key in found else value
    return found


def _target(request: web.BaseRequest) -> bytes:
    """Path and query as sent; of an absolute URI what follows its authority."""
    target = request.raw_path.encode("utf-8", "surrogateescape")
    if b"://" in target.partition(b"?")[0] and not target.startswith(b"/"):
        _, slash, rest = target.partition(b"://")[2].partition(b"/")
        return slash + rest
    return target


def _peer(transport: asyncio.Transport, *, tls: bool) -> Peer:
    """By the socket. An address that is not known is none of this machine."""
    remote = transport.get_extra_info("peername") or ("", 0)
    local = transport.get_extra_info("sockname") or ("", 0)
    host = plain_host(remote[0])
    return Peer(
        host=host,
        port=remote[1],
        local_host=plain_host(local[0]),
        local_port=local[1],
        loopback=is_loopback(host),
        tls=tls,
    )


def _wants_gzip(request: web.BaseRequest) -> bool:
    accepted = request.headers.get("Accept-Encoding", "")
    return any(
        part.partition(";")[0].strip().lower() == "gzip" and "q=0" not in part.replace("q=0.", "")
        for part in accepted.split(",")
    )


_QUIET = logging.getLogger("gatekeeper.management.http")
"""For aiohttp's own words: tracebacks of what is not its business."""
_QUIET.disabled = True
