"""What needs permission: one table of every method that may come from a client.

``judge`` turns a decoded method into a :class:`Judgement`: the questions to ask, in RabbitMQ's
order, what to forward, and what to remember. It knows nothing of users or rules (that is
``policy/``) and nothing of frames. A method that is not in ``TABLE`` is refused, so nothing can
fall through.

One file, although a long one, because it is one table with what fills it: whoever asks what a
method needs should find every method in one place.

Source: ``shared/facts/semantics.md`` section 2 (RabbitMQ 4.3.5, ``rabbit_channel.erl``). What
the gate cannot know is asked on the stricter side and said in the README: permissions on an
alternate or dead-letter exchange are asked although the entity may already exist.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from gatekeeper.errors import AmqpError, ReplyCode, printable
from gatekeeper.model import Access, AnyAccess, Check, Kind, Permission, TopicAccess
from gatekeeper.protocol.erlang import with_error
from gatekeeper.protocol.layouts import Fields
from gatekeeper.protocol.wire import known_table

REPLY_TO: Final = b"amq.rabbitmq.reply-to"
PUBLISH_IDS: Final = (60, 40)

CONFIGURE, WRITE, READ = Permission.CONFIGURE, Permission.WRITE, Permission.READ
QUEUE, EXCHANGE = Kind.QUEUE, Kind.EXCHANGE

EXCHANGE_TYPES: Final = frozenset(
    b"direct fanout topic headers x-local-random x-random x-consistent-hash x-modulus-hash "
    b"x-recent-history x-delayed-message x-jms-topic x-message-deduplication".split()
)
"""Types that a broker may have (built in, or a plugin's). Others are told 406, not 403."""

NO_SERVER_NAMES: Final = {
    b"quorum": b"rabbit_quorum_queue",
    b"stream": b"rabbit_stream_queue",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One question, and what to answer when it is denied.

    check: asked of the policy engine; None: denied whatever the policy says.
    refusal: instead of the access_refused text.
    exists: an exchange that RabbitMQ would have looked up before: if it is missing, the answer
        is 404.
    harmless: where RabbitMQ finds a missing exchange no error: what to forward then, which
        the broker answers alike and which can change nothing.
    """

    check: Check | None
    refusal: AmqpError | None = None
    exists: bytes | None = None
    harmless: Fields | None = None


# Effects: what the session remembers once the method has been forwarded.


@dataclass(frozen=True, slots=True)
class QueueDeclared:
    """name: as it will be called (a sample where the broker makes the name up).

    swallow: the client said no-wait, the broker was asked to answer all the same.
    answered: the broker will answer.
    """

    name: bytes
    generated: bool = False
    swallow: bool = False
    answered: bool = True


@dataclass(frozen=True, slots=True)
class ExchangeDeclared:
    """The exchange may have another type from now on. swallow: as in QueueDeclared."""

    name: bytes
    type: bytes
    swallow: bool


@dataclass(frozen=True, slots=True)
class ExchangeSeen:
    """A passive declare, which changes nothing. answered: the broker will answer."""

    name: bytes
    answered: bool


@dataclass(frozen=True, slots=True)
class ExchangeDeleted:
    """swallow: as in QueueDeclared."""

    name: bytes
    swallow: bool


@dataclass(frozen=True, slots=True)
class Consumed:
    """no_ack: the broker counts a message as done when it has sent it."""

    tag: bytes
    queue: bytes
    no_ack: bool = False


@dataclass(frozen=True, slots=True)
class Cancelled:
    """swallow: the client did not ask for the answer."""

    tag: bytes
    swallow: bool = False


Effect = QueueDeclared | ExchangeDeclared | ExchangeSeen | ExchangeDeleted | Consumed | Cancelled


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a method asks for.

    steps: in order; the first that is denied decides.
    ids, fields: what to forward instead of the client's own bytes, where they differ.
    """

    steps: tuple[Step, ...] = ()
    effect: Effect | None = None
    ids: tuple[int, int] | None = None
    fields: Fields | None = None


class NeedReply(Exception):  # noqa: N818 - not an error: judge again after the broker's answer
    """The meaning depends on a name that the broker has not told yet."""


@dataclass(slots=True)
class ChannelView:
    """What the checks may know of a channel.

    last_queue: the queue that an empty name stands for; None before any declare.
    pending_name: a server-named declare is under way, its name is the last queue.
    sample: the made-up name under judgement (kept, so that judging again asks the same).
    consumers: by consumer tag. tag: the made-up tag that the next consumer without one gets.
    """

    last_queue: bytes | None = None
    pending_name: bool = False
    sample: bytes | None = None
    consumers: dict[bytes, Consumed] = field(default_factory=dict)
    tag: bytes | None = None

    def new_tag(self) -> bytes:
        """A consumer tag, in the broker's manner; the same until a consumer is remembered."""
        if self.tag is None:
            self.tag = b"amq.ctag-" + secrets.token_urlsafe(16).encode()
        return self.tag


@dataclass(frozen=True, slots=True)
class Context:
    """What the checks may know of the connection.

    max_message_size: in bytes; None leaves it to the broker.
    service_user: who the gate is at the broker, to keep that name out of the client's replies.
    """

    vhost: bytes
    username: bytes
    impersonator: bool = False
    max_message_size: int | None = None
    service_user: bytes | None = None


def refuse(code: ReplyCode, explanation: bytes) -> AmqpError:
    return AmqpError(code, explanation)


def access_refused(check: Check, context: Context, detail: bytes = b"") -> AmqpError:
    """403 with RabbitMQ 4.3's text (``rabbit_access_control:check_access``)."""
    vhost, user = printable(context.vhost), printable(context.username)
    if isinstance(check, TopicAccess):
        what = b"topic '%b' in exchange '%b'" % (
            printable(check.routing_key),
            printable(check.exchange),
        )
        permission = check.permission.encode()
    else:
        name = check.name
        if check.kind is EXCHANGE and not name:
            name = b"amq.default"
        what = b"%b '%b'" % (check.kind.encode(), printable(name))
        permission = (CONFIGURE if isinstance(check, AnyAccess) else check.permission).encode()
    text = b"%b access to %b in vhost '%b' refused for user '%b'" % (permission, what, vhost, user)
    return refuse(ReplyCode.ACCESS_REFUSED, with_error(text, detail))


def no_exchange(name: bytes, context: Context) -> AmqpError:
    text = b"no exchange '%b' in vhost '%b'" % (printable(name), printable(context.vhost))
    return refuse(ReplyCode.NOT_FOUND, text)


def unimplemented() -> AmqpError:
    return refuse(ReplyCode.COMMAND_INVALID, b"unimplemented method")


def _strip(name: bytes) -> bytes:
    """RabbitMQ removes CR and LF from some names (``strip_cr_lf``), wherever they stand."""
    return name.translate(None, b"\r\n")


def _default_exchange() -> Step:
    return Step(
        None, refuse(ReplyCode.ACCESS_REFUSED, b"operation not permitted on the default exchange")
    )


def _reserved(kind: Kind, name: bytes) -> Step:
    text = b"%b name '%b' contains reserved prefix 'amq.*'" % (kind.encode(), printable(name))
    return Step(None, refuse(ReplyCode.ACCESS_REFUSED, text))


def _last_queue(view: ChannelView) -> bytes:
    if view.pending_name:
        raise NeedReply
    if view.last_queue is None:
        raise refuse(ReplyCode.NOT_FOUND, b"no previously declared queue")
    return view.last_queue


def as_bytes(value: object) -> bytes:
    assert isinstance(value, bytes)  # noqa: S101 - the layout says so
    return value


def as_int(value: object) -> int:
    assert isinstance(value, int)  # noqa: S101 - the layout says so
    return value


# --- exchanges ------------------------------------------------------------------------------


def _exchange_declare(fields: Fields, _view: ChannelView, _context: Context) -> Judgement:
    ticket, raw, kind, bits, table = fields
    kind, bits = as_bytes(kind), as_int(bits)
    passive, nowait = bits & 1, bits & 16
    name = _strip(as_bytes(raw))
    steps: list[Step] = []
    if passive:
        if not name:
            return Judgement((_default_exchange(),))
        steps.append(Step(AnyAccess(EXCHANGE, name)))
        sent = (ticket, name, kind, bits, table) if name != raw else None
        return Judgement(tuple(steps), ExchangeSeen(name, not nowait), None, sent)
    unknown = None
    if kind not in EXCHANGE_TYPES:
        text = b"unknown exchange type '%b'" % printable(kind)
        unknown = refuse(ReplyCode.PRECONDITION_FAILED, text)
    if not name:
        return Judgement((replace(_default_exchange(), refusal=unknown),) if unknown else
                         (_default_exchange(),))  # fmt: skip
    steps.append(Step(Access(CONFIGURE, EXCHANGE, name), unknown))
    # A reserved name either exists (then only equivalence is compared) or is refused by the
    # broker before the alternate exchange is looked at: nothing can be created under it.
    if not name.startswith(b"amq."):
        other = known_table(as_bytes(table)).get(b"alternate-exchange")
        if other is not None and other[0] == "S":
            steps.append(Step(Access(READ, EXCHANGE, name)))
            steps.append(Step(Access(WRITE, EXCHANGE, as_bytes(other[1]))))
    # The answer is always waited for: only it tells when the type may have changed.
    sent = (ticket, name, kind, bits & ~16, table) if name != raw or nowait else None
    return Judgement(tuple(steps), ExchangeDeclared(name, kind, bool(nowait)), None, sent)


def _exchange_delete(fields: Fields, _view: ChannelView, context: Context) -> Judgement:
    ticket, raw, bits = fields
    name, bits = _strip(as_bytes(raw)), as_int(bits)
    if not name:
        return Judgement((_default_exchange(),))
    if name.startswith(b"amq."):
        text = b"deletion of system exchange '%b' in vhost '%b' not allowed"
        text %= (printable(name), printable(context.vhost))
        return Judgement((Step(None, refuse(ReplyCode.ACCESS_REFUSED, text)),))
    nowait = bits & 2
    sent = (ticket, name, bits & ~2) if name != raw or nowait else None
    step = Step(Access(CONFIGURE, EXCHANGE, name))
    return Judgement((step,), ExchangeDeleted(name, bool(nowait)), None, sent)


def _exchange_binding(fields: Fields, *, unbind: bool) -> Judgement:
    ticket, destination, source, key, *rest = fields
    target, origin = _strip(as_bytes(destination)), _strip(as_bytes(source))
    steps = [Step(Access(WRITE, EXCHANGE, target))]
    if not target or not origin:
        return Judgement((*steps, _default_exchange()))
    harmless = (ticket, target, _no_exchange_name(), key, *rest) if unbind else None
    steps += _read_source(origin, as_bytes(key), harmless)
    changed = target != destination or origin != source
    sent = (ticket, target, origin, key, *rest) if changed else None
    return Judgement(tuple(steps), None, None, sent)


def _no_exchange_name() -> bytes:
    """The name of an exchange that does not exist, and that nobody can guess and create."""
    return b"gatekeeper.missing." + secrets.token_urlsafe(16).encode()


def _read_source(exchange: bytes, key: bytes, harmless: Fields | None) -> list[Step]:
    return [
        Step(Access(READ, EXCHANGE, exchange)),
        Step(TopicAccess(READ, exchange, key), None, exchange, harmless),
    ]


def _exchange_bind(fields: Fields, _view: ChannelView, _context: Context) -> Judgement:
    return _exchange_binding(fields, unbind=False)


def _exchange_unbind(fields: Fields, _view: ChannelView, _context: Context) -> Judgement:
    return _exchange_binding(fields, unbind=True)


# --- queues ---------------------------------------------------------------------------------


def _queue_declare(fields: Fields, view: ChannelView, context: Context) -> Judgement:
    ticket, raw, bits, table = fields
    raw, bits = as_bytes(raw), as_int(bits)
    passive, nowait = bits & 1, bits & 16
    name = _strip(raw)
    sent = (ticket, name, bits, table) if name != raw else None
    if raw.startswith(REPLY_TO):
        # A pseudo-queue (direct reply-to): RabbitMQ asks for no permission, passive or not.
        return Judgement((), QueueDeclared(name, answered=not nowait), None, sent)
    if passive:
        step = Step(AnyAccess(QUEUE, name))
        if not name:
            text = b"no queue '' in vhost '%b'" % printable(context.vhost)
            return Judgement((step, Step(None, refuse(ReplyCode.NOT_FOUND, text))))
        return Judgement((step,), QueueDeclared(name, answered=not nowait), None, sent)
    if name.startswith(b"amq."):
        return Judgement((_reserved(QUEUE, name),))
    arguments = known_table(as_bytes(table))
    refusal = None
    generated = not name
    effect = QueueDeclared(name, answered=not nowait)
    if generated:
        # The broker makes the name up; a name of the same shape is judged now and the real one
        # when it is known, so the answer is always waited for.
        name = view.sample or b"amq.gen-" + secrets.token_urlsafe(16).encode()
        view.sample = name
        kind = arguments.get(b"x-queue-type", ("", b""))[1]
        # Any type of value may stand there, some of which cannot even be looked up.
        if isinstance(kind, bytes) and kind in NO_SERVER_NAMES:
            text = b"Cannot declare a server-named queue for type " + NO_SERVER_NAMES[kind]
            refusal = refuse(ReplyCode.PRECONDITION_FAILED, text)
        effect = QueueDeclared(name, generated=True, swallow=bool(nowait))
        sent = (ticket, b"", bits & ~16, table) if nowait or raw else None
    steps = [Step(Access(CONFIGURE, QUEUE, name), refusal)]
    dead_letter = arguments.get(b"x-dead-letter-exchange")
    if dead_letter is not None and dead_letter[0] == "S":
        steps.append(Step(Access(READ, QUEUE, name)))
        steps.append(Step(Access(WRITE, EXCHANGE, as_bytes(dead_letter[1]))))
    return Judgement(tuple(steps), effect, None, sent)


def _queue_binding(fields: Fields, view: ChannelView, *, unbind: bool) -> Judgement:
    ticket, queue, source, key, *rest = fields
    queue, key = as_bytes(queue), as_bytes(key)
    name, routing_key = queue, key
    if not queue:
        name = _last_queue(view)
        routing_key = key or name
    name, origin = _strip(name), _strip(as_bytes(source))
    if name.startswith(REPLY_TO + b"."):
        text = b"cannot bind or unbind to a volatile (direct reply-to) queue"
        return Judgement((Step(None, refuse(ReplyCode.ACCESS_REFUSED, text)),))
    steps = [Step(Access(WRITE, QUEUE, name))]
    if not origin:
        return Judgement((*steps, _default_exchange()))
    # A name that strips to nothing means the queue '', not the last declared one: RabbitMQ
    # strips after it expands, so such a name must go out as it came.
    target = name or queue
    harmless = (ticket, target, _no_exchange_name(), routing_key, *rest) if unbind else None
    steps += _read_source(origin, routing_key, harmless)
    changed = target != queue or origin != source or routing_key != key
    sent = (ticket, target, origin, routing_key, *rest) if changed else None
    return Judgement(tuple(steps), None, None, sent)


def _queue_bind(fields: Fields, view: ChannelView, _context: Context) -> Judgement:
    return _queue_binding(fields, view, unbind=False)


def _queue_unbind(fields: Fields, view: ChannelView, _context: Context) -> Judgement:
    return _queue_binding(fields, view, unbind=True)


def _queue_purge(fields: Fields, view: ChannelView, _context: Context) -> Judgement:
    ticket, raw, bits = fields
    name = as_bytes(raw) or _last_queue(view)
    sent = (ticket, name, bits) if name != raw else None
    return Judgement((Step(Access(READ, QUEUE, name)),), None, None, sent)


def _queue_delete(fields: Fields, view: ChannelView, _context: Context) -> Judgement:
    ticket, raw, bits = fields
    expanded = as_bytes(raw) or _last_queue(view)
    name = _strip(expanded)
    target = name or expanded  # as in _queue_binding
    sent = (ticket, target, bits) if target != raw else None
    return Judgement((Step(Access(CONFIGURE, QUEUE, name)),), None, None, sent)


# --- basic ----------------------------------------------------------------------------------


def _basic_consume(fields: Fields, view: ChannelView, _context: Context) -> Judgement:
    ticket, raw, tag, bits, table = fields
    tag = as_bytes(tag)
    name = as_bytes(raw) or _last_queue(view)
    if tag in view.consumers:
        text = b"attempt to reuse consumer tag '%b'" % printable(tag)
        return Judgement((Step(None, refuse(ReplyCode.NOT_ALLOWED, text)),))
    steps = () if name == REPLY_TO else (Step(Access(READ, QUEUE, name)),)
    # A tag for the broker to make up is made up here: it would not tell a no-wait consumer's tag,
    # nor which of two consumers it answers first, and who has no tag cannot be cancelled.
    made = tag or view.new_tag()
    sent = (ticket, name, made, bits, table) if name != raw or made != tag else None
    return Judgement(steps, Consumed(made, name, bool(as_int(bits) & 2)), None, sent)


def _basic_get(fields: Fields, view: ChannelView, _context: Context) -> Judgement:
    return _queue_purge(fields, view, _context)


def _basic_cancel(fields: Fields, _view: ChannelView, _context: Context) -> Judgement:
    """The broker is always asked to answer: else nobody could tell which consumer of a tag that
    is used again it cancels on its own."""
    tag, bits = fields
    nowait = bool(as_int(bits) & 1)
    return Judgement((), Cancelled(as_bytes(tag), nowait), None, (tag, 0) if nowait else None)


def _basic_cancel_ok(fields: Fields, _view: ChannelView, _context: Context) -> Judgement:
    """RabbitMQ 4.3.0 on: a client's cancel-ok cancels that consumer, without an answer.

    Sent on as a cancel, which older brokers know too.
    """
    tag = as_bytes(fields[0])
    return Judgement((), Cancelled(tag, swallow=True), (60, 30), (tag, 0))


def _free(_fields: Fields, _view: ChannelView, _context: Context) -> Judgement:
    """Needs no permission; whatever else may be wrong with it is the broker's to say."""
    return Judgement()


Judge = Callable[[Fields, ChannelView, Context], Judgement]

TABLE: Final[Mapping[tuple[int, int], Judge]] = {
    (20, 20): _free,  # channel.flow
    (30, 10): _free,  # access.request
    (40, 10): _exchange_declare,
    (40, 20): _exchange_delete,
    (40, 30): _exchange_bind,
    (40, 40): _exchange_unbind,
    (50, 10): _queue_declare,
    (50, 20): _queue_bind,
    (50, 30): _queue_purge,
    (50, 40): _queue_delete,
    (50, 50): _queue_unbind,
    (60, 10): _free,  # basic.qos
    (60, 20): _basic_consume,
    (60, 30): _basic_cancel,
    (60, 31): _basic_cancel_ok,
    (60, 70): _basic_get,
    (60, 80): _free,  # basic.ack
    (60, 90): _free,  # basic.reject
    (60, 100): _free,  # basic.recover-async
    (60, 110): _free,  # basic.recover
    (60, 120): _free,  # basic.nack
    (85, 10): _free,  # confirm.select
    (90, 10): _free,  # tx.select
    (90, 20): _free,  # tx.commit
    (90, 30): _free,  # tx.rollback
}
"""Methods on an open channel. channel.open, close, close-ok and basic.publish (which needs its
content header, see ``publishing.py``) are the session's; all others are refused."""


REPEATABLE: Final = frozenset(
    ids for ids, handler in TABLE.items() if handler in {_free, _queue_purge, _basic_get}
)
"""Methods that mean the same whenever they come, where they name their queue: what such a method
asks for follows from its octets alone. Where they do not, it is not their octets that go out."""


def judge(ids: tuple[int, int], fields: Fields, view: ChannelView, context: Context) -> Judgement:
    """The judgement on a method; raises NeedReply, or AmqpError where no question arises."""
    handler = TABLE.get(ids)
    if handler is None:
        raise unimplemented()
    judgement = handler(fields, view, context)
    if judgement.fields is not None and judgement.ids is None:
        return replace(judgement, ids=ids)
    return judgement
