"""RabbitMQ's internal backend: users and permissions of the gate's own store.

Every answer comes at once: from the store's caches, or by one indexed look-up in its file.
Except for passwords where argon2id is in use: those are judged in threads, all of them for the
same time, and one that is still kept by another algorithm is hashed anew once it is known to be
right. A store that cannot be read refuses; why is for the log alone, for it names files.
Source: ``rabbit_auth_backend_internal``.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import structlog

from gatekeeper.backends.hashing import HashingThreads
from gatekeeper.errors import StoreError
from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission, Variables
from gatekeeper.policy.pcre import Pattern
from gatekeeper.policy.permissions import check_resource, check_topic, topic_pattern
from gatekeeper.policy.ports import Accepted, Failed, LoginAnswer, Refused, Verdict
from gatekeeper.store import passwords
from gatekeeper.store.records import User
from gatekeeper.store.refusals import shown
from gatekeeper.store.store import Store

NAME = "rabbit_auth_backend_internal"
UNREADABLE = "the user database cannot be read"

_P = ParamSpec("_P")
_T = TypeVar("_T")
_A = TypeVar("_A")


def _unreadable(answer: _A) -> Callable[[Callable[_P, _T]], Callable[_P, _T | _A]]:
    """What a method answers when the store fails it."""

    def decorate(ask: Callable[_P, _T]) -> Callable[_P, _T | _A]:
        @functools.wraps(ask)
        def asked(*arguments: _P.args, **options: _P.kwargs) -> _T | _A:
            try:
                return ask(*arguments, **options)
            except StoreError as error:
                _log.error("internal backend: refused", reason=str(error))
                return answer

        return asked

    return decorate


_log = structlog.get_logger(__name__)
_NO_LOGIN: LoginAnswer = Failed(UNREADABLE)
_NO_ACCESS = Verdict(False, error=UNREADABLE)
_UNTAGGED: frozenset[str] = frozenset()


class InternalBackend:
    """Authentication and authorisation by the store. It keeps no state per user."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = HashingThreads()

    @property
    def name(self) -> str:
        return NAME

    @_unreadable(_NO_LOGIN)
    def authenticate(
        self, credentials: Credentials, peer: Peer
    ) -> LoginAnswer | Awaitable[LoginAnswer]:
        """Refusal reasons are RabbitMQ's, and the same for an unknown user and a wrong password.

        Without a password (EXTERNAL: the certificate was the proof) the user only has to exist.
        """
        name = credentials.username
        if credentials.password is None:
            return self._existing(name)
        password = credentials.password.value
        if not password:
            return Refused(_blank_password(name))
        user = self._store.user(name)
        used = {self._store.algorithm} if user is None else {self._store.algorithm, user.algorithm}
        if any(map(passwords.is_slow, used)):
            return self._authenticate_slowly(name, password, user, peer)
        if user is None:
            passwords.verify(password, None)  # for the time it takes
            return Refused(_invalid_credentials(name))
        if not passwords.verify(password, user.password_hash, user.algorithm):
            return Refused(_invalid_credentials(name))
        return _accepted(user)

    async def _authenticate_slowly(
        self, name: bytes, password: bytes, user: User | None, peer: Peer
    ) -> LoginAnswer:
        while True:
            job = functools.partial(self._is_password_of, user, password)
            if not await self._threads.run(job, peer.host, name) or user is None:
                return Refused(_invalid_credentials(name))
            try:
                now = self._store.user(name)
            except StoreError as error:
                _log.error("internal backend: refused", reason=str(error))
                return _NO_LOGIN
            if now is not None and _proof(now) == _proof(user):
                return _accepted(now)
            user = now  # changed, hashed anew or deleted meanwhile: the old hash proves nothing

    def _is_password_of(self, user: User | None, password: bytes) -> bool:
        """In a thread. Whoever the user is, and whatever the answer, it takes as long."""
        wanted = self._store.algorithm
        if user is None:
            return passwords.verify(password, None, wanted)
        matched = passwords.verify(password, user.password_hash, user.algorithm)
        if passwords.is_slow(wanted) and user.algorithm != wanted:
            if matched:
                self._hash_anew(user, password)
            else:
                passwords.verify(password, None, wanted)
        return matched

    def _hash_anew(self, user: User, password: bytes) -> None:
        try:
            hashed = passwords.hash_password(password, self._store.algorithm)
            self._store.rehash_password(user, hashed)
        except (StoreError, ValueError) as error:
            # The login stands, and the next one tries again.
            _log.error("internal backend: password not hashed anew", reason=str(error))

    @_unreadable(_NO_LOGIN)
    def authorize_login(self, username: bytes, credentials: Credentials, peer: Peer) -> LoginAnswer:
        """Whom another backend authenticated must exist here too; the tags here are added."""
        return self._existing(username)

    @_unreadable(_NO_ACCESS)
    def vhost_access(self, user: AuthUser, vhost: bytes, peer: Peer) -> Verdict:
        """A permission record is access, even one of three empty patterns."""
        if self._store.permissions(user.username, vhost) is None:
            return Verdict(False, _no_permissions(user.username, vhost))
        return Verdict(
            True, f"user '{shown(user.username)}' has permissions in vhost '{shown(vhost)}'"
        )

    @_unreadable(_NO_ACCESS)
    def resource_access(
        self,
        user: AuthUser,
        vhost: bytes,
        kind: Kind,
        name: bytes,
        permission: Permission,
    ) -> Verdict:
        permissions = self._store.permissions(user.username, vhost)
        if permissions is None:
            return Verdict(False, _no_permissions(user.username, vhost))
        return check_resource(permissions, permission, name)

    @_unreadable(True)  # the check itself says what is wrong
    def topic_rule(self, user: AuthUser, vhost: bytes, exchange: bytes) -> bool:
        return self._store.topic_permissions(user.username, vhost, exchange) is not None

    @_unreadable(_NO_ACCESS)
    def topic_access(
        self,
        user: AuthUser,
        vhost: bytes,
        exchange: bytes,
        routing_key: bytes,
        permission: Permission,
        variables: Variables,
    ) -> Verdict:
        """Without a record for this exchange every routing key is allowed."""
        permissions = self._store.topic_permissions(user.username, vhost, exchange)
        if permissions is None:
            return Verdict(True, "no topic permissions are set on this exchange")
        return check_topic(permissions, permission, routing_key, variables)

    @_unreadable(None)
    def topic_patterns(
        self,
        user: AuthUser,
        vhost: bytes,
        exchange: bytes,
        permission: Permission,
        variables: Variables,
    ) -> tuple[Pattern, ...] | None:
        permissions = self._store.topic_permissions(user.username, vhost, exchange)
        if permissions is None:
            return ()
        pattern = topic_pattern(permissions, permission, variables)
        return None if pattern is None else (pattern,)

    @_unreadable(_UNTAGGED)
    def tags_now(self, username: bytes) -> frozenset[str]:
        user = self._store.user(username)
        return _UNTAGGED if user is None else _tags(user)

    def _existing(self, name: bytes) -> LoginAnswer:
        user = self._store.user(name)
        return Refused(_invalid_credentials(name)) if user is None else _accepted(user)


def _proof(user: User) -> tuple[int, bytes, str]:
    return user.incarnation, user.password_hash, user.algorithm


def _accepted(user: User) -> Accepted:
    return Accepted(user.name, _tags(user))


def _tags(user: User) -> frozenset[str]:
    return frozenset(user.tags) if user.tags else _UNTAGGED


def _no_permissions(username: bytes, vhost: bytes) -> str:
    return f"user '{shown(username)}' has no permissions in vhost '{shown(vhost)}'"


def _invalid_credentials(name: bytes) -> str:
    return f"user '{shown(name)}' - invalid credentials"


def _blank_password(name: bytes) -> str:
    return (
        f"user '{shown(name)}' attempted to log in with a blank password, which is prohibited "
        "by the internal authN backend. To use TLS/x509 certificate-based authentication, see "
        "the rabbitmq_auth_mechanism_ssl plugin and configure the client to use the EXTERNAL "
        "authentication mechanism. Alternatively change the password for the user to be "
        "non-blank."
    )
