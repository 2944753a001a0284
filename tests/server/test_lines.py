"""The wording of every log line, against RabbitMQ 4.3's (semantics.md section 6)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from gatekeeper.errors import AmqpError, ReplyCode
from gatekeeper.model import Peer
from gatekeeper.protocol.events import Fail, LogKind, State
from gatekeeper.server.lines import ConnectionLines, duration
from gatekeeper.server.pump import End
from tests.server.local import Recorder

PEER = Peer("10.0.0.1", 40000, "2001:db8::1", 5672)
NAME = "10.0.0.1:40000 -> [2001:db8::1]:5672"
RUNNING = "vhost: '/', user: 'alice'"


def fail(kind: LogKind, text: str, state: State = State.OPENING, channel: int = 0) -> Fail:
    return Fail(None, 0.0, False, 0.0, kind, text, state, channel)


def error(code: ReplyCode, text: bytes, class_id: int = 0, method_id: int = 0) -> AmqpError:
    return AmqpError(code, text, class_id, method_id)


@dataclass(frozen=True, slots=True)
class Case:
    """stage: how far the connection had come: accepted, authenticated, running."""

    stage: str
    act: Callable[[ConnectionLines], None]
    level: str
    category: str
    text: str


CASES = {
    "accepted": Case(
        "accepted",
        lambda lines: lines.accepted(),
        "info",
        "connection",
        f"accepting AMQP connection {NAME}",
    ),
    "client name": Case(
        "accepted",
        lambda lines: lines.client_name(b"worker \xc3\xa9"),
        "info",
        "connection",
        f"connection {NAME} has a client-provided name: worker é",
    ),
    "authenticated": Case(
        "accepted",
        lambda lines: lines.authenticated(b"alice"),
        "info",
        "user",
        "User 'alice' authenticated successfully",
    ),
    "login failed": Case(
        "accepted",
        lambda lines: lines.login_failed(b"al\xffice", "user 'x' - invalid credentials"),
        "warning",
        "user",
        "User 'alÿice' failed to authenticate: user 'x' - invalid credentials",
    ),
    "opened": Case(
        "authenticated",
        lambda lines: lines.opened(b"/"),
        "info",
        "connection",
        f"connection {NAME}: user 'alice' authenticated and granted access to vhost '/'",
    ),
    "auth failure": Case(
        "accepted",
        lambda lines: lines.failed(
            fail(LogKind.LOGIN_REFUSED, "PLAIN login refused: no", State.STARTING)
        ),
        "error",
        "connection",
        f"Error on AMQP connection <0.7.0> ({NAME}, state: starting):\nPLAIN login refused: no",
    ),
    "open refused": Case(
        "authenticated",
        lambda lines: lines.failed(fail(LogKind.OPEN_REFUSED, "vhost v not found")),
        "error",
        "connection",
        f"Error on AMQP connection <0.7.0> ({NAME}, user: 'alice', state: opening):\n"
        "vhost v not found",
    ),
    "other error in opening": Case(
        "authenticated",
        lambda lines: lines.failed(
            fail(LogKind.OPENING_ERROR, " {handshake_error,...}", channel=3)
        ),
        "error",
        "connection",
        f"Error on AMQP connection <0.7.0> ({NAME}, vhost: 'none', user: 'alice', "
        "state: opening), channel 3:\n {handshake_error,...}",
    ),
    "tune failure": Case(
        "authenticated",
        lambda lines: lines.failed(
            fail(LogKind.TUNE_FAILED, "failed to negotiate connection parameters: x", State.TUNING)
        ),
        "error",
        "connection",
        f"closing AMQP connection <0.7.0> ({NAME}):\nfailed to negotiate connection parameters: x",
    ),
    "other handshake failure": Case(
        "accepted",
        lambda lines: lines.failed(
            fail(LogKind.HANDSHAKE_ERROR, "{handshake_error,starting,x}", State.STARTING)
        ),
        "error",
        "connection",
        f"closing AMQP connection <0.7.0> ({NAME}, duration: '4s'):\n"
        "{handshake_error,starting,x}",
    ),
    "handshake timeout": Case(
        "accepted",
        lambda lines: lines.handshake_timeout("frame_header"),
        "error",
        "connection",
        f"closing AMQP connection <0.7.0> ({NAME}, duration: '4s'):\n"
        "{handshake_timeout,frame_header}",
    ),
    "bad header": Case(
        "accepted",
        lambda lines: lines.failed(
            fail(LogKind.BAD_HEADER, "client did not start with AMQP protocol header: <<0>>")
        ),
        "error",
        "connection",
        f"closing AMQP connection {NAME} (duration: '4s'):\n"
        "client did not start with AMQP protocol header: <<0>>",
    ),
    "denied channel operation": Case(
        "running",
        lambda lines: lines.refused(
            5, error(ReplyCode.ACCESS_REFUSED, b"read access to queue 'q' refused", 60, 70)
        ),
        "error",
        "channel",
        f"Channel error on connection <0.7.0> ({NAME}, {RUNNING}), channel 5:\n"
        "operation basic.get caused a channel exception access_refused: "
        "read access to queue 'q' refused",
    ),
    "connection exception": Case(
        "running",
        lambda lines: lines.refused(1, error(ReplyCode.NOT_ALLOWED, b'a "quote"', 40, 10)),
        "error",
        "connection",
        f"Error on AMQP connection <0.7.0> ({NAME}, {RUNNING}, state: running), channel 1:\n"
        ' operation exchange.declare caused a connection exception not_allowed: "a \\"quote\\""',
    ),
    "connection exception, atom with an underscore": Case(
        "running",
        lambda lines: lines.refused(
            1, error(ReplyCode.COMMAND_INVALID, b"unimplemented method", 20, 41)
        ),
        "error",
        "connection",
        f"Error on AMQP connection <0.7.0> ({NAME}, {RUNNING}, state: running), channel 1:\n"
        " operation channel.close_ok caused a connection exception command_invalid: "
        '"unimplemented method"',
    ),
    "frame error": Case(
        "running",
        lambda lines: lines.refused(0, error(ReplyCode.FRAME_ERROR, b"type 1, all octets = <<>>")),
        "error",
        "connection",
        f"Error on AMQP connection <0.7.0> ({NAME}, {RUNNING}, state: running), channel 0:\n"
        " operation none caused a connection exception frame_error: "
        '"type 1, all octets = <<>>"',
    ),
    "soft error on channel 0": Case(
        "running",
        lambda lines: lines.refused(0, error(ReplyCode.ACCESS_REFUSED, b"no", 10, 70)),
        "error",
        "connection",
        f"Error on AMQP connection <0.7.0> ({NAME}, {RUNNING}, state: running), channel 0:\n"
        ' operation connection.update_secret caused a connection exception access_refused: "no"',
    ),
    "forced": Case(
        "running",
        lambda lines: lines.forced(
            AmqpError(ReplyCode.CONNECTION_FORCED, b"user 'alice' is deleted")
        ),
        "warning",
        "connection",
        f"Closing AMQP connection <0.7.0> ({NAME}, {RUNNING}): user 'alice' is deleted",
    ),
    "normal end": Case(
        "running",
        lambda lines: lines.ended(End.ORDERLY),
        "info",
        "connection",
        f"closing AMQP connection ({NAME}, {RUNNING}, duration: '4s')",
    ),
    "normal end before the login": Case(
        "accepted",
        lambda lines: lines.ended(End.ORDERLY),
        "info",
        "connection",
        f"closing AMQP connection ({NAME}, duration: '4s')",
    ),
    "normal end before the vhost": Case(
        "authenticated",
        lambda lines: lines.ended(End.ORDERLY),
        "info",
        "connection",
        f"closing AMQP connection ({NAME}, vhost: 'none', user: 'alice', duration: '4s')",
    ),
    "TCP lost": Case(
        "running",
        lambda lines: lines.ended(End.LOST),
        "warning",
        "connection",
        f"closing AMQP connection <0.7.0> ({NAME}, {RUNNING}, duration: '4s'):\n"
        "client unexpectedly closed TCP connection",
    ),
    "TCP lost before the login": Case(
        "accepted",
        lambda lines: lines.ended(End.LOST),
        "warning",
        "connection",
        f"closing AMQP connection <0.7.0> ({NAME}, duration: '4s'):\n"
        "client unexpectedly closed TCP connection",
    ),
    "heartbeat": Case(
        "running",
        lambda lines: lines.ended(End.SILENT),
        "error",
        "connection",
        f"closing AMQP connection <0.7.0> ({NAME}, duration: '4s'):\n"
        "missed heartbeats from client, timeout: 60s",
    ),
    "fatal frame": Case(
        "running",
        lambda lines: lines.ended(End.FATAL_FRAME),
        "error",
        "connection",
        f"closing AMQP connection <0.7.0> ({NAME}, duration: '4s'):\nfatal_frame_error",
    ),
    "consumer dropped": Case(
        "running",
        lambda lines: lines.consumer_cancelled(2, b"tag", b"q", "credential update"),
        "warning",
        "channel",
        "Cancelling consumer <<\"tag\">> on queue 'q' in vhost '/': "
        "read access refused after credential update",
    ),
    "health check": Case(
        "accepted",
        lambda lines: lines.probed(),
        "debug",
        "connection",
        f"closing AMQP connection {NAME}: no data received",
    ),
    "no broker": Case(
        "authenticated",
        lambda lines: lines.upstream_failed("upstream default: gone"),
        "error",
        "connection",
        f"connection {NAME}: no session with the broker: upstream default: gone",
    ),
}


def at_stage(stage: str, recorder: Recorder) -> ConnectionLines:
    lines = ConnectionLines(*map(recorder.logger, ("connection", "channel", "user")), 7, PEER)
    lines._started = time.monotonic() - 4.2
    lines.heartbeat = 60
    if stage != "accepted":
        lines.authenticated(b"alice")
    if stage == "running":
        lines.opened(b"/")
    return lines


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
async def test_line(case: Case) -> None:
    recorder = Recorder()
    case.act(at_stage(case.stage, recorder))
    assert recorder.lines[-1] == (case.level, case.category, case.text)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
async def test_fields_stand_beside_the_line(case: Case) -> None:
    recorder = Recorder()
    case.act(at_stage(case.stage, recorder))
    fields = recorder.fields[-1]
    assert fields["peer"] == NAME
    if case.stage == "running":
        assert (fields["user"], fields["vhost"]) == ("alice", "/")


async def test_the_clients_own_name_is_part_of_every_later_line() -> None:
    recorder = Recorder()
    lines = at_stage("accepted", recorder)
    lines.client_name(b"worker")
    lines.authenticated(b"alice")
    lines.opened(b"/")
    assert recorder.lines[-1][2].startswith(f"connection {NAME} - worker: user 'alice'")
    assert lines.name == f"{NAME} - worker"


DURATIONS = {
    0.0: "0ms",
    0.9999: "999ms",
    1.0: "1s",
    59.9: "59s",
    60: "1M, 0s",
    3599: "59M, 59s",
    3600: "1H, 0M, 0s",
    86399: "23H, 59M, 59s",
    86400: "1D, 0H, 0M, 0s",
    900061: "10D, 10H, 1M, 1s",
}


@pytest.mark.parametrize(("seconds", "shown"), DURATIONS.items())
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
