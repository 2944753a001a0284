"""A token as the service account's password: when it is fetched, and who is told of a new one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gatekeeper import logs
from gatekeeper.backends.oauth2.service_token import ServiceToken
from gatekeeper.errors import BackendError
from gatekeeper.model import Secret
from gatekeeper.server import renewal as module
from gatekeeper.server.renewal import AT_ONCE, Renewal
from tests.server.local import LocalGate, Recorder, gate
from tests.server.peers import BrokerSession, FakeBroker
from tests.server.plane import until
from tests.support.amqp import RefusedError
from tests.support.idp import IdentityProvider, SigningKey, claims

UP = "upstreams.default."
UNAVAILABLE = b"CONNECTION_FORCED - upstream broker is unavailable"
FOREVER = 1e9

Outcome = ServiceToken | Exception


def token(text: str, expires: float | None = None) -> ServiceToken:
    return ServiceToken(Secret(text.encode()), expires)


class Script:
    """A source that answers what it is told to; ``gate`` may hold it up."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.fetches = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.due = FOREVER
        self.bad: set[bytes] = set()
        self.tried: list[bytes] = []

    async def refuses(self, token: ServiceToken) -> bool:
        self.tried.append(token.secret.value)
        return token.secret.value in self.bad

    async def fetch(self) -> ServiceToken:
        self.fetches += 1
        await self.gate.wait()
        outcome = self.outcomes.pop(0) if self.outcomes[1:] else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def pause(self, token: ServiceToken) -> float:
        return self.due


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(logs, "get_logger", recorder.logger)
    monkeypatch.setattr(module, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(module, "RATION", 0.01)
    return recorder


@contextlib.asynccontextmanager
async def kept(source: Script, clock: Callable[[], float] = time.time) -> AsyncIterator[Renewal]:
    renewal = Renewal("east", source, source.refuses, clock)
    keeping = asyncio.get_running_loop().create_task(renewal.keep())
    try:
        yield renewal
        assert not keeping.done(), keeping
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_everybody_waits_for_the_one_fetch(log: Recorder) -> None:
    source = Script(token("t"))
    source.gate.clear()
    async with kept(source) as renewal:
        waiting = asyncio.gather(*(renewal.get() for _ in range(500)))
        await until(lambda: source.fetches)
        source.gate.set()
        assert {each.secret.value for each in await waiting} == {b"t"}
        assert source.fetches == 1
    assert log.of("default") == ["upstream east: new token"]


async def test_who_waits_does_not_wait_for_ever(
    log: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FETCH_TIMEOUT", 0.05)
    source = Script(token("t"))
    source.gate.clear()
    async with kept(source) as renewal:
        with pytest.raises(BackendError, match="there is no valid token"):
            await renewal.get()
        await log.wait_for("no new token: no answer within 0 s; clients are refused")
        source.gate.set()
        await log.wait_for("new token$")
        assert await renewal.get()


async def test_failures_are_told_once_and_no_client_causes_another_fetch(log: Recorder) -> None:
    source = Script(*[BackendError("away")] * 3, ValueError("hunter2"), token("t"))
    async with kept(source) as renewal:
        await until(lambda: log.lines)
        fetches = source.fetches
        for _ in range(100):
            with pytest.raises(BackendError, match=r"there is no valid token \(away\)"):
                await renewal.get()
        assert source.fetches == fetches
        await log.wait_for("new token$")
    assert log.of("default", "warning") == [
        f"upstream east: no new token: {reason}; clients are refused until there is one"
        for reason in ("away", "ValueError")
    ]


async def test_a_token_holds_until_its_end_whatever_the_source_says(log: Recorder) -> None:
    now = [100.0]
    source = Script(token("t", 200.0), BackendError("away"))
    source.due = 0.0
    async with kept(source, lambda: now[0]) as renewal:
        await log.wait_for("away; the present one still holds")
        assert (await renewal.get()).secret.value == b"t"
        now[0] = 200.0
        await log.wait_for("away; clients are refused until there is one")
        with pytest.raises(BackendError):
            await renewal.get()
        source.outcomes = [token("late", 200.0)]
        await log.wait_for("no new token: the token has ended already; clients are refused")
        source.outcomes = [token("u", 300.0)]
        await log.wait_for("new token, valid for 100 s", count=2)
        assert (await renewal.get()).secret.value == b"u"


async def test_a_refused_login_fetches_again_but_not_at_will(
    log: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Script(token("a"), token("a"), token("b"))
    async with kept(source) as renewal:
        assert (await renewal.get()).secret.value == b"a"
        renewal.doubt(renewal.current)
        await until(lambda: source.fetches == 2)
        await asyncio.sleep(0.05)
        assert source.fetches == 2
        monkeypatch.setattr(module, "RATION", FOREVER)
        renewal.doubt(renewal.current)
        await until(lambda: source.fetches == 3)
        for _ in range(10):
            renewal.doubt(renewal.current)
            await asyncio.sleep(0.005)
        assert source.fetches == 3


async def test_a_token_that_the_broker_does_not_take_replaces_none(log: Recorder) -> None:
    source = Script(token("a"), token("a"), token("bad"), token("b"))
    source.bad = {b"bad", b"a"}
    async with kept(source) as renewal:
        first = await renewal.get()
        told: list[bytes] = []
        renewal.follow(first, lambda secret: told.append(secret.value))
        renewal.doubt(token("a"))  # another of the same name, which is not the present one
        await asyncio.sleep(0.05)
        assert source.fetches == 1
        source.due = 0.0
        renewal.doubt(first)
        await log.wait_for("no new token: the broker refuses it; the present one still holds")
        await log.wait_for("new token; 1 connections are told")
        await until(lambda: told)
    assert told == [b"b"]
    # Neither the first, which nothing could be lost by, nor the same again is tried.
    assert source.tried == [b"bad", b"b"]


# --- followers ---


async def test_a_new_token_is_passed_on_a_few_at_a_time(log: Recorder) -> None:
    """And the same again is not; nobody is told who has left, or fails for another's fault."""
    first, second = token("1"), token("2")
    source = Script(first, token("1"), second, token("2"))
    told: list[int] = []
    turns: list[int] = []
    async with kept(source) as renewal:
        assert await renewal.get() is first
        count = 4 * AT_ONCE

        def follower(number: int) -> module.Renew:
            def renew(secret: Secret) -> None:
                assert secret.value == b"2"
                told.append(number)
                if number == 7:
                    raise RuntimeError("only this one")
                if number == 0:
                    renewal.leave(followers[-1])

            return renew

        followers = [follower(number) for number in range(count)]
        for renew in followers:
            renewal.follow(first, renew)
        assert not told

        async def watch() -> None:
            while len(told) < count - 1:
                turns.append(len(told))
                await asyncio.sleep(0)

        renewal.doubt(renewal.current)
        await until(lambda: source.fetches == 2)
        await asyncio.sleep(0.03)
        assert not told
        renewal.doubt(renewal.current)
        async with asyncio.timeout(5):
            await watch()
        assert told == list(range(count - 1))
        steps = {after - before for before, after in itertools.pairwise(turns)}
        assert max(steps) <= AT_ONCE
        late: list[bytes] = []
        renewal.follow(second, lambda secret: late.append(secret.value))
        assert late == []
        renewal.follow(first, lambda secret: late.append(secret.value))
        assert late == [b"2"]
    assert log.of("default", "error") == ["internal error in a renewal"]


# --- the whole gate ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RATION", 0.01)
    monkeypatch.setattr("gatekeeper.backends.oauth2.service_token.FILE_PAUSE", 0.01)


class Broker(FakeBroker):
    """Keeps which passwords it has seen, and answers update-secret."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: list[bytes] = []
        self.session = self.serve

    async def serve(self, session: BrokerSession) -> None:
        while True:
            channel, method = await session.read()
            if method.name == "connection.update-secret":
                self.secrets.append(method["new_secret"])
                session.send(0, "connection.update-secret-ok")
            elif method.name == "channel.open":
                session.send(channel, "channel.open-ok")
            elif method.name == "queue.declare":
                session.send(channel, "queue.declare-ok", queue=method["queue"])
            elif method.name == "connection.close":
                session.send(0, "connection.close-ok")
                return

    def password(self, index: int = -1) -> bytes:
        response: bytes = self.sessions[index].methods[0][1]["response"]
        return response


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with Broker() as broker:
        yield broker


@contextlib.asynccontextmanager
async def gate_with_file(
    folder: Path, broker: FakeBroker, content: bytes, **values: str
) -> AsyncIterator[tuple[LocalGate, Path]]:
    path = folder / "token"
    path.write_bytes(content)
    keys = {UP + "token_file": str(path), **{UP + key: value for key, value in values.items()}}
    async with gate(folder, broker.port, keys, without=(UP + "password", UP + "username")) as local:
        yield local, path


@pytest.mark.usefixtures("quick")
async def test_a_token_that_is_replaced_while_a_client_works(
    tmp_path: Path, broker: Broker
) -> None:
    async with gate_with_file(tmp_path, broker, b"first") as (local, path):
        client = await local.login(channel=True)
        assert broker.password() == b"\0\0first"
        path.write_bytes(b"second")
        await until(lambda: broker.secrets)
        assert broker.secrets == [b"second"]
        # What the client gets next is the answer to its own method.
        declared = await client.call(1, "queue.declare", queue="q")
        assert declared.name == "queue.declare-ok"
        assert b"\0\x0a\0\x47" not in client.raw
        await client.close()
        async with await local.login():
            assert broker.password() == b"\0\0second"
        path.write_bytes(b"third")
        await local.log.wait_for("new token$")
        assert broker.secrets == [b"second"]
        everything = str((local.log.lines, local.log.fields))
        assert not any(word in everything for word in ("first", "second", "third"))


@pytest.mark.usefixtures("quick")
async def test_no_token_no_login(tmp_path: Path, broker: Broker) -> None:
    async with gate_with_file(tmp_path, broker, b"") as (local, path):
        for _ in range(2):
            with pytest.raises(RefusedError) as caught:
                await local.login()
            assert caught.value.text == UNAVAILABLE
        await local.log.wait_for("no session with the broker: upstream default: there is no valid")
        assert broker.all == []
        path.write_bytes(b"late")
        await local.log.wait_for("new token$")
        async with await local.login():
            assert broker.password() == b"\0\0late"


@pytest.mark.usefixtures("quick")
async def test_the_broker_refuses_the_new_token(tmp_path: Path, broker: Broker) -> None:
    async def refuse(session: BrokerSession) -> None:
        while (await session.read())[1].name != "connection.update-secret":
            pass
        text = b"NOT_ALLOWED - New secret was refused by one of the backends"
        session.send(
            0,
            "connection.close",
            reply_code=530,
            reply_text=text,
            class_id=10,
            method_id=70,
        )
        await session.never()

    broker.session = refuse
    async with gate_with_file(tmp_path, broker, b"first") as (local, path):
        client = await local.login()
        path.write_bytes(b"second")
        closed = await client.closed()
        assert (closed["reply_code"], closed["reply_text"]) == (
            541,
            b"INTERNAL_ERROR - upstream broker: it refused the gate's new credentials",
        )
        await local.log.wait_for("Closing AMQP connection .*: upstream broker: it refused")


@pytest.mark.usefixtures("quick")
async def test_a_token_longer_than_the_connections_frames(tmp_path: Path, broker: Broker) -> None:
    async with gate_with_file(tmp_path, broker, b"first") as (local, path):
        small, large = await local.login(frame_max=8192), await local.login()
        path.write_bytes(b"x" * 8192)
        closed = await small.closed()
        text = b"CONNECTION_FORCED - upstream broker: the gate's new credentials are longer than"
        assert closed["reply_text"].startswith(text)
        await until(lambda: broker.secrets)
        await large.close()


async def test_client_properties_leave_room_for_a_long_token(
    tmp_path: Path, broker: Broker
) -> None:
    """A broker before 4.1 takes no start-ok of more than 4096 bytes."""
    properties = {"product": "p", "information": "i" * 2000}
    async with (
        gate_with_file(tmp_path, broker, b"x" * 2500) as (local, _),
        await local.login(properties=properties),
    ):
        session = broker.sessions[-1]
        assert b"information" not in session.properties
        assert session.properties[b"product"] == b"p"
        assert len(session.raw) < 4096


@pytest.mark.usefixtures("quick")
async def test_the_gates_own_questions_come_with_the_new_token(
    tmp_path: Path, broker: Broker
) -> None:
    async with gate_with_file(tmp_path, broker, b"first") as (local, path):
        link = local.app._upstreams.links["default"]
        old = await link.service(b"/", "test")
        assert not link.outdated(old)
        path.write_bytes(b"second")
        await local.log.wait_for("new token$", count=2)
        assert link.outdated(old)
        old.endpoint.abort()


@pytest.mark.usefixtures("quick")
async def test_connections_are_not_told_of_a_token_that_no_login_passes_by(
    tmp_path: Path, broker: Broker
) -> None:
    async def judge(session: BrokerSession) -> None:
        await session.greet()
        if b"bad" in session.methods[0][1]["response"]:
            await session.refuse(403, b"ACCESS_REFUSED - Login was refused")
            return
        await session.accept()
        await broker.session(session)

    broker.raw = judge
    async with gate_with_file(tmp_path, broker, b"first") as (local, path):
        client = await local.login()
        path.write_bytes(b"bad")
        await local.log.wait_for("no new token: the broker refuses it; the present one still holds")
        broker.stop_listening()
        path.write_bytes(b"unchecked")
        await until(lambda: broker.secrets)
        assert broker.secrets == [b"unchecked"]
        await client.close()


# --- names ---


async def test_texts_name_the_client_where_the_broker_names_the_token(
    tmp_path: Path, broker: Broker
) -> None:
    async def refuse(session: BrokerSession) -> None:
        await session.tune()
        await session.refuse(530, b"NOT_ALLOWED - access to vhost '/' refused for user 'svc'")

    broker.login = refuse
    signed = SigningKey("k", "ES256").sign(claims(sub="svc"))
    async with gate_with_file(tmp_path, broker, signed) as (local, _):
        with pytest.raises(RefusedError) as caught:
            await local.login()
        assert caught.value.text == b"NOT_ALLOWED - access to vhost '/' refused for user 'alice'"


async def test_a_username_beside_the_token(tmp_path: Path, broker: Broker) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"t")
    values = {UP + "token_file": str(path), UP + "username": "svc"}
    async with (
        gate(tmp_path, broker.port, values, without=(UP + "password",)) as local,
        await local.login(),
    ):
        assert broker.password() == b"\0svc\0t"


# --- a provider ---


async def test_a_grant(tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of ten seconds is followed by the next after twenty milliseconds here."""
    monkeypatch.setattr(module, "RATION", 0.01)
    monkeypatch.setattr("gatekeeper.backends.oauth2.service_token.EARLY", 0.002)
    monkeypatch.setattr("gatekeeper.backends.oauth2.service_token.LEAST_PAUSE", 0.01)
    async with IdentityProvider(tmp_path) as idp:
        idp.grant(b"first", b"second", b"second", b"third", expires_in=10)
        values = {
            UP + "oauth2.token_endpoint": idp.token_endpoint,
            UP + "oauth2.client_id": "gate",
            UP + "oauth2.client_secret": "hunter2",
            UP + "oauth2.https.cacertfile": str(idp.authority),
        }
        without = (UP + "password", UP + "username")
        async with gate(tmp_path, broker.port, values, without=without) as local:
            client = await local.login()
            await until(lambda: b"third" in broker.secrets)
            assert broker.secrets in ([b"second", b"third"], [b"third"])
            await client.close()
            idp.answer("/token", status=401, text='{"error": "invalid_client"}')
            await local.log.wait_for(
                "no new token: the provider answers 401: invalid_client; the present one still"
            )
            async with await local.login():
                assert broker.password() == b"\0\0third"
            assert "hunter2" not in str((local.log.lines, local.log.fields))


# --- the client's own ---


async def test_a_clients_new_secret_where_it_logs_in_as_itself(
    tmp_path: Path, broker: Broker
) -> None:
    async with (
        gate(tmp_path, broker.port, {UP + "credentials": "client"}) as local,
        await local.login() as client,
    ):
        update = {"new_secret": b"s3cret-2", "reason": b"because"}
        answer = await client.call(0, "connection.update-secret", **update)
        assert answer.name == "connection.update-secret-ok"
        assert broker.secrets == [b"s3cret-2"]
        assert not local.log.matching("s3cret-2")


async def test_a_clients_new_secret_is_no_business_of_the_service_account(
    tmp_path: Path, broker: Broker
) -> None:
    async with gate(tmp_path, broker.port) as local, await local.login() as client:
        answer = await client.call(
            0, "connection.update-secret", new_secret=b"new", reason=b"because"
        )
        assert answer.name == "connection.update-secret-ok"
    assert broker.secrets == []
