"""What a backend outside the gate has allowed is asked anew: after a while, and on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from tests.backends.http_service import Service
from tests.server.local import gate
from tests.server.peers import FakeBroker
from tests.server.plane import Plane
from tests.server.remote import remote
from tests.server.test_fleet import HubFleet
from tests.server.test_revocation import channel_closed, published

TEXT = b"ACCESS_REFUSED - write access to exchange 'amq.fanout' in vhost '/' refused for user 'eve'"


class Rights:
    """The service's mind: writing is allowed until it changes."""

    writing = True

    def __call__(self, path: str, form: Mapping[str, str]) -> str:
        if path == "/resource" and form["permission"] == "write" and not self.writing:
            return "deny"
        return "allow"

    def asked(self, service: Service) -> int:
        return sum(path == "/resource" for _, path, _ in service.asked)


async def test_a_right_that_the_service_takes_away(tmp_path: Path, fake: FakeBroker) -> None:
    """It holds while the channel remembers, and no longer."""
    rights = Rights()
    service = Service(decide=rights)
    async with remote(tmp_path, fake.port, service, gatekeeper__permission_cache_ttl=300) as local:
        client = await local.login("eve", channel=True)
        client.publish(1, b"amq.fanout", b"k")
        await published(fake, 1)
        rights.writing = False
        async with asyncio.timeout(5):
            reply = "basic.qos-ok"
            while reply == "basic.qos-ok":
                client.publish(1, b"amq.fanout", b"k")
                reply = (await client.call(1, "basic.qos")).name
        assert reply == "channel.close"
        assert rights.asked(service) == 2


async def test_without_a_limit_it_is_remembered(tmp_path: Path, fake: FakeBroker) -> None:
    rights = Rights()
    service = Service(decide=rights)
    async with remote(tmp_path, fake.port, service, gatekeeper__permission_cache_ttl=0) as local:
        moment = local.app._epoch.value
        client = await local.login("eve", channel=True)
        for sent in range(1, 4):
            client.publish(1, b"amq.fanout", b"k")
            await published(fake, sent)
        await asyncio.sleep(0.1)
        assert local.app._epoch.value == moment
        assert rights.asked(service) == 1


async def test_no_timer_runs_for_the_gates_own_users(tmp_path: Path, fake: FakeBroker) -> None:
    values = {"gatekeeper.permission_cache_ttl": 5}
    async with gate(tmp_path, fake.port, values) as local:
        await local.login()
        moment = local.app._epoch.value
        await asyncio.sleep(0.05)
        assert local.app._epoch.value == moment


async def test_an_answer_that_takes_longer_than_it_is_remembered(
    tmp_path: Path, fake: FakeBroker
) -> None:
    """It counts all the same: else nobody would ever get one."""
    service = Service(delay=0.1)
    async with remote(tmp_path, fake.port, service, gatekeeper__permission_cache_ttl=20) as local:
        client = await local.login("eve", channel=True)
        reply = await client.call(
            1, "queue.bind", queue=b"q", exchange=b"amq.direct", routing_key=b"k", arguments={}
        )
        assert reply.name == "queue.bind-ok"
        asked = [path for _, path, _ in service.asked]
        assert asked == ["/user", "/vhost", "/resource", "/resource"]


async def test_the_caches_are_cleared_on_demand(tmp_path: Path, fake: FakeBroker) -> None:
    """And with them what channels remember; one user's, or everybody's."""
    rights = Rights()
    service = Service(decide=rights)
    async with remote(
        tmp_path,
        fake.port,
        service,
        "cache",
        auth_cache__cached_backend="http",
        auth_cache__cache_ttl=3600_000,
    ) as local:
        client = await local.login("eve", channel=True)
        await local.login("ann")
        client.publish(1, b"amq.fanout", b"k")
        await published(fake, 1)
        rights.writing = False
        assert await local.app.fleet.clear_caches(b"nobody") == 0
        client.publish(1, b"amq.fanout", b"k")
        await published(fake, 2)
        assert await local.app.fleet.clear_caches(b"eve") == 4
        client.publish(1, b"amq.fanout", b"k")
        assert await channel_closed(client) == TEXT
        assert await local.app.fleet.clear_caches(None) == 3


async def test_the_caches_of_every_worker(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    own: list[bytes | None] = []

    def clear_own(user: bytes | None) -> int:
        own.append(user)
        return 1

    fleet = HubFleet(plane.hub, {}, clear_own)
    assert await fleet.clear_caches(b"eve") == 3
    assert await fleet.clear_caches(None) == 5
    assert one.cleared == two.cleared == own == [b"eve", None]
