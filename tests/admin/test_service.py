"""What both ways in share: changes that are finished, in force, and in the log."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from gatekeeper.admin.service import Actor, Administration
from gatekeeper.config.load import load_settings
from gatekeeper.errors import StoreError
from gatekeeper.policy.engine import Engine
from gatekeeper.server.fleet import SilentWorkersError
from gatekeeper.store.refusals import UserExistsError
from gatekeeper.store.store import Store
from tests.admin.serving import CONF, StillFleet
from tests.policy.fakes import FakeExchanges
from tests.server.local import Recorder

ROOT = Actor("root", "10.0.0.9:1")


class Deaf(StillFleet):
    """A worker of it does not answer."""

    async def settle(self) -> None:
        raise SilentWorkersError({2: "it does not answer"}, None)


@pytest.fixture
def log() -> Recorder:
    return Recorder()


@pytest.fixture
async def admin(tmp_path, log: Recorder) -> AsyncIterator[Administration]:
    path = tmp_path / "gatekeeper.conf"
    path.write_text(CONF)
    store = Store.open("sqlite::memory:")
    one = Administration(
        settings=load_settings(path, {}),
        store=store,
        engine=Engine([], FakeExchanges()),
        fleet=StillFleet(),
        log=log.logger("audit"),
    )
    yield one
    one.close()
    store.close()


async def add(admin: Administration, name: bytes = b"u") -> None:
    target = {"user": name}
    await admin.change(ROOT, "add_user", target, lambda draft: draft.add_user(name, b"s3cret"))


async def test_a_change_is_in_force_and_in_the_log(admin: Administration, log: Recorder) -> None:
    await add(admin)
    assert admin.store.user(b"u") is not None
    assert admin.fleet.settled == 1  # type: ignore[attr-defined]
    assert log.lines == [("info", "audit", "add_user user='u': done")]
    assert log.fields == [
        {
            "acting_user": "root",
            "address": "10.0.0.9:1",
            "action": "add_user",
            "target": {"user": "u"},
            "outcome": "done",
        }
    ]
    assert "s3cret" not in str(log.fields)


async def test_what_is_refused_is_in_the_log(admin: Administration, log: Recorder) -> None:
    await add(admin)
    with pytest.raises(UserExistsError):
        await add(admin)
    assert log.lines[1] == (
        "warning",
        "audit",
        "add_user user='u': refused: user 'u' already exists",
    )
    assert admin.fleet.settled == 1  # type: ignore[attr-defined]


async def test_a_store_at_fault_is_in_the_log(admin: Administration, log: Recorder) -> None:
    def work() -> None:
        raise StoreError("the disk is full")

    with pytest.raises(StoreError):
        await admin.carry_out(ROOT, "import_definitions", {}, work)
    assert log.lines == [("warning", "audit", "import_definitions: failed: the disk is full")]


async def test_a_worker_that_does_not_confirm(admin: Administration, log: Recorder) -> None:
    """It is committed: neither the log nor the asker is told anything else."""
    admin.fleet = Deaf()
    with pytest.raises(SilentWorkersError):
        await add(admin)
    assert admin.store.user(b"u") is not None
    ((level, _, line),) = log.lines
    assert (level, "done, but" in line, "worker 2" in line) == ("warning", True, True)


async def test_who_asked_may_go_away(admin: Administration, log: Recorder) -> None:
    """What is begun is finished, and logged."""
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(10)
        admin.store.add_user(b"late", b"pw")

    asking = asyncio.get_running_loop().create_task(admin.carry_out(ROOT, "import", {}, work))
    await asyncio.to_thread(begun.wait, 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    go_on.set()
    await log.wait_for("import: done")
    assert admin.store.user(b"late") is not None
    assert admin.fleet.settled == 1  # type: ignore[attr-defined]
