"""Why and who, over HTTP: the answers are those of the live engine."""

from __future__ import annotations

import pytest

from tests.admin.serving import Api

QUESTION = "user=mgmt&vhost=/&operation=queue.declare&name=q"


def test_a_decision_is_explained(api: Api) -> None:
    answer = api.ask("GET", f"/api/explain?{QUESTION}").json
    assert (answer["allowed"], answer["reply"]) == (True, "")
    assert answer["steps"][-1]["question"] == "configure access to queue 'q'"
    body = {"configure": "^a", "write": "", "read": ""}
    api.put("/api/permissions/%2F/mgmt", body, status=204)
    refused = api.ask("GET", f"/api/explain?{QUESTION}").json
    assert refused["allowed"] is False
    assert refused["reply"] == (
        "403 ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused for user 'mgmt'"
    )
    assert api.ask("GET", f"/api/explain?{QUESTION}", user="mgmt:mgmt").status == 401


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("vhost=/&operation=write&name=x", "[{key_missing,user}]"),
        (QUESTION + "&kind=x", "kind must be queue or exchange"),
        ("user=u&vhost=/&operation=no.such&name=x", None),
    ],
)
def test_a_question_that_makes_no_sense(api: Api, query: str, reason: str | None) -> None:
    answer = api.ask("GET", f"/api/explain?{query}")
    assert answer.status == 400
    assert reason is None or answer.json["reason"] == reason


def test_who_can(api: Api) -> None:
    query = "permission=write&name=x&kind=exchange"
    found = api.ask("GET", f"/api/who-can?vhost=/&{query}").json
    assert [row["user"] for row in found] == ["guest", "mgmt"]
    assert api.ask("GET", f"/api/who-can?vhost=nosuch&{query}").status == 404
    assert api.ask("GET", "/api/who-can?vhost=/&permission=x&name=x").status == 400
    assert api.ask("GET", f"/api/who-can?vhost=/&{query}", user="mon:mon").status == 401
