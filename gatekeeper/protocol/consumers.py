"""A connection's consumers when rights have changed: who may still read, and what is late.

RabbitMQ asks for the right to read when a consumer starts, and again after update-secret; the
gate asks again after every change (``Session.recheck``). One that lost the right is ended here:

* At once nothing of its deliveries is passed on any more. The broker may have sent many already,
  and a client that reads slowly would get them minutes later. What comes until the broker has
  answered the cancel (or closed the channel) is *late*: it is dropped, and given back by
  basic.reject where the consumer acknowledges.
* The broker is told to cancel it, and asked to answer: the answer marks the end of the late.
* The client is told by basic.cancel if it announced that it understands it, in the place of the
  broker's answer: before, it may be in the middle of a delivery. Else, after update-secret, it is
  told nothing, as in RabbitMQ 4.3 (``rabbit_channel:recheck_consumers``); after any other change
  its channel is closed with 403, with the text that basic.consume would get now.

Where rights have only grown old (``Epoch.age``), nothing is known to have changed: deliveries go
on until the verdict.

# INVARIANT: from a change to the last verdict nothing of the broker's is passed on (``holds``),
# and nothing of an ended consumer's ever.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from gatekeeper.model import Access, Decision, Kind, Permission
from gatekeeper.protocol.channels import Canceller, ChannelState, Mode
from gatekeeper.protocol.checks import REPLY_TO, Consumed, access_refused
from gatekeeper.protocol.frames import NEED_MORE, SLOW, Lane, scan_broker
from gatekeeper.protocol.states import PASS, TAKEN, Outcome, Pending, State
from gatekeeper.protocol.wire import (
    FRAME_BODY,
    FRAME_HEADER,
    FRAME_METHOD,
    Reader,
    method,
    shortstr,
)

if TYPE_CHECKING:
    from gatekeeper.protocol.session import Session

JUDGED_AT_ONCE = 64
"""Verdicts and ended consumers before other connections get their turn."""
FOUND_AT_ONCE = 4096
"""Consumers that are sorted by their queue before that: a millisecond."""
ASKED_AT_ONCE = 16
"""Questions of one connection that may be outstanding."""

_DELIVER = b"\x00\x3c\x00\x3c"
_REQUEUE = b"\x01"
_ACTIVE = frozenset({State.RUNNING, State.FAILING})
_DELIVERING = _ACTIVE | {State.DRAINING, State.CLIENT_CLOSING}
_BROKER_HAS_ENDED = frozenset({Mode.AWAIT_OK, Mode.BROKER_CLOSED})


class Cause(enum.Enum):
    """Why consumers are judged again; the value is for the log."""

    CREDENTIALS = "credential update"
    CHANGE = "a change of permissions"


Held = tuple[int, ChannelState, Consumed]
"""A consumer: its channel's number and state, and what was asked for."""


@dataclass(slots=True)
class Ended:
    """A consumer that the broker may not know of yet. told: the broker has cancelled it too."""

    no_ack: bool
    told: bool = False


@dataclass(slots=True)
class Late:
    """What may still come of ended consumers on one channel.

    ended: by tag, in the order of the cancels that the broker has not answered (a tag may be
        used again at once). header, remaining: of the delivery that is being dropped: its header
        is to come, so many octets of its body.
    """

    ended: dict[bytes, list[Ended]] = field(default_factory=dict)
    header: bool = False
    remaining: int = 0


class Consumers:
    """late: by channel number; None while there is none, as almost always.

    busy: verdicts are outstanding. holds: and until then nothing is passed on. tired: not for want
    of answers; ``go_on`` in the next turn.
    """

    __slots__ = ("_by_queue", "_cause", "_found", "_left", "_s", "busy", "holds", "late", "tired")

    def __init__(self, session: Session) -> None:
        self._s = session
        self._cause = Cause.CHANGE
        self._found: Iterator[Held] | None = None
        self._by_queue: dict[bytes, list[Held]] | None = None
        self._left: deque[tuple[bytes, list[Held]]] | None = None
        self.busy = False
        self.holds = False
        self.tired = False
        self.late: dict[int, Late] | None = None

    # --- verdicts ---

    def judge_again(self, cause: Cause, *, hold: bool = True) -> None:
        """Every consumer is to be judged again, also those that are being judged just now.

        Direct reply-to needs no right (``basic.consume`` asks for none).
        """
        session = self._s
        some = session.state in _DELIVERING and any(
            channel.view.consumers for channel in session.channels.values()
        )
        self._cause = cause
        self._found = self._all() if some else None
        self._by_queue = {} if some else None
        self._left = deque() if some else None
        self.busy = some
        self.holds = some and hold
        self.tired = False
        if some:
            session.policy.rights_changed()

    def _all(self) -> Iterator[Held]:
        """One that begins while the others are looked for may be among them: it does no harm."""
        for number, channel in tuple(self._s.channels.items()):
            for consumed in tuple(channel.view.consumers.values()):
                if consumed.queue != REPLY_TO:
                    yield number, channel, consumed

    def _sort(self, left: deque[tuple[bytes, list[Held]]]) -> bool:
        """Find consumers and sort them by their queues, each of which is one question; True if all
        are."""
        by_queue = self._by_queue
        if self._found is None or by_queue is None:
            return True
        some = tuple(islice(self._found, FOUND_AT_ONCE))
        for held in some:
            queue = held[2].queue
            if queue not in by_queue:
                by_queue[queue] = []
                left.append((queue, by_queue[queue]))
            by_queue[queue].append(held)
        if len(some) == FOUND_AT_ONCE:
            return False
        self._found = self._by_queue = None
        return True

    def go_on(self) -> bool:
        """Judge as many as may be judged at once; True if all are done."""
        policy, left = self._s.policy, self._left
        if left is None:
            return True
        self.tired = not self._sort(left)
        if self.tired:
            return False
        waiting: list[tuple[bytes, list[Held]]] = []
        judged = 0
        while left and len(waiting) < ASKED_AT_ONCE:
            if judged >= JUDGED_AT_ONCE:
                self.tired = True
                break
            judged += 1
            queue, consumers = left[0]
            decision = policy.recheck(Access(Permission.READ, Kind.QUEUE, queue))
            if decision is not None and not decision.allowed:
                for held in consumers[:JUDGED_AT_ONCE]:
                    self._end(*held, decision)
                    judged += 1
                del consumers[:JUDGED_AT_ONCE]
                if consumers:
                    continue
            left.popleft()
            if decision is None:
                waiting.append((queue, consumers))
        left.extendleft(reversed(waiting))
        if not left:
            self._left = None
            self.busy = self.holds = False
        return not self.busy

    def _end(
        self, number: int, channel: ChannelState, consumed: Consumed, decision: Decision
    ) -> None:
        """A consumer has lost its right to read."""
        session, tag, consumers = self._s, consumed.tag, channel.view.consumers
        if (
            session.channels.get(number) is not channel
            or channel.mode in _BROKER_HAS_ENDED
            or consumers.get(tag) is not consumed
        ):
            return  # it has ended in the meantime
        del consumers[tag]
        if self.late is None:
            self.late = {}
        late = self.late.setdefault(number, Late())
        late.ended.setdefault(tag, []).append(Ended(consumed.no_ack))
        if not self._in_service(channel):
            return  # its channel is about to end, at the broker too
        session.policy.consumer_cancelled(number, tag, consumed.queue, self._cause.value)
        if not session.cancel_notify and self._cause is Cause.CHANGE:
            check = Access(Permission.READ, Kind.QUEUE, consumed.queue)
            error = access_refused(check, session.context, decision.detail)
            session.interject(number, channel, b"", error)
            return
        channel.cancelling(tag, Canceller.GATE)
        session.interject(number, channel, method(number, 60, 30, shortstr(tag) + b"\x00"))

    def _in_service(self, channel: ChannelState) -> bool:
        """May the gate itself send something to the broker on the channel?"""
        return channel.in_service and self._s.state in _ACTIVE

    # --- late deliveries ---

    def scan(self, lane: Lane, buf: bytearray, pos: int, end: int) -> int:
        """As ``scan_broker``; stops in front of every frame on a channel with late deliveries."""
        late = self.late or {}
        while end - pos >= 7:
            size = int.from_bytes(buf[pos + 3 : pos + 7], "big")
            past = pos + size + 8
            if size <= lane.frame_max and past > end:
                break
            watched = ((buf[pos + 1] << 8) | buf[pos + 2]) in late
            if watched or scan_broker(lane, buf, pos, past) == pos:
                lane.stop = SLOW
                return pos
            pos = past
        lane.stop = NEED_MORE
        return pos

    def late_frame(self, kind: int, number: int, payload: bytes) -> Outcome | None:
        """Drop the frame if it belongs to a late delivery; None: it is no content.

        Raises Pending while the cancel, or what gives a delivery back, cannot go out, because
        the client is in the middle of a content on the channel: nothing may pile up meanwhile.
        """
        late = None if self.late is None else self.late.get(number)
        if late is None:
            return None
        if kind == FRAME_HEADER:
            if not late.header:
                return PASS
            late.header = False
            late.remaining = int.from_bytes(payload[4:12], "big")
            return TAKEN
        if kind == FRAME_BODY:
            if not late.remaining:
                return PASS
            late.remaining -= min(late.remaining, len(payload))
            return TAKEN
        if kind != FRAME_METHOD or payload[:4] != _DELIVER:
            return None if kind == FRAME_METHOD else PASS
        reader = Reader(payload, 4)
        ended = late.ended.get(reader.shortstr())
        delivery = reader.longlong()
        if ended is None:
            return PASS
        channel = self._s.channels.get(number)
        if channel is not None and self._in_service(channel):
            if channel.mode == Mode.FINISHING:
                raise Pending
            if not ended[0].no_ack:
                reject = method(number, 60, 90, delivery.to_bytes(8, "big") + _REQUEUE)
                self._s.interject(number, channel, reject)
        late.header = True
        return TAKEN

    def cancelled(self, number: int, tag: bytes) -> bool:
        """The broker cancels a consumer; True if it had ended here before."""
        late = None if self.late is None else self.late.get(number)
        if late is None or tag not in late.ended:
            return False
        late.ended[tag][0].told = True
        return True

    def cancel_ok(self, number: int, channel: ChannelState, tag: bytes) -> bool:
        """The broker has answered a cancel; True if not for the client. If it was the gate's own,
        the client is told by a cancel."""
        by = channel.cancelled(tag)
        if by is not Canceller.GATE:
            return by is Canceller.NO_WAIT
        late = None if self.late is None else self.late.get(number)
        if late is not None and tag in late.ended:
            ended = late.ended[tag].pop(0)
            if not late.ended[tag]:
                del late.ended[tag]
            if not late.ended:
                self.channel_ended(number)
            if self._s.cancel_notify and not ended.told:
                self._s.to_client.append(method(number, 60, 30, shortstr(tag) + b"\x01"))
        return True

    def channel_ended(self, number: int) -> None:
        """The broker sends nothing more of what was before."""
        if self.late is not None:
            self.late.pop(number, None)
            if not self.late:
                self.late = None
