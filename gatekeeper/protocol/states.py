"""The words that the two sides of a session share: where it stands, what became of a frame."""

from __future__ import annotations

import enum

from gatekeeper.errors import AmqpError
from gatekeeper.protocol.wire import method

MAX_CONTENT = 536_870_912
"""The largest content body RabbitMQ 4.3 lets pass at all, in bytes."""

CONNECTION_CLOSE_OK = method(0, 10, 51)


BROKER = -1
"""Asks for a frame of the broker's, in the place of a channel: one waits at a time."""


class State(enum.IntEnum):
    """Where the connection stands. Frames are judged in RUNNING only."""

    RUNNING = 0
    DRAINING = 1  # an error of the client's: connection.close sent to the broker, for its replies
    TOLD = 2  # the client was sent connection.close; its close-ok is awaited
    CLIENT_CLOSING = 3  # the client's connection.close went to the broker
    BROKER_CLOSING = 4  # the broker's connection.close went to the client
    DONE = 5  # nothing more will be exchanged
    FAILING = 6  # an operation is to end the connection, unless the broker closes its channel first


RUNNING, DONE = State.RUNNING, State.DONE
OVER = (State.TOLD, State.DONE)
"""Looked at with every chunk: an attribute of a class costs three times as much."""


class Outcome(enum.Enum):
    """What becomes of a frame."""

    PASS = 0  # goes on as it came
    TAKEN = 1  # does not; what replaces it, if anything, was queued
    WAIT = 2  # cannot be decided yet


PASS, TAKEN, WAIT = Outcome.PASS, Outcome.TAKEN, Outcome.WAIT


class Pending(Exception):  # noqa: N818 - control flow inside the session
    """A question has been asked whose answer is not there yet."""


class OperationError(AmqpError):
    """An operation on an open channel is refused, by what in RabbitMQ is the channel's process:
    never before that channel's earlier operations are done, and not at all if one of them has
    closed the channel. Even where the code ends the connection."""


class FatalFrameError(AmqpError):
    """The frame stream is lost: after the close method all further input is ignored."""
