"""Who is connected where: counts, ends, and tasks that have owners."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.errors import AmqpError
from gatekeeper.model import Peer
from gatekeeper.server.registry import Live, Registry
from gatekeeper.server.tasks import Owner

PEER = Peer("127.0.0.1", 1)


def live(user: bytes, vhost: bytes = b"/", number: int = 1) -> Live:
    return Live(number, PEER, user, vhost)


names = st.sampled_from([b"a", b"b", b"c"])


@given(st.lists(st.tuples(names, names, st.booleans()), max_size=40))
def test_counts_are_those_of_what_is_there(steps: list[tuple[bytes, bytes, bool]]) -> None:
    """Whatever comes and goes, twice or never added."""
    registry = Registry()
    there: list[Live] = []
    for user, vhost, add in steps:
        if add:
            new = live(user, vhost)
            registry.add(new)
            there.append(new)
        elif there:
            gone = there.pop(0)
            registry.remove(gone)
            registry.remove(gone)
        else:
            registry.remove(live(user, vhost))
        assert len(registry) == len(there)
        assert set(registry) == set(there)
        for name in (b"a", b"b", b"c"):
            assert registry.user_count(name) == sum(each.user == name for each in there)
            assert registry.vhost_count(name) == sum(each.vhost == name for each in there)


def test_an_end_reaches_those_it_means_running_or_not() -> None:
    registry = Registry()
    running, opening, other = live(b"a"), live(b"a", b"v"), live(b"b", b"v")
    told: list[AmqpError] = []
    running.close = told.append
    for each in (running, opening, other):
        registry.add(each)
    assert registry.user_deleted(b"a") == 2
    assert [str(error) for error in told] == ["320 CONNECTION_FORCED - user 'a' is deleted"]
    assert opening.doomed is not None
    assert str(opening.doomed) == "320 CONNECTION_FORCED - user 'a' is deleted"
    assert other.doomed is None
    assert registry.vhost_deleted(b"v") == 2
    assert str(other.doomed) == "320 CONNECTION_FORCED - vhost 'v' is deleted"
    assert registry.shutdown() == 3
    assert str(told[-1]).endswith("with reason 'shutdown'")


def test_an_end_may_take_others_with_it() -> None:
    """Closing one connection may unregister another while the loop runs."""
    registry = Registry()
    first, second = live(b"a", number=1), live(b"a", number=2)
    first.close = lambda _error: registry.remove(second)
    second.close = lambda _error: registry.remove(first)
    registry.add(first)
    registry.add(second)
    assert registry.shutdown() == 2


async def test_an_owner_reports_failures_and_ends_what_it_holds() -> None:
    errors: list[BaseException] = []
    owner = Owner(errors.append)
    ended: list[str] = []

    async def fails() -> None:
        raise ValueError("told")

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("waits")

    owner.start(fails())
    owner.start(waits())
    await asyncio.sleep(0.01)
    assert [str(error) for error in errors] == ["told"]
    assert len(owner) == 1
    await owner.close()
    assert ended == ["waits"]
    assert len(owner) == 0
    assert len(errors) == 1
    await owner.empty()


async def test_an_owner_may_be_closed_by_a_task_of_its_own() -> None:
    owner = Owner(lambda error: None)
    done: list[int] = []

    async def closes() -> None:
        await owner.close()
        done.append(len(owner))

    owner.start(asyncio.sleep(60))
    await owner.start(closes())
    assert done == [1]
