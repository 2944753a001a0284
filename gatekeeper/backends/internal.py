"""RabbitMQ's internal backend: users and permissions of the gate's own store.

Every answer comes from the store's snapshot, at once and without I/O.
Source: ``rabbit_auth_backend_internal``.
"""

from __future__ import annotations

from gatekeeper.model import Credentials, Kind, Peer, Permission, Variables
from gatekeeper.policy.permissions import check_resource, check_topic
from gatekeeper.policy.ports import Accepted, LoginAnswer, Refused, Verdict
from gatekeeper.store import passwords
from gatekeeper.store.records import User
from gatekeeper.store.refusals import shown
from gatekeeper.store.store import Store

NAME = "rabbit_auth_backend_internal"


class InternalBackend:
    """Authentication and authorisation by the store. It keeps no state per user."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def name(self) -> str:
        return NAME

    def authenticate(self, credentials: Credentials, peer: Peer) -> LoginAnswer:
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
        if user is None:
            passwords.verify(password, None)  # for the time it takes
            return Refused(_invalid_credentials(name))
        if not passwords.verify(password, user.password_hash, user.algorithm):
            return Refused(_invalid_credentials(name))
        return _accepted(user)

    def authorize_login(self, username: bytes, credentials: Credentials, peer: Peer) -> LoginAnswer:
        """Whom another backend authenticated must exist here too; the tags here are added."""
        return self._existing(username)

    def vhost_access(self, username: bytes, state: object, vhost: bytes, peer: Peer) -> Verdict:
        """A permission record is access, even one of three empty patterns."""
        if self._store.permissions(username, vhost) is None:
            return Verdict(False, _no_permissions(username, vhost))
        return Verdict(True, f"user '{shown(username)}' has permissions in vhost '{shown(vhost)}'")

    def resource_access(
        self,
        username: bytes,
        state: object,
        vhost: bytes,
        kind: Kind,
        name: bytes,
        permission: Permission,
    ) -> Verdict:
        permissions = self._store.permissions(username, vhost)
        if permissions is None:
            return Verdict(False, _no_permissions(username, vhost))
        return check_resource(permissions, permission, name)

    def topic_rule(self, username: bytes, state: object, vhost: bytes, exchange: bytes) -> bool:
        return self._store.topic_permissions(username, vhost, exchange) is not None

    def topic_access(
        self,
        username: bytes,
        state: object,
        vhost: bytes,
        exchange: bytes,
        routing_key: bytes,
        permission: Permission,
        variables: Variables,
    ) -> Verdict:
        """Without a record for this exchange every routing key is allowed."""
        permissions = self._store.topic_permissions(username, vhost, exchange)
        if permissions is None:
            return Verdict(True, "no topic permissions are set on this exchange")
        return check_topic(permissions, permission, routing_key, variables)

    def _existing(self, name: bytes) -> LoginAnswer:
        user = self._store.user(name)
        return Refused(_invalid_credentials(name)) if user is None else _accepted(user)


def _accepted(user: User) -> Accepted:
    return Accepted(user.name, frozenset(user.tags))


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
