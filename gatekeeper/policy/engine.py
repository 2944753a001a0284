"""Who may log in, and what may they do: RabbitMQ's composition of backends.

Source of every rule: ``rabbit_access_control``. Login tries the configured pairs in order
until one accepts. Afterwards every authorisation backend of the pair that accepted must say
yes, in configured order; the first that does not decides.

The engine answers at once where all backends it asks do, and gives an awaitable otherwise:
the internal database must not cost a task switch per check. It does no I/O, and it turns
whatever a backend may do (refuse, fail, raise, answer nonsense) into a refusal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from typing import TypeVar

from gatekeeper.model import (
    DEFAULT_EXCHANGE_ALIAS,
    Access,
    AnyAccess,
    AuthUser,
    Check,
    Credentials,
    Decision,
    Identity,
    Kind,
    Peer,
    Permission,
    Secret,
    TopicAccess,
)
from gatekeeper.policy.answers import (
    EngineCrash,
    LoginRefused,
    NonsenseError,
    crash,
    decided,
    of_login,
    shown,
)
from gatekeeper.policy.pairs import Pair
from gatekeeper.policy.pcre import Pattern
from gatekeeper.policy.permissions import TopicPatterns
from gatekeeper.policy.ports import (
    Accepted,
    AuthzBackend,
    ExchangeTypes,
    ExpiringBackend,
    Failed,
    LoginAnswer,
    PatternBackend,
    Refused,
    TagSource,
    Verdict,
)

DEFAULT_LOOPBACK_USERS = frozenset({b"guest"})

_ANY_ORDER = (Permission.READ, Permission.WRITE, Permission.CONFIGURE)

_T = TypeVar("_T")
_Ask = Callable[[AuthzBackend, AuthUser], Verdict | Awaitable[Verdict]]
_Attempt = Callable[[Pair, Credentials, Peer], Awaitable[Identity | LoginRefused]]


class _InternalError(Exception):
    """Inside a login: give up the whole chain, as an Erlang crash does."""


class Engine:
    """The composition of backends.

    pairs: ``auth_backends`` in order. exchange_types: what is known of the broker's exchanges.
    loopback_users: names (after authentication) that may only log in from loopback.
    Raises ValueError where two different backends carry the same name.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        exchange_types: ExchangeTypes,
        loopback_users: Collection[bytes] = DEFAULT_LOOPBACK_USERS,
    ) -> None:
        self._pairs = tuple(pairs)
        self._exchange_types = exchange_types
        self._loopback_users = frozenset(loopback_users)
        self._authz: dict[str, AuthzBackend] = {}
        self._tag_sources: dict[str, TagSource] = {}
        for pair in self._pairs:
            for backend in pair.authz:
                if self._authz.setdefault(backend.name, backend) is not backend:
                    raise ValueError(f"two authorisation backends are named {backend.name}")
            for source in (pair.authn, *pair.authz):
                if isinstance(source, TagSource):
                    self._tag_sources.setdefault(source.name, source)
        self._expiring = {
            name: backend
            for name, backend in self._authz.items()
            if isinstance(backend, ExpiringBackend)
        }

    # -- login ---------------------------------------------------------------------------

    async def login(self, credentials: Credentials, peer: Peer) -> Identity | LoginRefused:
        """Authenticate and authorise a login; the last refusal is the one reported.

        Source: rabbit_access_control:check_user_login, check_user_loopback.
        """
        return await self._log_in(credentials, peer, self._try)

    async def identify(self, username: bytes, peer: Peer) -> Identity | LoginRefused:
        """As :meth:`login` of somebody whose credentials are right: only the authorisation
        backends are asked, of the first pair whose backends all know the user.

        INVARIANT: for explanations alone; nobody may be let in by it.
        """
        return await self._log_in(Credentials("", username), peer, self._known)

    async def _log_in(
        self, credentials: Credentials, peer: Peer, attempt: _Attempt
    ) -> Identity | LoginRefused:
        user = shown(credentials.username)
        result: Identity | LoginRefused = LoginRefused(f"No modules checked '{user}'")
        try:
            for pair in self._pairs:
                result = await attempt(pair, credentials, peer)
                if isinstance(result, Identity):
                    break
        except Exception as error:  # noqa: BLE001 - whatever a backend raises is a refusal
            return LoginRefused(
                f"User '{user}' authentication failed with internal error. "
                "Enable debug logs to see the real error.",
                error,
            )
        if isinstance(result, Identity) and not self._may_connect_from(result, peer):
            return LoginRefused(
                f"user '{shown(result.username)}' can only connect via localhost", loopback=True
            )
        return result

    def _may_connect_from(self, identity: Identity, peer: Peer) -> bool:
        return peer.loopback or identity.username not in self._loopback_users

    async def _try(
        self, pair: Pair, credentials: Credentials, peer: Peer
    ) -> Identity | LoginRefused:
        answer: LoginAnswer = await _settled(pair.authn.authenticate(credentials, peer))
        accepted = of_login(answer, pair.authn.name, "authenticating", credentials.username)
        if isinstance(accepted, LoginRefused):
            return accepted
        if pair.single:
            grants = ((pair.authn.name, accepted.state),)
            fixed = pair.fixed(pair.authn, accepted)
            return Identity(accepted.username, accepted.tags, grants, pair.tag_sources, fixed)
        return await self._authorize(pair, accepted, credentials, peer)

    async def _known(
        self, pair: Pair, credentials: Credentials, peer: Peer
    ) -> Identity | LoginRefused:
        return await self._authorize(pair, Accepted(credentials.username), credentials, peer)

    @staticmethod
    async def _authorize(
        pair: Pair, authenticated: Accepted, credentials: Credentials, peer: Peer
    ) -> Identity | LoginRefused:
        """Every authorisation backend must accept; RabbitMQ asks the last one first.

        A refusal that leaves other backends unasked makes RabbitMQ crash into its "internal
        error" text and give up the chain (try_authorize folds into a clause that is missing).
        """
        username, tags = authenticated.username, authenticated.tags
        fixed = pair.fixed(pair.authn, authenticated)
        grants: list[tuple[str, object]] = []
        for left, backend in reversed(tuple(enumerate(pair.authz))):
            answer: LoginAnswer = await _settled(
                backend.authorize_login(username, credentials, peer)
            )
            accepted = of_login(answer, backend.name, "authorizing", username)
            if isinstance(accepted, LoginRefused):
                if left:
                    raise _InternalError(accepted.reason)
                return accepted
            tags |= accepted.tags
            fixed |= pair.fixed(backend, accepted)
            grants.insert(0, (backend.name, accepted.state))
        return Identity(username, tags, tuple(grants), pair.tag_sources, fixed)

    def refreshed(self, identity: Identity) -> Identity:
        """The same user with the tags of now; to be called when the epoch has changed.

        RabbitMQ keeps those of the login. A source that fails gives none: a tag only adds rights.
        """
        if not identity.tag_sources:
            return identity
        tags = identity.fixed_tags
        for name in identity.tag_sources:
            with contextlib.suppress(Exception):
                tags |= self._tag_sources[name].tags_now(identity.username)
        return identity if tags == identity.tags else replace(identity, tags=tags)

    # -- access --------------------------------------------------------------------------

    async def vhost_access(self, identity: Identity, vhost: bytes, peer: Peer) -> Decision:
        """May this user open a connection to this vhost?

        Whether the vhost exists, and its limits, are the caller's business, before this.
        Source: rabbit_access_control:check_vhost_access.
        """
        return await _settled(
            self._every(
                identity,
                lambda backend, user: backend.vhost_access(user, vhost, peer),
            )
        )

    def check(
        self, identity: Identity, vhost: bytes, check: Check
    ) -> Decision | Awaitable[Decision]:
        """Judge one check; a Decision at once where no backend needs to wait."""
        if isinstance(check, Access):
            return self._resource(identity, vhost, check.kind, check.name, check.permission)
        if isinstance(check, TopicAccess):
            return self._topic(identity, vhost, check)
        return self._any(identity, vhost, check, _ANY_ORDER)

    # -- credentials that end --------------------------------------------------------------

    def expiry(self, identity: Identity) -> int | None:
        """Unix seconds at which the first of the user's credentials ends; None for never."""
        expiring = self._expiring
        ends = [expiring[name].expiry(state) for name, state in identity.grants if name in expiring]
        return min((at for at in ends if at is not None), default=None)

    async def update_secret(
        self, identity: Identity, secret: Secret
    ) -> Identity | Refused | Failed | EngineCrash:
        """The user with new credentials, for all backends whose old ones end.

        The tags are then those of these backends alone. Whether the user may still use the
        vhost is the caller's question. Source: rabbit_access_control:update_state.
        """
        grants: list[tuple[str, object]] = []
        tags: frozenset[str] = frozenset()
        renewed = False
        for name, state in identity.grants:
            backend = self._expiring.get(name)
            if backend is None or backend.expiry(state) is None:
                grants.append((name, state))
                continue
            try:
                answer = await _settled(backend.update_state(_user(identity, state), secret))
            except Exception as error:  # noqa: BLE001 - a refusal, whatever it is
                return crash(name, error)
            if isinstance(answer, Refused | Failed):
                return answer
            if not isinstance(answer, Accepted):
                return crash(name, NonsenseError(f"answered {type(answer).__name__}"))
            grants.append((name, answer.state))
            tags |= answer.tags
            renewed = True
        if not renewed:
            return replace(identity, grants=tuple(grants))
        return replace(identity, tags=tags, grants=tuple(grants), tag_sources=())

    def topic_rule(self, identity: Identity, vhost: bytes, exchange: bytes) -> bool:
        """Could any topic check refuse here? Where in doubt, yes. Never on the default exchange."""
        if not exchange:
            return False
        for name, state in identity.grants:
            try:
                if self._authz[name].topic_rule(_user(identity, state), vhost, exchange):
                    return True
            except Exception:  # noqa: BLE001 - the check itself will report what is wrong
                return True
        return False

    def topic_patterns(
        self, identity: Identity, vhost: bytes, exchange: bytes
    ) -> TopicPatterns | None:
        """What a :class:`TopicAccess` to write amounts to, until the epoch changes, whatever the
        routing key; None where it does not amount to patterns: ask about each key."""
        try:
            topic = self._exchange_types.is_topic(vhost, exchange)
            if isinstance(topic, Coroutine):
                topic.close()
            if topic is False:
                return TopicPatterns(())
            if topic is not True:
                return None
            variables = {"username": identity.username, "vhost": vhost}
            patterns: tuple[Pattern, ...] = ()
            for name, state in identity.grants:
                backend = self._authz[name]
                if not isinstance(backend, PatternBackend):
                    return None
                of_backend = backend.topic_patterns(
                    _user(identity, state), vhost, exchange, Permission.WRITE, variables
                )
                if of_backend is None:
                    return None
                patterns += of_backend
        except Exception:  # noqa: BLE001 - the check itself will report what is wrong
            return None
        return TopicPatterns(patterns) if identity.grants else None

    def _resource(
        self, identity: Identity, vhost: bytes, kind: Kind, name: bytes, permission: Permission
    ) -> Decision | Awaitable[Decision]:
        if not name and kind is Kind.EXCHANGE:
            name = DEFAULT_EXCHANGE_ALIAS
        return self._every(
            identity,
            lambda backend, user: backend.resource_access(user, vhost, kind, name, permission),
        )

    def _any(
        self, identity: Identity, vhost: bytes, check: AnyAccess, order: tuple[Permission, ...]
    ) -> Decision | Awaitable[Decision]:
        """The first right that is granted; else the refusal of the last one asked."""
        for at, permission in enumerate(order, 1):
            decision = self._resource(identity, vhost, check.kind, check.name, permission)
            if not isinstance(decision, Decision):
                return self._any_later(decision, identity, vhost, check, order[at:])
            if decision.allowed or decision.crashed:
                break
        return decision

    async def _any_later(
        self,
        pending: Awaitable[Decision],
        identity: Identity,
        vhost: bytes,
        check: AnyAccess,
        order: tuple[Permission, ...],
    ) -> Decision:
        decision = await pending
        if decision.allowed or decision.crashed or not order:
            return decision
        return await _settled(self._any(identity, vhost, check, order))

    def _topic(
        self, identity: Identity, vhost: bytes, check: TopicAccess
    ) -> Decision | Awaitable[Decision]:
        if not self.topic_rule(identity, vhost, check.exchange):
            return _NO_TOPIC_RULE
        try:
            topic = self._exchange_types.is_topic(vhost, check.exchange)
        except Exception as error:  # noqa: BLE001 - a refusal, whatever it is
            return crash("exchange types", error)
        if isinstance(topic, bool):
            return self._topic_of_type(identity, vhost, check, topic=topic)
        return self._topic_later(topic, identity, vhost, check)

    async def _topic_later(
        self, pending: Awaitable[bool], identity: Identity, vhost: bytes, check: TopicAccess
    ) -> Decision:
        try:
            topic = await pending
        except Exception as error:  # noqa: BLE001 - a refusal, whatever it is
            return crash("exchange types", error)
        return await _settled(self._topic_of_type(identity, vhost, check, topic=topic))

    def _topic_of_type(
        self, identity: Identity, vhost: bytes, check: TopicAccess, *, topic: bool
    ) -> Decision | Awaitable[Decision]:
        if topic is False:
            return _NOT_A_TOPIC
        variables = {"username": identity.username, "vhost": vhost}
        return self._every(
            identity,
            lambda backend, user: backend.topic_access(
                user, vhost, check.exchange, check.routing_key, check.permission, variables
            ),
        )

    def _every(self, identity: Identity, ask: _Ask) -> Decision | Awaitable[Decision]:
        """Ask the user's backends in order; the first that does not allow decides."""
        return self._every_of(identity, identity.grants, ask, _NO_BACKEND)

    def _every_of(
        self,
        identity: Identity,
        grants: tuple[tuple[str, object], ...],
        ask: _Ask,
        decision: Decision,
    ) -> Decision | Awaitable[Decision]:
        for at, (name, state) in enumerate(grants, 1):
            try:
                answer = ask(self._authz[name], _user(identity, state))
            except Exception as error:  # noqa: BLE001 - a refusal, whatever it is
                return crash(name, error)
            if isinstance(answer, Awaitable):
                return self._every_later(answer, name, identity, grants[at:], ask)
            decision = decided(name, answer)
            if not decision.allowed:
                break
        return decision

    async def _every_later(
        self,
        pending: Awaitable[Verdict],
        name: str,
        identity: Identity,
        grants: tuple[tuple[str, object], ...],
        ask: _Ask,
    ) -> Decision:
        try:
            answer = await pending
        except Exception as error:  # noqa: BLE001 - a refusal, whatever it is
            return crash(name, error)
        decision = decided(name, answer)
        if not decision.allowed:
            return decision
        return await _settled(self._every_of(identity, grants, ask, decision))


_NO_BACKEND = Decision(False, "the user has no authorisation backend")
_NO_TOPIC_RULE = Decision(True, "no topic permission applies")
_NOT_A_TOPIC = Decision(True, "not a topic exchange: topic permissions do not apply")


async def _settled(answer: _T | Awaitable[_T]) -> _T:
    return await answer if isinstance(answer, Awaitable) else answer


def _user(identity: Identity, state: object) -> AuthUser:
    return AuthUser(identity.username, identity.tags, state)
