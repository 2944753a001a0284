"""Places for channels of users whose channels are limited, over all workers: the hub's side
(``member.py`` and ``shared.py`` have a worker's).

Strategy: a user without a limit costs nothing. With the first channel.open under a limit every
worker is told to *watch* the user: it counts the user's channels once, and from then on reports
what is opened without asking (it may not know of the limit yet) and what ends. Here the two are
added to what was granted. A grant counts from the moment that it is sent, and a worker that has
no use for it gives it back, so nothing that crosses on the way is counted twice or not at all.
What a worker held is gone with its channel. With the user's last connection the watch ends.

No place is given while a count is outstanding. Who asked has a time limit of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gatekeeper.server.channel import Channel
from gatekeeper.server.messages import (
    AdmitChannel,
    ChannelAdmitted,
    ChannelsChanged,
    ChannelsCounted,
    UnwatchUser,
    WatchUser,
)

WAITING_LIMIT = 1000
"""Questions about one user that wait for a count; more get "cannot be told"."""


@dataclass(slots=True)
class _Watch:
    """held: by worker, what it has and what it was granted. uncounted: whose count has not come;
    True where places wait for it (a worker that came later had no channels before)."""

    round: int
    held: dict[Channel, int]
    uncounted: dict[Channel, bool]
    waiting: list[tuple[Channel, AdmitChannel]] = field(default_factory=list)


class ChannelPlaces:
    def __init__(self) -> None:
        self._watches: dict[bytes, _Watch] = {}
        self._round = 0

    def count(self, user: bytes) -> int | None:
        """Channels of a user in all workers; None where nobody counts them."""
        watch = self._watches.get(user)
        return None if watch is None else sum(watch.held.values())

    # --- workers come and go ---

    def joined(self, channel: Channel) -> None:
        """A new worker, which has no clients yet."""
        for user, watch in self._watches.items():
            watch.held[channel] = 0
            watch.uncounted[channel] = False
            _tell(channel, WatchUser(user, watch.round))

    def gone(self, channel: Channel) -> None:
        for watch in self._watches.values():
            watch.held.pop(channel, None)
            watch.uncounted.pop(channel, None)
            watch.waiting = [each for each in watch.waiting if each[0] is not channel]
            self._serve(watch)

    def user_gone(self, user: bytes) -> None:
        """The user has no connection any more."""
        watch = self._watches.get(user)
        if watch is not None and not watch.uncounted:
            del self._watches[user]
            for channel in watch.held:
                _tell(channel, UnwatchUser(user))

    # --- what a worker says ---

    def admit(self, channel: Channel, wanted: AdmitChannel, everyone: Iterable[Channel]) -> None:
        watch = self._watches.get(wanted.user)
        if watch is None:
            watch = self._watch(wanted.user, tuple(everyone))
        if len(watch.waiting) >= WAITING_LIMIT:
            channel.send(ChannelAdmitted(wanted.id, wanted.user, None))
            return
        watch.waiting.append((channel, wanted))
        self._serve(watch)

    def counted(self, channel: Channel, message: ChannelsCounted) -> None:
        watch = self._watches.get(message.user)
        if watch is None or watch.round != message.round or channel not in watch.uncounted:
            return
        del watch.uncounted[channel]
        watch.held[channel] += message.channels
        self._serve(watch)

    def changed(self, channel: Channel, message: ChannelsChanged) -> None:
        watch = self._watches.get(message.user)
        # What it says before its count belongs to an earlier watch, and is part of the count.
        if watch is not None and channel in watch.held and channel not in watch.uncounted:
            watch.held[channel] += message.opened - message.ended

    # --- inside ---

    def _watch(self, user: bytes, everyone: tuple[Channel, ...]) -> _Watch:
        self._round += 1
        watch = _Watch(self._round, dict.fromkeys(everyone, 0), dict.fromkeys(everyone, True))
        self._watches[user] = watch
        for channel in everyone:
            _tell(channel, WatchUser(user, watch.round))
        return watch

    @staticmethod
    def _serve(watch: _Watch) -> None:
        """Answer who waits, first come, first served, if all that must be known is known."""
        if any(watch.uncounted.values()):
            return
        waiting, watch.waiting = watch.waiting, []
        for channel, wanted in waiting:
            granted = sum(watch.held.values()) < wanted.limit
            # A worker that cannot be told has been granted nothing, and refuses in the end.
            if channel.send(ChannelAdmitted(wanted.id, wanted.user, granted)) and granted:
                watch.held[channel] = watch.held.get(channel, 0) + 1


def _tell(channel: Channel, message: WatchUser | UnwatchUser) -> None:
    if not channel.send(message):
        channel.close("it does not read")  # it would count wrongly from now on
