"""The session: what goes through, in what order, what is answered instead."""

from __future__ import annotations

import struct

import pytest

from gatekeeper.errors import AmqpError, ReplyCode
from gatekeeper.model import Access, Check, Kind, Permission, TopicAccess
from gatekeeper.protocol import frames, wire
from gatekeeper.protocol.checks import Context
from gatekeeper.protocol.frames import scan_client
from gatekeeper.protocol.session import ASKED_AT_ONCE, JUDGED_AT_ONCE
from gatekeeper.protocol.states import State
from tests.protocol.dialogue import Dialogue, Policy, call, open_channel, publish

DECLARE, DECLARE_OK = (50, 10), (50, 11)
CLOSE, CLOSE_OK = (20, 40), (20, 41)


def declare(channel: int, name: bytes, bits: int = 0, table: bytes = b"") -> bytes:
    return call(channel, DECLARE, 0, name, bits, table)


def close_ok(channel: int) -> bytes:
    return call(channel, CLOSE_OK)


@pytest.fixture
def one() -> Dialogue:
    dialogue = Dialogue()
    dialogue.send(open_channel(1))
    return dialogue


def refusal(what: str, operation: tuple[int, int], channel: int = 1) -> tuple[object, ...]:
    text = f"ACCESS_REFUSED - {what} in vhost '/' refused for user 'alice'"
    return (channel, 403, text.encode(), operation)


def test_allowed_operations_pass_byte_for_byte(one: Dialogue) -> None:
    data = declare(1, b"q") + publish(1) + publish(1, parts=3) + call(1, (60, 80), 1, 0)
    before = len(one.broker.received)
    one.send(data)
    assert bytes(one.broker.received[before:]) == data
    assert one.closes() == []


def test_a_refusal_comes_after_the_replies_to_what_was_before(one: Dialogue) -> None:
    one.send(declare(1, b"q1") + declare(1, b"no") + declare(1, b"q2") + publish(1, body=b"late"))
    assert one.to_client(1) == [(1, (20, 11)), (1, DECLARE_OK), (1, CLOSE)]
    assert one.closes() == [refusal("configure access to queue 'no'", DECLARE)]
    assert one.at_broker()[-1] == (1, CLOSE)
    assert one.bodies() == []


def test_the_channel_number_is_free_after_the_clients_close_ok(one: Dialogue) -> None:
    one.send(declare(1, b"no") + close_ok(1) + open_channel(1) + declare(1, b"q"))
    assert [name for _, name in one.to_client(1)][-3:] == [CLOSE, (20, 11), DECLARE_OK]


def test_two_refusals_in_one_segment(one: Dialogue) -> None:
    again = declare(1, b"no") + close_ok(1) + open_channel(1)
    one.send(again * 3 + declare(1, b"q"))
    assert len(one.closes()) == 3
    assert one.to_client(1)[-1] == (1, DECLARE_OK)


def test_a_close_that_crosses_the_refusal_is_answered_after_it(one: Dialogue) -> None:
    one.send(declare(1, b"no") + call(1, CLOSE, 200, b"", 0, 0) + close_ok(1) + open_channel(1))
    names = [name for _, name in one.to_client(1)]
    assert names == [(20, 11), CLOSE, CLOSE_OK, (20, 11)]


def test_other_channels_live_on(one: Dialogue) -> None:
    one.send(open_channel(2) + declare(1, b"no") + declare(2, b"q"))
    assert (2, DECLARE_OK) in one.to_client(2)
    assert one.state is State.RUNNING


def test_the_brokers_own_close_wins_over_a_later_refusal(one: Dialogue) -> None:
    one.send(declare(1, b"q") + declare(1, b"no"), answer=False)
    one.reply(wire.close_method(1, 20, 406, b"PRECONDITION_FAILED - x", 50, 10))
    one.reply(call(1, CLOSE_OK))  # to the gate's own close: nobody must see it
    one.send(close_ok(1) + open_channel(1))
    assert [close[1] for close in one.closes()] == [406]
    assert [name for _, name in one.to_client(1)] == [(20, 11), CLOSE, (20, 11)]
    assert (1, CLOSE_OK) in one.at_broker()


def test_client_and_broker_closing_at_once(one: Dialogue) -> None:
    one.send(call(1, CLOSE, 200, b"", 0, 0), answer=False)
    one.reply(wire.close_method(1, 20, 404, b"NOT_FOUND - x", 50, 10) + call(1, CLOSE_OK))
    one.send(close_ok(1) + open_channel(1))
    assert [name for _, name in one.to_client(1)] == [(20, 11), CLOSE, CLOSE_OK, (20, 11)]


def test_reopening_waits_for_the_brokers_close_ok(one: Dialogue) -> None:
    one.send(call(1, CLOSE, 200, b"", 0, 0) + declare(1, b"q") + open_channel(1), answer=False)
    assert one.at_broker() == [(1, (20, 10)), (1, CLOSE)]
    one.reply(call(1, CLOSE_OK))
    one.send(b"")
    assert one.at_broker()[-1] == (1, (20, 10))


# --- publish ---


def test_refused_content_never_reaches_the_broker(one: Dialogue) -> None:
    one.send(publish(1, b"no", body=b"secret", parts=3) + publish(1, body=b"after"))
    assert one.bodies() == []
    assert one.closes() == [refusal("write access to exchange 'no'", (60, 40))]


def test_a_publish_is_refused_when_its_content_is_complete(one: Dialogue) -> None:
    data = publish(1, b"no", body=b"0123456789", parts=2)
    one.send(data[:-8])
    assert one.closes() == []
    one.send(data[-8:])
    assert len(one.closes()) == 1


def test_malformed_content_wins_over_the_refusal(one: Dialogue) -> None:
    one.send(publish(1, b"no", body=b"0123")[:-12] + declare(1, b"q"))
    text = b"UNEXPECTED_FRAME - expected content body, got non content body frame instead"
    assert one.closes() == [(0, 505, text, (60, 40))]


def test_the_second_publish_takes_the_fast_lane(one: Dialogue) -> None:
    one.send(publish(1))
    asked = len(one.policy.asked)
    one.send(publish(1) * 5)
    assert len(one.policy.asked) == asked
    assert len(one.bodies()) == 6


def test_a_changed_policy_holds_from_the_next_frame(one: Dialogue) -> None:
    one.send(publish(1) * 3)
    one.policy.denied.add(b"ok")
    one.epoch.bump()
    one.send(publish(1, body=b"late"))
    assert one.closes() == [refusal("write access to exchange 'ok'", (60, 40))]
    assert b"late" not in one.bodies()


def test_a_changed_policy_holds_in_the_middle_of_a_message(one: Dialogue) -> None:
    """Between method and header the user loses the right: RabbitMQ judges the whole message."""
    one.send(publish(1))
    method = call(1, (60, 40), 0, b"ok", b"k", 0)
    rest = publish(1, body=b"late")[len(method) :]
    one.send(method)
    one.policy.denied.add(b"ok")
    one.epoch.bump()
    one.send(rest)
    assert one.bodies() == [b"hello"]
    assert len(one.closes()) == 1


def test_channels_may_interleave_inside_a_message(one: Dialogue) -> None:
    one.send(open_channel(2))
    first, second = publish(1, body=b"aa", parts=2), publish(2, body=b"bb", parts=2)
    method = len(call(1, (60, 40), 0, b"ok", b"k", 0))
    one.send(first[:method] + second[:method] + first[method:] + second[method:])
    assert sorted(one.bodies()) == [b"a", b"a", b"b", b"b"]
    assert one.closes() == []


def header(user_id: bytes) -> bytes:
    return b"\x00\x10" + wire.shortstr(user_id)


@pytest.mark.parametrize("impersonator", [False, True])
def test_user_id(impersonator: bool) -> None:
    one = Dialogue(context=Context(b"/", b"alice", impersonator))
    one.send(open_channel(1) + publish(1) + publish(1, properties=header(b"alice")))
    assert one.closes() == []
    one.send(publish(1, properties=header(b"bob"), body=b"forged"))
    text = b"PRECONDITION_FAILED - user_id property set to 'bob' but authenticated user was 'alice'"
    assert one.closes() == ([] if impersonator else [(1, 406, text, (60, 40))])
    assert (b"forged" in one.bodies()) is impersonator


def test_user_id_on_a_missing_exchange_is_404() -> None:
    one = Dialogue(Policy(missing={b"gone"}))
    one.send(open_channel(1) + publish(1, b"gone", properties=header(b"bob")))
    assert one.closes() == [(1, 404, b"NOT_FOUND - no exchange 'gone' in vhost '/'", (60, 40))]


def cc(*entries: tuple[bytes, wire.Value]) -> bytes:
    return b"\x20\x00" + wire.longstr(wire.table(entries))


TOPIC = "write access to topic 'no.1' in exchange 't'"


@pytest.mark.parametrize(
    ("key", "properties"),
    [
        (b"no.1", b"\x00\x00"),
        (b"k", cc((b"CC", ("A", [("S", b"yes"), ("S", b"no.1")])))),
        (b"k", cc((b"BCC", ("A", [("I", 1), ("S", b"no.1")])))),
        (b"k", cc((b"CC", ("A", [("S", b"no.1")])), (b"CC", ("A", [("S", b"yes")])))),
    ],
)
def test_topic_permission_covers_cc_and_bcc(key: bytes, properties: bytes) -> None:
    one = Dialogue(Policy(topics={b"t"}))
    one.send(open_channel(1) + publish(1, b"t", b"k") * 2)
    one.send(publish(1, b"t", key, properties=properties, body=b"sly"))
    assert one.closes() == [refusal(TOPIC, (60, 40))]
    assert b"sly" not in one.bodies()


def test_only_the_first_of_two_cc_headers_counts() -> None:
    one = Dialogue(Policy(topics={b"t"}))
    twice = cc((b"CC", ("A", [("S", b"yes")])), (b"CC", ("A", [("S", b"no.1")])))
    one.send(open_channel(1) + publish(1, b"t", properties=twice))
    assert one.closes() == []


def test_an_approved_key_is_not_an_approved_exchange() -> None:
    one = Dialogue(Policy(topics={b"t"}))
    one.send(open_channel(1) + publish(1, b"t", b"k") * 2 + publish(1, b"t", b"no.1"))
    assert one.closes() == [refusal(TOPIC, (60, 40))]


def test_the_low_flag_bits_are_cleared(one: Dialogue) -> None:
    """Another reader would take the continuation bit for a second flags word (user-id?)."""
    one.send(publish(1) + publish(1, properties=b"\x10\x03\x02"))
    headers = [p for k, _, p in _frames(one) if k == 2]
    assert headers[1][12:14] == b"\x10\x00"


def _frames(one: Dialogue) -> list[tuple[int, int, bytes]]:
    from tests.protocol.dialogue import frames

    return frames(bytes(one.broker.received))


@pytest.mark.parametrize(
    ("publishing", "close"),
    [
        (
            publish(1, bits=2),
            (0, 540, b"NOT_IMPLEMENTED - immediate=true", (60, 40)),
        ),
        (publish(1, properties=b"\x80"), (0, 541, b"INTERNAL_ERROR", (0, 0))),
        (publish(1, properties=b"\x00\x10\x05bob"), (0, 541, b"INTERNAL_ERROR", (0, 0))),
    ],
)
def test_publish_that_ends_the_connection(
    one: Dialogue, publishing: bytes, close: tuple[object, ...]
) -> None:
    one.send(publishing)
    assert one.closes() == [close]
    assert one.bodies() == []


def test_message_size() -> None:
    one = Dialogue(context=Context(b"/", b"alice", max_message_size=10))
    one.send(open_channel(1) + publish(1, body=b"0123456789") * 2)
    one.send(publish(1, body=b"01234567890"))
    text = b"PRECONDITION_FAILED - message size 11 is larger than configured max size 10"
    assert one.closes() == [(1, 406, text, (60, 40))]
    assert one.bodies() == [b"0123456789"] * 2


EARLIER = [
    (b"\x02\x00" + wire.shortstr(b"amq.rabbitmq.reply-to"), "fast reply consumer does not exist"),
    (b"\x01\x00" + wire.shortstr(b"12x"), "invalid expiration '12x': {leftover_string,\"x\"}"),
    (b"\x01\x00" + wire.shortstr(b"-1"), "invalid expiration '-1': {value_negative,-1}"),
    (b"\x01\x00" + wire.shortstr(b""), "invalid expiration '': no_integer"),
    (cc((b"CC", ("t", True))), 'invalid message: {unacceptable_type_in_header,"CC",bool}'),
]


@pytest.mark.parametrize(("properties", "text"), EARLIER)
def test_what_rabbitmq_checks_before_topics_is_said_first(properties: bytes, text: str) -> None:
    one = Dialogue(Policy(topics={b"t"}))
    one.send(open_channel(1) + publish(1, b"t", b"no.1", properties=properties))
    assert one.closes() == [(1, 406, f"PRECONDITION_FAILED - {text}".encode(), (60, 40))]


# --- names ---


def test_server_named_queue_is_the_last_queue(one: Dialogue) -> None:
    one.send(declare(1, b"") + call(1, (60, 70), 0, b"", 0), answer=False)
    assert one.at_broker()[-1] == (1, DECLARE)  # the get waits for the name
    one.reply(call(1, DECLARE_OK, b"amq.gen-x", 0, 0))
    one.send(b"")
    assert one.broker.methods[-1][2][1] == b"amq.gen-x"


def test_nowait_server_named_queue_is_asked_and_its_answer_swallowed(one: Dialogue) -> None:
    one.send(declare(1, b"", bits=16) + call(1, (60, 70), 0, b"", 0))
    assert [name for _, name in one.to_client(1)] == [(20, 11), (60, 72)]
    assert one.broker.methods[-1][2][1].startswith(b"amq.gen-")  # type: ignore[union-attr]


def test_a_made_up_name_outside_the_permissions_is_undone(one: Dialogue) -> None:
    one.send(declare(1, b""), answer=False)
    one.policy.denied.add(b"amq.gen-evil")
    one.reply(call(1, DECLARE_OK, b"amq.gen-evil", 0, 0))
    one.flush()
    assert one.at_broker()[-2:] == [(1, (50, 40)), (1, CLOSE)]
    assert one.closes() == [refusal("configure access to queue 'amq.gen-evil'", DECLARE)]


@pytest.mark.parametrize(
    ("operation", "check"),
    [
        (declare(1, b"n\ro\n"), "configure access to queue 'no'"),
        (call(1, (40, 10), 0, b"n\no", b"topic", 0, b""), "configure access to exchange 'no'"),
        (call(1, (50, 40), 0, b"no\r", 0), "configure access to queue 'no'"),
    ],
)
def test_names_are_judged_without_line_ends(one: Dialogue, operation: bytes, check: str) -> None:
    one.send(operation)
    assert one.closes()[0][2].startswith(f"ACCESS_REFUSED - {check}".encode())


def test_what_is_judged_is_what_is_sent(one: Dialogue) -> None:
    one.send(declare(1, b"o\r\nk"))
    assert one.broker.methods[-1][2][1] == b"ok"


def test_empty_name_stands_for_the_last_queue(one: Dialogue) -> None:
    one.send(declare(1, b"q") + call(1, (50, 20), 0, b"", b"x", b"", 0, b""))
    assert one.broker.methods[-1][2][1:4] == (b"q", b"x", b"q")


def test_empty_name_without_a_queue(one: Dialogue) -> None:
    one.send(call(1, (60, 70), 0, b"", 0))
    text = b"NOT_FOUND - no previously declared queue"
    assert one.closes() == [(1, 404, text, (60, 70))]


def test_consumer_tag_reuse_comes_before_the_permission(one: Dialogue) -> None:
    consume = call(1, (60, 20), 0, b"q", b"t", 0, b"")
    one.send(consume + call(1, (60, 20), 0, b"no", b"t", 0, b""))
    text = b"NOT_ALLOWED - attempt to reuse consumer tag 't'"
    assert one.closes() == [(0, 530, text, (60, 20))]


def test_consumer_tag_is_free_after_cancel(one: Dialogue) -> None:
    consume = call(1, (60, 20), 0, b"q", b"t", 0, b"")
    one.send(consume + call(1, (60, 30), b"t", 0) + consume)
    one.reply(call(1, (60, 30), b"t", 1))  # the queue is gone
    one.send(consume)
    assert one.closes() == []


def test_server_cancel_is_hidden_from_a_client_that_did_not_ask() -> None:
    one = Dialogue(cancel_notify=False)
    one.send(open_channel(1) + call(1, (60, 20), 0, b"q", b"t", 0, b""))
    one.reply(call(1, (60, 30), b"t", 1))
    one.send(call(1, (60, 20), 0, b"q", b"t", 0, b""))
    assert (1, (60, 30)) not in one.to_client(1)
    assert one.closes() == []


def test_cancel_ok_from_the_client_cancels(one: Dialogue) -> None:
    one.send(call(1, (60, 20), 0, b"q", b"t", 0, b"") + call(1, (60, 31), b"t"))
    assert one.broker.methods[-1][1:] == ((60, 30), (b"t", 0))
    assert (1, (60, 31)) not in one.to_client()


# --- the connection ---


def test_a_connection_error_comes_after_the_replies(one: Dialogue) -> None:
    one.send(open_channel(2) + declare(1, b"q") + open_channel(2) + declare(2, b"never"))
    assert one.to_client()[-2:] == [(1, DECLARE_OK), (0, (10, 50))]
    assert one.closes() == [(0, 504, b"CHANNEL_ERROR - second 'channel.open' seen", (20, 10))]
    assert one.at_broker()[-1] == (0, (10, 50))
    one.send(call(0, (10, 51)))
    assert one.state is State.DONE


def test_a_close_after_our_close_is_answered(one: Dialogue) -> None:
    one.send(call(1, (60, 201), 1))
    one.send(call(0, (10, 50), 200, b"", 0, 0) + declare(1, b"q"))
    assert [n for c, n in one.to_client() if c == 0] == [(10, 50), (10, 51)]
    assert one.state is State.TOLD


def test_client_close_passes_and_is_answered(one: Dialogue) -> None:
    one.send(call(0, (10, 50), 200, b"bye", 0, 0) + declare(1, b"q"))
    assert one.to_client()[-1] == (0, (10, 51))
    assert one.state is State.DONE
    assert (1, DECLARE) not in one.at_broker()


def test_broker_close_passes_and_is_answered(one: Dialogue) -> None:
    one.reply(wire.close_method(0, 10, 320, b"CONNECTION_FORCED - x", 0, 0))
    one.send(declare(1, b"q") + call(0, (10, 51)))
    one.flush()
    assert one.closes()[0][1] == 320
    assert one.at_broker()[-1] == (0, (10, 51))
    assert one.state is State.DONE


def test_the_service_account_is_not_named() -> None:
    one = Dialogue(context=Context(b"/", b"alice", service_user=b"svc"))
    one.send(open_channel(1) + declare(1, b"q"), answer=False)
    text = b"ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused for user 'svc'"
    one.reply(wire.close_method(1, 20, 403, text, 50, 10))
    assert one.closes() == [refusal("configure access to queue 'q'", DECLARE)]


def test_forced_close_tells_the_client_at_once(one: Dialogue) -> None:
    one.session.endings.close(AmqpError(ReplyCode.CONNECTION_FORCED, b"user 'alice' is deleted"))
    one.flush(answer=False)
    text = b"CONNECTION_FORCED - user 'alice' is deleted"
    assert one.closes() == [(0, 320, text, (0, 0))]
    one.send(publish(1, body=b"late"))
    assert one.bodies() == []


@pytest.mark.parametrize(
    ("data", "close"),
    [
        (
            struct.pack(">BHI", 1, 1, 200_000),
            (501, b"FRAME_ERROR - type 1, all octets = <<>>: {frame_too_large,200000,131064}"),
        ),
        (
            wire.frame(1, 1, b"abcd")[:-1] + b"\x00",
            (501, b'FRAME_ERROR - type 1, all octets = <<"abcd">>: {invalid_frame_end_marker,0}'),
        ),
        (
            wire.frame(5, 1, b"\x01\x02"),
            (501, b"FRAME_ERROR - type 5, all octets = <<1,2>>: unknown_frame"),
        ),
        (wire.frame(8, 1, b""), (505, b"UNEXPECTED_FRAME - type 8, all octets = <<>>")),
        (wire.frame(3, 0, b"x"), (505, b'UNEXPECTED_FRAME - type 3, all octets = <<"x">>')),
        (
            wire.frame(3, 1, b"x"),
            (505, b"UNEXPECTED_FRAME - expected method frame, got non method frame instead"),
        ),
        (
            wire.frame(3, 7, b"x"),
            (505, b"UNEXPECTED_FRAME - expected method frame, got non method frame instead"),
        ),
        (declare(7, b"q"), (504, b"CHANNEL_ERROR - expected 'channel.open'")),
        (
            call(0, (10, 51)),
            (504, b"CHANNEL_ERROR - unexpected method in connection state running"),
        ),
        (close_ok(1), (503, b"COMMAND_INVALID - unimplemented method")),
        (call(1, (60, 200), b"t", 1, 0), (503, b"COMMAND_INVALID - unimplemented method")),
        (
            wire.method(1, 50, 10, b"\x01\x02"),
            (501, b"FRAME_ERROR - cannot decode <<1,2>>"),
        ),
        (
            call(1, DECLARE, 0, b"\xff", 0, b""),
            (501, b"FRAME_ERROR - Malformed UTF-8 in shortstr"),
        ),
        (wire.method(0, 10, 70, b"\x01"), (541, b"INTERNAL_ERROR")),
    ],
)
def test_protocol_errors(one: Dialogue, data: bytes, close: tuple[int, bytes]) -> None:
    before = len(one.at_broker())
    one.send(data)
    assert [found[1:3] for found in one.closes()] == [close]
    reached = one.at_broker()[before:]
    assert reached in ([(0, (10, 50))], [(1, CLOSE), (0, (10, 50))])


def test_a_connection_error_is_void_if_the_broker_closes_the_channel_first(one: Dialogue) -> None:
    """RabbitMQ drops what comes behind the operation that has closed the channel."""
    one.send(call(1, (60, 80), 9, 0) + publish(1, bits=2) + open_channel(2), answer=False)
    assert one.state is State.FAILING
    assert (2, (20, 10)) not in one.at_broker()
    one.reply(
        wire.close_method(1, 20, 406, b"PRECONDITION_FAILED - unknown delivery tag 9", 60, 80)
    )
    one.reply(call(1, CLOSE_OK))
    one.send(close_ok(1) + open_channel(1))
    assert one.state is State.RUNNING
    assert [close[1] for close in one.closes()] == [406]
    assert one.at_broker()[-3:] == [(2, (20, 10)), (1, CLOSE_OK), (1, (20, 10))]


def test_a_connection_error_comes_after_its_channels_replies(one: Dialogue) -> None:
    one.send(declare(1, b"q") + publish(1, bits=2) + declare(1, b"r"))
    assert one.to_client()[-2:] == [(1, DECLARE_OK), (0, (10, 50))]
    assert [c[1] for c in one.closes()] == [540]
    assert one.state is State.TOLD


def test_a_broker_that_is_lost_meanwhile(one: Dialogue) -> None:
    one.send(publish(1, bits=2), answer=False)
    one.session.endings.broker_lost(b"gone")
    one.flush(answer=False)
    assert [close[1] for close in one.closes()] == [540]


@pytest.mark.parametrize(
    "data",
    [
        wire.method(1, 50, 99),
        wire.method(0, 77, 1),
        call(1, DECLARE, 0, b"q", 0, b"\x01kZ"),
    ],
)
def test_what_crashes_rabbitmqs_reader_drops_the_connection(one: Dialogue, data: bytes) -> None:
    before = len(one.broker.received)
    one.send(data)
    assert one.session.abort
    assert one.state is State.DONE
    assert len(one.broker.received) == before


def test_channel_limit() -> None:
    one = Dialogue(channel_max=2)
    one.send(open_channel(1) + open_channel(60000) + open_channel(3))
    text = b"NOT_ALLOWED - number of channels opened (2) has reached the negotiated channel_max (2)"
    assert one.closes() == [(0, 530, text, (0, 0))]


@pytest.mark.parametrize("slow", [False, True])
def test_user_channel_limit(slow: bool) -> None:
    one = Dialogue()
    one.policy.slow = slow
    one.send(open_channel(1))
    one.policy.place = AmqpError(ReplyCode.NOT_ALLOWED, b"too many")
    one.send(open_channel(2))
    assert one.closes() == [(0, 530, b"NOT_ALLOWED - too many", (0, 0))]
    assert one.policy.open_channels == 1


def test_a_channel_counts_until_its_number_is_free() -> None:
    one = Dialogue()
    one.send(open_channel(1) + open_channel(2))
    assert one.policy.open_channels == len(one.session.channels) == 2
    one.send(call(1, (20, 40), 200, b"", 0, 0))
    assert one.policy.open_channels == len(one.session.channels) == 1
    one.policy.denied = {b"no"}
    one.send(declare(2, b"no"))
    assert one.policy.open_channels == len(one.session.channels) == 1
    one.send(call(2, (20, 41)))
    assert one.policy.open_channels == len(one.session.channels) == 0


# --- update-secret ---

SECRET = call(0, (10, 70), b"new", b"because")


def test_update_secret_is_not_forwarded(one: Dialogue) -> None:
    before = len(one.broker.received)
    one.send(SECRET)
    assert one.to_client()[-1] == (0, (10, 71))
    assert len(one.broker.received) == before


def test_update_secret_cancels_consumers_that_lost_their_queue(one: Dialogue) -> None:
    one.send(call(1, (60, 20), 0, b"q", b"t", 0, b"") + call(1, (60, 20), 0, b"r", b"u", 0, b""))
    one.policy.denied.add(b"q")
    one.send(SECRET)
    assert one.policy.cancelled == [b"t"]
    assert one.to_client()[-2:] == [(0, (10, 71)), (1, (60, 30))]
    assert one.broker.methods[-1][1:] == ((60, 30), (b"t", 0))


def test_update_secret_refused(one: Dialogue) -> None:
    one.policy.secret = AmqpError(ReplyCode.NOT_ALLOWED, b"no")
    one.send(SECRET)
    assert one.closes() == [(0, 530, b"NOT_ALLOWED - no", (10, 70))]


# --- a slow backend ---


def test_answers_that_take_time_change_nothing() -> None:
    script = (
        open_channel(1)
        + open_channel(2)
        + declare(1, b"q")
        + publish(1, parts=2)
        + declare(2, b"no")
        + publish(1, b"no")
        + close_ok(1)
        + open_channel(1)
        + declare(1, b"")
        + call(1, (60, 70), 0, b"", 0)
        + SECRET
    )
    fast, slow = Dialogue(Policy()), Dialogue(Policy(slow=True))
    fast.send(script)
    slow.send(script)
    assert slow.sent() == fast.sent()
    assert slow.by_channel() == fast.by_channel()


def test_a_frame_that_waited_is_settled_once_it_is_decided() -> None:
    one = Dialogue()
    one.send(open_channel(1))
    one.policy.slow = True
    assert one.policy.settlements == 0
    one.send(declare(1, b"q") + declare(1, b"no"))
    assert one.policy.settlements == 2


# --- fairness ---


def test_readable_code_takes_turns(one: Dialogue) -> None:
    """A chunk full of frames that must be judged is not judged in one go."""
    data = bytearray(declare(1, b"q") * (3 * JUDGED_AT_ONCE))
    session = one.session
    done = session.client_data(data, 0, len(data))
    assert 0 < done < len(data)
    assert session.client_tired
    assert session.client_stalled
    assert len(b"".join(session.to_broker)) == done
    session.to_broker.clear()
    one.send(bytes(data[done:]))
    assert not session.client_tired
    assert len(one.broker.received) == len(open_channel(1)) + len(data) - done


def test_the_fast_lane_is_not_tired(one: Dialogue) -> None:
    data = bytearray(publish(1) * (3 * JUDGED_AT_ONCE))
    assert one.session.client_data(data, 0, len(data)) == len(data)
    assert not one.session.client_tired


def test_answers_of_the_broker_take_turns_too(one: Dialogue) -> None:
    one.send(declare(1, b"") * (3 * JUDGED_AT_ONCE), answer=False)
    data = bytearray(call(1, DECLARE_OK, b"amq.gen-q", 0, 0) * (3 * JUDGED_AT_ONCE))
    done = one.session.broker_data(data, 0, len(data))
    assert 0 < done < len(data)
    assert one.session.broker_tired
    assert len(b"".join(one.session.to_client)) == done


# --- what is granted once ---

GET = call(1, (60, 70), 0, b"q", 1)


def asked(one: Dialogue, data: bytes) -> list[Check]:
    one.policy.asked.clear()
    one.send(data)
    return list(one.policy.asked)


def topical() -> Dialogue:
    one = Dialogue(Policy(topics={b"t"}))
    one.send(open_channel(1))
    return one


def with_routes(*keys: bytes, name: bytes = b"CC") -> bytes:
    values: wire.Value = ("A", [("S", key) for key in keys])
    return b"\x20\x00" + wire.longstr(wire.table([(name, values)]))


@pytest.mark.parametrize(
    "data",
    [
        GET,
        call(1, (50, 30), 0, b"q", 0),
        declare(1, b"q"),
        declare(1, b"q", bits=1),
        publish(1),
        publish(1, b"t", b"k"),
        publish(1, b"t", b"k", properties=with_routes(b"c", b"d", name=b"BCC")),
    ],
    ids=["get", "purge", "declare", "passive", "publish", "topic", "routes"],
)
def test_what_was_granted_is_asked_again_when_the_policy_has_changed(data: bytes) -> None:
    one = topical()
    first = asked(one, data)
    assert first
    assert asked(one, data * 3) == []
    one.epoch.bump()
    assert asked(one, data) == first
    one.policy.denied = {b"q", b"ok", b"t"}
    one.epoch.bump()
    one.send(data)
    assert [close[1] for close in one.closes()] == [403]


def test_a_get_that_names_no_queue_is_judged_each_time() -> None:
    one = topical()
    one.send(declare(1, b"q") + call(1, (60, 70), 0, b"", 1) * 2)
    assert [fields[1] for _, name, fields in one.broker.methods if name == (60, 70)] == [b"q"] * 2
    one.send(declare(1, b"other") + call(1, (60, 70), 0, b"", 1))
    assert one.broker.methods[-1][2][1] == b"other"


def keys(*names: bytes, exchange: bytes = b"t") -> bytes:
    return b"".join(publish(1, exchange, name, name) for name in names)


def test_each_new_routing_key_is_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "routing_keys", lambda *_: None)
    one = topical()
    asked(one, publish(1, b"t", b"k0"))
    found = asked(one, b"".join(publish(1, b"t", b"k%d" % n) for n in range(5)))
    assert found == [TopicAccess(Permission.WRITE, b"t", b"k%d" % n) for n in range(1, 5)]


@pytest.mark.parametrize("prefixes", [{}, {b"t": b"k"}], ids=["pattern", "prefix"])
def test_where_the_rule_is_known_no_other_routing_key_is_a_question(
    prefixes: dict[bytes, bytes],
) -> None:
    one = Dialogue(Policy(topics={b"t"}, prefixes=prefixes))
    one.send(open_channel(1) + keys(b"k"))
    assert asked(one, keys(b"k1", b"k2", b"k3", b"k1")) == []
    denied = asked(one, keys(b"k4", b"no", b"k5"))
    assert (
        denied
        == [
            Access(Permission.WRITE, Kind.EXCHANGE, b"t"),
            TopicAccess(Permission.WRITE, b"t", b"no"),
        ][-len(denied) :]
    )
    assert one.bodies() == [b"k", b"k1", b"k2", b"k3", b"k1", b"k4"]
    assert one.closes() == [refusal("write access to topic 'no' in exchange 't'", (60, 40))]


def test_a_prefix_counts_for_its_exchange_alone() -> None:
    one = Dialogue(Policy(topics={b"t", b"tt", b"u"}, prefixes={b"t": b"k", b"u": b""}))
    one.send(open_channel(1) + keys(b"k") + keys(b"any", exchange=b"u"))
    one.send(publish(1, b"u", b"") + keys(b"other", exchange=b"u") + keys(b"ok", exchange=b"tt"))
    assert one.bodies() == [b"k", b"any", b"hello", b"other", b"ok"]
    for number, (exchange, key) in enumerate([(b"t", b""), (b"t", b"j"), (b"tt", b"kno")], 2):
        one.send(open_channel(number) + publish(number, b"t", b"k"))
        one.send(publish(number, exchange, key, b"sly"))
    assert b"sly" not in one.bodies()
    assert [close[1] for close in one.closes()] == [403] * 3


def test_routes_in_a_header_need_the_prefix_too() -> None:
    one = Dialogue(Policy(topics={b"t"}, prefixes={b"t": b"k"}))
    one.send(open_channel(1) + publish(1, b"t", b"k"))
    assert asked(one, publish(1, b"t", b"k1", properties=with_routes(b"k2", b"k3"))) == []
    one.send(publish(1, b"t", b"k1", b"sly", properties=with_routes(b"k2", b"j")))
    assert one.closes() == [refusal("write access to topic 'j' in exchange 't'", (60, 40))]
    assert one.bodies() == [b"hello"] * 2


@pytest.mark.parametrize("prefix", [b"k", b"j"])
def test_a_prefix_ends_with_the_policy(prefix: bytes) -> None:
    one = Dialogue(Policy(topics={b"t"}, prefixes={b"t": b""}))
    one.send(open_channel(1) + keys(b"k", b"k1"))
    one.policy.prefixes[b"t"] = prefix
    one.epoch.bump()
    one.send(keys(b"k2"))
    assert (b"k2" in one.bodies()) is (prefix == b"k")


def test_more_prefixes_than_there_is_room_for() -> None:
    """What has no room is remembered key by key; nothing is allowed or refused for it."""
    names = [b"t%d" % n for n in range(300)]
    one = Dialogue(Policy(topics=set(names), prefixes=dict.fromkeys(names, b"k")))
    one.send(open_channel(1))
    for _ in range(2):
        for name in names:
            one.send(keys(b"k", b"kk", exchange=name))
    assert one.bodies() == [b"k", b"kk"] * 600
    assert asked(one, b"".join(keys(b"k", b"kk", exchange=name) for name in names)) == []
    channel = one.session.channels[1]
    assert 0 < len(channel.prefixes) <= frames.MAX_PREFIXES
    assert channel.keys is not None
    one.send(keys(b"j", exchange=names[-1]))
    assert [close[1] for close in one.closes()] == [403]


def test_a_denied_route_is_refused_whatever_was_granted_before() -> None:
    one = topical()
    good = publish(1, b"t", b"k", properties=with_routes(b"c"))
    one.send(good * 2 + publish(1, b"t", b"k", b"bad", properties=with_routes(b"c", b"no")))
    text = "write access to topic 'no' in exchange 't'"
    assert one.closes() == [refusal(text, (60, 40))]
    assert one.bodies() == [b"hello"] * 2


def test_many_new_routes_are_judged_as_a_whole_and_remembered_over_time() -> None:
    one = topical()
    keys = [b"c%d" % n for n in range(3 * ASKED_AT_ONCE)]
    data = publish(1, b"t", b"k", properties=with_routes(*keys))
    counts = [len(asked(one, data)) for _ in range(6)]
    assert counts[0] > len(keys)
    assert counts[-1] == 0
    assert one.bodies() == [b"hello"] * 6


def test_a_key_is_not_granted_while_its_exchange_is_changing() -> None:
    one = topical()
    one.send(publish(1, b"t", b"k"))
    change = call(1, (40, 10), 0, b"t", b"topic", 0, b"")
    one.send(change + publish(1, b"t", b"k9", b"late"), answer=False)
    assert one.bodies() == [b"hello"]
    assert 1 in one.session.parked
    assert not one.session.client_stalled


# --- declares again ---


def test_a_repeated_declare_is_the_last_queue_again() -> None:
    one = topical()
    one.send(
        declare(1, b"q1") + declare(1, b"q2") + declare(1, b"q1") + call(1, (50, 30), 0, b"", 0)
    )
    assert one.broker.methods[-1][2][1] == b"q1"


def test_repeated_and_server_named_declares_in_one_segment() -> None:
    """Each answer belongs to its own declare, however many come before it."""
    one = topical()
    one.send(declare(1, b"q"))
    purge = call(1, (50, 30), 0, b"", 0)
    data = declare(1, b"q") * 2 + declare(1, b"") + declare(1, b"q") + declare(1, b"") + purge
    one.send(data, answer=False)
    for name in (b"q", b"q", b"amq.gen-1", b"q", b"amq.gen-2"):
        one.reply(call(1, DECLARE_OK, name, 0, 0))
    one.send(b"", answer=False)
    assert one.broker.methods[-1][1:] == ((50, 30), (0, b"amq.gen-2", 0))
    one.send(declare(1, b"q") + purge)
    assert one.broker.methods[-1][2][1] == b"q"


def test_the_broker_may_rename_a_queue_at_any_declare_of_it() -> None:
    one = topical()
    one.send(declare(1, b"q"))
    one.send(declare(1, b"q") * 2, answer=False)
    one.reply(call(1, DECLARE_OK, b"q", 0, 0) + call(1, DECLARE_OK, b"q shard", 0, 0))
    one.send(call(1, (50, 30), 0, b"", 0))
    assert one.broker.methods[-1][2][1] == b"q shard"
    one.send(declare(1, b"q"), answer=False)
    one.send(declare(1, b""), answer=False)
    one.reply(call(1, DECLARE_OK, b"q shard", 0, 0) + call(1, DECLARE_OK, b"amq.gen-1", 0, 0))
    one.send(call(1, (50, 30), 0, b"", 0))
    assert one.broker.methods[-1][2][1] == b"amq.gen-1"


def test_an_impersonators_user_ids_need_no_judgement() -> None:
    one = Dialogue(context=Context(b"/", b"alice", impersonator=True))
    one.send(open_channel(1))
    one.send(publish(1))
    other = bytearray(publish(1, properties=b"\x00\x10\x03bob") * 2)
    assert scan_client(one.session.lane, other, 0, len(other)) == len(other)


def test_who_is_no_impersonator_any_more_is_refused_what_passed_before() -> None:
    one = Dialogue(context=Context(b"/", b"alice", impersonator=True))
    as_bob = publish(1, properties=b"\x00\x10\x03bob")
    one.send(open_channel(1) + as_bob * 3)
    assert one.closes() == []
    one.session.context = Context(b"/", b"alice")
    one.send(publish(1) + as_bob)
    assert [close[1] for close in one.closes()] == [406]
    assert len(one.bodies()) == 4
