"""What a basic.publish needs: it is judged with its content header, when its content is whole.

Source: ``shared/facts/semantics.md`` section 2.2, in the order of RabbitMQ 4.3.5. Of what the
broker checks itself, only what it would find *before* a denial of the gate's is looked at here,
because then that is the client's answer.
"""

from __future__ import annotations

import re
from typing import Final

from gatekeeper.errors import AmqpError, ReplyCode, printable
from gatekeeper.model import Access, Kind, Permission, TopicAccess
from gatekeeper.protocol.checks import (
    REPLY_TO,
    ChannelView,
    Context,
    Step,
    as_bytes,
    as_int,
    refuse,
)
from gatekeeper.protocol.layouts import Fields
from gatekeeper.protocol.wire import RABBIT_TYPES, Properties

WRITE, EXCHANGE = Permission.WRITE, Kind.EXCHANGE


def judge_publish(
    fields: Fields,
    body_size: int,
    properties: Properties | None,
    view: ChannelView,
    context: Context,
) -> tuple[Step, ...]:
    """The steps of a basic.publish with its content header (semantics.md 2.2, order of 4.3.5).

    properties: None where they are malformed.
    """
    _ticket, raw, key, bits = fields
    exchange = as_bytes(raw)
    if as_int(bits) & 2:
        return (Step(None, refuse(ReplyCode.NOT_IMPLEMENTED, b"immediate=true")),)
    limit = context.max_message_size
    if limit is not None and body_size > limit:
        text = b"message size %d is larger than configured max size %d" % (body_size, limit)
        return (Step(None, refuse(ReplyCode.PRECONDITION_FAILED, text)),)
    steps = [Step(Access(WRITE, EXCHANGE, exchange))]
    if properties is None:
        crash = AmqpError(ReplyCode.INTERNAL_ERROR)
        return (*steps, Step(None, crash, exchange or None))
    # What the broker would say before it comes to topics and user-id; it only matters where
    # those are denied, else the broker says it itself.
    earlier = _earlier_error(properties, view)
    cc, bcc = properties.cc, properties.bcc
    if exchange:
        routes = [as_bytes(key)]
        routes += cc if isinstance(cc, list) else []
        routes += bcc if isinstance(bcc, list) else []
        steps += [Step(TopicAccess(WRITE, exchange, r), earlier, exchange) for r in routes]
    user_id = properties.user_id
    if user_id is not None and user_id != context.username and not context.impersonator:
        text = b"user_id property set to '%b' but authenticated user was '%b'"
        text %= (printable(user_id), printable(context.username))
        refusal = earlier or refuse(ReplyCode.PRECONDITION_FAILED, text)
        steps.append(Step(None, refusal, exchange or None))
    return tuple(steps)


def _earlier_error(properties: Properties, view: ChannelView) -> AmqpError | None:
    if properties.reply_to == REPLY_TO and all(
        consumed.queue != REPLY_TO for consumed in view.consumers.values()
    ):
        return refuse(ReplyCode.PRECONDITION_FAILED, b"fast reply consumer does not exist")
    if properties.expiration is not None:
        reason = expiration_error(properties.expiration)
        if reason:
            text = b"invalid expiration '%b': %b" % (printable(properties.expiration), reason)
            return refuse(ReplyCode.PRECONDITION_FAILED, text)
    for key, value in ((b"CC", properties.cc), (b"BCC", properties.bcc)):
        if isinstance(value, str):
            kind = RABBIT_TYPES[value].encode()
            text = b'invalid message: {unacceptable_type_in_header,"%b",%b}' % (key, kind)
            return refuse(ReplyCode.PRECONDITION_FAILED, text)
    return None


_NUMBER: Final = re.compile(rb"[+-]?[0-9]+")
MAX_EXPIRATION_MS: Final = 315_360_000_000


def expiration_error(value: bytes) -> bytes | None:
    """Why RabbitMQ refuses an expiration (``rabbit_basic:parse_expiration``), or None."""
    match = _NUMBER.match(value)
    if match is None:
        return b"no_integer"
    rest = value[match.end() :]
    if rest:
        return b'{leftover_string,"%b"}' % rest
    number = int(match.group())
    if number < 0:
        return b"{value_negative,%d}" % number
    if number > MAX_EXPIRATION_MS:
        return b"{value_too_large,%d}" % number
    return None
