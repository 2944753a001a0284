"""SASL mechanisms: response bytes in, credentials or a challenge out.

Strategy: a mechanism is a function from the client's first response to an answer: either the
credentials, or a challenge that carries the function for the next response. The handshake
knows no mechanism by name; it is given a mapping like :data:`MECHANISMS`. A mechanism that
needs more than the response (a certificate, configured credentials) is a closure made where
that is known, put into the same mapping.

The shapes are RabbitMQ's, strictly: where its own guards let odd types through, both values
must be strings here. Its log texts for a malformed response quote the response; ours do not,
because a malformed response holds a password as often as a good one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from gatekeeper.errors import ReplyCode
from gatekeeper.model import Credentials, Secret
from gatekeeper.protocol import wire


class SaslError(Exception):
    """The client broke the mechanism's protocol; it is told nothing.

    log_text: for the log, holds no secret. code: what RabbitMQ calls the error there.
    """

    def __init__(self, log_text: str, code: ReplyCode = ReplyCode.SYNTAX_ERROR) -> None:
        super().__init__(log_text)
        self.log_text = log_text
        self.code = code


@dataclass(frozen=True, slots=True)
class Refusal:
    """The mechanism itself refuses the login; ``reason`` is for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Challenge:
    """Bytes for connection.secure, and what to do with the response to them."""

    data: bytes
    answer: Callable[[bytes], Answer]


Answer = Credentials | Challenge | Refusal

Mechanism = Callable[[bytes], Answer]
"""The first response -> an answer. Raises SaslError, or WireError for a malformed table."""


def plain(response: bytes) -> Credentials:
    """``NUL user NUL password`` and nothing else: no authorisation id, no third NUL.

    Source: RabbitMQ ``rabbit_auth_mechanism_plain:extract_user_pass``.
    """
    parts = response.split(b"\0", 3)
    if len(parts) != 3 or parts[0]:
        raise SaslError(f"response {_hidden(response)} invalid")
    return Credentials("PLAIN", parts[1], Secret(parts[2]))


def amqplain(response: bytes) -> Credentials:
    """Table entries (without a length) with LOGIN and PASSWORD, long strings or binaries.

    Source: RabbitMQ ``rabbit_auth_mechanism_amqplain``.
    """
    table = wire.read_table(response)
    login, password = table.get(b"LOGIN"), table.get(b"PASSWORD")
    shown = f"AMQPLAIN auth info {_hidden(response)}"
    if login is None or password is None:
        raise SaslError(f"{shown} is missing LOGIN or PASSWORD field")
    username, secret = login[1], password[1]
    # Only the tags S and x hold bytes.
    if not isinstance(username, bytes) or not isinstance(secret, bytes):
        raise SaslError(f"{shown} uses unsupported type for LOGIN or PASSWORD field")
    return Credentials("AMQPLAIN", username, Secret(secret))


_CR_DEMO_PREFIX: Final = b"My password is "


def cr_demo(response: bytes) -> Challenge:
    """RABBIT-CR-DEMO: the name first, the password in answer to a question.

    Source: RabbitMQ ``rabbit_auth_mechanism_cr_demo``; off there unless configured.
    """

    def answer(second: bytes) -> Credentials:
        if not second.startswith(_CR_DEMO_PREFIX):
            raise SaslError(f"Invalid response '{_hidden(second)}'")
        return Credentials("RABBIT-CR-DEMO", response, Secret(second[len(_CR_DEMO_PREFIX) :]))

    return Challenge(b"Please tell me your password", answer)


def external(name: bytes | Refusal) -> Mechanism:
    """EXTERNAL: the client is who its TLS certificate says; the response does not matter.

    name: from the certificate, or why there is none.
    Source: RabbitMQ ``rabbit_auth_mechanism_ssl``.
    """
    answer = name if isinstance(name, Refusal) else Credentials("EXTERNAL", name)
    return lambda _response: answer


def anonymous(username: bytes, password: Secret) -> Mechanism:
    """ANONYMOUS: everybody is this one user; the response does not matter.

    Source: RabbitMQ 4.0 ``rabbit_auth_mechanism_anonymous``.
    """
    answer = Credentials("ANONYMOUS", username, password)
    return lambda _response: answer


MECHANISMS: Final[Mapping[str, Mechanism]] = MappingProxyType(
    {"PLAIN": plain, "AMQPLAIN": amqplain, "RABBIT-CR-DEMO": cr_demo}
)
"""The mechanisms that need nothing but the client's responses."""

_REGISTERED: Final = frozenset({"PLAIN", "AMQPLAIN", "EXTERNAL", "ANONYMOUS", "RABBIT-CR-DEMO"})


def select(
    name: bytes, offered: tuple[str, ...], mechanisms: Mapping[str, Mechanism] = MECHANISMS
) -> tuple[str, Mechanism]:
    """The mechanism a client asked for, by its case-sensitive name.

    offered: the names announced in connection.start; each must be in ``mechanisms``.
    Raises SaslError in RabbitMQ's words: *unknown* if there is no such mechanism, *invalid* if
    there is but it was not offered.
    """
    text = name.decode("utf-8", "backslashreplace")
    if text in offered:
        return text, mechanisms[text]
    kind = "invalid" if text in _REGISTERED or text in mechanisms else "unknown"
    raise SaslError(f"{kind} authentication mechanism '{text}'", ReplyCode.COMMAND_INVALID)


def parse(mechanism: str, response: bytes) -> Credentials:
    """The credentials in the response of a one-step mechanism (PLAIN, AMQPLAIN).

    Raises SaslError: unknown mechanism, wrong shape, or a mechanism that wants a challenge.
    A malformed table is a SaslError here, too.
    """
    _, start = select(mechanism.encode(), tuple(MECHANISMS))
    try:
        answer = start(response)
    except wire.WireError as error:
        raise SaslError(f"response {_hidden(response)} is malformed: {error}") from None
    if not isinstance(answer, Credentials):
        raise SaslError(f"mechanism {mechanism} needs a challenge")
    return answer


def _hidden(response: bytes) -> str:
    return f"<<{len(response)} bytes, hidden>>"
