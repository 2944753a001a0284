"""What is measured. A measure is a function: a route and a scale in, readings out.

Strategy: every figure is taken over a *complete* piece of work. A transfer ends with an
answer that can only come once every byte has arrived, so the CPU time between two readings
of the process clock belongs to that many messages and to nothing else.
"""

from __future__ import annotations

import multiprocessing
import resource
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Self

from tests.bench import wire
from tests.bench.client import Client, RefusedError
from tests.bench.meter import Meter
from tests.bench.routes import READER, Route
from tests.bench.wire import BenchError

_VERIFIED = 5000
"""Messages of the transfer whose content is compared, once for each route."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much work one round is.

    transfer_bytes: AMQP bytes of one blast; confirms: round trips; end_to_end: messages;
    handshake_seconds: of one run of logins, by ``workers`` processes; idle, idle_tls, storm:
    connections; churn_seconds: of connecting, working and closing.
    """

    transfer_bytes: int
    confirms: int
    end_to_end: int
    handshake_seconds: float
    workers: int
    idle: int
    idle_tls: int
    storm: int
    churn_seconds: float


FULL = Scale(512 * 1024 * 1024, 4000, 100_000, 2.0, 4, 5000, 1000, 2000, 30.0)
QUICK = Scale(96 * 1024 * 1024, 500, 15_000, 0.4, 4, 400, 100, 400, 3.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table. ``digits``: decimals to print. ``compared``: has a ratio."""

    title: str
    unit: str
    digits: int = 0
    compared: bool = True


Reading = tuple[Metric, float]
Measure = Callable[[Route, Scale], Iterator[Reading]]


def transfer_metrics(title: str) -> tuple[Metric, Metric, Metric]:
    """CPU, rate, and how busy the proxy was."""
    return (
        Metric(f"{title}: CPU", "ns/msg", 1),
        Metric(f"{title}: rate", "msg/s"),
        Metric(f"{title}: proxy busy", "%", 0, compared=False),
    )


@dataclass(slots=True)
class Span:
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
        """The figures of ``transfer_metrics`` for ``count`` messages."""
        cpu, rate, busy = metrics
        yield rate, count * 1e9 / self.wall
        if self.cpu is not None:
            yield cpu, self.cpu / count
            yield busy, 100 * self.cpu / self.wall


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
        with Span(route.meter) as span:
            sender.start()
            consumer.count(count * len(wire.deliver(1, tag, 64)))
        sender.join()
    yield Metric("end to end 64 B: rate", "msg/s"), count * 1e9 / span.wall
    if span.cpu is not None:
        yield Metric("end to end 64 B: CPU", "ns/msg", 1), span.cpu / count


def handshakes(broker: str, *, tls: bool = False) -> Measure:
    """Connect, log in, open the vhost, close; again and again from several processes.

    tls: all of it inside TLS, each time a full handshake (nothing is resumed).
    """
    return partial(_handshakes, broker, tls)


def _handshakes(broker: str, tls: bool, route: Route, scale: Scale) -> Iterator[Reading]:
    if tls and not route.tls_port:
        return
    work = partial(_logins, route, tls, scale.handshake_seconds)
    # Forked: a fresh interpreter would take longer to start than the storm lasts.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(scale.workers, mp_context=context)
    with pool, Span(route.meter) as span:
        runs = list(pool.map(work, range(scale.workers)))
    total = sum(count for count, _ in runs)
    rate = sum(count / seconds for count, seconds in runs)
    name = f"{broker}, TLS" if tls else broker
    yield Metric(f"handshakes ({name}): rate", "1/s"), rate
    if span.cpu is not None:
        yield Metric(f"handshakes ({name}): CPU", "us each"), span.cpu / total / 1000


def _logins(route: Route, tls: bool, seconds: float, _worker: int) -> tuple[int, float]:
    """How many, in how many seconds."""
    begin = now = time.monotonic()
    count = 0
    context = route.tls() if tls else None
    port = route.tls_port if tls else route.port
    while now < begin + seconds:
        with Client(port, tls=context):
            count += 1
        now = time.monotonic()
    return count, now - begin


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
