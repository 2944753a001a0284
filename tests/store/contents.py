"""All that a store holds, for tests to compare; and whether its cached reads say the same."""

from __future__ import annotations

from dataclasses import dataclass

from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store.records import User, Vhost
from gatekeeper.store.store import Store


@dataclass(frozen=True)
class Contents:
    users: dict[bytes, User]
    vhosts: dict[bytes, Vhost]
    permissions: dict[tuple[bytes, bytes], PermissionSet]
    topic_permissions: dict[tuple[bytes, bytes, bytes], TopicPermissionSet]


def contents(store: Store) -> Contents:
    """What the file holds; the listings, each row by row, must agree with it."""
    with store.view() as view:
        found = Contents(
            users={user.name: user for user in view.users()},
            vhosts={vhost.name: vhost for vhost in view.vhosts()},
            permissions={row[:2]: row[2] for row in view.all_permissions()},
            topic_permissions={row[:3]: row[3] for row in view.all_topic_permissions()},
        )
    assert list(found.users.values()) == list(store.list_users())
    assert list(found.vhosts.values()) == list(store.list_vhosts())
    return found


def check_reads(store: Store, *more: bytes) -> None:
    """Every cached read answers as the file does, also about what is not there."""
    held = contents(store)
    users, vhosts = {*held.users, *more}, {*held.vhosts, *more}
    exchanges = {key[2] for key in held.topic_permissions} | {*more}
    for user in users:
        assert store.user(user) == held.users.get(user)
        for vhost in vhosts:
            assert store.permissions(user, vhost) == held.permissions.get((user, vhost))
            for exchange in exchanges:
                assert store.topic_permissions(user, vhost, exchange) == held.topic_permissions.get(
                    (user, vhost, exchange)
                )
    for vhost in vhosts:
        assert store.vhost(vhost) == held.vhosts.get(vhost)
