"""Errors of a client by state, lost framing, bounds and misuse: as RabbitMQ shows them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gatekeeper.errors import ReplyCode
from gatekeeper.protocol import handshake, wire
from gatekeeper.protocol.events import (
    Closed,
    Fail,
    Login,
    LogKind,
    Send,
    State,
)
from gatekeeper.protocol.handshake import BUFFER_LIMIT, ClientHandshake
from tests.protocol.client_side import (
    BAD_END,
    CLOSE_OK,
    ERRORS,
    HEADER,
    HEARTBEAT,
    LEGAL,
    TUNE_OK,
    Feed,
    at,
    feed_by_bytes,
    feed_whole,
    make,
    open_vhost,
    start_ok,
)


@pytest.fixture(params=[feed_whole, feed_by_bytes], ids=["whole", "by bytes"])
def feed(request: pytest.FixtureRequest) -> Feed:
    chosen: Feed = request.param
    return chosen


# --- Errors by state ------------------------------------------------------------------------

SILENT_STATES = [State.STARTING, State.SECURING, State.TUNING]


@pytest.mark.parametrize("name", ERRORS)
def test_errors_in_opening(feed: Feed, name: str) -> None:
    data, code, text, ids, channel = ERRORS[name]
    [fail] = feed(at(State.OPENING), data)
    assert isinstance(fail, Fail)
    assert fail.reply == wire.close_method(0, 10, code, text, *ids)
    assert (fail.silent_delay, fail.await_close_ok, fail.grace) == (0.0, True, 20.0)
    assert (fail.log_kind, fail.state) == (LogKind.OPENING_ERROR, State.OPENING)
    assert fail.channel == channel
    symbol = ReplyCode(code).name.lower()
    assert fail.log_text.startswith(f" {{handshake_error,opening,\n {{amqp_error,{symbol},")


@pytest.mark.parametrize("state", SILENT_STATES)
@pytest.mark.parametrize("name", ERRORS)
def test_errors_before_opening(feed: Feed, name: str, state: State) -> None:
    data, code, _, _, channel = ERRORS[name]
    [fail] = feed(at(state), data + start_ok())
    assert isinstance(fail, Fail)
    assert (fail.reply, fail.silent_delay, fail.await_close_ok) == (None, 3.0, False)
    assert (fail.log_kind, fail.state) == (LogKind.HANDSHAKE_ERROR, state)
    assert fail.channel == channel
    symbol = ReplyCode(code).name.lower()
    assert fail.log_text.startswith(f"{{handshake_error,{state},{{amqp_error,{symbol},")


@pytest.mark.parametrize("name", ERRORS)
def test_errors_while_closing_are_ignored(feed: Feed, name: str) -> None:
    machine = at(State.OPENING)
    feed(machine, open_vhost())
    machine.refuse_open(ReplyCode.NOT_ALLOWED, b"no")
    data = b"" if name in ("close", "close-ok") else ERRORS[name][0]
    malformed = wire.method(0, 10, 40, b"")
    assert feed(machine, data + malformed + HEARTBEAT + CLOSE_OK) == [Closed()]


@pytest.mark.parametrize("state", LEGAL)
def test_every_other_method_is_unexpected(state: State) -> None:
    legal = {method for at_state, method in handshake.TRANSITIONS if at_state is state}
    assert len(legal) == 1
    samples = {
        (10, 11): start_ok(),
        (10, 21): wire.method(0, 10, 21, bytes(4)),
        (10, 31): TUNE_OK,
        (10, 40): open_vhost(),
    }
    for ids, sample in samples.items():
        if ids == LEGAL[state]:
            continue
        [fail] = feed_whole(at(state), sample)
        assert isinstance(fail, Fail)
        assert f"unexpected method in connection state {state}" in fail.log_text
        assert (fail.reply is None) == (state is not State.OPENING)


@pytest.mark.parametrize("state", LEGAL)
@pytest.mark.parametrize("ids", [(10, 99), (0, 0), (10, 12), (65535, 65535)])
def test_unknown_methods_end_at_once(feed: Feed, state: State, ids: tuple[int, int]) -> None:
    [fail] = feed(at(state), wire.method(0, *ids, b"whatever") + CLOSE_OK)
    text = f"{{handshake_error,{state},{{unknown_method_id,{{{ids[0]},{ids[1]}}}}}}}"
    assert fail == Fail(None, 0.0, False, 0.0, LogKind.HANDSHAKE_ERROR, text, state)


def test_an_unknown_method_ends_the_closing_dialogue() -> None:
    machine = at(State.OPENING)
    feed_whole(machine, open_vhost())
    machine.refuse_open(ReplyCode.NOT_ALLOWED, b"no")
    [fail] = feed_whole(machine, wire.method(0, 10, 99))
    assert isinstance(fail, Fail)
    assert (fail.reply, fail.silent_delay, fail.state) == (None, 0.0, State.CLOSED)


@pytest.mark.parametrize("state", LEGAL)
def test_malformed_arguments_are_silent_in_every_state(feed: Feed, state: State) -> None:
    ids = LEGAL[state]
    for args in (b"", b"\0", bytes(64)):
        [fail] = feed(at(state), wire.method(0, *ids, args))
        assert isinstance(fail, Fail)
        assert (fail.reply, fail.silent_delay) == (None, 3.0)
        assert "cannot_decode" in fail.log_text


# --- Framing --------------------------------------------------------------------------------


def test_wrong_end_marker_in_opening(feed: Feed) -> None:
    [fail] = feed(at(State.OPENING), BAD_END + CLOSE_OK)
    text = (
        b"FRAME_ERROR - type 1, all octets = <<0,10,0,40,1,47,0,0>>: {invalid_frame_end_marker,207}"
    )
    assert isinstance(fail, Fail)
    assert fail.reply == wire.close_method(0, 10, 501, text, 0, 0)
    assert (fail.silent_delay, fail.await_close_ok, fail.grace) == (3.0, False, 0.0)


def test_too_large_in_opening(feed: Feed) -> None:
    [fail] = feed(at(State.OPENING), b"\1\0\0\0\2\0\1")
    text = b"FRAME_ERROR - type 1, all octets = <<>>: {frame_too_large,131073,131064}"
    assert isinstance(fail, Fail)
    assert fail.reply == wire.close_method(0, 10, 501, text, 0, 0)
    assert (fail.silent_delay, fail.await_close_ok) == (3.0, False)


@pytest.mark.parametrize("state", SILENT_STATES)
@pytest.mark.parametrize("data", [BAD_END, b"\1\0\0\0\0\x20\1"])
def test_framing_lost_before_opening(feed: Feed, state: State, data: bytes) -> None:
    [fail] = feed(at(state), data)
    assert isinstance(fail, Fail)
    assert (fail.reply, fail.silent_delay, fail.state) == (None, 3.0, state)
    assert ("invalid_frame_end_marker,207" if data is BAD_END else "frame_too_large,8193,8184") in (
        fail.log_text
    )


def test_framing_lost_while_closing() -> None:
    machine = at(State.OPENING)
    feed_whole(machine, open_vhost())
    machine.refuse_open(ReplyCode.NOT_ALLOWED, b"no")
    [fail] = feed_whole(machine, BAD_END)
    assert isinstance(fail, Fail)
    assert (fail.reply, fail.silent_delay, fail.await_close_ok) == (None, 3.0, False)


@pytest.mark.parametrize("limit", [4096, 8192])
def test_a_payload_of_exactly_the_frame_limit_passes(feed: Feed, limit: int) -> None:
    room = limit - len(start_ok(properties=wire.table([(b"pad", ("S", b""))]))) + 8
    padded = start_ok(properties=wire.table([(b"pad", ("S", bytes(room)))]))
    assert len(padded) == limit + 8
    machine = make(initial_frame_max=limit)
    assert [type(e) for e in feed(machine, HEADER + padded)] == [Send, Login]
    longer = start_ok(properties=wire.table([(b"pad", ("S", bytes(room + 1)))]))
    machine = make(initial_frame_max=limit)
    [_, fail] = feed(machine, HEADER + longer[:7])
    assert isinstance(fail, Fail)
    assert f"frame_too_large,{limit + 1},{limit - 8}" in fail.log_text


def test_no_frame_limit_is_still_a_limit() -> None:
    machine = make(initial_frame_max=0)
    [_, fail] = feed_whole(machine, HEADER + b"\1\0\0\x7f\xff\xff\xff")
    assert isinstance(fail, Fail)
    assert "frame_too_large" in fail.log_text


@pytest.mark.parametrize("state", [State.STARTING, State.SECURING])
def test_no_octets_of_a_broken_frame_in_the_log_before_login(state: State) -> None:
    for data in (b"\1\0\0\0\0\0\x09swordfish\0", wire.frame(5, 0, b"swordfish")):
        [fail] = feed_whole(at(state), data)
        assert isinstance(fail, Fail)
        assert "9 octets, hidden" in fail.log_text
        assert "sword" not in fail.log_text


# --- Bounds and misuse ----------------------------------------------------------------------


def test_pipelining_is_bounded() -> None:
    machine = at(State.STARTING)
    feed_whole(machine, start_ok())
    machine.feed(bytes(BUFFER_LIMIT))
    assert machine.next_event() is None
    machine.feed(b"\0")
    fail = machine.next_event()
    assert isinstance(fail, Fail)
    assert (fail.reply, fail.silent_delay) == (None, 0.0)
    assert len(machine._buffer) == 0
    machine.feed(bytes(BUFFER_LIMIT))
    assert len(machine._buffer) == 0
    # The login that was being decided is void.
    with pytest.raises(RuntimeError):
        machine.accept_login()


def test_many_small_frames_are_cheap() -> None:
    machine = at(State.STARTING)
    machine.feed(HEARTBEAT * (BUFFER_LIMIT // 8))
    assert machine.next_event() is None
    assert len(machine._buffer) == 0


DECISIONS: list[Callable[[ClientHandshake], object]] = [
    ClientHandshake.accept_login,
    ClientHandshake.refuse_login,
    ClientHandshake.accept_open,
    lambda machine: machine.refuse_open(ReplyCode.NOT_ALLOWED, b"no"),
    ClientHandshake.leftover,
]


@pytest.mark.parametrize("state", [State.PRE_INIT, *LEGAL])
@pytest.mark.parametrize("decide", DECISIONS)
def test_a_decision_out_of_turn(state: State, decide: Callable[[ClientHandshake], object]) -> None:
    machine = at(state)
    with pytest.raises(RuntimeError):
        decide(machine)
    assert machine.state is state


def test_a_decision_counts_once() -> None:
    machine = at(State.STARTING)
    feed_whole(machine, start_ok())
    with pytest.raises(RuntimeError, match="no open to decide in state starting"):
        machine.accept_open()
    machine.accept_login()
    with pytest.raises(RuntimeError, match="no login to decide in state tuning"):
        machine.accept_login()
