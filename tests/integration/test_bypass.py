"""Attempts to get past the gate, through the real one to a real broker.

Judged by what happened at the broker, not by what the gate says: mallory may do everything with
names that begin with ``m`` and nothing with the vault. After every attempt the vault must be as
it was, and what lay behind a refusal must not have been done. Where it is cheap the answers are
compared with those of the same broker when it enforces the same rights itself (3.10.8: its
refusals do not name the permission, else they are RabbitMQ 4.3's).
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import time
import urllib.request
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gatekeeper.store.store import Store
from tests.support.amqp import Client, DeadlineError, LostError
from tests.support.amqp_codec import (
    Method,
    Raw,
    encode_header,
    encode_method,
    frame,
    longstr,
    method_frame,
    publish_frames,
)
from tests.support.gate import Gate, GateConfig
from tests.support.process import LOOPBACK, wait_until
from tests.support.rabbit import RabbitNode, definitions, permission, topic_permission, user

VAULT_Q, VAULT_X = b"vault.q", b"vault.x"
TREASURE = b"treasure"
RIGHTS = (r"^(m|amq\.gen)", r"^(m|amq\.gen|amq\.default$)", r"^(m|amq\.gen)")
TOPICS = [(f"m.{name}", "^ok", "^ok") for name in ("topic", *(f"shift{n}" for n in range(5)))]
QUIET = 0.35
"""Seconds without a byte after which nothing more is expected."""
DLX = "x-dead-letter-exchange"
REPLY_TO = b"amq.rabbitmq.reply-to"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bypass")


@pytest.fixture(scope="module")
def gate(broker: RabbitNode, store_path: Path) -> Iterator[Gate]:
    """A gate of its own: these tests change its policy."""
    config = GateConfig(store_path, upstream=broker.port)
    config.with_definitions(
        definitions(
            users=[user("mallory", "pw")],
            permissions=[permission("mallory", "/", *RIGHTS)],
            topic_permissions=[topic_permission("mallory", *topic) for topic in TOPICS],
        )
    )
    with Gate(config) as running:
        yield running


@pytest.fixture(scope="module")
def native(broker: RabbitNode) -> Iterator[int]:
    """The port where the broker itself enforces mallory's rights."""
    configure, write, read = RIGHTS
    put(broker, "users/mallory", {"password": "pw", "tags": ""})
    rights = {"configure": configure, "write": write, "read": read}
    put(broker, "permissions/%2F/mallory", rights)
    for exchange, may_write, may_read in TOPICS:
        topic = {"exchange": exchange, "write": may_write, "read": may_read}
        put(broker, "topic-permissions/%2F/mallory", topic)
    yield broker.port
    put(broker, "users/mallory", None)


def put(node: RabbitNode, path: str, body: object) -> None:
    """PUT, or DELETE where ``body`` is None."""
    url = f"http://{LOOPBACK}:{node.management_port}/api/{path}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, method="DELETE" if body is None else "PUT")
    request.add_header("Authorization", "Basic " + b64encode(b"gatekeeper:s3rvice").decode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=15) as response:
        response.read()


class World:
    """The broker from within: the vault, and what is outside of it."""

    def __init__(self, node: RabbitNode) -> None:
        self.client = Client.login(node.port, "gatekeeper", "s3rvice")
        self.client.open_channel(1)
        self.made: list[bytes] = []

    def call(self, name: str, **arguments: Any) -> Method:
        answer = self.client.call(1, name, **arguments)
        if answer.name == "channel.close":
            self.client.send(1, "channel.close-ok")
            self.client.open_channel(1)
        return answer

    def build(self) -> None:
        self.call("exchange.declare", exchange=VAULT_X, type="fanout")
        self.call("queue.declare", queue=VAULT_Q)
        self.call("queue.bind", queue=VAULT_Q, exchange=VAULT_X)
        self.client.publish(1, b"", VAULT_Q, TREASURE)
        self.call("queue.declare", queue=b"m.q")
        self.call("exchange.declare", exchange=b"m.topic", type="topic")
        self.call("queue.bind", queue=b"m.q", exchange=b"m.topic", routing_key=b"#")
        # The vault listens to the topic exchange too: whatever passes its rule ends there.
        self.call("queue.bind", queue=VAULT_Q, exchange=b"m.topic", routing_key=b"#")

    def clear(self) -> None:
        for queue in (VAULT_Q, b"m.q", b"m.dead", b"m.behind", b"m.after"):
            self.call("queue.delete", queue=queue)
        for exchange in (VAULT_X, b"m.topic", *SHIFTS, b"m.x"):
            self.call("exchange.delete", exchange=exchange)

    def exists(self, queue: bytes) -> bool:
        return self.call("queue.declare", queue=queue, passive=True).name == "queue.declare-ok"

    def knows(self, exchange: bytes) -> bool:
        answer = self.call("exchange.declare", exchange=exchange, passive=True)
        return answer.name == "exchange.declare-ok"

    def bodies(self, queue: bytes) -> list[bytes]:
        """All messages that are ready; they stay where they are."""
        found, tags = [], []
        while (answer := self.call("basic.get", queue=queue)).name == "basic.get-ok":
            found.append(answer.body or b"")
            tags.append(answer["delivery_tag"])
        for tag in tags:
            self.client.send(1, "basic.nack", delivery_tag=tag, requeue=True)
        return found

    def unharmed(self) -> None:
        """The vault holds its treasure and nothing else, and nobody reads from it."""
        answer = self.call("queue.declare", queue=VAULT_Q, passive=True)
        assert answer.name == "queue.declare-ok", "the vault is gone"
        assert (answer["message_count"], answer["consumer_count"]) == (1, 0)
        assert self.bodies(VAULT_Q) == [TREASURE]


@pytest.fixture
def world(broker: RabbitNode) -> Iterator[World]:
    """Built anew for every attempt, and found unharmed after it."""
    found = World(broker)
    with found.client:
        found.clear()
        found.build()
        try:
            yield found
            found.unharmed()
        finally:
            found.clear()


Heard = dict[int, list[tuple[Any, ...]]]

_PERMISSION = re.compile(rb"^(ACCESS_REFUSED - )(configure|write|read) (access to)")


def hear(client: Client, quiet: float = QUIET) -> Heard:
    """What comes per channel until it is quiet: closes with code, text and ids."""
    heard: Heard = defaultdict(list)
    with contextlib.suppress(DeadlineError, LostError):
        while True:
            channel, method = client.read(quiet)
            if method.name.endswith(".close"):
                text = _PERMISSION.sub(rb"\1\3", method["reply_text"])
                ids = (method["class_id"], method["method_id"])
                heard[channel].append((method.name, method["reply_code"], text, ids))
            else:
                heard[channel].append((method.name,))
    return dict(heard)


def attempt(port: int, data: bytes, *, pieces: int = 0, **login: Any) -> Heard:
    """Send it as mallory, whole or in ``pieces`` octets, and hear the answers."""
    client = Client.login(port, "mallory", "pw", **login)
    try:
        if pieces:
            for at in range(0, len(data), pieces):
                client.send_raw(data[at : at + pieces])
        else:
            client.send_raw(data)
        return hear(client)
    finally:
        client.abort()


def closes(heard: Heard, channel: int = 1) -> list[int]:
    return [answer[1] for answer in heard.get(channel, []) if answer[0].endswith(".close")]


def declare(queue: bytes, channel: int = 1, **more: Any) -> bytes:
    return method_frame(channel, "queue.declare", queue=queue, **more)


def opening(channel: int = 1) -> bytes:
    return method_frame(channel, "channel.open")


def close_ok(channel: int = 1) -> bytes:
    return method_frame(channel, "channel.close-ok")


def closing(channel: int = 1) -> bytes:
    return method_frame(channel, "channel.close", reply_code=200)


def loot(channel: int = 1) -> bytes:
    """Every way into the vault that takes one operation."""
    return b"".join(
        (
            publish_frames(channel, VAULT_X, b"", b"poison"),
            method_frame(channel, "basic.get", queue=VAULT_Q, no_ack=True),
            method_frame(channel, "basic.consume", queue=VAULT_Q, no_ack=True, nowait=True),
            method_frame(channel, "queue.purge", queue=VAULT_Q, nowait=True),
            method_frame(channel, "queue.delete", queue=VAULT_Q, nowait=True),
            method_frame(channel, "queue.bind", queue=b"m.q", exchange=VAULT_X, nowait=True),
            method_frame(channel, "exchange.delete", exchange=VAULT_X, nowait=True),
            declare(b"m.behind", channel, nowait=True),
        )
    )


# --- behind a refusal -----------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [0, 1, 7, 100])
def test_behind_a_refusal(gate: Gate, world: World, pieces: int) -> None:
    data = opening() + declare(VAULT_Q) + loot() + close_ok() + opening() + declare(b"m.after")
    heard = attempt(gate.port, data, pieces=pieces)
    assert [answer[0] for answer in heard[1]] == [
        "channel.open-ok",
        "channel.close",
        "channel.open-ok",
        "queue.declare-ok",
    ]
    assert not world.exists(b"m.behind")
    assert world.exists(b"m.after")


def operations() -> list[bytes]:
    """The operations of :func:`loot`, each alone."""
    data, out = loot(), []
    while data:
        size = struct.unpack_from(">I", data, 3)[0] + 8
        if data[0] == 1:
            out.append(b"")
        out[-1] += data[:size]
        data = data[size:]
    return out[:-1]


@pytest.mark.parametrize("operation", operations(), ids=range(len(operations())))
def test_every_way_into_the_vault_is_refused(gate: Gate, world: World, operation: bytes) -> None:
    heard = attempt(gate.port, opening() + operation + declare(b"m.behind"))
    assert closes(heard) == [403]
    assert not world.exists(b"m.behind")


def test_channels_used_again_and_again_in_one_segment(gate: Gate, world: World) -> None:
    rounds = b"".join(
        opening(n) + publish_frames(n, VAULT_X, b"", b"poison") + loot(n) + close_ok(n)
        for _ in range(30)
        for n in (1, 2, 65535)
    )
    heard = attempt(gate.port, rounds + opening() + declare(b"m.after"))
    assert [closes(heard, n) for n in (1, 2, 65535)] == [[403] * 30] * 3
    assert world.exists(b"m.after")
    assert not world.exists(b"m.behind")


SCRIPTS = {
    "refused, closed, opened": opening() + declare(VAULT_Q) + close_ok() + opening() + closing(),
    "three refusals": (opening() + declare(VAULT_Q) + close_ok()) * 3,
    "closes cross": opening() + declare(VAULT_Q) + closing() + close_ok() + opening(),
    "broker's error first": opening()
    + method_frame(1, "basic.get", queue=b"m.none")
    + declare(VAULT_Q)
    + closing()
    + close_ok()
    + opening()
    + declare(b"m.after"),
    "refusal first": opening()
    + declare(b"m.after")
    + publish_frames(1, VAULT_X, b"", b"poison")
    + method_frame(1, "basic.get", queue=b"m.none"),
    "open while closing": opening() + declare(VAULT_Q) + opening(),
    "close-ok for nothing": opening() + close_ok(),
    "content while closing": opening()
    + declare(VAULT_Q)
    + publish_frames(1, b"m.topic", b"ok", b"x")
    + close_ok()
    + opening(),
    "broken content while closing": opening()
    + declare(VAULT_Q)
    + method_frame(1, "basic.publish", exchange=b"m.topic")
    + declare(b"m.behind"),
    "server methods while closing": opening()
    + declare(VAULT_Q)
    + method_frame(1, "basic.return")
    + frame(2, 1, encode_header(0, {}))
    + close_ok()
    + opening(),
    "publish on a channel never opened": publish_frames(1, VAULT_X, b"", b"poison"),
    "return on a channel never opened": method_frame(1, "basic.return")
    + frame(2, 1, encode_header(0, {})),
    "no queue after a refused declare": opening()
    + declare(b"vault.none")
    + close_ok()
    + opening()
    + method_frame(1, "basic.get"),
    "no queue on another channel": opening()
    + declare(b"m.q")
    + opening(2)
    + method_frame(2, "basic.get"),
    "the queue of a passive declare": opening()
    + declare(b"m.q", passive=True)
    + method_frame(1, "queue.purge"),
    "the queue of a no-wait declare": opening()
    + declare(b"m.q", nowait=True)
    + method_frame(1, "queue.purge"),
    "a server-named queue, no-wait": opening()
    + declare(b"", nowait=True, exclusive=True)
    + method_frame(1, "queue.purge")
    + method_frame(1, "basic.get"),
    "an exchange, no-wait": opening()
    + method_frame(1, "exchange.declare", exchange=b"m.x", type="direct", nowait=True)
    + method_frame(1, "exchange.delete", exchange=b"m.x", nowait=True)
    + method_frame(1, "exchange.delete", exchange=b"m.x"),
    "user-id": opening() + publish_frames(1, b"m.topic", b"ok", b"x", {"user_id": "gatekeeper"}),
    "malformed properties": opening()
    + method_frame(1, "basic.publish", exchange=b"m.topic", routing_key=b"ok")
    + frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0x8000)),
    "malformed properties, refused": opening()
    + method_frame(1, "basic.publish", exchange=VAULT_X)
    + frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0x8000)),
    "a heartbeat on a channel": opening() + frame(8, 1, b"") + declare(b"m.behind"),
    "refused, then the client closes": opening()
    + declare(VAULT_Q)
    + method_frame(0, "connection.close", reply_code=200)
    + declare(b"m.behind"),
    "immediate": opening() + publish_frames(1, VAULT_X, b"", b"poison", immediate=True),
}


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_answers_are_the_brokers_own(gate: Gate, native: int, world: World, script: str) -> None:
    data = SCRIPTS[script]
    # Some of it is a race within RabbitMQ, whose reader and channels are processes of their own.
    for _ in range(5):
        at_gate = unordered(attempt(gate.port, data))
        world.unharmed()
        world.clear()
        world.build()
        at_broker = unordered(attempt(native, data))
        if at_gate == at_broker:
            return
        world.clear()
        world.build()
    assert at_gate == at_broker


def unordered(heard: Heard) -> dict[int, list[tuple[Any, ...]]]:
    """A channel that is opened again may answer before the old one's last words."""
    return {channel: sorted(answers, key=repr) for channel, answers in heard.items()}


# --- content --------------------------------------------------------------------------------


def test_content_of_two_channels_interleaved(gate: Gate, world: World) -> None:
    """The refused content's frames stand between those of the granted one."""
    good = [
        method_frame(1, "basic.publish", exchange=b"m.topic", routing_key=b"ok"),
        frame(2, 1, encode_header(2, {})),
        frame(3, 1, b"a"),
        frame(3, 1, b"b"),
    ]
    bad = [
        method_frame(2, "basic.publish", exchange=VAULT_X),
        frame(2, 2, encode_header(12, {})),
        frame(3, 2, b"poison"),
        frame(3, 2, b"poison"),
    ]
    world.call("queue.unbind", queue=VAULT_Q, exchange=b"m.topic", routing_key=b"#")
    mixed = b"".join(part for pair in zip(good, bad, strict=True) for part in pair)
    heard = attempt(gate.port, opening(1) + opening(2) + mixed)
    assert (closes(heard, 1), closes(heard, 2)) == ([], [403])
    assert world.bodies(b"m.q") == [b"ab"]


NO = b"no.1"
HEADERS: dict[str, bytes] = {
    "routing key": publish_frames(1, b"m.topic", NO, b"sly"),
    "CC": publish_frames(1, b"m.topic", b"ok", b"sly", {"headers": {"CC": ["ok", NO]}}),
    "BCC": publish_frames(1, b"m.topic", b"ok", b"sly", {"headers": {"BCC": [NO]}}),
    "CC twice": publish_frames(
        1, b"m.topic", b"ok", b"sly", {"headers": [("CC", [NO]), ("CC", ["ok"])]}
    ),
    "CC after much": publish_frames(
        1, b"m.topic", b"ok", b"sly", {"headers": {"a": {"CC": ["ok"]}, "b": [1, 2], "CC": [NO]}}
    ),
    "line end": publish_frames(1, b"m.topic", b"\nok", b"sly"),
}


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("trick", HEADERS, ids=str)
def test_routing_keys_past_a_topic_rule(gate: Gate, world: World, trick: str, first: int) -> None:
    """``first``: granted publishes in front, so that the fast lane knows exchange and key."""
    good = publish_frames(1, b"m.topic", b"ok", b"fine") * first
    world.call("queue.unbind", queue=VAULT_Q, exchange=b"m.topic", routing_key=b"#")
    heard = attempt(gate.port, opening() + good + HEADERS[trick])
    assert closes(heard) == [403]
    assert world.bodies(b"m.q") == [b"fine"] * first


@pytest.mark.parametrize("low", [1, 2, 3])
def test_further_property_flags(gate: Gate, world: World, low: int) -> None:
    """Bits that this broker ignores and another would follow: what goes on has them cleared."""
    world.call("queue.unbind", queue=VAULT_Q, exchange=b"m.topic", routing_key=b"#")
    header = struct.pack(">HHQHB", 60, 0, 1, 0x1000 | low, 2)
    data = method_frame(1, "basic.publish", exchange=b"m.topic", routing_key=b"ok")
    attempt(gate.port, opening() + data + frame(2, 1, header) + frame(3, 1, b"x"))
    answer = world.call("basic.get", queue=b"m.q", no_ack=True)
    assert (answer.body, answer.properties) == (b"x", {"delivery_mode": 2})


def test_a_refused_publish_takes_the_transaction_with_it(gate: Gate, world: World) -> None:
    world.call("queue.unbind", queue=VAULT_Q, exchange=b"m.topic", routing_key=b"#")
    data = opening() + method_frame(1, "tx.select")
    data += publish_frames(1, b"m.topic", b"ok", b"uncommitted")
    data += publish_frames(1, VAULT_X, b"", b"poison") + method_frame(1, "tx.commit")
    assert closes(attempt(gate.port, data)) == [403]
    assert world.bodies(b"m.q") == []


@pytest.mark.parametrize(("size", "code"), [(8184, None), (8192, None), (8193, 501)])
def test_frames_at_the_limit(gate: Gate, world: World, size: int, code: int | None) -> None:
    world.call("queue.unbind", queue=VAULT_Q, exchange=b"m.topic", routing_key=b"#")
    data = method_frame(1, "basic.publish", exchange=b"m.topic", routing_key=b"ok")
    data += frame(2, 1, encode_header(size, {})) + frame(3, 1, bytes(size))
    heard = attempt(gate.port, opening() + data + declare(b"m.behind"), frame_max=8192)
    assert closes(heard, 0) == ([] if code is None else [code])
    assert [len(body) for body in world.bodies(b"m.q")] == ([] if code else [size])
    assert world.exists(b"m.behind") is (code is None)


def test_a_body_longer_than_announced(gate: Gate, world: World) -> None:
    """The overhang must not become the next message's frames."""
    data = method_frame(1, "basic.publish", exchange=b"m.topic", routing_key=b"ok")
    data += frame(2, 1, encode_header(2, {})) + frame(3, 1, b"abc")
    heard = attempt(gate.port, opening() + data + declare(b"m.behind"))
    assert closes(heard, 0) == [501]
    assert not world.exists(b"m.behind")


# --- names and tables -----------------------------------------------------------------------

SPLIT_Q, SPLIT_X = b"vau\r\nlt.q", b"\nvault.x\r"


@pytest.mark.parametrize(
    "operation",
    [
        method_frame(1, "queue.delete", queue=SPLIT_Q),
        method_frame(1, "queue.bind", queue=SPLIT_Q, exchange=b"m.topic"),
        method_frame(1, "queue.bind", queue=b"m.q", exchange=SPLIT_X),
        method_frame(1, "queue.unbind", queue=SPLIT_Q, exchange=VAULT_X),
        method_frame(1, "exchange.delete", exchange=SPLIT_X),
        method_frame(1, "exchange.bind", destination=SPLIT_X, source=b"m.topic"),
        method_frame(1, "exchange.bind", destination=b"m.topic", source=SPLIT_X),
        method_frame(1, "exchange.declare", exchange=SPLIT_X, type="fanout"),
        declare(SPLIT_Q),
        declare(SPLIT_Q, passive=True),
        method_frame(1, "basic.get", queue=VAULT_Q + b"\n"),
        method_frame(1, "basic.consume", queue=b"\n" + VAULT_Q),
        method_frame(1, "queue.purge", queue=VAULT_Q + b"\r"),
    ],
    ids=range(13),
)
def test_line_ends_in_names(gate: Gate, world: World, operation: bytes) -> None:
    heard = attempt(gate.port, opening() + operation + declare(b"m.behind"))
    assert closes(heard) == [403]
    assert not world.exists(b"m.behind")


DEAD = {"x-message-ttl": 0}
NAME = b"vault.x"


@pytest.mark.parametrize(
    ("pairs", "code"),
    [
        ([(DLX, NAME)], 403),
        ([(DLX, NAME), (DLX, "m.topic")], 403),
        ([(DLX, "m.topic"), (DLX, NAME)], None),
        ([(DLX.upper(), NAME)], None),
        ([("x", {DLX: NAME})], None),
        ([(DLX, Raw(b"x" + longstr(NAME)))], 406),
        ([(DLX, [NAME])], 406),
        ([(DLX, None)], 406),
        ([(DLX, NAME + b"\n")], 403),
    ],
    ids=range(9),
)
def test_dead_letter_tables(
    gate: Gate, world: World, pairs: list[tuple[str, Any]], code: int | None
) -> None:
    """A queue whose dead letters would end in the vault; a letter dies as it is sent."""
    world.call("queue.unbind", queue=VAULT_Q, exchange=b"m.topic", routing_key=b"#")
    table = [*DEAD.items(), *pairs]
    data = opening() + declare(b"m.dead", arguments=table)
    data += publish_frames(1, b"", b"m.dead", b"poison")
    assert closes(attempt(gate.port, data)) == ([] if code is None else [code])
    assert world.exists(b"m.dead") is (code is None)


def test_alternate_exchange_tables(gate: Gate, world: World) -> None:
    for pairs in ([("alternate-exchange", NAME)], [("alternate-exchange", NAME)] * 2):
        data = method_frame(1, "exchange.declare", exchange="m.x", type="topic", arguments=pairs)
        assert closes(attempt(gate.port, opening() + data)) == [403]
    assert not world.knows(b"m.x")


@pytest.mark.parametrize("declared", [declare(b""), declare(b"", nowait=True), declare(b"\n")])
def test_a_server_named_queue_is_the_one_that_is_used(
    gate: Gate, world: World, declared: bytes
) -> None:
    data = opening() + method_frame(1, "exchange.declare", exchange="m.x", type="direct")
    data += declared + method_frame(1, "queue.bind", exchange=b"m.x")
    heard = attempt(gate.port, data + method_frame(1, "basic.get") + loot())
    assert ("queue.bind-ok",) in heard[1]
    assert ("basic.get-empty",) in heard[1]
    assert closes(heard) == [403]


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (method_frame(1, "basic.consume", queue=REPLY_TO, no_ack=True), None),
        (method_frame(1, "basic.consume", queue=REPLY_TO + b"\n", no_ack=True), 403),
        (method_frame(1, "basic.consume", queue=REPLY_TO + b".x", no_ack=True), 403),
        (method_frame(1, "basic.get", queue=REPLY_TO), 403),
        (declare(REPLY_TO), None),
        (declare(REPLY_TO + b".x"), 404),
        (declare(b"\n" + REPLY_TO), 403),
        (method_frame(1, "queue.bind", queue=REPLY_TO + b".x", exchange=b"m.topic"), 403),
        (method_frame(1, "queue.delete", queue=REPLY_TO), 403),
        (publish_frames(1, b"", b"x", b"", {"reply_to": REPLY_TO}), 406),
    ],
    ids=range(10),
)
def test_pseudo_queues(gate: Gate, world: World, operation: bytes, code: int | None) -> None:
    heard = attempt(gate.port, opening() + operation)
    assert closes(heard) == ([] if code is None else [code])
    assert not world.exists(REPLY_TO + b".x")


# --- exchanges that change their type -------------------------------------------------------


def backlog(channel: int = 1, count: int = 400) -> bytes:
    """Work that keeps the broker's channel busy while the gate has long gone on."""
    return declare(b"m.q", channel) * count


SHIFTS = [b"m.shift%d" % n for n in range(5)]
"""One for each case: what the gate knows of an exchange lives for seconds."""


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("nowait", [False, True])
def test_an_exchange_that_becomes_a_topic_exchange(
    gate: Gate, world: World, nowait: bool, slowly: bool
) -> None:
    """It has a topic rule, which does not apply while it is a direct exchange."""
    name = SHIFTS[2 * slowly + nowait]
    sly = publish_frames(1, name, NO, b"sly")
    world.call("exchange.declare", exchange=name, type="direct")
    world.call("queue.bind", queue=b"m.q", exchange=name, routing_key=NO)
    change = method_frame(1, "exchange.delete", exchange=name, nowait=nowait)
    change += method_frame(1, "exchange.declare", exchange=name, type="topic", nowait=nowait)
    change += method_frame(1, "queue.bind", queue=b"m.q", exchange=name, routing_key=b"ok.#")
    with Client.login(gate.port, "mallory", "pw") as client:
        client.open_channel(1)
        client.open_channel(2)
        client.send_raw(publish_frames(1, name, NO, b"fine") * 3)
        assert hear(client) == {}
        assert world.bodies(b"m.q") == [b"fine"] * 3
        world.call("queue.purge", queue=b"m.q")
        client.send_raw((backlog() if slowly else b"") + change + sly + sly)
        assert closes(hear(client, 1.0)) == [403]
        # The binding with the denied key came with another user's hand; the rule still holds.
        world.call("queue.bind", queue=b"m.q", exchange=name, routing_key=b"#")
        client.send_raw(close_ok() + opening() + sly + publish_frames(2, name, NO, b"sly"))
        heard = hear(client, 1.0)
        assert (closes(heard, 1), closes(heard, 2)) == ([403], [403])
    assert world.bodies(b"m.q") == []


def test_a_binding_key_past_a_topic_rule(gate: Gate, world: World) -> None:
    for name in ("queue.bind", "queue.unbind"):
        data = method_frame(1, name, queue=b"m.q", exchange=b"m.topic", routing_key=b"#")
        assert closes(attempt(gate.port, opening() + data)) == [403]
    world.call("queue.unbind", queue=VAULT_Q, exchange=b"m.topic", routing_key=b"#")
    attempt(gate.port, opening() + publish_frames(1, b"m.topic", b"ok", b"still bound"))
    assert world.bodies(b"m.q") == [b"still bound"]


# --- the connection -------------------------------------------------------------------------


def test_a_new_secret_does_not_reach_the_broker(
    gate: Gate, broker: RabbitNode, world: World
) -> None:
    secret = method_frame(0, "connection.update-secret", new_secret=b"mine", reason=b"now")
    heard = attempt(gate.port, opening() + secret + declare(b"m.after"))
    assert heard[0] == [("connection.update-secret-ok",)]
    assert world.exists(b"m.after")
    Client.login(broker.port, "gatekeeper", "s3rvice").close()


def test_channel_numbers(gate: Gate, world: World) -> None:
    for number in (1, 2047, 2048, 32768, 65535):
        heard = attempt(gate.port, opening(number) + loot(number))
        assert closes(heard, number) == [403]
    heard = attempt(gate.port, opening(7) + opening(65535) + loot(9), channel_max=2)
    assert closes(heard, 0) == [530]


@pytest.mark.parametrize(
    "data",
    [
        frame(1, 1, struct.pack(">HH", 60, 999)),
        frame(1, 1, struct.pack(">HH", 95, 10)),
        frame(1, 0, struct.pack(">HH", 10, 90)),
        frame(1, 1, encode_method("queue.declare", {"queue": "m.x"})[:-4] + b"\0\0\0\x03\x01aZ"),
    ],
    ids=range(4),
)
def test_what_no_broker_knows_ends_the_connection(gate: Gate, world: World, data: bytes) -> None:
    client = Client.login(gate.port, "mallory", "pw")
    client.open_channel(1)
    client.send_raw(data + declare(b"m.behind") + loot())
    assert client.at_eof(5) < 4
    client.abort()
    assert not world.exists(b"m.behind")


@pytest.mark.parametrize("name", ["basic.return", "basic.deliver", "basic.get-ok"])
def test_server_methods_with_content(gate: Gate, world: World, name: str) -> None:
    """Their content is taken, and is not the next publish's."""
    content = frame(2, 1, encode_header(1, {})) + frame(3, 1, b"x")
    heard = attempt(gate.port, opening() + method_frame(1, name) + content + declare(b"m.behind"))
    assert closes(heard, 0) == [503]
    assert not world.exists(b"m.behind")


@pytest.mark.parametrize(
    "end",
    [
        opening() * 2,
        method_frame(0, "connection.close", reply_code=200),
        frame(1, 0, b"ab"),
        frame(3, 1, b"x"),
    ],
    ids=range(4),
)
def test_behind_the_end_of_a_connection(gate: Gate, world: World, end: bytes) -> None:
    attempt(gate.port, opening(5) + end + declare(b"m.behind", 5) + loot(5))
    assert not world.exists(b"m.behind")


# --- a changed policy -----------------------------------------------------------------------


@contextlib.contextmanager
def changed(folder: Path, **rights: str) -> Iterator[None]:
    """Mallory's rights changed by another process (the gate looks once a second), then back."""
    named = dict(zip(("configure", "write", "read"), RIGHTS, strict=True))

    def write(values: dict[str, str]) -> None:
        store = Store.open(f"sqlite:///{folder / 'store.db'}")
        try:
            store.set_permissions(
                b"mallory",
                b"/",
                values["configure"].encode(),
                values["write"].encode(),
                values["read"].encode(),
            )
        finally:
            store.close()
        time.sleep(1.6)

    write(named | rights)
    try:
        yield
    finally:
        write(named)


def test_a_right_lost_amid_a_message(gate: Gate, world: World, store_path: Path) -> None:
    """The method has gone to the gate; before its header comes the right is lost."""
    world.call("queue.unbind", queue=VAULT_Q, exchange=b"m.topic", routing_key=b"#")
    whole = publish_frames(1, b"m.topic", b"ok", b"late")
    method = method_frame(1, "basic.publish", exchange=b"m.topic", routing_key=b"ok")
    consume = {"queue": b"m.q", "no_ack": True}
    with Client.login(gate.port, "mallory", "pw") as client:
        client.open_channel(1)
        client.open_channel(2)
        client.send_raw(publish_frames(1, b"m.topic", b"ok", b"early") * 3 + method)
        client.send_raw(publish_frames(2, b"m.topic", b"ok", b"early"))
        client.send_raw(opening(3) + method_frame(3, "basic.consume", nowait=True, **consume))
        early = hear(client)
        assert early.pop(3) == [("channel.open-ok",)] + [("basic.deliver",)] * 4
        assert early == {}
        with changed(store_path, write="^$", read="^$"):
            client.send_raw(whole[len(method) :] + publish_frames(2, b"m.topic", b"ok", b"late"))
            heard = hear(client)
            assert [closes(heard, 1), closes(hear(client), 1)] == [[403], []]
            # Nobody was told the consumer's tag, and it is found all the same.
            assert heard[3] == [("basic.cancel",)]
            world.client.publish(1, b"", b"m.q", b"not yours")
            assert hear(client) == {}
    assert world.bodies(b"m.q") == [b"not yours"]


def test_a_user_without_any_right_left(gate: Gate, world: World, store_path: Path) -> None:
    with Client.login(gate.port, "mallory", "pw") as client:
        client.open_channel(1)
        with changed(store_path, configure="", write="", read=""):
            client.send_raw(declare(b"m.behind") + loot())
            assert closes(hear(client)) == [403]
    assert not world.exists(b"m.behind")


def test_an_answer_that_its_client_left_unread(gate: Gate, world: World) -> None:
    """What a declare has once made of an exchange says nothing of what it is now.

    One client lets the confirmation of a direct exchange wait behind a flood that it does not
    read; meanwhile the exchange is replaced by a topic exchange; then it reads.
    """
    name = SHIFTS[4]
    world.call("queue.declare", queue=b"m.dead")
    for _ in range(40):
        world.client.publish(1, b"", b"m.dead", bytes(1 << 20))
    slow = Client(gate.port)
    slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    slow.handshake("mallory", "pw")
    slow.open_channel(1)
    with Client.login(gate.port, "mallory", "pw") as client:
        client.open_channel(1)
        client.open_channel(2)
        slow.send(1, "basic.consume", queue=b"m.dead", no_ack=True)
        time.sleep(1)
        slow.send(1, "exchange.declare", exchange=name, type="direct")
        wait_until(lambda: world.knows(name), what="the unread declare is done")
        client.call(1, "exchange.delete", exchange=name)
        client.call(1, "exchange.declare", exchange=name, type="topic")
        while slow.read()[1].name != "exchange.declare-ok":
            pass
        world.call("queue.bind", queue=b"m.q", exchange=name, routing_key=b"#")
        client.publish(2, name, NO, b"sly")
        heard = hear(client, 1.0)
    slow.abort()
    assert (world.bodies(b"m.q"), closes(heard, 2)) == ([], [403])
