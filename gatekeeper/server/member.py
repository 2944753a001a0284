"""A worker's line to the supervisor; ``control.py`` is the other side.

Strategy: what the supervisor asks is done or answered by the worker's :class:`Duties`. What the
worker has to tell goes out at once, in order, and waits here, merged, while the supervisor does
not read. When the line ends, however it ends, the worker stops in order: nobody could list,
close or count its connections any more.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from typing import Protocol

from gatekeeper.errors import OperatorError
from gatekeeper.logs import Logger
from gatekeeper.server.channel import Channel, NoAnswerError
from gatekeeper.server.messages import (
    TEXT_LIMIT,
    Admit,
    Admitted,
    Changed,
    CloseConnections,
    ConnectionInfo,
    Done,
    Ended,
    ExchangeChanged,
    Failed,
    ListConnections,
    Listed,
    Message,
    Opened,
    Refresh,
    Started,
    Statistics,
    Stop,
    Undone,
)
from gatekeeper.server.registry import Limit
from gatekeeper.server.tasks import Owner

ADMIT_TIMEOUT = 2.0
"""Seconds that a worker waits for a connection's place before it refuses the connection."""
PART = 12
"""Connections in one message: with the longest names and addresses they fit FRAME_LIMIT."""


class Duties(Protocol):
    """What a worker does when the supervisor asks. ``refresh`` may raise OperatorError."""

    def connections(self) -> Iterable[ConnectionInfo]: ...
    def close(
        self, number: int | None, user: bytes | None, vhost: bytes | None, reason: bytes
    ) -> int: ...
    def refresh(self) -> None: ...
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
        self._untold: dict[int, Opened | Ended] = {}
        self._telling = False

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
                self._owner.start(self._list(request, duties, channel))
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
            case Statistics(request):
                self._answer(Done(request, duties.statistics()))
            case ExchangeChanged(vhost, exchange):
                duties.exchange_changed(vhost, exchange)
            case Stop(hurry):
                duties.stop(hurry=hurry)
            case _:
                channel.close(f"a supervisor does not say {type(message).__name__}")

    def _answer(self, message: Message) -> None:
        if self._channel is not None:
            self._channel.send(message)

    @staticmethod
    async def _list(request: int, duties: Duties, channel: Channel) -> None:
        infos = list(duties.connections())
        for at in range(0, len(infos) or 1, PART):
            await channel.writable()
            await asyncio.sleep(0)  # clients come first
            part = tuple(infos[at : at + PART])
            if not channel.send(Listed(request, part, more=at + PART < len(infos))):
                return

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
        self._answer(ExchangeChanged(vhost, exchange))

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

    def _note(self, number: int, message: Opened | Ended) -> None:
        """Tell it, now if that can be.

        While the supervisor does not read, what is untold is kept: at most an entry for each
        connection that it, or this worker, knows of.
        """
        self._untold[number] = message
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
            number, message = next(iter(self._untold.items()))
            if not channel.send(message):
                return
            del self._untold[number]

    async def close(self) -> None:
        """End the channel after what was said last."""
        self._over = True
        await self._owner.close()
        if self._channel is not None:
            await self._channel.flush_and_close(1.0)
