"""SIGTERM: with and without time to leave, in order, and always to an end."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from gatekeeper import app as app_module
from tests.server.local import gate
from tests.server.peers import BrokerSession, Client, FakeBroker
from tests.support.amqp import LostError
from tests.support.gate import Gate, GateConfig, run_gate
from tests.support.process import LOOPBACK, listens
from tests.support.rabbit import service_account

SHUTDOWN = b"CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"


async def test_clients_are_told_and_the_broker_is_left_in_order(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with gate(tmp_path, fake.port) as local:
        clients = [await local.login(), await local.login("bob")]
        started = time.monotonic()
        local.terminate()
        for client in clients:
            close = await client.closed()
            assert (close["reply_code"], close["reply_text"]) == (320, SHUTDOWN)
            assert await client.at_eof() < 1
        await local.running
        assert time.monotonic() - started < 1
        assert len(local.log.matching("^Closing AMQP connection .* 'shutdown'")) == 2
        assert local.log.lines[-1] == ("info", "default", "stopped")
        for session in fake.sessions:
            async with asyncio.timeout(1):
                await session.ended.wait()
            assert "connection.close" in session.names


async def test_a_client_that_does_not_answer_is_not_waited_for_long(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app_module.CLOSING == 3.0
    async with gate(tmp_path, fake.port) as local:  # which sets CLOSING to 0.5
        deaf = await local.login()
        half_open = await local.connect()
        await half_open.greet()
        started = time.monotonic()
        local.terminate()
        await local.running
        assert 0.4 < time.monotonic() - started < 2
        await deaf.at_eof()
        with pytest.raises(LostError):
            await half_open.read()  # just closed: it is not told anything


async def test_draining_lets_clients_finish(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port, {"drain_timeout": 20_000}) as local:
        client = await local.login(channel=True)
        started = time.monotonic()
        local.terminate()
        await local.log.wait_for("draining: 1 connections have 20 s to end")
        assert not listens(local.port)
        assert (await client.call(1, "queue.declare", queue="q")).name == "queue.declare-ok"
        await client.close()
        async with asyncio.timeout(2):
            await local.running
        assert time.monotonic() - started < 3
        assert not local.log.matching("shutdown")


async def test_draining_ends(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port, {"drain_timeout": 300}) as local:
        client = await local.login()
        started = time.monotonic()
        local.terminate()
        assert (await client.closed())["reply_text"] == SHUTDOWN
        assert 0.25 < time.monotonic() - started < 1.5
        await local.running


async def test_a_second_signal_does_not_wait(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port, {"drain_timeout": 20_000}) as local:
        client = await local.login()
        local.terminate()
        await local.log.wait_for("draining")
        local.terminate()
        assert (await client.closed())["reply_text"] == SHUTDOWN
        async with asyncio.timeout(2):
            await local.running


async def test_a_stop_while_the_broker_hangs_in_a_handshake(
    tmp_path: Path, fake: FakeBroker
) -> None:
    fake.login = BrokerSession.never
    async with gate(tmp_path, fake.port) as local:
        client = await local.connect()
        task = asyncio.get_running_loop().create_task(client.shake("alice", "alice"))
        await local.until(lambda: len(fake.sessions) == 1, "the broker is asked")
        started = time.monotonic()
        local.terminate()
        await local.running
        assert time.monotonic() - started < 2
        with pytest.raises(LostError):
            await task
        await fake.sessions[0].at_eof(1)


async def test_the_process_ends_with_status_0(tmp_path: Path, fake: FakeBroker) -> None:
    config = GateConfig(tmp_path, upstream=fake.port).with_definitions(service_account("pw", "u"))
    process = Gate(config).process
    config.set("drain_timeout", 0).write()
    process.start()
    try:
        await asyncio.to_thread(process.wait_for, lambda: listens(config.port), what="listens")
        client = await Client.connect(config.port)
        await client.shake("u", "pw")
        process.signal(signal.SIGTERM)
        assert (await client.closed())["reply_text"] == SHUTDOWN
        assert await asyncio.to_thread(process.wait, 5) == 0
        client.abort()
    finally:
        process.kill()
    assert "Traceback" not in process.output()


def test_a_start_that_fails_is_one_line_and_status_1(tmp_path: Path) -> None:
    config = GateConfig(tmp_path, upstream=1).set("listeners.tcp.1", "192.0.2.1:5672")
    done = run_gate("--config", config.write())
    assert done.returncode == 1
    line = done.stderr.strip()
    assert line.startswith("gatekeeper: cannot listen on 192.0.2.1:5672")
    assert "\n" not in line
    assert LOOPBACK not in line
