"""Requests to the management API, in an order in which each finds what the ones before made.

Every endpoint that works on the store, and every JSON field wrong in each way. What RabbitMQ
3.10.8 answers otherwise than the gate has ``ours`` and ``why``: everything else must be equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

HASH = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
EMPTY_500 = "3.10.8 crashes (500 without a body); the gate says what is wrong"


@dataclass(frozen=True)
class Case:
    """ours: the gate's status and body, where it differs from RabbitMQ 3.10.8 and why.

    ours_body None: the body does not matter (or there is none).
    """

    method: str
    path: str
    body: object = None
    user: str | None = "admin:admin"
    headers: Mapping[str, str] = field(default_factory=dict)
    ours: tuple[int, object] | None = None
    why: str = ""

    @property
    def id(self) -> str:
        body = "" if self.body is None else f" {self.body!r}"
        extra = "" if self.user == "admin:admin" else f" as {self.user}"
        more = f" {dict(self.headers)}" if self.headers else ""
        return f"{self.method} {self.path}{body}{extra}{more}"[:140]


def bad(reason: object) -> tuple[int, object]:
    return 400, {"error": "bad_request", "reason": reason}


NOT_YOURS = (401, {"error": "not_authorised", "reason": "User not authorised to access object"})
ALL = {"configure": ".*", "write": ".*", "read": ".*"}
TOPIC = {"exchange": "amq.topic", "write": "^a", "read": "^b"}


def cases() -> Iterator[Case]:
    yield from users()
    yield from vhosts()
    yield from permissions()
    yield from topic_permissions()
    yield from limits()
    yield from definitions()
    yield from parameters()
    yield from lists()
    yield from protocol()
    yield from rights()
    yield from health()


def users() -> Iterator[Case]:
    path = "/api/users/u1"
    yield Case("PUT", path, {"password": "p", "tags": "administrator"})
    yield Case("PUT", path, {"password": "p2", "tags": "administrator"})
    yield Case("GET", path)
    for dots in (
        "/api/./users/u1",
        "/api/x/../users/u1",
        "/api/%2e%2E/api/users/%2E/u1",
        "/../api",
    ):
        yield Case("GET", dots if "u1" in dots else f"{dots}/users/u1")
    yield Case("GET", "/%61pi/users/u1")
    yield Case(
        "PUT",
        "/api/users/%2e%2e",
        {"password": "p", "tags": ""},
        ours=(404, None),
        why="it is /api, where RabbitMQ has its pages",
    )
    yield Case("PUT", path, {"password": "p", "tags": ["monitoring", "x-custom"]})
    yield Case("GET", path)
    yield Case("PUT", path, {"password": "p", "tags": " a , b,,c "})
    yield Case("GET", path)
    yield Case("PUT", path, {"password": "p"})
    yield Case("PUT", path, {"password": "p", "administrator": True})
    yield Case("PUT", path, {"password": "p", "administrator": "false"})
    yield Case("GET", path)
    yield Case("PUT", path, {"password": "p", "administrator": "maybe"})
    yield Case("PUT", path, {"password": "p", "administrator": 5})
    yield Case("PUT", path, {"password": "p", "password_hash": HASH, "tags": ""})
    yield Case("PUT", "/api/users/u2", {"password_hash": HASH, "tags": "management"})
    yield Case("GET", "/api/users/u2")
    yield Case(
        "PUT",
        "/api/users/u3",
        {"password_hash": HASH, "hashing_algorithm": "rabbit_password_hashing_sha512", "tags": ""},
    )
    yield Case("GET", "/api/users/u3")
    yield Case("PUT", "/api/users/u4", {"password_hash": "!!!", "tags": ""})
    yield Case("PUT", "/api/users/u4", {"password_hash": "", "tags": ""})
    yield Case("GET", "/api/users/u4")
    yield Case("PUT", "/api/users/u4", {"tags": "management"})
    yield Case("PUT", "/api/users/u5", {"tags": "management"})
    yield Case("PUT", "/api/users/u6", b"{bad")
    yield Case("PUT", "/api/users/u6", b"")
    yield Case("PUT", "/api/users/u6", b"null")
    yield Case("PUT", "/api/users/u6", [1])
    yield Case("PUT", "/api/users/u6", 5)
    yield Case("PUT", "/api/users/u6", '{"tags": ""}')
    yield Case("PUT", "/api/users/u6", b'{"password":"x","tags":""}', headers={"Content-Type": ""})
    yield Case(
        "PUT",
        "/api/users/u6",
        b'{"password":"x","tags":""}',
        headers={"Content-Type": "text/plain"},
    )
    yield Case(
        "PUT", "/api/users/u7", {"password": "x", "tags": "", "limits": {"max-connections": 1}}
    )
    yield Case("GET", "/api/users/u7")
    yield Case("PUT", "/api/users/u7", {"password": "x", "tags": ""})
    yield Case("GET", "/api/users/u7")
    yield Case("PUT", "/api/users/u8", {"password": "x", "tags": "", "permissions": {"/": ALL}})
    yield Case("GET", "/api/users/u8/permissions")
    for value in (None, 5, True, {}):
        yield Case(
            "PUT",
            "/api/users/u9",
            {"password": "x", "tags": value},
            ours=bad("tags must be a string or a list of strings"),
            why=EMPTY_500,
        )
    for value in (None, 5, True, [], {}):
        yield Case(
            "PUT",
            "/api/users/u9",
            {"password": value, "tags": ""},
            ours=bad("password must be a string"),
            why=EMPTY_500,
        )
    yield Case(
        "PUT",
        "/api/users/u9",
        {"password": "x", "tags": [{}]},
        ours=bad("tags must be a string or a list of strings"),
        why=EMPTY_500,
    )
    yield Case("PUT", "/api/users/u9", {"password_hash": None, "tags": ""})
    yield Case("PUT", "/api/users/u9", {"password_hash": 5, "tags": ""})
    yield Case(
        "PUT",
        "/api/users/u9",
        {"password": "x", "tags": "", "limits": {"bogus": 1}},
        ours=bad('Unrecognised terms [{<<"bogus">>,1}] in user-limits'),
        why=EMPTY_500,
    )
    yield Case(
        "PUT",
        "/api/users/u9",
        {"password": "x", "tags": "", "limits": 5},
        ours=bad("limits must be an object"),
        why=EMPTY_500,
    )
    yield Case(
        "PUT",
        "/api/users/u9",
        {"password": "x", "tags": "", "permissions": {"/": {"read": ""}}},
        ours=bad("permissions must have configure, write and read for each vhost"),
        why="3.10.8 creates the user and then crashes",
    )
    yield Case(
        "DELETE",
        "/api/users/u9",
        ours=(404, {"error": "Object Not Found", "reason": "Not Found"}),
        why="3.10.8 had created it before it crashed",
    )
    yield Case(
        "PUT",
        "/api/users/many",
        {"password": "x", "tags": [f"t{n}" for n in range(33)]},
        ours=bad("A user can have at most 32 tags (received 33)"),
        why="the bound came with 4.3.1",
    )
    yield Case(
        "DELETE",
        "/api/users/many",
        ours=(404, {"error": "Object Not Found", "reason": "Not Found"}),
        why="the same",
    )
    yield Case("GET", "/api/users/nosuch")
    yield Case("DELETE", "/api/users/nosuch")
    yield Case("PUT", "/api/users/a%2Fb%20c", {"password": "x", "tags": ""})
    yield Case("GET", "/api/users/a%2fb%20c")
    yield Case("GET", "/api/users/a%252Fb%20c")
    yield Case("DELETE", "/api/users/a%2Fb%20c")
    yield Case("PUT", "/api/users/a+b", {"password": "x", "tags": ""})
    yield Case("GET", "/api/users/a+b")
    yield Case("PUT", "/api/users/%D0%B8%D0%BC%D1%8F", {"password": "\u043f", "tags": ""})
    yield Case("GET", "/api/users/%D0%B8%D0%BC%D1%8F")
    yield Case("GET", "/api/users/without-permissions/?columns=name,tags")
    yield Case("GET", "/api/users?columns=name")
    yield Case("GET", "/api/users/?columns=name,limits.max-connections&sort=name&sort_reverse=true")
    yield Case("POST", "/api/users/bulk-delete", {"x": []})
    yield Case("POST", "/api/users/bulk-delete", {"users": ["u6", "a+b"]})
    yield Case(
        "POST",
        "/api/users/bulk-delete",
        {"users": ["nosuch"]},
        ours=(204, None),
        why="unknown names are ignored since 4.0",
    )
    yield Case(
        "POST",
        "/api/users/bulk-delete",
        {"users": "u1"},
        ours=bad("users must be a list of strings"),
        why=EMPTY_500,
    )
    yield Case(
        "POST",
        "/api/users/bulk-delete",
        {"users": [5]},
        ours=bad("users must be a list of strings"),
        why=EMPTY_500,
    )
    yield Case("GET", "/api/users/bulk-delete")
    yield Case("POST", "/api/users", {"a": 1})
    yield Case("POST", "/api/users/u1", {"a": 1})
    yield Case("PATCH", "/api/users/u1", {"a": 1})
    yield Case("DELETE", "/api/users/u5")


def vhosts() -> Iterator[Case]:
    yield Case("PUT", "/api/vhosts/v1")
    yield Case("PUT", "/api/vhosts/v1")
    yield Case("PUT", "/api/vhosts/v1", b"null")
    yield Case("GET", "/api/permissions/v1/admin")
    yield Case("PUT", "/api/vhosts/v2", {"description": "d", "tags": "a,b", "tracing": False})
    yield Case("GET", "/api/vhosts/v2?columns=name,description,tags,tracing")
    yield Case("PUT", "/api/vhosts/v2", {"tags": ["t1", "t2"]})
    yield Case("GET", "/api/vhosts/v2?columns=name,description,tags")
    yield Case(
        "GET",
        "/api/vhosts/v2?columns=metadata",
        ours=(
            200,
            {
                "metadata": {
                    "description": "",
                    "tags": ["t1", "t2"],
                    "default_queue_type": "classic",
                }
            },
        ),
        why="4.x has the default queue type in the metadata",
    )
    yield Case("PUT", "/api/vhosts/v3", b"{bad")
    yield Case("PUT", "/api/vhosts/v3", [1])
    yield Case("PUT", "/api/vhosts/v3", {"tracing": "maybe"})
    yield Case("PUT", "/api/vhosts/v3", {"tracing": 5})
    yield Case(
        "PUT",
        "/api/vhosts/v3",
        {"default_queue_type": "bogus"},
        ours=bad("bogus is not a valid queue type"),
        why="3.10.8 ignores the default queue type",
    )
    yield Case(
        "PUT",
        "/api/vhosts/v3",
        {"default_queue_type": 5},
        ours=bad("5 is not a valid default_queue_type value"),
        why="3.10.8 ignores the default queue type",
    )
    yield Case(
        "PUT",
        "/api/vhosts/v3",
        {"default_queue_type": ""},
        ours=bad("default_queue_type must not be an empty string"),
        why="3.10.8 ignores the default queue type",
    )
    yield Case(
        "DELETE",
        "/api/vhosts/v3",
        ours=(404, {"error": "Object Not Found", "reason": "Not Found"}),
        why="3.10.8 had created it",
    )
    yield Case(
        "PUT",
        "/api/vhosts/v3",
        {"description": 5},
        ours=bad("description must be a string"),
        why="3.10.8 stores a number",
    )
    yield Case(
        "PUT",
        "/api/vhosts/v3",
        {"tags": 5},
        ours=bad("tags must be a string or a list of strings"),
        why=EMPTY_500,
    )
    yield Case(
        "PUT",
        "/api/vhosts/v3",
        {"tags": [5]},
        ours=bad("tags must be a string or a list of strings"),
        why="3.10.8 reads a list of characters",
    )
    yield Case(
        "DELETE",
        "/api/vhosts/v3",
        ours=(404, {"error": "Object Not Found", "reason": "Not Found"}),
        why="3.10.8 had created it",
    )
    yield Case("GET", "/api/vhosts?columns=name")
    yield Case("GET", "/api/vhosts?page=1&page_size=2&columns=name")
    yield Case("GET", "/api/vhosts?page=1&page_size=2&name=v&columns=name")
    yield Case("GET", "/api/vhosts?page=1&name=%5Ev&use_regex=true&columns=name")
    yield Case("GET", "/api/vhosts?sort=name&sort_reverse=true&columns=name")
    yield Case("PUT", "/api/vhosts/a%2Fb%20c")
    yield Case("GET", "/api/vhosts/a%2Fb%20c?columns=name")
    yield Case("DELETE", "/api/vhosts/a%2Fb%20c")
    yield Case("GET", "/api/vhosts/nosuch")
    yield Case("DELETE", "/api/vhosts/nosuch")
    yield Case("GET", "/api/vhosts/a/b/c/d")
    yield Case("POST", "/api/vhosts/v1/start/{node}")
    yield Case("POST", "/api/vhosts/v1", {})


def permissions() -> Iterator[Case]:
    path = "/api/permissions/%2F/u2"
    yield Case("PUT", path, ALL)
    yield Case("PUT", path, {"configure": "^a", "write": ".*", "read": ""})
    yield Case("GET", path)
    yield Case("PUT", "/api/permissions/v1/u2", {**ALL, "scope": "client", "username": "x"})
    for key in ALL:
        yield Case("PUT", path, {name: value for name, value in ALL.items() if name != key})
        yield Case("PUT", path, {**ALL, key: "("})
        for value in (None, 1, True, [], {}):
            yield Case(
                "PUT",
                path,
                {**ALL, key: value},
                ours=bad(f"{key} must be a string"),
                why=EMPTY_500 + ", or takes a list for text",
            )
    yield Case("PUT", path, {**ALL, "configure": "^a", "read": ""})
    yield Case("PUT", path, {})
    yield Case("PUT", path, b"{bad")
    yield Case("PUT", "/api/permissions/%2F/nosuch", ALL)
    yield Case("PUT", "/api/permissions/nosuch/u2", ALL)
    yield Case("PUT", "/api/permissions/nosuch/u2", b"{bad")
    yield Case("GET", "/api/permissions/%2F/u3")
    yield Case("GET", "/api/permissions/nosuch/u2")
    yield Case("GET", "/api/permissions///guest")
    yield Case("GET", "/api/permissions")
    yield Case("GET", "/api/users/u2/permissions")
    yield Case("GET", "/api/users/nosuch/permissions")
    yield Case("GET", "/api/vhosts/%2F/permissions")
    yield Case("GET", "/api/vhosts/nosuch/permissions")
    yield Case("DELETE", path)
    yield Case("DELETE", path)
    yield Case("DELETE", "/api/permissions/%2F/nosuch")


def topic_permissions() -> Iterator[Case]:
    path = "/api/topic-permissions/%2F/u2"
    yield Case("PUT", path, TOPIC)
    yield Case("PUT", path, {**TOPIC, "write": "^a2"})
    yield Case("GET", path)
    for key in TOPIC:
        yield Case("PUT", path, {name: value for name, value in TOPIC.items() if name != key})
    for key in ("write", "read"):
        yield Case("PUT", path, {**TOPIC, key: "("})
    for value in ([], {}):
        yield Case(
            "PUT",
            path,
            {**TOPIC, "write": value},
            ours=bad("write must be a string"),
            why=EMPTY_500 + ", or takes a list for text",
        )
    yield Case("PUT", path, {**TOPIC, "write": "^a2"})
    yield Case("PUT", "/api/topic-permissions/%2F/nosuch", TOPIC)
    yield Case("PUT", "/api/topic-permissions/nosuch/u2", TOPIC)
    yield Case("PUT", path + "/ignored", {**TOPIC, "exchange": ""})
    yield Case("GET", path)
    yield Case("GET", "/api/topic-permissions/%2F/u3")
    yield Case("GET", "/api/topic-permissions")
    yield Case("GET", "/api/users/u2/topic-permissions")
    yield Case("GET", "/api/vhosts/%2F/topic-permissions")
    yield Case("GET", "/api/users/nosuch/topic-permissions")
    yield Case("GET", "/api/vhosts/nosuch/topic-permissions")
    yield Case("DELETE", path + "/amq.default")
    yield Case("GET", path)
    yield Case("DELETE", path + "/never")
    yield Case("DELETE", path)
    yield Case("DELETE", path)


def limits() -> Iterator[Case]:
    vhost, user = "/api/vhost-limits/v1", "/api/user-limits/u2"
    yield Case("PUT", f"{vhost}/max-connections", {"value": 10})
    yield Case("PUT", f"{vhost}/max-queues", {"value": -1})
    yield Case("PUT", f"{vhost}/bogus", {"value": 10})
    for value in ("x", None, True, 1.5):
        yield Case("PUT", f"{vhost}/max-connections", {"value": value})
        yield Case("PUT", f"{user}/max-connections", {"value": value})
    yield Case("PUT", f"{vhost}/max-connections", {"x": 1})
    yield Case("PUT", f"{vhost}/max-connections", b"{bad")
    yield Case("PUT", f"{vhost}/max-connections", b'{"value":3}', headers={"Content-Type": ""})
    yield Case(
        "PUT", f"{vhost}/max-connections", b'{"value":3}', headers={"Content-Type": "text/plain"}
    )
    yield Case(
        "PUT",
        f"{vhost}/max-connections",
        b'{"value":10}',
        headers={"Content-Type": "application/json; charset=utf-8"},
    )
    yield Case("PUT", "/api/vhost-limits/nosuch/max-connections", {"value": 1})
    yield Case("GET", "/api/vhost-limits")
    yield Case("GET", vhost)
    yield Case("GET", "/api/vhost-limits/v2")
    yield Case("GET", "/api/vhost-limits/nosuch")
    yield Case("GET", f"{vhost}/max-connections")
    yield Case("HEAD", "/api/vhost-limits")
    yield Case("GET", "/api/parameters")
    yield Case("GET", "/api/parameters/vhost-limits/v1")
    yield Case("GET", "/api/parameters/vhost-limits/v1/limits")
    yield Case("GET", "/api/parameters/vhost-limits/nosuch")
    yield Case("GET", "/api/parameters/other")
    yield Case("DELETE", f"{vhost}/max-queues")
    yield Case("DELETE", f"{vhost}/max-queues")
    yield Case(
        "DELETE",
        "/api/vhost-limits/nosuch/max-queues",
        ours=(404, {"error": "not_found", "reason": "vhost_not_found"}),
        why="3.10.8 crashes; 4.3 says so",
    )
    yield Case("PUT", f"{user}/max-connections", {"value": 5})
    yield Case("PUT", f"{user}/max-channels", {"value": 50})
    yield Case("PUT", f"{user}/bogus", {"value": 5})
    yield Case("PUT", f"{user}/max-connections", {"x": 5})
    yield Case("PUT", f"{user}/max-connections", b'{"value":3}', headers={"Content-Type": ""})
    yield Case("PUT", "/api/user-limits/nosuch/max-connections", {"value": 5})
    yield Case("GET", "/api/user-limits")
    yield Case("GET", user)
    yield Case("GET", "/api/user-limits/u3")
    yield Case("GET", "/api/user-limits/nosuch")
    yield Case("DELETE", f"{user}/max-channels")
    yield Case(
        "DELETE",
        "/api/user-limits/nosuch/max-channels",
        ours=(404, {"error": "not_found", "reason": "vhost_not_found"}),
        why="3.10.8 crashes; 4.3 says so, with these words",
    )
    yield Case("GET", "/api/users/u2")


def definitions() -> Iterator[Case]:
    path = "/api/definitions"
    imported = {
        "users": [
            {
                "name": "imp1",
                "password_hash": HASH,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ["management"],
                "limits": {"max-connections": 3},
            }
        ],
        "vhosts": [{"name": "iv"}],
        "permissions": [{"user": "imp1", "vhost": "iv", **ALL}],
        "parameters": [
            {
                "vhost": "iv",
                "component": "vhost-limits",
                "name": "limits",
                "value": {"max-connections": 9},
            }
        ],
    }
    yield Case("POST", path, imported)
    yield Case("GET", "/api/users/imp1")
    yield Case("GET", "/api/vhosts/iv/permissions")
    yield Case("GET", "/api/vhost-limits/iv")
    yield Case("POST", path, b"{bad")
    yield Case("POST", path, [])
    yield Case("POST", path, b"")
    yield Case("POST", path, {})
    yield Case("POST", path, {"bogus": [1]})
    yield Case("POST", path, {"users": [{"name": "imp3", "tags": ""}]})
    yield Case("POST", path, b"{}", headers={"Content-Type": ""})
    yield Case("POST", path, b"{}", headers={"Content-Type": "text/plain"})
    yield Case(
        "POST",
        path,
        _multipart(b'{"users":[]}'),
        headers={"Content-Type": "multipart/form-data; boundary=XX"},
    )
    yield Case("POST", f"{path}/v1", {"parameters": []})
    yield Case("POST", f"{path}/nosuch", {"parameters": []})
    yield Case("GET", f"{path}/nosuch")
    yield Case("PUT", path, {})
    place = "the reason names the place in the document, and nothing was changed"
    yield Case(
        "POST",
        path,
        {"permissions": [{"user": "ghost", "vhost": "/", **ALL}]},
        ours=bad("definitions: permissions[0].user: user 'ghost' does not exist; add it to users"),
        why=place,
    )
    yield Case(
        "POST",
        path,
        {"permissions": [{"user": "u1", "vhost": "novh", **ALL}]},
        ours=bad(
            "definitions: permissions[0].vhost: virtual host 'novh' does not exist;"
            " add it to vhosts"
        ),
        why=place,
    )
    yield Case("DELETE", "/api/vhosts/iv")


def _multipart(content: bytes) -> bytes:
    return (
        b'--XX\r\nContent-Disposition: form-data; name="file"; filename="d.json"\r\n'
        b"Content-Type: application/json\r\n\r\n" + content + b"\r\n--XX--\r\n"
    )


def parameters() -> Iterator[Case]:
    yield Case("PUT", "/api/cluster-name", {"name": "test-cluster"})
    yield Case("GET", "/api/cluster-name")
    yield Case("PUT", "/api/cluster-name", {})
    yield Case(
        "PUT", "/api/cluster-name", {"name": 5}, ours=bad("name must be a string"), why=EMPTY_500
    )
    yield Case("DELETE", "/api/cluster-name")
    yield Case("PUT", "/api/global-parameters/gk", {"value": {"a": 1}})
    yield Case("PUT", "/api/global-parameters/gk", {"value": {"a": 2}})
    yield Case("GET", "/api/global-parameters/gk")
    yield Case("PUT", "/api/global-parameters/gk", {"x": 1})
    yield Case("DELETE", "/api/global-parameters/gk")
    yield Case("DELETE", "/api/global-parameters/gk")
    yield Case("GET", "/api/global-parameters/gk")
    yield Case("GET", "/api/policies")
    yield Case("GET", "/api/policies/v1")
    yield Case("GET", "/api/policies/nosuch")


def lists() -> Iterator[Case]:
    yield Case("GET", "/api/connections")
    yield Case("GET", "/api/connections/nosuch")
    yield Case("DELETE", "/api/connections/nosuch")
    yield Case("GET", "/api/connections/username/nosuch")
    yield Case("DELETE", "/api/connections/username/nosuch")
    yield Case("GET", "/api/connections?page=1&page_size=5")
    yield Case("GET", "/api/channels")
    yield Case("GET", "/api/channels/nosuch")
    yield Case("GET", "/api/vhosts/v1/connections")
    yield Case("GET", "/api/vhosts/v1/channels")
    yield Case("GET", "/api/vhosts/nosuch/connections")
    yield Case("GET", "/api/extensions")
    for query in (
        "page=0",
        "page=1&page_size=501",
        "page=1&page_size=0",
        "page=abc",
        "page=99&page_size=2",
        "page=1&page_size=x",
    ):
        yield Case("GET", f"/api/vhosts?{query}")
    yield Case(
        "GET",
        "/api/users?page=1&page_size=1&columns=name&name=admin",
        ours=(
            200,
            {
                "total_count": 14,
                "item_count": 1,
                "filtered_count": 1,
                "page": 1,
                "page_size": 1,
                "page_count": 1,
                "items": [{"name": "admin"}],
            },
        ),
        why="3.10.8 has no pages of users",
    )


def protocol() -> Iterator[Case]:
    refused = (401, {"error": "not_authorized", "reason": "Not_Authorized"})
    text = "4.x says Not_Authorized, and does not ask browsers for a password"
    me = (200, {"name": "admin", "tags": ["administrator"], "is_internal_user": True})
    who = "4.x adds is_internal_user"
    yield Case("GET", "/api/whoami", ours=me, why=who)
    yield Case("GET", "/api/whoami/", ours=me, why=who)
    yield Case("GET", "/api/whoami?columns=name")
    yield Case("GET", "/api/whoami", user=None)
    yield Case("GET", "/api/whoami", user="admin:wrong", ours=refused, why=text)
    yield Case("GET", "/api/whoami", user="nosuch:wrong", ours=refused, why=text)
    yield Case("GET", "/api/whoami", user="u4:", ours=refused, why=text)
    yield Case("GET", "/api/whoami", user="plain:plain")
    for scheme in ("Basic !!!", "Basic", "Basic YWRtaW4=", "Digest abc", "x"):
        yield Case("GET", "/api/whoami", user=None, headers={"Authorization": scheme})
    yield Case(
        "GET",
        "/api/whoami",
        user=None,
        headers={"Authorization": "Bearer abc.def.ghi"},
        ours=refused,
        why=text,
    )
    yield Case(
        "GET",
        "/api/whoami?columns=name",
        user=None,
        headers={"Authorization": "bASIC YWRtaW46YWRtaW4="},
    )
    for accept in ("text/html", "text/html, */*;q=0.1", "application/*", "application/json;q=0.5"):
        yield Case("GET", "/api/whoami?columns=name", headers={"Accept": accept})
    yield Case("HEAD", "/api/whoami?columns=name")
    yield Case("OPTIONS", "/api/whoami", user=None)
    yield Case("OPTIONS", "/api/users/x", user=None)
    yield Case("OPTIONS", "/api/definitions", user=None)
    yield Case("OPTIONS", "/api/vhost-limits/x/y", user=None)
    yield Case("GET", "/api/nosuch")
    yield Case("GET", "/api/nosuch", user=None)
    yield Case("GET", "/api/users/%zz")
    yield Case("GET", "/api/connections", headers={"x-vhost": "v1"})
    yield Case("GET", "/api/login")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    yield Case(
        "POST",
        "/api/login",
        b"username=admin&password=wrong",
        user=None,
        headers=form,
        ours=refused,
        why=text,
    )
    yield Case("POST", "/api/login", b"", user=None, headers=form, ours=refused, why=text)


def rights() -> Iterator[Case]:
    """Every tag on every endpoint that asks for one."""
    owner = "4.3: the list is for administrators, one's own for each"
    for who in ("mgmt", "mon", "pol"):
        user = f"{who}:{who}"
        for path in (
            "users",
            "users/mgmt",
            "users/without-permissions",
            "permissions",
            "permissions/%2F/mgmt",
            "topic-permissions",
            "vhosts?columns=name",
            "vhosts/v1",
            "vhosts/v1/permissions",
            "vhosts/v1/topic-permissions",
            "definitions",
            "definitions/v1",
            "connections",
            "channels",
            "cluster-name",
            "extensions",
            "vhost-limits",
            "parameters",
            "policies",
            "users/mgmt/permissions",
        ):
            yield Case("GET", f"/api/{path}", user=user)
        yield Case("PUT", "/api/users/x", {"password": "x", "tags": ""}, user=user)
        yield Case("DELETE", "/api/users/u1", user=user)
        yield Case("PUT", "/api/vhosts/x", user=user)
        yield Case("PUT", "/api/permissions/%2F/mgmt", ALL, user=user)
        yield Case("PUT", "/api/vhost-limits/v1/max-connections", {"value": 1}, user=user)
        yield Case("PUT", "/api/user-limits/mgmt/max-connections", {"value": 1}, user=user)
        yield Case("POST", "/api/definitions", {}, user=user)
        yield Case("PUT", "/api/cluster-name", {"name": "x"}, user=user)
        monitor = who == "mon"
        for path, allowed in (("nodes", monitor), ("auth/attempts/{node}", monitor)):
            refused = (401, {"error": "not_authorised", "reason": "Not monitor user"})
            yield Case(
                "GET",
                f"/api/{path}",
                user=user,
                ours=(200, None) if allowed else refused,
                why="" if not allowed else "the contents differ",
            )
        yield Case(
            "GET",
            "/api/global-parameters",
            user=user,
            ours=(200, [{"name": "cluster_name", "value": "test-cluster"}])
            if who == "pol"
            else NOT_YOURS,
            why="RabbitMQ has one more, internal_cluster_id" if who == "pol" else "",
        )
        for method, owner_of, allowed in (
            ("GET", who, True),
            ("GET", "admin", monitor),
            ("DELETE", who, True),
            ("DELETE", "admin", False),
        ):
            answer = ((204, None) if method == "DELETE" else (200, [])) if allowed else NOT_YOURS
            crashes = not (monitor and method == "GET")
            yield Case(
                method,
                f"/api/connections/username/{owner_of}",
                user=user,
                ours=answer if crashes else None,
                why="3.10.8 crashes where it has to look at the owner" if crashes else "",
            )
        yield Case(
            "GET",
            "/api/user-limits",
            user=user,
            ours=(401, {"error": "not_authorised", "reason": "Not administrator user"}),
            why=owner,
        )
        yield Case("GET", f"/api/user-limits/{who}", user=user)


def health() -> Iterator[Case]:
    checks = "/api/health/checks"
    for name in ("alarms", "local-alarms", "virtual-hosts", "node-is-quorum-critical"):
        yield Case("GET", f"{checks}/{name}")
        yield Case("GET", f"{checks}/{name}", user=None)
    yield Case("GET", f"{checks}/certificate-expiration/1/months")
    yield Case("GET", f"{checks}/certificate-expiration/1/bogus")
    yield Case("GET", f"{checks}/certificate-expiration/x/days")
    yield Case("GET", f"{checks}/port-listener/x")
    yield Case("GET", f"{checks}/port-listener/1?columns=status,reason,missing")
    yield Case(
        "GET",
        f"{checks}/protocol-listener/amqp",
        ours=(200, None),
        why="4.x answers with a list of protocols",
    )
    yield Case("GET", "/api/healthchecks/node")
    yield Case("GET", "/api/healthchecks/node/{node}")
    yield Case("GET", "/api/healthchecks/node/nosuch@host")
    yield Case("GET", "/api/aliveness-test/%2F")
    yield Case("GET", "/api/aliveness-test/nosuch")
