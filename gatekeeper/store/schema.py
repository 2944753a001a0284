"""The SQLite schema, as numbered migrations: a released one is never edited, only followed.

Names and patterns are BLOBs: they are bytes, compared octet by octet. Everything that has no
query of its own (tags, limits, vhost metadata) is JSON text.

Every difference that a commit makes is written to ``changes`` by triggers, so that no writer,
be it another program, can forget it. The log keeps its last ``CHANGES_KEPT`` rows; its numbers
have no gaps (a rollback gives them back), so a reader sees by itself when it has missed some.
"""

from __future__ import annotations

APPLICATION_ID = 0x676B6570
"""``gkep``: in the file's header, so that another program's database is never taken for ours."""

CHANGES_KEPT = 10_000
"""Rows of the change log, and up to 99 more: what a reader may miss and still be told of."""

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
    (
        """
        CREATE TABLE changes (
            sequence INTEGER PRIMARY KEY NOT NULL,
            kind TEXT NOT NULL,
            user BLOB,
            vhost BLOB,
            exchange BLOB,
            key TEXT
        )
        """,
        """
        CREATE TRIGGER changes_bounded AFTER INSERT ON changes
        WHEN new.sequence % 100 = 0
        BEGIN
            DELETE FROM changes WHERE sequence <= new.sequence - 10000;
        END
        """,
        """
        CREATE TRIGGER users_inserted AFTER INSERT ON users BEGIN
            INSERT INTO changes (kind, user) VALUES ('UserAdded', new.name);
        END
        """,
        """
        CREATE TRIGGER users_deleted AFTER DELETE ON users BEGIN
            INSERT INTO changes (kind, user) VALUES ('UserDeleted', old.name);
        END
        """,
        """
        CREATE TRIGGER users_updated AFTER UPDATE ON users BEGIN
            INSERT INTO changes (kind, user) SELECT 'PasswordChanged', new.name
                WHERE (old.password_hash, old.algorithm)
                    IS NOT (new.password_hash, new.algorithm);
            INSERT INTO changes (kind, user) SELECT 'UserTagsChanged', new.name
                WHERE old.tags IS NOT new.tags;
            INSERT INTO changes (kind, user) SELECT 'UserLimitsChanged', new.name
                WHERE old.limits IS NOT new.limits;
            INSERT INTO changes (kind, user) SELECT 'UserDeleted', old.name
                WHERE (old.name, old.incarnation) IS NOT (new.name, new.incarnation);
            INSERT INTO changes (kind, user) SELECT 'UserAdded', new.name
                WHERE (old.name, old.incarnation) IS NOT (new.name, new.incarnation);
        END
        """,
        """
        CREATE TRIGGER vhosts_inserted AFTER INSERT ON vhosts BEGIN
            INSERT INTO changes (kind, vhost) VALUES ('VhostAdded', new.name);
        END
        """,
        """
        CREATE TRIGGER vhosts_deleted AFTER DELETE ON vhosts BEGIN
            INSERT INTO changes (kind, vhost) VALUES ('VhostDeleted', old.name);
        END
        """,
        """
        CREATE TRIGGER vhosts_updated AFTER UPDATE ON vhosts BEGIN
            INSERT INTO changes (kind, vhost) SELECT 'VhostChanged', new.name
                WHERE (old.description, old.tags, old.metadata)
                    IS NOT (new.description, new.tags, new.metadata);
            INSERT INTO changes (kind, vhost) SELECT 'VhostLimitsChanged', new.name
                WHERE old.limits IS NOT new.limits;
            INSERT INTO changes (kind, vhost) SELECT 'VhostDeleted', old.name
                WHERE (old.name, old.incarnation) IS NOT (new.name, new.incarnation);
            INSERT INTO changes (kind, vhost) SELECT 'VhostAdded', new.name
                WHERE (old.name, old.incarnation) IS NOT (new.name, new.incarnation);
        END
        """,
        """
        CREATE TRIGGER permissions_inserted AFTER INSERT ON permissions BEGIN
            INSERT INTO changes (kind, user, vhost)
                VALUES ('PermissionsChanged', new.user, new.vhost);
        END
        """,
        """
        CREATE TRIGGER permissions_updated AFTER UPDATE ON permissions
        WHEN (old.configure, old.write, old.read) IS NOT (new.configure, new.write, new.read)
        BEGIN
            INSERT INTO changes (kind, user, vhost)
                VALUES ('PermissionsChanged', new.user, new.vhost);
        END
        """,
        # What goes with its user or vhost is told by their deletion, once for all.
        """
        CREATE TRIGGER permissions_deleted AFTER DELETE ON permissions
        WHEN EXISTS (SELECT 1 FROM users WHERE name = old.user)
            AND EXISTS (SELECT 1 FROM vhosts WHERE name = old.vhost)
        BEGIN
            INSERT INTO changes (kind, user, vhost)
                VALUES ('PermissionsChanged', old.user, old.vhost);
        END
        """,
        """
        CREATE TRIGGER topic_permissions_inserted AFTER INSERT ON topic_permissions BEGIN
            INSERT INTO changes (kind, user, vhost, exchange)
                VALUES ('TopicPermissionsChanged', new.user, new.vhost, new.exchange);
        END
        """,
        """
        CREATE TRIGGER topic_permissions_updated AFTER UPDATE ON topic_permissions
        WHEN (old.write, old.read) IS NOT (new.write, new.read)
        BEGIN
            INSERT INTO changes (kind, user, vhost, exchange)
                VALUES ('TopicPermissionsChanged', new.user, new.vhost, new.exchange);
        END
        """,
        """
        CREATE TRIGGER topic_permissions_deleted AFTER DELETE ON topic_permissions
        WHEN EXISTS (SELECT 1 FROM users WHERE name = old.user)
            AND EXISTS (SELECT 1 FROM vhosts WHERE name = old.vhost)
        BEGIN
            INSERT INTO changes (kind, user, vhost, exchange)
                VALUES ('TopicPermissionsChanged', old.user, old.vhost, old.exchange);
        END
        """,
        """
        CREATE TRIGGER metadata_inserted AFTER INSERT ON metadata BEGIN
            INSERT INTO changes (kind, key) VALUES ('MetadataChanged', new.key);
        END
        """,
        """
        CREATE TRIGGER metadata_updated AFTER UPDATE ON metadata
        WHEN old.value IS NOT new.value
        BEGIN
            INSERT INTO changes (kind, key) VALUES ('MetadataChanged', new.key);
        END
        """,
        """
        CREATE TRIGGER metadata_deleted AFTER DELETE ON metadata BEGIN
            INSERT INTO changes (kind, key) VALUES ('MetadataChanged', old.key);
        END
        """,
    ),
    (
        # Counts the passwords that were only hashed anew. Who changes a hash and leaves this
        # alone has changed the password.
        "ALTER TABLE users ADD COLUMN rehashes INTEGER NOT NULL DEFAULT 0",
        "DROP TRIGGER users_updated",
        """
        CREATE TRIGGER users_updated AFTER UPDATE ON users BEGIN
            INSERT INTO changes (kind, user)
                SELECT iif(old.rehashes IS new.rehashes, 'PasswordChanged', 'PasswordRehashed'),
                    new.name
                WHERE (old.password_hash, old.algorithm)
                    IS NOT (new.password_hash, new.algorithm);
            INSERT INTO changes (kind, user) SELECT 'UserTagsChanged', new.name
                WHERE old.tags IS NOT new.tags;
            INSERT INTO changes (kind, user) SELECT 'UserLimitsChanged', new.name
                WHERE old.limits IS NOT new.limits;
            INSERT INTO changes (kind, user) SELECT 'UserDeleted', old.name
                WHERE (old.name, old.incarnation) IS NOT (new.name, new.incarnation);
            INSERT INTO changes (kind, user) SELECT 'UserAdded', new.name
                WHERE (old.name, old.incarnation) IS NOT (new.name, new.incarnation);
        END
        """,
    ),
)

VERSION = len(MIGRATIONS)
