"""gatekeeperctl against what rabbitmqctl 3.10.8 said, command by command.

The captured session is said again, in its order, to a real gate before a real RabbitMQ. What
must differ is listed capture by capture with the reason; nothing else may.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.cli.conftest import started
from tests.cli.replay import Capture, Said, captures
from tests.support.rabbit import RabbitNode

CAPTURES = captures()
FILES = {
    "bad.json": "bad",
    "empty.json": "",
    "list.json": "[1]",
    "nouservhost.json": '{"users":[{"name":"x1","password_hash":"","tags":""}]}',
    "badperm.json": '{"permissions":[{"user":"ghost","vhost":"/","configure":"","write":"",'
    '"read":""}]}',
    "unknown.json": '{"bogus":[]}',
}
"""The files that the session imports, by the names of their captures."""

_LEAKED = re.compile(r"\n\d\d:\d\d:\d\d\.\d+ \[warning\] .*\n")
"""A line of the broker's log, which 3.10 lets through to standard error of some commands."""


@dataclass(frozen=True, slots=True)
class Replayed:
    said: Mapping[str, Said]
    folder: Path
    node: str
    log: str


@pytest.fixture(scope="module")
def replayed(broker: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    folder = tmp_path_factory.mktemp("gate")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    found = started(folder, upstream=broker.port)
    said = {}
    pid = node = ""
    try:
        node = json.loads(found.ok("status", "--formatter", "json"))["node"]
        for capture in CAPTURES:
            if capture.number == "172":  # from here on two connections are open, one with a channel
                clients = [found.gate.login("guest", "guest") for _ in range(2)]
                clients[0].open_channel(1)
            if capture.number == "180":
                pid = found.ok("-s", "list_connections", "pid").splitlines()[0]
            words = [
                re.sub("<surface@.*>", pid, word).replace("/var/lib/rabbitmq", str(folder))
                for word in capture.words
            ]
            said[capture.number] = found.ctl(*words, stdin=capture.stdin)
            if capture.number == "075":  # as that session's exports show, it was deleted again
                found.ok("delete_vhost", "")
            if capture.number == "180":
                clients[0].expect("connection.close")
                clients[0].close()
            if capture.number == "184":
                clients[1].expect("connection.close")
                clients[1].close()
    finally:
        found.gate.stop()
    return Replayed(said, folder, node, found.gate.log_text())


# --- what differs ---

Change = Callable[[Said], Said]


def _usage_of(text: str) -> Change:
    """4.3's usage line."""
    return lambda said: replace(
        said, stderr=re.sub(r"(?m)^(gatekeeperctl .*--quiet\] ).*$", rf"\1{text}", said.stderr)
    )


def _hidden(*words: str) -> Change:
    """Ours: what may be a password is not repeated."""

    def change(said: Said) -> Said:
        head, tail = said.stderr.split("Arguments given:\n\t")
        line, _, rest = tail.partition("\n")
        for word in words:
            line = f"{line} ".replace(f" {word} ", " *** ", 1).rstrip()
        return replace(said, stderr=f"{head}Arguments given:\n\t{line}\n{rest}")

    return change


def _is(code: int, stdout: str | None = None, stderr: str = "") -> Change:
    """Something else altogether; stdout None: the same."""
    return lambda said: Said(code, said.stdout if stdout is None else stdout, stderr)


def _stdout(old: str, new: str) -> Change:
    return lambda said: replace(said, stdout=said.stdout.replace(old, new))


def _stderr(old: str, new: str) -> Change:
    return lambda said: replace(said, stderr=said.stderr.replace(old, new))


def _without(pattern: str) -> Change:
    return lambda said: replace(said, stdout=re.sub(pattern, "", said.stdout))


_ADD_USER = "add_user <username> [<password>] [<password_hash> --pre-hashed-password]"
_IMPORT = (
    "import_definitions <file_path> [--format <json | erlang>] [--skip-if-unchanged] "
    "[--timeout <timeout>]"
)
_CHARLIST = _stderr("'missing )'", '~c"missing )"')
_ENCRYPTING = _stdout("Encrypting value ...", "Encrypting value to be used in advanced.config...")
_WATCH = _stdout("take some time.\n", "take some time. Watch target node logs for completion.\n")
_JSON = _is(
    69,
    None,
    'Error:\nCould not parse JSON document: {error,{failed_to_decode_json,<<"{bad">>}}\n',
)
_NO_EXCHANGE = _without(r'(?m)^(.*\t)?nosuchx\t.*\n|^.*"nosuchx".*\n')

DIFFERENCES: Mapping[str, tuple[str, tuple[Change, ...]]] = {
    "018": ("4.3's usage", (_usage_of(_ADD_USER),)),
    "019": ("4.3's usage; passwords", (_usage_of(_ADD_USER), _hidden("b", "c"))),
    "021": ("4.3's usage; passwords", (_usage_of(_ADD_USER), _hidden("x"))),
    "064": (
        "4.3 judges the queue type before it asks the node",
        (
            _is(
                65,
                "",
                "Error (argument validation): Bad argument: Default queue type must be one of: "
                "quorum, stream, classic. Provided: bogus\nArguments given:\n\tadd_vhost vh4 "
                "--default-queue-type bogus\n\n\x1b[1mUsage\x1b[0m\n\ngatekeeperctl [--node "
                "<node>] [--longnames] [--quiet] add_vhost <vhost> [--description <description> "
                '--tags "<tag1>,<tag2>,<...>" --default-queue-type <quorum|classic|stream>]\n',
            ),
        ),
    ),
    "084": ("4.3: a binary and a newer Elixir's charlist", (_stderr("'('", '"("'), _CHARLIST)),
    "097": ("4.x: a missing user is no error", (_is(0),)),
    "098": ("4.x: a missing vhost is no error", (_is(0),)),
    "111": (
        "4.3.2: the exchange must exist",
        (_is(69, None, "Error:\nExchange nosuchx does not exist\n"),),
    ),
    "114": ("4.3: a newer Elixir's charlist", (_CHARLIST,)),
    "115": ("follows from 111", (_NO_EXCHANGE,)),
    "116": ("follows from 111", (_without(r"(?m)^.*nosuchx.*\n"), _stdout(",{", "{"))),
    "117": ("follows from 111", (_NO_EXCHANGE,)),
    "118": ("follows from 111", (_without(r"(?m)^.*nosuchx.*\n"), _stdout(",{", "{"))),
    "122": ("4.x: a missing user is no error", (_is(0),)),
    "123": ("4.x: a missing vhost is no error", (_is(0),)),
    "131": ("4.3's words", (_JSON,)),
    "151": ("4.3's words", (_JSON,)),
    "173": (
        "this test's client wants no heartbeats",
        (_stdout("\t60\t131072", "\t0\t131072"),),
    ),
    "178": (
        "a gate does not count unacknowledged messages",
        (_stdout("guest\t0\t0\n", "guest\t0\t\n"),),
    ),
    "193": ("4.3's words", (_WATCH,)),
    "194": ("4.3's usage", (_usage_of(_IMPORT),)),
    "195": (
        "the parser's own words",
        (_stderr('{:unexpected_token, "bad"}', '"Expecting value: line 1 column 1 (char 0)"'),),
    ),
    "197": ("4.3's words", (_WATCH,)),
    "198": (
        "ours names the place",
        (
            _stderr(
                '{:no_such_user, "ghost"}',
                "FOLDER/badperm.json: permissions[0].user: user 'ghost' does not exist; add it to "
                "users",
            ),
        ),
    ),
    "200": ("4.3's words", (_WATCH,)),
    "201": ("4.3's words", (_WATCH,)),
    "202": ("4.3's usage", (_usage_of(_IMPORT),)),
    "210": ("4.3's banner", (_ENCRYPTING,)),
    "211": ("4.3's banner", (_ENCRYPTING,)),
    "213": ("passwords", (_hidden('<<"guest">>', "mypassphrase"),)),
    "214": (
        "what config/encrypted.py can read",
        (
            _is(
                0,
                "Listing supported ciphers ...\n[aes_128_cbc,aes_192_cbc,aes_256_cbc,aes_cbc128,"
                "aes_cbc192,aes_cbc256]\n",
            ),
        ),
    ),
    "215": (
        "what config/encrypted.py can read",
        (_is(0, "Listing supported hash algorithms ...\n[sha,sha224,sha256,sha384,sha512]\n"),),
    ),
    "216": (
        "4.3's banner",
        (_stdout("Decrypting value...", "Decrypting an advanced.config (Erlang term) value..."),),
    ),
    "220": (
        "a gate has no epmd",
        (
            _stdout(
                "if the OS process is running and registered with epmd. Timeout: 60000 ms.",
                "if the gate answers at its control socket.",
            ),
        ),
    ),
    "226": ("its own version", (_stdout("3.10.8", "0.1.0"),)),
    "232": ("4.3's usage; passwords", (_usage_of(_ADD_USER), _hidden("y"))),
    "237": (
        "a gate is no cluster: no internal_cluster_id",
        (_is(0, "Listing global runtime parameters ...\n\n"),),
    ),
    "239": ("the same", (_without(r",.*internal_cluster_id.*\n"),)),
    "243": ("4.x: a missing user is no error", (_is(0),)),
    "244": ("4.x: a missing user is no error", (_is(0, '{"node":"NODE","result":"ok"}\n'),)),
}  # fmt: skip

OTHERS = {
    "067": "4.3 has the column metadata",
    "070": "4.3 has the column metadata",
    "175": "client properties: this test's client is not pika",
    "177": "client properties: this test's client is not pika",
    "190": "an export: 4.3's document",
    "212": "blowfish is not among the ciphers that config/encrypted.py reads",
    "218": "3.11.8 on: hash_password",
    "228": "the list of commands is the gate's",
    "229": "the list of commands is the gate's",
    "230": "the list of commands is the gate's",
    "233": "4.3's help",
    "234": "4.3's help",
    "235": "there is one node: -n is accepted and does nothing",
    "236": "4.3: an unknown formatter is the command's own",
}
"""Captures that say nothing about 4.3; what holds instead is tested below."""


def expected(capture: Capture, replayed: Replayed) -> Said:
    said = capture.said
    texts = [
        _LEAKED.sub("", text).replace("rabbitmqctl", "gatekeeperctl")
        for text in (said.stdout, said.stderr)
    ]
    said = Said(said.code, *texts)
    for change in DIFFERENCES.get(capture.number, ("", ()))[1]:
        said = change(said)
    return said


def settled(said: Said, replayed: Replayed, *, unordered: bool) -> Said:
    """Without what differs from run to run: each of these has one place in the output."""
    found: list[tuple[str, str]] = [
        (re.escape(str(replayed.folder)), "FOLDER"),
        ("/var/lib/rabbitmq", "FOLDER"),
        ("surface@localhost", "NODE"),
        (re.escape(replayed.node), "NODE"),
        (r"<NODE\.\d+\.\d+\.\d+>", "<PID>"),
        (r"127\.0\.0\.1(:|\t)\d{4,5}", r"127.0.0.1\1PORT"),
        (r'"peer_port":\d+', '"peer_port":PORT'),
        (r"(?m)(?<=\t)17\d{11}$", "TIME"),
        (r'(encrypted,<<")[A-Za-z0-9+/=]{64}', r"\1ENCRYPTED"),
    ]
    texts = [said.stdout, said.stderr]
    for pattern, name in found:
        texts = [re.sub(pattern, name, text) for text in texts]
    if unordered:
        # RabbitMQ lists in the order of its tables; the gate by name.
        texts[0] = "\n".join(sorted(texts[0].replace("\n,{", "\n{").splitlines()))
    return Said(said.code, *texts)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("capture", CAPTURES, ids=lambda capture: capture.name)
def test_capture(capture: Capture, replayed: Replayed) -> None:
    if capture.number in OTHERS:
        return  # listed with the reason, and tested below
    unordered = any(word.startswith("list_") for word in capture.words)
    want = settled(expected(capture, replayed), replayed, unordered=unordered)
    got = settled(replayed.said[capture.number], replayed, unordered=unordered)
    assert got == want


def test_every_listed_difference_is_one(replayed: Replayed) -> None:
    """A difference that is none any more has to go from the list."""
    for capture in CAPTURES:
        if capture.number in DIFFERENCES:
            changed = expected(capture, replayed)
            plain = Said(
                capture.said.code,
                *(
                    _LEAKED.sub("", text).replace("rabbitmqctl", "gatekeeperctl")
                    for text in (capture.said.stdout, capture.said.stderr)
                ),
            )
            assert changed != plain, capture.name


def test_the_others(replayed: Replayed) -> None:
    said = replayed.said
    assert said["067"].code == 0
    assert "metadata" in said["067"].stdout.splitlines()[1]
    assert json.loads(said["070"].stdout)[1]["metadata"]["default_queue_type"] == "classic"
    properties = json.loads(said["175"].stdout)[0]["client_properties"]
    assert ["product", "longstr", "test"] in properties
    assert '{"product","test"}' in said["177"].stdout
    assert '{"publisher_confirms",true}' in said["177"].stdout
    assert said["212"].code == 65
    assert len(said["218"].stdout.splitlines()[1]) == 48
    assert "abc" not in said["218"].stdout.splitlines()[0]
    assert said["228"].stdout == said["229"].stderr
    assert (said["228"].code, said["229"].code, said["230"].code) == (0, 64, 64)
    assert said["230"].stderr.endswith(said["229"].stderr)
    assert said["233"] == said["234"]
    assert said["235"].stdout == said["236"].stdout
    assert (said["235"].code, said["236"].code) == (0, 0)


def test_export_is_the_same_state(replayed: Replayed) -> None:
    theirs = json.loads(next(c for c in CAPTURES if c.number == "190").said.stdout)
    ours = json.loads(replayed.said["190"].stdout)
    assert not replayed.said["190"].stdout.endswith("\n")

    def users(document: dict[str, list[dict[str, object]]]) -> dict[object, object]:
        return {user["name"]: user["tags"] for user in document["users"]}

    def rows(document: dict[str, list[dict[str, object]]], section: str) -> set[str]:
        return {json.dumps(row, sort_keys=True) for row in document[section]}

    assert users(ours) == users(theirs)
    assert rows(ours, "permissions") == rows(theirs, "permissions")
    assert {v["name"] for v in ours["vhosts"]} == {v["name"] for v in theirs["vhosts"]}
    exported = replayed.folder / "defs.json"
    assert exported.stat().st_mode & 0o777 == 0o600
    assert json.loads(exported.read_text()) == ours


def test_no_password_is_in_the_log(replayed: Replayed) -> None:
    secrets = ("s3cr#t", "bobpw", "carolpw", "davepw", "erinpw", "newpw")
    assert not [secret for secret in secrets if secret in replayed.log]
    for action in ("add_user", "set_permissions", "delete_vhost", "authenticate_user"):
        assert f"action={action}" in replayed.log
    assert "acting_user=rmq-cli" in replayed.log
