"""A circuit breaker round a backend that others can take down.

Strategy: after some failures in a row that are the backend's own (no connection, too slow) it is
not asked any more: whoever asks is refused at once, instead of holding a login or a channel for
a time limit that is known to be wasted. Now and then one question is let through to see whether
it is back. An error that belongs to the question (a group that does not exist) does not count:
one user's must not be everybody's. A single user's failures open it for this user alone: it may be
that what is asked about this one takes too long. Nor is such a user the only one to probe.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import structlog

from gatekeeper.errors import printable
from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission, Variables
from gatekeeper.policy.ports import AuthnBackend, AuthzBackend, Failed, LoginAnswer, Verdict

FAILURES = 5
"""Failures in a row that open the circuit."""
ASKERS = 2
"""Users that the failures must be of to open it for everybody."""
PAUSE_FIRST, PAUSE_MAX = 1.0, 30.0
"""Seconds until the next probe; doubled with each that fails, up to the second."""

T = TypeVar("T", LoginAnswer, Verdict)


class Remote(AuthnBackend, AuthzBackend, Protocol):
    """A backend whose answers come from somewhere else."""


class Circuit:
    """Is the backend to be asked? For one event loop."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._failures = 0
        self._askers: set[bytes] = set()  # of the failures; no more than count
        self._pause = PAUSE_FIRST
        self._probe_at = 0.0
        self._probed: bytes | None = None
        self._log = structlog.get_logger("default")

    def open_to(self, asker: bytes) -> bool:
        """Are this user's questions held back?"""
        return self._failures >= FAILURES and (self._for_all or asker in self._askers)

    @property
    def _for_all(self) -> bool:
        return len(self._askers) >= ASKERS

    def admits(self, asker: bytes) -> bool:
        """May this user's question be asked? Of those that come while the circuit is open, few:
        who has probed last leaves the next probe to others, if it is theirs too, for as long again.
        """
        if not self.open_to(asker):
            return True
        others_first = self._pause if self._for_all and asker == self._probed else 0.0
        if self._clock() < self._probe_at + others_first:
            return False
        self._probe_at = self._clock() + self._pause  # the next one waits for this one
        self._probed = asker
        return True

    def failed(self, asker: bytes, reason: str, *, probe: bool) -> None:
        """probe: it was asked while the circuit was open to this user."""
        if self.open_to(asker) and not probe:
            return  # asked before it opened, as many may have been: that says nothing new
        self._failures += 1
        if len(self._askers) < ASKERS:
            self._askers.add(asker)
        if self._failures < FAILURES:
            return
        if probe:
            self._pause = min(self._pause * 2, PAUSE_MAX)
        else:
            who = "everybody" if self._for_all else f"user '{printable(asker).decode()}'"
            self._log.error(
                f"{self._name}: {self._failures} failures in a row, the last one: {reason}; it is "
                f"not asked any more until a probe succeeds, and {who} is refused",
                backend=self._name,
                reason=reason,
            )
        self._probe_at = self._clock() + self._pause

    def answered(self) -> None:
        if self._failures >= FAILURES:
            self._log.info(f"{self._name} answers again", backend=self._name)
        self._failures = 0
        self._askers.clear()
        self._probed = None
        self._pause = PAUSE_FIRST


class Guarded:
    """The backend, asked while its circuit is closed."""

    def __init__(self, backend: Remote, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self.circuit = Circuit(backend.name, clock)

    @property
    def name(self) -> str:
        return self._backend.name

    async def start(self) -> None:
        await _if_it_has(self._backend, "start")

    async def close(self) -> None:
        await _if_it_has(self._backend, "close")

    async def authenticate(self, credentials: Credentials, peer: Peer) -> LoginAnswer:
        return await self._ask(
            credentials.username,
            lambda: self._backend.authenticate(credentials, peer),
            _NO_LOGIN,
            _login_failure,
        )

    async def authorize_login(
        self, username: bytes, credentials: Credentials, peer: Peer
    ) -> LoginAnswer:
        return await self._ask(
            username,
            lambda: self._backend.authorize_login(username, credentials, peer),
            _NO_LOGIN,
            _login_failure,
        )

    async def vhost_access(self, user: AuthUser, vhost: bytes, peer: Peer) -> Verdict:
        return await self._ask(
            user.username,
            lambda: self._backend.vhost_access(user, vhost, peer),
            _NO_ACCESS,
            _access_failure,
        )

    async def resource_access(
        self, user: AuthUser, vhost: bytes, kind: Kind, name: bytes, permission: Permission
    ) -> Verdict:
        return await self._ask(
            user.username,
            lambda: self._backend.resource_access(user, vhost, kind, name, permission),
            _NO_ACCESS,
            _access_failure,
        )

    def topic_rule(self, user: AuthUser, vhost: bytes, exchange: bytes) -> bool:
        return self._backend.topic_rule(user, vhost, exchange)

    async def topic_access(
        self,
        user: AuthUser,
        vhost: bytes,
        exchange: bytes,
        routing_key: bytes,
        permission: Permission,
        variables: Variables,
    ) -> Verdict:
        return await self._ask(
            user.username,
            lambda: self._backend.topic_access(
                user, vhost, exchange, routing_key, permission, variables
            ),
            _NO_ACCESS,
            _access_failure,
        )

    async def _ask(
        self,
        asker: bytes,
        ask: Callable[[], T | Awaitable[T]],
        unasked: T,
        failure: Callable[[T], str | None],
    ) -> T:
        if not self.circuit.admits(asker):
            return unasked
        probe = self.circuit.open_to(asker)
        pending = ask()
        answer = await pending if isinstance(pending, Awaitable) else pending
        reason = failure(answer)
        if reason is None:
            self.circuit.answered()
        else:
            self.circuit.failed(asker, reason, probe=probe)
        return answer


async def _if_it_has(backend: object, method: str) -> None:
    act = getattr(backend, method, None)
    if act is not None:
        await act()


_REASON = "it has failed repeatedly and is not asked until it answers again"
_NO_LOGIN: LoginAnswer = Failed(_REASON, unavailable=True)
_NO_ACCESS = Verdict(False, error=_REASON, unavailable=True)


def _login_failure(answer: LoginAnswer) -> str | None:
    return answer.reason if isinstance(answer, Failed) and answer.unavailable else None


def _access_failure(answer: Verdict) -> str | None:
    return answer.error if answer.unavailable else None
