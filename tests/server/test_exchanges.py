"""Is it a topic exchange, does it exist: asked of a real RabbitMQ, and of bad brokers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from gatekeeper.config.settings import Address, Upstream
from gatekeeper.model import Secret
from gatekeeper.policy.epoch import Epoch
from gatekeeper.server import exchanges as module
from gatekeeper.server.endpoint import SharedBuffer
from gatekeeper.server.exchanges import Exchanges
from gatekeeper.server.upstreams import Upstreams
from tests.server.peers import BrokerSession, FakeBroker
from tests.support import amqp
from tests.support.amqp_codec import frame, method_frame
from tests.support.process import LOOPBACK
from tests.support.rabbit import RabbitNode

VHOST = b"v2"


class Asked:
    """Exchanges over one broker, with what they do to the epoch."""

    def __init__(self, port: int, username: bytes = b"gatekeeper") -> None:
        upstream = Upstream(
            name="default",
            servers=(Address(host=LOOPBACK, port=port),),
            username=username,
            password=Secret(b"s3rvice"),
        )
        self.epoch = Epoch()
        self.errors: list[BaseException] = []
        upstreams = Upstreams({"default": upstream}, SharedBuffer())
        self.exchanges = Exchanges(upstreams, self.epoch, self.errors.append)

    async def topic(self, name: bytes, vhost: bytes = VHOST) -> bool:
        return await settled(self.exchanges.is_topic(vhost, name))

    async def exists(self, name: bytes, vhost: bytes = VHOST) -> bool:
        return await settled(self.exchanges.exists(vhost, name))

    def at_once(self, name: bytes, vhost: bytes = VHOST) -> bool:
        """Is the answer there without asking?"""
        answer = self.exchanges.is_topic(vhost, name)
        if isinstance(answer, bool):
            return True
        answer.close()  # type: ignore[attr-defined]  # a coroutine that is not wanted
        return False


async def settled(answer: bool | Awaitable[bool]) -> bool:
    return answer if isinstance(answer, bool) else await answer


@pytest.fixture
async def real(broker: RabbitNode) -> AsyncIterator[Asked]:
    asked = Asked(broker.port)
    yield asked
    await asked.exchanges.close()
    assert not asked.errors


@pytest.fixture
async def faked(fake: FakeBroker) -> AsyncIterator[Asked]:
    asked = Asked(fake.port)
    yield asked
    await asked.exchanges.close()
    assert not asked.errors


@pytest.fixture(scope="module")
def owner(broker: RabbitNode) -> Iterator[amqp.Client]:
    """A client straight at the broker, with channel 1 open."""
    with amqp.Client.login(broker.port, "gatekeeper", "s3rvice", VHOST) as client:
        client.open_channel()
        yield client


# --- what the broker's answers mean ---


@dataclass(frozen=True, slots=True)
class Kind:
    type: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


KINDS = [
    Kind(kind, options)
    for kind in ("topic", "direct", "fanout", "headers")
    for options in (
        {},
        {"durable": True},
        {"auto_delete": True},
        {"internal": True},
        {"internal": True, "arguments": {"alternate-exchange": "amq.fanout"}},
        {"durable": True, "internal": True, "arguments": {"x-other": 1}},
    )
]


async def test_every_kind_of_exchange(real: Asked, owner: amqp.Client, broker: RabbitNode) -> None:
    names = {f"kind-{number}".encode(): kind for number, kind in enumerate(KINDS)}
    for name, kind in names.items():
        owner.send(1, "exchange.declare", exchange=name, type=kind.type, **kind.arguments)
        owner.expect("exchange.declare-ok", 1)
    before = {each["name"]: each for each in broker.api("exchanges/v2")}
    for name, kind in names.items():
        assert await real.topic(name) is (kind.type == "topic"), kind
        assert await real.exists(name) is True
    for missing in (b"nothing", b"amq.nothing", b"caf\xc3\xa9", b"x" * 255):
        assert await real.exists(missing) is False
        assert await real.topic(missing) is True
    # Not UTF-8: the broker does not take the question.
    assert await real.topic(b"\xff") is True
    # No question has made or changed anything.
    assert {each["name"]: each for each in broker.api("exchanges/v2")} == before
    for name in names:
        owner.send(1, "exchange.delete", exchange=name)
        owner.expect("exchange.delete-ok", 1)


PREDECLARED = {
    b"amq.direct": False,
    b"amq.fanout": False,
    b"amq.headers": False,
    b"amq.match": False,
    b"amq.topic": True,
    b"amq.rabbitmq.trace": True,
}


async def test_predeclared_exchanges_are_known(real: Asked, broker: RabbitNode) -> None:
    types = {each["name"].encode(): each["type"] for each in broker.api("exchanges/v2")}
    for name, topic in PREDECLARED.items():
        assert real.at_once(name)
        assert await real.topic(name) is topic is (types[name] == "topic")
        assert await real.exists(name) is True
        real.exchanges.changing(VHOST, name)
        assert await real.topic(name) is topic
    assert real.epoch.value == 0


async def test_a_vhost_that_the_broker_does_not_have(real: Asked) -> None:
    assert await real.topic(b"x", b"no such vhost") is True
    assert await real.exists(b"x", b"no such vhost") is True


# --- what is kept ---


async def test_the_end_of_an_answer_bumps_the_epoch_only_if_it_let_something_pass(
    real: Asked, owner: amqp.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.KEEP == 5.0
    monkeypatch.setattr(module, "KEEP", 0.15)
    for name, kind in ((b"keep.d", "direct"), (b"keep.t", "topic")):
        owner.send(1, "exchange.declare", exchange=name, type=kind, auto_delete=True)
        owner.expect("exchange.declare-ok", 1)
    assert await real.exists(b"keep.d")
    assert await real.topic(b"keep.t") is True
    assert real.at_once(b"keep.t")
    await asyncio.sleep(0.2)
    assert not real.at_once(b"keep.t")
    assert real.epoch.value == 0
    assert await real.topic(b"keep.d") is False
    assert real.at_once(b"keep.d")
    await asyncio.sleep(0.2)
    assert real.epoch.value == 1
    assert not real.at_once(b"keep.d")
    await asyncio.sleep(0.2)
    assert real.epoch.value == 1


async def test_declares_and_deletes_that_pass_through(real: Asked, owner: amqp.Client) -> None:
    name = b"passing"
    owner.send(1, "exchange.declare", exchange=name, type="direct")
    owner.expect("exchange.declare-ok", 1)
    first = real.exchanges.changing(VHOST, name)
    real.exchanges.changed(VHOST, name, b"direct", first)  # not kept: it may be an old answer
    assert not real.at_once(name)
    assert await real.topic(name) is False
    # A delete is on its way. The broker would still say "direct", and is not asked.
    change = real.exchanges.changing(VHOST, name)
    assert real.epoch.value == 1
    assert real.at_once(name)
    assert await real.topic(name) is True
    assert await real.exists(name) is True  # that may be asked: it only shapes a refusal
    # The redeclare was confirmed: certain again.
    real.exchanges.changed(VHOST, name, b"topic", change)
    assert real.at_once(name)
    assert await real.topic(name) is True
    # Two more changes are under way: the answer to the one does not end the doubt of the other.
    one, other = (real.exchanges.changing(VHOST, name) for _ in range(2))
    real.exchanges.changed(VHOST, name, b"fanout", one)
    assert await real.topic(name) is True
    real.exchanges.changed(VHOST, name, b"fanout", other)
    assert not real.at_once(name)
    assert await real.topic(name) is False  # the broker says so
    assert real.epoch.value == 1
    owner.send(1, "exchange.delete", exchange=name)
    owner.expect("exchange.delete-ok", 1)


async def test_doubt_ends(real: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP", 0.1)
    real.exchanges.changing(VHOST, b"doubtful")
    assert real.at_once(b"doubtful")
    await asyncio.sleep(0.12)
    assert not real.at_once(b"doubtful")


async def test_answers_and_doubts_are_bounded(
    faked: Asked, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BOUND", 10)
    fake.service = answering(OTHER)
    for number in range(25):
        assert await faked.topic(b"%d" % number) is False
        assert len(faked.exchanges._known) <= 10
    assert faked.epoch.value == 20  # two times ten answers were given up, all relied upon
    for number in range(25):
        faked.exchanges.changing(VHOST, b"%d" % number)
    assert len(faked.exchanges._doubts) <= 10
    assert len(faked.exchanges._doubtful) <= 10
    # More doubts than can be kept: everything is doubtful.
    assert await faked.topic(b"never mentioned") is True
    assert await faked.topic(b"amq.direct") is False


# --- brokers that misbehave ---

OTHER = b"PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x'"
TOPIC = b"PRECONDITION_FAILED - inequivalent arg 'internal' for exchange 'x'"


def closing(text: bytes) -> bytes:
    return method_frame(1, "channel.close", reply_code=406, reply_text=text)


def answering(text: bytes, *, pause: float = 0.0, limit: int = 1 << 30) -> Any:
    """A service hook: this answer to every question, after ``pause`` seconds."""

    async def hook(session: BrokerSession) -> None:
        for _ in range(limit):
            await session.expect("channel.open", 1)
            session.send(1, "channel.open-ok")
            await session.expect("exchange.declare", 1)
            await asyncio.sleep(pause)
            session.write(closing(text))
            await session.expect("channel.close-ok", 1)

    return hook


def saying(data: bytes) -> Any:
    """A service hook: these bytes as the answer to a question."""

    async def hook(session: BrokerSession) -> None:
        await session.expect("channel.open", 1)
        await session.expect("exchange.declare", 1)
        session.write(data)
        await session.at_eof()

    return hook


NONSENSE = {
    "an exchange was made": method_frame(1, "exchange.declare-ok"),
    "connection.close": method_frame(0, "connection.close", reply_code=320, reply_text=b"x"),
    "a close cut short": frame(1, 1, b"\0\x14\0\x28"),
    "a close with its text cut short": frame(1, 1, b"\0\x14\0\x28\x01\x96\xff" + OTHER),
    "an empty method": frame(1, 1, b""),
    "a frame without end": frame(1, 1, b"\0\x14\0\x28", end=0),
    "an enormous frame": b"\x01\0\x01\xff\xff\xff\xff",
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=list(NONSENSE))
async def test_nonsense_counts_as_topic(faked: Asked, fake: FakeBroker, data: bytes) -> None:
    fake.service = saying(data)
    assert await faked.topic(b"x") is True
    assert await faked.exists(b"x") is True
    assert not faked.at_once(b"x")
    fake.service = answering(OTHER)
    assert await faked.topic(b"y") is False


@pytest.mark.parametrize("text", [b"", b"ACCESS_REFUSED - access to exchange 'x' refused", b"\xff"])
async def test_another_refusal_counts_as_topic(faked: Asked, fake: FakeBroker, text: bytes) -> None:
    fake.service = answering(text)
    assert await faked.topic(b"x") is True
    assert await faked.exists(b"x") is True
    assert not faked.at_once(b"x")
    assert len(fake.all) == 1


async def test_silence_counts_as_topic(
    faked: Asked, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.ANSWER_TIMEOUT == 5.0
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.1)
    fake.service = BrokerSession.never
    assert await faked.topic(b"x") is True


async def test_a_broker_that_is_gone_counts_as_topic() -> None:
    async with FakeBroker() as fake:
        asked = Asked(fake.port)
        fake.service = answering(OTHER)
        assert await asked.topic(b"x") is False
    assert await asked.topic(b"y") is True
    assert await asked.exists(b"y") is True
    await asked.exchanges.close()


async def test_a_lost_connection_is_made_again(faked: Asked, fake: FakeBroker) -> None:
    fake.service = answering(OTHER, limit=1)
    assert await faked.topic(b"a") is False
    async with asyncio.timeout(2):
        await fake.all[0].ended.wait()
    assert await faked.topic(b"b") is False
    assert len(fake.all) == 2


async def test_without_a_service_account_nothing_is_asked(fake: FakeBroker) -> None:
    asked = Asked(fake.port, username=b"")
    assert await asked.topic(b"x") is True
    assert await asked.exists(b"x") is True
    assert not fake.all
    await asked.exchanges.close()


# --- many at once ---


async def test_one_question_at_a_time_and_one_for_all_who_ask(
    faked: Asked, fake: FakeBroker
) -> None:
    fake.service = answering(OTHER, pause=0.01)
    names = [b"a", b"b", b"c"]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(faked.topic(name)) for name in names * 20]
    assert not any(task.result() for task in tasks)
    assert len(fake.all) == 1
    asked = [m["exchange"] for _, m in fake.all[0].methods if m.name == "exchange.declare"]
    assert sorted(asked) == names
    # Never a second question before the first was answered and its channel closed.
    assert [name for name in fake.all[0].names if name.startswith("channel")] == [
        "channel.open",
        "channel.close-ok",
    ] * 3


async def test_who_gives_up_waiting_spoils_it_for_nobody(faked: Asked, fake: FakeBroker) -> None:
    fake.service = answering(OTHER, pause=0.1)
    loop = asyncio.get_running_loop()
    first, second = (loop.create_task(faked.topic(b"x")) for _ in range(2))
    await asyncio.sleep(0.03)
    first.cancel()
    assert await second is False


@pytest.mark.parametrize("change", ["declared", "forgotten"])
async def test_a_change_while_the_question_is_under_way(
    faked: Asked, fake: FakeBroker, change: str
) -> None:
    """The answer may be older than the change: it does not count, and is not kept."""
    fake.service = answering(OTHER, pause=0.1)
    question = asyncio.get_running_loop().create_task(faked.topic(b"x"))
    await asyncio.sleep(0.05)
    if change == "declared":
        faked.exchanges.changed(VHOST, b"x", b"topic", 0)
    else:
        faked.exchanges.changing(VHOST, b"x")
    assert await question is True
    assert (VHOST, b"x") not in faked.exchanges._known


async def test_an_idle_connection_is_closed(
    faked: Asked, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.IDLE == 30.0
    monkeypatch.setattr(module, "IDLE", 0.1)
    fake.service = answering(TOPIC)
    assert await faked.topic(b"x") is True
    async with asyncio.timeout(2):
        await fake.all[0].ended.wait()
    assert await faked.topic(b"y") is True
    assert len(fake.all) == 2


async def test_closing_says_goodbye(fake: FakeBroker) -> None:
    asked = Asked(fake.port)

    async def once(session: BrokerSession) -> None:
        await answering(TOPIC, limit=1)(session)
        await session.serve()

    fake.service = once
    assert await asked.topic(b"x") is True
    await asked.exchanges.close()
    async with asyncio.timeout(2):
        await fake.all[0].ended.wait()
    assert fake.all[0].names[-1] == "connection.close"
