"""The default user and vhost of a blank store.

As RabbitMQ 4.x: blank means without users or without vhosts, at every start; and a store
whose content is configured by definitions is never seeded, even if they hold no user.
"""

from __future__ import annotations

from collections.abc import Iterable

from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.store.store import Store

DEFAULT_VHOST_DESCRIPTION = "Default virtual host"


def seed(
    store: Store,
    *,
    user: bytes,
    password: bytes,
    vhost: bytes,
    permissions: PermissionSet,
    tags: Iterable[str],
    definitions_configured: bool = False,
) -> bool:
    """Seed a blank store; False, and nothing done, where it is not to be seeded.

    What is already there under these names is left as it is. Raises a RequestError if the
    password or a pattern is refused.
    """
    if definitions_configured or not store.is_blank():
        return False
    with store.change() as draft:
        if not draft.is_blank():  # another process was faster
            return False
        if not draft.has_vhost(vhost):
            draft.put_vhost(vhost, description=DEFAULT_VHOST_DESCRIPTION)
        if not draft.has_user(user):
            draft.add_user(user, password, tags=tags)
        draft.set_permissions(user, vhost, permissions)
    return True
