"""A client's bytes, and a handshake brought to a state, for the tests of the handshake."""

from __future__ import annotations

from collections.abc import Callable

from pamqp import commands
from pamqp import frame as pamqp_frame

from gatekeeper.protocol import wire
from gatekeeper.protocol.events import Event, State
from gatekeeper.protocol.handshake import ClientHandshake

HEADER = b"AMQP\0\0\x09\1"
SERVER_PROPERTIES = wire.table([(b"product", ("S", b"RabbitMQ"))])
TELL_ME = wire.table([(b"capabilities", ("F", {b"authentication_failure_close": ("t", True)}))])
CLOSE = wire.close_method(0, 10, 200, b"bye", 0, 0)
CLOSE_OK = wire.method(0, 10, 51)
HEARTBEAT = wire.frame(8, 0, b"")
TUNE_OK = pamqp_frame.marshal(commands.Connection.TuneOk(100, 131072, 20), 0)

Feed = Callable[[ClientHandshake, bytes], list[Event]]


def make(
    frame_max: int = 131072, channel_max: int = 2047, initial_frame_max: int = 8192
) -> ClientHandshake:
    return ClientHandshake(
        server_properties=SERVER_PROPERTIES,
        mechanisms=("PLAIN", "AMQPLAIN", "RABBIT-CR-DEMO"),
        channel_max=channel_max,
        frame_max=frame_max,
        heartbeat=60,
        initial_frame_max=initial_frame_max,
    )


def start_ok(
    properties: bytes = TELL_ME,
    mechanism: bytes = b"PLAIN",
    response: bytes = b"\0guest\0swordfish",
    locale: bytes = b"en_US",
) -> bytes:
    args = wire.longstr(properties) + wire.shortstr(mechanism)
    return wire.method(0, 10, 11, args + wire.longstr(response) + wire.shortstr(locale))


def open_vhost(vhost: bytes = b"/") -> bytes:
    return wire.method(0, 10, 40, wire.shortstr(vhost) + wire.shortstr(b"") + b"\0")


def tune_ok(channel_max: int, frame_max: int, heartbeat: int) -> bytes:
    return pamqp_frame.marshal(commands.Connection.TuneOk(channel_max, frame_max, heartbeat), 0)


def drain(machine: ClientHandshake) -> list[Event]:
    events = []
    while (event := machine.next_event()) is not None:
        events.append(event)
    return events


def feed_whole(machine: ClientHandshake, data: bytes) -> list[Event]:
    machine.feed(data)
    return drain(machine)


def feed_by_bytes(machine: ClientHandshake, data: bytes) -> list[Event]:
    events = []
    for octet in data:
        machine.feed(bytes((octet,)))
        events += drain(machine)
    return events


def at(state: State, properties: bytes = TELL_ME, heartbeat: int = 20) -> ClientHandshake:
    """A handshake that has come to ``state``."""
    machine = make()
    if state is State.PRE_INIT:
        return machine
    feed_whole(machine, HEADER)
    if state is State.SECURING:
        feed_whole(machine, start_ok(properties, b"RABBIT-CR-DEMO", b"guest"))
    elif state is not State.STARTING:
        feed_whole(machine, start_ok(properties))
        machine.accept_login()
        if state is not State.TUNING:
            feed_whole(machine, tune_ok(100, 131072, heartbeat))
    assert machine.state is state
    return machine


# --- What is wrong, and where -----------------------------------------------------------------

QUEUE_DECLARE = pamqp_frame.marshal(commands.Queue.Declare(queue="q"), 0)
UNEXPECTED = b"UNEXPECTED_FRAME - type "
UNKNOWN = b"FRAME_ERROR - type "
STATE = b"CHANNEL_ERROR - unexpected method in connection state opening"

# what arrives -> in opening: code, text, ids, channel
ERRORS = {
    "type 4": (
        wire.frame(4, 0, b"abc"),
        501,
        UNKNOWN + b'4, all octets = <<"abc">>: unknown_frame',
        (0, 0),
        0,
    ),
    "type 0": (
        wire.frame(0, 0, bytes(17)),
        501,
        UNKNOWN + b"0, first 16 octets = <<" + b"0," * 15 + b"0>>: unknown_frame",
        (0, 0),
        0,
    ),
    "short method": (
        wire.frame(1, 0, b"\0\x0a\0"),
        501,
        UNKNOWN + b"1, all octets = <<0,10,0>>: unknown_frame",
        (0, 0),
        0,
    ),
    "short header": (
        wire.frame(2, 0, bytes(11)),
        501,
        UNKNOWN + b"2, all octets = <<0,0,0,0,0,0,0,0,0,0,0>>: unknown_frame",
        (0, 0),
        0,
    ),
    "full heartbeat": (
        wire.frame(8, 0, b"x"),
        501,
        UNKNOWN + b'8, all octets = <<"x">>: unknown_frame',
        (0, 0),
        0,
    ),
    "header on 0": (
        wire.frame(2, 0, bytes(12)),
        505,
        UNEXPECTED + b"2, all octets = <<0,0,0,0,0,0,0,0,0,0,0,0>>",
        (0, 0),
        0,
    ),
    "body on 0": (wire.frame(3, 0, b""), 505, UNEXPECTED + b"3, all octets = <<>>", (0, 0), 0),
    "heartbeat on 1": (wire.frame(8, 1, b""), 505, UNEXPECTED + b"8, all octets = <<>>", (0, 0), 1),
    "channel.open": (
        wire.method(9, 20, 10, b"\0"),
        505,
        UNEXPECTED + b"1, all octets = <<0,20,0,10,0>>",
        (0, 0),
        9,
    ),
    "unknown on 1": (
        wire.method(1, 99, 9),
        505,
        UNEXPECTED + b"1, all octets = <<0,99,0,9>>",
        (0, 0),
        1,
    ),
    "queue.declare on 0": (QUEUE_DECLARE, 504, STATE, (50, 10), 0),
    "close": (CLOSE, 504, STATE, (10, 50), 0),
    "close-ok": (CLOSE_OK, 504, STATE, (10, 51), 0),
    "update-secret": (wire.method(0, 10, 70, bytes(5)), 504, STATE, (10, 70), 0),
    "server's method": (wire.method(0, 10, 41, b"\0"), 504, STATE, (10, 41), 0),
    "not UTF-8": (
        open_vhost(b"\xff"),
        501,
        b"FRAME_ERROR - Malformed UTF-8 in shortstr",
        (10, 40),
        0,
    ),
}

LEGAL = {
    State.STARTING: (10, 11),
    State.SECURING: (10, 21),
    State.TUNING: (10, 31),
    State.OPENING: (10, 40),
}

BAD_END = open_vhost()[:-1] + b"\xcf"
