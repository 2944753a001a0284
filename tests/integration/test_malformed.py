"""What breaks the protocol gets the same answer from the gate as from RabbitMQ itself.

Each case goes to the broker directly (as the service account) and through the gate (as a user who
may do everything). All methods that come back and the way the connection ends must be the same.
The expected texts are not written down here: the broker gives them.
"""

from __future__ import annotations

import struct

import pytest

from tests.support.amqp import Client, DeadlineError, LostError
from tests.support.amqp_codec import (
    BODY,
    HEADER,
    HEARTBEAT,
    METHOD,
    encode_header,
    encode_method,
    frame,
    method_frame,
    publish_frames,
)
from tests.support.gate import Gate
from tests.support.rabbit import RabbitNode

QUIET = 0.6
"""Seconds of silence after which a connection counts as still open."""


def ids(class_id: int, method_id: int, rest: bytes = b"") -> bytes:
    return struct.pack(">HH", class_id, method_id) + rest


def declare_with_table(raw: bytes) -> bytes:
    head = encode_method("queue.declare", {"queue": b"a.t", "exclusive": True})[:-4]
    return frame(METHOD, 1, head + struct.pack(">I", len(raw)) + raw)


PUBLISH = method_frame(1, "basic.publish", exchange=b"", routing_key=b"a.none")
ALIVE = method_frame(1, "access.request")

CASES: dict[str, bytes] = {
    "nothing wrong": ALIVE,
    # frames
    "bad frame end": frame(METHOD, 1, encode_method("access.request", {}), end=0),
    "frame type 4": frame(4, 1, b"1234"),
    "frame type 0": frame(0, 1, b""),
    "frame type 65 printable": frame(65, 1, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "short method frame": frame(METHOD, 1, b"\x00\x14"),
    "short header frame": PUBLISH + frame(HEADER, 1, b"\x00\x3c\x00\x00"),
    "heartbeat with a payload": frame(HEARTBEAT, 0, b"x"),
    "heartbeat on a channel": frame(HEARTBEAT, 1, b""),
    "heartbeats amid a publish": PUBLISH
    + frame(HEARTBEAT, 0, b"")
    + frame(HEADER, 1, encode_header(2, {}))
    + frame(HEARTBEAT, 0, b"")
    + frame(BODY, 1, b"ab")
    + ALIVE,
    "header on channel 0": frame(HEADER, 0, encode_header(0, {})),
    "body on channel 0": frame(BODY, 0, b"abc"),
    "frame larger than frame_max": struct.pack(">BHI", METHOD, 1, 200_000),
    "frame of 4 GiB": struct.pack(">BHI", BODY, 1, 0xFFFFFFFF),
    # methods
    "unknown class": frame(METHOD, 1, ids(77, 10)),
    "unknown method": frame(METHOD, 1, ids(50, 99)),
    "unknown method on channel 0": frame(METHOD, 0, ids(10, 99)),
    "trailing bytes": frame(METHOD, 1, encode_method("queue.purge", {"queue": b"q"}) + b"zz"),
    "missing bytes": frame(METHOD, 1, encode_method("queue.purge", {"queue": b"q"})[:-2]),
    "trailing bytes on channel 0": frame(
        METHOD, 0, encode_method("connection.close-ok", {}) + b"z"
    ),
    "short string not UTF-8": method_frame(1, "queue.purge", queue=b"\xff\xfe"),
    "server's method": method_frame(1, "queue.declare-ok", queue=b"q"),
    "server's method with content": method_frame(1, "basic.deliver")
    + frame(HEADER, 1, encode_header(1, {}))
    + frame(BODY, 1, b"x"),
    "connection method on a channel": method_frame(1, "connection.close", reply_code=200),
    "channel method on channel 0": method_frame(0, "queue.purge", queue=b"q"),
    "connection.open again": method_frame(0, "connection.open", virtual_host=b"/"),
    "start-ok again": method_frame(0, "connection.start-ok", mechanism=b"PLAIN"),
    "tune-ok again": method_frame(0, "connection.tune-ok", frame_max=131072),
    "channel.open again": method_frame(1, "channel.open"),
    "close-ok unasked": method_frame(1, "channel.close-ok"),
    "method on an unopened channel": method_frame(7, "queue.purge", queue=b"q"),
    "header on an unopened channel": frame(HEADER, 7, encode_header(0, {})),
    "body on an unopened channel": frame(BODY, 7, b"x"),
    "flow inactive": method_frame(1, "channel.flow", active=False),
    "prefetch size": method_frame(1, "basic.qos", prefetch_size=5),
    "recover without requeue": method_frame(1, "basic.recover", requeue=False),
    "immediate": publish_frames(1, b"", b"a.none", b"x", immediate=True),
    # tables
    "unknown table tag": declare_with_table(b"\x01k?"),
    "table value cut off": declare_with_table(b"\x01kS\x00\x00\x00\x09abc"),
    "nested table too long": declare_with_table(b"\x01kF\x00\x00\x00\x30\x01"),
    "not a number": declare_with_table(b"\x01kd" + b"\x7f\xf8" + bytes(6)),
    "undefined high bits": frame(
        METHOD, 1, encode_method("basic.get", {"queue": b"a.no"})[:-1] + b"\xfe"
    ),
    # content
    "header without a method": frame(HEADER, 1, encode_header(0, {})),
    "body without a method": frame(BODY, 1, b"x"),
    "method where a header is due": PUBLISH + ALIVE,
    "body where a header is due": PUBLISH + frame(BODY, 1, b"x"),
    "header of another class": PUBLISH + frame(HEADER, 1, encode_header(0, {}, class_id=50)),
    "header with a weight": PUBLISH + frame(HEADER, 1, encode_header(0, {}, weight=1)),
    "method where a body is due": PUBLISH + frame(HEADER, 1, encode_header(5, {})) + ALIVE,
    "header where a body is due": PUBLISH + frame(HEADER, 1, encode_header(5, {})) * 2,
    "empty bodies in between": PUBLISH
    + frame(HEADER, 1, encode_header(2, {}))
    + frame(BODY, 1, b"") * 3
    + frame(BODY, 1, b"a")
    + frame(BODY, 1, b"")
    + frame(BODY, 1, b"b")
    + ALIVE,
    "properties cut off": PUBLISH
    + frame(HEADER, 1, encode_header(0, {"user_id": "abc"})[:-2])
    + ALIVE,
    "bytes after the properties": PUBLISH + frame(HEADER, 1, encode_header(0, {}) + b"zz") + ALIVE,
    "bad header table": PUBLISH
    + frame(HEADER, 1, struct.pack(">HHQH", 60, 0, 0, 1 << 13) + b"\0\0\0\x03\x01k?")
    + ALIVE,
    "continuation flag": PUBLISH + frame(HEADER, 1, struct.pack(">HHQH", 60, 0, 0, 1)) + ALIVE,
    # channels that close
    "after a refusal: frames are still checked": method_frame(1, "queue.purge", queue=b"a.none")
    + publish_frames(1, b"", b"a.none", b"dropped")
    + frame(BODY, 1, b"stray"),
    "open while closing": method_frame(1, "queue.purge", queue=b"a.none")
    + method_frame(1, "channel.open"),
    "closes cross": method_frame(1, "queue.purge", queue=b"a.none")
    + method_frame(1, "channel.close", reply_code=200),
    "close, then more": method_frame(1, "channel.close", reply_code=200)
    + method_frame(1, "queue.purge", queue=b"a.none"),
    "connection.close, then more": method_frame(0, "connection.close", reply_code=200) + ALIVE,
}

# Where 4.3.5, whose answers the gate gives, differs from the installed 3.10.8 (sizes of
# content since 4.2.6 and of UTF-8 since 4.3.0), the answer is written down: text and method ids
# of a connection.close with 501.
NEWER: dict[str, tuple[bytes, bytes, tuple[int, int]]] = {
    "body longer than announced": (
        PUBLISH + frame(HEADER, 1, encode_header(1, {})) + frame(BODY, 1, b"abc"),
        b"FRAME_ERROR - content body frame exceeds remaining content size",
        (60, 40),
    ),
    "content of 513 MiB": (
        PUBLISH + frame(HEADER, 1, encode_header(513 << 20, {})),
        b"FRAME_ERROR - content body size 537919488 exceeds maximum allowed size 536870912",
        (60, 40),
    ),
    "surrogates in a short string": (
        method_frame(1, "queue.purge", queue=b"\xed\xa0\x80"),
        b"FRAME_ERROR - Malformed UTF-8 in shortstr",
        (0, 0),
    ),
}


def answers(port: int, username: str, password: str, data: bytes) -> list[str]:
    """All methods that came, then how it ended: ``closed`` or ``open``."""
    client = Client.login(port, username, password)
    heard = []
    try:
        client.open_channel(1)
        client.send_raw(data)
        while True:
            channel, method = client.read(QUIET)
            heard.append(f"{channel} {method}")
            if method.name == "connection.close":
                client.send(0, "connection.close-ok")
                client.at_eof(8)
                return heard
            if method.name == "connection.close-ok":
                return heard  # who ends the TCP connection first is free now
    except LostError:
        return [*heard, "closed"]
    except DeadlineError:
        return [*heard, "open"]
    finally:
        client.abort()


@pytest.mark.parametrize("case", CASES)
def test_as_rabbitmq(broker: RabbitNode, gate: Gate, case: str) -> None:
    native = answers(broker.port, "gatekeeper", "s3rvice", CASES[case])
    assert answers(gate.port, "admin", "admin-pw", CASES[case]) == native


@pytest.mark.parametrize("case", NEWER)
def test_as_rabbitmq_4_3_5(gate: Gate, case: str) -> None:
    data, text, (class_id, method_id) = NEWER[case]
    client = gate.login("admin", "admin-pw")
    client.open_channel(1)
    client.send_raw(data)
    close = client.expect("connection.close")
    client.abort()
    assert close.arguments == {
        "reply_code": 501,
        "reply_text": text,
        "class_id": class_id,
        "method_id": method_id,
    }


@pytest.mark.parametrize("case", ["nothing wrong", "empty bodies in between", "continuation flag"])
def test_byte_by_byte(gate: Gate, case: str) -> None:
    """However the bytes are cut, the answer is the same."""
    whole = answers(gate.port, "admin", "admin-pw", CASES[case])
    client = gate.login("admin", "admin-pw")
    client.open_channel(1)
    for at in range(len(CASES[case])):
        client.send_raw(CASES[case][at : at + 1])
    heard = []
    try:
        while True:
            channel, method = client.read(QUIET)
            heard.append(f"{channel} {method}")
    except DeadlineError:
        heard.append("open")
    finally:
        client.abort()
    assert heard == whole
