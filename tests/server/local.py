"""The whole gate inside the test's event loop: the real App, its log lines, its store."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any, cast
from unittest import mock

from gatekeeper import app as app_module
from gatekeeper import logs
from gatekeeper.app import App
from gatekeeper.config.load import load_settings
from gatekeeper.logs import Logger
from gatekeeper.server.exchanges import Exchanges
from gatekeeper.server.registry import Registry
from gatekeeper.store.store import Store
from tests.server.peers import PATIENCE, Client
from tests.support.gate import GateConfig
from tests.support.rabbit import TlsFiles, definitions, permission, user

Line = tuple[str, str, str]
"""Level, category, message."""


class Recorder:
    """Stands in for a Logger of every category and keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.fields: list[Mapping[str, object]] = []
        self._more = asyncio.Event()

    def logger(self, category: str) -> Logger:
        return cast("Logger", _Category(self, category))

    def add(self, line: Line, fields: Mapping[str, object]) -> None:
        self.lines.append(line)
        self.fields.append(fields)
        self._more.set()

    def of(self, category: str, level: str | None = None) -> list[str]:
        return [text for at, name, text in self.lines if name == category and level in {None, at}]

    def matching(self, pattern: str) -> list[Line]:
        return [line for line in self.lines if re.search(pattern, line[2])]

    async def wait_for(self, pattern: str, count: int = 1, within: float = PATIENCE) -> str:
        """The message of the last of ``count`` lines that match."""
        try:
            async with asyncio.timeout(within):
                while len(found := self.matching(pattern)) < count:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"no line {pattern!r} in {self.lines}") from None
        return found[count - 1][2]


class _Category:
    def __init__(self, recorder: Recorder, category: str) -> None:
        self._recorder = recorder
        self._category = category

    def is_enabled(self, _level: str) -> bool:
        return True

    def __getattr__(self, level: str) -> Any:
        def log(text: str, **fields: object) -> None:
            self._recorder.add((level, self._category, text), fields)

        return log


USERS = definitions(
    users=[user("alice", "alice"), user("bob", "bob"), user("local", "local")],
    vhosts=["/", "v2"],
    permissions=[
        permission("alice"),
        permission("alice", "v2"),
        permission("bob", configure="^$", write="^$", read="^bob"),
        permission("local"),
    ],
)
"""alice may do everything, bob may read queues that begin with bob, local logs in on loopback."""


class LocalGate:
    """A gate in this loop. Its insides are for tests: the store is what operators change."""

    def __init__(
        self, app: App, config: GateConfig, log: Recorder, running: asyncio.Task[None]
    ) -> None:
        self.app = app
        self.running = running
        self.port = config.port
        self.tls_port = config.tls_port
        self.log = log
        self._clients: list[Client] = []

    @property
    def store(self) -> Store:
        return self.app._store

    @property
    def registry(self) -> Registry:
        return self.app._registry

    @property
    def exchanges(self) -> Exchanges:
        return self.app._exchanges

    def terminate(self) -> None:
        """SIGTERM, if it still runs."""
        if not self.running.done():
            signal.raise_signal(signal.SIGTERM)

    async def login(self, username: str = "alice", *, channel: bool = False, **more: Any) -> Client:
        """A client in state running. more: of :meth:`connect` and ``Client.shake``."""
        shake = {
            key: more.pop(key)
            for key in ("password", "vhost", "properties", "heartbeat", "frame_max", "channel_max")
            if key in more
        }
        client = await self.connect(**more)
        await client.shake(username, shake.pop("password", username), **shake)
        if channel:
            await client.open_channel()
        return client

    async def connect(self, **options: Any) -> Client:
        """A client that has only connected; aborted at the end if the test has not."""
        port = self.tls_port if options.get("tls") else self.port
        client = await Client.connect(port, **options)
        self._clients.append(client)
        return client

    def abort_clients(self) -> None:
        for client in self._clients:
            client.abort()

    async def until(self, condition: Any, what: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.01)
        assert condition(), what


@contextlib.asynccontextmanager
async def gate(
    folder: Path,
    upstream: int | str,
    values: Mapping[str, str | int] | None = None,
    *,
    document: Mapping[str, Any] = USERS,
    tls: TlsFiles | None = None,
    without: Iterable[str] = (),
) -> AsyncIterator[LocalGate]:
    """Run the gate; stop it with SIGTERM at the end, as an operator would.

    values: keys beside GateConfig's; without: those of GateConfig's that it does not get.
    Fails the test if anything inside the gate raised where it must not: in a task or a callback.
    """
    config = GateConfig(folder, upstream=upstream).with_definitions(document)
    config.set("loopback_users.local", "true").set("drain_timeout", 0)
    if tls is not None:
        config.with_tls(tls)
    for key in without:
        config.unset(key)
    for key, value in (values or {}).items():
        config.set(key, value)
    settings = load_settings(config.write(), {})
    recorder = Recorder()
    crashes: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: crashes.append(context))
    with (
        mock.patch.object(logs, "get_logger", recorder.logger),
        mock.patch.object(app_module, "CLOSING", 0.5),
    ):
        app = App(settings)
        running = loop.create_task(app.run())
        ready = loop.create_task(recorder.wait_for(r"^gatekeeper .* ready on "))
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            ready.cancel()
            running.result()
        local = LocalGate(app, config, recorder, running)
        try:
            yield local
        finally:
            local.abort_clients()
            local.terminate()
            await running
    assert not crashes, crashes
    assert not recorder.matching("internal error"), recorder.lines
