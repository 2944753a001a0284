"""What a session asks of the outside, which answers now or later."""

from __future__ import annotations

from typing import Protocol

from gatekeeper.errors import AmqpError
from gatekeeper.model import Check, Decision


class Epoch(Protocol):
    """One number for the whole policy; it changes with every change of any of it."""

    @property
    def value(self) -> int: ...

    @property
    def changes(self) -> int:
        """This one does not change where what was granted has only grown old."""


class RoutingKeys(Protocol):
    """Those with which an exchange may be written to, as long as the policy stands.

    prefix: all that begin with it are allowed, and no others; None: only ``allows`` tells.
    """

    @property
    def prefix(self) -> bytes | None: ...

    def allows(self, routing_key: bytes, /) -> bool: ...


class SessionPolicy(Protocol):
    """What the session asks of the outside. None: the answer will come, call again then.

    channel: whose frame asks, or BROKER; an answer that took time is for that frame.
    """

    def check(self, check: Check, channel: int) -> Decision | None: ...

    def exchange_exists(self, exchange: bytes, channel: int) -> bool | None: ...

    def topic_rule(self, exchange: bytes) -> bool:
        """Can the routing key matter on this exchange?"""

    def routing_keys(self, exchange: bytes) -> RoutingKeys | None:
        """What :meth:`check` answers about any routing key that is written to the exchange; None:
        ask about each. Where a topic rule could apply, and something was allowed at once."""

    def open_channel(self, channel: int) -> AmqpError | bool | None:
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

    def settled(self, channel: int) -> None:
        """Its frame that had to wait is decided: the answers count for no other frame."""

    def rights_changed(self) -> None:
        """What was granted is about to be asked again: no :meth:`recheck` of before counts."""

    def recheck(self, check: Check) -> Decision | None:
        """As :meth:`check`, for no frame: the answer counts whatever is settled meanwhile."""

    def may_impersonate(self) -> bool:
        """Has the user the tag impersonator now? Asked whenever the epoch has changed."""

    def refused(self, channel: int, error: AmqpError) -> None:
        """For the log: an operation was refused, or the connection is closed for an error."""

    def consumer_cancelled(self, channel: int, tag: bytes, queue: bytes, cause: str) -> None:
        """For the log: read access refused after ``cause``."""
