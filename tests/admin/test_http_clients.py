"""Unmodified clients of RabbitMQ's management API: Debian's rabbitmqadmin, pyrabbit2, amqpstorm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyrabbit2.api
import pytest
from amqpstorm.management import ApiError, ManagementApi

from tests.admin.serving import Api, connection

RABBITMQADMIN = "/usr/bin/rabbitmqadmin"


class Rabbitmqadmin:
    def __init__(self, port: int, user: str = "guest") -> None:
        self._argv = [sys.executable, "-W", "ignore", RABBITMQADMIN, "-N", "none", "-P", str(port)]
        self._login = ["-u", user, "-p", user]

    def __call__(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [*self._argv, *self._login, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={"HOME": "/nonexistent"},
        )
        assert done.returncode == status, done
        return done.stdout + done.stderr

    def rows(self, *arguments: str) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = json.loads(self("-f", "raw_json", *arguments))
        return rows


def test_rabbitmqadmin_administers_the_gate(api: Api, tmp_path: Path) -> None:
    admin = Rabbitmqadmin(api.port)
    assert admin("declare", "user", "name=u", "password=pw", "tags=monitoring") == "user declared\n"
    assert admin("declare", "vhost", "name=v/1") == "vhost declared\n"
    granted = ("vhost=v/1", "user=u", "configure=^a", "write=.*", "read=")
    assert admin("declare", "permission", *granted) == "permission declared\n"
    admin("declare", "vhost_limit", "vhost=v/1", "name=max-connections", "value=5")
    assert {"name": "u", "tags": ["monitoring"]}.items() <= admin.rows("list", "users")[-1].items()
    assert [row["name"] for row in admin.rows("list", "vhosts")] == ["/", "v/1", "v2"]
    assert {"user": "u", "vhost": "v/1", "configure": "^a", "write": ".*", "read": ""} in (
        admin.rows("list", "permissions")
    )
    assert admin.rows("list", "vhost_limits") == [{"vhost": "v/1", "value": {"max-connections": 5}}]
    assert "gatekeeper@" in admin("list", "nodes")
    assert "4.3.5" in admin("show", "overview")

    exported = tmp_path / "out.json"
    admin("export", str(exported))
    admin("delete", "permission", "vhost=v/1", "user=u")
    admin("delete", "vhost_limit", "vhost=v/1", "name=max-connections")
    admin("delete", "user", "name=u")
    admin("delete", "vhost", "name=v/1")
    assert api.store.user(b"u") is None
    assert "Uploaded definitions" in admin("import", str(exported))
    assert api.store.permissions(b"u", b"v/1") is not None
    assert (
        admin("delete", "user", "name=nosuch", status=1) == "*** Not found: /api/users/nosuch\n\n"
    )
    assert "Access refused" in Rabbitmqadmin(api.port, "mgmt")("list", "users", status=1)
    assert "Access refused" in Rabbitmqadmin(api.port, "nobody")("list", "users", status=1)


def test_rabbitmqadmin_sees_and_closes_connections(api: Api) -> None:
    api.fleet.found = [connection(1), connection(2, b"mgmt")]
    admin = Rabbitmqadmin(api.port)
    assert [row["user"] for row in admin.rows("list", "connections")] == ["guest", "mgmt"]
    name = api.fleet.found[1].name
    assert admin("close", "connection", f"name={name}") == "connection closed\n"
    assert api.fleet.closed == [(2, b"Closed via management plugin")]


def test_pyrabbit2(api: Api) -> None:
    client = pyrabbit2.Client(f"127.0.0.1:{api.port}", "guest", "guest")
    assert client.is_alive()
    assert client.get_whoami()["name"] == "guest"
    assert client.get_overview()["object_totals"]["queues"] == 0
    client.create_vhost("pv")
    client.create_user("pu", "pw", "management")
    client.set_vhost_permissions("pv", "pu", "^c", "^r", "^w")
    assert client.get_vhost_names() == ["/", "pv", "v2"]
    assert client.get_permission("pv", "pu")["read"] == "^r"
    assert [row["vhost"] for row in client.get_user_permissions("pu")] == ["pv"]
    assert {row["user"] for row in client.get_vhost_permissions("pv")} == {"pu", "guest"}
    api.fleet.found = [connection(1)]
    assert client.get_connections()[0]["peer_port"] == 50001
    client.delete_connection(api.fleet.found[0].name)
    assert len(api.fleet.closed) == 1
    assert client.get_definitions()["users"]
    client.delete_permission("pv", "pu")
    client.delete_user("pu")
    client.delete_vhost("pv")
    assert client.get_vhost_names() == ["/", "v2"]
    with pytest.raises(pyrabbit2.api.PermissionError):
        pyrabbit2.Client(f"127.0.0.1:{api.port}", "guest", "wrong").get_whoami()


def test_amqpstorm(api: Api) -> None:
    client = ManagementApi(f"http://127.0.0.1:{api.port}", "guest", "guest")
    assert client.whoami()["name"] == "guest"
    assert client.aliveness_test("/") == {"status": "ok"}
    assert client.healthchecks.get() == {"status": "ok"}
    assert client.overview()["cluster_name"]
    client.virtual_host.create("av")
    client.user.create("au", "pw", "monitoring")
    client.user.set_permission("au", "av", configure_regex="^c")
    assert client.user.get_permission("au", "av")["configure"] == "^c"
    assert [row["user"] for row in client.virtual_host.get_permissions("av")] == ["au", "guest"]
    assert "au" in [row["name"] for row in client.user.list()]
    api.fleet.found = [connection(1)]
    name = client.connection.list()[0]["name"]
    assert client.connection.get(name)["user"] == "guest"
    client.connection.close(name, "goodbye")
    assert api.fleet.closed == [(1, b"goodbye")]
    assert client.channel.list() == []
    client.user.delete_permission("au", "av")
    client.user.delete("au")
    client.virtual_host.delete("av")
    with pytest.raises(ApiError) as missing:
        client.user.get("au")
    assert missing.value.error_code == 404
