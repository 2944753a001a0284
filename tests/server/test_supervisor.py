"""The supervisor and its workers in one event loop, for what a test must see from the inside.

Real are the supervisor, the gates, their sockets and control channels; only the fork is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gatekeeper import app as app_module
from gatekeeper import logs
from gatekeeper import supervisor as supervisor_module
from gatekeeper.app import App
from gatekeeper.config.load import load_settings
from gatekeeper.config.settings import Settings
from gatekeeper.errors import ConfigError, OperatorError
from gatekeeper.server.exchanges import ExchangeKind
from gatekeeper.server.nursery import ForkError, NurseryGoneError
from gatekeeper.server.ports import HeldPorts
from gatekeeper.server.shared import ConnectionNumbers
from gatekeeper.supervisor import Supervisor
from tests.server.local import USERS, Recorder
from tests.server.peers import Client, FakeBroker
from tests.support.amqp import RefusedError
from tests.support.gate import GateConfig


class Inside:
    """A gate of several workers in this loop, and the nursery that only pretends to fork."""

    def __init__(self, settings: Settings, ports: HeldPorts, log: Recorder) -> None:
        self.settings = settings
        self.log = log
        self.apps: list[App] = []
        self.numbers = ConnectionNumbers(settings.workers)
        line = socket.socket()
        line.close()  # nobody is on it
        self.supervisor = Supervisor(settings, ports, 0, line)
        self.port = settings.tcp_listeners[0].port
        self.gone = False
        self.failure: OperatorError | None = None
        self.tasks: dict[int, asyncio.Task[int]] = {}
        self.clients: list[Client] = []

    # --- what the supervisor sees as its nursery ---

    async def spawn(self, worker: int, channel: socket.socket) -> int:
        if self.failure is not None:
            channel.close()
            raise self.failure
        work = supervisor_module._serve(self.settings, self.numbers, worker, channel)
        pid = 1000 + len(self.tasks)
        self.tasks[pid] = asyncio.get_running_loop().create_task(work)
        return pid

    async def status(self, pid: int, within: float) -> int | None:
        done, _ = await asyncio.wait({self.tasks[pid]}, timeout=within)
        return self.tasks[pid].result() if done else None

    def kill(self, pid: int) -> None:
        self.tasks[pid].cancel()

    def close(self) -> None:
        self.gone = True

    # --- for tests ---

    async def login(self, name: str = "alice", vhost: str = "/") -> Client:
        client = await Client.connect(self.port)
        self.clients.append(client)
        await client.shake(name, name, vhost)
        return client

    async def spread(self) -> list[Client]:
        """Clients, until each worker has one."""
        while not all(len(app._registry) for app in self.apps):
            await self.login()
            assert len(self.clients) < 60
        return self.clients

    async def until(self, condition: Callable[[], Any], within: float) -> None:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def inside(
    folder: Path, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, **values: str | int
) -> AsyncIterator[Inside]:
    config = GateConfig(folder, upstream=broker.port).with_definitions(USERS)
    config.set("workers", 3).set("drain_timeout", 0)
    for key, value in values.items():
        config.set(key, value)
    settings = load_settings(config.write(), {})
    recorder = Recorder()
    monkeypatch.setattr(logs, "get_logger", recorder.logger)
    monkeypatch.setattr(app_module, "CLOSING", 0.5)
    # Nobody looks by himself: what is seen in time was told.
    monkeypatch.setattr(app_module, "STORE_REFRESH", 3600)
    monkeypatch.setattr(supervisor_module, "STORE_REFRESH", 3600)
    with contextlib.closing(HeldPorts(settings.tcp_listeners, settings.socket)) as ports:
        several = Inside(settings, ports, recorder)

        class Remembered(App):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                several.apps.append(self)

        monkeypatch.setattr(supervisor_module, "App", Remembered)
        monkeypatch.setattr(supervisor_module, "Nursery", lambda *_: several)
        running = asyncio.get_running_loop().create_task(several.supervisor.run())
        await recorder.wait_for(r"^gatekeeper .* ready on .*; 3 workers; ")
        try:
            yield several
        finally:
            for client in several.clients:
                client.abort()
            if not running.done():
                signal.raise_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                with contextlib.suppress(OperatorError):
                    await running
    assert not recorder.matching("internal error"), recorder.lines


async def test_list_and_close(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path, fake, monkeypatch) as several:
        clients = await several.spread()
        hub = several.supervisor.hub
        answers = await hub.list_connections()
        infos = [info for each in answers.by_worker.values() for info in each]
        assert sorted(answers.by_worker) == [1, 2, 3]
        assert len({info.number for info in infos}) == len(infos) == len(clients)
        ports = {c.writer.get_extra_info("sockname")[1]: c for c in clients}
        assert {info.port for info in infos} == set(ports)
        assert {(info.user, info.vhost, info.host) for info in infos} == {
            (b"alice", b"/", "127.0.0.1")
        }
        one = infos[0]
        closed = await hub.close_connections(number=one.number, reason=b"go away")
        assert sum(closed.by_worker.values()) == 1
        close = await ports.pop(one.port).closed()
        assert (close["reply_code"], close["reply_text"]) == (320, b"CONNECTION_FORCED - go away")
        assert sum((await hub.close_connections(user=b"bob", reason=b"x")).by_worker.values()) == 0
        await hub.close_connections(user=b"alice", reason=b"all of you")
        for client in ports.values():
            assert (await client.closed())["reply_text"] == b"CONNECTION_FORCED - all of you"
        await several.until(lambda: hub.user_count(b"alice") == 0, 1)


@pytest.mark.parametrize("through", ["supervisor", "worker"])
async def test_a_change_is_in_force_everywhere_within_milliseconds(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    async with inside(tmp_path, fake, monkeypatch) as several:
        clients = await several.spread()
        apps = several.apps
        store = several.supervisor._store if through == "supervisor" else apps[1]._store
        others = [several.supervisor._store, *(app._store for app in apps)]
        epochs = [app._epoch.value for app in apps]
        store.set_permissions(b"alice", b"/", b"", b"^$", b"")
        await several.until(
            lambda: all(s.permissions(b"alice", b"/").write == b"^$" for s in others), 0.3
        )
        for client in clients:
            await client.open_channel()
            client.publish(1, b"", b"q")
            _, method = await client.read()
            assert (method.name, method["reply_code"]) == ("channel.close", 403)
        await asyncio.sleep(0.1)
        assert [app._epoch.value for app in apps] == [value + 1 for value in epochs], "echoes"
        store.delete_user(b"alice")
        for client in clients:
            close = await client.closed()
            assert close["reply_text"] == b"CONNECTION_FORCED - user 'alice' is deleted"


async def test_an_exchange_that_changes_through_one_worker_is_asked_anew_by_all(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path, fake, monkeypatch) as several:
        clients = await several.spread()
        key = (b"/", b"e")
        for app in several.apps:
            app._exchanges._keep(key, ExchangeKind.OTHER)
        await clients[0].open_channel()
        declared = await clients[0].call(1, "exchange.declare", exchange="e", type="topic")
        assert declared.name == "exchange.declare-ok"
        await several.until(
            lambda: (
                not any(
                    app._exchanges._known.get(key) is ExchangeKind.OTHER for app in several.apps
                )
            ),
            0.3,
        )


async def test_a_limit_that_cannot_be_checked_refuses(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatekeeper.server.member.ADMIT_TIMEOUT", 0.1)
    async with inside(tmp_path, fake, monkeypatch) as several:
        several.supervisor._store.set_user_limits(b"alice", {"max-connections": 5})
        stores = [app._store for app in several.apps]
        await several.until(
            lambda: all(s.user_limits(b"alice").max_connections == 5 for s in stores), 0.3
        )
        await several.login()
        hub = several.supervisor.hub
        admit = hub._admit
        monkeypatch.setattr(hub, "_admit", lambda *_: None)
        with pytest.raises(RefusedError) as caught:
            await several.login()
        assert (caught.value.code, caught.value.text) == (
            320,
            b"CONNECTION_FORCED - connection limits cannot be checked now",
        )
        assert several.log.matching("limits cannot be checked: supervisor: no answer within 0.1 s")
        await several.login("bob")  # has no limit, so nobody is asked
        monkeypatch.setattr(hub, "_admit", admit)
        await several.login()


async def test_a_worker_that_cannot_start_ends_the_start_with_its_reason(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GateConfig(tmp_path, upstream=fake.port).with_definitions(USERS).set("workers", 2)
    settings = load_settings(config.write(), {})
    recorder = Recorder()
    monkeypatch.setattr(logs, "get_logger", recorder.logger)
    made: list[object] = []

    class Failing(App):
        def __init__(self, *args: Any) -> None:
            made.append(self)
            if len(made) == 2:
                raise ConfigError("auth_backends: ldap is not supported yet; use internal")
            super().__init__(*args)

    with contextlib.closing(HeldPorts(settings.tcp_listeners, settings.socket)) as ports:
        several = Inside(settings, ports, recorder)
        monkeypatch.setattr(supervisor_module, "App", Failing)
        monkeypatch.setattr(supervisor_module, "Nursery", lambda *_: several)
        async with asyncio.timeout(8):
            with pytest.raises(OperatorError, match=r"^auth_backends: ldap is not supported yet"):
                await several.supervisor.run()
    assert not recorder.matching("ready on|replaced|internal error")
    assert all(task.done() for task in several.tasks.values())


async def test_a_replacement_that_cannot_start_is_tried_again(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path, fake, monkeypatch) as several:
        several.failure = ForkError("cannot start worker 1: no more processes")
        several.apps[0].stop(hurry=False)
        await several.log.wait_for(r"^worker 1 \(process 1000\) ended with status 0; it is rep")
        await several.log.wait_for(r"^cannot start worker 1: no more processes; it is replaced")
        several.failure = None
        await several.log.wait_for(r"^worker 1 \(process \d+\) listens again")
        await several.login()


async def test_no_replacement_can_be_had_any_more(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path, fake, monkeypatch) as several:
        several.failure = NurseryGoneError("gone")
        several.apps[2].stop(hurry=False)
        await several.until(lambda: all(task.done() for task in several.tasks.values()), 5)
