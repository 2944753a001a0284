"""Several processes, as an operator has them: the real command, its children, kill and signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gatekeeper.config.settings import Address, SocketOptions
from gatekeeper.errors import ConfigError
from gatekeeper.server.listener import listening_socket
from gatekeeper.server.ports import HeldPorts
from gatekeeper.store.store import Store
from tests.server.peers import Client, FakeBroker
from tests.support.amqp import LostError, RefusedError
from tests.support.gate import Gate, GateConfig, run_gate
from tests.support.process import LOOPBACK, free_port, listens, wait_until
from tests.support.rabbit import TlsFiles, definitions, permission, user

SHUTDOWN = b"CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"
USERS = definitions(
    users=[user("alice", "alice"), user("bob", "bob")],
    vhosts=["/", "v2"],
    permissions=[permission("alice"), permission("alice", "v2"), permission("bob")],
)


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def holder(pids: list[int], client: Client) -> int:
    """Which of the processes has the other end of a client's connection."""
    sock = client.writer.get_extra_info("socket")
    ends = (sock.getpeername()[1], sock.getsockname()[1])
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if tuple(int(word.partition(":")[2], 16) for word in words[1:3]) == ends:
            wanted = f"socket:[{words[9]}]"
            for pid in pids:
                for link in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(FileNotFoundError):
                        if os.readlink(link) == wanted:  # noqa: PTH115 - it is no path
                            return pid
    raise AssertionError(f"nobody of {pids} holds {ends}")


class Workers:
    """A gate of several processes."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.clients: list[Client] = []

    @property
    def supervisor(self) -> int:
        return self.gate.process.pid

    @property
    def nursery(self) -> int:
        (pid,) = children(self.supervisor)
        return pid

    def pids(self) -> list[int]:
        return children(self.nursery)

    async def login(self, name: str = "alice", vhost: str = "/") -> Client:
        client = await Client.connect(self.gate.port)
        self.clients.append(client)
        await client.shake(name, name, vhost)
        return client

    async def spread(self) -> dict[int, list[Client]]:
        """At least two clients on each worker, by the worker's pid."""
        pids = self.pids()
        held: dict[int, list[Client]] = {pid: [] for pid in pids}
        for _ in range(60):
            client = await self.login()
            held[holder(pids, client)].append(client)
            if all(len(each) >= 2 for each in held.values()):
                return held
        raise AssertionError(f"not spread: {Counter({p: len(c) for p, c in held.items()})}")

    async def until(self, condition: Callable[[], Any], what: str, within: float = 10) -> Any:
        return await asyncio.to_thread(
            self.gate.process.wait_for, condition, timeout=within, what=what
        )

    async def logged(self, pattern: str, within: float = 10) -> str:
        found: re.Match[str] = await self.until(
            lambda: re.search(pattern, self.gate.log_text(), re.MULTILINE), pattern, within
        )
        return found[0]

    def store(self) -> contextlib.closing[Store]:
        """The store, as another process has it open."""
        return contextlib.closing(Store.open(self.gate.config.values["store.url"]))


@contextlib.asynccontextmanager
async def workers(
    folder: Path, broker: FakeBroker, count: int = 2, **values: str | int
) -> AsyncIterator[Workers]:
    """Fails the test if anything crashed in any of the processes."""
    config = GateConfig(folder, upstream=broker.port).with_definitions(USERS)
    config.set("workers", count).set("drain_timeout", 0)
    for key, value in values.items():
        config.set(key, value)
    config.write()
    several = Workers(Gate(config))
    several.gate.process.start()
    try:
        await several.logged(r" ready on ")
        yield several
    finally:
        for client in several.clients:
            client.abort()
        await asyncio.to_thread(several.gate.stop)
    text = several.gate.log_text()
    assert "Traceback" not in text, text
    assert "internal error" not in text, text


async def open_ok(client: Client, channel: int = 1) -> bool:
    """Does it still have a session?"""
    with contextlib.suppress(LostError):
        return (await client.call(channel, "channel.open")).name == "channel.open-ok"
    return False


# --- one gate ---


async def test_clients_are_spread_and_numbered_apart(tmp_path: Path, fake: FakeBroker) -> None:
    async with workers(tmp_path, fake, 3) as several:
        line = await several.logged(r"gatekeeper \S+ ready on .*")
        assert f"amqp://{LOOPBACK}:{several.gate.port}; 3 workers; " in line
        assert len(several.pids()) == 3
        await several.spread()
        for client in several.clients:
            assert await open_ok(client)
    text = several.gate.log_text()
    assert text.count(" ready on ") == 1
    assert text.count("stopped") == 1
    closed = re.findall(r"[Cc]losing AMQP connection <0\.(\d+)\.0>", text)
    assert len(set(closed)) == len(several.clients)  # two that share a number would be one


async def test_a_dead_worker_takes_its_own_connections_and_is_replaced(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with workers(tmp_path, fake) as several:
        held = await several.spread()
        victim, survivor = held
        os.kill(victim, signal.SIGKILL)
        for client in held[victim]:
            await client.at_eof(2)
        for client in held[survivor]:
            assert await open_ok(client)
        await several.logged(
            rf"\[error\] worker \d \(process {victim}\) was killed by SIGKILL; "
            r"it is replaced in 0\.1 s"
        )
        await several.logged(r"worker \d \(process \d+\) listens again")
        assert len(several.pids()) == 2
        assert survivor in several.pids()
        assert victim not in several.pids()
        for each in (await several.spread()).values():
            for client in each:
                assert await open_ok(client)
    closed = re.findall(r"[Cc]losing AMQP connection <0\.(\d+)\.0>", several.gate.log_text())
    assert len(set(closed)) == len(several.clients) - len(held[victim])


async def test_a_worker_that_dies_again_and_again_is_replaced_later_and_later(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with workers(tmp_path, fake) as several:
        keep = several.pids()[1]
        for pause in ("0.1", "0.2", "0.4"):
            (victim,) = [pid for pid in several.pids() if pid != keep]
            os.kill(victim, signal.SIGKILL)
            await several.logged(rf"process {victim}\) was killed .* replaced in {pause} s")
            await several.until(
                lambda victim=victim: re.search(
                    r"listens again", several.gate.log_text().partition(f"{victim}) was")[2]
                ),
                "is replaced",
            )


async def test_limits_hold_over_all_workers(tmp_path: Path, fake: FakeBroker) -> None:
    async with workers(tmp_path, fake) as several:
        first = await several.login("bob")  # before there is a limit
        with several.store() as store:
            store.set_user_limits(b"bob", {"max-connections": 3})
        await asyncio.sleep(1.3)
        outcomes, inside = [], []
        for _ in range(10):
            try:
                inside.append(await several.login("bob"))
                outcomes.append("in")
            except RefusedError as refused:
                outcomes.append(str(refused.code))
                said = refused.text
        assert Counter(outcomes) == {"in": 2, "530": 8}
        assert said == (
            b"NOT_ALLOWED - connection refused for user 'bob': user connection limit (3) is reached"
        )
        assert await open_ok(first)
        await first.close()
        await asyncio.sleep(0.1)
        inside.append(await several.login("bob"))
        # A worker's death frees what it held, and only that.
        pids = several.pids()
        victim = holder(pids, inside[0])
        lost = [client for client in inside if holder(pids, client) == victim]
        os.kill(victim, signal.SIGKILL)
        await several.logged("listens again")
        for _ in lost:
            await several.login("bob")
        with pytest.raises(RefusedError):
            await several.login("bob")
        with several.store() as store:
            store.set_vhost_limits(b"v2", {"max-connections": 0})
        await asyncio.sleep(1.3)
        with pytest.raises(RefusedError, match=r"connection limit \(0\) is reached"):
            await several.login("alice", "v2")


async def test_a_killed_workers_channels_are_free(tmp_path: Path, fake: FakeBroker) -> None:
    async with workers(tmp_path, fake) as several:
        with several.store() as store:
            store.set_user_limits(b"alice", {"max-channels": 4})
        await asyncio.sleep(1.3)
        held = await several.spread()
        victim, survivor = held
        for pid in (victim, survivor):
            for client in held[pid][:2]:
                assert await open_ok(client)
        extra = await several.login()
        extra.send(1, "channel.open")
        assert (await extra.closed())["reply_text"].endswith(b"maximum allowed user limit of 4")
        for _ in range(2):
            os.kill(victim, signal.SIGKILL)
            await several.until(
                lambda victim=victim: victim not in several.pids() and len(several.pids()) == 2,
                "is replaced",
            )
            (victim,) = [pid for pid in several.pids() if pid != survivor]
            # Two places are free, whoever takes them; not three.
            again = held[survivor][0]
            await again.open_channel(10)
            await again.open_channel(11)
            extra = await several.login()
            extra.send(1, "channel.open")
            assert (await extra.closed())["reply_text"].endswith(b"user limit of 4")
            for number in (10, 11):
                again.send(number, "channel.close", reply_code=200, reply_text=b"")
                await again.expect("channel.close-ok", number)


async def test_revocation_reaches_every_worker(tmp_path: Path, fake: FakeBroker) -> None:
    async with workers(tmp_path, fake) as several:
        held = await several.spread()
        everyone = [client for each in held.values() for client in each]
        for client in everyone:
            await client.open_channel()
        with several.store() as store:
            store.set_permissions(b"alice", b"/", b".*", b"^$", b".*")
        await asyncio.sleep(1.2)
        for client in everyone:
            client.publish(1, b"", b"q")
            _, method = await client.read()
            assert (method.name, method["reply_code"]) == ("channel.close", 403)
        with several.store() as store:
            store.delete_user(b"alice")
        begin = time.monotonic()
        for client in everyone:
            close = await client.closed()
            assert close["reply_text"] == b"CONNECTION_FORCED - user 'alice' is deleted"
        assert time.monotonic() - begin < 1.2


async def test_a_lost_right_to_read_reaches_every_worker(tmp_path: Path, fake: FakeBroker) -> None:
    """Nobody sends anything: the consumers are found by the change itself."""
    async with workers(tmp_path, fake) as several:
        held = await several.spread()
        for client in several.clients:
            await client.open_channel()
            client.send(1, "basic.consume", queue="lost", consumer_tag="t")
            await client.expect("basic.consume-ok", 1)
        with several.store() as store:
            store.set_permissions(b"alice", b"/", b".*", b".*", b"^kept$")
        for each in held.values():
            for client in each:
                await client.expect("basic.cancel", 1)
                assert await open_ok(client, 2)


async def test_a_changed_password_reaches_every_worker(tmp_path: Path, fake: FakeBroker) -> None:
    closes = {"gatekeeper.password_change_closes_connections": "true"}
    async with workers(tmp_path, fake, **closes) as several:
        held = await several.spread()
        with several.store() as store:
            store.change_password(b"alice", b"new")
        for each in held.values():
            for client in each:
                close = await client.closed()
                assert close["reply_text"] == (
                    b"CONNECTION_FORCED - password of user 'alice' is changed"
                )


async def test_sigterm_drains(tmp_path: Path, fake: FakeBroker) -> None:
    async with workers(tmp_path, fake, drain_timeout=20_000) as several:
        held = await several.spread()
        several.gate.process.signal(signal.SIGTERM)
        for pid in several.pids():
            os.kill(pid, signal.SIGTERM)  # as a service manager does: it must not count twice
        await several.until(lambda: not listens(several.gate.port), "stops listening", 3)
        assert several.gate.log_text().count("draining: ") == 2
        for each in held.values():
            for client in each:
                assert await open_ok(client)
                await client.close()
        assert await asyncio.to_thread(several.gate.process.wait, 3) == 0
    assert "shutdown" not in several.gate.log_text()


async def test_a_second_signal_hurries(tmp_path: Path, fake: FakeBroker) -> None:
    async with workers(tmp_path, fake, drain_timeout=20_000) as several:
        held = await several.spread()
        several.gate.process.signal(signal.SIGINT)
        await several.logged("draining")
        several.gate.process.signal(signal.SIGINT)
        for each in held.values():
            for client in each:
                assert (await client.closed())["reply_text"] == SHUTDOWN
        for client in several.clients:
            client.abort()
        assert await asyncio.to_thread(several.gate.process.wait, 3) == 0


async def test_another_gate_may_start_while_this_one_drains(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with workers(tmp_path / "a", fake, drain_timeout=20_000) as several:
        client = await several.login()
        several.gate.process.signal(signal.SIGTERM)
        await several.until(lambda: not listens(several.gate.port), "stops listening", 3)
        config = GateConfig(tmp_path / "b", upstream=fake.port, port=several.gate.port)
        config.with_definitions(USERS).set("workers", 2)
        with Gate(config):
            assert await open_ok(client)
        await client.close()
        assert await asyncio.to_thread(several.gate.process.wait, 3) == 0


async def test_workers_stop_in_order_when_the_supervisor_is_killed(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with workers(tmp_path, fake) as several:
        held = await several.spread()
        pids = [several.nursery, *several.pids()]
        several.gate.process.kill()
        for each in held.values():
            for client in each:
                assert (await client.closed())["reply_text"] == SHUTDOWN
        for client in several.clients:
            client.abort()
        await asyncio.to_thread(
            wait_until, lambda: not any(map(is_running, pids)), timeout=5, what=f"{pids} end"
        )
    text = several.gate.log_text()
    assert text.count("the supervisor is gone: this worker stops in order") == 2


async def test_a_stopped_worker_is_killed_in_the_end(tmp_path: Path, fake: FakeBroker) -> None:
    """It does not hear the order to stop; a second signal shortens the wait."""
    async with workers(tmp_path, fake) as several:
        deaf = several.pids()[0]
        os.kill(deaf, signal.SIGSTOP)
        several.gate.process.signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        several.gate.process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(several.gate.process.wait, 15) == 0
        assert f"(process {deaf}) does not end: killed" in several.gate.log_text()
        assert not is_running(deaf)


async def test_without_the_nursery_it_goes_on_until_a_worker_dies(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with workers(tmp_path, fake) as several:
        held = await several.spread()
        pids = several.pids()
        os.kill(several.nursery, signal.SIGKILL)
        await several.logged(r"\[error\] the process that starts the workers is gone")
        for each in held.values():
            for client in each:
                assert await open_ok(client)
        os.kill(pids[0], signal.SIGKILL)
        for client in held[pids[1]]:
            assert (await client.closed())["reply_text"] == SHUTDOWN
        for client in several.clients:
            client.abort()
        assert await asyncio.to_thread(several.gate.process.wait, 15) == 1
        assert not any(map(is_running, pids))
    last = several.gate.log_text().strip().splitlines()[-1]
    assert last.startswith("gatekeeper: the process that starts the workers is gone")


# --- a start that fails ---


def failing(folder: Path, **values: str | int) -> str:
    config = GateConfig(folder, upstream=1).with_definitions(USERS).set("workers", 2)
    for key, value in values.items():
        config.set(key.replace("__", "."), value)
    done = run_gate("--config", config.write(), timeout=20)
    assert done.returncode == 1, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done
    assert lines[0].startswith("gatekeeper: ")
    assert "ready on" not in done.stdout
    return lines[0]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server((LOOPBACK, 0), reuse_port=True) as server:
        yield server.getsockname()[1]


def test_a_port_in_use(tmp_path: Path, taken: int) -> None:
    """Even by a listener that would share it."""
    line = failing(tmp_path, listeners__tcp__1=f"{LOOPBACK}:{taken}")
    assert f"cannot listen on {LOOPBACK}:{taken}: the port is in use" in line
    assert not (tmp_path / "store.db").exists()


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 1), (1, 2)])
async def test_two_gates_do_not_share_a_port(
    tmp_path: Path, fake: FakeBroker, first: int, second: int
) -> None:
    async with workers(tmp_path / "a", fake, first) as several:
        line = await asyncio.to_thread(
            failing,
            tmp_path / "b",
            listeners__tcp__1=f"{LOOPBACK}:{several.gate.port}",
            workers=second,
        )
        assert "the port is in use" in line
        await several.login()


def test_a_store_that_cannot_be_opened(tmp_path: Path) -> None:
    assert "store.url: " in failing(tmp_path, store__url=f"sqlite://{tmp_path}/no/such/store.db")


def test_a_bad_certificate(tmp_path: Path, tls_files: TlsFiles) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
    line = failing(
        tmp_path,
        listeners__ssl__1=f"{LOOPBACK}:{free_port()}",
        ssl_options__certfile=str(bad),
        ssl_options__keyfile=str(tls_files.key),
    )
    assert "certfile" in line


async def test_tls_and_a_port_that_the_system_chooses(
    tmp_path: Path, fake: FakeBroker, tls_files: TlsFiles
) -> None:
    options = {
        "listeners.tcp.1": f"{LOOPBACK}:0",
        "listeners.ssl.1": f"{LOOPBACK}:0",
        "ssl_options.certfile": str(tls_files.certificate),
        "ssl_options.keyfile": str(tls_files.key),
    }
    async with workers(tmp_path, fake, **options) as several:
        line = await several.logged(r" ready on .*")
        found = re.search(rf"amqp://{LOOPBACK}:(\d+), amqps://{LOOPBACK}:(\d+);", line)
        assert found is not None
        assert all(listens(int(port)) for port in found.groups())


# --- ports ---


def test_held_ports() -> None:
    wanted = (Address(host=LOOPBACK, port=0), Address(host="", port=0))
    options = SocketOptions()
    with contextlib.closing(HeldPorts(wanted, options)) as held:
        for address in held.addresses:
            assert address.port
            assert not listens(address.port)
            with pytest.raises(ConfigError, match="the port is in use"):
                HeldPorts((address,), options)
            with pytest.raises(ConfigError, match="the port is in use"):
                listening_socket(address, options)
            with (
                listening_socket(address, options, shared=True),
                listening_socket(address, options, shared=True),
            ):
                assert listens(address.port)
                with pytest.raises(ConfigError, match="the port is in use"):
                    HeldPorts((address,), options)
            assert not listens(address.port)
    for address in held.addresses:
        HeldPorts((address,), options).close()


def test_of_two_that_start_at_once_one_gets_the_port() -> None:
    """The first has bound its socket, and neither listens yet."""
    address = Address(host=LOOPBACK, port=free_port())
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((LOOPBACK, address.port))
        with (
            contextlib.closing(HeldPorts((address,), SocketOptions())),
            pytest.raises(OSError, match="in use"),
        ):
            other.listen()


def test_definitions_are_loaded_once(tmp_path: Path) -> None:
    """The supervisor alone prepares the store; its warnings come once."""
    document = {**USERS, "queues": [{"name": "q", "vhost": "/"}]}
    config = GateConfig(tmp_path, upstream=1).with_definitions(document).set("workers", 3)
    with Gate(config) as gate:
        gate.process.wait_for(lambda: "ready on" in gate.log_text(), what="is ready")
    warnings = [line for line in gate.log_text().splitlines() if "queues" in line]
    assert len(warnings) == 1, json.dumps(warnings)
