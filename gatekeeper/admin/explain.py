"""Why may this user do that, or not? The decision path of a connection, step by step.

Nothing is decided here. The questions an operation raises are those of ``protocol/checks.py``,
made from the method that a client would send; the answers are the live engine's; and what a
client would be told is made by the functions that tell clients. Only the password is left out.
"""

from __future__ import annotations

import inspect
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from gatekeeper.admin.service import Administration
from gatekeeper.errors import AmqpError, GatekeeperError, ReplyCode, printable
from gatekeeper.model import (
    DEFAULT_EXCHANGE_ALIAS,
    Access,
    Decision,
    Identity,
    Kind,
    Peer,
    Permission,
)
from gatekeeper.policy.answers import LoginRefused
from gatekeeper.policy.explain import asked
from gatekeeper.policy.permissions import check_resource
from gatekeeper.protocol import wire
from gatekeeper.protocol.checks import (
    PUBLISH_IDS,
    TABLE,
    ChannelView,
    Context,
    Step,
    access_refused,
    judge,
    no_exchange,
)
from gatekeeper.protocol.layouts import Fields
from gatekeeper.protocol.methods import BY_NAME
from gatekeeper.protocol.publishing import judge_publish
from gatekeeper.server.authority import vhost_refused

PASSIVE = 1
_LOGIN = (
    b"Login was refused using authentication mechanism PLAIN. For details see the broker logfile."
)


class QuestionError(GatekeeperError):
    """The question makes no sense. One line says why."""


@dataclass(frozen=True, slots=True)
class Question:
    """operation: an AMQP method (``queue.declare``), or ``configure``, ``write`` or ``read``.

    name: of the queue or exchange it is done to; of a binding, the destination.
    kind: of ``name``, where the operation does not tell. source: of a binding, the exchange.
    address: where the client connects from. tags: in addition to those of the backends.
    passive: of a declare. The two exchanges: arguments of a declare.
    """

    user: bytes
    vhost: bytes
    operation: str
    name: bytes
    kind: Kind = Kind.QUEUE
    source: bytes = b""
    routing_key: bytes = b""
    address: str = "127.0.0.1"
    tags: frozenset[str] = frozenset()
    passive: bool = False
    dead_letter_exchange: bytes | None = None
    alternate_exchange: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One step. rule: the pattern or backend that decided. Never a secret."""

    question: str
    allowed: bool
    rule: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The steps up to the first refusal. reply: what the client gets for that, else empty."""

    steps: tuple[Answer, ...]
    reply: str = ""

    @property
    def allowed(self) -> bool:
        return all(step.allowed for step in self.steps)


class _Refused(Exception):  # noqa: N818 - ends the way through the steps, no error
    def __init__(self, error: AmqpError) -> None:
        super().__init__(error)
        self.error = error


async def explain(administration: Administration, question: Question) -> Explanation:
    """Raises QuestionError, StoreError."""
    questions = _questions(question)  # before anything is asked: it may make no sense
    explainer = _Explainer(administration, question)
    try:
        await explainer.connection()
        await explainer.operation(questions)
    except _Refused as refused:
        return Explanation(tuple(explainer.steps), str(refused.error))
    return Explanation(tuple(explainer.steps))


class _Explainer:
    """Goes the way of a client, and keeps what it was told. Raises _Refused at a refusal."""

    def __init__(self, administration: Administration, question: Question) -> None:
        self.steps: list[Answer] = []
        self._administration = administration
        self._question = question
        self._peer = _peer(question.address)
        self._identity = Identity(question.user)

    def _step(self, what: str, rule: str, error: AmqpError | None = None) -> None:
        """error: what the client is told; None where it is allowed."""
        self.steps.append(Answer(what, error is None, rule))
        if error is not None:
            raise _Refused(error)

    async def connection(self) -> None:
        """RabbitMQ's order: login, loopback, vhost, access to it. Limits count connections that
        are open, and are not looked at."""
        question, engine = self._question, self._administration.engine
        what = f"user '{_text(question.user)}' logs in from {question.address}"
        found = await engine.identify(question.user, self._peer)
        if isinstance(found, LoginRefused):
            error = AmqpError(ReplyCode.ACCESS_REFUSED, _LOGIN)
            self._step(what, found.reason, error)
            return
        self._identity = replace(found, tags=found.tags | question.tags)
        backends = ", ".join(name for name, _ in found.grants)
        tags = f"; tags: {', '.join(sorted(self._identity.tags))}" if self._identity.tags else ""
        self._step(what, f"known to {backends}{tags}")
        await self._vhost()

    async def _vhost(self) -> None:
        question, administration = self._question, self._administration
        vhost = await administration.read(administration.store.vhost, question.vhost)
        missing = AmqpError(
            ReplyCode.NOT_ALLOWED, b"vhost %b not found" % printable(question.vhost)
        )
        what = f"vhost '{_text(question.vhost)}'"
        if vhost is None:
            self._step(what, "it does not exist", missing)
        self._step(what, "it exists")
        decision = await administration.engine.vhost_access(
            self._identity, question.vhost, self._peer
        )
        error = vhost_refused(question.vhost, self._identity.username, decision)
        self._decided(f"access to {what}", decision, error)

    def _decided(self, what: str, decision: Decision, error: AmqpError) -> None:
        if decision.crashed:
            error = AmqpError(ReplyCode.INTERNAL_ERROR)
        self._step(what, decision.rule, None if decision.allowed else error)

    async def operation(self, questions: Callable[[Context], tuple[Step, ...]]) -> None:
        username = self._identity.username
        context = Context(self._question.vhost, username, "impersonator" in self._identity.tags)
        try:
            steps = questions(context)
        except AmqpError as error:
            self._step(self._question.operation, "not possible as it is", error)
            return
        if not steps:
            self._step(self._question.operation, "needs no permission")
        for step in steps:
            await self._check(step, context)

    async def _check(self, step: Step, context: Context) -> None:
        """As ``protocol/fromclient.py`` decides a step."""
        if step.check is None:
            error = step.refusal or AmqpError(ReplyCode.INTERNAL_ERROR)
            what = self._question.operation
            self._step(what, "refused whatever the permissions", error)
            return
        pending = self._administration.engine.check(self._identity, context.vhost, step.check)
        decision: Decision = await pending if inspect.isawaitable(pending) else pending
        error = step.refusal or access_refused(step.check, context, decision.detail)
        if not decision.allowed and not decision.crashed and step.exists is not None:
            exists = await self._administration.exchange_exists(context.vhost, step.exists)
            error = error if exists else no_exchange(step.exists, context)
        self._decided(asked(step.check), decision, error)


def _peer(address: str) -> Peer:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        raise QuestionError(f"{address!r} is no IP address") from None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return Peer(str(ip), 0, loopback=(mapped or ip).is_loopback)


# --- operations ---


def _questions(question: Question) -> Callable[[Context], tuple[Step, ...]]:
    """What the operation asks, as soon as it is known who does it. Raises QuestionError."""
    operation = question.operation
    if operation in set(Permission):
        step = Step(Access(Permission(operation), question.kind, question.name))
        return lambda _context: (step,)
    method = BY_NAME.get(operation)
    ids = None if method is None else (method.class_id, method.method_id)
    if ids is None or (ids not in TABLE and ids != PUBLISH_IDS):
        known = ", ".join([*Permission, *OPERATIONS])
        raise QuestionError(f"unknown operation {operation!r}; use one of {known}")
    made = OPERATIONS.get(operation)
    if made is None:
        return lambda _context: ()
    fields, view = made(question), ChannelView()
    if ids == PUBLISH_IDS:
        return lambda context: judge_publish(fields, 0, wire.Properties(), view, context)
    return lambda context: judge(ids, fields, view, context).steps


def _arguments(question: Question) -> bytes:
    named = (
        (b"x-dead-letter-exchange", question.dead_letter_exchange),
        (b"alternate-exchange", question.alternate_exchange),
    )
    return wire.table((key, ("S", value)) for key, value in named if value is not None)


def _declared(question: Question) -> int:
    return PASSIVE if question.passive else 0


OPERATIONS: Mapping[str, Callable[[Question], Fields]] = MappingProxyType(
    {
        "exchange.declare": lambda q: (0, q.name, b"direct", _declared(q), _arguments(q)),
        "exchange.delete": lambda q: (0, q.name, 0),
        "exchange.bind": lambda q: (0, q.name, q.source, q.routing_key, 0, b""),
        "exchange.unbind": lambda q: (0, q.name, q.source, q.routing_key, 0, b""),
        "queue.declare": lambda q: (0, q.name, _declared(q), _arguments(q)),
        "queue.bind": lambda q: (0, q.name, q.source, q.routing_key, 0, b""),
        "queue.unbind": lambda q: (0, q.name, q.source, q.routing_key, b""),
        "queue.purge": lambda q: (0, q.name, 0),
        "queue.delete": lambda q: (0, q.name, 0),
        "basic.publish": lambda q: (0, q.name, q.routing_key, 0),
        "basic.consume": lambda q: (0, q.name, b"explained", 0, b""),
        "basic.get": lambda q: (0, q.name, 0),
    }
)
"""The methods that need permissions, as a client would send them; those that need none follow
from ``TABLE``."""


# --- the other way round ---


@dataclass(frozen=True, slots=True)
class Able:
    """A user of the internal store for whom it is allowed, and by which rule."""

    user: bytes
    rule: str


def who_can(
    administration: Administration, vhost: bytes, permission: Permission, kind: Kind, name: bytes
) -> Iterator[Able]:
    """Read as it is consumed: for a thread. Raises NoSuchVhostError, StoreError."""
    if not name and kind is Kind.EXCHANGE:
        name = DEFAULT_EXCHANGE_ALIAS
    for user, _, permissions in administration.store.list_permissions(vhost):
        verdict = check_resource(permissions, permission, name)
        if verdict.allowed:
            yield Able(user, verdict.rule)


def _text(name: bytes) -> str:
    return printable(name).decode()
