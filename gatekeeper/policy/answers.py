"""What a backend's answer amounts to. Whatever is not plainly yes is a refusal."""

from __future__ import annotations

from dataclasses import dataclass, field

from gatekeeper.errors import printable
from gatekeeper.model import Decision
from gatekeeper.policy.ports import Accepted, Failed, Refused, Verdict


@dataclass(frozen=True, slots=True)
class LoginRefused:
    """The login is refused. ``reason`` is for the log, never for the client.

    cause: the exception behind an "internal error", for a debug log.
    loopback: the password is right, but this user may only come from this machine. (The
        management API says so; AMQP does not.)
    """

    reason: str
    cause: Exception | None = None
    loopback: bool = False


@dataclass(frozen=True, slots=True)
class EngineCrash(Decision):
    """A refusal because a backend raised or answered nonsense; ``cause`` is for the log."""

    cause: Exception | None = field(default=None, compare=False)


class NonsenseError(TypeError):
    """A backend answered something that its contract does not list."""


def of_login(answer: object, backend: str, doing: str, username: bytes) -> Accepted | LoginRefused:
    match answer:
        case Accepted():
            return answer
        case Refused(reason):
            return LoginRefused(reason)
        case Failed(reason):
            return LoginRefused(f"{backend} failed {doing} {shown(username)}: {reason}")
        case _:
            raise NonsenseError(f"{backend} answered {type(answer).__name__} to a login")


def decided(backend: str, answer: object) -> Decision:
    if not isinstance(answer, Verdict):
        return crash(backend, NonsenseError(f"answered {type(answer).__name__} to a check"))
    rule = f"{backend}: {answer.rule}" if answer.rule else backend
    # INVARIANT: only the value True allows, and only without an error beside it.
    if answer.error is not None:
        detail = f", backend {backend} returned an error: {answer.error}"
        return Decision(False, rule, detail.encode())
    if answer.allowed is True:
        return Decision(True, rule)
    detail = "" if answer.reason is None else f" by backend {backend}: {answer.reason}"
    return Decision(False, rule, detail.encode())


def crash(where: str, error: Exception) -> EngineCrash:
    rule = f"{where}: internal error ({type(error).__name__})"
    return EngineCrash(False, rule, crashed=True, cause=error)


def shown(name: bytes) -> str:
    return printable(name).decode()
