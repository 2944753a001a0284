"""The store's operations in RabbitMQ's terms, its events and its epoch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gatekeeper.errors import StoreError
from gatekeeper.model import UserLimits, VhostLimits
from gatekeeper.policy.epoch import Epoch
from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store import passwords
from gatekeeper.store.records import (
    MetadataChanged,
    PasswordChanged,
    PermissionsChanged,
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
from gatekeeper.store.refusals import (
    CredentialRefusedError,
    InvalidLimitsError,
    InvalidNameError,
    InvalidPatternError,
    InvalidTagsError,
    InvalidTextError,
    NoSuchUserError,
    NoSuchVhostError,
    RequestError,
    UserExistsError,
    VhostProtectedError,
)
from gatekeeper.store.rows import Reader
from gatekeeper.store.sqlite import SqliteDatabase
from gatekeeper.store.store import Store
from tests.store.contents import check_reads, contents


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.open("sqlite::memory:")
    store.add_user(b"u", b"pw", tags=["administrator"])
    store.add_vhost(b"/")
    yield store
    store.close()


def events_of(store: Store) -> list[StoreEvent]:
    events: list[StoreEvent] = []
    store.subscribe(events.append)
    return events


def password_matches(store: Store, name: bytes, password: bytes) -> bool:
    user = store.user(name)
    assert user is not None
    return passwords.verify(password, user.password_hash, user.algorithm)


# -- users -------------------------------------------------------------------------------


def test_add_user(store: Store) -> None:
    assert password_matches(store, b"u", b"pw")
    with pytest.raises(UserExistsError, match="user 'u' already exists"):
        store.add_user(b"u", b"other")
    with pytest.raises(InvalidNameError):
        store.add_user(b"", b"pw")
    store.add_user(b"nobody")
    assert store.user(b"nobody").password_hash == b""  # type: ignore[union-attr]
    store.add_user(b"blank", b"")
    assert not password_matches(store, b"blank", b"")


def test_add_user_with_a_hash(store: Store) -> None:
    stored = passwords.hash_password(b"hashed", passwords.SHA512)
    store.add_user(b"h", password_hash=stored, algorithm=passwords.SHA512)
    assert password_matches(store, b"h", b"hashed")
    with pytest.raises(CredentialRefusedError, match="give one"):
        store.add_user(b"both", b"pw", password_hash=stored)
    store.change_password_hash(b"u", stored, passwords.SHA512)
    assert password_matches(store, b"u", b"hashed")


def test_passwords_of_a_user(store: Store) -> None:
    store.change_password(b"u", b"new")
    assert password_matches(store, b"u", b"new")
    assert not password_matches(store, b"u", b"pw")
    store.clear_password(b"u")
    assert not password_matches(store, b"u", b"new")
    for change in (store.clear_password, lambda name: store.change_password(name, b"x")):
        with pytest.raises(NoSuchUserError, match="user 'ghost' does not exist"):
            change(b"ghost")
    with pytest.raises(CredentialRefusedError, match="4096"):
        store.change_password(b"u", b"x" * 5000)


def test_validator_and_algorithm() -> None:
    def validator(_name: bytes, password: bytes) -> str | None:
        return None if len(password) > 4 else "minimum required password length is 5"

    store = Store.open("sqlite::memory:", validator=validator, algorithm=passwords.SHA512)
    with pytest.raises(CredentialRefusedError, match="minimum required password length is 5"):
        store.add_user(b"u", b"pw")
    assert store.user(b"u") is None
    store.add_user(b"u", b"longer")
    assert store.user(b"u").algorithm == passwords.SHA512  # type: ignore[union-attr]
    assert password_matches(store, b"u", b"longer")
    store.add_user(b"h", password_hash=b"x")  # hashes are not judged
    store.close()
    with pytest.raises(StoreError, match="password_hashing_module: unknown 'x'"):
        Store.open("sqlite::memory:", algorithm="x")


def test_put_user_overwrites_but_keeps_limits(store: Store) -> None:
    store.set_user_limits(b"u", {"max-channels": 1})
    with store.change() as draft:
        assert not draft.put_user(b"u", b"pw", tags=["t"], limits={"max-connections": 2})
        assert draft.put_user(b"v", b"pw")
    user = store.user(b"u")
    assert user is not None
    assert user.limits == {"max-channels": 1, "max-connections": 2}
    # With neither password nor hash RabbitMQ only takes over the tags, and clears the password.
    assert not store.put_user(b"u", tags=["management"], limits={"max-connections": 9})
    user = store.user(b"u")
    assert user is not None
    assert (user.password_hash, user.tags) == (b"", ("management",))
    assert user.limits == {"max-channels": 1, "max-connections": 2}
    with pytest.raises(InvalidLimitsError):
        store.put_user(b"u", limits={"max-connections": "9"})
    with pytest.raises(CredentialRefusedError, match="both"):
        store.put_user(b"u", b"pw", password_hash=b"x")


def test_put_user_grants_permissions_to_new_users_only(store: Store) -> None:
    store.add_vhost(b"v")
    wanted = {b"v": PermissionSet(b"1", b"2", b"3")}
    assert store.put_user(b"new", password_hash=b"", permissions=wanted)
    assert store.permissions(b"new", b"v") == wanted[b"v"]
    assert not store.put_user(b"new", permissions={b"v": PermissionSet(b"", b"", b"")})
    assert store.permissions(b"new", b"v") == wanted[b"v"]
    for bad in ({b"gone": wanted[b"v"]}, {b"v": PermissionSet(b"(", b"", b"")}):
        with pytest.raises(RequestError):
            store.put_user(b"other", b"pw", permissions=bad)
        assert store.user(b"other") is None


def test_tags(store: Store) -> None:
    store.set_user_tags(b"u", ["b", "a", "b"])
    assert store.user(b"u").tags == ("b", "a")  # type: ignore[union-attr]
    store.set_user_tags(b"u", [str(number) for number in range(32)])
    with pytest.raises(InvalidTagsError, match=r"at most 32 tags \(received 33\)"):
        store.set_user_tags(b"u", [str(number) for number in range(33)])
    with pytest.raises(InvalidTagsError, match="not valid Unicode"):
        store.set_user_tags(b"u", ["\ud800"])
    with pytest.raises(NoSuchUserError):
        store.set_user_tags(b"ghost", [])


def test_user_limits(store: Store) -> None:
    assert store.user_limits(b"u") == store.user_limits(b"ghost") == UserLimits()
    store.set_user_limits(b"u", {"max-connections": 0})
    store.set_user_limits(b"u", {"max-channels": 5})
    assert store.user_limits(b"u") == UserLimits(max_connections=0, max_channels=5)
    store.set_user_limits(b"u", {"max-channels": -1})
    assert store.user_limits(b"u") == UserLimits(max_connections=0)
    assert store.user(b"u").limits == {"max-connections": 0, "max-channels": -1}  # type: ignore[union-attr]
    store.clear_user_limits(b"u", "bogus")
    store.clear_user_limits(b"u", "max-channels")
    assert store.user(b"u").limits == {"max-connections": 0}  # type: ignore[union-attr]
    store.clear_user_limits(b"u")
    assert store.user(b"u").limits == {}  # type: ignore[union-attr]
    for change in (
        lambda: store.set_user_limits(b"ghost", {}),
        lambda: store.clear_user_limits(b"ghost"),
    ):
        with pytest.raises(NoSuchUserError):
            change()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"bogus": 1}, 'Unrecognised terms [{<<"bogus">>,1}] in user-limits'),
        ({"a": 1, "b": None}, 'Unrecognised terms [{<<"a">>,1},{<<"b">>,null}] in user-limits'),
        ({"max-connections": "x"}, 'max-connections should be a number, actually was <<"x">>'),
        ({"max-channels": True}, "max-channels should be a number, actually was true"),
        ({"max-channels": 1.5}, "max-channels should be a number, actually was 1.5"),
        ({"max-queues": 1}, 'Unrecognised terms [{<<"max-queues">>,1}] in user-limits'),
    ],
)  # fmt: skip
def test_wrong_limits_in_rabbitmqs_words(
    store: Store, limits: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidLimitsError) as caught:
        store.set_user_limits(b"u", limits)
    assert str(caught.value) == message
    assert store.user(b"u").limits == {}  # type: ignore[union-attr]


def test_delete_user_takes_its_permissions(store: Store) -> None:
    store.add_user(b"w", b"pw")
    for user in (b"u", b"w"):
        store.set_permissions(user, b"/", b"", b"", b"")
        store.set_topic_permissions(user, b"/", b"x", b"", b"")
    assert store.delete_user(b"u")
    assert not store.delete_user(b"u")
    held = contents(store)
    assert list(held.permissions) == [(b"w", b"/")]
    assert list(held.topic_permissions) == [(b"w", b"/", b"x")]
    check_reads(store, b"u")


# -- vhosts ------------------------------------------------------------------------------


def test_vhosts(store: Store) -> None:
    assert store.add_vhost(b"v", description="d", tags=["t", "t"], default_queue_type="quorum")
    assert not store.add_vhost(b"v", protected=True)
    vhost = store.vhost(b"v")
    assert vhost is not None
    assert (vhost.description, vhost.tags, vhost.default_queue_type) == ("d", ("t",), "quorum")
    with pytest.raises(VhostProtectedError):
        store.delete_vhost(b"v")
    store.add_vhost(b"v", protected=False)
    store.set_permissions(b"u", b"v", b"", b"", b"")
    store.set_topic_permissions(b"u", b"v", b"x", b"", b"")
    store.delete_vhost(b"v")
    held = contents(store)
    assert not held.permissions
    assert not held.topic_permissions
    with pytest.raises(NoSuchVhostError, match="virtual host 'v' does not exist"):
        store.delete_vhost(b"v")
    assert store.add_vhost(b"")  # its own vhost, as in RabbitMQ
    check_reads(store, b"v")


def test_texts_must_be_unicode(store: Store) -> None:
    with pytest.raises(InvalidTextError):
        store.add_vhost(b"v", description="\ud800")
    with pytest.raises(InvalidTextError):
        store.add_vhost(b"v", default_queue_type="\ud800")
    with pytest.raises(InvalidTextError):
        store.add_user(b"v", password_hash=b"x", algorithm="\ud800")
    with pytest.raises(InvalidTextError):
        store.change_password_hash(b"u", b"x", "\ud800")
    assert store.vhost(b"v") is store.user(b"v") is None


def test_vhost_limits(store: Store) -> None:
    assert store.vhost_limits(b"/") == store.vhost_limits(b"ghost") == VhostLimits()
    store.set_vhost_limits(b"/", {"max-connections": 3, "max-queues": -1})
    assert store.vhost_limits(b"/") == VhostLimits(max_connections=3)
    store.set_vhost_limits(b"/", {"max-queues": 4})  # replaces
    with store.change() as draft:
        draft.set_vhost_limit(b"/", "max-connections", 0)  # adds
    assert store.vhost_limits(b"/") == VhostLimits(max_connections=0, max_queues=4)
    with pytest.raises(InvalidLimitsError, match="in limits"):
        store.set_vhost_limits(b"/", {"max-channels": 1})
    assert store.clear_vhost_limits(b"/", "max-queues")
    assert not store.clear_vhost_limits(b"/", "max-queues")
    assert store.clear_vhost_limits(b"/")
    assert not store.clear_vhost_limits(b"/")
    with pytest.raises(NoSuchVhostError):
        store.clear_vhost_limits(b"ghost")


# -- permissions -------------------------------------------------------------------------


def test_permissions(store: Store) -> None:
    store.set_permissions(b"u", b"/", b"^c", b"^w", b"^r")
    store.set_permissions(b"u", b"/", b"^c2", b"^w", b"^r")
    expected = PermissionSet(b"^c2", b"^w", b"^r")
    assert store.permissions(b"u", b"/") == expected
    assert list(store.list_permissions()) == [(b"u", b"/", expected)]
    assert list(store.list_permissions(b"/")) == [(b"u", b"/", expected)]
    assert list(store.list_user_permissions(b"u")) == [(b"/", expected)]
    assert store.clear_permissions(b"u", b"/")
    assert not store.clear_permissions(b"u", b"/")
    assert not store.clear_permissions(b"ghost", b"nowhere")
    assert store.permissions(b"u", b"/") is None


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize(("pattern", "reason"), [(b"(", "missing )"), (b"x" * 1025, "longer than")])
def test_invalid_patterns_change_nothing(
    store: Store, position: int, pattern: bytes, reason: str
) -> None:
    store.set_permissions(b"u", b"/", b"1", b"2", b"3")
    patterns = [b".*"] * 3
    patterns[position] = pattern
    with pytest.raises(InvalidPatternError) as caught:
        store.set_permissions(b"u", b"/", *patterns)
    assert caught.value.what == ("configure", "write", "read")[position]
    assert caught.value.pattern == pattern
    assert reason in caught.value.reason
    assert store.permissions(b"u", b"/") == PermissionSet(b"1", b"2", b"3")


def test_permissions_need_user_and_vhost(store: Store) -> None:
    for change in (store.set_permissions, store.set_topic_permissions):
        with pytest.raises(InvalidPatternError):  # patterns first
            change(b"ghost", b"/", b"x", b"(", b"")
        with pytest.raises(NoSuchUserError):
            change(b"ghost", b"nowhere", b"x", b"", b"")
        with pytest.raises(NoSuchVhostError):
            change(b"u", b"nowhere", b"x", b"", b"")


def test_topic_permissions(store: Store) -> None:
    for exchange in (b"a", b"b"):
        store.set_topic_permissions(b"u", b"/", exchange, b"^w", b"^r")
    expected = TopicPermissionSet(b"^w", b"^r")
    assert store.topic_permissions(b"u", b"/", b"a") == expected
    assert store.topic_permissions(b"u", b"/", b"c") is None
    assert list(store.list_topic_permissions(b"/")) == [
        (b"u", b"/", b"a", expected),
        (b"u", b"/", b"b", expected),
    ]
    assert list(store.list_user_topic_permissions(b"u"))[1] == (b"/", b"b", expected)
    assert store.clear_topic_permissions(b"u", b"/", b"a") == 1
    assert store.clear_topic_permissions(b"u", b"/") == 1
    assert store.clear_topic_permissions(b"u", b"/") == 0


def test_lists_are_sorted_and_know_what_exists(store: Store) -> None:
    store.add_user(b"a")
    store.add_vhost(b"b")
    assert [user.name for user in store.list_users()] == [b"a", b"u"]
    assert [vhost.name for vhost in store.list_vhosts()] == [b"/", b"b"]
    for listing in (store.list_permissions, store.list_topic_permissions):
        with pytest.raises(NoSuchVhostError):
            listing(b"ghost")
    for listing in (store.list_user_permissions, store.list_user_topic_permissions):
        with pytest.raises(NoSuchUserError):
            listing(b"ghost")


def test_metadata(store: Store) -> None:
    store.set_metadata("cluster_name", "prod")
    assert store.metadata("cluster_name") == "prod"
    assert store.metadata("other") is None
    with store.change() as draft:
        assert draft.clear_metadata("cluster_name")
        assert not draft.clear_metadata("cluster_name")
    assert store.metadata("cluster_name") is None


def test_blank() -> None:
    store = Store.open("sqlite::memory:")
    assert store.is_blank()
    store.add_user(b"u")
    assert store.is_blank()
    store.add_vhost(b"/")
    assert not store.is_blank()
    store.delete_user(b"u")
    assert store.is_blank()
    store.close()


# -- one change, its epoch and its events ------------------------------------------------


def test_a_change_is_all_or_nothing(store: Store) -> None:
    before, epoch, events = contents(store), store.epoch.value, events_of(store)

    def half_a_change() -> None:
        with store.change() as draft:
            draft.add_user(b"x", b"pw")
            draft.delete_vhost(b"/")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_a_change()
    assert contents(store) == before
    check_reads(store, b"x")
    assert (store.epoch.value, events) == (epoch, [])


def test_no_change_inside_a_change(store: Store) -> None:
    with pytest.raises(StoreError), store.change():
        store.add_user(b"x", b"pw")
    assert store.user(b"x") is None
    store.add_user(b"x", b"pw")


def test_events_name_what_changed(store: Store) -> None:
    events = events_of(store)
    steps: list[tuple[object, list[StoreEvent]]] = [
        (lambda: store.add_user(b"n", b"pw"), [UserAdded(b"n")]),
        (lambda: store.change_password(b"n", b"x"), [PasswordChanged(b"n")]),
        (lambda: store.set_user_tags(b"n", ["t"]), [UserTagsChanged(b"n")]),
        (lambda: store.set_user_limits(b"n", {"max-channels": 1}), [UserLimitsChanged(b"n")]),
        (lambda: store.add_vhost(b"v"), [VhostAdded(b"v")]),
        (lambda: store.add_vhost(b"v", description="d"), [VhostChanged(b"v")]),
        (lambda: store.set_vhost_limits(b"v", {"max-queues": 1}), [VhostLimitsChanged(b"v")]),
        (
            lambda: store.set_permissions(b"n", b"v", b"", b"", b""),
            [PermissionsChanged(b"n", b"v")],
        ),
        (
            lambda: store.set_topic_permissions(b"n", b"v", b"x", b"", b""),
            [TopicPermissionsChanged(b"n", b"v", b"x")],
        ),
        (lambda: store.clear_permissions(b"n", b"v"), [PermissionsChanged(b"n", b"v")]),
        (lambda: store.set_metadata("k", [1]), [MetadataChanged("k")]),
        (
            lambda: store.delete_vhost(b"v"),
            [VhostDeleted(b"v")],
        ),
        (lambda: store.delete_user(b"n"), [UserDeleted(b"n")]),
        (lambda: store.delete_user(b"n"), []),
    ]  # fmt: skip
    for step, expected in steps:
        events.clear()
        epoch = store.epoch.value
        step()  # type: ignore[operator]
        assert events == expected
        assert store.epoch.value == epoch + bool(expected)


def test_a_user_deleted_and_made_again_was_deleted(store: Store) -> None:
    events = events_of(store)
    with store.change() as draft:
        draft.delete_user(b"u")
        draft.add_user(b"u", b"pw", tags=["administrator"])
        draft.delete_vhost(b"/")
        draft.put_vhost(b"/")
    assert events == [UserDeleted(b"u"), UserAdded(b"u"), VhostDeleted(b"/"), VhostAdded(b"/")]


def test_the_change_is_in_force_when_subscribers_hear_of_it(store: Store) -> None:
    seen: list[tuple[bool, int]] = []
    epoch = store.epoch.value
    unsubscribe = store.subscribe(
        lambda _: seen.append((store.user(b"n") is not None, store.epoch.value))
    )
    store.add_user(b"n")
    assert seen == [(True, epoch + 1)]
    unsubscribe()
    store.add_user(b"m")
    assert len(seen) == 1


def test_a_failing_subscriber_stops_neither_the_change_nor_the_others(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_event: StoreEvent) -> None:
        raise RuntimeError("subscriber")

    store.subscribe(fail)
    events = events_of(store)
    store.add_user(b"n")
    assert events == [UserAdded(b"n")]
    assert store.user(b"n") is not None
    capsys.readouterr()


def test_a_subscriber_may_change_the_store(store: Store) -> None:
    def answer(event: StoreEvent) -> None:
        if event == UserAdded(b"n"):
            store.set_permissions(b"n", b"/", b"", b"", b"")

    store.subscribe(answer)
    store.add_user(b"n")
    assert store.permissions(b"n", b"/") is not None


def test_the_epoch_given_is_the_one_bumped() -> None:
    epoch = Epoch(41)
    store = Store.open("sqlite::memory:", epoch)
    store.add_vhost(b"/")
    assert epoch.value == 42
    store.close()


# -- several processes on one file -------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    url = f"sqlite://{tmp_path}/s.db"
    first, second = Store.open(url), Store.open(url)
    first.add_user(b"u", b"pw")
    first.add_vhost(b"/")
    second.refresh()
    yield first, second
    first.close()
    second.close()


def test_refresh_sees_what_another_process_committed(two: tuple[Store, Store]) -> None:
    first, second = two
    events, epoch = events_of(second), second.epoch.value
    assert not second.refresh()
    first.set_permissions(b"u", b"/", b"", b"", b"")
    first.delete_user(b"u")
    first.add_user(b"u", b"pw")
    assert second.refresh()
    assert not second.refresh()
    assert not first.refresh()  # own changes are no news
    assert events == [PermissionsChanged(b"u", b"/"), UserDeleted(b"u"), UserAdded(b"u")]
    assert second.epoch.value == epoch + 1
    assert contents(second) == contents(first)
    check_reads(second, b"n")


def test_a_change_is_made_on_top_of_the_newest_rows(two: tuple[Store, Store]) -> None:
    first, second = two
    first.add_user(b"n", b"pw")
    second.set_permissions(b"n", b"/", b"", b"", b"")  # without a refresh
    assert second.user(b"n") is not None
    assert first.refresh()
    assert contents(first) == contents(second)
    check_reads(first)


def test_a_refused_change_does_not_lose_the_news(two: tuple[Store, Store]) -> None:
    first, second = two
    events = events_of(second)
    first.delete_user(b"u")
    with pytest.raises(NoSuchUserError):
        second.change_password(b"u", b"x")
    assert events == [UserDeleted(b"u")]
    assert second.user(b"u") is None


def test_refresh_does_not_wait_for_a_change_in_another_thread(two: tuple[Store, Store]) -> None:
    first, second = two
    second.add_user(b"news")
    inside, done = threading.Event(), threading.Event()

    def slow() -> None:
        with first.change() as draft:
            inside.set()
            done.wait(10)
            draft.put_vhost(b"slow")

    thread = threading.Thread(target=slow)
    thread.start()
    inside.wait(10)
    assert not first.refresh()
    done.set()
    thread.join()
    assert first.user(b"news") is not None  # the change took it along
    assert not first.refresh()


def test_threads_take_turns(two: tuple[Store, Store]) -> None:
    first, _ = two

    def add(start: int) -> None:
        for number in range(start, start + 20):
            first.add_user(b"t%d" % number)

    threads = [threading.Thread(target=add, args=(start,)) for start in (0, 20, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(first.list_users())) == 61
    check_reads(first, b"t60")


def test_request_errors_are_store_errors_of_one_line() -> None:
    for error in (
        NoSuchUserError(b"a\xff\n"),
        UserExistsError("ä".encode()),
        VhostProtectedError(b"v"),
    ):
        assert isinstance(error, RequestError)
        assert isinstance(error, StoreError)
        assert "\n" not in str(error)


# -- whatever is done, memory and disk agree ---------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b"\xff"])
PATTERNS = st.sampled_from([b"", b".*", b"^a", b"("])


def another_process(store: Store) -> Store:
    """What another process that has opened the same database has of it."""
    ours = store._database
    assert isinstance(ours, SqliteDatabase)
    theirs = SqliteDatabase(ours._path, ours._target)
    theirs.reader = Reader(theirs._reading())
    return Store(theirs)


class StoreAgreesWithItsFile(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = Store.open("sqlite::memory:")
        self.events: list[StoreEvent] = []
        self.store.subscribe(self.events.append)
        self.follower = another_process(self.store)
        self.told: list[StoreEvent] = []
        self.follower.subscribe(self.told.append)

    def attempt(self, change: object, *arguments: object) -> None:
        epoch, before = self.store.epoch.value, contents(self.store)
        self.events.clear()
        self.told.clear()
        try:
            change(*arguments)  # type: ignore[operator]
        except RequestError:
            assert contents(self.store) == before
        assert (contents(self.store) != before) is bool(self.events)
        assert self.store.epoch.value - epoch == bool(self.events)
        assert self.follower.refresh() is bool(self.events)
        assert self.told == self.events

    @rule(name=NAMES)
    def add_user(self, name: bytes) -> None:
        self.attempt(self.store.add_user, name, b"pw")

    @rule(name=NAMES)
    def delete_user(self, name: bytes) -> None:
        self.attempt(self.store.delete_user, name)

    @rule(name=NAMES, tag=st.sampled_from(["x", "y"]))
    def tags(self, name: bytes, tag: str) -> None:
        self.attempt(self.store.set_user_tags, name, [tag])

    @rule(name=NAMES)
    def add_vhost(self, name: bytes) -> None:
        self.attempt(self.store.add_vhost, name)

    @rule(name=NAMES)
    def delete_vhost(self, name: bytes) -> None:
        self.attempt(self.store.delete_vhost, name)

    @rule(user=NAMES, vhost=NAMES, pattern=PATTERNS)
    def permissions(self, user: bytes, vhost: bytes, pattern: bytes) -> None:
        self.attempt(self.store.set_permissions, user, vhost, pattern, b"", pattern)

    @rule(user=NAMES, vhost=NAMES, exchange=NAMES, pattern=PATTERNS)
    def topic(self, user: bytes, vhost: bytes, exchange: bytes, pattern: bytes) -> None:
        self.attempt(self.store.set_topic_permissions, user, vhost, exchange, pattern, b"")

    @rule(user=NAMES, vhost=NAMES)
    def clear(self, user: bytes, vhost: bytes) -> None:
        self.attempt(self.store.clear_permissions, user, vhost)
        self.attempt(self.store.clear_topic_permissions, user, vhost)

    @precondition(lambda self: not self.store.is_blank())
    @rule(data=st.data())
    def limits(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(contents(self.store).users)))
        self.attempt(
            self.store.set_user_limits, name, {"max-channels": data.draw(st.integers(-5, 2**70))}
        )

    @invariant()
    def memory_is_disk(self) -> None:
        for store in (self.store, self.follower):
            check_reads(store, b"a", b"b", b"\xff")

    @invariant()
    def no_permission_without_user_and_vhost(self) -> None:
        held = contents(self.store)
        for user, vhost in held.permissions:
            assert user in held.users
            assert vhost in held.vhosts
        for user, vhost, _ in held.topic_permissions:
            assert user in held.users
            assert vhost in held.vhosts

    def teardown(self) -> None:
        self.follower.close()
        self.store.close()


TestStoreAgreesWithItsFile = StoreAgreesWithItsFile.TestCase
TestStoreAgreesWithItsFile.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None
)
