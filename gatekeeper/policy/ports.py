"""What the engine needs from a backend, and every answer a backend may give.

Modelled on RabbitMQ's ``rabbit_authn_backend`` and ``rabbit_authz_backend`` behaviours. An
answer may be given at once or as an awaitable: an in-memory backend must not cost a task
switch per check, and a remote one must not block the loop. "Refused" and "failed" differ in
the log and in the reply text; both refuse.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission, Secret, Variables
from gatekeeper.policy.pcre import Pattern


@dataclass(frozen=True, slots=True)
class Accepted:
    """The user is who they say. ``state`` is the backend's own, opaque to everyone else."""

    username: bytes
    tags: frozenset[str] = frozenset()
    state: object = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The backend answered: no. ``reason`` goes to the log, never to the client."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The backend could not answer. ``reason`` goes to the log; the user is refused.

    unavailable: whatever is asked, at the moment it cannot answer (no connection, too slow).
    """

    reason: str
    unavailable: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """An authorisation backend's answer.

    error: the backend could not answer (RabbitMQ appends "backend MOD returned an error: ...").
    reason: why it was denied, where the backend discloses it (RabbitMQ 4.3.0 on).
    rule: what decided, for explanations. unavailable: as in :class:`Failed`.
    """

    allowed: bool
    rule: str = ""
    error: str | None = None
    reason: str | None = None
    unavailable: bool = False


LoginAnswer = Accepted | Refused | Failed


class AuthnBackend(Protocol):
    @property
    def name(self) -> str:
        """RabbitMQ's module name, e.g. ``rabbit_auth_backend_internal``."""

    def authenticate(
        self, credentials: Credentials, peer: Peer
    ) -> LoginAnswer | Awaitable[LoginAnswer]: ...


class AuthzBackend(Protocol):
    @property
    def name(self) -> str: ...

    def authorize_login(
        self, username: bytes, credentials: Credentials, peer: Peer
    ) -> LoginAnswer | Awaitable[LoginAnswer]:
        """May this user, whom another backend authenticated, log in? Its tags are added."""

    def vhost_access(
        self, user: AuthUser, vhost: bytes, peer: Peer
    ) -> Verdict | Awaitable[Verdict]: ...

    def resource_access(
        self,
        user: AuthUser,
        vhost: bytes,
        kind: Kind,
        name: bytes,
        permission: Permission,
    ) -> Verdict | Awaitable[Verdict]:
        """``name`` is already ``amq.default`` where the default exchange was meant."""

    def topic_rule(self, user: AuthUser, vhost: bytes, exchange: bytes) -> bool:
        """Could :meth:`topic_access` refuse anything here? False spares the exchange type."""

    def topic_access(
        self,
        user: AuthUser,
        vhost: bytes,
        exchange: bytes,
        routing_key: bytes,
        permission: Permission,
        variables: Variables,
    ) -> Verdict | Awaitable[Verdict]: ...


@runtime_checkable
class PatternBackend(Protocol):
    """What a backend adds whose topic answers rest on patterns alone, until the policy changes."""

    def topic_patterns(
        self,
        user: AuthUser,
        vhost: bytes,
        exchange: bytes,
        permission: Permission,
        variables: Variables,
    ) -> tuple[Pattern, ...] | None:
        """:meth:`AuthzBackend.topic_access` allows exactly the routing keys that match all of them.
        None: ask it about each."""


@runtime_checkable
class ExpiringBackend(Protocol):
    """What an authorisation backend adds whose users' credentials may end.

    RabbitMQ: ``expiry_timestamp/1`` and ``update_state/2``.
    """

    def expiry(self, state: object) -> int | None:
        """Unix seconds at which the user's credentials end; None for never."""

    def update_state(self, user: AuthUser, secret: Secret) -> LoginAnswer | Awaitable[LoginAnswer]:
        """New credentials for a user that is logged in; only asked where the old ones end."""


@runtime_checkable
class TagSource(Protocol):
    """What a backend adds that knows a user's tags at any time, at once and without I/O.

    RabbitMQ takes the tags at login and keeps them as long as the connection lives; of a backend
    without this so does the gate.
    """

    @property
    def name(self) -> str: ...

    def tags_now(self, username: bytes) -> frozenset[str]:
        """None for a user that is not there."""


class ExchangeTypes(Protocol):
    """What is known of the broker's exchanges (DESIGN section 5)."""

    def is_topic(self, vhost: bytes, exchange: bytes) -> bool | Awaitable[bool]:
        """Is it a topic exchange that exists? Unknown counts as topic (the stricter side)."""
