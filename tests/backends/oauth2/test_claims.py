"""From claims to scopes, resource servers, names and tags."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gatekeeper.backends.oauth2.claims import (
    ClaimsError,
    TokenRefusedError,
    resource_server,
    scopes,
    tags,
    username,
)
from gatekeeper.config.oauth2 import OAuth2Settings, ResourceServer

SERVER = ResourceServer(id="rabbitmq", scope_prefix="rabbitmq.")
KEYCLOAK = {
    "authorization": {
        "permissions": [
            {"scopes": ["rabbitmq.read:a/*", "rabbitmq.write:a/*"], "rsname": "a"},
            {"rsname": "none"},
            {"scopes": "rabbitmq.tag:management other"},
        ]
    }
}


@pytest.mark.parametrize(
    ("claims", "found"),
    [
        ({}, []),
        ({"scope": "rabbitmq.b rabbitmq.a  rabbitmq.a"}, ["a", "b"]),
        ({"scope": ["rabbitmq.a", "rabbitmq.a b", "other.c", "Rabbitmq.d"]}, ["a", "a b"]),
        ({"scope": "rabbitmq"}, []),
        ({"scope": "rabbitmq."}, [""]),
        (KEYCLOAK, ["read:a/*", "tag:management", "write:a/*"]),
        ({**KEYCLOAK, "scope": "rabbitmq.x"}, ["read:a/*", "tag:management", "write:a/*", "x"]),
        ({"authorization": {"permissions": {"scopes": ["rabbitmq.a"]}}}, ["a"]),
        ({"authorization": "rabbitmq.a"}, []),
        ({"authorization": ["rabbitmq.a"]}, []),
        ({"authorization": [{"permissions": "rabbitmq.a"}]}, ["a"]),  # shorter than the path
        ({"authorization": [{"permissions": [{"scopes": "rabbitmq.a"}]}]}, ["a"]),
        ({"scope": "tag:x"}, []),
    ],
)
def test_scopes(claims: dict[str, Any], found: list[str]) -> None:
    assert [*scopes(claims, SERVER)] == found


@pytest.mark.parametrize(
    ("key", "claims", "found"),
    [
        ("roles", {"roles": "rabbitmq.a rabbitmq.b"}, ["a", "b"]),
        ("roles", {"roles": ["rabbitmq.a", ["rabbitmq.b", ["rabbitmq.c"]]]}, ["a", "b", "c"]),
        ("roles", {"roles": {"rabbitmq": ["a", "b"], "other": ["c"]}}, ["a", "b"]),
        ("roles", {"roles": {"rabbitmq": "a b"}}, ["a", "b"]),
        ("roles", {"roles": {"rabbitmq": 7}}, []),
        ("roles", {"roles": 7}, []),
        ("roles", {"roles": [{"rabbitmq": "a"}]}, TypeError),
        ("realm.roles", {"realm": {"roles": ["rabbitmq.a"]}}, ["a"]),
        (".realm..roles.", {"realm": {"roles": ["rabbitmq.a"]}}, ["a"]),
        ("realm.roles", {"realm": [{"roles": "rabbitmq.a"}, 1, {"x": "rabbitmq.b"}]}, ["a"]),
        ("realm.roles", {"realm": [{"roles": ["rabbitmq.a rabbitmq.b"]}]}, ["a", "b"]),
        ("realm.roles", {"realm": [{"roles": [{"rabbitmq": "a"}]}]}, ["a"]),
        ("realm.roles", {"realm": [{"roles": {"rabbitmq": "a"}}]}, []),  # RabbitMQ drops it
        ("realm.roles.x", {"realm": {"roles": "rabbitmq.a"}}, []),
        ("realm.roles.x", {"realm": [{"roles": "rabbitmq.a"}]}, ["a"]),
        ("a b", {"a": "rabbitmq.a", "b": ["rabbitmq.b"]}, ["a", "b"]),
        ("", {"": "rabbitmq.a"}, []),
        (" . ", {"": "rabbitmq.a"}, []),
        ("scope", {"scope": "rabbitmq.a"}, ["a"]),
    ],
)
def test_additional_scopes(key: str, claims: dict[str, Any], found: Any) -> None:
    server = replace(SERVER, additional_scopes_key=key)
    if found is TypeError:
        with pytest.raises(ClaimsError):
            scopes(claims, server)
    else:
        assert [*scopes(claims, server)] == found


def test_aliases_add_to_what_they_stand_for_once() -> None:
    aliases = {"admin": ("rabbitmq.tag:administrator", "reader"), "reader": ("rabbitmq.read:*/*",)}
    server = replace(SERVER, scope_aliases=aliases)
    assert scopes({"scope": "admin x"}, server) == ("tag:administrator",)
    assert scopes({"scope": ["reader", "rabbitmq.x"]}, server) == ("read:*/*", "x")
    everything = replace(server, scope_prefix="")
    assert scopes({"scope": "admin"}, everything) == (
        "admin", "rabbitmq.tag:administrator", "reader",
    )  # fmt: skip


def request(actions: Any, locations: Any, kind: Any = "rabbitmq") -> dict[str, Any]:
    return {"type": kind, "actions": actions, "locations": locations}


@pytest.mark.parametrize(
    ("detail", "found"),
    [
        (request("read", "cluster:rabbitmq/vhost:v/queue:q"), ["read:v/q/*"]),
        (request("read", "cluster:rabbitmq/vhost:v/exchange:x/routing-key:k"), ["read:v/x/k"]),
        (request("read", "cluster:*"), ["read:*/*/*"]),
        (request("read", "cluster:rabbit*/queue:q"), ["read:*/q/*"]),
        (request("read", "cluster:other"), []),
        (request("read", "vhost:v"), []),
        (request("read", ""), []),
        (request("read", []), []),
        (request(["read", "write", "fly", 3], ["cluster:*/queue:q"]),
         ["read:*/q/*", "write:*/q/*"]),
        (request(["administrator", "configure"], ["cluster:*/queue:a", "cluster:*/queue:b"]),
         ["configure:*/a/*", "configure:*/b/*", "tag:administrator"]),
        (request("impersonator", "cluster:*"), []),
        (request("read", "cluster:*/queue:q/exchange:q"), ["read:*/q/*"]),
        (request("read", "cluster:*/queue:q/exchange:x"), []),
        (request("read", "cluster:*/color:red/queue"), ["read:*/*/*"]),
        (request("read", "cluster:*/queue:a:b"), ["read:*/a/*"]),
        (request("read", "cluster:*/queue:a/queue:b"), ["read:*/b/*"]),
        (request("read", "cluster:*/vhost:%2F/queue:a%2Fb"), ["read:%2F/a%2Fb/*"]),
        (request("read", "cluster:*", "other"), []),
        (request("read", "cluster:*", None), []),
        (request("read", "cluster:*", ["rabbitmq"]), []),
        ({"type": "rabbitmq", "actions": "read"}, []),
        ({"type": "rabbitmq", "locations": "cluster:*"}, []),
        ("read", []),
        (request("read", "cluster:*/:"), ClaimsError),
        (request("read", [7]), ClaimsError),
        (request("read", None), ClaimsError),
        (request(None, "cluster:*"), ClaimsError),
        (request(None, "cluster:other"), []),  # never looked at
    ],
)  # fmt: skip
def test_rich_authorization_requests(detail: Any, found: Any) -> None:
    server = replace(SERVER, resource_server_type="rabbitmq")
    claims = {"authorization_details": [detail]}
    if found is ClaimsError:
        with pytest.raises(ClaimsError):
            scopes(claims, server)
    else:
        assert [*scopes(claims, server)] == found


def test_rich_requests_need_a_type_and_the_default_prefix() -> None:
    claims = {"authorization_details": [request("read", "cluster:*")], "scope": "rabbitmq.x"}
    assert scopes(claims, SERVER) == ("x",)
    assert scopes({"authorization_details": [request("read", "cluster:*", None)]}, SERVER) == ()
    typed = replace(SERVER, resource_server_type="rabbitmq")
    assert scopes({**claims, "authorization_details": "nonsense"}, typed) == ("x",)
    # Aliases do not apply to them, and their scopes start with the id whatever the prefix is.
    aliased = replace(typed, scope_aliases={"rabbitmq.read:*/*/*": ("rabbitmq.tag:x",)})
    assert scopes(claims, aliased) == ("read:*/*/*", "x")
    assert scopes(claims, replace(typed, scope_prefix="api:")) == ()


@pytest.mark.parametrize("scope", [7, None, {"a": 1}, ["rabbitmq.a", 7], ["rabbitmq.a", None]])
def test_claims_of_odd_shapes(scope: Any) -> None:
    with pytest.raises(ClaimsError):
        scopes({"scope": scope}, SERVER)


def test_the_number_of_scopes_is_limited() -> None:
    most = {"scope": [f"rabbitmq.{at}" for at in range(2048)]}
    assert len(scopes(most, SERVER)) == 2048
    with pytest.raises(TokenRefusedError, match="too_many_scopes"):
        scopes({"scope": [*most["scope"], "rabbitmq.one more"]}, SERVER)


def settings(*servers: ResourceServer) -> OAuth2Settings:
    return OAuth2Settings(servers={server.id: server for server in servers}, providers={})


def server(name: str, *, verify: bool = True) -> ResourceServer:
    return ResourceServer(id=name, scope_prefix=f"{name}.", verify_aud=verify)


STRICT = settings(server("a"), server("b"))
ONE_LAX = settings(server("a"), server("b", verify=False))
LAX = settings(server("a", verify=False), server("b", verify=False))


@pytest.mark.parametrize(
    ("of", "audience", "found"),
    [
        (STRICT, "a", "a"),
        (STRICT, "x b y", "b"),
        (STRICT, ["b"], "b"),
        (STRICT, ["x", 7, None, ["a"], "a"], "a"),
        (STRICT, ["a b"], "no_matching_aud_found"),
        (STRICT, "a b", "aud_matched_many_resource_servers_only_one_allowed"),
        (STRICT, ["a", "a"], "aud_matched_many_resource_servers_only_one_allowed"),
        (STRICT, "A", "no_matching_aud_found"),
        (STRICT, "", "no_matching_aud_found"),
        (STRICT, [], "no_matching_aud_found"),
        (STRICT, None, "no_aud_found"),
        (ONE_LAX, None, "b"),
        (ONE_LAX, "x", "b"),
        (ONE_LAX, "a", "a"),
        (LAX, "a", "a"),
        (LAX, "x", "too_many_resources_with_verify_aud_false"),
        (LAX, None, "no_aud_found_cannot_pick_one_from_too_many_resource_servers"),
    ],
)
def test_resource_server(of: OAuth2Settings, audience: Any, found: str) -> None:
    claims = {} if audience is None else {"aud": audience}
    if found in of.servers:
        assert resource_server(claims, of).id == found
        return
    with pytest.raises(TokenRefusedError) as refused:
        resource_server(claims, of)
    assert str(refused.value) == found


@pytest.mark.parametrize("audience", [7, True, None, {"a": "a"}])
def test_an_audience_of_an_odd_shape(audience: Any) -> None:
    with pytest.raises(ClaimsError):
        resource_server({"aud": audience}, LAX)


def test_username() -> None:
    claims = {"sub": 7, "client_id": "c", "email": "", "user_name": "u"}
    assert username(claims, ("sub", "client_id")) == "c"
    assert username(claims, ("email", "user_name")) == ""
    assert username(claims, ("sub",)) == "unknown"


def test_tags() -> None:
    assert tags(["tag:administrator", "tag:", "tags:x", "read:tag:y", "Tag:z"]) == {
        "administrator", "",
    }  # fmt: skip
    assert tags(["tag:" + "a" * 255]) == {"a" * 255}
    assert tags(["tag:" + "a" * 256]) == set()
