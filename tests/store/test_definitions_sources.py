"""Where definitions come from; RabbitMQ's hash of them; HTTPS from a real server."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from gatekeeper.errors import DefinitionsError
from gatekeeper.store import definitions_sources
from gatekeeper.store.definitions import ImportReport, import_sources
from gatekeeper.store.definitions_sources import Source, fetch, read_local
from gatekeeper.store.store import Store
from tests.support.https import Server, answer


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.open("sqlite::memory:")
    yield store
    store.close()


def document(*users: str) -> bytes:
    return json.dumps({"users": [{"name": name, "tags": ""} for name in users]}).encode()


def source(*contents: bytes) -> Source:
    return Source(tuple((f"f{at}", content) for at, content in enumerate(contents)))


def names(store: Store) -> list[bytes]:
    return [user.name for user in store.list_users()]


# -- hashes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hashed", "term"),
    [
        # term_to_binary([<<"{}">>]), term_to_binary([<<"a">>,<<"">>]), of undefined, of <<"{}">>
        (source(b"{}"), b"\x83l\0\0\0\1m\0\0\0\2{}j"),
        (source(b"a", b""), b"\x83l\0\0\0\2m\0\0\0\1am\0\0\0\0j"),
        (source(), b"\x83w\x09undefined"),
        (Source((("u", b"{}"),), alone=True), b"\x83m\0\0\0\2{}"),
    ],
)
def test_the_hash_is_of_erlangs_external_format(hashed: Source, term: bytes) -> None:
    for name, python in (("sha", "sha1"), ("sha224", "sha224"), ("sha512", "sha512")):
        assert hashed.digest(name) == hashlib.new(python, term).hexdigest()


def test_one_hash_for_all_sources_as_in_rabbitmq(store: Store) -> None:
    first, second = source(document("a")), source(document("b"))
    skip = {"skip_if_unchanged": True}
    assert import_sources(store, [first], **skip).users == 1  # type: ignore[arg-type]
    store.delete_user(b"a")
    assert import_sources(store, [first], **skip) == ImportReport(skipped=True)  # type: ignore[arg-type]
    # The second is new, and then the first one is not the last one any more.
    assert import_sources(store, [first, second], **skip).users == 1  # type: ignore[arg-type]
    assert names(store) == [b"b"]
    assert import_sources(store, [first, second], **skip).users == 2  # type: ignore[arg-type]
    assert store.global_parameter("imported_definition_hash_value") == second.digest("sha256")
    # Another algorithm, another hash.
    report = import_sources(store, [second], skip_if_unchanged=True, hashing_algorithm="sha512")
    assert not report.skipped


def test_sources_are_one_transaction(store: Store) -> None:
    broken = Source((("broken.json", b'{"users": [{"name": "b"}]}'),))
    with pytest.raises(DefinitionsError, match=r"broken.json: users\[0\]\.tags: missing"):
        import_sources(store, [source(document("a")), broken], skip_if_unchanged=True)
    assert names(store) == []
    assert store.global_parameter("imported_definition_hash_value") is None


def test_the_key_that_named_the_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DefinitionsError, match=r"definitions\.local\.path: cannot read .*gone"):
        read_local(tmp_path / "gone", "definitions.local.path")


# -- HTTPS -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[Server]:
    server = Server(authority)
    yield server
    server.close()


@pytest.fixture
def context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


def refused(url: str, context: ssl.SSLContext) -> str:
    with pytest.raises(DefinitionsError) as caught:
        fetch(url, context)
    return str(caught.value)


def test_https(server: Server, context: ssl.SSLContext, store: Store) -> None:
    server.answers["/d.json"] = answer(200, document("a"))
    got = fetch(server.url + "/d.json?version=1", context)
    assert got == Source(((server.url + "/d.json", document("a")),), alone=True)
    assert server.seen == [("/d.json?version=1", None)]
    assert import_sources(store, [got]).users == 1


def test_redirects_stay_on_https_and_take_no_password_along(
    server: Server, context: ssl.SSLContext
) -> None:
    server.answers["/moved"] = answer(302, Location="/d.json")
    server.answers["/d.json"] = answer(201, b"{}")
    server.answers["/down"] = answer(302, Location=server.url.replace("https", "http") + "/d.json")
    server.answers["/file"] = answer(302, Location="file:///etc/passwd")
    server.answers["/round"] = answer(302, Location="/round")
    with_password = server.url.replace("https://", "https://user:s%40cret@")
    got = fetch(with_password + "/moved", context)
    assert got.documents == ((server.url + "/moved", b"{}"),)
    basic = "Basic " + base64.b64encode(b"user:s@cret").decode()
    assert server.seen == [("/moved", basic), ("/d.json", None)]
    assert "redirected to something that is not https" in refused(server.url + "/down", context)
    assert "response code 302" in refused(server.url + "/file", context)
    assert "response code 302" in refused(server.url + "/round", context)


def test_other_answers(
    server: Server, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    for status in (304, 401, 404, 500):
        server.answers["/x"] = answer(status, b"no")
        expected = f"definitions.https.url: {server.url}/x: URL request failed with response code"
        assert refused(server.url + "/x", context) == f"{expected} {status}"
    monkeypatch.setattr(definitions_sources, "MAX_DOWNLOAD", 100)
    server.answers["/x"] = answer(200, b" " * 101)
    assert "longer than 100 bytes" in refused(server.url + "/x", context)
    monkeypatch.setattr(definitions_sources, "DOWNLOAD_TIMEOUT", -1.0)
    server.answers["/x"] = answer(200, b" " * 10)
    assert "took longer than" in refused(server.url + "/x", context)


def test_a_server_that_cannot_be_trusted_or_reached(
    server: Server, context: ssl.SSLContext
) -> None:
    server.answers["/"] = answer(200, b"{}")
    strangers = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trustme.CA().configure_trust(strangers)
    assert "certificate verify failed" in refused(server.url, strangers)
    by_address = server.url.replace("localhost", "127.0.0.1")
    assert "certificate verify failed" in refused(by_address, context)
    server.close()
    assert "refused" in refused(server.url, context)


def test_errors_show_neither_password_nor_query(context: ssl.SSLContext) -> None:
    for url in (
        "https://u:hunter2@localhost:1/d?token=hunter2",
        "http://u:hunter2@localhost/",
        "https://u:hunter2@/",
        "https://u:hunter2@[::1/",
        "https://u:hunter2@localhost:port/",
        "hunter2",
    ):
        message = refused(url, context)
        assert message.startswith("definitions.https.url: ")
        assert "hunter2" not in message.removesuffix("hunter2 is no https:// URL")


def test_proxies_of_the_environment_are_not_asked(
    server: Server, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    server.answers["/"] = answer(200, b"{}")
    assert fetch(server.url, context).documents[0][1] == b"{}"
