"""A gate in front of the shared broker, with people of differing rights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gate import Gate, GateConfig
from tests.support.rabbit import (
    RabbitNode,
    TlsFiles,
    definitions,
    permission,
    topic_permission,
    user,
)


def people() -> dict[str, Any]:
    """admin may do everything; alice what begins with ``a``; bob has no vhost; guest is local."""
    return definitions(
        users=[
            user("admin", "admin-pw", ["administrator"]),
            user("alice", "alice-pw"),
            user("bob", "bob-pw"),
            user("guest", "guest"),
        ],
        vhosts=("/", "v2", "gate-only"),
        permissions=[
            permission("admin"),
            permission("admin", "v2"),
            permission("admin", "gate-only"),
            permission("alice", "/", "^a", r"^(a|amq\.(default|topic)$)", r"^(a|amq\.topic$)"),
            permission("guest"),
        ],
        topic_permissions=[topic_permission("alice", "amq.topic", "^ok", "^ok")],
    )


@pytest.fixture(scope="session")
def gate(
    broker: RabbitNode, tls_files: TlsFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gate]:
    """Shared by all tests that leave it running; TCP and TLS."""
    config = GateConfig(tmp_path_factory.mktemp("gate"), upstream=broker.port)
    config.with_definitions(people()).with_tls(tls_files)
    with Gate(config) as running:
        yield running
