"""The control socket of a real gate: who may use it, what it bears, and whose file it is."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import stat
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gatekeeper.admin.control import BODY_LIMIT, CONNECTIONS, LINE_LIMIT
from gatekeeper.admin.operations import OPERATIONS
from tests.admin.serving import ask as http_ask
from tests.cli.conftest import CtlGate, started
from tests.support.gate import GateConfig, run_gate
from tests.support.process import LOOPBACK, free_port

NOBODY = 65534


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[CtlGate]:
    found = started(tmp_path / "gate", upstream=1)
    yield found
    found.gate.stop()


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(20)
    sock.connect(str(path))
    return sock


def said(path: Path, data: bytes) -> list[dict[str, Any]]:
    """All lines of the answer to these bytes."""
    with connected(path) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
        received = b""
        # Behind the answer: the gate has not read all that was sent.
        with contextlib.suppress(ConnectionResetError):
            while chunk := sock.recv(65536):
                received += chunk
    return [json.loads(line) for line in received.splitlines()]


def ask(path: Path, operation: str, **arguments: object) -> list[dict[str, Any]]:
    return said(path, json.dumps({"operation": operation, "arguments": arguments}).encode() + b"\n")


def error(path: Path, data: bytes) -> str:
    (answer,) = said(path, data)
    assert answer.keys() == {"error"}
    return f"{answer['error']['kind']}: {answer['error']['message']}"


# --- who may use it ---


def test_it_is_for_its_owner_alone(gate: CtlGate) -> None:
    assert stat.S_IMODE(gate.socket.stat().st_mode) == 0o600
    assert gate.socket.stat().st_uid == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused_by_the_file_and_by_the_gate() -> None:
    # The system's Python: ours may be where nobody else may look.
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.connect(sys.argv[1])\n"
        's.sendall(b\'{"operation": "list_users"}\\n\')\n'
        "print(s.makefile().read())\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        found = started(folder, upstream=1)
        try:

            def as_nobody() -> subprocess.CompletedProcess[str]:
                return subprocess.run(
                    ["/usr/bin/python3", "-c", script, str(found.socket)],
                    user=NOBODY,
                    capture_output=True,
                    text=True,
                    check=False,
                    cwd="/",
                )

            assert "PermissionError" in as_nobody().stderr
            found.socket.chmod(0o666)
            answer = json.loads(as_nobody().stdout)
            assert answer["error"]["message"] == (
                "the control socket is for root and the gate's own user"
            )
            assert f"uid {NOBODY}" in found.gate.log_text()
            assert "outcome=denied" in found.gate.log_text()
        finally:
            found.gate.stop()


# --- what it bears ---

WRONG = [
    (b"\n", "the request is not a line of JSON"),
    (b"{\n", "the request is not a line of JSON"),
    (b"\xff\xfe\n", "the request is not a line of JSON"),
    (b"[" * 100_000 + b"\n", "the request is not a line of JSON"),
    (b"[]\n", "the request is no object of operation, arguments and body"),
    (b'{"operation": "ping", "x": 1}\n', "the request is no object of operation, arguments"),
    (b'{"operation": 1}\n', "operation must be a string, and arguments an object"),
    (b'{"operation": "ping", "arguments": []}\n', "operation must be a string, and arguments"),
    (b'{"operation": "nix"}\n', "there is no operation 'nix'"),
    (b'{"operation": "ping", "arguments": {"a": 1}}\n', "unknown arguments: a"),
    (b'{"operation": "delete_user"}\n', "arguments are missing: user"),
    (b'{"operation": "delete_user", "arguments": {"user": 1}}\n', "user must be a string"),
    (b'{"operation": "delete_user", "arguments": {"user": null}}\n', "user must be a string"),
    (b'{"operation": "delete_user", "arguments": {"user": "\\ud800"}}\n', "user is no text"),
    (b'{"operation": "ping", "body": 3}\nabc', "the operation takes no body"),
    (b'{"operation": "import_definitions", "arguments": {"source": "x"}}\n', "takes a body"),
    (b'{"operation": "ping", "body": -1}\n', "body must be its length"),
    (b'{"operation": "ping", "body": true}\n', "body must be its length"),
    (b'{"operation": "ping", "body": %d}\n' % (BODY_LIMIT + 1), "body must be its length"),
    (b"x" * (LINE_LIMIT + 70_000), f"the request is longer than {LINE_LIMIT} bytes"),
]


def test_wrong_requests_are_told_what_is_wrong(gate: CtlGate) -> None:
    for data, message in WRONG:
        found = error(gate.socket, data)
        assert found.startswith("bad_request: "), data[:60]
        assert message in found, data[:60]
    assert "internal error" not in gate.gate.log_text()
    assert ask(gate.socket, "ping")[0]["result"]["node"]


def test_every_argument_of_every_operation_may_be_wrong(gate: CtlGate) -> None:
    """Whatever its type: an error that says so, or harmless; never an internal one."""
    before = gate.contents()
    for name, operation in OPERATIONS.items():
        keys = (operation.needs + " " + operation.may).split()
        for wrong in (1, True, [], [1], {}, {"a": []}, None, "\ud800", "x" * 70_000):
            arguments = dict.fromkeys(operation.needs.split(), "nosuch")
            for key in keys:
                request = {"operation": name, "arguments": {**arguments, key: wrong}}
                data = json.dumps({**request, **({"body": 2} if operation.body else {})}).encode()
                if name in {"add_user", "add_vhost", "set_global_parameter", "set_cluster_name"}:
                    continue  # these may succeed with what they are given
                answer = said(gate.socket, data + b"\n" + (b"{" * 2 if operation.body else b""))
                kind = answer[-1].get("error", {}).get("kind")
                assert kind != "internal", (name, key, wrong)
    assert gate.contents() == before
    assert "internal error" not in gate.gate.log_text()


def test_no_answer_repeats_a_password(gate: CtlGate) -> None:
    secret = "hunter2-hunter2"
    for data in (
        {"operation": "add_user", "arguments": {"user": "u", "password": [secret]}},
        {"operation": "add_user", "arguments": {"user": "", "password": secret}},
        {"operation": "change_password", "arguments": {"user": "u", "password": secret}},
        {"operation": "authenticate_user", "arguments": {"user": "u", "password": secret}},
        {"operation": "add_user", "arguments": {"user": "u", "password_hash": secret}},
        {"operation": "add_user", "arguments": secret},
    ):
        (answer,) = said(gate.socket, json.dumps(data).encode() + b"\n")
        assert "error" in answer
        assert secret not in json.dumps(answer)
    assert secret not in gate.gate.log_text()


def test_connections_are_bounded(gate: CtlGate) -> None:
    idle = [connected(gate.socket) for _ in range(CONNECTIONS)]
    try:
        (answer,) = ask(gate.socket, "ping")
        assert "too many control connections" in answer["error"]["message"]
    finally:
        for sock in idle:
            sock.close()
    assert gate.ok("ping").endswith("Ping succeeded\n")


def test_a_body_that_ends_early_changes_nothing(gate: CtlGate) -> None:
    before = gate.contents()
    document = b'{"users": [{"name": "x", "password": "y", "tags": ""}]}'
    head = {"operation": "import_definitions", "arguments": {"source": "x"}}
    with connected(gate.socket) as sock:
        sock.sendall(json.dumps({**head, "body": len(document) + 1}).encode() + b"\n" + document)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1000) == b""
    assert gate.contents() == before


# --- whose file it is ---


def test_it_is_removed_at_the_end(gate: CtlGate) -> None:
    assert gate.socket.exists()
    gate.gate.stop()
    assert not gate.socket.exists()


def test_another_ones_is_not_removed(gate: CtlGate) -> None:
    gate.socket.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(gate.socket))
        gate.gate.stop()
        assert gate.socket.exists()


def test_a_stale_one_is_replaced(gate: CtlGate) -> None:
    gate.gate.process.kill()
    assert gate.socket.exists()
    again = started(gate.folder, upstream=1)
    try:
        assert again.ok("ping").endswith("Ping succeeded\n")
    finally:
        again.gate.stop()


def refused(folder: Path, path: Path | str, **keys: str) -> str:
    """What a gate says that cannot have this socket."""
    config = GateConfig(folder, upstream=1).set("control.socket", str(path))
    for key, value in keys.items():
        config.set(key, value)
    done = run_gate("--config", config.write())
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_live_one_stops_the_start(gate: CtlGate, tmp_path: Path, workers: str) -> None:
    line = refused(tmp_path / "other", gate.socket, workers=workers)
    assert line == (
        f"gatekeeper: control.socket: another gate listens at '{gate.socket}'; stop it, or "
        "configure another path"
    )
    assert gate.ok("ping").endswith("Ping succeeded\n")


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert "exists and is no socket" in refused(tmp_path / "gate", path)
    assert path.read_text() == "data"


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    assert "is longer than 107 bytes" in refused(tmp_path / "gate", long)
    missing = tmp_path / "nosuch" / "x"
    assert "No such file or directory; check the folder" in refused(tmp_path / "gate", missing)


def test_without_its_default_socket_a_gate_starts_with_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "gate"
    folder.mkdir()
    (folder / "store.db.sock").write_text("in the way")
    found = started(folder, upstream=1)
    try:
        log = found.gate.log_text()
        assert "[warning] control.socket: " in log
        assert "until then gatekeeperctl cannot reach this gate" in log
    finally:
        found.gate.stop()


def test_none_is_none(tmp_path: Path) -> None:
    found = started(tmp_path / "gate", upstream=1, control__socket="none")
    try:
        assert not found.socket.exists()
        assert "control.socket" not in found.gate.log_text()
    finally:
        found.gate.stop()


# --- the other way in ---


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_http_api_is_served_by_the_same_process(tmp_path: Path, workers: str) -> None:
    port = free_port()
    found = started(
        tmp_path / "gate",
        upstream=1,
        workers=workers,
        management__tcp__port=str(port),
        management__tcp__ip=LOOPBACK,
    )
    try:
        found.ok("add_user", "boss", "pw")
        found.ok("set_user_tags", "boss", "administrator")
        request = urllib.request.Request(f"http://{LOOPBACK}:{port}/api/users")
        request.add_header("Authorization", "Basic " + base64.b64encode(b"boss:pw").decode())
        with urllib.request.urlopen(request, timeout=20) as answer:
            users = json.load(answer)
        assert {user["name"] for user in users} == {"boss", "guest"}
    finally:
        found.gate.stop()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_cache_is_cleared(tmp_path: Path, workers: str) -> None:
    found = started(tmp_path / workers, upstream=1, workers=workers)
    try:
        assert "Will clear" in found.ok("clear_auth_backend_cache")
        assert "Will clear" in found.ok("clear_auth_backend_cache", "alice")
        assert "clear_auth_backend_cache user='alice' forgotten=0: done" in found.gate.log_text()
    finally:
        found.gate.stop()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_administrators_log_in_by_what_is_true_now(tmp_path: Path, workers: str) -> None:
    """The process they log in at may not be one that serves clients; it keeps answers too."""
    port = free_port()
    found = started(
        tmp_path / "gate",
        upstream=1,
        workers=workers,
        management__tcp__port=str(port),
        management__tcp__ip=LOOPBACK,
        auth_backends__1="cache",
        auth_cache__cached_backend="internal",
        auth_cache__cache_ttl="600000",
        # Takes its time, so that the answer is kept.
        password_hashing_module="argon2id",
    )

    def status(password: str) -> int:
        return http_ask(port, "GET", "/api/whoami", user=f"boss:{password}").status

    try:
        found.ok("add_user", "boss", "old")
        found.ok("set_user_tags", "boss", "administrator")
        assert status("old") == 200
        found.ok("change_password", "boss", "new")
        assert (status("old"), status("new")) == (401, 200)

        found.ok("clear_auth_backend_cache", "boss")
        assert "user='boss' forgotten=0" not in found.gate.log_text()

        assert status("new") == 200
        found.ok("delete_user", "boss")
        assert status("new") == 401
    finally:
        found.gate.stop()
