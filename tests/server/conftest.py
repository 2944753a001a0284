"""These tests run on the event loop that the gate runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import uvloop

from tests.server.peers import FakeBroker
from tests.server.plane import Plane


def pytest_asyncio_loop_factories(config: object, item: object) -> Mapping[str, Callable[[], Any]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def fake() -> AsyncIterator[FakeBroker]:
    """A broker that behaves until a test tells it not to."""
    async with FakeBroker() as broker:
        yield broker


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    plane = Plane()
    async with plane.stack:
        yield plane
