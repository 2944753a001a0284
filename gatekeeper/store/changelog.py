"""The change log's rows, as events. The triggers of ``schema.py`` write them by these names."""

from __future__ import annotations

from gatekeeper.store.records import (
    MetadataChanged,
    PasswordChanged,
    PasswordRehashed,
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

_OF_USERS = {
    kind.__name__: kind
    for kind in (
        UserAdded,
        UserDeleted,
        PasswordChanged,
        PasswordRehashed,
        UserTagsChanged,
        UserLimitsChanged,
    )
}
_OF_VHOSTS = {
    kind.__name__: kind for kind in (VhostAdded, VhostDeleted, VhostChanged, VhostLimitsChanged)
}


def event(kind: str, user: bytes, vhost: bytes, exchange: bytes, key: str) -> StoreEvent | None:
    """The event of one row, whose columns are null where the kind has no use for them.

    None for a kind that this program does not know.
    """
    if kind in _OF_USERS:
        return _OF_USERS[kind](user)
    if kind in _OF_VHOSTS:
        return _OF_VHOSTS[kind](vhost)
    match kind:
        case PermissionsChanged.__name__:
            return PermissionsChanged(user, vhost)
        case TopicPermissionsChanged.__name__:
            return TopicPermissionsChanged(user, vhost, exchange)
        case MetadataChanged.__name__:
            return MetadataChanged(key)
    return None
