"""The statements: every row that is read or written, and how it becomes a value.

Two ways to read. A point read finds one row by its primary key (10-20 us). A listing walks a
table in the order of its key, a page at a time: it holds neither a transaction nor the whole,
so it may be abandoned half way, and rows changed meanwhile are seen or not; in a view (see
``SqliteDatabase.view``) the same listing is of one moment.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store.connection import Connection, Row, Value
from gatekeeper.store.records import User, UserVhost, UserVhostExchange, Vhost

PAGE = 500
"""Rows that a listing fetches at a time: a few milliseconds."""

_T = TypeVar("_T")


class Reader:
    """Reads on one connection. Every method raises StoreError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # -- point reads ---------------------------------------------------------------------

    def user(self, name: bytes) -> User | None:
        return self._one(_USER, (name,), _user)

    def vhost(self, name: bytes) -> Vhost | None:
        return self._one(_VHOST, (name,), _vhost)

    def permissions(self, key: UserVhost) -> PermissionSet | None:
        return self._one(_PERMISSIONS, key, _permissions)

    def topic_permissions(self, key: UserVhostExchange) -> TopicPermissionSet | None:
        return self._one(_TOPIC_PERMISSIONS, key, _topic_permissions)

    def metadata(self, key: str) -> object:
        """None where there is none."""
        statement = "SELECT value FROM metadata WHERE key = ?"
        return self._one(statement, (key,), lambda row: json.loads(row[0]))

    def has_metadata(self, key: str) -> bool:
        """Told apart from a value that is null."""
        statement = "SELECT EXISTS (SELECT 1 FROM metadata WHERE key = ?)"
        return bool(self._connection.number(statement, (key,)))

    def all_metadata(self) -> Iterator[tuple[str, object]]:
        """(key, value) by key; a handful."""
        rows = self._connection.rows("SELECT key, value FROM metadata ORDER BY key")
        return ((row[0], self._decoded(lambda one: json.loads(one[1]), row)) for row in rows)

    def is_blank(self) -> bool:
        """Without users or without vhosts (RabbitMQ 4.x: rabbit_db)."""
        both = "SELECT EXISTS (SELECT 1 FROM users) AND EXISTS (SELECT 1 FROM vhosts)"
        return not self._connection.number(both)

    def _one(
        self, statement: str, key: tuple[Value, ...], decode: Callable[[Row], _T]
    ) -> _T | None:
        row = self._connection.row(statement, key)
        return None if row is None else self._decoded(decode, row)

    def _decoded(self, decode: Callable[[Row], _T], row: Row) -> _T:
        try:
            return decode(row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._connection.unreadable(error) from error

    # -- listings ------------------------------------------------------------------------

    def users(self) -> Iterator[User]:
        """By name."""
        return (self._decoded(_user, row) for row in self._pages(_USERS_FROM))

    def vhosts(self) -> Iterator[Vhost]:
        """By name."""
        return (self._decoded(_vhost, row) for row in self._pages(_VHOSTS_FROM))

    def all_permissions(
        self, *, user: bytes | None = None, vhost: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes, PermissionSet]]:
        """(user, vhost, permissions) in this order; of one user, of one vhost, or all."""
        if user is not None:
            rows = self._pages(_PERMISSIONS_OF, user)
        elif vhost is not None:
            rows = self._pages(_PERMISSIONS_IN, vhost)
        else:
            rows = self._pages(_PERMISSIONS_FROM)
        return ((*row[:2], self._decoded(_permissions, row[2:])) for row in rows)

    def all_topic_permissions(
        self, *, user: bytes | None = None, vhost: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes, bytes, TopicPermissionSet]]:
        """(user, vhost, exchange, permissions) in this order; of one user, one vhost, or all."""
        if user is not None:
            rows = self._pages(_TOPICS_OF, user)
        elif vhost is not None:
            rows = self._pages(_TOPICS_IN, vhost)
        else:
            rows = self._pages(_TOPICS_FROM)
        return ((*row[:3], self._decoded(_topic_permissions, row[3:])) for row in rows)

    def _pages(self, listing: _Listing, *fixed: Value) -> Iterator[Row]:
        key: list[bytes] = [b""] * len(listing.key)
        while True:
            page = self._connection.rows(listing.statement, (*fixed, *key, PAGE))
            yield from page
            if len(page) < PAGE:
                return
            key = [page[-1][column] for column in listing.key]
            key[-1] += b"\0"  # nothing comes between a name and this one

    def topic_exchanges(self, key: UserVhost) -> list[bytes]:
        """The exchanges on which the user has topic permissions."""
        statement = "SELECT exchange FROM topic_permissions WHERE user = ? AND vhost = ?"
        return [row[0] for row in self._connection.rows(statement, key)]


class Writer(Reader):
    """Reads and writes in the open transaction; writes have no effect until it is committed."""

    def put_user(self, user: User) -> None:
        self._write(
            "INSERT INTO users (name, password_hash, algorithm, tags, limits, incarnation) "
            "VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET password_hash = excluded.password_hash, "
            "algorithm = excluded.algorithm, tags = excluded.tags, limits = excluded.limits",
            user.name,
            user.password_hash,
            user.algorithm,
            _json(list(user.tags)),
            _json(dict(user.limits)),
            user.incarnation,
        )

    def drop_user(self, name: bytes) -> None:
        """The user's permissions go with it."""
        self._write("DELETE FROM users WHERE name = ?", name)

    def put_vhost(self, vhost: Vhost) -> None:
        metadata = {
            "default_queue_type": vhost.default_queue_type,
            "protected_from_deletion": vhost.protected,
        }
        self._write(
            "INSERT INTO vhosts (name, description, tags, metadata, limits, incarnation) "
            "VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET description = excluded.description, "
            "tags = excluded.tags, metadata = excluded.metadata, limits = excluded.limits",
            vhost.name,
            vhost.description,
            _json(list(vhost.tags)),
            _json(metadata),
            _json(dict(vhost.limits)),
            vhost.incarnation,
        )

    def rehash(self, user: User, password_hash: bytes, algorithm: str) -> bool:
        """Replace the user's hash, if it is still the one in ``user``; False if it is not."""
        changed = self._connection.rows(
            "UPDATE users SET password_hash = ?, algorithm = ?, rehashes = rehashes + 1 "
            "WHERE name = ? AND incarnation = ? AND password_hash = ? AND algorithm = ? "
            "RETURNING 1",
            (
                password_hash,
                algorithm,
                user.name,
                user.incarnation,
                user.password_hash,
                user.algorithm,
            ),
        )
        return bool(changed)

    def drop_vhost(self, name: bytes) -> None:
        """The permissions in it go with it."""
        self._write("DELETE FROM vhosts WHERE name = ?", name)

    def put_permissions(self, rows: Iterable[tuple[UserVhost, PermissionSet]]) -> None:
        """Users and vhosts must exist."""
        self._connection.run_many(
            "INSERT INTO permissions (user, vhost, configure, write, read) "
            "VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (user, vhost) DO UPDATE SET configure = excluded.configure, "
            "write = excluded.write, read = excluded.read",
            ((*key, one.configure, one.write, one.read) for key, one in rows),
        )

    def drop_permissions(self, key: UserVhost) -> None:
        self._write("DELETE FROM permissions WHERE user = ? AND vhost = ?", *key)

    def put_topic_permissions(
        self, rows: Iterable[tuple[UserVhostExchange, TopicPermissionSet]]
    ) -> None:
        """Users and vhosts must exist."""
        self._connection.run_many(
            "INSERT INTO topic_permissions (user, vhost, exchange, write, read) "
            "VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (user, vhost, exchange) DO UPDATE SET write = excluded.write, "
            "read = excluded.read",
            ((*key, one.write, one.read) for key, one in rows),
        )

    def drop_topic_permissions(self, key: UserVhostExchange) -> None:
        self._write(
            "DELETE FROM topic_permissions WHERE user = ? AND vhost = ? AND exchange = ?", *key
        )

    def put_metadata(self, key: str, value: object) -> None:
        self._write(
            "INSERT INTO metadata (key, value) VALUES (?, ?) "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            key,
            _json(value),
        )

    def drop_metadata(self, key: str) -> None:
        self._write("DELETE FROM metadata WHERE key = ?", key)

    def _write(self, statement: str, *values: Value) -> None:
        self._connection.rows(statement, values)


# -- statements --------------------------------------------------------------------------

_USER = "SELECT name, password_hash, algorithm, tags, limits, incarnation FROM users WHERE name = ?"
_VHOST = "SELECT name, description, tags, metadata, limits, incarnation FROM vhosts WHERE name = ?"
_PERMISSIONS = "SELECT configure, write, read FROM permissions WHERE user = ? AND vhost = ?"
_TOPIC_PERMISSIONS = (
    "SELECT write, read FROM topic_permissions WHERE user = ? AND vhost = ? AND exchange = ?"
)
POINT_READS = (_USER, _VHOST, _PERMISSIONS, _TOPIC_PERMISSIONS)


@dataclass(frozen=True, slots=True)
class _Listing:
    """A page of rows, from a key on. key: the columns that hold it, counted from 0."""

    statement: str
    key: tuple[int, ...]


_USERS_FROM = _Listing(
    "SELECT name, password_hash, algorithm, tags, limits, incarnation FROM users "
    "WHERE name >= ? ORDER BY name LIMIT ?",
    key=(0,),
)
_VHOSTS_FROM = _Listing(
    "SELECT name, description, tags, metadata, limits, incarnation FROM vhosts "
    "WHERE name >= ? ORDER BY name LIMIT ?",
    key=(0,),
)
_PERMISSIONS_FROM = _Listing(
    "SELECT user, vhost, configure, write, read FROM permissions "
    "WHERE (user, vhost) >= (?, ?) ORDER BY user, vhost LIMIT ?",
    key=(0, 1),
)
_PERMISSIONS_OF = _Listing(
    "SELECT user, vhost, configure, write, read FROM permissions "
    "WHERE user = ? AND vhost >= ? ORDER BY vhost LIMIT ?",
    key=(1,),
)
_PERMISSIONS_IN = _Listing(
    "SELECT user, vhost, configure, write, read FROM permissions "
    "WHERE vhost = ? AND user >= ? ORDER BY user LIMIT ?",
    key=(0,),
)
_TOPICS_FROM = _Listing(
    "SELECT user, vhost, exchange, write, read FROM topic_permissions "
    "WHERE (user, vhost, exchange) >= (?, ?, ?) ORDER BY user, vhost, exchange LIMIT ?",
    key=(0, 1, 2),
)
_TOPICS_OF = _Listing(
    "SELECT user, vhost, exchange, write, read FROM topic_permissions "
    "WHERE user = ? AND (vhost, exchange) >= (?, ?) ORDER BY vhost, exchange LIMIT ?",
    key=(1, 2),
)
_TOPICS_IN = _Listing(
    "SELECT user, vhost, exchange, write, read FROM topic_permissions "
    "WHERE vhost = ? AND (user, exchange) >= (?, ?) ORDER BY user, exchange LIMIT ?",
    key=(0, 2),
)

# -- values ------------------------------------------------------------------------------


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


# Most rows share a few values; nobody may change what they share.


@functools.lru_cache(maxsize=256)
def _tags(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


@functools.lru_cache(maxsize=256)
def _limits(text: str) -> dict[str, int]:
    return {str(name): int(value) for name, value in json.loads(text).items()}


def _user(row: Row) -> User:
    name, password_hash, algorithm, tags, limits, incarnation = row
    return User(name, _octets(password_hash), algorithm, _tags(tags), _limits(limits), incarnation)


def _vhost(row: Row) -> Vhost:
    name, description, tags, metadata, limits, incarnation = row
    details = json.loads(metadata)
    return Vhost(
        name=name,
        description=description,
        tags=_tags(tags),
        default_queue_type=details["default_queue_type"],
        protected=details["protected_from_deletion"],
        limits=_limits(limits),
        incarnation=incarnation,
    )


def _permissions(row: Row) -> PermissionSet:
    configure, write, read = row
    return PermissionSet(_octets(configure), _octets(write), _octets(read))


def _topic_permissions(row: Row) -> TopicPermissionSet:
    write, read = row
    return TopicPermissionSet(_octets(write), _octets(read))


def _octets(value: object) -> bytes:
    """SQLite's columns hold values of any type: another program may have written a text."""
    if not isinstance(value, bytes):
        raise TypeError(f"bytes expected, found {type(value).__name__}")
    return value
