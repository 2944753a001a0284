"""What each new vhost gets: default_limits and default_users."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gatekeeper.config.settings import DefaultLimits, DefaultUser, Permissions, VhostDefaults
from gatekeeper.model import Secret
from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.store import passwords
from gatekeeper.store.refusals import CredentialRefusedError
from gatekeeper.store.store import Store
from gatekeeper.store.validators import min_password_length

RIGHTS = PermissionSet(b"c", b"w", b"r")
CONFIGURED = Permissions(configure=b"c", write=b"w", read=b"r")
DEFAULTS = VhostDefaults(
    limits=(
        DefaultLimits(pattern=b"^dev-small", limits={"max-queues": 1}),
        DefaultLimits(pattern=b"^dev-", limits={"max-connections": 5}),
    ),
    users=(
        DefaultUser(
            name=b"dev",
            vhost_pattern=b"^dev-",
            permissions=CONFIGURED,
            password=Secret(b"first password"),
            tags=("monitoring",),
        ),
        DefaultUser(
            name=b"all",
            vhost_pattern=b".*",
            permissions=Permissions(configure=b"", write=b"", read=b".*"),
        ),
    ),
)


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.open("sqlite::memory:", vhost_defaults=DEFAULTS)
    yield store
    store.close()


@pytest.mark.parametrize(
    ("vhost", "limits", "users"),
    [
        (b"dev-small-1", {"max-queues": 1}, [b"all", b"dev"]),  # the first that matches
        (b"dev-2", {"max-connections": 5}, [b"all", b"dev"]),
        (b"prod", {}, [b"all"]),
    ],
)
def test_a_new_vhost(
    store: Store, vhost: bytes, limits: dict[str, int], users: list[bytes]
) -> None:
    assert store.add_vhost(vhost)
    made = store.vhost(vhost)
    assert made is not None
    assert made.limits == limits
    assert [user for user, _, _ in store.list_permissions(vhost)] == users
    if b"dev" in users:
        dev = store.user(b"dev")
        assert dev is not None
        assert passwords.verify(b"first password", dev.password_hash, dev.algorithm)
        assert dev.tags == ("monitoring",)
        assert store.permissions(b"dev", vhost) == RIGHTS
    everybody = store.user(b"all")
    assert everybody is not None
    assert everybody.password_hash == b""


def test_only_when_it_is_new(store: Store) -> None:
    store.add_vhost(b"dev-1")
    store.clear_permissions(b"dev", b"dev-1")
    store.clear_vhost_limits(b"dev-1")
    store.change_password(b"dev", b"second password")
    assert not store.add_vhost(b"dev-1", description="d")
    assert store.permissions(b"dev", b"dev-1") is None
    again = store.vhost(b"dev-1")
    assert again is not None
    assert again.limits == {}
    # A user who is there gets permissions in the next vhost, and keeps the password and the tags.
    store.set_user_tags(b"dev", [])
    store.add_vhost(b"dev-2")
    dev = store.user(b"dev")
    assert dev is not None
    assert passwords.verify(b"second password", dev.password_hash, dev.algorithm)
    assert dev.tags == ()
    assert store.permissions(b"dev", b"dev-2") == RIGHTS


def test_the_first_password_is_judged_too() -> None:
    rule = min_password_length(50)
    store = Store.open("sqlite::memory:", validator=rule, vhost_defaults=DEFAULTS)
    with pytest.raises(CredentialRefusedError, match="minimum required password length is 50"):
        store.add_vhost(b"dev-1")
    assert store.vhost(b"dev-1") is None
    assert store.add_vhost(b"prod")
    store.close()


def test_passwords_are_not_shown() -> None:
    assert "first password" not in repr(DEFAULTS)
