"""The management API where RabbitMQ 3.10.8 cannot be asked: 4.x, settings, the audit log."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import ssl
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from gatekeeper.admin import gate
from gatekeeper.admin.api import call, shape
from gatekeeper.admin.http import HttpServer
from gatekeeper.admin.management import check, management_api
from gatekeeper.admin.request import Arguments
from gatekeeper.admin.request import Call as OperationCall
from gatekeeper.admin.service import Actor
from gatekeeper.config.settings import Address, Management, ManagementListener, ServerTls
from gatekeeper.errors import ConfigError, StoreError
from gatekeeper.server.fleet import SilentWorkersError
from tests.admin.conftest import STATE
from tests.admin.serving import Api, ask, basic, connection

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
REFUSED = {"error": "not_authorised", "reason": "User can only log in via localhost"}


# --- 4.x ---


def test_a_login_gives_a_token(api: Api) -> None:
    answer = api.ask(
        "POST", "/api/login", b"username=guest&password=guest", user=None, headers=FORM
    )
    assert answer.status == 200
    assert answer.json == {
        "token": {"type": "basic", "value": base64.b64encode(b"guest:guest").decode()},
        "user": {"name": "guest", "tags": ["administrator"], "is_internal_user": True},
    }
    assert api.ask("DELETE", "/api/login", user=None).status == 204
    huge = api.ask("POST", "/api/login", b"username=" + b"x" * 70_000, user=None, headers=FORM)
    assert huge.status == 400


def test_a_login_needs_a_management_tag(api: Api) -> None:
    answer = api.ask(
        "POST", "/api/login", b"username=plain&password=plain", user=None, headers=FORM
    )
    assert (answer.status, answer.json["reason"]) == (401, "Not management user")


def test_the_version_is_for_all(api: Api) -> None:
    answer = api.ask("GET", "/api/version", user=None)
    assert (answer.status, answer.json) == (200, "4.3.5")


@pytest.mark.parametrize(
    "name",
    [
        "is-in-service",
        "below-node-connection-limit",
        "ready-to-serve-clients",
        "reached-target-cluster-size",
    ],
)
def test_these_health_checks_ask_for_no_login(api: Api, name: str) -> None:
    assert api.ask("GET", f"/api/health/checks/{name}", user=None).json == {"status": "ok"}


def test_an_unreachable_broker_is_not_ready(api: Api) -> None:
    api.fleet.reachable = False
    ready = api.ask("GET", "/api/health/checks/ready-to-serve-clients", user=None)
    assert (ready.status, ready.json["status"]) == (503, "failed")
    assert b"127.0.0.1" not in ready.body  # where the broker is, is not for everybody
    alive = api.ask("GET", "/api/aliveness-test/%2F")
    assert alive.status == 503
    assert "connection refused" in alive.json["reason"]


def test_protected_users_stay_as_they_are(api: Api) -> None:
    before = api.store.user(b"kept")
    refused = {
        "error": "bad_request",
        "reason": "Protected users cannot be modified via the HTTP API",
    }
    put = api.ask("PUT", "/api/users/kept", {"password": "x", "tags": ""})
    assert (put.status, put.json) == (400, refused)
    delete = api.ask("DELETE", "/api/users/kept")
    assert (delete.status, delete.json) == (400, refused)
    names = ["kept", "plain", "nosuch"]
    assert api.ask("POST", "/api/users/bulk-delete", {"users": names}).status == 204
    assert api.store.user(b"kept") == before
    assert api.store.user(b"plain") is None


def test_a_protected_vhost_cannot_be_deleted(api: Api) -> None:
    assert api.ask("POST", "/api/vhosts/v2/deletion/protection").status == 204
    assert api.ask("GET", "/api/vhosts/v2").json["protected_from_deletion"] is True
    answer = api.ask("DELETE", "/api/vhosts/v2")
    assert answer.status == 412
    assert answer.json == {
        "error": "precondition_failed",
        "reason": "Refusing to delete virtual host 'v2' because it is protected from deletion",
    }
    assert api.ask("PUT", "/api/vhosts/v2", {"description": "d"}).status == 204
    assert api.ask("DELETE", "/api/vhosts/v2").status == 412
    assert api.ask("DELETE", "/api/vhosts/v2/deletion/protection").status == 204
    assert api.ask("DELETE", "/api/vhosts/v2").status == 204
    for method in ("POST", "DELETE"):
        assert api.ask(method, "/api/vhosts/v2/deletion/protection").status == 404
    assert api.store.vhost(b"v2") is None


def test_hash_password_stays_out_of_the_log(api: Api) -> None:
    answer = api.ask("GET", "/api/auth/hash_password/hunter2%21")
    assert len(base64.b64decode(answer.json["ok"])) == 36
    assert api.ask("GET", "/api/auth/hash_password/hunter2", user="mgmt:mgmt").status == 401
    assert "hunter2" not in repr(api.log.lines) + repr(api.log.fields)


def test_attempts_are_counted(api: Api) -> None:
    node = api.administration.node
    api.ask("GET", "/api/whoami")
    api.ask("GET", "/api/whoami", user="guest:wrong")
    api.ask("GET", "/api/users", user="mgmt:mgmt")
    counted = api.ask("GET", f"/api/auth/attempts/{node}").json
    assert counted == [
        {
            "protocol": "http",
            "auth_attempts": 4,
            "auth_attempts_failed": 2,
            "auth_attempts_succeeded": 2,
        }
    ]
    assert api.ask("DELETE", f"/api/auth/attempts/{node}", user="mon:mon").status == 401
    assert api.ask("DELETE", f"/api/auth/attempts/{node}").status == 204
    assert api.ask("GET", "/api/auth/attempts/other@host").status == 404


def test_the_effective_configuration_holds_no_secret(tmp_path: Path) -> None:
    """Nor does ``gatekeeperctl environment``."""
    given = {
        "user": "u:url-secret@127.0.0.1/user",
        "vhost": "url-secret@127.0.0.1/vhost",
        "resource": "127.0.0.1/resource?key=url-secret",
        "topic": "u:url-secret@127.0.0.1/topic",
    }
    conf = "auth_backends.1 = http\nauth_backends.2 = internal\n" + "".join(
        f"auth_http.{name}_path = http://{url}\n" for name, url in given.items()
    )
    with Api(tmp_path, STATE, conf) as api:
        _effective_configuration(api)
        call = OperationCall(api.administration, Actor("u", "here"), Arguments({}))
        environment = json.dumps(api.run(lambda: gate.environment(call)))
        assert "@127.0.0.1/topic" in environment
        assert "url-secret" not in environment


def _effective_configuration(api: Api) -> None:
    answer = api.ask("GET", "/api/config/effective", headers={"Accept": "text/plain"})
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain")
    assert b"upstreams" in answer.body
    assert b"upstream-secret" not in answer.body
    assert b"@127.0.0.1/topic" in answer.body
    assert b"url-secret" not in answer.body
    assert api.ask("GET", "/api/config/effective", user="mon:mon").status == 401


# --- definitions ---


def test_an_export_is_tagged_and_can_be_imported(api: Api, tmp_path: Path) -> None:
    exported = api.ask("GET", "/api/definitions?download=all.json")
    assert exported.headers["content-disposition"] == "attachment; filename=all.json"
    tag = exported.headers["etag"]
    again = api.ask("GET", "/api/definitions", headers={"If-None-Match": tag})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    (tmp_path / "other").mkdir()
    with Api(
        tmp_path / "other", {**STATE, "users": STATE["users"][:1], "permissions": []}
    ) as other:
        assert other.ask("POST", "/api/definitions", exported.body).status == 204
        assert other.ask("GET", "/api/users").json == api.ask("GET", "/api/users").json
        assert other.ask("GET", "/api/permissions").json == api.ask("GET", "/api/permissions").json
    api.put("/api/users/new", {"password": "x", "tags": ""})
    assert api.ask("GET", "/api/definitions", headers={"If-None-Match": tag}).status == 200
    assert api.ask("GET", "/api/definitions?download=a%0d%0ab").status == 400


def test_a_single_vhost_goes_out_and_in(api: Api) -> None:
    api.put("/api/vhost-limits/v2/max-connections", {"value": 7}, status=204)
    exported = api.ask("GET", "/api/definitions/v2")
    assert exported.json["rabbitmq_definition_format"] == "single_virtual_host"
    assert "users" not in exported.json
    assert api.ask("POST", "/api/definitions/%2F", exported.body).status == 204
    assert api.ask("GET", "/api/vhost-limits/%2F").json == [
        {"vhost": "/", "value": {"max-connections": 7}}
    ]


def test_a_broken_document_changes_nothing(api: Api) -> None:
    users = [
        {"name": "one", "password": "x", "tags": ""},
        {"name": "two", "password": 5, "tags": ""},
    ]
    answer = api.ask("POST", "/api/definitions", {"users": users})
    assert answer.status == 400
    assert "users[1].password" in answer.json["reason"]
    assert api.store.user(b"one") is None


def test_uploads_may_have_to_be_called_json(tmp_path: Path) -> None:
    part = (
        b'--X\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n{}\r\n--X--\r\n'
    )
    headers = {"Content-Type": 'multipart/form-data; boundary="X"'}
    with Api(tmp_path, STATE, "management.definitions.require_json_extension = true\n") as api:
        for name, status in ((b"d.JSON", 204), (b"d.txt", 400)):
            assert (
                api.ask("POST", "/api/definitions", part % name, headers=headers).status == status
            )
        empty = api.ask("POST", "/api/definitions", b"--X--\r\n", headers=headers)
        assert (empty.status, empty.json["reason"]) == (400, "unsupported_file_extension")
        assert api.ask("POST", "/api/definitions", b"{}").status == 204


# --- connections ---


def test_only_ones_own_connections_are_seen(api: Api) -> None:
    api.fleet.found = [connection(1), connection(2, b"mgmt"), connection(3, b"mgmt", b"v2")]
    one, two, _three = (info.name for info in api.fleet.found)

    def names(path: str, user: str) -> list[str]:
        return [row["user"] for row in api.ask("GET", path, user=user).json]

    assert names("/api/connections", "mgmt:mgmt") == ["mgmt", "mgmt"]
    assert names("/api/connections", "mon:mon") == ["guest", "mgmt", "mgmt"]
    assert names("/api/vhosts/v2/connections", "guest:guest") == ["mgmt"]
    assert names("/api/connections/username/mgmt", "mon:mon") == ["mgmt", "mgmt"]
    quoted = one.replace(" ", "%20").replace(":", "%3A").replace(">", "%3E")
    assert api.ask("GET", f"/api/connections/{quoted}", user="mgmt:mgmt").status == 401
    assert api.ask("GET", f"/api/connections/{quoted}", user="mon:mon").status == 200
    assert api.ask("DELETE", f"/api/connections/{quoted}", user="mon:mon").status == 401
    assert api.fleet.closed == []
    reason = {"X-Reason": "because"}
    own = two.replace(" ", "%20")
    assert (
        api.ask("DELETE", f"/api/connections/{own}", user="mgmt:mgmt", headers=reason).status == 204
    )
    assert api.fleet.closed == [(2, b"because")]
    assert api.ask("DELETE", "/api/connections/username/mgmt", user="mon:mon").status == 401
    assert api.ask("DELETE", "/api/connections/username/mgmt").status == 204
    assert api.fleet.closed[1:] == [(3, b"Closed via management plugin")]
    assert [row["name"] for row in api.ask("GET", "/api/connections").json] == [one]
    # A vhost that one may not enter does not exist.
    assert api.ask("GET", "/api/vhosts/v2/connections", user="mgmt:mgmt").json == {
        "error": "not_found",
        "reason": "Not Found",
    }


def test_without_statistics_there_are_no_channels(tmp_path: Path) -> None:
    with Api(tmp_path, STATE, "management.disable_stats = true\n") as api:
        api.fleet.found = [connection(1)]
        assert "recv_oct" not in api.ask("GET", "/api/connections").json[0]
        channels = api.ask("GET", "/api/channels")
        assert (channels.status, channels.json["reason"]) == (
            400,
            "Stats in management UI are disabled on this node",
        )


def test_a_part_is_not_passed_off_as_the_whole(api: Api) -> None:
    async def silent() -> list[object]:
        raise SilentWorkersError({2: "hung"}, [])

    api.fleet.connections = silent  # type: ignore[method-assign, assignment]
    answer = api.ask("GET", "/api/connections")
    assert (answer.status, answer.json["error"]) == (503, "service_unavailable")
    assert "worker 2: hung" in answer.json["reason"]


# --- who did what ---


def test_every_change_is_in_the_log_and_no_password(api: Api) -> None:
    api.put("/api/users/new", {"password": "hunter2", "tags": "management"})
    line = api.log.lines[-1]
    assert line == ("info", "audit", "put_user user='new' tags='management': done")
    fields = api.log.fields[-1]
    assert fields["acting_user"] == "guest"
    assert str(fields["address"]).startswith("127.0.0.1:")
    assert fields["target"] == {"user": "new", "tags": "management"}
    assert api.fleet.settled == 1  # in force everywhere before the answer
    assert "hunter2" not in repr(api.log.lines) + repr(api.log.fields)


def test_the_log_need_not_hold_what_somebody_sent(api: Api) -> None:
    value = ["x" * 100_000]
    assert api.ask("PUT", "/api/vhost-limits/v2/max-queues", {"value": value}).status == 400
    huge = {"configure": "(" * 100_000, "write": "", "read": ""}
    assert api.ask("PUT", "/api/permissions/%2F/mgmt", huge).status == 400
    assert max(len(repr(entry)) for entry in [*api.log.lines, *api.log.fields]) < 20_000


def test_sections_of_a_broker_are_ignored(api: Api) -> None:
    queue = {"name": "q", "vhost": "/", "durable": True, "auto_delete": False, "arguments": {}}
    assert api.ask("POST", "/api/definitions", {"queues": [queue]}).status == 204


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("mgmt:mgmt", "Not administrator user"),
        ("plain:plain", "Not management user"),
        ("guest:hunter2", "user 'guest' - invalid credentials"),
        (None, "no credentials"),
    ],
)
def test_every_refused_attempt_is_in_the_log(api: Api, user: str | None, reason: str) -> None:
    assert api.ask("DELETE", "/api/users/mon", user=user).status == 401
    level, category, text = api.log.lines[-1]
    assert (level, category) == ("warning", "audit")
    assert text == f"DELETE /users/:user user='mon': denied: {reason}"
    assert api.log.fields[-1]["acting_user"] == ("" if user is None else user.partition(":")[0])
    assert "hunter2" not in repr(api.log.lines) + repr(api.log.fields)


def test_a_store_that_fails_is_an_error_without_a_change(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(api.store, "change", full)
    answer = api.ask("PUT", "/api/users/new", {"password": "x", "tags": ""})
    assert (answer.status, answer.json["error"]) == (500, "internal_server_error")
    assert api.store.user(b"new") is None


def test_a_crash_says_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.store, "list_users", lambda: 1 / 0)
    answer = api.ask("GET", "/api/users")
    assert (answer.status, answer.body) == (500, b"")
    assert api.log.of("default", "exception") == ["management: a request failed"]


# --- settings ---


def test_a_long_list_is_sorted_and_encoded_bit_by_bit(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter is not held for all of it: other threads have clients to serve."""
    encoded: list[object] = []
    runs: list[int] = []

    def encode(value: object) -> bytes:
        encoded.append(value)
        return call.encoded(value)

    def sort(rows: list[Any], **how: Any) -> list[Any]:
        runs.append(len(rows))
        return sorted(rows, **how)

    with api.store.change() as draft:
        for number in range(2500):
            draft.put_user(b"u%04d" % number, password_hash=b"%04d" % (number * 7 % 2500 // 2))
    monkeypatch.setattr(shape, "encoded", encode)
    monkeypatch.setattr(shape, "sorted", sort, raising=False)
    found = api.ask("GET", "/api/users?sort=password_hash&columns=name,password_hash").json
    assert found == sorted(found, key=lambda row: (row["password_hash"], row["name"]))
    assert len(encoded) == len(found) > 2500
    assert all(isinstance(one, dict) for one in encoded)
    assert max(runs) <= shape.RUN


def test_cors(tmp_path: Path) -> None:
    conf = "management.cors.allow_origins.1 = http://a.example\nmanagement.cors.max_age = 60\n"
    with Api(tmp_path, STATE, conf) as api:
        origin = {"Origin": "http://a.example"}
        for user, status in (("guest:guest", 200), ("guest:x", 401), (None, 401)):
            answer = api.ask("GET", "/api/whoami", user=user, headers=origin)
            assert answer.status == status
            assert answer.headers["access-control-allow-origin"] == "http://a.example"
            assert answer.headers["access-control-allow-credentials"] == "true"
        asked = {**origin, "Access-Control-Request-Headers": "authorization"}
        preflight = api.ask("OPTIONS", "/api/users/x", user=None, headers=asked)
        assert preflight.headers["access-control-allow-methods"] == (
            "HEAD, GET, PUT, DELETE, OPTIONS"
        )
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        assert "access-control-max-age" not in preflight.headers
        bare = api.ask("OPTIONS", "/api/users/x", user=None, headers=origin)
        assert bare.headers["access-control-max-age"] == "60"
        for other in ("http://b.example", "null", "*", "http://a.example.evil"):
            answer = api.ask("GET", "/api/whoami", headers={"Origin": other})
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_cors_for_all_is_without_credentials(tmp_path: Path) -> None:
    with Api(tmp_path, STATE, "management.cors.allow_origins.1 = *\n") as api:
        answer = api.ask("GET", "/api/whoami", headers={"Origin": "http://any.example"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
        null = api.ask("GET", "/api/whoami", headers={"Origin": "null"})
        assert "access-control-allow-origin" not in null.headers


def test_a_path_prefix(tmp_path: Path) -> None:
    with Api(tmp_path, STATE, "management.path_prefix = rabbit/mq/\n") as api:
        assert api.ask("GET", "/rabbit/mq/api/whoami").status == 200
        assert api.ask("GET", "/api/whoami").status == 404


def test_headers_of_every_answer(tmp_path: Path) -> None:
    conf = (
        "management.csp.policy = default-src 'none'\nmanagement.hsts.policy = max-age=1\n"
        "management.headers.frame_options = DENY\nmanagement.http.hide_allow_header = true\n"
    )
    with Api(tmp_path, STATE, conf) as api:
        for answer in (api.ask("GET", "/api/whoami"), api.ask("GET", "/api/whoami", user=None)):
            assert answer.headers["content-security-policy"] == "default-src 'none'"
            assert answer.headers["strict-transport-security"] == "max-age=1"
            assert answer.headers["x-frame-options"] == "DENY"
            assert "x-xss-protection" not in answer.headers
        assert "allow" not in api.ask("OPTIONS", "/api/whoami").headers
        assert "allow" in api.ask("POST", "/api/whoami").headers


def test_without_basic_authentication(tmp_path: Path) -> None:
    conf = "management.disable_basic_auth = true\nmanagement.login_session_timeout = 5\n"
    with Api(tmp_path, STATE, conf) as api:
        answer = api.ask("GET", "/api/whoami")
        assert answer.json["reason"] == "HTTP access denied: basic auth disabled"
        nothing = api.ask("GET", "/api/whoami", user=None)
        assert nothing.json["reason"] == "HTTP access denied: no credentials"
        token = api.ask("GET", "/api/whoami", user=None, headers={"Authorization": "Bearer x.y"})
        assert token.json == {"error": "not_authorized", "reason": "Not_Authorized"}


def test_tls_with_client_certificates(tmp_path: Path) -> None:
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("client")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(files["ca"])
    server.cert_chain_pems[0].write_to_path(files["cert"])
    server.private_key_pem.write_to_path(files["key"])
    conf = (
        "management.ssl.port = 0\nmanagement.ssl.ip = 127.0.0.1\n"
        "management.ssl.verify = verify_peer\nmanagement.ssl.fail_if_no_peer_cert = true\n"
        "management.ssl.versions.1 = tlsv1.2\n"
        f"management.ssl.cacertfile = {files['ca']}\nmanagement.ssl.certfile = {files['cert']}\n"
        f"management.ssl.keyfile = {files['key']}\n"
    )
    with Api(tmp_path, STATE, conf) as api:
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(api.ports[1], "GET", "/api/whoami", tls=trusting)
        client.configure_cert(trusting)
        assert ask(api.ports[1], "GET", "/api/whoami", tls=trusting).status == 200
        assert api.ask("GET", "/api/health/checks/certificate-expiration/1/days").status == 200
        far = api.ask("GET", "/api/health/checks/certificate-expiration/990/years")
        assert far.status == 503
        (listener,) = far.json["expired"]
        assert listener["protocol"] == "https"
        assert listener["certfile"] == str(files["cert"])
        assert listener["certfile_expires_on"]


def test_answers_are_compressed_for_who_asks(api: Api) -> None:
    plain = api.ask("GET", "/api/users")
    packed = api.ask("GET", "/api/users", headers={"Accept-Encoding": "br, gzip;q=0.5"})
    assert packed.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(packed.body)) == plain.json
    refused = api.ask("GET", "/api/users", headers={"Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in refused.headers


def test_several_requests_on_one_connection(tmp_path: Path) -> None:
    with Api(tmp_path, STATE, "management.tcp.max_keepalive = 2\n") as api:
        client = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
        headers = {"Authorization": basic("guest", "guest")}
        for last in (False, True):
            client.request("GET", "/api/whoami", headers=headers)
            answer = client.getresponse()
            answer.read()
            assert (answer.getheader("connection") == "close") is last
        client.close()


# --- on and off ---


def test_it_is_off_unless_there_is_a_port(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    log = api.log.logger("default")
    assert isinstance(management_api(api.administration, log), HttpServer)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigError, match=r"install gatekeeper-amqp\[management\]"):
        management_api(api.administration, log)
    off = replace(api.settings, management=Management())
    monkeypatch.setattr(api.administration, "settings", off)
    assert management_api(api.administration, log) is None


def test_a_certificate_that_cannot_be_used_is_found_by_the_check(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("-----BEGIN NOTHING-----\n")
    tls = ServerTls(certfile=tmp_path / "x.pem", keyfile=tmp_path / "x.pem")
    address = Address(host="127.0.0.1", port=1)
    listener = ManagementListener(address=address, tls=tls, tls_keys="management.ssl")
    with pytest.raises(ConfigError, match=r"^management\.ssl\.certfile "):
        check(Management(listeners=(listener,)))


def test_a_port_that_is_taken_is_named(api: Api) -> None:
    listener = ManagementListener(address=Address(host="127.0.0.1", port=api.port))
    management = Management(listeners=(listener,))
    server = HttpServer(api.administration, management, api.log.logger("default"))
    with pytest.raises(ConfigError, match=r"the port is in use; .* change management\.\*"):
        api.run(server.start)
