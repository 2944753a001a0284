"""The ways from a client to the broker: none in between, HAProxy, the gate.

Each is a context manager that gives a ``Route``. A proxy is a fresh process with its own
folder; it serves exactly one upstream, so that sink and RabbitMQ figures do not mix.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.client import PASSWORD, USER
from tests.bench.meter import Meter, running
from tests.bench.wire import BenchError
from tests.support.process import HarnessError, free_port
from tests.support.rabbit import RabbitNode, definitions, permission, service_account, user

SERVICE_PASSWORD = "s3rvice"
READER = "reader"
"""A user of the gate's who may not publish: proves that publishes are checked at all."""

_HAPROXY_LIMIT = 4500
"""Connections: 2 descriptors each must fit the descriptor limit, or HAProxy does not start."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A broker: ``name`` is "sink" or "rabbit"."""

    name: str
    port: int


@dataclass(frozen=True, slots=True)
class Route:
    """``meter`` is None where there is no proxy to measure."""

    name: str
    port: int
    meter: Meter | None = None


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
        port = free_port()
        config = folder / "haproxy.cfg"
        config.write_text(
            f"""global
    nbthread 1
    maxconn {_HAPROXY_LIMIT}
    {tuning}
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen amqp
    bind 127.0.0.1:{port} backlog 4096
    server broker 127.0.0.1:{upstream.port}
""",
            encoding="ascii",
        )
        with running(["haproxy", "-db", "-f", config], port=port, folder=folder) as meter:
            yield Route(name, port, meter)

    return open_route


@contextlib.contextmanager
def gate(upstream: Upstream, folder: Path) -> Iterator[Route]:
    command = gate_command()
    if not command.exists():
        raise BenchError(f"{command} does not exist: run make install first")
    port = free_port()
    content = definitions(
        users=[user(USER, PASSWORD), user(READER, READER)],
        permissions=[permission(USER), permission(READER, write="^$")],
    )
    loaded = folder / "definitions.json"
    loaded.write_text(json.dumps(content), encoding="ascii")
    config = folder / "gatekeeper.conf"
    config.write_text(
        f"""listeners.tcp.default = 127.0.0.1:{port}
upstreams.default.servers.1 = 127.0.0.1:{upstream.port}
upstreams.default.username = gatekeeper
upstreams.default.password = {SERVICE_PASSWORD}
store.url = sqlite:///{folder / "gate.db"}
load_definitions = {loaded}
log.console.level = error
""",
        encoding="ascii",
    )
    with running([command, "--config", config], port=port, folder=folder) as meter:
        yield Route("gate", port, meter)


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
