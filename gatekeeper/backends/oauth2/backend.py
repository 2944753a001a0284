"""RabbitMQ's OAuth 2 backend behind the engine's ports.

The password is the token; the name that the client gives does not matter. A login may have to
wait for keys, a check never does. Every check looks at the clock: an expired token allows nothing
even before its connection has been closed.
Source: ``rabbit_auth_backend_oauth2`` (4.3.5).
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable, Mapping

import structlog

from gatekeeper.backends.oauth2 import claims
from gatekeeper.backends.oauth2.claims import TokenRefusedError
from gatekeeper.backends.oauth2.keys import KeyRing
from gatekeeper.backends.oauth2.scopes import VhostScopes
from gatekeeper.backends.oauth2.token import (
    MALFORMED,
    MalformedTokenError,
    TokenState,
    Unverified,
    verified,
)
from gatekeeper.config.oauth2 import ALGORITHMS, BACKEND, OAuth2Settings, ResourceServer
from gatekeeper.errors import BackendError
from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission, Secret, Variables
from gatekeeper.policy.ports import Accepted, Failed, LoginAnswer, Refused, Verdict

_REFUSED = "Authentication using an OAuth 2/JWT token failed: "
_AUDIENCE_REFUSED = "Authentication using OAuth 2/JWT token failed: "
_KNOWN_ALGORITHMS = frozenset(name for names in ALGORITHMS.values() for name in names)
_NO_TOKEN = Verdict(False, error="no token")
START_WAIT = 2.0
"""Seconds that providers may hold up the start."""

_log = structlog.get_logger("default")


class OAuth2Backend:
    """Authentication and authorisation by tokens; the state of a user is a TokenState.

    clock: Unix seconds.
    """

    def __init__(
        self,
        settings: OAuth2Settings,
        rings: Mapping[str, KeyRing],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._rings = rings
        self._clock = clock
        self._username_claims = frozenset(
            name
            for server in settings.servers.values()
            for name in server.preferred_username_claims
        )

    @classmethod
    def from_settings(cls, settings: OAuth2Settings) -> OAuth2Backend:
        """Raises ConfigError for a file that cannot be used, ImportError for a missing library."""
        return cls(settings, key_rings(settings))

    @property
    def name(self) -> str:
        return BACKEND

    async def start(self) -> None:
        """Fetch what the providers publish, so that the first login need not wait.

        A provider that cannot be reached is a warning: the next token asks it again.
        """
        for problem in await unreachable(self._rings, within=START_WAIT):
            _log.warning(problem)

    async def problems(self) -> list[str]:
        """For ``--check-config``: what :meth:`start` warns of, as lines with a remedy."""
        remedy = "; check the URL, the network and the https options"
        return [line + remedy for line in await unreachable(self._rings)]

    # --- login ---

    async def authenticate(self, credentials: Credentials, peer: Peer) -> LoginAnswer:
        try:
            state = await self._state(credentials.password)
        except _AudienceError as error:
            return Refused(f"{_AUDIENCE_REFUSED}{{error,{error}}}")
        except TokenRefusedError as error:
            return Refused(f"{_REFUSED}{error}")
        expired = state.expired(self._clock())
        if expired is not None:
            _log.error(expired)
            return Refused(f'{_REFUSED}"{expired}"')
        return Accepted(state.username, state.tags, state)

    async def authorize_login(
        self, username: bytes, credentials: Credentials, peer: Peer
    ) -> LoginAnswer:
        """Whoever authenticated the user, the password must be a token; its tags do not count."""
        answer = await self.authenticate(credentials, peer)
        return Accepted(username, state=answer.state) if isinstance(answer, Accepted) else answer

    def expiry(self, state: object) -> int | None:
        """Unix seconds at which the token ends; None for never."""
        return state.expires_at if isinstance(state, TokenState) else None

    async def update_state(self, user: AuthUser, secret: Secret) -> LoginAnswer:
        """A new token for the same user. One that has expired is taken, as in RabbitMQ: it
        allows nothing, so that the check of the vhost that follows refuses it."""
        try:
            state = await self._state(secret)
        except _AudienceError as error:
            return Failed(str(error))
        except TokenRefusedError as error:
            return Refused(f"{_REFUSED}{error}")
        if not isinstance(user.state, TokenState):
            return Failed("no token")
        if user.state.username_by(state.server) != state.username_by(state.server):
            return Refused("Not allowed to change username on refreshed token")
        return Accepted(user.username, state.tags, state)

    async def _state(self, secret: Secret | None) -> TokenState:
        """A token that somebody who may has signed for us; expired or not.

        Raises TokenRefusedError; ClaimsError and other ValueErrors for claims of odd shapes.
        """
        token, server = self._addressed(secret)
        provider = self._rings[server.provider].provider
        try:
            token.check_header(_KNOWN_ALGORITHMS)
        except MalformedTokenError:
            raise TokenRefusedError("provided token is invalid") from None
        key = await self._rings[server.provider].find(token.key_id)
        allowed = provider.algorithms
        usable = [name for name in key.algorithms if allowed is None or name in allowed]
        payload = verified(token, key.key, usable)
        scopes = claims.scopes(payload, server)
        return TokenState.of(payload, server, scopes, self._username_claims)

    def _addressed(self, secret: Secret | None) -> tuple[Unverified, ResourceServer]:
        """The token, unverified, and whom it says it is for."""
        try:
            token = Unverified.of(b"" if secret is None else secret.value)
            return token, claims.resource_server(token.claims, self._settings)
        except MalformedTokenError:
            raise _AudienceError(MALFORMED) from None
        except TokenRefusedError as error:
            raise _AudienceError(*error.args) from None

    # --- access ---

    def vhost_access(self, user: AuthUser, vhost: bytes, peer: Peer) -> Verdict:
        return self._judge(user, vhost, lambda scopes: scopes.vhost_access)

    def resource_access(
        self, user: AuthUser, vhost: bytes, kind: Kind, name: bytes, permission: Permission
    ) -> Verdict:
        return self._judge(user, vhost, lambda scopes: scopes.resource_access(name, permission))

    def topic_rule(self, user: AuthUser, vhost: bytes, exchange: bytes) -> bool:
        return not isinstance(user.state, TokenState) or user.state.permissions(vhost).topic_rule(
            exchange
        )

    def topic_access(
        self,
        user: AuthUser,
        vhost: bytes,
        exchange: bytes,
        routing_key: bytes,
        permission: Permission,
        variables: Variables,
    ) -> Verdict:
        return self._judge(
            user, vhost, lambda scopes: scopes.topic_access(exchange, routing_key, permission)
        )

    def _judge(self, user: AuthUser, vhost: bytes, ask: Callable[[VhostScopes], bool]) -> Verdict:
        state = user.state
        if not isinstance(state, TokenState):
            return _NO_TOKEN
        expired = state.expired(self._clock())
        if expired is not None:
            _log.error(expired)
            return Verdict(False, "the token has expired", error=f'"{expired}"')
        allowed = ask(state.permissions(vhost))
        return Verdict(allowed, "a scope of the token" if allowed else "no scope of the token")


class _AudienceError(TokenRefusedError):
    """Refused before it was clear whom the token is for, for which RabbitMQ has another text."""


def key_rings(settings: OAuth2Settings) -> Mapping[str, KeyRing]:
    """By the names of the providers. Raises ConfigError, ImportError."""
    # Now, and not at the first login: importing takes a tenth of a second.
    for library in ("joserfc.jwk", "joserfc.jws", "aiohttp"):
        importlib.import_module(library)
    return {name: KeyRing(provider) for name, provider in settings.providers.items()}


async def unreachable(rings: Mapping[str, KeyRing], within: float | None = None) -> list[str]:
    """One line for each provider whose keys cannot be fetched now. within: seconds."""

    async def problem(ring: KeyRing) -> str | None:
        key = "jwks_uri" if ring.provider.jwks_uri else "issuer"
        try:
            async with asyncio.timeout(within):
                await ring.refresh()
        except (BackendError, TimeoutError) as error:
            reason = str(error) or "timeout"
            return f"{ring.provider.prefix}{key}: the signing keys cannot be fetched: {reason}"
        return None

    publishing = [ring for ring in rings.values() if ring.publishes]
    found = await asyncio.gather(*map(problem, publishing))
    return [line for line in found if line is not None]
