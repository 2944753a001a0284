"""A directory that is slow, gone, wrong or flapping: refused, and the loop never stalls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

from gatekeeper.backends.guard import FAILURES, Guarded
from gatekeeper.backends.ldap import connection, messages
from gatekeeper.backends.ldap.backend import LdapUser
from gatekeeper.config.ldap import ANONYMOUS
from gatekeeper.config.ldap_queries import Scope
from gatekeeper.config.settings import ClientTls
from gatekeeper.errors import BackendError
from gatekeeper.model import AuthUser, Credentials, Secret
from gatekeeper.policy.ports import Accepted, Failed, Refused, Verdict
from tests.backends.ldap.asking import PEER, backend, login, queries, user
from tests.support.process import free_port
from tests.support.slapd import Slapd, in_people, password_of

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

CONNECT_ERROR = Failed("ldap_connect_error", unavailable=True)
MEMBER = queries('{in_group, "cn=admins,ou=groups,dc=example,dc=com"}')
BOUND = bytes.fromhex("300c02010161070a010004000400")
"""A bind response to request 1: success."""


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[int]:
    """A server of our own making; its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def hanging_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


def answering(data: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(data)
        await reader.read()

    return serve


async def test_a_server_that_never_answers_is_given_up() -> None:
    async with serving(silent) as port, backend(port, timeout=0.05) as made:
        assert await login(made, "alice") == CONNECT_ERROR


async def test_a_hanging_server_stalls_nobody() -> None:
    """The loop turns while ten logins hang, and a cancelled login gives its place back."""
    async with serving(silent) as port, backend(port, timeout=None, pool_size=2) as made:
        async with asyncio.TaskGroup() as group:
            logins = [group.create_task(login(made, "alice")) for _ in range(10)]
            for _ in range(1000):
                await asyncio.sleep(0)
            assert not any(task.done() for task in logins)
            for task in logins:
                task.cancel()
        assert all(task.cancelled() for task in logins)
        assert made._pool._slots._value == 2


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x30\x84\x7f\xff\xff\xff",
        b"\x30\x80",
        b"\x30\x00",
        BOUND.replace(b"\x02\x01\x01", b"\x02\x01\x02"),
        BOUND.replace(b"\x61", b"\x7f"),
        BOUND[:-1],
        bytes.fromhex("300c02010178070a010034040004 00".replace(" ", "")),
    ],
    ids=[
        "HTTP",
        "huge",
        "indefinite",
        "empty",
        "another number",
        "another type",
        "cut off",
        "notice",
    ],
)
async def test_rubbish_is_no_login(data: bytes) -> None:
    async with serving(answering(data)) as port, backend(port, timeout=0.2) as made:
        assert isinstance(await login(made, "alice"), Failed)


async def test_a_server_that_hangs_up_is_asked_ten_times() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await hanging_up(reader, writer)

    async with serving(serve) as port, backend(port) as made:
        assert await login(made, "alice") == Failed("ldap_connect_error")
    assert connections == 10


async def test_a_question_that_the_directory_hangs_up_on_locks_nobody_else_out(
    slapd: Slapd,
) -> None:
    """Before any login: slapd takes no request of 256 KiB, and this name grows to one."""
    hostile = "${ad_user}" * 40 + "\\" + "x" * 6380
    async with backend(slapd.port) as made:
        guarded = Guarded(made)
        for n in range(FAILURES):
            answer = await guarded.authenticate(
                Credentials("PLAIN", f"{hostile[:-1]}{n}".encode(), Secret(b"p" * 1000)), PEER
            )
            assert answer == Failed("ldap_connect_error")
        alice = Credentials("PLAIN", b"alice", Secret(password_of("alice").encode()))
        assert isinstance(await guarded.authenticate(alice, PEER), Accepted)


async def test_bound_and_then_gone() -> None:
    """Whoever answers the bind alone lets nobody in: the check after it fails."""
    async with serving(answering(BOUND)) as port, backend(port, timeout=0.1) as made:
        who = await user(made, "alice")
        verdict = await made.vhost_access(who, b"/", PEER)
    assert verdict.error == "ldap_connect_error"


async def test_nothing_said_before_tls_is_read_after_it() -> None:
    tls_accepted = bytes.fromhex("300c02010178070a010004000400")
    async with serving(answering(tls_accepted + BOUND)) as port:
        tls = ClientTls(verify_peer=False)
        async with backend(port, timeout=0.5, use_starttls=True, tls=tls) as made:
            assert await login(made, "alice") == CONNECT_ERROR


async def test_the_directory_goes_and_comes_back(tmp_path: Path) -> None:
    slapd = Slapd(tmp_path / "d")
    with slapd:
        async with backend(slapd.port, queries=MEMBER) as made:
            who = await user(made, "alice")
            allowed = await made.vhost_access(who, b"/", PEER)
            slapd.stop()
            gone = await made.vhost_access(who, b"/", PEER)
            assert await login(made, "alice") == CONNECT_ERROR
            slapd.start()
            again = await made.vhost_access(who, b"/", PEER)
    assert (allowed.allowed, again.allowed) == (True, True)
    assert gone == Verdict(False, gone.rule, error="ldap_connect_error", unavailable=True)


async def test_a_lost_connection_is_replaced_unseen(slapd: Slapd) -> None:
    """Connections that the server closed while nobody looked cost a new one, no refusal."""
    links: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        links.append(writer)
        upstream, out = await asyncio.open_connection("127.0.0.1", slapd.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, out), pump(upstream, writer))

    async with serving(relay) as port, backend(port) as made:
        for count in range(1, 4):
            assert isinstance(await login(made, "alice"), Accepted)
            assert len(links) == count
            links[-1].transport.abort()
            await asyncio.sleep(0.01)


async def test_connections_are_used_again(slapd: Slapd) -> None:
    opened = 0
    real = connection.connect

    async def counted(*arguments: object) -> object:
        nonlocal opened
        opened += 1
        return await real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatekeeper.backends.ldap.pool.connect", counted)
        async with backend(slapd.port, queries=MEMBER) as made:
            who = await user(made, "alice")
            for _ in range(5):
                assert (await made.vhost_access(who, b"/", PEER)).allowed
            assert opened == 1
            await asyncio.gather(*(login(made, "bob") for _ in range(20)))
            assert opened <= 21
        before = opened
        async with backend(slapd.port, idle_timeout=0.0) as made:
            for _ in range(3):
                assert isinstance(await login(made, "alice"), Accepted)
        assert opened == before + 3


async def test_an_idle_connection_is_closed() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(BOUND)
        while await reader.read(100):
            pass
        ended.set()

    async with serving(serve) as port, backend(port, idle_timeout=0.01) as made:
        await user(made, "alice")
        await asyncio.wait_for(ended.wait(), 5)


async def test_one_user_never_asks_on_anothers_bind(slapd: Slapd) -> None:
    """Two users at once over one connection in turn: each is judged as itself."""
    async with backend(slapd.port, pool_size=1, queries=MEMBER) as made:
        alice, bob = await user(made, "alice"), await user(made, "bob")
        verdicts = await asyncio.gather(
            *(made.vhost_access(who, b"/", PEER) for who in (alice, bob) * 20)
        )
    assert [verdict.allowed for verdict in verdicts] == [True, False] * 20


async def test_a_refused_bind_of_a_check_is_a_no(slapd: Slapd) -> None:
    """The password was changed in the meantime: every later check refuses."""
    async with backend(slapd.port) as made:
        who = await user(made, "alice")
        state = LdapUser(in_people("alice").encode(), Secret(b"old"))
        changed = AuthUser(who.username, who.tags, state)
        assert await made.vhost_access(changed, b"/", PEER) == Verdict(
            False, "the bind was refused"
        )


async def test_an_empty_password_never_reaches_the_directory(slapd: Slapd) -> None:
    """This directory takes such a bind; so nobody may send one."""
    async with backend(slapd.port) as made:
        link = await connection.connect(made._settings, None, made._trace)
        assert await link.bind(b"cn=alice,ou=people,dc=example,dc=com", b"") == messages.SUCCESS
        link.close()
        answer = await made.authenticate(Credentials("PLAIN", b"alice", Secret(b"")), PEER)
        assert isinstance(answer, Refused)


async def test_a_search_is_bounded(slapd: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ENTRIES_LIMIT", 3)
    async with backend(slapd.port, other_bind=ANONYMOUS) as made:
        link = await connection.connect(made._settings, None, made._trace)
        with pytest.raises(BackendError, match="more than a check should"):
            await link.search(b"dc=example,dc=com", Scope.SUBTREE, messages.present(b"cn"), b"cn")
        assert not link.usable


@pytest.mark.parametrize("mode", ["false", "true", "network", "network_unsafe"])
async def test_no_mode_logs_a_password(slapd: Slapd, mode: str) -> None:
    with structlog.testing.capture_logs() as lines:
        async with backend(slapd.port, log=mode, queries=MEMBER) as made:
            who = await user(made, "alice")
            await made.vhost_access(who, b"/", PEER)
            await login(made, "alice", "wrong-password")
    text = repr(lines)
    assert password_of("alice") not in text
    assert "wrong-password" not in text
    assert ("LDAP CHECK: login for alice" in text) == (mode != "false")
    assert ("LDAP network traffic" in text) == mode.startswith("network")
    assert ("bind request = cn=alice" in text) == (mode == "network_unsafe")
    assert ("bind request = cn=xxxx,ou=xxxx,dc=xxxx,dc=xxxx, xxxx" in text) == (mode == "network")


async def test_a_port_where_nobody_listens() -> None:
    async with backend(free_port()) as made:
        assert await login(made, "alice") == CONNECT_ERROR
