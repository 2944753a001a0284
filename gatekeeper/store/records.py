"""The rows of the store, and the snapshot of all of them that access control reads.

A snapshot never changes: a change builds a new one. Whoever holds a snapshot sees one state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from gatekeeper.model import UserLimits, VhostLimits
from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet

MAX_CONNECTIONS, MAX_CHANNELS, MAX_QUEUES = "max-connections", "max-channels", "max-queues"
USER_LIMITS = (MAX_CONNECTIONS, MAX_CHANNELS)
VHOST_LIMITS = (MAX_CONNECTIONS, MAX_QUEUES)

UserVhost = tuple[bytes, bytes]
"""A user name and a vhost name."""
UserVhostExchange = tuple[bytes, bytes, bytes]

_K = TypeVar("_K")


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


def _bound(limits: Mapping[str, int], name: str) -> int | None:
    value = limits.get(name)
    return None if value is None or value < 0 else value


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything in the store at one moment. The mappings must not be changed."""

    users: Mapping[bytes, User] = field(default_factory=dict)
    vhosts: Mapping[bytes, Vhost] = field(default_factory=dict)
    permissions: Mapping[UserVhost, PermissionSet] = field(default_factory=dict)
    topic_permissions: Mapping[UserVhostExchange, TopicPermissionSet] = field(default_factory=dict)
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_blank(self) -> bool:
        """Without users or without vhosts (RabbitMQ 4.x: rabbit_db)."""
        return not self.users or not self.vhosts


# -- what changed ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserAdded:
    name: bytes


@dataclass(frozen=True, slots=True)
class UserDeleted:
    name: bytes


@dataclass(frozen=True, slots=True)
class PasswordChanged:
    """Set, changed or cleared: only new logins notice."""

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


StoreEvent = (
    UserAdded
    | UserDeleted
    | PasswordChanged
    | UserTagsChanged
    | UserLimitsChanged
    | VhostAdded
    | VhostDeleted
    | VhostChanged
    | VhostLimitsChanged
    | PermissionsChanged
    | TopicPermissionsChanged
    | MetadataChanged
)


def difference(old: Snapshot, new: Snapshot) -> tuple[StoreEvent, ...]:
    """The events that lead from one snapshot to the other, deletions first.

    Computed rather than recorded, so that the changes of another process give the same events.
    """
    events: list[StoreEvent] = [
        VhostDeleted(vhost.name)
        for vhost in old.vhosts.values()
        if not _survives(vhost, new.vhosts)
    ]
    events.extend(
        UserDeleted(user.name) for user in old.users.values() if not _survives(user, new.users)
    )
    for vhost in new.vhosts.values():
        events.extend(_vhost_events(old.vhosts.get(vhost.name), vhost))
    for user in new.users.values():
        events.extend(_user_events(old.users.get(user.name), user))
    events.extend(PermissionsChanged(*pair) for pair in _changed(old.permissions, new.permissions))
    events.extend(
        TopicPermissionsChanged(*triple)
        for triple in _changed(old.topic_permissions, new.topic_permissions)
    )
    events.extend(MetadataChanged(key) for key in _changed(old.metadata, new.metadata))
    return tuple(events)


def _survives(row: User | Vhost, rows: Mapping[bytes, User] | Mapping[bytes, Vhost]) -> bool:
    same = rows.get(row.name)
    return same is not None and same.incarnation == row.incarnation


def _user_events(old: User | None, new: User) -> Iterable[StoreEvent]:
    if old is new:
        return
    if old is None or old.incarnation != new.incarnation:
        yield UserAdded(new.name)
        return
    if (old.password_hash, old.algorithm) != (new.password_hash, new.algorithm):
        yield PasswordChanged(new.name)
    if old.tags != new.tags:
        yield UserTagsChanged(new.name)
    if old.limits != new.limits:
        yield UserLimitsChanged(new.name)


def _vhost_events(old: Vhost | None, new: Vhost) -> Iterable[StoreEvent]:
    if old is new:
        return
    if old is None or old.incarnation != new.incarnation:
        yield VhostAdded(new.name)
        return
    if (old.description, old.tags, old.default_queue_type, old.protected) != (
        new.description,
        new.tags,
        new.default_queue_type,
        new.protected,
    ):
        yield VhostChanged(new.name)
    if old.limits != new.limits:
        yield VhostLimitsChanged(new.name)


def _changed(old: Mapping[_K, object], new: Mapping[_K, object]) -> list[_K]:
    missing = object()
    gone = [key for key in old if key not in new]
    return gone + [key for key, value in new.items() if old.get(key, missing) != value]
