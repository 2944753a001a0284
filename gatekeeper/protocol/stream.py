"""A stream of bytes cut into frames, for the handshakes.

Strategy: as little as a handshake needs. Frames come out one at a time as values, because
before login there are a handful of them and every one is looked at; the running session has a
scanner that makes no object per frame. A frame that is too large is refused from its first
seven bytes, so an incomplete frame never holds more than the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gatekeeper.protocol.wire import FRAME_END, FRAME_HEAD, WireError

FRAME_OVERHEAD: Final = 8
"""Octets of a frame that are not payload: type, channel, size, end marker."""


@dataclass(frozen=True, slots=True)
class Frame:
    type: int
    channel: int
    payload: bytes


class FrameError(WireError):
    """The stream cannot be cut into frames any further.

    reason: as RabbitMQ prints it. type: the frame's type; payload: what there is of it.
    """

    def __init__(self, reason: str, frame_type: int, payload: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.type = frame_type
        self.payload = payload


class FrameBuffer:
    """Bytes in, frames out, for the handshakes; the running session has a faster scanner."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> None:
        self._data += data

    def starts_with(self, prefix: bytes) -> bool:
        """Do the bytes so far, be they fewer, agree with ``prefix``? False if there are none."""
        return bool(self._data) and self._data[: len(prefix)] == prefix[: len(self._data)]

    def take(self, size: int) -> bytes | None:
        """The next ``size`` bytes, or None while there are fewer."""
        if len(self._data) < size:
            return None
        chunk = bytes(self._data[:size])
        del self._data[:size]
        return chunk

    def drain(self) -> bytes:
        """All bytes that are left."""
        return self.take(len(self._data)) or b""

    def next(self, frame_max: int) -> Frame | None:
        """The next frame, or None while it is incomplete.

        frame_max: octets, 0 for none. As in RabbitMQ a payload of exactly frame_max passes,
        eight more than the frame size allows. Raises FrameError from the first seven bytes of
        a frame that is too large, and for a wrong end marker.
        """
        if len(self._data) < 7:
            return None
        frame_type, channel, size = FRAME_HEAD.unpack_from(self._data)
        if frame_max and size > frame_max:
            limit = frame_max - FRAME_OVERHEAD
            raise FrameError(f"{{frame_too_large,{size},{limit}}}", frame_type)
        end = size + FRAME_OVERHEAD
        if len(self._data) < end:
            return None
        payload, marker = bytes(self._data[7 : end - 1]), self._data[end - 1]
        del self._data[:end]
        if marker != FRAME_END:
            raise FrameError(f"{{invalid_frame_end_marker,{marker}}}", frame_type, payload)
        return Frame(frame_type, channel, payload)
