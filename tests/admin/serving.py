"""The management API over a real store, in an event loop of its own thread: clients may block."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar, cast
from unittest import mock

import uvloop

from gatekeeper.admin.http import HttpServer
from gatekeeper.admin.service import Administration
from gatekeeper.backends.internal import InternalBackend
from gatekeeper.config.load import load_settings
from gatekeeper.config.settings import Settings
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.pairs import Pair
from gatekeeper.server.infos import ChannelInfo, ConnectionInfo, UpstreamInfo, UpstreamStatus
from gatekeeper.store.definitions import import_definitions
from gatekeeper.store.store import Store
from tests.server.local import Recorder

T = TypeVar("T")

CONF = """
upstreams.default.servers.1 = 127.0.0.1:5673
upstreams.default.username = u
upstreams.default.password = upstream-secret
store.url = sqlite::memory:
"""


@dataclass
class StillFleet:
    """One process with these connections; closing takes them away."""

    found: list[ConnectionInfo] = field(default_factory=list)
    open_channels: list[ChannelInfo] = field(default_factory=list)
    closed: list[tuple[int, bytes]] = field(default_factory=list)
    reachable: bool = True
    settled: int = 0

    async def connections(self) -> list[ConnectionInfo]:
        return list(self.found)

    async def channels(self) -> list[ChannelInfo]:
        return list(self.open_channels)

    async def close(
        self,
        *,
        reason: bytes,
        number: int | None = None,
        user: bytes | None = None,
        vhost: bytes | None = None,
    ) -> int:
        ended = [
            one
            for one in self.found
            if number in {None, one.number}
            and user in {None, one.user}
            and vhost in {None, one.vhost}
        ]
        self.closed += [(one.number, reason) for one in ended]
        self.found = [one for one in self.found if one not in ended]
        return len(ended)

    async def settle(self) -> None:
        self.settled += 1

    async def clear_caches(self, user: bytes | None) -> int:
        return 0

    async def statistics(self) -> Mapping[int, Mapping[str, int]]:
        return {0: {"pid": 1, "connections": len(self.found), "cpu_ms": 1}}

    def upstreams(self) -> list[UpstreamInfo]:
        error = "" if self.reachable else "connection refused"
        status = UpstreamStatus("default", self.reachable, 1, "RabbitMQ", "4.3.5", error)
        return [UpstreamInfo(("127.0.0.1:5673",), (), status)]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def ask(
    port: int,
    method: str,
    path: str,
    body: object = None,
    *,
    user: str | None = "guest:guest",
    headers: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request. body: bytes as they are, anything else as JSON. Names of headers are lower
    case in the answer."""
    sent = dict(headers or {})
    if user is not None:
        sent.setdefault("Authorization", basic(*user.split(":", 1)))
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    if raw is not None and not any(name.lower() == "content-type" for name in sent):
        sent["Content-Type"] = "application/json"
    sent = {name: value for name, value in sent.items() if value}
    connection = (
        http.client.HTTPConnection(host, port, timeout=20)
        if tls is None
        else http.client.HTTPSConnection(host, port, timeout=20, context=tls)
    )
    try:
        connection.request(method, path, raw, sent)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()


class Api:
    """Serves until the end of the block.

    conf: further lines of gatekeeper.conf; a management listener is there already.
    """

    def __init__(
        self, folder: Path, definitions: Mapping[str, Any], conf: str = "", ip: str = "127.0.0.1"
    ) -> None:
        self.fleet = StillFleet()
        self.log = Recorder()
        self.settings = self._settings(folder, conf, ip)
        self._definitions = definitions
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.ports: list[int] = []

    @staticmethod
    def _settings(folder: Path, conf: str, ip: str) -> Settings:
        path = folder / "gate.conf"
        listener = f"management.tcp.ip = {ip}\nmanagement.tcp.port = 0\n"
        path.write_text(CONF + listener + conf)
        return load_settings(path, {})

    @property
    def port(self) -> int:
        return self.ports[0]

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._start)
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def call() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(30)

    async def _start(self) -> None:
        self.store = Store.open("sqlite::memory:")
        import_definitions(self.store, json.dumps(self._definitions))
        self.engine = Engine(
            [Pair.of(InternalBackend(self.store))],
            mock.Mock(),
            loopback_users=self.settings.loopback_users,
        )
        self.administration = Administration(
            settings=self.settings,
            store=self.store,
            engine=self.engine,
            fleet=cast("Any", self.fleet),
            log=self.log.logger("audit"),
        )
        self.server = HttpServer(
            self.administration, self.settings.management, self.log.logger("default")
        )
        await self.server.start()
        self.ports = [port for _, port in self.server.addresses]

    async def _stop(self) -> None:
        await self.server.close()
        self.administration.close()
        self.store.close()

    def ask(self, method: str, path: str, body: object = None, **more: Any) -> Answer:
        return ask(self.port, method, path, body, **more)

    def put(self, path: str, body: object, status: int = 201) -> None:
        answer = self.ask("PUT", path, body)
        assert answer.status == status, answer


def connection(
    number: int, user: bytes = b"guest", vhost: bytes = b"/", **more: Any
) -> ConnectionInfo:
    info = ConnectionInfo(
        number=number,
        user=user,
        vhost=vhost,
        host="127.0.0.1",
        port=50000 + number,
        local_host="127.0.0.1",
        local_port=5672,
        tls=False,
        ssl_protocol="",
        ssl_cipher="",
        ssl_key_exchange="",
        ssl_hash="",
        peer_cert_subject="",
        peer_cert_issuer="",
        peer_cert_validity="",
        state="running",
        auth_mechanism="PLAIN",
        timeout=60,
        frame_max=131072,
        channel_max=2047,
        client_properties=b"",  # type: ignore[arg-type]
        connected_at=1795453064721,
        recv_oct=405,
        send_oct=538,
        channels=1,
    )
    return replace(info, **more)
