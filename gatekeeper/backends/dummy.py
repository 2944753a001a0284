"""RabbitMQ's dummy backend: nobody logs in, and whoever did elsewhere may do everything.

Source: ``rabbit_auth_backend_dummy``.
"""

from __future__ import annotations

from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission, Variables
from gatekeeper.policy.ports import Accepted, LoginAnswer, Refused, Verdict

NAME = "rabbit_auth_backend_dummy"
_ALLOWED = Verdict(True, "allows everything")


class DummyBackend:
    @property
    def name(self) -> str:
        return NAME

    def authenticate(self, credentials: Credentials, peer: Peer) -> LoginAnswer:
        return Refused("cannot log in conventionally as dummy user")

    def authorize_login(self, username: bytes, credentials: Credentials, peer: Peer) -> LoginAnswer:
        return Accepted(username)

    def vhost_access(self, user: AuthUser, vhost: bytes, peer: Peer) -> Verdict:
        return _ALLOWED

    def resource_access(
        self, user: AuthUser, vhost: bytes, kind: Kind, name: bytes, permission: Permission
    ) -> Verdict:
        return _ALLOWED

    def topic_rule(self, user: AuthUser, vhost: bytes, exchange: bytes) -> bool:
        return False

    def topic_access(
        self,
        user: AuthUser,
        vhost: bytes,
        exchange: bytes,
        routing_key: bytes,
        permission: Permission,
        variables: Variables,
    ) -> Verdict:
        return _ALLOWED
