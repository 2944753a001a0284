"""Every case of logins.json against a real directory, and what a login leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import structlog

from gatekeeper.backends.ldap.backend import LdapUser
from gatekeeper.config.erlang_terms import read_term
from gatekeeper.config.ldap import ANONYMOUS, AS_USER, Bind, BindAs, LdapQueries
from gatekeeper.config.ldap_queries import tag_queries
from gatekeeper.errors import BackendError
from gatekeeper.model import Credentials, Secret
from gatekeeper.policy.ports import Accepted, Failed, LoginAnswer, Refused
from tests.backends.ldap.asking import PEER, SERVICE_BIND, backend, login
from tests.support.slapd import Slapd, in_people, password_of

CASES = json.loads((Path(__file__).parent / "logins.json").read_text("utf-8"))["cases"]


def bind(given: str | list[str]) -> Bind:
    if isinstance(given, list):
        return BindAs(given[0].encode(), Secret(given[1].encode()))
    return {"anon": ANONYMOUS, "as_user": AS_USER}[given]


def option(name: str, value: Any) -> tuple[str, Any]:
    if name.endswith("_bind"):
        return name, bind(value)
    if name == "tag_queries":
        return "queries", LdapQueries(tags=tag_queries(read_term(value)))
    if name == "servers":
        return name, None if value is None else tuple(value)
    return name, value.encode()


def outcome(answer: LoginAnswer) -> dict[str, Any]:
    match answer:
        case Refused(reason):
            return {"refused": reason}
        case Failed(reason, unavailable):
            assert unavailable == (reason == "ldap_connect_error")
            return {"failed": reason}
        case Accepted(_, tags, LdapUser(dn)):
            return {"ok": dn.decode()} | ({"tags": sorted(tags)} if tags else {})
        case _:
            raise AssertionError(answer)


@pytest.mark.parametrize(
    ("given", "user", "password", "expected"),
    [pytest.param(*case[1:], id=case[0]) for case in CASES],
)
async def test_login(
    slapd: Slapd, given: dict[str, Any], user: str, password: str | None, expected: Any
) -> None:
    more = dict(option(name, value) for name, value in given.items())
    secret = None if password is None else Secret(password.encode())
    credentials = Credentials("PLAIN", user.encode(), secret)
    async with backend(slapd.port, **more) as made:
        if expected == "crash":
            with pytest.raises(BackendError):
                await made.authenticate(credentials, PEER)
            return
        answer = await made.authenticate(credentials, PEER)
        again = await made.authorize_login(user.encode(), credentials, PEER)
    assert outcome(answer) == expected
    assert answer == again


@pytest.mark.parametrize(
    ("other", "kept"), [(AS_USER, True), (ANONYMOUS, False), (SERVICE_BIND, False)]
)
async def test_the_password_is_kept_only_to_bind_as_the_user(
    slapd: Slapd, other: Bind, kept: bool
) -> None:
    async with backend(slapd.port, other_bind=other) as made:
        answer = await login(made, "alice")
    assert isinstance(answer, Accepted)
    assert isinstance(answer.state, LdapUser)
    assert answer.state.dn == in_people("alice").encode()
    password = Secret(password_of("alice").encode())
    assert answer.state.password == (password if kept else None)
    assert password_of("alice") not in repr(answer)


async def test_names_that_are_not_utf8_go_out_as_they_are(slapd: Slapd) -> None:
    async with backend(slapd.port) as made:
        answer = await made.authenticate(Credentials("PLAIN", b"\xff", Secret(b"x")), PEER)
    assert outcome(answer) in (
        {"failed": "ldap_bind_error"},
        {"refused": "cn=ÿ,ou=people,dc=example,dc=com"},
    )


async def test_a_name_that_asks_for_itself_again_and_again_is_bounded(slapd: Slapd) -> None:
    """Before any login: 8 KB would become 80 MB."""
    domain = "${ad_user}" * 200 + "${ad_domain}" * 200
    async with backend(slapd.port) as made:
        with pytest.raises(BackendError, match="a filled pattern of more than"):
            await login(made, domain + "\\" + "x" * 2000, "x")


async def test_no_servers_are_said_at_the_start(slapd: Slapd) -> None:
    with structlog.testing.capture_logs() as lines:
        async with backend(slapd.port, servers=None):
            assert "auth_ldap.servers is not set" in lines[0]["event"]
