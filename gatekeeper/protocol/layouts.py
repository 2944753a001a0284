"""How the arguments of every AMQP 0-9-1 method, RabbitMQ's extensions included, are laid out.

A layout is a string with a letter a field, in the order of the wire:

``o`` octet, ``b`` octet of bits, ``s`` short, ``l`` long, ``q`` longlong, ``n`` short string,
``S`` long string, ``t`` field table (kept as its raw content, already read through once).

Reading is strict, as RabbitMQ's generated parser is: nothing missing, nothing left over, every
table well formed, every short string of a method without content UTF-8.
Source: AMQP 0-9-1 XML definition; RabbitMQ ``rabbit_framing_amqp_0_9_1:decode_method_fields``.
"""

from __future__ import annotations

from typing import Final

from gatekeeper.errors import AmqpError, GatekeeperError, ReplyCode
from gatekeeper.protocol.wire import (
    Utf8Error,
    WireError,
    check_utf8,
    known_table,
    longstr,
    method,
    shortstr,
)

Field = int | bytes
Fields = tuple[Field, ...]

PUBLISH: Final = (60, 40)

LAYOUTS: Final[dict[tuple[int, int], str]] = {
    (10, 10): "ootSS",  # connection.start
    (10, 11): "tnSn",  # connection.start-ok
    (10, 20): "S",  # connection.secure
    (10, 21): "S",  # connection.secure-ok
    (10, 30): "sls",  # connection.tune
    (10, 31): "sls",  # connection.tune-ok
    (10, 40): "nnb",  # connection.open
    (10, 41): "n",  # connection.open-ok
    (10, 50): "snss",  # connection.close
    (10, 51): "",  # connection.close-ok
    (10, 60): "n",  # connection.blocked
    (10, 61): "",  # connection.unblocked
    (10, 70): "Sn",  # connection.update-secret
    (10, 71): "",  # connection.update-secret-ok
    (20, 10): "n",  # channel.open
    (20, 11): "S",  # channel.open-ok
    (20, 20): "b",  # channel.flow
    (20, 21): "b",  # channel.flow-ok
    (20, 40): "snss",  # channel.close
    (20, 41): "",  # channel.close-ok
    (30, 10): "nb",  # access.request
    (30, 11): "s",  # access.request-ok
    (40, 10): "snnbt",  # exchange.declare
    (40, 11): "",  # exchange.declare-ok
    (40, 20): "snb",  # exchange.delete
    (40, 21): "",  # exchange.delete-ok
    (40, 30): "snnnbt",  # exchange.bind
    (40, 31): "",  # exchange.bind-ok
    (40, 40): "snnnbt",  # exchange.unbind
    (40, 51): "",  # exchange.unbind-ok
    (50, 10): "snbt",  # queue.declare
    (50, 11): "nll",  # queue.declare-ok
    (50, 20): "snnnbt",  # queue.bind
    (50, 21): "",  # queue.bind-ok
    (50, 30): "snb",  # queue.purge
    (50, 31): "l",  # queue.purge-ok
    (50, 40): "snb",  # queue.delete
    (50, 41): "l",  # queue.delete-ok
    (50, 50): "snnnt",  # queue.unbind (no bits)
    (50, 51): "",  # queue.unbind-ok
    (60, 10): "lsb",  # basic.qos
    (60, 11): "",  # basic.qos-ok
    (60, 20): "snnbt",  # basic.consume
    (60, 21): "n",  # basic.consume-ok
    (60, 30): "nb",  # basic.cancel
    (60, 31): "n",  # basic.cancel-ok
    (60, 40): "snnb",  # basic.publish
    (60, 50): "snnn",  # basic.return
    (60, 60): "nqbnn",  # basic.deliver
    (60, 70): "snb",  # basic.get
    (60, 71): "qbnnl",  # basic.get-ok
    (60, 72): "n",  # basic.get-empty
    (60, 80): "qb",  # basic.ack
    (60, 90): "qb",  # basic.reject
    (60, 100): "b",  # basic.recover-async
    (60, 110): "b",  # basic.recover
    (60, 111): "",  # basic.recover-ok
    (60, 120): "qb",  # basic.nack
    (60, 200): "nlb",  # basic.credit
    (60, 201): "l",  # basic.credit-ok
    (60, 202): "nl",  # basic.credit-drained
    (85, 10): "b",  # confirm.select
    (85, 11): "",  # confirm.select-ok
    (90, 10): "",  # tx.select
    (90, 11): "",  # tx.select-ok
    (90, 20): "",  # tx.commit
    (90, 21): "",  # tx.commit-ok
    (90, 30): "",  # tx.rollback
    (90, 31): "",  # tx.rollback-ok
}

WITH_CONTENT: Final = frozenset({PUBLISH, (60, 50), (60, 60), (60, 71)})

_LOOKED_INTO: Final = {
    ids: tuple(
        (at, letter)
        for at, letter in enumerate(layout)
        if letter == "t" or (letter == "n" and ids not in WITH_CONTENT)
    )
    for ids, layout in LAYOUTS.items()
}
"""Which fields of a method have something to get wrong, and their letters: tables, texts."""


class Abort(GatekeeperError):  # noqa: N818 - an order to the caller
    """The peer must be dropped without a close method, as RabbitMQ's reader crashes would.

    Source: unknown method ids and malformed field tables end RabbitMQ's reader process.
    """


def decode(channel: int, ids: tuple[int, int], data: bytes) -> Fields:
    """The fields of a client's method. ``data`` is what follows the ids.

    Raises Abort for an unknown method and for a malformed table on a channel; AmqpError (501 on
    a channel, 541 on channel 0) for arguments that do not fit their layout.
    """
    layout = LAYOUTS.get(ids)
    if layout is None:
        raise Abort(f"unknown method {ids[0]}.{ids[1]}")
    try:
        fields = _read(data, layout)
    except WireError:
        if channel == 0:
            raise AmqpError(ReplyCode.INTERNAL_ERROR) from None
        shown = ",".join(map(str, data[:128]))
        explanation = f"cannot decode <<{shown}>>".encode()
        raise AmqpError(ReplyCode.FRAME_ERROR, explanation, *ids) from None
    try:
        for at, letter in _LOOKED_INTO[ids]:
            field = fields[at]
            if isinstance(field, int):
                continue
            if letter == "t":
                known_table(field)
            elif not field.isascii():
                check_utf8(field)
    except Utf8Error:
        explanation = b"Malformed UTF-8 in shortstr"
        raise AmqpError(
            ReplyCode.FRAME_ERROR, explanation, *(ids if channel == 0 else (0, 0))
        ) from None
    except WireError as error:
        if channel == 0:
            raise AmqpError(ReplyCode.INTERNAL_ERROR) from None
        raise Abort(f"malformed table in method {ids[0]}.{ids[1]}: {error}") from None
    return fields


def _read(data: bytes, layout: str) -> Fields:
    """The fields as they lie there. Raises WireError where one is cut short or some is left over.

    Positions only grow, so one look at the last of them tells of every field that was cut short.
    """
    fields: list[Field] = []
    pos = 0
    for letter in layout:
        size = _SIZES.get(letter)
        if size is None:
            begin = pos + (1 if letter == "n" else 4)
            stop = begin + int.from_bytes(data[pos:begin], "big")
            fields.append(data[begin:stop])
        else:
            stop = pos + size
            fields.append(int.from_bytes(data[pos:stop], "big"))
        pos = stop
    if pos != len(data):
        raise WireError("arguments cut short, or more than the arguments")
    return tuple(fields)


def encode(channel: int, ids: tuple[int, int], fields: Fields) -> bytes:
    """A whole method frame: the inverse of :func:`decode`."""
    parts = []
    for letter, field in zip(LAYOUTS[ids], fields, strict=True):
        if isinstance(field, bytes):
            parts.append(shortstr(field) if letter == "n" else longstr(field))
        else:
            parts.append(field.to_bytes(_SIZES[letter], "big"))
    return method(channel, *ids, b"".join(parts))


_SIZES: Final = {"o": 1, "b": 1, "s": 2, "l": 4, "q": 8}
