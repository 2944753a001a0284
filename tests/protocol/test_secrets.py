"""New secrets on a running connection: the gate's own, and the client's at the broker."""

from __future__ import annotations

import pytest

from gatekeeper.errors import AmqpError, ReplyCode
from gatekeeper.protocol import wire
from gatekeeper.protocol.states import State
from tests.protocol.dialogue import Dialogue, Policy, call, open_channel, publish

SECRET = call(0, (10, 70), b"new", b"because")
UPDATED = call(0, (10, 71))
REFUSED = wire.close_method(0, 10, 530, b"NOT_ALLOWED - New secret was refused", 10, 70)


@pytest.fixture
def one() -> Dialogue:
    """The broker knows the service account."""
    one = Dialogue()
    one.send(open_channel(1))
    return one


@pytest.fixture
def own() -> Dialogue:
    """The broker knows the client."""
    own = Dialogue(relay_secret=True)
    own.send(open_channel(1))
    return own


def secrets(dialogue: Dialogue) -> list[int | bytes]:
    """The secrets that the broker was sent."""
    return [fields[0] for _, name, fields in dialogue.broker.methods if name == (10, 70)]


# --- the gate's own ---


def test_the_gates_own_secret_is_no_business_of_the_client(one: Dialogue) -> None:
    before = bytes(one.client)
    assert one.session.renewals.renew(b"token")
    one.flush()
    assert secrets(one) == [b"token"]
    assert bytes(one.client) == before
    one.send(publish(1))
    assert one.bodies() == [b"hello"]


def test_it_goes_between_frames_wherever_the_client_stands(one: Dialogue) -> None:
    """Dialogue's broker reads whole frames only, whatever the cut of the client's bytes."""
    message = publish(1, parts=2)
    for cut in range(len(message)):
        one.send(message[:cut])
        one.session.renewals.renew(b"%d" % cut)
        one.flush()
        one.send(message[cut:])
    assert secrets(one) == [b"%d" % cut for cut in range(len(message))]
    assert b"".join(one.bodies()) == b"hello" * len(message)
    assert one.state is State.RUNNING


def test_the_answer_is_taken_out_of_what_the_broker_sends(one: Dialogue) -> None:
    one.session.renewals.renew(b"token")
    one.flush(answer=False)
    del one.client[:]
    heartbeat = wire.frame(8, 0, b"")
    one.reply(heartbeat + UPDATED + heartbeat)
    assert bytes(one.client) == heartbeat * 2


def test_only_the_newest_waits_for_a_broker_that_does_not_answer(one: Dialogue) -> None:
    for secret in (b"1", b"2", b"3"):
        one.session.renewals.renew(secret)
    one.flush(answer=False)
    assert secrets(one) == [b"1"]
    one.reply(UPDATED)
    one.flush(answer=False)
    assert secrets(one) == [b"1", b"3"]
    one.reply(UPDATED)
    one.flush()
    assert secrets(one) == [b"1", b"3"]


def test_nothing_is_sent_where_the_end_has_begun(one: Dialogue) -> None:
    one.send(call(0, (10, 50), 200, b"bye", 0, 0), answer=False)
    assert one.state is State.CLIENT_CLOSING
    assert one.session.renewals.renew(b"token")
    assert not one.flush()


def test_the_end_before_the_answer(one: Dialogue) -> None:
    one.session.renewals.renew(b"1")
    one.session.renewals.renew(b"2")
    one.flush(answer=False)
    one.send(call(0, (10, 50), 200, b"bye", 0, 0), answer=False)
    one.reply(UPDATED + call(0, (10, 51)))
    assert secrets(one) == [b"1"]
    assert one.to_client()[-1] == (0, (10, 51))
    assert (0, (10, 71)) not in one.to_client()
    assert one.state is State.DONE


def test_a_secret_that_no_frame_can_carry() -> None:
    one = Dialogue(frame_max=4096)
    room = 4096 - 8 - 4 - 4 - 1 - len(b"token renewed")
    assert one.session.renewals.renew(bytes(room))
    assert not one.session.renewals.renew(bytes(room + 1))
    one.flush()
    assert [len(s) for s in secrets(one) if isinstance(s, bytes)] == [room]


def test_refused_it_is_the_gates_trouble(one: Dialogue) -> None:
    one.session.renewals.renew(b"token")
    one.flush(answer=False)
    one.reply(REFUSED)
    assert one.session.broken == "it refused the gate's new credentials"
    assert one.closes() == []


def test_any_other_close_is_the_brokers_own(one: Dialogue) -> None:
    one.session.renewals.renew(b"token")
    one.flush(answer=False)
    one.reply(wire.close_method(0, 10, 320, b"CONNECTION_FORCED - bye", 0, 0))
    assert one.closes() == [(0, 320, b"CONNECTION_FORCED - bye", (0, 0))]


def test_an_answer_that_nobody_asked_for(one: Dialogue, own: Dialogue) -> None:
    for dialogue in (one, own):
        dialogue.reply(UPDATED)
        assert (
            dialogue.session.broken == "the broker sent an update-secret-ok that nobody asked for"
        )


# --- the client's, at a broker that knows it ---


@pytest.mark.parametrize("slow", [False, True])
def test_the_clients_secret_goes_to_the_broker(slow: bool) -> None:
    own = Dialogue(Policy(slow=slow), relay_secret=True)
    own.send(open_channel(1) + publish(1) + SECRET + publish(1))
    names = [name for _, name in own.at_broker()]
    assert names == [(20, 10), (60, 40), (10, 70), (60, 40)]
    assert bytes(own.broker.received).count(SECRET) == 1
    assert own.to_client() == [(1, (20, 11)), (0, (10, 71))]


def test_the_answer_is_the_brokers(own: Dialogue) -> None:
    own.send(SECRET + SECRET, answer=False)
    assert (0, (10, 71)) not in own.to_client()
    own.reply(UPDATED)
    assert own.to_client().count((0, (10, 71))) == 1
    own.reply(UPDATED)
    assert own.to_client().count((0, (10, 71))) == 2
    own.reply(UPDATED)
    assert own.session.broken is not None


def test_the_brokers_refusal_is_the_clients_answer(own: Dialogue) -> None:
    own.send(SECRET, answer=False)
    own.reply(REFUSED)
    assert own.closes() == [(0, 530, b"NOT_ALLOWED - New secret was refused", (10, 70))]
    assert own.state is State.BROKER_CLOSING


def test_what_the_gate_refuses_reaches_no_broker(own: Dialogue) -> None:
    own.policy.secret = AmqpError(ReplyCode.NOT_ALLOWED, b"no")
    own.send(SECRET)
    assert secrets(own) == []
    assert own.closes() == [(0, 530, b"NOT_ALLOWED - no", (10, 70))]


def test_consumers_end_before_the_broker_hears_of_the_secret(own: Dialogue) -> None:
    own.send(call(1, (60, 20), 0, b"q", b"t", 0, b""))
    own.policy.denied.add(b"q")
    own.send(SECRET)
    assert own.at_broker()[-2:] == [(1, (60, 30)), (0, (10, 70))]
    assert own.to_client()[-2:] == [(1, (60, 30)), (0, (10, 71))]
