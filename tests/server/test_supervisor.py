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
from gatekeeper.protocol.states import State
from gatekeeper.server.exchanges import ExchangeKind
from gatekeeper.server.messages import Message, Statistics
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


async def test_the_fleet(tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with inside(tmp_path, fake, monkeypatch) as several:
        clients = await several.spread()
        for client in clients:
            await client.open_channel(3)
            await client.open_channel(1)
        fleet = several.supervisor.fleet
        infos = await fleet.connections()
        assert len(infos) == len(clients)
        assert [info.number for info in infos] == sorted(info.number for info in infos)
        assert {(info.state, info.channels, info.user) for info in infos} == {
            ("running", 2, b"alice")
        }
        channels = [(info.connection, info.number) for info in await fleet.channels()]
        assert channels == [(info.number, at) for info in infos for at in (1, 3)]
        assert sorted(await fleet.statistics()) == [1, 2, 3]
        (upstream,) = fleet.upstreams()
        assert upstream.status.reachable
        assert await fleet.close(number=infos[0].number, reason=b"you") == 1
        # A change by a thread of the supervisor's is in force when `settle` returns.
        await asyncio.to_thread(several.supervisor._store.delete_user, b"alice")
        await fleet.settle()
        assert all(app._store.user(b"alice") is None for app in several.apps)
        for app in several.apps:
            for live in app._registry:
                assert live.session is not None
                assert live.session.state is not State.RUNNING
        ends = {bytes((await client.closed())["reply_text"]) for client in clients}
        assert ends == {
            b"CONNECTION_FORCED - you",
            b"CONNECTION_FORCED - user 'alice' is deleted",
        }


async def test_max_channels_over_all_workers(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ's text; what ends, however, is free again; a limit of now counts."""
    text = b"NOT_ALLOWED - number of channels opened for user 'alice' has reached the maximum "
    text += b"allowed user limit of %d"
    async with inside(tmp_path, fake, monkeypatch) as several:
        clients = list(await several.spread())
        hub, store, fleet = (
            several.supervisor.hub,
            several.supervisor._store,
            several.supervisor.fleet,
        )
        for client in clients:
            await client.open_channel(1)
        limit = len(clients) + 2
        await asyncio.to_thread(store.set_user_limits, b"alice", {"max-channels": limit})
        await fleet.settle()
        await clients[0].open_channel(2)
        await clients[-1].open_channel(2)
        assert hub.channel_count(b"alice") == limit
        clients[1].send(2, "channel.open")
        assert (await clients[1].closed())["reply_text"] == text % limit
        clients.pop(1)
        await several.until(lambda: hub.channel_count(b"alice") == limit - 1, 3)
        clients[0].abort()
        clients.pop(0)
        await several.until(lambda: hub.channel_count(b"alice") == limit - 3, 3)
        # Churn, closes by either side, and refusals leave nothing behind.
        client = clients[0]
        for number in range(10, 60):
            await client.open_channel(number)
            client.send(number, "channel.close", reply_code=200, reply_text=b"")
            await client.expect("channel.close-ok", number)
        store.set_permissions(b"alice", b"/", b"", b"", b"")
        await fleet.settle()
        for number in range(60, 70):
            await client.open_channel(number)
            client.publish(number, b"amq.topic", b"k")
            await client.expect("channel.close", number)
            client.send(number, "channel.close-ok")
        await several.until(lambda: hub.channel_count(b"alice") == limit - 3, 3)
        counted = sum(app._registry.channel_count(b"alice") for app in several.apps)
        assert counted == limit - 3
        store.clear_user_limits(b"alice")
        await fleet.settle()
        await client.open_channel(99)
        await several.until(lambda: hub.channel_count(b"alice") == limit - 2, 3)
        assert await fleet.close(user=b"alice", reason=b"x") == len(clients)
        for each in clients:
            await each.closed()
        await several.until(lambda: hub.channel_count(b"alice") is None, 3)
        members = [app._place.member for app in several.apps if app._place is not None]
        await several.until(lambda: not any(member._watched for member in members), 3)


async def test_a_worker_that_answers_nothing_is_killed(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert supervisor_module.PING_TIMEOUT * supervisor_module.PINGS_MISSED == 15
    monkeypatch.setattr(supervisor_module, "PING_TIMEOUT", 0.05)
    async with inside(tmp_path, fake, monkeypatch) as several:
        killed: list[int] = []

        def kill(pid: int) -> None:
            killed.append(pid)
            channel.close()  # as a killed process does

        monkeypatch.setattr(several, "kill", kill)
        place = several.apps[1]._place
        assert place is not None
        channel = place.member._channel
        assert channel is not None
        received = channel._on_message
        asked: list[Message] = []
        # One answer that does not come, as of a busy worker, is no reason.
        channel._on_message = asked.append
        await several.until(lambda: asked, 3)
        answered: list[Message] = []

        def answer(message: Message) -> None:
            answered.append(message)
            received(message)

        channel._on_message = answer
        await several.until(lambda: len(answered) > 1, 3)
        assert not killed
        asked.clear()
        channel._on_message = asked.append
        line = await several.log.wait_for(r"^worker \d \(process \d+\) has answered nothing for ")
        assert line.endswith("has answered nothing for 0.15 s: killed")
        assert killed == [int(line.partition("(process ")[2].partition(")")[0])]
        assert len(asked) == 3
        assert {type(message) for message in asked} == {Statistics}
        await several.log.wait_for(r"listens again")


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
