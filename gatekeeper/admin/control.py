"""The control socket: administration from this machine, for root and the gate's own user.

One connection is one question. The client sends a line of JSON, ``{"operation": NAME,
"arguments": {...}}``, and where it says ``"body": N`` as well, N bytes behind it. It gets any
number of lines ``{"item": ...}`` and then one, ``{"result": ...}`` or ``{"error": {"kind": ...,
"message": ..., ...}}``. Names are text with the bytes that are no UTF-8 as lone surrogates
(Python's ``surrogateescape``).

Whoever may connect may do everything, so the file is for its owner alone from its first moment,
and the kernel is asked besides who is at the other end. What a client can make us hold is
bounded: connections, the line, the body (one at a time), and the time for each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import stat
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.admin.operations import OPERATIONS, described
from gatekeeper.admin.request import BadRequestError, Call, Operation
from gatekeeper.admin.service import CLI_USER, Actor, Administration
from gatekeeper.errors import OperatorError
from gatekeeper.logs import Logger
from gatekeeper.server.tasks import Owner

LINE_LIMIT = 1024 * 1024
BODY_LIMIT = 256 * 1024 * 1024
"""Bytes of a request's line and of its body."""
LEAVE_TIMEOUT = 1.0
"""Seconds for a client to close, once it has its answer."""
CONNECTIONS = 32
SILENCE = 30.0
"""Seconds without a byte, in either direction, after which a client is given up."""
PATH_LIMIT = 107
"""Bytes of a socket's path (Linux: ``sun_path``)."""

_CHUNK = 256 * 1024
_PROBE = 2.0
_LOCK_TRIES, _LOCK_PAUSE = 50, 0.1


class ControlError(OperatorError):
    """The socket cannot be had. One line: why, and what to do."""


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who is at the other end, as the kernel says (``struct ucred``)."""

    pid: int
    uid: int

    @classmethod
    def of(cls, writer: asyncio.StreamWriter) -> _Caller:
        layout = struct.Struct("3i")  # pid, uid, gid
        sock = writer.get_extra_info("socket")
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
        pid, uid, _ = layout.unpack(found)
        return cls(pid, uid)

    @property
    def trusted(self) -> bool:
        return self.uid in {0, os.geteuid()}

    @property
    def actor(self) -> Actor:
        return Actor(CLI_USER, f"control socket (uid {self.uid}, process {self.pid})")


class ControlServer:
    """log: category ``default``, for what goes wrong in here."""

    def __init__(self, administration: Administration, path: Path, log: Logger) -> None:
        self._administration = administration
        self._path = path.absolute()
        self._log = log
        self._owner = Owner(self._failed)
        self._bulk = asyncio.Semaphore(1)
        self._server: asyncio.Server | None = None
        self._file: tuple[int, int] | None = None

    async def start(self) -> None:
        """Raises ControlError."""
        sock = await _listening(self._path)
        self._file = _identity(self._path)
        self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=LINE_LIMIT)

    async def close(self) -> None:
        """Also ends what is under way; a change that has begun is finished all the same."""
        if self._server is not None:
            self._server.close()
        await self._owner.close()
        if self._file is not None and _identity(self._path) == self._file:
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._file = None

    def _failed(self, error: BaseException) -> None:
        self._log.error("internal error in the control socket", exc_info=error)

    # --- one connection ---

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._owner.start(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
                await self._converse(reader, writer, _Caller.of(writer))
                await _take_leave(reader, writer)
        finally:
            writer.close()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: _Caller
    ) -> None:
        try:
            self._admit(caller)
            await self._answer(reader, writer, caller.actor)
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            raise  # nobody is there to be told
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told and we go on
            known = described(error)
            if known is None:
                self._failed(error)
                known = {"kind": "internal", "message": "internal error; see the gate's log"}
            await _send(writer, [{"error": known}])

    def _admit(self, caller: _Caller) -> None:
        if not caller.trusted:
            self._administration.denied(caller.actor, "connect", {}, "another user's process")
            raise BadRequestError("the control socket is for root and the gate's own user")
        if len(self._owner) > CONNECTIONS:
            raise BadRequestError("too many control connections at a time; try again")

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, actor: Actor
    ) -> None:
        request = await _request(reader)
        operation = OPERATIONS.get(request.operation)
        if operation is None:
            raise BadRequestError(f"there is no operation {request.operation!r}")
        arguments = operation.checked(request.arguments, body=request.body is not None)
        if request.body is None:
            await _carry_out(writer, operation, Call(self._administration, actor, arguments))
            return
        async with self._bulk:
            body = await _body(reader, request.body)
            call = Call(self._administration, actor, arguments, body)
            await _carry_out(writer, operation, call)


async def _carry_out(writer: asyncio.StreamWriter, operation: Operation, call: Call) -> None:
    answer = operation.run(call)
    if isinstance(answer, AsyncGenerator):
        async with contextlib.aclosing(answer):
            async for batch in answer:
                await _send(writer, ({"item": item} for item in batch))
        result: object = None
    else:
        result = await answer
    await _send(writer, [{"result": result}])


@dataclass(frozen=True, slots=True)
class _Request:
    """body: bytes that follow the line; None: there is none."""

    operation: str
    arguments: Mapping[str, object]
    body: int | None


async def _request(reader: asyncio.StreamReader) -> _Request:
    """Raises BadRequestError, whose text repeats nothing: a password may be in the line."""
    async with asyncio.timeout(SILENCE):
        try:
            line = await reader.readuntil()
        except asyncio.LimitOverrunError:
            raise BadRequestError(f"the request is longer than {LINE_LIMIT} bytes") from None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRequestError("the request is not a line of JSON") from None
    if not isinstance(found, dict) or found.keys() - {"operation", "arguments", "body"}:
        raise BadRequestError("the request is no object of operation, arguments and body")
    operation, arguments = found.get("operation"), found.get("arguments", {})
    if not isinstance(operation, str) or not isinstance(arguments, dict):
        raise BadRequestError("operation must be a string, and arguments an object")
    body = found.get("body")
    if body is None:
        return _Request(operation, arguments, None)
    if type(body) is not int or not 0 <= body <= BODY_LIMIT:
        raise BadRequestError(f"body must be its length in bytes, at most {BODY_LIMIT}")
    return _Request(operation, arguments, body)


async def _body(reader: asyncio.StreamReader, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        async with asyncio.timeout(SILENCE):
            chunk = await reader.read(min(_CHUNK, length - len(data)))
        if not chunk:
            raise asyncio.IncompleteReadError(b"", length)
        data += chunk
    return bytes(data)


async def _take_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the client read its answer: a socket that is closed before everything in it was read
    resets the connection, and the answer is lost."""
    writer.write_eof()
    async with asyncio.timeout(LEAVE_TIMEOUT):
        while await reader.read(64 * 1024):
            pass


async def _send(writer: asyncio.StreamWriter, lines: Iterable[Mapping[str, object]]) -> None:
    writer.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    async with asyncio.timeout(SILENCE):
        await writer.drain()


# --- the file ---


async def _listening(path: Path) -> socket.socket:
    """A socket that listens at ``path``, in place of one that nobody listens at any more."""
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise ControlError(
            f"control.socket: {str(path)!r} is longer than {PATH_LIMIT} bytes, which is the "
            "system's limit; configure a shorter one"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # In place of umask, which is the whole process's: Linux gives the file this mode.
        os.fchmod(sock.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        try:
            async with _locked(path.parent):
                _remove_stale(path)
                sock.bind(str(path))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ControlError(
                f"control.socket: cannot make {str(path)!r}: {reason}; check the folder and its "
                "permissions, or configure another path"
            ) from None
        sock.listen(CONNECTIONS)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.asynccontextmanager
async def _locked(folder: Path) -> AsyncIterator[None]:
    """Two gates that start at once must not each remove the other's new socket as a stale one."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(_LOCK_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            await asyncio.sleep(_LOCK_PAUSE)
        else:
            raise ControlError(f"control.socket: another process keeps a lock on {str(folder)!r}")
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Raises ControlError where what is there is in use or no socket; OSError."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(
            f"control.socket: {str(path)!r} exists and is no socket; move it away, or configure "
            "another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:
            pass  # it listens, and is too busy to answer
    raise ControlError(
        f"control.socket: another gate listens at {str(path)!r}; stop it, or configure another path"
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
