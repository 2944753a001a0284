"""What a broker holds: exchanges, queues with their counts, bindings; and making it empty again.

Exchanges, bindings and names come from the management API, which reads them from the broker's
tables; counts come from the queue processes themselves, asked over AMQP by an observer, because
the API's are seconds old.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tests.integration.differential.names import Names
from tests.integration.differential.scenario import (
    PERMANENT_EXCHANGES,
    PERMANENT_QUEUES,
    SERVICE,
    SERVICE_PASSWORD,
    VHOSTS,
)
from tests.support.amqp import Client
from tests.support.rabbit import RabbitNode

BINDING = "source,destination,destination_type,routing_key,arguments"


class BrokerState:
    """The state of one node, seen as the service account."""

    def __init__(self, node: RabbitNode) -> None:
        self._node = node
        self._observers: dict[str, Client] = {}

    def close(self) -> None:
        for client in self._observers.values():
            client.abort()
        self._observers = {}

    def is_topic(self, vhost: str, exchange: bytes) -> bool:
        return any(
            item["name"].encode() == exchange and item["type"] == "topic"
            for item in self._list("exchanges", vhost, "name,type")
        )

    def exists(self, vhost: str, kind: str, name: bytes) -> bool:
        listed = self._list(f"{kind}s", vhost, "name")
        return any(item["name"].encode() == name for item in listed)

    def snapshot(self, names: Names) -> list[tuple[Any, ...]]:
        """Everything in all vhosts, comparable."""
        found: list[tuple[Any, ...]] = []
        for vhost in VHOSTS:
            counts = self.message_counts(vhost)
            found += [
                (vhost, "exchange", *_fields(item, names))
                for item in self._list(
                    "exchanges", vhost, "name,type,durable,auto_delete,internal,arguments"
                )
            ]
            found += [
                (vhost, "queue", *_fields(item, names), counts.get(item["name"].encode()))
                for item in self._list(
                    "queues", vhost, "name,durable,auto_delete,exclusive,arguments"
                )
            ]
            found += [
                (vhost, "binding", *_fields(item, names))
                for item in self._list("bindings", vhost, BINDING)
            ]
        return sorted(found, key=repr)

    def clean(self, port: int, username: str, password: str) -> None:
        """Delete what sessions made, through the clients' own door, so that a gate sees it."""
        for vhost in VHOSTS:
            with Client.login(port, username, password, vhost) as client:
                client.open_channel(1)
                for item in self._list("queues", vhost, "name"):
                    name = item["name"].encode()
                    if name in PERMANENT_QUEUES:
                        client.call(1, "queue.purge", queue=name)
                    else:
                        client.call(1, "queue.delete", queue=name)
                for item in self._list("exchanges", vhost, "name"):
                    name = item["name"].encode()
                    if name and not name.startswith(b"amq.") and name not in PERMANENT_EXCHANGES:
                        client.call(1, "exchange.delete", exchange=name)
                for item in self._list("bindings", vhost, BINDING):
                    self._unbind(client, item)

    def _unbind(self, client: Client, item: Mapping[str, Any]) -> None:
        if not item["source"]:
            return
        common = {"routing_key": item["routing_key"], "arguments": item["arguments"]}
        if item["destination_type"] == "queue":
            client.call(
                1, "queue.unbind", queue=item["destination"], exchange=item["source"], **common
            )
        else:
            client.call(
                1,
                "exchange.unbind",
                destination=item["destination"],
                source=item["source"],
                **common,
            )

    def _list(self, what: str, vhost: str, columns: str) -> list[dict[str, Any]]:
        path = f"{what}/{'%2F' if vhost == '/' else vhost}?columns={columns}"
        return cast("list[dict[str, Any]]", self._node.api(path, SERVICE, SERVICE_PASSWORD))

    def message_counts(self, vhost: str) -> dict[bytes, tuple[int, int]]:
        """Messages ready and consumers per queue; asks every queue process that may be asked."""
        client = self._observers.get(vhost)
        if client is None:
            client = Client.login(self._node.port, SERVICE, SERVICE_PASSWORD, vhost)
            client.open_channel(1)
            self._observers[vhost] = client
        counts = {}
        for item in self._list("queues", vhost, "name,exclusive"):
            if item.get("exclusive"):
                continue
            answer = client.call(1, "queue.declare", queue=item["name"], passive=True)
            if answer.name == "channel.close":  # gone in between
                client.send(1, "channel.close-ok")
                client.open_channel(1)
                continue
            counts[item["name"].encode()] = (answer["message_count"], answer["consumer_count"])
        return counts


def _fields(item: Mapping[str, Any], names: Names) -> tuple[Any, ...]:
    return tuple(names.listed(str(item[key]).encode()) for key in sorted(item))
