"""One running AMQP connection between a client and a broker, without a socket in sight.

Bytes of either side go in by ``client_data`` and ``broker_data``, which answer how much they
have dealt with; what is to be sent lies in ``to_broker`` and ``to_client`` afterwards, in order,
to be taken at once: runs of bytes are views of the caller's buffer. The scanner decides runs of
frames; whatever it stops at is judged by ``fromclient.ClientFrames`` or
``frombroker.BrokerFrames``.

An answer may be outstanding. Then the client's channel that asks is ``parked`` with what it sends
(``parking.py``) until the pump calls again, if need be with no bytes. Where a channel cannot wait
alone, and on the broker's side, all do (``stalled``): nothing after it on that side is looked at
until the pump calls again with the same bytes. ``tired`` is a stall that waits for nothing but
its next turn, so that no client can keep the others from theirs. Judging again is harmless,
because nothing is remembered or sent before a frame's last question is answered.

An error that ends the connection counts when all that came before it is decided (in RabbitMQ the
reader lets its channels finish, ``rabbit_reader:terminate_channels``), and nothing after it is
looked at. Where the frame at fault is parked itself, it is found when it is judged: what came after
it on other channels is done. The first of several is told.

# INVARIANT: a frame is forwarded only after every check that it needs was allowed under the
# present epoch; whatever is not forwarded is answered, dropped or parked, which is bounded.
"""

from __future__ import annotations

from dataclasses import replace

from gatekeeper.errors import AmqpError, ReplyCode
from gatekeeper.protocol.channels import MAX_REMEMBERED, PARKED, ChannelState, Mode, Tally
from gatekeeper.protocol.checks import Context
from gatekeeper.protocol.consumers import Cause, Consumers
from gatekeeper.protocol.endings import Endings
from gatekeeper.protocol.erlang import frame_octets
from gatekeeper.protocol.frames import ASK, BODY, HEADER, NEED_MORE, Lane, scan_broker, scan_client
from gatekeeper.protocol.frombroker import BrokerFrames
from gatekeeper.protocol.fromclient import ClientFrames
from gatekeeper.protocol.layouts import Abort
from gatekeeper.protocol.parking import Parking
from gatekeeper.protocol.ports import Epoch, SessionPolicy
from gatekeeper.protocol.renewals import Renewals
from gatekeeper.protocol.states import (
    BROKER,
    DONE,
    MAX_CONTENT,
    OVER,
    PASS,
    RUNNING,
    TAKEN,
    WAIT,
    FatalFrameError,
    OperationError,
    Outcome,
    Pending,
    State,
)
from gatekeeper.protocol.wire import FRAME_METHOD

JUDGED_AT_ONCE = 256
"""Work of the readable code before other connections get their turn: about a millisecond. A frame
that is judged counts JUDGED, a question of the scanner ASKED, a frame that only joins its parked
channel KEPT. Frames of the fast lane do not count, a whole chunk of them takes less."""
JUDGED, ASKED, KEPT = 4, 2, 1
OCTETS = 64
"""So many of a frame that is judged count 1 more: a table is read whole, a route is a check."""
COPIED = 1024
"""Octets of a run from which on a view of them is cheaper than a copy."""
ASKED_AT_ONCE = 8
"""Questions of the scanner about one publish; one that leads to more is judged as a whole."""


_NOBODY: frozenset[int] = frozenset()
"""No channel. One for all connections: an empty set takes 216 octets, and most are idle."""


def _user_id(context: Context) -> bytes | None:
    """The user-id that the scanner need not judge; None: any."""
    return None if context.impersonator else context.username


def _stretch(buf: bytearray, pos: int, end: int) -> bytearray | memoryview:
    """A stretch of the buffer, to be sent. Of a short one a copy costs less than a view."""
    return buf[pos:end] if end - pos < COPIED else memoryview(buf)[pos:end]


class Session:
    """See the head of this file.

    frame_max, channel_max: as negotiated with the client, 0 for none.
    cancel_notify: did the client announce consumer_cancel_notify?
    relay_secret: the client is logged in at the broker as itself, which must be told of its new
        secrets too.
    """

    __slots__ = (
        "_broker", "_changes", "_client", "_context", "_mark", "_remembered",
        "_seen", "_turn", "_waiting", "abort", "broken", "broker_stalled", "broker_tired",
        "cancel_notify", "channel_max", "channels", "client_stalled", "client_tired",
        "consumers", "endings", "epoch", "error", "lane", "parked", "policy", "renewals", "state",
        "swallow_close_ok", "tally", "to_broker", "to_client",
    )  # fmt: skip

    def __init__(
        self,
        context: Context,
        policy: SessionPolicy,
        epoch: Epoch,
        *,
        frame_max: int,
        channel_max: int,
        cancel_notify: bool = True,
        relay_secret: bool = False,
    ) -> None:
        self._context = context
        self.policy = policy
        self.epoch = epoch
        self.channel_max = channel_max
        self.cancel_notify = cancel_notify
        limit = context.max_message_size
        body_max = MAX_CONTENT if limit is None else min(MAX_CONTENT, limit)
        self.lane = Lane(frame_max or 0x7FFFFFFF, body_max, _user_id(context))
        self.channels: dict[int, ChannelState] = self.lane.channels  # type: ignore[assignment]
        self.tally = Tally()
        self.swallow_close_ok: set[int] | None = None
        self.state = RUNNING
        self.error: AmqpError | None = None
        self.broken: str | None = None
        self.abort = False
        self.client_stalled = False
        self.broker_stalled = False
        self.client_tired = False
        self.broker_tired = False
        self.to_broker: list[bytes | bytearray | memoryview] = []
        self.to_client: list[bytes | bytearray | memoryview] = []
        self._seen = epoch.value
        self._changes = epoch.changes
        self._remembered = 0
        self._turn = 0
        self._mark = 0
        self._waiting = _NOBODY
        self.parked = Parking(self.channels)
        self.endings = Endings(self)
        self.consumers = Consumers(self)
        self.renewals = Renewals(self, relays=relay_secret)
        self._client = ClientFrames(self)
        self._broker = BrokerFrames(self)

    @property
    def context(self) -> Context:
        return self._context

    @context.setter
    def context(self, context: Context) -> None:
        """The user's tags may change in a connection's life: what was approved under them goes."""
        self._context = context
        self.lane.username = _user_id(context)
        self._forget_approvals()

    def among(self, *states: State) -> bool:
        return self.state in states

    @property
    def fatal(self) -> bool:
        """Is the client's frame stream lost?"""
        return isinstance(self.error, FatalFrameError)

    # --- client to broker ---

    def client_data(self, buf: bytearray, pos: int, end: int) -> int:
        """Deal with ``buf[pos:end]`` from the client; answer the offset up to which it is done."""
        self.client_stalled = self.client_tired = False
        if self.state is not RUNNING and not (self.parked.lots and self.state is State.FAILING):
            return self._client.after(buf, pos, end)
        if self.epoch.value != self._seen:
            self.forget()
        if self.parked.lots or self.endings.errors:
            self._turn = JUDGED_AT_ONCE
            self._unpark()
            if self.client_stalled or self.endings.errors or self.state is not RUNNING:
                ending = bool(self.endings.errors) or self.among(State.DRAINING, State.FAILING)
                self.client_stalled = self.client_stalled or ending
                return pos
        done = scan_client(self.lane, buf, pos, end)
        if done < end:
            self._turn = JUDGED_AT_ONCE
            return self._walk(buf, pos, done, end)
        if done > pos:
            self.to_broker.append(_stretch(buf, pos, done))
        return done

    def _unpark(self) -> None:
        """Judge again what is parked; what still waits stays."""
        for number in self.parked.numbers():
            lot = self.parked.take(number)
            failed = len(self.endings.errors)
            scanned = scan_client(self.lane, lot, 0, len(lot))
            done = self._walk(lot, 0, scanned, len(lot), parked=True)
            if not self.among(RUNNING, State.FAILING):
                return
            if done < len(lot) and len(self.endings.errors) == failed:
                self.parked.put(number, lot[done:] if done else lot)
            if self.client_tired:
                return
        self.endings.conclude()

    def _walk(self, buf: bytearray, run: int, pos: int, end: int, *, parked: bool = False) -> int:
        """Judge frames up to one that must wait; the scanner has let ``buf[run:pos]`` pass.

        parked: they are a lot, whole frames.
        """
        asked = 0
        at = -1
        failed = len(self.endings.errors)
        # (The rest of a lot's last unit comes in the stream: it is not waited for.)
        while self.lane.stop != NEED_MORE or (parked and pos < end):
            if self._turn <= 0:
                self.client_stalled = self.client_tired = True
                break
            if self.lane.stop == ASK:
                self._turn -= ASKED
                asked = asked + 1 if pos == at else 1
                at = pos
                number = (buf[pos + 1] << 8) | buf[pos + 2]
                if asked <= ASKED_AT_ONCE and self._granted(number):
                    pos = scan_client(self.lane, buf, pos, end)
                    continue
                self._waiting |= {number}  # the answer may come before the header is judged
            size = int.from_bytes(buf[pos + 3 : pos + 7], "big")
            past = pos + size + 8
            outcome = self._outcome(buf, pos, past, end, parked=parked)
            if self.epoch.value != self._seen:
                # The frame itself has changed what approvals rest on (an exchange is deleted).
                self.forget()
            if outcome is PASS:
                pos = scan_client(self.lane, buf, past, end)
                continue
            # What was queued while judging comes after the run in front of it.
            if pos > run:
                self.to_broker.insert(self._mark, _stretch(buf, run, pos))
            if outcome is WAIT:
                if not parked or self._client.tired:
                    self.client_stalled = True
                    self.client_tired = self.consumers.tired or self._client.tired
                return pos
            run = past
            ended = len(self.endings.errors) > failed
            if parked and not ended and self.state is State.FAILING:
                pos = scan_client(self.lane, buf, run, end)  # it was sent before
                continue
            if ended or self.state is not RUNNING:
                self.client_stalled = not parked and (
                    ended or self.among(State.DRAINING, State.FAILING)
                )
                return min(past, end)
            pos = scan_client(self.lane, buf, run, end)
        if pos > run:
            self.to_broker.append(_stretch(buf, run, pos))
        return pos

    def _outcome(self, buf: bytearray, pos: int, past: int, end: int, *, parked: bool) -> Outcome:
        """What becomes of a frame at which the scanner has stopped. WAIT: with all behind it."""
        self._mark = len(self.to_broker)
        number = (buf[pos + 1] << 8) | buf[pos + 2]
        if self.parked.lots and not parked:
            if number in self.parked:
                self._turn -= KEPT
                whole = past <= end and past - pos - 8 <= self.lane.frame_max
                return TAKEN if whole and self.parked.follow(number, buf[pos:past]) else WAIT
            if number == 0 and buf[pos] == FRAME_METHOD and past <= end:
                return WAIT
        self._turn -= JUDGED + (past - pos) // OCTETS
        outcome = self._judge(buf, pos, past)
        self._settle(number, outcome)
        apart = outcome is WAIT and not parked and not self._client.tired
        return TAKEN if apart and self.parked.begin(number, buf[pos:past]) else outcome

    def _settle(self, asker: int, outcome: Outcome) -> None:
        """Answers are for the frame that has waited for them."""
        if outcome is WAIT:
            self._waiting |= {asker}
        elif asker in self._waiting and not self._amid_publish(asker):
            self._waiting = (self._waiting - {asker}) or _NOBODY
            self.policy.settled(asker)

    def _amid_publish(self, asker: int) -> bool:
        """Is its method taken, but not the header, which the scanner may have asked for?"""
        channel = self.channels.get(asker)
        return channel is not None and channel.expect & ~PARKED == HEADER

    def _granted(self, number: int) -> bool:
        """Is what the scanner asks granted? Then it is approved: scan again from the same place."""
        if not self._client.granted(number, self.lane.exchange, self.lane.key):
            return False
        if self.epoch.value != self._seen:
            self.forget()
        return True

    def _judge(self, buf: bytearray, pos: int, past: int) -> Outcome:
        self._client.tired = False
        number = (buf[pos + 1] << 8) | buf[pos + 2]
        try:
            size = past - pos - 8
            if size > self.lane.frame_max:
                raise frame_error(buf[pos], b"", f": {{frame_too_large,{size},%d}}" %
                                  (self.lane.frame_max - 8))  # fmt: skip
            payload = bytes(buf[pos + 7 : past - 1])
            if buf[past - 1] != 0xCE:
                marker = f": {{invalid_frame_end_marker,{buf[past - 1]}}}"
                raise frame_error(buf[pos], payload, marker)
            return self._client.frame(buf[pos], number, payload)
        except Pending:
            return WAIT
        except AmqpError as error:
            if isinstance(error, OperationError):
                self.endings.refuse_channel(number, error)
            else:
                self.endings.fail(number, error)
            return TAKEN
        except Abort as why:
            self.policy.refused(number, AmqpError(ReplyCode.INTERNAL_ERROR, str(why).encode()))
            self.abort = True
            self.state = DONE
            return TAKEN

    # --- broker to client ---

    def broker_data(self, buf: bytearray, pos: int, end: int) -> int:
        """Deal with ``buf[pos:end]`` from the broker; answer the offset up to which it is done."""
        self.broker_stalled = self.broker_tired = False
        if self.state in OVER:
            return end
        if self.epoch.value != self._seen:
            self.forget()
        if self.consumers.holds:
            self.broker_stalled = True
            return pos
        run = pos
        judged = 0
        while True:
            scan = scan_broker if self.consumers.late is None else self.consumers.scan
            pos = scan(self.lane, buf, pos, end)
            if self.lane.stop == NEED_MORE:
                break
            if judged >= JUDGED_AT_ONCE:
                self.broker_stalled = self.broker_tired = True
                break
            judged += JUDGED
            size = int.from_bytes(buf[pos + 3 : pos + 7], "big")
            past = pos + size + 8
            mark = len(self.to_client)
            if size > self.lane.frame_max or buf[past - 1] != 0xCE:
                outcome = TAKEN
                self.broken = "the broker sent a malformed frame"
            else:
                payload = bytes(buf[pos + 7 : past - 1])
                number = (buf[pos + 1] << 8) | buf[pos + 2]
                try:
                    outcome = self._broker.frame(buf[pos], number, payload)
                except Pending:
                    outcome = WAIT
            self._settle(BROKER, outcome)
            if outcome is PASS:
                pos = past
                if self.state is DONE:
                    break
                continue
            if pos > run:
                self.to_client.insert(mark, _stretch(buf, run, pos))
            if outcome is WAIT:
                self.broker_stalled = True
                return pos
            run = pos = past
            if self.broken or self.state in OVER:
                return end
        if pos > run:
            self.to_client.append(_stretch(buf, run, pos))
        return end if self.state is DONE else pos

    # --- what either side, or the outside, may cause ---

    def recheck(self) -> None:
        """What the user may do has changed, or was granted long ago: judge the consumers again.

        Where that takes answers or another turn, ``consumers.busy`` is set; see ``go_on`` there.
        What is being asked because of its age is not asked anew because of its age: it might
        take longer than that, and would never end.
        """
        changed = self.epoch.changes != self._changes
        self._changes = self.epoch.changes
        if self.consumers.busy and not changed:
            return
        self.consumers.judge_again(Cause.CHANGE, hold=changed)
        self.consumers.go_on()

    def forget(self) -> None:
        """The policy has changed: no approval holds any more."""
        self._seen = self.epoch.value
        self._client.start_over(self._waiting)
        self._forget_approvals()
        impersonator = self.policy.may_impersonate()
        if impersonator is not self.context.impersonator:
            self.context = replace(self.context, impersonator=impersonator)

    def _forget_approvals(self) -> None:
        if not self._remembered:
            return  # a client may cause this at will, and have thousands of channels
        self._remembered = 0
        for channel in self.channels.values():
            channel.forget_all()

    def remembered(self, octets: int) -> None:
        """A channel has remembered one more permission: keep all of them within bounds."""
        self._remembered += 1 + octets // 64
        if self._remembered > MAX_REMEMBERED:
            self._forget_approvals()

    def drop(self, number: int) -> None:
        """The channel is gone, its number free."""
        del self.channels[number]
        self.policy.channel_ended()

    def interject(
        self, number: int, channel: ChannelState, data: bytes, error: AmqpError | None = None
    ) -> None:
        """Send the broker something of the gate's own; then refuse the channel for ``error``.

        At once, or when the content is complete of which the broker has a part.
        """
        content = channel.content
        if channel.expect & ~PARKED == BODY and not (content is not None and content.discard):
            channel.mode = Mode.FINISHING
            channel.deferred = channel.deferred or []
            if data:
                channel.deferred.append(data)
            channel.error = channel.error or error
            return
        if data:
            self.to_broker.append(data)
        if error is not None:
            self.endings.refuse_channel(number, error)


def frame_error(kind: int, payload: bytes, detail: str) -> FatalFrameError:
    """501 in RabbitMQ's wording (``rabbit_misc:frame_error``)."""
    text = f"type {kind}, {frame_octets(payload)}{detail}"
    return FatalFrameError(ReplyCode.FRAME_ERROR, text.encode())
