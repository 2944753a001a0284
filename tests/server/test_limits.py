"""Limits of vhosts and users, live, and in RabbitMQ's order and words (semantics.md 1.10, 1.12)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.server.local import LocalGate, gate
from tests.server.peers import BrokerSession, FakeBroker
from tests.support.amqp import RefusedError


async def refused(local: LocalGate, username: str, vhost: bytes = b"/") -> bytes:
    with pytest.raises(RefusedError) as caught:
        await local.login(username, vhost=vhost)
    method = caught.value.method
    assert (method["reply_code"], method["class_id"], method["method_id"]) == (530, 10, 40)
    return caught.value.text


async def test_connections_of_a_vhost(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        local.store.set_vhost_limits(b"v2", {"max-connections": 1})
        async with await local.login(vhost=b"v2"):
            text = b"NOT_ALLOWED - access to vhost 'v2' refused for user '%b': "
            text += b"connection limit (1) is reached"
            assert await refused(local, "alice", b"v2") == text % b"alice"
            # Limits come before the question whether the user may use the vhost at all.
            assert await refused(local, "bob", b"v2") == text % b"bob"
            async with await local.login(vhost=b"/"):
                pass
        await local.until(lambda: len(local.registry) == 0, "unregistered")
        assert await refused(local, "bob", b"v2") == (
            b"NOT_ALLOWED - access to vhost 'v2' refused for user 'bob'"
        )
        for limit, allowed in ((0, False), (-1, True)):
            local.store.set_vhost_limits(b"v2", {"max-connections": limit})
            if allowed:
                async with await local.login(vhost=b"v2"):
                    pass
            else:
                assert b"limit (0) is reached" in await refused(local, "alice", b"v2")


async def test_connections_of_a_user(tmp_path: Path, fake: FakeBroker) -> None:
    text = (
        b"NOT_ALLOWED - connection refused for user 'alice': user connection limit (1) is reached"
    )
    async with gate(tmp_path, fake.port) as local:
        local.store.set_user_limits(b"alice", {"max-connections": 1})
        async with await local.login():
            # Over all vhosts; and a vhost that does not exist is told first.
            assert await refused(local, "alice", b"v2") == text
            assert await refused(local, "alice", b"no") == b"NOT_ALLOWED - vhost no not found"
            async with await local.login("bob"):
                pass
        await local.until(lambda: len(local.registry) == 0, "unregistered")
        local.store.set_user_limits(b"alice", {"max-connections": 0})
        assert b"limit (0)" in await refused(local, "alice")
        local.store.clear_user_limits(b"alice")
        async with await local.login():
            pass


async def test_the_last_place_is_given_once(tmp_path: Path, fake: FakeBroker) -> None:
    """Ten at the same moment, while the broker takes its time: three are let in."""

    async def slow(session: BrokerSession) -> None:
        await asyncio.sleep(0.1)
        await session.accept()

    fake.login = slow
    async with gate(tmp_path, fake.port) as local:
        local.store.set_user_limits(b"alice", {"max-connections": 3})
        answers = await asyncio.gather(*(local.login() for _ in range(10)), return_exceptions=True)
        assert sum(isinstance(answer, RefusedError) for answer in answers) == 7
        assert len(local.registry) == 3
        assert len(fake.sessions) == 3


async def test_a_login_that_fails_at_the_broker_gives_its_place_back(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with gate(tmp_path, fake.port) as local:
        local.store.set_user_limits(b"alice", {"max-connections": 1})
        fake.login = lambda session: session.refuse(403, b"ACCESS_REFUSED - no")
        for _ in range(3):
            with pytest.raises(RefusedError) as caught:
                await local.login()
            assert caught.value.code == 541
        fake.login = BrokerSession.accept
        async with await local.login():
            pass


async def test_channels_of_a_connection(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel_max=2)
        await client.open_channel(1)
        await client.open_channel(60_000)  # the count is limited, not the number
        client.send(3, "channel.open")
        close = await client.closed()
        assert (close["reply_code"], close["class_id"]) == (530, 0)
        assert close["reply_text"] == (
            b"NOT_ALLOWED - number of channels opened (2) has reached the negotiated "
            b"channel_max (2)"
        )


async def test_channels_of_a_user(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        local.store.set_user_limits(b"alice", {"max-channels": 1})
        client = await local.login(channel=True)
        client.send(1, "channel.close", reply_code=200, reply_text=b"")
        await client.expect("channel.close-ok", 1)
        await client.open_channel(2)
        client.send(3, "channel.open")
        close = await client.closed()
        assert (close["reply_code"], close["class_id"]) == (530, 0)
        assert close["reply_text"] == (
            b"NOT_ALLOWED - number of channels opened for user 'alice' has reached the maximum "
            b"allowed user limit of 1"
        )


async def test_channels_of_a_user_on_all_connections(tmp_path: Path, fake: FakeBroker) -> None:
    """The limit of now counts, not that of the login, and every connection of the user does."""
    async with gate(tmp_path, fake.port) as local:
        first, second = [await local.login(channel=True) for _ in range(2)]
        local.store.set_user_limits(b"alice", {"max-channels": 3})
        await first.open_channel(2)
        second.send(2, "channel.open")
        assert (await second.closed())["reply_text"].endswith(b"user limit of 3")
        await local.until(
            lambda: local.registry.channel_count(b"alice") == 2, "its channels are gone"
        )
        await first.open_channel(3)


async def test_no_more_is_offered_than_the_broker_allows(tmp_path: Path) -> None:
    async with FakeBroker(limits=(7, 8192, 10)) as fake, gate(tmp_path, fake.port) as local:
        client = await local.connect()
        await client.greet()
        client.start_ok("alice", "alice")
        tune = await client.expect("connection.tune")
        assert (tune["channel_max"], tune["frame_max"], tune["heartbeat"]) == (7, 8192, 60)
