"""Instructions of the scanner: ``python -m tests.bench.instructions``.

Strategy: a clock on a shared machine wavers by tens of per cent, a count of instructions does
not. Valgrind runs a Python that scans one buffer, once a few times and once many times more; what
the second needs beyond the first, divided by the additional scans, is the cost of one scan and of
nothing else. The buffer is what the gate's receive buffer would hold: as many whole messages as
fit. Needs ``valgrind``. It writes nothing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.protocol.frames import COMPILED, Channel, Lane, scan_broker, scan_client
from tests.bench import wire
from tests.bench.wire import BenchError

ROOT = Path(__file__).resolve().parents[2]
BUFFER = 256 * 1024
FEW, MANY = 2, 22
"""Scans of the two runs."""
KEYS = 500
_FRAMES = 3
"""Of one message: method, content header, body."""
_COLLECTED = re.compile(r"Collected : (\d+)")

Scan = Callable[[Lane, bytearray, int, int], int]


@dataclass(frozen=True, slots=True)
class Case:
    """``messages`` in ``data``, which is what ``scan`` walks to its end."""

    scan: Scan
    data: bytes
    messages: int
    exchanges: frozenset[bytes] = frozenset()
    keys: frozenset[bytes] = frozenset()


def approved_exchange(size: int) -> Case:
    return _repeat(scan_client, wire.publish(1, size), exchanges=frozenset({wire.EXCHANGE}))


def approved_key(size: int, keys: int) -> Case:
    """``keys`` different routing keys in turn, each approved alone, as under a topic rule."""
    names = [b"k.%d" % number for number in range(keys)]
    unit = b"".join(wire.publish(1, size, key=name) for name in names)
    pairs = frozenset(wire.short(wire.EXCHANGE) + wire.short(name) for name in names)
    return _repeat(scan_client, unit, keys, keys=pairs)


def user_id(size: int) -> Case:
    unit = wire.publish(1, size, user_id=b"bench")
    return _repeat(scan_client, unit, exchanges=frozenset({wire.EXCHANGE}))


def deliver(size: int) -> Case:
    return _repeat(scan_broker, wire.deliver(1, b"tag", size))


def _repeat(
    scan: Scan,
    unit: bytes,
    messages: int = 1,
    exchanges: frozenset[bytes] = frozenset(),
    keys: frozenset[bytes] = frozenset(),
) -> Case:
    times = max(1, BUFFER // len(unit))
    return Case(scan, unit * times, messages * times, exchanges, keys)


CASES = {
    "publish 64 B, approved exchange": approved_exchange(64),
    "publish 64 B, approved exchange, user-id": user_id(64),
    "publish 64 B, approved key": approved_key(64, 1),
    f"publish 64 B, {KEYS} approved keys": approved_key(64, KEYS),
    "deliver 64 B": deliver(64),
}


def work(case: Case, times: int) -> None:
    """Scan it ``times`` over. Raises BenchError where the scanner does not come to the end."""
    lane = Lane(131072, 1 << 29, b"bench")
    channel = lane.channels[1] = Channel()
    for name in case.exchanges:
        channel.approve_exchange(name)
    for pair in case.keys:
        channel.approve_key(pair)
    data = bytearray(case.data)
    for _ in range(times):
        if case.scan(lane, data, 0, len(data)) != len(data):
            raise BenchError("the scanner does not let all of the buffer pass")


def count(name: str, times: int) -> int:
    """Instructions of a whole interpreter that scans case ``name`` ``times`` over."""
    with tempfile.TemporaryDirectory(prefix="instructions-") as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command += [sys.executable, "-m", "tests.bench.instructions", "--scan", str(times), name]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise BenchError("valgrind is not installed: apt-get install valgrind") from None
    found = _COLLECTED.search(done.stderr)
    if done.returncode or found is None:
        lines = done.stderr.strip().splitlines() or ["it printed nothing"]
        raise BenchError(f"valgrind failed: {lines[-1].strip()}")
    return int(found[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """0: counted; 2: it could not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.instructions")
    parser.add_argument("--scan", type=int, metavar="TIMES", help=argparse.SUPPRESS)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {'; '.join(CASES)}")
    options = parser.parse_args(arguments)
    for name in options.cases:
        if name not in CASES:
            parser.error(f"{name!r} is unknown: use one of: {'; '.join(CASES)}")
    names = options.cases or list(CASES)
    if options.scan is not None:
        for name in names:
            work(CASES[name], options.scan)
        return 0
    print(f"scanner: {'compiled' if COMPILED else 'plain Python'}")
    print(f"{'':<44}{'a message':>12}{'a frame':>12}  instructions")
    try:
        for name in names:
            each = (count(name, MANY) - count(name, FEW)) / (MANY - FEW) / CASES[name].messages
            print(f"{name:<44}{each:>12.1f}{each / _FRAMES:>12.1f}", flush=True)
    except BenchError as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
