"""Whose fault it is, and what the faulty party is told.

Three families, because three different readers have to act on them: the operator reads
``OperatorError`` (one line: place and remedy), the AMQP peer reads ``AmqpError`` (a reply
code and text), and the log reads ``BackendError`` (the client is only ever refused).
"""

from __future__ import annotations

import enum


class GatekeeperError(Exception):
    """Base of every error that this package raises on purpose."""


class OperatorError(GatekeeperError):
    """The configuration, a file, the store or the machine is at fault.

    ``str(error)`` is one line that names the place and the remedy; it never holds a secret.
    """


class ConfigError(OperatorError):
    """The configuration cannot be used."""


class StoreError(OperatorError):
    """The user database cannot be opened, read or written."""


class DefinitionsError(OperatorError):
    """A definitions document is malformed; the message holds the path of what is wrong."""


class BackendError(GatekeeperError):
    """An authentication or authorisation backend could not answer. Callers refuse."""


class ReplyCode(enum.IntEnum):
    """AMQP 0-9-1 reply codes (specification section 1.8), with RabbitMQ's symbols."""

    REPLY_SUCCESS = 200
    CONTENT_TOO_LARGE = 311
    NO_ROUTE = 312
    NO_CONSUMERS = 313
    CONNECTION_FORCED = 320
    INVALID_PATH = 402
    ACCESS_REFUSED = 403
    NOT_FOUND = 404
    RESOURCE_LOCKED = 405
    PRECONDITION_FAILED = 406
    FRAME_ERROR = 501
    SYNTAX_ERROR = 502
    COMMAND_INVALID = 503
    CHANNEL_ERROR = 504
    UNEXPECTED_FRAME = 505
    RESOURCE_ERROR = 506
    NOT_ALLOWED = 530
    NOT_IMPLEMENTED = 540
    INTERNAL_ERROR = 541


SOFT_CODES = frozenset({311, 312, 313, 403, 404, 405, 406})
"""Codes that close a channel; every other code closes the connection."""

REPLY_TEXT_LIMIT = 255


def reply_text(code: ReplyCode, explanation: bytes) -> bytes:
    """``SYMBOL - explanation``, cut to 252 bytes and ``...`` where it exceeds a short string.

    RabbitMQ: ``rabbit_binary_generator:amqp_exception_explanation``. An empty explanation
    gives the bare symbol, as RabbitMQ answers for an internal crash.
    """
    text = code.name.encode()
    if explanation:
        text += b" - " + explanation
    if len(text) > REPLY_TEXT_LIMIT:
        # A name can be cut inside a UTF-8 sequence: the reply must stay valid UTF-8.
        text = text[: REPLY_TEXT_LIMIT - 3].decode("utf-8", "ignore").encode() + b"..."
    return text


def printable(name: bytes) -> bytes:
    """A name as RabbitMQ 4.3 prints it: UTF-8 as it is, anything else as Latin-1."""
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("latin-1").encode()
    return name


class AmqpError(GatekeeperError):
    """A protocol exception for the AMQP peer.

    code: the reply code, which also decides the scope (channel or connection).
    explanation: bytes after ``SYMBOL - ``; may hold names as the peer sent them.
    class_id, method_id: the method at fault, 0 and 0 where there is none.
    """

    def __init__(
        self, code: ReplyCode, explanation: bytes = b"", class_id: int = 0, method_id: int = 0
    ) -> None:
        super().__init__(code, explanation, class_id, method_id)
        self.code = code
        self.explanation = explanation
        self.class_id = class_id
        self.method_id = method_id

    @property
    def text(self) -> bytes:
        return reply_text(self.code, self.explanation)

    @property
    def closes_channel(self) -> bool:
        return self.code in SOFT_CODES

    def __str__(self) -> str:
        return f"{int(self.code)} {self.text.decode('utf-8', 'replace')}"
