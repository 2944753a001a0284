"""The HTTP backend against a real server: what is asked, what answers mean, what goes wrong."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
import trustme

from gatekeeper.backends.guard import FAILURES, Guarded
from gatekeeper.backends.http import (
    BODY_LIMIT,
    BadAnswerError,
    HttpBackend,
    NoAnswerError,
    access_answer,
    encoded,
    login_answer,
)
from gatekeeper.config.backends import HttpBackendSettings
from gatekeeper.config.settings import ClientTls
from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission, Secret
from gatekeeper.policy.ports import Accepted, Failed, Refused, Verdict
from tests.backends.http_service import Service

PEER = Peer("10.1.2.3", 5555)
BOB = Credentials("PLAIN", b"bob", Secret(b"s p&=%\xc3\xa9"))
USER = AuthUser(b"bob", frozenset({"b", "a"}))


def settings(service: Service, scheme: str = "http", **changes: object) -> HttpBackendSettings:
    base = f"{scheme}://127.0.0.1:{service.port}/auth"
    values: dict[str, object] = {
        "method": "get",
        **{f"{name}_path": f"{base}/{name}" for name in ("user", "vhost", "resource", "topic")},
        "request_timeout": 5.0,
        "connection_timeout": 5.0,
        "disclose": False,
        "tls": None,
    }
    return HttpBackendSettings(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    one = Service()
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def backend(service: Service) -> AsyncIterator[HttpBackend]:
    one = HttpBackend(settings(service))
    yield one
    await one.close()


# -- answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("allow", Accepted(b"bob")),
        (" ALLOW Administrator  x ", Accepted(b"bob", frozenset({"administrator", "x"}))),
        ("allowed", Accepted(b"bob", frozenset({"ed"}))),
        ("allow,administrator", Accepted(b"bob", frozenset({",administrator"}))),
        ("allow\n", Accepted(b"bob", frozenset({"\n"}))),
        ("deny", Refused("Denied by the backing HTTP service")),
        ("DENY", Refused("Denied by the backing HTTP service")),
        ("deny too late", Refused("Denied by the backing HTTP service")),
    ],
)
def test_login_answer(body: str, answer: object) -> None:
    assert login_answer(b"bob", 200, body.encode()) == answer
    assert login_answer(b"bob", 201, body.encode()) == answer


@pytest.mark.parametrize(
    "body", ["", "true", '{"result":"allow"}', "Deny it", "deny\n", "denyallow"]
)
def test_no_login_answer(body: str) -> None:
    with pytest.raises(NoAnswerError, match=r"^{bad_response,"):
        login_answer(b"bob", 200, body.encode())


@pytest.mark.parametrize(
    ("body", "allowed", "reason"),
    [
        ("allow", True, None),
        (" Allow ", True, None),
        ("deny", False, None),
        ("DENY", False, None),
        ("deny  Not  Today ", False, "Not  Today"),
    ],
)
def test_access_answer(body: str, allowed: bool, reason: str | None) -> None:
    verdict = access_answer(200, body.encode())
    assert (verdict.allowed, verdict.reason, verdict.error) == (allowed, reason, None)


@pytest.mark.parametrize("body", ["", "allow admin", "allowed", "Deny it", "allow\n", "true"])
def test_an_access_answer_that_is_none_crashes(body: str) -> None:
    """RabbitMQ's backend has no clause for it: the channel gets a 541."""
    with pytest.raises(BadAnswerError):
        access_answer(200, body.encode())


@pytest.mark.parametrize("status", [204, 301, 401, 500])
def test_another_status_is_no_answer(status: int) -> None:
    with pytest.raises(NoAnswerError, match=f'^{{{status},"allow"}}$'):
        access_answer(status, b"allow")
    with pytest.raises(NoAnswerError):
        login_answer(b"bob", status, b"allow")


def test_encoding() -> None:
    raw = bytes(range(256))
    text = encoded([("name", raw), ("tags", b"a b")])
    assert "%00%01" in text
    assert "+%21" in text
    assert "-.%2F0123456789%3A" in text
    assert "_" in text
    assert "~" in text
    assert text.endswith("&tags=a+b")


# -- questions ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["get", "post"])
async def test_questions(service: Service, method: str) -> None:
    backend = HttpBackend(settings(service, method=method))
    try:
        assert await backend.authenticate(BOB, PEER) == Accepted(b"bob")
        external = Credentials("EXTERNAL", b"bob")
        assert await backend.authorize_login(b"bob", external, PEER) == Accepted(b"bob")
        assert (await backend.vhost_access(USER, b"/", PEER)).allowed
        assert (
            await backend.resource_access(USER, b"v", Kind.QUEUE, b"q.1", Permission.CONFIGURE)
        ).allowed
        variables = {"username": b"bob", "vhost": b"v"}
        assert (
            await backend.topic_access(USER, b"v", b"x", b"a.*.#", Permission.WRITE, variables)
        ).allowed
        assert backend.topic_rule(USER, b"v", b"x")
    finally:
        await backend.close()
    verb = method.upper()
    rights = "permission=write&tags=a+b&routing_key=a.%2A.%23"
    variables_sent = "variable_map.username=bob&variable_map.vhost=v"
    assert service.asked == [
        (verb, "/auth/user", "username=bob&password=s+p%26%3D%25%C3%A9"),
        (verb, "/auth/user", "username=bob"),
        (verb, "/auth/vhost", "username=bob&vhost=%2F&ip=10.1.2.3&tags=a+b"),
        (
            verb,
            "/auth/resource",
            "username=bob&vhost=v&resource=queue&name=q.1&permission=configure&tags=a+b",
        ),
        (
            verb,
            "/auth/topic",
            f"username=bob&vhost=v&resource=topic&name=x&{rights}&{variables_sent}",
        ),
    ]
    if method == "post":
        kinds = {headers["Content-Type"] for headers in service.headers}
        assert kinds == {"application/x-www-form-urlencoded"}


async def test_a_path_with_a_query_of_its_own(service: Service) -> None:
    base = f"http://127.0.0.1:{service.port}/auth?k=1%202"
    backend = HttpBackend(settings(service, vhost_path=base))
    assert (await backend.vhost_access(AuthUser(b"u"), b"v", PEER)).allowed
    await backend.close()
    assert service.asked == [("GET", "/auth", "k=1%202&username=u&vhost=v&ip=10.1.2.3&tags=")]


@pytest.mark.parametrize("disclose", [True, False])
async def test_a_reason_reaches_the_client_only_where_configured(
    service: Service, disclose: bool
) -> None:
    service.answer = (200, "deny Not yours")
    backend = HttpBackend(settings(service, disclose=disclose))
    with structlog.testing.capture_logs() as logs:
        verdict = await backend.resource_access(USER, b"v", Kind.QUEUE, b"q", Permission.READ)
        assert await backend.authenticate(BOB, PEER) == Refused(
            "Denied by the backing HTTP service"
        )
    await backend.close()
    assert not verdict.allowed
    assert verdict.reason == ("Not yours" if disclose else None)
    assert [log["reason"] for log in logs] == ["Not yours", "Not yours"]
    assert "s p&" not in str(logs)


async def test_the_credentials_of_an_url_stay_out_of_the_log(service: Service) -> None:
    service.answer = (200, "deny because")
    url = f"http://gate:hunter2@127.0.0.1:{service.port}/auth?key=hunter3"
    backend = HttpBackend(settings(service, vhost_path=url))
    with structlog.testing.capture_logs() as lines:
        assert not (await backend.vhost_access(USER, b"/", PEER)).allowed
    await backend.close()
    assert service.headers[-1]["Authorization"].startswith("Basic ")
    assert [line["event"] for line in lines] == [
        f"HTTP authorization denied for path http://127.0.0.1:{service.port}/auth: because"
    ]


async def test_connections_are_kept(service: Service, backend: HttpBackend) -> None:
    for _ in range(3):
        assert await backend.authenticate(BOB, PEER) == Accepted(b"bob")
    assert backend._session is not None
    assert sum(map(len, backend._session.connector._conns.values())) == 1  # type: ignore[union-attr]


# -- trouble -----------------------------------------------------------------------------


async def refusals(backend: HttpBackend) -> tuple[object, Verdict]:
    return (
        await backend.authenticate(BOB, PEER),
        await backend.vhost_access(USER, b"/", PEER),
    )


async def test_a_status_that_is_an_error(service: Service, backend: HttpBackend) -> None:
    service.answer = (500, 'oh "no"')
    login, verdict = await refusals(backend)
    assert login == Failed('{500,"oh \\"no\\""}')
    assert verdict == Verdict(False, error='{500,"oh \\"no\\""}')


async def test_nobody_listens(service: Service, backend: HttpBackend) -> None:
    await service.stop()
    login, verdict = await refusals(backend)
    expected = (
        f'{{failed_connect,[{{to_address,{{"127.0.0.1",{service.port}}}}},'
        "{inet,[inet],econnrefused}]}"
    )
    assert login == Failed(expected, unavailable=True)
    assert verdict == Verdict(False, error=expected, unavailable=True)


async def test_too_slow(service: Service) -> None:
    service.delay = 30
    backend = HttpBackend(settings(service, request_timeout=0.2))
    login, verdict = await refusals(backend)
    await backend.close()
    assert login == Failed("timeout", unavailable=True)
    assert verdict == Verdict(False, error="timeout", unavailable=True)


async def test_too_long(service: Service, backend: HttpBackend) -> None:
    service.answer = (200, "allow" + " " * BODY_LIMIT)
    login, _ = await refusals(backend)
    assert login == Failed(f"{{body_too_long,{BODY_LIMIT}}}")


async def test_no_http_at_all() -> None:
    """The server speaks something else, and a GET's URL holds the password."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"AMQP\0\0\x09\x01 rubbish\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    service = Service(port=server.sockets[0].getsockname()[1])
    backend = HttpBackend(settings(service))
    login, verdict = await refusals(backend)
    await backend.close()
    server.close()
    assert isinstance(login, Failed)
    assert not login.unavailable, "it was there"
    assert "s+p" not in login.reason
    assert verdict.error is not None


async def test_a_connection_closed_before_the_answer_is_tried_again() -> None:
    tries = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        await reader.readuntil(b"\r\n\r\n")
        if tries >= 3:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nallow")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    service = Service(port=server.sockets[0].getsockname()[1])
    backend = HttpBackend(settings(service, method="post"))
    assert await backend.authenticate(BOB, PEER) == Accepted(b"bob")
    await backend.close()
    server.close()
    assert tries == 3


async def test_a_question_that_the_server_hangs_up_on_locks_nobody_else_out() -> None:
    """Before any login: a name too long for the server's request line, as often as one likes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if len(request) < 4096:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nallow")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    service = Service(port=server.sockets[0].getsockname()[1])
    backend = Guarded(HttpBackend(settings(service)))
    for n in range(FAILURES):
        hostile = Credentials("PLAIN", b"\xff" * 2000 + b"%d" % n, Secret(b"x"))
        assert isinstance(await backend.authenticate(hostile, PEER), Failed)
    assert await backend.authenticate(BOB, PEER) == Accepted(b"bob")
    await backend.close()
    server.close()


async def test_redirects_are_followed_for_get_only(service: Service, backend: HttpBackend) -> None:
    service.location = "/moved"
    assert await backend.authenticate(BOB, PEER) == Accepted(b"bob")
    poster = HttpBackend(settings(service, method="post"))
    login, _ = await refusals(poster)
    await poster.close()
    assert isinstance(login, Failed)
    assert login.reason.startswith("{301,")


async def test_a_loop_is_not_stalled_by_a_server_that_hangs(service: Service) -> None:
    """The other client's turns go on while a hundred questions hang."""
    service.delay = 30
    backend = HttpBackend(settings(service, request_timeout=0.5))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    async with asyncio.TaskGroup() as group:
        ticking = group.create_task(other())
        questions = [group.create_task(refusals(backend)) for _ in range(100)]
        await asyncio.wait(questions)
        ticking.cancel()
    await backend.close()
    assert turns > 20
    assert all(isinstance(each.result()[0], Failed) for each in questions)


# -- TLS ---------------------------------------------------------------------------------


async def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    service = Service()
    await service.start(context)
    try:
        for tls, answer in (
            (ClientTls(cacertfile=ca), Accepted(b"bob")),
            (ClientTls(verify_peer=False), Accepted(b"bob")),
            (ClientTls(cacertfile=ca, sni="other.example.com"), None),
            (ClientTls(), None),
            (None, None),
        ):
            backend = HttpBackend(settings(service, "https", tls=tls))
            login = await backend.authenticate(BOB, PEER)
            await backend.close()
            if answer is None:
                assert isinstance(login, Failed), tls
                assert login.unavailable
            else:
                assert login == answer, tls
    finally:
        await service.stop()
