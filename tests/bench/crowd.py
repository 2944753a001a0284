"""Many clients: how many at once, what each costs in memory, and whether anything is left of them.

Strategy: a storm is a crowd of non-blocking clients, a state machine each, in two processes that
begin together and let go together, so that for a moment all of them are open. Memory is the
proxy's resident memory, before and behind.
"""

from __future__ import annotations

import multiprocessing
import selectors
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.synchronize import Barrier

from tests.bench import wire
from tests.bench.client import (
    PASSWORD,
    TIMEOUT,
    USER,
    Client,
    close_request,
    start_ok,
    tune_ok_open,
)
from tests.bench.measures import Measure, Metric, Reading, Scale
from tests.bench.routes import Route
from tests.bench.wire import BenchError

CROWDS = 2
"""Processes that a storm comes from."""
_SETTLE = 1.0
"""Seconds that a proxy has to clear away what is closed."""
_WORK = 20
"""Messages that a connection of the churn publishes before it is closed."""

_START_OK = start_ok(USER.encode(), PASSWORD.encode())


class Guest:
    """One client on its way in: connect, protocol header, start-ok, tune-ok and open, open-ok."""

    __slots__ = ("_answers", "_inbox", "began", "sock")

    def __init__(self, port: int) -> None:
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._inbox = bytearray()
        self._answers: dict[tuple[int, int], Callable[[bytes], bytes]] = {
            (10, 10): lambda _: _START_OK,
            (10, 30): tune_ok_open,
        }
        self.began = time.monotonic()
        with suppress(BlockingIOError):
            self.sock.connect(("127.0.0.1", port))

    def greet(self) -> None:
        """The socket is writable: connected, or refused (OSError)."""
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "connect")
        self.sock.send(wire.HEADER)

    def answer(self) -> bool:
        """The socket is readable: True once the vhost is open. Raises OSError, BenchError."""
        received = self.sock.recv(65536)
        if not received:
            raise BenchError("peer gone during the handshake")
        self._inbox += received
        for _, _, payload in wire.split(self._inbox):
            ids = wire.method_ids(payload)
            if ids == (10, 41):
                return True
            if ids not in self._answers:
                raise BenchError(f"unexpected method {ids} during the handshake")
            self.sock.send(self._answers[ids](payload))
        return False


def rush(port: int, count: int) -> tuple[list[socket.socket], list[float], int]:
    """Let ``count`` clients in at once: sockets, seconds each took, how many did not get in."""
    inside: list[socket.socket] = []
    times: list[float] = []
    failed = 0
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            guest = Guest(port)
            selector.register(guest.sock, selectors.EVENT_WRITE, guest)
        while selector.get_map():
            ready = selector.select(TIMEOUT)
            if not ready:
                failed += len(selector.get_map())
                break
            for key, events in ready:
                guest = key.data
                try:
                    if events & selectors.EVENT_WRITE:
                        guest.greet()
                        selector.modify(guest.sock, selectors.EVENT_READ, guest)
                    elif guest.answer():
                        times.append(time.monotonic() - guest.began)
                        inside.append(guest.sock)
                        selector.unregister(guest.sock)
                except (OSError, BenchError):
                    failed += 1
                    selector.unregister(guest.sock)
                    guest.sock.close()
    return inside, times, failed


_barrier: list[Barrier] = []
"""Of a crowd's process: handed over when it is forked."""


def _crowd(port: int, count: int) -> tuple[float, float, list[float], int]:
    """Begin and end on the machine's clock, then as ``rush``."""
    _barrier[0].wait(TIMEOUT)
    begin = time.monotonic()
    inside, times, failed = rush(port, count)
    end = time.monotonic()
    _barrier[0].wait(2 * TIMEOUT)  # nobody leaves before everybody is in
    for sock in inside:
        with suppress(OSError):
            sock.send(close_request())
        sock.close()
    return begin, end, times, failed


def storm(broker: str) -> Measure:
    """Everybody connects and logs in at the same moment and stays until all are in."""
    return partial(_storm, broker)


def _storm(broker: str, route: Route, scale: Scale) -> Iterator[Reading]:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(CROWDS)
    pool = ProcessPoolExecutor(
        CROWDS, mp_context=context, initializer=_barrier.append, initargs=(barrier,)
    )
    each = max(1, scale.storm // CROWDS)
    with pool:
        crowds = [pool.submit(_crowd, route.port, each) for _ in range(CROWDS)]
        found = [crowd.result() for crowd in crowds]
    times = [seconds for _, _, taken, _ in found for seconds in taken]
    title = f"storm of {each * CROWDS:,} ({broker})"
    yield Metric(f"{title}: not let in", "clients"), sum(failed for *_, failed in found)
    if times:
        whole = max(end for _, end, _, _ in found) - min(begin for begin, *_ in found)
        yield Metric(f"{title}: all are in after", "ms"), whole * 1000
        yield Metric(f"{title}: login, median", "ms"), statistics.median(times) * 1000
        yield Metric(f"{title}: login, slowest", "ms"), max(times) * 1000
    time.sleep(_SETTLE)


def idle(route: Route, scale: Scale) -> Iterator[Reading]:
    """Memory of a fresh proxy, a connection, with one open channel on each."""
    yield from _idle(route, scale.idle, tls=False)


def idle_tls(route: Route, scale: Scale) -> Iterator[Reading]:
    """The same, with TLS towards the client."""
    if route.tls_port:
        yield from _idle(route, scale.idle_tls, tls=True)


def _idle(route: Route, count: int, *, tls: bool) -> Iterator[Reading]:
    if route.meter is None:
        return
    context = route.tls() if tls else None
    port = route.tls_port if tls else route.port
    with ExitStack() as stack:
        # What the first connection brings along (imports, caches) is not a connection's cost.
        stack.enter_context(Client(port, tls=context)).open_channel()
        before = route.meter.rss_bytes()
        for _ in range(count):
            stack.enter_context(Client(port, tls=context)).open_channel()
        grown = route.meter.rss_bytes() - before
    kind = "idle TLS connection" if tls else "idle connection"
    yield Metric(f"{kind} ({count:,} open): RSS", "kB", 2), grown / count / 1000


def churn(route: Route, scale: Scale) -> Iterator[Reading]:
    """Connect, work and close without end; memory of a fresh proxy on the way. Sink."""
    if route.meter is None:
        return
    seconds = scale.churn_seconds
    title = f"churn, {seconds:,.0f} s"
    with Client(route.port) as client:
        client.open_channel()
    start = route.meter.rss_bytes()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(scale.workers, mp_context=context) as pool:
        begin = time.monotonic()
        runs = [pool.submit(_come_and_go, route.port, seconds) for _ in range(scale.workers)]
        time.sleep(seconds / 5)
        early = route.meter.rss_bytes()
        count = sum(run.result() for run in runs)
        rate = count / (time.monotonic() - begin)
    time.sleep(_SETTLE)
    yield Metric(f"{title}: connections", "1/s"), rate
    yield Metric(f"{title}: RSS at the start", "MB", 1), start / 1e6
    yield Metric(f"{title}: RSS after a fifth", "MB", 1), early / 1e6
    end = route.meter.rss_bytes()
    yield Metric(f"{title}: RSS at the end, all closed", "MB", 1), end / 1e6


def _come_and_go(port: int, seconds: float) -> int:
    unit, count, end = wire.publish(1, 64), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        with Client(port) as client:
            client.open_channel()
            client.blast(unit, _WORK)
            client.declare_queue(b"any")
        count += 1
    return count
