"""Where a gate could read or remember other than the broker does: the fifty known places.

Each under its number in semantics.md section 5. What is a matter of the handshake or of another
room is pointed to by name, and still has something asserted here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from gatekeeper.model import Access, AnyAccess, Kind, Permission, TopicAccess
from gatekeeper.protocol import wire
from gatekeeper.protocol.checks import Context
from gatekeeper.protocol.header import refuse_header
from gatekeeper.protocol.sasl import MECHANISMS
from tests.protocol.dialogue import Dialogue, Policy, call, frames, open_channel, publish
from tests.support.amqp_codec import (
    Raw,
    encode_header,
    encode_method,
    frame,
    method_frame,
    publish_frames,
)

REPLY_TO = b"amq.rabbitmq.reply-to"
DLX = "x-dead-letter-exchange"
X, Q = {"exchange": "x"}, {"queue": "q"}

HAZARDS: list[tuple[int, Callable[[], None]]] = []


def hazard(number: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(test: Callable[[], None]) -> Callable[[], None]:
        HAZARDS.append((number, test))
        return test

    return register


def opened(**options: Any) -> Dialogue:
    policy = Policy(denied={b"forbidden"}, **options)
    one = Dialogue(policy)
    one.send(open_channel(1))
    return one


def send(name: str, **arguments: Any) -> Dialogue:
    one = opened()
    one.send(method_frame(1, name, **arguments))
    return one


def refused(one: Dialogue, code: int, text: str) -> None:
    """The client was told so; of the last operation nothing but closes is at the broker."""
    assert [close[1:3] for close in one.closes()] == [(code, text.encode())]
    assert all(name in {(20, 10), (20, 40), (10, 50)} for _, name in one.at_broker())
    assert one.bodies() == []


def denied(what: str) -> str:
    return f"ACCESS_REFUSED - {what} in vhost '/' refused for user 'alice'"


def passed(one: Dialogue, *names: tuple[int, int]) -> None:
    assert one.closes() == []
    assert [name for _, name in one.at_broker()[1:]] == list(names)


DECLARE = (50, 10)


@hazard(1)
def the_first_of_duplicate_keys_wins() -> None:
    one = send("queue.declare", queue="q", arguments=[(DLX, "forbidden"), (DLX, "ok")])
    refused(one, 403, denied("write access to exchange 'forbidden'"))
    passed(send("queue.declare", queue="q", arguments=[(DLX, "ok"), (DLX, "forbidden")]), DECLARE)


@hazard(2)
def keys_are_exact() -> None:
    passed(send("queue.declare", queue="q", arguments={DLX.upper(): "forbidden"}), DECLARE)


@hazard(3)
def an_exchange_argument_of_another_type_is_the_brokers_to_refuse() -> None:
    for value in (1, True, None, ["forbidden"], Raw(b"x\0\0\0\x09forbidden"), Raw(b"s\0\x01")):
        passed(send("queue.declare", queue="q", arguments={DLX: value}), DECLARE)


@hazard(4)
def exchange_arguments_are_judged_raw() -> None:
    one = send("queue.declare", queue="q", arguments={DLX: b"forbidden\n" + b"x" * 300})
    assert one.closes()[0][2].startswith(b"ACCESS_REFUSED - write access to exchange 'forbidden\n")
    one = send("queue.declare", queue="q", arguments={DLX: "a\r\n"})
    assert one.policy.asked[-1] == Access(Permission.WRITE, Kind.EXCHANGE, b"a\r\n")


@hazard(5)
def every_type_tag_has_rabbitmqs_width() -> None:
    values = b"".join(
        bytes((len(key),)) + key + value
        for key, value in (
            (b"s", b"s\x80\x00"),
            (b"l", b"l" + bytes(8)),
            (b"L", b"L" + bytes(8)),
            (b"i", b"i" + bytes(4)),
            (b"I", b"I" + bytes(4)),
            (b"u", b"u" + bytes(2)),
            (b"b", b"b\x80"),
            (b"B", b"B\x80"),
            (b"t", b"t\x02"),
            (b"D", b"D\x01" + bytes(4)),
            (b"x", b"x\0\0\0\x01a"),
            (b"V", b"V"),
            (b"T", b"T" + bytes(8)),
            (b"f", b"f" + bytes(4)),
            (b"d", b"d" + bytes(8)),
            (b"F", b"F\0\0\0\x03\x01aV"),
            (b"A", b"A\0\0\0\x01V"),
            (DLX.encode(), b"S\0\0\0\x09forbidden"),
        )
    )
    one = send("queue.declare", queue="q", arguments=Raw(wire.longstr(values)))
    refused(one, 403, denied("write access to exchange 'forbidden'"))
    for bad in (b"\x01aZ", b"\x01aI\0", b"\x01aS\0\0\0\x09x", b"\x01af\x7f\xc0\0\0", b"\x01"):
        one = send("queue.declare", queue="q", arguments=Raw(wire.longstr(bad)))
        assert one.session.abort
        assert one.at_broker() == [(1, (20, 10))]


@hazard(6)
def table_keys_and_values_need_not_be_utf8() -> None:
    table_ = [(b"", b"\xff"), (b"\xff" * 255, b"\xff"), (DLX, "forbidden")]
    one = send("queue.declare", queue="q", arguments=table_)
    refused(one, 403, denied("write access to exchange 'forbidden'"))


@hazard(7)
def arguments_fit_their_layout_exactly() -> None:
    payload = encode_method("queue.delete", {"queue": "q"})
    for wrong in (payload + b"\0", payload[:-1]):
        one = opened()
        one.send(frame(1, 1, wrong))
        shown_ = ",".join(map(str, wrong[4:]))
        refused(one, 501, f"FRAME_ERROR - cannot decode <<{shown_}>>")
    one = opened()
    one.send(frame(1, 0, encode_method("connection.update-secret", {}) + b"\0"))
    refused(one, 541, "INTERNAL_ERROR")


@hazard(8)
def spare_bits_mean_nothing() -> None:
    one = opened()
    one.send(call(1, (50, 30), 0, b"q", 0xFE))
    passed(one, (50, 30))
    one = opened()
    one.send(frame(1, 1, encode_method("queue.unbind", Q | X) + b"\0"))  # it has no bits
    assert one.closes()[0][1] == 501


@hazard(9)
def reserved_fields_mean_nothing() -> None:
    one = opened()
    one.send(call(1, (50, 10), 0xFFFF, b"q", 0, b""))
    passed(one, DECLARE)


@hazard(10)
def short_strings_are_utf8_but_not_of_a_publish() -> None:
    for bad in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
        refused(send("queue.declare", queue=bad), 501, "FRAME_ERROR - Malformed UTF-8 in shortstr")
        passed(send("queue.declare", queue=b"\xef\xbf\xbf"), DECLARE)
    one = opened()
    one.send(publish_frames(1, b"forbidden\xff", b"\xff", b"x"))
    refused(one, 403, denied("write access to exchange 'forbidden\xff'"))


@hazard(11)
def control_characters_are_names_like_others() -> None:
    one = send("queue.declare", queue=b"a \0\x7f")
    passed(one, DECLARE)
    assert one.broker.methods[-1][2][1] == b"a \0\x7f"


@hazard(12)
def what_is_stripped_is_judged_stripped_and_the_rest_raw() -> None:
    refused(send("queue.declare", queue="for\nbidden"), 403, denied("configure access to queue 'forbidden'"))  # noqa: E501  # fmt: skip
    one = send("basic.get", queue="for\nbidden")
    passed(one, (60, 70))
    assert one.broker.methods[-1][2][1] == b"for\nbidden"


@hazard(13)
def a_name_that_strips_to_nothing_is_no_shortcut() -> None:
    one = send("queue.declare", queue="last")
    one.send(method_frame(1, "queue.delete", queue="\n"))
    assert one.broker.methods[-1][2][1] == b"\n"
    one = send("queue.declare", queue="\r\n")
    assert one.broker.methods[-1][2][1] == b""
    refused(send("exchange.declare", exchange="\n", type="topic"), 403, "ACCESS_REFUSED - operation not permitted on the default exchange")  # noqa: E501  # fmt: skip


@hazard(14)
def pseudo_queues_are_known_by_their_raw_name() -> None:
    text = f"ACCESS_REFUSED - queue name '{REPLY_TO.decode()}' contains reserved prefix 'amq.*'"
    refused(send("queue.declare", queue=b"\n" + REPLY_TO), 403, text)
    passed(send("queue.declare", queue=REPLY_TO + b"zzz"), DECLARE)
    one = opened()
    one.policy.denied = {REPLY_TO}
    one.send(method_frame(1, "basic.consume", queue=REPLY_TO, consumer_tag="t", no_ack=True))
    passed(one, (60, 20))
    one.send(method_frame(1, "basic.consume", queue=REPLY_TO + b"\n", consumer_tag="u"))
    assert one.closes()[0][1] == 403


@hazard(15)
def the_last_declared_queue_follows_every_kind_of_declare() -> None:
    for first, name in (
        ({"queue": "a", "passive": True}, b"a"),
        ({"queue": "a", "nowait": True}, b"a"),
        ({"queue": "\na"}, b"a"),
        ({"queue": REPLY_TO}, REPLY_TO),
        ({}, b"amq.gen-%022d" % 1),
        ({"nowait": True}, b"amq.gen-%022d" % 1),
    ):
        one = send("queue.declare", queue="older")
        one.send(method_frame(1, "queue.declare", **first) + method_frame(1, "queue.purge"))
        assert one.broker.methods[-1][1:] == ((50, 30), (0, name, 0))
    one.send(method_frame(1, "channel.close") + open_channel(1) + method_frame(1, "queue.purge"))
    assert one.closes() == [(1, 404, b"NOT_FOUND - no previously declared queue", (50, 30))]


@hazard(16)
def the_name_that_the_broker_makes_up_is_judged() -> None:
    one = opened()
    one.send(method_frame(1, "queue.declare"), answer=False)
    one.reply(call(1, (50, 11), b"amq.gen-forbidden", 0, 0))
    one.flush()
    assert one.broker.methods[-2][1:] == ((50, 40), (0, b"amq.gen-forbidden", 4))
    assert one.closes() == [(1, 403, denied("configure access to queue 'amq.gen-forbidden'").encode(), DECLARE)]  # noqa: E501  # fmt: skip


@hazard(17)
def rights_on_a_dead_letter_exchange_are_always_asked() -> None:
    refused(send("queue.declare", queue="q", arguments={DLX: "forbidden"}), 403, denied("write access to exchange 'forbidden'"))  # noqa: E501  # fmt: skip


@hazard(18)
def patterns_are_the_engines_and_names_come_to_it_raw() -> None:
    """The dialect itself: tests/policy/test_pcre.py, test_pcre_against_erlang.py."""
    one = send("basic.get", queue="ab\n")
    assert one.policy.asked == [Access(Permission.READ, Kind.QUEUE, b"ab\n")]


@hazard(19)
def topic_variables_are_the_engines() -> None:
    """Escaped always: tests/policy/test_permissions.py. Here: the key goes to it unexpanded."""
    one = opened(topics={b"t"})
    one.send(publish_frames(1, b"t", b"{username}", b"x"))
    assert one.policy.asked[-1] == TopicAccess(Permission.WRITE, b"t", b"{username}")


@hazard(20)
def every_cc_and_bcc_is_judged() -> None:
    for headers in ([("CC", ["ok"]), ("BCC", ["no"])], [("CC", ["no"]), ("CC", ["ok"])]):
        one = opened(topics={b"t"})
        one.send(publish_frames(1, b"t", b"k", b"x", {"headers": headers}) * 2)
        refused(one, 403, denied("write access to topic 'no' in exchange 't'"))


@hazard(21)
def the_two_low_flag_bits_never_go_out() -> None:
    for low in (1, 2, 3):
        one = opened()
        # To a reader that honours the bit a second word follows, with another user-id flag.
        data = publish(1) + publish(1, properties=struct.pack(">H", 0x1000 | low) + b"\x02")
        one.send(data)
        headers = [p for kind, _, p in frames(bytes(one.broker.received)) if kind == 2]
        assert [header[12:14] for header in headers] == [b"\x10\x00"] * 2


@hazard(22)
def malformed_properties_are_541_after_the_permission() -> None:
    for properties in (b"\x00\x00\x00", b"\x80\x00\x05a", b"\x20\x00\0\0\0\x03\x01aZ", b""):
        one = opened()
        one.send(publish(1, properties=properties))
        refused(one, 541, "INTERNAL_ERROR")
        one = opened()
        one.send(publish(1, b"forbidden", properties=properties))
        refused(one, 403, denied("write access to exchange 'forbidden'"))


@hazard(23)
def the_user_id_is_found_behind_every_other_property() -> None:
    full = {
        "content_type": "a",
        "content_encoding": "b",
        "headers": {"h": 1},
        "delivery_mode": 2,
        "priority": 3,
        "correlation_id": "c",
        "reply_to": "d",
        "expiration": "60000",
        "message_id": "e",
        "timestamp": 7,
        "type": "f",
        "app_id": "g",
        "cluster_id": "h",
    }
    one = opened()
    one.send(publish_frames(1, b"x", b"k", b"1", full | {"user_id": "alice"}) * 2)
    assert one.closes() == []
    one.send(publish_frames(1, b"x", b"k", b"forged", full | {"user_id": "bob"}))
    assert one.closes()[0][1] == 406
    assert b"forged" not in one.bodies()


@hazard(24)
def content_headers_are_exact() -> None:
    method = method_frame(1, "basic.publish", exchange="x")
    for header, code in (
        (encode_header(1, {}, weight=1), 505),
        (encode_header(1, {}, class_id=50), 505),
        (encode_header(536_870_913, {}), 501),
    ):
        one = opened()
        one.send(method + frame(2, 1, header))
        assert [close[1] for close in one.closes()] == [code]
        assert one.at_broker()[1:] == [(0, (10, 50))]
    one = opened()
    one.send(method + frame(2, 1, encode_header(2, {})) + (frame(3, 1, b"") + frame(3, 1, b"x")) * 2)  # noqa: E501  # fmt: skip
    assert one.bodies() == [b"", b"x", b"", b"x"]
    one.send(publish_frames(1, b"x", b"k", b"") + method_frame(1, "basic.qos"))
    assert one.closes() == []


@hazard(25)
def a_body_is_not_longer_than_announced() -> None:
    for bodies in ((b"abc",), (b"a", b"bc")):
        one = opened()
        one.send(method_frame(1, "basic.publish", exchange="x") + frame(2, 1, encode_header(2, {})))
        for body in bodies:
            one.send(frame(3, 1, body))
        text = b"FRAME_ERROR - content body frame exceeds remaining content size"
        assert one.closes() == [(0, 501, text, (60, 40))]
        assert len(one.bodies()) == len(bodies) - 1


@hazard(26)
def assembly_is_per_channel_and_goes_on_while_closing() -> None:
    one = opened()
    one.send(method_frame(1, "queue.declare", queue="forbidden"))
    one.send(method_frame(1, "basic.publish", exchange="x") + frame(3, 1, b"x"))
    assert [close[1] for close in one.closes()] == [403, 505]


@hazard(27)
def a_refused_publish_is_swallowed_whole() -> None:
    one = opened()
    data = publish(1, b"forbidden", body=b"secret", parts=3)
    one.send(data[:-1])
    assert one.closes() == []
    one.send(data[-1:] + publish(1, body=b"behind"))
    refused(one, 403, denied("write access to exchange 'forbidden'"))


@hazard(28)
def server_methods_with_content_take_their_content_first() -> None:
    for method in ((60, 50), (60, 60), (60, 71)):
        one = opened()
        one.send(
            wire.method(1, *method, b"\0" * {50: 5, 60: 12, 71: 15}[method[1]])
            + frame(2, 1, encode_header(1, {}))
        )
        assert one.closes() == []
        one.send(frame(3, 1, b"x"))
        refused(one, 503, "COMMAND_INVALID - unimplemented method")
        assert one.closes()[0][3] == method


@hazard(29)
def odd_frames() -> None:
    """More of them: test_session.py::test_protocol_errors."""
    for kind, channel, payload, code in (
        (4, 1, b"", 501),
        (7, 1, b"x", 501),
        (8, 0, b"x", 501),
        (8, 1, b"", 505),
        (2, 0, bytes(14), 505),
        (1, 1, b"abc", 501),
        (2, 1, bytes(11), 501),
    ):
        one = opened()
        one.send(frame(kind, channel, payload))
        assert [close[1] for close in one.closes()] == [code]


@hazard(30)
def a_payload_of_frame_max_and_not_more() -> None:
    for room, closes in ((4096, []), (4097, [501])):
        one = Dialogue(frame_max=4096)
        one.send(open_channel(1) + method_frame(1, "basic.publish", exchange="x"))
        one.send(frame(2, 1, encode_header(room, {})) + frame(3, 1, bytes(room)))
        assert [close[1] for close in one.closes()] == closes


@hazard(31)
def the_limit_before_the_tuning() -> None:
    """tests/protocol/test_handshake_errors.py; here: the running limit is another."""
    assert Dialogue(frame_max=8192).session.lane.frame_max == 8192


@hazard(32)
def channels_are_counted_not_numbered() -> None:
    one = Dialogue(channel_max=2)
    one.send(open_channel(65535) + open_channel(7))
    assert one.closes() == []
    one.send(publish(3))
    assert one.closes()[0][1] == 530
    assert one.at_broker()[:2] == [(65535, (20, 10)), (7, (20, 10))]


@hazard(33)
def opening_a_closing_channel_is_504() -> None:
    one = send("queue.declare", queue="forbidden")
    one.send(open_channel(1))
    assert one.closes()[-1][1:] == (504, b"CHANNEL_ERROR - second 'channel.open' seen", (20, 10))
    assert one.at_broker().count((1, (20, 10))) == 1


@hazard(34)
def what_is_behind_a_refusal_does_not_leak() -> None:
    one = opened()
    behind = method_frame(1, "queue.declare", queue="q") + publish(1) + call(1, (90, 20))
    one.send(method_frame(1, "queue.declare", queue="forbidden") + behind)
    one.send(behind)
    refused(one, 403, denied("configure access to queue 'forbidden'"))


@hazard(35)
def unknown_methods_end_the_connection_unseen() -> None:
    for channel, method in ((1, (60, 999)), (1, (61, 10)), (0, (10, 80)), (9, (50, 99))):
        one = opened()
        one.send(wire.method(channel, *method, b"\0" * 8))
        assert one.session.abort
        assert one.at_broker() == [(1, (20, 10))]


@hazard(36)
def the_vhost_is_bytes() -> None:
    """The handshake hands it on as it came: tests/protocol/test_handshake.py. Here: the text."""
    one = Dialogue(Policy(denied={b"forbidden"}), context=Context(b"v\n", b"alice"))
    one.send(open_channel(1) + method_frame(1, "queue.declare", queue="forbidden"))
    assert b"in vhost 'v\n' refused" in one.closes()[0][2]


@hazard(37)
def the_user_is_who_the_backend_said() -> None:
    one = Dialogue(context=Context(b"/", b"renamed", service_user=b"svc"))
    one.send(open_channel(1) + publish_frames(1, b"x", b"", b"", {"user_id": "renamed"}))
    assert one.closes() == []
    one.send(publish_frames(1, b"x", b"", b"", {"user_id": "svc"}))
    assert b"set to 'svc' but authenticated user was 'renamed'" in one.closes()[0][2]


@hazard(38)
def a_queue_that_the_broker_renames_is_the_last_queue() -> None:
    """Interceptors rename behind the gate's back; the name that the broker tells is used then."""
    one = opened()
    one.send(method_frame(1, "queue.declare", queue="q"), answer=False)
    one.reply(call(1, (50, 11), b"forbidden shard", 0, 0))
    one.send(method_frame(1, "queue.purge"))
    assert one.closes()[0][2] == denied("read access to queue 'forbidden shard'").encode()


@hazard(39)
def existence_is_the_brokers_after_the_permission() -> None:
    one = opened(missing={b"gone"})
    one.send(publish(1, b"gone"))
    assert one.bodies() == [b"hello"]  # forwarded: the broker says 404
    one = opened(missing={b"forbidden"})
    one.send(publish(1, b"forbidden"))
    refused(one, 403, denied("write access to exchange 'forbidden'"))


@hazard(40)
def cheap_errors_come_before_the_permission() -> None:
    one = send("exchange.delete", exchange="amq.forbidden")
    refused(one, 403, "ACCESS_REFUSED - deletion of system exchange 'amq.forbidden' in vhost '/' not allowed")  # noqa: E501  # fmt: skip
    one = send("exchange.declare", exchange="forbidden", type="?")
    refused(one, 406, "PRECONDITION_FAILED - unknown exchange type '?'")
    one = send("queue.declare", queue="amq.forbidden")
    refused(one, 403, "ACCESS_REFUSED - queue name 'amq.forbidden' contains reserved prefix 'amq.*'")  # noqa: E501  # fmt: skip


@hazard(41)
def a_passive_declare_needs_any_right() -> None:
    for name in ("queue", "exchange"):
        one = send(f"{name}.declare", **{name: "forbidden", "passive": True})
        refused(one, 403, denied(f"configure access to {name} 'forbidden'"))
        assert one.policy.asked == [AnyAccess(Kind(name), b"forbidden")]


@hazard(42)
def update_secret_ends_at_the_gate() -> None:
    one = opened()
    one.send(method_frame(0, "connection.update-secret", new_secret="s3cret"))
    assert one.at_broker() == [(1, (20, 10))]
    assert one.to_client()[-1] == (0, (10, 71))


@hazard(43)
def other_protocols_are_refused() -> None:
    """More: tests/protocol/test_handshake_errors.py."""
    for header in (b"AMQP\x01\x01\x08\x00", b"AMQP\x00\x01\x00\x00", b"GET / HT"):
        assert refuse_header(header)[0] == b"AMQP\x03\x01\x00\x00"


@hazard(44)
def sasl_is_strict() -> None:
    """The shapes: tests/protocol/test_sasl.py."""
    assert set(MECHANISMS) >= {"PLAIN", "AMQPLAIN"}


@hazard(45)
def channels_are_mapped_one_to_one() -> None:
    one = opened()
    one.send(open_channel(65535) + method_frame(65535, "queue.declare", queue="q"))
    assert one.at_broker() == [(1, (20, 10)), (65535, (20, 10)), (65535, DECLARE)]
    assert one.to_client(65535) == [(65535, (20, 11)), (65535, (50, 11))]


@hazard(46)
def transactions_and_confirms_pass_as_they_are() -> None:
    one = opened()
    data = call(1, (85, 10), 0) + call(1, (90, 10)) + call(1, (90, 20)) + call(1, (90, 30))
    one.send(data)
    assert bytes(one.broker.received).endswith(data)


@hazard(47)
def what_the_broker_says_on_its_own_is_relayed() -> None:
    one = opened()
    said = (
        wire.method(0, 10, 60, wire.shortstr(b"low on memory"))
        + wire.method(0, 10, 61)
        + wire.method(1, 60, 80, bytes(9))
        + wire.method(1, 60, 30, wire.shortstr(b"t") + b"\x01")
    )
    one.reply(said)
    assert bytes(one.client).endswith(said)


@hazard(48)
def long_refusals_are_cut() -> None:
    one = send("basic.get", queue=b"forbidden" + "é".encode() * 120)
    text = one.closes()[0][2]
    assert len(text) <= 255
    assert text.endswith(b"...")
    assert text.decode()


@hazard(49)
def expirations_are_the_brokers_to_refuse() -> None:
    for value in ("", "1x", "-1", "315360000001"):
        one = opened()
        one.send(publish_frames(1, b"x", b"k", b"hello", {"expiration": value}))
        assert one.closes() == []
        assert one.bodies() == [b"hello"]


@hazard(50)
def a_lost_right_is_lost_at_once() -> None:
    one = opened()
    one.send(publish(1, b"ok") * 3)
    one.policy.denied = {b"ok"}
    one.epoch.bump()
    one.send(publish(1, b"ok", body=b"late"))
    assert b"late" not in one.bodies()


@pytest.mark.parametrize(
    "test", [pytest.param(test, id=f"{n}-{test.__name__}") for n, test in HAZARDS]
)
def test_differential(test: Callable[[], None]) -> None:
    test()


def test_no_differential_is_missing() -> None:
    assert [number for number, _ in HAZARDS] == [*range(1, 51)]
