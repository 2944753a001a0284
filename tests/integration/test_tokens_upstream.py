"""Tokens at a real broker: RabbitMQ 3.10.8 that knows nobody but by a token, which ends soon."""

from __future__ import annotations

import http.server
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.support.amqp import Client
from tests.support.gate import Gate, GateConfig
from tests.support.https import Server, answer
from tests.support.idp import SigningKey, claims
from tests.support.rabbit import RabbitNode, definitions, permission, service_account, user

KEY = SigningKey("rsa")
LIFE = 10
"""Seconds of a token; the next is fetched after eight."""
EVERYTHING = ("read:*/*", "write:*/*", "configure:*/*")
UP = "upstreams.default."
PEOPLE = definitions(users=[user("alice", "alice")], permissions=[permission("alice")])

pytestmark = pytest.mark.timeout(120)


def token(life: float, name: str = "gate") -> bytes:
    return KEY.sign(claims(*EVERYTHING, sub=name, exp=int(time.time() + life)))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "key.pem").write_bytes(KEY.public_pem)
    node = RabbitNode(
        folder / "rabbit",
        definitions=service_account(),
        conf="auth_backends.1 = rabbit_auth_backend_oauth2\n"
        "auth_oauth2.resource_server_id = rabbitmq\n"
        "auth_oauth2.default_key = rsa\n"
        f"auth_oauth2.signing_keys.rsa = {folder / 'key.pem'}",
        plugins=["rabbitmq_auth_backend_oauth2"],
    )
    with node:
        yield node


class Provider:
    """Hands out tokens of LIFE seconds over HTTPS."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.cacertfile = folder / "idp.pem"
        authority.cert_pem.write_to_path(self.cacertfile)
        self.server = Server(authority)
        self.server.answers["/token"] = self._give
        self.given: list[bytes] = []

    def _give(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.given.append(token(LIFE))
        body = {"access_token": self.given[-1].decode(), "token_type": "Bearer", "expires_in": LIFE}
        answer(200, json.dumps(body).encode())(handler)


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    provider = Provider(tmp_path)
    yield provider
    provider.server.close()


def refused(client: Client, channel: int) -> bool:
    """On a new channel, for which the broker remembers no permission."""
    client.open_channel(channel)
    return client.call(channel, "queue.declare", queue="q").name == "channel.close"


def test_messages_flow_past_the_end_of_the_first_token(
    node: RabbitNode, provider: Provider, tmp_path: Path
) -> None:
    config = GateConfig(tmp_path / "gate", upstream=node.port).with_definitions(PEOPLE)
    config.unset(UP + "username").unset(UP + "password")
    for key, value in {
        "token_endpoint": provider.server.url + "/token",
        "client_id": "gate",
        "client_secret": "hunter2",
        "https.cacertfile": str(provider.cacertfile),
    }.items():
        config.set(f"{UP}oauth2.{key}", value)
    with Gate(config) as gate, gate.login("alice", "alice") as client:
        first = provider.given[0]
        # The same token without anybody to renew it: what the gate's connection would come to.
        lapsing = Client.login(node.port, "", first.decode())
        ends = time.time() + LIFE
        assert not refused(lapsing, 1)
        client.open_channel(1)
        assert client.call(1, "queue.declare", queue="q").name == "queue.declare-ok"
        assert client.call(1, "confirm.select").name == "confirm.select-ok"
        sent = 0
        while time.time() < ends + 2:
            client.publish(1, b"", b"q", b"message %d" % sent)
            assert client.read()[1].name == "basic.ack"
            sent += 1
            time.sleep(0.02)
        assert len(provider.given) > 1
        assert refused(lapsing, 2)
        lapsing.abort()
        assert not refused(client, 2)
        assert client.call(2, "queue.purge", queue="q")["message_count"] == sent
        log = gate.log_text()
    assert "1 connections are told" in log
    assert "hunter2" not in log
    assert not any(secret.decode() in log for secret in provider.given)


def test_a_clients_own_token_is_renewed_at_the_broker_too(node: RabbitNode, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(KEY.public_pem)
    config = GateConfig(tmp_path / "gate", upstream=node.port).with_definitions(PEOPLE)
    config.unset(UP + "username").unset(UP + "password")
    for key, value in {
        UP + "credentials": "client",
        "auth_backends.1": "oauth2",
        "auth_oauth2.resource_server_id": "rabbitmq",
        "auth_oauth2.default_key": "rsa",
        "auth_oauth2.signing_keys.rsa": str(tmp_path / "key.pem"),
    }.items():
        config.set(key, value)
    with Gate(config) as gate:
        first = token(LIFE / 2, "alice")
        ends = time.time() + LIFE / 2
        with gate.login("", first.decode()) as client:
            assert not refused(client, 1)
            update = {"new_secret": token(600, "alice"), "reason": "renewed"}
            assert client.call(0, "connection.update-secret", **update).name == (
                "connection.update-secret-ok"
            )
            time.sleep(max(0.0, ends + 1 - time.time()))
            # Both would refuse by the first token: the gate closes, RabbitMQ answers 403.
            assert not refused(client, 2)
            bob = {"new_secret": token(600, "bob"), "reason": "another's"}
            closed = client.call(0, "connection.update-secret", **bob)
            assert (closed.name, closed["reply_code"]) == ("connection.close", 530)
