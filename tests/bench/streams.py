"""Many messages in one direction: what does one cost the proxy?

Strategy: a stream is bytes that hold whole messages, sent again and again; the sink answers only
behind the last of them (see ``measures.py``). What makes streams differ is the bytes, who sends
them and over how many connections, so there is one function for each direction and a table of
streams in ``__main__.py``.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from gatekeeper.protocol.channels import MAX_REMEMBERED
from tests.bench import wire
from tests.bench.client import PASSWORD, USER, Client
from tests.bench.measures import Measure, Metric, Reading, Scale, Span, transfer_metrics
from tests.bench.routes import PATTERNED, TOPIC, TOPICAL, Route
from tests.bench.wire import BenchError

KEYS = 10_000
"""Distinct routing keys of the topic stream."""
EVERY = 100
"""Messages that the sink confirms with one ack."""
_SLOW_SHARE = 50
"""A message that Python judges costs about so many times what the others do: so many fewer."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of publishes.

    unit: bytes of ``messages`` whole messages on channel 1. share: the part of the scale's bytes
    that is sent is one in so many. confirms: have the sink confirm. tls: through the route's TLS.
    """

    title: str
    unit: bytes
    messages: int = 1
    user: str = USER
    connections: int = 1
    share: int = 1
    confirms: bool = False
    tls: bool = False


def title_of(size: int) -> str:
    return f"{size // 1024} KiB" if size >= 1024 else f"{size} B"


def plain(size: int) -> Stream:
    return Stream(f"publish {title_of(size)}", wire.publish(1, size))


def confirmed(size: int) -> Stream:
    return Stream(f"publish {title_of(size)}, confirms", wire.publish(1, size), confirms=True)


def fifty(size: int) -> Stream:
    title = f"publish {title_of(size)}, 50 connections"
    return Stream(title, wire.publish(1, size), connections=50)


def encrypted(size: int) -> Stream:
    return Stream(f"publish {title_of(size)}, TLS", wire.publish(1, size), tls=True)


def own_name(size: int) -> Stream:
    title = f"publish {title_of(size)}, user-id"
    return Stream(title, wire.publish(1, size, user_id=USER.encode()))


def topical(size: int, keys: int = KEYS) -> Stream:
    """By a user with a topic rule, each key in turn: the rule was asked about each once."""
    unit = b"".join(wire.publish(1, size, TOPIC, b"k.%d" % n) for n in range(keys))
    title = f"publish {title_of(size)}, topic rule, {keys:,} keys"
    return Stream(title, unit, keys, user=TOPICAL)


def remembered(size: int, keys: int = KEYS) -> Stream:
    """The same where the rule is no prefix: each key is looked up among those that matched."""
    title = f"publish {title_of(size)}, topic pattern, {keys:,} keys"
    return replace(topical(size, keys), title=title, user=PATTERNED)


def copied(size: int) -> Stream:
    """Under a topic rule the routing keys of a CC header count too."""
    unit = wire.publish(1, size, TOPIC, b"k.a", headers={"CC": ["k.b"]})
    title = f"publish {title_of(size)}, topic rule, CC header"
    return Stream(title, unit, user=TOPICAL)


def judged(size: int) -> Stream:
    """Each leaves the fast lane: the rule is no prefix, and too many keys come in turn to be
    remembered until they return."""
    many = MAX_REMEMBERED + KEYS
    unit = b"".join(wire.publish(1, size, TOPIC, b"k.new.%d" % n) for n in range(many))
    title = f"publish {title_of(size)}, topic pattern, new keys"
    return Stream(title, unit, many, user=PATTERNED, share=_SLOW_SHARE)


def publish(stream: Stream) -> Measure:
    """Blast the stream's publishes through the route into the sink."""
    metrics = transfer_metrics(stream.title)

    def measure(route: Route, scale: Scale) -> Iterator[Reading]:
        if stream.tls and not route.tls_port:
            return
        unit = stream.unit
        count = max(1, scale.transfer_bytes // stream.share // (stream.connections * len(unit)))
        total = count * len(unit)
        with ExitStack() as stack:
            clients = [
                stack.enter_context(_client(stream, route)) for _ in range(stream.connections)
            ]
            for client in clients:
                _prepare(client, stream, total)
            with Span(route.meter) as span:
                if stream.confirms:
                    acks = count * stream.messages // EVERY * len(wire.ack(1, 1))
                    clients[0].blast_confirmed(unit, count, acks)
                elif len(clients) == 1:
                    clients[0].blast(unit, count)
                else:
                    blast_all(clients, unit, count)
                for client in clients:
                    client.declare_queue(b"arrived")
        yield from span.readings(metrics, count * stream.messages * len(clients))

    return measure


def _client(stream: Stream, route: Route) -> Client:
    tls = route.tls() if stream.tls else None
    port = route.tls_port if stream.tls else route.port
    return Client(port, stream.user, PASSWORD, tls=tls)


def _prepare(client: Client, stream: Stream, total: int) -> None:
    client.open_channel()
    if stream.confirms:
        client.confirm_select()
    # The gate decides about exchange and keys now, as it does once in a publisher's life.
    client.blast(stream.unit, max(1, 100 // stream.messages))
    if stream.confirms:
        each = len(stream.unit) // stream.messages
        client.declare_queue(b"confirm:%d:%d:%d" % (total, each, EVERY))
    else:
        client.declare_queue(b"discard:%d" % total)


def blast_all(clients: Sequence[Client], unit: bytes, count: int) -> None:
    """Send ``count`` units over each; who can take bytes gets some, none waits for another."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            client.sock.setblocking(False)
            selector.register(client.sock, selectors.EVENT_WRITE, wire.Stream(unit, count))
        _serve(selector, "takes", _send)
    for client in clients:
        client.sock.settimeout(client.timeout)


def _send(key: selectors.SelectorKey) -> bool:
    stream: wire.Stream = key.data
    stream.advance(key.fileobj.send(stream.pending()))  # type: ignore[union-attr]
    return not stream.left


def _serve(
    selector: selectors.BaseSelector, verb: str, work: Callable[[selectors.SelectorKey], bool]
) -> None:
    """Call ``work`` for whoever is ready until it has said of everybody that this was all."""
    while selector.get_map():
        ready = selector.select(Client.timeout)
        if not ready:
            raise BenchError(f"for {Client.timeout:.0f} s nobody {verb} any more")
        for key, _ in ready:
            if work(key):
                selector.unregister(key.fileobj)


def deliver(size: int, connections: int = 1) -> Measure:
    """Have the sink blast basic.deliver through the route, to a consumer on each connection."""
    title = f"deliver {title_of(size)}"
    if connections > 1:
        title += f", {connections} connections"
    metrics = transfer_metrics(title)

    def measure(route: Route, scale: Scale) -> Iterator[Reading]:
        whole = connections * len(wire.deliver(1, b"flood:0000000:00000", size))
        count = max(1, scale.transfer_bytes // whole)
        tag = b"flood:%d:%d" % (count, size)
        total = count * len(wire.deliver(1, tag, size))
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(route.port)) for _ in range(connections)]
            for client in clients:
                client.open_channel()
            with Span(route.meter) as span:
                for client in clients:
                    client.consume(b"any", tag)
                if connections == 1:
                    clients[0].count(total)
                else:
                    count_all(clients, total)
        yield from span.readings(metrics, count * connections)

    return measure


def count_all(clients: Sequence[Client], total: int) -> None:
    """``Client.count`` on each, whoever has something first."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            left = total
            while left and client.buffered:
                left -= client.count_some(left)
            if left:
                selector.register(client.sock, selectors.EVENT_READ, [client, left])
        _serve(selector, "sends", _drop)


def _drop(key: selectors.SelectorKey) -> bool:
    client, left = key.data
    key.data[1] = left - client.count_some(left)
    return not key.data[1]


def slow_metric(stream: Stream) -> Metric:
    return Metric(f"{stream.title}: CPU", "us/msg", 2, compared=False)


def publish_slowly(stream: Stream) -> Measure:
    """``publish`` for a stream that is judged message by message: microseconds, not beside HAProxy
    (which does nothing like it)."""
    measure, metric = publish(stream), slow_metric(stream)

    def read(route: Route, scale: Scale) -> Iterator[Reading]:
        for found, value in measure(route, scale):
            if found.unit == "ns/msg":
                yield metric, value / 1000

    return read
