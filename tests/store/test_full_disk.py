"""A full disk is an error that names the store, nothing is lost by it, and it passes."""

from __future__ import annotations

import itertools
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper.errors import StoreError
from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.store.store import Store
from tests.store.contents import check_reads, contents
from tests.support.gate import environment

MIB = 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(store: Store, numbers: Iterator[int]) -> StoreError:
    """Add users until the store cannot take one more."""
    try:
        for number in itertools.islice(numbers, 10_000):
            with store.change() as draft:
                name = b"user%d" % number
                draft.put_user(name, password_hash=b"x" * 2000)
                draft.set_permissions(name, b"v", PermissionSet(b"c" * 1000, b"w" * 1000, b""))
    except StoreError as error:
        return error
    raise AssertionError("there is room for everything")


def delete(store: Store, names: list[bytes]) -> None:
    for name in names:
        store.delete_user(name)


def is_sound(path: Path) -> bool:
    with sqlite3.connect(path) as connection:
        sound: bool = connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    return sound


def test_a_full_disk(disk: Path) -> None:
    path = disk / "s.db"
    (disk / "filler").write_bytes(b"x" * 2 * MIB)
    store = Store.open(f"sqlite://{path}")
    store.add_vhost(b"v")
    events: list[object] = []
    store.subscribe(events.append)
    numbers = itertools.count()
    error = fill(store, numbers)
    assert str(error).startswith(f"store.url: {path}: ")
    assert "full" in str(error)
    assert "free space" in str(error)
    kept = [user.name for user in store.list_users()]
    # What was answered is there, each user with its permissions, and the one that was refused
    # is not; nobody was told of it either.
    assert len(kept) == next(numbers) - 1
    assert set(contents(store).permissions) == {(name, b"v") for name in kept}
    assert len(events) == 2 * len(kept)
    check_reads(store, b"user0", b"v")
    # Removing rights is what one does in need; SQLite wants room for that as well.
    with pytest.raises(StoreError, match="full"):
        delete(store, kept)
    (disk / "filler").unlink()
    before = len(list(store.list_users()))
    store.add_user(b"after", b"pw")
    assert store.user(b"after") is not None
    assert len(list(store.list_users())) == before + 1
    held = contents(store)
    store.close()
    assert is_sound(path)
    again = Store.open(f"sqlite://{path}")
    assert contents(again) == held
    again.close()


def test_no_room_for_a_new_store(disk: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (disk / "filler").write_bytes(b"x" * 5 * MIB)
    path = disk / "s.db"
    with pytest.raises(StoreError) as caught:
        Store.open(f"sqlite://{path}")
    assert str(caught.value).startswith(f"store.url: {path}: ")
    (disk / "filler").unlink()
    store = Store.open(f"sqlite://{path}")
    assert store.is_blank()
    store.close()


LIMITED = """
import itertools, resource, sys
from pathlib import Path
from gatekeeper.store.store import Store
from tests.store.test_full_disk import fill
path = Path(sys.argv[1])
store = Store.open(f"sqlite://{path}")
store.add_vhost(b"v")
resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, resource.RLIM_INFINITY))
print(fill(store, itertools.count()))
full = len(list(store.list_users()))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.add_user(b"after", b"pw")
assert len(list(store.list_users())) == full + 1
store.close()
"""


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY,
    reason="there is a limit already",
)
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """As a quota does it. It needs no mount, hence no privilege."""
    path = tmp_path / "s.db"
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith(f"store.url: {path}: ")
    assert is_sound(path)


WRITER = """
import sys
from gatekeeper.store import sqlite
from gatekeeper.store.store import Store
sqlite.BUSY_TIMEOUT_S = 120.0  # SQLite's queue is not fair, and this machine may be busy
store = Store.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(300):
    name = f"{sys.argv[2]}{number}".encode()
    with store.change() as draft:
        draft.put_user(name, tags=["t"])
        shared = draft.user(b"shared")
        draft.set_user_limits(b"shared", {
            "max-channels": shared.limits.get("max-channels", 0) + 1
        })
store.close()
"""


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = Store.open(f"sqlite://{path}")
    store.put_user(b"shared")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, f"sqlite://{path}", name],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    told: list[object] = []
    store.subscribe(told.append)
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    names = {f"{who}{number}".encode() for who in "ab" for number in range(300)}
    assert {user.name for user in store.list_users()} == names | {b"shared"}
    store.refresh()
    shared = store.user(b"shared")
    assert shared is not None
    assert shared.limits == {"max-channels": 600}  # no increment overwrote another one
    assert len(told) == 1200
    store.close()
