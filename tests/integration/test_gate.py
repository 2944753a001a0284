"""The gate as a process: logins, its broker's absence and death, its own start and end."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from gatekeeper.store.store import Store
from tests.integration.conftest import people
from tests.support.amqp import CAPABILITIES, Client, DeadlineError, LostError, RefusedError
from tests.support.amqp_codec import PROTOCOL_HEADER, method_frame, publish_frames
from tests.support.gate import Gate, GateConfig, run_gate
from tests.support.process import LOOPBACK, free_port, wait_until
from tests.support.rabbit import RabbitNode, service_account

LOGIN_REFUSED = (
    b"ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN."
    b" For details see the broker logfile."
)
CONNECTION_FORCED, ACCESS_REFUSED, NOT_ALLOWED, INTERNAL_ERROR = 320, 403, 530, 541


def config_for(folder: Path, upstream: int) -> GateConfig:
    return GateConfig(folder / "gate", upstream=upstream).with_definitions(people())


# --- logins ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("username", "password"), [("alice", "wrong"), ("nobody", "x"), ("alice", ""), ("", "")]
)
def test_bad_credentials_are_refused_at_once(gate: Gate, username: str, password: str) -> None:
    started = time.monotonic()
    with pytest.raises(RefusedError) as refused:
        gate.login(username, password)
    assert (refused.value.code, refused.value.text) == (ACCESS_REFUSED, LOGIN_REFUSED)
    assert (refused.value.method["class_id"], refused.value.method["method_id"]) == (0, 0)
    assert time.monotonic() - started < 2


def test_a_client_without_the_capability_is_cut_off_after_three_seconds(gate: Gate) -> None:
    with Client(gate.port) as client:
        client.start({}, b"\0alice\0wrong")
        started = time.monotonic()
        with pytest.raises(LostError):
            client.frame(6)
        assert 2.5 < time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("username", "vhost", "text"),
    [
        ("alice", "nope", b"NOT_ALLOWED - vhost nope not found"),
        ("alice", "", b"NOT_ALLOWED - vhost  not found"),
        ("alice", "v2", b"NOT_ALLOWED - access to vhost 'v2' refused for user 'alice'"),
        ("bob", "/", b"NOT_ALLOWED - access to vhost '/' refused for user 'bob'"),
    ],
)
def test_vhosts(gate: Gate, username: str, vhost: str, text: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        gate.login(username, f"{username}-pw", vhost)
    assert (refused.value.code, refused.value.text) == (NOT_ALLOWED, text)
    assert (refused.value.method["class_id"], refused.value.method["method_id"]) == (10, 40)


def test_a_vhost_that_only_the_gate_knows_is_refused(gate: Gate) -> None:
    with pytest.raises((RefusedError, LostError)):
        gate.login("admin", "admin-pw", "gate-only")


def test_the_service_account_is_no_user_of_the_gate(gate: Gate) -> None:
    with pytest.raises(RefusedError) as refused:
        gate.login("gatekeeper", "s3rvice")
    assert refused.value.code == ACCESS_REFUSED


@pytest.fixture(scope="module")
def proxied(broker: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """A gate that learns its clients' addresses from PROXY headers."""
    config = config_for(tmp_path_factory.mktemp("proxied"), broker.port)
    with Gate(config.set("proxy_protocol", "true")) as running:
        yield running


@pytest.mark.parametrize(
    ("source", "accepted"),
    [("127.0.0.1", True), ("127.8.9.10", True), ("192.0.2.7", False), ("10.0.0.1", False)],
)
def test_loopback_users(proxied: Gate, source: str, accepted: bool) -> None:
    client = Client(proxied.port)
    client.send_raw(f"PROXY TCP4 {source} 192.0.2.1 4000 5672\r\n".encode())
    try:
        if accepted:
            client.handshake("guest", "guest")
        else:
            with pytest.raises(RefusedError) as refused:
                client.handshake("guest", "guest")
            assert refused.value.text == LOGIN_REFUSED
    finally:
        client.abort()


def test_other_users_may_come_from_anywhere(proxied: Gate) -> None:
    client = Client(proxied.port)
    client.send_raw(b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 5672\r\n")
    client.handshake("alice", "alice-pw")
    client.close()


def test_tls(gate: Gate, authority: trustme.CA) -> None:
    import ssl

    context = ssl.create_default_context()
    authority.configure_trust(context)
    with Client.login(gate.tls_port, "alice", "alice-pw", tls=context) as client:
        client.open_channel(1)
        assert client.call(1, "queue.declare", queue=b"a.tls")["queue"] == b"a.tls"
        assert client.call(1, "queue.delete", queue=b"a.tls").name == "queue.delete-ok"


def test_plain_bytes_on_the_tls_port_cost_only_themselves(gate: Gate) -> None:
    client = Client(gate.tls_port)
    client.send_raw(PROTOCOL_HEADER)
    client.at_eof(15)
    client.abort()


# --- what passes, passes whole -------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, 131_064, 131_065, 3_000_000])
def test_bodies_pass_byte_for_byte(gate: Gate, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    properties = {"headers": {"k": [1, {"n": None}]}, "delivery_mode": 2, "message_id": b"m"}
    with gate.login("alice", "alice-pw") as client:
        client.open_channel(1)
        client.call(1, "queue.declare", queue=b"a.body", exclusive=True)
        client.publish(1, b"", b"a.body", body, properties)
        got = client.call(1, "basic.get", queue=b"a.body", no_ack=True)
        assert got.name == "basic.get-ok"
        assert got.body == body
        assert got.properties == {
            "headers": {b"k": [1, {b"n": None}]},
            "delivery_mode": 2,
            "message_id": b"m",
        }


def test_a_slow_reader_gets_everything_in_order(gate: Gate) -> None:
    """More than all the buffers between hold; the reader pauses, nobody loses anything."""
    count, size = 400, 50_000
    with gate.login("alice", "alice-pw") as reader, gate.login("alice", "alice-pw") as writer:
        reader.open_channel(1)
        reader.call(1, "queue.declare", queue=b"a.slow", auto_delete=True)
        reader.call(1, "basic.consume", queue=b"a.slow", no_ack=True, consumer_tag=b"t")
        writer.open_channel(1)
        writer.call(1, "confirm.select")
        for number in range(count):
            writer.publish(1, b"", b"a.slow", number.to_bytes(4, "big") * (size // 4))
        time.sleep(1.0)
        for number in range(count):
            delivery = reader.expect("basic.deliver", 1)
            assert delivery.body == number.to_bytes(4, "big") * (size // 4)
        confirmed = 0
        while confirmed < count:
            ack = writer.expect("basic.ack", 1)
            confirmed = ack["delivery_tag"] if ack["multiple"] else confirmed + 1


def test_one_refused_channel_leaves_the_others_alone(gate: Gate) -> None:
    with gate.login("alice", "alice-pw") as client:
        for channel in (1, 2):
            client.open_channel(channel)
        client.send_raw(
            method_frame(1, "queue.declare", queue=b"b.forbidden")
            + method_frame(2, "queue.declare", queue=b"a.allowed", exclusive=True)
            + publish_frames(1, b"", b"a.allowed", b"dropped")
        )
        answers = dict(client.read() for _ in range(2))
        assert answers[1].name == "channel.close"
        assert answers[1]["reply_text"] == (
            b"ACCESS_REFUSED - configure access to queue 'b.forbidden' in vhost '/'"
            b" refused for user 'alice'"
        )
        assert answers[2]["queue"] == b"a.allowed"
        client.send_raw(method_frame(1, "channel.close-ok") + method_frame(1, "channel.open"))
        client.expect("channel.open-ok", 1)
        assert client.call(1, "basic.get", queue=b"a.allowed").name == "basic.get-empty"


def test_a_silent_client_is_dropped(gate: Gate) -> None:
    """RabbitMQ ends the TCP connection after two to three intervals; a close may be told first."""
    client = gate.login("alice", "alice-pw", heartbeat=1)
    started = time.monotonic()
    try:
        _channel, method = client.read(8)
        assert method.name == "connection.close"
    except LostError:
        pass
    assert 1.5 < time.monotonic() - started < 5
    client.abort()


def test_an_idle_client_gets_heartbeats(gate: Gate) -> None:
    with gate.login("alice", "alice-pw", heartbeat=2) as client:
        assert client.frame(3)[0] == 8


# --- the broker's absence and death --------------------------------------------------------------


def test_broker_down_at_start_then_up(tmp_path: Path) -> None:
    node = RabbitNode(tmp_path / "broker", definitions=service_account())
    with Gate(config_for(tmp_path, node.port)) as gate:
        with pytest.raises(RefusedError) as refused:
            gate.login("alice", "alice-pw")
        assert refused.value.code in {CONNECTION_FORCED, INTERNAL_ERROR}
        # Who may not in is told so all the same: the broker has no say in it.
        with pytest.raises(RefusedError) as refused:
            gate.login("alice", "wrong")
        assert refused.value.text == LOGIN_REFUSED
        with node:
            wait_until(lambda: logs_in(gate), timeout=20, what="the gate finds the broker")
            client = gate.login("alice", "alice-pw")
            client.open_channel(1)
            node.kill()
            started = time.monotonic()
            _channel, close = client.read(10)
            assert close.name == "connection.close"
            assert close["reply_code"] in {CONNECTION_FORCED, INTERNAL_ERROR}
            assert time.monotonic() - started < 5
            client.send(0, "connection.close-ok")
            client.at_eof(5)
            client.abort()
        assert gate.process.running
        with pytest.raises(RefusedError):
            gate.login("alice", "alice-pw")


def logs_in(gate: Gate) -> bool:
    try:
        gate.login("alice", "alice-pw").close()
    except (RefusedError, LostError, DeadlineError):
        return False
    return True


# --- start and end -------------------------------------------------------------------------------


def test_sigterm_tells_the_clients(broker: RabbitNode, tmp_path: Path) -> None:
    gate = Gate(config_for(tmp_path, broker.port).set("drain_timeout", 500)).start()
    client = gate.login("alice", "alice-pw")
    client.open_channel(1)
    import signal

    gate.process.signal(signal.SIGTERM)
    _channel, close = client.read(10)
    assert (close.name, close["reply_code"]) == ("connection.close", CONNECTION_FORCED)
    assert close["reply_text"].startswith(b"CONNECTION_FORCED - ")
    client.send(0, "connection.close-ok")
    client.at_eof(5)
    client.abort()
    assert gate.process.wait(10) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((LOOPBACK, gate.port), timeout=2)


def test_a_second_start_on_the_same_store_keeps_the_users(
    broker: RabbitNode, tmp_path: Path
) -> None:
    config = config_for(tmp_path, broker.port)
    with Gate(config) as gate:
        gate.login("alice", "alice-pw").close()
    config.definitions = None
    config.unset("load_definitions")
    with Gate(config) as gate:
        gate.login("alice", "alice-pw").close()


def test_passwords_are_hashed_anew_while_the_connection_stays(
    broker: RabbitNode, tmp_path: Path
) -> None:
    """Whoever is connected must not be cut off by a new hash of the password that is right."""
    config = config_for(tmp_path, broker.port)
    config.set("password_hashing_module", "argon2id")
    with Gate(config) as gate:
        with gate.login("alice", "alice-pw") as client:
            for _ in range(3):
                gate.login("alice", "alice-pw").close()
            with pytest.raises(RefusedError):
                gate.login("alice", "wrong")
            client.open_channel(1)
        with contextlib.closing(Store.open(config.values["store.url"])) as store:
            alice = store.user(b"alice")
    assert alice is not None
    assert alice.password_hash.startswith(b"$argon2id$")


def one_line(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


def test_port_in_use(broker: RabbitNode, tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        config = config_for(tmp_path, broker.port)
        port = taken.getsockname()[1]
        config.set("listeners.tcp.1", f"{LOOPBACK}:{port}")
        done = run_gate("--config", config.write())
    assert done.returncode == 1
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("no.such.key = 1", "no.such.key"),
        ("listeners.tcp.2 = nonsense:port", "listeners.tcp.2"),
        ("handshake_timeout = soon", "handshake_timeout"),
        ("this is not a setting", "gatekeeper.conf:"),
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path: Path, line: str, says: str) -> None:
    path = config_for(tmp_path, free_port()).write()
    path.write_text(path.read_text() + line + "\n")
    for arguments in (["--check-config"], []):
        done = run_gate(*arguments, "--config", path)
        assert done.returncode == 1
        assert says in one_line(done.stderr)


def test_check_config_of_a_good_one(tmp_path: Path) -> None:
    done = run_gate("--check-config", "--config", config_for(tmp_path, free_port()).write())
    assert (done.returncode, done.stderr) == (0, "")


def test_bad_definitions_stop_the_start(tmp_path: Path) -> None:
    config = config_for(tmp_path, free_port())
    path = config.write()
    (tmp_path / "gate" / "definitions.json").write_text('{"users": [{"name": "x"}], "vhosts": 3}')
    done = run_gate("--config", path)
    assert done.returncode == 1
    assert "definitions.json" in done.stderr or "vhosts" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_and_a_wrong_option() -> None:
    missing = run_gate("--config", "/nonexistent/gatekeeper.conf")
    assert missing.returncode == 1
    assert "/nonexistent/gatekeeper.conf" in one_line(missing.stderr)
    assert run_gate("--nonsense").returncode == 2


def test_version() -> None:
    from gatekeeper import __version__

    done = run_gate("--version")
    assert (done.returncode, done.stdout) == (0, f"gatekeeper {__version__}\n")


def test_no_secret_is_logged(broker: RabbitNode, tmp_path: Path) -> None:
    config = config_for(tmp_path, broker.port).set("log.console.level", "debug")
    with Gate(config) as gate:
        gate.login("alice", "alice-pw").close()
        with pytest.raises(RefusedError):
            gate.login("alice", "a-wrong-secret")
        client = Client(gate.port)
        client.start({"capabilities": CAPABILITIES}, b"x\0alice\0misplaced-secret")
        client.at_eof(5)
        client.abort()
    for secret in ("alice-pw", "a-wrong-secret", "misplaced-secret", "s3rvice"):
        assert secret not in gate.log_text()
