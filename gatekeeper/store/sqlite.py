"""The store's rows in one SQLite file: WAL, synchronous=FULL, one writer at a time.

What is committed survives ``kill -9`` and a power cut. Nothing here is on a path that judges a
client: the rows are read into a snapshot, and written when an operator changes something. A
file is looked at before it is touched: another program's, a newer version's or a broken one is
refused as it is.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gatekeeper.errors import StoreError
from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store.records import Snapshot, User, UserVhost, UserVhostExchange, Vhost
from gatekeeper.store.schema import APPLICATION_ID, MIGRATIONS, VERSION

MEMORY = ":memory:"
BUSY_TIMEOUT_S = 5.0
"""How long a change waits for another process's to finish."""


class SqliteDatabase:
    """One connection. Not for use after a fork, nor by two threads at once."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._seen_version = -1

    @classmethod
    def open(cls, path: str) -> SqliteDatabase:
        """Open or create the file at ``path``, with the newest schema. Raises StoreError."""
        if path != MEMORY:
            _prepare(Path(path))
        with _explained(path):
            connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        database = cls(path, connection)
        try:
            with _explained(path):
                database._check_and_migrate()
        except BaseException:
            connection.close()
            raise
        return database

    def close(self) -> None:
        self._connection.close()

    # -- reading -------------------------------------------------------------------------

    def load(self) -> Snapshot:
        """All rows, as of one moment. Raises StoreError."""
        with _explained(self._path):
            if self._connection.in_transaction:
                return self._load()
            self._connection.execute("BEGIN")
            try:
                return self._load()
            finally:
                self._connection.execute("COMMIT")

    def changed_elsewhere(self) -> bool:
        """Has another connection committed since the last load? Raises StoreError."""
        with _explained(self._path):
            return self._data_version() != self._seen_version

    def _data_version(self) -> int:
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def _load(self) -> Snapshot:
        rows = self._connection.execute
        # A read first: it fixes the state that this transaction sees, version included.
        users = {row[0]: _user(row) for row in rows(_SELECT_USERS)}
        version = self._data_version()
        snapshot = Snapshot(
            users=users,
            vhosts={row[0]: _vhost(row) for row in rows(_SELECT_VHOSTS)},
            permissions={
                (row[0], row[1]): PermissionSet(*row[2:])
                for row in rows("SELECT user, vhost, configure, write, read FROM permissions")
            },
            topic_permissions={
                (row[0], row[1], row[2]): TopicPermissionSet(*row[3:])
                for row in rows("SELECT user, vhost, exchange, write, read FROM topic_permissions")
            },
            metadata={
                row[0]: json.loads(row[1]) for row in rows("SELECT key, value FROM metadata")
            },
        )
        self._seen_version = version
        return snapshot

    # -- writing -------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside, or nothing. Raises StoreError.

        The write lock is taken at once: what is read inside cannot be outdated at the commit.
        """
        with _explained(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with _explained(self._path):
                self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                # If this fails too, closing the connection rolls back.
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
            raise

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

    def drop_vhost(self, name: bytes) -> None:
        """The permissions in it go with it."""
        self._write("DELETE FROM vhosts WHERE name = ?", name)

    def put_permissions(self, key: UserVhost, permissions: PermissionSet) -> None:
        self._write(
            "INSERT OR REPLACE INTO permissions (user, vhost, configure, write, read) "
            "VALUES (?, ?, ?, ?, ?)",
            *key,
            permissions.configure,
            permissions.write,
            permissions.read,
        )

    def drop_permissions(self, key: UserVhost) -> None:
        self._write("DELETE FROM permissions WHERE user = ? AND vhost = ?", *key)

    def put_topic_permissions(
        self, key: UserVhostExchange, permissions: TopicPermissionSet
    ) -> None:
        self._write(
            "INSERT OR REPLACE INTO topic_permissions (user, vhost, exchange, write, read) "
            "VALUES (?, ?, ?, ?, ?)",
            *key,
            permissions.write,
            permissions.read,
        )

    def drop_topic_permissions(self, key: UserVhostExchange) -> None:
        self._write(
            "DELETE FROM topic_permissions WHERE user = ? AND vhost = ? AND exchange = ?", *key
        )

    def put_metadata(self, key: str, value: object) -> None:
        self._write("INSERT OR REPLACE INTO metadata (key, value) VALUES (?, ?)", key, _json(value))

    def drop_metadata(self, key: str) -> None:
        self._write("DELETE FROM metadata WHERE key = ?", key)

    def _write(self, statement: str, *values: bytes | str | int) -> None:
        with _explained(self._path):
            self._connection.execute(statement, values)

    # -- the file ------------------------------------------------------------------------

    def _check_and_migrate(self) -> None:
        version = self._check_ours()
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        if version == VERSION:
            return
        with self.transaction():
            # Another process may have been faster, between the first look and the lock.
            for number in range(self._check_ours(), VERSION):
                for statement in MIGRATIONS[number]:
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version = {VERSION}")

    def _check_ours(self) -> int:
        """The file's schema version, 0 where it is empty. Raises StoreError."""
        first = self._connection.execute
        tables = int(first("SELECT count(*) FROM sqlite_master").fetchone()[0])
        application = int(first("PRAGMA application_id").fetchone()[0])
        version = int(first("PRAGMA user_version").fetchone()[0])
        if not tables and not version:
            return 0
        if application != APPLICATION_ID or version < 1:
            raise StoreError(
                f"store.url: {self._path} is the database of another program; name another file"
            )
        if version > VERSION:
            raise StoreError(
                f"store.url: {self._path} was written by a newer gatekeeper (schema {version}, "
                f"this one knows {VERSION}); run that version, or restore an older copy"
            )
        return version


_SELECT_USERS = "SELECT name, password_hash, algorithm, tags, limits, incarnation FROM users"
_SELECT_VHOSTS = "SELECT name, description, tags, metadata, limits, incarnation FROM vhosts"


def _prepare(path: Path) -> None:
    """Make sure that the file can be opened, and that a new one is private: it holds hashes."""
    if not path.parent.is_dir():
        raise StoreError(
            f"store.url: the directory {path.parent} does not exist or cannot be entered; "
            "create it, owned by the gatekeeper's user"
        )
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(
            f"store.url: cannot open {path} for writing: {error.strerror}; "
            "check the owner and mode of the file and its directory"
        ) from error


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """SQLite's errors, and those of unreadable rows, as one line for the operator."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            remedy = "another process holds it; try again when that has finished"
        else:
            remedy = "check the file, its directory and the free space on that disk"
        raise StoreError(f"store.url: {path}: {error}; {remedy}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"store.url: {path}: {error}; name an SQLite file of this program, or a new one"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # A row that this program cannot have written.
        raise StoreError(
            f"store.url: {path} holds a row that cannot be read ({error}); restore a backup"
        ) from error


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


# Most rows share a few values; nobody may change what they share.


@functools.lru_cache(maxsize=1024)
def _tags(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


@functools.lru_cache(maxsize=1024)
def _limits(text: str) -> dict[str, int]:
    return {str(name): int(value) for name, value in json.loads(text).items()}


def _user(row: tuple[Any, ...]) -> User:
    name, password_hash, algorithm, tags, limits, incarnation = row
    return User(name, password_hash, algorithm, _tags(tags), _limits(limits), incarnation)


def _vhost(row: tuple[Any, ...]) -> Vhost:
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
