"""Frames from the client that the scanner did not decide.

Three layers, in RabbitMQ's order: is it a frame (501, 505), does it fit the channel's content
state (505, 501), may the method be done in the channel's mode (504, 503, dropped), and only
then the permissions. The layers stay in one file because they share a channel's state from
frame to frame. Source: semantics.md 1.9, 1.12, 1.13 and section 2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gatekeeper.errors import AmqpError, ReplyCode
from gatekeeper.model import Access, AnyAccess, Kind, Permission, TopicAccess
from gatekeeper.protocol.channels import (
    AN_OBJECT,
    MAX_UNANSWERED,
    Canceller,
    ChannelState,
    Content,
    Mode,
    PendingDeclare,
    PendingExchange,
)
from gatekeeper.protocol.checks import (
    Cancelled,
    Consumed,
    Effect,
    ExchangeDeclared,
    ExchangeDeleted,
    ExchangeSeen,
    Judgement,
    NeedReply,
    QueueDeclared,
    Step,
    access_refused,
    as_bytes,
    judge,
    no_exchange,
    unimplemented,
)
from gatekeeper.protocol.consumers import Cause
from gatekeeper.protocol.erlang import frame_octets
from gatekeeper.protocol.frames import BODY, HEADER, METHOD
from gatekeeper.protocol.layouts import PUBLISH, WITH_CONTENT, Fields, decode, encode
from gatekeeper.protocol.publishing import judge_publish
from gatekeeper.protocol.states import (
    CONNECTION_CLOSE_OK,
    MAX_CONTENT,
    PASS,
    TAKEN,
    FatalFrameError,
    OperationError,
    Outcome,
    Pending,
    State,
)
from gatekeeper.protocol.wire import (
    FRAME_BODY,
    FRAME_HEADER,
    FRAME_HEARTBEAT,
    FRAME_METHOD,
    WireError,
    frame,
    method,
    read_properties,
    shortstr,
)

if TYPE_CHECKING:
    from gatekeeper.protocol.session import Session

OPEN, CLOSE, CLOSE_OK = (20, 10), (20, 40), (20, 41)
AWAITED = frozenset({(40, 10), (40, 20), (50, 10), (60, 30), (60, 31)})
"""The gate must know what the broker answers to these, or that it has."""
UPDATE_SECRET_OK = method(0, 10, 71)
CHECKED_AT_ONCE = 64
"""Checks of one frame before other connections get their turn: a header may name 20,000 routes."""


class ClientFrames:
    """tired: a frame waits for nothing but its next turn."""

    __slots__ = ("_s", "_secret_taken", "tired")

    def __init__(self, session: Session) -> None:
        self._s = session
        self._secret_taken = False  # and the consumers are not all judged again yet
        self.tired = False

    def start_over(self, waiting: Iterable[int]) -> None:
        """The policy has changed: content headers that wait for answers, on these channels, are
        judged anew."""
        for number in waiting:
            channel = self._s.channels.get(number)
            if channel is not None and channel.content is not None:
                channel.content.steps = None

    def granted(self, number: int, exchange: bytes, key: bytes) -> bool:
        """May the channel publish to ``exchange`` with the routing key? Then that is approved.

        A denial, an answer that is still to come, and whatever else is not simply yes, is False:
        :meth:`frame` will find the same, in RabbitMQ's order. All else about the publish is in
        order, the scanner has seen to that.
        """
        session = self._s
        channel, policy = session.channels[number], session.policy
        topical = channel.topical
        known = topical is not None and exchange in topical
        if not known:
            if not self._allowed(
                number, channel, Access(Permission.WRITE, Kind.EXCHANGE, exchange)
            ):
                return False
            if not policy.topic_rule(exchange):
                if channel.approve_exchange(exchange):
                    session.remembered(len(exchange))
                return True
        if channel.changing is not None and exchange in channel.changing:
            return False  # see _settled
        keys = topical[exchange] if topical is not None and known else None
        if keys is None:
            decision = policy.check(TopicAccess(Permission.WRITE, exchange, key), number)
            if decision is None or not decision.allowed:
                return False
        elif not keys.allows(key):
            return False
        octets = len(exchange) + len(key) + 2
        if not known:
            # Before what may end in forgetting it.
            keys = policy.routing_keys(exchange)
            if channel.topical is None:
                channel.topical = {}
            channel.topical[exchange] = keys
            octets += AN_OBJECT + len(exchange)
        if channel.approve_route(exchange, key, keys):
            session.remembered(octets)
        return True

    def _allowed(self, number: int, channel: ChannelState, check: Access) -> bool:
        if check in channel.allowed:
            return True
        decision = self._s.policy.check(check, number)
        if decision is None or not decision.allowed:
            return False
        self._allow(channel, check)
        return True

    def _allow(self, channel: ChannelState, check: Access | AnyAccess) -> None:
        octets = channel.allow(check)
        if octets:
            self._s.remembered(octets)

    def frame(self, kind: int, number: int, payload: bytes) -> Outcome:
        """Judge one well-terminated frame. Raises AmqpError, Abort, Pending."""
        size = len(payload)
        if (
            kind not in (FRAME_METHOD, FRAME_HEADER, FRAME_BODY, FRAME_HEARTBEAT)
            or (kind == FRAME_METHOD and size < 4)
            or (kind == FRAME_HEADER and size < 12)
            or (kind == FRAME_HEARTBEAT and size)
        ):
            text = f"type {kind}, {frame_octets(payload)}: unknown_frame"
            raise AmqpError(ReplyCode.FRAME_ERROR, text.encode())
        if kind == FRAME_HEARTBEAT or (number == 0 and kind != FRAME_METHOD):
            if kind == FRAME_HEARTBEAT and number == 0:
                return PASS
            text = f"type {kind}, {frame_octets(payload)}"
            raise AmqpError(ReplyCode.UNEXPECTED_FRAME, text.encode())
        if number == 0:
            return self._connection_method(payload)
        channel = self._s.channels.get(number) or self._create(number)
        if channel.expect == METHOD:
            if kind != FRAME_METHOD:
                raise AmqpError(
                    ReplyCode.UNEXPECTED_FRAME,
                    b"expected method frame, got non method frame instead",
                )
            return self._method(number, channel, payload)
        if channel.expect == HEADER:
            return self._header(number, channel, kind, payload)
        return self._body(number, channel, kind, payload)

    # --- channel 0 ---

    def _connection_method(self, payload: bytes) -> Outcome:
        session = self._s
        ids = _ids(payload)
        fields = decode(0, ids, payload[4:])
        if ids == (10, 50):
            session.state = State.CLIENT_CLOSING
            return self._passed(0, payload)
        if ids == (10, 70):
            secret, reason = fields
            return self._update_secret(as_bytes(secret), as_bytes(reason))
        text = b"unexpected method in connection state running"
        raise AmqpError(ReplyCode.CHANNEL_ERROR, text, *ids)

    def _passed(self, number: int, payload: bytes) -> Outcome:
        """Forward a frame that also ends the run (the state has changed with it)."""
        self._s.to_broker.append(frame(FRAME_METHOD, number, payload))
        return TAKEN

    def _update_secret(self, secret: bytes, reason: bytes) -> Outcome:
        """semantics.md 1.11. Forwarded only where the broker knows the client's own credentials;
        elsewhere it would change the gate's."""
        session = self._s
        if not self._secret_taken:
            answer = session.policy.update_secret(secret, reason)
            if answer is None:
                raise Pending
            if isinstance(answer, AmqpError):
                raise AmqpError(answer.code, answer.explanation, 10, 70)
            session.forget()
            session.consumers.judge_again(Cause.CREDENTIALS)
            self._secret_taken = True
        if not session.consumers.go_on():
            raise Pending
        self._secret_taken = False
        if session.renewals.relays:
            session.renewals.relay(secret, reason)
        else:
            session.to_client.append(UPDATE_SECRET_OK)
        return TAKEN

    # --- channels ---

    def _create(self, number: int) -> ChannelState:
        session = self._s
        count = len(session.channels)
        limit = session.channel_max
        if limit and count >= limit:
            text = b"number of channels opened (%d) has reached the negotiated channel_max (%d)"
            raise AmqpError(ReplyCode.NOT_ALLOWED, text % (count, limit))
        answer = session.policy.open_channel(number)
        if answer is None:
            raise Pending
        if isinstance(answer, AmqpError):
            raise answer
        channel = ChannelState(session.tally)
        session.channels[number] = channel
        return channel

    def _method(self, number: int, channel: ChannelState, payload: bytes) -> Outcome:
        if channel.named_before is not None and channel.mode == Mode.OPEN:
            again = channel.named_before.get(payload)
            if again is not None and self._s.tally.count < MAX_UNANSWERED:
                self._queue_declared(channel, again)
                return PASS
        ids = _ids(payload)
        fields = decode(number, ids, payload[4:])
        if ids in WITH_CONTENT:
            channel.content = Content(ids, fields, frame(FRAME_METHOD, number, payload))
            channel.expect = HEADER
            return TAKEN
        if channel.mode != Mode.OPEN:
            return self._method_off_duty(number, channel, ids)
        if ids == CLOSE:
            channel.mode = Mode.CLOSING
            return PASS
        if ids == OPEN:
            raise AmqpError(ReplyCode.CHANNEL_ERROR, b"second 'channel.open' seen", *ids)
        if ids in AWAITED and self._s.tally.count >= MAX_UNANSWERED:
            raise Pending
        try:
            judgement = judge(ids, fields, channel.view, self._s.context)
            denied = self._decide(number, channel, deque(judgement.steps))
        except NeedReply:
            raise Pending from None
        except AmqpError as caught:
            denied = caught
        if isinstance(denied, AmqpError):
            raise OperationError(denied.code, denied.explanation, *ids)
        if denied is not None:
            self._s.to_broker.append(encode(number, ids, denied))
            return TAKEN
        self._remember(channel, fields, judgement)
        if judgement.fields is not None and judgement.ids is not None:
            self._s.to_broker.append(encode(number, judgement.ids, judgement.fields))
            return TAKEN
        octets = channel.approve(payload, ids, judgement.effect)
        if octets:
            self._s.remembered(octets)
        return PASS

    def _method_off_duty(self, number: int, channel: ChannelState, ids: tuple[int, int]) -> Outcome:
        """Methods on a channel that is not (or no longer) open: semantics.md 1.13."""
        session, mode = self._s, channel.mode
        if mode == Mode.UNOPENED:
            if ids != OPEN:
                raise AmqpError(ReplyCode.CHANNEL_ERROR, b"expected 'channel.open'", *ids)
            channel.mode = Mode.OPEN
            return PASS
        if mode == Mode.CLOSING:
            # The number is free again with the broker's close-ok: a moment's wait.
            if ids in (OPEN, CLOSE):
                raise Pending
            return TAKEN
        if ids == OPEN:
            raise AmqpError(ReplyCode.CHANNEL_ERROR, b"second 'channel.open' seen", *ids)
        if ids not in (CLOSE, CLOSE_OK):
            return TAKEN
        if mode == Mode.REFUSING:
            raise Pending
        if mode == Mode.AWAIT_OK:
            if ids == CLOSE:
                session.to_client.append(method(number, *CLOSE_OK))
            else:
                session.drop(number)
            return TAKEN
        if ids == CLOSE_OK:  # BROKER_CLOSED
            session.drop(number)
        return PASS

    # --- content ---

    def _header(self, number: int, channel: ChannelState, kind: int, payload: bytes) -> Outcome:
        content = channel.content
        assert content is not None  # noqa: S101 - expect says so
        expected = b"expected content header for class 60, got "
        if kind != FRAME_HEADER or payload[2:4] != b"\0\0":
            text = expected + b"non content header frame instead"
            raise AmqpError(ReplyCode.UNEXPECTED_FRAME, text, *content.ids)
        class_id = int.from_bytes(payload[:2], "big")
        if class_id != 60:
            text = expected + b"one for class %d instead" % class_id
            raise AmqpError(ReplyCode.UNEXPECTED_FRAME, text, *content.ids)
        size = int.from_bytes(payload[4:12], "big")
        if size > MAX_CONTENT:
            text = b"content body size %d exceeds maximum allowed size %d" % (size, MAX_CONTENT)
            raise AmqpError(ReplyCode.FRAME_ERROR, text, *content.ids)
        if channel.mode == Mode.UNOPENED:
            content.refusal = AmqpError(ReplyCode.CHANNEL_ERROR, b"expected 'channel.open'")
        elif channel.mode == Mode.OPEN and content.ids != PUBLISH:
            content.refusal = unimplemented()
        elif channel.mode == Mode.OPEN:
            content.refusal = self._judge_publish(number, channel, content, size, payload)
        content.discard = content.refusal is not None or channel.mode != Mode.OPEN
        if content.discard:
            if channel.mode == Mode.OPEN:
                channel.mode = Mode.SWALLOWING
        else:
            flags = int.from_bytes(payload[12:14], "big")
            if flags & 3:
                # RabbitMQ ignores these bits; another reader would look for more flags.
                payload = payload[:12] + (flags & ~3).to_bytes(2, "big") + payload[14:]
            self._s.to_broker += (content.held, frame(FRAME_HEADER, number, payload))
        channel.remaining = size
        channel.expect = BODY
        if size == 0:
            self._complete(channel)
        return TAKEN

    def _body(self, number: int, channel: ChannelState, kind: int, payload: bytes) -> Outcome:
        content = channel.content
        if kind != FRAME_BODY:
            text = b"expected content body, got non content body frame instead"
            raise AmqpError(
                ReplyCode.UNEXPECTED_FRAME, text, *(content.ids if content else PUBLISH)
            )
        if len(payload) > channel.remaining:
            text = b"content body frame exceeds remaining content size"
            raise AmqpError(ReplyCode.FRAME_ERROR, text, *(content.ids if content else PUBLISH))
        channel.remaining -= len(payload)
        discard = content is not None and content.discard
        if channel.remaining:
            return TAKEN if discard else PASS
        self._complete(channel)
        if channel.mode == Mode.FINISHING:
            self._finish(number, channel, payload)
            return TAKEN
        return TAKEN if discard else PASS

    def _finish(self, number: int, channel: ChannelState, payload: bytes) -> None:
        """The last body frame goes out, then what had to wait for it (``Session.interject``)."""
        self._s.to_broker += (frame(FRAME_BODY, number, payload), *(channel.deferred or ()))
        channel.mode = Mode.OPEN
        channel.deferred = None
        error = channel.error
        if error is not None:
            ids = (error.class_id, error.method_id)
            raise OperationError(error.code, error.explanation, *ids)

    def _complete(self, channel: ChannelState) -> None:
        """The content is whole: this is when RabbitMQ judges it."""
        content = channel.content
        channel.content = None
        channel.expect = METHOD
        if channel.mode not in {Mode.SWALLOWING, Mode.UNOPENED}:
            return  # the channel was closed meanwhile: what comes on it is dropped
        if content is not None and content.refusal is not None:
            error = content.refusal
            ids = content.ids if error.explanation else (0, 0)  # a crash has no method
            kind = AmqpError if channel.mode == Mode.UNOPENED else OperationError
            raise kind(error.code, error.explanation, *ids)

    def _judge_publish(
        self, number: int, channel: ChannelState, content: Content, size: int, payload: bytes
    ) -> AmqpError | None:
        session = self._s
        if content.steps is None:
            try:
                properties = read_properties(payload[12:])
            except WireError:
                properties = None
            content.steps = deque(
                judge_publish(content.fields, size, properties, channel.view, session.context)
            )
        denied = self._decide(number, channel, content.steps)
        content.steps = None
        if denied is not None:
            return denied if isinstance(denied, AmqpError) else AmqpError(ReplyCode.INTERNAL_ERROR)
        _ticket, exchange, key, _bits = content.fields
        if isinstance(exchange, bytes) and isinstance(key, bytes):
            pair = shortstr(exchange) + shortstr(key)
            if session.policy.topic_rule(exchange):
                new = channel.approve_key(pair)
            else:
                new = channel.approve_exchange(exchange)
            if new:
                session.remembered(len(pair))
        return None

    # --- decisions ---

    def _decide(
        self, number: int, channel: ChannelState, steps: deque[Step]
    ) -> AmqpError | Fields | None:
        """The first denial, in order, or None. Raises Pending; ``steps`` are then those left.

        Fields: denied, but to be forwarded in this harmless form (see ``Step.harmless``).
        """
        policy, context = self._s.policy, self._s.context
        enough = len(steps) - CHECKED_AT_ONCE
        while steps:
            if len(steps) == enough:
                self.tired = True
                raise Pending
            step = steps[0]
            check = step.check
            detail = b""
            if check is not None:
                if isinstance(check, TopicAccess) and policy.topic_rule(check.exchange):
                    self._settled(channel, check.exchange)
                if check in channel.allowed:
                    steps.popleft()
                    continue
                decision = policy.check(check, number)
                if decision is None:
                    raise Pending
                if decision.allowed:
                    # A publish's keys are remembered once, with their exchange, for the scanner.
                    if not isinstance(check, TopicAccess):
                        self._allow(channel, check)
                    steps.popleft()
                    continue
                if decision.crashed:
                    return AmqpError(ReplyCode.INTERNAL_ERROR)
                detail = decision.detail
            if step.exists is not None:
                self._settled(channel, step.exists)
                exists = policy.exchange_exists(step.exists, number)
                if exists is None:
                    raise Pending
                if not exists:
                    return step.harmless or no_exchange(step.exists, context)
            if step.refusal is not None:
                return step.refusal
            if check is not None:
                return access_refused(check, context, detail)
        return None

    @staticmethod
    def _settled(channel: ChannelState, exchange: bytes) -> None:
        """Raises Pending if what this channel sent before is about to make or end the exchange.

        RabbitMQ has done that when it comes to this operation; who asks the broker now may be
        told of the exchange as it was.
        """
        if channel.changing is not None and exchange in channel.changing:
            raise Pending

    def _remember(self, channel: ChannelState, fields: object, judgement: Judgement) -> None:
        effect: Effect | None = judgement.effect
        view, policy = channel.view, self._s.policy
        if isinstance(effect, QueueDeclared):
            self._queue_declared(channel, effect, reads=len(judgement.steps) > 1)
        elif isinstance(effect, ExchangeDeclared):
            number = policy.exchange_changing(effect.name)
            change = PendingExchange(effect.name, effect.type, effect.swallow, number=number)
            channel.change(change, channel.exchange_declares)
        elif isinstance(effect, ExchangeSeen):
            if effect.answered:
                seen = PendingExchange(effect.name, changes=False)
                channel.change(seen, channel.exchange_declares)
        elif isinstance(effect, ExchangeDeleted):
            number = policy.exchange_changing(effect.name)
            change = PendingExchange(effect.name, swallow=effect.swallow, number=number)
            channel.change(change, channel.exchange_deletes)
        elif isinstance(effect, Consumed):
            view.consumers[effect.tag] = effect
            view.tag = None
        elif isinstance(effect, Cancelled):
            view.consumers.pop(effect.tag, None)
            by = Canceller.NO_WAIT if effect.swallow else Canceller.CLIENT
            channel.cancelling(effect.tag, by)

    @staticmethod
    def _queue_declared(
        channel: ChannelState, effect: QueueDeclared, *, reads: bool = False
    ) -> None:
        view = channel.view
        view.sample = None
        view.pending_name = effect.generated
        view.last_queue = None if effect.generated else effect.name
        channel.last_declare = None
        if not effect.generated and not channel.declares:
            # The scanner lets the answer pass, before those of ``declares``.
            channel.named += effect.answered
            channel.queue = effect.name
            return
        pending = PendingDeclare(effect.name, effect.generated, effect.swallow, reads)
        channel.last_declare = pending
        if effect.answered or effect.generated:
            channel.declares.append(pending)

    # --- after the end ---

    def after(self, buf: bytearray, pos: int, end: int) -> int:
        """Client bytes while the connection is not running any more."""
        session = self._s
        if session.state in {State.DRAINING, State.FAILING}:
            session.client_stalled = True
            return pos
        if session.state not in (State.TOLD, State.BROKER_CLOSING):
            return end
        if isinstance(session.error, FatalFrameError):
            return end
        while end - pos >= 8:
            size = int.from_bytes(buf[pos + 3 : pos + 7], "big")
            past = pos + size + 8
            if size > session.lane.frame_max or (past <= end and buf[past - 1] != 0xCE):
                session.state = State.DONE
                return end
            if past > end:
                break
            head = bytes(buf[pos : pos + 3])
            ids = bytes(buf[pos + 7 : pos + 11])
            if head == b"\x01\0\0" and ids == b"\0\x0a\0\x32":
                session.to_client.append(CONNECTION_CLOSE_OK)
            elif head == b"\x01\0\0" and ids == b"\0\x0a\0\x33":
                if session.state is State.BROKER_CLOSING:
                    session.to_broker.append(CONNECTION_CLOSE_OK)
                session.state = State.DONE
                return end
            pos = past
        return pos


def _ids(payload: bytes) -> tuple[int, int]:
    return int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big")
