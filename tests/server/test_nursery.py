"""The supervisor's line to the nursery, with a test at the nursery's end.

The nursery itself is forked for real in test_workers.py: it must not be from a process like this
one, which has threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gatekeeper.server import nursery as nursery_module
from gatekeeper.server.nursery import ForkError, Nursery, NurseryGoneError


class Far:
    """The nursery's end."""

    def __init__(self) -> None:
        self.near, self.line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.setblocking(False)
        self.gone: list[bool] = []
        self.nursery: Nursery | None = None

    def start(self) -> Nursery:
        self.nursery = Nursery(os.getpid(), self.near, lambda: self.gone.append(True))
        return self.nursery

    def say(self, **what: int) -> None:
        self.line.send(json.dumps(what).encode())

    async def hear(self) -> tuple[Any, int | None]:
        """An order, and the descriptor that came with it."""
        async with asyncio.timeout(3):
            while True:
                with contextlib.suppress(BlockingIOError):
                    data, descriptors, _, _ = socket.recv_fds(self.line, 4096, 1)
                    return json.loads(data), descriptors[0] if descriptors else None
                await asyncio.sleep(0.001)


@pytest.fixture
def far() -> Iterator[Far]:
    far = Far()
    yield far
    far.line.close()
    far.near.close()


async def test_fork_and_death(far: Far) -> None:
    nursery = far.start()
    ours, theirs = socket.socketpair()
    task = asyncio.get_running_loop().create_task(nursery.spawn(2, theirs))
    order, descriptor = await far.hear()
    assert order == {"fork": 2}
    assert descriptor is not None
    far.say(worker=2, pid=1234)
    assert await task == 1234
    assert theirs.fileno() < 0, "only the worker has it"
    os.write(descriptor, b"x")
    assert ours.recv(1) == b"x"
    os.close(descriptor)
    assert ours.recv(1) == b""
    ours.close()
    assert await nursery.status(1234, 0.01) is None
    far.say(pid=1234, status=-9)
    assert await nursery.status(1234, 1) == -9
    assert await nursery.status(1234, 1) is None, "it is told once"
    nursery.kill(1235)
    assert (await far.hear())[0] == {"kill": 1235}
    nursery.close()
    assert far.line.recv(1) == b""
    assert not far.gone


async def test_no_more_processes(far: Far) -> None:
    nursery = far.start()
    ours, theirs = socket.socketpair()
    task = asyncio.get_running_loop().create_task(nursery.spawn(1, theirs))
    _, descriptor = await far.hear()
    far.say(worker=1, pid=-1)
    with pytest.raises(ForkError, match="cannot start worker 1: the system allows no more"):
        await task
    assert descriptor is not None
    os.close(descriptor)
    assert ours.recv(1) == b""
    ours.close()
    nursery.close()


async def test_a_nursery_that_dies_while_it_is_asked(far: Far) -> None:
    nursery = far.start()
    ours, theirs = socket.socketpair()
    task = asyncio.get_running_loop().create_task(nursery.spawn(1, theirs))
    await asyncio.sleep(0)
    far.line.close()
    with pytest.raises(NurseryGoneError, match="restart gatekeeper"):
        await task
    assert far.gone == [True]
    assert nursery.gone
    ours.close()
    ours, theirs = socket.socketpair()
    with pytest.raises(NurseryGoneError):
        await nursery.spawn(1, theirs)
    ours.close()
    nursery.kill(1)
    nursery.close()


async def test_a_nursery_that_does_not_answer(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery_module, "_SPAWN_TIMEOUT", 0.02)
    nursery = far.start()
    ours, theirs = socket.socketpair()
    with pytest.raises(NurseryGoneError):
        await nursery.spawn(1, theirs)
    ours.close()
    nursery.close()
