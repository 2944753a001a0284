"""The state of one channel, as the session keeps it on top of what the scanner needs.

A mode is where the channel stands between the three parties. Only OPEN (0) may use the fast
lane. The life of a refusal (semantics.md 1.13, DESIGN section 4)::

    OPEN --denied--> [SWALLOWING its content] --> REFUSING: channel.close went to the broker
    REFUSING --broker's close-ok--> AWAIT_OK: the client was told; its frames are dropped
    REFUSING --broker's own close crosses--> BROKER_CLOSED: the client was told the broker's
    AWAIT_OK --client's close-ok--> gone, the number is free

What the gate itself has to send on a channel cannot go out in the middle of a content of which
a part is at the broker already: it is kept (``deferred``) and the channel is FINISHING.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from gatekeeper.errors import AmqpError
from gatekeeper.model import Access, AnyAccess
from gatekeeper.protocol.checks import REPEATABLE, ChannelView, Effect, QueueDeclared, Step
from gatekeeper.protocol.frames import Channel
from gatekeeper.protocol.layouts import Fields
from gatekeeper.protocol.ports import RoutingKeys

MAX_REMEMBERED = 32_768
"""The weight of the permissions that one connection remembers on all its channels, 1 and 1 more for
every 64 octets of each; when full all are forgotten. At most 4 MiB, and 1.5 KiB for each channel
that remembers any."""

AN_OBJECT = 224
"""Octets of a permission that is remembered as an object, besides its name's."""

PARKED = 4
"""A bit of ``expect``: the channel waits for an answer (``parking.py``)."""

MAX_METHOD = 512
"""Octets of a method that is worth remembering."""

MAX_UNANSWERED = 1000
"""What one client may have sent of what the gate must know the broker's answer to: declares,
deletes of exchanges, cancels. A client that does not read holds those answers up."""

_NOTHING: frozenset[Access | AnyAccess] = frozenset()


class Canceller(enum.Enum):
    """Who has sent a basic.cancel, and so whom its answer is for."""

    CLIENT = enum.auto()
    NO_WAIT = enum.auto()  # the client, who did not ask for an answer
    GATE = enum.auto()


class Mode(enum.IntEnum):
    OPEN = 0
    UNOPENED = 1  # created by its first frame, which must turn out to be channel.open
    SWALLOWING = 2  # a refused publish's content is still coming
    REFUSING = 3  # channel.close sent to the broker, its close-ok is awaited
    AWAIT_OK = 4  # channel.close sent to the client, its close-ok is awaited
    CLOSING = 5  # the client's channel.close went to the broker
    BROKER_CLOSED = 6  # the broker's channel.close went to the client
    FINISHING = 7  # open; when the content under way is complete, ``deferred`` goes out


@dataclass(slots=True)
class Content:
    """A content method whose header or body is still to come.

    held: the method frame, not forwarded yet.
    refusal: to be raised when the content is complete, as RabbitMQ judges it then.
    steps: questions that are still open, None before the header has been judged. A header may
        hold thousands of routes, which must not all be asked again after every late answer.
    """

    ids: tuple[int, int]
    fields: Fields
    held: bytes
    refusal: AmqpError | None = None
    discard: bool = False
    steps: deque[Step] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PendingDeclare:
    """A queue.declare that the broker has not answered. reads: the dead-letter rule applies."""

    name: bytes
    generated: bool
    swallow: bool
    reads: bool


@dataclass(frozen=True, slots=True)
class PendingExchange:
    """An exchange.declare or delete that the broker has not answered.

    kind: the type that is declared; None where nothing is declared.
    changes: not a passive declare. number: of the change, as the policy counts it.
    """

    name: bytes
    kind: bytes | None = None
    swallow: bool = False
    changes: bool = True
    number: int = 0


class Tally:
    """count: what the broker has not answered, on all channels of a connection."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


T = TypeVar("T")


class Fifo(Generic[T]):
    """A queue that costs next to nothing while it is empty, as most are on an idle channel.

    tally: counts what is in it, with others.
    """

    __slots__ = ("_items", "_tally")

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._items: deque[T] | None = None

    def __bool__(self) -> bool:
        return bool(self._items)

    def append(self, item: T) -> None:
        if self._items is None:
            self._items = deque()
        self._items.append(item)
        self._tally.count += 1

    def first(self) -> T:
        """Raises IndexError where it is empty."""
        if self._items is None:
            raise IndexError("first of an empty Fifo")
        return self._items[0]

    def popleft(self) -> T:
        item = self.first()
        if self._items is not None:
            self._items.popleft()
            self._tally.count -= 1
            if not self._items:
                self._items = None
        return item

    def clear(self) -> None:
        if self._items is not None:
            self._tally.count -= len(self._items)
            self._items = None


class ChannelState(Channel):
    """allowed: checks that were granted. topical: exchanges that may be written to, and where the
    routing key matters: with which keys, None where each is asked about. named_before: payloads of
    granted queue.declare, with what they mean. declares and the like: what the broker has not
    answered.
    """

    __slots__ = (
        "_tally",
        "allowed",
        "cancels",
        "changing",
        "content",
        "declares",
        "deferred",
        "error",
        "exchange_declares",
        "exchange_deletes",
        "last_declare",
        "named_before",
        "topical",
        "view",
    )

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.mode = Mode.UNOPENED
        self.view = ChannelView()
        self.content: Content | None = None
        self.allowed: set[Access | AnyAccess] | frozenset[Access | AnyAccess] = _NOTHING
        self.named_before: dict[bytes, QueueDeclared] | None = None
        self.topical: dict[bytes, RoutingKeys | None] | None = None
        self.declares: Fifo[PendingDeclare] = Fifo(tally)
        self.last_declare: PendingDeclare | None = None
        self.exchange_declares: Fifo[PendingExchange] = Fifo(tally)
        self.exchange_deletes: Fifo[PendingExchange] = Fifo(tally)
        self.changing: dict[bytes, int] | None = None
        self.deferred: list[bytes] | None = None
        self.cancels: dict[bytes, Fifo[Canceller]] | None = None
        self._tally = tally
        self.error: AmqpError | None = None

    @property
    def in_service(self) -> bool:
        return self.mode in {Mode.OPEN, Mode.FINISHING}

    def forget_all(self) -> None:
        """Drop every approval."""
        self.forget()
        self.allowed = _NOTHING
        self.named_before = None
        self.topical = None

    def allow(self, check: Access | AnyAccess) -> int:
        """Remember that it was granted: the octets of it; 0 if that was known."""
        if check in self.allowed:
            return 0
        if not isinstance(self.allowed, set):
            self.allowed = set()
        self.allowed.add(check)
        return AN_OBJECT + len(check.name)

    def approve_route(self, exchange: bytes, key: bytes, keys: RoutingKeys | None) -> bool:
        """Remember that ``key`` was granted, and with it what else ``keys`` says; False if that was
        known."""
        prefix = None if keys is None else keys.prefix
        begins = prefix is not None and key.startswith(prefix)
        if prefix is not None and begins and self.approve_prefix(exchange, prefix):
            return True
        return self.approve_key(b"%c%b%c%b" % (len(exchange), exchange, len(key), key))

    def approve(self, payload: bytes, ids: tuple[int, int], effect: Effect | None) -> int:
        """Remember that a method was granted, forwarded as it came, if the same octets will mean
        the same next time: the octets that this takes; 0 if not, or if that was known."""
        if len(payload) > MAX_METHOD:
            return 0
        if effect is None:
            return len(payload) if ids in REPEATABLE and self.approve_method(payload) else 0
        if not isinstance(effect, QueueDeclared) or effect.generated:
            return 0
        if self.named_before is None:
            self.named_before = {}
        known = payload in self.named_before
        self.named_before[payload] = effect
        return 0 if known else AN_OBJECT + len(payload) + len(effect.name)

    def cancelling(self, tag: bytes, by: Canceller) -> None:
        """The broker was sent a basic.cancel, and will answer."""
        if self.cancels is None:
            self.cancels = {}
        if tag not in self.cancels:
            self.cancels[tag] = Fifo(self._tally)
        self.cancels[tag].append(by)

    def cancelled(self, tag: bytes) -> Canceller | None:
        """The broker has answered the oldest cancel of the tag: whose was it? None: there is
        none."""
        if self.cancels is None or tag not in self.cancels:
            return None
        by = self.cancels[tag].popleft()
        if not self.cancels[tag]:
            del self.cancels[tag]
            self.cancels = self.cancels or None
        return by

    def change(self, pending: PendingExchange, queue: Fifo[PendingExchange]) -> None:
        """The broker was sent something that may change what the exchange is."""
        queue.append(pending)
        if pending.changes:
            if self.changing is None:
                self.changing = {}
            self.changing[pending.name] = self.changing.get(pending.name, 0) + 1

    def unanswered(self) -> Iterator[PendingExchange]:
        """The channel has ended, no answer is awaited any more: the changes of exchanges that the
        broker never came to, once."""
        self.declares.clear()
        for cancels in (self.cancels or {}).values():
            cancels.clear()
        self.cancels = None
        for queue in (self.exchange_declares, self.exchange_deletes):
            while (pending := self.changed(queue)) is not None:
                if pending.changes:
                    yield pending

    def changed(self, queue: Fifo[PendingExchange]) -> PendingExchange | None:
        """The broker has answered the oldest of ``queue``; None if there is none."""
        if not queue:
            return None
        pending = queue.popleft()
        if pending.changes and self.changing is not None:
            left = self.changing.pop(pending.name) - 1
            if left:
                self.changing[pending.name] = left
            elif not self.changing:
                self.changing = None
        return pending
