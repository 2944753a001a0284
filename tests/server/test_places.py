"""max-channels of a user over all workers: what is granted, what is given back, what is lost."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import cast

import pytest

from gatekeeper.logs import Logger
from gatekeeper.server import channel as channel_module
from gatekeeper.server import member as member_module
from gatekeeper.server import places as places_module
from gatekeeper.server.control import Link
from gatekeeper.server.member import Member
from gatekeeper.server.messages import (
    AdmitChannel,
    ChannelAdmitted,
    ChannelsChanged,
    Message,
    encode,
)
from gatekeeper.server.registry import Live
from tests.server.plane import Plane, Worker, until


def held(live: Live) -> int:
    assert live.session is not None
    return len(live.session.channels)


async def test_one_limit_for_all_workers(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    first, second = one.running(1), two.running(2)
    places = [await one.open_channel(first, 3), await two.open_channel(second, 3)]
    places += [await one.open_channel(first, 3), await two.open_channel(second, 3)]
    assert places == ["granted", "granted", "granted", "reached"]
    one.close_channel(first)
    await until(lambda: plane.hub.channel_count(b"alice") == 2)
    assert await two.open_channel(second, 3) == "granted"
    assert await one.open_channel(first, 3) == "reached"
    # Another user has a limit of its own.
    assert await one.open_channel(one.running(3, b"bob"), 1) == "granted"


async def test_what_was_open_before_there_was_a_limit_counts(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    first, second = one.running(1), two.running(2)
    for _ in range(3):
        assert await two.open_channel(second) == "granted"
    assert plane.hub.channel_count(b"alice") is None, "without a limit nobody counts"
    assert await one.open_channel(first, 3) == "reached"
    assert await one.open_channel(first, 4) == "granted"
    # A worker that has not heard of the limit yet opens without asking, and says so.
    assert await two.open_channel(second) == "granted"
    await until(lambda: plane.hub.channel_count(b"alice") == 5)
    assert await one.open_channel(first, 5) == "reached"


async def test_of_many_at_once_exactly_as_many_as_fit_are_granted(plane: Plane) -> None:
    workers = [await plane.worker(number) for number in (1, 2, 3)]
    lives = [
        (worker, worker.running(3 * n + at + 1))
        for n in range(20)
        for at, worker in enumerate(workers)
    ]
    places = await asyncio.gather(*(worker.open_channel(live, 7) for worker, live in lives))
    assert places.count("granted") == 7
    assert places.count("reached") == 53
    assert plane.hub.channel_count(b"alice") == 7


async def test_an_ended_connection_gives_back_what_it_held(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    first, second = one.running(1), two.running(2)
    for _ in range(3):
        await one.open_channel(first, 3)
    assert await two.open_channel(second, 3) == "reached"
    one.registry.remove(first)
    one.close_channel(first)  # what the session still does then must not count twice
    await until(lambda: plane.hub.channel_count(b"alice") == 0)
    assert [await two.open_channel(second, 3) for _ in range(4)].count("granted") == 3


async def test_a_dead_workers_channels_are_free(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    await one.open_channel(one.running(1), 1)
    second = two.running(2)
    assert await two.open_channel(second, 1) == "reached"
    await one.member.close()
    await until(one.link.gone.is_set)
    assert await two.open_channel(second, 1) == "granted"


async def test_a_worker_that_takes_a_dead_ones_place_is_counted(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    second = two.running(2)
    assert await two.open_channel(second, 3) == "granted"
    await one.member.close()
    await until(one.link.gone.is_set)
    again = await plane.worker(1)
    third = again.running(5)
    # One without asking, one by asking: the watch is known to it.
    await until(lambda: b"alice" in again.member._watched)
    assert await again.open_channel(third) == "granted"
    assert await again.open_channel(third, 3) == "granted"
    assert await two.open_channel(second, 3) == "reached"
    again.registry.remove(third)
    await until(lambda: plane.hub.channel_count(b"alice") == 1)


async def test_the_watch_ends_with_the_last_connection_and_may_begin_again(plane: Plane) -> None:
    one, two = await plane.worker(1), await plane.worker(2)
    for number in range(1, 20, 2):
        live = one.running(number)
        assert await one.open_channel(live, 1) == "granted"
        assert await one.open_channel(live, 1) == "reached"
        one.registry.remove(live)
        await until(lambda: plane.hub.channel_count(b"alice") is None)
        await until(lambda: not one.member._watched and not two.member._watched)
    assert not plane.hub._places._watches


async def test_a_place_that_nobody_wants_any_more_is_given_back(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client goes while it waits; or the answer is too late."""
    one = await plane.worker(1)
    stays, goes = one.running(1), one.running(3)
    asked = asyncio.get_running_loop().create_task(one.open_channel(goes, 1))
    await asyncio.sleep(0)
    one.registry.remove(goes)
    await asked
    await until(lambda: plane.hub.channel_count(b"alice") == 0)
    assert await one.open_channel(stays, 1) == "granted"
    one.close_channel(stays)

    monkeypatch.setattr(member_module, "ADMIT_TIMEOUT", 0.05)
    received = plane.hub._received
    late: list[tuple[Link, Message]] = []
    monkeypatch.setattr(plane.hub, "_received", lambda *what: late.append(what))
    assert await one.open_channel(stays, 1) == "unknown"
    await until(lambda: any(isinstance(message, AdmitChannel) for _, message in late))
    monkeypatch.setattr(plane.hub, "_received", received)
    for what in late:
        received(*what)
    await until(lambda: plane.hub.channel_count(b"alice") == 0)
    assert await one.open_channel(stays, 1) == "granted"
    assert await one.open_channel(stays, 1) == "reached"


async def test_an_answer_counts_although_the_waiting_was_given_up(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled in the same turn in which the place comes: the connection has it, and loses it
    when it ends."""
    one = await plane.worker(1)
    live = one.running(1)
    waiting = asyncio.get_running_loop().create_task(one.open_channel(live, 1))
    admitted = one.member._channel_admitted

    def and_cancelled(message: ChannelAdmitted) -> None:
        admitted(message)
        waiting.cancel()

    monkeypatch.setattr(one.member, "_channel_admitted", and_cancelled)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert live.reserved
    monkeypatch.undo()
    one.registry.remove(live)
    await until(lambda: not plane.hub.channel_count(b"alice"))
    assert await one.open_channel(one.running(3), 1) == "granted"


async def test_no_place_is_given_while_a_count_is_missing(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_module, "ADMIT_TIMEOUT", 0.05)
    one = await plane.worker(1)
    silent, link = await plane.raw(2)
    live = one.running(1)
    assert await one.open_channel(live, 5) == "unknown"
    assert await one.open_channel(live) == "granted"
    silent.close()
    await until(link.gone.is_set)
    assert await one.open_channel(live, 2) == "granted"
    assert await one.open_channel(live, 2) == "reached"
    assert plane.hub.channel_count(b"alice") == held(live) == 2


async def test_who_waits_for_a_count_is_bounded(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places_module, "WAITING_LIMIT", 3)
    one = await plane.worker(1)
    silent, _ = await plane.raw(2)
    live = one.running(1)
    waiting = [asyncio.get_running_loop().create_task(one.open_channel(live, 5)) for _ in range(5)]
    await until(lambda: sum(task.done() for task in waiting) == 2)
    assert [task.result() for task in waiting if task.done()] == ["unknown"] * 2
    silent.close()
    assert sorted(await asyncio.gather(*waiting)) == ["granted"] * 3 + ["unknown"] * 2


async def test_a_supervisor_that_is_gone_refuses(plane: Plane) -> None:
    one = await plane.worker(1)
    live = one.running(1)
    assert one.link.channel is not None
    one.link.channel.close()
    await until(lambda: one.stops == [False])
    assert await one.open_channel(live, 5) == "unknown"
    assert await one.open_channel(live) == "granted"


async def test_old_news_are_no_part_of_a_new_count(plane: Plane) -> None:
    """A worker's last words on one watch arrive when the next has begun."""
    one = await plane.worker(1)
    sock, _ = await plane.raw(2)
    live = one.running(1)
    waiting = asyncio.get_running_loop().create_task(one.open_channel(live, 5))
    await until(lambda: plane.hub.channel_count(b"alice") is not None)
    sock.sendall(encode(ChannelsChanged(b"alice", 4, 0)))
    await asyncio.sleep(0.02)
    assert plane.hub.channel_count(b"alice") == 0
    sock.close()
    assert await waiting == "granted"
    assert plane.hub.channel_count(b"alice") == 1


async def test_while_the_supervisor_does_not_read_the_news_are_merged(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "WRITE_HIGH", 1000)
    ours, theirs = socket.socketpair()
    member = await Member.over(theirs, cast("Logger", plane.log))
    plane.stack.push_async_callback(member.close)
    worker = Worker(member, Link(1))
    live = worker.running(1)
    member._watched.add(b"alice")
    for _ in range(200):
        for _ in range(50):
            await worker.open_channel(live)
            worker.close_channel(live)
        await asyncio.sleep(0)
    assert len(member._untold) <= 1
    ours.close()


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_comes_and_goes(plane: Plane, seed: int) -> None:
    """Logins, channels, ends, deaths of workers: in the end the hub counts what is open."""
    chance = random.Random(seed)
    workers = {number: await plane.worker(number) for number in (1, 2, 3)}
    lives: dict[Live, int] = {}
    numbers = iter(range(1, 10_000))
    limit = 6

    async def open_one(worker: Worker, live: Live) -> None:
        limited = chance.random() < 0.9
        place = await worker.open_channel(live, limit if limited else None)
        assert place in {"granted", "reached"}

    for _ in range(300):
        at = chance.choice(list(workers))
        mine = [live for live, worker in lives.items() if worker == at]
        dice = chance.random()
        if dice < 0.2 or not mine:
            lives[workers[at].running(next(numbers))] = at
        elif dice < 0.65:
            some = chance.sample(mine, min(len(mine), 3))  # a session asks for one at a time
            await asyncio.gather(*(open_one(workers[at], live) for live in some))
        elif dice < 0.8:
            live = chance.choice(mine)
            if held(live):
                workers[at].close_channel(live)
        elif dice < 0.95:
            live = chance.choice(mine)
            del lives[live]
            workers[at].registry.remove(live)
        else:
            await workers[at].member.close()
            await until(workers[at].link.gone.is_set)
            for live in mine:
                del lives[live]
            workers[at] = await plane.worker(at)
    at = 1
    last = workers[at].running(next(numbers))
    lives[last] = at
    await workers[at].open_channel(last, 10_000)
    await until(lambda: plane.hub.channel_count(b"alice") == sum(map(held, lives)))
    for live, worker_number in lives.items():
        workers[worker_number].registry.remove(live)
    await until(lambda: not plane.hub._places._watches)
    assert plane.hub.user_count(b"alice") == 0
