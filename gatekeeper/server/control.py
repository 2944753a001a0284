"""The control plane of a gate of several processes: the supervisor's side (``member.py`` has a
worker's).

Strategy: the hub is the one that knows all workers; whoever wants to list, close or refresh
(a control socket, an administrator's request) asks the hub, and the hub asks every worker. It
also counts: each connection from connection.open on has one entry here, because a limit of a
user or a vhost holds for the gate and not for a process. A connection that no limit applies to
is only reported; one that a limit applies to waits for its place. What a worker held is free
again when its channel ends, whatever it died of.

A worker that does not answer delays nobody else: every question has a time limit, the answers of
the others count, and who was silent is part of the result.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gatekeeper.logs import Logger
from gatekeeper.server.channel import Channel, NoAnswerError
from gatekeeper.server.infos import ChannelInfo, ConnectionInfo, UpstreamStatus
from gatekeeper.server.messages import (
    NAME_LIMIT,
    Admit,
    AdmitChannel,
    Admitted,
    Changed,
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
    UpstreamChanged,
)
from gatekeeper.server.places import ChannelPlaces
from gatekeeper.server.registry import Limit

ANSWER_TIMEOUT = 5.0
"""Seconds that the hub waits for a worker's answer."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """What the workers said. by_worker: by number. silent: who gave no answer, and why not."""

    by_worker: Mapping[int, T]
    silent: Mapping[int, str]


@dataclass(eq=False, slots=True)
class Link:
    """One worker, as the supervisor sees it.

    addresses: where it listens, None until it does. failure: what the operator has to mend, if
    it said so. settled: it listens, or is gone. held: its connections' users and vhosts.
    upstreams: what it said of them last, by name.
    """

    worker: int
    addresses: tuple[str, ...] | None = None
    failure: str | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    channel: Channel | None = None
    held: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    upstreams: dict[str, UpstreamStatus] = field(default_factory=dict)


class Hub:
    """The supervisor's side. Not thread-safe: for use in its event loop.

    on_changed: called when a worker has committed a change of the store, with its number.
    on_exchange: called when one has news of an exchange, with vhost and name.
    """

    def __init__(
        self,
        log: Logger,
        on_changed: Callable[[int], None],
        on_exchange: Callable[[bytes, bytes], None],
    ) -> None:
        self._log = log
        self._on_changed = on_changed
        self._on_exchange = on_exchange
        self._links: dict[int, Link] = {}
        self._users: Counter[bytes] = Counter()
        self._vhosts: Counter[bytes] = Counter()
        self._places = ChannelPlaces()

    # --- workers come and go ---

    async def add(self, worker: int, sock: socket.socket) -> Link:
        """Take over this end of a worker's socket pair. One link a worker at a time."""
        link = Link(worker)
        self._links[worker] = link
        link.channel = await Channel.over(
            sock,
            lambda message: self._received(link, message),
            lambda reason: self._lost(link, reason),
        )
        if link.channel.open:  # else nobody would say that it is gone
            self._places.joined(link.channel)
        return link

    def _lost(self, link: Link, reason: str) -> None:
        if reason:
            self._log.error(f"worker {link.worker}: control channel broken: {reason}")
        for number in tuple(link.held):
            self._release(link, number)
        if link.channel is not None:
            self._places.gone(link.channel)
        if self._links.get(link.worker) is link:
            del self._links[link.worker]
        link.settled.set()
        link.gone.set()

    @property
    def workers(self) -> list[int]:
        """The numbers of those that are connected."""
        return sorted(self._links)

    # --- what they say ---

    def _received(self, link: Link, message: Message) -> None:
        match message:
            case Opened(number, user, vhost):
                self._hold(link, number, user, vhost)
            case Ended(number):
                self._release(link, number)
            case Admit():
                self._admit(link, message)
            case AdmitChannel() | ChannelsCounted() | ChannelsChanged():
                self._of_channels(link.channel, message)
            case UpstreamChanged(status):
                link.upstreams[status.name] = status
            case Changed():
                self._on_changed(link.worker)
            case ExchangeChanged(vhost, exchange):
                self._on_exchange(vhost, exchange)
                # Who is too busy to be told asks the broker again in seconds anyway.
                for other in self._links.values():
                    if other is not link and other.channel is not None:
                        other.channel.notify(message)
            case Started(addresses):
                link.addresses = addresses
                link.settled.set()
            case Failed(error):
                link.failure = error
            case _:
                self._break(link, f"a worker does not say {type(message).__name__}")

    def _of_channels(
        self, channel: Channel | None, message: AdmitChannel | ChannelsCounted | ChannelsChanged
    ) -> None:
        places = self._places
        if channel is None:
            return
        match message:
            case AdmitChannel():
                links = self._links.values()
                places.admit(channel, message, (each.channel for each in links if each.channel))
            case ChannelsCounted():
                places.counted(channel, message)
            case ChannelsChanged():
                places.changed(channel, message)

    def _break(self, link: Link, reason: str) -> None:
        if link.channel is not None:
            link.channel.close(reason)

    def _admit(self, link: Link, wanted: Admit) -> None:
        """RabbitMQ's order: the vhost's limit, then the user's."""
        reached: Limit = "none"
        if wanted.vhost_limit is not None and self._vhosts[wanted.vhost] >= wanted.vhost_limit:
            reached = "vhost"
        elif wanted.user_limit is not None and self._users[wanted.user] >= wanted.user_limit:
            reached = "user"
        else:
            self._hold(link, wanted.number, wanted.user, wanted.vhost)
        if link.channel is not None and not link.channel.send(Admitted(wanted.id, reached)):
            self._break(link, "it does not read")

    def _hold(self, link: Link, number: int, user: bytes, vhost: bytes) -> None:
        if number not in link.held:
            link.held[number] = user, vhost
            self._users[user] += 1
            self._vhosts[vhost] += 1

    def _release(self, link: Link, number: int) -> None:
        held = link.held.pop(number, None)
        if held is not None:
            for counter, name in zip((self._users, self._vhosts), held, strict=True):
                counter[name] -= 1
                if not counter[name]:
                    del counter[name]
            if held[0] not in self._users:
                self._places.user_gone(held[0])

    # --- what can be asked ---

    def user_count(self, user: bytes) -> int:
        """Open connections of this user, in all workers."""
        return self._users.get(user, 0)

    def vhost_count(self, vhost: bytes) -> int:
        """Open connections to this vhost, in all workers."""
        return self._vhosts.get(vhost, 0)

    def channel_count(self, user: bytes) -> int | None:
        """Open channels of this user in all workers; None where no limit has had them counted."""
        return self._places.count(user)

    def upstreams(self) -> Mapping[str, list[UpstreamStatus]]:
        """What each worker said last, by upstream, without asking."""
        said: dict[str, list[UpstreamStatus]] = {}
        for link in self._links.values():
            for name, status in link.upstreams.items():
                said.setdefault(name, []).append(status)
        return said

    def connection_counts(self) -> Mapping[int, int]:
        """Open connections by worker, without asking."""
        return {worker: len(link.held) for worker, link in sorted(self._links.items())}

    async def list_connections(
        self, within: float = ANSWER_TIMEOUT
    ) -> Answers[list[ConnectionInfo]]:
        """All connections from connection.open on, in the order of their numbers."""

        async def ask(channel: Channel) -> list[ConnectionInfo]:
            parts = await channel.ask_list(ListConnections, within)
            infos = [
                each for part in parts if isinstance(part, Listed) for each in part.connections
            ]
            return sorted(infos, key=lambda info: info.number)

        return await self._ask(ask)

    async def list_channels(self, within: float = ANSWER_TIMEOUT) -> Answers[list[ChannelInfo]]:
        """All channels, in the order of their connections' numbers and their own."""

        async def ask(channel: Channel) -> list[ChannelInfo]:
            parts = await channel.ask_list(ListChannels, within)
            infos = [
                each for part in parts if isinstance(part, ListedChannels) for each in part.channels
            ]
            return sorted(infos, key=lambda info: (info.connection, info.number))

        return await self._ask(ask)

    async def close_connections(
        self,
        *,
        reason: bytes,
        number: int | None = None,
        user: bytes | None = None,
        vhost: bytes | None = None,
        within: float = ANSWER_TIMEOUT,
    ) -> Answers[int]:
        """Close, with 320 ``CONNECTION_FORCED - reason``, those that match all that is given
        (all of them where nothing is given). How many were told, by worker.
        """
        if any(name is not None and len(name) > NAME_LIMIT for name in (user, vhost)):
            return Answers({}, {})  # nobody has such a name, and no message holds it

        async def ask(channel: Channel) -> int:
            answer = await channel.ask(
                lambda request: CloseConnections(request, number, user, vhost, reason[:255]),
                within,
            )
            return _figures(answer).get("closed", 0)

        return await self._ask(ask)

    async def refresh(
        self, *, but: int | None = None, within: float = ANSWER_TIMEOUT
    ) -> Answers[None]:
        """Have every worker (``but`` this one) take over what was changed in the store.

        When it returns, the change is in force in all that answered; nothing stands against it in
        those that have gone meanwhile, which are not among the silent.
        """
        channels = {worker: link.channel for worker, link in self._links.items()}

        async def ask(channel: Channel) -> None:
            _figures(await channel.ask(Refresh, within))

        answers = await self._ask(ask, but=but)
        silent = {
            worker: why
            for worker, why in answers.silent.items()
            if (channel := channels.get(worker)) is not None and channel.open
        }
        return Answers(answers.by_worker, silent)

    async def clear_caches(
        self, user: bytes | None, within: float = ANSWER_TIMEOUT
    ) -> Answers[int]:
        """Have every worker forget what backends have answered; how many answers, by worker."""

        async def ask(channel: Channel) -> int:
            answer = await channel.ask(lambda request: ClearCaches(request, user), within)
            return _figures(answer).get("cleared", 0)

        return await self._ask(ask)

    async def answers(self, link: Link, within: float) -> bool:
        """Does this worker still answer?"""
        try:
            if link.channel is not None:
                await link.channel.ask(Statistics, within)
        except NoAnswerError:
            return False
        return link.channel is not None

    async def statistics(self, within: float = ANSWER_TIMEOUT) -> Answers[Mapping[str, int]]:
        """Figures by worker: pid, connections, cpu_ms."""

        async def ask(channel: Channel) -> Mapping[str, int]:
            return _figures(await channel.ask(Statistics, within))

        return await self._ask(ask)

    def stop(self, *, hurry: bool = False) -> None:
        """Have all workers stop in order. Who cannot be told is cut off, which tells it too."""
        for link in tuple(self._links.values()):
            if link.channel is not None and not link.channel.send(Stop(hurry)):
                self._break(link, "it does not read")

    async def _ask(
        self, ask: Callable[[Channel], Awaitable[T]], *, but: int | None = None
    ) -> Answers[T]:
        links = [
            (worker, link.channel)
            for worker, link in sorted(self._links.items())
            if worker != but and link.channel is not None
        ]
        answers = await asyncio.gather(
            *(ask(channel) for _, channel in links), return_exceptions=True
        )
        given: dict[int, T] = {}
        silent: dict[int, str] = {}
        for (worker, _), answer in zip(links, answers, strict=True):
            if isinstance(answer, NoAnswerError):
                silent[worker] = str(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                given[worker] = answer
        return Answers(given, silent)


def _figures(answer: Message) -> Mapping[str, int]:
    if not isinstance(answer, Done):
        raise NoAnswerError(f"it answered {type(answer).__name__}")
    return answer.figures
