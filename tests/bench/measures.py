"""What is measured. A measure is a function: a route and a scale in, readings out.

Strategy: every figure is taken over a *complete* piece of work. A transfer ends with an
answer that can only come once every byte has arrived, so the CPU time between two readings
of the process clock belongs to that many messages and to nothing else.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Self

from tests.bench import wire
from tests.bench.client import Client, RefusedError
from tests.bench.meter import Meter
from tests.bench.routes import READER, Route
from tests.bench.wire import BenchError

_ACK_FRAME = len(wire.method(1, 60, 80, bytes(9)))
_VERIFIED = 5000
"""Messages of the transfer whose content is compared, once for each route."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much work one round is.

    transfer_bytes: AMQP bytes of one blast; confirms, end_to_end: messages;
    handshake_seconds: of one storm, by ``workers`` processes; idle: connections.
    """

    transfer_bytes: int
    confirms: int
    end_to_end: int
    handshake_seconds: float
    workers: int
    idle: int


FULL = Scale(512 * 1024 * 1024, 4000, 100_000, 2.0, 4, 2000)
QUICK = Scale(96 * 1024 * 1024, 500, 15_000, 0.4, 4, 400)


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table. ``digits``: decimals to print. ``compared``: has a ratio."""

    title: str
    unit: str
    digits: int = 0
    compared: bool = True


Reading = tuple[Metric, float]
Measure = Callable[[Route, Scale], Iterator[Reading]]


def publish(size: int) -> Measure:
    """Blast basic.publish through the route into the sink."""
    return partial(_publish, size, _transfer_metrics(f"publish {_size(size)}"))


def deliver(size: int) -> Measure:
    """Have the sink blast basic.deliver through the route to one consumer."""
    return partial(_deliver, size, _transfer_metrics(f"deliver {_size(size)}"))


def _size(size: int) -> str:
    return f"{size // 1024} KiB" if size >= 1024 else f"{size} B"


def _transfer_metrics(title: str) -> tuple[Metric, Metric, Metric]:
    return (
        Metric(f"{title}: CPU", "ns/msg", 1),
        Metric(f"{title}: rate", "msg/s"),
        Metric(f"{title}: proxy busy", "%", 0, compared=False),
    )


@dataclass(slots=True)
class _Span:
    """Wall and proxy CPU time of a ``with`` block, in ns; ``cpu`` is None without a proxy."""

    meter: Meter | None
    wall: int = 0
    cpu: int | None = None

    def __enter__(self) -> Self:
        self.cpu = self.meter.cpu_ns() if self.meter else None
        self.wall = time.perf_counter_ns()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter_ns() - self.wall
        if self.meter and self.cpu is not None:
            self.cpu = self.meter.cpu_ns() - self.cpu

    def readings(self, metrics: tuple[Metric, Metric, Metric], count: int) -> Iterator[Reading]:
        cpu, rate, busy = metrics
        yield rate, count * 1e9 / self.wall
        if self.cpu is not None:
            yield cpu, self.cpu / count
            yield busy, 100 * self.cpu / self.wall


def _publish(
    size: int, metrics: tuple[Metric, Metric, Metric], route: Route, scale: Scale
) -> Iterator[Reading]:
    unit = wire.publish(1, size)
    count = scale.transfer_bytes // len(unit)
    with Client(route.port) as client:
        client.open_channel()
        # The gate decides about the exchange now, as it does once in a publisher's life.
        client.blast(unit, 100)
        client.declare_queue(b"discard:%d" % (count * len(unit)))
        with _Span(route.meter) as span:
            client.blast(unit, count)
            client.declare_queue(b"arrived")
    yield from span.readings(metrics, count)


def _deliver(
    size: int, metrics: tuple[Metric, Metric, Metric], route: Route, scale: Scale
) -> Iterator[Reading]:
    count = scale.transfer_bytes // len(wire.deliver(1, b"flood:0000000:0000", size))
    tag = b"flood:%d:%d" % (count, size)
    with Client(route.port) as client:
        client.open_channel()
        with _Span(route.meter) as span:
            client.consume(b"any", tag)
            client.count(count * len(wire.deliver(1, tag, size)))
    yield from span.readings(metrics, count)


def confirm(route: Route, scale: Scale) -> Iterator[Reading]:
    """Publish and wait for the broker's confirm, one message in flight."""
    unit = wire.publish(1, 64)
    trips: list[int] = []
    with Client(route.port) as client:
        client.open_channel()
        client.declare_exchange()
        # The queue keeps the broker honest (it must route and enqueue) and small.
        queue = f"confirm-{route.name}".encode()
        client.declare_queue(queue, exclusive=True, arguments={"x-max-length": 100})
        client.bind_queue(queue)
        client.confirm_select()
        for _ in range(min(200, scale.confirms)):
            _round_trip(client, unit)
        with _Span(route.meter) as span:
            trips = [_round_trip(client, unit) for _ in range(scale.confirms)]
    cuts = statistics.quantiles(trips, n=100, method="inclusive")
    yield Metric("confirm round trip: p50", "us", 1), cuts[49] / 1000
    yield Metric("confirm round trip: p99", "us", 1), cuts[98] / 1000
    if span.cpu is not None:
        yield Metric("confirm round trip: CPU", "us/msg", 1), span.cpu / scale.confirms / 1000


def _round_trip(client: Client, unit: bytes) -> int:
    begin = time.perf_counter_ns()
    client.sock.sendall(unit)
    answer = client.sock.recv(4096)
    elapsed = time.perf_counter_ns() - begin
    if len(answer) != _ACK_FRAME or answer[7:11] != b"\x00\x3c\x00\x50":
        raise BenchError(f"expected one basic.ack, got {answer[:32]!r}")
    return elapsed


def end_to_end(route: Route, scale: Scale) -> Iterator[Reading]:
    """One publisher, one queue, one consumer: until the last message is delivered."""
    unit, count, tag = wire.publish(1, 64), scale.end_to_end, b"c"
    queue = f"end-to-end-{route.name}".encode()
    with Client(route.port) as consumer, Client(route.port) as publisher:
        consumer.open_channel()
        consumer.declare_exchange()
        consumer.declare_queue(queue, exclusive=True)
        consumer.bind_queue(queue)
        consumer.consume(queue, tag)
        publisher.open_channel()
        sender = threading.Thread(target=publisher.blast, args=(unit, count), daemon=True)
        with _Span(route.meter) as span:
            sender.start()
            consumer.count(count * len(wire.deliver(1, tag, 64)))
        sender.join()
    yield Metric("end to end 64 B: rate", "msg/s"), count * 1e9 / span.wall
    if span.cpu is not None:
        yield Metric("end to end 64 B: CPU", "ns/msg", 1), span.cpu / count


def handshakes(broker: str) -> Measure:
    """Connect, log in, open the vhost, close; again and again from several processes."""
    return partial(_handshakes, broker)


def _handshakes(broker: str, route: Route, scale: Scale) -> Iterator[Reading]:
    work = partial(_storm, route.port, scale.handshake_seconds)
    # Forked: a fresh interpreter would take longer to start than the storm lasts.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(scale.workers, mp_context=context)
    with pool, _Span(route.meter) as span:
        storms = list(pool.map(work, range(scale.workers)))
    total = sum(count for count, _ in storms)
    rate = sum(count / seconds for count, seconds in storms)
    yield Metric(f"handshakes ({broker}): rate", "1/s"), rate
    if span.cpu is not None:
        yield Metric(f"handshakes ({broker}): CPU", "us each"), span.cpu / total / 1000


def _storm(port: int, seconds: float, _worker: int) -> tuple[int, float]:
    """How many, in how many seconds."""
    begin = now = time.monotonic()
    count = 0
    while now < begin + seconds:
        with Client(port):
            count += 1
        now = time.monotonic()
    return count, now - begin


def idle(route: Route, scale: Scale) -> Iterator[Reading]:
    """Memory of a fresh proxy, in bytes a connection, with one open channel on each."""
    if route.meter is None:
        return
    with ExitStack() as stack:
        # What the first connection brings along (imports, caches) is not a connection's cost.
        stack.enter_context(Client(route.port)).open_channel()
        before = route.meter.rss_bytes()
        for _ in range(scale.idle):
            stack.enter_context(Client(route.port)).open_channel()
        grown = route.meter.rss_bytes() - before
    yield Metric(f"idle connection ({scale.idle:,} open): RSS", "KiB", 2), grown / scale.idle / 1024


def verify(route: Route) -> None:
    """Compare what goes in with what comes out, both ways; for the gate, that it refuses.

    Raises BenchError where the figures of this route would mean nothing. Sink only.
    """
    unit = wire.publish(1, 64)
    with Client(route.port) as client:
        client.open_channel()
        client.declare_queue(b"digest:%d" % (_VERIFIED * len(unit)))
        client.blast(unit, _VERIFIED)
        if client.declare_queue(b"arrived") != zlib.crc32(unit * _VERIFIED):
            raise BenchError("the published bytes did not arrive as they were sent")
    tag = b"flood:%d:64" % _VERIFIED
    with Client(route.port) as client:
        client.open_channel()
        client.consume(b"any", tag)
        sent = wire.deliver(1, tag, 64) * _VERIFIED
        if client.digest(len(sent)) != zlib.crc32(sent):
            raise BenchError("the delivered bytes did not arrive as they were sent")
    if route.name == "gate":
        _verify_refusal(route)


def _verify_refusal(route: Route) -> None:
    with Client(route.port, READER, READER) as client:
        client.open_channel()
        client.blast(wire.publish(1, 64), 1)
        try:
            client.declare_queue(b"any")
        except RefusedError as refused:
            if refused.code == 403:
                return
            raise
    raise BenchError("the gate let a user publish who has no write permission")


def raise_descriptor_limit(wanted: int) -> None:
    """Let this process and its children open ``wanted`` descriptors; BenchError if denied."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchError(
            f"{wanted} descriptors are needed, the limit is {hard}: ulimit -Hn {wanted}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
