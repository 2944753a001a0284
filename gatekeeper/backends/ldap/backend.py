"""RabbitMQ's LDAP backend: who can bind is who they say; queries decide the rest.

Strategy: one method a question, each a line of steps over the pool; the reasons and texts are
RabbitMQ's. What RabbitMQ crashes on (a search for the user's DN that fails, an error under
``not``) is raised, and the engine makes of it what RabbitMQ makes of a crash.

Source: ``rabbit_auth_backend_ldap`` (4.3.5), https://www.rabbitmq.com/docs/ldap.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from gatekeeper.backends.ldap import names
from gatekeeper.backends.ldap.connection import Connection
from gatekeeper.backends.ldap.evaluate import REFERRAL, Evaluator, Failure
from gatekeeper.backends.ldap.messages import equality
from gatekeeper.backends.ldap.names import Arguments, Context
from gatekeeper.backends.ldap.pool import (
    BIND_ERROR,
    CONNECT_ERROR,
    EVALUATE_ERROR,
    LOST,
    NO_SERVERS,
    Pool,
    Rejected,
)
from gatekeeper.backends.ldap.trace import Trace
from gatekeeper.config.ldap import AS_USER, Anonymous, BindAs, LdapSettings
from gatekeeper.config.ldap_queries import Query, Scope
from gatekeeper.config.settings import ClientTls
from gatekeeper.errors import BackendError, printable
from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission, Secret, Variables
from gatekeeper.policy.ports import Accepted, Failed, LoginAnswer, Refused, Verdict
from gatekeeper.tls import client_context

NAME = "rabbit_auth_backend_ldap"

_NO_PASSWORD = "\"'other_bind' set to 'as_user' but no password supplied\""  # noqa: S105

_log = structlog.get_logger("default")


@dataclass(frozen=True, slots=True)
class LdapUser:
    """What later checks need. ``password``: only where they bind as the user."""

    dn: bytes
    password: Secret | None = None


class LdapBackend:
    """Authentication and authorisation by a directory."""

    def __init__(self, settings: LdapSettings, pool: Pool, trace: Trace) -> None:
        self._settings = settings
        self._pool = pool
        self._trace = trace
        self._group_base = settings.group_lookup_base or settings.dn_lookup_base or b"none"

    @classmethod
    def from_settings(cls, settings: LdapSettings) -> LdapBackend:
        """Opens no connection yet. Raises ConfigError where the TLS files cannot be used."""
        if settings.servers is None:
            _log.warning("LDAP: auth_ldap.servers is not set; whoever asks this backend is refused")
        trace = Trace(
            _log,
            on=settings.log != "false",
            network=settings.log in ("network", "network_unsafe"),
            unmasked=settings.log == "network_unsafe",
        )
        context = None
        if settings.use_ssl or settings.use_starttls:
            context = client_context(settings.tls or ClientTls(), "auth_ldap.ssl_options")
        return cls(settings, Pool(settings, context, trace), trace)

    @property
    def name(self) -> str:
        return NAME

    async def close(self) -> None:
        await self._pool.close()

    # -- login ---------------------------------------------------------------------------

    async def authenticate(self, credentials: Credentials, peer: Peer) -> LoginAnswer:
        """Raises BackendError where RabbitMQ's login ends with an internal error."""
        username, password = credentials.username, credentials.password
        what = "login" if password is None or password.value else "unauthenticated login"
        self._trace.top(f"CHECK: {what} for %s", username)
        if password is None:
            answer = await self._without_password(username)
        elif not password.value:
            answer = Refused(f"user '{_shown(username)}' - unauthenticated bind not allowed")
        else:
            answer = await self._with_password(username, password)
        self._trace.top(f"DECISION: {what} for %s: %s", username, _decision(answer))
        return answer

    async def authorize_login(
        self, username: bytes, credentials: Credentials, peer: Peer
    ) -> LoginAnswer:
        """The whole login once more, as in RabbitMQ, by the name that was authenticated."""
        renamed = Credentials(credentials.mechanism, username, credentials.password)
        return await self.authenticate(renamed, peer)

    async def _with_password(self, username: bytes, password: Secret) -> LoginAnswer:
        settings = self._settings
        if settings.dn_lookup_attribute is None:
            bind_dn, found = self._bind_name(username), self._escaped_dn(username)
        elif settings.dn_lookup_bind is AS_USER:
            bind_dn, found = self._bind_name(username), None
        else:
            looked_up = await self._pool.run(
                settings.dn_lookup_bind, lambda ldap: self._look_up(ldap, username)
            )
            if not isinstance(looked_up, bytes):
                # RabbitMQ goes on to bind with the error as the name, which fails in its turn.
                again = looked_up if looked_up in (NO_SERVERS, CONNECT_ERROR, LOST) else BIND_ERROR
                return _failed(again)
            bind_dn = found = looked_up

        async def ask(ldap: Connection) -> Accepted | Failure:
            dn = found if found is not None else await self._look_up(ldap, username)
            if isinstance(dn, Failure):
                raise BackendError(f"LDAP: no DN for the user: {dn.reason}")
            if settings.other_bind is AS_USER:
                tags = await self._tags(ldap, username, dn)
                return Accepted(username, tags, LdapUser(dn, password))
            return Accepted(username, state=LdapUser(dn))

        answer = await self._pool.run(BindAs(bind_dn, password), ask)
        return await self._tagged(answer)

    async def _without_password(self, username: bytes) -> LoginAnswer:
        """EXTERNAL and its kin: nobody checks that the user exists, as in RabbitMQ."""
        other = self._settings.other_bind
        if self._settings.servers is None:
            return Failed(NO_SERVERS.reason)
        if not isinstance(other, BindAs | Anonymous):
            return Failed(_NO_PASSWORD)

        async def ask(ldap: Connection) -> Accepted | Failure:
            postbind = self._settings.dn_lookup_bind is AS_USER
            if self._settings.dn_lookup_attribute is None or not postbind:
                return Accepted(username, state=LdapUser(self._escaped_dn(username)))
            dn = await self._look_up(ldap, username)
            if isinstance(dn, Failure):
                raise BackendError(f"LDAP: no DN for the user: {dn.reason}")
            return Accepted(username, state=LdapUser(dn))

        return await self._tagged(await self._pool.run(other, ask))

    async def _tagged(self, answer: Accepted | Rejected | Failure) -> LoginAnswer:
        """Add the tags that are asked for by another bind than the user's."""
        if isinstance(answer, Rejected):
            return Refused(_shown(answer.dn))
        if isinstance(answer, Failure):
            return _failed(answer)
        other = self._settings.other_bind
        if not isinstance(other, BindAs | Anonymous):
            return answer
        user = _state(answer.state)
        tags = await self._pool.run(other, lambda ldap: self._tags(ldap, answer.username, user.dn))
        match tags:
            case Rejected(dn):
                return Refused(_shown(dn))
            case Failure(_, unavailable):
                return Failed(EVALUATE_ERROR.reason, unavailable)
            case _:
                return Accepted(answer.username, tags, user)

    async def _tags(self, ldap: Connection, username: bytes, dn: bytes) -> frozenset[str]:
        """Only a plain yes gives a tag; an error does not."""
        evaluator = self._evaluator(ldap, names.login(username, dn), dn)
        found: set[str] = set()
        for row in self._settings.queries.tags:
            self._trace.step("CHECK: does %s have tag %s?", username, row.tag)
            answer = await evaluator.decide(row.query)
            self._trace.step("DECISION: does %s have tag %s? %s", username, row.tag, answer)
            if answer is True:
                found.add(row.tag)
        return frozenset(found)

    async def _look_up(self, ldap: Connection, username: bytes) -> bytes | Failure:
        """The user's DN by a search; where it finds none or several, the pattern's.

        Raises BackendError where the search fails.
        """
        settings = self._settings
        filled = names.login(username).fill(settings.user_dn_pattern)
        found = await ldap.search(
            settings.dn_lookup_base or b"none",
            Scope.SUBTREE,
            equality(settings.dn_lookup_attribute or b"none", filled),
            b"distinguishedName",
        )
        if found == REFERRAL:
            return REFERRAL
        if isinstance(found, Failure):
            raise BackendError(f"LDAP: the search for the user's DN failed: {found.reason}")
        if len(found) == 1:
            self._trace.step("DN lookup: %s -> %s", username, found[0].dn)
            return found[0].dn
        _log.warning("LDAP: searching for a user's DN", name=_shown(filled), found=len(found))
        return self._escaped_dn(username)

    def _escaped_dn(self, username: bytes) -> bytes:
        return names.login(username).fill_dn(self._settings.user_dn_pattern)

    def _bind_name(self, username: bytes) -> bytes:
        pattern = self._settings.user_bind_pattern
        if pattern is None:
            return self._escaped_dn(username)
        return names.login(username).fill_dn(pattern)

    # -- access --------------------------------------------------------------------------

    async def vhost_access(self, user: AuthUser, vhost: bytes, peer: Peer) -> Verdict:
        arguments = names.vhost_access(user.username, _state(user.state).dn, vhost)
        what = f'access to vhost "{_shown(vhost)}"'
        return await self._decide(self._settings.queries.vhost_access, arguments, user, what)

    async def resource_access(
        self, user: AuthUser, vhost: bytes, kind: Kind, name: bytes, permission: Permission
    ) -> Verdict:
        dn = _state(user.state).dn
        arguments = names.resource_access(user.username, dn, vhost, kind, name, permission)
        what = f'{permission} permission for {kind} "{_shown(name)}" in "{_shown(vhost)}"'
        return await self._decide(self._settings.queries.resource_access, arguments, user, what)

    def topic_rule(self, user: AuthUser, vhost: bytes, exchange: bytes) -> bool:
        """Always: even where the query is a constant, RabbitMQ binds, and refuses if it cannot."""
        return True

    async def topic_access(
        self,
        user: AuthUser,
        vhost: bytes,
        exchange: bytes,
        routing_key: bytes,
        permission: Permission,
        variables: Variables,
    ) -> Verdict:
        dn = _state(user.state).dn
        context: Context = {"routing_key": routing_key, "variable_map": variables}
        arguments = names.resource_access(
            user.username, dn, vhost, "topic", exchange, permission, context
        )
        what = f'{permission} permission for topic "{_shown(exchange)}" in "{_shown(vhost)}"'
        return await self._decide(self._settings.queries.topic_access, arguments, user, what)

    async def _decide(
        self, query: Query, arguments: Arguments, user: AuthUser, what: str
    ) -> Verdict:
        """Raises BackendError where RabbitMQ's check crashes."""
        state = _state(user.state)
        self._trace.top('CHECK: %s for "%s"', what, user.username)
        answer = await self._pool.run(
            self._credentials(state),
            lambda ldap: self._evaluator(ldap, arguments, state.dn).decide(query),
        )
        match answer:
            case Rejected():
                verdict = Verdict(False, "the bind was refused")
            case Failure(reason, unavailable):
                verdict = Verdict(False, what, error=reason, unavailable=unavailable)
            case _:
                verdict = Verdict(answer, what)
        result = verdict.error or ("ok" if verdict.allowed else "denied")
        self._trace.top('DECISION: %s for "%s": %s', what, user.username, result)
        return verdict

    def _credentials(self, state: LdapUser) -> BindAs | Anonymous:
        other = self._settings.other_bind
        if isinstance(other, BindAs | Anonymous):
            return other
        if state.password is None:
            raise BackendError("LDAP: other_bind = as_user, but the user's password is not known")
        return BindAs(state.dn, state.password)

    def _evaluator(self, ldap: Connection, arguments: Arguments, user_dn: bytes) -> Evaluator:
        return Evaluator(ldap, arguments, user_dn, self._group_base, self._trace)


def _state(state: object) -> LdapUser:
    if not isinstance(state, LdapUser):
        raise BackendError("LDAP: the state of another backend")
    return state


def _failed(failure: Failure) -> Failed:
    return Failed(failure.reason, failure.unavailable)


def _decision(answer: LoginAnswer) -> str:
    match answer:
        case Accepted():
            return "ok"
        case Refused():
            return "denied"
        case Failed(reason):
            return reason


def _shown(name: bytes) -> str:
    return printable(name).decode()
