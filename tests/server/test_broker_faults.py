"""A broker that fails: in its handshake, and in the middle of a session.

The client is always told, by a code that says it is not at fault, and the operator reads why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gatekeeper import app as app_module
from gatekeeper.server import pump, upstreams
from tests.server.local import LocalGate, gate
from tests.server.peers import BrokerSession, Client, FakeBroker, Hook, Talker
from tests.support.amqp import LostError, RefusedError
from tests.support.amqp_codec import frame, method_frame

UNAVAILABLE = (320, b"CONNECTION_FORCED - upstream broker is unavailable")
INTERNAL = (541, b"INTERNAL_ERROR - upstream broker refused the connection")


async def refused_login(local: LocalGate, **more: object) -> tuple[int, bytes]:
    with pytest.raises(RefusedError) as caught:
        await local.login(**more)
    method = caught.value.method
    assert (method["class_id"], method["method_id"]) == (10, 40)
    return caught.value.code, caught.value.text


# --- in the handshake ---


async def refuses_login(session: BrokerSession) -> None:
    await session.refuse(403, b"ACCESS_REFUSED - Login was refused")


async def refuses_vhost(session: BrokerSession) -> None:
    await session.tune()
    await session.refuse(530, b"NOT_ALLOWED - access to vhost '/' refused for user 'gatekeeper'")


async def refuses_in_a_strange_way(session: BrokerSession) -> None:
    await session.tune()
    await session.refuse(999, b"because")


async def sends_garbage(session: BrokerSession) -> None:
    session.write(b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0aX")
    await session.at_eof()


async def speaks_another_protocol(session: BrokerSession) -> None:
    session.write(b"AMQP\x03\x01\x00\x00")
    await session.at_eof()


async def allows_less(session: BrokerSession) -> None:
    session.send(0, "connection.tune", channel_max=1, frame_max=131072, heartbeat=60)
    await session.at_eof()


async def closes(session: BrokerSession) -> None:
    session.writer.close()


async def resets(session: BrokerSession) -> None:
    session.abort()


async def drips(session: BrokerSession) -> None:
    """Half a connection.tune, one byte at a time, for ever."""
    for byte in method_frame(0, "connection.tune")[:-1] * 100:
        session.write(bytes((byte,)))
        await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Fault:
    """login: what the broker does at start-ok. answer: what the client is told. log: and we."""

    login: Hook
    answer: tuple[int, bytes]
    log: str


FAULTS = [
    Fault(refuses_login, INTERNAL, "403 ACCESS_REFUSED - Login was refused"),
    Fault(
        refuses_vhost,
        (530, b"NOT_ALLOWED - access to vhost '/' refused for user 'alice'"),
        "530 NOT_ALLOWED - access to vhost '/' refused for user 'gatekeeper'",
    ),
    Fault(refuses_in_a_strange_way, (541, b"INTERNAL_ERROR - because"), "999 because"),
    Fault(sends_garbage, UNAVAILABLE, "upstream default: malformed frame of type 1"),
    Fault(speaks_another_protocol, UNAVAILABLE, "upstream default: malformed frame of type 65"),
    Fault(allows_less, UNAVAILABLE, "upstream default: the broker allows channel_max 1"),
    Fault(closes, UNAVAILABLE, "the broker closed the connection during the handshake"),
    Fault(resets, UNAVAILABLE, "the broker closed the connection during the handshake"),
    Fault(BrokerSession.never, UNAVAILABLE, "the broker did not finish the handshake within"),
    Fault(drips, UNAVAILABLE, "the broker did not finish the handshake within"),
]


async def test_handshake_faults_refuse_the_vhost(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstreams, "HANDSHAKE_TIMEOUT", 0.5)
    async with gate(tmp_path, fake.port) as local:
        for count, fault in enumerate(FAULTS, 1):
            fake.login = fault.login
            assert await refused_login(local) == fault.answer, fault
            line = await local.log.wait_for("no session with the broker", count)
            assert fault.log in line
            assert "s3rvice" not in line
        fake.login = BrokerSession.accept
        async with await local.login():
            # Refused clients that have not closed yet take nobody's place.
            assert len(local.registry) == 1


async def test_a_broker_that_is_away_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "FIRST_ANSWER", 0.1)
    monkeypatch.setattr(app_module, "RETRY_FIRST", 0.05)
    broker = FakeBroker()
    async with broker:
        port = broker.port
    async with gate(tmp_path, port) as local:
        warning = await local.log.wait_for("clients are refused until it is back")
        assert f"127.0.0.1:{port}: Connection refused" in warning
        assert await refused_login(local) == UNAVAILABLE
        back = FakeBroker()
        back.port = port
        async with back:
            await local.log.wait_for("upstream default: Fake 1.2.3 answers")
            async with await local.login():
                pass
        # One warning for one absence, however often it was tried.
        assert len(local.log.matching("clients are refused until it is back")) == 1


async def test_a_client_that_leaves_while_the_broker_thinks(
    tmp_path: Path, fake: FakeBroker
) -> None:
    go = asyncio.Event()

    async def slow(session: BrokerSession) -> None:
        await session.tune()
        await go.wait()
        session.send(0, "connection.open-ok")

    fake.login = slow
    async with gate(tmp_path, fake.port) as local:
        client = await local.connect()
        task = asyncio.get_running_loop().create_task(client.shake("alice", "alice"))
        await local.until(lambda: len(fake.sessions) == 1, "the broker is asked")
        client.abort()
        with pytest.raises(LostError):
            await task
        await asyncio.sleep(0.05)
        go.set()
        async with asyncio.timeout(2):
            await fake.sessions[0].at_eof()
        await local.until(lambda: len(local.registry) == 0, "unregistered")


# --- in a session ---


async def vanishes(session: BrokerSession) -> None:
    session.abort()


async def ends(session: BrokerSession) -> None:
    session.writer.close()


def sending(data: bytes) -> Callable[[BrokerSession], Awaitable[None]]:
    async def hook(session: BrokerSession) -> None:
        session.write(data)
        await session.at_eof()

    return hook


SESSION_FAULTS: list[tuple[Hook, int, bytes]] = [
    (vanishes, 320, b"CONNECTION_FORCED - upstream broker connection lost"),
    (ends, 320, b"CONNECTION_FORCED - upstream broker connection lost"),
    (
        sending(frame(1, 0, b"\0\x0a\0\x0a", end=1)),
        541,
        b"INTERNAL_ERROR - upstream broker: the broker sent a malformed frame",
    ),
    (
        sending(frame(7, 0, b"")),
        541,
        b"INTERNAL_ERROR - upstream broker: the broker sent a frame of unknown type 7",
    ),
    (
        sending(method_frame(0, "connection.tune")),
        541,
        b"INTERNAL_ERROR - upstream broker: the broker sent method 10.30 in a running connection",
    ),
    (
        sending(frame(1, 0, b"\0\x0a\0\x32\x01")),
        541,
        b"INTERNAL_ERROR - upstream broker: the broker sent a malformed method 10.50",
    ),
]


async def test_session_faults_end_it_at_once(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        for count, (fault, code, text) in enumerate(SESSION_FAULTS, 1):
            fake.session = fault
            client = await local.login()
            async with asyncio.timeout(1):
                close = await client.closed()
            assert close["reply_code"] == code
            assert close["reply_text"].startswith(text)
            assert await client.at_eof() < 1
            line = await local.log.wait_for(r"^Closing AMQP connection <0\.", count)
            assert close["reply_text"].partition(b" - ")[2].decode() in line


async def beat(peer: Talker, count: int = 1000) -> None:
    """A heartbeat every half second, ``count`` times."""
    for _ in range(count):
        peer.write(frame(8, 0, b""))
        await asyncio.sleep(0.5)


async def leaves_first(session: BrokerSession) -> None:
    """A broker that notices the client's silence before the gate does."""
    await beat(session, 4)
    await asyncio.sleep(0.2)
    session.abort()


async def told_of_a_silent_broker(client: Client) -> None:
    """Told between two and four seconds."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    beating = loop.create_task(beat(client))
    close = await client.closed()
    assert 1.9 < loop.time() - started < 4
    text = b"CONNECTION_FORCED - missed heartbeats from upstream broker, timeout: 1s"
    assert (close["reply_code"], close["reply_text"]) == (320, text)
    await client.at_eof(1)
    beating.cancel()


async def dropped_for_its_silence(client: Client) -> None:
    """Without a word, between two and four seconds."""
    assert 1.9 < await client.at_eof(4) < 4
    assert client.raw.endswith(frame(8, 0, b""))


async def lives(client: Client) -> None:
    beating = asyncio.get_running_loop().create_task(beat(client))
    await asyncio.sleep(3.5)
    await client.open_channel()
    beating.cancel()
    await client.close()


async def heard_late(session: BrokerSession) -> None:
    """Beats for as long as the client does, and answers once."""
    beating = asyncio.get_running_loop().create_task(beat(session))
    await session.serve()
    beating.cancel()


HEARTBEATS: list[tuple[Hook, Callable[[Client], Awaitable[None]], str]] = [
    (BrokerSession.never, told_of_a_silent_broker, r"^Closing .*missed heartbeats from upstream"),
    (beat, dropped_for_its_silence, r"^closing .*\nmissed heartbeats from client, timeout: 1s$"),
    (leaves_first, dropped_for_its_silence, r"\nmissed heartbeats from client, timeout: 1s$"),
    (heard_late, lives, r"^closing AMQP connection \("),
]


async def test_silent_peers_are_given_up(tmp_path: Path, fake: FakeBroker) -> None:
    """Heartbeat of one second; whoever beats lives on."""
    async with gate(tmp_path, fake.port) as local, asyncio.TaskGroup() as group:
        for index, (hook, fate, _) in enumerate(HEARTBEATS):
            fake.session = hook
            client = await local.login(heartbeat=1)
            await fake.client(index)
            group.create_task(fate(client))
    for _, _, line in HEARTBEATS:
        assert local.log.matching(line), (line, local.log.lines)
    assert len(local.log.matching("missed heartbeats from client")) == 2


async def test_a_client_error_while_the_broker_is_silent(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pump.DRAIN_TIMEOUT == 5.0
    monkeypatch.setattr(pump, "DRAIN_TIMEOUT", 0.3)
    fake.session = BrokerSession.never
    loop = asyncio.get_running_loop()
    async with gate(tmp_path, fake.port) as local:
        client = await local.login()
        started = loop.time()
        client.send(1, "queue.declare", queue="q")  # a channel that is not open
        close = await client.closed()
        assert 0.25 < loop.time() - started < 1.5
        assert close["reply_text"] == b"CHANNEL_ERROR - expected 'channel.open'"
        assert await client.at_eof() < 1


async def test_a_client_error_and_a_broker_that_vanishes_over_it(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """The client is told of its own error, which came first."""

    async def vanish_at_close(session: BrokerSession) -> None:
        await session.expect("connection.close")
        session.abort()

    fake.session = vanish_at_close
    async with gate(tmp_path, fake.port) as local:
        client = await local.login()
        client.send(1, "queue.declare", queue="q")
        close = await client.closed()
        assert close["reply_code"] == 504


async def test_the_brokers_own_close_reaches_the_client(tmp_path: Path, fake: FakeBroker) -> None:
    fake.session = lambda session: session.refuse(
        320, b"CONNECTION_FORCED - said of user 'gatekeeper'"
    )
    async with gate(tmp_path, fake.port) as local:
        client = await local.login()
        close = await client.closed()
        assert close["reply_text"] == b"CONNECTION_FORCED - said of user 'alice'"
        assert await client.at_eof() < 1
        async with asyncio.timeout(2):
            await fake.sessions[0].ended.wait()
        assert fake.sessions[0].names[-1] == "connection.close-ok"


async def test_crossing_closes_of_connection(tmp_path: Path, fake: FakeBroker) -> None:
    """Both sides close at the same moment: everyone gets a close-ok and nobody waits."""
    both = asyncio.Event()

    async def close_too(session: BrokerSession) -> None:
        await both.wait()
        session.send(0, "connection.close", reply_code=320, reply_text=b"CONNECTION_FORCED - x")
        got = {(await session.read())[1].name for _ in range(2)}
        assert got == {"connection.close", "connection.close-ok"}
        session.send(0, "connection.close-ok")

    fake.session = close_too
    async with gate(tmp_path, fake.port) as local:
        client = await local.login()
        both.set()
        client.send(0, "connection.close", reply_code=200, reply_text=b"bye")
        names = [(await client.read())[1].name]
        if names[0] == "connection.close":
            client.send(0, "connection.close-ok")
        assert await client.at_eof(3) < 2


async def test_crossing_closes_of_a_channel(tmp_path: Path, fake: FakeBroker) -> None:
    """The client closes a channel that the broker is closing; the number is usable again."""

    async def close_channel(session: BrokerSession) -> None:
        await session.expect("channel.open", 1)
        session.send(1, "channel.open-ok")
        session.send(1, "channel.close", reply_code=404, reply_text=b"NOT_FOUND - gone")
        for _ in range(2):
            if (await session.read())[1].name == "channel.close":
                session.send(1, "channel.close-ok")
        await session.serve()

    fake.session = close_channel
    async with gate(tmp_path, fake.port) as local:
        client = await local.login()
        await client.open_channel()
        client.send(1, "channel.close", reply_code=200, reply_text=b"")
        assert (await client.expect("channel.close", 1))["reply_code"] == 404
        client.send(1, "channel.close-ok")
        await client.expect("channel.close-ok", 1)
        await client.open_channel()
        await client.close()


async def test_a_client_is_read_from_again_when_its_error_is_void(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """The broker closes the channel for an earlier operation: there is no error of the client's."""

    async def close_channel(session: BrokerSession) -> None:
        await session.expect("channel.open", 1)
        session.send(1, "channel.open-ok")
        await session.expect("channel.close", 1)  # for the client's error
        session.send(1, "channel.close", reply_code=404, reply_text=b"NOT_FOUND - gone")
        session.send(1, "channel.close-ok")
        await session.expect("channel.close-ok", 1)
        await session.serve()

    fake.session = close_channel
    async with gate(tmp_path, fake.port) as local:
        client = await local.login()
        await client.open_channel()
        client.send(1, "channel.flow-ok", active=True)  # 503: ends the connection
        assert (await client.expect("channel.close", 1))["reply_code"] == 404
        client.send(1, "channel.close-ok")
        await client.open_channel()
        await client.close()


# --- a client that fails ---


async def test_a_client_that_vanishes_ends_its_session_upstream(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        client.abort()
        async with asyncio.timeout(2):
            await (await fake.client()).ended.wait()
        line = await local.log.wait_for("unexpectedly closed")
        assert "vhost: '/', user: 'alice'" in line
        await local.until(lambda: len(local.registry) == 0, "unregistered")


async def test_a_client_that_does_not_answer_a_close(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pump.CLOSE_OK_TIMEOUT == 10.0
    monkeypatch.setattr(pump, "CLOSE_OK_TIMEOUT", 0.3)
    async with gate(tmp_path, fake.port) as local:
        client = await local.login()
        client.send(1, "queue.declare", queue="q")
        await client.expect("connection.close")
        assert 0.2 < await client.at_eof() < 1.5


async def test_a_broken_frame_stream_is_answered_once_and_then_ignored(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pump.FATAL_DELAY == 3.0
    monkeypatch.setattr(pump, "FATAL_DELAY", 0.3)
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        client.write(frame(1, 1, b"\0\x32\0\x0a", end=0))
        close = await client.expect("connection.close")
        assert close["reply_code"] == 501
        client.send(0, "connection.close-ok")
        assert 0.2 < await client.at_eof() < 1.5


async def test_an_unknown_method_ends_it_without_a_word(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        client.write(frame(1, 1, b"\0\x63\0\x63"))
        with pytest.raises(LostError):
            await client.read()
        async with asyncio.timeout(2):
            await (await fake.client()).ended.wait()
        await local.until(lambda: len(local.registry) == 0, "unregistered")
