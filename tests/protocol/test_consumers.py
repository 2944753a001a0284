"""Consumers that lose their right while they read: who is told what, and what still comes."""

from __future__ import annotations

import struct

import pytest

from gatekeeper.model import Decision
from gatekeeper.protocol import wire
from gatekeeper.protocol.checks import Context
from gatekeeper.protocol.consumers import ASKED_AT_ONCE, FOUND_AT_ONCE, JUDGED_AT_ONCE
from gatekeeper.protocol.states import State
from tests.protocol.dialogue import Dialogue, Policy, call, frames, open_channel, publish

CONSUME, CANCEL, CANCEL_OK, REJECT = (60, 20), (60, 30), (60, 31), (60, 90)
CHANNEL_CLOSE, CLOSE_OK = (20, 40), (20, 41)
NO_ACK = 2
DENIED = Decision(False, "rule", b", because")
REFUSED = b"ACCESS_REFUSED - read access to queue 'lost' in vhost '/' refused for user 'alice'"


def consume(queue: bytes, tag: bytes, bits: int = 0, channel: int = 1) -> bytes:
    return call(channel, CONSUME, 0, queue, tag, bits, b"")


def deliver(tag: bytes, number: int, body: bytes = b"late", channel: int = 1) -> bytes:
    data = call(channel, (60, 60), tag, number, 0, b"x", b"k")
    data += wire.frame(2, channel, struct.pack(">HHQH", 60, 0, len(body), 0))
    return data + (wire.frame(3, channel, body) if body else b"")


def dialogue(*consumers: bytes, cancel_notify: bool = True) -> Dialogue:
    one = Dialogue(Policy(denied=set()), cancel_notify=cancel_notify)
    one.send(open_channel(1) + b"".join(consumers))
    return one


def change(one: Dialogue, *lost: bytes, answer: bool = True) -> None:
    """Take rights away; then what the pump does, until there is nothing left to do."""
    one.policy.denied.update(lost)
    one.epoch.bump()
    one.session.recheck()
    settle(one, answer=answer)


def settle(one: Dialogue, *, answer: bool = True) -> None:
    one.flush(answer=answer)
    for _ in range(1000):
        if not one.session.consumers.busy:
            break
        one.policy.turn += 1
        one.session.consumers.go_on()
        one.flush(answer=answer)
    one.reply(b"")
    one.flush(answer=answer)


def delivered(one: Dialogue) -> list[bytes]:
    return [payload for kind, _, payload in frames(bytes(one.client)) if kind == 3]


def upstream(one: Dialogue, *names: tuple[int, int]) -> list[tuple[int | bytes, ...]]:
    return [fields for _, name, fields in one.broker.methods if name in names]


def test_many_consumers_are_found_in_turns() -> None:
    """Also while some of them end, and others begin; nothing is passed on meanwhile."""
    many = 2 * FOUND_AT_ONCE + 10
    one = dialogue(*(consume(b"q%d" % (n % 50), b"%d" % n, NO_ACK) for n in range(many)))
    one.send(b"")
    consumers, policy = one.session.consumers, one.policy
    policy.asked.clear()
    policy.denied.update({b"q7", b"q8"})
    one.epoch.bump()
    one.session.recheck()
    assert consumers.tired
    assert not policy.asked
    one.send(call(1, CANCEL, b"7", 0) + consume(b"q9", b"new"))
    policy.asked.clear()
    turns = 0
    while consumers.busy:
        assert consumers.holds
        assert consumers.tired
        turns += 1
        consumers.go_on()
        one.flush()
    assert turns >= 3
    assert len(policy.asked) <= 50 + turns  # each queue once, but where a turn ends amid one
    lost = {b"%d" % n for n in range(many) if n % 50 in {7, 8}} - {b"7"}
    assert sorted(policy.cancelled) == sorted(lost)
    assert not consumers._by_queue


def test_it_is_cancelled_on_both_sides() -> None:
    one = dialogue(consume(b"lost", b"t"), consume(b"kept", b"u"))
    change(one, b"lost", answer=False)
    assert (1, CANCEL) not in one.to_client()  # which may be in the middle of a delivery
    one.reply(call(1, CANCEL_OK, b"t"))
    assert one.to_client()[-1] == (1, CANCEL)
    assert (1, CANCEL_OK) not in one.to_client()
    assert upstream(one, CANCEL) == [(b"t", 0)]
    assert (one.policy.cancelled, one.policy.causes) == ([b"t"], ["a change of permissions"])
    one.reply(deliver(b"u", 1, b"kept"))
    assert delivered(one) == [b"kept"]
    change(one)
    assert one.policy.cancelled == [b"t"]


def test_a_client_that_cannot_be_told_loses_its_channel() -> None:
    one = dialogue(consume(b"lost", b"t"), consume(b"kept", b"u"), cancel_notify=False)
    one.send(open_channel(2))
    change(one, b"lost", answer=False)
    one.reply(deliver(b"t", 1) + deliver(b"u", 2, b"before") + call(1, CLOSE_OK))
    assert one.closes() == [(1, 403, REFUSED, (0, 0))]
    assert delivered(one) == [b"before"]
    assert upstream(one, CANCEL, REJECT) == []
    one.send(call(1, CLOSE_OK) + open_channel(1) + publish(1) + publish(2))
    assert len(one.bodies()) == 2
    assert one.session.consumers.late is None


def test_the_backend_s_reason_is_part_of_the_text() -> None:
    one = dialogue(consume(b"lost", b"t"), cancel_notify=False)
    one.session.policy.recheck = lambda _check: DENIED  # type: ignore[method-assign]
    change(one)
    assert one.closes() == [(1, 403, REFUSED + b", because", (0, 0))]


def test_late_deliveries_are_dropped_and_given_back() -> None:
    one = dialogue(consume(b"lost", b"t"), consume(b"kept", b"u"))
    change(one, b"lost", answer=False)
    late = deliver(b"t", 1) + deliver(b"u", 2, b"kept") + deliver(b"t", 3, b"") + deliver(b"t", 4)
    one.reply(late)
    one.flush(answer=False)
    assert delivered(one) == [b"kept"]
    assert upstream(one, REJECT) == [(1, 1), (3, 1), (4, 1)]
    one.reply(call(1, CANCEL_OK, b"t"))
    assert (1, CANCEL_OK) not in one.to_client()
    assert one.session.consumers.late is None
    one.reply(deliver(b"u", 5, b"later"))
    assert delivered(one) == [b"kept", b"later"]


def test_late_deliveries_that_need_no_acknowledgement() -> None:
    one = dialogue(consume(b"lost", b"t", NO_ACK))
    change(one, b"lost", answer=False)
    one.reply(deliver(b"t", 1) * 3)
    one.flush(answer=False)
    assert delivered(one) == []
    assert upstream(one, REJECT) == []


def test_a_delivery_of_which_the_client_has_a_part_is_completed() -> None:
    one = dialogue(consume(b"lost", b"t"))
    whole = deliver(b"t", 1, b"0123") + deliver(b"t", 2)
    at = len(deliver(b"t", 1, b"")) + 2  # in the head of the body frame
    one.reply(whole[:at])
    change(one, b"lost", answer=False)
    one.reply(whole[at:] + call(1, CANCEL_OK, b"t"))
    assert delivered(one) == [b"0123"]
    assert frames(bytes(one.client))[-1][2][:4] == b"\x00\x3c\x00\x1e"


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_late_deliveries_in_pieces(size: int) -> None:
    one = dialogue(consume(b"lost", b"t"), consume(b"kept", b"u"))
    one.send(open_channel(2) + consume(b"kept", b"t", channel=2))
    change(one, b"lost", answer=False)
    data = deliver(b"t", 1) + deliver(b"t", 1, b"other", 2) + deliver(b"u", 2, b"kept")
    data += wire.frame(8, 0, b"") + call(1, CANCEL_OK, b"t")
    for at in range(0, len(data), size):
        one.reply(data[at : at + size])
    assert delivered(one) == [b"other", b"kept"]
    assert one.session.broken is None


def test_a_tag_that_is_used_again_at_once() -> None:
    """Deliveries before the broker's answer are of the consumer that was."""
    one = dialogue(consume(b"lost", b"t"))
    change(one, b"lost", answer=False)
    one.send(consume(b"kept", b"t"), answer=False)
    one.reply(deliver(b"t", 1) + call(1, CANCEL_OK, b"t"))
    one.reply(call(1, (60, 21), b"t") + deliver(b"t", 2, b"new"))
    assert delivered(one) == [b"new"]
    one.send(call(1, CANCEL, b"t", 0))
    assert one.to_client()[-1] == (1, CANCEL_OK)


def test_a_tag_that_is_lost_twice_before_the_broker_answers() -> None:
    one = dialogue(consume(b"lost", b"t", NO_ACK))
    change(one, b"lost", answer=False)
    one.send(consume(b"kept", b"t"), answer=False)
    change(one, b"kept", answer=False)
    one.reply(deliver(b"t", 1) + call(1, CANCEL_OK, b"t") + deliver(b"t", 2))
    assert one.session.consumers.late is not None
    one.reply(call(1, CANCEL_OK, b"t"))
    one.flush(answer=False)
    assert delivered(one) == []
    assert upstream(one, REJECT) == [(2, 1)]
    assert one.session.consumers.late is None
    assert (1, CANCEL_OK) not in one.to_client()


def test_the_answer_to_the_client_s_own_cancel_is_the_client_s() -> None:
    """It cancels, uses the tag again, and loses that consumer, before the broker has answered."""
    one = dialogue(consume(b"kept", b"t"))
    one.send(call(1, CANCEL, b"t", 0) + consume(b"lost", b"t"), answer=False)
    change(one, b"lost", answer=False)
    one.reply(call(1, CANCEL_OK, b"t") + call(1, (60, 21), b"t"))
    assert one.to_client()[-2:] == [(1, CANCEL_OK), (1, (60, 21))]
    one.reply(deliver(b"t", 1) + call(1, CANCEL_OK, b"t"))
    assert one.to_client()[-2:] == [(1, (60, 21)), (1, CANCEL)]
    assert delivered(one) == []


@pytest.mark.parametrize("nowait", [0, 1])
def test_the_broker_cancels_the_tag_s_last_consumer(nowait: int) -> None:
    """Its queue is gone while the client cancels it and uses the tag again: the new one lives on,
    may be cancelled in its turn, and must end when its right is lost."""
    one = dialogue(consume(b"gone", b"t"))
    one.send(call(1, CANCEL, b"t", nowait) + consume(b"lost", b"t"), answer=False)
    assert upstream(one, CANCEL) == [(b"t", 0)]
    one.reply(call(1, CANCEL, b"t", 1) + call(1, CANCEL_OK, b"t") + call(1, (60, 21), b"t"))
    answered = one.to_client().count((1, CANCEL_OK))
    assert answered == 1 - nowait
    change(one, b"lost", answer=False)
    assert upstream(one, CANCEL) == [(b"t", 0)] * 2
    one.reply(deliver(b"t", 1))
    assert delivered(one) == []


def test_the_broker_cancels_a_tag_that_was_used_before() -> None:
    one = dialogue(consume(b"kept", b"t"))
    one.send(call(1, CANCEL, b"t", 1) + consume(b"gone", b"t"))
    one.reply(call(1, CANCEL, b"t", 1))
    one.send(consume(b"kept", b"t"))
    assert one.state is State.RUNNING
    assert (0, (10, 50)) not in one.to_client()


def test_the_broker_cancels_it_as_well() -> None:
    one = dialogue(consume(b"lost", b"t"))
    change(one, b"lost", answer=False)
    one.reply(call(1, CANCEL, b"t", 1) + call(1, CANCEL_OK, b"t"))
    assert one.to_client().count((1, CANCEL)) == 1


def test_in_the_middle_of_a_content_nothing_piles_up() -> None:
    """The cancel cannot go out, so late deliveries stay with the broker."""
    one = dialogue(consume(b"lost", b"t"))
    data = publish(1, body=b"0123")
    one.send(data[:-3])
    change(one, b"lost", answer=False)
    one.reply(deliver(b"t", 1) * 2)
    assert one.session.broker_stalled
    assert upstream(one, CANCEL, REJECT) == []
    one.send(data[-3:] + publish(1, body=b"next"), answer=False)
    one.reply(b"")
    one.flush(answer=False)
    assert not one.session.broker_stalled
    assert upstream(one, CANCEL, REJECT) == [(b"t", 0), (1, 1), (1, 1)]
    assert one.bodies() == [b"0123", b"next"]
    assert delivered(one) == []


def test_in_the_middle_of_a_content_without_notification() -> None:
    one = dialogue(consume(b"lost", b"t"), cancel_notify=False)
    data = publish(1, body=b"0123")
    one.send(data[:-3])
    change(one, b"lost")
    assert one.closes() == []
    one.send(data[-3:])
    assert one.closes() == [(1, 403, REFUSED, (0, 0))]
    assert one.bodies() == [b"0123"]


def test_while_the_client_closes_the_channel() -> None:
    """Nothing may be sent on it any more; what still comes for the consumer is dropped."""
    one = dialogue(consume(b"lost", b"t"))
    one.send(call(1, CHANNEL_CLOSE, 200, b"", 0, 0), answer=False)
    change(one, b"lost", answer=False)
    one.reply(deliver(b"t", 1) + call(1, CLOSE_OK))
    assert delivered(one) == []
    assert upstream(one, CANCEL, REJECT) == []
    assert one.to_client()[-1] == (1, CLOSE_OK)
    assert one.session.consumers.late is None


def test_while_the_client_closes_the_connection() -> None:
    one = dialogue(consume(b"lost", b"t"))
    one.send(call(0, (10, 50), 200, b"", 0, 0), answer=False)
    change(one, b"lost", answer=False)
    one.reply(deliver(b"t", 1) + call(0, (10, 51)))
    assert delivered(one) == []
    assert upstream(one, CANCEL, REJECT) == []
    assert one.state is State.DONE


def test_the_channel_ends_at_the_broker() -> None:
    one = dialogue(consume(b"lost", b"t"))
    change(one, b"lost", answer=False)
    one.reply(call(1, CHANNEL_CLOSE, 404, b"gone", 0, 0))
    assert one.session.consumers.late is None
    one.send(call(1, CLOSE_OK) + open_channel(1) + consume(b"kept", b"t"))
    one.reply(deliver(b"t", 1, b"new"))
    assert delivered(one) == [b"new"]


def test_direct_reply_to_needs_no_right() -> None:
    reply_to = b"amq.rabbitmq.reply-to"
    one = dialogue(consume(reply_to, b"t", NO_ACK))
    change(one, reply_to)
    assert one.policy.cancelled == []


def test_nothing_is_delivered_before_the_verdict() -> None:
    one = dialogue(*(consume(b"q%d" % n, b"t%d" % n) for n in range(3 * ASKED_AT_ONCE)))
    one.policy.slow = True
    one.policy.denied.add(b"q7")
    one.epoch.bump()
    one.session.recheck()
    one.reply(deliver(b"t1", 1))
    assert one.session.broker_stalled
    assert not one.session.consumers.tired
    assert delivered(one) == []
    settle(one)
    assert delivered(one) == [b"late"]
    assert one.policy.cancelled == [b"t7"]


def test_the_client_s_next_consumer_of_the_tag_is_not_the_one_that_was_judged() -> None:
    one = dialogue(consume(b"lost", b"t"))
    one.policy.slow = True
    one.policy.denied.add(b"lost")
    one.session.recheck()
    one.policy.slow = False
    one.send(call(1, CANCEL, b"t", 1) + consume(b"kept", b"t"))
    settle(one)
    assert one.policy.cancelled == []
    one.reply(deliver(b"t", 1, b"new"))
    assert delivered(one) == [b"new"]


def test_a_channel_that_the_broker_has_closed_is_left_alone() -> None:
    """The client has not answered its close yet; its number will be used again."""
    one = dialogue(consume(b"lost", b"t"))
    one.reply(call(1, CHANNEL_CLOSE, 404, b"gone", 0, 0))
    change(one, b"lost")
    assert one.session.consumers.late is None
    one.send(call(1, CLOSE_OK) + open_channel(1) + consume(b"kept", b"t"))
    one.reply(deliver(b"t", 1, b"new"))
    assert delivered(one) == [b"new"]


def test_what_has_only_grown_old_does_not_hold_deliveries_up() -> None:
    """Nor is it asked anew before it is answered: a slow backend would never be heard."""
    one = dialogue(consume(b"lost", b"t"))
    one.policy.slow = True
    one.epoch.age()
    one.session.recheck()
    one.policy.denied.add(b"lost")
    one.reply(deliver(b"t", 1, b"passes"))
    assert delivered(one) == [b"passes"]
    one.policy.turn += 1
    one.epoch.age()
    one.session.recheck()
    assert one.session.consumers.busy
    settle(one, answer=False)
    one.reply(deliver(b"t", 2))
    assert delivered(one) == [b"passes"]
    assert upstream(one, CANCEL) == [(b"t", 0)]


def test_a_change_while_the_old_is_judged_holds_deliveries_up() -> None:
    one = dialogue(consume(b"lost", b"t"))
    one.policy.slow = True
    one.epoch.age()
    one.session.recheck()
    one.policy.denied.add(b"lost")
    one.epoch.bump()
    one.session.recheck()
    one.reply(deliver(b"t", 1))
    assert delivered(one) == []
    assert one.session.broker_stalled
    settle(one)
    assert delivered(one) == []


def test_a_change_while_the_last_one_is_still_judged() -> None:
    """An answer of before does not count."""
    one = dialogue(consume(b"lost", b"t"))
    one.policy.slow = True
    one.session.recheck()
    one.policy.denied.add(b"lost")
    one.session.recheck()
    assert one.session.consumers.busy
    settle(one)
    assert one.policy.cancelled == [b"t"]


def test_many_are_judged_in_turns() -> None:
    count = 3 * JUDGED_AT_ONCE
    one = dialogue(*(consume(b"q%d" % n, b"t%d" % n) for n in range(count)))
    one.policy.asked.clear()
    one.session.recheck()
    assert one.session.consumers.tired
    assert len(one.policy.asked) == JUDGED_AT_ONCE
    settle(one)
    assert len(one.policy.asked) == count


def test_many_of_one_queue_end_in_turns() -> None:
    count = 3 * JUDGED_AT_ONCE
    one = dialogue(*(consume(b"lost", b"t%d" % n) for n in range(count)))
    one.policy.denied.add(b"lost")
    one.session.recheck()
    assert one.session.consumers.tired
    assert len(one.policy.cancelled) <= JUDGED_AT_ONCE
    settle(one)
    assert len(one.policy.cancelled) == count
    assert one.session.consumers.late is None


def test_update_secret_with_more_consumers_than_fit_a_turn() -> None:
    one = dialogue(*(consume(b"q%d" % n, b"t%d" % n) for n in range(2 * JUDGED_AT_ONCE)))
    buf = bytearray(call(0, (10, 70), b"new", b"because"))
    assert one.session.client_data(buf, 0, len(buf)) == 0
    assert one.session.client_tired
    while one.session.client_data(buf, 0, len(buf)) == 0:
        pass
    one.flush()
    assert one.to_client()[-1] == (0, (10, 71))


def test_a_change_while_update_secret_is_judged() -> None:
    one = dialogue(consume(b"lost", b"t"), cancel_notify=False)
    one.policy.slow = True
    buf = bytearray(call(0, (10, 70), b"new", b"because"))
    for _ in range(2):
        assert one.session.client_data(buf, 0, len(buf)) == 0
    change(one, b"lost")
    one.session.client_data(buf, 0, len(buf))
    one.flush()
    assert one.closes() == [(1, 403, REFUSED, (0, 0))]
    assert (0, (10, 71)) in one.to_client()


def test_a_malformed_delivery_ends_the_connection() -> None:
    one = dialogue(consume(b"lost", b"t"))
    change(one, b"lost", answer=False)
    one.reply(wire.frame(1, 1, b"\x00\x3c\x00\x3c\x09short"))
    assert one.session.broken is not None


# --- the tag impersonator ---


def forged(one: Dialogue, body: bytes) -> bool:
    """Does a message in another user's name reach the broker?"""
    one.send(publish(1, body=body, properties=b"\x00\x10\x03bob"))
    return body in one.bodies()


def test_a_tag_counts_from_the_next_frame_on() -> None:
    one = Dialogue(context=Context(b"/", b"alice"))
    one.send(open_channel(1))
    one.policy.impersonator = True
    one.epoch.bump()
    assert forged(one, b"first")
    one.policy.impersonator = False
    one.epoch.bump()
    assert not forged(one, b"second")
    text = b"PRECONDITION_FAILED - user_id property set to 'bob' but authenticated user was 'alice'"
    assert one.closes() == [(1, 406, text, (60, 40))]


def test_a_tag_that_goes_between_method_and_header() -> None:
    one = Dialogue(context=Context(b"/", b"alice", impersonator=True))
    data = publish(1, body=b"late", properties=b"\x00\x10\x03bob")
    method = call(1, (60, 40), 0, b"ok", b"k", 0)
    one.send(open_channel(1) + publish(1) + method)
    one.policy.impersonator = False
    one.epoch.bump()
    one.send(data[len(method) :])
    assert b"late" not in one.bodies()
    assert one.closes()[0][:2] == (1, 406)
