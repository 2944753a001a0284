"""rabbitmqctl 3.10.8's captured sessions, and the same words said to gatekeeperctl."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.gate import ROOT, environment

CAPTURES = Path(__file__).with_name("captures.txt")
SCRIPT = [sys.executable, "-m", "gatekeeper.cli.gatekeeperctl"]


@dataclass(frozen=True, slots=True)
class Said:
    """One call and what came of it."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Capture:
    name: str
    words: tuple[str, ...]
    stdin: bytes
    said: Said

    @property
    def number(self) -> str:
        return self.name[:3]

    @classmethod
    def read(cls, text: str) -> Capture:
        name, _, text = text.partition("\n")
        head, _, rest = text.partition("\n[exit code] ")
        code, _, rest = rest.partition("\n[stdout]\n")
        stdout, _, stderr = rest.replace("\\ no newline at end\n", "").partition("[stderr]\n")
        command, _, comment = head.removeprefix("$ ").partition("   # stdin=")
        stdin: bytes = ast.literal_eval(comment) if comment else b""
        words = tuple(shlex.split(command)[1:])
        return cls(name, words, stdin, Said(int(code), stdout, stderr))


def captures() -> list[Capture]:
    """In the order in which they were made: each stands on what the ones before have done."""
    return [Capture.read(text) for text in CAPTURES.read_text("utf-8").split("=== ")[1:]]


def ctl(
    *words: str,
    socket: Path | None = None,
    stdin: bytes = b"",
    timeout: float = 30,
    script: Sequence[str] = SCRIPT,
    **extra: str,
) -> Said:
    """The command, run to its end. socket: of the gate."""
    if socket is not None:
        extra["GATEKEEPER_CONTROL_SOCKET"] = str(socket)
    done = subprocess.run(
        [*script, *words],
        env=environment(**extra),
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
    )
    return Said(
        done.returncode,
        done.stdout.decode("utf-8", "surrogateescape"),
        done.stderr.decode("utf-8", "surrogateescape"),
    )
