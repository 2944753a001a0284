"""The session's questions, put to the policy engine and to what is known of the broker.

The session asks and never waits: a question whose answer takes time gets None, the answer is
kept here when it comes, and ``resume`` has the session judge the same frame again, which then
finds it. An answer counts once, and only under the epoch that it was asked in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar, cast

from gatekeeper.errors import AmqpError, ReplyCode, printable
from gatekeeper.model import Check, Decision, Identity, Peer
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.epoch import Epoch
from gatekeeper.server.exchanges import Exchanges
from gatekeeper.server.lines import ConnectionLines
from gatekeeper.server.tasks import Owner

_T = TypeVar("_T")
_CRASHED = Decision(False, "internal error", crashed=True)


class Authority:
    """Implements ``protocol.session.SessionPolicy`` for one connection.

    resume: called when an outstanding answer has come.
    """

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
        self.channel_limit_reached = channel_limit
        self._answers: dict[Hashable, tuple[int, object]] = {}
        self._asked: set[Hashable] = set()
        self.resume: Callable[[], None] = lambda: None

    def check(self, check: Check) -> Decision | None:
        return self._answer(
            check, lambda: self._engine.check(self._identity, self._vhost, check), _CRASHED
        )

    def exchange_exists(self, exchange: bytes) -> bool | None:
        return self._answer(
            ("exists", exchange), lambda: self._exchanges.exists(self._vhost, exchange), True
        )

    def topic_rule(self, exchange: bytes) -> bool:
        return self._engine.topic_rule(self._identity, self._vhost, exchange)

    def update_secret(self, secret: bytes, reason: bytes) -> AmqpError | bool | None:
        """No backend of now has credentials that expire: any secret is taken, and the user must
        still have access to the vhost (RabbitMQ 4.3: ``rabbit_reader`` on update-secret)."""
        decision = self._answer(("update-secret",), self._vhost_access, _CRASHED)
        if decision is None:
            return None
        if decision.allowed:
            self._lines.updated_secret(reason)
            return True
        return vhost_refused(self._vhost, self._identity.username, decision)

    def _vhost_access(self) -> Decision | Awaitable[Decision]:
        return self._engine.vhost_access(self._identity, self._vhost, self._peer)

    def exchange_changing(self, exchange: bytes) -> int:
        return self._exchanges.changing(self._vhost, exchange)

    def exchange_changed(self, exchange: bytes, kind: bytes | None, change: int) -> None:
        self._exchanges.changed(self._vhost, exchange, kind, change)

    def refused(self, channel: int, error: AmqpError) -> None:
        self._lines.refused(channel, error)

    def consumer_cancelled(self, channel: int, tag: bytes, queue: bytes) -> None:
        self._lines.consumer_cancelled(channel, tag, queue)

    def _answer(
        self, key: Hashable, ask: Callable[[], _T | Awaitable[_T]], failed: _T
    ) -> _T | None:
        """failed: the answer where a question ends in an exception."""
        if key in self._asked:
            return None
        kept = self._answers.pop(key, None)
        if kept is not None and kept[0] == self._epoch.value:
            return cast("_T", kept[1])
        answer = ask()
        if not isinstance(answer, Awaitable):
            return answer
        self._asked.add(key)
        self._owner.start(self._settle(key, self._epoch.value, answer, failed))
        return None

    async def _settle(
        self, key: Hashable, epoch: int, pending: Awaitable[object], answer: object
    ) -> None:
        """epoch: when the question was asked. answer: where it ends in an exception."""
        try:
            answer = await pending
        finally:  # whatever has happened: a client must not wait for an answer for ever
            self._asked.discard(key)
            self._answers[key] = (epoch, answer)
            self.resume()


def vhost_refused(vhost: bytes, user: bytes, decision: Decision) -> AmqpError:
    """530 as connection.open gives it (``rabbit_access_control:check_vhost_access``)."""
    text = b"access to vhost '%b' refused for user '%b'" % (printable(vhost), printable(user))
    return AmqpError(ReplyCode.NOT_ALLOWED, text + decision.detail, 10, 40)
