"""The cache: what is kept and for how long, one question at a time, forgetting."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gatekeeper.backends import cache as module
from gatekeeper.backends.cache import CacheBackend
from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission, Secret
from gatekeeper.policy.ports import (
    Accepted,
    ExpiringBackend,
    Failed,
    LoginAnswer,
    Refused,
    Verdict,
)
from tests.policy.fakes import ALLOW, BOB, DENY, LOCAL, PEER, FakeBackend

USER = AuthUser(b"bob", frozenset({"t"}), "state")
WRITE = Permission.WRITE


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def cached(
    backend: FakeBackend, *, refusals: bool = False, clock: Clock | None = None
) -> CacheBackend:
    return CacheBackend(backend, backend, ttl=10.0, refusals=refusals, clock=clock or Clock())


async def ask_all(cache: CacheBackend) -> list[object]:
    return [
        await cache.authenticate(BOB, PEER),  # type: ignore[misc]
        await cache.authorize_login(b"bob", BOB, PEER),  # type: ignore[misc]
        await cache.vhost_access(USER, b"/", PEER),  # type: ignore[misc]
        await cache.resource_access(USER, b"/", Kind.QUEUE, b"q", WRITE),  # type: ignore[misc]
        await cache.topic_access(USER, b"/", b"x", b"k", WRITE, {"vhost": b"/"}),  # type: ignore[misc]
    ]


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(later=True)


async def settle(answer: object) -> object:
    return await answer if asyncio.iscoroutine(answer) else answer


async def test_kept_for_its_time(backend: FakeBackend) -> None:
    clock = Clock()
    cache = cached(backend, clock=clock)
    first = await ask_all(cache)
    assert len(backend.asked) == 5
    clock.now += 9.99
    assert [
        cache.authenticate(BOB, PEER),
        cache.authorize_login(b"bob", BOB, PEER),
        cache.vhost_access(USER, b"/", PEER),
        cache.resource_access(USER, b"/", Kind.QUEUE, b"q", WRITE),
        cache.topic_access(USER, b"/", b"x", b"k", WRITE, {"vhost": b"/"}),
    ] == first, "at once, and no longer for having been used"
    assert len(backend.asked) == 5
    clock.now += 0.02
    await ask_all(cache)
    assert len(backend.asked) == 10


@pytest.mark.parametrize("refusals", [True, False])
async def test_refusals(refusals: bool) -> None:
    backend = FakeBackend(
        login=Refused("no"),
        authorization=Refused("no"),
        vhost=DENY,
        default=DENY,
        topic=DENY,
        later=True,
    )
    cache = cached(backend, refusals=refusals)
    await ask_all(cache)
    for answer in (
        cache.authenticate(BOB, PEER),
        cache.vhost_access(USER, b"/", PEER),
        cache.resource_access(USER, b"/", Kind.QUEUE, b"q", WRITE),
    ):
        assert not getattr(await settle(answer), "allowed", False)
    assert len(backend.asked) == (5 if refusals else 8)


async def test_errors_are_never_kept() -> None:
    error = Verdict(False, error="gone")
    backend = FakeBackend(
        login=Failed("gone"),
        authorization=Failed("gone"),
        vhost=error,
        default=error,
        topic=error,
        later=True,
    )
    cache = cached(backend, refusals=True)
    await ask_all(cache)
    await ask_all(cache)
    assert len(backend.asked) == 10


@pytest.mark.parametrize(
    "other",
    [
        Credentials("PLAIN", b"bob", Secret(b"other")),
        Credentials("PLAIN", b"bob", None),
        Credentials("AMQPLAIN", b"bob", Secret(b"secret")),
        Credentials("PLAIN", b"eve", Secret(b"secret")),
    ],
)
async def test_a_login_is_known_by_all_that_sways_it(
    backend: FakeBackend, other: Credentials
) -> None:
    cache = cached(backend)
    await settle(cache.authenticate(BOB, PEER))
    await settle(cache.authenticate(other, PEER))
    await settle(cache.authenticate(BOB, LOCAL))
    assert len(backend.asked) == 3


@pytest.mark.parametrize(
    ("user", "vhost", "kind", "name", "permission"),
    [
        (AuthUser(b"bob", frozenset({"t"}), "other"), b"/", Kind.QUEUE, b"q", WRITE),
        (AuthUser(b"bob", frozenset(), "state"), b"/", Kind.QUEUE, b"q", WRITE),
        (AuthUser(b"eve", frozenset({"t"}), "state"), b"/", Kind.QUEUE, b"q", WRITE),
        (USER, b"v", Kind.QUEUE, b"q", WRITE),
        (USER, b"/", Kind.EXCHANGE, b"q", WRITE),
        (USER, b"/", Kind.QUEUE, b"Q", WRITE),
        (USER, b"/", Kind.QUEUE, b"q", Permission.READ),
    ],
)
async def test_access_is_known_by_all_that_sways_it(
    backend: FakeBackend,
    user: AuthUser,
    vhost: bytes,
    kind: Kind,
    name: bytes,
    permission: Permission,
) -> None:
    cache = cached(backend)
    await settle(cache.resource_access(USER, b"/", Kind.QUEUE, b"q", WRITE))
    await settle(cache.resource_access(user, vhost, kind, name, permission))
    assert len(backend.asked) == 2


async def test_vhost_access_is_by_address(backend: FakeBackend) -> None:
    cache = cached(backend)
    await settle(cache.vhost_access(USER, b"/", PEER))
    await settle(cache.vhost_access(USER, b"/", Peer(PEER.host, 1)))
    assert len(backend.asked) == 1, "another port of the same host"
    await settle(cache.vhost_access(USER, b"/", LOCAL))
    assert len(backend.asked) == 2


async def test_a_state_that_cannot_be_compared_is_not_cached(backend: FakeBackend) -> None:
    cache = cached(backend)
    user = AuthUser(b"bob", frozenset(), {"un": "hashable"})
    for _ in range(2):
        assert await settle(cache.vhost_access(user, b"/", PEER)) == ALLOW
    assert len(backend.asked) == 2


async def test_an_answer_that_comes_at_once_is_passed_on() -> None:
    backend = FakeBackend()
    cache = cached(backend)
    for _ in range(2):
        assert cache.vhost_access(USER, b"/", PEER) == ALLOW
    assert len(backend.asked) == 2
    assert cache.topic_rule(USER, b"/", b"x") is True


# -- a stampede --------------------------------------------------------------------------


class Slow(FakeBackend):
    """Answers when it is told to."""

    def __init__(self, vhost: object = ALLOW) -> None:
        super().__init__(vhost=vhost)
        self.gate = asyncio.Event()
        self.questions = 0

    async def vhost_access(self, user: AuthUser, vhost: bytes, peer: Peer) -> Verdict:  # type: ignore[override]
        self.questions += 1
        await self.gate.wait()
        if isinstance(self.vhost, Exception):
            raise self.vhost
        return self.vhost  # type: ignore[return-value]


async def stampede(cache: CacheBackend, count: int) -> list[asyncio.Task[object]]:
    tasks = [
        asyncio.get_running_loop().create_task(settle(cache.vhost_access(USER, b"/", PEER)))
        for _ in range(count)
    ]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize(
    "answer", [ALLOW, DENY, Verdict(False, error="gone"), RuntimeError("crash")]
)
async def test_equal_questions_are_asked_once(answer: object) -> None:
    """500 of them; whatever the answer is, it is everybody's."""
    backend = Slow(vhost=answer)
    tasks = await stampede(cached(backend), 500)
    backend.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert backend.questions == 1
    assert all(each == answer for each in answers)


async def test_who_asked_first_may_go_away() -> None:
    backend = Slow()
    tasks = await stampede(cached(backend), 10)
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    for _ in range(4):
        await asyncio.sleep(0)
    assert backend.questions == 2, "one of the others asks for all of them"
    backend.gate.set()
    assert await asyncio.gather(*tasks[1:]) == [ALLOW] * 9


async def test_who_waits_may_go_away() -> None:
    backend = Slow()
    tasks = await stampede(cached(backend), 3)
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    backend.gate.set()
    assert await asyncio.gather(tasks[0], tasks[2]) == [ALLOW, ALLOW]
    assert backend.questions == 1


# -- forgetting --------------------------------------------------------------------------


async def test_equal_questions_of_one_turn_are_asked_once() -> None:
    backend = Slow()
    cache = cached(backend)
    answers = [cache.vhost_access(USER, b"/", PEER) for _ in range(5)]
    asyncio.get_running_loop().call_later(0.01, backend.gate.set)
    assert await asyncio.gather(*answers) == [ALLOW] * 5  # type: ignore[arg-type]
    assert backend.questions == 1


async def test_clear(backend: FakeBackend) -> None:
    cache = cached(backend)
    eve = AuthUser(b"eve")
    await ask_all(cache)
    await settle(cache.vhost_access(eve, b"/", PEER))
    assert cache.clear(b"nobody") == 0
    assert cache.clear(b"bob") == 5
    await settle(cache.vhost_access(eve, b"/", PEER))
    assert len(backend.asked) == 6
    assert cache.clear() == 1
    await settle(cache.vhost_access(eve, b"/", PEER))
    assert len(backend.asked) == 7


async def test_clear_counts_for_what_is_being_asked() -> None:
    """The answer may be from before the change that the cache was cleared for."""
    backend = Slow()
    cache = cached(backend)
    (early,) = await stampede(cache, 1)
    cache.clear()
    (late,) = await stampede(cache, 1)
    assert backend.questions == 2
    backend.gate.set()
    await asyncio.gather(early, late)
    await settle(cache.vhost_access(USER, b"/", PEER))
    assert backend.questions == 2, "the later answer is kept"


async def test_bounded(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRIES", 3)
    cache = cached(backend)
    for name in (b"a", b"b", b"c", b"a", b"d"):
        await settle(cache.resource_access(USER, b"/", Kind.QUEUE, name, WRITE))
    assert len(backend.asked) == 4
    await settle(cache.resource_access(USER, b"/", Kind.QUEUE, b"a", WRITE))
    assert len(backend.asked) == 4
    await settle(cache.resource_access(USER, b"/", Kind.QUEUE, b"b", WRITE))
    assert len(backend.asked) == 5, "used longest ago"


def test_no_password_is_kept(backend: FakeBackend) -> None:
    cache = cached(backend)

    async def ask() -> None:
        await settle(cache.authenticate(BOB, PEER))

    asyncio.run(ask())
    assert cache._kept
    assert "secret" not in repr(cache._kept)
    assert isinstance(backend.login, Accepted)


class Ending(FakeBackend):
    """A backend whose credentials end."""

    def expiry(self, state: object) -> int | None:
        return cast("int", state)

    def update_state(self, user: AuthUser, secret: Secret) -> LoginAnswer:
        return Accepted(user.username, state=secret.value)


def test_what_ends_is_handed_on() -> None:
    ending = cached(Ending())
    assert isinstance(ending, ExpiringBackend)
    assert ending.expiry(7) == 7
    assert ending.update_state(USER, Secret(b"new")) == Accepted(USER.username, state=b"new")
    lasting = cached(FakeBackend())
    assert lasting.expiry(7) is None
    assert isinstance(lasting.update_state(USER, Secret(b"new")), Failed)
