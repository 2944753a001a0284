"""Each request goes to RabbitMQ's management API too, with the same state behind it.

Compared are status, body and the headers that clients act on. Where RabbitMQ 3.10.8 (what Debian
has) differs from 4.3, or from the gate, the case says so, and this fails if it no longer does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.admin.requests import Case, cases
from tests.admin.serving import Answer, Api, ask
from tests.support.rabbit import RabbitNode, definitions, permission, user

CASES = list(cases())
STATE = definitions(
    users=[
        user("admin", "admin", ["administrator"]),
        user("mgmt", "mgmt", ["management"]),
        user("mon", "mon", ["monitoring"]),
        user("pol", "pol", ["policymaker"]),
        user("plain", "plain"),
    ],
    vhosts=["/"],
    permissions=[permission("admin"), permission("mgmt")],
)

Pair = tuple[Answer, Answer]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Pair]]:
    """RabbitMQ's answer and the gate's, case by case: the order matters."""
    folder = tmp_path_factory.mktemp("api")
    node = RabbitNode(folder / "rabbit", definitions=STATE, management=True)
    with node, Api(folder, STATE) as api:
        yield [
            (
                _asked(node.management_port, node.nodename, case),
                _asked(api.port, api.administration.node, case),
            )
            for case in CASES
        ]


def _asked(port: int, node: str, case: Case) -> Answer:
    path = case.path.replace("{node}", node)
    return ask(port, case.method, path, case.body, user=case.user, headers=case.headers)


def _body(answer: Answer) -> Any:
    """JSON without what is random, and without the order of lists that RabbitMQ leaves open."""
    try:
        return _plain(json.loads(answer.body))
    except ValueError:
        return answer.body


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "password_hash"}
    if isinstance(value, list):
        return sorted(map(_plain, value), key=repr)
    return value


@pytest.mark.parametrize("at", range(len(CASES)), ids=[case.id for case in CASES])
@pytest.mark.timeout(240)
def test_the_answer_is_rabbitmqs(pairs: list[Pair], at: int) -> None:
    case, (theirs, ours) = CASES[at], pairs[at]
    if case.ours is None:
        assert (ours.status, _body(ours)) == (theirs.status, _body(theirs))
        assert ours.headers.get("allow") == _allow(case, theirs)
        assert ours.headers.get("www-authenticate") == theirs.headers.get("www-authenticate")
        assert (ours.headers.get("content-type") or "") == (
            theirs.headers.get("content-type") or ""
        )
        return
    status, body = case.ours
    assert ours.status == status
    assert body is None or _body(ours) == _plain(body)
    if case.why:
        assert (ours.status, _body(ours)) != (theirs.status, _body(theirs)), "no difference"
    else:
        assert (ours.status, _body(ours)) == (theirs.status, _body(theirs))


def _allow(case: Case, answer: Answer) -> str | None:
    """4.x has DELETE on /api/login as well."""
    return "POST, DELETE, OPTIONS" if case.path == "/api/login" else answer.headers.get("allow")


def test_there_is_a_case_for_every_route_that_changes_something() -> None:
    from gatekeeper.admin.api.table import ROUTES, Table

    table = Table()
    asked = set()
    for case in CASES:
        segments = case.path.partition("?")[0].removeprefix("/api/").rstrip("/").split("/")
        found = table.find([segment.encode() for segment in segments])
        if found is not None:
            asked.add((found[0].path, case.method))
    changing = {
        (route.path, method)
        for route in ROUTES
        for method in route.endpoints
        if method not in {"GET", "HEAD"}
    }
    # New in 4.x: test_api.py has them.
    new = {
        ("/login", "DELETE"),
        ("/vhosts/:vhost/deletion/protection", "POST"),
        ("/vhosts/:vhost/deletion/protection", "DELETE"),
        ("/auth/attempts/:node", "DELETE"),
        ("/auth/attempts/:node/source", "DELETE"),
        ("/all-configuration", "POST"),
        ("/topic-permissions/:vhost/:user/:exchange", "DELETE"),
    }
    assert changing - asked - new == set()
