"""A real HTTP server that answers the backend's questions as a test tells it to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from aiohttp import web


@dataclass
class Service:
    """answer: status and body for every question, where ``decide`` has none for it, which is
    given the path and the parameters. asked: method, path, query or form as sent. slow: paths
    whose questions wait until ``go`` is set, and ``waiting`` counts them.
    """

    answer: tuple[int, str] = (200, "allow")
    decide: Callable[[str, Mapping[str, str]], tuple[int, str] | str | None] | None = None
    slow: frozenset[str] = frozenset()
    waiting: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    delay: float = 0.0
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    location: str | None = None
    port: int = 0
    _runner: web.AppRunner | None = None

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.Response:
        body = (await request.read()).decode()
        self.asked.append((request.method, request.path, body or request.rel_url.raw_query_string))
        self.headers.append(dict(request.headers))
        if self.delay:
            await asyncio.sleep(self.delay)
        if request.path in self.slow:
            self.waiting += 1
            await self.go.wait()
        if self.location is not None and request.path != "/moved":
            raise web.HTTPMovedPermanently(self.location)
        status, text = self.answer
        if self.decide is not None:
            form = dict(parse_qsl(body or request.rel_url.raw_query_string))
            decided = self.decide(request.path, form)
            if decided is not None:
                status, text = (200, decided) if isinstance(decided, str) else decided
        return web.Response(status=status, text=text)
