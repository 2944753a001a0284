"""Answers that take time: asked once, counted once, and only under the epoch of the question."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import cast

import pytest

from gatekeeper.errors import AmqpError
from gatekeeper.model import Access, Check, Decision, Identity, Kind, Peer, Permission, Secret
from gatekeeper.policy.answers import EngineCrash
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.epoch import Epoch
from gatekeeper.policy.ports import Failed, Refused
from gatekeeper.server.authority import Authority
from gatekeeper.server.exchanges import Exchanges
from gatekeeper.server.lines import ConnectionLines
from gatekeeper.server.registry import Live, Registry
from gatekeeper.server.tasks import Owner
from tests.server.local import Recorder

CHECK = Access(Permission.WRITE, Kind.QUEUE, b"q")
OTHER = Access(Permission.READ, Kind.QUEUE, b"q")
YES, NO = Decision(True, "yes"), Decision(False, "no")


class Backend:
    """Stands in for the engine and for Exchanges: answers as the test fulfils its futures."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.answers: list[asyncio.Future[object]] = []
        self.at_once: Decision | None = None
        self.tags: frozenset[str] = frozenset()
        self.expected: Identity | None = None
        self.judged: list[Identity] = []

    def _ask(self, what: object) -> Awaitable[object]:
        self.asked.append(what)
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        return answer

    def check(self, identity: Identity, vhost: bytes, check: Check) -> object:
        assert (identity.username, vhost) == (b"alice", b"/")
        self.judged.append(identity)
        return self.at_once or self._ask(check)

    def exists(self, vhost: bytes, exchange: bytes) -> object:
        return self._ask(exchange)

    async def update_secret(self, identity: Identity, secret: Secret) -> object:
        answer = await self._ask(secret.value)
        if isinstance(answer, Identity):
            assert answer is not identity
            self.expected = answer
        return answer

    def vhost_access(self, identity: Identity, vhost: bytes, peer: Peer) -> object:
        assert identity is self.expected
        return self._ask("vhost")

    def refreshed(self, identity: Identity) -> Identity:
        return replace(identity, tags=self.tags)

    def topic_rule(self, identity: Identity, vhost: bytes, exchange: bytes) -> bool:
        return exchange == b"ruled"


class Bench:
    def __init__(self) -> None:
        self.backend = Backend()
        self.epoch = Epoch()
        self.errors: list[BaseException] = []
        self.owner = Owner(self.errors.append)
        self.log = Recorder()
        self.resumed = 0
        self.registry = Registry()
        self.live = Live(1, Peer("10.0.0.1", 1), b"alice", b"/")
        self.limit: int | None = None
        self._turn: asyncio.Future[None] | None = None
        peer = Peer("10.0.0.1", 1, "10.0.0.2", 2)
        categories = map(self.log.logger, ("connection", "channel", "user"))
        lines = ConnectionLines(*categories, 1, peer)
        lines.user = b"alice"
        self.authority = Authority(
            engine=cast("Engine", self.backend),
            exchanges=cast("Exchanges", self.backend),
            epoch=self.epoch,
            owner=self.owner,
            identity=Identity(b"alice"),
            vhost=b"/",
            peer=peer,
            lines=lines,
            registry=self.registry,
            live=self.live,
            channel_limit=lambda: self.limit,
        )
        self.authority.resume = self._resume

    def _resume(self) -> None:
        self.resumed += 1
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    async def answer(self, index: int, value: object) -> None:
        """Until the turn in which the session judges again."""
        self._turn = asyncio.get_running_loop().create_future()
        future = self.backend.answers[index]
        if isinstance(value, Exception):
            future.set_exception(value)
        else:
            future.set_result(value)
        await self._turn


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_an_answer_at_once_is_given_at_once(bench: Bench) -> None:
    bench.backend.at_once = YES
    assert bench.authority.check(CHECK, 1) is YES
    assert bench.authority.topic_rule(b"ruled")
    assert not bench.authority.topic_rule(b"free")
    assert len(bench.owner) == 0


async def test_a_question_is_asked_once_and_its_answer_counts_for_one_frame(bench: Bench) -> None:
    assert bench.authority.check(CHECK, 1) is None
    await asyncio.sleep(0)
    assert bench.authority.check(CHECK, 1) is None
    assert bench.backend.asked == [CHECK]
    assert bench.resumed == 0
    await bench.answer(0, NO)
    assert bench.resumed == 1
    assert bench.authority.check(CHECK, 1) is NO
    assert bench.authority.check(CHECK, 1) is NO  # judged again, for another question
    # The next frame is a new question: who was refused may be allowed by now.
    bench.authority.settled(1)
    assert bench.authority.check(CHECK, 1) is None
    assert bench.backend.asked == [CHECK, CHECK]
    await bench.answer(1, YES)
    assert bench.authority.check(CHECK, 1) is YES


async def test_questions_do_not_mix(bench: Bench) -> None:
    assert bench.authority.check(CHECK, 1) is None
    assert bench.authority.check(OTHER, 1) is None
    assert bench.authority.exchange_exists(b"x", 1) is None
    await bench.answer(1, YES)
    assert bench.authority.check(CHECK, 1) is None
    assert bench.authority.check(OTHER, 1) is YES
    await bench.answer(2, False)
    assert bench.authority.exchange_exists(b"x", 1) is False
    await bench.answer(0, NO)
    assert bench.authority.check(CHECK, 1) is NO
    assert bench.resumed == 3


async def test_each_channel_has_its_own_answers(bench: Bench) -> None:
    """Nor does one that settles take away what another waits for."""
    assert bench.authority.check(CHECK, 1) is None
    assert bench.authority.check(CHECK, 2) is None
    assert bench.authority.check(OTHER, 2) is None
    await bench.answer(0, NO)
    await bench.answer(2, YES)
    assert bench.authority.check(CHECK, 1) is NO
    bench.authority.settled(1)
    await bench.answer(1, YES)
    assert bench.authority.check(CHECK, 2) is YES
    assert bench.authority.check(OTHER, 2) is YES
    assert bench.authority.check(CHECK, 1) is None
    assert bench.backend.asked == [CHECK, CHECK, OTHER, CHECK]


@pytest.mark.parametrize("when", ["before it comes", "after it has come"])
async def test_an_answer_that_nobody_fetches_is_not_kept(bench: Bench, when: str) -> None:
    """The channel was closed meanwhile; much later another frame asks the same."""
    assert bench.authority.exchange_exists(b"x", 1) is None
    if when == "before it comes":
        bench.authority.settled(1)
    await bench.answer(0, False)
    if when == "after it has come":
        bench.authority.settled(1)
    assert bench.authority.exchange_exists(b"x", 1) is None
    assert bench.backend.asked == [b"x", b"x"]


@pytest.mark.parametrize("when", ["while it is asked", "before it is used"])
async def test_an_answer_from_before_a_change_does_not_count(bench: Bench, when: str) -> None:
    assert bench.authority.check(CHECK, 1) is None
    await asyncio.sleep(0)
    if when == "while it is asked":
        bench.epoch.bump()
    await bench.answer(0, YES)
    if when == "before it is used":
        bench.epoch.bump()
    assert bench.authority.check(CHECK, 1) is None
    await bench.answer(1, NO)
    assert bench.authority.check(CHECK, 1) is NO


async def test_a_question_that_fails_refuses_and_nobody_waits_for_ever(bench: Bench) -> None:
    error = RuntimeError("a mistake of ours")
    assert bench.authority.check(CHECK, 1) is None
    await bench.answer(0, error)
    assert bench.resumed == 1
    decision = bench.authority.check(CHECK, 1)
    assert decision is not None
    assert (decision.allowed, decision.crashed) == (False, True)
    # Whether an exchange exists only shapes a refusal: it stays one.
    assert bench.authority.exchange_exists(b"x", 1) is None
    await bench.answer(1, error)
    assert bench.authority.exchange_exists(b"x", 1) is True
    await asyncio.sleep(0)
    assert bench.errors == [error, error]


async def update(bench: Bench, *answers: object) -> AmqpError | bool | None:
    """A connection.update-secret, with the answers of the engine as they are asked for."""
    assert bench.authority.update_secret(b"s3cret", b"rotated") is None
    for answer in answers[:-1]:
        asked = len(bench.backend.answers)
        while len(bench.backend.answers) == asked - 1 or not asked:
            await asyncio.sleep(0)
            asked = len(bench.backend.answers)
        bench.backend.answers[-1].set_result(answer)
        while len(bench.backend.answers) == asked:
            await asyncio.sleep(0)
    while not bench.backend.answers or bench.backend.answers[-1].done():
        await asyncio.sleep(0)
    await bench.answer(-1, answers[-1])
    answer = bench.authority.update_secret(b"s3cret", b"rotated")
    bench.authority.settled(0)
    return answer


RENEWED = Identity(b"alice", frozenset({"monitoring"}))


async def test_a_new_secret_is_what_the_user_is_judged_by(bench: Bench) -> None:
    told: list[Identity] = []
    bench.authority.renewed = told.append
    assert await update(bench, RENEWED, YES) is True
    assert told == [RENEWED]
    assert bench.log.lines[-1][2].endswith("updated secret, reason: rotated")
    bench.backend.at_once = YES
    bench.authority.check(CHECK, 1)
    assert bench.backend.judged == [RENEWED]


NO_MORE = b"access to vhost '/' refused for user 'alice' by backend x: no"


@pytest.mark.parametrize(
    ("answers", "code", "text", "line"),
    [
        ([RENEWED, Decision(False, detail=b" by backend x: no")], 530, NO_MORE, ""),
        ([RENEWED, Decision(False, crashed=True)], 541, b"", ""),
        (
            [Refused('not "you"')],
            530,
            b"New secret was refused by one of the backends",
            'Secret update was refused for user \'alice\': "not \\"you\\""',
        ),
        (
            [Failed("no_aud_found")],
            530,
            b"Secret update failed",
            "Secret update for user 'alice' failed: no_aud_found",
        ),
        ([EngineCrash(False, crashed=True)], 541, b"", ""),
        ([RuntimeError("bug")], 541, b"", ""),
    ],
)
async def test_a_new_secret_that_is_not_taken_changes_nothing(
    bench: Bench, answers: list[object], code: int, text: bytes, line: str
) -> None:
    told: list[Identity] = []
    bench.authority.renewed = told.append
    refusal = await update(bench, *answers)
    assert isinstance(refusal, AmqpError)
    assert (refusal.code, refusal.explanation) == (code, text)
    assert [message for _, _, message in bench.log.lines] == ([line] if line else [])
    bench.backend.at_once = YES
    bench.authority.check(CHECK, 1)
    assert bench.backend.judged == [Identity(b"alice")]
    assert told == []


# --- what was granted, asked again ---


async def test_a_recheck_is_nobody_else_s_business(bench: Bench) -> None:
    """Neither frames that are settled nor the epoch take its answer away."""
    authority = bench.authority
    assert authority.recheck(OTHER) is None
    assert authority.check(OTHER, 1) is None
    await bench.answer(1, YES)
    assert authority.check(OTHER, 1) is YES
    authority.settled(1)
    bench.epoch.bump()
    await bench.answer(0, NO)
    assert authority.recheck(OTHER) is NO
    assert len(bench.backend.asked) == 2


async def test_after_the_next_change_a_recheck_begins_anew(bench: Bench) -> None:
    authority = bench.authority
    assert authority.recheck(OTHER) is None
    authority.rights_changed()
    assert authority.recheck(OTHER) is None
    await bench.answer(0, YES)  # by the rules of before
    assert authority.recheck(OTHER) is None
    await bench.answer(1, NO)
    assert authority.recheck(OTHER) is NO


async def test_tags_are_those_of_now(bench: Bench) -> None:
    assert not bench.authority.may_impersonate()
    bench.backend.tags = frozenset({"impersonator"})
    assert bench.authority.may_impersonate()
