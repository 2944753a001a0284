"""One request in flight: how long until its answer is there?

Strategy: a round trip is one send and one receive of a small frame; what the proxy adds is what
differs from ``direct``. The same again with a neighbour who blasts through the same proxy shows
how long a proxy lets one client wait for another.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized

from tests.bench import wire
from tests.bench.client import Client
from tests.bench.measures import Metric, Reading, Scale, Span
from tests.bench.routes import Route
from tests.bench.wire import BenchError

_WARM = 200
_ENDLESS = 1 << 50
"""Bytes: more than anybody sends in a measurement."""
_BUSY_SHARE = 10
"""Beside a stream a round trip takes milliseconds, not tens of microseconds: so many fewer."""
_SETTLE = 0.5
"""Seconds until the neighbour's stream fills every buffer on its way."""


def confirm(route: Route, scale: Scale) -> Iterator[Reading]:
    """Publish and wait for the broker's confirm. RabbitMQ."""
    with Client(route.port) as client:
        client.open_channel()
        client.declare_exchange()
        # The queue keeps the broker honest (it must route and enqueue) and small.
        queue = f"confirm-{route.name}".encode()
        client.declare_queue(queue, exclusive=True, arguments={"x-max-length": 100})
        client.bind_queue(queue)
        client.confirm_select()
        yield from _trips(
            "confirm round trip", client, wire.publish(1, 64), (60, 80), route, scale.confirms
        )


def declare(route: Route, scale: Scale) -> Iterator[Reading]:
    """Declare a queue that exists, until queue.declare-ok. RabbitMQ."""
    queue = f"declare-{route.name}".encode()
    arguments = b"\0\0" + wire.short(queue) + b"\x04" + wire.table({})
    with Client(route.port) as client:
        client.open_channel()
        request = wire.method(1, 50, 10, arguments)
        yield from _trips("declare round trip", client, request, (50, 11), route, scale.confirms)


def get(route: Route, scale: Scale) -> Iterator[Reading]:
    """Ask an empty queue for a message, until basic.get-empty. RabbitMQ."""
    queue = f"get-{route.name}".encode()
    with Client(route.port) as client:
        client.open_channel()
        client.declare_queue(queue, exclusive=True)
        request = wire.method(1, 60, 70, b"\0\0" + wire.short(queue) + b"\x01")
        yield from _trips("get-empty round trip", client, request, (60, 72), route, scale.confirms)


def fairness(route: Route, scale: Scale) -> Iterator[Reading]:
    """Publish and confirm while another connection publishes as fast as it can. Sink.

    The neighbour's rate belongs to it: a proxy could keep one client's answers quick by
    slowing the other.
    """
    request, count = wire.publish(1, 64), max(10, scale.confirms // _BUSY_SHARE)
    title = "confirm round trip beside a stream"
    with _neighbour(route.port) as sent, Client(route.port) as client:
        client.open_channel()
        client.confirm_select()
        total = (count + min(_WARM, count)) * len(request)
        client.declare_queue(b"confirm:%d:%d:1" % (total, len(request)))
        begin, before = time.monotonic(), sent.value
        yield from _trips(title, client, request, (60, 80), route, count, beside=True)
        rate = (sent.value - before) / (time.monotonic() - begin) / len(request)
    yield Metric(f"{title}: the stream's rate", "msg/s"), rate


def _trips(
    title: str,
    client: Client,
    request: bytes,
    answer: tuple[int, int],
    route: Route,
    count: int,
    *,
    beside: bool = False,
) -> Iterator[Reading]:
    """beside: the proxy has other work as well, so its CPU time is not that of the trips."""
    for _ in range(min(_WARM, count)):
        round_trip(client, request, answer)
    with Span(route.meter) as span:
        trips = [round_trip(client, request, answer) for _ in range(count)]
    cuts = statistics.quantiles(trips, n=100, method="inclusive")
    yield Metric(f"{title}: p50", "us", 1), cuts[49] / 1000
    yield Metric(f"{title}: p99", "us", 1), cuts[98] / 1000
    if span.cpu is not None and not beside:
        yield Metric(f"{title}: CPU", "us/msg", 1), span.cpu / count / 1000


def round_trip(client: Client, request: bytes, answer: tuple[int, int]) -> int:
    """Nanoseconds until exactly one frame, the method ``answer``, has come."""
    begin = time.perf_counter_ns()
    client.sock.sendall(request)
    received = client.sock.recv(4096)
    elapsed = time.perf_counter_ns() - begin
    frames = list(wire.split(inbox := bytearray(received)))
    if inbox or len(frames) != 1 or wire.method_ids(frames[0][2]) != answer:
        raise BenchError(f"expected the method {answer} alone, got {received[:32]!r}")
    return elapsed


@contextlib.contextmanager
def _neighbour(port: int) -> Iterator[Synchronized[int]]:
    """Another process that publishes without end; bytes it has sent so far."""
    context = multiprocessing.get_context("fork")
    sent: Synchronized[int] = context.Value("Q", 0)
    process = context.Process(target=_flood, args=(port, sent), daemon=True)
    process.start()
    try:
        time.sleep(_SETTLE)
        if not sent.value:
            raise BenchError("the neighbour's stream does not flow")
        yield sent
        if not process.is_alive():
            raise BenchError("the neighbour's stream has ended before the measurement")
    finally:
        process.kill()
        process.join()


def _flood(port: int, sent: Synchronized[int]) -> None:
    unit = wire.publish(1, 64)
    client = Client(port)
    client.open_channel()
    client.blast(unit, 100)
    client.declare_queue(b"discard:%d" % (_ENDLESS // len(unit) * len(unit)))
    stream = wire.Stream(unit, _ENDLESS // len(unit))
    while stream.left:
        taken = client.sock.send(stream.pending())
        stream.advance(taken)
        sent.value += taken
