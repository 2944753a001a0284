"""What others notice while a backend hangs: ``python -m tests.bench.hang``.

A gate as installed, a real directory, twenty clients whose users are in it, one whose user is in
the gate's own store. The round trip of that one's ``basic.qos`` is measured while the directory
answers, and again while it is stopped (SIGSTOP) and all twenty wait for it. Broker and clients are
one process, so the figures hold the same small cost of theirs in both rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from tests.server.local import USERS
from tests.server.peers import Client, FakeBroker
from tests.support.gate import Gate, GateConfig
from tests.support.slapd import PEOPLE, Slapd, password_of

ROUND_TRIPS = 3000
WAITING = 20


async def round_trips(client: Client) -> list[float]:
    """Microseconds each, sorted."""
    taken = []
    for _ in range(ROUND_TRIPS):
        begin = time.perf_counter()
        await client.call(1, "basic.qos", prefetch_count=1)
        taken.append((time.perf_counter() - begin) * 1e6)
    return sorted(taken)


def row(name: str, taken: list[float]) -> str:
    p99 = taken[len(taken) * 99 // 100]
    return f"| {name} | {statistics.median(taken):.0f} | {p99:.0f} | {taken[-1]:.0f} |"


async def login(port: int, user: str, password: str) -> Client:
    client = await Client.connect(port)
    await client.shake(user, password)
    await client.open_channel()
    return client


async def measure(gate: Gate, directory: Slapd) -> None:
    other = await login(gate.port, "alice", "alice")
    held = [await login(gate.port, "carol", password_of("carol")) for _ in range(WAITING)]
    print("| directory | median, us | p99, us | longest, us |\n| --- | --- | --- | --- |")
    print(row("answers", await round_trips(other)))
    os.kill(directory.pid, signal.SIGSTOP)
    try:
        for client in held:
            client.publish(1, b"x", b"k")
        await asyncio.sleep(0.2)
        print(row(f"hangs, {WAITING} clients wait", await round_trips(other)))
    finally:
        os.kill(directory.pid, signal.SIGCONT)
    for client in (other, *held):
        client.abort()


async def main() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory = stack.enter_context(Slapd(folder / "slapd"))
        async with FakeBroker() as broker:
            config = GateConfig(folder / "gate", upstream=broker.port).with_definitions(USERS)
            config.set("auth_backends.1", "internal").set("auth_backends.2", "ldap")
            config.set("auth_ldap.servers.1", "127.0.0.1").set("auth_ldap.port", directory.port)
            config.set("auth_ldap.user_dn_pattern", f"cn=${{username}},{PEOPLE}")
            config.set("auth_ldap.queries.resource_access", f'{{exists, "{PEOPLE}"}}')
            gate = Gate(config)
            await asyncio.to_thread(gate.start)
            try:
                await measure(gate, directory)
            finally:
                await asyncio.to_thread(gate.stop)


if __name__ == "__main__":
    asyncio.run(main())
