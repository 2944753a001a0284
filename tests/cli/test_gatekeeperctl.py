"""gatekeeperctl beyond the captured session: real gates, real clients, real shells."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gatekeeper.cli.ctl.table import COMMANDS
from tests.cli.conftest import CtlGate, started
from tests.cli.replay import SCRIPT, Said, ctl
from tests.support.amqp import RefusedError
from tests.support.gate import ROOT, environment
from tests.support.rabbit import RabbitNode


@pytest.fixture(scope="module")
def shared(broker: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CtlGate]:
    """For what leaves no trace, or names of its own."""
    found = started(tmp_path_factory.mktemp("gate"), upstream=broker.port)
    yield found
    found.gate.stop()


# --- without a gate ---


def test_without_a_gate(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    said = ctl("add_user", "a", "secret", socket=tmp_path / "store.db.sock")
    assert said.code == 69
    assert said.stdout == ""
    assert "The gate is not running" in said.stderr
    assert f"{tmp_path}/store.db.sock: No such file or directory" in said.stderr
    assert "secret" not in said.stderr
    assert not store.exists()


def test_where_the_socket_is_must_be_known(tmp_path: Path) -> None:
    conf = tmp_path / "g.conf"
    said = ctl("--config", str(conf), "ping")
    assert (said.code, said.stdout) == (69, "")
    assert f"{conf}: no such file; say where the gate's configuration is" in said.stderr
    conf.write_text("nonsense = 1\n")
    said = ctl("ping", GATEKEEPER_CONFIG_FILE=str(conf))
    assert said.code == 69
    assert "nonsense" in said.stderr


def test_the_configuration_tells_where_the_socket_is(shared: CtlGate) -> None:
    said = ctl("-q", "ping", "--config", str(shared.folder / "gatekeeper.conf"))
    assert said == Said(0, "Ping succeeded\n", "")
    said = ctl("-q", "ping", GATEKEEPER_CONFIG_FILE=str(shared.folder / "gatekeeper.conf"))
    assert said == Said(0, "Ping succeeded\n", "")


def test_await_startup(shared: CtlGate, tmp_path: Path) -> None:
    assert shared.ctl("await_startup") == Said(0, "", "")
    said = ctl("await_startup", "-t", "1", socket=tmp_path / "nosuch")
    assert said.code == 75
    assert "operation await_startup on node" in said.stderr


# --- passwords ---


def typed(gate: CtlGate, words: list[str], line: bytes) -> str:
    """What a terminal shows when this is typed at the prompt."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*SCRIPT, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(GATEKEEPER_CONTROL_SOCKET=str(gate.socket)),
            cwd=ROOT,
            start_new_session=True,
        )
        os.close(theirs)
        shown = b""
        while b"Password: " not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, line)
        while True:
            try:
                shown += os.read(ours, 1000)
            except OSError:  # the other side is closed
                break
        assert process.wait(20) == 0
    finally:
        os.close(ours)
    return shown.decode()


def test_a_typed_password_is_not_shown(shared: CtlGate) -> None:
    shown = typed(shared, ["add_user", "typist"], b"t0psecret\n")
    assert "Adding user" in shown
    assert "t0psecret" not in shown
    assert shared.ok("authenticate_user", "typist", "t0psecret").endswith("Success\n")


def test_hashes(shared: CtlGate) -> None:
    for algorithm, length in (("sha256", 48), ("SHA-512", 92)):
        out = shared.ok("-q", "hash_password", "pass", "--hashing-algorithm", algorithm)
        assert len(out.strip()) == length
    hashed = shared.ok("-q", "hash_password", stdin=b"pa ss\n").strip()
    shared.ok("add_user", "prehashed", hashed, "--pre-hashed-password")
    shared.ok("authenticate_user", "prehashed", "pa ss")
    said = shared.ctl("add_user", "never", "n*t base64", "--pre-hashed-password")
    assert said.code == 65
    assert "Could not Base64 decode provided password hash value" in said.stderr
    assert "n*t base64" not in said.stderr


def test_a_password_may_look_like_an_option(shared: CtlGate) -> None:
    shared.ok("add_user", "dashing", "--", "--quiet")
    shared.ok("authenticate_user", "dashing", "--", "--quiet")


@pytest.mark.parametrize(
    "words",
    [
        ["add_user", "u", "hunter2", "more"],
        ["add_user", "--bogus=hunter2", "u"],
        ["add_user", "", "hunter2"],
        ["change_password", "u", "hunter2", "more"],
        ["authenticate_user", "u", "hunter2", "--nix"],
        ["hash_password", "hunter2", "more"],
        ["hash_password", "hunter2", "--hashing-algorithm", "rot13"],
        ["encode", "--iterations", "0", '<<"hunter2">>', "hunter2"],
        ["decode", "a", "hunter2", "b"],
    ],
)
def test_no_error_repeats_a_password(shared: CtlGate, words: list[str]) -> None:
    said = shared.ctl(*words)
    assert said.code in {64, 65}
    assert "hunter2" not in said.stdout + said.stderr
    assert "Arguments given:" in said.stderr


# --- wrong arguments ---

USER_COMMANDS = [name for name, command in COMMANDS.items() if not command.offline]


@pytest.mark.timeout(300)
def test_wrong_arguments_change_nothing(shared: CtlGate) -> None:
    before = shared.contents()
    for name in USER_COMMANDS:
        command = COMMANDS[name]
        if command.least:
            said = shared.ctl(name, *["x"] * (command.least - 1))
            assert said.code == 64, name
            assert "not enough arguments." in said.stderr, name
        if command.most is not None:
            said = shared.ctl(name, *["x"] * (command.most + 1))
            assert said.code == 64, name
            assert "too many arguments." in said.stderr, name
        said = shared.ctl(name, *["x"] * command.least, "--nosuch", "-t", "soon")
        assert said.code == 64, name
        assert "Invalid options for this command:\n--nosuch : " in said.stderr, name
        assert "-t : soon" in said.stderr or command.secret_from is not None, name
        assert said.stdout == "", name
    assert shared.contents() == before


REFUSED: list[tuple[list[str], int, str]] = [
    (["set_permissions", "guest", ".*", "[", ".*"], 69, "{:invalid_regexp,"),
    (["set_permissions", "guest", "x" * 1025, ".*", ".*"], 69, "Error:\n"),
    (["set_permissions_globally", "nosuch", "", "", ""], 67, "User nosuch does not exist"),
    (["set_permissions_globally", "guest", "", "(", ""], 69, "{:invalid_regexp,"),
    (["set_topic_permissions", "guest", "nosuch", "", ""], 69, "Exchange nosuch does not exist"),
    (["set_user_tags", "guest", *map(str, range(33))], 65, "at most 32 tags (received 33)"),
    (["set_user_limits", "guest", "[]"], 69, "limits must be an object"),
    (["set_user_limits", "guest", '{"max-channels": 1.5}'], 69, "should be a number"),
    (["set_user_limits", "guest", '{"max-channels": NaN}'], 69, "Could not parse JSON"),
    (["set_vhost_limits", '{"max-connections": true}'], 69, "Validation failed"),
    (["set_global_parameter", "x", "{"], 69, "Could not parse JSON document"),
    (["clear_global_parameter", "nosuch"], 69, "Parameter does not exist"),
    (["update_vhost_metadata", "/"], 64, "not enough arguments."),
    (["update_vhost_metadata", "nosuch", "-d", "x"], 65, "Virtual host 'nosuch' does not exist"),
    (["update_vhost_metadata", "/", "--default-queue-type", ""], 65, "must not be an empty string"),
    (["update_vhost_metadata", "/", "--protected-from-deletion=maybe"], 64, "Invalid options"),
    (["set_vhost_tags", "nosuch", "a"], 65, 'Virtual host "nosuch" does not exist'),
    (["enable_vhost_deletion_protection", "nosuch"], 65, "'nosuch' does not exist"),
    (["list_connections", "pid,bogus"], 64, "Info key(s) bogus are not supported"),
    (["close_connection", "<0.x.0>", "why"], 69, '{:invalid_pid_syntax, "<0.x.0>"}'),
    (["import_definitions", "/", "--format", "erlang"], 65, "use json"),
    (["import_definitions", "/"], 65, "Path / is a directory"),
    (["explain", "guest", "/", "queue.nosuch", "q"], 65, "unknown operation 'queue.nosuch'"),
    (["explain", "guest", "/", "read", "q", "--from", "here"], 65, "'here' is no IP address"),
    (["explain", "guest", "/", "read", "q", "--kind", "topic"], 65, "queue or exchange"),
    (["who_can", "/", "own", "q"], 65, "configure, write or read"),
    (["who_can", "nosuch", "read", "q"], 65, "Virtual host 'nosuch' does not exist"),
    (["completion", "tcsh"], 65, "the shell must be one of"),
    (["help", "nosuch_at_all"], 64, "Command 'nosuch_at_all' not found."),
]


@pytest.mark.timeout(300)
def test_refused_requests_change_nothing(shared: CtlGate) -> None:
    before = shared.contents()
    for words, code, text in REFUSED:
        said = shared.ctl(*words)
        assert said.code == code, (words, said)
        assert text in said.stderr, (words, said)
    assert shared.contents() == before


# --- changes ---


def test_the_guides_loop_over_vhosts(shared: CtlGate) -> None:
    """https://www.rabbitmq.com/docs/access-control, with the command's name changed."""
    shared.ok("add_user", "looper", "pw")
    for name in ("loop one", "loop-two"):
        shared.ok("add_vhost", name)
    recipe = (
        "IFS='\n'; for v in $(gatekeeperctl list_vhosts --silent); do "
        'gatekeeperctl set_permissions -p "$v" "looper" ".*" ".*" ".*"; done'
    )
    command = " ".join(SCRIPT)
    done = subprocess.run(
        ["/bin/bash", "-c", f'gatekeeperctl() {{ {command} "$@"; }}\n{recipe}'],
        env=environment(GATEKEEPER_CONTROL_SOCKET=str(shared.socket)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    listed = shared.ok("-s", "list_user_permissions", "looper").splitlines()
    assert {"/\t.*\t.*\t.*", "loop one\t.*\t.*\t.*", "loop-two\t.*\t.*\t.*"} == set(listed)
    for name in ("loop one", "loop-two"):
        shared.ok("delete_vhost", name)
    shared.ok("delete_user", "looper")


def unheard(gate: CtlGate, *words: str) -> int:
    """The exit code, where nobody reads what is printed."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        return subprocess.run(
            [*SCRIPT, *words],
            env=environment(GATEKEEPER_CONTROL_SOCKET=str(gate.socket)),
            cwd=ROOT,
            stdout=writes,
            check=False,
        ).returncode
    finally:
        os.close(writes)


def test_work_is_done_although_nobody_reads_of_it(shared: CtlGate) -> None:
    shared.ok("add_user", "unheard", "pw")
    assert unheard(shared, "explain", "unheard", "/", "queue.declare", "q") == 2
    assert unheard(shared, "-q", "explain", "unheard", "/", "queue.declare", "q") == 2
    assert unheard(shared, "list_users") == 0
    assert unheard(shared, "delete_user", "unheard") == 0
    assert "unheard" not in shared.ok("list_users")
    assert unheard(shared, "set_permissions", "unheard", ".*", ".*", ".*") == 67


def test_vhosts_and_their_metadata(shared: CtlGate) -> None:
    shared.ok("add_vhost", "meta", "-d", "one", "--tags", "a, b", "--default-queue-type", "stream")
    columns = ("description", "tags", "default_queue_type", "protected_from_deletion")

    def row() -> dict[str, object]:
        rows = json.loads(shared.ok("list_vhosts", "name", *columns, "--formatter", "json"))
        return next(row for row in rows if row["name"] == "meta")

    assert list(row().values()) == ["meta", "one", ["a", "b"], "stream", False]
    shared.ok("add_vhost", "meta", "-d", "other")
    assert row()["description"] == "one", "an existing vhost is left as it is"
    shared.ok("update_vhost_metadata", "meta", "--description=two", "--protected-from-deletion")
    assert list(row().values()) == ["meta", "two", ["a", "b"], "stream", True]
    said = shared.ctl("delete_vhost", "meta")
    assert said.code == 65
    assert said.stderr.startswith("Error:\nCannot delete this virtual host: it is protected")
    shared.ok("set_vhost_tags", "meta")
    shared.ok("disable_vhost_deletion_protection", "meta")
    assert list(row().values()) == ["meta", "two", [], "stream", False]
    shared.ok("delete_vhost", "meta")


def test_names_are_bytes(shared: CtlGate) -> None:
    name = b"caf\xe9\xff".decode("utf-8", "surrogateescape")
    shared.ok("add_user", name, "pw")
    shared.ok("set_permissions", name, "^ü", "", "")
    assert f"{name}\t^ü\t\t" in shared.ok("list_permissions").splitlines()
    assert json.loads(shared.ok("list_users", "--formatter", "json").encode().decode())
    shared.ok("delete_user", name)
    assert name not in shared.ok("list_users")


def test_two_administrators_at_once_lose_nothing(shared: CtlGate) -> None:
    names = [f"many-{at}" for at in range(24)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: shared.ok("add_user", name, "pw"), names))
        listed = shared.ok("-s", "list_users").split()
        assert set(names) <= set(listed)
        list(pool.map(lambda name: shared.ok("delete_user", name), names))
    assert not set(names) & set(shared.ok("-s", "list_users").split())


def test_definitions_go_from_gate_to_gate(shared: CtlGate, gate: CtlGate, tmp_path: Path) -> None:
    shared.ok("add_user", "mover", "pw")
    shared.ok("set_permissions", "mover", "a", "b", "c")
    file = tmp_path / "moved.json"
    shared.ok("export_definitions", str(file))
    gate.ok("import_definitions", str(file))
    gate.ok("authenticate_user", "mover", "pw")
    assert "mover\ta\tb\tc" in gate.ok("list_permissions").splitlines()
    again = json.loads(gate.ok("export_definitions", "-"))
    assert again["users"] == json.loads(file.read_text())["users"]
    shared.ok("delete_user", "mover")


# --- connections ---


def test_a_change_is_in_force_when_the_command_returns(shared: CtlGate) -> None:
    shared.ok("add_user", "live", "pw")
    with pytest.raises(RefusedError):
        shared.gate.login("live", "pw")
    shared.ok("set_permissions", "live", "^live", "^live", "^live")
    client = shared.gate.login("live", "pw")
    client.open_channel(1)
    client.call(1, "queue.declare", queue=b"live-q", exclusive=True)
    rows = json.loads(
        shared.ok("list_connections", "pid", "user", "channels", "recv_oct", "--formatter", "json")
    )
    row = next(row for row in rows if row["user"] == "live")
    assert row["channels"] == 1
    assert row["recv_oct"] > 100
    shared.ok("close_connection", row["pid"], "see you")
    close = client.expect("connection.close")
    assert close["reply_code"] == 320
    assert "CONNECTION_FORCED - see you" in str(close["reply_text"])
    client.abort()
    shared.ok("delete_user", "live")


def test_an_old_pid_closes_nobody(shared: CtlGate) -> None:
    with shared.gate.login("guest", "guest"):
        pid = shared.ok("-s", "list_connections", "pid").split()[0]
        old = re.sub(r"\.\d+\.(\d+)\.0>", r".1.\1.0>", pid)
        shared.ok("close_connection", old, "no")
        assert pid in shared.ok("-s", "list_connections", "pid").split()


def test_of_all_workers(broker: RabbitNode, tmp_path: Path) -> None:
    found = started(tmp_path / "gate", upstream=broker.port, workers="2")
    try:
        clients = [found.gate.login("guest", "guest") for _ in range(8)]
        rows = found.ok("-s", "list_connections", "pid", "user").splitlines()
        assert len(set(rows)) == 8
        status = json.loads(found.ok("status", "--formatter", "json"))
        assert [row["worker"] for row in status["workers"]] == [1, 2]
        assert status["totals"]["connection_count"] == 8
        found.ok("add_user", "both", "pw")
        found.ok("set_permissions", "both", "", "", "")
        for _ in range(6):  # whichever worker it meets
            found.gate.login("both", "pw").close()
        assert "Closed 8 connections" in found.ok("close_all_connections", "bye")
        for client in clients:
            assert "CONNECTION_FORCED - bye" in str(client.expect("connection.close")["reply_text"])
            client.abort()
        said = found.ctl("set_topic_permissions", "both", "nosuch", "", "")
        assert said.stderr == "Error:\nExchange nosuch does not exist\n"
    finally:
        found.gate.stop()


# --- what is told of the gate ---


def test_status_environment_upstreams(shared: CtlGate) -> None:
    out = shared.ok("status")
    assert out.startswith("Status of node gatekeeper@")
    assert "\x1b[1mListeners\x1b[0m" in out
    assert f"port: {shared.gate.port}, protocol: amqp" in out
    environment_text = shared.ok("environment")
    assert "{drain_timeout," in environment_text
    assert "s3rvice" not in environment_text + shared.ok("environment", "--formatter", "json")
    (row,) = json.loads(shared.ok("list_upstreams", "--formatter", "json"))
    assert (row["name"], row["state"], row["product"]) == ("default", "running", "RabbitMQ")


# --- explain ---


def test_explain_and_who_can(shared: CtlGate) -> None:
    shared.ok("add_user", "why", "pw")
    words = ("explain", "why", "/", "queue.bind", "q-1", "--source", "x-1")
    said = shared.ctl(*words)
    assert said.code == 2
    assert "530 NOT_ALLOWED - access to vhost '/' refused for user 'why'" in said.stdout
    shared.ok("set_permissions", "why", "", "^q-", "^x-")
    said = shared.ctl("-q", *words)
    assert said == Said(
        0,
        "allowed: user 'why' logs in from 127.0.0.1 (known to rabbit_auth_backend_internal)\n"
        "allowed: vhost '/' (it exists)\n"
        "allowed: access to vhost '/' (rabbit_auth_backend_internal: user 'why' has permissions "
        "in vhost '/')\n"
        "allowed: write access to queue 'q-1' (rabbit_auth_backend_internal: write pattern '^q-' "
        "matches)\n"
        "allowed: read access to exchange 'x-1' (rabbit_auth_backend_internal: read pattern "
        "'^x-' matches)\n"
        "allowed: read access to topic '' in exchange 'x-1' (no topic permission applies)\n"
        "Verdict: allowed\n",
        "",
    )
    shared.ok("set_topic_permissions", "why", "amq.topic", "^a", "^a")
    shared.ok("set_permissions", "why", "", ".*", "^x-")
    publish = ("-q", "explain", "why", "/", "basic.publish", "amq.topic", "--routing-key")
    assert shared.ctl(*publish, "a.b").code == 0
    said = shared.ctl(*publish, "b.a")
    assert said.code == 2
    assert (
        "The client is told: 403 ACCESS_REFUSED - write access to topic 'b.a' in exchange "
        "'amq.topic' in vhost '/' refused for user 'why'"
    ) in said.stdout
    assert shared.ctl("explain", "guest", "/", "read", "q", "--from", "192.0.2.1").code == 2
    assert shared.ctl("explain", "guest", "/", "read", "q", "--from", "::1").code == 0
    assert shared.ctl("explain", "guest", "nosuch", "read", "q").code == 2
    assert shared.ctl("explain", "nosuch", "/", "read", "q").code == 2
    assert shared.ctl("explain", "guest", "/", "exchange.delete", "amq.topic").code == 2
    assert "why\twrite pattern '.*' matches" in shared.ok("who_can", "/", "write", "anything")
    assert "why" not in shared.ok("who_can", "/", "configure", "anything")
    shared.ok("delete_user", "why")


# --- formats ---


def test_formats(shared: CtlGate) -> None:
    for style, first in (
        ("json_stream", '{"name":"/"}'),
        ("csv", '"name"'),
        ("erlang", '[[{name,<<"/">>}'),
        ("inspect", "["),
    ):
        out = shared.ok("-q", "list_vhosts", "--formatter", style).splitlines()
        assert out[0].startswith(first), style
    assert "\x1b(0x\x1b(B" in shared.ok("list_vhosts", "--formatter=pretty_table")
    assert shared.ok("-s", "list_vhosts").splitlines() == ["/"]


# --- encrypted values, with Debian's rabbitmqctl on the other side ---


@pytest.mark.skipif(shutil.which("rabbitmqctl") is None, reason="needs Debian's rabbitmqctl")
@pytest.mark.parametrize("term", ['<<"s3cr#t">>', '"a string"', "atom", "<<>>"])
def test_encrypted_values_are_rabbitmqs(term: str, tmp_path: Path) -> None:
    ours = ctl("-q", "encode", term, "pass").stdout.strip()
    theirs = rabbitmqctl(tmp_path, "decode", ours, "pass")
    assert theirs == term
    made = rabbitmqctl(tmp_path, "encode", term, "pass")
    assert ctl("-q", "decode", made, "pass") == Said(0, f"{term}\n", "")
    assert ctl("-q", "decode", made, "wrong").code == 69


def rabbitmqctl(home: Path, *words: str) -> str:
    root = next(Path("/usr/lib/rabbitmq/lib").glob("*/sbin/rabbitmqctl"))
    done = subprocess.run(
        [root, "-q", *words],
        env=environment(HOME=str(home), RABBITMQ_CONF_ENV_FILE="/dev/null"),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_values_for_the_configuration_file() -> None:
    made = ctl("-q", "encrypt_conf_value", '<<"s3cr#t">>', "pass").stdout.strip()
    assert made.startswith("encrypted:")
    for value in (made, f'"{made}"'):
        assert ctl("-q", "decrypt_conf_value", value, "pass").stdout == '<<"s3cr#t">>\n'


# --- shells ---


def completed(*words: str) -> list[str]:
    return ctl("autocomplete", "--", *words).stdout.splitlines()


def test_completion_knows_commands_options_and_columns() -> None:
    assert completed("set_per") == ["set_permissions", "set_permissions_globally"]
    assert completed("-p", "/", "list_us")[0] == "list_user_limits"
    assert "--pre-hashed-password" in completed("add_user", "--p")
    assert completed("list_vhosts", "desc") == ["description"]
    assert completed("help", "who") == ["who_can"]
    assert completed("delete_user", "x") == []


def test_completion_in_bash(tmp_path: Path) -> None:
    command = tmp_path / "gatekeeperctl"
    words = " ".join(SCRIPT)
    command.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    command.chmod(0o755)
    script = (
        "source <(gatekeeperctl completion bash)\nCOMP_WORDS=(gatekeeperctl who)\nCOMP_CWORD=1\n"
        '_gatekeeperctl\necho "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        env=environment(PATH=path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "who_can\n"


def test_the_other_shells_have_a_script() -> None:
    for shell in ("zsh", "fish"):
        assert "gatekeeperctl autocomplete --" in ctl("completion", shell).stdout


def test_every_command_has_help() -> None:
    listed = ctl("help", "--list-commands").stdout
    for name, command in COMMANDS.items():
        assert re.search(rf"(?m)^   {name} +\S", listed), name
        assert command.usage.startswith(name)
    assert sys.executable in SCRIPT
