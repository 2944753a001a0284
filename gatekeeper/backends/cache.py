"""RabbitMQ's cache backend: what another backend answered, kept for a while.

Strategy: the key is the question with everything that sways its answer, the user's own state
included; a password is there as a keyed digest only. Equal questions that are under way at the
same time are asked once. An answer that came at once is not worth keeping and is passed on.

Source: ``rabbit_auth_backend_cache`` of RabbitMQ 4.3. Errors are never kept, a hit does not
prolong an answer's life, and a password or permission that was changed counts only when the
time is over; ``clear`` ends it at once.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar, cast

from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission, Secret, Variables
from gatekeeper.policy.ports import (
    Accepted,
    AuthnBackend,
    AuthzBackend,
    ExpiringBackend,
    Failed,
    LoginAnswer,
    Refused,
    Verdict,
)

NAME = "rabbit_auth_backend_cache"
ENTRIES = 100_000
"""Answers that are kept, at most; the one used longest ago goes first."""

T = TypeVar("T", LoginAnswer, Verdict)


class CacheBackend:
    """authn, authz: the backends behind it. ttl: seconds. refusals: keep those too.

    Not thread-safe: for one event loop.
    """

    def __init__(
        self,
        authn: AuthnBackend,
        authz: AuthzBackend,
        *,
        ttl: float,
        refusals: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authn = authn
        self._authz = authz
        self._ttl = ttl
        self._refusals = refusals
        self._clock = clock
        self._salt = secrets.token_bytes(32)
        # By user name and question, so that a user's answers can be forgotten.
        self._kept: OrderedDict[tuple[bytes, Hashable], tuple[float, object]] = OrderedDict()
        self._asking: dict[tuple[bytes, Hashable], asyncio.Future[object]] = {}
        self._clearings = 0

    @property
    def name(self) -> str:
        return NAME

    def clear(self, user: bytes | None = None) -> int:
        """Forget what is known of this user, or of all; how many answers that was."""
        self._clearings += 1  # what is being asked at the moment is not to be kept either
        self._asking.clear()
        gone = [key for key in self._kept if user in {None, key[0]}]
        for key in gone:
            del self._kept[key]
        return len(gone)

    # --- the questions ---

    def authenticate(
        self, credentials: Credentials, peer: Peer
    ) -> LoginAnswer | Awaitable[LoginAnswer]:
        return self._answer(
            (credentials.username, ("authn", self._proof(credentials), peer.loopback)),
            lambda: self._authn.authenticate(credentials, peer),
        )

    def authorize_login(
        self, username: bytes, credentials: Credentials, peer: Peer
    ) -> LoginAnswer | Awaitable[LoginAnswer]:
        return self._answer(
            (username, ("authz", self._proof(credentials), peer.loopback)),
            lambda: self._authz.authorize_login(username, credentials, peer),
        )

    def vhost_access(
        self, user: AuthUser, vhost: bytes, peer: Peer
    ) -> Verdict | Awaitable[Verdict]:
        return self._answer(
            (user.username, ("vhost", user, vhost, peer.host)),
            lambda: self._authz.vhost_access(user, vhost, peer),
        )

    def resource_access(
        self, user: AuthUser, vhost: bytes, kind: Kind, name: bytes, permission: Permission
    ) -> Verdict | Awaitable[Verdict]:
        return self._answer(
            (user.username, ("resource", user, vhost, kind, name, permission)),
            lambda: self._authz.resource_access(user, vhost, kind, name, permission),
        )

    def topic_rule(self, user: AuthUser, vhost: bytes, exchange: bytes) -> bool:
        return self._authz.topic_rule(user, vhost, exchange)

    def topic_access(
        self,
        user: AuthUser,
        vhost: bytes,
        exchange: bytes,
        routing_key: bytes,
        permission: Permission,
        variables: Variables,
    ) -> Verdict | Awaitable[Verdict]:
        varied = tuple(sorted(variables.items()))
        return self._answer(
            (user.username, ("topic", user, vhost, exchange, routing_key, permission, varied)),
            lambda: self._authz.topic_access(
                user, vhost, exchange, routing_key, permission, variables
            ),
        )

    # --- credentials that end: the authorisation backend's, never kept ---

    def expiry(self, state: object) -> int | None:
        backend = self._authz
        return backend.expiry(state) if isinstance(backend, ExpiringBackend) else None

    def update_state(self, user: AuthUser, secret: Secret) -> LoginAnswer | Awaitable[LoginAnswer]:
        backend = self._authz
        if not isinstance(backend, ExpiringBackend):
            return Failed("its credentials do not end")
        return backend.update_state(user, secret)

    def _proof(self, credentials: Credentials) -> Hashable:
        password = credentials.password
        digest = None if password is None else hmac.digest(self._salt, password.value, "sha256")
        return credentials.mechanism, credentials.username, digest

    # --- keeping ---

    def _answer(
        self, key: tuple[bytes, Hashable], ask: Callable[[], T | Awaitable[T]]
    ) -> T | Awaitable[T]:
        try:
            kept = self._kept.get(key)
        except TypeError:  # a backend whose state cannot be compared: its answers are not kept
            return ask()
        if kept is not None:
            expires, answer = kept
            if self._clock() < expires:
                self._kept.move_to_end(key)
                return cast("T", answer)
            del self._kept[key]
        if key in self._asking:
            return self._share(key, ask)
        answer = ask()
        return self._lead(key, answer, ask) if isinstance(answer, Awaitable) else answer

    async def _lead(
        self,
        key: tuple[bytes, Hashable],
        pending: Awaitable[T],
        ask: Callable[[], T | Awaitable[T]],
    ) -> T:
        """Wait for the answer on behalf of everybody who asks the same meanwhile."""
        if key in self._asking:  # since the question was put, in the same turn of the loop
            if inspect.iscoroutine(pending):
                pending.close()
            return await self._share(key, ask)
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._asking[key] = future
        clearings = self._clearings
        try:
            answer = await pending
            if clearings == self._clearings:
                self._keep(key, answer)
            future.set_result(answer)
        except Exception as error:
            future.set_exception(error)
            future.exception()  # nobody else may be waiting
            raise
        finally:
            if not future.done():  # cancelled, the client is gone: who waits asks again
                future.cancel()
            if self._asking.get(key) is future:
                del self._asking[key]
        return answer

    async def _share(self, key: tuple[bytes, Hashable], ask: Callable[[], T | Awaitable[T]]) -> T:
        future = self._asking[key]
        await asyncio.wait([future])
        if not future.cancelled():
            return cast("T", future.result())
        again = self._answer(key, ask)
        return await again if isinstance(again, Awaitable) else again

    def _keep(self, key: tuple[bytes, Hashable], answer: LoginAnswer | Verdict) -> None:
        if not self._worth(answer):
            return
        self._kept[key] = self._clock() + self._ttl, answer
        self._kept.move_to_end(key)
        while len(self._kept) > ENTRIES:
            self._kept.popitem(last=False)

    def _worth(self, answer: object) -> bool:
        match answer:
            case Accepted():
                return True
            case Refused():
                return self._refusals
            case Verdict(allowed=True, error=None):
                return True
            case Verdict(error=None):
                return self._refusals
            case _:
                return False
