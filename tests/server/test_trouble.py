"""Backends in trouble, seen through a whole gate: refused in RabbitMQ's words, never allowed,
and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from gatekeeper.backends import guard
from tests.backends.http_service import Service
from tests.server.local import LocalGate, gate
from tests.server.peers import FakeBroker
from tests.server.remote import remote
from tests.server.test_revocation import channel_closed, published
from tests.support.amqp import RefusedError
from tests.support.slapd import PEOPLE, Slapd, password_of

WRITE = b"ACCESS_REFUSED - write access to exchange 'x' in vhost '/' refused for user 'eve'"
VHOST = b"NOT_ALLOWED - access to vhost '/' refused for user 'eve'"
ERROR = b", backend rabbit_auth_backend_http returned an error: "
ANSWERS = [
    pytest.param((500, "boom"), b'{500,"boom"}', id="an error"),
    pytest.param((200, "x" * 70_000), b"{body_too_long,65536}", id="more than is read"),
    pytest.param((204, ""), b"{204,[]}", id="a status that is no answer"),
]
ROUND_TRIPS = 200


def says(text: bytes, whole: bytes) -> bool:
    """Is it this text, which was on one line and may be cut? (How Erlang breaks lines is the
    business of tests/protocol/test_erlang.py.)"""
    line = re.sub(rb"\n +", b"", text)
    return line == whole or (len(text) == 255 and whole.startswith(line.removesuffix(b"...")))


async def refused(local: LocalGate, username: str = "eve") -> bytes:
    with pytest.raises(RefusedError) as caught:
        await local.login(username)
    return caught.value.text


async def still_waiting(service: Service, count: int = 1) -> None:
    async with asyncio.timeout(5):
        while service.waiting < count:
            await asyncio.sleep(0.005)
    assert not service.go.is_set()


# -- refused, in RabbitMQ's words --


@pytest.mark.parametrize(("answer", "reason"), ANSWERS)
async def test_an_operation_that_the_service_fails_to_judge(
    tmp_path: Path, fake: FakeBroker, answer: tuple[int, str], reason: bytes
) -> None:
    service = Service()
    async with remote(tmp_path, fake.port, service) as local:
        client = await local.login("eve", channel=True)
        service.answer = answer
        client.publish(1, b"x", b"k")
        assert says(await channel_closed(client), WRITE + ERROR + reason)
        service.answer = (200, "allow")
        await client.open_channel()
        client.publish(1, b"x", b"k")
        await published(fake, 1)


@pytest.mark.parametrize(("answer", "reason"), ANSWERS)
async def test_a_vhost_that_the_service_fails_to_judge(
    tmp_path: Path, fake: FakeBroker, answer: tuple[int, str], reason: bytes
) -> None:
    service = Service(answer, decide=lambda path, _form: "allow" if path == "/user" else None)
    async with remote(tmp_path, fake.port, service) as local:
        assert says(await refused(local), VHOST + ERROR + reason)
        assert not fake.sessions


async def test_a_service_that_takes_too_long(tmp_path: Path, fake: FakeBroker) -> None:
    service = Service(slow=frozenset({"/resource"}))
    async with remote(tmp_path, fake.port, service, auth_http__request_timeout=50) as local:
        client = await local.login("eve", channel=True)
        client.publish(1, b"x", b"k")
        assert await channel_closed(client) == WRITE + ERROR + b"timeout"


async def test_a_service_that_is_gone(tmp_path: Path, fake: FakeBroker) -> None:
    service = Service()
    async with remote(tmp_path, fake.port, service) as local:
        client = await local.login("eve", channel=True)
        await service.stop()
        client.publish(1, b"x", b"k")
        assert says(await channel_closed(client), WRITE + ERROR + b"{failed_connect,[{to_address,")
        assert await refused(local) == (
            b"ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details "
            b"see the broker logfile."
        )
        await local.log.wait_for(
            r"rabbit_auth_backend_http failed authenticating eve: \{failed_connect,"
        )


async def test_rubbish_is_the_crash_that_it_is_in_rabbitmq(
    tmp_path: Path, fake: FakeBroker
) -> None:
    service = Service()
    async with remote(tmp_path, fake.port, service) as local:
        client = await local.login("eve", channel=True)
        service.answer = (200, "perhaps")
        client.publish(1, b"x", b"k")
        assert (await client.closed())["reply_code"] == 541
        assert "basic.publish" not in (await fake.client()).names


async def test_the_next_in_the_chain_is_asked(tmp_path: Path, fake: FakeBroker) -> None:
    """Where the service cannot say who somebody is, the store may; its word on access is not
    asked for in the same way."""
    service = Service((500, "boom"))
    async with remote(tmp_path, fake.port, service, "http internal") as local:
        await local.login("alice", channel=True)
        await refused(local, "eve")
        await local.log.wait_for("user 'eve' - invalid credentials")


# -- the circuit --


async def test_a_service_that_flaps_is_asked_each_time(tmp_path: Path, fake: FakeBroker) -> None:
    service = Service()
    with structlog.testing.capture_logs() as lines:
        async with remote(tmp_path, fake.port, service) as local:
            for n in range(guard.FAILURES):
                client = await local.login(("eve", "mallory")[n % 2], channel=True)
                await service.stop()
                client.publish(1, b"x", b"k")
                assert ERROR in await channel_closed(client)
                await service.start()
    assert not [line for line in lines if "failures in a row" in line["event"]]


async def test_a_service_that_stays_away_is_not_asked_and_comes_back(
    tmp_path: Path, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PAUSE_FIRST", 0.2)
    service = Service()
    with structlog.testing.capture_logs() as lines:
        async with remote(tmp_path, fake.port, service, "internal http") as local:
            await local.login("eve")
            await service.stop()
            for n in range(guard.FAILURES):
                await refused(local, ("eve", "mallory")[n % 2])
            assert lines[-1]["event"].startswith(
                "rabbit_auth_backend_http: 5 failures in a row, the last one: {failed_connect,"
            )
            asked = len(service.asked)
            await service.start()
            await refused(local)
            await local.log.wait_for("it has failed repeatedly and is not asked until it answers")
            assert len(service.asked) == asked
            await local.login("alice")  # whom the store knows
            async with asyncio.timeout(5):
                while lines[-1]["event"] != "rabbit_auth_backend_http answers again":
                    await asyncio.sleep(0.1)
                    with contextlib.suppress(RefusedError):
                        await local.login("eve")


# -- while it hangs --


async def test_others_go_on_while_the_service_hangs(tmp_path: Path, fake: FakeBroker) -> None:
    service = Service(slow=frozenset({"/resource", "/user"}))
    service.go.set()
    async with remote(tmp_path, fake.port, service, "internal http") as local:
        eve = await local.login("eve", channel=True)
        alice = await local.login("alice", channel=True)
        service.go.clear()
        service.waiting = 0
        eve.publish(1, b"x", b"k")
        pending = asyncio.get_running_loop().create_task(local.login("eve"))
        await still_waiting(service, 2)
        for _ in range(ROUND_TRIPS):
            assert (await alice.call(1, "basic.qos", prefetch_count=1)).name == "basic.qos-ok"
        await local.login("bob")
        assert (service.waiting, pending.done()) == (2, False)
        service.go.set()
        await pending
        session = await fake.client(0)
        await local.until(lambda: "basic.publish" in session.names, "the publish goes on")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    with Slapd(tmp_path_factory.mktemp("slapd") / "d") as slapd:
        yield slapd


async def test_others_go_on_while_the_directory_hangs(
    tmp_path: Path, fake: FakeBroker, directory: Slapd
) -> None:
    """A real one, stopped by a signal: it takes connections and answers nothing."""
    values = {
        "auth_backends.1": "internal",
        "auth_backends.2": "ldap",
        "auth_ldap.servers.1": "127.0.0.1",
        "auth_ldap.port": directory.port,
        "auth_ldap.timeout": 1000,
        "auth_ldap.user_dn_pattern": f"cn=${{username}},{PEOPLE}",
        "auth_ldap.queries.resource_access": f'{{exists, "{PEOPLE}"}}',
    }
    async with gate(tmp_path, fake.port, values) as local:
        carol = await local.login("carol", password=password_of("carol"), channel=True)
        alice = await local.login("alice", channel=True)
        os.kill(directory.pid, signal.SIGSTOP)
        try:
            carol.publish(1, b"x", b"k")
            closed = asyncio.get_running_loop().create_task(channel_closed(carol))
            for _ in range(ROUND_TRIPS):
                assert (await alice.call(1, "basic.qos", prefetch_count=1)).name == "basic.qos-ok"
            assert not closed.done()
            assert b"backend rabbit_auth_backend_ldap returned an error: " in await closed
        finally:
            os.kill(directory.pid, signal.SIGCONT)


async def test_what_waits_keeps_its_order(tmp_path: Path, fake: FakeBroker) -> None:
    """Behind a question of its channel nothing passes it, and nothing reaches the broker."""
    service = Service(slow=frozenset({"/resource"}))
    async with remote(tmp_path, fake.port, service) as local:
        client = await local.login("eve", channel=True)
        before = len((await fake.client()).methods)
        client.publish(1, b"x", b"1")
        client.publish(1, b"y", b"2")
        client.publish(1, b"x", b"3")
        client.send(1, "basic.qos", prefetch_count=1)
        await still_waiting(service)
        assert len((await fake.client()).methods) == before
        service.go.set()
        await client.expect("basic.qos-ok", 1)
        methods = [method for _, method in (await fake.client()).methods[before:]]
        sent = [m["routing_key"] for m in methods if m.name == "basic.publish"]
        assert sent == [b"1", b"2", b"3"]
        assert methods[-1].name == "basic.qos"


async def test_a_client_that_leaves_while_it_is_judged(tmp_path: Path, fake: FakeBroker) -> None:
    service = Service(slow=frozenset({"/resource"}))
    async with remote(tmp_path, fake.port, service) as local:
        client = await local.login("eve", channel=True)
        client.publish(1, b"x", b"1")
        await still_waiting(service)
        client.abort()
        service.go.set()
        session = await fake.client()
        await local.until(session.ended.is_set, "the broker's side ends")
        await local.until(lambda: not list(local.registry), "nothing is left")
