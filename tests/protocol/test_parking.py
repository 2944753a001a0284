"""A channel whose answer takes time waits alone, and comes out of it as if it had not waited."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatekeeper.model import Check, Decision
from gatekeeper.protocol import checks, parking, wire
from gatekeeper.protocol import session as session_module
from gatekeeper.protocol.session import JUDGED, JUDGED_AT_ONCE, OCTETS, Session
from gatekeeper.protocol.states import State
from tests.protocol.dialogue import (
    Dialogue,
    Policy,
    call,
    frames,
    open_channel,
    publish,
)
from tests.protocol.test_scanner import copies, in_session, use

DECLARE, QOS = (50, 10), (60, 10)
CLOSE_CONNECTION = call(0, (10, 50), 200, b"", 0, 0)
REOPEN = ((20, 41), (20, 10))


def declare(channel: int, name: bytes) -> bytes:
    return call(channel, DECLARE, 0, name, 0, b"")


def qos(channel: int) -> bytes:
    return call(channel, QOS, 0, 1, 0)


def close(channel: int) -> bytes:
    return call(channel, (20, 40), 200, b"", 0, 0)


def refused_then_reopened(channel: int, data: bytes) -> bytes:
    """What comes behind a refusal is dropped; then the client uses the number again."""
    return data + qos(channel) + call(channel, (20, 41)) + open_channel(channel)


@dataclass
class Held(Policy):
    """Answers to these channels are under way until ``held`` lets them go."""

    held: set[int] = field(default_factory=set)

    def check(self, check: Check, channel: int) -> Decision | None:
        return None if channel in self.held else super().check(check, channel)


class Bench:
    """Two open channels or more; ``client`` feeds without waiting for anything."""

    def __init__(self, *channels: int, held: int | None = 1) -> None:
        self.policy = Held(topics={b"t"})
        self.dialogue = Dialogue(self.policy)
        self.dialogue.send(b"".join(map(open_channel, channels or (1, 2))))
        self.dialogue.broker.received.clear()
        self.policy.held = set() if held is None else {held}
        self.tail = b""

    @property
    def session(self) -> Session:
        return self.dialogue.session

    def client(self, data: bytes = b"") -> None:
        buf = bytearray(self.tail + data)
        done = self.session.client_data(buf, 0, len(buf))
        self.tail = bytes(buf[done:])
        self.dialogue.flush()

    def let_go(self, *channels: int) -> None:
        self.policy.held -= set(channels)
        for _ in range(1000):
            self.client()
            if not self.session.client_tired:
                break
        self.client()

    def at_broker(self, channel: int) -> bytes:
        """The frames that reached the broker, as octets."""
        return b"".join(
            wire.frame(kind, n, payload)
            for kind, n, payload in frames(bytes(self.dialogue.broker.received))
            if n == channel
        )


# --- alone, and in order ---


def test_the_other_channels_go_on() -> None:
    bench = Bench()
    mine = declare(1, b"q") + publish(1, b"ok", b"k", b"one", parts=3) + qos(1)
    bench.client(mine + qos(2) + publish(2, b"other", b"k", b"two"))
    assert bench.at_broker(1) == b""
    assert bench.at_broker(2) == qos(2) + publish(2, b"other", b"k", b"two")
    assert bench.dialogue.to_client(2)[-1] == (2, (60, 11))
    bench.client(qos(2) + qos(1))
    assert bench.at_broker(1) == b""
    assert not bench.session.client_stalled
    bench.let_go(1)
    assert bench.at_broker(1) == mine + qos(1)
    assert not bench.session.parked
    assert bench.session.parked.octets == 0


def test_a_publish_waits_with_its_method_and_header_together() -> None:
    """The header is what is parked; contents of two channels lie across each other."""
    bench = Bench()
    first, second = publish(1, b"ok", b"k", b"abcd", parts=2), publish(2, b"x", b"k", b"ef")
    pieces = zip(split(first), [*split(second), b""], strict=True)
    bench.client(b"".join(a + b for a, b in pieces))
    assert bench.at_broker(1) == b""
    assert bench.at_broker(2) == second
    bench.let_go(1)
    assert bench.at_broker(1) == first


def split(data: bytes) -> list[bytes]:
    return [wire.frame(kind, channel, payload) for kind, channel, payload in frames(data)]


def test_one_answer_lets_go_of_one_channel() -> None:
    bench = Bench(1, 2, 3)
    bench.policy.held = {1, 2, 3}
    for n in (1, 2, 3):
        bench.client(declare(n, b"q") + qos(n))
    bench.let_go(2)
    assert [bench.at_broker(n) for n in (1, 2, 3)] == [b"", declare(2, b"q") + qos(2), b""]
    bench.client(publish(2))  # nothing of before holds it
    assert bench.at_broker(2).endswith(publish(2))
    assert set(bench.session.parked.numbers()) == {1, 3}


def test_a_refusal_among_what_waited() -> None:
    bench = Bench()
    tail = qos(1) + call(1, (20, 41)) + open_channel(1) + qos(1)
    bench.client(qos(1) + declare(1, b"no") + tail + qos(2))
    assert bench.at_broker(1) == qos(1)
    assert bench.at_broker(2) == qos(2)
    bench.let_go(1)
    assert [(c[0], c[1]) for c in bench.dialogue.closes()] == [(1, 403)]
    assert bench.at_broker(1) == qos(1) + call(1, (20, 40), 200, b"", 0, 0) + open_channel(1) + qos(
        1
    )


def test_the_broker_closes_a_channel_that_waits() -> None:
    bench = Bench()
    bench.client(publish(1) + declare(1, b"q") + call(1, (20, 41)) + open_channel(1) + qos(1))
    bench.dialogue.reply(call(1, (20, 40), 404, b"NOT_FOUND", 50, 10))
    bench.client()
    assert bench.at_broker(1) == call(1, (20, 41)) + open_channel(1) + qos(1)
    assert bench.dialogue.closes() == [(1, 404, b"NOT_FOUND", (50, 10))]
    bench.let_go(1)
    bench.client(publish(1))
    assert bench.at_broker(1).endswith(publish(1))


def test_a_change_of_policy_while_a_channel_waits() -> None:
    bench = Bench()
    bench.client(publish(1, b"t", b"k", properties=copies(b"a", b"b")) + publish(1))
    bench.policy.denied.add(b"t")
    bench.dialogue.epoch.bump()
    bench.let_go(1)
    assert [c[:2] for c in bench.dialogue.closes()] == [(1, 403)]
    assert bench.dialogue.bodies() == []


def test_an_answer_that_comes_between_method_and_header_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scanner has asked, the turn ends, the answer is there before anybody had to wait for it:
    with the header it has served, and is not kept for what is asked in an hour."""
    bench = Bench()
    monkeypatch.setattr(session_module, "JUDGED_AT_ONCE", JUDGED)
    message = publish(1, b"ok", b"k", b"x")
    bench.client(message)
    assert bench.session.client_tired
    assert not bench.session.parked
    assert bench.policy.settlements == 0
    bench.let_go(1)
    assert bench.at_broker(1) == message
    assert bench.policy.settlements == 1


# --- what waits as a whole ---


@pytest.mark.parametrize(
    ("data", "answer"),
    [(CLOSE_CONNECTION, (10, 51)), (call(0, (10, 70), b"new", b""), (10, 71))],
    ids=["close", "update-secret"],
)
def test_the_connection_s_own_methods_come_after_what_waits(
    data: bytes, answer: tuple[int, int]
) -> None:
    bench = Bench()
    bench.client(declare(1, b"q") + data + qos(2))
    assert bench.session.client_stalled
    assert bench.dialogue.to_client()[-1] == (2, (20, 11))
    bench.let_go(1)
    assert (0, answer) in bench.dialogue.to_client()
    assert bench.at_broker(1) == declare(1, b"q")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (open_channel(2), 504),
        (qos(3), 504),
        (wire.frame(3, 2, b"x"), 505),
        (wire.frame(8, 2, b""), 505),
        (qos(2)[:-1] + b"\0", 501),
        (wire.frame(9, 1, b""), 501),
        (qos(1)[:-1] + b"\0", 501),
        (b"\x01\x00\x01\x7f\xff\xff\xff", 501),
        (wire.frame(3, 1, bytes(131_073)), 501),
    ],
)
def test_an_error_that_ends_the_connection_comes_after_what_waits(data: bytes, code: int) -> None:
    """RabbitMQ's reader lets its channels finish what they were sent before."""
    bench = Bench()
    bench.client(declare(1, b"q") + data + qos(2))
    assert bench.session.client_stalled
    assert bench.dialogue.closes() == []
    assert bench.at_broker(2) == b""
    bench.let_go(1)
    assert bench.at_broker(1) == declare(1, b"q")
    assert [c[:2] for c in bench.dialogue.closes()] == [(0, code)]
    assert bench.at_broker(2) == b""


def test_nothing_is_done_behind_an_error_that_was_parked() -> None:
    bench = Bench()
    bench.policy.held = {1, 2}
    bench.client(declare(1, b"q") + open_channel(1) + qos(1) + declare(2, b"q") + qos(2))
    bench.let_go(1)
    assert bench.dialogue.closes() == []
    bench.let_go(2)
    assert [c[:2] for c in bench.dialogue.closes()] == [(0, 504)]
    assert bench.at_broker(1) == declare(1, b"q")
    assert bench.at_broker(2) == declare(2, b"q") + qos(2)


def test_the_first_of_two_errors_is_told() -> None:
    bench = Bench(1, 2, 3)
    bench.policy.held = {1, 2, 3}
    for n in (1, 2, 3):
        bench.client(
            declare(n, b"q") + (open_channel(n) if n == 2 else wire.frame(2, n, bytes(12)))
        )
    bench.let_go(2)
    assert bench.dialogue.closes() == []
    bench.let_go(1, 3)
    assert [c[:2] for c in bench.dialogue.closes()] == [(0, 504)]
    assert [bench.at_broker(n) for n in (1, 2, 3)] == [declare(n, b"q") for n in (1, 2, 3)]


def crash(channel: int) -> bytes:
    """A publish that ends the connection, by what in RabbitMQ is the channel's process: 540."""
    return publish(channel, bits=2)


def test_an_operation_that_ends_the_connection_leaves_what_was_sent_before() -> None:
    """RabbitMQ's reader has its channels work off what it has read before it tells the client."""
    bench = Bench(1, 2, 3)
    mine = declare(1, b"q") + publish(1, parts=3) + qos(1)
    bench.client(mine + crash(2) + qos(3))
    assert bench.session.state is State.FAILING
    assert bench.dialogue.closes() == []
    bench.client(qos(1))  # behind the error: it stays in the stream
    bench.let_go(1)
    assert bench.at_broker(1) == mine
    assert bench.at_broker(3) == b""
    assert [c[:2] for c in bench.dialogue.closes()] == [(0, 540)]
    assert not bench.session.parked


def test_such_an_error_on_a_channel_that_waited_itself() -> None:
    bench = Bench(1, 2)
    bench.policy.held = {1, 2}
    bench.client(declare(1, b"q") + declare(2, b"q") + crash(2) + qos(2) + close(2) + qos(1))
    bench.let_go(2)
    assert bench.at_broker(2) == declare(2, b"q") + close(2)  # the gate's own
    assert bench.dialogue.closes() == []
    bench.let_go(1)
    assert bench.at_broker(1) == declare(1, b"q") + qos(1)
    assert [c[:2] for c in bench.dialogue.closes()] == [(0, 540)]
    assert not bench.session.parked


def test_what_waits_behind_such_an_error_may_be_refused() -> None:
    bench = Bench(1, 2, 3)
    bench.policy.held = {1, 3}
    bench.client(declare(1, b"no") + declare(3, b"q") + crash(2))
    bench.let_go(1)
    assert [c[:2] for c in bench.dialogue.closes()] == [(1, 403)]
    bench.let_go(3)
    assert [c[:2] for c in bench.dialogue.closes()] == [(1, 403), (0, 540)]


def answered_later(bench: Bench) -> bytes:
    """What goes to the broker, which does not answer yet."""
    session = bench.session
    bench.tail = bench.tail[session.client_data(bytearray(bench.tail), 0, len(bench.tail)) :]
    out = b"".join(session.to_broker)
    session.to_broker.clear()
    return out


CLOSED = call(2, (20, 40), 404, b"NOT_FOUND", 50, 10)


def test_a_void_error_does_not_make_the_gate_forget_another() -> None:
    """Of two channels that end the connection one is closed by the broker before."""
    bench = Bench(1, 2, 3)
    bench.policy.held = {1, 2, 3}
    bench.client(b"".join(declare(n, b"q") for n in (1, 2, 3)) + crash(1) + crash(2))
    bench.policy.held = {3}
    sent = answered_later(bench)
    bench.dialogue.reply(CLOSED)
    assert bench.session.state is State.FAILING
    assert bench.session.error is not None
    bench.dialogue.reply(bench.dialogue.broker.answer(sent))
    bench.let_go(3)
    assert [c[:2] for c in bench.dialogue.closes()] == [(2, 404), (0, 540)]
    assert bench.at_broker(3) == declare(3, b"q")


def test_all_errors_that_would_end_the_connection_are_void() -> None:
    bench = Bench(1, 2, 3)
    bench.policy.held = {1, 2}
    bench.client(declare(1, b"q") + declare(2, b"q") + crash(1) + crash(2) + qos(1))
    bench.policy.held = set()
    answered_later(bench)
    bench.dialogue.reply(CLOSED + CLOSED.replace(b"\0\x02", b"\0\x01", 1))
    assert bench.session.state is State.RUNNING
    assert bench.session.error is None
    bench.client(qos(1) + qos(3) + call(1, (20, 41)) + open_channel(1))
    assert bench.at_broker(3) == qos(3)
    assert bench.at_broker(1) == call(1, (20, 41)) + open_channel(1)


def test_a_void_error_does_not_let_a_broken_connection_go_on() -> None:
    """A lot has ended in an error of the reader's; then the last one ends in an operation's that
    the broker makes void."""
    bench = Bench(1, 2, 3)
    bench.policy.held = {1, 2}
    bench.client(declare(1, b"q") + open_channel(1) + declare(2, b"q") + crash(2))
    bench.let_go(1)
    assert bench.dialogue.closes() == []
    bench.policy.held = set()
    sent = answered_later(bench)
    bench.dialogue.reply(CLOSED)
    bench.client(call(2, (20, 41)) + qos(3))
    bench.dialogue.reply(bench.dialogue.broker.answer(sent))
    bench.client(qos(3))
    assert bench.at_broker(3) == b""
    assert [c[:2] for c in bench.dialogue.closes()] == [(2, 404), (0, 504)]
    assert [error.code for _, error in bench.policy.log] == [504, 540]


def test_a_body_frame_longer_than_all_that_may_wait() -> None:
    bench = Bench()
    bench.session.lane.frame_max = 1 << 20
    big = publish(1, body=bytes(parking.MAX_OCTETS + 1))
    bench.client(declare(1, b"q") + big + publish(1, body=b"") + qos(2))
    assert bench.session.client_stalled
    assert bench.at_broker(2) == b""
    bench.let_go(1)
    assert bench.at_broker(1) == declare(1, b"q") + big + publish(1, body=b"")
    assert bench.at_broker(2) == qos(2)


def test_heartbeats_pass_what_waits() -> None:
    beat = wire.frame(8, 0, b"")
    bench = Bench()
    bench.client(declare(1, b"q") + beat + qos(1) + beat)
    assert bench.at_broker(0) == beat * 2


def test_what_waits_is_bounded() -> None:
    """Then the connection waits as a whole, and loses nothing."""
    bench = Bench()
    mine = publish(1, b"ok", b"k", bytes(100_000), parts=10)
    for _ in range(10):
        bench.client(mine)
        assert bench.session.parked.octets <= parking.MAX_OCTETS
        if bench.session.client_stalled:
            break
    assert parking.MAX_OCTETS - bench.session.parked.octets < 11_000
    bench.client(qos(2))
    assert bench.at_broker(2) == b""
    bench.let_go(1)
    assert bench.at_broker(1) == mine * 3
    assert bench.at_broker(2) == qos(2)


@pytest.mark.parametrize("size", [600, 300_000])
def test_a_long_method_does_not_wait_apart(size: int) -> None:
    """It would be judged again with every answer to others."""
    bench = Bench()
    bench.session.lane.frame_max = 1 << 20
    big = call(1, DECLARE, 0, b"q", 0, wire.table([(b"x", ("S", bytes(size)))]))
    bench.client(big + qos(2))
    assert bench.session.client_stalled
    assert not bench.session.parked
    bench.let_go(1)
    assert bench.at_broker(1) == big
    assert bench.at_broker(2) == qos(2)


def test_so_many_channels_wait_apart() -> None:
    channels = range(1, parking.MAX_LOTS + 3)
    bench = Bench(*channels)
    bench.policy.held = set(channels)
    for n in channels:
        bench.client(declare(n, b"q"))
    assert bench.session.parked.numbers() == tuple(channels)[: parking.MAX_LOTS]
    assert bench.session.client_stalled
    bench.let_go(3)
    assert bench.at_broker(3) == declare(3, b"q")
    assert parking.MAX_LOTS + 1 in bench.session.parked
    bench.let_go(*channels)
    assert all(bench.at_broker(n) == declare(n, b"q") for n in channels)


def test_judging_again_leaves_a_turn_for_the_others() -> None:
    """All channels that may wait do, and are judged at every chunk: who goes on does not starve."""
    waiting = range(1, parking.MAX_LOTS + 1)
    free = parking.MAX_LOTS + 1
    bench = Bench(*waiting, free)
    bench.policy.held = set(waiting)
    for n in waiting:
        bench.client(declare(n, b"q") * 50)
    bench.client(declare(free, b"q") * 10)
    assert bench.at_broker(free) == declare(free, b"q") * 10
    assert not bench.session.client_tired
    most = JUDGED + parking.MAX_FRAME // OCTETS
    assert parking.MAX_LOTS * most < JUDGED_AT_ONCE


def test_a_turn_that_ends_amid_a_message_s_routes() -> None:
    """Not for want of an answer: it does not wait apart, and the pump is told to call again."""
    routes = copies(*(b"%c" % n for n in range(40, 115)))
    message = publish(1, b"t", b"k", properties=routes)
    bench = Bench(held=None)
    bench.client(message)
    assert bench.session.client_tired
    assert not bench.session.parked
    bench.client()
    assert bench.at_broker(1) == message
    bench.dialogue.epoch.bump()
    bench.policy.held = {1}
    bench.client(declare(1, b"q") + message)
    assert not bench.session.client_tired
    bench.policy.held = set()
    bench.client()
    assert bench.session.client_tired
    bench.client()
    assert bench.at_broker(1) == message + declare(1, b"q") + message


def test_a_connection_that_waits_for_nothing_is_not_looked_at_twice() -> None:
    """The gate's own error: what is parked is of no interest any more."""
    bench = Bench()
    bench.client(declare(1, b"q"))
    bench.session.endings.broker_lost(b"gone")
    bench.policy.held.clear()
    bench.client(call(0, (10, 51)))
    assert bench.session.state is State.DONE
    assert bench.at_broker(1) == b""


def test_the_gate_s_own_message_waits_for_a_content_that_is_parked_in_part() -> None:
    """A consumer's right ends while the rest of a content, of which the broker has a part, is
    parked by the turn's end: the cancel must not land in the middle of the content."""
    bench = Bench(held=None)
    bench.client(call(1, (60, 20), 0, b"q", b"t", 2, b""))
    bench.client(call(1, (60, 20), 0, b"p", b"u", 2, b""))
    content = publish(1, b"ok", b"k", bytes(60), parts=6)
    pieces = split(content)
    bench.policy.held = {1}
    bench.client(b"".join(pieces[:3]))
    bench.policy.denied.add(b"q")
    bench.dialogue.epoch.bump()
    bench.session.recheck()  # FINISHING once the header and a part have gone out
    bench.let_go(1)
    channel = bench.session.channels[1]
    lot = bytearray(b"".join(pieces[3:6]))
    bench.session.parked.put(1, lot)
    bench.policy.denied.add(b"p")
    bench.dialogue.epoch.bump()
    bench.session.recheck()
    bench.dialogue.flush()
    bench.client(b"".join(pieces[6:]))
    sent = [kind for kind, n, _ in frames(bytes(bench.dialogue.broker.received)) if n == 1]
    assert channel.deferred is None
    assert 1 not in sent[sent.index(2) : sent.index(2) + 7]
    assert sent.count(3) == 6


# --- whatever the chunks, the delays, the bounds ---


@dataclass
class Late(Policy):
    """Each answer takes a number of turns of its own."""

    rnd: random.Random = field(default_factory=random.Random)
    due: dict[tuple[int, object], int] = field(default_factory=dict)

    def _late(self, key: tuple[int, object]) -> bool:
        due = self.due.setdefault(key, self.turn + self.rnd.choice((0, 1, 3, 20)))
        if self.turn < due:
            return True
        del self.due[key]
        return False


def operations(rnd: random.Random, n: int) -> bytes:
    kind = rnd.randrange(9)
    if kind < 4:
        exchange, size = rnd.choice((b"ok", b"ok2", b"t", b"")), rnd.choice((0, 1, 50, 400))
        properties = rnd.choice(
            (b"\x00\x00", copies(b"k2"), copies(*(b"%d" % i for i in range(9))))
        )
        key = rnd.choice((b"k", b"k2"))
        return publish(
            n, exchange, key, rnd.randbytes(size), properties=properties, parts=rnd.choice((1, 4))
        )
    if kind == 4:
        return declare(n, rnd.choice((b"q", b"q2"))) * rnd.choice((1, 3))
    if kind == 5:
        return declare(n, b"") + call(n, (60, 70), 0, b"", 0)
    if kind == 6:
        what = (declare(n, b"no"), publish(n, b"no", parts=3), publish(n, b"t", b"no"))
        return refused_then_reopened(n, rnd.choice(what))
    if kind == 7:
        return close(n) + open_channel(n)
    change = call(n, (40, 10), 0, b"t%d" % n, b"topic", 0, b"")
    return change + publish(n, b"t%d" % n) + call(n, (40, 20), 0, b"t%d" % n, 0)


def streams(rnd: random.Random, channels: int) -> bytes:
    """What these channels send, frame by frame across each other."""
    left = {}
    for n in range(1, channels + 1):
        data = b"".join(operations(rnd, n) for _ in range(rnd.randrange(8)))
        left[n] = split(open_channel(n) + data)
    out = b""
    while left:
        n = rnd.choice(list(left))
        count = rnd.choice((1, 1, 2, 5))
        out += b"".join(left[n][:count]) + rnd.choice((b"", b"", b"", wire.frame(8, 0, b"")))
        del left[n][:count]
        if not left[n]:
            del left[n]
    return out + rnd.choice((b"", CLOSE_CONNECTION))


def feed(dialogue: Dialogue, data: bytes, rnd: random.Random, top: int, octets: int) -> None:
    """In chunks of at most ``top``, whether or not something waits, until nothing does."""
    session, tail, pos = dialogue.session, b"", 0
    for _ in range(10_000):
        size = rnd.randint(0, top)
        buf = bytearray(tail + data[pos : pos + size])
        pos += size
        dialogue.policy.turn += 1
        tail = bytes(buf[session.client_data(buf, 0, len(buf)) :])
        assert session.parked.octets <= octets
        dialogue.flush()
        buf[:] = b"\xff" * len(buf)  # the shared buffer is used again
        if pos >= len(data) and not tail and not session.parked:
            return
    raise AssertionError("the session does not come to rest")


@pytest.fixture(autouse=True)
def made_up_names_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.secrets, "token_urlsafe", lambda size: "x" * size)


@in_session
@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    channels=st.integers(1, 4),
    top=st.sampled_from((1, 9, 40, 500, 100_000)),
    octets=st.sampled_from((0, 100, 1000, 256 * 1024)),
    lots=st.sampled_from((1, 2, 16)),
    turn=st.sampled_from((1, 8, 256)),
)
@example(seed=1, channels=4, top=100_000, octets=256 * 1024, lots=16, turn=256)
def test_each_channel_gets_what_it_gets_where_answers_take_no_time(
    scanner: ModuleType, seed: int, channels: int, top: int, octets: int, lots: int, turn: int
) -> None:
    data = streams(random.Random(seed), channels)
    topics = {b"t", *(b"t%d" % n for n in range(9))}
    with pytest.MonkeyPatch.context() as patch:
        use(patch, scanner)
        truth = Dialogue(Policy(topics=topics))
        truth.send(data)
        patch.setattr(parking, "MAX_OCTETS", octets)
        patch.setattr(parking, "MAX_LOTS", lots)
        patch.setattr(session_module, "JUDGED_AT_ONCE", turn)
        rnd = random.Random(seed)
        late = Dialogue(Late(topics=topics, slow=True, rnd=rnd))
        feed(late, data, rnd, top, octets)
    assert not late.session.parked
    assert (late.state, late.session.parked.octets) == (truth.state, 0)
    assert late.sent() == truth.sent()
    assert late.by_channel() == truth.by_channel()
    assert sorted(map(str, late.policy.log)) == sorted(map(str, truth.policy.log))
