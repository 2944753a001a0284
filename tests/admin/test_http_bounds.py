"""Nobody holds the management API: slow, large and many clients are bounded before any login."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.admin.conftest import STATE
from tests.admin.serving import Api, basic
from tests.support.process import wait_until

PATIENCE = 20.0
LOGIN = f"Authorization: {basic('guest', 'guest')}\r\n".encode()
PUT = b"PUT /api/users/new HTTP/1.1\r\nHost: x\r\n" + LOGIN


def _open(api: Api, data: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", api.port), timeout=PATIENCE)
    client.sendall(data)
    return client


def _connected(api: Api) -> int:
    return len(api.server._protocols[0].clients)


def _until(condition: Callable[[], bool]) -> None:
    wait_until(condition, timeout=PATIENCE, what="the connections are as expected")


def _all(client: socket.socket) -> bytes:
    """What the server says until it closes; TimeoutError where it does not."""
    found = b""
    with client, contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            found += piece
    return found


@pytest.mark.parametrize("head", [b"", b"GET /api/whoami HTTP/1.1\r\nHost: x\r\nX-Slow"])
def test_a_head_that_does_not_come_ends_the_connection(tmp_path: Path, head: bytes) -> None:
    with Api(tmp_path, STATE, "management.tcp.request_timeout = 100\n") as api:
        assert _all(_open(api, head)) == b""


def test_a_connection_that_idles_after_a_request_ends(tmp_path: Path) -> None:
    with Api(tmp_path, STATE, "management.tcp.request_timeout = 100\n") as api:
        request = b"GET /api/whoami HTTP/1.1\r\nHost: x\r\n" + LOGIN + b"\r\n"
        assert _all(_open(api, request)).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("key", ["idle_timeout", "inactivity_timeout"])
def test_a_body_that_does_not_come_ends_the_connection(tmp_path: Path, key: str) -> None:
    with Api(tmp_path, STATE, f"management.tcp.{key} = 100\n") as api:
        answer = _all(_open(api, PUT + b"Content-Length: 100\r\n\r\n{"))
        assert answer.startswith(b"HTTP/1.1 408")
        assert api.store.user(b"new") is None


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 101\r\n\r\n" + b" " * 101,
        b"Transfer-Encoding: chunked\r\n\r\n65\r\n" + b" " * 101 + b"\r\n0\r\n\r\n",
    ],
)
def test_a_body_that_is_too_large_is_refused(tmp_path: Path, body: bytes) -> None:
    with Api(tmp_path, STATE, "management.http.max_body_size = 100\n") as api:
        answer = _all(_open(api, PUT + body))
        assert b'{"error":"bad_request","reason":"Exceeded HTTP request body size limit"}' in answer
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1


def test_an_unknown_client_sends_no_body(api: Api) -> None:
    """The refusal comes before the body has."""
    request = b"PUT /api/users/new HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    with _open(api, request) as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: x\r\n" % n for n in range(200)) + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"AMQP\x00\x00\x09\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_head_that_is_no_request_ends_the_connection(tmp_path: Path, request_: bytes) -> None:
    with Api(tmp_path, STATE, "management.tcp.request_timeout = 100\n") as api:
        answer = _all(_open(api, request_))
        assert answer == b"" or answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400")), answer
        assert b"aiohttp" not in answer
        assert answer.endswith(b"\r\n\r\n") or not answer, "no body"
        assert api.ask("GET", "/api/whoami").status == 200


@pytest.mark.parametrize("second", ["guest:guest", "plain:plain"])
def test_two_logins_are_none(api: Api, second: str) -> None:
    """As in RabbitMQ: what stands before the gate may have looked at the other one."""
    other = f"authorization: {basic(*second.split(':'))}\r\n".encode()
    request = b"GET /api/whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    assert _all(_open(api, request + LOGIN + other + b"\r\n")).startswith(b"HTTP/1.1 400 ")


def test_connections_are_bounded(tmp_path: Path) -> None:
    with Api(tmp_path, STATE, "management.tcp.max_connections = 2\n") as api:
        first, second = _open(api, b""), _open(api, b"")
        _until(lambda: _connected(api) == 2)
        assert _all(_open(api, b"GET / HTTP/1.1\r\n\r\n")) == b""
        first.close()
        _until(lambda: _connected(api) == 1)
        assert api.ask("GET", "/api/whoami").status == 200
        second.close()


def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    """A listing of a few megabytes, of which nothing is read."""
    conf = "management.tcp.idle_timeout = 200\nmanagement.tcp.compress = false\n"
    with Api(tmp_path, STATE, conf) as api:
        with api.store.change() as draft:
            for number in range(30_000):
                draft.put_user(b"%d-" % number + b"x" * 400, password_hash=b"x" * 36)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", api.port))
        client.sendall(b"GET /api/users HTTP/1.1\r\nHost: x\r\n" + LOGIN + b"\r\n")
        _until(lambda: _connected(api) == 1)
        _until(lambda: _connected(api) == 0)
        assert b'"name":"9999-' not in _all(client)


def test_a_client_that_pipelines_and_does_not_read_is_cut_off(tmp_path: Path) -> None:
    """Small refusals, more than the kernel holds, for somebody without a login."""
    conf = "management.tcp.idle_timeout = 100\nmanagement.tcp.inactivity_timeout = 100\n"
    with Api(tmp_path, STATE, conf + "management.tcp.request_timeout = 100\n") as api:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", api.port))
        with contextlib.suppress(OSError):
            client.sendall(b"GET /api/whoami HTTP/1.1\r\nHost: x\r\n\r\n" * 100_000)
        _until(lambda: _connected(api) == 0)
        client.close()
