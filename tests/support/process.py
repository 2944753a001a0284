"""Child processes, free ports and waiting: the ground that the rest of the harness stands on.

A child is stopped by its own pid and by nothing else, never by name: several test runs share
a machine. Every child also dies with the run that started it (PR_SET_PDEATHSIG), so a run that
is killed leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
# Below Linux' ephemeral range (32768-60999): an outgoing connection of another test cannot
# take the port between the moment it is found free and the moment the server binds it.
PORTS = range(20_000, 32_000)
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


class HarnessError(Exception):
    """A part of the harness did not do its work; the message holds the end of its log."""


def free_port(*, host: str = LOOPBACK) -> int:
    """A TCP port that nothing listens on now."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise HarnessError(f"no free port on {host} in {PORTS}")


def wait_until(
    condition: Callable[[], T],
    *,
    timeout: float = 10.0,
    interval: float = 0.02,
    what: str | Callable[[], str] = "condition",
) -> T:
    """The first true answer of ``condition``; HarnessError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            text = what() if callable(what) else what
            raise HarnessError(f"not after {timeout:g} s: {text}")
        time.sleep(interval)


def listens(port: int, host: str = LOOPBACK) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Process:
    """One child in its own session, both its outputs appended to ``log``.

    Start it from the main thread: the kernel counts the *thread* as the parent that must live.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        name: str = "",
    ) -> None:
        self.argv = [str(word) for word in argv]
        self.log = log
        self.env = None if env is None else dict(env)
        self.cwd = cwd
        self.name = name or Path(self.argv[0]).name
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        if self.running:
            raise HarnessError(f"{self.name} runs already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self.cwd,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, no lock
            )
        return self

    @property
    def pid(self) -> int:
        if self._popen is None:
            raise HarnessError(f"{self.name} was not started")
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self._popen is None else self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout: float = 10.0) -> int:
        """The exit status; HarnessError when it still runs after ``timeout`` seconds."""
        if self._popen is None:
            raise HarnessError(f"{self.name} was not started")
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise HarnessError(
                f"{self.name} still runs after {timeout:g} s\n{self.tail()}"
            ) from None

    def stop(self, timeout: float = 15.0) -> int | None:
        """SIGTERM, then SIGKILL after ``timeout`` seconds. The exit status."""
        if self._popen is None:
            return None
        self.signal(signal.SIGTERM)
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int | None:
        """SIGKILL, as a crash."""
        if self._popen is None:
            return None
        self.signal(signal.SIGKILL)
        return self._popen.wait(10)

    def output(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def tail(self, lines: int = 30) -> str:
        return "\n".join([f"--- {self.log}", *self.output().splitlines()[-lines:]])

    def wait_for(self, condition: Callable[[], T], *, timeout: float = 10.0, what: str = "") -> T:
        """As wait_until, and fails at once when the process has ended."""

        def check() -> T:
            if not self.running:
                raise HarnessError(
                    f"{self.name} ended with status {self.returncode}\n{self.tail()}"
                )
            return condition()

        return wait_until(
            check, timeout=timeout, what=lambda: f"{self.name}: {what}\n{self.tail()}"
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
