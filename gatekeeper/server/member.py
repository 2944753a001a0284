"""A worker's line to the supervisor; ``control.py`` is the other side.

Strategy: what the supervisor asks is done or answered by the worker's :class:`Duties`. What the
worker has to tell goes out at once, in order, and waits here, merged, while the supervisor does
not read. When the line ends, however it ends, the worker stops in order: nobody could list,
close or count its connections any more.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from typing import Protocol, TypeVar

from gatekeeper.errors import OperatorError
from gatekeeper.logs import Logger
from gatekeeper.server.channel import Channel, NoAnswerError
from gatekeeper.server.infos import ChannelInfo, ConnectionInfo, UpstreamStatus
from gatekeeper.server.messages import (
    FRAME_LIMIT,
    ITEMS_LIMIT,
    TEXT_LIMIT,
    Admit,
    AdmitChannel,
    Admitted,
    Changed,
    ChannelAdmitted,
    ChannelsChanged,
    ChannelsCounted,
    ClearCaches,
    CloseConnections,
    Done,
    Ended,
    ExchangeChanged,
    Failed,
    ListChannels,
    ListConnections,
    Listed,
    ListedChannels,
    Message,
    Opened,
    Refresh,
    Started,
    Statistics,
    Stop,
    Undone,
    UnwatchUser,
    UpstreamChanged,
    WatchUser,
)
from gatekeeper.server.registry import Limit
from gatekeeper.server.tasks import Owner

ADMIT_TIMEOUT = 2.0
"""Seconds that a worker waits for a connection's or channel's place before it refuses it."""
PART = FRAME_LIMIT - 1024
"""Bytes of a list in one message, as :func:`weight` has them."""

News = Opened | Ended | UpstreamChanged | ChannelsCounted | ChannelsChanged
Info = TypeVar("Info", ConnectionInfo, ChannelInfo)


def weight(info: ConnectionInfo | ChannelInfo) -> int:
    """Bytes that it takes in a message, at most: JSON escapes an octet by six characters."""
    size = 0
    for each in fields(info):
        value = getattr(info, each.name)
        length = (
            len(value) * (6 if isinstance(value, bytes) else 12)
            if isinstance(value, bytes | str)
            else 20
        )
        size += len(each.name) + length + 6
    return size


class Duties(Protocol):
    """What a worker does when the supervisor asks. ``refresh`` may raise OperatorError."""

    def connections(self) -> Iterable[ConnectionInfo]: ...
    def channels(self) -> Iterable[ChannelInfo]: ...
    def channel_count(self, user: bytes) -> int: ...
    def close(
        self, number: int | None, user: bytes | None, vhost: bytes | None, reason: bytes
    ) -> int: ...
    def refresh(self) -> None: ...
    def clear_caches(self, user: bytes | None) -> int: ...
    def exchange_changed(self, vhost: bytes, exchange: bytes) -> None: ...
    def statistics(self) -> Mapping[str, int]: ...
    def stop(self, *, hurry: bool) -> None: ...


class Member:
    """A worker's side. When the channel ends, however, it asks the worker to stop in order."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._owner = Owner(self._failed)
        self._duties: Duties | None = None
        self._early: list[Message] = []
        self._over = False
        self._channel: Channel | None = None
        self._untold: dict[Hashable, News] = {}
        self._telling = False
        self._watched: set[bytes] = set()
        self._requests = itertools.count(1)
        self._wanted: dict[int, tuple[asyncio.Future[bool | None], Callable[[], None]]] = {}

    @classmethod
    async def over(cls, sock: socket.socket, log: Logger) -> Member:
        """The worker's end of the socket pair, which then belongs to it."""
        member = cls(log)
        member._channel = await Channel.over(sock, member._received, member._lost)
        return member

    def serve(self, duties: Duties) -> None:
        """From now on, answer; what has been said before is done now."""
        self._duties = duties
        for message in self._early:
            self._received(message)
        self._early.clear()
        if self._channel is not None and not self._channel.open:
            self._lost("")

    # --- what the supervisor says ---

    def _received(self, message: Message) -> None:
        duties, channel = self._duties, self._channel
        if duties is None or channel is None:
            self._early.append(message)
            return
        match message:
            case ListConnections(request):
                infos = duties.connections()
                self._owner.start(self._list(infos, channel, partial(Listed, request)))
            case ListChannels(request):
                channels = duties.channels()
                self._owner.start(self._list(channels, channel, partial(ListedChannels, request)))
            case CloseConnections(request, number, user, vhost, reason):
                self._answer(Done(request, {"closed": duties.close(number, user, vhost, reason)}))
            case Refresh(request):
                try:
                    duties.refresh()
                except OperatorError as error:
                    self._log.error(str(error))
                    self._answer(Undone(request, str(error)[:TEXT_LIMIT]))
                else:
                    self._answer(Done(request, {}))
            case ClearCaches(request, user):
                self._answer(Done(request, {"cleared": duties.clear_caches(user)}))
            case Statistics(request):
                self._answer(Done(request, duties.statistics()))
            case ExchangeChanged(vhost, exchange):
                duties.exchange_changed(vhost, exchange)
            case ChannelAdmitted():
                self._channel_admitted(message)
            case WatchUser(user, round_):
                self._watched.add(user)
                self._untold.pop(("channels", user), None)  # it is part of the count
                counted = ChannelsCounted(user, round_, duties.channel_count(user))
                self._note(("counted", user), counted)
            case UnwatchUser(user):
                self._watched.discard(user)
                for kind in ("counted", "channels"):
                    self._untold.pop((kind, user), None)
            case Stop(hurry):
                duties.stop(hurry=hurry)
            case _:
                channel.close(f"a supervisor does not say {type(message).__name__}")

    def _answer(self, message: Message) -> None:
        if self._channel is not None:
            self._channel.send(message)

    @staticmethod
    async def _list(
        infos: Iterable[Info],
        channel: Channel,
        make: Callable[[tuple[Info, ...], bool], Listed | ListedChannels],
    ) -> None:
        """make: a part, and whether more follow."""
        part: list[Info] = []
        room = PART
        for info in infos:
            size = weight(info)
            if part and (size > room or len(part) == ITEMS_LIMIT):
                if not channel.send(make(tuple(part), True)):
                    return
                part.clear()
                room = PART
                await channel.writable()
                await asyncio.sleep(0)  # clients come first
            part.append(info)
            room -= size
        channel.send(make(tuple(part), False))

    def _lost(self, reason: str) -> None:
        if self._over or self._duties is None:
            return  # it was this side that ended it, or `serve` will see it
        self._log.error(
            f"the supervisor is gone{reason and f' ({reason})'}: this worker stops in order"
        )
        self._duties.stop(hurry=False)

    def _failed(self, error: BaseException) -> None:
        self._log.error("internal error in the control channel", exc_info=error)

    # --- what the worker says ---

    def started(self, addresses: Iterable[str]) -> None:
        self._answer(Started(tuple(addresses)))

    async def failed(self, error: str) -> None:
        """Say why this worker cannot start, and end the channel."""
        self._over = True
        self._answer(Failed(error[:TEXT_LIMIT]))
        if self._channel is not None:
            await self._channel.flush_and_close(1.0)

    def changed(self) -> None:
        """This process has committed a change of the store. May be called in any thread."""
        self._loop.call_soon_threadsafe(self._answer, Changed())

    def exchange_changed(self, vhost: bytes, exchange: bytes) -> None:
        """A client of this worker has declared or deleted it: the others must ask again."""
        if self._channel is not None:
            self._channel.notify(ExchangeChanged(vhost, exchange))

    async def admit(
        self,
        number: int,
        user: bytes,
        vhost: bytes,
        *,
        vhost_limit: int | None,
        user_limit: int | None,
    ) -> Limit:
        """A place for a connection, or the limit that it has met. Raises NoAnswerError."""
        self._tell()
        if self._channel is None:
            raise NoAnswerError("it is gone")
        answer = await self._channel.ask(
            lambda request: Admit(request, number, user, vhost, vhost_limit, user_limit),
            ADMIT_TIMEOUT,
        )
        if not isinstance(answer, Admitted):
            raise NoAnswerError(f"it answered {type(answer).__name__}")
        return answer.reached

    def opened(self, number: int, user: bytes, vhost: bytes) -> None:
        """Count a connection that no limit applies to."""
        self._note(number, Opened(number, user, vhost))

    def ended(self, number: int) -> None:
        """Give back a connection's place, however it came by it (or may have)."""
        if isinstance(self._untold.get(number), Opened):
            del self._untold[number]
        else:
            self._note(number, Ended(number))

    def upstream_changed(self, status: UpstreamStatus) -> None:
        self._note(("upstream", status.name), UpstreamChanged(status))

    # --- channels of users that have a limit ---

    async def admit_channel(self, user: bytes, limit: int, take: Callable[[], None]) -> bool:
        """A place for one more channel. ``take`` is called where it is granted, the moment that
        this is known (a count that is asked for next must hold it), whatever becomes of the
        waiting. Raises NoAnswerError.
        """
        self._tell()
        request = next(self._requests)
        answered: asyncio.Future[bool | None] = self._loop.create_future()
        self._wanted[request] = answered, take
        try:
            channel = self._channel
            if channel is None or not channel.send(AdmitChannel(request, user, limit)):
                raise NoAnswerError("it is gone or does not read")
            async with asyncio.timeout(ADMIT_TIMEOUT):
                granted = await answered
        except TimeoutError:
            raise NoAnswerError(f"no answer within {ADMIT_TIMEOUT:g} s") from None
        finally:
            del self._wanted[request]
        if granted is None:
            raise NoAnswerError("not every worker has counted its channels")
        return granted

    def _channel_admitted(self, message: ChannelAdmitted) -> None:
        answered, take = self._wanted.get(message.id, (None, None))
        if answered is None or take is None or answered.done():
            if message.granted:
                self.channels_changed(message.user, ended=1)  # nobody waits for it any more
            return
        if message.granted:
            take()
        answered.set_result(message.granted)

    def channels_changed(self, user: bytes, *, opened: int = 0, ended: int = 0) -> None:
        """opened: without asking. ended: closed, or given back. Nothing where nobody counts."""
        if user in self._watched:
            before = self._untold.get(("channels", user))
            if isinstance(before, ChannelsChanged):
                opened, ended = opened + before.opened, ended + before.ended
            self._note(("channels", user), ChannelsChanged(user, opened, ended))

    def _note(self, key: Hashable, message: News) -> None:
        """Tell it, now if that can be.

        While the supervisor does not read, what is untold is kept: at most an entry for each
        connection that it, or this worker, knows of, and two for each user that is watched.
        """
        self._untold[key] = message
        self._tell()
        if self._untold and not self._telling and self._channel is not None and self._channel.open:
            self._telling = True
            self._owner.start(self._tell_when_writable())

    async def _tell_when_writable(self) -> None:
        try:
            while self._untold and self._channel is not None and self._channel.open:
                await self._channel.writable()
                self._tell()
        finally:
            self._telling = False

    def _tell(self) -> None:
        channel = self._channel
        while self._untold and channel is not None and channel.open and not channel.full:
            key, message = next(iter(self._untold.items()))
            if not channel.send(message):
                return
            del self._untold[key]

    async def close(self) -> None:
        """End the channel after what was said last."""
        self._over = True
        await self._owner.close()
        if self._channel is not None:
            await self._channel.flush_and_close(1.0)
