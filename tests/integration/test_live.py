"""A pika consumer at full rate loses its right to read: RabbitMQ behind, nobody sends a frame.

Every message is accounted for: what the gate drops as late goes back to the queue.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pika
import pika.exceptions
import pytest

from gatekeeper.store.store import Store
from tests.integration.conftest import people
from tests.support.gate import Gate, GateConfig
from tests.support.process import LOOPBACK, wait_until
from tests.support.rabbit import RabbitNode

QUEUE = "a.live"
ENOUGH = 2000
"""Deliveries after which the consumer is in full flow."""
SAID = (
    "Cancelling consumer <<\"t\">> on queue 'a.live' in vhost '/': read access refused after a "
    "change of permissions"
)


def connect(port: int, user: str, password: str, **more: Any) -> pika.BlockingConnection:
    credentials = pika.PlainCredentials(user, password)
    return pika.BlockingConnection(
        pika.ConnectionParameters(LOOPBACK, port, "/", credentials, **more)
    )


class Feeder:
    """Publishes straight to the broker, without end."""

    def __init__(self, port: int) -> None:
        self.published = 0
        self._over = threading.Event()
        self._port = port
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with contextlib.closing(connect(self._port, "gatekeeper", "s3rvice")) as connection:
            channel = connection.channel()
            while not self._over.is_set():
                channel.basic_publish("", QUEUE, b"x" * 100)
                self.published += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def own_gate(broker: RabbitNode, tmp_path: Path) -> Iterator[Gate]:
    config = GateConfig(tmp_path / "gate", upstream=broker.port).with_definitions(people())
    with Gate(config) as gate:
        yield gate


@pytest.fixture
def queue(broker: RabbitNode) -> Iterator[Any]:
    """The broker's own view of the queue: a channel that no gate is in the way of."""
    with contextlib.closing(connect(broker.port, "gatekeeper", "s3rvice")) as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE)
        yield channel
        channel.queue_delete(QUEUE)


def ready(queue: Any) -> int:
    count: int = queue.queue_declare(QUEUE, passive=True).method.message_count
    return count


class Consumer:
    """Acknowledges every message; revokes alice's right to read in full flow."""

    def __init__(self, gate: Gate, *, notify: bool) -> None:
        more: dict[str, Any] = {}
        if not notify:
            more["client_properties"] = {"capabilities": {"basic.nack": True}}
        self.acked = 0
        self.cancelled = False
        self._store_url = gate.config.values["store.url"]
        self.connection = connect(gate.port, "alice", "alice-pw", **more)
        self.channel = self.connection.channel()
        self.channel.add_on_cancel_callback(self._cancel)
        self.channel.basic_consume(QUEUE, self._message, consumer_tag="t")

    def _message(self, channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        assert not self.cancelled, "a delivery after basic.cancel"
        channel.basic_ack(method.delivery_tag)
        self.acked += 1
        if self.acked == ENOUGH:
            with contextlib.closing(Store.open(self._store_url)) as store:
                store.set_permissions(b"alice", b"/", b"^a", b"^a", b"^$")

    def _cancel(self, _frame: Any) -> None:
        self.cancelled = True


def test_a_client_that_is_told(own_gate: Gate, broker: RabbitNode, queue: Any) -> None:
    consumer = Consumer(own_gate, notify=True)
    with Feeder(broker.port) as feeder:
        consumer.channel.start_consuming()  # returns when there is no consumer any more
        assert consumer.cancelled
        assert consumer.acked >= ENOUGH
        told = feeder.published
        wait_until(lambda: feeder.published > told + ENOUGH, timeout=20, what="more is published")
        # The connection and even the channel go on: what it may do it does.
        consumer.channel.queue_declare("a.other", exclusive=True)
        consumer.connection.process_data_events(0.5)
    wait_until(
        lambda: ready(queue) == feeder.published - consumer.acked,
        timeout=20,
        what="every other message is in the queue",
    )
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="read access to queue"):
        consumer.channel.basic_consume(QUEUE, lambda *_: None)
    consumer.connection.close()
    assert own_gate.log_text().count(SAID) == 1


def test_a_client_that_cannot_be_told(own_gate: Gate, broker: RabbitNode, queue: Any) -> None:
    consumer = Consumer(own_gate, notify=False)
    with Feeder(broker.port) as feeder:
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as closed:
            consumer.channel.start_consuming()
        assert (closed.value.reply_code, closed.value.reply_text) == (
            403,
            "ACCESS_REFUSED - read access to queue 'a.live' in vhost '/' refused for user 'alice'",
        )
        again = consumer.connection.channel()
        again.queue_declare("a.other", exclusive=True)
    # pika's acknowledgements of what it had received may have come too late for the broker.
    wait_until(
        lambda: ready(queue) >= feeder.published - consumer.acked, timeout=20, what="is requeued"
    )
    consumer.connection.close()
