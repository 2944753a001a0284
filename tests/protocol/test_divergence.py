"""Where the states of client, gate and broker could part: each case once did, or nearly.

Slow answers, closes that cross, the gate's own methods amid a client's content, exchanges that
change their type, and what one client may make the gate remember.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import pytest

from gatekeeper.errors import AmqpError, ReplyCode
from gatekeeper.model import Access, Check, Decision, TopicAccess
from gatekeeper.protocol import channels, session, wire
from gatekeeper.protocol.checks import Context
from gatekeeper.protocol.states import State
from tests.protocol.dialogue import Dialogue, Policy, call, frames, ids, open_channel, publish
from tests.support.amqp_codec import encode_header, frame, method_frame, publish_frames

DECLARE, DECLARE_OK = (50, 10), (50, 11)
CLOSE, CLOSE_OK = (20, 40), (20, 41)
EXCHANGE_DECLARE, EXCHANGE_DECLARE_OK = (40, 10), (40, 11)
EXCHANGE_DELETE, EXCHANGE_DELETE_OK = (40, 20), (40, 21)
BYE = call(0, (10, 50), 200, b"", 0, 0)
SECRET = call(0, (10, 70), b"new", b"")
BODY_FRAME = 12
"""Octets of the last frame of a publish with a body of four."""


def opened(policy: Policy | None = None, **options: object) -> Dialogue:
    one = Dialogue(policy or Policy(denied={b"forbidden"}), **options)  # type: ignore[arg-type]
    one.send(open_channel(1))
    return one


def sent(one: Dialogue) -> list[tuple[int, tuple[int, int]]]:
    """(type, ids of a method) of every frame at the broker."""
    return [
        (kind, ids(payload) if kind == 1 else (0, 0))
        for kind, _, payload in frames(bytes(one.broker.received))
    ]


def broker_close(code: int = 404) -> bytes:
    return wire.close_method(1, 20, code, b"NOT_FOUND - x", 50, 10)


# --- exchanges that change their type -------------------------------------------------------


class Exchanges(Policy):
    """Exchange x has a topic rule; what it is, is what the broker has answered so far.

    A change of what is known bumps the epoch, as server/exchanges.py does.
    """

    def __init__(self) -> None:
        super().__init__(denied={b"forbidden"}, topics={b"x"})
        self.topic = False
        self.dialogue: Dialogue | None = None

    def check(self, check: Check, channel: int) -> Decision | None:
        if isinstance(check, TopicAccess) and not self.topic:
            self.asked.append(check)
            return Decision(True, "not a topic exchange")
        return super().check(check, channel)

    def exchange_changing(self, exchange: bytes) -> int:
        self._bump()
        return super().exchange_changing(exchange)

    def exchange_changed(self, exchange: bytes, kind: bytes | None, change: int) -> None:
        super().exchange_changed(exchange, kind, change)
        self.topic = kind == b"topic"
        self._bump()

    def _bump(self) -> None:
        if self.dialogue is not None:
            self.dialogue.epoch.bump()


@pytest.fixture
def direct() -> Dialogue:
    """The user may not publish with the key no, and does so while x is no topic exchange."""
    policy = Exchanges()
    one = opened(policy)
    policy.dialogue = one
    one.send(publish(1, b"x", b"no") * 3)
    assert one.bodies() == [b"hello"] * 3
    return one


def declared(nowait: bool, kind: str = "topic") -> bytes:
    return method_frame(1, "exchange.declare", exchange="x", type=kind, nowait=nowait)


def deleted(nowait: bool) -> bytes:
    return method_frame(1, "exchange.delete", exchange="x", nowait=nowait)


@pytest.mark.parametrize("nowait", [False, True])
@pytest.mark.parametrize("deletes", [False, True])
@pytest.mark.parametrize("answer", [False, True])
def test_an_exchange_that_becomes_a_topic_exchange_in_the_same_segment(
    direct: Dialogue, deletes: bool, nowait: bool, answer: bool
) -> None:
    """The publish goes out behind the declare: there the rule holds, whoever was asked before."""
    change = (deleted(nowait) if deletes else b"") + declared(nowait)
    direct.send(change + publish(1, b"x", b"no", b"sly"), answer=answer)
    assert b"sly" not in direct.bodies()
    if not answer:
        assert 1 in direct.session.parked
        if deletes:
            direct.reply(call(1, EXCHANGE_DELETE_OK))
        direct.send(b"", answer=False)
        assert b"sly" not in direct.bodies()
        direct.reply(call(1, EXCHANGE_DECLARE_OK))
        direct.send(b"")
    text = b"ACCESS_REFUSED - write access to topic 'no' in exchange 'x' in vhost '/' refused"
    assert [close[2] for close in direct.closes()] == [text + b" for user 'alice'"]
    assert b"sly" not in direct.bodies()


def test_an_approval_does_not_outlive_its_exchange_in_one_segment(direct: Dialogue) -> None:
    """The fast lane's approvals rest on x being no topic exchange; the delete ends them."""
    asked = len(direct.policy.asked)
    direct.send(publish(1, b"x", b"no") + deleted(nowait=False) + publish(1, b"x", b"no"))
    assert [type(check) for check in direct.policy.asked[asked:]] == [
        Access,  # configure
        Access,  # write, anew
        Access,  # and once more, because the answer to the delete has ended all approvals again
        TopicAccess,
    ]


@pytest.mark.parametrize("name", [EXCHANGE_DECLARE, EXCHANGE_DELETE])
def test_no_wait_changes_are_asked_and_their_answers_swallowed(
    direct: Dialogue, name: tuple[int, int]
) -> None:
    before = len(direct.client)
    change = declared(nowait=True) if name == EXCHANGE_DECLARE else deleted(nowait=True)
    direct.send(change)
    assert direct.broker.methods[-1][1:] == (
        name,
        (0, b"x", b"topic", 0, b"") if name == EXCHANGE_DECLARE else (0, b"x", 0),
    )
    assert len(direct.client) == before
    direct.send(call(1, (90, 10)))
    assert direct.to_client(1)[-1] == (1, (90, 11))


def test_what_is_learned_of_exchanges(direct: Dialogue) -> None:
    """At the declare that the old type no longer counts, at the answer the new one."""
    direct.send(declared(nowait=False, kind="fanout"), answer=False)
    assert (direct.policy.forgotten, direct.policy.learned) == ([b"x"], [])
    direct.reply(call(1, EXCHANGE_DECLARE_OK))
    assert direct.policy.learned == [(b"x", b"fanout")]
    direct.send(method_frame(1, "exchange.declare", exchange="x", passive=True))
    direct.send(method_frame(1, "exchange.declare", exchange="x", passive=True, nowait=True))
    direct.send(deleted(nowait=False), answer=False)
    assert (direct.policy.forgotten, len(direct.policy.learned)) == ([b"x"] * 2, 1)
    direct.reply(call(1, EXCHANGE_DELETE_OK))
    assert direct.policy.forgotten == [b"x"] * 3


def test_other_exchanges_are_not_waited_for(direct: Dialogue) -> None:
    direct.send(declared(nowait=False) * 2, answer=False)
    direct.send(publish(1, b"y") + call(1, (90, 10)), answer=False)
    assert not direct.session.parked
    direct.send(publish(1, b"x", b"k", b"waits"), answer=False)
    direct.reply(call(1, EXCHANGE_DECLARE_OK))
    direct.send(b"", answer=False)
    assert 1 in direct.session.parked
    direct.reply(call(1, EXCHANGE_DECLARE_OK))
    direct.send(b"", answer=False)
    assert direct.bodies()[-1] == b"waits"


def test_existence_is_not_asked_before_the_declare_is_done() -> None:
    one = opened(Policy(denied={b"forbidden"}, missing={b"x"}))
    forged = publish_frames(1, b"x", b"k", b"", {"user_id": "bob"})
    one.send(declared(nowait=False) + forged, answer=False)
    assert one.closes() == []
    one.policy.missing.clear()
    one.reply(call(1, EXCHANGE_DECLARE_OK))
    one.send(b"")
    assert [close[1] for close in one.closes()] == [406]


@pytest.mark.parametrize("name", [EXCHANGE_DECLARE_OK, EXCHANGE_DELETE_OK, DECLARE_OK])
def test_answers_to_nothing_are_passed(name: tuple[int, int]) -> None:
    one = opened()
    answer = call(1, name, *((b"q", 0, 0) if name == DECLARE_OK else ()))
    one.reply(answer)
    assert bytes(one.client).endswith(answer)
    assert one.policy.learned == one.policy.forgotten == []


# --- refusals and closes that cross ---------------------------------------------------------


def test_a_channel_that_the_broker_closed_is_not_closed_again() -> None:
    """The refused publish was still coming when the broker closed the channel."""
    one = opened()
    data = publish(1, b"forbidden", body=b"0123")
    one.send(data[:-BODY_FRAME], answer=False)
    one.reply(broker_close())
    one.send(data[-BODY_FRAME:] + call(1, CLOSE_OK) + open_channel(1))
    assert [close[1] for close in one.closes()] == [404]
    assert one.at_broker() == [(1, (20, 10)), (1, CLOSE_OK), (1, (20, 10))]
    assert one.state is State.RUNNING


@pytest.mark.parametrize("mode", ["refused", "broker-closed", "closing"])
@pytest.mark.parametrize("method", [(60, 40), (60, 50), (60, 60), (60, 71)])
def test_content_on_a_closing_channel_is_dropped(method: tuple[int, int], mode: str) -> None:
    one = opened()
    if mode == "refused":
        one.send(call(1, DECLARE, 0, b"forbidden", 0, b""))
    elif mode == "broker-closed":
        one.reply(broker_close())
    else:
        one.send(call(1, CLOSE, 200, b"", 0, 0), answer=False)
    before, closes = len(one.broker.received), one.closes()
    arguments = b"\0" * {40: 5, 50: 5, 60: 12, 71: 15}[method[1]]
    one.send(wire.method(1, *method, arguments) + frame(2, 1, encode_header(1, {})), answer=False)
    one.send(frame(3, 1, b"x"), answer=False)
    assert one.closes() == closes
    assert len(one.broker.received) == before


def test_a_refusal_is_told_although_the_connection_ends() -> None:
    """A broker that is told to close the connection does not answer the channel's close."""
    one = opened()
    one.send(call(1, DECLARE, 0, b"forbidden", 0, b"") + open_channel(1), answer=False)
    one.reply(call(0, (10, 51)))
    assert [close[:2] for close in one.closes()] == [(1, 403), (0, 504)]


def test_a_refusal_is_told_although_the_client_closes() -> None:
    one = opened()
    one.send(call(1, DECLARE, 0, b"forbidden", 0, b"") + BYE, answer=False)
    one.reply(wire.method(0, 10, 61) + call(0, (10, 51)))
    assert one.to_client()[1:] == [(0, (10, 61)), (1, CLOSE), (0, (10, 51))]
    assert one.state is State.DONE


def test_content_that_began_before_the_brokers_close_is_finished() -> None:
    """A part of it is at the broker, which still parses the rest (semantics.md 1.13)."""
    one = opened()
    data = publish(1, body=b"0123")
    one.send(data[:-BODY_FRAME])
    one.reply(broker_close())
    one.send(data[-BODY_FRAME:] + publish(1, body=b"late") + call(1, CLOSE_OK))
    assert one.bodies() == [b"0123"]
    assert one.at_broker()[-1] == (1, CLOSE_OK)


def test_a_second_close_of_the_brokers_is_not_shown() -> None:
    one = opened()
    one.send(call(1, DECLARE, 0, b"forbidden", 0, b""))
    one.reply(broker_close())
    assert [close[1] for close in one.closes()] == [403]


def test_closes_of_all_three_at_once() -> None:
    one = opened()
    one.send(call(1, DECLARE, 0, b"forbidden", 0, b""), answer=False)
    one.send(call(1, CLOSE, 200, b"", 0, 0), answer=False)
    one.reply(broker_close())
    one.send(b"", answer=False)
    one.reply(call(1, CLOSE_OK) * 2)
    assert [name for _, name in one.to_client(1)] == [(20, 11), CLOSE, CLOSE_OK]
    one.send(call(1, CLOSE_OK) + open_channel(1), answer=False)
    assert one.at_broker()[-2:] == [(1, CLOSE_OK), (1, (20, 10))]


# --- the gate's own methods amid content ----------------------------------------------------


def test_a_queue_is_undone_only_after_the_content_under_way() -> None:
    """A method amid content would end the whole connection at the broker."""
    one = opened()
    one.send(call(1, DECLARE, 0, b"", 0, b""), answer=False)
    data = publish(1, body=b"0123", parts=2)
    one.send(data[: -BODY_FRAME + 2], answer=False)
    one.reply(call(1, DECLARE_OK, b"amq.gen-forbidden", 0, 0))
    one.send(data[-BODY_FRAME + 2 :] + publish(1, body=b"late"))
    assert [kind for kind, _ in sent(one)][-5:] == [2, 3, 3, 1, 1]
    assert one.at_broker()[-2:] == [(1, (50, 40)), (1, CLOSE)]
    assert [close[1:] for close in one.closes()] == [
        (
            403,
            b"ACCESS_REFUSED - %b in vhost '/' refused for user 'alice'"
            % b"configure access to queue 'amq.gen-forbidden'",
            DECLARE,
        )
    ]


def test_a_queue_is_undone_before_content_of_which_nothing_went_out() -> None:
    one = opened()
    data = publish(1, body=b"0123")
    method = len(method_frame(1, "basic.publish", exchange="ok", routing_key="k"))
    one.send(call(1, DECLARE, 0, b"", 0, b"") + data[:method], answer=False)
    one.reply(call(1, DECLARE_OK, b"amq.gen-forbidden", 0, 0))
    one.flush()
    one.send(data[method:] + call(1, CLOSE_OK) + open_channel(1))
    assert one.bodies() == []
    assert [close[1] for close in one.closes()] == [403]
    assert one.at_broker()[-3:] == [(1, (50, 40)), (1, CLOSE), (1, (20, 10))]


def test_a_queue_is_undone_while_a_refused_publish_is_swallowed() -> None:
    one = opened()
    data = publish(1, b"forbidden", body=b"0123")
    one.send(call(1, DECLARE, 0, b"", 0, b"") + data[:-BODY_FRAME], answer=False)
    one.reply(call(1, DECLARE_OK, b"amq.gen-forbidden", 0, 0))
    one.flush()
    one.send(data[-BODY_FRAME:])
    assert one.at_broker()[-2:] == [(1, (50, 40)), (1, CLOSE)]
    assert [close[3] for close in one.closes()] == [(60, 40)]


def test_a_queue_is_not_undone_on_a_channel_that_is_closing() -> None:
    one = opened()
    one.send(call(1, DECLARE, 0, b"", 0, b"") + call(1, CLOSE, 200, b"", 0, 0), answer=False)
    one.reply(call(1, DECLARE_OK, b"amq.gen-forbidden", 0, 0) + call(1, CLOSE_OK))
    assert one.at_broker()[-1] == (1, CLOSE)
    assert one.to_client(1) == [(1, (20, 11)), (1, CLOSE_OK)]


def test_the_brokers_close_ends_what_was_deferred() -> None:
    one = opened()
    one.send(call(1, DECLARE, 0, b"", 0, b""), answer=False)
    data = publish(1, body=b"0123")
    one.send(data[:-BODY_FRAME], answer=False)
    one.reply(call(1, DECLARE_OK, b"amq.gen-forbidden", 0, 0) + broker_close())
    one.send(data[-BODY_FRAME:])
    assert [close[1] for close in one.closes()] == [404]
    assert sent(one)[-1] == (3, (0, 0))


# --- consumers ------------------------------------------------------------------------------


def consume(queue: bytes, tag: bytes = b"", bits: int = 0) -> bytes:
    return call(1, (60, 20), 0, queue, tag, bits, b"")


@pytest.mark.parametrize("bits", [0, 8])
def test_consumers_without_a_tag_lose_their_right_too(bits: int) -> None:
    one = opened()
    one.send(consume(b"lost", bits=bits) + consume(b"kept", bits=bits))
    tags = [fields[2] for _, name, fields in one.broker.methods if name == (60, 20)]
    assert len(set(tags)) == 2
    one.policy.denied.add(b"lost")
    one.send(SECRET)
    assert one.policy.cancelled == tags[:1]
    assert one.broker.methods[-1][1:] == ((60, 30), (tags[0], 0))


def test_a_made_up_tag_is_nobodys() -> None:
    one = opened()
    one.send(consume(b"a", b"amq.ctag-%022d" % 0) + consume(b"b") + consume(b"c"))
    tags = [fields[2] for _, name, fields in one.broker.methods if name == (60, 20)]
    assert len(set(tags)) == 3
    one.send(call(1, (60, 30), tags[2], 0) + consume(b"d"))
    assert one.broker.methods[-1][2][2] not in tags


def test_a_consumer_is_cancelled_only_after_the_content_under_way() -> None:
    one = opened()
    data = publish(1, body=b"0123")
    one.send(consume(b"lost", b"t") + data[:-BODY_FRAME])
    one.policy.denied.add(b"lost")
    one.send(SECRET + open_channel(2))
    one.send(data[-BODY_FRAME:] + publish(1, body=b"next"))
    methods = [entry for entry in sent(one) if entry != (2, (0, 0))]
    assert methods[-4:] == [(3, (0, 0)), (1, (60, 30)), (1, (60, 40)), (3, (0, 0))]
    assert one.closes() == []


def test_pseudo_queues_and_dead_channels_are_left_alone_by_a_new_secret() -> None:
    one = opened()
    one.send(consume(b"amq.rabbitmq.reply-to", b"r", 2) + consume(b"lost", b"t"))
    one.send(call(1, DECLARE, 0, b"forbidden", 0, b""))
    one.policy.denied |= {b"lost", b"reply-to"}
    one.send(SECRET)
    assert one.policy.cancelled == []
    assert one.to_client()[-1] == (0, (10, 71))


@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_new_secret_asks_once_for_every_consumer(count: int) -> None:
    """However late the answers come: the number of questions must not double with each."""
    one = opened(Policy(denied={b"forbidden"}))
    one.send(b"".join(consume(b"q%d" % n, b"t%d" % n) for n in range(count)))
    one.policy.slow = True
    one.policy.asked.clear()
    one.policy.denied.add(b"q0")
    one.send(SECRET + call(1, (90, 10)))
    assert len(one.policy.asked) == count
    assert one.policy.cancelled == [b"t0"]
    assert one.to_client()[-1] == (1, (90, 11))


def test_a_new_secret_asks_once_for_a_queue_of_many_consumers() -> None:
    one = opened()
    one.send(b"".join(consume(b"lost", b"t%d" % n) for n in range(20)) + consume(b"kept"))
    one.policy.asked.clear()
    one.policy.denied.add(b"lost")
    one.send(SECRET)
    assert len(one.policy.asked) == 2
    assert one.policy.cancelled == [b"t%d" % n for n in range(20)]


def test_a_consumer_that_the_broker_ends_while_it_is_judged() -> None:
    """What the broker says has to wait for the verdict; the client is told once."""
    one = opened(Policy(denied={b"lost"}))
    one.policy.denied.clear()
    one.send(consume(b"lost", b"t"))
    one.policy.denied.add(b"lost")
    one.policy.slow = True
    buf = bytearray(SECRET)
    for _ in range(2):
        one.policy.turn += 1
        assert one.session.client_data(buf, 0, len(buf)) == 0
        assert one.session.client_stalled
    one.reply(call(1, (60, 30), b"t", 1))  # the queue has just gone
    one.policy.turn += 1
    one.session.client_data(buf, 0, len(buf))
    one.flush(answer=False)
    one.reply(call(1, (60, 31), b"t"))
    assert one.policy.cancelled == [b"t"]
    assert one.to_client()[-2:] == [(0, (10, 71)), (1, (60, 30))]


def test_service_messages_to_a_client_without_consumer_cancel_notify() -> None:
    one = opened(Policy(denied={b"forbidden"}), cancel_notify=False)
    one.send(consume(b"lost", b"t"))
    one.policy.denied.add(b"lost")
    one.send(SECRET)
    assert (1, (60, 30)) not in one.to_client()
    assert one.at_broker()[-1] == (1, (60, 30))


# --- late answers, and bounds ---------------------------------------------------------------


def routes(count: int) -> bytes:
    keys: wire.Value = ("A", [("S", b"k%d" % n) for n in range(count)])
    return b"\x20\x00" + wire.longstr(wire.table([(b"CC", keys)]))


def test_many_routes_and_late_answers() -> None:
    """More questions than are remembered at a time, each answered late: once each, then done."""
    one = opened(Policy(denied={b"forbidden"}, topics={b"t"}, slow=True))
    one.policy.asked.clear()
    one.send(publish(1, b"t", properties=routes(500)))
    assert one.bodies() == [b"hello"]
    assert len(one.policy.asked) == 502


def test_many_routes_are_judged_in_turns() -> None:
    """Or one message of a frame's length holds up all other connections for half a second."""
    one = opened(Policy(denied={b"forbidden"}, topics={b"t"}))
    data = bytearray(publish(1, b"t", properties=routes(500)) * 2)
    most = turns = 0
    while data and turns < 100:
        turns += 1
        one.policy.asked.clear()
        done = one.session.client_data(data, 0, len(data))
        one.flush()
        assert one.session.client_tired is bool(data[done:])
        del data[:done]
        most = max(most, len(one.policy.asked))
    assert one.bodies() == [b"hello"] * 2
    assert most < 150
    assert turns < 20


def test_a_change_of_policy_between_turns_asks_again() -> None:
    one = opened(Policy(denied={b"forbidden"}, topics={b"t"}))
    data = bytearray(publish(1, b"t", b"k", properties=routes(500)))
    for _ in range(3):
        del data[: one.session.client_data(data, 0, len(data))]
        one.flush()
    assert one.session.client_tired
    one.policy.denied.add(b"t")
    one.epoch.bump()
    one.send(bytes(data))
    assert [close[1] for close in one.closes()] == [403]
    assert one.bodies() == []


def test_a_change_of_policy_amid_late_answers_asks_again() -> None:
    one = opened(Policy(denied={b"forbidden"}, topics={b"t"}))
    one.policy.slow = True
    data = bytearray(publish(1, b"t", properties=routes(3)))
    done = 0
    for _ in range(4):
        done += one.session.client_data(data, done, len(data))
        one.flush()
        data, done = data[done:], 0
    one.policy.denied.add(b"t")
    one.epoch.bump()
    one.policy.slow = False
    one.send(bytes(data))
    assert [close[1] for close in one.closes()] == [403]
    assert one.bodies() == []


def test_what_waits_for_answers_is_not_the_next_messages_judgement() -> None:
    """The broker closes the channel while a header waits; the number is used again."""
    one = opened(Policy(denied={b"forbidden"}, topics={b"t"}))
    one.policy.slow = True
    whole = bytearray(publish(1, b"t", b"k", b"0123"))
    assert one.session.client_data(whole, 0, len(whole)) == len(whole)
    assert 1 in one.session.parked
    one.reply(broker_close())
    one.policy.slow = False
    one.send(call(1, CLOSE_OK) + open_channel(1))
    one.send(publish(1, b"forbidden", b"k", b"poison"))
    assert one.bodies() == []
    assert [close[1] for close in one.closes()] == [404, 403]


def test_a_refused_header_with_thousands_of_routes_is_not_kept() -> None:
    one = opened(Policy(denied={b"forbidden"}, topics={b"forbidden"}))
    one.send(publish(1, b"forbidden", properties=routes(5000))[:-BODY_FRAME])
    content = one.session.channels[1].content
    assert content is not None
    assert content.steps is None


def test_what_one_connection_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_REMEMBERED", 40)
    one = opened(Policy(denied={b"forbidden"}, topics={b"t"}))
    one.send(b"".join(open_channel(number) for number in range(2, 20)))
    for number in range(1, 20):
        one.send(b"".join(publish(number, b"t", b"k%d" % n, b"") for n in range(10)))
        one.send(publish(number, b"x%d" % number, b""))
        kept = sum(
            len(c.keys or ()) + len(c.exchanges or ()) + len(c.allowed)
            for c in one.session.channels.values()
        )
        assert kept <= 40 + 1
    assert one.closes() == []
    assert channels.MAX_REMEMBERED < 100_000


def long_name(n: int, size: int) -> bytes:
    return b"%d" % n + b"x" * (size - len(b"%d" % n))


GRANTS: dict[str, Callable[[int], bytes]] = {
    "routing keys": lambda n: publish(1, b"t", long_name(n, 60), b""),
    "long routing keys": lambda n: publish(1, b"t", long_name(n, 255), b""),
    "exchanges": lambda n: publish(1, long_name(n, 63), b"", b""),
    "exchanges with a topic rule": lambda n: publish(1, long_name(n, 30), b"", b""),
    "long exchanges": lambda n: publish(1, long_name(n, 255), b"", b""),
    "queues": lambda n: call(1, DECLARE, 0, long_name(n, 40), 0, b""),
    "long queues": lambda n: call(
        1, DECLARE, 0, long_name(n, 255), 0, wire.table([(b"x", ("S", bytes(200)))])
    ),
    "gets": lambda n: call(1, (60, 70), 0, long_name(n, 20), 0),
}


@pytest.mark.parametrize("kind", GRANTS)
def test_the_octets_that_one_connection_remembers_are_bounded(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """On an eighth of the limit: 4 MiB in all, whatever is remembered."""
    monkeypatch.setattr(session, "MAX_REMEMBERED", channels.MAX_REMEMBERED // 8)
    one = opened(Policy(denied=set(), topics={b"t", *(long_name(n, 30) for n in range(5000))}))
    policy, running = one.policy, one.session
    tracemalloc.start()
    try:
        before, most, weight = tracemalloc.get_traced_memory()[0], 0, 0
        for n in range(5000):
            buf = bytearray(GRANTS[kind](n))
            assert running.client_data(buf, 0, len(buf)) == len(buf)
            running.to_broker.clear()
            policy.asked.clear()
            most = max(most, tracemalloc.get_traced_memory()[0] - before)
            if running._remembered < weight:
                break
            weight = running._remembered
    finally:
        tracemalloc.stop()
    assert running._remembered < weight, "nothing was ever forgotten"
    assert most < (4 << 20) // 8


@pytest.mark.parametrize("nowait", [0, 1])
def test_cancels_without_answers_are_bounded(nowait: int) -> None:
    """The broker's answers are not read as long as the client does not read."""
    one = opened()
    count = channels.MAX_UNANSWERED + 500
    tags = [b"%d" % (n // 2) for n in range(count)]
    one.send(b"".join(call(1, (60, 30), tag, nowait) for tag in tags), answer=False)
    for _ in range(count // 60):
        one.send(b"", answer=False)
    assert len(one.at_broker()) == channels.MAX_UNANSWERED + 1
    assert 1 in one.session.parked
    one.reply(b"".join(call(1, (60, 31), tag) for tag in tags[: channels.MAX_UNANSWERED]))
    one.send(b"")
    assert len(one.at_broker()) == count + 1
    assert one.session.channels[1].cancels is None
    assert one.to_client().count((1, (60, 31))) == (0 if nowait else count)


def exchange_deleted(n: int, number: int) -> bytes:
    return call(number, EXCHANGE_DELETE, 0, b"x%d" % n, 0)


def exchange_declared(n: int, number: int) -> bytes:
    return call(number, EXCHANGE_DECLARE, 0, b"x%d" % n, b"topic", 0, b"")


AWAITED: dict[str, tuple[Callable[[int, int], bytes], Callable[[int], bytes]]] = {
    "made-up names": (
        lambda _n, number: call(number, DECLARE, 0, b"", 0, b""),
        lambda number: call(number, DECLARE_OK, b"amq.gen-x", 0, 0),
    ),
    "names behind one": (
        lambda n, number: call(number, DECLARE, 0, b"q%d" % n if n > 1 else b"", 0, b""),
        lambda number: call(number, DECLARE_OK, b"amq.gen-x", 0, 0),
    ),
    "the same name": (
        lambda n, number: call(number, DECLARE, 0, b"q" if n > 1 else b"", 0, b""),
        lambda number: call(number, DECLARE_OK, b"amq.gen-x", 0, 0),
    ),
    "exchanges": (exchange_declared, lambda number: call(number, EXCHANGE_DECLARE_OK)),
    "deletes": (exchange_deleted, lambda number: call(number, EXCHANGE_DELETE_OK)),
}


@pytest.mark.parametrize("kind", AWAITED)
def test_what_the_broker_has_not_answered_is_bounded(kind: str) -> None:
    """On all channels of a connection together."""
    ask, answer = AWAITED[kind]
    one = opened()
    one.send(open_channel(2))
    count, most = channels.MAX_UNANSWERED + 500, channels.MAX_UNANSWERED
    one.send(b"".join(ask(n, 1 + n % 2) for n in range(count)), answer=False)
    for _ in range(count // 20):
        one.send(b"", answer=False)
    assert one.session.tally.count == most
    assert len(one.at_broker()) == most + 2
    waiting = one.session.parked.numbers()
    assert waiting
    assert not one.session.client_tired
    for number in (1, 2):
        one.reply(answer(number) * (most // 2))
    assert one.session.tally.count == 0
    for _ in range(count // 20):
        one.send(b"", answer=False)
    assert len(one.at_broker()) == count + 2
    assert one.session.tally.count in {
        0,
        count - most,
    }  # named ones behind nothing are only counted


@pytest.mark.parametrize("who", ["client", "broker", "gate"])
def test_what_a_channel_that_has_ended_was_not_answered_counts_no_more(who: str) -> None:
    one = opened()
    asked = b"".join(AWAITED[kind][0](1, 1) for kind in AWAITED) + call(1, (60, 30), b"t", 0)
    one.send(asked, answer=False)
    assert one.session.tally.count == len(AWAITED) + 1
    if who == "client":
        one.send(call(1, CLOSE, 200, b"", 0, 0), answer=False)
        one.reply(call(1, CLOSE_OK))
    elif who == "broker":
        one.reply(broker_close())
    else:
        one.send(publish(1, b"forbidden"), answer=False)
        one.reply(call(1, CLOSE_OK))
    assert one.session.tally.count == 0


def test_a_message_size_of_nothing_is_a_limit() -> None:
    one = opened(context=Context(b"/", b"alice", max_message_size=0))
    one.send(publish(1, body=b"") * 2 + publish(1, body=b"x"))
    assert [close[1] for close in one.closes()] == [406]
    assert one.bodies() == []


@pytest.mark.parametrize("kind", [("A", []), ("F", {}), ("V", None), ("l", 1), ("x", b"quorum")])
def test_any_value_may_stand_where_a_queue_type_is_looked_for(kind: wire.Value) -> None:
    one = opened()
    one.send(call(1, DECLARE, 0, b"", 0, wire.table([(b"x-queue-type", kind)])))
    assert one.at_broker()[-1] == (1, DECLARE)


def test_a_crash_of_a_backend_ends_the_connection() -> None:
    class Crashes(Policy):
        def check(self, check: Check, channel: int) -> Decision | None:
            return Decision(False, crashed=True)

    for data in (call(1, DECLARE, 0, b"q", 0, b""), publish(1)):
        one = opened(Crashes())
        one.send(data)
        assert [close[1:3] for close in one.closes()] == [(541, b"INTERNAL_ERROR")]
        assert one.bodies() == []


# --- what a broker may say ------------------------------------------------------------------


def test_a_name_in_the_brokers_text_is_the_clients_and_the_text_stays_valid() -> None:
    context = Context(b"/", "é".encode() * 100, service_user=b"s")
    one = opened(Policy(), context=context)
    one.reply(wire.close_method(1, 20, 403, b"x" * 100 + b" user 's'", 0, 0))
    text = one.closes()[0][2]
    assert len(text) <= 255
    assert text.decode().endswith("é")


@pytest.mark.parametrize(
    "data",
    [
        frame(5, 1, b"x"),
        frame(1, 1, b"\0"),
        frame(1, 0, b"\x00\x0a\x00\x0a" + bytes(8)),
        wire.method(1, 50, 11, b"\x05q"),
        wire.method(1, 20, 40, b"\x05"),
        struct.pack(">BHI", 1, 1, 1 << 30),
        frame(1, 1, b"abcd", end=0),
    ],
)
def test_a_broker_that_talks_nonsense_is_given_up(data: bytes) -> None:
    one = opened()
    one.send(call(1, DECLARE, 0, b"q", 0, b""), answer=False)
    before = len(one.client)
    one.reply(data)
    assert one.session.broken
    assert len(one.client) == before


def test_answers_on_unknown_channels_are_passed() -> None:
    one = opened()
    said = call(7, CLOSE_OK) + call(7, DECLARE_OK, b"q", 0, 0) + wire.close_method(7, 20, 1, b"", 0, 0)  # noqa: E501  # fmt: skip
    one.reply(said)
    assert bytes(one.client).endswith(said)
    one.reply(call(1, CLOSE_OK))  # an open channel that nobody asked to close
    assert one.session.channels[1].mode == channels.Mode.OPEN


def test_a_made_up_name_is_judged_by_a_slow_backend() -> None:
    for table, questions in ((b"", 1), (wire.table([(b"x-dead-letter-exchange", ("S", b"d"))]), 2)):
        one = opened()
        one.send(call(1, DECLARE, 0, b"", 0, table), answer=False)
        one.policy.asked.clear()
        one.policy.slow = True
        one.reply(call(1, DECLARE_OK, b"amq.gen-x", 0, 0))
        assert len(one.policy.asked) >= questions
        assert one.to_client()[-1] == (1, DECLARE_OK)


# --- the ends of a connection ---------------------------------------------------------------


@pytest.mark.parametrize("closing", [False, True])
def test_the_broker_is_lost(closing: bool) -> None:
    one = opened()
    if closing:
        one.send(BYE, answer=False)
    one.session.endings.broker_lost(b"gone")
    one.flush(answer=False)
    last = one.to_client()[-1]
    assert last == ((0, (10, 51)) if closing else (0, (10, 50)))


def test_both_close_the_connection_at_once() -> None:
    one = opened()
    one.send(BYE, answer=False)
    one.reply(wire.close_method(0, 10, 320, b"CONNECTION_FORCED - x", 0, 0))
    one.reply(call(0, (10, 51)))
    one.send(call(0, (10, 51)))
    assert [name for number, name in one.to_client() if not number] == [(10, 50), (10, 51)]
    assert one.at_broker()[-1] == (0, (10, 51))
    assert one.state is State.DONE


def test_the_brokers_close_crosses_the_gates() -> None:
    one = opened()
    one.send(open_channel(1), answer=False)
    assert one.state is State.DRAINING
    one.reply(wire.close_method(0, 10, 320, b"CONNECTION_FORCED - x", 0, 0))
    assert [close[1] for close in one.closes()] == [320]
    assert one.state is State.TOLD
    one.session.endings.tell()
    one.session.endings.close(AmqpError(ReplyCode.CONNECTION_FORCED, b"again"))
    assert one.state is State.TOLD


def test_an_end_by_the_gate_while_the_clients_error_drains() -> None:
    one = opened()
    one.send(open_channel(1), answer=False)
    one.session.endings.close(AmqpError(ReplyCode.CONNECTION_FORCED, b"deleted"))
    one.flush(answer=False)
    assert [close[1] for close in one.closes()] == [504]
    assert one.at_broker().count((0, (10, 50))) == 1


@pytest.mark.parametrize(
    "tail",
    [
        struct.pack(">BHI", 1, 0, 1 << 30) + b"x",
        frame(1, 0, bytes(4), end=0),
    ],
)
def test_nonsense_after_the_close_ends_it(tail: bytes) -> None:
    one = opened()
    one.send(open_channel(1))
    assert one.state is State.TOLD
    one.send(frame(8, 0, b"") + tail[:3])
    assert one.state is State.TOLD
    one.send(tail[3:])
    assert one.state is State.DONE


def test_after_a_lost_frame_stream_nothing_is_read() -> None:
    one = opened()
    one.send(frame(1, 1, b"abcd", end=0))
    assert one.session.fatal
    before = len(one.client)
    one.send(BYE)
    assert len(one.client) == before
    assert one.state is State.TOLD
