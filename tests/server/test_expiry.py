"""Credentials that end: the timer, and the connection that it closes."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gatekeeper.server import connection, expiry
from gatekeeper.server.expiry import Expiry
from tests.server.local import LocalGate, gate
from tests.server.peers import FakeBroker
from tests.support.amqp import RefusedError
from tests.support.idp import SigningKey, claims

KEY = SigningKey()
ALL = ("read:*/*", "write:*/*", "configure:*/*")
EXPIRED = b"CONNECTION_FORCED - credential expired"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


async def test_it_looks_again_where_the_clock_was_set_back() -> None:
    clock, over = Clock(), asyncio.Event()
    clock.now = 1009.99
    timer = Expiry(1010, over.set, clock)
    clock.now = 1009.98
    while clock.looks < 4:
        await asyncio.sleep(0.005)
    assert not over.is_set()
    clock.now = 1010.0
    await asyncio.wait_for(over.wait(), 5)
    timer.cancel()  # harmless


async def test_it_ends_at_once_what_has_ended() -> None:
    over = asyncio.Event()
    Expiry(1, over.set)
    await asyncio.wait_for(over.wait(), 5)


async def test_far_ends_and_cancelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "LONGEST", 0.01)
    clock, over = Clock(), asyncio.Event()
    timer = Expiry(10**30, over.set, clock)
    while clock.looks < 10:
        await asyncio.sleep(0.005)
    timer.cancel()
    looks = clock.looks
    await asyncio.sleep(0.05)
    assert (clock.looks, over.is_set()) == (looks, False)


# --- on a connection ---


class Timers:
    """Stands in for Expiry: goes off when the test says so."""

    def __init__(self) -> None:
        self.made: list[Timer] = []

    def __call__(self, at: int, expired: Callable[[], None]) -> Timer:
        self.made.append(Timer(at, expired))
        return self.made[-1]


class Timer:
    def __init__(self, at: int, expired: Callable[[], None]) -> None:
        self.at = at
        self.expired = expired
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Timers:
    timers = Timers()
    monkeypatch.setattr(connection, "Expiry", timers)
    return timers


@pytest.fixture
async def local(tmp_path: Path, fake: FakeBroker) -> AsyncIterator[LocalGate]:
    """A gate whose users come with tokens."""

    pem = tmp_path / "key.pem"
    pem.write_bytes(KEY.public_pem)
    values: dict[str, str | int] = {
        "auth_backends.1": "oauth2",
        "auth_oauth2.resource_server_id": "rabbitmq",
        f"auth_oauth2.signing_keys.{KEY.kid}": str(pem),
    }
    async with gate(tmp_path, fake.port, values) as local:
        yield local


def token(*scopes: str, **more: Any) -> str:
    return KEY.sign(claims(*scopes, **more)).decode()


async def test_a_connection_ends_with_its_token(
    local: LocalGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At once, or a quarter of a second after connection.open, whenever that is.
    late = functools.partial(Expiry, clock=lambda: time.time() + 3599.75)
    exp = int(time.time()) + 3600
    monkeypatch.setattr(connection, "Expiry", late)
    client = await local.login(password=token(*ALL, exp=exp))
    close = await client.expect("connection.close")
    assert (close["reply_code"], close["reply_text"]) == (320, EXPIRED)
    line = await local.log.wait_for("credential has expired")
    assert line.startswith("closing AMQP connection 127.0.0.1:")
    assert line.endswith(" of user 'alice': credential has expired")


async def test_who_leaves_in_time_leaves_no_timer(local: LocalGate, timers: Timers) -> None:
    exp = int(time.time()) + 3600
    client = await local.login(password=token(*ALL, exp=exp))
    assert [(timer.at, timer.cancelled) for timer in timers.made] == [(exp, False)]
    await client.close()
    await local.until(lambda: timers.made[0].cancelled, "the timer is cancelled")


async def test_a_new_token(local: LocalGate, timers: Timers) -> None:
    """Longer life, other scopes, other tags: all from the next frame on."""
    exp = int(time.time()) + 3600
    client = await local.login(
        password=token("write:*/*", "read:*/*", "tag:impersonator", exp=exp), channel=True
    )
    client.publish(1, b"amq.fanout", b"k", properties={"user_id": "bob"})
    client.send(1, "basic.consume", queue=b"q", consumer_tag=b"c")
    await client.expect("basic.consume-ok", 1)
    secret = token("write:*/amq.direct", exp=exp + 60)
    client.send(0, "connection.update-secret", new_secret=secret, reason=b"r")
    await client.expect("connection.update-secret-ok")
    cancelled = await client.expect("basic.cancel", 1)  # once the broker has cancelled it
    assert cancelled["consumer_tag"] == b"c"
    assert [(timer.at, timer.cancelled) for timer in timers.made] == [
        (exp, True),
        (exp + 60, False),
    ]
    client.publish(1, b"amq.fanout", b"k")
    close = await client.expect("channel.close", 1)
    assert close["reply_code"] == 403
    client.send(1, "channel.close-ok")
    await client.open_channel()
    client.publish(1, b"amq.direct", b"k", properties={"user_id": "bob"})
    close = await client.expect("channel.close", 1)
    assert close["reply_code"] == 406  # no impersonator any more
    timers.made[-1].expired()
    close = await client.expect("connection.close")
    assert (close["reply_code"], close["reply_text"]) == (320, EXPIRED)


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        ({"sub": "bob"}, 530, b"NOT_ALLOWED - New secret was refused by one of the backends"),
        ({"aud": "other"}, 530, b"NOT_ALLOWED - Secret update failed"),
        ({"scope": ""}, 530, b"NOT_ALLOWED - access to vhost '/' refused for user 'alice'"),
    ],
)
async def test_a_new_token_that_is_not_taken(
    local: LocalGate, more: dict[str, Any], code: int, text: bytes
) -> None:
    client = await local.login(password=token(*ALL))
    secret = KEY.sign({**claims(*ALL), **more})
    client.send(0, "connection.update-secret", new_secret=secret, reason=b"r")
    close = await client.expect("connection.close")
    assert (close["reply_code"], close["reply_text"]) == (code, text)
    assert (close["class_id"], close["method_id"]) == (10, 70)
    assert not local.log.matching(secret.split(b".")[1].decode())


async def test_a_token_that_is_no_good(local: LocalGate) -> None:
    with pytest.raises(RefusedError) as refused:
        await local.login(password="nonsense")
    assert refused.value.code == 403
    await local.log.wait_for(
        r"failed to authenticate: Authentication using OAuth 2/JWT token failed: "
        r"\{error,\{invalid_token"
    )
