"""Before the login: how long a client may take, what it is told, and that no broker hears of it.

All cases run at once against one gate, whose handshake_timeout is one second. Times are from
semantics.md 1.1, 1.2, 1.6 and 1.8; RabbitMQ's delays after a failure are not cut short by it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.server.local import LocalGate, gate
from tests.server.peers import BrokerSession, FakeBroker
from tests.support.amqp import CAPABILITIES, LostError
from tests.support.amqp_codec import (
    PROTOCOL_HEADER,
    frame,
    method_frame,
    publish_frames,
)

TIMEOUT = 1.0
SILENCE = 3.0


def start_ok(password: str = "alice", *, told: bool = True) -> bytes:
    return method_frame(
        0,
        "connection.start-ok",
        client_properties={"capabilities": CAPABILITIES if told else {}},
        mechanism="PLAIN",
        response=f"\0alice\0{password}".encode(),
        locale="en_US",
    )


def tune_ok(frame_max: int = 131072, heartbeat: int = 60) -> bytes:
    return method_frame(
        0, "connection.tune-ok", channel_max=2047, frame_max=frame_max, heartbeat=heartbeat
    )


def open_vhost(vhost: bytes = b"/") -> bytes:
    return method_frame(0, "connection.open", virtual_host=vhost)


BEYOND = (
    tune_ok()
    + open_vhost()
    + method_frame(1, "channel.open")
    + publish_frames(1, b"", b"q", b"before the login")
)
"""All that a client which trusts in its login may send behind start-ok."""
CLOSE_OK = method_frame(0, "connection.close-ok")
HEARTBEAT = frame(8, 0, b"")


@dataclass(frozen=True, slots=True)
class Case:
    """data: sent at once, or in ``pieces`` every ``pause`` seconds. after: seconds until the
    socket is closed. replies: the methods that come first. code: of the connection.close."""

    data: bytes
    after: float
    replies: tuple[str, ...] = ()
    code: int = 0
    pieces: int = 1
    pause: float = 0.0
    log: str = "handshake_timeout"
    raw: bytes = b""


START = "connection.start"
TUNE = "connection.tune"
CLOSE = "connection.close"

CASES = {
    # --- handshake_timeout, wherever it stops ---
    "nothing": Case(b"", TIMEOUT, log="{handshake_timeout,handshake}"),
    "half a header": Case(PROTOCOL_HEADER[:5], TIMEOUT, log="{handshake_timeout,handshake}"),
    "no start-ok": Case(PROTOCOL_HEADER, TIMEOUT, (START,)),
    "half a start-ok": Case(PROTOCOL_HEADER + start_ok()[:40], TIMEOUT, (START,)),
    "no tune-ok": Case(PROTOCOL_HEADER + start_ok(), TIMEOUT, (START, TUNE)),
    "no open": Case(PROTOCOL_HEADER + start_ok() + tune_ok(), TIMEOUT, (START, TUNE)),
    "drip by byte": Case(
        PROTOCOL_HEADER + start_ok(), TIMEOUT, (START,), pieces=10_000, pause=0.08
    ),
    "only heartbeats": Case(
        PROTOCOL_HEADER + HEARTBEAT * 40, TIMEOUT, (START,), pieces=40, pause=0.1
    ),
    "drip after login": Case(
        PROTOCOL_HEADER + start_ok() + HEARTBEAT * 50,
        TIMEOUT,
        (START, TUNE),
        pieces=4,
        pause=0.4,
    ),
    # --- no AMQP at all: at once ---
    "HTTP": Case(b"GET / HTTP/1.1\r\n\r\n", 0, raw=b"AMQP\x03\x01\x00\x00", log="HTTP GET request"),
    "AMQP 1.0": Case(
        b"AMQP\x00\x01\x00\x00", 0, raw=b"AMQP\x03\x01\x00\x00", log="closing AMQP connection"
    ),
    # --- refused, three seconds ---
    "wrong password, not told": Case(
        PROTOCOL_HEADER + start_ok("wrong", told=False) + BEYOND,
        SILENCE,
        (START,),
        log="PLAIN login refused",
    ),
    "wrong password, told, no answer": Case(
        PROTOCOL_HEADER + start_ok("wrong") + BEYOND,
        SILENCE,
        (START, CLOSE),
        403,
        log="PLAIN login refused",
    ),
    "wrong password, told, answered": Case(
        PROTOCOL_HEADER + start_ok("wrong") + CLOSE_OK,
        0,
        (START, CLOSE),
        403,
        log="PLAIN login refused",
    ),
    "no login, but a session": Case(
        PROTOCOL_HEADER + BEYOND, SILENCE, (START,), log="{handshake_error,starting,"
    ),
    "a publish first": Case(
        PROTOCOL_HEADER + publish_frames(1, b"", b"q", b"x"),
        SILENCE,
        (START,),
        log="{handshake_error,starting,",
    ),
    "a start-ok too large": Case(
        PROTOCOL_HEADER + frame(1, 0, bytes(8193)), SILENCE, (START,), log="frame_too_large"
    ),
    "tuning beyond the offer": Case(
        PROTOCOL_HEADER + start_ok() + tune_ok(frame_max=131073) + open_vhost(),
        SILENCE,
        (START, TUNE),
        log="failed to negotiate connection parameters",
    ),
    "an unknown method": Case(
        PROTOCOL_HEADER + frame(1, 0, b"\0\x63\0\x63"), 0, (START,), log="unknown_method_id"
    ),
    "a vhost that is not there, heartbeat 3, no answer": Case(
        PROTOCOL_HEADER + start_ok() + tune_ok(heartbeat=3) + open_vhost(b"nowhere") + BEYOND,
        SILENCE,
        (START, TUNE, CLOSE),
        530,
        log="vhost nowhere not found",
    ),
    "a vhost that is not there, answered": Case(
        PROTOCOL_HEADER + start_ok() + tune_ok() + open_vhost(b"nowhere") + CLOSE_OK,
        0,
        (START, TUNE, CLOSE),
        530,
        log="vhost nowhere not found",
    ),
}


async def run(local: LocalGate, case: Case) -> tuple[float, str]:
    """Play a case; seconds until the socket was closed, and the peer as the log names it."""
    loop = asyncio.get_running_loop()
    client = await local.connect()
    host, port = client.writer.get_extra_info("sockname")
    started = loop.time()

    async def feed() -> None:
        step = max(1, len(case.data) // case.pieces)
        for at in range(0, len(case.data), step):
            client.write(case.data[at : at + step])
            await asyncio.sleep(case.pause)

    feeding = loop.create_task(feed())
    seen = []
    if case.raw:
        assert await client.exactly(len(case.raw)) == case.raw
    for name in case.replies:
        _, method = await client.read()
        seen.append(method.name)
        if method.name == CLOSE:
            assert name == CLOSE
            assert method["reply_code"] == case.code
            assert method["class_id"] == (10 if case.code == 530 else 0)
    assert tuple(seen) == case.replies
    already = len(client.raw)
    await client.at_eof(SILENCE + 2)
    assert len(client.raw) == already, "the client was told more"
    feeding.cancel()
    return loop.time() - started, f"{host}:{port}"


async def test_every_way_to_fail_takes_its_time(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port, {"handshake_timeout": 1000}) as local:
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(run(local, case)) for name, case in CASES.items()}
        for name, case in CASES.items():
            took, peer = tasks[name].result()
            assert case.after - 0.05 <= took < case.after + 0.9, (name, took)
            told = [text for _, _, text in local.log.matching(peer)]
            assert any(case.log in text for text in told), (name, told)
            timed_out = any("handshake_timeout" in text for text in told)
            assert timed_out == ("handshake_timeout" in case.log), (name, told)
        # Of all that no broker has heard a thing: only the gate's own question was asked.
        assert [session.purpose for session in fake.all] == [b"probe"]
        assert len(local.registry) == 0


async def test_the_brokers_time_is_not_the_clients(tmp_path: Path, fake: FakeBroker) -> None:
    """The timeout ends with the vhost's grant; a session lives on beyond it, idle."""

    async def slow(session: BrokerSession) -> None:
        await asyncio.sleep(0.5)
        await session.accept()

    fake.login = slow
    async with gate(tmp_path, fake.port, {"handshake_timeout": 400}) as local:
        client = await local.login()
        await asyncio.sleep(0.5)
        await client.open_channel()
        await client.close()
        assert not local.log.matching("handshake_timeout")


async def test_a_grace_longer_than_the_timeout(tmp_path: Path, fake: FakeBroker) -> None:
    """A refused client has its own time to answer, and is not logged a second time."""
    async with gate(tmp_path, fake.port, {"handshake_timeout": 300}) as local:
        client = await local.connect()
        client.write(PROTOCOL_HEADER + start_ok() + tune_ok() + open_vhost(b"nowhere"))
        for name in (START, TUNE, CLOSE):
            assert (await client.read())[1].name == name
        await asyncio.sleep(0.5)
        client.send(0, "connection.close", reply_code=200, reply_text=b"crossing")
        assert (await client.read())[1].name == "connection.close-ok"
        client.write(CLOSE_OK)
        assert await client.at_eof() < 1
        assert not local.log.matching("handshake_timeout")


async def test_everything_in_one_segment(tmp_path: Path, fake: FakeBroker) -> None:
    """Pipelined from the header on: in order, and only after the login."""
    async with gate(tmp_path, fake.port) as local:
        client = await local.connect()
        client.write(PROTOCOL_HEADER + start_ok() + BEYOND)
        for name in (START, TUNE, "connection.open-ok", "channel.open-ok"):
            assert (await client.read())[1].name == name
        session = await fake.client()
        await local.until(lambda: session.names[-1:] == ["basic.publish"], "published")
        assert session.methods[-1][1].body == b"before the login"
        await client.close()


async def test_a_close_in_one_segment_with_everything(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        client = await local.connect()
        client.write(PROTOCOL_HEADER + start_ok() + BEYOND)
        client.send(0, "connection.close", reply_code=200, reply_text=b"")
        names = []
        while not names or names[-1] != "connection.close-ok":
            names.append((await client.read())[1].name)
        assert names == [
            START,
            TUNE,
            "connection.open-ok",
            "channel.open-ok",
            "connection.close-ok",
        ]
        assert await client.at_eof() < 1


async def test_clients_that_leave_in_the_handshake(tmp_path: Path, fake: FakeBroker) -> None:
    """At every step, by FIN and by reset: no trace but a line."""
    steps = [b"", PROTOCOL_HEADER[:4], PROTOCOL_HEADER, PROTOCOL_HEADER + start_ok()]
    steps += [steps[-1] + tune_ok()[:9], steps[-1] + tune_ok()]
    async with gate(tmp_path, fake.port) as local:
        for step in steps:
            for by_reset in (False, True):
                client = await local.connect()
                client.write(step)
                await asyncio.sleep(0.01)
                if by_reset:
                    client.abort()
                else:
                    client.writer.write_eof()
                    await client.at_eof(1)
        silent = len(local.log.matching("no data received"))
        assert silent == 2
        await local.log.wait_for("client unexpectedly closed TCP connection", 2 * (len(steps) - 1))
        assert len(fake.all) == 1


async def test_a_client_that_leaves_while_its_password_is_checked(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """The answer comes when nobody is there any more: nothing breaks (``gate`` checks that)."""
    async with gate(tmp_path, fake.port) as local:
        engine = local.app._gate.engine
        original = engine.login
        go = asyncio.Event()

        async def slow(*args: object) -> object:
            await go.wait()
            return await original(*args)  # type: ignore[arg-type]

        engine.login = slow  # type: ignore[method-assign,assignment]
        for password in ("alice", "wrong"):
            client = await local.connect()
            client.write(PROTOCOL_HEADER + start_ok(password))
            await client.expect(START)
            client.abort()
        await asyncio.sleep(0.05)
        go.set()
        await local.log.wait_for("unexpectedly closed")
        await local.log.wait_for("failed to authenticate")


async def test_an_extra_long_response_is_refused_like_any_other(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """As large as a frame may be before the tuning: read, refused, forgotten."""
    async with gate(tmp_path, fake.port) as local:
        client = await local.connect()
        room = 8192 - (len(start_ok("")) - 8)  # RabbitMQ's limit is on the payload
        client.write(PROTOCOL_HEADER + start_ok("x" * room))
        await client.expect(START)
        method = (await client.read())[1]
        assert (method.name, method["reply_code"]) == (CLOSE, 403)
        client.write(CLOSE_OK)
        with pytest.raises(LostError):
            await client.read()
