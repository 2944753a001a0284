"""Listings of any length: page by page, complete, in order, and harmless when abandoned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store import rows
from gatekeeper.store.store import Store

NAMES = st.sampled_from([b"a", b"a\0", b"a\0\0", b"a\1", b"b", b"\0", b"\xff", b"\xff\xff"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite://{tmp_path}/s.db")
    yield store
    store.close()


@given(
    keys=st.sets(st.tuples(NAMES, st.one_of(st.just(b""), NAMES), NAMES), max_size=30),
    page=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_every_row_once_and_in_order(keys: set[tuple[bytes, bytes, bytes]], page: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "PAGE", page)
        store = Store.open("sqlite::memory:")
        users, vhosts = {key[0] for key in keys}, {key[1] for key in keys}
        pairs = {key[:2] for key in keys}
        with store.change() as draft:
            for user in users:
                draft.put_user(user)
            for vhost in vhosts:
                draft.put_vhost(vhost)
            for pair in pairs:
                draft.set_permissions(*pair, PermissionSet(b"c", b"w", b"r"))
            for key in keys:
                draft.set_topic_permissions(*key, TopicPermissionSet(b"w", b"r"))
        assert [user.name for user in store.list_users()] == sorted(users)
        assert [vhost.name for vhost in store.list_vhosts()] == sorted(vhosts)
        assert [row[:2] for row in store.list_permissions()] == sorted(pairs)
        assert [row[:3] for row in store.list_topic_permissions()] == sorted(keys)
        for user in users:
            of_user = [row[0] for row in store.list_user_permissions(user)]
            assert of_user == sorted(pair[1] for pair in pairs if pair[0] == user)
            topics = [row[:2] for row in store.list_user_topic_permissions(user)]
            assert topics == sorted(key[1:] for key in keys if key[0] == user)
        for vhost in vhosts:
            in_vhost = [row[0] for row in store.list_permissions(vhost)]
            assert in_vhost == sorted(pair[0] for pair in pairs if pair[1] == vhost)
            inside = [row[:3] for row in store.list_topic_permissions(vhost)]
            assert inside == sorted(key for key in keys if key[1] == vhost)
        store.close()


def test_a_listing_that_is_not_finished_holds_nothing_up(store: Store) -> None:
    with store.change() as draft:
        for number in range(rows.PAGE + 1):
            draft.put_user(b"%06d" % number)
    listing = store.list_users()
    first = next(listing)
    store.delete_user(first.name)
    assert store.user(first.name) is None  # the reading connection is not held back
    store.delete_user(b"%06d" % rows.PAGE)
    left = [user.name for user in listing]
    assert left == [b"%06d" % number for number in range(1, rows.PAGE)]


def test_a_view_is_of_one_moment(store: Store) -> None:
    store.add_user(b"u")
    with store.view() as view:
        assert view.user(b"u") is not None
        store.delete_user(b"u")
        assert view.user(b"u") is not None
        assert [user.name for user in view.users()] == [b"u"]
        assert store.user(b"u") is None


@pytest.mark.parametrize(
    ("statement", "fixed"),
    [
        (rows._USERS_FROM, 0),
        (rows._VHOSTS_FROM, 0),
        (rows._PERMISSIONS_FROM, 0),
        (rows._PERMISSIONS_OF, 1),
        (rows._PERMISSIONS_IN, 1),
        (rows._TOPICS_FROM, 0),
        (rows._TOPICS_OF, 1),
        (rows._TOPICS_IN, 1),
    ],
)
def test_a_page_is_found_by_an_index_and_needs_no_sorting(
    store: Store, statement: rows._Listing, fixed: int
) -> None:
    values = [b"x"] * (fixed + len(statement.key)) + [rows.PAGE]
    reading = store._database.reader._connection
    plan = [row[3] for row in reading.rows(f"EXPLAIN QUERY PLAN {statement.statement}", values)]
    assert len(plan) == 1
    assert plan[0].startswith("SEARCH ")


@pytest.mark.parametrize("statement", rows.POINT_READS)
def test_a_point_read_is_a_search(store: Store, statement: str) -> None:
    values = [b"x"] * statement.count("?")
    reading = store._database.reader._connection
    plan = [row[3] for row in reading.rows(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert len(plan) == 1
    assert plan[0].startswith("SEARCH ")
    assert plan[0].count("=?") == len(values)
