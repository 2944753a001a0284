"""The real gate as a child process: a configuration, a definitions file, its log, its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.amqp import Client
from tests.support.process import LOOPBACK, HarnessError, Process, free_port, listens
from tests.support.rabbit import TlsFiles

START_TIMEOUT = 20.0
ROOT = Path(__file__).resolve().parents[2]


def gatekeeper_argv() -> list[str]:
    """The installed command where there is one, else the module: a checkout works as it is."""
    script = Path(sys.executable).with_name("gatekeeper")
    if script.exists():
        return [str(script)]
    return [
        sys.executable,
        "-c",
        "import sys; from gatekeeper.cli.gatekeeper import main; sys.exit(main())",
    ]


class GateConfig:
    """Builds gatekeeper.conf. Keys are RabbitMQ's; later values of a key win.

    ``set`` takes a dotted key (or keyword arguments with ``__`` for the dot).
    """

    def __init__(self, folder: Path, *, upstream: int | str, port: int | None = None) -> None:
        """upstream: the broker's port on loopback, or HOST:PORT."""
        self.folder = folder
        self.port = port or free_port()
        self.tls_port = 0
        self.definitions: Mapping[str, Any] | None = None
        server = f"{LOOPBACK}:{upstream}" if isinstance(upstream, int) else upstream
        self.values: dict[str, str] = {
            "listeners.tcp.1": f"{LOOPBACK}:{self.port}",
            "upstreams.default.servers.1": server,
            "upstreams.default.username": "gatekeeper",
            "upstreams.default.password": "s3rvice",
            "store.url": f"sqlite:///{folder / 'store.db'}",
            "log.console": "true",
            "log.console.level": "info",
        }

    def set(self, key: str, value: str | int) -> Self:
        self.values[key] = str(value)
        return self

    def unset(self, key: str) -> Self:
        self.values.pop(key, None)
        return self

    def with_definitions(self, document: Mapping[str, Any]) -> Self:
        self.definitions = document
        return self

    def with_tls(self, files: TlsFiles, *, verify: str = "verify_none") -> Self:
        """A second listener that speaks TLS, on ``tls_port``."""
        self.tls_port = free_port()
        self.set("listeners.ssl.1", f"{LOOPBACK}:{self.tls_port}")
        self.set("ssl_options.cacertfile", str(files.ca))
        self.set("ssl_options.certfile", str(files.certificate))
        self.set("ssl_options.keyfile", str(files.key))
        self.set("ssl_options.verify", verify)
        return self.set("ssl_options.fail_if_no_peer_cert", "false")

    def text(self) -> str:
        return "".join(f"{key} = {value}\n" for key, value in self.values.items())

    def write(self) -> Path:
        """Write the files into the folder; the path of gatekeeper.conf."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.definitions is not None:
            path = self.folder / "definitions.json"
            path.write_text(json.dumps(self.definitions, indent=2))
            self.set("load_definitions", str(path))
        path = self.folder / "gatekeeper.conf"
        path.write_text(self.text())
        return path


def environment(**extra: str) -> dict[str, str]:
    """A child's environment: this checkout importable, no RabbitMQ variables of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RABBITMQ_")}
    kept["PYTHONPATH"] = str(ROOT)
    kept["PYTHONUNBUFFERED"] = "1"
    return kept | extra


def run_gate(
    *args: str | Path, timeout: float = 30, **extra: str
) -> subprocess.CompletedProcess[str]:
    """The command run to its end: ``--version``, ``--check-config``, a start that must fail."""
    return subprocess.run(
        [*gatekeeper_argv(), *map(str, args)],
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


class Gate:
    """A gate that runs. ``start`` returns when its first listener accepts."""

    def __init__(self, config: GateConfig, **extra_environment: str) -> None:
        self.config = config
        self.process = Process(
            [*gatekeeper_argv(), "--config", config.folder / "gatekeeper.conf"],
            log=config.folder / "gatekeeper.log",
            env=environment(**extra_environment),
            cwd=config.folder if config.folder.exists() else None,
            name="gatekeeper",
        )

    @property
    def port(self) -> int:
        return self.config.port

    @property
    def tls_port(self) -> int:
        return self.config.tls_port

    def log_text(self) -> str:
        return self.process.output()

    def start(self) -> Self:
        self.config.write()
        self.process.start()
        try:
            self.process.wait_for(
                lambda: listens(self.port), timeout=START_TIMEOUT, what=f"listens on {self.port}"
            )
        except HarnessError:
            self.process.kill()
            raise
        return self

    def stop(self, timeout: float = 15.0) -> int | None:
        """SIGTERM; the exit status."""
        return self.process.stop(timeout)

    def login(self, username: str, password: str, vhost: bytes | str = b"/", **more: Any) -> Client:
        return Client.login(self.port, username, password, vhost, **more)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
