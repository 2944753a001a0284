"""Hub and members over real socket pairs, in one event loop: what is counted, asked and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, cast

import pytest

from gatekeeper.errors import AmqpError, StoreError
from gatekeeper.logs import Logger
from gatekeeper.model import Peer
from gatekeeper.server import channel as channel_module
from gatekeeper.server import member as member_module
from gatekeeper.server.channel import Channel, NoAnswerError
from gatekeeper.server.control import Link
from gatekeeper.server.describe import connection_info
from gatekeeper.server.infos import PROPERTIES_LIMIT, ClientProperties
from gatekeeper.server.member import Member
from gatekeeper.server.messages import (
    NAME_LIMIT,
    Admit,
    Done,
    Ended,
    Message,
    Opened,
    Refresh,
    encode,
)
from gatekeeper.server.registry import Live, Registry
from gatekeeper.server.shared import ConnectionNumbers
from tests.server.plane import Plane, Worker, until


async def test_limits_hold_over_all_workers(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    first = one.live(1)
    assert await one.admit(first, user_limit=2) == "none"
    assert await two.admit(two.live(2), user_limit=2) == "none"
    assert await two.admit(two.live(4), user_limit=2) == "user"
    assert await one.admit(one.live(3), user_limit=2) == "user"
    assert await one.admit(one.live(5, b"bob"), vhost_limit=2, user_limit=5) == "vhost"
    assert (len(one.registry), len(two.registry)) == (1, 1)
    one.registry.remove(first)
    await until(lambda: plane.hub.user_count(b"alice") == 1)
    assert await two.admit(two.live(6), user_limit=2) == "none"
    assert plane.hub.user_count(b"alice") == 2
    assert plane.hub.user_count(b"bob") == 0


@pytest.mark.parametrize("size", [256, NAME_LIMIT])
async def test_a_user_name_may_be_longer_than_a_short_string(plane: Plane, size: int) -> None:
    """A directory's user, a token's subject, a certificate's DN: one client's name must not
    break its worker's line to the supervisor."""
    one, name = await plane.worker(1), b"\xff" * size
    assert await one.admit(one.live(1, name)) == "none"
    assert await one.admit(one.live(2, name), user_limit=2) == "none"
    assert await one.admit(one.live(3, name), user_limit=2) == "user"
    live = one.running(4, name)
    live.properties = ClientProperties(b"\xff" * PROPERTIES_LIMIT)
    assert await one.open_channel(live, limit=5) == "granted"
    listed = await plane.hub.list_connections()
    assert [info.user for info in listed.by_worker[1]] == [name] * 3
    assert plane.hub.user_count(name) == 3
    assert not one.stops
    assert not plane.log.lines


async def test_a_user_name_that_cannot_be_told_is_refused(plane: Plane) -> None:
    one = await plane.worker(1)
    for limit in (None, 5):
        with pytest.raises(NoAnswerError, match="user name"):
            await one.admit(one.live(1, b"u" * (NAME_LIMIT + 1)), user_limit=limit)
    assert len(one.registry) == 0
    assert await one.admit(one.live(2)) == "none"
    assert not one.stops


async def test_the_vhost_limit_is_looked_at_first(plane: Plane) -> None:
    one = await plane.worker(1)
    assert await one.admit(one.live(1), vhost_limit=0, user_limit=0) == "vhost"
    assert await one.admit(one.live(2), vhost_limit=1, user_limit=0) == "user"


async def test_connections_without_a_limit_count_once_there_is_one(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    lives = [one.live(number) for number in range(1, 20, 2)]
    for live in lives:
        assert await one.admit(live) == "none"
    await until(lambda: plane.hub.vhost_count(b"/") == 10)
    assert await two.admit(two.live(2), vhost_limit=10) == "vhost"
    one.registry.remove(lives[0])
    await until(lambda: plane.hub.vhost_count(b"/") == 9)
    assert await two.admit(two.live(4), vhost_limit=10) == "none"
    assert plane.hub.connection_counts() == {1: 9, 2: 1}


async def test_of_many_at_once_exactly_as_many_as_fit_get_in(plane: Plane) -> None:
    workers = [await plane.worker(number) for number in (1, 2, 3)]
    outcomes = await asyncio.gather(
        *(
            worker.admit(worker.live(3 * n + at + 1), user_limit=7)
            for n in range(20)
            for at, worker in enumerate(workers)
        )
    )
    assert outcomes.count("none") == 7
    assert outcomes.count("user") == 53
    assert sum(len(worker.registry) for worker in workers) == plane.hub.user_count(b"alice") == 7


async def test_a_dead_workers_places_are_free(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    assert await one.admit(one.live(1), user_limit=1) == "none"
    assert await two.admit(two.live(2), user_limit=1) == "user"
    await one.member.close()
    await until(one.link.gone.is_set)
    assert await two.admit(two.live(4), user_limit=1) == "none"
    assert plane.hub.workers == [2]


async def test_a_silent_supervisor_refuses_and_takes_nobodys_place(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert member_module.ADMIT_TIMEOUT == 2.0
    monkeypatch.setattr(member_module, "ADMIT_TIMEOUT", 0.05)
    one = await plane.worker(1)
    received = plane.hub._received
    late: list[tuple[Link, Message]] = []
    monkeypatch.setattr(plane.hub, "_received", lambda *what: late.append(what))
    with pytest.raises(NoAnswerError, match=r"no answer within 0\.05 s"):
        await one.admit(one.live(1), user_limit=1)
    assert len(one.registry) == 0
    await until(lambda: len(late) == 2)
    for what in late:
        received(*what)
    assert [type(message) for _, message in late] == [Admit, Ended]
    assert plane.hub.user_count(b"alice") == 0


async def test_a_supervisor_that_is_gone_refuses_at_once(plane: Plane) -> None:
    one = await plane.worker(1)
    assert one.link.channel is not None
    one.link.channel.close()
    await until(lambda: one.stops == [False])
    with pytest.raises(NoAnswerError):
        await one.admit(one.live(1), user_limit=1)
    assert await one.admit(one.live(3)) == "none"
    assert plane.log.lines == ["the supervisor is gone: this worker stops in order"]


async def test_a_login_that_is_given_up_gives_its_place_back(plane: Plane) -> None:
    one = await plane.worker(1)
    task = asyncio.get_running_loop().create_task(one.admit(one.live(1), user_limit=1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(one.registry) == 0
    assert await one.admit(one.live(3), user_limit=1) == "none"


async def test_a_revocation_finds_who_waits_for_a_place(plane: Plane) -> None:
    one = await plane.worker(1)
    live = one.live(1)
    task = asyncio.get_running_loop().create_task(one.admit(live, user_limit=1))
    await asyncio.sleep(0)
    assert one.registry.user_deleted(b"alice") == 1
    assert await task == "none"
    assert live.doomed is not None
    assert live.doomed.explanation == b"user 'alice' is deleted"


async def test_listing(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    for number in range(1, 301, 2):
        await one.admit(one.live(number))
    odd = two.live(2, b"\xff\0", b"v\xe4")
    await two.admit(odd)
    answers = await plane.hub.list_connections()
    assert [info.number for info in answers.by_worker[1]] == list(range(1, 301, 2))
    assert answers.by_worker[2] == [connection_info(odd)]
    assert answers.by_worker[2][0].name == "10.0.0.1:1002 -> 10.0.0.2:5672"
    assert not answers.silent


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({}, {1, 2, 3, 4}),
        ({"user": b"alice"}, {1, 2}),
        ({"vhost": b"v2"}, {2, 3}),
        ({"user": b"alice", "vhost": b"v2"}, {2}),
        ({"number": 4}, {4}),
        ({"number": 4, "user": b"alice"}, set()),
        ({"number": 0}, set()),
        ({"user": b""}, set()),
    ],
)
async def test_closing(plane: Plane, which: dict[str, Any], expected: set[int]) -> None:
    workers = [await plane.worker(1), await plane.worker(2)]
    people = {1: (b"alice", b"/"), 2: (b"alice", b"v2"), 3: (b"bob", b"v2"), 4: (b"bob", b"/")}
    closed: dict[int, AmqpError] = {}
    for number, names in people.items():
        worker = workers[(number - 1) % 2]
        live = worker.live(number, *names)
        live.close = lambda error, number=number: closed.__setitem__(number, error)  # type: ignore[misc]
        await worker.admit(live)
    answers = await plane.hub.close_connections(reason=b"because", **which)
    assert set(closed) == expected
    assert sum(answers.by_worker.values()) == len(expected)
    assert {str(error) for error in closed.values()} <= {"320 CONNECTION_FORCED - because"}


async def test_a_change_reaches_all_but_who_made_it(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    one.member.changed()
    await until(lambda: plane.changed == [1])
    await plane.hub.refresh(but=1)
    assert (one.refreshed, two.refreshed) == (0, 1)
    two.failure = StoreError("store.url: disk full; free some")
    answers = await plane.hub.refresh()
    assert answers.by_worker == {1: None}
    assert answers.silent == {2: "store.url: disk full; free some"}


async def test_news_of_an_exchange_reach_the_others(plane: Plane) -> None:
    workers = [await plane.worker(number) for number in (1, 2, 3)]
    workers[1].member.exchange_changed(b"/", b"e\xff")
    await until(lambda: workers[0].exchanges and workers[2].exchanges)
    await asyncio.sleep(0.02)
    assert [worker.exchanges for worker in workers] == [[(b"/", b"e\xff")], [], [(b"/", b"e\xff")]]
    assert plane.exchanges == [(b"/", b"e\xff")], "the supervisor explains by them"


async def test_a_silent_worker_delays_nobody_else(plane: Plane) -> None:
    one = await plane.worker(1)
    await plane.raw(2)
    started = asyncio.get_running_loop().time()
    answers = await plane.hub.list_connections(within=0.1)
    assert asyncio.get_running_loop().time() - started < 1
    assert answers.by_worker == {1: []}
    assert answers.silent == {2: "no answer within 0.1 s"}
    assert await one.admit(one.live(1), user_limit=1) == "none"


async def test_statistics(plane: Plane) -> None:
    one = await plane.worker(1)
    await one.admit(one.live(1))
    figures = (await plane.hub.statistics()).by_worker[1]
    assert set(figures) == {"pid", "connections", "cpu_ms"}
    assert figures["connections"] == 1


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\0\0\0\2{}", encode(Refresh(1))],
    ids=["too long", "no message", "not a worker's"],
)
async def test_a_worker_that_talks_nonsense_is_cut_off(plane: Plane, data: bytes) -> None:
    sock, link = await plane.raw(1)
    sock.sendall(encode(Opened(1, b"alice", b"/")) + data + encode(Opened(3, b"alice", b"/")))
    async with asyncio.timeout(3):
        await link.gone.wait()
    assert plane.hub.workers == []
    assert plane.hub.user_count(b"alice") == 0
    assert len(plane.log.lines) == 1
    assert plane.log.lines[0].startswith("worker 1: control channel broken: ")


async def test_answers_that_nobody_waits_for_are_dropped(plane: Plane) -> None:
    sock, link = await plane.raw(1)
    sock.sendall(encode(Done(77, {})) + encode(Opened(1, b"alice", b"/")))
    await until(lambda: plane.hub.user_count(b"alice") == 1)
    assert not link.gone.is_set()


async def test_a_worker_that_reads_nothing_is_bounded(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "WRITE_LIMIT", 10_000)
    _, link = await plane.raw(1)
    assert link.channel is not None
    said = ""
    async with asyncio.timeout(10):
        while "does not read" not in said:
            with pytest.raises(NoAnswerError) as caught:
                await link.channel.ask(Refresh, 0)
            said = str(caught.value)
    assert link.channel._transport is not None
    assert link.channel._transport.get_write_buffer_size() < 11_000
    assert not link.channel._waiting
    assert not link.gone.is_set()
    plane.hub.stop()  # it cannot be told, so it is cut off
    async with asyncio.timeout(3):
        await link.gone.wait()


async def test_while_the_supervisor_does_not_read_the_news_are_merged(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened and closed many times over: what waits is bounded by what is open or was told."""
    monkeypatch.setattr(channel_module, "WRITE_HIGH", 1000)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    member = await Member.over(theirs, cast("Logger", plane.log))
    plane.stack.push_async_callback(member.close)
    worker = Worker(member, Link(1))
    stays = worker.live(1)
    await worker.admit(stays)
    number = 1
    for _ in range(200):
        for _ in range(50):
            number += 2
            live = worker.live(number)
            await worker.admit(live)
            worker.registry.remove(live)
        await asyncio.sleep(0)
    opened = [worker.live(n) for n in range(number + 2, number + 20_002, 2)]
    for live in opened:
        await worker.admit(live)
    await asyncio.sleep(0.01)
    for live in opened:
        worker.registry.remove(live)
    assert len(member._untold) <= 10_000
    told: dict[int, bool] = {}
    from gatekeeper.server.messages import Frames

    frames = Frames()
    async with asyncio.timeout(5):
        while member._untold or [n for n, is_open in told.items() if is_open] != [1]:
            with contextlib.suppress(BlockingIOError):
                for message in frames.feed(ours.recv(65536)):
                    assert isinstance(message, Opened | Ended)
                    assert told.get(message.number, False) is isinstance(message, Ended)
                    told[message.number] = isinstance(message, Opened)
            await asyncio.sleep(0)
    ours.close()


async def test_what_is_said_before_the_worker_is_up_is_done_then(plane: Plane) -> None:
    ours, theirs = socket.socketpair()
    member = await Member.over(theirs, cast("Logger", plane.log))
    await plane.hub.add(1, ours)
    plane.stack.push_async_callback(member.close)
    plane.hub.stop(hurry=True)
    await asyncio.sleep(0.02)
    assert Worker(member, Link(1)).stops == [True]


async def test_a_worker_that_is_up_after_the_supervisor_has_gone(plane: Plane) -> None:
    ours, theirs = socket.socketpair()
    member = await Member.over(theirs, cast("Logger", plane.log))
    plane.stack.push_async_callback(member.close)
    ours.close()
    await asyncio.sleep(0.02)
    assert Worker(member, Link(1)).stops == [False]


async def test_why_a_worker_cannot_start_is_passed_on(plane: Plane) -> None:
    one = await plane.worker(1)
    await one.member.failed("cannot listen on x; y")
    async with asyncio.timeout(3):
        await one.link.settled.wait()
    assert one.link.addresses is None
    assert one.link.failure == "cannot listen on x; y"


async def test_a_channel_reports_its_end_once() -> None:
    ours, theirs = socket.socketpair()
    ends: list[str] = []
    channel = await Channel.over(ours, lambda _message: None, ends.append)
    theirs.close()
    await until(lambda: ends == [""])
    assert not channel.send(Refresh(1))
    channel.close("again")
    await channel.flush_and_close(0.1)
    await asyncio.sleep(0.01)
    assert ends == [""]


def test_numbers_are_never_shared() -> None:
    numbers = ConnectionNumbers(3)
    workers = {worker: numbers.of(worker) for worker in (1, 2, 3)}
    taken = [next(workers[worker]) for worker in (1, 2, 1, 1, 3)]
    assert taken == [1, 2, 4, 7, 3]
    successor = numbers.of(1)
    assert [next(successor), next(successor)] == [10, 13]
    assert next(workers[2]) == 5


async def test_one_process_counts_by_itself() -> None:
    registry = Registry()
    first = Live(1, Peer("h", 1), b"u", b"v")
    assert await registry.admit(first, vhost_limit=1, user_limit=1) == "none"
    second = Live(2, Peer("h", 1), b"u", b"v")
    assert await registry.admit(second, vhost_limit=None, user_limit=1) == "user"
    assert await registry.admit(second, vhost_limit=1, user_limit=1) == "vhost"
    registry.remove(first)
    assert await registry.admit(second, vhost_limit=1, user_limit=1) == "none"


async def test_news_of_exchanges_leave_room_for_what_counts(plane: Plane) -> None:
    """A client that declares without end costs neither its worker's clients their places, nor a
    worker that is slow to read its line."""
    one = await plane.worker(1)
    slow, link = await plane.raw(2)
    name = b"x" * 250

    def declare() -> None:
        for _ in range(6000):  # 2 MB, without a turn of the loop
            one.member.exchange_changed(b"/", name)

    declare()
    assert await one.admit(one.live(1), user_limit=5) == "none"
    for number in range(3, 9, 2):
        declare()
        assert await one.admit(one.live(number), user_limit=5) == "none"
    slow.send(encode(Admit(1, 2, b"bob", b"/", None, 5)))
    await until(lambda: plane.hub.user_count(b"bob") == 1)
    assert link.channel is not None
    assert link.channel.open
    assert not one.stops


async def test_names_that_nobody_can_have_are_closed_without_asking(plane: Plane) -> None:
    """An administrator may type anything: it must not break the line to every worker."""
    one = await plane.worker(1)
    for names in ({"user": b"u" * (NAME_LIMIT + 1)}, {"vhost": b"v" * 10**6}):
        answers = await plane.hub.close_connections(reason=b"bye", **names)
        assert (answers.by_worker, answers.silent) == ({}, {})
    assert await one.admit(one.live(1), user_limit=5) == "none"
    assert not one.stops
