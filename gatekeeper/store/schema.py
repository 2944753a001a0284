"""The SQLite schema, as numbered migrations: a released one is never edited, only followed.

Names and patterns are BLOBs: they are bytes, compared octet by octet. Everything that has no
query of its own (tags, limits, vhost metadata) is JSON text.
"""

from __future__ import annotations

APPLICATION_ID = 0x676B6570
"""``gkep``: in the file's header, so that another program's database is never taken for ours."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE users (
            name BLOB PRIMARY KEY NOT NULL,
            password_hash BLOB NOT NULL,
            algorithm TEXT NOT NULL,
            tags TEXT NOT NULL,
            limits TEXT NOT NULL,
            incarnation INTEGER NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE vhosts (
            name BLOB PRIMARY KEY NOT NULL,
            description TEXT NOT NULL,
            tags TEXT NOT NULL,
            metadata TEXT NOT NULL,
            limits TEXT NOT NULL,
            incarnation INTEGER NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE permissions (
            user BLOB NOT NULL REFERENCES users (name) ON DELETE CASCADE,
            vhost BLOB NOT NULL REFERENCES vhosts (name) ON DELETE CASCADE,
            configure BLOB NOT NULL,
            write BLOB NOT NULL,
            read BLOB NOT NULL,
            PRIMARY KEY (user, vhost)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX permissions_by_vhost ON permissions (vhost)",
        """
        CREATE TABLE topic_permissions (
            user BLOB NOT NULL REFERENCES users (name) ON DELETE CASCADE,
            vhost BLOB NOT NULL REFERENCES vhosts (name) ON DELETE CASCADE,
            exchange BLOB NOT NULL,
            write BLOB NOT NULL,
            read BLOB NOT NULL,
            PRIMARY KEY (user, vhost, exchange)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX topic_permissions_by_vhost ON topic_permissions (vhost)",
        """
        CREATE TABLE metadata (
            key TEXT PRIMARY KEY NOT NULL,
            value TEXT NOT NULL
        ) WITHOUT ROWID
        """,
    ),
)

VERSION = len(MIGRATIONS)
