"""Backends that answer what a test tells them to, at once or later."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field

from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission, Secret, Variables
from gatekeeper.policy.ports import Accepted, Verdict

PEER = Peer("10.0.0.9", 40000)
LOCAL = Peer("127.0.0.1", 40000, loopback=True)
BOB = Credentials("PLAIN", b"bob", Secret(b"secret"))

ALLOW = Verdict(True, "says yes")
DENY = Verdict(False, "says no")


def answered(answer: object, *, later: bool) -> object:
    """``answer``, or an awaitable of it; an exception is raised."""
    if later:
        return _later(answer)
    if isinstance(answer, Exception):
        raise answer
    return answer


async def _later(answer: object) -> object:
    if isinstance(answer, Exception):
        raise answer
    return answer


@dataclass
class FakeBackend:
    """``access`` by permission, else ``default``; ``asked`` records every question."""

    name: str = "rabbit_auth_backend_fake"
    login: object = field(default_factory=lambda: Accepted(b"bob", frozenset({"t"}), "state"))
    authorization: object = field(default_factory=lambda: Accepted(b"bob", frozenset({"z"}), 7))
    vhost: object = ALLOW
    default: object = ALLOW
    access: dict[Permission, object] = field(default_factory=dict)
    topic: object = ALLOW
    rule: object = True
    later: bool = False
    asked: list[tuple[object, ...]] = field(default_factory=list)

    def authenticate(self, credentials: Credentials, peer: Peer):  # type: ignore[no-untyped-def]
        self.asked.append(("authenticate", credentials.username))
        return answered(self.login, later=self.later)

    def authorize_login(self, username: bytes, credentials: Credentials, peer: Peer):  # type: ignore[no-untyped-def]
        self.asked.append(("authorize", username))
        return answered(self.authorization, later=self.later)

    def vhost_access(self, user: AuthUser, vhost: bytes, peer: Peer):  # type: ignore[no-untyped-def]
        self.asked.append(("vhost", user.username, user.state, vhost))
        return answered(self.vhost, later=self.later)

    def resource_access(  # type: ignore[no-untyped-def]
        self,
        user: AuthUser,
        vhost: bytes,
        kind: Kind,
        name: bytes,
        permission: Permission,
    ):
        self.asked.append(("resource", user.username, user.state, vhost, kind, name, permission))
        return answered(self.access.get(permission, self.default), later=self.later)

    def topic_rule(self, user: AuthUser, vhost: bytes, exchange: bytes) -> bool:
        self.asked.append(("rule", exchange))
        if isinstance(self.rule, Exception):
            raise self.rule
        return bool(self.rule)

    def topic_access(  # type: ignore[no-untyped-def]
        self,
        user: AuthUser,
        vhost: bytes,
        exchange: bytes,
        routing_key: bytes,
        permission: Permission,
        variables: Variables,
    ):
        self.asked.append(("topic", exchange, routing_key, permission, dict(variables)))
        return answered(self.topic, later=self.later)


@dataclass
class FakeExchanges:
    answer: object = True
    later: bool = False
    asked: list[bytes] = field(default_factory=list)

    def is_topic(self, vhost: bytes, exchange: bytes) -> bool | Awaitable[bool]:
        self.asked.append(exchange)
        return answered(self.answer, later=self.later)  # type: ignore[return-value]
