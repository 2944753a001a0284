"""One connection to an LDAP server: open, StartTLS, bind, search; one request at a time.

Strategy: a small protocol that collects octets until a whole message is there; asyncio's
transports do the rest, so nothing ever blocks the loop and a cancelled check just drops its
connection. Two kinds of trouble: the server answers with an error (a value,
:class:`~gatekeeper.backends.ldap.evaluate.Failure`), or the connection is of no more use
(:class:`LostError`). Why not a library: bonsai froze the loop, ldap3 is unmaintained, python-ldap
needs threads and a compiler, takes no DN that is not UTF-8, and brings a second TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import cast

from gatekeeper.backends.ldap import messages
from gatekeeper.backends.ldap.evaluate import REFERRAL, Failure
from gatekeeper.backends.ldap.messages import (
    Entry,
    Message,
    Operation,
    Result,
)
from gatekeeper.backends.ldap.trace import Trace
from gatekeeper.config.ldap import LdapSettings
from gatekeeper.config.ldap_queries import Scope
from gatekeeper.errors import BackendError

ENTRIES_LIMIT = 10_000
OCTETS_LIMIT = 16 * 1024 * 1024
"""What one search may bring, all its entries together."""

_CODES = (messages.SUCCESS, messages.SIZE_LIMIT_EXCEEDED)


class LostError(BackendError):
    """The connection ended, or said what is no LDAP. ``timed_out``: it said nothing in time."""

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


class ConnectError(BackendError):
    """No server of the list can be connected to, or StartTLS failed."""


class Connection:
    """Not shared: who has it sends one request and reads its answer before the next."""

    def __init__(self, link: _Link, timeout: float | None, trace: Trace) -> None:
        self._link = link
        self._timeout = timeout
        self._trace = trace
        self._number = 0

    @property
    def usable(self) -> bool:
        """The server has neither closed it nor spoken unasked."""
        return self._link.quiet

    async def bind(self, dn: bytes, password: bytes) -> int:
        """A simple bind; the result code. Raises LostError."""
        self._trace.traffic("bind request = %s, %s", dn, "xxxx")
        self._send(messages.bind(self._next(), dn, password))
        code = await self._result()
        self._trace.traffic("bind reply = %s, %s", dn, messages.code_name(code))
        return code

    async def search(
        self, base: bytes, scope: Scope, filter_: bytes, attribute: bytes
    ) -> Sequence[Entry] | Failure:
        """As :class:`~gatekeeper.backends.ldap.evaluate.Directory`.

        A result that the server cut short counts as whole, as eldap has it. Raises LostError, and
        BackendError where the answer exceeds ENTRIES_LIMIT or OCTETS_LIMIT.
        """
        self._trace.traffic("search request = %s, %s", base, scope.name)
        self._send(messages.search(self._next(), base, scope, filter_, attribute))
        entries: list[Entry] = []
        left = OCTETS_LIMIT
        while not isinstance(operation := await self._answer(), Result):
            left -= self._link.last_length
            if len(entries) == ENTRIES_LIMIT or left < 0:
                self.abort()
                raise BackendError("an LDAP search found more than a check should ever look at")
            if isinstance(operation, Entry):
                entries.append(operation)
        self._trace.traffic(
            "search reply = %s, %s, %s entries",
            base,
            messages.code_name(operation.code),
            len(entries),
        )
        if operation.code in _CODES:
            return entries[::-1]
        return (
            REFERRAL
            if operation.code == messages.REFERRED
            else Failure(messages.code_name(operation.code))
        )

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        """name: what the certificate must be for. Raises LostError, OSError, ssl.SSLError."""
        self._send(messages.start_tls(self._next()))
        code = await self._result()
        if code != messages.SUCCESS:
            raise LostError(f"StartTLS was refused: {messages.code_name(code)}")
        # INVARIANT: nothing that came in the clear is read as if it came by TLS.
        if not self._link.quiet:
            raise LostError("the server spoke between its StartTLS answer and TLS")
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(
            self._link.transport,
            self._link,
            context,
            server_hostname=name,
            ssl_handshake_timeout=self._timeout,
        )
        if transport is None:
            raise LostError("the connection ended in the TLS handshake")
        self._link.transport = transport

    def close(self) -> None:
        """Say goodbye without waiting for anything."""
        if self._link.quiet:
            with contextlib.suppress(OSError, RuntimeError):
                self._link.transport.write(messages.unbind(self._next()))
                self._link.transport.close()
                return
        self.abort()

    def abort(self) -> None:
        self._link.ended = True
        self._link.transport.abort()

    async def gone(self) -> None:
        """Until nothing of it is left. TLS takes the server's goodbye, so use a deadline."""
        await self._link.gone.wait()

    def _next(self) -> int:
        self._number = self._number % 0x7FFFFFFF + 1
        return self._number

    def _send(self, data: bytes) -> None:
        if not self._link.quiet:
            raise LostError("the server closed the connection")
        self._link.transport.write(data)

    async def _result(self) -> int:
        operation = await self._answer()
        if not isinstance(operation, Result):
            raise self._lost("an answer to another request")
        return operation.code

    async def _answer(self) -> Operation:
        try:
            async with asyncio.timeout(self._timeout):
                message = await self._link.message()
        except TimeoutError:
            self.abort()
            raise LostError("no answer in time", timed_out=True) from None
        except messages.MessageError as error:
            raise self._lost(str(error)) from None
        if message.number != self._number:
            raise self._lost("an answer to another request")
        return message.operation

    def _lost(self, reason: str) -> LostError:
        self.abort()
        return LostError(reason)


async def connect(
    settings: LdapSettings, context: ssl.SSLContext | None, trace: Trace
) -> Connection:
    """The first server of the list that can be reached, each within the timeout.

    context: for LDAPS or StartTLS. As in RabbitMQ, a server whose StartTLS fails ends the search;
    one whose LDAPS handshake fails does not. Raises ConnectError.
    """
    if context is None and (settings.use_ssl or settings.use_starttls):
        # INVARIANT: what is to go by TLS never goes in the clear.
        raise ConnectError("TLS is wanted, but there is no context for it")
    failures: list[str] = []
    for host in settings.servers or ():
        try:
            link = await _open(host, settings, context if settings.use_ssl else None)
        except (OSError, ValueError) as error:
            failures.append(f"{host}:{settings.port}: {error or type(error).__name__}")
            continue
        connection = Connection(link, settings.timeout, trace)
        if settings.use_starttls and context is not None:
            await _secure(connection, context, _name(settings, host), host)
        return connection
    raise ConnectError("; ".join(failures) or "no servers are configured")


async def _secure(connection: Connection, context: ssl.SSLContext, name: str, host: str) -> None:
    try:
        await connection.start_tls(context, name)
    except (OSError, LostError) as error:
        connection.abort()
        raise ConnectError(f"{host}: StartTLS: {error}") from None
    except BaseException:
        connection.abort()
        raise


async def _open(host: str, settings: LdapSettings, context: ssl.SSLContext | None) -> _Link:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(settings.timeout):
        _, link = await loop.create_connection(
            _Link,
            host,
            settings.port,
            ssl=context,
            server_hostname=None if context is None else _name(settings, host),
        )
    raw = link.transport.get_extra_info("socket")
    if raw is not None:
        # With timeout = infinity nothing else would notice a server that is gone.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return link


def _name(settings: LdapSettings, host: str) -> str:
    return (settings.tls.sni if settings.tls else None) or host


class _Link(asyncio.Protocol):
    """Octets of one connection, and who waits for a message."""

    def __init__(self) -> None:
        self.ended = False
        self.last_length = 0
        self.gone = asyncio.Event()
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None  # noqa: S101 - the connection was made
        return self._transport

    @transport.setter
    def transport(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    @property
    def quiet(self) -> bool:
        """Nothing is waiting to be read, and the connection stands."""
        return not self.ended and not self._buffer

    async def message(self) -> Message:
        """The next message. Raises MessageError and LostError."""
        while (length := messages.split(self._buffer)) is None:
            if self.ended:
                raise LostError("the server closed the connection")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        self.last_length = length
        return messages.parse(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if len(self._buffer) + len(data) > messages.MESSAGE_LIMIT + OCTETS_LIMIT:
            self.ended = True
            self.transport.abort()
            self._buffer.clear()
        else:
            self._buffer += data
        self._wake()

    def eof_received(self) -> None:
        self.ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.gone.set()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
