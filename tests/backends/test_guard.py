"""The circuit breaker: when it opens, what it lets through, when it closes."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from gatekeeper.backends.guard import FAILURES, PAUSE_FIRST, PAUSE_MAX, Guarded
from gatekeeper.model import AuthUser, Credentials, Kind, Permission, Secret
from gatekeeper.policy.ports import Accepted, Failed, Refused, Verdict
from tests.policy.fakes import ALLOW, BOB, DENY, PEER, FakeBackend

USER = AuthUser(b"bob")
EVE = Credentials("PLAIN", b"eve", Secret(b"secret"))
GONE = Failed("connection refused", unavailable=True)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def open_to(guarded: Guarded) -> list[Credentials]:
    return [who for who in (BOB, EVE) if guarded.circuit.open_to(who.username)]


async def broken(backend: FakeBackend, clock: Clock) -> Guarded:
    guarded = Guarded(backend, clock)
    backend.login = GONE
    for _ in range(FAILURES - 1):
        assert await guarded.authenticate(BOB, PEER) == GONE
    assert await guarded.authenticate(EVE, PEER) == GONE
    assert open_to(guarded) == [BOB, EVE]
    return guarded


@pytest.mark.parametrize("later", [True, False])
async def test_what_is_asked_and_answered(later: bool) -> None:
    backend = FakeBackend(later=later, vhost=DENY)
    guarded = Guarded(backend)
    assert guarded.name == backend.name
    assert await guarded.authenticate(BOB, PEER) == backend.login
    assert await guarded.authorize_login(b"bob", BOB, PEER) == backend.authorization
    assert await guarded.vhost_access(USER, b"/", PEER) == DENY
    assert await guarded.resource_access(USER, b"/", Kind.QUEUE, b"q", Permission.READ) == ALLOW
    assert await guarded.topic_access(USER, b"/", b"x", b"k", Permission.READ, {}) == ALLOW
    assert guarded.topic_rule(USER, b"/", b"x")
    assert len(backend.asked) == 6


async def test_an_open_circuit_refuses_everything_unasked() -> None:
    backend = FakeBackend()
    guarded = await broken(backend, Clock())
    asked = len(backend.asked)
    for login in (
        await guarded.authenticate(BOB, PEER),
        await guarded.authorize_login(b"bob", BOB, PEER),
    ):
        assert isinstance(login, Failed)
        assert "not asked" in login.reason
    for verdict in (
        await guarded.vhost_access(USER, b"/", PEER),
        await guarded.resource_access(USER, b"/", Kind.QUEUE, b"q", Permission.READ),
        await guarded.topic_access(USER, b"/", b"x", b"k", Permission.READ, {}),
    ):
        assert not verdict.allowed
        assert verdict.error is not None
    assert len(backend.asked) == asked


async def test_probes_are_few_and_rarer_with_each_failure() -> None:
    backend, clock = FakeBackend(), Clock()
    guarded = await broken(backend, clock)
    pause = PAUSE_FIRST
    for _ in range(8):
        asked = len(backend.asked)
        clock.now += pause * 0.99
        for who in (BOB, EVE):
            await guarded.authenticate(who, PEER)
        assert len(backend.asked) == asked
        clock.now += pause * 0.02
        for who in (BOB, EVE) * 3:
            await guarded.authenticate(who, PEER)
        assert len(backend.asked) == asked + 1, "one probe"
        pause = min(pause * 2, PAUSE_MAX)


async def test_one_user_does_not_lock_the_others_out() -> None:
    """What is asked about this one takes too long, each time."""
    backend = FakeBackend(vhost=Verdict(False, error="timeout", unavailable=True))
    guarded = Guarded(backend)
    with capture_logs() as logs:
        for _ in range(FAILURES * 2):
            await guarded.vhost_access(USER, b"/", PEER)
    assert len(backend.asked) == FAILURES, "but is not kept waiting for ever"
    assert open_to(guarded) == [BOB]
    assert len(logs) == 1
    assert "and user 'bob' is refused" in logs[0]["event"]
    assert await guarded.authenticate(EVE, PEER) == backend.login
    assert open_to(guarded) == [], "an answer to another"


async def test_a_user_who_is_alone_with_the_failures_probes_at_each_pause() -> None:
    backend, clock = FakeBackend(login=GONE), Clock()
    guarded = Guarded(backend, clock)
    for _ in range(FAILURES):
        await guarded.authenticate(BOB, PEER)
    pause = PAUSE_FIRST
    for _ in range(4):
        asked = len(backend.asked)
        clock.now += pause * 0.99
        assert "not asked" in (await guarded.authenticate(BOB, PEER)).reason  # type: ignore[union-attr]
        clock.now += pause * 0.02
        for _ in range(3):
            await guarded.authenticate(BOB, PEER)
        assert len(backend.asked) == asked + 1, "one probe"
        pause *= 2
    backend.login = Accepted(b"bob")
    clock.now += pause
    assert await guarded.authenticate(BOB, PEER) == backend.login
    assert open_to(guarded) == []


async def test_a_second_users_failure_opens_it_for_everybody() -> None:
    backend, clock = FakeBackend(login=GONE), Clock()
    guarded = Guarded(backend, clock)
    with capture_logs() as logs:
        for _ in range(FAILURES):
            await guarded.authenticate(BOB, PEER)
        assert open_to(guarded) == [BOB]
        assert await guarded.authenticate(EVE, PEER) == GONE
    assert open_to(guarded) == [BOB, EVE]
    assert guarded.circuit.open_to(b"anybody")
    assert ["everybody is refused" in log["event"] for log in logs] == [False, True]


async def test_who_has_probed_leaves_the_next_probe_to_others() -> None:
    backend, clock = FakeBackend(), Clock()
    guarded = await broken(backend, clock)
    clock.now = PAUSE_FIRST
    assert await guarded.authenticate(BOB, PEER) == GONE
    backend.login = Accepted(b"bob")
    clock.now += 2 * PAUSE_FIRST + 0.01
    assert isinstance(await guarded.authenticate(BOB, PEER), Failed)
    assert open_to(guarded) == [BOB, EVE]
    assert await guarded.authenticate(EVE, PEER) == backend.login
    assert open_to(guarded) == []


async def test_who_is_alone_probes_all_the_same() -> None:
    backend, clock = FakeBackend(), Clock()
    guarded = await broken(backend, clock)
    clock.now = PAUSE_FIRST
    assert await guarded.authenticate(BOB, PEER) == GONE
    backend.login = Accepted(b"bob")
    clock.now += 4 * PAUSE_FIRST + 0.01
    assert await guarded.authenticate(BOB, PEER) == backend.login


async def test_it_closes_with_the_first_answer() -> None:
    backend, clock = FakeBackend(), Clock()
    with capture_logs() as logs:
        guarded = await broken(backend, clock)
        clock.now += PAUSE_FIRST
        backend.login = Refused("no")
        assert await guarded.authenticate(BOB, PEER) == Refused("no"), "a refusal is an answer"
        assert open_to(guarded) == []
        backend.login = Accepted(b"bob")
        assert await guarded.authenticate(BOB, PEER) == Accepted(b"bob")
    assert [log["log_level"] for log in logs] == ["error", "info"]
    assert "connection refused" in logs[0]["event"]


@pytest.mark.parametrize(
    "answer", [Failed("no such group"), Verdict(False, error="no such group"), DENY]
)
async def test_what_belongs_to_the_question_does_not_count(answer: object) -> None:
    backend = FakeBackend(login=answer, vhost=answer)
    guarded = Guarded(backend)
    for n in range(FAILURES * 2):
        who = (BOB, EVE)[n % 2]
        if isinstance(answer, Failed):
            await guarded.authenticate(who, PEER)
        else:
            await guarded.vhost_access(AuthUser(who.username), b"/", PEER)
    assert open_to(guarded) == []


async def test_failures_count_only_in_a_row() -> None:
    backend = FakeBackend(login=GONE)
    guarded = Guarded(backend)
    for _ in range(3):
        for n in range(FAILURES - 1):
            await guarded.authenticate((BOB, EVE)[n % 2], PEER)
        await guarded.vhost_access(USER, b"/", PEER)
    assert open_to(guarded) == []


async def test_what_was_asked_before_it_opened_does_not_delay_the_probe() -> None:
    """A hundred logins that time out together are one piece of news, not a hundred."""
    clock, backend, go = Clock(), FakeBackend(), asyncio.Event()
    guarded = Guarded(backend, clock)

    async def late() -> Failed:
        await go.wait()
        return GONE

    answered, backend.authenticate = backend.authenticate, lambda _credentials, _peer: late()
    asked = [
        asyncio.get_running_loop().create_task(guarded.authenticate(who, PEER))
        for who in (BOB, EVE) * 50
    ]
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(*asked) == [GONE] * 100
    assert open_to(guarded) == [BOB, EVE]
    backend.authenticate = answered
    clock.now = PAUSE_FIRST
    assert await guarded.authenticate(BOB, PEER) == backend.login
    assert open_to(guarded) == []


async def test_an_exception_is_the_engines_business() -> None:
    backend = FakeBackend(login=RuntimeError("mistake"))
    guarded = Guarded(backend)
    for n in range(FAILURES):
        with pytest.raises(RuntimeError):
            await guarded.authenticate((BOB, EVE)[n % 2], PEER)
    assert open_to(guarded) == []


async def test_life_is_passed_on() -> None:
    class WithLife(FakeBackend):
        async def close(self) -> None:
            self.asked.append(("close",))

    backend = WithLife()
    guarded = Guarded(backend)
    await guarded.start()
    await guarded.close()
    assert backend.asked == [("close",)]
