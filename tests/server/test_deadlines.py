"""Time limits that share a timer: as ``asyncio.timeout``, one by one."""

from __future__ import annotations

import asyncio

import pytest

from gatekeeper.server.deadlines import TimeLimit

SHORT, LONG = 0.05, 30.0


async def test_a_block_that_takes_too_long() -> None:
    limit = TimeLimit(SHORT)
    with pytest.raises(TimeoutError), limit.begin():
        await asyncio.sleep(LONG)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # nothing is left of the cancellation


async def test_a_block_in_time_and_one_without_limit() -> None:
    limit = TimeLimit(SHORT)
    with limit.begin():
        pass
    with TimeLimit(None).begin():
        await asyncio.sleep(2 * SHORT)
    await asyncio.sleep(2 * SHORT)  # what was in time is not cancelled later


async def test_a_limit_that_is_lifted() -> None:
    with TimeLimit(SHORT).begin() as deadline:
        deadline.lift()
        await asyncio.sleep(2 * SHORT)


async def test_each_has_its_own_time() -> None:
    """The timer is there before the second begins, and after the first is gone."""
    limit = TimeLimit(4 * SHORT)
    ended: list[tuple[str, float]] = []
    loop = asyncio.get_running_loop()

    async def wait(name: str, seconds: float) -> None:
        begun = loop.time()
        try:
            with limit.begin():
                await asyncio.sleep(seconds)
        except TimeoutError:
            name += " late"
        ended.append((name, loop.time() - begun))

    async with asyncio.TaskGroup() as group:
        group.create_task(wait("first", SHORT))
        group.create_task(wait("second", LONG))
        await asyncio.sleep(3 * SHORT)
        group.create_task(wait("third", LONG))
        group.create_task(wait("fourth", SHORT))
    assert [name for name, _ in ended] == ["first", "second late", "fourth", "third late"]
    assert all(took >= 4 * SHORT * 0.9 for name, took in ended if name.endswith("late"))
    assert limit._timer is None or not limit._row


async def test_many_at_once() -> None:
    limit = TimeLimit(SHORT)

    async def wait() -> None:
        with limit.begin():
            await asyncio.sleep(LONG)

    answers = await asyncio.gather(*(wait() for _ in range(500)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {TimeoutError}


async def test_a_cancellation_from_outside_stays_one() -> None:
    limit = TimeLimit(SHORT)
    reached = asyncio.Event()

    async def wait() -> None:
        with limit.begin():
            reached.set()
            await asyncio.sleep(LONG)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(wait())
        await reached.wait()
        task.cancel()
    assert task.cancelled()
    assert not limit._row

    async def slow_to_end() -> None:
        with limit.begin():
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                await asyncio.sleep(2 * SHORT)  # the time is over meanwhile
                raise

    async with asyncio.TaskGroup() as group:
        task = group.create_task(slow_to_end())
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()


async def test_an_error_of_the_block_is_its_own() -> None:
    with pytest.raises(ValueError, match="mine"), TimeLimit(SHORT).begin():
        raise ValueError("mine")


def test_outside_of_a_task() -> None:
    with pytest.raises(RuntimeError), TimeLimit(SHORT).begin():
        pass
