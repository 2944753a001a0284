"""The file: what survives, what is refused untouched, who sees whose changes."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from gatekeeper.errors import StoreError
from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store.records import PasswordChanged, User, UserTagsChanged, Vhost
from gatekeeper.store.schema import APPLICATION_ID, MIGRATIONS, VERSION
from gatekeeper.store.sqlite import SqliteDatabase
from gatekeeper.store.store import Store
from tests.store.contents import check_reads, contents


def url(path: Path) -> str:
    return f"sqlite://{path}"


def test_settings_of_the_connection(tmp_path: Path) -> None:
    database = SqliteDatabase.open(str(tmp_path / "s.db"))
    pragma = {
        name: database._writing.rows(f"PRAGMA {name}")[0][0]
        for name in (
            "journal_mode",
            "synchronous",
            "foreign_keys",
            "user_version",
            "application_id",
        )
    }
    database.close()
    assert pragma == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "user_version": VERSION,
        "application_id": APPLICATION_ID,
    }


def test_a_new_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    Store.open(url(path)).close()
    assert path.stat().st_mode & 0o777 == 0o600


KILLED = """
import os, signal, sys
from gatekeeper.store.store import Store
from tests.store.contents import check_reads, contents
store = Store.open(sys.argv[1])
for number in range(20):
    store.add_user(b"user%d" % number, b"pw")
with store.change() as draft:
    draft.put_vhost(b"uncommitted")
    draft.set_user_tags(b"user0", ["uncommitted"])
    if sys.argv[2] == "after":
        pass
    else:
        os.kill(os.getpid(), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_is_committed_survives_kill_9(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "s.db"
    child = subprocess.run([sys.executable, "-c", KILLED, url(path), moment], check=False)
    assert child.returncode == -signal.SIGKILL
    store = Store.open(url(path))
    assert len(list(store.list_users())) == 20
    assert (store.vhost(b"uncommitted") is not None) is (moment == "after")
    assert store.user(b"user0").tags == (("uncommitted",) if moment == "after" else ())  # type: ignore[union-attr]
    store.close()


KILLED_IN_BULK = """
import os, signal, sys
from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.store.store import Store
def rows():
    for number in range(60_000):
        if number == 50_000:
            os.kill(os.getpid(), signal.SIGKILL)
        yield (b"u%d" % number, b"v"), PermissionSet(b"x" * 500, b"", b"")
store = Store.open(sys.argv[1])
with store.change() as draft:
    draft.put_vhost(b"v")
    for number in range(60_000):
        draft.put_user(b"u%d" % number, tags=["x"])
    draft.put_permissions(rows())
"""


def test_a_bulk_change_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """More than fits into memory has gone to the disk by then."""
    path = tmp_path / "s.db"
    store = Store.open(url(path))
    store.set_metadata("k", 1)
    before = store._database.sequence()
    child = subprocess.run([sys.executable, "-c", KILLED_IN_BULK, url(path)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert (tmp_path / "s.db-wal").stat().st_size > 2**20
    assert not store.refresh()
    assert store.is_blank()
    assert list(store.list_permissions()) == []
    assert store._database.sequence() == before
    store.add_user(b"u", b"pw")
    assert store.user(b"u") is not None
    store.close()


def test_reads_do_not_wait_for_a_change(tmp_path: Path) -> None:
    store = Store.open(url(tmp_path / "s.db"))
    store.add_user(b"u", b"pw")
    inside, done = threading.Event(), threading.Event()

    def slow() -> None:
        with store.change() as draft:
            draft.set_user_tags(b"u", ["uncommitted"])
            draft.put_user(b"w")
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=slow)
    thread.start()
    inside.wait(10)
    began = time.monotonic()
    assert store.user(b"u").tags == ()  # type: ignore[union-attr]
    assert store.user(b"w") is None
    assert [user.name for user in store.list_users()] == [b"u"]
    assert time.monotonic() - began < 1
    done.set()
    thread.join()
    assert store.user(b"u").tags == ("uncommitted",)  # type: ignore[union-attr]
    assert store.user(b"w") is not None
    store.close()


def test_reopening_finds_everything(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = Store.open(url(path))
    store.add_user(b"J\xfcrg", b"pw", tags=["b", "a"])
    store.set_user_limits(b"J\xfcrg", {"max-connections": 3, "max-channels": -1})
    store.add_vhost(
        b"\xff/", description="dä", tags=["x"], default_queue_type="quorum", protected=True
    )
    store.set_vhost_limits(b"\xff/", {"max-queues": 0})
    store.set_permissions(b"J\xfcrg", b"\xff/", b"\xe9", b"", b".*")
    store.set_topic_permissions(b"J\xfcrg", b"\xff/", b"x\x00", b"^w", b"")
    store.set_metadata("cluster_name", "prod")
    before = contents(store)
    store.close()
    again = Store.open(url(path))
    assert contents(again) == before
    check_reads(again, b"other")
    assert again.metadata("cluster_name") == "prod"
    again.close()


# -- refused, and left as they are -------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def not_sqlite(path: Path) -> None:
    path.write_bytes(b"this is text, and more than a header of it\n" * 100)


def newer(path: Path) -> None:
    Store.open(url(path)).close()
    change(path, f"PRAGMA user_version = {VERSION + 1}")


def foreign(path: Path) -> None:
    change(path, "CREATE TABLE bookmarks (url TEXT)")


def foreign_with_version(path: Path) -> None:
    change(path, "CREATE TABLE bookmarks (url TEXT)", "PRAGMA user_version = 1")


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (not_sqlite, "file is not a database; name an SQLite file of this program"),
        (newer, "written by a newer gatekeeper"),
        (foreign, "the database of another program"),
        (foreign_with_version, "the database of another program"),
    ],
)
def test_refused_untouched(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "s.db"
    make(path)  # type: ignore[operator]
    before = digest(path)
    with pytest.raises(StoreError, match=message) as caught:
        Store.open(url(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert digest(path) == before


SPOILED = [
    ("INSERT INTO users VALUES (x'41', x'', 'a', 'no json', '{}', 1, 0)", Store.user, b"A"),
    ("INSERT INTO users VALUES (x'41', x'', 'a', '[]', '[]', 1, 0)", Store.user, b"A"),
    ("INSERT INTO users VALUES (x'41', x'', 'a', '[]', '{\"m\": \"x\"}', 1, 0)", Store.user, b"A"),
    ("INSERT INTO users VALUES (x'41', 'text', 'a', '[]', '{}', 1, 0)", Store.user, b"A"),
    ("INSERT INTO vhosts VALUES (x'41', '', '[]', '{}', '{}', 1)", Store.vhost, b"A"),
    ("INSERT INTO metadata VALUES ('k', '{')", Store.metadata, "k"),
]


@pytest.mark.parametrize(("spoil", "read", "key"), SPOILED)
def test_spoiled_rows_are_an_error_not_a_policy(
    tmp_path: Path, spoil: str, read: object, key: object
) -> None:
    path = tmp_path / "s.db"
    Store.open(url(path)).close()
    change(path, spoil)
    store = Store.open(url(path))
    for _ in range(2):  # nothing of it is remembered
        with pytest.raises(StoreError, match="holds a row that cannot be read") as caught:
            read(store, key)  # type: ignore[operator]
    assert str(path) in str(caught.value)
    store.close()


def test_a_spoiled_row_spoils_its_listing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    Store.open(url(path)).close()
    change(
        path,
        "INSERT INTO users VALUES (x'41', x'', 'a', '[]', '{}', 1, 0)",
        "INSERT INTO vhosts VALUES (x'42', '', '[]', '{}', '{}', 1)",
        "INSERT INTO permissions VALUES (x'41', x'42', 7, x'', x'')",
    )
    store = Store.open(url(path))
    with pytest.raises(StoreError, match="bytes expected, found int"):
        list(store.list_permissions())
    with pytest.raises(StoreError, match="bytes expected, found int"):
        store.permissions(b"A", b"B")
    store.close()


def test_a_damaged_file_is_an_error_not_an_absence(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = Store.open(url(path))
    with store.change() as draft:
        for number in range(2000):
            draft.put_user(b"%04d" % number, password_hash=b"x" * 36)
    store.close()
    data = bytearray(path.read_bytes())
    page = 4096
    start = data.index(b"0777" + b"x" * 36) // page * page  # that row's page
    data[start : start + page] = b"\xaa" * page
    path.write_bytes(data)
    store = Store.open(url(path))
    for read in (lambda: store.user(b"0777"), lambda: list(store.list_users())):
        with pytest.raises(StoreError, match="malformed; the file is damaged: restore a backup"):
            read()
    assert store.user(b"1777") is not None
    store.close()


def test_a_missing_table_is_found_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    Store.open(url(path)).close()
    change(path, "DROP TABLE permissions")
    with pytest.raises(StoreError, match="no such table"):
        Store.open(url(path))


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_an_older_schema_is_migrated_with_its_rows(tmp_path: Path, version: int) -> None:
    path = tmp_path / "s.db"
    change(
        path,
        *itertools.chain.from_iterable(MIGRATIONS[:version]),
        f"PRAGMA application_id = {APPLICATION_ID}",
        f"PRAGMA user_version = {version}",
        "INSERT INTO users VALUES (x'41', x'00', 'a', '[\"t\"]', '{}', 4611686018427387903)",
        "INSERT INTO vhosts VALUES (x'42', 'd', '[]', '{\"default_queue_type\":null,"
        '"protected_from_deletion":false}\', \'{"max-queues":1}\', 5)',
        "INSERT INTO permissions VALUES (x'41', x'42', x'43', x'', x'')",
        "INSERT INTO topic_permissions VALUES (x'41', x'42', x'58', x'', x'43')",
        "INSERT INTO metadata VALUES ('k', '7')",
    )
    store = Store.open(url(path))
    held = contents(store)
    assert held.users == {b"A": User(b"A", b"\0", "a", ("t",), {}, 2**62 - 1)}
    assert held.vhosts == {b"B": Vhost(b"B", "d", limits={"max-queues": 1}, incarnation=5)}
    assert held.permissions == {(b"A", b"B"): PermissionSet(b"C", b"", b"")}
    assert held.topic_permissions == {(b"A", b"B", b"X"): TopicPermissionSet(b"", b"C")}
    assert store.metadata("k") == 7
    events: list[object] = []
    store.subscribe(events.append)
    store.set_user_tags(b"A", [])
    store.change_password(b"A", b"pw")
    assert events == [UserTagsChanged(b"A"), PasswordChanged(b"A")]
    store.close()


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist or cannot be entered; create it"):
        Store.open(url(tmp_path / "no" / "s.db"))


def test_path_that_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Is a directory; check the owner"):
        Store.open(url(tmp_path))


def test_directory_without_permission() -> None:
    """As nobody, where the tests run as root, who may write anywhere."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match="Permission denied"):
                Store.open(url(Path(folder) / "s.db"))
        finally:
            if root:
                os.seteuid(0)
            Path(folder).chmod(0o755)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("postgresql://u:s3cret@h/db", "not supported yet"),
        ("postgres://u:s3cret@h/db", "not supported yet"),
        ("mysql://u:s3cret@h/db", "unknown scheme 'mysql'"),
        ("/var/lib/s.db", "unknown scheme ''"),
        ("", "unknown scheme"),
        ("sqlite://", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite://s3cret@host/path", "three slashes"),
        ("sqlite:///path?mode=s3cret", "three slashes"),
        ("sqlite:///a%00b", "NUL"),
        ("sqlite://[s3cret", "not a URL"),
    ],
)
def test_bad_urls_are_explained_without_their_secrets(bad: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        Store.open(bad)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("form", ["sqlite://{}", "sqlite:///{}"])
def test_three_or_four_slashes_are_the_same_absolute_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a b.db"
    Store.open(form.format(str(path).replace(" ", "%20"))).close()
    assert path.exists()


def test_a_failed_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    monkeypatch.setattr(
        "gatekeeper.store.sqlite.MIGRATIONS", (("CREATE TABLE one (x)", "CREATE NONSENSE"),)
    )
    with pytest.raises(StoreError, match="syntax error"):
        Store.open(url(path))
    monkeypatch.undo()
    store = Store.open(url(path))
    assert store.is_blank()
    store.close()


def test_a_transaction_that_sqlite_gave_up_is_an_error(tmp_path: Path) -> None:
    """A full disk makes SQLite roll back on its own: the commit must not pass for one."""
    store = Store.open(url(tmp_path / "s.db"))
    epoch = store.epoch.value

    def lose_it() -> None:
        with store.change() as draft:
            draft.add_user(b"u", b"pw")
            store._database._writing.rows("ROLLBACK")  # type: ignore[attr-defined]

    with pytest.raises(StoreError, match="no transaction is active"):
        lose_it()
    assert store.user(b"u") is None
    assert store.epoch.value == epoch
    store.add_user(b"u", b"pw")
    store.close()


def test_two_processes_may_create_it_at_once(tmp_path: Path) -> None:
    """The second finds the schema there once it has the lock."""
    path = str(tmp_path / "s.db")
    first = SqliteDatabase.open(path)
    second = SqliteDatabase(path, f"file:{path}")
    looks = iter([0, VERSION])
    second._check_ours = lambda: next(looks)  # type: ignore[method-assign]
    second._check_and_migrate()
    with second.transaction() as rows:
        rows.put_metadata("k", 1)
    assert first.reader.metadata("k") == 1
    first.close()
    second.close()


def test_a_writer_that_waits_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatekeeper.store.sqlite.BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "s.db"
    first, second = Store.open(url(path)), Store.open(url(path))
    with first.change() as draft:
        draft.add_user(b"a", b"pw")
        with pytest.raises(StoreError, match="another process holds it; try again"):
            second.add_user(b"b", b"pw")
    assert [user.name for user in first.list_users()] == [b"a"]
    assert second.refresh()
    assert contents(second) == contents(first)
    first.close()
    second.close()
