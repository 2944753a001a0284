"""Processes that are measured: start, stop, CPU time, resident memory.

CPU time comes from the kernel's process clock (``clock_gettime`` on another process's clock:
nanoseconds, user and system, every thread, ended ones too), because /proc/PID/stat counts in
10 ms ticks: too coarse for a transfer of a second.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.wire import BenchError
from tests.support.process import HarnessError, Process, listens

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 20.0
_CPUCLOCK_SCHED = 2  # Linux: the clock of a whole process, at the scheduler's resolution


@dataclass(frozen=True, slots=True)
class Meter:
    """Reads a process and its descendants as they are at the time of the reading."""

    pid: int

    def cpu_ns(self) -> int:
        """CPU time so far, user and system, in ns.

        A process that ends takes its time with it, so read it around work during which no
        child of the process ends.
        """
        return sum(time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) for pid in self._tree())

    def rss_bytes(self) -> int:
        total = 0
        for pid in self._tree():
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
            for line in status.splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
        return total

    def _tree(self) -> Iterator[int]:
        pids = [self.pid]
        while pids:
            pid = pids.pop()
            yield pid
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text(encoding="ascii").split())


@contextlib.contextmanager
def running(command: Sequence[str | Path], *, port: int, folder: Path) -> Iterator[Meter]:
    """Run ``command`` until the block ends; enter once it listens on ``port``.

    Its output goes to ``folder / "log"``. Raises BenchError, one line, where it does not come
    up within START_TIMEOUT seconds.
    """
    process = Process(command, log=folder / "log", cwd=ROOT)
    try:
        process.start().wait_for(lambda: listens(port), timeout=START_TIMEOUT, what="listens")
        yield Meter(process.pid)
    except OSError as error:
        if process.running:  # of the block, not of the start
            raise
        raise BenchError(f"cannot start {command[0]}: {error.strerror}") from None
    except HarnessError as error:
        reason = str(error).splitlines()[0]
        raise BenchError(f"{reason}: {_last_line(process)}") from None
    finally:
        process.stop()


def _last_line(process: Process) -> str:
    lines = process.output().strip().splitlines()
    return lines[-1].strip()[:300] if lines else "it printed nothing"
