"""Channels that wait for an answer, so that the connection's other channels need not.

In RabbitMQ each channel is a process with a mailbox; here a channel whose next frame cannot be
decided yet has a *lot*: that frame and whatever the client sends after it on the same channel, as
whole frames, in order. They are judged when the answer is there, before anything newer.

While a channel has a lot its ``expect`` carries the bit PARKED, which the scanner takes for no
state that it knows: it stops in front of every frame of the channel, at no cost to the others.

What concerns the connection as a whole (channel 0, a channel that is not there yet, a broken frame,
lots that are full) waits in the stream instead, with all that is behind it.

# INVARIANT: octets are in a lot or in the stream, never in both; a lot's are forwarded only by
being judged, in order, and no frame of a channel that has a lot is judged ahead of it.
"""

from __future__ import annotations

from gatekeeper.protocol.channels import PARKED, ChannelState
from gatekeeper.protocol.wire import FRAME_BODY, FRAME_METHOD

MAX_OCTETS = 256 * 1024
"""In all lots of one connection: as much as one receive buffer."""
MAX_LOTS = 16
"""Channels of one connection that may wait apart, and so the questions of its that backends have at
a time."""
MAX_FRAME = 512
"""Octets of a frame that is no body: it may be judged again with every answer. All that wait must
not take a whole turn (``session.JUDGED_AT_ONCE``), or they alone would tire the connection."""
_END = 0xCE


class Parking:
    """channels: the session's, by number. lots: what of them waits, by channel number; whether
    there is one at all is looked at with every chunk."""

    __slots__ = ("_channels", "_octets", "lots")

    def __init__(self, channels: dict[int, ChannelState]) -> None:
        self._channels = channels
        self.lots: dict[int, bytearray] = {}
        self._octets = 0

    def __bool__(self) -> bool:
        return bool(self.lots)

    def __contains__(self, number: int) -> bool:
        return number in self.lots

    @property
    def octets(self) -> int:
        """In all lots."""
        return self._octets

    def numbers(self) -> tuple[int, ...]:
        """Of the channels that wait: the one that was looked at longest ago comes first."""
        return tuple(self.lots)

    def begin(self, number: int, frame: bytearray) -> bool:
        """An existing channel must wait with ``frame``; False: it cannot, all have to."""
        if number not in self._channels or len(self.lots) >= MAX_LOTS or not self._fits(frame):
            return False
        self.put(number, frame)
        return True

    def follow(self, number: int, frame: bytearray) -> bool:
        """``frame`` is of a channel that waits; False: it has no room, or is no frame."""
        if not self._fits(frame):
            return False
        if not FRAME_METHOD <= frame[0] <= FRAME_BODY or frame[-1] != _END:
            return False
        self.lots[number] += frame
        self._octets += len(frame)
        return True

    def _fits(self, frame: bytearray) -> bool:
        small = len(frame) <= MAX_FRAME or frame[0] == FRAME_BODY
        return small and self._octets + len(frame) <= MAX_OCTETS

    def take(self, number: int) -> bytearray:
        """The channel's lot, which ends."""
        lot = self.lots.pop(number)
        self._octets -= len(lot)
        channel = self._channels.get(number)
        if channel is not None:  # it may have ended in the meantime
            channel.expect &= ~PARKED
        return lot

    def discard(self, number: int) -> None:
        """The channel will not be heard any more, whether or not it waits."""
        if number in self.lots:
            self.take(number)

    def put(self, number: int, lot: bytearray) -> None:
        """The channel has to wait, from now on or still, with ``lot``."""
        self.lots[number] = lot
        self._octets += len(lot)
        channel = self._channels.get(number)
        if channel is not None:
            channel.expect |= PARKED
