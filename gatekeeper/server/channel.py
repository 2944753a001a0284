"""One end of a control channel: messages over a socket pair, requests with ids and timeouts.

Strategy: everything is handled in the order of its arrival, in the event loop's callback, so
that "what was said before" is known when the next message is looked at. Nothing grows without a
bound: a peer that does not read makes :meth:`Channel.send` fail, and what is no message ends the
channel.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Any

from gatekeeper.errors import GatekeeperError
from gatekeeper.server.messages import (
    Admitted,
    ControlError,
    Done,
    Frames,
    Listed,
    ListedChannels,
    Message,
    Undone,
    encode,
)

WRITE_HIGH = 256 * 1024
"""Bytes that wait to be sent before :meth:`Channel.writable` waits."""
WRITE_LIMIT = 1024 * 1024
"""Bytes that wait to be sent before a message is refused."""


Part = Listed | ListedChannels


class NoAnswerError(GatekeeperError):
    """The other side is gone, takes nothing more, or has not answered in time."""


class Channel(asyncio.Protocol):
    """on_message: takes what is no answer. on_lost: called once, with the reason ("" is EOF)."""

    def __init__(
        self, on_message: Callable[[Message], None], on_lost: Callable[[str], None]
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._reason = ""
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._parts: dict[int, list[Part]] = {}
        self._patience: dict[int, Callable[[], None]] = {}
        self._writable = asyncio.Event()

    @classmethod
    async def over(
        cls,
        sock: socket.socket,
        on_message: Callable[[Message], None],
        on_lost: Callable[[str], None],
    ) -> Channel:
        """A channel over one socket of a pair, which then belongs to it."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(on_message, on_lost), sock=sock)
        return channel

    # --- called by the event loop ---

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                if not self._settle(message):
                    self._on_message(message)
        except ControlError as error:
            self.close(str(error))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(NoAnswerError("it is gone"))
        self._waiting.clear()
        self._on_lost(self._reason or ("" if exc is None else str(exc)))

    def _settle(self, message: Message) -> bool:
        """Hand an answer to whoever waits for it; late ones are nobody's."""
        if not isinstance(message, Done | Undone | Part | Admitted):
            return False
        future = self._waiting.get(message.id)
        if future is None or future.done():
            return True
        if isinstance(message, Part):
            self._parts.setdefault(message.id, []).append(message)
            if message.more:
                self._patience[message.id]()
                return True
        if isinstance(message, Undone):
            future.set_exception(NoAnswerError(message.error))
        else:
            future.set_result(message)
        return True

    # --- for the owner ---

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self, reason: str = "") -> None:
        """End the channel, now; on_lost will be told the reason."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    async def flush_and_close(self, within: float) -> None:
        """End the channel when what was sent has gone out, or after ``within`` seconds."""
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high=0)
            try:
                async with asyncio.timeout(within):
                    await self._writable.wait()
            except TimeoutError:
                pass
        self.close()

    @property
    def full(self) -> bool:
        """Does more wait to be sent than :meth:`writable` lets pass?"""
        return not self._writable.is_set()

    async def writable(self) -> None:
        """Wait until there is room, or the channel is gone."""
        await self._writable.wait()

    def send(self, message: Message) -> bool:
        """False: nothing was sent, for the channel is gone or the other side reads nothing."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() > WRITE_LIMIT:
            return False
        transport.write(encode(message))
        return True

    def notify(self, message: Message) -> None:
        """Send what may be lost, where there is room: it must not take it from what may not."""
        if not self.full:
            self.send(message)

    async def ask(self, make: Callable[[int], Message], within: float) -> Message:
        """Send the message that ``make`` gives for an id; its answer. Raises NoAnswerError."""
        request = next(self._ids)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[request] = future
        try:
            if not self.send(make(request)):
                raise NoAnswerError("it is gone or does not read")
            async with asyncio.timeout(within) as deadline:
                loop = asyncio.get_running_loop()
                self._patience[request] = lambda: deadline.reschedule(loop.time() + within)
                return await future
        except TimeoutError:
            raise NoAnswerError(f"no answer within {within:g} s") from None
        finally:
            self._waiting.pop(request, None)
            self._parts.pop(request, None)
            self._patience.pop(request, None)

    async def ask_list(self, make: Callable[[int], Message], within: float) -> list[Part]:
        """As :meth:`ask`, where the answer comes in parts; all of them. within: to the next."""
        parts: list[Part] = []

        def collect(request: int) -> Message:
            self._parts[request] = parts
            return make(request)

        await self.ask(collect, within)
        return parts
