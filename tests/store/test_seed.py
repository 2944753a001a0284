"""When a store is seeded, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.store import passwords
from gatekeeper.store.refusals import CredentialRefusedError, InvalidPatternError
from gatekeeper.store.seed import seed
from gatekeeper.store.store import Store

ALL = PermissionSet(b".*", b".*", b".*")


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.open("sqlite::memory:")
    yield store
    store.close()


def default(store: Store, **changes: object) -> bool:
    arguments: dict[str, object] = {
        "user": b"guest",
        "password": b"guest",
        "vhost": b"/",
        "permissions": ALL,
        "tags": ["administrator"],
        **changes,
    }
    return seed(store, **arguments)  # type: ignore[arg-type]


def test_a_blank_store_is_seeded_once(store: Store) -> None:
    assert default(store)
    guest = store.user(b"guest")
    assert guest is not None
    assert guest.tags == ("administrator",)
    assert passwords.verify(b"guest", guest.password_hash, guest.algorithm)
    assert store.vhost(b"/").description == "Default virtual host"  # type: ignore[union-attr]
    assert store.permissions(b"guest", b"/") == ALL
    assert not default(store, user=b"other")
    assert store.user(b"other") is None


def test_not_where_definitions_are_configured(store: Store) -> None:
    assert not default(store, definitions_configured=True)
    assert store.is_blank()


def test_again_when_the_last_user_is_gone(store: Store) -> None:
    default(store)
    store.add_vhost(b"/", description="mine")
    store.delete_user(b"guest")
    assert default(store)
    assert store.vhost(b"/").description == "mine"  # type: ignore[union-attr]
    assert store.user(b"guest") is not None


def test_what_is_there_is_left_alone(store: Store) -> None:
    store.add_user(b"guest", b"changed")
    assert default(store)  # no vhost yet: blank
    guest = store.user(b"guest")
    assert guest is not None
    assert passwords.verify(b"changed", guest.password_hash, guest.algorithm)
    assert guest.tags == ()
    store.delete_vhost(b"/")
    store.add_vhost(b"other")
    assert not default(store)


def test_another_process_was_faster(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/s.db"
    first, second = Store.open(url), Store.open(url)
    assert default(first)
    assert not default(second, user=b"late")  # it still believes that the store is blank
    assert second.user(b"late") is None
    assert second.user(b"guest") is not None
    first.close()
    second.close()


def test_a_refused_seed_leaves_the_store_blank() -> None:
    store = Store.open("sqlite::memory:", validator=lambda _name, _password: "no")
    with pytest.raises(CredentialRefusedError):
        default(store)
    assert not list(store.list_vhosts())
    store.close()


def test_a_bad_pattern_leaves_the_store_blank(store: Store) -> None:
    with pytest.raises(InvalidPatternError):
        default(store, permissions=PermissionSet(b"(", b"", b""))
    assert not list(store.list_users())
