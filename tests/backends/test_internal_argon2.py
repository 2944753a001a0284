"""argon2id: judged in threads, the same cost for everyone, and new hashes at the next login."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gatekeeper.backends.hashing import HashingThreads
from gatekeeper.backends.internal import UNREADABLE, InternalBackend
from gatekeeper.errors import StoreError
from gatekeeper.model import Credentials, Peer, Secret
from gatekeeper.policy.ports import Accepted, Failed, LoginAnswer, Refused
from gatekeeper.store import passwords
from gatekeeper.store.passwords import ARGON2ID, SHA256
from gatekeeper.store.records import PasswordRehashed, StoreEvent, UserTagsChanged
from gatekeeper.store.store import Store

PEER = Peer("10.0.0.9", 40000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """As an operator has it who has just changed to argon2id."""
    url = f"sqlite://{tmp_path}/s.db"
    before = Store.open(url)
    before.add_user(b"old", b"right", tags=["management"])
    before.close()
    store = Store.open(url, algorithm=ARGON2ID)
    store.add_user(b"new", b"right")
    yield store
    store.close()


@pytest.fixture
def backend(store: Store) -> InternalBackend:
    return InternalBackend(store)


async def login(backend: InternalBackend, name: bytes, password: bytes) -> LoginAnswer:
    answer = backend.authenticate(Credentials("PLAIN", name, Secret(password)), PEER)
    assert isinstance(answer, Awaitable)
    return await answer


def algorithm_of(store: Store, name: bytes) -> str:
    store.refresh()
    user = store.user(name)
    assert user is not None
    return user.algorithm


async def test_answers(backend: InternalBackend) -> None:
    assert await login(backend, b"new", b"right") == Accepted(b"new")
    assert await login(backend, b"old", b"right") == Accepted(b"old", frozenset({"management"}))
    for name in (b"new", b"old", b"ghost"):
        refused = Refused(f"user '{name.decode()}' - invalid credentials")
        assert await login(backend, name, b"wrong") == refused


async def test_hashed_anew_at_the_next_login_and_only_then(
    store: Store, backend: InternalBackend
) -> None:
    events: list[StoreEvent] = []
    store.subscribe(events.append)
    await login(backend, b"old", b"wrong")
    assert algorithm_of(store, b"old") == SHA256
    await login(backend, b"old", b"right")
    assert events == []  # nobody is told in a thread of the backend's
    assert algorithm_of(store, b"old") == ARGON2ID
    assert events == [PasswordRehashed(b"old")]
    user = store.user(b"old")
    assert user is not None
    assert user.password_hash.startswith(b"$argon2id$")
    assert user.tags == ("management",)
    assert await login(backend, b"old", b"right") == Accepted(b"old", frozenset({"management"}))
    assert await login(backend, b"old", b"wrong") != Accepted(b"old", frozenset({"management"}))
    store.refresh()
    assert events == [PasswordRehashed(b"old")]


async def test_without_argon2id_nothing_is_hashed_anew_nor_awaited(store: Store) -> None:
    store.put_user(b"sha", password_hash=passwords.hash_password(b"right"), algorithm=SHA256)
    plain = Store.open(f"sqlite://{store._database.reader._connection.path}")
    backend = InternalBackend(plain)
    answer = backend.authenticate(Credentials("PLAIN", b"sha", Secret(b"right")), PEER)
    assert answer == Accepted(b"sha")
    assert algorithm_of(plain, b"sha") == SHA256
    # Who has an argon2id hash from another time still logs in, and keeps it.
    assert await login(backend, b"new", b"right") == Accepted(b"new")
    assert algorithm_of(plain, b"new") == ARGON2ID
    plain.close()


def test_a_password_changed_meanwhile_is_not_overwritten(store: Store) -> None:
    seen = store.user(b"old")
    assert seen is not None
    store.change_password(b"old", b"changed")
    assert not store.rehash_password(seen, passwords.hash_password(b"right", ARGON2ID))
    now = store.user(b"old")
    assert now is not None
    assert passwords.verify(b"changed", now.password_hash, now.algorithm)


def test_nor_one_of_another_user_of_the_same_name(store: Store) -> None:
    seen = store.user(b"old")
    assert seen is not None
    store.delete_user(b"old")
    assert not store.rehash_password(seen, b"$argon2id$")
    store.add_user(b"old", password_hash=seen.password_hash, algorithm=seen.algorithm)
    assert not store.rehash_password(seen, b"$argon2id$")


@pytest.mark.parametrize("change", ["password", "deleted", "tags", "unreadable"])
async def test_what_changes_while_a_password_is_judged_counts(
    store: Store, backend: InternalBackend, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    judging, go_on = threading.Event(), threading.Event()
    real = passwords.verify

    def slow(password: bytes, stored: bytes | None, algorithm: str = SHA256) -> bool:
        judging.set()
        go_on.wait(10)
        return real(password, stored, algorithm)

    monkeypatch.setattr(passwords, "verify", slow)
    waiting = asyncio.get_running_loop().create_task(login(backend, b"new", b"right"))
    await asyncio.to_thread(judging.wait, 10)
    match change:
        case "password":
            store.change_password(b"new", b"other")
        case "deleted":
            store.delete_user(b"new")
        case "tags":
            store.set_user_tags(b"new", ["monitoring"])
        case _:
            monkeypatch.setattr(store, "user", _broken)
    go_on.set()
    expected = {
        "tags": Accepted(b"new", frozenset({"monitoring"})),
        "unreadable": Failed(UNREADABLE),
    }
    refused = Refused("user 'new' - invalid credentials")
    assert await waiting == expected.get(change, refused)


def _broken(_name: bytes) -> None:
    raise StoreError("store.url: /s.db: disk I/O error")


async def test_everyone_costs_one_slow_hash(
    backend: InternalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither who exists, nor who has not been hashed anew yet, is told apart by time."""
    slow: list[bytes | None] = []
    real, real_hash = passwords.verify, passwords.hash_password

    def verify(password: bytes, stored: bytes | None, algorithm: str = SHA256) -> bool:
        if algorithm == ARGON2ID:
            slow.append(stored)
        return real(password, stored, algorithm)

    def hash_password(password: bytes, algorithm: str = SHA256) -> bytes:
        slow.append(None)
        return real_hash(password, algorithm)

    monkeypatch.setattr(passwords, "verify", verify)
    monkeypatch.setattr(passwords, "hash_password", hash_password)
    for name, password in (
        (b"ghost", b"x"),
        (b"old", b"wrong"),
        (b"new", b"wrong"),
        (b"new", b"right"),
        (b"old", b"right"),
    ):
        slow.clear()
        await login(backend, name, password)
        assert len(slow) == 1, name


async def test_a_store_that_cannot_be_written_does_not_cost_the_login(
    store: Store, backend: InternalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise StoreError("store.url: /s.db: database or disk is full")

    monkeypatch.setattr(store, "rehash_password", full)
    with capture_logs() as logged:
        assert isinstance(await login(backend, b"old", b"right"), Accepted)
    assert [line["event"] for line in logged] == ["internal backend: password not hashed anew"]
    assert "right" not in str(logged)


# -- the threads -------------------------------------------------------------------------


async def test_no_more_at_a_time_than_there_are_threads() -> None:
    threads = HashingThreads(2)
    go_on, lock = threading.Event(), threading.Lock()
    running, most = 0, 0

    def job() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go_on.wait(10)
        with lock:
            running -= 1
        return 1

    jobs = [asyncio.get_running_loop().create_task(threads.run(job, "h", b"u")) for _ in range(20)]
    while most < 2:
        await asyncio.sleep(0.001)
    assert threads._executor._work_queue.qsize() == 0  # the others have not been given to it
    go_on.set()
    assert sum(await asyncio.gather(*jobs)) == 20
    assert most == 2


async def test_who_gives_up_makes_no_room_until_the_thread_is_free() -> None:
    threads = HashingThreads(1)
    go_on, started = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        go_on.wait(10)

    first = asyncio.get_running_loop().create_task(threads.run(job, "h", b"u"))
    await asyncio.to_thread(started.wait, 10)
    first.cancel()
    second = asyncio.get_running_loop().create_task(threads.run(lambda: "done", "h", b"u"))
    given_up = asyncio.get_running_loop().create_task(threads.run(lambda: "never", "h", b"u"))
    for _ in range(10):
        await asyncio.sleep(0)
    given_up.cancel()
    assert threads._executor._work_queue.qsize() == 0
    assert not second.done()
    go_on.set()
    assert await second == "done"
    assert first.cancelled()


async def test_who_tries_much_keeps_nobody_else_waiting() -> None:
    """Neither with one name nor with many, from one host; there, each name has its turn."""
    loop = asyncio.get_running_loop()
    threads = HashingThreads(1)
    go_on, order = threading.Event(), []

    def begin(host: str, name: bytes) -> asyncio.Task[None]:
        return loop.create_task(threads.run(lambda: order.append((host, name)), host, name))

    first = loop.create_task(threads.run(lambda: go_on.wait(10), "bad", b""))
    many = [begin("bad", b"%d" % n) for n in range(50)]
    same = [begin("shared", b"bad") for _ in range(50)]
    await asyncio.sleep(0)
    good = [begin("good", b"alice"), begin("shared", b"bob")]
    await asyncio.sleep(0)
    same[0].cancel()  # a turn that nobody takes is nobody's loss
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*good)
    assert set(order[:6]) >= {("good", b"alice"), ("shared", b"bob")}
    await asyncio.gather(first, *many, *same[1:])
    assert len(order) == 50 + 49 + 2
    assert threads._free == 1
    assert not threads._turns._hosts


@pytest.mark.parametrize("given", [False, True])
async def test_a_turn_that_comes_as_its_owner_gives_up_is_the_next_one_s(given: bool) -> None:
    threads = HashingThreads(1)
    loop = asyncio.get_running_loop()
    await threads._acquire("h", b"u")
    gone = loop.create_task(threads._acquire("h", b"u"))
    there = loop.create_task(threads._acquire("h", b"u"))
    await asyncio.sleep(0)
    if given:
        threads._release()
        gone.cancel()
    else:
        gone.cancel()
        threads._release()
    await there
    assert gone.cancelled()
    threads._release()
    assert threads._free == 1


async def test_what_a_job_raises_comes_through() -> None:
    threads = HashingThreads(1)

    def job() -> None:
        raise ValueError("broken")

    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            await threads.run(job, "h", b"u")


async def test_a_change_takes_the_news_along(store: Store) -> None:
    """A change of this process takes the news of a new hash along."""
    seen = store.user(b"old")
    assert seen is not None
    assert store.rehash_password(seen, passwords.hash_password(b"right", ARGON2ID))
    events: list[StoreEvent] = []
    store.subscribe(events.append)
    store.set_user_tags(b"new", ["t"])
    assert events == [PasswordRehashed(b"old"), UserTagsChanged(b"new")]


async def test_a_revocation_does_not_wait_for_a_password_to_be_kept(store: Store) -> None:
    """A new hash waits for another process's change; what that one has revoked before counts."""
    seen = store.user(b"old")
    assert seen is not None
    other = Store.open(f"sqlite://{store._database.reader._connection.path}")
    kept = passwords.hash_password(b"right", ARGON2ID)
    other.delete_user(b"new")
    with other.change():
        thread = threading.Thread(target=store.rehash_password, args=(seen, kept))
        thread.start()
        await asyncio.sleep(0.2)  # it waits now; were it slower, there would be less to see
        assert thread.is_alive()
        assert store.refresh()
        assert store.user(b"new") is None
    thread.join()
    other.close()
    assert store.refresh()
    assert algorithm_of(store, b"old") == ARGON2ID
