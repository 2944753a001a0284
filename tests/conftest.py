"""What all tests share: the choice of the scanner, certificates, and brokers on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.support.plain import pure_wanted, use_plain
from tests.support.process import LOOPBACK
from tests.support.rabbit import RabbitNode, TlsFiles, service_account

if pure_wanted():
    use_plain()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority of this run."""
    return trustme.CA()


@pytest.fixture(scope="session")
def tls_files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A server certificate for 127.0.0.1 and localhost."""
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert(LOOPBACK, "localhost", common_name=LOOPBACK)
    files = TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    authority.cert_pem.write_to_path(files.ca)
    certificate.private_key_pem.write_to_path(files.key)
    for part in certificate.cert_chain_pems:
        part.write_to_path(files.certificate, append=True)
    return files


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A RabbitMQ that knows only the service account ``gatekeeper`` (vhosts / and v2)."""
    folder: Path = tmp_path_factory.mktemp("broker")
    node = RabbitNode(folder, definitions=service_account(vhosts=("/", "v2")), management=True)
    with node:
        yield node
