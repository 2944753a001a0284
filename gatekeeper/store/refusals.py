"""Why the store would not do what was asked: the asker's mistake, not the store's.

The command line and the HTTP API choose their own words and codes by class; ``str(error)`` is
one line that serves where they have none.
"""

from __future__ import annotations

from gatekeeper.errors import StoreError, printable


def one_line(text: str) -> str:
    """``text`` with its control characters spelled out: a name may hold a line break."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


class RequestError(StoreError):
    """Base: the request cannot be carried out, and nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class NoSuchUserError(RequestError):
    def __init__(self, name: bytes) -> None:
        super().__init__(f"user '{shown(name)}' does not exist")
        self.name = name


class NoSuchVhostError(RequestError):
    def __init__(self, name: bytes) -> None:
        super().__init__(f"virtual host '{shown(name)}' does not exist")
        self.name = name


class UserExistsError(RequestError):
    def __init__(self, name: bytes) -> None:
        super().__init__(f"user '{shown(name)}' already exists")
        self.name = name


class VhostProtectedError(RequestError):
    def __init__(self, name: bytes) -> None:
        super().__init__(f"virtual host '{shown(name)}' is protected from deletion")
        self.name = name


class InvalidPatternError(RequestError):
    """A permission pattern does not compile, or is longer than 1024 bytes.

    what: which of the patterns (``configure``, ``write``, ``read``). reason, offset: PCRE's.
    """

    def __init__(self, what: str, pattern: bytes, reason: str, offset: int) -> None:
        super().__init__(
            f"the {what} pattern '{shown(pattern[:80])}' is no valid regular expression: "
            f"{reason} at offset {offset}"
        )
        self.what = what
        self.pattern = pattern
        self.reason = reason
        self.offset = offset


class InvalidTextError(RequestError):
    """A text that is not valid Unicode (JSON's ``\\ud800``)."""


class InvalidValueError(RequestError):
    """A parameter's value that JSON cannot hold."""


class InvalidTagsError(RequestError):
    """Too many tags, or one that is no text."""


class InvalidLimitsError(RequestError):
    """Limits with an unknown name or a value that is no integer; in RabbitMQ's words."""


class InvalidNameError(RequestError):
    """An empty user name."""


class CredentialRefusedError(RequestError):
    """The password, its hash or its algorithm is not acceptable. Never holds the password."""


def shown(name: bytes) -> str:
    """A name as text, for messages."""
    return printable(name).decode()
