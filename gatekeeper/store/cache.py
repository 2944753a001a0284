"""Bounded caches in front of the rows: what is asked often is answered without SQLite.

Rows that are there and rows that are not have a cache each. Only the second can be filled by
whoever likes (with made-up user names, before any login), and it can push out nothing but its
own. Keys too long to be a name on the wire are not remembered at all.

A miss reads and remembers under one lock, and forgetting takes the same lock. So what was read
before a commit is forgotten after it, and never put back.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store.records import (
    MetadataChanged,
    PasswordChanged,
    PasswordRehashed,
    PermissionsChanged,
    Reloaded,
    StoreEvent,
    TopicPermissionsChanged,
    User,
    UserAdded,
    UserDeleted,
    UserLimitsChanged,
    UserTagsChanged,
    UserVhost,
    UserVhostExchange,
    Vhost,
    VhostAdded,
    VhostChanged,
    VhostDeleted,
    VhostLimitsChanged,
)
from gatekeeper.store.rows import Reader

KEPT = 8192
"""Rows of each kind: some 4 MB if all are full of short patterns."""
MAX_KEY_BYTES = 1024
"""User, vhost and exchange names of a client are at most 255 bytes each."""

_K = TypeVar("_K", bound=bytes | str | tuple[bytes, ...])
_V = TypeVar("_V")


class TableCache(Generic[_K, _V]):
    """The rows of one table by key; the least recently used one goes first. Not locked.

    read: the row from the database, None where there is none. kept: how many rows to keep, and
    how many keys that have none.
    """

    __slots__ = ("_absent", "_kept", "_present", "_read")

    def __init__(self, read: Callable[[_K], _V | None], kept: int) -> None:
        self._read: Callable[[_K], _V | None] = read
        self._kept = kept
        self._present: OrderedDict[_K, _V] = OrderedDict()
        self._absent: OrderedDict[_K, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._present) + len(self._absent)

    def get(self, key: _K) -> _V | None:
        """Raises whatever ``read`` raises; nothing is remembered then."""
        value = self._present.get(key)
        if value is not None:
            self._present.move_to_end(key)
            return value
        if key in self._absent:
            self._absent.move_to_end(key)
            return None
        value = self._read(key)
        if _length(key) > MAX_KEY_BYTES:
            return value
        if value is None:
            self._absent[key] = None
            _shorten(self._absent, self._kept)
        else:
            self._present[key] = value
            _shorten(self._present, self._kept)
        return value

    def forget(self, key: _K) -> None:
        self._present.pop(key, None)
        self._absent.pop(key, None)

    def clear(self) -> None:
        self._present.clear()
        self._absent.clear()


def _shorten(kept: OrderedDict[_K, _V], limit: int) -> None:
    if len(kept) > limit:
        kept.popitem(last=False)


def _length(key: bytes | str | tuple[bytes, ...]) -> int:
    return sum(map(len, key)) if isinstance(key, tuple) else len(key)


class _Table(Protocol):
    """A cache of any type of key and row."""

    def __len__(self) -> int: ...
    def clear(self) -> None: ...


class CachedReader:
    """Point reads, cached, by any thread. A miss raises StoreError if the store cannot be read."""

    def __init__(self, reader: Reader, kept: int = KEPT) -> None:
        self._lock = threading.Lock()
        self._users: TableCache[bytes, User] = TableCache(reader.user, kept)
        self._vhosts: TableCache[bytes, Vhost] = TableCache(reader.vhost, kept)
        self._permissions: TableCache[UserVhost, PermissionSet] = TableCache(
            reader.permissions, kept
        )
        self._topics: TableCache[UserVhostExchange, TopicPermissionSet] = TableCache(
            reader.topic_permissions, kept
        )
        self._metadata: TableCache[str, object] = TableCache(reader.metadata, kept)
        self._tables: tuple[_Table, ...] = (
            self._users,
            self._vhosts,
            self._permissions,
            self._topics,
            self._metadata,
        )

    def __len__(self) -> int:
        """Keys remembered, with and without a row."""
        return sum(len(table) for table in self._tables)

    def user(self, name: bytes) -> User | None:
        with self._lock:
            return self._users.get(name)

    def vhost(self, name: bytes) -> Vhost | None:
        with self._lock:
            return self._vhosts.get(name)

    def permissions(self, user: bytes, vhost: bytes) -> PermissionSet | None:
        with self._lock:
            return self._permissions.get((user, vhost))

    def topic_permissions(
        self, user: bytes, vhost: bytes, exchange: bytes
    ) -> TopicPermissionSet | None:
        with self._lock:
            return self._topics.get((user, vhost, exchange))

    def metadata(self, key: str) -> object:
        with self._lock:
            return self._metadata.get(key)

    def forget(self, events: Iterable[StoreEvent]) -> None:
        """Forget what the events are about; after it, reads give what is committed."""
        with self._lock:
            for event in events:
                self._forget(event)

    def _forget(self, event: StoreEvent) -> None:
        match event:
            case PermissionsChanged(user, vhost):
                self._permissions.forget((user, vhost))
            case TopicPermissionsChanged(user, vhost, exchange):
                self._topics.forget((user, vhost, exchange))
            case (
                UserAdded(name)
                | PasswordChanged(name)
                | PasswordRehashed(name)
                | UserTagsChanged(name)
                | UserLimitsChanged(name)
            ):
                self._users.forget(name)
            case VhostAdded(name) | VhostChanged(name) | VhostLimitsChanged(name):
                self._vhosts.forget(name)
            case MetadataChanged(key):
                self._metadata.forget(key)
            case UserDeleted() | VhostDeleted() | Reloaded():
                # The permissions went with it, and no event tells which ones those were.
                for table in self._tables:
                    table.clear()
