"""The handshake towards a broker: the way through, every refusal, a hostile broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp import frame as pamqp_frame

from gatekeeper.model import Secret
from gatekeeper.protocol import wire
from gatekeeper.protocol.events import (
    Broken,
    Learned,
    Opened,
    Refused,
    Send,
    Stage,
    Tuned,
    UpstreamEvent,
)
from gatekeeper.protocol.upstream import (
    BUFFER_LIMIT,
    FRAME_CAP,
    UpstreamHandshake,
)

WANTED = (2047, 131072, 60)
SERVER = wire.table([(b"product", ("S", b"RabbitMQ")), (b"version", ("S", b"4.3.5"))])
HEARTBEAT = wire.frame(8, 0, b"")
OPEN_OK = wire.method(0, 10, 41, b"\0")
CLOSE_OK = wire.method(0, 10, 51)

Feed = Callable[[UpstreamHandshake, bytes], list[UpstreamEvent]]


def make(
    mechanism: Any = "PLAIN",
    username: bytes = b"service",
    password: bytes = b"swordfish",
    vhost: bytes = b"/",
    wanted: tuple[int, int, int] | None = WANTED,
    eager: bool = False,
) -> UpstreamHandshake:
    return UpstreamHandshake(
        eager=eager,
        mechanism=mechanism,
        username=username,
        password=Secret(password),
        vhost=vhost,
        client_properties=b"\1kV",
        wanted=wanted,
    )


def start(
    properties: bytes = SERVER,
    mechanisms: bytes = b"AMQPLAIN PLAIN",
    version: bytes = b"\0\x09",
) -> bytes:
    args = version + wire.longstr(properties) + wire.longstr(mechanisms) + wire.longstr(b"en_US")
    return wire.method(0, 10, 10, args)


def tune(channel_max: int = 2047, frame_max: int = 131072, heartbeat: int = 60) -> bytes:
    return pamqp_frame.marshal(commands.Connection.Tune(channel_max, frame_max, heartbeat), 0)


def drain(machine: UpstreamHandshake) -> list[UpstreamEvent]:
    events = []
    while (event := machine.next_event()) is not None:
        events.append(event)
    return events


def feed_whole(machine: UpstreamHandshake, data: bytes) -> list[UpstreamEvent]:
    machine.feed(data)
    return drain(machine)


def feed_by_bytes(machine: UpstreamHandshake, data: bytes) -> list[UpstreamEvent]:
    events = []
    for octet in data:
        machine.feed(bytes((octet,)))
        events += drain(machine)
    return events


@pytest.fixture(params=[feed_whole, feed_by_bytes], ids=["whole", "by bytes"])
def feed(request: pytest.FixtureRequest) -> Feed:
    chosen: Feed = request.param
    return chosen


def at(stage: Stage) -> UpstreamHandshake:
    machine = make()
    if stage in (Stage.LOGIN, Stage.OPEN):
        feed_whole(machine, start())
    if stage is Stage.OPEN:
        feed_whole(machine, tune())
    assert machine.stage is stage
    return machine


# --- The way through ------------------------------------------------------------------------


def test_the_way_through(feed: Feed) -> None:
    machine = make(vhost=b"v\xff\n")
    assert machine.start() == b"AMQP\0\0\x09\1"
    learned, start_ok = feed(machine, start() + HEARTBEAT)
    assert learned == Learned(SERVER, ("AMQPLAIN", "PLAIN"), b"RabbitMQ", b"4.3.5")
    assert start_ok == Send(
        wire.method(
            0,
            10,
            11,
            wire.longstr(b"\1kV")
            + wire.shortstr(b"PLAIN")
            + wire.longstr(b"\0service\0swordfish")
            + wire.shortstr(b"en_US"),
        )
    )
    tuned, reply = feed(machine, tune(0, 0, 600))
    assert tuned == Tuned(0, 0, 600)
    assert isinstance(reply, Send)
    size, _, tune_ok = pamqp_frame.unmarshal(reply.data)
    assert dict(tune_ok) == {"channel_max": 2047, "frame_max": 131072, "heartbeat": 60}
    assert reply.data[size:] == wire.method(0, 10, 40, b"\3v\xff\n\0\0")
    assert machine.wants_data
    assert feed(machine, HEARTBEAT + OPEN_OK + b"behind") == [Opened()]
    assert not machine.wants_data
    machine.feed(b"more")
    assert machine.next_event() is None
    assert machine.leftover() == b"behindmore"
    assert machine.leftover() == b""


def test_amqplain() -> None:
    machine = make("AMQPLAIN", b"u\0", b"p\xff")
    reply = feed_whole(machine, start())[1]
    assert isinstance(reply, Send)
    response = b"\5LOGINS\0\0\0\2u\0\x08PASSWORDS\0\0\0\2p\xff"
    assert wire.shortstr(b"AMQPLAIN") + wire.longstr(response) in reply.data


def test_external() -> None:
    """The certificate says who it is: not a byte of the account goes out."""
    machine = make("EXTERNAL", b"service", b"swordfish")
    reply = feed_whole(machine, start(mechanisms=b"EXTERNAL PLAIN"))[1]
    assert isinstance(reply, Send)
    assert wire.shortstr(b"EXTERNAL") + wire.longstr(b"") + wire.shortstr(b"en_US") in reply.data
    assert b"swordfish" not in reply.data


@pytest.mark.parametrize("offered", [(2047, 131072, 60), (0, 0, 0), (1, 4096, 1)])
def test_a_probe_takes_what_is_offered(offered: tuple[int, int, int]) -> None:
    machine = make(wanted=None)
    feed_whole(machine, start())
    tuned, reply = feed_whole(machine, tune(*offered))
    assert tuned == Tuned(*offered)
    assert isinstance(reply, Send)
    assert tuple(dict(pamqp_frame.unmarshal(reply.data)[2]).values()) == offered


@pytest.mark.parametrize(
    ("properties", "product", "version"),
    [
        (b"", b"", b""),
        (wire.table([(b"product", ("x", b"LavinMQ")), (b"version", ("I", 2))]), b"LavinMQ", b""),
        (wire.table([(b"version", ("S", b"1")), (b"version", ("S", b"2"))]), b"", b"1"),
    ],
)
def test_what_is_learned(properties: bytes, product: bytes, version: bytes) -> None:
    learned = feed_whole(make(), start(properties))[0]
    assert learned == Learned(properties, ("AMQPLAIN", "PLAIN"), product, version)


# --- Limits ---------------------------------------------------------------------------------

# What the client was promised, what the broker offers (channel_max, frame_max): is it enough?
LIMITS = [
    ((2047, 131072), (2047, 131072), None),
    ((10, 8192), (2047, 131072), None),
    ((0, 0), (0, 0), None),
    ((65535, 8192), (0, 0), None),
    ((2047, 131072), (2046, 131072), "the broker allows channel_max 2046, the client was"),
    ((2047, 131072), (2047, 131071), "the broker allows frame_max 131071, the client was"),
    ((0, 131072), (2047, 131072), "the client was promised no limit: lower channel_max here to"),
    ((2047, 0), (2047, 131072), "the client was promised no limit: lower frame_max here to 131"),
]


@pytest.mark.parametrize(("wanted", "offered", "fault"), LIMITS)
def test_limits(
    feed: Feed, wanted: tuple[int, int], offered: tuple[int, int], fault: str | None
) -> None:
    machine = make(wanted=(*wanted, 0))
    feed(machine, start())
    tuned, outcome = feed(machine, tune(*offered, 60))
    assert tuned == Tuned(*offered, 60)
    if fault is None:
        assert isinstance(outcome, Send)
        assert machine.stage is Stage.OPEN
    else:
        assert isinstance(outcome, Broken)
        assert fault in outcome.reason
        assert not machine.wants_data


# --- Refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [Stage.START, Stage.LOGIN, Stage.OPEN])
def test_refused(feed: Feed, stage: Stage) -> None:
    machine = at(stage)
    close = wire.close_method(0, 10, 403, b"ACCESS_REFUSED - \xff", 10, 40)
    events = feed(machine, HEARTBEAT + close + b"dropped")
    assert events == [Send(CLOSE_OK), Refused(403, b"ACCESS_REFUSED - \xff", 10, 40, stage)]
    assert not machine.wants_data
    assert machine.leftover() == b""


# --- Broken ---------------------------------------------------------------------------------

STAGES = [Stage.START, Stage.LOGIN, Stage.OPEN]
EXPECTED = {Stage.START: start(), Stage.LOGIN: tune(), Stage.OPEN: OPEN_OK}

BROKEN = [
    (wire.method(1, 10, 10), "frame on channel 1 during the handshake"),
    (wire.frame(8, 1, b""), "frame on channel 1 during the handshake"),
    (wire.frame(2, 0, bytes(14)), "unexpected frame of type 2 during the handshake"),
    (wire.frame(3, 0, b""), "unexpected frame of type 3 during the handshake"),
    (wire.frame(8, 0, b"x"), "unexpected frame of type 8 during the handshake"),
    (wire.frame(1, 0, b"\0\x0a\0"), "unexpected frame of type 1 during the handshake"),
    (wire.frame(7, 0, b""), "unexpected frame of type 7 during the handshake"),
    (HEARTBEAT[:-1] + b"\0", "malformed frame of type 8: {invalid_frame_end_marker,0}"),
    (b"\1\0\0\x7f\0\0\0", "malformed frame of type 1: {frame_too_large,2130706432,131064}"),
    (wire.method(0, 10, 20, bytes(4)), "unexpected connection.secure at stage "),
    (wire.method(0, 10, 40, b"\0\0\0"), "unexpected connection.open at stage "),
    (wire.method(0, 10, 60, b"\0"), "unexpected connection.blocked at stage "),
    (wire.method(0, 10, 51), "unexpected connection.close-ok at stage "),
    (wire.method(0, 60, 60), "unexpected basic.deliver at stage "),
    (wire.method(0, 99, 1), "unexpected 99.1 at stage "),
    (wire.method(0, 10, 50), "malformed connection.close"),
    (wire.method(0, 10, 50, bytes(8)), "malformed connection.close"),
    (wire.close_method(0, 10, 403, b"x", 0, 0)[:-1] + b"\0", "{invalid_frame_end_marker,0}"),
]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("data", "reason"), BROKEN)
def test_broken(feed: Feed, stage: Stage, data: bytes, reason: str) -> None:
    machine = at(stage)
    [broken] = feed(machine, data + EXPECTED[stage])
    assert isinstance(broken, Broken)
    assert reason in broken.reason
    assert feed(machine, EXPECTED[stage]) == []
    assert machine.leftover() == b""


@pytest.mark.parametrize("stage", STAGES)
def test_out_of_order(stage: Stage) -> None:
    for other in STAGES:
        if other is not stage:
            [broken] = feed_whole(at(stage), EXPECTED[other])
            assert isinstance(broken, Broken)
            assert broken.reason.endswith(f"at stage {stage}")


@pytest.mark.parametrize("stage", STAGES)
def test_trailing_and_missing_bytes(feed: Feed, stage: Stage) -> None:
    payload = EXPECTED[stage][7:-1]
    for wrong in (payload + b"\0", payload[:-1]):
        [broken] = feed(at(stage), wire.frame(1, 0, wrong))
        assert isinstance(broken, Broken)
        assert broken.reason.startswith("malformed connection.")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"AMQP\0\0\x08\0", "the broker answered with protocol header <<0,0,8,0>>"),
        (b"AMQP\3\1\0\0", "the broker answered with protocol header <<3,1,0,0>>"),
        (start(version=b"\x08\0"), "the broker speaks AMQP 8-0, not 0-9-1"),
        (start(properties=b"\1kQ"), "malformed connection.start"),
    ],
)
def test_not_our_protocol(feed: Feed, data: bytes, reason: str) -> None:
    [broken] = feed(make(), data + b"\0")
    assert broken == Broken(reason)


def test_a_header_after_the_start_is_a_bad_frame() -> None:
    [broken] = feed_whole(at(Stage.LOGIN), b"AMQP\0\0\x09\1")
    assert isinstance(broken, Broken)
    assert "malformed frame of type 65" in broken.reason


@pytest.mark.parametrize(
    ("mechanisms", "shown"),
    [
        (b"", "<<>>"),
        (b"EXTERNAL plain", '<<"EXTERNAL plain">>'),
        (b"AMQPLAIN\xff\0", "<<65,77,81,80,76,65,73,78,255,0>>"),
        (b"X" * 1000, '<<"' + "X" * 200 + '">>'),
    ],
)
def test_mechanism_not_offered(mechanisms: bytes, shown: str) -> None:
    learned, broken = feed_whole(make(), start(mechanisms=mechanisms))
    assert isinstance(learned, Learned)
    assert broken == Broken(f"the broker does not offer PLAIN, but {shown}")


@pytest.mark.parametrize(("username", "password"), [(b"a\0b", b"c"), (b"a", b"b\0")])
def test_plain_cannot_carry_nul(username: bytes, password: bytes) -> None:
    # Another broker could read user "a", password "b" out of what one client calls "a NUL b".
    _, broken = feed_whole(make("PLAIN", username, password), start())
    assert broken == Broken("user name or password holds a NUL octet, which PLAIN cannot carry")


def test_bounds() -> None:
    largest = start(properties=wire.table([(b"pad", ("S", bytes(FRAME_CAP - 46)))]))
    assert len(largest) == FRAME_CAP + 8
    assert isinstance(feed_whole(make(), largest)[0], Learned)

    machine = at(Stage.OPEN)
    feed_whole(machine, OPEN_OK)
    machine.feed(bytes(BUFFER_LIMIT))
    assert machine.next_event() is None
    machine.feed(b"\0")
    assert drain(machine) == [Broken(f"more than {BUFFER_LIMIT} bytes during the handshake")]
    machine.feed(bytes(10))
    assert machine.leftover() == b""


def test_no_secret_is_shown() -> None:
    machine = make("PLAIN", b"user\0", b"swordfish")
    assert "swordfish" not in repr(feed_whole(machine, start())) + repr(vars(machine))


# --- Any bytes ------------------------------------------------------------------------------

pieces = st.one_of(
    st.sampled_from([*EXPECTED.values(), HEARTBEAT, *(data for data, _ in BROKEN)]),
    st.binary(max_size=12),
    st.builds(wire.frame, st.integers(0, 9), st.sampled_from([0, 0, 1]), st.binary(max_size=30)),
    st.builds(
        lambda ids, args: wire.method(0, *ids, args),
        st.sampled_from([(10, 10), (10, 30), (10, 41), (10, 50)]),
        st.binary(max_size=30),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(STAGES), st.lists(pieces, max_size=6))
def test_any_bytes(stage: Stage, script: list[bytes]) -> None:
    data = b"".join(script)
    machine = at(stage)
    events = feed_whole(machine, data)
    ends = [event for event in events if isinstance(event, Opened | Refused | Broken)]
    assert len(ends) <= 1
    assert bool(ends) == (not machine.wants_data)
    assert not ends or events[-1] is ends[0]
    assert feed_by_bytes(at(stage), data) == events


def test_eager_sends_the_same_at_once(feed: Feed) -> None:
    """Against a known broker: the same bytes, before it has said anything; the same checks."""
    stream = start() + tune() + OPEN_OK
    patient, eager = make(), make(eager=True)
    events = feed(patient, stream)
    sent = b"".join(event.data for event in events if isinstance(event, Send))
    assert eager.start() == patient.start() + sent
    assert feed(eager, stream) == [event for event in events if not isinstance(event, Send)]


def test_eager_needs_limits_and_a_carriable_password() -> None:
    header = make().start()
    assert make(eager=True, wanted=None).start() == header
    assert make(eager=True, username=b"a\0b").start() == header


def test_eager_still_checks_what_the_broker_allows(feed: Feed) -> None:
    machine = make(eager=True)
    machine.start()
    assert isinstance(feed(machine, start() + tune(frame_max=8192))[-1], Broken)
