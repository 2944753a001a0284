"""A connection's life, end to end, against a fake broker: what passes, what is logged."""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop

from tests.server.local import gate
from tests.server.peers import FakeBroker


async def test_a_session_from_login_to_goodbye(tmp_path: Path, fake: FakeBroker) -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    async with gate(tmp_path, fake.port) as local:
        async with await local.login(channel=True) as client:
            upstream = await fake.client()
            assert (await client.call(1, "queue.declare", queue="q")).name == "queue.declare-ok"
            client.publish(1, b"", b"q", b"hello")
            assert (await client.call(1, "basic.get", queue="q")).name == "basic.get-empty"
            own = upstream.properties[b"gatekeeper"]
            assert own[b"user"] == b"alice"
            assert own[b"peer"].startswith(b"127.0.0.1:")
            assert len(local.registry) == 1
        await local.log.wait_for("closing AMQP connection")
        await local.until(lambda: len(local.registry) == 0, "unregistered")
        bodies = [method.body for _, method in upstream.methods if method.body]
        assert bodies == [b"hello"]
        peer = f"{own[b'peer'].decode()} -> 127.0.0.1:{local.port}"
        assert local.log.of("connection")[0] == f"accepting AMQP connection {peer}"
