"""The change log: what the database tells of changes, whoever makes them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gatekeeper.errors import StoreError
from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.store import changelog, schema
from gatekeeper.store.records import (
    MetadataChanged,
    PasswordChanged,
    PasswordRehashed,
    PermissionsChanged,
    Reloaded,
    StoreEvent,
    TopicPermissionsChanged,
    UserAdded,
    UserDeleted,
    UserLimitsChanged,
    UserTagsChanged,
    VhostAdded,
    VhostChanged,
    VhostDeleted,
    VhostLimitsChanged,
)
from gatekeeper.store.schema import CHANGES_KEPT
from gatekeeper.store.store import Store
from tests.store.contents import check_reads


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite://{path}")
    store.add_user(b"u", b"pw")
    store.add_vhost(b"v")
    store.set_permissions(b"u", b"v", b"", b"", b"")
    store.set_topic_permissions(b"u", b"v", b"x", b"", b"")
    store.set_metadata("k", 1)
    yield store
    store.close()


def listen(store: Store) -> list[StoreEvent]:
    events: list[StoreEvent] = []
    store.subscribe(events.append)
    return events


def by_hand(path: Path, *statements: str) -> None:
    """Another program: with its own idea of foreign keys, and without ours of events."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for statement in statements:
            connection.execute(statement)
    connection.close()


# -- every difference has its event ------------------------------------------------------

BY_HAND: list[tuple[str, list[StoreEvent]]] = [
    ("UPDATE users SET password_hash = x'00'", [PasswordChanged(b"u")]),
    ("UPDATE users SET algorithm = 'other'", [PasswordChanged(b"u")]),
    (
        "UPDATE users SET algorithm = 'other', rehashes = rehashes + 1",
        [PasswordRehashed(b"u")],
    ),
    ("UPDATE users SET rehashes = rehashes + 1", []),
    ("UPDATE users SET tags = '[\"t\"]'", [UserTagsChanged(b"u")]),
    ("UPDATE users SET limits = '{\"max-channels\":1}'", [UserLimitsChanged(b"u")]),
    ("UPDATE users SET incarnation = 7", [UserDeleted(b"u"), UserAdded(b"u")]),
    ("UPDATE vhosts SET description = 'd'", [VhostChanged(b"v")]),
    ("UPDATE vhosts SET tags = '[\"t\"]'", [VhostChanged(b"v")]),
    ("UPDATE vhosts SET limits = '{\"max-queues\":1}'", [VhostLimitsChanged(b"v")]),
    ("UPDATE vhosts SET incarnation = 7", [VhostDeleted(b"v"), VhostAdded(b"v")]),
    ("UPDATE permissions SET configure = x'41'", [PermissionsChanged(b"u", b"v")]),
    ("UPDATE permissions SET write = x'41'", [PermissionsChanged(b"u", b"v")]),
    ("UPDATE permissions SET read = x'41'", [PermissionsChanged(b"u", b"v")]),
    ("DELETE FROM permissions", [PermissionsChanged(b"u", b"v")]),
    (
        "INSERT OR REPLACE INTO permissions VALUES (x'75', x'76', x'41', x'', x'')",
        [PermissionsChanged(b"u", b"v")],
    ),
    ("UPDATE topic_permissions SET write = x'41'", [TopicPermissionsChanged(b"u", b"v", b"x")]),
    ("UPDATE topic_permissions SET read = x'41'", [TopicPermissionsChanged(b"u", b"v", b"x")]),
    ("DELETE FROM topic_permissions", [TopicPermissionsChanged(b"u", b"v", b"x")]),
    ("UPDATE metadata SET value = '2'", [MetadataChanged("k")]),
    ("DELETE FROM metadata", [MetadataChanged("k")]),
    ("DELETE FROM users", [UserDeleted(b"u")]),
    ("DELETE FROM vhosts", [VhostDeleted(b"v")]),
    ("UPDATE users SET tags = tags", []),
    ("UPDATE permissions SET read = read", []),
]


@pytest.mark.parametrize(("statement", "expected"), BY_HAND)
def test_changes_by_hand_are_told_too(
    store: Store, path: Path, statement: str, expected: list[StoreEvent]
) -> None:
    check_reads(store)
    events, epoch = listen(store), store.epoch.value
    by_hand(path, statement)
    assert store.refresh() is bool(expected)
    assert events == expected
    assert store.epoch.value == epoch + bool(expected)
    check_reads(store, b"u", b"v", b"x")
    assert not store.refresh()


def test_every_column_is_watched(path: Path, store: Store) -> None:
    """A column that a later migration adds has to be thought of in the triggers."""
    with sqlite3.connect(path) as connection:
        columns = {
            table: {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            for table in ("users", "vhosts", "permissions", "topic_permissions", "metadata")
        }
    connection.close()
    assert columns == {
        "users": {
            "name",
            "password_hash",
            "algorithm",
            "tags",
            "limits",
            "incarnation",
            "rehashes",
        },
        "vhosts": {"name", "description", "tags", "metadata", "limits", "incarnation"},
        "permissions": {"user", "vhost", "configure", "write", "read"},
        "topic_permissions": {"user", "vhost", "exchange", "write", "read"},
        "metadata": {"key", "value"},
    }


# -- falling behind ----------------------------------------------------------------------


def fill_log(path: Path, changes: int) -> None:
    by_hand(
        path,
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
        f"WHERE i < {changes}) INSERT INTO changes (kind, key) SELECT 'MetadataChanged', i FROM n",
    )


def test_the_log_is_bounded(store: Store, path: Path) -> None:
    fill_log(path, CHANGES_KEPT + 10)
    with sqlite3.connect(path) as connection:
        first, last, count = connection.execute(
            "SELECT min(sequence), max(sequence), count(*) FROM changes"
        ).fetchone()
    connection.close()
    assert CHANGES_KEPT <= count < CHANGES_KEPT + 100
    assert last - first == count - 1
    assert f"- {CHANGES_KEPT};" in schema.MIGRATIONS[1][1]


@pytest.mark.parametrize(
    ("missed", "reloaded"), [(CHANGES_KEPT, False), (CHANGES_KEPT + 100, True)]
)
def test_who_falls_behind_is_told_to_look_at_everything(
    store: Store, path: Path, missed: int, reloaded: bool
) -> None:
    check_reads(store, b"w")
    events, epoch = listen(store), store.epoch.value
    by_hand(path, "DELETE FROM permissions")
    fill_log(path, missed - 1)
    assert store.refresh()
    assert store.epoch.value == epoch + 1
    if reloaded:
        assert events == [Reloaded()]
    else:
        assert events[0] == PermissionsChanged(b"u", b"v")
        assert len(events) == missed
    check_reads(store, b"w")
    store.set_user_tags(b"u", ["t"])
    assert events[-1] == UserTagsChanged(b"u")


def test_a_large_change_of_ones_own_is_told_as_a_whole(store: Store) -> None:
    events = listen(store)
    with store.change() as draft:
        draft.put_vhost(b"w")
        for number in range(CHANGES_KEPT // 500 + 1):
            for at in range(500):
                patterns = PermissionSet(b"%d" % number, b"%d" % at, b"")
                draft.set_permissions(b"u", b"v", patterns)
    assert events == [Reloaded()]
    assert store.permissions(b"u", b"v") == PermissionSet(b"20", b"499", b"")
    assert not store.refresh()


def test_an_older_copy_put_back_is_noticed(store: Store, path: Path) -> None:
    check_reads(store)
    events = listen(store)
    by_hand(path, "DELETE FROM changes WHERE sequence > 2", "DELETE FROM metadata")
    by_hand(path, "DELETE FROM changes WHERE sequence > 2")
    assert store.refresh()
    assert events == [Reloaded()]
    check_reads(store)
    assert store.metadata("k") is None


def test_an_unknown_kind_counts_as_anything(store: Store, path: Path) -> None:
    assert changelog.event("FromTheFuture", b"u", b"", b"", "") is None
    events = listen(store)
    by_hand(path, "INSERT INTO changes (kind, user) VALUES ('FromTheFuture', x'75')")
    assert store.refresh()
    assert events == [Reloaded()]


def test_kinds_are_the_events_names() -> None:
    for kind in (
        UserAdded,
        UserDeleted,
        PasswordChanged,
        PasswordRehashed,
        UserTagsChanged,
        UserLimitsChanged,
    ):
        assert changelog.event(kind.__name__, b"u", b"v", b"x", "k") == kind(b"u")
    for of_vhost in (VhostAdded, VhostDeleted, VhostChanged, VhostLimitsChanged):
        assert changelog.event(of_vhost.__name__, b"u", b"v", b"x", "k") == of_vhost(b"v")


# -- a log that cannot be read -----------------------------------------------------------


def test_unreadable_news_leave_nothing_remembered(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The change stands; nothing old may be answered, and the events come later."""
    check_reads(store)
    events, epoch = listen(store), store.epoch.value

    def fail(_since: int) -> object:
        raise StoreError("disk I/O error")

    monkeypatch.setattr(store._database, "news", fail)
    with capture_logs() as lines:
        store.clear_permissions(b"u", b"v")
    assert [line["reason"] for line in lines] == ["disk I/O error"]
    assert store.permissions(b"u", b"v") is None
    assert store.epoch.value > epoch
    assert events == []
    with pytest.raises(StoreError):
        store.refresh()
    monkeypatch.undo()
    assert store.refresh()
    assert events == [PermissionsChanged(b"u", b"v")]
    assert not store.refresh()


def test_refresh_inside_a_change_tells_nothing_uncommitted(store: Store) -> None:
    events = listen(store)
    with store.change() as draft:
        draft.put_vhost(b"w")
        assert not store.refresh()
        assert store.vhost(b"w") is None
    assert events == [VhostAdded(b"w")]
    assert store.vhost(b"w") is not None
