"""What is remembered, for how long, and how much of it at most."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper.errors import StoreError
from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store.cache import MAX_KEY_BYTES, CachedReader, TableCache
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
    Vhost,
    VhostAdded,
    VhostChanged,
    VhostDeleted,
    VhostLimitsChanged,
)
from gatekeeper.store.rows import Reader
from gatekeeper.store.sqlite import SqliteDatabase


class Table:
    """Rows, and the keys that were asked for."""

    def __init__(self, *present: bytes) -> None:
        self.present = set(present)
        self.asked: list[bytes] = []

    def read(self, key: bytes) -> str | None:
        self.asked.append(key)
        return f"row of {key!r}" if key in self.present else None


def test_a_row_and_its_absence_are_read_once() -> None:
    table = Table(b"a")
    cache = TableCache(table.read, 2)
    for _ in range(3):
        assert cache.get(b"a") == "row of b'a'"
        assert cache.get(b"x") is None
    assert table.asked == [b"a", b"x"]


def test_the_least_recently_used_goes_first() -> None:
    table = Table(b"a", b"b", b"c")
    cache = TableCache(table.read, 2)
    for key in (b"a", b"b", b"a", b"c", b"a", b"b"):
        cache.get(key)
    assert table.asked == [b"a", b"b", b"c", b"b"]
    assert len(cache) == 2


def test_made_up_names_push_out_no_real_one() -> None:
    table = Table(b"a", b"b")
    cache = TableCache(table.read, 10)
    cache.get(b"a")
    cache.get(b"b")
    for number in range(1000):
        assert cache.get(b"made up %d" % number) is None
    assert len(cache) == 12
    del table.asked[:]
    cache.get(b"a")
    cache.get(b"b")
    assert table.asked == []


@pytest.mark.parametrize("present", [True, False])
def test_what_is_longer_than_a_name_is_not_remembered(present: bool) -> None:
    long, longest = b"x" * (MAX_KEY_BYTES + 1), b"y" * MAX_KEY_BYTES
    table = Table(*([long, longest] if present else []))
    cache = TableCache(table.read, 10)
    for key in (long, longest):
        assert (cache.get(key) is not None) is present
    assert len(cache) == 1
    pairs: TableCache[tuple[bytes, ...], str] = TableCache(lambda _key: None, 10)
    pairs.get((b"u" * MAX_KEY_BYTES, b"v"))
    assert len(pairs) == 0


def test_a_failure_is_not_remembered() -> None:
    answers: list[str | None] = [None, "row"]

    def read(_key: bytes) -> str | None:
        answer = answers.pop()
        if answer == "row":
            raise StoreError("disk")
        return "found"

    cache = TableCache(read, 10)
    with pytest.raises(StoreError):
        cache.get(b"a")
    assert cache.get(b"a") == "found"


# -- which events make which rows forgotten ----------------------------------------------


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[CachedReader]:
    database = SqliteDatabase.open(str(tmp_path / "s.db"))
    with database.transaction() as rows:
        for name in (b"u", b"w"):
            rows.put_user(User(name, b"", "a"))
            rows.put_vhost(Vhost(name))
            rows.put_permissions([((name, name), PermissionSet(b"1", b"", b""))])
            rows.put_topic_permissions([((name, name, name), TopicPermissionSet(b"1", b""))])
            rows.put_metadata(name.decode(), 1)
    yield CachedReader(database.reader)
    database.close()


def remembered(reader: CachedReader) -> set[str]:
    """Names of the tables whose row about ``u`` is remembered."""
    keys = {
        "_users": b"u",
        "_vhosts": b"u",
        "_permissions": (b"u", b"u"),
        "_topics": (b"u", b"u", b"u"),
        "_metadata": "u",
    }
    return {table for table, key in keys.items() if key in getattr(reader, table)._present}


def fill(reader: CachedReader) -> None:
    for name in (b"u", b"w"):
        reader.user(name)
        reader.vhost(name)
        reader.permissions(name, name)
        reader.topic_permissions(name, name, name)
        reader.metadata(name.decode())


ALL = {"_users", "_vhosts", "_permissions", "_topics", "_metadata"}
FORGOTTEN: list[tuple[StoreEvent, set[str]]] = [
    (UserAdded(b"u"), {"_users"}),
    (PasswordChanged(b"u"), {"_users"}),
    (PasswordRehashed(b"u"), {"_users"}),
    (UserTagsChanged(b"u"), {"_users"}),
    (UserLimitsChanged(b"u"), {"_users"}),
    (VhostAdded(b"u"), {"_vhosts"}),
    (VhostChanged(b"u"), {"_vhosts"}),
    (VhostLimitsChanged(b"u"), {"_vhosts"}),
    (PermissionsChanged(b"u", b"u"), {"_permissions"}),
    (PermissionsChanged(b"u", b"w"), set()),
    (TopicPermissionsChanged(b"u", b"u", b"u"), {"_topics"}),
    (TopicPermissionsChanged(b"u", b"u", b"w"), set()),
    (MetadataChanged("u"), {"_metadata"}),
    (UserDeleted(b"u"), ALL),
    (VhostDeleted(b"u"), ALL),
    (Reloaded(), ALL),
]


@pytest.mark.parametrize(("event", "forgotten"), FORGOTTEN)
def test_what_an_event_makes_forgotten(
    reader: CachedReader, event: StoreEvent, forgotten: set[str]
) -> None:
    fill(reader)
    assert remembered(reader) == ALL
    before = len(reader)
    reader.forget([event])
    assert remembered(reader) == ALL - forgotten
    assert len(reader) == (0 if forgotten == ALL else before - len(forgotten))


def test_what_is_read_before_a_commit_is_not_remembered_after_it() -> None:
    """A read that is under way when the commit's events arrive must not be put back."""
    order: list[str] = []

    class Slow(Reader):
        def __init__(self) -> None:
            pass

        def user(self, name: bytes) -> User | None:
            order.append("read")
            thread.start()
            thread.join(0.2)  # it has to wait for this read to be over
            order.append("read ends")
            return User(name, b"old", "a")

    reader = CachedReader(Slow())

    def forget() -> None:
        reader.forget([PasswordChanged(b"u")])
        order.append("forgotten")

    thread = threading.Thread(target=forget)
    reader.user(b"u")
    thread.join()
    assert order == ["read", "read ends", "forgotten"]
    assert len(reader) == 0
