"""How fast is a revocation? ``python -m tests.bench.revocation [--connections 1000] [--rounds 3]``

A publisher and a consumer work as fast as they can through the gate and RabbitMQ, beside a crowd
of connections of the same user, each with a consumer that keeps its right. Then the user loses
the rights to write, and to read the one queue. The clock starts when the change is committed, and
the call that made it (in a thread of the gate's process, as the management API makes it) returns.

Strategy: all clocks are CLOCK_MONOTONIC, the same for every process. Every message carries the
time at which it was sent; what was accepted is what comes out of RabbitMQ, read by a client that
no gate is in the way of. The consumer does not understand basic.cancel, so it is told by the 403.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import selectors
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from gatekeeper import logs
from gatekeeper.app import App
from gatekeeper.config.load import load_settings
from tests.bench import machine, wire
from tests.bench.client import PASSWORD, USER, Client
from tests.bench.measures import Metric, raise_descriptor_limit
from tests.bench.meter import ROOT
from tests.bench.report import FORMATS, Results
from tests.bench.routes import SERVICE_PASSWORD, rabbit
from tests.bench.wire import BenchError
from tests.support.gate import GateConfig, environment
from tests.support.process import free_port, listens, wait_until
from tests.support.rabbit import definitions, permission, user

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


def serve(config: str) -> None:
    """Run the gate; for each line of standard input change the rights, and print the time."""
    settings = load_settings(Path(config), {})
    logs.configure(settings.log)

    async def run() -> None:
        app = App(settings)
        loop = asyncio.get_running_loop()

        def obey() -> None:
            for line in sys.stdin:
                write, read = (b"^$", b"^crowd") if line == "revoke\n" else (b".*", b".*")
                app._store.set_permissions(USER.encode(), b"/", b".*", write, read)
                print(time.monotonic_ns(), flush=True)
            loop.call_soon_threadsafe(lambda: app.stop(hurry=True))

        threading.Thread(target=obey, daemon=True).start()
        await app.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


class ServedGate:
    def __init__(self, folder: Path, upstream: int) -> None:
        config = GateConfig(folder, upstream=upstream, port=free_port())
        config.with_definitions(
            definitions(users=[user(USER, PASSWORD)], permissions=[permission(USER)])
        )
        config.set("upstreams.default.password", SERVICE_PASSWORD)
        config.set("log.console.level", "none").set("tcp_listen_options.backlog", 4096)
        self.port = config.port
        command = [sys.executable, "-m", "tests.bench.revocation", "--serve", str(config.write())]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: listens(self.port), timeout=20, what="the gate listens")

    def change(self, order: str) -> int:
        """ "revoke" or "grant"; when it was committed, in ns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def stop(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=10)
        self._process.kill()
        self._process.wait()


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
    """Milliseconds after the commit, by the second column of ROWS."""
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
    parser.add_argument("--serve", metavar="CONFIG", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve:
        serve(options.serve)
        return 0
    raise_descriptor_limit(2 * options.connections + 500)
    results = Results()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        for name in ("rabbit", "gate"):
            (folder / name).mkdir()
        broker = stack.enter_context(rabbit(folder / "rabbit")).port
        gate = ServedGate(folder / "gate", broker)
        stack.callback(gate.stop)
        admin = stack.enter_context(Client(broker))
        admin.open_channel()
        admin.declare_queue(CROWD)
        _crowd(gate.port, options.connections, stack)
        for number in range(options.rounds):
            found = measure(gate, broker)
            for title, name in ROWS:
                metric = Metric(f"{title}, after the commit", "ms", 1, compared=False)
                results.add(metric, "gate", number, found[name])
    for label, text in (*machine.describe(), ("crowd", f"{options.connections} connections")):
        print(f"{label}: {text}")
    for make in FORMATS.values():
        print(f"\n{make(results.table(['gate']))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
