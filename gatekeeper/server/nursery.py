"""The process that forks the workers, and the supervisor's line to it.

Strategy: a worker must come from a process that has imported everything and has neither an event
loop nor a thread nor an open database, or it would inherit half of each. The supervisor is such
a process only until it starts. So it first forks the nursery, which stays like that for ever:
it sleeps until it is told to fork, reaps what has died and says so. A worker that replaces a
dead one shares as much memory as the first ones did.

The two speak over a SOCK_SEQPACKET pair, a small JSON object a packet:
``{"fork": W}`` with the worker's end of its control channel, answered ``{"worker": W, "pid": P}``
(P is -1 where the system refuses);
``{"kill": P}``; and unasked ``{"pid": P, "status": S}`` for a death (S as subprocess gives it: a
negative number is a signal). The end of the line ends the nursery; the workers, whose control
channels end with the same supervisor, stop by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from gatekeeper.errors import OperatorError

Work = Callable[[int, socket.socket], int]
"""A worker's life: its number, its end of the control channel; the exit status."""

_PACKET = 4096
_SPAWN_TIMEOUT = 10.0
_CRASHED = 70
"""Exit status of a worker that ended by an exception (sysexits: EX_SOFTWARE)."""


class NurseryGoneError(OperatorError):
    """No worker can be forked any more."""


class ForkError(OperatorError):
    """The system does not allow another process now."""


def start(work: Work, close: Callable[[], None]) -> tuple[int, socket.socket]:
    """Fork the nursery; its pid, and the supervisor's end of the line to it.

    close: called in the nursery, to close what only the supervisor may hold open. To be called
    before any thread or event loop exists.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gc.collect()
    gc.freeze()  # what is there now is shared; the collector must not write into it
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = _CRASHED
    try:
        ours.close()
        close()
        _tend(theirs, work)
        status = 0
    except BaseException:  # noqa: BLE001 - this is the end of the process: nobody else can tell
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _tend(line: socket.socket, work: Work) -> None:
    """The nursery: until the line ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A terminal or a service manager signals the whole group: the supervisor decides.
        signal.signal(number, signal.SIG_IGN)
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    woken.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    while True:
        readable, _, _ = select.select([line, woken], [], [])
        if woken in readable:
            with contextlib.suppress(BlockingIOError):
                while woken.recv(4096):
                    pass
            for pid, status in _dead(children):
                _say(line, {"pid": pid, "status": status})
        if line in readable:
            data, descriptors, _, _ = socket.recv_fds(line, _PACKET, 1)
            if not data:
                return
            order = json.loads(data)
            if "kill" in order:
                if order["kill"] in children:  # not reaped yet: the number is still its own
                    os.kill(order["kill"], signal.SIGKILL)
                continue
            worker = int(order["fork"])
            pid = _fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for each in (line, woken, waker):
                    each.close()
                _live(worker, socket.socket(fileno=descriptors[0]), work)
            for descriptor in descriptors:
                os.close(descriptor)
            if pid > 0:
                children.add(pid)
            _say(line, {"worker": worker, "pid": pid})


def _fork() -> int:
    """As os.fork; -1 where the system allows no more processes."""
    try:
        return os.fork()
    except OSError:
        return -1


def _dead(children: set[int]) -> list[tuple[int, int]]:
    dead = []
    for pid in tuple(children):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            children.discard(pid)
            dead.append((pid, os.waitstatus_to_exitcode(status)))
    return dead


def _say(line: socket.socket, what: dict[str, int]) -> None:
    with contextlib.suppress(OSError):  # the supervisor is gone: the next read says so
        line.send(json.dumps(what).encode())


def _live(worker: int, channel: socket.socket, work: Work) -> None:
    """A worker, from fork to exit; never returns."""
    status = _CRASHED
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        status = work(worker, channel)
    except BaseException:  # noqa: BLE001 - this is the end of the process: nobody else can tell
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


class Nursery:
    """The supervisor's line to the nursery, in its event loop.

    on_gone: called once, if the nursery dies.
    """

    def __init__(self, pid: int, line: socket.socket, on_gone: Callable[[], None]) -> None:
        self._pid = pid
        self._line = line
        self._on_gone = on_gone
        self._spawned: dict[int, asyncio.Future[int]] = {}
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._loop = asyncio.get_running_loop()
        line.setblocking(False)
        self._loop.add_reader(line, self._readable)
        self.gone = False

    def _readable(self) -> None:
        while True:
            try:
                data = self._line.recv(_PACKET)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            self._heard(json.loads(data))

    def _heard(self, news: dict[str, Any]) -> None:
        pid = int(news["pid"])
        if "worker" in news:
            if pid > 0:
                self._exits[pid] = self._loop.create_future()
            spawned = self._spawned.pop(int(news["worker"]), None)
            if spawned is not None and not spawned.done():
                spawned.set_result(pid)
        elif pid in self._exits and not self._exits[pid].done():
            self._exits[pid].set_result(int(news["status"]))

    def _lost(self) -> None:
        self._loop.remove_reader(self._line)
        self.gone = True
        for spawned in self._spawned.values():
            if not spawned.done():
                spawned.set_exception(_gone())
        self._on_gone()

    async def spawn(self, worker: int, channel: socket.socket) -> int:
        """Fork a worker that gets ``channel`` (closed here); its pid.

        Raises NurseryGoneError, ForkError.
        """
        spawned: asyncio.Future[int] = self._loop.create_future()
        self._spawned[worker] = spawned
        try:
            order = json.dumps({"fork": worker}).encode()
            socket.send_fds(self._line, [order], [channel.fileno()])
            async with asyncio.timeout(_SPAWN_TIMEOUT):
                pid = await spawned
        except (OSError, TimeoutError):
            raise _gone() from None
        finally:
            channel.close()
            self._spawned.pop(worker, None)
        if pid < 0:
            raise ForkError(
                f"cannot start worker {worker}: the system allows no more processes; check its "
                "memory and limits ('ulimit -u', TasksMax=)"
            )
        return pid

    async def status(self, pid: int, within: float) -> int | None:
        """The exit status of a worker that has ended, None if it has not or nobody knows."""
        exited = self._exits.get(pid)
        if exited is None or (self.gone and not exited.done()):
            return None
        try:
            async with asyncio.timeout(within):
                status = await asyncio.shield(exited)
        except TimeoutError:
            return None
        self._exits.pop(pid, None)
        return status

    def kill(self, pid: int) -> None:
        """SIGKILL, if it is still a worker."""
        with contextlib.suppress(OSError):
            self._line.send(json.dumps({"kill": pid}).encode())

    def close(self) -> None:
        """End the nursery, and wait for it: it has nothing left to do."""
        if not self.gone:
            self._loop.remove_reader(self._line)
        self._line.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _gone() -> NurseryGoneError:
    return NurseryGoneError(
        "the process that starts the workers is gone: no worker can be replaced; restart gatekeeper"
    )
