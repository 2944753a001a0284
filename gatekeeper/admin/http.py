"""The management HTTP API on the wire: aiohttp's HTTP server, RabbitMQ's bounds.

Strategy: aiohttp reads and writes HTTP; every decision is ``api/dispatch.py``'s. Nobody can hold
more than a connection: heads are bounded in size and time (``request_timeout``, also between two
requests), bodies in size and time, answers in time, connections in number. A body is read only
after the login, except the small one of ``/api/login``.

aiohttp is imported only where the API is switched on (extra ``management``).
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging

from aiohttp import web, web_protocol
from aiohttp.http_exceptions import HttpProcessingError

from gatekeeper.admin.api.call import ProblemError, Reply, Service, bad_request
from gatekeeper.admin.api.dispatch import Dispatcher, Incoming
from gatekeeper.admin.service import Administration
from gatekeeper.config.settings import Management, ManagementListener
from gatekeeper.errors import ConfigError
from gatekeeper.logs import Logger
from gatekeeper.model import Peer
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
        self._runners: list[web.ServerRunner] = []
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
        server = _Server(self._dispatcher, listener, self._log)
        runner = web.ServerRunner(server, shutdown_timeout=CLOSING)
        await runner.setup()
        self._runners.append(runner)
        address = listener.address
        site = web.TCPSite(
            runner,
            address.host or None,
            address.port,
            ssl_context=context,
        )
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"management: cannot listen on {address}: {error.strerror}; is the port taken?"
            ) from None
        host, port = runner.addresses[-1][:2]
        self._addresses.append((str(host), int(port)))
        self._log.info(f"management: listening on {host}:{port}", tls=listener.tls is not None)

    async def close(self) -> None:
        """No new requests; those under way get a moment."""
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()
        self._addresses.clear()


class _Server(web.Server):
    """aiohttp's protocol server with a bound on connections and on requests in each."""

    def __init__(self, dispatcher: Dispatcher, listener: ManagementListener, log: Logger) -> None:
        super().__init__(
            self._serve,
            keepalive_timeout=listener.request_timeout,
            max_line_size=HEAD_LIMIT,
            max_field_size=HEAD_LIMIT,
            max_headers=HEADERS,
            lingering_time=listener.request_timeout,
            # Cowboy does not inflate bodies either: nothing can grow behind the size limit.
            auto_decompress=False,
            access_log=None,
            logger=_QUIET,
        )
        self._dispatcher = dispatcher
        self._listener = listener
        self._log = log
        self._served: dict[web_protocol.RequestHandler, int] = {}

    def connection_made(
        self, handler: web_protocol.RequestHandler, transport: asyncio.Transport
    ) -> None:
        super().connection_made(handler, transport)
        limit = self._listener.max_connections
        if limit is not None and len(self._served) >= limit:
            transport.abort()
            return
        self._served[handler] = 0

    def connection_lost(
        self, handler: web_protocol.RequestHandler, exc: BaseException | None = None
    ) -> None:
        self._served.pop(handler, None)
        super().connection_lost(handler, exc)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = request.protocol
        count = self._served.get(handler, 0) + 1
        if handler in self._served:
            self._served[handler] = count
        body = _Body(request, self._listener)
        reply = await self._dispatcher.answer(
            Incoming(
                method=request.method,
                target=_target(request),
                headers=_headers(request),
                peer=_peer(request),
                read=body.read,
            )
        )
        keep = request.keep_alive and count < self._listener.max_keepalive and not body.spoiled
        return await self._write(request, reply, keep=keep)

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
    """By name in lower case; of several that are called the same the first one."""
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        found.setdefault(name.lower(), value)
    return found


def _target(request: web.BaseRequest) -> bytes:
    """Path and query as sent; of an absolute URI what follows its authority."""
    target = request.raw_path.encode("utf-8", "surrogateescape")
    if b"://" in target.partition(b"?")[0] and not target.startswith(b"/"):
        _, slash, rest = target.partition(b"://")[2].partition(b"/")
        return slash + rest
    return target


def _peer(request: web.BaseRequest) -> Peer:
    transport = request.transport
    host, port = ("", 0)
    local_host, local_port = ("", 0)
    if transport is not None:
        with contextlib.suppress(TypeError, ValueError, IndexError):
            host, port = transport.get_extra_info("peername")[:2]
            local_host, local_port = transport.get_extra_info("sockname")[:2]
    # INVARIANT: an address that is not known is not a loopback address.
    return Peer(
        host=host,
        port=port,
        local_host=local_host,
        local_port=local_port,
        loopback=bool(host) and is_loopback(host),
        tls=request.secure,
    )


def _wants_gzip(request: web.BaseRequest) -> bool:
    accepted = request.headers.get("Accept-Encoding", "")
    return any(
        part.partition(";")[0].strip().lower() == "gzip" and "q=0" not in part.replace("q=0.", "")
        for part in accepted.split(",")
    )


_QUIET = logging.getLogger("gatekeeper.management.http")
"""aiohttp tells every client that breaks off; at warning and above it is ours to know."""
