"""Every case of queries.json against a real directory, through the whole backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gatekeeper.backends.ldap.backend import LdapBackend
from gatekeeper.config.ldap import ANONYMOUS, AS_USER, LdapQueries
from gatekeeper.errors import BackendError
from gatekeeper.model import AuthUser, Kind, Permission
from gatekeeper.policy.ports import Verdict
from tests.backends.ldap.asking import PEER, SERVICE_BIND, backend, parsed, user
from tests.support.slapd import Slapd

CASES = json.loads((Path(__file__).parent / "queries.json").read_text("utf-8"))["cases"]
BINDS = {"anon": ANONYMOUS, "as_user": AS_USER, "service": SERVICE_BIND}


async def ask(made: LdapBackend, who: AuthUser, given: dict[str, Any]) -> Verdict:
    vhost = given.get("vhost", "/").encode()
    kind = given.get("kind")
    name = given.get("name", "x").encode()
    permission = Permission(given.get("permission", "read"))
    if kind is None:
        return await made.vhost_access(who, vhost, PEER)
    if kind != "topic":
        return await made.resource_access(who, vhost, Kind(kind), name, permission)
    key = given.get("routing_key", "").encode()
    variables = {"username": who.username, "vhost": vhost}
    return await made.topic_access(who, vhost, name, key, permission, variables)


@pytest.mark.parametrize(
    ("text", "given", "expected"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
async def test_query(slapd: Slapd, text: str, given: dict[str, Any], expected: Any) -> None:
    inner = parsed(text.replace("'INNER'", given.get("INNER", "")))
    asked = LdapQueries(vhost_access=inner, resource_access=inner, topic_access=inner)
    bind = BINDS[given.get("bind", "anon")]
    async with backend(slapd.port, queries=asked, other_bind=bind) as made:
        who = await user(made, given.get("user", "alice"))
        if expected == "crash":
            with pytest.raises(BackendError, match="'not' of a query that failed"):
                await ask(made, who, given)
            return
        verdict = await ask(made, who, given)
    if expected == "error":
        assert (verdict.allowed, verdict.error) == (False, "ldap_evaluate_error")
    else:
        assert (verdict.allowed, verdict.error) == (expected, None)
