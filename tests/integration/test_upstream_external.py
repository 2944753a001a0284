"""The gate logs in at a real broker by its own certificate, without a password anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from tests.integration.conftest import people
from tests.server.test_tls import pem
from tests.support.gate import Gate, GateConfig
from tests.support.rabbit import RabbitNode, TlsFiles, definitions, permission, user

CONF = """
auth_mechanisms.1 = EXTERNAL
ssl_cert_login_from = common_name
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, tls_files: TlsFiles) -> RabbitNode:
    """A broker that offers nothing but EXTERNAL."""
    service = definitions(
        users=[user("gatekeeper", "unknown", tags=["impersonator"])],
        vhosts=["/"],
        permissions=[permission("gatekeeper")],
    )
    node = RabbitNode(
        tmp_path_factory.mktemp("external"),
        definitions=service,
        conf=CONF,
        tls=tls_files,
        plugins=["rabbitmq_auth_mechanism_ssl"],
    )
    with node:
        yield node


def test_external_upstream(
    node: RabbitNode, tmp_path: Path, authority: trustme.CA, tls_files: TlsFiles
) -> None:
    leaf = authority.issue_cert("gate.example.com", common_name="gatekeeper")
    certificate, key = pem(tmp_path, leaf)
    options = "upstreams.default.ssl_options."
    config = (
        GateConfig(tmp_path / "gate", upstream=node.tls_port)
        .with_definitions(people())
        .unset("upstreams.default.password")
        .set("upstreams.default.auth_mechanism", "EXTERNAL")
        .set("upstreams.default.ssl", "true")
        .set(options + "cacertfile", tls_files.ca)
        .set(options + "certfile", certificate)
        .set(options + "keyfile", key)
    )
    with Gate(config) as gate, gate.login("alice", "alice-pw") as client:
        client.open_channel(1)
        client.call(1, "queue.declare", queue="alice.q")
        client.publish(1, b"", b"alice.q", b"hello", properties={"user_id": b"alice"})
        got = client.call(1, "basic.get", queue="alice.q", no_ack=True)
        assert got.body == b"hello"
