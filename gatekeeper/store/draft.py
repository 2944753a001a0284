"""One change in the making: RabbitMQ's operations on users, vhosts and permissions.

A draft reads and writes in the open transaction: later steps see earlier ones, and if anything
is refused nobody ever sees any of it. It holds no rows itself. A definitions file of a million
entries and a single ``set_permissions`` are the same thing here.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Mapping
from typing import Protocol

from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store import passwords
from gatekeeper.store.checks import (
    check_pattern,
    checked_limits,
    checked_tags,
    must_be_json,
    must_be_text,
)
from gatekeeper.store.records import (
    USER_LIMITS,
    VHOST_LIMITS,
    User,
    UserVhost,
    UserVhostExchange,
    Vhost,
)
from gatekeeper.store.refusals import (
    CredentialRefusedError,
    InvalidNameError,
    NoSuchUserError,
    NoSuchVhostError,
    UserExistsError,
    VhostProtectedError,
)
from gatekeeper.store.rules import Rules, limits_of, users_of

_FULL = PermissionSet(b".*", b".*", b".*")


class Rows(Protocol):
    """The rows as the open transaction sees them, and the statements that change them."""

    def user(self, name: bytes) -> User | None: ...
    def vhost(self, name: bytes) -> Vhost | None: ...
    def permissions(self, key: UserVhost) -> PermissionSet | None: ...
    def topic_exchanges(self, key: UserVhost) -> list[bytes]: ...
    def has_metadata(self, key: str) -> bool: ...
    def is_blank(self) -> bool: ...
    def put_user(self, user: User) -> None: ...
    def drop_user(self, name: bytes) -> None: ...
    def put_vhost(self, vhost: Vhost) -> None: ...
    def drop_vhost(self, name: bytes) -> None: ...
    def put_permissions(self, rows: Iterable[tuple[UserVhost, PermissionSet]]) -> None: ...
    def drop_permissions(self, key: UserVhost) -> None: ...
    def put_topic_permissions(
        self, rows: Iterable[tuple[UserVhostExchange, TopicPermissionSet]]
    ) -> None: ...
    def drop_topic_permissions(self, key: UserVhostExchange) -> None: ...
    def put_metadata(self, key: str, value: object) -> None: ...
    def drop_metadata(self, key: str) -> None: ...


class Draft:
    """The operations. Each raises a RequestError, before it has written anything."""

    def __init__(self, rows: Rows, rules: Rules) -> None:
        self._rows = rows
        self._rules = rules

    def is_blank(self) -> bool:
        """Without users or without vhosts."""
        return self._rows.is_blank()

    def has_user(self, name: bytes) -> bool:
        return self._rows.user(name) is not None

    def has_vhost(self, name: bytes) -> bool:
        return self._rows.vhost(name) is not None

    def user(self, name: bytes) -> User:
        user = self._rows.user(name)
        if user is None:
            raise NoSuchUserError(name)
        return user

    def vhost(self, name: bytes) -> Vhost:
        vhost = self._rows.vhost(name)
        if vhost is None:
            raise NoSuchVhostError(name)
        return vhost

    def has_permissions(self, user: bytes, vhost: bytes) -> bool:
        return self._rows.permissions((user, vhost)) is not None

    def has_topic_permissions(self, user: bytes, vhost: bytes) -> bool:
        """On any exchange of the vhost."""
        return bool(self._rows.topic_exchanges((user, vhost)))

    # -- users ---------------------------------------------------------------------------

    def add_user(
        self,
        name: bytes,
        password: bytes | None = None,
        *,
        password_hash: bytes | None = None,
        algorithm: str | None = None,
        tags: Iterable[str] = (),
        limits: Mapping[str, object] | None = None,
    ) -> None:
        if self.has_user(name):
            raise UserExistsError(name)
        self.put_user(
            name,
            password,
            password_hash=password_hash,
            algorithm=algorithm,
            tags=tags,
            limits=limits,
        )

    def put_user(
        self,
        name: bytes,
        password: bytes | None = None,
        *,
        password_hash: bytes | None = None,
        algorithm: str | None = None,
        tags: Iterable[str] = (),
        limits: Mapping[str, object] | None = None,
        permissions: Mapping[bytes, PermissionSet] | None = None,
    ) -> bool:
        """Create or overwrite; True if the user is new.

        password_hash: raw, instead of a password; ``algorithm`` is its own. With neither, the
        user has none afterwards, and an existing one keeps its limits as they are. Limits that
        are not named stay. permissions: by vhost, for a new user only.

        Raises InvalidNameError, CredentialRefusedError, InvalidTagsError, InvalidLimitsError,
        InvalidPatternError, NoSuchVhostError. Source: rabbit_auth_backend_internal:put_user.
        """
        if not name:
            raise InvalidNameError("user cannot be an empty string")
        known = self._rows.user(name)
        named = checked_limits(limits or {}, USER_LIMITS, "user-limits")
        if password is not None and password_hash is not None:
            raise CredentialRefusedError("both a password and a password hash are given; give one")
        if known and password is None and password_hash is None:
            named = {}
        if password is not None:
            password_hash, algorithm = self._hash(name, password), self._rules.algorithm
        must_be_text(algorithm)
        self._rows.put_user(
            User(
                name=name,
                password_hash=password_hash or b"",
                algorithm=algorithm or self._rules.algorithm,
                tags=checked_tags(tags),
                limits={**known.limits, **named} if known else named,
                incarnation=known.incarnation if known else _incarnation(),
            )
        )
        if known is None and permissions:
            for vhost, granted in permissions.items():
                self.set_permissions(name, vhost, granted)
        return known is None

    def delete_user(self, name: bytes) -> bool:
        """Delete with all permissions; False if there was no such user (no error in 4.x)."""
        if not self.has_user(name):
            return False
        self._rows.drop_user(name)
        return True

    def change_password(self, name: bytes, password: bytes) -> None:
        user = self.user(name)
        hashed = self._hash(name, password)
        self._rows.put_user(
            dataclasses.replace(user, password_hash=hashed, algorithm=self._rules.algorithm)
        )

    def change_password_hash(
        self, name: bytes, password_hash: bytes, algorithm: str | None = None
    ) -> None:
        must_be_text(algorithm)
        user = self.user(name)
        self._rows.put_user(
            dataclasses.replace(
                user, password_hash=password_hash, algorithm=algorithm or self._rules.algorithm
            )
        )

    def clear_password(self, name: bytes) -> None:
        """Afterwards no password logs this user in."""
        self._rows.put_user(dataclasses.replace(self.user(name), password_hash=b""))

    def set_user_tags(self, name: bytes, tags: Iterable[str]) -> None:
        user = self.user(name)
        self._rows.put_user(dataclasses.replace(user, tags=checked_tags(tags)))

    def set_user_limits(self, name: bytes, limits: Mapping[str, object]) -> None:
        """Set the limits that are named (``max-connections``, ``max-channels``); others stay."""
        user = self.user(name)
        merged = {**user.limits, **checked_limits(limits, USER_LIMITS, "user-limits")}
        self._rows.put_user(dataclasses.replace(user, limits=merged))

    def clear_user_limits(self, name: bytes, limit: str = "all") -> None:
        """Clear one limit or ``all``; an unknown name clears nothing, as in RabbitMQ."""
        user = self.user(name)
        kept = {} if limit == "all" else {k: v for k, v in user.limits.items() if k != limit}
        self._rows.put_user(dataclasses.replace(user, limits=kept))

    def _hash(self, name: bytes, password: bytes) -> bytes:
        complaint = self._rules.validator(name, password)
        if complaint is not None:
            raise CredentialRefusedError(complaint)
        if not password:
            return b""  # a blank password never logs anyone in
        try:
            return passwords.hash_password(password, self._rules.algorithm)
        except ValueError as error:
            raise CredentialRefusedError(str(error)) from error

    # -- virtual hosts -------------------------------------------------------------------

    def put_vhost(
        self,
        name: bytes,
        *,
        description: str | None = None,
        tags: Iterable[str] | None = None,
        default_queue_type: str | None = None,
        protected: bool | None = None,
        grant_to: bytes | None = None,
    ) -> bool:
        """Create, or update what is named of the metadata; True if the vhost is new.

        A new one gets the default limits and users that are configured for it. grant_to: a user
        who then gets all permissions in it (RabbitMQ: who creates it over HTTP).
        Source: rabbit_vhost:put_vhost, rabbit_db_vhost_defaults:apply.
        """
        for text in (description, default_queue_type):
            must_be_text(text)
        known = self._rows.vhost(name)
        vhost = known or Vhost(name=name, incarnation=_incarnation())
        if description is not None:
            vhost = dataclasses.replace(vhost, description=description)
        if tags is not None:
            vhost = dataclasses.replace(vhost, tags=checked_tags(tags, limit=None))
        if default_queue_type is not None:
            vhost = dataclasses.replace(vhost, default_queue_type=default_queue_type)
        if protected is not None:
            vhost = dataclasses.replace(vhost, protected=protected)
        if known is not None:
            self._rows.put_vhost(vhost)
            return False
        limits = limits_of(self._rules.vhost_defaults, name)
        self._rows.put_vhost(dataclasses.replace(vhost, limits=limits))
        for user in users_of(self._rules.vhost_defaults, name):
            if not self.has_user(user.name):
                password = None if user.password is None else user.password.value
                self.put_user(user.name, password, tags=user.tags)
            rights = user.permissions
            granted = PermissionSet(rights.configure, rights.write, rights.read)
            self.set_permissions(user.name, name, granted)
        if grant_to is not None and self.has_user(grant_to):
            self._rows.put_permissions([((grant_to, name), _FULL)])
        return True

    def delete_vhost(self, name: bytes) -> None:
        """Delete with all permissions in it."""
        if self.vhost(name).protected:
            raise VhostProtectedError(name)
        self._rows.drop_vhost(name)

    def set_vhost_limits(self, name: bytes, limits: Mapping[str, object]) -> None:
        """Replace all limits (``max-connections``, ``max-queues``), as the parameter does."""
        vhost = self.vhost(name)
        checked = checked_limits(limits, VHOST_LIMITS, "limits")
        self._rows.put_vhost(dataclasses.replace(vhost, limits=checked))

    def set_vhost_limit(self, name: bytes, limit: str, value: object) -> None:
        vhost = self.vhost(name)
        checked = checked_limits({limit: value}, VHOST_LIMITS, "limits")
        self._rows.put_vhost(dataclasses.replace(vhost, limits={**vhost.limits, **checked}))

    def clear_vhost_limits(self, name: bytes, limit: str | None = None) -> bool:
        """Clear one limit or all; False if there was none (RabbitMQ: no such parameter)."""
        vhost = self.vhost(name)
        kept = {} if limit is None else {k: v for k, v in vhost.limits.items() if k != limit}
        if kept == vhost.limits:
            return False
        self._rows.put_vhost(dataclasses.replace(vhost, limits=kept))
        return True

    # -- permissions ---------------------------------------------------------------------

    def set_permissions(self, user: bytes, vhost: bytes, permissions: PermissionSet) -> None:
        """Every pattern is compiled first: one that is refused changes nothing.

        Source: rabbit_auth_backend_internal:set_permissions.
        """
        for what in ("configure", "write", "read"):
            check_pattern(what, getattr(permissions, what))
        self._need(user, vhost)
        self._rows.put_permissions([((user, vhost), permissions)])

    def put_permissions(self, rows: Iterable[tuple[UserVhost, PermissionSet]]) -> None:
        """Many at once. The caller has seen to it that patterns compile and names exist."""
        self._rows.put_permissions(rows)

    def clear_permissions(self, user: bytes, vhost: bytes) -> bool:
        """False if there were none; a missing user or vhost is no error in 4.x."""
        if self._rows.permissions((user, vhost)) is None:
            return False
        self._rows.drop_permissions((user, vhost))
        return True

    def set_topic_permissions(
        self, user: bytes, vhost: bytes, exchange: bytes, permissions: TopicPermissionSet
    ) -> None:
        """The exchange need not exist: only the broker knows its exchanges."""
        for what in ("write", "read"):
            check_pattern(what, getattr(permissions, what))
        self._need(user, vhost)
        self._rows.put_topic_permissions([((user, vhost, exchange), permissions)])

    def put_topic_permissions(
        self, rows: Iterable[tuple[UserVhostExchange, TopicPermissionSet]]
    ) -> None:
        """As :meth:`put_permissions`."""
        self._rows.put_topic_permissions(rows)

    def clear_topic_permissions(
        self, user: bytes, vhost: bytes, exchange: bytes | None = None
    ) -> int:
        """On one exchange, or on all of the vhost (None). The number of records removed."""
        set_on = self._rows.topic_exchanges((user, vhost))
        cleared = [one for one in set_on if exchange in {None, one}]
        for one in cleared:
            self._rows.drop_topic_permissions((user, vhost, one))
        return len(cleared)

    def _need(self, user: bytes, vhost: bytes) -> None:
        self.user(user)
        self.vhost(vhost)

    # -- metadata: RabbitMQ's global parameters, its own and the operator's ---------------

    def set_global_parameter(self, name: str, value: object) -> None:
        """Raises InvalidTextError for the name, InvalidValueError for what is not JSON."""
        must_be_text(name)
        must_be_json(value)
        self._rows.put_metadata(name, value)

    def clear_global_parameter(self, name: str) -> bool:
        """False if there was none."""
        return self.clear_metadata(name)

    def set_metadata(self, key: str, value: object) -> None:
        """``value``: anything JSON can hold."""
        self._rows.put_metadata(key, value)

    def clear_metadata(self, key: str) -> bool:
        if not self._rows.has_metadata(key):
            return False
        self._rows.drop_metadata(key)
        return True


def _incarnation() -> int:
    return secrets.randbits(62)
