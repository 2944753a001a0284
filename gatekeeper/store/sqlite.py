"""The store's file: SQLite in WAL mode, synchronous=FULL, one writer at a time.

What is committed survives ``kill -9`` and a power cut. One connection reads and another one
writes, so that a change under way, however long, keeps no login waiting; nothing is held in
memory but SQLite's own few pages. A file is looked at before it is touched: another program's,
a newer version's or a broken one is refused as it is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from gatekeeper.errors import StoreError
from gatekeeper.store.changelog import event
from gatekeeper.store.connection import Connection
from gatekeeper.store.records import StoreEvent
from gatekeeper.store.rows import POINT_READS, Reader, Writer
from gatekeeper.store.schema import APPLICATION_ID, MIGRATIONS, VERSION

MEMORY = ":memory:"
BUSY_TIMEOUT_S = 5.0
"""How long a change waits for another process's to finish."""
READ_TIMEOUT_S = 1.0
"""How long a read waits: only while another process recovers the file after a crash."""
READ_CACHE_KIB = 4 * 1024
"""Pages kept for reading: about the inner pages of a file with a million permissions."""
WRITE_CACHE_KIB = 32 * 1024
"""Pages that a change may keep in memory; freed when it ends. Imports are slow with less."""
READ_AHEAD = 256 * 1024 * 1024
"""Bytes of the file that the system is asked to read ahead, into its own cache, at the start."""
WAL_KEPT = 16 * 1024 * 1024
"""Bytes of the write-ahead log that stay when a large change has gone into the file."""


_EACH_WRITER = ("synchronous = FULL", "foreign_keys = ON")


@dataclass(frozen=True, slots=True)
class News:
    """What was committed after a sequence number. missed: something before that is not told."""

    sequence: int
    events: tuple[StoreEvent, ...]
    missed: bool = False


class SqliteDatabase:
    """Two connections to one file. Not for use after a fork; one thread at a time may write.

    A third is for what is written beside the changes (:meth:`aside`), once there is any.
    """

    def __init__(self, path: str, target: str) -> None:
        self._path = path
        self._target = target
        self._writing = Connection(path, target, BUSY_TIMEOUT_S)
        self._seen_version = -1
        self._open: list[Connection] = [self._writing]
        self._aside: Connection | None = None
        self.reader: Reader
        """Reads what is committed; any thread may use it."""

    @classmethod
    def open(cls, path: str) -> SqliteDatabase:
        """Open or create the file at ``path``, with the newest schema. Raises StoreError."""
        if path == MEMORY:
            # A database of this process alone that several connections can open.
            target = f"file:/gatekeeper-{secrets.token_hex(8)}?vfs=memdb"
        else:
            _prepare(Path(path))
            target = f"file:{quote(os.fsencode(path))}"
        database = cls(path, target)
        try:
            database._check_and_migrate()
            database.reader = Reader(database._reading())
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """The last connection to close tidies up the log, so the writing one goes last."""
        while self._open:
            self._open.pop().close()

    def _reading(self) -> Connection:
        connection = Connection(self._path, self._target, READ_TIMEOUT_S)
        self._open.append(connection)
        connection.rows("PRAGMA query_only = ON")
        connection.rows(f"PRAGMA cache_size = -{READ_CACHE_KIB}")
        for statement in POINT_READS:
            # A missing table is found now; and the first login finds statements and inner pages
            # ready.
            connection.rows(statement, (b"",) * statement.count("?"))
        return connection

    # -- reading -------------------------------------------------------------------------

    @contextlib.contextmanager
    def view(self) -> Iterator[Reader]:
        """Reads that all see the moment of the first one. Raises StoreError.

        While it is open the write-ahead log cannot shrink: not for a reader who may stall.
        """
        connection = Connection(self._path, self._target, READ_TIMEOUT_S)
        try:
            connection.rows("PRAGMA query_only = ON")
            connection.rows("BEGIN")
            yield Reader(connection)
        finally:
            connection.close()

    def changed_elsewhere(self) -> bool:
        """Has another process committed since the last :meth:`news`? Raises StoreError."""
        return self._data_version() != self._seen_version

    def sequence(self) -> int:
        """The number of the last change."""
        return self._writing.number("SELECT ifnull(max(sequence), 0) FROM changes")

    def news(self, since: int) -> News:
        """What was committed after the change numbered ``since``, by any process.

        Raises StoreError; nothing is lost then, the next call tells.
        """
        # The version first: what is committed between the two will be looked at once more.
        version = self._data_version()
        rows = self._writing.rows(
            "SELECT sequence, kind, user, vhost, exchange, key FROM changes "
            "WHERE sequence > ? ORDER BY sequence",
            (since,),
        )
        if rows:
            latest = int(rows[-1][0])
            told = [event(*row[1:]) for row in rows]
            events = tuple(one for one in told if one is not None)
            # Numbers have no gaps; and a kind may be of a newer program's making.
            missed = int(rows[0][0]) != since + 1 or len(events) != len(told)
            news = News(latest, () if missed else events, missed)
        else:
            latest = self.sequence()
            news = News(latest, (), missed=latest < since)  # an older copy was put back
        self._seen_version = version
        return news

    def _data_version(self) -> int:
        return self._writing.number("PRAGMA data_version")

    # -- writing -------------------------------------------------------------------------

    def transaction(self) -> contextlib.AbstractContextManager[Writer]:
        """All that is written inside, or nothing. Raises StoreError.

        The write lock is taken at once: what is read inside cannot be outdated at the commit.
        """
        return _transaction(self._writing)

    @contextlib.contextmanager
    def aside(self) -> Iterator[Writer]:
        """As :meth:`transaction`, but :meth:`news` can be had while it waits for its turn.

        They tell of it as if it were another process's. One thread at a time.
        """
        if self._aside is None:
            self._aside = Connection(self._path, self._target, BUSY_TIMEOUT_S)
            self._open.append(self._aside)
            for pragma in _EACH_WRITER:
                self._aside.rows(f"PRAGMA {pragma}")
        with _transaction(self._aside) as rows:
            yield rows

    # -- the file ------------------------------------------------------------------------

    def _check_and_migrate(self) -> None:
        run = self._writing.rows
        version = self._check_ours()
        journal = "MEMORY" if self._path == MEMORY else "WAL"
        for pragma in (
            f"journal_mode = {journal}",
            f"journal_size_limit = {WAL_KEPT}",
            *_EACH_WRITER,
            f"cache_size = -{WRITE_CACHE_KIB}",
        ):
            run(f"PRAGMA {pragma}")
        if version == VERSION:
            return
        with self.transaction():
            # Another process may have been faster, between the first look and the lock.
            for number in range(self._check_ours(), VERSION):
                for statement in MIGRATIONS[number]:
                    run(statement)
            run(f"PRAGMA application_id = {APPLICATION_ID}")
            run(f"PRAGMA user_version = {VERSION}")

    def _check_ours(self) -> int:
        """The file's schema version, 0 where it is empty. Raises StoreError."""
        number = self._writing.number
        tables = number("SELECT count(*) FROM sqlite_master")
        application = number("PRAGMA application_id")
        version = number("PRAGMA user_version")
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


@contextlib.contextmanager
def _transaction(connection: Connection) -> Iterator[Writer]:
    run = connection.rows
    run("BEGIN IMMEDIATE")
    try:
        yield Writer(connection)
        run("COMMIT")
    except BaseException:
        if connection.in_transaction:
            # If this fails too, closing the connection rolls back.
            with contextlib.suppress(StoreError):
                run("ROLLBACK")
        raise
    finally:
        with contextlib.suppress(StoreError):
            run("PRAGMA shrink_memory")


def _prepare(path: Path) -> None:
    """Make sure that the file can be opened, and that a new one is private: it holds hashes."""
    if not path.parent.is_dir():
        raise StoreError(
            f"store.url: the directory {path.parent} does not exist or cannot be entered; "
            "create it, owned by the gatekeeper's user"
        )
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fadvise"):
                # Spares the first login of each user a wait for the disk.
                os.posix_fadvise(descriptor, 0, READ_AHEAD, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(
            f"store.url: cannot open {path} for writing: {error.strerror}; "
            "check the owner and mode of the file and its directory"
        ) from error
