"""Private RabbitMQ nodes: one folder, one epmd and one set of ports each, loopback only.

The package's own launcher runs with every path inside the node's folder. RUNNING_UNDER_SYSTEMD
makes it exec the Erlang VM in place of its shell, so the pid we hold is the broker's and a
signal reaches the broker itself. The VM may not start an epmd of its own (-start_epmd false):
that daemon would outlive us, listen everywhere and be shared; ours is a child like any other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.process import LOOPBACK, HarnessError, Process, free_port, listens, wait_until

SERVER_ROOTS = ("/usr/lib/rabbitmq/lib", "/usr/local/lib/rabbitmq/lib", "/opt/rabbitmq")
START_TIMEOUT = 90.0
_LOOPBACK_DISTRIBUTION = "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false"

Definitions = dict[str, Any]


def sbin() -> Path:
    """The folder of the package's scripts; HarnessError when RabbitMQ is not installed."""
    for root in SERVER_ROOTS:
        found = sorted(Path(root).glob("**/sbin/rabbitmq-server"))
        if found:
            return found[-1].parent
    raise HarnessError("RabbitMQ is not installed: apt-get install rabbitmq-server")


def password_hash(password: str) -> str:
    """As rabbit_password_hashing_sha256 stores it: base64(salt + SHA-256(salt + password))."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def user(name: str, password: str, tags: Iterable[str] = ()) -> dict[str, Any]:
    return {
        "name": name,
        "password_hash": password_hash(password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": list(tags),
    }


def permission(
    name: str, vhost: str = "/", configure: str = ".*", write: str = ".*", read: str = ".*"
) -> dict[str, str]:
    return {"user": name, "vhost": vhost, "configure": configure, "write": write, "read": read}


def topic_permission(
    name: str, exchange: str, write: str, read: str, vhost: str = "/"
) -> dict[str, str]:
    return {"user": name, "vhost": vhost, "exchange": exchange, "write": write, "read": read}


def definitions(
    *,
    users: Iterable[Mapping[str, Any]] = (),
    vhosts: Iterable[str] = ("/",),
    permissions: Iterable[Mapping[str, str]] = (),
    topic_permissions: Iterable[Mapping[str, str]] = (),
    **more: Any,
) -> Definitions:
    """A definitions document; ``more`` takes queues, exchanges, bindings, parameters, ..."""
    return {
        "users": [dict(entry) for entry in users],
        "vhosts": [{"name": name} for name in vhosts],
        "permissions": [dict(entry) for entry in permissions],
        "topic_permissions": [dict(entry) for entry in topic_permissions],
        **more,
    }


def service_account(
    password: str = "s3rvice", name: str = "gatekeeper", vhosts: Iterable[str] = ("/",)
) -> Definitions:
    """What a broker behind the gate needs to know: one account, and the vhosts."""
    names = list(vhosts)
    return definitions(
        users=[user(name, password, ["administrator", "impersonator"])],
        vhosts=names,
        permissions=[permission(name, vhost) for vhost in names],
    )


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a TLS endpoint."""

    ca: Path
    certificate: Path
    key: Path


class RabbitNode:
    """A broker of one's own.

    folder: everything it writes; it may exist, and is kept when the node stops.
    conf: further lines for its rabbitmq.conf.
    management: start the management API (slower to boot by a second).
    plugins: further plugins to start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        definitions: Definitions | None = None,
        conf: str = "",
        management: bool = False,
        plugins: Iterable[str] = (),
        tls: TlsFiles | None = None,
        port: int | None = None,
    ) -> None:
        self.folder = folder
        self.definitions = definitions
        self.conf = conf
        self.management = management
        self.plugins = tuple(plugins)
        self.tls = tls
        self.port = port or free_port()
        self.tls_port = free_port() if tls else 0
        self.management_port = free_port() if management else 0
        # Each node has an epmd of its own, so they may all be called the same, and a folder's
        # database is found again whatever the ports.
        self.nodename = "rabbit@localhost"
        self._epmd_port = free_port()
        self._dist_port = free_port()
        self._epmd: Process | None = None
        self._broker: Process | None = None

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._broker is not None and self._broker.running

    @property
    def log_path(self) -> Path:
        return self.folder / "log" / "rabbit.log"

    def log_text(self) -> str:
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    def start(self) -> Self:
        """Return when the node serves; on failure HarnessError with its log, nothing left."""
        self._write_files()
        before = self.log_text().count("Server startup complete")
        environment = self._environment()
        self._epmd = Process(
            [_epmd_path(), "-address", LOOPBACK, "-port", str(self._epmd_port)],
            log=self.folder / "log" / "epmd.log",
            env=environment,
        ).start()
        try:
            wait_until(lambda: listens(self._epmd_port), what="epmd listens")
            self._broker = Process(
                [sbin() / "rabbitmq-server"],
                log=self.folder / "log" / "console.log",
                env=environment,
                cwd=self.folder,
                name=f"RabbitMQ on {self.port}",
            ).start()
            self._broker.wait_for(
                lambda: self.log_text().count("Server startup complete") > before,
                timeout=START_TIMEOUT,
                what="starts",
            )
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        if self._broker is not None:
            self._broker.stop(timeout=30)
        self._stop_epmd()

    def kill(self) -> None:
        """End the broker as a crash would."""
        self._started().kill()
        self._stop_epmd()

    def rabbitmqctl(self, *args: str, check: bool = True) -> str:
        """Standard output of ``rabbitmqctl args``; HarnessError when it fails."""
        done = subprocess.run(
            [sbin() / "rabbitmqctl", *args],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.folder,
        )
        if check and done.returncode:
            raise HarnessError(
                f"rabbitmqctl {args[0]}: status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def api(self, path: str, username: str = "gatekeeper", password: str = "s3rvice") -> Any:
        """GET a path below ``/api/`` of the management API as JSON."""
        request = urllib.request.Request(f"http://{LOOPBACK}:{self.management_port}/api/{path}")
        token = base64.b64encode(f"{username}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=15) as response:
            return json.load(response)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A graceful stop takes six seconds, and what it would save is thrown away.
        if self.running:
            self.kill()
        self._stop_epmd()

    def _started(self) -> Process:
        if self._broker is None:
            raise HarnessError("RabbitMQ was not started")
        return self._broker

    def _stop_epmd(self) -> None:
        if self._epmd is not None:
            self._epmd.stop(timeout=5)
            self._epmd = None

    def _write_files(self) -> None:
        for name in ("log", "mnesia", "schema"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        lines = [
            f"listeners.tcp.1 = {LOOPBACK}:{self.port}",
            "log.file.level = info",
            "vm_memory_high_watermark.relative = 0.6",
            "disk_free_limit.absolute = 50MB",
        ]
        if self.tls:
            lines += [
                f"listeners.ssl.1 = {LOOPBACK}:{self.tls_port}",
                f"ssl_options.cacertfile = {self.tls.ca}",
                f"ssl_options.certfile = {self.tls.certificate}",
                f"ssl_options.keyfile = {self.tls.key}",
                "ssl_options.verify = verify_none",
                "ssl_options.fail_if_no_peer_cert = false",
            ]
        if self.management:
            lines += [
                f"management.tcp.ip = {LOOPBACK}",
                f"management.tcp.port = {self.management_port}",
            ]
        if self.definitions is not None:
            path = self.folder / "definitions.json"
            path.write_text(json.dumps(self.definitions, indent=2))
            lines.append(f"load_definitions = {path}")
        (self.folder / "rabbitmq.conf").write_text("\n".join([*lines, self.conf, ""]))
        plugins = ["rabbitmq_management"] * self.management + [*self.plugins]
        (self.folder / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": self.nodename,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": str(self.log_path),
            "RABBITMQ_SCHEMA_DIR": str(folder / "schema"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "schema"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            # Nothing of a RabbitMQ that the machine itself may run.
            "RABBITMQ_CONFIG_FILES": str(folder / "conf.d" / "*.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _LOOPBACK_DISTRIBUTION,
            "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK_DISTRIBUTION,
        }


def _epmd_path() -> str:
    found = shutil.which("epmd")
    if found is None:
        raise HarnessError("epmd is not installed: apt-get install erlang-base")
    return found
