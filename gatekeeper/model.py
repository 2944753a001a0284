"""The nouns of access control: who (Identity), what (Resource), which right, what came out.

Names (users, vhosts, queues, exchanges, routing keys) are bytes, exactly as the broker sees
them. RabbitMQ terms throughout: https://www.rabbitmq.com/docs/access-control
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_EXCHANGE_ALIAS = b"amq.default"
"""The name that permissions on the default exchange (``''``) are checked against."""


class Permission(enum.StrEnum):
    CONFIGURE = "configure"
    WRITE = "write"
    READ = "read"


class Kind(enum.StrEnum):
    QUEUE = "queue"
    EXCHANGE = "exchange"


@dataclass(frozen=True, slots=True)
class Secret:
    """Bytes that must never be printed: ``repr`` and ``str`` hide them."""

    value: bytes = field(repr=False)

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client presented by SASL. ``password`` is None where the mechanism has none."""

    mechanism: str
    username: bytes
    password: Secret | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A client's address as access control must see it (PROXY protocol applied)."""

    host: str
    port: int
    local_host: str = ""
    local_port: int = 0
    loopback: bool = False
    tls: bool = False

    def __str__(self) -> str:
        return f"{_bracket(self.host)}:{self.port} -> {_bracket(self.local_host)}:{self.local_port}"


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated user.

    username: after authentication; a backend may have renamed the user.
    tags: those in force, of all backends together.
    grants: per authorisation backend (by RabbitMQ module name), in configured order, its own
        opaque state for this user. Every one of them must allow.
    tag_sources: backends (by name) that tell the user's tags at any time.
    fixed_tags: what the others said at login.
    """

    username: bytes
    tags: frozenset[str] = frozenset()
    grants: tuple[tuple[str, object], ...] = ()
    tag_sources: tuple[str, ...] = field(default=(), compare=False)
    fixed_tags: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True, slots=True)
class AuthUser:
    """A user as one authorisation backend sees it (RabbitMQ's ``#auth_user``).

    tags: those of all backends together. state: the backend's own, from the login.
    """

    username: bytes
    tags: frozenset[str] = frozenset()
    state: object = None


@dataclass(frozen=True, slots=True)
class Access:
    """May the user configure, write or read this queue or exchange?

    ``name`` is the name as requested; ``''`` of an exchange is checked as ``amq.default``.
    """

    permission: Permission
    kind: Kind
    name: bytes


@dataclass(frozen=True, slots=True)
class AnyAccess:
    """Any of read, write, configure (passive declares, RabbitMQ 4.2.7 and 4.3.1 on)."""

    kind: Kind
    name: bytes


@dataclass(frozen=True, slots=True)
class TopicAccess:
    """May the user write (publish) or read (bind) this routing key on this exchange?

    Applies only where the exchange exists and is of type topic.
    """

    permission: Permission
    exchange: bytes
    routing_key: bytes


Check = Access | AnyAccess | TopicAccess


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer that carries its reason.

    allowed: the answer.
    rule: which rule decided, for humans (``explain``, logs); never a secret.
    detail: text that RabbitMQ appends to the refusal ("backend ... returned an error: ...").
    crashed: a backend broke its contract; RabbitMQ then ends the connection with 541.
    """

    allowed: bool
    rule: str = ""
    detail: bytes = b""
    crashed: bool = False


@dataclass(frozen=True, slots=True)
class UserLimits:
    """None: no limit. RabbitMQ's max-connections and max-channels."""

    max_connections: int | None = None
    max_channels: int | None = None


@dataclass(frozen=True, slots=True)
class VhostLimits:
    max_connections: int | None = None
    max_queues: int | None = None


Variables = Mapping[str, bytes]
