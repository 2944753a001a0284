"""What the two handshakes tell the server, as values: events, states, and how a failure shows."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gatekeeper.model import Credentials


class State(enum.StrEnum):
    """RabbitMQ's connection states, under the names that its log lines show."""

    PRE_INIT = "pre_init"
    STARTING = "starting"
    SECURING = "securing"
    TUNING = "tuning"
    OPENING = "opening"
    RUNNING = "running"
    CLOSED = "closed"


class LogKind(enum.StrEnum):
    """Which of RabbitMQ's log lines a Fail makes; ``log_text`` is what follows the line break."""

    LOGIN_REFUSED = "login_refused"
    """``Error on AMQP connection (NAME, state: starting):``"""
    OPEN_REFUSED = "open_refused"
    """``Error on AMQP connection (NAME, user: 'U', state: opening):``"""
    OPENING_ERROR = "opening_error"
    """``Error on AMQP connection (NAME, vhost: 'none', user: 'U', state: opening), channel N:``"""
    TUNE_FAILED = "tune_failed"
    """``closing AMQP connection (NAME):``"""
    HANDSHAKE_ERROR = "handshake_error"
    """``closing AMQP connection (NAME, duration: 'D'):``"""
    BAD_HEADER = "bad_header"
    """``closing AMQP connection NAME (duration: 'D'):``"""


# --- Both sides -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    data: bytes


@dataclass(frozen=True, slots=True)
class Tuned:
    """channel_max, frame_max (octets), heartbeat (seconds); 0 is no limit, or no heartbeat.

    From a client: what it chose, and what now holds. From a broker: what it offered.
    """

    channel_max: int
    frame_max: int
    heartbeat: int


# --- Towards the client ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Login:
    """Decide, then call ``accept_login`` or ``refuse_login``.

    client_properties: raw table content, well-formed. capabilities: those that are true.
    client_name: the ``connection_name`` property, if it is a long string.
    refusal: why the mechanism itself says no; there is nothing left to decide then.
    """

    credentials: Credentials
    client_properties: bytes
    capabilities: frozenset[bytes]
    client_name: bytes | None
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Open:
    """Decide, then call ``accept_open`` or ``refuse_open``. vhost: the exact bytes."""

    vhost: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The closing dialogue is complete: send ``reply`` if there is one and close the socket."""

    reply: bytes = b""


@dataclass(frozen=True, slots=True)
class Fail:
    """The handshake is over.

    reply: to send first, if any. silent_delay: seconds to wait then, reading nothing, before
    the socket is closed. await_close_ok: keep feeding and taking events until Closed or another
    Fail, for at most ``grace`` seconds. state: when it failed. channel: where, for the log.
    """

    reply: bytes | None
    silent_delay: float
    await_close_ok: bool
    grace: float
    log_kind: LogKind
    log_text: str
    state: State
    channel: int = 0
    log_level: str = "error"


Event = Send | Login | Tuned | Open | Closed | Fail


# --- Towards the broker ---------------------------------------------------------------------


class Stage(enum.StrEnum):
    """How far the handshake with the broker has come."""

    START = "start"
    LOGIN = "login"
    OPEN = "open"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Learned:
    """What the broker says of itself. server_properties: raw table content, well-formed.

    product, version: from those, empty if absent. mechanisms: in the broker's order.
    """

    server_properties: bytes
    mechanisms: tuple[str, ...]
    product: bytes
    version: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """The broker opened the vhost: the connection is usable."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker closed in an orderly way; its close was answered by a Send before this.

    code, text, class_id, method_id: of its connection.close. stage: LOGIN if our credentials
    were refused, OPEN if the vhost or the negotiated limits were.
    """

    code: int
    text: bytes
    class_id: int
    method_id: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class Broken:
    """The broker cannot be used; close the socket. ``reason`` is for the operator."""

    reason: str


UpstreamEvent = Send | Learned | Tuned | Opened | Refused | Broken
