"""A gate whose users are in a directory, set up by an advanced.config as RabbitMQ would be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import people
from tests.support.amqp import Client, RefusedError
from tests.support.gate import Gate, GateConfig, run_gate
from tests.support.process import wait_until
from tests.support.rabbit import RabbitNode
from tests.support.slapd import BASE, GROUPS, PEOPLE, Slapd, in_people, password_of

ADVANCED = f"""
[{{rabbit, [{{auth_backends, [rabbit_auth_backend_ldap]}}]}},
 {{rabbitmq_auth_backend_ldap, [
   {{servers, ["127.0.0.1"]}},
   {{user_dn_pattern, "cn=${{username}},{PEOPLE}"}},
   {{timeout, 5000}},
   {{vhost_access_query, {{equals, "${{vhost}}", "/"}}}},
   {{resource_access_query, {{for, [
     {{permission, configure, {{match, {{string, "${{name}}"}}, {{string, "^a"}}}}}},
     {{permission, write, {{in_group, "cn=admins,{GROUPS}"}}}},
     {{permission, read, {{exists, "cn=nope,{BASE}"}}}}]}}}},
   {{topic_access_query, {{match, "${{routing_key}}", "^ok"}}}},
   {{tag_queries, [{{administrator, {{constant, false}}}}]}}]}}].
"""
ERROR = b", backend rabbit_auth_backend_ldap returned an error: ldap_evaluate_error"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    with Slapd(tmp_path_factory.mktemp("slapd") / "d") as slapd:
        yield slapd


@pytest.fixture(scope="module")
def ldap_gate(
    broker: RabbitNode, directory: Slapd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gate]:
    folder = tmp_path_factory.mktemp("gate")
    (folder / "advanced.config").write_text(ADVANCED)
    config = GateConfig(folder, upstream=broker.port).with_definitions(people())
    config.set("advanced_config", str(folder / "advanced.config"))
    config.set("auth_ldap.port", directory.port)
    with Gate(config) as gate:
        yield gate


@pytest.fixture
def alice(ldap_gate: Gate) -> Iterator[Client]:
    with ldap_gate.login("alice", password_of("alice")) as client:
        client.open_channel()
        yield client


def test_what_the_queries_allow(alice: Client) -> None:
    assert alice.call(1, "queue.declare", queue=b"a-ldap", exclusive=True)["queue"] == b"a-ldap"
    alice.publish(1, b"", b"a-ldap", b"x")
    alice.publish(1, b"amq.topic", b"ok.1", b"x")
    alice.call(1, "queue.declare", queue=b"a-ldap-2", exclusive=True)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        (
            "queue.declare",
            {"queue": b"b"},
            b"configure access to queue 'b' in vhost '/' refused for user 'alice'",
        ),
        (
            "basic.get",
            {"queue": b"a"},
            b"read access to queue 'a' in vhost '/' refused for user 'alice'" + ERROR,
        ),
    ],
)
def test_what_they_refuse(
    alice: Client, name: str, arguments: dict[str, bytes], text: bytes
) -> None:
    alice.send(1, name, **arguments)
    closed = alice.expect("channel.close", 1)
    assert (closed["reply_code"], closed["reply_text"]) == (403, b"ACCESS_REFUSED - " + text)


def test_a_routing_key(alice: Client) -> None:
    alice.publish(1, b"amq.topic", b"no", b"x")
    closed = alice.expect("channel.close", 1)
    assert closed["reply_text"] == (
        b"ACCESS_REFUSED - write access to topic 'no' in exchange 'amq.topic' in vhost '/'"
        b" refused for user 'alice'"
    )


def test_a_virtual_host(ldap_gate: Gate) -> None:
    with pytest.raises(RefusedError) as refused:
        ldap_gate.login("alice", password_of("alice"), b"v2")
    assert refused.value.text == (b"NOT_ALLOWED - access to vhost 'v2' refused for user 'alice'")


@pytest.mark.parametrize(
    ("password", "logged"),
    [
        ("x", in_people("bob")),
        ("", "user 'bob' - unauthenticated bind not allowed"),
    ],
)
def test_a_refused_login_is_logged_with_rabbitmqs_reason(
    ldap_gate: Gate, password: str, logged: str
) -> None:
    with pytest.raises(RefusedError):
        ldap_gate.login("bob", password)
    wait_until(lambda: logged in ldap_gate.log_text(), what=logged)


def test_the_internal_users_are_not_asked(ldap_gate: Gate) -> None:
    with pytest.raises(RefusedError):
        ldap_gate.login("admin", "admin-pw")


def test_a_directory_that_is_gone(ldap_gate: Gate, directory: Slapd) -> None:
    directory.stop()
    try:
        with pytest.raises(RefusedError):
            ldap_gate.login("alice", password_of("alice"))
        reason = "rabbit_auth_backend_ldap failed authenticating alice: ldap_connect_error"
        wait_until(lambda: reason in ldap_gate.log_text(), what=reason)
    finally:
        directory.start()
    ldap_gate.login("alice", password_of("alice")).close()


def test_a_query_that_is_none_is_found_by_check_config(tmp_path: Path) -> None:
    config = GateConfig(tmp_path, upstream=5672)
    config.set("auth_ldap.queries.vhost_access", '{in_grop, "x"}')
    config.write()
    done = run_gate("--config", tmp_path / "gatekeeper.conf", "--check-config")
    assert done.returncode != 0
    assert "auth_ldap.queries.vhost_access: no such query" in done.stderr + done.stdout
