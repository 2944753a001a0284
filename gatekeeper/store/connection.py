"""One SQLite connection whose errors are lines for the operator, and which threads may share.

Rows are fetched whole: a statement that is left half read would hold its view of the database,
and the connection would go on answering with what has since been revoked.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gatekeeper.errors import StoreError

Value = bytes | str | int | None
Row = tuple[Any, ...]


class Connection:
    """A connection in autocommit mode: transactions begin and end by statements of their own.

    Every method raises StoreError where SQLite fails. Not for use after a fork.
    """

    def __init__(self, path: str, target: str, timeout: float) -> None:
        """path: what messages call the file. target: the URI that SQLite opens.

        timeout: seconds to wait for another connection's lock.
        """
        self.path = path
        # Re-entrant: what run_many draws from may itself read.
        self._lock = threading.RLock()
        with explained(path):
            self._connection = sqlite3.connect(
                target, timeout=timeout, isolation_level=None, check_same_thread=False, uri=True
            )

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def rows(self, statement: str, values: Sequence[Value] = ()) -> list[Row]:
        """All rows of a query, as of one moment."""
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _in_words(self.path, error) from error

    def row(self, statement: str, values: Sequence[Value] = ()) -> Row | None:
        """The first row of a query that has at most one; None where it has none."""
        found = self.rows(statement, values)
        return found[0] if found else None

    def number(self, statement: str, values: Sequence[Value] = ()) -> int:
        """The single number that a query always gives."""
        return int(self.rows(statement, values)[0][0])

    def run_many(self, statement: str, values: Iterable[Sequence[Value]]) -> None:
        """One statement for each of ``values``; what raises in there is raised as it is."""
        try:
            with self._lock:
                self._connection.executemany(statement, values)
        except sqlite3.Error as error:
            raise _in_words(self.path, error) from error

    def unreadable(self, error: Exception) -> StoreError:
        """A row that this program cannot have written."""
        return StoreError(
            f"store.url: {self.path} holds a row that cannot be read ({error}); restore a backup"
        )


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """SQLite's errors as one line for the operator."""
    try:
        yield
    except sqlite3.Error as error:
        raise _in_words(path, error) from error


def _in_words(path: str, error: sqlite3.Error) -> StoreError:
    if "malformed" in str(error):
        remedy = "the file is damaged: restore a backup"
    elif not isinstance(error, sqlite3.OperationalError):
        remedy = "name an SQLite file of this program, or a new one"
    elif "locked" in str(error) or "busy" in str(error):
        remedy = "another process holds it; try again when that has finished"
    else:
        remedy = "check the file, its directory and the free space on that disk"
    return StoreError(f"store.url: {path}: {error}; {remedy}")
