"""What needs which permission, in which order, and that nothing needs none by accident.

Two parts: the table of checks as data (methods are built by the tests' own encoder, so that a
mistake of a layout shows too), and the partition of all methods.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from gatekeeper.errors import AmqpError
from gatekeeper.model import Access, AnyAccess, TopicAccess
from gatekeeper.protocol import wire
from gatekeeper.protocol.checks import (
    TABLE,
    ChannelView,
    Context,
    NeedReply,
    Step,
    judge,
)
from gatekeeper.protocol.layouts import LAYOUTS, decode
from gatekeeper.protocol.methods import METHODS
from gatekeeper.protocol.publishing import judge_publish
from tests.protocol.dialogue import Dialogue, Policy, call, ids, open_channel
from tests.support.amqp_codec import (
    encode_header,
    encode_method,
    frame,
)

CONTEXT = Context(b"/", b"alice")
REPLY_TO = b"amq.rabbitmq.reply-to"
DLX = "x-dead-letter-exchange"
AE = "alternate-exchange"

# --- the table ------------------------------------------------------------------------------


def shown(step: Step) -> str:
    """A step in a line: the question, what it depends on, what is answered instead of 403."""
    match step.check:
        case Access(permission, kind, name):
            text = f"{permission} {kind} {name.decode()}"
        case AnyAccess(kind, name):
            text = f"any {kind} {name.decode()}"
        case TopicAccess(permission, exchange, key):
            text = f"{permission} topic {key.decode()} of {exchange.decode()}"
        case None:
            text = "never"
    if step.exists is not None:
        text += f" if {step.exists.decode()} exists"
    if step.refusal is not None:
        text += f": {int(step.refusal.code)} {step.refusal.explanation.decode()}"
    return text


@dataclass(frozen=True)
class Row:
    """A method, the state of its channel, the steps that RabbitMQ 4.3.5 takes, what is sent."""

    method: str
    arguments: dict[str, Any]
    steps: tuple[str, ...]
    sent: dict[str, Any] = field(default_factory=dict)
    last: bytes | None = None
    consumers: dict[bytes, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        shown_arguments = ",".join(f"{k}={v!r}" for k, v in self.arguments.items())
        return f"{self.method}({shown_arguments})"


NOT_DEFAULT = "never: 403 operation not permitted on the default exchange"
VOLATILE = "never: 403 cannot bind or unbind to a volatile (direct reply-to) queue"
NO_QUEUE = "404 no previously declared queue"
X, Q = {"exchange": "x"}, {"queue": "q"}

ROWS = [
    # exchange.declare
    Row("exchange.declare", X | {"type": "topic"}, ("configure exchange x",)),
    Row(
        "exchange.declare",
        {"exchange": "\nx\r", "type": "topic"},
        ("configure exchange x",),
        {"exchange": "x"},
    ),
    Row(
        "exchange.declare",
        X | {"type": "nonsense"},
        ("configure exchange x: 406 unknown exchange type 'nonsense'",),
    ),
    Row("exchange.declare", {"type": "topic"}, (NOT_DEFAULT,)),
    Row("exchange.declare", {"exchange": "\n", "type": "topic"}, (NOT_DEFAULT,)),
    Row("exchange.declare", {"type": "?"}, ("never: 406 unknown exchange type '?'",)),
    Row(
        "exchange.declare",
        X | {"type": "topic", "nowait": True},
        ("configure exchange x",),
        {"nowait": False},
    ),
    Row(
        "exchange.declare",
        X | {"type": "topic", "arguments": {AE: "a"}},
        ("configure exchange x", "read exchange x", "write exchange a"),
    ),
    Row(
        "exchange.declare",
        X | {"type": "topic", "arguments": {AE: ""}},
        ("configure exchange x", "read exchange x", "write exchange "),
    ),
    Row("exchange.declare", X | {"type": "topic", "arguments": {AE: 1}}, ("configure exchange x",)),
    Row(
        "exchange.declare",
        {"exchange": "amq.x", "type": "topic", "arguments": {AE: "a"}},
        ("configure exchange amq.x",),
    ),
    Row("exchange.declare", X | {"passive": True}, ("any exchange x",)),
    Row("exchange.declare", {"exchange": "x\n", "passive": True}, ("any exchange x",), X),
    Row("exchange.declare", {"passive": True}, (NOT_DEFAULT,)),
    # exchange.delete
    Row("exchange.delete", X, ("configure exchange x",)),
    Row("exchange.delete", {"exchange": "\rx"}, ("configure exchange x",), X),
    Row("exchange.delete", X | {"nowait": True}, ("configure exchange x",), {"nowait": False}),
    Row("exchange.delete", {}, (NOT_DEFAULT,)),
    Row("exchange.delete", {"exchange": "\n"}, (NOT_DEFAULT,)),
    Row(
        "exchange.delete",
        {"exchange": "a\nmq.x"},
        ("never: 403 deletion of system exchange 'amq.x' in vhost '/' not allowed",),
    ),
    # exchange.bind, exchange.unbind
    *(
        Row(f"exchange.{verb}", {"destination": d, "source": s, "routing_key": "k"}, steps, sent)
        for verb in ("bind", "unbind")
        for d, s, steps, sent in (
            (
                "d",
                "s",
                ("write exchange d", "read exchange s", "read topic k of s if s exists"),
                {},
            ),
            (
                "d\n",
                "\rs",
                ("write exchange d", "read exchange s", "read topic k of s if s exists"),
                {"destination": "d", "source": "s"},
            ),
            ("", "s", ("write exchange ", NOT_DEFAULT), {}),
            ("\n", "s", ("write exchange ", NOT_DEFAULT), {}),
            ("d", "", ("write exchange d", NOT_DEFAULT), {}),
            ("d", "\r\n", ("write exchange d", NOT_DEFAULT), {}),
        )
    ),
    # queue.declare
    Row("queue.declare", Q, ("configure queue q",)),
    Row("queue.declare", {"queue": "q\r\n"}, ("configure queue q",), Q),
    Row(
        "queue.declare",
        Q | {"arguments": {DLX: "d"}},
        ("configure queue q", "read queue q", "write exchange d"),
    ),
    Row(
        "queue.declare",
        Q | {"arguments": {DLX: ""}},
        ("configure queue q", "read queue q", "write exchange "),
    ),
    Row("queue.declare", Q | {"arguments": {DLX: None}}, ("configure queue q",)),
    Row(
        "queue.declare",
        {"queue": "amq.q", "arguments": {DLX: "d"}},
        ("never: 403 queue name 'amq.q' contains reserved prefix 'amq.*'",),
    ),
    Row("queue.declare", Q | {"passive": True}, ("any queue q",)),
    Row("queue.declare", {"queue": "q\n", "passive": True}, ("any queue q",), Q),
    Row("queue.declare", {"queue": "amq.q", "passive": True}, ("any queue amq.q",)),
    Row("queue.declare", {"passive": True}, ("any queue ", "never: 404 no queue '' in vhost '/'")),
    Row("queue.declare", {"queue": REPLY_TO}, ()),
    Row("queue.declare", {"queue": REPLY_TO + b".x", "passive": True}, ()),
    Row("queue.declare", {"queue": REPLY_TO + b"zzz\n"}, (), {"queue": REPLY_TO + b"zzz"}),
    Row(
        "queue.declare",
        {"queue": b"\n" + REPLY_TO},
        (f"never: 403 queue name '{REPLY_TO.decode()}' contains reserved prefix 'amq.*'",),
    ),
    # queue.bind, queue.unbind
    *(
        Row(f"queue.{verb}", arguments, steps, sent, last=b"last")
        for verb in ("bind", "unbind")
        for arguments, steps, sent in (
            (
                Q | X | {"routing_key": "k"},
                ("write queue q", "read exchange x", "read topic k of x if x exists"),
                {},
            ),
            (
                {"queue": "q\n", "exchange": "\nx", "routing_key": "k\n"},
                ("write queue q", "read exchange x", "read topic k\n of x if x exists"),
                {"queue": "q", "exchange": "x"},
            ),
            (
                X,
                ("write queue last", "read exchange x", "read topic last of x if x exists"),
                {"queue": "last", "routing_key": "last"},
            ),
            (
                X | {"routing_key": "k"},
                ("write queue last", "read exchange x", "read topic k of x if x exists"),
                {"queue": "last"},
            ),
            (
                X | {"queue": "\n"},
                ("write queue ", "read exchange x", "read topic  of x if x exists"),
                {},
            ),
            (Q, ("write queue q", NOT_DEFAULT), {}),
            (Q | {"exchange": "\n"}, ("write queue q", NOT_DEFAULT), {}),
            (X | {"queue": REPLY_TO + b".1"}, (VOLATILE,), {}),
        )
    ),
    *(
        Row(f"queue.{verb}", {"queue": "", "exchange": "x"}, (NO_QUEUE,))
        for verb in ("bind", "unbind")
    ),
    # queue.purge, queue.delete
    Row("queue.purge", Q, ("read queue q",)),
    Row("queue.purge", {"queue": "q\n"}, ("read queue q\n",)),
    Row("queue.purge", {}, ("read queue last",), {"queue": "last"}, last=b"last"),
    Row("queue.purge", {}, (NO_QUEUE,)),
    Row("queue.delete", Q, ("configure queue q",)),
    Row("queue.delete", {"queue": "q\n"}, ("configure queue q",), Q),
    Row("queue.delete", {"queue": "\n"}, ("configure queue ",), last=b"last"),
    Row("queue.delete", {}, ("configure queue last",), {"queue": "last"}, last=b"last"),
    Row("queue.delete", {}, (NO_QUEUE,)),
    # basic
    Row("basic.get", Q, ("read queue q",)),
    Row("basic.get", {"queue": "\n"}, ("read queue \n",), last=b"last"),
    Row("basic.get", {}, ("read queue last",), {"queue": "last"}, last=b"last"),
    Row("basic.get", {}, (NO_QUEUE,)),
    Row("basic.consume", Q | {"consumer_tag": "t"}, ("read queue q",)),
    Row(
        "basic.consume",
        {"consumer_tag": "t"},
        ("read queue last",),
        {"queue": "last"},
        last=b"last",
    ),
    Row("basic.consume", {"consumer_tag": "t"}, (NO_QUEUE,)),
    Row("basic.consume", {"queue": "q\n", "consumer_tag": "t"}, ("read queue q\n",)),
    Row("basic.consume", {"queue": REPLY_TO, "consumer_tag": "t"}, ()),
    Row(
        "basic.consume",
        {"queue": REPLY_TO + b".", "consumer_tag": "t"},
        (f"read queue {REPLY_TO.decode()}.",),
    ),
    Row(
        "basic.consume",
        Q | {"consumer_tag": "t"},
        ("never: 530 attempt to reuse consumer tag 't'",),
        consumers={b"t": b"other"},
    ),
    Row("basic.consume", Q, ("read queue q",), {"consumer_tag": b"amq.ctag-" + b"0" * 22}),
    *(
        Row(name, {}, ())
        for name in (
            "access.request",
            "channel.flow",
            "basic.qos",
            "basic.ack",
            "basic.nack",
            "basic.reject",
            "basic.recover",
            "basic.recover-async",
            "basic.cancel",
            "confirm.select",
            "tx.select",
            "tx.commit",
            "tx.rollback",
        )
    ),
]


def built(row: Row) -> tuple[tuple[int, int], bytes]:
    payload = encode_method(row.method, row.arguments)
    return ids(payload), payload[4:]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_table(row: Row) -> None:
    method, data = built(row)
    view = ChannelView(row.last, consumers=dict(row.consumers), tag=b"amq.ctag-" + b"0" * 22)
    if row.steps == (NO_QUEUE,):
        with pytest.raises(AmqpError) as caught:
            judge(method, decode(1, method, data), view, CONTEXT)
        assert f"{int(caught.value.code)} {caught.value.explanation.decode()}" == NO_QUEUE
        return
    judgement = judge(method, decode(1, method, data), view, CONTEXT)
    assert tuple(map(shown, judgement.steps)) == row.steps
    wanted = decode(1, method, encode_method(row.method, row.arguments | row.sent)[4:])
    assert (judgement.fields or decode(1, method, data)) == wanted
    assert (judgement.fields is not None) == bool(row.sent)


@pytest.mark.parametrize("method", ["basic.get", "basic.consume", "queue.purge", "queue.delete"])
def test_an_empty_name_waits_for_a_name_that_is_being_made_up(method: str) -> None:
    name, data = built(Row(method, {}, ()))
    with pytest.raises(NeedReply):
        judge(name, decode(1, name, data), ChannelView(b"older", pending_name=True), CONTEXT)


@pytest.mark.parametrize("method", ["exchange.unbind", "queue.unbind"])
def test_unbind_from_a_missing_exchange_goes_out_harmless(method: str) -> None:
    ends = {"destination": "d", "source": "s"} if method[0] == "e" else Q | {"exchange": "s"}
    name, data = built(Row(method, {"routing_key": "k"} | ends, ()))
    fields = decode(1, name, data)
    harmless = judge(name, fields, ChannelView(), CONTEXT).steps[-1].harmless
    assert harmless is not None
    assert harmless[:2] + harmless[3:] == fields[:2] + fields[3:]
    assert re.fullmatch(rb"gatekeeper\.missing\.[\w-]{22}", harmless[2])  # type: ignore[arg-type]


NOT_SERVER_NAMED = "Cannot declare a server-named queue for type"
GENERATED = re.compile(r"amq\.gen-[\w-]{22}")


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({}, ["configure queue *"]),
        ({"x-queue-type": "classic"}, ["configure queue *"]),
        ({DLX: "d"}, ["configure queue *", "read queue *", "write exchange d"]),
        *(
            (
                {"x-queue-type": kind},
                [f"configure queue *: 406 {NOT_SERVER_NAMED} rabbit_{kind}_queue"],
            )
            for kind in ("quorum", "stream")
        ),
        ({"x-queue-type": []}, ["configure queue *"]),
        ({"x-queue-type": {}}, ["configure queue *"]),
        ({"x-queue-type": 1}, ["configure queue *"]),
    ],
)
@pytest.mark.parametrize("queue", [b"", b"\r\n"])
@pytest.mark.parametrize("nowait", [False, True])
def test_server_named(
    queue: bytes, nowait: bool, arguments: dict[str, Any], steps: list[str]
) -> None:
    row = Row("queue.declare", {"queue": queue, "nowait": nowait, "arguments": arguments}, ())
    name, data = built(row)
    judgement = judge(name, decode(1, name, data), ChannelView(), CONTEXT)
    assert [GENERATED.sub("*", shown(step)) for step in judgement.steps] == steps
    if nowait or queue:
        assert judgement.fields is not None
        assert judgement.fields[1:3] == (b"", 0)


PUBLISHES = [
    ({}, 3, ["write exchange x", "write topic k of x if x exists"]),
    ({"exchange": ""}, 3, ["write exchange "]),
    ({"immediate": True}, 99, ["never: 540 immediate=true"]),
    ({}, 99, ["never: 406 message size 99 is larger than configured max size 10"]),
    (
        {"headers": {"CC": ["a", 1, "b"], "BCC": ["c"]}},
        3,
        ["write exchange x", *(f"write topic {k} of x if x exists" for k in "kabc")],
    ),
    (
        {"headers": {"cc": ["a"], "x": {"CC": ["b"]}}},
        3,
        ["write exchange x", "write topic k of x if x exists"],
    ),
    (
        {"user_id": "bob"},
        3,
        [
            "write exchange x",
            "write topic k of x if x exists",
            "never if x exists: 406 user_id property set to 'bob' but authenticated user was 'alice'",  # noqa: E501
        ],
    ),
    ({"user_id": "alice"}, 3, ["write exchange x", "write topic k of x if x exists"]),
    (
        {"user_id": ""},
        3,
        [
            "write exchange x",
            "write topic k of x if x exists",
            "never if x exists: 406 user_id property set to '' but authenticated user was 'alice'",
        ],
    ),
    *(
        (
            properties | {"user_id": "bob"},
            3,
            [
                "write exchange x",
                f"write topic k of x if x exists: 406 {text}",
                f"never if x exists: 406 {text}",
            ],
        )
        for properties, text in (
            ({"reply_to": REPLY_TO, "expiration": "x"}, "fast reply consumer does not exist"),
            ({"expiration": "x", "headers": {"CC": 1}}, "invalid expiration 'x': no_integer"),
            (
                {"expiration": "315360000001"},
                "invalid expiration '315360000001': {value_too_large,315360000001}",
            ),
            (
                {"headers": {"BCC": "a"}},
                'invalid message: {unacceptable_type_in_header,"BCC",longstr}',
            ),
        )
    ),
]


@pytest.mark.parametrize(("properties", "size", "steps"), PUBLISHES)
def test_publish_order(properties: dict[str, Any], size: int, steps: list[str]) -> None:
    properties = dict(properties)
    exchange = properties.pop("exchange", "x")
    bits = {"immediate": properties.pop("immediate", False)}
    payload = encode_method("basic.publish", {"exchange": exchange, "routing_key": "k"} | bits)
    read = wire.read_properties(encode_header(size, properties)[12:])
    context = Context(b"/", b"alice", max_message_size=10)
    fields = decode(1, (60, 40), payload[4:])
    assert [*map(shown, judge_publish(fields, size, read, ChannelView(), context))] == steps


def test_malformed_properties_are_judged_after_the_permission() -> None:
    fields = decode(1, (60, 40), encode_method("basic.publish", X)[4:])
    steps = judge_publish(fields, 1, None, ChannelView(), CONTEXT)
    assert [*map(shown, steps)] == ["write exchange x", "never if x exists: 541 "]


# --- the partition --------------------------------------------------------------------------

BY_THE_SESSION = {"channel.open", "channel.close", "channel.close-ok", "basic.publish"}
ON_CHANNEL_0 = {"connection.close", "connection.update-secret"}
# A client may send these by the specification; RabbitMQ 4.3 takes them on no open channel.
NOT_IMPLEMENTED = {"channel.flow-ok", "basic.credit"}


def arguments_of(method: tuple[int, int]) -> bytes:
    """Arguments that can be decoded, all zero or empty."""
    sizes = {"o": 1, "b": 1, "s": 2, "l": 4, "q": 8, "n": 1, "S": 4, "t": 4}
    return bytes(sum(sizes[letter] for letter in LAYOUTS[method]))


def whole(channel: int, method: tuple[int, int]) -> bytes:
    data = wire.method(channel, *method, arguments_of(method))
    if METHODS[method].has_content:
        data += frame(2, channel, encode_header(0, {}))
    return data


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_every_method_is_in_the_table_or_handled_by_name_or_refused(method: Any) -> None:
    ids_ = (method.class_id, method.method_id)
    one = Dialogue()
    one.send(open_channel(1) + call(1, (50, 10), 0, b"q", 0, b""))
    before = len(one.at_broker())
    one.send(whole(1, ids_))
    reached = one.at_broker()[before:]
    if ids_ in TABLE:
        assert method.from_client
        assert method.name not in BY_THE_SESSION
        return
    if method.name in BY_THE_SESSION - {"channel.open", "channel.close-ok"}:
        assert reached[0] == (1, ids_)
        return
    closed = [(1, (20, 40))] if ids_ != (20, 10) else []  # the gate's own: replies come first
    assert reached == [*closed, (0, (10, 50))], "something of it reached the broker"
    text = b"second 'channel.open' seen" if ids_ == (20, 10) else b"unimplemented method"
    code, symbol = (504, b"CHANNEL_ERROR") if ids_ == (20, 10) else (503, b"COMMAND_INVALID")
    assert one.closes() == [(0, code, symbol + b" - " + text, ids_)]


def test_nothing_that_a_client_may_send_is_missing() -> None:
    sent = {m.name for m in METHODS.values() if m.from_client and m.class_id != 10}
    tabled = {METHODS[method].name for method in TABLE}
    assert sent == tabled | BY_THE_SESSION | NOT_IMPLEMENTED


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
@pytest.mark.parametrize("mode", ["unopened", "refused", "broker-closed", "closing"])
def test_nothing_passes_on_a_channel_that_is_not_open(method: Any, mode: str) -> None:
    ids_ = (method.class_id, method.method_id)
    one = Dialogue(Policy(denied={b"forbidden"}))
    if mode != "unopened":
        one.send(open_channel(1))
    if mode == "refused":
        one.send(call(1, (50, 10), 0, b"forbidden", 0, b""))
    elif mode == "broker-closed":
        one.reply(wire.close_method(1, 20, 404, b"NOT_FOUND - x", 50, 10))
    elif mode == "closing":
        one.send(call(1, (20, 40), 200, b"", 0, 0), answer=False)
    before = len(one.at_broker())
    one.send(whole(1, ids_), answer=mode != "closing")
    reached = [name for _, name in one.at_broker()[before:]]
    passing = {"unopened": {(20, 10)}, "broker-closed": {(20, 40), (20, 41)}}.get(mode, set())
    closing = {(10, 50)} if mode == "unopened" or ids_ == (20, 10) else set()
    assert set(reached) <= ({ids_} if ids_ in passing else closing)
    if mode == "unopened" and ids_ != (20, 10):
        assert one.closes() == [(0, 504, b"CHANNEL_ERROR - expected 'channel.open'", ids_)]


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_channel_0(method: Any) -> None:
    ids_ = (method.class_id, method.method_id)
    one = Dialogue()
    one.send(wire.method(0, *ids_, arguments_of(ids_)))
    if method.name in ON_CHANNEL_0:
        assert one.closes() == []
        assert one.at_broker() == ([(0, ids_)] if ids_ == (10, 50) else [])
        return
    text = b"CHANNEL_ERROR - unexpected method in connection state running"
    assert one.closes() == [(0, 504, text, ids_)]
    assert one.at_broker() == [(0, (10, 50))]
