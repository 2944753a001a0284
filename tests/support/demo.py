"""``make run``: a private RabbitMQ, the gate in front of it, and three lines to paste.

Everything is written below ``.run/``; the broker listens on loopback and knows only the service
account, whose password is new every time. Ctrl-C stops both, the broker's epmd included.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import sys
import threading
from pathlib import Path

from tests.support.gate import ROOT, environment, gatekeeper_argv
from tests.support.process import LOOPBACK, HarnessError, Process, listens
from tests.support.rabbit import RabbitNode, service_account

FIRST_PORT = 5672
TRIED_PORTS = 20


def first_free_port(first: int) -> int:
    for port in range(first, first + TRIED_PORTS):
        with socket.socket() as probe:
            # A port whose last connections are still in TIME_WAIT is free for a listener.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise HarnessError(f"no free port on {LOOPBACK} from {first} to {first + TRIED_PORTS - 1}")


def paste_lines(port: int, run: Path) -> str:
    python = os.path.relpath(sys.executable)
    say = f"{python} -m tests.support.say"
    socket_path = os.path.relpath(run / "gatekeeper.db.sock")
    ctl = f"{os.path.relpath(Path(sys.executable).parent / 'gatekeeperctl')} --socket {socket_path}"
    alice = f"amqp://alice:alice@{LOOPBACK}:{port}/%2F"
    bob = f"amqp://bob:bob@{LOOPBACK}:{port}/%2F"
    return "\n".join(
        [
            "",
            f"gatekeeper is on {LOOPBACK}:{port}. Paste into another terminal, in this directory:",
            "",
            "  # alice may use names that begin with demo",
            f"  {say} publish {alice} demo.hello 'Hello, gate'",
            "  # bob may read them",
            f"  {say} read {bob} demo.hello",
            "  # and nothing else: refused",
            f"  {say} publish {bob} demo.hello 'Hello'",
            "",
            "  # until bob is allowed to",
            f"  {ctl} set_permissions bob 'demo.*' '.*' 'demo.*'",
            "",
            "Users and permissions: config/demo-definitions.json. Ctrl-C stops everything.",
            "",
        ]
    )


def start_gate(run: Path, port: int, broker: RabbitNode, password: str) -> Process:
    """config/gatekeeper.conf with this run's ports and files laid over it."""
    overlay = run / "conf.d"
    overlay.mkdir(exist_ok=True)
    (overlay / "10-make-run.conf").write_text(
        f"listeners.tcp.default = {LOOPBACK}:{port}\n"
        f"upstreams.default.servers.1 = {LOOPBACK}:{broker.port}\n"
        f"store.url = sqlite:///{run / 'gatekeeper.db'}\n"
        f"load_definitions = {ROOT / 'config' / 'demo-definitions.json'}\n"
    )
    gate = Process(
        [*gatekeeper_argv(), "--config", ROOT / "config" / "gatekeeper.conf"],
        log=run / "gatekeeper.log",
        env=environment(RABBITMQ_CONFIG_FILES=str(overlay), GATEKEEPER_UPSTREAM_PASSWORD=password),
        cwd=run,
        name="gatekeeper",
    ).start()
    try:
        gate.wait_for(lambda: listens(port), timeout=20, what=f"listens on {port}")
    except HarnessError:
        gate.stop()
        raise
    return gate


def follow(path: Path, position: int) -> int:
    """Print what a log has grown by; the new position."""
    with path.open("rb") as log:
        log.seek(position)
        sys.stdout.write(log.read().decode("utf-8", "replace"))
        sys.stdout.flush()
        return log.tell()


def serve(run: Path, first: int, stopping: threading.Event) -> int:
    password = secrets.token_hex(16)
    broker = RabbitNode(run / "broker", definitions=service_account(password))
    print(f"starting RabbitMQ (in {run / 'broker'}) ...", flush=True)
    gate: Process | None = None
    try:
        broker.start()
        port = first_free_port(first)
        (run / "gatekeeper.log").unlink(missing_ok=True)
        gate = start_gate(run, port, broker, password)
        print(paste_lines(port, run), flush=True)
        position = 0
        while not stopping.wait(0.3):
            position = follow(gate.log, position)
            if not gate.running or not broker.running:
                dead = gate.name if broker.running else "RabbitMQ"
                print(f"{dead} ended on its own; its files are in {run}", file=sys.stderr)
                return 1
        follow(gate.log, position)
        return 0
    finally:
        print("stopping ...", flush=True)
        if gate is not None:
            gate.stop()
        broker.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.demo")
    parser.add_argument("--folder", type=Path, default=ROOT / ".run", help="for all files")
    parser.add_argument("--port", type=int, default=FIRST_PORT, help="the first one to try")
    options = parser.parse_args()
    run: Path = options.folder.resolve()
    run.mkdir(parents=True, exist_ok=True)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    try:
        return serve(run, options.port, stopping)
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
