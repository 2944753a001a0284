"""A question on the control socket: its arguments, and what the table says of an operation.

Names of arguments are checked against the table before anything is done, and values by whoever
takes them. No message repeats a value, for it may be a password.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gatekeeper.admin.service import BATCH, Actor, Administration
from gatekeeper.errors import GatekeeperError
from gatekeeper.store.refusals import RequestError
from gatekeeper.store.refusals import shown as printed

T = TypeVar("T")


class BadRequestError(GatekeeperError):
    """The client does not speak as it should."""


class CannotError(GatekeeperError):
    """This gate cannot do that. One line says why."""


class LoginRefusedError(GatekeeperError):
    """The user is not who they say, or may not log in. ``str`` is RabbitMQ's reason."""


class NoSuchExchangeError(RequestError):
    def __init__(self, name: bytes) -> None:
        super().__init__(f"exchange '{printed(name)}' does not exist")
        self.name = name


class NoSuchParameterError(RequestError):
    def __init__(self) -> None:
        super().__init__("Parameter does not exist")


class InvalidPidError(RequestError):
    """What should name a connection does not."""

    def __init__(self, pid: str) -> None:
        super().__init__("no connection's pid")
        self.pid = pid


class Arguments:
    """Values of the right type, or BadRequestError."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def given(self, key: str) -> bool:
        return self._values.get(key) is not None

    def text(self, key: str) -> str:
        """Unicode: what is shown, or kept as text."""
        value = self._string(key)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRequestError(f"{key} is no text") from None
        return value

    def name(self, key: str) -> bytes:
        """A name or pattern (or password) as the broker sees it."""
        try:
            return self._string(key).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise BadRequestError(f"{key} is no text") from None

    def _string(self, key: str) -> str:
        value = self._values.get(key)
        if not isinstance(value, str):
            raise BadRequestError(f"{key} must be a string")
        return value

    def optional_text(self, key: str) -> str | None:
        return None if self._values.get(key) is None else self.text(key)

    def optional_name(self, key: str) -> bytes | None:
        return None if self._values.get(key) is None else self.name(key)

    def texts(self, key: str) -> list[str]:
        """An empty list where it is missing."""
        values = self._values.get(key, [])
        if not isinstance(values, list):
            raise BadRequestError(f"{key} must be a list of strings")
        for value in values:
            if not isinstance(value, str):
                raise BadRequestError(f"{key} must be a list of strings")
        return values

    def flag(self, key: str) -> bool:
        """False where it is missing."""
        value = self._values.get(key, False)
        if not isinstance(value, bool):
            raise BadRequestError(f"{key} must be true or false")
        return value

    def optional_flag(self, key: str) -> bool | None:
        return None if self._values.get(key) is None else self.flag(key)

    def number(self, key: str) -> int:
        """Not negative; 0 where it is missing."""
        value = self._values.get(key, 0)
        if type(value) is not int or value < 0:
            raise BadRequestError(f"{key} must be a number that is not negative")
        return value

    def mapping(self, key: str) -> Mapping[str, object]:
        value = self._values.get(key)
        if not isinstance(value, dict):
            raise BadRequestError(f"{key} must be an object")
        return value

    def json(self, key: str) -> object:
        """Whatever JSON can hold."""
        return self._values[key]


@dataclass(frozen=True, slots=True)
class Call:
    """A question. body: the bytes that came with it, of an operation that takes some."""

    administration: Administration
    actor: Actor
    arguments: Arguments
    body: bytes = b""


Row = dict[str, object]
Listing = AsyncGenerator[list[object], None]
"""Items in batches."""
Answer = Awaitable[object] | Listing
"""What JSON can hold: one value, or the items of a listing."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A row of the table. needs, may: the arguments, separated by blanks."""

    run: Callable[[Call], Answer]
    needs: str = ""
    may: str = ""
    body: bool = False

    def checked(self, values: Mapping[str, object], *, body: bool) -> Arguments:
        needs = set(self.needs.split())
        if missing := sorted(needs - values.keys()):
            raise BadRequestError(f"arguments are missing: {', '.join(missing)}")
        if unknown := values.keys() - needs - set(self.may.split()):
            raise BadRequestError(f"unknown arguments: {', '.join(sorted(unknown))}")
        if body is not self.body:
            raise BadRequestError(f"the operation takes {'a' if self.body else 'no'} body")
        return Arguments(values)


def batches(values: Sequence[T]) -> Iterator[Sequence[T]]:
    return (values[at : at + BATCH] for at in range(0, len(values), BATCH))


def shown(name: bytes) -> str:
    """The inverse of :meth:`Arguments.name`: bytes that are no UTF-8 as lone surrogates."""
    return name.decode("utf-8", "surrogateescape")
