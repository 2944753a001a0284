"""The session's questions, put to the policy engine and to what is known of the broker.

The session asks and never waits: a question whose answer takes time gets None, the answer is
kept when it comes (``questions.py``), and ``resume`` has the session judge the same frame again,
which then finds it. An answer counts for that channel until that frame is settled, however often
it is judged again for other questions, and only until the policy changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import TypeVar

from gatekeeper.errors import AmqpError, ReplyCode, printable
from gatekeeper.model import Check, Decision, Identity, Peer, Secret
from gatekeeper.policy.answers import EngineCrash
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.epoch import Epoch
from gatekeeper.policy.ports import Failed, Refused
from gatekeeper.protocol.erlang import erlang_string, with_error
from gatekeeper.protocol.ports import RoutingKeys
from gatekeeper.server.exchanges import Exchanges
from gatekeeper.server.lines import ConnectionLines
from gatekeeper.server.questions import Questions
from gatekeeper.server.registry import ChannelPlace, Live, Registry
from gatekeeper.server.tasks import Owner

_T = TypeVar("_T")
_CHANNEL = ("channel",)
_UNKNOWN: ChannelPlace = "unknown"
_CRASHED = Decision(False, "internal error", crashed=True)


class Authority:
    """Implements ``protocol.ports.SessionPolicy`` for one connection.

    channel_limit: the user's, as of now.
    renewed: called with the user as a new secret makes it; the name stays.
    """

    __slots__ = (
        "_channel_limit",
        "_engine",
        "_epoch",
        "_exchanges",
        "_identity",
        "_lines",
        "_live",
        "_owner",
        "_peer",
        "_questions",
        "_rechecks",
        "_registry",
        "_vhost",
        "renewed",
    )

    def __init__(
        self,
        *,
        engine: Engine,
        exchanges: Exchanges,
        epoch: Epoch,
        owner: Owner,
        identity: Identity,
        vhost: bytes,
        peer: Peer,
        lines: ConnectionLines,
        registry: Registry,
        live: Live,
        channel_limit: Callable[[], int | None],
    ) -> None:
        self._engine = engine
        self._exchanges = exchanges
        self._epoch = epoch
        self._owner = owner
        self._identity = identity
        self._vhost = vhost
        self._peer = peer
        self._lines = lines
        self._registry = registry
        self._live = live
        self._channel_limit = channel_limit
        self._questions = Questions(owner, lambda: None)
        self._rechecks: Questions | None = None
        self.renewed: Callable[[Identity], None] = lambda _identity: None

    @property
    def resume(self) -> Callable[[], None]:
        """Called when an outstanding answer has come."""
        return self._questions.resume

    @resume.setter
    def resume(self, resume: Callable[[], None]) -> None:
        self._questions.resume = resume

    def check(self, check: Check, channel: int) -> Decision | None:
        return self._answer(
            channel, check, lambda: self._engine.check(self._identity, self._vhost, check), _CRASHED
        )

    def exchange_exists(self, exchange: bytes, channel: int) -> bool | None:
        return self._answer(
            channel,
            ("exists", exchange),
            lambda: self._exchanges.exists(self._vhost, exchange),
            True,
        )

    def topic_rule(self, exchange: bytes) -> bool:
        return self._engine.topic_rule(self._identity, self._vhost, exchange)

    def routing_keys(self, exchange: bytes) -> RoutingKeys | None:
        return self._engine.topic_patterns(self._identity, self._vhost, exchange)

    def open_channel(self, channel: int) -> AmqpError | bool | None:
        """The text of the refusal is ``rabbit_reader``'s."""
        limit, live = self._channel_limit(), self._live
        place = self._answer(
            channel, _CHANNEL, lambda: self._registry.channel_place(live, limit), _UNKNOWN
        )
        if place is None:
            return None
        if place == "granted":
            self._registry.channel_opened(live)
            return True
        if place == "reached" and limit is not None:
            text = b"number of channels opened for user '%b' has reached the maximum allowed "
            text = text % printable(live.user) + b"user limit of %d" % limit
            return AmqpError(ReplyCode.NOT_ALLOWED, text)
        return AmqpError(ReplyCode.CONNECTION_FORCED, b"channel limits cannot be checked now")

    def channel_ended(self) -> None:
        self._registry.channel_ended(self._live)

    def update_secret(self, secret: bytes, reason: bytes) -> AmqpError | bool | None:
        """From here on the user is judged by the new secret; backends whose credentials do not
        end take any (RabbitMQ 4.3: ``rabbit_reader`` on update-secret)."""
        crashed: Identity | AmqpError = AmqpError(ReplyCode.INTERNAL_ERROR)
        answer = self._answer(0, ("update-secret",), lambda: self._renewed(Secret(secret)), crashed)
        if isinstance(answer, Identity):
            self._identity = answer
            self.renewed(answer)
            self._lines.updated_secret(reason)
            return True
        return answer

    async def _renewed(self, secret: Secret) -> Identity | AmqpError:
        """The user with the new secret, who must still have access to the vhost."""
        identity = await self._engine.update_secret(self._identity, secret)
        match identity:
            case Identity():
                decision = await self._engine.vhost_access(identity, self._vhost, self._peer)
                if decision.allowed:
                    return identity
                if decision.crashed:
                    return AmqpError(ReplyCode.INTERNAL_ERROR)
                return vhost_refused(self._vhost, identity.username, decision)
            case Refused(reason):
                self._lines.secret_refused(erlang_string(reason))
                text = b"New secret was refused by one of the backends"
                return AmqpError(ReplyCode.NOT_ALLOWED, text)
            case Failed(reason):
                self._lines.secret_failed(reason)
                return AmqpError(ReplyCode.NOT_ALLOWED, b"Secret update failed")
            case EngineCrash():
                return AmqpError(ReplyCode.INTERNAL_ERROR)

    def exchange_changing(self, exchange: bytes) -> int:
        return self._exchanges.changing(self._vhost, exchange)

    def exchange_changed(self, exchange: bytes, kind: bytes | None, change: int) -> None:
        self._exchanges.changed(self._vhost, exchange, kind, change)

    def settled(self, channel: int) -> None:
        self._questions.settled(channel)

    def refused(self, channel: int, error: AmqpError) -> None:
        self._lines.refused(channel, error)

    def rights_changed(self) -> None:
        self._rechecks = None  # whoever still waits for an answer of before will not be heard
        self._identity = self._engine.refreshed(self._identity)

    def recheck(self, check: Check) -> Decision | None:
        """The epoch is not looked at: another change begins another recheck."""
        if self._rechecks is None:
            self._rechecks = Questions(self._owner, self._questions.resume)
        ask = partial(self._engine.check, self._identity, self._vhost, check)
        return self._rechecks.ask(0, check, 0, ask, _CRASHED)

    def may_impersonate(self) -> bool:
        self._identity = self._engine.refreshed(self._identity)
        return "impersonator" in self._identity.tags

    def consumer_cancelled(self, channel: int, tag: bytes, queue: bytes, cause: str) -> None:
        self._lines.consumer_cancelled(channel, tag, queue, cause)

    def _answer(
        self, channel: int, key: Hashable, ask: Callable[[], _T | Awaitable[_T]], failed: _T
    ) -> _T | None:
        return self._questions.ask(channel, key, self._epoch.changes, ask, failed)


def vhost_refused(vhost: bytes, user: bytes, decision: Decision) -> AmqpError:
    """530 as connection.open gives it (``rabbit_access_control:check_vhost_access``)."""
    text = b"access to vhost '%b' refused for user '%b'" % (printable(vhost), printable(user))
    return AmqpError(ReplyCode.NOT_ALLOWED, with_error(text, decision.detail), 10, 40)
