"""Connections and channels of real clients: the API over a running gate, beside RabbitMQ's own.

The same client connects to the broker and, through the gate, to the same broker. What both APIs
tell of it must be the same, but for what a gate does not measure.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pika
import pika.exceptions
import pytest
from amqpstorm.management import ManagementApi

from gatekeeper.admin.http import HttpServer
from gatekeeper.admin.service import Administration
from gatekeeper.config.settings import Address, Management, ManagementListener
from tests.admin.serving import Answer, ask
from tests.server.local import LocalGate, gate
from tests.support.rabbit import RabbitNode, definitions, permission, service_account, user

STATE = definitions(
    users=[user("alice", "alice", ["administrator"]), user("bob", "bob", ["management"])],
    permissions=[permission("alice"), permission("bob")],
)
# RabbitMQ's statistics, which come from inside the broker.
UNMEASURED_CONNECTION = {
    "garbage_collection", "recv_cnt", "recv_oct_details", "reductions", "reductions_details",
    "send_cnt", "send_oct_details", "send_pend",
}  # fmt: skip
UNMEASURED_CHANNEL = {
    "garbage_collection", "idle_since", "pending_raft_commands", "reductions",
    "reductions_details",
}  # fmt: skip
SAME_CONNECTION = (
    "auth_mechanism", "channels", "client_properties", "host", "protocol", "ssl", "ssl_cipher",
    "peer_cert_subject", "state", "type", "user_provided_name", "vhost", "peer_host",
)  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    state = service_account()
    state["users"] += STATE["users"]
    state["permissions"] += STATE["permissions"]
    folder = tmp_path_factory.mktemp("rabbit")
    conf = "collect_statistics_interval = 500"
    with RabbitNode(folder, definitions=state, management=True, conf=conf) as running:
        yield running


class Served:
    """The gate and its API."""

    def __init__(self, running: LocalGate, port: int) -> None:
        self.gate = running
        self.port = port

    async def ask(self, method: str, path: str, user: str = "alice", **more: Any) -> Answer:
        return await asyncio.to_thread(ask, self.port, method, path, user=f"{user}:{user}", **more)


@contextlib.asynccontextmanager
async def served(folder: Path, node: RabbitNode) -> AsyncIterator[Served]:
    """Wired as the composition root does it."""
    async with gate(folder, node.port, document=STATE) as running:
        app = running.app
        administration = Administration(
            settings=app._settings,
            store=app._store,
            engine=app._gate.engine,
            fleet=app.fleet,
            log=running.log.logger("audit"),
        )
        listener = ManagementListener(address=Address(host="127.0.0.1", port=0))
        server = HttpServer(
            administration, Management(listeners=(listener,)), running.log.logger("default")
        )
        await server.start()
        try:
            yield Served(running, server.addresses[0][1])
        finally:
            await server.close()
            administration.close()


def _connect(port: int, name: str = "bob") -> pika.BlockingConnection:
    return pika.BlockingConnection(
        pika.ConnectionParameters(
            "127.0.0.1",
            port,
            credentials=pika.PlainCredentials(name, name),
            client_properties={"connection_name": "from the test"},
            heartbeat=60,
        )
    )


async def _connected(port: int, name: str = "bob") -> pika.BlockingConnection:
    return await asyncio.to_thread(_connect, port, name)


def _with_channel(connection: pika.BlockingConnection) -> None:
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_qos(prefetch_count=7)
    channel.basic_consume(queue, lambda *_: None)


def _rabbits(node: RabbitNode, path: str, complete: str) -> dict[str, Any]:
    """The one connection or channel of bob, once RabbitMQ's statistics have it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        rows = [row for row in node.api(path) if row.get("user") == "bob" and complete in row]
        if rows:
            found: dict[str, Any] = rows[0]
            return found
        time.sleep(0.2)
    raise AssertionError(f"RabbitMQ does not list {path}")


def _kinds(row: dict[str, Any]) -> dict[str, str]:
    return {key: type(value).__name__ for key, value in row.items()}


async def test_what_is_told_is_what_rabbitmq_tells(tmp_path: Path, node: RabbitNode) -> None:
    async with served(tmp_path, node) as api:
        direct, through = await _connected(node.port), await _connected(api.gate.port)
        await asyncio.to_thread(_with_channel, direct)
        await asyncio.to_thread(_with_channel, through)
        (ours,) = (await api.ask("GET", "/api/connections")).json
        theirs = await asyncio.to_thread(_rabbits, node, "connections", "channels")
        assert set(theirs) - set(ours) == UNMEASURED_CONNECTION
        assert set(ours) <= set(theirs)
        shared = {key: kind for key, kind in _kinds(theirs).items() if key in ours}
        assert _kinds(ours) == shared
        assert {key: ours[key] for key in SAME_CONNECTION} == {
            key: theirs[key] for key in SAME_CONNECTION
        }
        assert ours["name"] == f"127.0.0.1:{ours['peer_port']} -> 127.0.0.1:{api.gate.port}"

        path = f"/api/connections/{quote(ours['name'], safe='')}"
        one = (await api.ask("GET", path)).json
        assert one["ssl_cipher"] == ""  # RabbitMQ: null in lists
        assert one["user_provided_name"] == "from the test"

        (channel,) = (await api.ask("GET", "/api/channels")).json
        their_channel = await asyncio.to_thread(_rabbits, node, "channels", "consumer_count")
        assert set(their_channel) - set(channel) == UNMEASURED_CHANNEL
        assert set(channel) <= set(their_channel)
        for key in ("consumer_count", "number", "state", "vhost"):
            assert channel[key] == their_channel[key]
        assert channel["name"] == f"{ours['name']} (1)"
        assert channel["connection_details"]["name"] == ours["name"]
        assert (await api.ask("GET", f"{path}/channels")).json == [channel]
        assert (await api.ask("GET", "/api/vhosts/%2F/channels")).json == [channel]
        one_channel = f"/api/channels/{quote(channel['name'], safe='')}"
        assert (await api.ask("GET", one_channel, "bob")).json == channel
        overview = (await api.ask("GET", "/api/overview")).json
        assert overview["object_totals"] | {"exchanges": 0, "queues": 0} == {
            "channels": 1, "connections": 1, "consumers": 1, "exchanges": 0, "queues": 0,
        }  # fmt: skip
        for connection in (direct, through):
            await asyncio.to_thread(connection.close)


async def test_a_closed_connection_hears_the_reason(tmp_path: Path, node: RabbitNode) -> None:
    async with served(tmp_path, node) as api:
        own, other = await _connected(api.gate.port), await _connected(api.gate.port, "alice")
        rows = (await api.ask("GET", "/api/connections")).json
        path = {row["user"]: f"/api/connections/{quote(row['name'], safe='')}" for row in rows}
        assert (await api.ask("DELETE", path["alice"], "bob")).status == 401
        reason = {"X-Reason": "because"}
        assert (await api.ask("DELETE", path["bob"], "bob", headers=reason)).status == 204
        assert await asyncio.to_thread(_closing, own) == "CONNECTION_FORCED - because"
        client = ManagementApi(f"http://127.0.0.1:{api.port}", "alice", "alice")
        (left,) = await asyncio.to_thread(client.connection.list)
        await asyncio.to_thread(client.connection.close, left["name"])
        assert await asyncio.to_thread(_closing, other) == (
            "CONNECTION_FORCED - Closed via management api"
        )
        assert (await api.ask("GET", "/api/connections")).json == []


async def test_a_change_is_in_force_when_the_answer_comes(tmp_path: Path, node: RabbitNode) -> None:
    async with served(tmp_path, node) as api:
        client = await _connected(api.gate.port)
        channel = await asyncio.to_thread(client.channel)
        await asyncio.to_thread(channel.queue_declare, "live", auto_delete=True)
        body = {"configure": "^$", "write": ".*", "read": ".*"}
        assert (await api.ask("PUT", "/api/permissions/%2F/bob", body=body)).status == 204
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
            await asyncio.to_thread(channel.queue_declare, "live", auto_delete=True)
        assert (await api.ask("DELETE", "/api/users/bob")).status == 204
        assert await asyncio.to_thread(_closing, client) == (
            "CONNECTION_FORCED - user 'bob' is deleted"
        )


def _closing(connection: pika.BlockingConnection) -> str:
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as closed:
        connection.sleep(20)
    assert closed.value.reply_code == 320
    text: str = closed.value.reply_text
    return text
