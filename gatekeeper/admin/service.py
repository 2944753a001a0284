"""What administrators do, whichever way they come (control socket or HTTP API).

Strategy: one place for what both ways share. A change is one transaction in a thread of its own
(a commit waits for the disk, and an import may take half a minute: clients must not), it is in
force in every process before the answer goes out, and it leaves an event in the log that says
who did what. Listings are read in batches outside the event loop for the same reason.

The ways in differ in words and codes alone: what goes wrong is a RequestError
(``store/refusals.py``: the asker's mistake) or another StoreError (the store's).
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from gatekeeper.config.settings import Settings
from gatekeeper.logs import Logger
from gatekeeper.model import Credentials, Identity, Peer, Secret
from gatekeeper.policy.answers import LoginRefused
from gatekeeper.policy.engine import Engine
from gatekeeper.server.exchanges import Exchanges
from gatekeeper.server.fleet import Fleet, SilentWorkersError
from gatekeeper.server.tasks import Owner
from gatekeeper.store.draft import Draft
from gatekeeper.store.refusals import RequestError
from gatekeeper.store.store import Store

BATCH = 500
"""Rows of a listing that are read in one go."""
REASON_LIMIT = 2000
"""Characters of a reason in the log: it may quote what somebody sent."""
CLI_USER = "rmq-cli"
"""Who acts through the control socket, in RabbitMQ's words."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. user: as authenticated, or ``rmq-cli``. address: where from, for the log."""

    user: str
    address: str


class Administration:
    """The operations behind every administrative interface. For use in one event loop.

    engine: judges logins and explains. fleet: the processes that serve clients.
    log: category ``audit``. exchanges: what is known of the brokers' exchanges.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        engine: Engine,
        fleet: Fleet,
        log: Logger,
        exchanges: Exchanges | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.engine = engine
        self.fleet = fleet
        self.started = time.time()
        self.node = f"gatekeeper@{socket.gethostname().partition('.')[0]}"
        self._log = log
        self._exchanges = exchanges
        # One thread: SQLite has one writer, and two administrators are served in turn.
        self._writer = ThreadPoolExecutor(1, "store-writer")
        self._readers = ThreadPoolExecutor(2, "store-reader")
        # What goes wrong is told to whoever asked, and is in the log.
        self._begun = Owner(lambda _error: None)

    def close(self) -> None:
        """Waits for a change under way: it is committed, or it is not."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writer.shutdown(wait=True, cancel_futures=True)

    # --- changes ---

    async def change(
        self, actor: Actor, action: str, target: Mapping[str, object], work: Callable[[Draft], T]
    ) -> T:
        """Carry out ``work`` as one transaction: all of it, or on an exception nothing.

        action: RabbitMQ's command name. target: what it is done to, for the log; no secrets.
        When this returns, the change is in force for every frame of every connection.
        Raises RequestError, StoreError.
        """

        def transaction() -> T:
            with self.store.change() as draft:
                return work(draft)

        return await self.carry_out(actor, action, target, transaction)

    async def carry_out(
        self, actor: Actor, action: str, target: Mapping[str, object], work: Callable[[], T]
    ) -> T:
        """As :meth:`change`, for what makes its own transaction (imports).

        Whoever asks may go away meanwhile: what is begun is finished, and logged. Raises
        SilentWorkersError where it is committed, but may not be in force everywhere yet.
        """
        return await asyncio.shield(self._begun.start(self._carry_out(actor, action, target, work)))

    async def _carry_out(
        self, actor: Actor, action: str, target: Mapping[str, object], work: Callable[[], T]
    ) -> T:
        try:
            result = await self._in(self._writer, work)
        except Exception as error:
            self.failed(actor, action, target, error)
            raise
        try:
            await self.fleet.settle()
        except SilentWorkersError as error:
            self._log.warning(
                _line(action, target, f"done, but {error}"),
                **_fields(actor, action, target, "unconfirmed"),
                reason=str(error),
            )
            raise
        self.done(actor, action, target)
        return result

    async def close_connections(
        self,
        actor: Actor,
        *,
        reason: bytes,
        number: int | None = None,
        user: bytes | None = None,
        vhost: bytes | None = None,
    ) -> int:
        """Close those that match all that is given, with 320 ``CONNECTION_FORCED - reason``."""
        count = await self.fleet.close(reason=reason, number=number, user=user, vhost=vhost)
        target = {"number": number, "user": user, "vhost": vhost, "reason": reason}
        given = {name: value for name, value in target.items() if value is not None}
        self.done(actor, "close_connections", {**given, "closed": count})
        return count

    # --- reading ---

    async def read(self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """``work`` outside the event loop. Raises what it raises."""
        return await self._in(self._readers, lambda: work(*arguments, **options))

    async def rows(self, listing: Callable[[], Iterator[T]]) -> AsyncIterator[list[T]]:
        """A listing of any length, batch by batch. Raises RequestError, StoreError."""
        rows = await self.read(listing)
        while batch := await self.read(lambda: list(itertools.islice(rows, BATCH))):
            yield batch

    async def all_rows(self, listing: Callable[[], Iterator[T]]) -> list[T]:
        """A listing as a whole, for answers that are one document anyway."""
        return await self.read(lambda: list(listing()))

    async def exchange_exists(self, vhost: bytes, exchange: bytes) -> bool:
        """Asked of the broker; where it does not tell: yes."""
        if self._exchanges is None or not exchange:
            return True
        exists = self._exchanges.exists(vhost, exchange)
        return exists if isinstance(exists, bool) else await exists

    # --- logins ---

    async def authenticate(
        self, username: bytes, password: bytes, peer: Peer
    ) -> Identity | LoginRefused:
        """As a client's login by PLAIN: every backend, loopback_users."""
        return await self.engine.login(Credentials("PLAIN", username, Secret(password)), peer)

    # --- who did what ---

    def done(self, actor: Actor, action: str, target: Mapping[str, object]) -> None:
        self._log.info(_line(action, target, "done"), **_fields(actor, action, target, "done"))

    def failed(
        self, actor: Actor, action: str, target: Mapping[str, object], error: Exception
    ) -> None:
        """It was allowed, and it could not be done."""
        outcome = "refused" if isinstance(error, RequestError) else "failed"
        reason = str(error)[:REASON_LIMIT]
        self._log.warning(
            _line(action, target, f"{outcome}: {reason}"),
            **_fields(actor, action, target, outcome),
            reason=reason,
        )

    def denied(self, actor: Actor, action: str, target: Mapping[str, object], reason: str) -> None:
        """Somebody without the right to it tried."""
        self._log.warning(
            _line(action, target, f"denied: {reason}"),
            **_fields(actor, action, target, "denied"),
            reason=reason,
        )

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def _shown(value: object) -> object:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _line(action: str, target: Mapping[str, object], outcome: str) -> str:
    what = "".join(f" {name}={_shown(value)!r}" for name, value in target.items())
    return f"{action}{what}: {outcome}"


def _fields(
    actor: Actor, action: str, target: Mapping[str, object], outcome: str
) -> dict[str, object]:
    return {
        "acting_user": actor.user,
        "address": actor.address,
        "action": action,
        "target": {name: _shown(value) for name, value in target.items()},
        "outcome": outcome,
    }
