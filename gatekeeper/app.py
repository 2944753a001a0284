"""The composition root: the only place that knows every room and wires them together.

Start: store, definitions or seed, policy, upstreams, sockets; then the first question to the
brokers; then listening. A thing that the operator must mend stops the start with one line; an
unreachable broker does not (clients get a clear close until it is back).
Stop (SIGTERM, SIGINT): no new clients, ``drain_timeout`` for the others to leave, then 320
CONNECTION_FORCED to whoever is left. A second signal does not wait.

Of several processes (``workers``) each worker is such a gate with a place (``server/shared.py``):
the supervisor has prepared the store and tells it when to stop; see ``supervisor.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
from collections.abc import Iterable, Iterator

from gatekeeper import __version__, logs
from gatekeeper.administration import Desk
from gatekeeper.backends import staleness
from gatekeeper.backends.registry import Backends
from gatekeeper.config.settings import Settings
from gatekeeper.errors import GatekeeperError, OperatorError
from gatekeeper.model import Peer
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.epoch import Epoch
from gatekeeper.prepare import open_store, prepared_store
from gatekeeper.protocol.frames import COMPILED
from gatekeeper.server.connection import Connection, Gate
from gatekeeper.server.deadlines import TimeLimit
from gatekeeper.server.endpoint import Endpoint, SharedBuffer
from gatekeeper.server.exchanges import Exchanges
from gatekeeper.server.fleet import Fleet, LocalFleet
from gatekeeper.server.lines import text
from gatekeeper.server.listener import Listeners
from gatekeeper.server.mechanisms import Mechanisms
from gatekeeper.server.registry import Live, Registry
from gatekeeper.server.revocation import Revocation
from gatekeeper.server.shared import Place, SharedExchanges, SharedRegistry, WorkerDuties
from gatekeeper.server.tasks import Owner
from gatekeeper.server.upstreams import RETRY_FIRST, RETRY_MAX, UpstreamLink, Upstreams
from gatekeeper.store.records import (
    PasswordChanged,
    PermissionsChanged,
    Reloaded,
    StoreEvent,
    UserDeleted,
    UserTagsChanged,
    VhostDeleted,
)
from gatekeeper.store.store import Store

FIRST_ANSWER = 2.0
"""Seconds to wait for the brokers before listening all the same."""
CLOSING = 3.0
"""Seconds for clients to answer the connection.close of a shutdown."""
STORE_REFRESH = 1.0
"""Seconds between looks for changes by other processes."""


class App:
    """The gate. Everything that can be wrong with the configuration is found in ``__init__``,
    which must run inside the event loop; raises OperatorError.

    place: of a worker among several; None where this process is the whole gate.
    """

    def __init__(self, settings: Settings, place: Place | None = None) -> None:
        self._settings = settings
        self._place = place
        self._stopping = _Stopping()
        self._refreshing = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._log = logs.get_logger("default")
        self._owner = Owner(self._task_failed)
        self._epoch = Epoch()
        self._closing = contextlib.ExitStack()
        try:
            buffer = SharedBuffer()
            self._store = self._open_store()
            self._closing.callback(self._store.close)
            self._upstreams = Upstreams(settings.upstreams, buffer)
            self._backends = Backends(settings, self._store)
            self._exchanges, self._registry = self._shared_or_not()
            self._revocation = Revocation(self._registry)
            self._gate = Gate(
                settings=settings,
                patience=TimeLimit(settings.handshake_timeout),
                mechanisms=Mechanisms(settings),
                store=self._store,
                engine=Engine(self._backends.pairs, self._exchanges, settings.loopback_users),
                epoch=self._epoch,
                upstreams=self._upstreams,
                exchanges=self._exchanges,
                registry=self._registry,
                owner=self._owner,
                connection_log=logs.get_logger("connection"),
                channel_log=logs.get_logger("channel"),
                user_log=logs.get_logger("user"),
            )
            self._clients = Owner(self._connection_failed)
            numbers = None if place is None else place.numbers
            self._listeners = Listeners(
                settings, buffer, self._accept, self._owner, self._log, numbers
            )
            self._closing.callback(self._listeners.close)
            self.fleet: Fleet = LocalFleet(
                self._registry, self._upstreams, self._refresh, self._clear_caches
            )
            self._desk = self._desk_or_none()
        except BaseException:
            self._closing.close()
            raise
        self._closing.callback(self._store.subscribe(self._store_changed))
        self._serve_supervisor()

    # --- wiring ---

    def _open_store(self) -> Store:
        settings = self._settings
        if self._place is None:
            return prepared_store(settings, self._epoch, self._log)
        return open_store(settings, self._epoch)

    def _shared_or_not(self) -> tuple[Exchanges, Connections]:
        """What several processes must agree on."""
        place = self._place
        passwords = self._settings.password_change_closes_connections
        if place is None:
            exchanges = Exchanges(self._upstreams, self._epoch, self._task_failed)
            return exchanges, Connections(self._store, passwords=passwords)
        shared = SharedExchanges(self._upstreams, self._epoch, self._task_failed, place.member)
        registry = SharedConnections(place.member, self._store, passwords)
        return shared, registry

    def _desk_or_none(self) -> Desk | None:
        """A worker is not the whole gate: its supervisor has the administration."""
        if self._place is not None:
            return None
        return Desk(
            self._settings,
            store=self._store,
            engine=self._gate.engine,
            fleet=self.fleet,
            exchanges=self._exchanges,
        )

    def _serve_supervisor(self) -> None:
        """From here on it may ask: everything that it may ask for is there."""
        exchanges = self._exchanges
        if self._place is not None and isinstance(exchanges, SharedExchanges):
            duties = WorkerDuties(
                self._registry,
                self._refresh,
                exchanges.changed_elsewhere,
                self.stop,
                self._clear_caches,
            )
            self._place.member.serve(duties)

    def _accept(self, endpoint: Endpoint, peer: Peer, number: int) -> None:
        self._clients.start(Connection(self._gate, endpoint, peer, number).live())

    def _store_changed(self, event: StoreEvent) -> None:
        """In whatever thread the change was made, or read back."""
        if threading.get_ident() == self._thread:
            self._carry_out(event)
            news = self._refreshing
        else:
            self._loop.call_soon_threadsafe(self._carry_out, event)
            news = False
        if self._place is not None and not news:
            self._place.member.changed()

    def _carry_out(self, event: StoreEvent) -> None:
        """In the event loop: end connections, or have their consumers judged again."""
        self._backends.store_changed(event)
        match event:
            case PermissionsChanged(user, vhost):
                self._revocation.permissions_changed(user, vhost)
            case UserTagsChanged(name):
                self._revocation.user_changed(name)
            case PasswordChanged(name) if self._settings.password_change_closes_connections:
                self._deleted(f"for user '{text(name)}' because the password is changed")
                self._registry.password_changed(name)
            case UserDeleted(name):
                self._deleted(f"for user '{text(name)}' because the user is being deleted")
                self._registry.user_deleted(name)
            case VhostDeleted(name):
                self._deleted(f"in vhost '{text(name)}' because it's being deleted")
                self._registry.vhost_deleted(name)
            case Reloaded():
                self._revocation.everything_changed()
                self._registry.recheck()
            case _:
                pass  # holds from the next frame, or the next login, on

    def _refresh(self) -> None:
        """Take over what another process has changed in the store. Raises OperatorError."""
        self._refreshing = True
        try:
            self._store.refresh()
            if self._registry.outdated:
                self._registry.recheck()
        finally:
            self._refreshing = False

    def _clear_caches(self, user: bytes | None) -> int:
        """Ask the backends anew about this user, or all; how many answers are forgotten."""
        cleared = self._backends.clear_cache(user)
        # What is being asked was asked for what is forgotten now: it must not be kept either.
        self._epoch.bump()
        self._revocation.everything_changed()
        return cleared

    def _permissions_are_old(self) -> None:
        """What backends outside the gate have allowed is to be asked anew, consumers included."""
        self._epoch.age()
        self._revocation.everything_changed()

    def _deleted(self, what: str) -> None:
        self._gate.connection_log.info(f"Closing all connections {what}")

    def _task_failed(self, error: BaseException) -> None:
        self._log.error("internal error in a background task", exc_info=error)

    def _connection_failed(self, error: BaseException) -> None:
        """The connection is closed already: its own ``finally`` did that."""
        self._log.error("internal error in a connection", exc_info=error)

    # --- running ---

    @property
    def addresses(self) -> list[str]:
        return self._listeners.addresses

    async def run(self) -> None:
        """Serve until a signal, or of a worker the supervisor, says so; then stop in order."""
        signals = _signals(self._stopping) if self._place is None else contextlib.nullcontext()
        with self._closing, signals:
            try:
                await self._start()
                await self._stopping.wanted.wait()
                await self._stop()
            finally:
                if self._desk is not None:
                    await self._desk.close()
            await self._exchanges.close()
            await self._backends.close()
            await self._owner.close()
        if self._place is None:
            self._log.info("stopped")

    def stop(self, *, hurry: bool) -> None:
        """Stop in order; ``hurry``: without waiting for clients to leave."""
        self._stopping.wanted.set()
        if hurry:
            self._stopping.hurry.set()

    async def _start(self) -> None:
        await self._backends.start()
        for link in self._upstreams.links.values():
            if link.renewal is not None:
                self._owner.start(link.renewal.keep())
        learning = [
            self._owner.start(self._keep_learning(link)) for link in self._upstreams.links.values()
        ]
        self._owner.start(self._watch_store())
        remembered = self._settings.permission_cache_ttl
        if remembered and staleness.may_go_stale(self._settings.auth_backends):
            self._owner.start(staleness.every(remembered, self._permissions_are_old))
        first = [link.learned.wait() for link in self._upstreams.links.values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ANSWER if learning else 0):
                await asyncio.gather(*first)
        await self._listeners.start()
        if self._place is not None:
            self._place.member.started(self.addresses)
            return
        if self._desk is not None:
            await self._desk.start()
        self._log.info(ready_line(self.addresses, workers=1))

    async def _keep_learning(self, link: UpstreamLink) -> None:
        """Ask a broker for its properties and limits, now and whenever it is time again."""
        pause, reachable = RETRY_FIRST, True
        while True:
            try:
                await link.learn()
            except GatekeeperError as error:
                self._judged(link, str(error))
                if reachable:
                    self._log.warning(f"{error}; clients are refused until it is back")
                reachable = False
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_MAX)
                continue
            self._judged(link, "")
            facts = link.facts
            if facts is not None and (not reachable or not link.learned.is_set()):
                self._log.info(
                    f"upstream {link.settings.name}: {facts.product} {facts.version} answers"
                )
            link.learned.set()
            pause, reachable = RETRY_FIRST, True
            await link.stale()

    def _judged(self, link: UpstreamLink, error: str) -> None:
        if link.judged(error) and self._place is not None:
            self._place.member.upstream_changed(link.status)

    async def _watch_store(self) -> None:
        """Take over what another process has changed in the store."""
        while True:
            await asyncio.sleep(STORE_REFRESH)
            try:
                self._refresh()
            except OperatorError as error:
                self._log.error(str(error))

    async def _stop(self) -> None:
        self._listeners.close()
        if self._settings.drain_timeout and len(self._clients):
            seconds = self._settings.drain_timeout
            self._log.info(f"draining: {len(self._clients)} connections have {seconds:g} s to end")
            await self._until_empty(seconds, self._stopping.hurry)
        if len(self._clients):
            self._registry.shutdown()
            await self._until_empty(CLOSING, None)
        await self._clients.close()

    async def _until_empty(self, seconds: float, hurry: asyncio.Event | None) -> None:
        """Until all clients are gone, ``seconds`` have passed or ``hurry`` is set."""
        waits = [self._owner.start(self._clients.empty())]
        if hurry is not None:
            waits.append(self._owner.start(hurry.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


class Connections(Registry):
    """The registry, and of which user and vhost of their names its connections are.

    Deletions are told one by one, unless there are too many changes at a time: then each
    connection's user and vhost are looked up again. Who is not in the store (authenticated by
    another backend) is not deleted from it either.

    passwords: end those as well whose user's password hash is another. That of a password that
    was only hashed anew is, too; such a connection is ended needlessly, if there were too many
    changes at a time.
    """

    def __init__(self, store: Store, passwords: bool = False) -> None:
        super().__init__()
        self.outdated = False
        self._store = store
        self._passwords = passwords
        self._incarnations: dict[Live, tuple[int | None, int | None, int | None]] = {}

    def add(self, live: Live) -> None:
        self._incarnations[live] = self._incarnations_now(live)
        super().add(live)

    def remove(self, live: Live) -> None:
        super().remove(live)
        self._incarnations.pop(live, None)

    def recheck(self) -> None:
        """End the connections whose user or vhost is gone, or is another of the same name.

        Raises StoreError; ``outdated`` stays set then, and it is to be called again.
        """
        self.outdated = True
        users, vhosts, passwords = set(), set(), set()
        for live, (user, vhost, password) in tuple(self._incarnations.items()):
            user_now, vhost_now, password_now = self._incarnations_now(live)
            if user not in {None, user_now}:
                users.add(live.user)
            if vhost not in {None, vhost_now}:
                vhosts.add(live.vhost)
            if password not in {None, password_now}:
                passwords.add(live.user)
        self.outdated = False
        for name in vhosts:
            self.vhost_deleted(name)
        for name in users:
            self.user_deleted(name)
        for name in passwords - users:
            self.password_changed(name)

    def _incarnations_now(self, live: Live) -> tuple[int | None, int | None, int | None]:
        """The user's, the vhost's, and what stands for the password where it matters."""
        user, vhost = self._store.user(live.user), self._store.vhost(live.vhost)
        return (
            user.incarnation if user else None,
            vhost.incarnation if vhost else None,
            hash(user.password_hash) if user and self._passwords else None,
        )


class SharedConnections(SharedRegistry, Connections):
    """A worker's: limits are those of the whole gate."""


class _Stopping:
    """Told once: stop in order; told again: hurry."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.hurry = asyncio.Event()

    def tell(self) -> None:
        (self.hurry if self.wanted.is_set() else self.wanted).set()


@contextlib.contextmanager
def _signals(stopping: _Stopping) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.tell)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def ready_line(addresses: Iterable[str], workers: int) -> str:
    scanner = "compiled" if COMPILED else "plain Python (slower: no C compiler at install time)"
    processes = f"{workers} workers; " if workers > 1 else ""
    return (
        f"gatekeeper {__version__} ready on {', '.join(addresses)}; {processes}"
        f"frame scanner: {scanner}"
    )


def settle() -> None:
    """What is there before the first client stays for good: the collector need not walk it."""
    gc.collect()
    gc.freeze()


async def serve(settings: Settings) -> None:
    """Build the gate and run it. Raises OperatorError where it cannot start."""
    app = App(settings)
    settle()
    await app.run()
