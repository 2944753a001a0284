"""Real client libraries do real work through the gate, over TCP and over TLS, and are refused.

alice may use what begins with ``a``. Each library must see a refusal as its own exception for
403, and go on using its connection.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import aiormq.exceptions
import amqp.exceptions
import kombu
import pika
import pika.exceptions
import pytest
import trustme

from tests.support.gate import ROOT, Gate
from tests.support.process import LOOPBACK, Process
from tests.support.rabbit import TlsFiles

REFUSED = "configure access to queue 'b.no' in vhost '/' refused for user 'alice'"


@dataclass(frozen=True, slots=True)
class Door:
    """How a client gets to the gate."""

    port: int
    context: ssl.SSLContext | None
    ca: Path | None

    @property
    def scheme(self) -> str:
        return "amqps" if self.context else "amqp"

    def url(self, username: str = "alice", password: str = "alice-pw") -> str:
        return f"{self.scheme}://{username}:{password}@{LOOPBACK}:{self.port}/%2F"

    def pika(
        self, username: str = "alice", password: str = "alice-pw"
    ) -> pika.ConnectionParameters:
        return pika.ConnectionParameters(
            LOOPBACK,
            self.port,
            "/",
            pika.PlainCredentials(username, password),
            ssl_options=pika.SSLOptions(self.context, LOOPBACK) if self.context else None,
            blocked_connection_timeout=20,
            socket_timeout=20,
        )


@pytest.fixture(params=["tcp", "tls"])
def door(
    request: pytest.FixtureRequest, gate: Gate, authority: trustme.CA, tls_files: TlsFiles
) -> Door:
    if request.param == "tcp":
        return Door(gate.port, None, None)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return Door(gate.tls_port, context, tls_files.ca)


@pytest.fixture
def queue() -> str:
    return f"a.{uuid.uuid4().hex[:8]}"


# --- pika ----------------------------------------------------------------------------------------


@pytest.fixture
def blocking(door: Door) -> Iterator[pika.BlockingConnection]:
    connection = pika.BlockingConnection(door.pika())
    yield connection
    if connection.is_open:
        connection.close()


def test_pika_publish_confirm_get_ack(blocking: pika.BlockingConnection, queue: str) -> None:
    channel = blocking.channel()
    channel.queue_declare(queue, auto_delete=True)
    channel.confirm_delivery()
    for number in range(50):
        channel.basic_publish("", queue, str(number).encode(), mandatory=True)
    with pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish("", "a.nowhere", b"x", mandatory=True)
    for number in range(50):
        method, _properties, body = channel.basic_get(queue)
        assert method is not None
        assert body == str(number).encode()
        channel.basic_ack(method.delivery_tag)
    assert channel.basic_get(queue) == (None, None, None)
    channel.queue_delete(queue)


def test_pika_consume(blocking: pika.BlockingConnection, queue: str) -> None:
    channel = blocking.channel()
    channel.queue_declare(queue)
    channel.exchange_declare("a.topic", "topic", auto_delete=True)
    channel.queue_bind(queue, "a.topic", "x.*")
    channel.basic_qos(prefetch_count=7)
    for number in range(100):
        channel.basic_publish("a.topic", "x.y", str(number).encode())
    seen = []
    for method, _properties, body in channel.consume(queue, inactivity_timeout=20):
        assert method is not None, "no delivery within 20 s"
        seen.append(int(body))
        channel.basic_ack(method.delivery_tag)
        if len(seen) == 100:
            break
    assert seen == list(range(100))
    assert channel.cancel() == 0
    channel.queue_delete(queue)


def test_pika_refusal(blocking: pika.BlockingConnection, queue: str) -> None:
    healthy, refused = blocking.channel(), blocking.channel()
    healthy.queue_declare(queue, exclusive=True)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        refused.queue_declare("b.no")
    assert caught.value.reply_code == 403
    assert caught.value.reply_text == f"ACCESS_REFUSED - {REFUSED}"
    healthy.basic_publish("", queue, b"still here")
    assert healthy.basic_get(queue, auto_ack=True)[2] == b"still here"
    again = blocking.channel()
    again.confirm_delivery()
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        again.basic_publish("b.exchange", "k", b"x")
    assert caught.value.reply_code == 403
    assert blocking.channel().is_open


def test_pika_login_refused(door: Door) -> None:
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        pika.BlockingConnection(door.pika("alice", "wrong"))
    with pytest.raises(pika.exceptions.ProbableAccessDeniedError):
        pika.BlockingConnection(door.pika("bob", "bob-pw"))


class SelectScript:
    """pika's callback API: declares, publishes, consumes one message, is refused, closes."""

    def __init__(self, parameters: pika.ConnectionParameters, queue: str) -> None:
        self.queue = queue
        self.events: list[Any] = []
        self.connection = pika.SelectConnection(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self.opened),
            on_open_error_callback=lambda _c, error: self.stop(("open error", error)),
            on_close_callback=lambda _c, reason: self.stop(("closed", type(reason).__name__)),
        )
        self.connection.ioloop.call_later(30, lambda: self.stop("timeout"))

    def stop(self, event: Any) -> None:
        self.events.append(event)
        self.connection.ioloop.stop()

    def opened(self, channel: pika.channel.Channel) -> None:
        channel.queue_declare(
            self.queue, exclusive=True, callback=lambda _frame: self.declared(channel)
        )

    def declared(self, channel: pika.channel.Channel) -> None:
        channel.basic_consume(self.queue, self.delivered)
        channel.basic_publish("", self.queue, b"select")

    def delivered(
        self, channel: pika.channel.Channel, method: Any, _properties: Any, body: bytes
    ) -> None:
        self.events.append(body)
        channel.basic_ack(method.delivery_tag)
        self.connection.channel(on_open_callback=self.refuse)

    def refuse(self, channel: pika.channel.Channel) -> None:
        channel.add_on_close_callback(self.refused)
        channel.queue_declare("b.no", callback=lambda _frame: self.stop("not refused"))

    def refused(self, _channel: pika.channel.Channel, reason: Exception) -> None:
        assert isinstance(reason, pika.exceptions.ChannelClosedByBroker)
        self.events.append((reason.reply_code, reason.reply_text))
        self.connection.close()


def test_pika_select_connection(door: Door, queue: str) -> None:
    script = SelectScript(door.pika(), queue)
    script.connection.ioloop.start()
    script.connection.ioloop.close()  # its wake-up sockets
    assert script.events == [
        b"select",
        (403, f"ACCESS_REFUSED - {REFUSED}"),
        ("closed", "ConnectionClosedByClient"),
    ]


# --- aio-pika ------------------------------------------------------------------------------------


async def test_aio_pika(door: Door, queue: str) -> None:
    connection = await aio_pika.connect(door.url(), ssl_context=door.context, timeout=20)
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.set_qos(prefetch_count=10)
        declared = await channel.declare_queue(queue, auto_delete=True)
        for number in range(100):
            await channel.default_exchange.publish(aio_pika.Message(b"%d" % number), queue)
        seen = []
        async with asyncio.timeout(20):
            async with declared.iterator() as messages:
                async for message in messages:
                    async with message.process():
                        seen.append(int(message.body))
                    if len(seen) == 100:
                        break
        assert seen == list(range(100))

        other = await connection.channel()
        with pytest.raises(aiormq.exceptions.ChannelAccessRefused, match=REFUSED):
            await other.declare_queue("b.no")
        await channel.default_exchange.publish(aio_pika.Message(b"still here"), queue)


async def test_aio_pika_many_at_once(door: Door, queue: str) -> None:
    """Pipelined confirms and refusals on channels beside each other."""
    connection = await aio_pika.connect(door.url(), ssl_context=door.context, timeout=20)
    async with connection:

        async def work(number: int) -> str:
            channel = await connection.channel()
            if number % 5 == 0:
                with pytest.raises(aiormq.exceptions.ChannelAccessRefused):
                    await channel.declare_queue(f"b.{number}")
                return "refused"
            declared = await channel.declare_queue(f"{queue}.{number}", exclusive=True)
            await asyncio.gather(
                *(
                    channel.default_exchange.publish(aio_pika.Message(b"x"), declared.name)
                    for _ in range(20)
                )
            )
            answer = await channel.declare_queue(declared.name, passive=True)
            return f"{answer.declaration_result.message_count}"

        async with asyncio.timeout(40):
            results = await asyncio.gather(*(work(number) for number in range(20)))
        assert results.count("refused") == 4
        assert results.count("20") == 16


async def test_aio_pika_login_refused(door: Door) -> None:
    with pytest.raises(aiormq.exceptions.ProbableAuthenticationError):
        await aio_pika.connect(door.url("alice", "wrong"), ssl_context=door.context, timeout=20)


# --- kombu ---------------------------------------------------------------------------------------


def kombu_connection(door: Door, password: str = "alice-pw") -> kombu.Connection:
    use_ssl: Any = {"ca_certs": str(door.ca), "cert_reqs": ssl.CERT_REQUIRED} if door.ca else False
    return kombu.Connection(door.url("alice", password), ssl=use_ssl, connect_timeout=20)


def test_kombu(door: Door, queue: str) -> None:
    with kombu_connection(door) as connection:
        exchange = kombu.Exchange("a.kombu", "direct", durable=False, auto_delete=True)
        target = kombu.Queue(queue, exchange, routing_key="k", durable=False, auto_delete=True)
        seen: list[Any] = []

        def received(body: Any, message: kombu.Message) -> None:
            seen.append(body)
            message.ack()

        with connection.Consumer(target, callbacks=[received]):
            producer = connection.Producer(serializer="json")
            for number in range(30):
                producer.publish(
                    {"number": number}, exchange=exchange, routing_key="k", declare=[target]
                )
            deadline = time.monotonic() + 20
            while len(seen) < 30 and time.monotonic() < deadline:
                connection.drain_events(timeout=20)
        assert seen == [{"number": number} for number in range(30)]

        with pytest.raises(amqp.exceptions.AccessRefused, match="refused for user 'alice'"):
            kombu.Queue("b.no", durable=False)(connection.channel()).declare()
        assert connection.connected
        kombu.Queue(queue + ".2", durable=False, exclusive=True)(connection.channel()).declare()


def test_kombu_login_refused(door: Door) -> None:
    connection = kombu_connection(door, "wrong")
    with pytest.raises(amqp.exceptions.AccessRefused):
        connection.connect()
    connection.release()


# --- Celery --------------------------------------------------------------------------------------

CELERY_CALL = """
from tests.integration.celery_app import add
assert [add.delay(n, n).get(timeout=30) for n in range(10)] == [2 * n for n in range(10)]
print("worked")
"""


def celery_environment(door: Door, username: str, password: str) -> dict[str, str]:
    return {
        **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
        "PYTHONPATH": str(ROOT),
        "C_FORCE_ROOT": "1",
        "TEST_BROKER_URL": door.url(username, password),
        "TEST_CA_FILE": str(door.ca or ""),
    }


def celery_worker(folder: Path, variables: dict[str, str]) -> Process:
    return Process(
        [
            *(sys.executable, "-m", "celery", "-A", "tests.integration.celery_app", "worker"),
            *("--pool", "solo", "--loglevel", "INFO", "--without-gossip", "--without-mingle"),
        ],
        log=folder / "worker.log",
        env=variables,
        cwd=folder,
    )


def test_celery_worker(door: Door, tmp_path: Path) -> None:
    # Results go through the default exchange to a queue that Celery names by a UUID, which no
    # prefix covers: admin's rights are wide enough.
    variables = celery_environment(door, "admin", "admin-pw")
    worker = celery_worker(tmp_path, variables)
    with worker:
        worker.wait_for(lambda: " ready." in worker.output(), timeout=40, what="is ready")
        done = subprocess.run(
            [sys.executable, "-c", CELERY_CALL],
            env=variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout == "worked\n", done.stderr + worker.tail()
        worker.stop()
    assert worker.output().count("succeeded in") == 10


def test_celery_worker_refused(door: Door, tmp_path: Path) -> None:
    """A worker whose user may not log in says why."""
    worker = celery_worker(tmp_path, celery_environment(door, "alice", "wrong")).start()
    try:
        worker.wait_for(
            lambda: "Login was refused" in worker.output(), timeout=40, what="is refused"
        )
    finally:
        worker.kill()
