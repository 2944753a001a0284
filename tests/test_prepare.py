"""From a configuration file to a store with its rules, definitions and first user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import trustme

from gatekeeper.config.load import load_settings
from gatekeeper.errors import OperatorError
from gatekeeper.logs import Logger
from gatekeeper.policy.epoch import Epoch
from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.prepare import open_store, prepared_store
from gatekeeper.store.refusals import CredentialRefusedError
from gatekeeper.store.store import Store
from tests.support.https import Server, answer

BASE = """upstreams.default.servers.1 = broker:5672
upstreams.default.username = gk
upstreams.default.password = hunter2
"""
RULE = "credential_validator.validation_backend = rabbit_credential_validator_"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[Server]:
    server = Server(authority)
    yield server
    server.close()


class Log:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, event: str) -> None:
        self.lines.append(event)

    warning = info


def start(folder: Path, text: str, log: Log | None = None) -> Store:
    path = folder / "gate.conf"
    path.write_text(f"{BASE}store.url = sqlite://{folder}/s.db\n{text}\n")
    return prepared_store(load_settings(path, {}), Epoch(), cast("Logger", log or Log()))


def users(store: Store) -> set[bytes]:
    return {user.name for user in store.list_users()}


def definitions(path: Path, *names: str, **more: object) -> Path:
    document = {"users": [{"name": name, "tags": name} for name in names], **more}
    path.write_text(json.dumps(document))
    return path


def test_nothing_configured_is_seeded(tmp_path: Path) -> None:
    log = Log()
    store = start(tmp_path, "", log)
    assert users(store) == {b"guest"}
    assert log.lines == ["Will seed default virtual host and user..."]
    store.close()


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (RULE + "min_password_length", "minimum required password length is 5"),
        (
            RULE + "password_regexp\ncredential_validator.regexp = [0-9]",
            "provided password does not match the validator regular expression",
        ),
    ],
)
def test_credential_rules(tmp_path: Path, rule: str, complaint: str) -> None:
    store = start(tmp_path, rule + "\ndefault_pass = long enough 1")
    with pytest.raises(CredentialRefusedError, match=complaint):
        store.add_user(b"u", b"abcd")
    store.add_user(b"u", b"abcd5")
    with pytest.raises(CredentialRefusedError, match=complaint):
        store.change_password(b"u", b"")
    store.close()
    # A worker's store has the same rules.
    worker = open_store(load_settings(tmp_path / "gate.conf", {}), Epoch())
    with pytest.raises(CredentialRefusedError, match=complaint):
        worker.put_user(b"v", b"abcd")
    worker.close()


def test_the_first_password_is_judged_too(tmp_path: Path) -> None:
    text = RULE + "min_password_length\ncredential_validator.min_length = 6"
    with pytest.raises(OperatorError) as caught:
        start(tmp_path, text)
    assert str(caught.value).startswith(
        "default_pass: refused: minimum required password length is 6; set another one"
    )
    store = open_store(load_settings(tmp_path / "gate.conf", {}), Epoch())
    assert store.is_blank()
    store.close()


def test_argon2id(tmp_path: Path) -> None:
    store = start(tmp_path, "password_hashing_module = argon2id")
    guest = store.user(b"guest")
    assert guest is not None
    assert guest.password_hash.startswith(b"$argon2id$")
    store.close()


def test_defaults_of_new_vhosts_hold_for_the_seed_and_for_imports(tmp_path: Path) -> None:
    rules = (
        "default_users.mon.password = pw\ndefault_users.mon.configure = ^$\n"
        "default_limits.vhosts.1.max_connections = 9\ndefault_limits.vhosts.1.pattern = ^v"
    )
    store = start(tmp_path, rules)
    assert users(store) == {b"guest", b"mon"}
    assert store.permissions(b"mon", b"/") == PermissionSet(b"^$", b".*", b".*")
    store.close()
    path = definitions(tmp_path / "d.json", vhosts=[{"name": "v"}])
    store = start(tmp_path, f"{rules}\nload_definitions = {path}")
    assert store.permissions(b"mon", b"v") == PermissionSet(b"^$", b".*", b".*")
    assert store.vhost_limits(b"v").max_connections == 9
    store.close()


def test_sources_in_rabbitmqs_order_and_no_first_user(tmp_path: Path) -> None:
    """All three say something else of one parameter: the last one stays."""

    def says(value: int) -> dict[str, object]:
        return {"global_parameters": [{"name": "last", "value": value}]}

    folder = tmp_path / "more.d"
    folder.mkdir()
    definitions(folder / "10.json", "b", **says(10))
    definitions(folder / "20.json", "c", **says(20))
    first = definitions(tmp_path / "first.json", "a", **says(1))
    text = f"load_definitions = {first}\n"
    more = f"definitions.import_backend = local_filesystem\ndefinitions.local.path = {folder}\n"
    store = start(tmp_path, text + more)
    assert users(store) == {b"a", b"b", b"c"}
    assert store.global_parameter("last") == 20
    store.close()
    last = definitions(tmp_path / "last.json", "d", **says(3))
    store = start(tmp_path, f"management.load_definitions = {last}\n" + more + text)
    assert users(store) == {b"a", b"b", b"c", b"d"}
    assert store.global_parameter("last") == 3
    store.close()


def test_https(tmp_path: Path, server: Server, authority: trustme.CA) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    document = definitions(tmp_path / "d.json", "a").read_bytes()
    server.answers["/d.json"] = answer(200, document)
    text = (
        f"definitions.import_backend = https\ndefinitions.https.url = {server.url}/d.json\n"
        f"definitions.tls.cacertfile = {tmp_path}/ca.pem\ndefinitions.skip_if_unchanged = true\n"
    )
    store = start(tmp_path, text)
    assert users(store) == {b"a"}
    store.delete_user(b"a")
    store.close()
    log = Log()
    store = start(tmp_path, text, log)
    assert users(store) == set()
    assert log.lines == ["Hash value of imported definitions matches current contents"]
    store.close()
    unknown = text.replace(f"definitions.tls.cacertfile = {tmp_path}/ca.pem\n", "")
    with pytest.raises(OperatorError, match="certificate verify failed"):
        start(tmp_path, unknown)
    server.answers["/d.json"] = answer(404)
    with pytest.raises(OperatorError, match="URL request failed with response code 404"):
        start(tmp_path, text)


def test_a_broken_file_changes_nothing_and_names_the_place(tmp_path: Path) -> None:
    good = definitions(tmp_path / "good.json", "a")
    bad = tmp_path / "bad.json"
    bad.write_text('{"users": [{"name": "b", "tags": 5}]}')
    text = (
        f"load_definitions = {good}\ndefinitions.import_backend = local\n"
        f"definitions.local.path = {bad}"
    )
    with pytest.raises(OperatorError, match=rf"{bad}: users\[0\]\.tags: must be a list"):
        start(tmp_path, text)
    store = open_store(load_settings(tmp_path / "gate.conf", {}), Epoch())
    assert users(store) == set()
    store.close()
