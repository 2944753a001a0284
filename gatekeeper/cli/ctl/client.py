"""The control socket, seen from gatekeeperctl. Nothing here touches the store.

A question is one connection (``gatekeeper/admin/control.py`` has the protocol), so a listing may
be read while another question is asked.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import BinaryIO


class UnreachableError(Exception):
    """No gate answers. ``str``: where it was looked for, and what was found."""


class GateTimeoutError(Exception):
    """The gate did not answer within the time the user has given."""


class GateError(Exception):
    """The gate's own words. kind: of the table in ``gatekeeper/admin/operations.py``."""

    def __init__(self, kind: str, message: str, details: Mapping[str, object]) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.details = details


class Gate:
    """locate: the socket's path, looked for when it is needed; may raise UnreachableError.
    timeout: seconds of silence, None for ever."""

    def __init__(self, locate: Callable[[], Path], timeout: float | None = None) -> None:
        self._locate = locate
        self._timeout = timeout

    def ask(self, operation: str, /, **arguments: object) -> object:
        """One value. Raises GateError, UnreachableError, GateTimeoutError."""
        return self._value(operation, None, arguments)

    def send(self, operation: str, body: bytes, /, **arguments: object) -> object:
        """As :meth:`ask`, with a document."""
        return self._value(operation, body, arguments)

    def _value(self, operation: str, body: bytes | None, arguments: Mapping[str, object]) -> object:
        conversation = self._converse(operation, body, arguments)
        while True:
            try:
                next(conversation)
            except StopIteration as end:
                return end.value

    def rows(
        self, operation: str, /, **arguments: object
    ) -> Generator[dict[str, object], None, object]:
        """The items of a listing, as they come."""
        for item in self._converse(operation, None, arguments):
            assert isinstance(item, dict)  # noqa: S101 - the listings' items are
            yield item
        return None

    def texts(self, operation: str, /, **arguments: object) -> Generator[str, None, None]:
        for item in self._converse(operation, None, arguments):
            yield str(item)

    def _converse(
        self, operation: str, body: bytes | None, arguments: Mapping[str, object]
    ) -> Generator[object, None, object]:
        given = {name: value for name, value in arguments.items() if value is not None}
        question: dict[str, object] = {"operation": operation, "arguments": given}
        if body is not None:
            question["body"] = len(body)
        path = self._locate()
        try:
            with self._connected(path) as sock, sock.makefile("rb") as answers:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    sock.sendall(json.dumps(question).encode() + b"\n" + (body or b""))
                # Also where the gate did not want to hear all of it: it has said why.
                return (yield from _read(answers))
        except TimeoutError:
            raise GateTimeoutError from None
        except (ConnectionError, EOFError):
            raise UnreachableError(
                f"{path}: the gate has ended the connection without an answer"
            ) from None

    def _connected(self, path: Path) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self._timeout)
        try:
            sock.connect(str(path))
        except TimeoutError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            raise UnreachableError(f"{path}: {error.strerror or error}") from None
        return sock


def _read(answers: BinaryIO) -> Generator[object, None, object]:
    for line in answers:
        answer = json.loads(line)
        if "item" in answer:
            yield answer["item"]
        elif "error" in answer:
            error = dict(answer["error"])
            raise GateError(error.pop("kind"), error.pop("message"), error)
        else:
            return answer["result"]
    raise EOFError
