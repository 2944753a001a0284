"""Several processes: the supervisor, which serves no client, and what a worker of its does.

Strategy: the supervisor makes sure of everything that is to be had once (the ports, the store
with its schema, definitions and seed), then starts ``workers`` processes, each of them a whole
gate (``app.py``) with listeners of its own on the same ports, among which the kernel spreads the
clients. It stays as the one that knows them all (``server/control.py``): it counts connections
under limits, passes changes of the store on, and stops them in order. A worker that dies takes
only its own connections with it, and is replaced. If the supervisor dies, the workers see their
control channels end and stop in order.

Order of a start: ports, then the nursery (``server/nursery.py``), and only then the store, the
event loop and everything else that does not survive a fork.

Until every worker has listened once, a worker's failure is the end of the start: the operator
gets one line. Later it is not: the others go on, and the replacement is tried again and again.

Signals: the supervisor's alone count. Workers ignore SIGTERM and SIGINT, for a terminal or a
service manager sends them to all processes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

from gatekeeper import logs
from gatekeeper.administration import Desk
from gatekeeper.app import STORE_REFRESH, App, ready_line
from gatekeeper.backends.registry import Backends
from gatekeeper.config.settings import Settings
from gatekeeper.errors import GatekeeperError, OperatorError
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.epoch import Epoch
from gatekeeper.prepare import prepared_store
from gatekeeper.server import nursery
from gatekeeper.server.control import Hub, Link
from gatekeeper.server.endpoint import SharedBuffer
from gatekeeper.server.exchanges import Exchanges
from gatekeeper.server.fleet import Fleet, HubFleet
from gatekeeper.server.member import Member
from gatekeeper.server.nursery import ForkError, Nursery, NurseryGoneError
from gatekeeper.server.ports import HeldPorts
from gatekeeper.server.shared import ConnectionNumbers, Place
from gatekeeper.server.tasks import Owner
from gatekeeper.server.upstreams import Upstreams
from gatekeeper.store.records import StoreEvent
from gatekeeper.tls import client_context, server_context

PAUSE_FIRST, PAUSE_MAX = 0.1, 10.0
"""Seconds before a dead worker is replaced: doubled with each death, up to the second."""
HEALTHY = 10.0
"""Seconds after which a worker's death counts as the first one again."""
START_TIMEOUT = 30.0
"""Seconds for a worker to listen."""
PING_TIMEOUT = 5.0
"""Seconds from one question whether a worker still answers to the next."""
PINGS_MISSED = 3
"""Questions without an answer after which a worker is killed and replaced."""
ENDING = 5.0
"""Seconds from the end of a worker's control channel to the end of its process."""
STOP_GRACE = 10.0
"""Seconds beyond ``drain_timeout`` for a worker to end, before it is killed."""
HURRY_GRACE = 6.0
"""The same after a second signal."""

Run = Callable[[Coroutine[Any, Any, int]], int]
"""Runs a coroutine in a new event loop."""


def supervise(settings: Settings, run: Run) -> None:
    """Run a gate of ``settings.workers`` processes until a signal ends it.

    To be called before a thread or an event loop exists. Raises OperatorError where the gate
    cannot start, or cannot go on.
    """
    _check_tls(settings)
    listeners = (*settings.tcp_listeners, *settings.ssl_listeners)
    with contextlib.closing(HeldPorts(listeners, settings.socket)) as ports:
        plain = len(settings.tcp_listeners)
        settings = dataclasses.replace(
            settings,
            tcp_listeners=ports.addresses[:plain],
            ssl_listeners=ports.addresses[plain:],
        )
        numbers = ConnectionNumbers(settings.workers)
        pid, line = nursery.start(partial(_work, settings, numbers, run), ports.close)
        try:
            run(Supervisor(settings, ports, pid, line).run())
        finally:
            line.close()


def _check_tls(settings: Settings) -> None:
    """What each worker will load for itself: a mistake should be found before anything starts."""
    if settings.tls is not None:
        server_context(settings.tls)
    for upstream in settings.upstreams.values():
        if upstream.tls is not None:
            client_context(upstream.tls, f"upstreams.{upstream.name}.ssl_options")


def _work(
    settings: Settings, numbers: ConnectionNumbers, run: Run, worker: int, sock: socket.socket
) -> int:
    """A worker's life, in the process that is forked for it; its exit status."""
    return run(_serve(settings, numbers, worker, sock))


async def _serve(
    settings: Settings, numbers: ConnectionNumbers, worker: int, sock: socket.socket
) -> int:
    member = await Member.over(sock, logs.get_logger("default"))
    try:
        await App(settings, Place(member, numbers.of(worker))).run()
    except OperatorError as error:
        await member.failed(str(error))
        return 1
    await member.close()
    return 0


class Supervisor:
    """line: to the nursery, whose process id is ``pid``."""

    def __init__(self, settings: Settings, ports: HeldPorts, pid: int, line: socket.socket) -> None:
        self._settings = settings
        self._ports = ports
        self._nursery_pid = pid
        self._line = line
        self._log = logs.get_logger("default")
        self._pids: dict[int, int] = {}
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._failure: OperatorError | None = None
        self._ready = False
        self._refreshing = False
        self._untold = False
        self._backends: Backends | None = None
        self._exchanges: Exchanges | None = None

    async def run(self) -> int:
        """Until a signal, or until it cannot go on (raises OperatorError)."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._owner = Owner(self._task_failed)
        self._nursery = Nursery(self._nursery_pid, self._line, self._nursery_gone)
        self.hub = Hub(self._log, self._changed_by_worker, self._exchange_changed)
        self.fleet: Fleet = HubFleet(self.hub, self._settings.upstreams, self._clear_cache)
        try:
            epoch = Epoch()
            store = prepared_store(self._settings, epoch, self._log)
            with self._signals(), contextlib.closing(store) as self._store:
                self._store.subscribe(self._changed_here)
                async with self._administered(epoch) as self._desk:
                    await self._run_workers()
        finally:
            self._nursery.close()
            await self._owner.close()
        if self._failure is not None:
            raise self._failure
        self._log.info("stopped")
        return 0

    @contextlib.asynccontextmanager
    async def _administered(self, epoch: Epoch) -> AsyncIterator[Desk]:
        """With backends of this process's own, for administrators alone; the brokers are asked
        only where their question needs it."""
        settings = self._settings
        exchanges = self._exchanges = Exchanges(
            Upstreams(settings.upstreams, SharedBuffer()), epoch, self._task_failed
        )
        backends = self._backends = Backends(settings, self._store)
        desk = Desk(
            settings,
            store=self._store,
            engine=Engine(backends.pairs, exchanges, settings.loopback_users),
            fleet=self.fleet,
            exchanges=exchanges,
        )
        try:
            await backends.start()
            yield desk
        finally:
            await desk.close()
            await exchanges.close()
            await backends.close()

    async def _run_workers(self) -> None:
        numbers = range(1, self._settings.workers + 1)
        started = [asyncio.Event() for _ in numbers]
        workers = Owner(self._task_failed)
        for number, event in zip(numbers, started, strict=True):
            workers.start(self._keep(number, event))
        ready = self._owner.start(self._announce(started))
        watch = self._owner.start(self._watch_store())
        await self._stopping.wait()
        ready.cancel()
        watch.cancel()
        self._ports.close()  # the workers' listeners end too: another gate may have them
        self.hub.stop(hurry=self._hurry.is_set())
        await self._until_ended(workers)
        await workers.close()

    async def _announce(self, started: list[asyncio.Event]) -> None:
        for event in started:
            await event.wait()
        try:
            await self._desk.start()
        except OperatorError as error:
            self._give_up(error)
            return
        self._ready = True
        tcp = [f"amqp://{address}" for address in self._settings.tcp_listeners]
        tls = [f"amqps://{address}" for address in self._settings.ssl_listeners]
        self._log.info(ready_line([*tcp, *tls], self._settings.workers))

    # --- one worker, again and again ---

    async def _keep(self, worker: int, started: asyncio.Event) -> None:
        """Have worker number ``worker`` run until the gate stops."""
        pause = PAUSE_FIRST
        while not self._stopping.is_set():
            begin = time.monotonic()
            try:
                reason = await self._live(worker, started)
            except NurseryGoneError as error:
                self._give_up(error)
                return
            except ForkError as error:
                reason = str(error)
            if self._stopping.is_set():
                return
            if not self._ready:
                self._give_up(OperatorError(reason))
                return
            if time.monotonic() - begin >= HEALTHY:
                pause = PAUSE_FIRST
            self._log.error(f"{reason}; it is replaced in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(pause * 2, PAUSE_MAX)

    async def _live(self, worker: int, started: asyncio.Event) -> str:
        """One process, from fork to death; what it died of. Raises ForkError, NurseryGoneError."""
        ours, theirs = socket.socketpair()
        try:
            pid = await self._nursery.spawn(worker, theirs)
        except BaseException:
            ours.close()
            raise
        self._pids[worker] = pid
        link = await self.hub.add(worker, ours)
        if self._stopping.is_set():
            self.hub.stop(hurry=self._hurry.is_set())  # it was not there to be told
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await link.settled.wait()
        except TimeoutError:
            link.failure = f"it did not listen within {START_TIMEOUT:g} s"
            self._nursery.kill(pid)
        if link.addresses is not None:
            if self._ready:
                self._log.info(f"worker {worker} (process {pid}) listens again")
            started.set()
        watch = self._owner.start(self._watch_worker(link, pid))
        await link.gone.wait()
        watch.cancel()
        reason = await self._obituary(worker, pid, link)
        del self._pids[worker]
        return reason

    async def _watch_worker(self, link: Link, pid: int) -> None:
        """Kill it if it answers nothing for PING_TIMEOUT times PINGS_MISSED.

        Several questions in a row, because a supervisor that was stopped itself (a machine that
        slept) finds one overdue for which it has only not read the answer yet.
        """
        missed = 0
        while not link.gone.is_set():
            begin = time.monotonic()
            missed = 0 if await self.hub.answers(link, PING_TIMEOUT) else missed + 1
            if missed >= PINGS_MISSED and not link.gone.is_set():
                seconds = PING_TIMEOUT * PINGS_MISSED
                self._log.error(
                    f"worker {link.worker} (process {pid}) has answered nothing for "
                    f"{seconds:g} s: killed"
                )
                self._nursery.kill(pid)
                return
            await asyncio.sleep(max(0.0, PING_TIMEOUT - (time.monotonic() - begin)))

    async def _obituary(self, worker: int, pid: int, link: Link) -> str:
        status = await self._nursery.status(pid, ENDING)
        if status is None:
            # Its channel is gone and it is not: it must not serve without control.
            self._nursery.kill(pid)
            status = await self._nursery.status(pid, ENDING)
        if link.failure is not None and link.addresses is None:
            return link.failure
        return f"worker {worker} (process {pid}) {_described(status)}"

    def _give_up(self, error: OperatorError) -> None:
        if self._failure is None and not self._stopping.is_set():
            self._failure = error
        self._stopping.set()

    # --- the end ---

    async def _until_ended(self, workers: Owner) -> None:
        """Wait for the workers; kill those that take too long."""
        drain = 0.0 if self._failure and not self._ready else self._settings.drain_timeout
        ended = self._owner.start(workers.empty())
        hurried = self._owner.start(self._hurry.wait())
        await asyncio.wait(
            {ended, hurried}, timeout=drain + STOP_GRACE, return_when=asyncio.FIRST_COMPLETED
        )
        if hurried.done() and not ended.done():
            self.hub.stop(hurry=True)
            await asyncio.wait({ended}, timeout=HURRY_GRACE)
        hurried.cancel()
        for worker, pid in self._pids.items():
            self._log.warning(f"worker {worker} (process {pid}) does not end: killed")
            self._nursery.kill(pid)
        await asyncio.wait({ended}, timeout=HURRY_GRACE)
        ended.cancel()

    @contextlib.contextmanager
    def _signals(self) -> Any:
        def stop() -> None:
            (self._hurry if self._stopping.is_set() else self._stopping).set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    # --- the store ---

    def _changed_by_worker(self, worker: int) -> None:
        """A worker has committed a change: this process and the other workers take it over."""
        self._refreshing = True
        try:
            self._store.refresh()
        except OperatorError as error:
            self._log.error(str(error))
        finally:
            self._refreshing = False
        self._owner.start(self._tell_workers(but=worker))

    def _exchange_changed(self, vhost: bytes, exchange: bytes) -> None:
        if self._exchanges is not None:
            self._exchanges.changed_elsewhere(vhost, exchange)

    def _clear_cache(self, user: bytes | None) -> int:
        return 0 if self._backends is None else self._backends.clear_cache(user)

    def _carry_out(self, event: StoreEvent) -> None:
        """In the event loop. All that is kept here is what administrators have logged in with."""
        if self._backends is not None:
            self._backends.store_changed(event)

    def _changed_here(self, event: StoreEvent) -> None:
        """In whatever thread; once for every event of a change. To tell the workers, the first is
        enough."""
        self._loop.call_soon_threadsafe(self._carry_out, event)
        news = self._refreshing and threading.get_ident() == self._thread
        if not news and not self._untold:
            self._untold = True
            self._loop.call_soon_threadsafe(lambda: self._owner.start(self._tell_workers()))

    async def _watch_store(self) -> None:
        """See what a process that is not one of ours has changed in the store."""
        while True:
            await asyncio.sleep(STORE_REFRESH)
            try:
                self._store.refresh()
            except OperatorError as error:
                self._log.error(str(error))

    async def _tell_workers(self, but: int | None = None) -> None:
        if but is None:
            self._untold = False
        answers = await self.hub.refresh(but=but)
        for worker, reason in answers.silent.items():
            self._log.warning(f"worker {worker} has not taken over a change yet: {reason}")

    # --- mishaps ---

    def _nursery_gone(self) -> None:
        if not self._stopping.is_set():
            self._log.error("the process that starts the workers is gone: none can be replaced")

    def _task_failed(self, error: BaseException) -> None:
        self._log.error("internal error in the supervisor", exc_info=error)
        if not isinstance(error, GatekeeperError):
            self._give_up(OperatorError("internal error in the supervisor; see the log"))


def _described(status: int | None) -> str:
    if status is None:
        return "is gone, its exit status is not known"
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"
