"""Whoever changes the policy, and whatever the client does while its channels wait: nothing goes to
the broker that is not granted at that moment, and each channel's frames in their order, once.

The questions are put through the server's own ``Questions``, whose answers are made when they are
asked and come any number of turns later: a stale one must count for nothing.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Coroutine, Generator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.model import Check, Decision, TopicAccess
from gatekeeper.policy.epoch import Epoch
from gatekeeper.protocol import parking, wire
from gatekeeper.protocol import session as session_module
from gatekeeper.protocol.channels import PARKED
from gatekeeper.protocol.checks import Context
from gatekeeper.protocol.layouts import decode
from gatekeeper.protocol.states import State
from gatekeeper.server.questions import Questions
from gatekeeper.server.tasks import Owner
from tests.protocol.dialogue import (
    Dialogue,
    Keys,
    Policy,
    by_channel,
    call,
    frames,
    ids,
    open_channel,
)
from tests.protocol.dialogue import publish as publish_of
from tests.protocol.test_parking import close, copies, declare, qos, split
from tests.protocol.test_scanner import in_session, use

NAMES = (b"a", b"b", b"t")
KEYS = (b"k1", b"k2")
USERS = (b"alice", b"bob")


class Later:
    """An answer that is made now and comes when it is let go."""

    def __init__(self, answer: Decision) -> None:
        self.answer = answer
        self.here = False

    def __await__(self) -> Generator[None, None, Decision]:
        while not self.here:
            yield
        return self.answer


@dataclass
class Tasks:
    """In the place of an Owner: coroutines that go on when the test says so."""

    running: list[tuple[Coroutine[Any, Any, Any], Later]] = field(default_factory=list)
    asked: Later | None = None

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        assert self.asked is not None
        self.running.append((work, self.asked))
        work.send(None)

    def finish(self, at: int) -> None:
        work, later = self.running.pop(at)
        later.here = True
        with pytest.raises(StopIteration):
            work.send(None)


@dataclass
class Moving(Policy):
    """What is granted changes. keys: denied routing keys, where a topic rule applies."""

    rnd: random.Random = field(default_factory=random.Random)
    epoch: Epoch = field(default_factory=Epoch)
    keys: set[bytes] = field(default_factory=set)
    tasks: Tasks = field(default_factory=Tasks)
    questions: Questions = field(init=False)

    def __post_init__(self) -> None:
        self.questions = Questions(cast("Owner", self.tasks), lambda: None)

    def verdict(self, check: Check) -> bool:
        if isinstance(check, TopicAccess):
            exchange, key = check.exchange, check.routing_key
            return exchange not in self.topics or self.allows(exchange, key)
        return check.name not in self.denied

    def allows(self, exchange: bytes, key: bytes) -> bool:
        return key not in self.keys

    def routing_keys(self, exchange: bytes) -> Keys:
        """As of now: who keeps them over a change goes by what was."""
        then = Moving(denied=set(self.denied), topics=set(self.topics), keys=set(self.keys))
        return Keys(then, exchange, None)

    def check(self, check: Check, channel: int) -> Decision | None:
        def ask() -> Decision | Awaitable[Decision]:
            decision = Decision(self.verdict(check))
            if self.rnd.random() < 0.4:
                return decision
            self.tasks.asked = Later(decision)
            return self.tasks.asked

        return self.questions.ask(channel, check, self.epoch.changes, ask, Decision(False))

    def settled(self, channel: int) -> None:
        self.questions.settled(channel)

    def change(self) -> None:
        """Rights, topic rules, tags."""
        for names, some in ((self.denied, NAMES), (self.topics, NAMES), (self.keys, KEYS)):
            names ^= {self.rnd.choice(some)}
        self.impersonator = self.rnd.random() < 0.3
        self.epoch.bump()


def operation(rnd: random.Random, n: int) -> bytes:
    kind = rnd.randrange(12)
    if kind < 7:
        properties = rnd.choice(
            (b"\0\0", copies(rnd.choice(KEYS)), b"\0\x10" + wire.shortstr(rnd.choice(USERS)))
        )
        size = rnd.choice((0, 0, 1, 30, 300))
        bits = 2 * (rnd.random() < 0.02)
        exchange, key = rnd.choice(NAMES), rnd.choice(KEYS)
        body, parts = rnd.randbytes(size), rnd.choice((1, 3))
        return publish_of(n, exchange, key, body, properties=properties, parts=parts, bits=bits)
    if kind < 9:
        return declare(n, rnd.choice(NAMES))
    if kind == 9:
        return call(n, (20, 41)) + open_channel(n)  # as if it had seen its channel closed
    if kind == 10:
        return rnd.choice((close(n) + open_channel(n), open_channel(n) * (rnd.random() < 0.1)))
    return qos(n)


def stream(rnd: random.Random, channels: int) -> bytes:
    left = {
        n: split(open_channel(n) + b"".join(operation(rnd, n) for _ in range(rnd.randrange(15))))
        for n in range(1, channels + 1)
    }
    out = b""
    while left:
        n = rnd.choice(list(left))
        out += left[n].pop(0) + rnd.choice((b"", b"", wire.frame(8, 0, b"")))
        if not left[n]:
            del left[n]
    return out


class Watch:
    """What reaches the broker, and whether it is granted as it goes."""

    def __init__(self, policy: Moving) -> None:
        self._policy = policy
        self._content: dict[int, tuple[bytes, bytes]] = {}

    def see(self, data: bytes) -> None:
        for kind, n, payload in frames(data):
            if kind == 1:
                self._method(n, payload)
            elif kind == 2:
                self._header(n, payload)

    def _method(self, n: int, payload: bytes) -> None:
        fields = decode(n, ids(payload), payload[4:])
        if ids(payload) == (60, 40):
            _, exchange, key, _ = fields
            assert isinstance(exchange, bytes)
            assert isinstance(key, bytes)
            assert exchange not in self._policy.denied
            self._routes(exchange, key)
            self._content[n] = exchange, key
        elif ids(payload) == (50, 10):
            assert fields[1] not in self._policy.denied

    def _routes(self, exchange: bytes, *keys: bytes) -> None:
        if exchange in self._policy.topics:
            assert not self._policy.keys & set(keys)

    def _header(self, n: int, payload: bytes) -> None:
        exchange, _ = self._content.pop(n)
        properties = wire.read_properties(payload[12:])
        if isinstance(properties.cc, list):
            self._routes(exchange, *properties.cc)
        allowed = properties.user_id in (None, b"alice") or self._policy.impersonator
        assert allowed


def in_order(received: bytes, sent: bytes) -> None:
    """What the broker got of each channel is among what was sent on it, in order; but the gate's
    own channel.close, which cannot be told from the client's."""
    theirs = by_channel(sent)
    for n, got in by_channel(received).items():
        left = iter([f for f in theirs.get(n, []) if not is_close(f)])
        for frame in got:
            assert n == 0 or is_close(frame) or frame in left, frame


def is_close(frame: tuple[int, bytes]) -> bool:
    return frame[0] == 1 and ids(frame[1]) == (20, 40)


def rest(dialogue: Dialogue, policy: Moving, data: bytes, top: int, changes: float) -> None:
    """Feed ``data`` in chunks of at most ``top``, until nothing waits or nobody listens."""
    session, rnd, watch = dialogue.session, policy.rnd, Watch(policy)
    tail, pos, unanswered = b"", 0, b""
    running = policy.tasks.running
    for _ in range(5000):
        if rnd.random() < changes and pos < len(data):
            policy.change()
        if running and rnd.random() < 0.5:
            policy.tasks.finish(rnd.randrange(len(running)))
        size = rnd.randint(0, top)
        buf = bytearray(tail + data[pos : pos + size])
        pos += size
        tail = bytes(buf[session.client_data(buf, 0, len(buf)) :])
        out = b"".join(session.to_broker)
        session.to_broker.clear()
        watch.see(out)
        unanswered += out
        if rnd.random() < 0.7:  # else the broker takes its time
            reply, unanswered = dialogue.broker.answer(unanswered), b""
            dialogue.reply(reply)
        for number, channel in session.channels.items():
            assert number in session.parked or not channel.expect & PARKED
        quiet = not (tail or session.parked)
        deaf = session.state is not State.RUNNING and not running
        if pos >= len(data) and not unanswered and not session.to_broker and (quiet or deaf):
            return
    raise AssertionError("the session does not come to rest")


@in_session
@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    channels=st.integers(1, 5),
    top=st.sampled_from((30, 500, 100_000)),
    octets=st.sampled_from((200, 256 * 1024)),
    turn=st.sampled_from((8, 256)),
    changes=st.sampled_from((0.0, 0.1, 0.5)),
)
def test_nothing_goes_out_that_is_not_granted(
    scanner: ModuleType,
    seed: int,
    channels: int,
    top: int,
    octets: int,
    turn: int,
    changes: float,
) -> None:
    rnd = random.Random(seed)
    data = stream(rnd, channels)
    policy = Moving(denied=set(), topics={b"t"}, rnd=rnd)
    with pytest.MonkeyPatch.context() as patch:
        use(patch, scanner)
        patch.setattr(parking, "MAX_OCTETS", octets)
        patch.setattr(session_module, "JUDGED_AT_ONCE", turn)
        dialogue = Dialogue(policy, context=Context(b"/", b"alice"))
        policy.epoch = dialogue.epoch
        rest(dialogue, policy, data, top, changes)
    while policy.tasks.running:
        policy.tasks.finish(0)
    in_order(bytes(dialogue.broker.received), data)
    if dialogue.state is State.RUNNING:
        assert not policy.questions._answers  # each was for a frame that is decided
