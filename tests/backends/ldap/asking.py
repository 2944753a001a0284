"""Shorthands: a backend with settings, a user's login, a check."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gatekeeper.backends.ldap.backend import LdapBackend
from gatekeeper.config.erlang_terms import read_term
from gatekeeper.config.ldap import BindAs, LdapQueries, LdapSettings
from gatekeeper.config.ldap_queries import Query, query, tag_queries
from gatekeeper.model import AuthUser, Credentials, Peer, Secret
from gatekeeper.policy.ports import Accepted, LoginAnswer
from tests.support.slapd import GROUPS, PEOPLE, SERVICE, SERVICE_PASSWORD, password_of

PEER = Peer("127.0.0.1", 40000)
PATTERN = f"cn=${{username}},{PEOPLE}".encode()
SERVICE_BIND = BindAs(SERVICE.encode(), Secret(SERVICE_PASSWORD.encode()))


def parsed(text: str) -> Query:
    return query(read_term(text))


def queries(vhost: str = "{constant, true}", tags: str = "[]", **more: str) -> LdapQueries:
    return LdapQueries(
        vhost_access=parsed(vhost),
        tags=tag_queries(read_term(tags)),
        **{f"{name}_access": parsed(text) for name, text in more.items()},
    )


def settings(port: int, **more: Any) -> LdapSettings:
    defaults: dict[str, Any] = {
        "servers": ("127.0.0.1",),
        "timeout": 5.0,
        "user_dn_pattern": PATTERN,
        "group_lookup_base": GROUPS.encode(),
    }
    return LdapSettings(port=port, **(defaults | more))


@asynccontextmanager
async def backend(port: int, **more: Any) -> AsyncIterator[LdapBackend]:
    made = LdapBackend.from_settings(settings(port, **more))
    try:
        yield made
    finally:
        await made.close()


async def login(made: LdapBackend, user: str, password: str | None = "") -> LoginAnswer:
    """With the right password unless another is given; None for none at all."""
    secret = None
    if password is not None:
        secret = Secret((password or password_of(user)).encode())
    return await made.authenticate(Credentials("PLAIN", user.encode(), secret), PEER)


async def user(made: LdapBackend, name: str) -> AuthUser:
    answer = await login(made, name)
    assert isinstance(answer, Accepted), answer
    return AuthUser(answer.username, answer.tags, answer.state)
