"""The ways from a client to the broker: none in between, HAProxy, the gate.

Each is a context manager that gives a ``Route``. A proxy is a fresh process with its own
folder; it serves exactly one upstream, so that sink and RabbitMQ figures do not mix.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.bench.client import CIPHER, PASSWORD, USER
from tests.bench.meter import Meter, running
from tests.bench.wire import BenchError
from tests.support.process import HarnessError, free_port
from tests.support.rabbit import (
    RabbitNode,
    TlsFiles,
    definitions,
    permission,
    service_account,
    topic_permission,
    user,
)

SERVICE_PASSWORD = "s3rvice"
READER = "reader"
"""A user of the gate's who may not publish: proves that publishes are checked at all."""

TOPICAL = "topical"
"""A user of the gate's with a topic rule on TOPIC: its routing keys must begin with ``k.``"""
PATTERNED = "patterned"
"""As TOPICAL, by a pattern that says the same, but not as a prefix."""
TOPIC = b"amq.topic"

_HAPROXY_LIMIT = 8000
"""Connections: 2 descriptors each must fit the descriptor limit, or HAProxy does not start."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A broker: ``name`` is "sink" or "rabbit"."""

    name: str
    port: int


@dataclass(frozen=True, slots=True)
class Route:
    """meter: None where there is no proxy to measure. tls_port: 0 where there is no TLS."""

    name: str
    port: int
    meter: Meter | None = None
    tls_port: int = 0

    def tls(self) -> ssl.SSLContext:
        """For a client at ``tls_port``. It verifies nothing: that is no work of the proxy's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context


UpstreamOpener = Callable[[Path], AbstractContextManager[Upstream]]
RouteOpener = Callable[[Upstream, Path], AbstractContextManager[Route]]
"""An opener's folder exists, is empty and is its own. Openers raise BenchError."""


@contextlib.contextmanager
def sink(folder: Path) -> Iterator[Upstream]:
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.sink", "--port", str(port)]
    with running(command, port=port, folder=folder):
        yield Upstream("sink", port)


@contextlib.contextmanager
def rabbit(folder: Path) -> Iterator[Upstream]:
    """A private RabbitMQ that knows the service account, and the client for the other routes."""
    content = service_account(SERVICE_PASSWORD)
    content["users"].append(user(USER, PASSWORD))
    content["permissions"].append(permission(USER))
    try:
        node = RabbitNode(folder, definitions=content).start()
    except HarnessError as error:
        raise BenchError(str(error).splitlines()[0]) from None
    try:
        yield Upstream("rabbit", node.port)
    finally:
        node.stop()


@contextlib.contextmanager
def direct(upstream: Upstream, folder: Path) -> Iterator[Route]:
    del folder  # nothing is started
    yield Route("direct", upstream.port)


def haproxy(name: str, tuning: str = "") -> RouteOpener:
    """HAProxy in TCP mode with one thread; ``tuning``: a further line of its global section."""

    @contextlib.contextmanager
    def open_route(upstream: Upstream, folder: Path) -> Iterator[Route]:
        port, tls_port = free_port(), free_port()
        files = certificate(folder)
        both = folder / "both.pem"
        both.write_bytes(files.certificate.read_bytes() + files.key.read_bytes())
        config = folder / "haproxy.cfg"
        config.write_text(
            f"""global
    nbthread 1
    maxconn {_HAPROXY_LIMIT}
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-bind-ciphersuites {CIPHER}
    {tuning}
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen amqp
    bind 127.0.0.1:{port} backlog 4096
    bind 127.0.0.1:{tls_port} backlog 4096 ssl crt {both}
    server broker 127.0.0.1:{upstream.port}
""",
            encoding="ascii",
        )
        with running(["haproxy", "-db", "-f", config], port=port, folder=folder) as meter:
            yield Route(name, port, meter, tls_port)

    return open_route


@contextlib.contextmanager
def gate(upstream: Upstream, folder: Path) -> Iterator[Route]:
    command = gate_command()
    if not command.exists():
        raise BenchError(f"{command} does not exist: run make install first")
    port, tls_port = free_port(), free_port()
    writers = (USER, TOPICAL, PATTERNED)
    content = definitions(
        users=[user(READER, READER), *(user(name, PASSWORD) for name in writers)],
        permissions=[permission(READER, write="^$"), *map(permission, writers)],
        topic_permissions=[
            topic_permission(TOPICAL, TOPIC.decode(), r"^k\.", ".*"),
            topic_permission(PATTERNED, TOPIC.decode(), r"^(k|l)\.", ".*"),
        ],
    )
    files = certificate(folder)
    loaded = folder / "definitions.json"
    loaded.write_text(json.dumps(content), encoding="ascii")
    config = folder / "gatekeeper.conf"
    config.write_text(
        f"""listeners.tcp.default = 127.0.0.1:{port}
listeners.ssl.default = 127.0.0.1:{tls_port}
ssl_options.certfile = {files.certificate}
ssl_options.keyfile = {files.key}
ssl_options.versions.1 = tlsv1.3
tcp_listen_options.backlog = 4096
upstreams.default.servers.1 = 127.0.0.1:{upstream.port}
upstreams.default.username = gatekeeper
upstreams.default.password = {SERVICE_PASSWORD}
store.url = sqlite:///{folder / "gate.db"}
load_definitions = {loaded}
log.console.level = error
""",
        encoding="ascii",
    )
    # Python's ssl cannot choose among the ciphers of TLS 1.3; OpenSSL's own configuration can.
    openssl = folder / "openssl.cnf"
    openssl.write_text(
        "openssl_conf = all\n[all]\nssl_conf = tls\n[tls]\nsystem_default = default\n"
        f"[default]\nCiphersuites = {CIPHER}\n",
        encoding="ascii",
    )
    start: list[str | Path] = ["env", f"OPENSSL_CONF={openssl}", command, "--config", config]
    with running(start, port=port, folder=folder) as meter:
        yield Route("gate", port, meter, tls_port)


def certificate(folder: Path) -> TlsFiles:
    """A fresh certificate (ECDSA P-256) for 127.0.0.1, as files of ``folder``."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = TlsFiles(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(str(files.ca))
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(files.key))
    return files


def gate_command() -> Path:
    """The console script beside the interpreter that runs the benchmark."""
    return Path(sys.executable).parent / "gatekeeper"


UPSTREAMS: dict[str, UpstreamOpener] = {"sink": sink, "rabbit": rabbit}
ROUTES: dict[str, RouteOpener] = {
    "direct": direct,
    "haproxy": haproxy("haproxy"),
    "haproxy256k": haproxy("haproxy256k", "tune.bufsize 262144"),
    "gate": gate,
}
DEFAULT_ROUTES = ("direct", "haproxy", "gate")
