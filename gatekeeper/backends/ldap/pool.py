"""Connections to the directory: so many at once, kept while they are used, bound anew each time.

Strategy: a check takes a connection for itself, binds on it as whom it must, asks, and gives it
back. A connection that was closed meanwhile is replaced unseen; what is left when a server goes
on failing is RabbitMQ's ``ldap_connect_error``. Anonymous checks have connections of their own,
for on those nobody ever binds.

Source: ``rabbit_auth_backend_ldap:with_ldap``, ``with_login``, ``call_ldap_fun`` (4.3.5).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from gatekeeper.backends.ldap import messages
from gatekeeper.backends.ldap.connection import ConnectError, Connection, LostError, connect
from gatekeeper.backends.ldap.evaluate import Failure
from gatekeeper.backends.ldap.trace import Trace
from gatekeeper.config.ldap import ANONYMOUS, Anonymous, BindAs, LdapSettings

RETRIES = 10
"""RabbitMQ's LDAP_OPERATION_RETRIES. A server that answers nothing in time is not asked again."""

CLOSE_TIMEOUT = 1.0
"""Seconds for servers to take their leave, all together."""

NO_SERVERS = Failure("no_ldap_servers_defined")
CONNECT_ERROR = Failure("ldap_connect_error", unavailable=True)
# It was there: what it hangs up on may be the question, such as one beyond its limits.
LOST = Failure(CONNECT_ERROR.reason)
BIND_ERROR = Failure("ldap_bind_error")
EVALUATE_ERROR = Failure("ldap_evaluate_error")

T = TypeVar("T")

_log = structlog.get_logger("default")


@dataclass(frozen=True, slots=True)
class Rejected:
    """The directory does not take these credentials."""

    dn: bytes


class Pool:
    """At most ``connection_pool_size`` checks at a time; the others wait their turn."""

    def __init__(
        self, settings: LdapSettings, context: ssl.SSLContext | None, trace: Trace
    ) -> None:
        self._settings = settings
        self._context = context
        self._trace = trace
        self._slots = asyncio.Semaphore(settings.pool_size)
        self._idle: dict[bool, list[tuple[Connection, asyncio.TimerHandle | None]]] = {
            True: [],
            False: [],
        }
        self._closed = False

    async def run(
        self, who: BindAs | Anonymous, ask: Callable[[Connection], Awaitable[T | Failure]]
    ) -> T | Rejected | Failure:
        """Bind, ask, and give back the answer; a Failure has one of RabbitMQ's reasons.

        Whatever ``ask`` itself raises, except LostError, is the caller's.
        """
        if self._settings.servers is None:
            return NO_SERVERS
        async with self._slots:
            for _ in range(RETRIES):
                try:
                    connection = await self._take(who == ANONYMOUS)
                except ConnectError as error:
                    _log.error("LDAP: cannot connect", reason=str(error))
                    return CONNECT_ERROR
                try:
                    return await self._asked(connection, who, ask)
                except LostError as error:
                    _log.warning("LDAP: the connection to a server was lost", reason=str(error))
                    if error.timed_out:
                        return CONNECT_ERROR
            _log.warning("LDAP: the connection was lost again and again; giving up")
            return LOST

    async def close(self) -> None:
        """Close what is idle; connections in use are closed when they are given back."""
        self._closed = True
        connections: list[Connection] = []
        for kept in self._idle.values():
            for connection, timer in kept:
                if timer is not None:
                    timer.cancel()
                connection.close()
                connections.append(connection)
            kept.clear()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                for connection in connections:
                    await connection.gone()
        except TimeoutError:
            for connection in connections:
                connection.abort()

    async def _asked(
        self,
        connection: Connection,
        who: BindAs | Anonymous,
        ask: Callable[[Connection], Awaitable[T | Failure]],
    ) -> T | Rejected | Failure:
        try:
            refused = await self._bind(connection, who)
            answer = await ask(connection) if refused is None else refused
        except BaseException:
            # Mid-answer, or cancelled in it: what comes next on it would be misread.
            connection.abort()
            raise
        self._give_back(connection, anonymous=who == ANONYMOUS)
        if refused is None and isinstance(answer, Failure):
            self._trace.step("evaluate error: %s", answer.reason)
            return EVALUATE_ERROR
        return answer

    async def _bind(
        self, connection: Connection, who: BindAs | Anonymous
    ) -> Rejected | Failure | None:
        """None: bound. INVARIANT: an empty name or password never goes out (RFC 4513 5.1.2)."""
        if isinstance(who, Anonymous):
            self._trace.step("anonymous bind")
            return None
        if not who.dn or not who.password.value:
            self._trace.step("bind error: %s anonymous_auth", self._trace.masked(who.dn))
            return BIND_ERROR
        code = await connection.bind(who.dn, who.password.value)
        shown = self._trace.masked(who.dn)
        if code == messages.SUCCESS:
            self._trace.step("bind succeeded: %s", shown)
            return None
        if code == messages.INVALID_CREDENTIALS:
            self._trace.step('bind returned "invalid credentials": %s', shown)
            return Rejected(who.dn)
        self._trace.step("bind error: %s %s", shown, messages.code_name(code))
        return BIND_ERROR

    async def _take(self, anonymous: bool) -> Connection:
        """The connection that was used last, or a new one. Raises ConnectError."""
        kept = self._idle[anonymous]
        while kept:
            connection, timer = kept.pop()
            if timer is not None:
                timer.cancel()
            if connection.usable:
                return connection
            connection.abort()
        return await connect(self._settings, self._context, self._trace)

    def _give_back(self, connection: Connection, *, anonymous: bool) -> None:
        idle = self._settings.idle_timeout
        if idle == 0 or self._closed or not connection.usable:
            connection.close()
            return
        timer = None
        if idle is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(idle, self._expire, connection, anonymous)
        self._idle[anonymous].append((connection, timer))

    def _expire(self, connection: Connection, anonymous: bool) -> None:
        self._idle[anonymous] = [
            kept for kept in self._idle[anonymous] if kept[0] is not connection
        ]
        connection.close()
