"""What operators change takes effect on connections that are open, at the next frame."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gatekeeper import app as app_module
from gatekeeper.model import Decision
from gatekeeper.policy.epoch import Epoch
from gatekeeper.store.store import Store
from tests.server.local import LocalGate, gate
from tests.server.peers import BrokerSession, Client, FakeBroker
from tests.support.amqp import RefusedError
from tests.support.amqp_codec import publish_frames

NOT_OPEN = b"NOT_ALLOWED - access to vhost '/' refused for user 'alice'"


async def channel_closed(client: Client, channel: int = 1) -> bytes:
    """The 403 that must come next, answered."""
    close = await client.expect("channel.close", channel)
    assert close["reply_code"] == 403
    client.send(channel, "channel.close-ok")
    text: bytes = close["reply_text"]
    return text


async def published(fake: FakeBroker, count: int) -> None:
    session = await fake.client()
    async with asyncio.timeout(5):
        while session.names.count("basic.publish") < count:
            await asyncio.sleep(0.005)


async def test_a_permission_that_is_taken_away(tmp_path: Path, fake: FakeBroker) -> None:
    """Busy or idle, cached or not: the next frame is refused, and nothing of it arrives."""
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        for _ in range(50):
            client.publish(1, b"amq.fanout", b"k")
        await published(fake, 50)
        local.store.set_permissions(b"alice", b"/", b".*", b"^only$", b".*")
        client.publish(1, b"amq.fanout", b"k")
        text = b"ACCESS_REFUSED - write access to exchange 'amq.fanout' in vhost '/' refused for "
        assert await channel_closed(client) == text + b"user 'alice'"
        # The connection lives on, and what is still allowed works.
        await client.open_channel()
        client.publish(1, b"only", b"k")
        await published(fake, 51)
        local.store.clear_permissions(b"alice", b"/")
        client.publish(1, b"only", b"k")
        await channel_closed(client)
        assert (await fake.client()).names.count("basic.publish") == 51
        # And what is given back works again.
        local.store.set_permissions(b"alice", b"/", b".*", b".*", b".*")
        await client.open_channel()
        client.publish(1, b"amq.fanout", b"k")
        await published(fake, 52)
        await client.close()


async def test_a_change_by_another_process(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gatekeeperctl on the same database: seen within STORE_REFRESH."""
    assert app_module.STORE_REFRESH == 1.0
    monkeypatch.setattr(app_module, "STORE_REFRESH", 0.05)
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        client.publish(1, b"amq.fanout", b"k")
        await published(fake, 1)
        epoch = local.app._epoch.value
        other = Store.open(f"sqlite:///{tmp_path / 'store.db'}", Epoch())
        other.clear_permissions(b"alice", b"/")
        await local.until(lambda: local.app._epoch.value > epoch, "the change is seen")
        client.publish(1, b"amq.fanout", b"k")
        await channel_closed(client)
        other.delete_user(b"alice")
        other.close()
        assert (await client.closed())["reply_text"] == (
            b"CONNECTION_FORCED - user 'alice' is deleted"
        )


async def test_a_topic_permission_that_comes_late(tmp_path: Path, fake: FakeBroker) -> None:
    """There was none when the exchange was approved; now the routing key matters."""
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        client.publish(1, b"amq.topic", b"red.one")
        await published(fake, 1)
        local.store.set_topic_permissions(b"alice", b"/", b"amq.topic", b"^blue", b".*")
        client.publish(1, b"amq.topic", b"blue.one")
        await published(fake, 2)
        client.publish(1, b"amq.topic", b"red.one")
        text = b"ACCESS_REFUSED - write access to topic 'red.one' in exchange 'amq.topic' in vhost "
        assert await channel_closed(client) == text + b"'/' refused for user 'alice'"


async def test_deletion_of_a_user(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        alice = [await local.login(), await local.login(vhost=b"v2")]
        bob = await local.login("bob", channel=True)
        local.store.delete_user(b"alice")
        for client in alice:
            async with asyncio.timeout(1):
                close = await client.closed()
            assert (close["reply_code"], close["class_id"]) == (320, 0)
            assert close["reply_text"] == b"CONNECTION_FORCED - user 'alice' is deleted"
            assert await client.at_eof() < 1
        assert (await bob.call(1, "basic.get", queue="bob")).name == "basic.get-empty"
        head = "Closing all connections for user 'alice' because the user is being deleted"
        assert ("info", "connection", head) in local.log.lines
        assert (
            len(local.log.matching(r"^Closing AMQP connection .*: user 'alice' is deleted$")) == 2
        )
        await bob.close()


async def test_deletion_of_a_vhost(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        gone, stays = await local.login(vhost=b"v2"), await local.login()
        local.store.delete_vhost(b"v2")
        close = await gone.closed()
        assert close["reply_text"] == b"CONNECTION_FORCED - vhost 'v2' is deleted"
        head = "Closing all connections in vhost 'v2' because it's being deleted"
        assert ("info", "connection", head) in local.log.lines
        await stays.close()


async def test_a_password_change_leaves_connections_open(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        client = await local.login()
        local.store.change_password(b"alice", b"new")
        await client.open_channel()
        with pytest.raises(RefusedError):
            await local.login()
        async with await local.login(password="new"):
            pass
        await client.close()


# --- while the broker is being reached ---


class Held:
    """A fake broker's login that waits until it may go on."""

    def __init__(self, fake: FakeBroker) -> None:
        self._go = asyncio.Event()
        self._fake = fake
        fake.login = self.login

    async def login(self, session: BrokerSession) -> None:
        await session.tune()
        await self._go.wait()
        session.send(0, "connection.open-ok")
        session.opened.set()

    async def begin(self, local: LocalGate) -> asyncio.Task[Client]:
        task = asyncio.get_running_loop().create_task(local.login())
        await local.until(
            lambda: self._fake.sessions and "connection.open" in self._fake.sessions[0].names,
            "the broker is asked",
        )
        return task

    def go_on(self) -> None:
        self._go.set()


CHANGES = {
    "the permission is cleared": (
        lambda store: store.clear_permissions(b"alice", b"/"),
        530,
        NOT_OPEN,
    ),
    "the user is deleted": (
        lambda store: store.delete_user(b"alice"),
        320,
        b"CONNECTION_FORCED - user 'alice' is deleted",
    ),
    "the user is deleted and made again": (
        lambda store: (store.delete_user(b"alice"), store.add_user(b"alice", b"alice")),
        320,
        b"CONNECTION_FORCED - user 'alice' is deleted",
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
async def test_a_change_while_the_broker_is_being_reached(
    tmp_path: Path, fake: FakeBroker, change: tuple[object, int, bytes]
) -> None:
    act, code, text = change
    held = Held(fake)
    async with gate(tmp_path, fake.port) as local:
        task = await held.begin(local)
        act(local.store)  # type: ignore[operator]
        held.go_on()
        with pytest.raises(RefusedError) as caught:
            await task
        assert (caught.value.code, caught.value.text) == (code, text)
        async with asyncio.timeout(1):
            await fake.sessions[0].ended.wait()
        assert len(local.registry) == 0


async def test_a_change_that_does_not_matter_while_the_broker_is_being_reached(
    tmp_path: Path, fake: FakeBroker
) -> None:
    held = Held(fake)
    async with gate(tmp_path, fake.port) as local:
        task = await held.begin(local)
        local.store.set_permissions(b"alice", b"/", b"^$", b"^$", b"^$")
        held.go_on()
        client = await task
        await client.open_channel()
        client.publish(1, b"amq.fanout", b"k")
        await channel_closed(client)


async def test_a_change_while_the_vhost_is_being_judged_again(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """A slow backend: its answer may be older than the latest change, so it is asked again."""
    held = Held(fake)
    async with gate(tmp_path, fake.port) as local:
        engine = local.app._gate.engine
        old_rules = asyncio.Event()
        asked = 0

        async def slow(*_: object) -> Decision:
            nonlocal asked
            asked += 1
            if asked == 2:
                await old_rules.wait()
            return Decision(asked < 3)

        engine.vhost_access = slow  # type: ignore[method-assign,assignment]
        task = await held.begin(local)
        local.app._epoch.bump()
        held.go_on()
        await local.until(lambda: asked == 2, "asked again")
        local.app._epoch.bump()
        old_rules.set()  # "yes", by the rules of before
        with pytest.raises(RefusedError) as caught:
            await task
        assert caught.value.text == NOT_OPEN
        assert asked == 3


async def test_a_change_while_the_vhost_is_judged_at_first(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with gate(tmp_path, fake.port) as local:
        engine = local.app._gate.engine
        old_rules = asyncio.Event()
        asked = 0

        async def slow(*_: object) -> Decision:
            nonlocal asked
            asked += 1
            await old_rules.wait()
            return Decision(asked < 2)

        engine.vhost_access = slow  # type: ignore[method-assign,assignment]
        task = asyncio.get_running_loop().create_task(local.login())
        await local.until(lambda: asked == 1, "asked")
        local.app._epoch.bump()
        old_rules.set()
        with pytest.raises(RefusedError) as caught:
            await task
        assert caught.value.text == NOT_OPEN


async def test_a_deletion_while_the_vhost_is_being_judged_again(
    tmp_path: Path, fake: FakeBroker
) -> None:
    held = Held(fake)
    async with gate(tmp_path, fake.port) as local:
        engine = local.app._gate.engine
        go = asyncio.Event()
        asked = 0

        async def slow(*_: object) -> Decision:
            nonlocal asked
            asked += 1
            if asked > 1:
                await go.wait()
            return Decision(True)

        engine.vhost_access = slow  # type: ignore[method-assign,assignment]
        task = await held.begin(local)
        local.app._epoch.bump()
        held.go_on()
        await local.until(lambda: asked == 2, "asked again")
        local.store.delete_user(b"alice")
        go.set()
        with pytest.raises(RefusedError) as caught:
            await task
        assert caught.value.text == b"CONNECTION_FORCED - user 'alice' is deleted"


async def test_a_flood_during_a_change(tmp_path: Path, fake: FakeBroker) -> None:
    """Publishes in full flow when the permission goes: whole ones arrive, then none."""
    async with gate(tmp_path, fake.port) as local:
        client = await local.login(channel=True)
        data = publish_frames(1, b"amq.fanout", b"k", b"y" * 100) * 200
        for _ in range(20):
            client.write(data)
            await asyncio.sleep(0)
        await published(fake, 1)
        local.store.clear_permissions(b"alice", b"/")
        for _ in range(20):
            client.write(data)
            await asyncio.sleep(0)
        await channel_closed(client)
        session = await fake.client()
        arrived = [method.body for _, method in session.methods if method.name == "basic.publish"]
        assert 0 < len(arrived) < 8000
        assert set(arrived) == {b"y" * 100}
        await client.close()
        assert session.names.count("basic.publish") == len(arrived)
