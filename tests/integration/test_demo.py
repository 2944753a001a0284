"""``make run`` as a newcomer meets it: it starts, its lines work, Ctrl-C leaves nothing."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gate import ROOT
from tests.support.process import Process, free_port

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True, slots=True)
class Said:
    status: int
    out: str
    err: str


def run_line(line: str) -> Said:
    done = subprocess.run(
        shlex.split(line), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return Said(done.returncode, done.stdout.strip(), done.stderr.strip())


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that have ``folder`` in their arguments or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(folder) in words or str(folder).encode() in environment:
            found.append(words)
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path]]:
    folder = tmp_path_factory.mktemp("demo")
    process = Process(
        [
            *(sys.executable, "-m", "tests.support.demo"),
            *("--folder", folder / "run", "--port", str(free_port())),
        ],
        log=folder / "log",
        cwd=ROOT,
    ).start()
    try:
        process.wait_for(lambda: "Ctrl-C" in process.output(), timeout=90, what="prints its lines")
        yield process, folder / "run"
    finally:
        process.stop(timeout=40)


def test_the_lines_and_the_end(demo: tuple[Process, Path]) -> None:
    process, folder = demo
    lines = [line for line in process.output().splitlines() if "tests.support.say" in line]
    assert [run_line(line) for line in lines] == [
        Said(0, "published to demo.hello", ""),
        Said(0, "read from demo.hello: Hello, gate", ""),
        Said(
            1,
            "",
            "refused: 403 ACCESS_REFUSED - configure access to queue 'demo.hello' in vhost '/'"
            " refused for user 'bob'",
        ),
    ]
    (allow,) = [line for line in process.output().splitlines() if "gatekeeperctl" in line]
    assert run_line(allow) == Said(0, 'Setting permissions for user "bob" in vhost "/" ...', "")
    assert run_line(lines[2]) == Said(0, "published to demo.hello", ""), "and now he may"
    running = " ".join(processes_of(folder))
    assert "beam" in running
    assert "gatekeeper.conf" in running
    assert "epmd" in running

    process.signal(signal.SIGINT)
    assert process.wait(40) == 0
    assert processes_of(folder) == []
