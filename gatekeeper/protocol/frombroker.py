"""Methods from the broker that mean something to the gate; all others just pass.

They tell which channels have ended, what the broker called a queue, and which declares have
succeeded. The broker may be buggy: an unknown channel or an answer to nothing never raises.
Source: semantics.md 1.13; DESIGN sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from gatekeeper.errors import printable
from gatekeeper.model import Access, Kind, Permission
from gatekeeper.protocol.channels import ChannelState, Mode
from gatekeeper.protocol.checks import access_refused
from gatekeeper.protocol.states import (
    BROKER,
    CONNECTION_CLOSE_OK,
    PASS,
    TAKEN,
    Outcome,
    Pending,
    State,
)
from gatekeeper.protocol.wire import Reader, WireError, close_method, method, shortstr

if TYPE_CHECKING:
    from gatekeeper.protocol.session import Session

CLOSE_OK = (20, 41)


class BrokerFrames:
    __slots__ = ("_s",)

    def __init__(self, session: Session) -> None:
        self._s = session

    def frame(self, kind: int, number: int, payload: bytes) -> Outcome:
        """Deal with one frame that the scanner did not pass. Raises Pending."""
        session = self._s
        if session.consumers.late is not None:
            outcome = self._late(kind, number, payload)
            if outcome is not None:
                return outcome
        if kind != 1 or len(payload) < 4:
            session.broken = f"the broker sent a frame of unknown type {kind}"
            return TAKEN
        ids = (payload[0] << 8 | payload[1], payload[2] << 8 | payload[3])
        try:
            if ids[0] == 10:
                return self._connection(ids, payload)
            channel = session.channels.get(number)
            handler = self._HANDLERS.get(ids)
            if handler is None or (channel is None and ids != CLOSE_OK):
                return PASS
            return handler(self, number, channel, payload)
        except WireError as error:
            session.broken = f"the broker sent a malformed method {ids[0]}.{ids[1]}: {error}"
            return TAKEN

    def _late(self, kind: int, number: int, payload: bytes) -> Outcome | None:
        session = self._s
        try:
            return session.consumers.late_frame(kind, number, payload)
        except WireError as error:
            session.broken = f"the broker sent a malformed basic.deliver: {error}"
            return TAKEN

    def _connection(self, ids: tuple[int, int], payload: bytes) -> Outcome:
        session = self._s
        if ids in ((10, 60), (10, 61)):  # blocked, unblocked
            return PASS
        if ids == (10, 71):
            return session.renewals.answered()
        if ids == (10, 50):
            if session.renewals.refused(payload):
                session.broken = "it refused the gate's new credentials"
                return TAKEN
            session.to_client.append(self._close(0, 10, payload))
            # In DRAINING the gate's own close has crossed this one: the broker's came first,
            # and nothing more is owed to it.
            told = session.state is State.DRAINING
            session.error = None
            session.state = State.TOLD if told else State.BROKER_CLOSING
            return TAKEN
        if ids == (10, 51):
            if session.state is State.DRAINING:
                session.endings.tell()
                return TAKEN
            if session.state is State.CLIENT_CLOSING:
                session.endings.tell_refusals()
                session.to_client.append(CONNECTION_CLOSE_OK)
                session.state = State.DONE
                return TAKEN
            return PASS
        session.broken = f"the broker sent method {ids[0]}.{ids[1]} in a running connection"
        return TAKEN

    def _close(self, number: int, class_id: int, payload: bytes) -> bytes:
        """The broker's close method, with the client's name where it has the gate's."""
        reader = Reader(payload, 4)
        code, text = reader.short(), reader.shortstr()
        failing_class, failing_method = reader.short(), reader.short()
        context = self._s.context
        if context.service_user is not None:
            ours = b"user '%b'" % context.service_user
            theirs = b"user '%b'" % printable(context.username)
            text = text.replace(ours, theirs)
            if len(text) > 255:
                text = text[:255].decode("utf-8", "ignore").encode()
        return close_method(number, class_id, code, text, failing_class, failing_method)

    def _channel_close(self, number: int, channel: ChannelState, payload: bytes) -> Outcome:
        session = self._s
        if channel.mode == Mode.AWAIT_OK:
            return TAKEN
        if channel.mode == Mode.REFUSING:
            # An earlier operation failed at the broker: that is the client's answer. Our own
            # close will still be answered, which nobody must see.
            if session.swallow_close_ok is None:
                session.swallow_close_ok = set()
            session.swallow_close_ok.add(number)
            session.endings.refusal_is_void(channel)
        session.to_client.append(self._close(number, 20, payload))
        self._channel_ended(number, channel)
        channel.mode = Mode.BROKER_CLOSED
        channel.deferred = None
        return TAKEN

    def _channel_close_ok(
        self, number: int, channel: ChannelState | None, _payload: bytes
    ) -> Outcome:
        session = self._s
        if session.swallow_close_ok is not None and number in session.swallow_close_ok:
            session.swallow_close_ok.discard(number)
            return TAKEN
        if channel is None:
            return PASS
        self._channel_ended(number, channel)
        if channel.mode == Mode.CLOSING:
            session.drop(number)
            return PASS
        if channel.mode == Mode.REFUSING:
            session.endings.refusal_is_due(number, channel)
            return TAKEN
        return PASS

    def _channel_ended(self, number: int, channel: ChannelState) -> None:
        """What was sent behind the end of the channel is never done."""
        self._s.consumers.channel_ended(number)
        for pending in channel.unanswered():
            self._s.policy.exchange_changed(pending.name, None, pending.number)

    def _queue_declare_ok(self, number: int, channel: ChannelState, payload: bytes) -> Outcome:
        if channel.named:
            name = Reader(payload, 4).shortstr()
            channel.named -= 1
            if not channel.named and channel.last_declare is None:
                channel.view.last_queue = name
            return PASS
        if not channel.declares:
            return PASS
        pending = channel.declares.first()
        name = Reader(payload, 4).shortstr()
        if pending.generated and not self._may_own(number, channel, name, reads=pending.reads):
            channel.declares.popleft()
            return TAKEN
        channel.declares.popleft()
        if pending is channel.last_declare:
            channel.view.last_queue = name
            channel.view.pending_name = False
        return TAKEN if pending.swallow else PASS

    def _may_own(self, number: int, channel: ChannelState, name: bytes, *, reads: bool) -> bool:
        """Is the name that the broker made up within the user's permissions?

        A name of the same shape was; if this one is not, the queue goes and the client is told
        what RabbitMQ would have said.
        """
        session = self._s
        for permission in (Permission.CONFIGURE, *((Permission.READ,) if reads else ())):
            check = Access(permission, Kind.QUEUE, name)
            decision = session.policy.check(check, BROKER)
            if decision is None:
                raise Pending
            if decision.allowed:
                continue
            # On a channel that is closing already the broker takes no delete any more; a queue
            # is left whose name nobody has been told.
            delete = method(number, 50, 40, b"\0\0" + shortstr(name) + b"\x04")  # no-wait
            error = access_refused(check, session.context, decision.detail)
            error.class_id, error.method_id = 50, 10
            if channel.in_service:
                session.interject(number, channel, delete, error)
            elif channel.mode == Mode.SWALLOWING:
                session.interject(number, channel, delete)
            return False
        return True

    def _exchange_declare_ok(self, _number: int, channel: ChannelState, _payload: bytes) -> Outcome:
        pending = channel.changed(channel.exchange_declares)
        if pending is None:
            return PASS
        if pending.kind is not None:
            self._s.policy.exchange_changed(pending.name, pending.kind, pending.number)
        return TAKEN if pending.swallow else PASS

    def _exchange_delete_ok(self, _number: int, channel: ChannelState, _payload: bytes) -> Outcome:
        pending = channel.changed(channel.exchange_deletes)
        if pending is None:
            return PASS
        self._s.policy.exchange_changed(pending.name, None, pending.number)
        return TAKEN if pending.swallow else PASS

    def _cancel(self, number: int, channel: ChannelState, payload: bytes) -> Outcome:
        """The broker cancels a consumer (its queue is gone). Always asked for upstream.

        One that a cancel is under way for is not among the channel's any more: the one of that
        tag that is there will only begin, and must stay known, for it may lose its right.
        """
        tag = Reader(payload, 4).shortstr()
        ended = self._s.consumers.cancelled(number, tag)
        if not ended and (channel.cancels is None or tag not in channel.cancels):
            channel.view.consumers.pop(tag, None)
        return PASS if self._s.cancel_notify else TAKEN

    def _cancel_ok(self, number: int, channel: ChannelState, payload: bytes) -> Outcome:
        taken = self._s.consumers.cancel_ok(number, channel, Reader(payload, 4).shortstr())
        return TAKEN if taken else PASS

    _HANDLERS: ClassVar[dict[tuple[int, int], Callable[..., Outcome]]] = {
        (20, 40): _channel_close,
        (20, 41): _channel_close_ok,
        (40, 11): _exchange_declare_ok,
        (40, 21): _exchange_delete_ok,
        (50, 11): _queue_declare_ok,
        (60, 30): _cancel,
        (60, 31): _cancel_ok,
    }
