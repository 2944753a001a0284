"""Consumers, tags and passwords that operators change while the client says nothing."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from gatekeeper.model import Decision, Peer
from gatekeeper.protocol.frames import BODY as EXPECTS_BODY
from gatekeeper.server import revocation as revocation_module
from gatekeeper.server.registry import Live
from gatekeeper.server.revocation import Revocation
from gatekeeper.store.records import Reloaded
from tests.server.local import LocalGate, gate
from tests.server.peers import BrokerSession, Client, FakeBroker
from tests.support.amqp import RefusedError
from tests.support.amqp_codec import (
    BODY,
    HEADER,
    encode_header,
    frame,
    method_frame,
    publish_frames,
)

REFUSED = b"ACCESS_REFUSED - read access to queue 'lost' in vhost '/' refused for user 'alice'"
PLAIN_CLIENT = {"product": "test", "capabilities": {}}
"""It does not understand basic.cancel from the broker."""


def delivery(number: int, size: int = 200, tag: bytes = b"t") -> bytes:
    data = method_frame(1, "basic.deliver", consumer_tag=tag, delivery_tag=number)
    return data + frame(HEADER, 1, encode_header(size, {})) + frame(BODY, 1, bytes(size))


class Flood:
    """A broker that delivers as fast as it is read, until it is told to stop."""

    def __init__(self, fake: FakeBroker) -> None:
        self.sent = 0
        self.rejected = 0
        self.stopped = asyncio.Event()
        self._flooding: asyncio.Task[None] | None = None
        fake.session = self.serve

    async def serve(self, session: BrokerSession) -> None:
        while True:
            async with asyncio.timeout(None):
                kind, channel, method = await self._next(session)
            if kind == "channel.open":
                session.send(channel, "channel.open-ok")
            elif kind == "basic.consume":
                session.send(channel, "basic.consume-ok", consumer_tag=method["consumer_tag"])
                self._flooding = asyncio.get_running_loop().create_task(self._flood(session))
            elif kind == "basic.reject":
                self.rejected += 1
            elif kind in {"basic.cancel", "channel.close"}:
                await self._stop()
                if kind == "basic.cancel":
                    assert not method["nowait"]
                    session.send(channel, "basic.cancel-ok", consumer_tag=b"t")
                else:
                    session.send(channel, "channel.close-ok")
            elif kind == "connection.close":
                session.send(0, "connection.close-ok")
                return

    @staticmethod
    async def _next(session: BrokerSession) -> tuple[str, int, Any]:
        while True:
            with contextlib.suppress(TimeoutError):
                channel, method = await session.read()
                return method.name, channel, method

    async def _flood(self, session: BrokerSession) -> None:
        while True:
            session.write(b"".join(delivery(self.sent + n) for n in range(1, 101)))
            self.sent += 100
            await session.writer.drain()

    async def _stop(self) -> None:
        assert self._flooding is not None
        self._flooding.cancel()
        await asyncio.wait([self._flooding])
        self.stopped.set()


async def consumer(local: LocalGate, queue: str = "lost", **more: Any) -> Client:
    client = await local.login(channel=True, **more)
    client.send(1, "basic.consume", queue=queue, consumer_tag="t")
    await client.expect("basic.consume-ok", 1)
    return client


def revoke(local: LocalGate) -> None:
    local.store.set_permissions(b"alice", b"/", b".*", b".*", b"^kept$")


async def read_until(client: Client, name: str) -> tuple[int, Any]:
    """How many deliveries came before the method, and the method."""
    deliveries = 0
    while True:
        _, method = await client.read()
        if method.name == name:
            return deliveries, method
        assert method.name == "basic.deliver", method
        deliveries += 1


async def test_a_consumer_in_full_flow(tmp_path: Path, fake: FakeBroker) -> None:
    """The client says nothing; after its basic.cancel nothing of the queue comes any more."""
    flood = Flood(fake)
    async with gate(tmp_path, fake.port) as local:
        client = await consumer(local)
        for _ in range(500):
            await client.expect("basic.deliver", 1)
        revoke(local)
        deliveries, cancel = await read_until(client, "basic.cancel")
        assert (cancel["consumer_tag"], cancel["nowait"]) == (b"t", True)
        await asyncio.wait_for(flood.stopped.wait(), 5)
        # The connection lives on, and this answer comes behind whatever was late.
        await client.open_channel(2)
        await local.until(
            lambda: 500 + deliveries + flood.rejected == flood.sent,
            "what was not delivered was given back",
        )
        line = (
            "Cancelling consumer <<\"t\">> on queue 'lost' in vhost '/': read access refused "
            "after a change of permissions"
        )
        assert ("warning", "channel", line) in local.log.lines
        await client.close()


async def test_a_consumer_in_full_flow_without_notification(
    tmp_path: Path, fake: FakeBroker
) -> None:
    flood = Flood(fake)
    async with gate(tmp_path, fake.port) as local:
        client = await consumer(local, properties=PLAIN_CLIENT)
        for _ in range(500):
            await client.expect("basic.deliver", 1)
        revoke(local)
        _, close = await read_until(client, "channel.close")
        assert (close["reply_code"], close["reply_text"]) == (403, REFUSED)
        assert (close["class_id"], close["method_id"]) == (0, 0)
        assert flood.rejected == 0
        client.send(1, "channel.close-ok")
        await client.open_channel(1)
        await local.log.wait_for(
            r"operation none caused a channel exception access_refused: read access to queue 'lost'"
        )
        await client.close()


async def test_a_consumer_that_does_not_read(tmp_path: Path, fake: FakeBroker) -> None:
    """The broker is told at once; the client finds no more than what was on its way to it."""
    flood = Flood(fake)
    async with gate(tmp_path, fake.port) as local:
        client = await consumer(local)
        client.writer.transport.pause_reading()

        async def stuck() -> None:
            before = -1
            while flood.sent != before:
                before = flood.sent
                await asyncio.sleep(0.2)

        await asyncio.wait_for(stuck(), 10)
        revoke(local)
        await asyncio.wait_for(flood.stopped.wait(), 5)
        client.writer.transport.resume_reading()
        deliveries, _ = await read_until(client, "basic.cancel")
        await client.open_channel(2)
        await local.until(lambda: deliveries + flood.rejected == flood.sent, "all accounted for")
        assert flood.rejected > 0
        await client.close()


async def test_a_consumer_whose_client_is_in_the_middle_of_a_message(
    tmp_path: Path, fake: FakeBroker
) -> None:
    async with gate(tmp_path, fake.port) as local:
        client, broker = await consumer(local), await fake.client()
        whole = publish_frames(1, b"amq.fanout", b"k", b"0123")
        client.write(whole[:-3])
        await local.until(lambda: waits_for_the_rest(local), "a part has come")
        revoke(local)
        await local.log.wait_for("Cancelling consumer")
        broker.write(delivery(1))
        await local.until(lambda: broker_stalled(local), "the late delivery waits")
        client.write(whole[-3:])
        await client.expect("basic.cancel", 1)
        await client.open_channel(2)
        assert broker.names[-4:] == [
            "basic.publish",
            "basic.cancel",
            "basic.reject",
            "channel.open",
        ]


def waits_for_the_rest(local: LocalGate) -> bool:
    return any(
        channel.expect == EXPECTS_BODY
        for live in local.registry
        if live.session is not None
        for channel in live.session.channels.values()
    )


def broker_stalled(local: LocalGate) -> bool:
    return any(live.session.broker_stalled for live in local.registry if live.session is not None)


async def test_only_the_consumers_that_a_change_concerns(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        lost, kept = await consumer(local), await consumer(local, "kept")
        elsewhere = await consumer(local, vhost=b"v2")
        bob = await consumer(local, "bob", username="bob")
        revoke(local)
        await lost.expect("basic.cancel", 1)
        local.store.clear_permissions(b"bob", b"/")
        await bob.expect("basic.cancel", 1)
        for client in (kept, elsewhere):
            await client.open_channel(2)
        local.store.clear_permissions(b"alice", b"/")
        await kept.expect("basic.cancel", 1)
        # As in RabbitMQ the connection stays; what it tries is refused.
        close = await kept.call(2, "queue.declare", queue="kept")
        assert (close.name, close["reply_code"]) == ("channel.close", 403)
        await elsewhere.open_channel(3)


async def test_a_change_in_another_thread(tmp_path: Path, fake: FakeBroker) -> None:
    """As the management API makes them."""
    async with gate(tmp_path, fake.port) as local:
        client = await consumer(local)
        await asyncio.to_thread(revoke, local)
        await client.expect("basic.cancel", 1)
        await asyncio.to_thread(local.store.delete_user, b"alice")
        assert (await client.closed())["reply_text"] == (
            b"CONNECTION_FORCED - user 'alice' is deleted"
        )


async def test_more_changes_than_are_told_one_by_one(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        client = await consumer(local)
        app = local.app
        app._revocation.permissions_changed = lambda *_: None  # type: ignore[method-assign]
        revoke(local)
        await client.open_channel(2)
        app._store_changed(Reloaded())
        await client.expect("basic.cancel", 1)


async def test_a_backend_that_takes_its_time(tmp_path: Path, fake: FakeBroker) -> None:
    """Until it has answered nothing is delivered; what it allows goes on where it was."""
    async with gate(tmp_path, fake.port) as local:
        client = await consumer(local)
        client.send(1, "basic.consume", queue="kept", consumer_tag="u")
        await client.expect("basic.consume-ok", 1)
        answer = asyncio.Event()

        async def later(name: bytes) -> Decision:
            await answer.wait()
            return Decision(name == b"kept")

        engine = local.app._gate.engine
        engine.check = lambda _identity, _vhost, check: later(check.name)  # type: ignore[method-assign,assignment]
        revoke(local)
        broker = await fake.client()
        await local.until(lambda: local.registry and busy(local), "asked")
        broker.write(delivery(1) + delivery(2, tag=b"u"))
        await asyncio.sleep(0.1)
        assert b"\x00\x3c\x00\x3c" not in client.raw
        answer.set()
        assert (await client.expect("basic.deliver", 1))["consumer_tag"] == b"u"
        assert (await client.expect("basic.cancel", 1))["consumer_tag"] == b"t"


def busy(local: LocalGate) -> bool:
    return any(live.recheck.__self__.session.consumers.busy for live in local.registry)


# --- tags ---


def forge(client: Client, body: bytes) -> None:
    client.publish(1, b"amq.fanout", b"k", body, properties={"user_id": "bob"})


async def test_the_tag_impersonator(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        local.store.set_user_tags(b"alice", ("impersonator",))
        client = await local.login(channel=True)
        forge(client, b"one")
        session = await fake.client()
        await local.until(lambda: "basic.publish" in session.names, "arrives")
        local.store.set_user_tags(b"alice", ())
        forge(client, b"two")
        close = await client.expect("channel.close", 1)
        assert close["reply_code"] == 406
        client.send(1, "channel.close-ok")
        local.store.set_user_tags(b"alice", ("management", "impersonator"))
        await client.open_channel()
        forge(client, b"three")
        await client.open_channel(2)
        bodies = [method.body for _, method in session.methods if method.name == "basic.publish"]
        assert bodies == [b"one", b"three"]
        await client.close()


# --- passwords ---

CLOSES = {"gatekeeper.password_change_closes_connections": "true"}
CHANGED = b"CONNECTION_FORCED - password of user 'alice' is changed"


@pytest.mark.parametrize("how", ["changed", "cleared"])
async def test_a_password_change_that_closes_connections(
    tmp_path: Path, fake: FakeBroker, how: str
) -> None:
    async with gate(tmp_path, fake.port, CLOSES) as local:
        alice, bob = await local.login(), await local.login("bob")
        if how == "changed":
            local.store.change_password(b"alice", b"new")
        else:
            local.store.clear_password(b"alice")
        close = await alice.closed()
        assert (close["reply_code"], close["reply_text"]) == (320, CHANGED)
        head = "Closing all connections for user 'alice' because the password is changed"
        assert ("info", "connection", head) in local.log.lines
        await bob.open_channel()
        local.store.set_user_tags(b"bob", ("management",))
        await bob.open_channel(2)


async def test_a_password_change_during_a_login(tmp_path: Path, fake: FakeBroker) -> None:
    """Between the proof of the old password and connection.open."""
    async with gate(tmp_path, fake.port, CLOSES) as local:
        client = await local.connect()
        await client.greet()
        client.start_ok("alice", "alice")
        tune = await client.expect("connection.tune")
        local.store.change_password(b"alice", b"new")
        client.send(0, "connection.tune-ok", **{**tune.arguments, "heartbeat": 0})
        client.send(0, "connection.open", virtual_host=b"/")
        with pytest.raises(RefusedError) as caught:
            await client.expect("connection.open-ok")
        assert caught.value.text == CHANGED
        await local.login(password="new")


async def test_a_password_change_among_too_many_changes(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port, CLOSES) as local:
        alice, bob = await local.login(), await local.login("bob")
        app = local.app
        told = app._registry.password_changed
        app._registry.password_changed = lambda _user: 0  # type: ignore[method-assign]
        local.store.change_password(b"alice", b"new")
        app._registry.password_changed = told  # type: ignore[method-assign]
        app._store_changed(Reloaded())
        assert (await alice.closed())["reply_text"] == CHANGED
        await bob.open_channel()


async def test_a_cached_login_is_forgotten(tmp_path: Path, fake: FakeBroker) -> None:
    async with gate(tmp_path, fake.port) as local:
        forgotten: list[bytes | None] = []

        def forget(user: bytes | None = None) -> int:
            forgotten.append(user)
            return 0

        local.app._backends.clear_cache = forget  # type: ignore[method-assign]
        local.store.change_password(b"alice", b"new")
        local.store.delete_user(b"bob")
        local.app._store_changed(Reloaded())
        assert forgotten == [b"alice", b"bob", None]


async def test_two_that_wait_for_each_other_do_not_spin(tmp_path: Path, fake: FakeBroker) -> None:
    """The client's frame and the broker's deliveries wait for answers: nobody asks in a loop."""
    async with gate(tmp_path, fake.port) as local:
        client = await consumer(local)
        asked = 0

        async def never(_name: bytes) -> Decision:
            nonlocal asked
            asked += 1
            await asyncio.Event().wait()
            return Decision(False)

        engine = local.app._gate.engine
        engine.check = lambda _identity, _vhost, check: never(check.name)  # type: ignore[method-assign,assignment]
        revoke(local)
        await local.until(lambda: busy(local), "asked")
        client.send(1, "queue.declare", queue="x")
        (await fake.client()).write(delivery(1))
        await local.until(lambda: asked == 2, "both wait")
        (live,) = local.registry
        pump = live.recheck.__self__  # type: ignore[union-attr]
        await asyncio.sleep(0.05)
        for _ in range(5):
            await asyncio.sleep(0)
            assert not pump._resuming


# --- thousands of connections ---


def lives(count: int, user: bytes = b"alice", vhost: bytes = b"/") -> list[Live]:
    return [Live(number, Peer("h", number), user, vhost) for number in range(count)]


async def test_connections_are_judged_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10_000_000))
    monkeypatch.setattr(revocation_module.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(revocation_module, "SLICE", 10)
    everyone = lives(100)
    judged: list[Live] = []
    for live in everyone:
        live.recheck = lambda live=live: judged.append(live)
    revocation = Revocation(everyone)
    revocation.everything_changed()
    assert judged == []
    await asyncio.sleep(0)
    assert 0 < len(judged) < 20
    revocation.user_changed(b"alice")  # all wait, but for those that were judged before it
    first = len(judged)
    async with asyncio.timeout(5):
        while len(judged) < 100 + first:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert judged == everyone + everyone[:first]


async def test_one_pass_serves_many_changes() -> None:
    everyone = lives(50) + lives(50, b"bob") + lives(50, b"bob", b"v2")
    passes = 0

    class Registry:
        def __iter__(self) -> Any:
            nonlocal passes
            passes += 1
            return iter(everyone)

    judged: list[Live] = []
    for live in everyone:
        live.recheck = lambda live=live: judged.append(live)
    revocation = Revocation(Registry())
    for number in range(1000):
        revocation.permissions_changed(b"user%d" % number, b"/")
    revocation.permissions_changed(b"bob", b"v2")
    async with asyncio.timeout(5):
        while len(judged) < 50:
            await asyncio.sleep(0)
    assert (passes, judged) == (1, everyone[100:])
    revocation.user_changed(b"bob")
    async with asyncio.timeout(5):
        while len(judged) < 150:
            await asyncio.sleep(0)
    assert judged[50:] == everyone[50:]


async def test_one_that_fails_does_not_spare_the_others() -> None:
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    broken, well = lives(2)
    judged = asyncio.Event()

    def fail() -> None:
        raise ValueError("broken")

    broken.recheck, well.recheck = fail, judged.set
    Revocation([broken, well]).everything_changed()
    await asyncio.wait_for(judged.wait(), 5)
    assert len(errors) == 1
