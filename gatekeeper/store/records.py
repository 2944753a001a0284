"""The rows of the store, and the events that tell of their changes.

A row never changes: whoever holds one has what was true when it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gatekeeper.model import UserLimits, VhostLimits

MAX_CONNECTIONS, MAX_CHANNELS, MAX_QUEUES = "max-connections", "max-channels", "max-queues"
USER_LIMITS = (MAX_CONNECTIONS, MAX_CHANNELS)
VHOST_LIMITS = (MAX_CONNECTIONS, MAX_QUEUES)

IMPORTED_HASH = "imported_definition_hash_value"
"""The metadata key of the last import's hash, by RabbitMQ's name for it."""

UserVhost = tuple[bytes, bytes]
"""A user name and a vhost name."""
UserVhostExchange = tuple[bytes, bytes, bytes]


@dataclass(frozen=True, slots=True)
class User:
    """A user of the internal database.

    password_hash: raw ``salt || digest``; empty where no password can match.
    algorithm: RabbitMQ's module name. tags: in the order given.
    limits: as set, by RabbitMQ's names; negative means unlimited.
    incarnation: differs when a user is deleted and one of the same name made.
    """

    name: bytes
    password_hash: bytes = field(repr=False)
    algorithm: str
    tags: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    incarnation: int = 0

    @property
    def effective_limits(self) -> UserLimits:
        return UserLimits(
            max_connections=_bound(self.limits, MAX_CONNECTIONS),
            max_channels=_bound(self.limits, MAX_CHANNELS),
        )


@dataclass(frozen=True, slots=True)
class Vhost:
    """A virtual host. ``limits`` as in User; ``protected`` against deletion."""

    name: bytes
    description: str = ""
    tags: tuple[str, ...] = ()
    default_queue_type: str | None = None
    protected: bool = False
    limits: Mapping[str, int] = field(default_factory=dict)
    incarnation: int = 0

    @property
    def effective_limits(self) -> VhostLimits:
        return VhostLimits(
            max_connections=_bound(self.limits, MAX_CONNECTIONS),
            max_queues=_bound(self.limits, MAX_QUEUES),
        )


UNREACHABLE = 2**62
"""A limit that nothing meets; a higher one, which JSON can hold, means the same."""


def _bound(limits: Mapping[str, int], name: str) -> int | None:
    value = limits.get(name)
    return None if value is None or value < 0 else min(value, UNREACHABLE)


# -- what changed, in the order of the changes -------------------------------------------


@dataclass(frozen=True, slots=True)
class UserAdded:
    name: bytes


@dataclass(frozen=True, slots=True)
class UserDeleted:
    """With all of its permissions: no event tells of those."""

    name: bytes


@dataclass(frozen=True, slots=True)
class PasswordChanged:
    """Set, changed or cleared: only new logins notice."""

    name: bytes


@dataclass(frozen=True, slots=True)
class PasswordRehashed:
    """The same password, kept by another algorithm: nobody but this store's caches notices."""

    name: bytes


@dataclass(frozen=True, slots=True)
class UserTagsChanged:
    name: bytes


@dataclass(frozen=True, slots=True)
class UserLimitsChanged:
    name: bytes


@dataclass(frozen=True, slots=True)
class VhostAdded:
    name: bytes


@dataclass(frozen=True, slots=True)
class VhostDeleted:
    """With all permissions in it: no event tells of those."""

    name: bytes


@dataclass(frozen=True, slots=True)
class VhostChanged:
    """Description, tags, default queue type or protection."""

    name: bytes


@dataclass(frozen=True, slots=True)
class VhostLimitsChanged:
    name: bytes


@dataclass(frozen=True, slots=True)
class PermissionsChanged:
    """Set or cleared."""

    user: bytes
    vhost: bytes


@dataclass(frozen=True, slots=True)
class TopicPermissionsChanged:
    user: bytes
    vhost: bytes
    exchange: bytes


@dataclass(frozen=True, slots=True)
class MetadataChanged:
    key: str


@dataclass(frozen=True, slots=True)
class Reloaded:
    """More has changed than is told one by one: look again at whatever you remember.

    Users and vhosts may be gone, or be others of the same name (``incarnation``).
    """


StoreEvent = (
    UserAdded
    | UserDeleted
    | PasswordChanged
    | PasswordRehashed
    | UserTagsChanged
    | UserLimitsChanged
    | VhostAdded
    | VhostDeleted
    | VhostChanged
    | VhostLimitsChanged
    | PermissionsChanged
    | TopicPermissionsChanged
    | MetadataChanged
    | Reloaded
)
