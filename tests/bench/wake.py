"""One wake-up of the gate without sockets: ``python -m tests.bench.wake``.

Strategy: what the interpreter does between the read and the write is some microseconds of a round
trip of a hundred, which a busy machine moves by tens. Here the loop's part is played by hand:
``get_buffer``, the octets, ``buffer_updated``; what is to be sent goes to /dev/null.

* *hot*: the same wake-up again and again. The median of many, in ns.
* *cold*: before each one, more memory is read than the processor's caches of one core hold, as
  the kernel, the client and the broker do between two wake-ups. The median.
* ``--instructions``: counted by valgrind, as ``instructions.py`` does: the same on every machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatekeeper.policy.epoch import Epoch
from gatekeeper.protocol.checks import Context
from gatekeeper.protocol.session import Session
from gatekeeper.server.endpoint import Endpoint, SharedBuffer
from gatekeeper.server.pump import Pump
from tests.bench import wire
from tests.protocol.dialogue import Policy

ROOT = Path(__file__).resolve().parents[2]
HOT, COLD = 10_000, 1_000
"""Round trips that are timed, in each of ROUNDS."""
ROUNDS = 4
FEW, MANY = 200, 1_200
"""Round trips of the two runs under valgrind."""
CACHE = bytes(4 * 1024 * 1024)
QUEUE = wire.short(b"queue")
_COLLECTED = re.compile(r"Collected : (\d+)")

TRIPS = {
    "confirm": (wire.publish(1, 64), wire.ack(1, 1)),
    "declare": (
        wire.method(1, 50, 10, b"\0\0" + QUEUE + b"\x04" + wire.table({})),
        wire.method(1, 50, 11, QUEUE + bytes(8)),
    ),
    "get": (
        wire.method(1, 60, 70, b"\0\0" + QUEUE + b"\x01"),
        wire.method(1, 60, 72, b"\0"),
    ),
}
"""What the client sends, and the broker's answer."""


class Sink:
    """A transport and its socket, as far as an endpoint looks: takes all that is written."""

    def __init__(self) -> None:
        self._fd = os.open(os.devnull, os.O_WRONLY)

    def fileno(self) -> int:
        return self._fd

    def get_extra_info(self, name: str) -> Sink | None:
        return self if name == "socket" else None

    def set_write_buffer_limits(self, *, high: int, low: int) -> None:
        del high, low

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False


class Wake:
    """A running connection, with channel 1 open."""

    def __init__(self) -> None:
        buffer = SharedBuffer()
        self.client, self.broker = Endpoint(buffer), Endpoint(buffer)
        for endpoint in (self.client, self.broker):
            endpoint.connection_made(Sink())
        context = Context(b"/", b"bench")
        session = Session(context, Policy(), Epoch(), frame_max=131072, channel_max=2047)
        unexpected: Any = self._unexpected
        Pump(session, self.client, self.broker, unexpected, unexpected).start(b"", b"")
        self.feed(self.client, wire.method(1, 20, 10, b"\0"))
        self.feed(self.broker, wire.method(1, 20, 11, bytes(4)))

    @staticmethod
    def _unexpected(why: object) -> None:
        raise wire.BenchError(f"the connection has ended: {why}")

    @staticmethod
    def feed(endpoint: Endpoint, data: bytes) -> None:
        """What the loop does when ``data`` has come."""
        endpoint.get_buffer(-1)[: len(data)] = data
        endpoint.buffer_updated(len(data))

    def trip(self, request: bytes, answer: bytes) -> None:
        """There and back. Raises BenchError where the octets do not pass."""
        before = (self.broker.sent, self.client.sent)
        self.feed(self.client, request)
        self.feed(self.broker, answer)
        sent = (self.broker.sent - before[0], self.client.sent - before[1])
        if sent != (len(request), len(answer)):
            raise wire.BenchError(f"of {len(request)} and {len(answer)} octets passed {sent}")


def timed(name: str, count: int, between: bytes) -> tuple[float, float]:
    """Medians of the client's and the broker's wake-up, in ns; ``between`` is read before each."""
    wake = Wake()
    wake.trip(*TRIPS[name])
    sides = [(wake.client, TRIPS[name][0]), (wake.broker, TRIPS[name][1])]
    clock = time.perf_counter_ns
    out: tuple[list[int], list[int]] = ([], [])
    for _ in range(count):
        for (endpoint, data), times in zip(sides, out, strict=True):
            size = len(data)
            endpoint.get_buffer(-1)[:size] = data
            between.count(b"\xff")
            begin = clock()
            endpoint.get_buffer(-1)
            endpoint.buffer_updated(size)
            times.append(clock() - begin)
    return statistics.median(out[0]), statistics.median(out[1])


def best(name: str, count: int, between: bytes) -> str:
    rounds = [timed(name, count, between) for _ in range(ROUNDS)]
    return "".join(f"{min(side):>8.0f}" for side in zip(*rounds, strict=True))


def work(name: str, times: int) -> None:
    wake = Wake()
    for _ in range(times):
        wake.trip(*TRIPS[name])


def instructions(name: str) -> float:
    """Of one round trip, with the copies and checks of the benchmark's own."""

    def count(times: int) -> int:
        with tempfile.TemporaryDirectory(prefix="wake-") as folder:
            command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
            command += [sys.executable, "-m", "tests.bench.wake", "--times", str(times), name]
            environment = os.environ | {"PYTHONHASHSEED": "0"}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
        found = _COLLECTED.search(done.stderr)
        if done.returncode or found is None:
            raise wire.BenchError(f"valgrind failed: {done.stderr.strip()[-200:]}")
        return int(found[1])

    return (count(MANY) - count(FEW)) / (MANY - FEW)


async def _main(options: argparse.Namespace) -> None:
    names = options.trips or list(TRIPS)
    if options.times is not None:
        for name in names:
            work(name, options.times)
        return
    print("ns, hot: client, broker; cold: client, broker" + "; instructions" * options.instructions)
    for name in names:
        line = f"{name:<10}{best(name, HOT, b'')}{best(name, COLD, CACHE)}"
        print(line + (f"{instructions(name):>10.0f}" if options.instructions else ""), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.wake")
    parser.add_argument("--instructions", action="store_true", help="needs valgrind; slow")
    parser.add_argument("--times", type=int, help=argparse.SUPPRESS)
    parser.add_argument("trips", nargs="*", metavar="TRIP", help=f"of: {', '.join(TRIPS)}")
    asyncio.run(_main(parser.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
