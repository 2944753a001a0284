"""How fast is a revocation? ``python -m tests.bench.revocation [--connections 1000] [--rounds 3]
[--workers 1]``

A publisher and a consumer work as fast as they can through the gate and RabbitMQ, beside a crowd
of connections of the same user, each with a consumer that keeps its right. Then the user loses
the rights to write, and to read the one queue, by one request to the management API. The clock
starts when its answer is there.

Strategy: all clocks are CLOCK_MONOTONIC, the same for every process. Every message carries the
time at which it was sent; what was accepted is what comes out of RabbitMQ, read by a client that
no gate is in the way of. The consumer does not understand basic.cancel, so it is told by the 403.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import multiprocessing
import selectors
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

from tests.bench import machine, wire
from tests.bench.client import PASSWORD, USER, Client
from tests.bench.measures import Metric, raise_descriptor_limit
from tests.bench.report import FORMATS, Results
from tests.bench.routes import SERVICE_PASSWORD, rabbit
from tests.bench.wire import BenchError
from tests.support.gate import Gate, GateConfig
from tests.support.process import LOOPBACK, free_port
from tests.support.rabbit import definitions, permission, user

ADMIN = "admin"
SINK, FEED, CROWD = b"sink", b"feed", b"crowd"
LOAD_SECONDS, AFTER_SECONDS = 2.0, 1.5
BATCH = 50
"""Messages that are sent with one time stamp."""
BODY_SIZE = 256
_STAMP = struct.Struct(">Q")
_CLOSE = (20, 40)

ROWS = (
    ("last publish accepted: sent", "accepted"),
    ("the publisher is told", "publisher"),
    ("last delivery", "delivery"),
    ("the consumer is told", "consumer"),
)


# --- the gate, and the change that is made in it ---


class ServedGate(Gate):
    """A gate whose rights are changed over its management API, as an operator changes them."""

    def __init__(self, folder: Path, upstream: int, workers: int) -> None:
        config = GateConfig(folder, upstream=upstream)
        config.with_definitions(
            definitions(
                users=[user(USER, PASSWORD), user(ADMIN, PASSWORD, ["administrator"])],
                permissions=[permission(USER)],
            )
        )
        self._api = free_port()
        config.set("management.tcp.port", self._api).set("management.tcp.ip", LOOPBACK)
        config.set("upstreams.default.password", SERVICE_PASSWORD).set("workers", workers)
        config.set("log.console.level", "none").set("tcp_listen_options.backlog", 4096)
        super().__init__(config)

    def change(self, order: str) -> int:
        """ "revoke" or "grant"; when the API had answered, in ns."""
        write, read = ("^$", "^crowd") if order == "revoke" else (".*", ".*")
        body = json.dumps({"configure": ".*", "write": write, "read": read})
        login = base64.b64encode(f"{ADMIN}:{PASSWORD}".encode()).decode()
        api = http.client.HTTPConnection(LOOPBACK, self._api, timeout=30)
        with contextlib.closing(api):
            headers = {"Authorization": f"Basic {login}"}
            api.request("PUT", f"/api/permissions/%2F/{USER}", body, headers)
            status = api.getresponse().status
            answered = time.monotonic_ns()
        if status not in {201, 204}:
            raise BenchError(f"the management API answers {status}")
        return answered


# --- the clients, each a process ---


def publish(port: int, report: Connection) -> None:
    """As fast as it can, until the channel is closed; reports when that was."""
    head, tail = _around_the_stamp()
    client = Client(port)
    client.open_channel()
    client.sock.setblocking(False)
    inbox = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(client.sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        pending = memoryview(b"")
        while True:
            for _, events in selector.select():
                if events & selectors.EVENT_READ:
                    inbox += client.sock.recv(65536)
                    if _closed(inbox):
                        report.send(time.monotonic_ns())
                        return
                if events & selectors.EVENT_WRITE:
                    if not pending:
                        stamp = _STAMP.pack(time.monotonic_ns())
                        pending = memoryview((head + stamp + tail) * BATCH)
                    pending = pending[client.sock.send(pending) :]


def _around_the_stamp() -> tuple[bytes, bytes]:
    unit = wire.publish(1, BODY_SIZE)
    at = len(unit) - 1 - BODY_SIZE
    return unit[:at], unit[at + _STAMP.size :]


def consume(port: int, report: Connection) -> None:
    """Reports the last arrival of a delivery, and when the channel was closed."""
    client = Client(port)
    client.open_channel()
    client.consume(FEED, b"c")
    inbox = client.take_buffered()
    last = 0
    while True:
        inbox += client.sock.recv(1 << 18)
        now = time.monotonic_ns()
        for kind, _, payload in wire.split(inbox):
            if kind == wire.BODY:
                last = now
            elif kind == wire.METHOD and wire.method_ids(payload) == _CLOSE:
                report.send((last, now))
                client.sock.settimeout(AFTER_SECONDS)
                with contextlib.suppress(TimeoutError):
                    if client.sock.recv(65536):
                        report.send("something came after the 403")
                return


def observe(port: int, report: Connection) -> None:
    """Reads at the broker what was accepted; reports the newest time stamp when it is silent."""
    client = Client(port)
    client.open_channel()
    client.consume(SINK, b"o")
    client.sock.settimeout(AFTER_SECONDS)
    inbox = client.take_buffered()
    newest = 0
    while True:
        try:
            inbox += client.sock.recv(1 << 18)
        except TimeoutError:
            if newest:
                report.send(newest)
                return
            continue
        for kind, _, payload in wire.split(inbox):
            if kind == wire.BODY:
                newest = max(newest, *_STAMP.unpack_from(payload))


def feed(port: int, _report: Connection) -> None:
    """Publishes to the consumer's queue, at the broker, without end."""
    client = Client(port)
    client.open_channel()
    client.blast(wire.publish(1, BODY_SIZE, exchange=b"", key=FEED), 1 << 40)


def _closed(inbox: bytearray) -> bool:
    return any(
        kind == wire.METHOD and wire.method_ids(payload) == _CLOSE
        for kind, _, payload in wire.split(inbox)
    )


# --- one round ---


@contextlib.contextmanager
def _running(work: object, port: int) -> Iterator[Connection]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(port, theirs), daemon=True)  # type: ignore[arg-type]
    process.start()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def _answer(pipe: Connection, what: str) -> object:
    if not pipe.poll(30):
        raise BenchError(f"{what} does not answer")
    return pipe.recv()


def measure(gate: ServedGate, broker: int) -> dict[str, float]:
    """Milliseconds after the API's answer, by the second column of ROWS."""
    with Client(broker) as admin, ExitStack() as stack:
        admin.open_channel()
        admin.declare_exchange()
        for queue in (SINK, FEED):
            admin.declare_queue(queue, arguments={"x-max-length": 50_000})
        admin.bind_queue(SINK)
        observer = stack.enter_context(_running(observe, broker))
        stack.enter_context(_running(feed, broker))
        consumer = stack.enter_context(_running(consume, gate.port))
        publisher = stack.enter_context(_running(publish, gate.port))
        time.sleep(LOAD_SECONDS)
        committed = gate.change("revoke")
        told = _answer(publisher, "the publisher")
        delivered = _answer(consumer, "the consumer")
        newest = _answer(observer, "the observer")
        if consumer.poll(2 * AFTER_SECONDS) and isinstance(text := consumer.recv(), str):
            raise BenchError(text)
        gate.change("grant")
    last, closed = delivered  # type: ignore[misc]
    times = {"accepted": newest, "publisher": told, "delivery": last, "consumer": closed}
    return {name: (at - committed) / 1e6 for name, at in times.items()}  # type: ignore[operator]


def _crowd(port: int, count: int, stack: ExitStack) -> None:
    for number in range(count):
        client = Client(port)
        stack.callback(client.sock.close)
        client.open_channel()
        client.consume(CROWD, b"%d" % number)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.revocation")
    parser.add_argument("--connections", type=int, default=1000, help="the crowd")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(argv)
    raise_descriptor_limit(2 * options.connections + 500)
    results = Results()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        for name in ("rabbit", "gate"):
            (folder / name).mkdir()
        broker = stack.enter_context(rabbit(folder / "rabbit")).port
        gate = stack.enter_context(ServedGate(folder / "gate", broker, options.workers))
        admin = stack.enter_context(Client(broker))
        admin.open_channel()
        admin.declare_queue(CROWD)
        _crowd(gate.port, options.connections, stack)
        for number in range(options.rounds):
            found = measure(gate, broker)
            for title, name in ROWS:
                metric = Metric(f"{title}, after the API's answer", "ms", 1, compared=False)
                results.add(metric, "gate", number, found[name])
    for label, text in (
        *machine.describe(),
        ("crowd", f"{options.connections} connections, {options.workers} workers"),
    ):
        print(f"{label}: {text}")
    for make in FORMATS.values():
        print(f"\n{make(results.table(['gate']))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
