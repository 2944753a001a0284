"""What a worker has in common with the others: connection numbers, places under limits, and
news of exchanges."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gatekeeper.policy.epoch import Epoch
from gatekeeper.server.channel import NoAnswerError
from gatekeeper.server.describe import channel_infos, connection_info
from gatekeeper.server.exchanges import Exchanges
from gatekeeper.server.infos import ChannelInfo, ConnectionInfo
from gatekeeper.server.member import Member
from gatekeeper.server.messages import NAME_LIMIT
from gatekeeper.server.registry import ChannelPlace, Limit, Live, Registry, process_figures
from gatekeeper.server.upstreams import Upstreams

_CELL = struct.Struct("=Q")


class ConnectionNumbers:
    """Numbers that no two connections of the gate share, whichever worker accepts them.

    Strategy: of N workers, worker W takes W, W + N, W + 2N and so on. The last one that each
    took lies in memory that all processes share (made before the first fork), so the successor
    of a dead worker goes on where it ended. A cell has one writer at a time, so nothing is
    locked.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._cells = mmap.mmap(-1, _CELL.size * workers)

    def of(self, worker: int) -> Iterator[int]:
        """worker: 1 to the number of workers."""
        at = _CELL.size * (worker - 1)
        while True:
            (last,) = _CELL.unpack_from(self._cells, at)
            number = last + self._workers if last else worker
            _CELL.pack_into(self._cells, at, number)
            yield number


@dataclass(frozen=True, slots=True)
class Place:
    """What makes a gate one of several: its line to the supervisor, and its numbers."""

    member: Member
    numbers: Iterator[int]


class SharedRegistry(Registry):
    """A worker's registry; the supervisor counts for all of them.

    more: for the constructor of the registry that it is mixed into.
    """

    def __init__(self, member: Member, *more: Any) -> None:
        super().__init__(*more)
        self._member = member

    async def admit(self, live: Live, *, vhost_limit: int | None, user_limit: int | None) -> Limit:
        """As in one process. Raises NoAnswerError: the supervisor does not answer, or cannot be
        told of such a user; refuse."""
        if len(live.user) > NAME_LIMIT:
            # INVARIANT: no name that a client can choose makes a message that is none.
            raise NoAnswerError(f"a user name of more than {NAME_LIMIT} bytes")
        self.add(live)  # first, so that a revocation in the meantime finds it
        if vhost_limit is None and user_limit is None:
            self._member.opened(live.number, live.user, live.vhost)
            return "none"
        reached: Limit | None = None
        try:
            reached = await self._member.admit(
                live.number,
                live.user,
                live.vhost,
                vhost_limit=vhost_limit,
                user_limit=user_limit,
            )
            return reached
        finally:
            if reached != "none":
                # Without an answer the place may be ours all the same: give it back.
                self.remove(live)

    def remove(self, live: Live) -> None:
        if live in self._live:
            super().remove(live)
            left = live.channels + live.reserved
            if left:
                live.reserved = False
                self._member.channels_changed(live.user, ended=left)
            self._member.ended(live.number)

    def channel_place(
        self, live: Live, limit: int | None
    ) -> ChannelPlace | Awaitable[ChannelPlace]:
        if limit is None or live.reserved:
            return "granted"
        return self._ask_place(live, limit)

    async def _ask_place(self, live: Live, limit: int) -> ChannelPlace:
        def take() -> None:
            if live in self._live:
                live.reserved = True
            else:
                self._member.channels_changed(live.user, ended=1)

        try:
            granted = await self._member.admit_channel(live.user, limit, take)
        except NoAnswerError:
            return "unknown"
        return "granted" if granted else "reached"

    def channel_opened(self, live: Live) -> None:
        if live.reserved:
            live.reserved = False
        elif live in self._live:
            self._member.channels_changed(live.user, opened=1)

    def channel_ended(self, live: Live) -> None:
        if live in self._live:
            self._member.channels_changed(live.user, ended=1)


class SharedExchanges(Exchanges):
    """What a worker knows of exchanges; declares and deletes through any worker end it in all.

    A notice takes a moment, in which another worker may still go by the old type: less than a
    client needs to hear of the change and to publish elsewhere, but nobody waits for it. Without
    the notice it would be the seconds that an answer is kept.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        epoch: Epoch,
        on_error: Callable[[BaseException], None],
        member: Member,
    ) -> None:
        super().__init__(upstreams, epoch, on_error)
        self._member = member

    def changing(self, vhost: bytes, exchange: bytes) -> int:
        self._member.exchange_changed(vhost, exchange)
        return super().changing(vhost, exchange)

    def changed(self, vhost: bytes, exchange: bytes, kind: bytes | None, change: int) -> None:
        super().changed(vhost, exchange, kind, change)
        # Once more: who asked in between may have been told of the old one.
        self._member.exchange_changed(vhost, exchange)


class WorkerDuties:
    """Implements ``member.Duties`` over a worker's parts."""

    def __init__(
        self,
        registry: Registry,
        refresh: Callable[[], None],
        exchange_changed: Callable[[bytes, bytes], None],
        stop: Callable[..., None],
        clear_caches: Callable[[bytes | None], int],
    ) -> None:
        """stop: takes ``hurry``."""
        self._registry = registry
        self._refresh = refresh
        self.exchange_changed = exchange_changed
        self._stop = stop
        self.clear_caches = clear_caches

    def connections(self) -> Iterable[ConnectionInfo]:
        return (connection_info(live) for live in self._registry)

    def channels(self) -> Iterable[ChannelInfo]:
        return (info for live in self._registry for info in channel_infos(live))

    def channel_count(self, user: bytes) -> int:
        return self._registry.channel_count(user)

    def close(
        self, number: int | None, user: bytes | None, vhost: bytes | None, reason: bytes
    ) -> int:
        return self._registry.close(number, user, vhost, reason)

    def refresh(self) -> None:
        self._refresh()

    def statistics(self) -> Mapping[str, int]:
        return process_figures(self._registry)

    def stop(self, *, hurry: bool) -> None:
        self._stop(hurry=hurry)
