"""One running AMQP connection between a client and a broker, without a socket in sight.

Bytes of either side go in by ``client_data`` and ``broker_data``, which answer how much they
have dealt with; what is to be sent lies in ``to_broker`` and ``to_client`` afterwards, in order,
to be taken at once: runs of bytes are views of the caller's buffer. The scanner decides runs of
frames; whatever it stops at is judged by ``fromclient.ClientFrames`` or
``frombroker.BrokerFrames``.

An answer may be outstanding (``stalled``): then nothing after it on that side is looked at
until the pump calls again with the same bytes. ``tired`` is a stall that waits for nothing but
its next turn, so that no client can keep the others from theirs. Judging again is harmless,
because nothing is remembered or sent before a frame's last question is answered.

# INVARIANT: a frame is forwarded only after every check that it needs was allowed under the
# present epoch; whatever is not forwarded is either answered or dropped, never kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from gatekeeper.errors import AmqpError, ReplyCode
from gatekeeper.model import Check, Decision
from gatekeeper.protocol.channels import MAX_REMEMBERED, ChannelState, Mode
from gatekeeper.protocol.checks import Context
from gatekeeper.protocol.consumers import Cause, Consumers
from gatekeeper.protocol.erlang import frame_octets
from gatekeeper.protocol.frames import ASK, BODY, NEED_MORE, Lane, scan_broker, scan_client
from gatekeeper.protocol.frombroker import BrokerFrames
from gatekeeper.protocol.fromclient import ClientFrames
from gatekeeper.protocol.layouts import Abort
from gatekeeper.protocol.renewals import Renewals
from gatekeeper.protocol.states import (
    CONNECTION_CLOSE_OK,
    MAX_CONTENT,
    FatalFrameError,
    OperationError,
    Outcome,
    Pending,
    State,
)
from gatekeeper.protocol.wire import close_method

JUDGED_AT_ONCE = 256
"""Work of the readable code before other connections get their turn: about a millisecond. A frame
that is judged counts JUDGED, a question of the scanner ASKED. Frames of the fast lane do not count,
a whole chunk of them takes less."""
JUDGED, ASKED = 4, 2
OCTETS = 64
"""So many of a frame that is judged count 1 more: a table is read whole, a route is a check."""
ASKED_AT_ONCE = 8
"""Questions of the scanner about one publish; one that leads to more is judged as a whole."""


class Epoch(Protocol):
    """One number for the whole policy; it changes with every change of any of it."""

    @property
    def value(self) -> int: ...

    @property
    def changes(self) -> int:
        """This one does not change where what was granted has only grown old."""


class SessionPolicy(Protocol):
    """What the session asks of the outside. None: the answer will come, call again then."""

    def check(self, check: Check) -> Decision | None: ...

    def exchange_exists(self, exchange: bytes) -> bool | None: ...

    def topic_rule(self, exchange: bytes) -> bool:
        """Can the routing key matter on this exchange?"""

    def open_channel(self) -> AmqpError | bool | None:
        """True: it is open from now on, until ``channel_ended`` or the connection's end. An
        error: the user's max-channels, which RabbitMQ counts over all of their connections."""

    def channel_ended(self) -> None: ...

    def update_secret(self, secret: bytes, reason: bytes) -> AmqpError | bool | None:
        """True: taken. An error: what the client is told."""

    def exchange_changing(self, exchange: bytes) -> int:
        """A declare or delete goes to the broker: until it has been answered, the exchange may
        be what it was or what it is to be. Answers a number for :meth:`exchange_changed`."""

    def exchange_changed(self, exchange: bytes, kind: bytes | None, change: int) -> None:
        """The broker has answered the change of that number: its type, None if it is gone."""

    def settled(self) -> None:
        """A frame that had to wait is decided: its answers count for no other frame."""

    def rights_changed(self) -> None:
        """What was granted is about to be asked again: no :meth:`recheck` of before counts."""

    def recheck(self, check: Check) -> Decision | None:
        """As :meth:`check`, but the answer counts whatever frames are settled meanwhile."""

    def may_impersonate(self) -> bool:
        """Has the user the tag impersonator now? Asked whenever the epoch has changed."""

    def refused(self, channel: int, error: AmqpError) -> None:
        """For the log: an operation was refused, or the connection is closed for an error."""

    def consumer_cancelled(self, channel: int, tag: bytes, queue: bytes, cause: str) -> None:
        """For the log: read access refused after ``cause``."""


def _user_id(context: Context) -> bytes | None:
    """The user-id that the scanner need not judge; None: any."""
    return None if context.impersonator else context.username


class Session:
    """See the head of this file.

    frame_max, channel_max: as negotiated with the client, 0 for none.
    cancel_notify: did the client announce consumer_cancel_notify?
    relay_secret: the client is logged in at the broker as itself, which must be told of its new
        secrets too.
    """

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
        self.swallow_close_ok: set[int] | None = None
        self.state = State.RUNNING
        self.error: AmqpError | None = None
        self.broken: str | None = None
        self.abort = False
        self.client_stalled = False
        self.broker_stalled = False
        self.client_tired = False
        self.broker_tired = False
        self.to_broker: list[bytes | memoryview] = []
        self.to_client: list[bytes | memoryview] = []
        self._seen = epoch.value
        self._changes = epoch.changes
        self._remembered = 0
        self._waited = False
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
        if not self.among(State.RUNNING):
            return self._client.after(buf, pos, end)
        if self.epoch.value != self._seen:
            self.forget()
        run = pos
        judged = asked = 0
        at = -1
        while True:
            pos = scan_client(self.lane, buf, pos, end)
            if self.lane.stop == NEED_MORE:
                break
            if judged >= JUDGED_AT_ONCE:
                self.client_stalled = self.client_tired = True
                break
            if self.lane.stop == ASK:
                judged += ASKED
                asked = asked + 1 if pos == at else 1
                at = pos
                if asked <= ASKED_AT_ONCE and self._granted((buf[pos + 1] << 8) | buf[pos + 2]):
                    continue
            size = int.from_bytes(buf[pos + 3 : pos + 7], "big")
            judged += JUDGED + size // OCTETS
            past = pos + size + 8
            outcome = self._judge(buf, pos, past)
            if self._waited and outcome is not Outcome.WAIT:
                self._waited = False
                self.policy.settled()
            if self.epoch.value != self._seen:
                # The frame itself has changed what approvals rest on (an exchange is deleted).
                self.forget()
            if outcome is Outcome.PASS:
                pos = past
                continue
            # What was queued while judging comes after the run in front of it.
            if pos > run:
                self.to_broker.insert(self._mark, memoryview(buf)[run:pos])
            if outcome is Outcome.WAIT:
                self.client_stalled = self._waited = True
                self.client_tired = self.consumers.tired or self._client.tired
                return pos
            run = pos = past
            if not self.among(State.RUNNING):
                self.client_stalled = self.among(State.DRAINING, State.FAILING)
                return min(past, end)
        if pos > run:
            self.to_broker.append(memoryview(buf)[run:pos])
        return pos

    def _granted(self, number: int) -> bool:
        """Is what the scanner asks granted? Then it is approved: scan again from the same place."""
        if not self._client.granted(number, self.lane.exchange, self.lane.key):
            return False
        if self.epoch.value != self._seen:
            self.forget()
        return True

    def _judge(self, buf: bytearray, pos: int, past: int) -> Outcome:
        self._mark = len(self.to_broker)
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
            return Outcome.WAIT
        except AmqpError as error:
            if isinstance(error, OperationError):
                self.refuse_channel(number, error)
            else:
                self.fail(number, error)
            return Outcome.TAKEN
        except Abort as why:
            self.policy.refused(number, AmqpError(ReplyCode.INTERNAL_ERROR, str(why).encode()))
            self.abort = True
            self.state = State.DONE
            return Outcome.TAKEN

    # --- broker to client ---

    def broker_data(self, buf: bytearray, pos: int, end: int) -> int:
        """Deal with ``buf[pos:end]`` from the broker; answer the offset up to which it is done."""
        self.broker_stalled = self.broker_tired = False
        if self.among(State.TOLD, State.DONE):
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
                outcome = Outcome.TAKEN
                self.broken = "the broker sent a malformed frame"
            else:
                payload = bytes(buf[pos + 7 : past - 1])
                number = (buf[pos + 1] << 8) | buf[pos + 2]
                try:
                    outcome = self._broker.frame(buf[pos], number, payload)
                except Pending:
                    outcome = Outcome.WAIT
            if outcome is Outcome.PASS:
                pos = past
                if self.among(State.DONE):
                    break
                continue
            if pos > run:
                self.to_client.insert(mark, memoryview(buf)[run:pos])
            if outcome is Outcome.WAIT:
                self.broker_stalled = True
                return pos
            run = pos = past
            if self.broken or self.among(State.TOLD, State.DONE):
                return end
        if pos > run:
            self.to_client.append(memoryview(buf)[run:pos])
        return end if self.among(State.DONE) else pos

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
        self._client.start_over()
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

    def remembered(self) -> None:
        """A channel has remembered one more permission: keep all of them within bounds."""
        self._remembered += 1
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
        if channel.expect == BODY and not (content is not None and content.discard):
            channel.mode = Mode.FINISHING
            channel.deferred = channel.deferred or []
            if data:
                channel.deferred.append(data)
            channel.error = channel.error or error
            return
        if data:
            self.to_broker.append(data)
        if error is not None:
            self.refuse_channel(number, error)

    def refuse_channel(self, number: int, error: AmqpError) -> None:
        """Close the channel at the broker first: its earlier replies come before the refusal.

        Where the error ends the connection, nothing of the client's is looked at until then.
        """
        self.policy.refused(number, error)
        self.to_broker.append(close_method(number, 20, 200, b"", 0, 0))
        self._client.refusing(number, error)
        if not error.closes_channel:
            self.error = error
            self.state = State.FAILING

    def refusal_is_due(self, number: int, channel: ChannelState) -> None:
        """The broker has closed the channel: the client may be told why it was."""
        if channel.error is None:
            return
        if channel.error.closes_channel:
            self._broker.tell_refusal(number, channel)
        elif self.state is State.FAILING:
            self.drop(number)  # its number means nothing any more
            self._drain(channel.error)

    def refusal_is_void(self, channel: ChannelState) -> None:
        """The broker has closed the channel for an earlier operation: that is the answer."""
        if self.state is State.FAILING and channel.error is self.error:
            self.error = None
            self.state = State.RUNNING

    def fail(self, number: int, error: AmqpError) -> None:
        """Close the connection for an error of the client's, after the broker's replies."""
        self.policy.refused(number, error)
        self._drain(error)

    def _drain(self, error: AmqpError) -> None:
        self.error = error
        self.state = State.DRAINING
        self.to_broker.append(close_method(0, 10, 200, b"", 0, 0))

    def tell(self) -> None:
        """Send the client the connection.close for :attr:`error`."""
        error = self.error
        if error is None:
            return
        self.tell_refusals()
        self.to_client.append(
            close_method(0, 10, error.code, error.text, error.class_id, error.method_id)
        )
        self.state = State.TOLD

    def tell_refusals(self) -> None:
        """Before the connection ends: the refusals of channels that came first.

        A broker that is told to close the connection answers a channel's close no more.
        """
        for number, channel in self.channels.items():
            if channel.mode == Mode.REFUSING and channel.error is not self.error:
                self._broker.tell_refusal(number, channel)

    def close(self, error: AmqpError) -> None:
        """The gate ends the connection (320 and the like): the client is told at once."""
        if self.state in (State.RUNNING, State.FAILING, State.DRAINING, State.CLIENT_CLOSING):
            if self.state in (State.RUNNING, State.FAILING):
                self.to_broker.append(close_method(0, 10, 200, b"", 0, 0))
            self.error = self.error or error
            self.tell()

    def broker_lost(self, explanation: bytes) -> None:
        """The broker's connection has ended, or is given up."""
        if self.state is State.CLIENT_CLOSING:
            self.to_client.append(CONNECTION_CLOSE_OK)
            self.state = State.DONE
        else:
            self.close(AmqpError(ReplyCode.CONNECTION_FORCED, explanation))


def frame_error(kind: int, payload: bytes, detail: str) -> FatalFrameError:
    """501 in RabbitMQ's wording (``rabbit_misc:frame_error``)."""
    text = f"type {kind}, {frame_octets(payload)}{detail}"
    return FatalFrameError(ReplyCode.FRAME_ERROR, text.encode())
