"""Two workers beside one: ``python -m tests.bench.workers``.

Strategy: the same number of connections blasts basic.publish through a gate of one and of two
workers in turn, into the sink, the connections spread evenly over the workers. Client and sink
need CPU too, and on a machine of two cores they take it from the second worker. So besides the
rate, the table shows who was busy how much, and the CPU that the gate spends on a message: what
the gate could carry with a core for each worker (*capacity*) follows from that alone.

With the compiled scanner a publish costs the gate little more than it costs client and sink
together, so on two cores the rate is bounded by all three. Two kinds of work cost the gate so much
more that two cores show what two workers do: methods that Python judges one by one (*declare*),
and everything with the plain scanner.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import machine, wire
from tests.bench.client import PASSWORD, USER, Client
from tests.bench.meter import Meter, running
from tests.bench.report import FORMATS
from tests.bench.routes import SERVICE_PASSWORD
from tests.bench.wire import BenchError
from tests.support.process import free_port
from tests.support.rabbit import definitions, permission, user

EACH = 2
"""Connections on each of two workers; one worker gets all of them."""
SECONDS = 2.0
"""Aimed length of one transfer."""
QUIET = 15.0
"""Per cent of one core that other programs may take; TRIES attempts to find it so."""
TRIES = 4
PROBE = 5000
"""Messages on each connection to find out how many take SECONDS."""
SPREAD_LIMIT = 200
"""Connections that are opened at most to find some for each worker."""
_MAIN = "from gatekeeper.cli.gatekeeper import main; main()"
_PLAIN = "from tests.support.plain import use_plain; use_plain(); "
WORK = {
    "publish 64 B": wire.publish(1, 64),
    "publish 1 KiB": wire.publish(1, 1024),
    # A queue.declare that wants no answer: judged by Python, one by one, whatever the scanner.
    "declare": wire.method(1, 50, 10, b"\0\0" + wire.short(b"bench") + b"\x10" + wire.table({})),
}
SCANNERS = {"compiled": _MAIN, "plain": _PLAIN + _MAIN}


@dataclass(frozen=True, slots=True)
class Reading:
    """rate: messages a second. gate, busiest, client, sink: CPU in ns a message; gate is all its
    processes, busiest the worker that used most. others: CPU that was taken by what has nothing
    to do with it, or by the hypervisor, in per cent of one core."""

    rate: float
    gate: float
    busiest: float
    client: float
    sink: float
    others: float


@contextlib.contextmanager
def gate(folder: Path, upstream: int, workers: int, scanner: str) -> Iterator[tuple[int, Meter]]:
    port = free_port()
    loaded = folder / "definitions.json"
    content = definitions(users=[user(USER, PASSWORD)], permissions=[permission(USER)])
    loaded.write_text(json.dumps(content), encoding="ascii")
    config = folder / "gatekeeper.conf"
    config.write_text(
        f"""listeners.tcp.default = 127.0.0.1:{port}
upstreams.default.servers.1 = 127.0.0.1:{upstream}
upstreams.default.username = gatekeeper
upstreams.default.password = {SERVICE_PASSWORD}
store.url = sqlite:///{folder / "gate.db"}
load_definitions = {loaded}
log.console.level = error
drain_timeout = 0
workers = {workers}
""",
        encoding="ascii",
    )
    command = [sys.executable, "-c", SCANNERS[scanner], "--config", config]
    with running(command, port=port, folder=folder) as meter:
        yield port, meter


def serving(meter: Meter, workers: int) -> list[int]:
    """The processes that serve clients."""
    if workers == 1:
        return [meter.pid]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [pid for nursery in _children(meter.pid) for pid in _children(nursery)]
        if len(found) == workers:
            return found
        time.sleep(0.05)
    raise BenchError(f"the gate does not have {workers} workers")


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _sockets(pid: int) -> set[str]:
    links = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(str(link.readlink()))
    return links


def _inode(client: Client) -> str:
    """The socket at the gate's end of a connection, as /proc/PID/fd names it."""
    wanted = client.sock.getpeername()[1], client.sock.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        words = line.split()
        if tuple(int(word.partition(":")[2], 16) for word in words[1:3]) == wanted:
            return f"socket:[{words[9]}]"
    raise BenchError("a connection's other end is not to be found")


@contextlib.contextmanager
def spread(port: int, pids: Sequence[int], total: int) -> Iterator[list[Client]]:
    """``total`` connections, as many on each process as on any other."""
    kept: dict[int, list[Client]] = {pid: [] for pid in pids}
    with contextlib.ExitStack() as stack:
        for _ in range(SPREAD_LIMIT):
            client = Client(port)
            inode = _inode(client)
            (pid,) = [pid for pid in pids if inode in _sockets(pid)]
            if len(kept[pid]) < total // len(pids):
                kept[pid].append(client)
                client.open_channel()
                stack.callback(client.sock.close)
            else:
                client.close()
                client.sock.close()
            if all(len(each) == total // len(pids) for each in kept.values()):
                yield [client for each in kept.values() for client in each]
                return
    raise BenchError(f"{SPREAD_LIMIT} connections did not reach every worker")


def transfer(clients: Sequence[Client], unit: bytes, count: int) -> None:
    """``count`` messages from each, to the last byte at the sink."""
    failures: list[BaseException] = []

    def one(client: Client) -> None:
        try:
            client.blast(unit, count)
            client.declare_queue(b"arrived")
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            failures.append(error)

    for client in clients:
        client.declare_queue(b"discard:%d" % (count * len(unit)))
    threads = [threading.Thread(target=one, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def read(
    meter: Meter, pids: Sequence[int], sink: Meter, clients: Sequence[Client], unit: bytes
) -> Reading:
    for client in clients:
        client.blast(unit, 100)  # the gate decides about the exchange now
    probe = PROBE
    begin = time.perf_counter()
    transfer(clients, unit, probe)
    count = max(probe, int(probe * SECONDS / (time.perf_counter() - begin)))
    each = [Meter(pid) for pid in pids]
    before = meter.cpu_ns(), sink.cpu_ns(), time.process_time_ns(), [m.cpu_ns() for m in each]
    wall, machine_before = time.perf_counter_ns(), _machine_ns()
    transfer(clients, unit, count)
    wall, machine_after = time.perf_counter_ns() - wall, _machine_ns()
    after = meter.cpu_ns(), sink.cpu_ns(), time.process_time_ns(), [m.cpu_ns() for m in each]
    total = count * len(clients)
    ours = sum(after[:3]) - sum(before[:3])
    return Reading(
        others=max(0.0, 100 * (machine_after - machine_before - ours) / wall),
        rate=total * 1e9 / wall,
        gate=(after[0] - before[0]) / total,
        busiest=max(b - a for a, b in zip(before[3], after[3], strict=True)) / total,
        client=(after[2] - before[2]) / total,
        sink=(after[1] - before[1]) / total,
    )


def _machine_ns() -> int:
    """CPU time of everything on this machine so far, and what the hypervisor kept from it."""
    words = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    user_, nice, system, _idle, _iowait, irq, softirq, steal = map(int, words)
    ticks = user_ + nice + system + irq + softirq + steal
    return ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


HEAD = [
    *("scanner", "work", "workers", "msg/s", "gate ns/msg", "client", "sink"),
    *("gate busy %", "all busy %", "others %", "rate x", "capacity x"),
]


def rows(scanner: str, work: str, readings: dict[int, list[Reading]]) -> Iterator[list[str]]:
    """A row for each number of workers; the ratios are medians of the rounds' own."""
    for workers, found in readings.items():
        ratio = capacity = "-"
        if workers > 1:
            pairs = list(zip(readings[1], found, strict=True))
            ratio = f"{statistics.median(b.rate / a.rate for a, b in pairs):.2f}"
            # Of a worker that never waits: the busiest one's CPU is what bounds the gate.
            capacity = f"{statistics.median(a.gate / b.busiest for a, b in pairs):.2f}"

        def middle(name: str, found: list[Reading] = found) -> float:
            return statistics.median(getattr(reading, name) for reading in found)

        busy = statistics.median(r.rate * r.gate for r in found) / 1e7
        whole = statistics.median(r.rate * (r.gate + r.client + r.sink) for r in found) / 1e7
        yield [
            scanner,
            work,
            str(workers),
            f"{middle('rate'):,.0f}",
            f"{middle('gate'):,.1f}",
            f"{middle('client'):,.1f}",
            f"{middle('sink'):,.1f}",
            f"{busy:.0f}",
            f"{whole:.0f}",
            f"{middle('others'):.0f}",
            ratio,
            capacity,
        ]


def memory(meter: Meter, pids: Sequence[int]) -> Iterator[str]:
    """A line for each process: what it costs the machine (PSS), and what is its own."""
    names = {meter.pid: "supervisor", **dict.fromkeys(pids, "worker")}
    for pid in [meter.pid, *_children(meter.pid), *pids]:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        kib = {line.split()[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
        own = kib["Private_Dirty:"] + kib["Private_Clean:"]
        yield (
            f"{names.get(pid, 'nursery')}: PSS {kib['Pss:'] / 1024:.1f} MiB, "
            f"of its own {own / 1024:.1f} MiB (RSS {kib['Rss:'] / 1024:.1f} MiB)"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.workers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--format", choices=tuple(FORMATS), default="plain")
    parser.add_argument("--work", choices=tuple(WORK), action="append")
    parser.add_argument("--scanner", choices=tuple(SCANNERS), action="append")
    options = parser.parse_args(argv)
    table, notes = [HEAD], list[str]()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-workers-") as name:
            folder = Path(name)
            port = free_port()
            command = [sys.executable, "-m", "tests.bench.sink", "--port", str(port)]
            with running(command, port=port, folder=folder) as sink:
                for scanner in options.scanner or SCANNERS:
                    found = _measure(
                        folder, port, sink, scanner, options.work or WORK, options.rounds, notes
                    )
                    for work, readings in found.items():
                        table.extend(rows(scanner, work, readings))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    for label, text in machine.describe():
        if label in {"CPU", "kernel", "Python", "uvloop", "load average"}:
            print(f"{label}: {text}")
    print(f"connections: {2 * EACH}, spread evenly; rounds: {options.rounds}\n")
    print(FORMATS[options.format](table))
    print(
        "\nrate x: against one worker, as seen. capacity x: the same if the busiest worker's CPU "
        "a message\nwere all that bounds it (a core for each worker, and others for client and "
        "sink).\nBusy: of one core; this machine has "
        f"{len(os.sched_getaffinity(0))}, so {100 * len(os.sched_getaffinity(0))} % is all of it."
    )
    for note in notes:
        print(note)
    return 0


def _measure(
    folder: Path,
    upstream: int,
    sink: Meter,
    scanner: str,
    chosen: Iterable[str],
    rounds: int,
    notes: list[str],
) -> dict[str, dict[int, list[Reading]]]:
    """work -> workers -> readings."""
    found: dict[str, dict[int, list[Reading]]] = {work: {1: [], 2: []} for work in chosen}
    with contextlib.ExitStack() as stack:
        gates = {}
        for workers in (1, 2):
            own = folder / f"{scanner}-{workers}"
            own.mkdir()
            port, meter = stack.enter_context(gate(own, upstream, workers, scanner))
            gates[workers] = port, meter, serving(meter, workers)
        notes.extend(
            f"{scanner}, 2 workers, idle: {line}" for line in memory(gates[2][1], gates[2][2])
        )
        notes.extend(
            f"{scanner}, 1 process, idle: {line.removeprefix('supervisor: ')}"
            for line in memory(gates[1][1], [])
        )
        for _ in range(rounds):
            for work, readings in found.items():
                for workers, (port, meter, pids) in gates.items():
                    with spread(port, pids, 2 * EACH) as clients:
                        readings[workers].append(
                            _undisturbed(meter, pids, sink, clients, WORK[work])
                        )
    return found


def _undisturbed(
    meter: Meter, pids: Sequence[int], sink: Meter, clients: Sequence[Client], unit: bytes
) -> Reading:
    """A reading while little else runs; where there is none to be had, the least disturbed."""
    tries: list[Reading] = []
    for _ in range(TRIES):
        tries.append(read(meter, pids, sink, clients, unit))
        if tries[-1].others < QUIET:
            break
        time.sleep(1.0)
    return min(tries, key=lambda reading: reading.others)


if __name__ == "__main__":
    sys.exit(main())
