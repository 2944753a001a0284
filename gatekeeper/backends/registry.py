"""From ``auth_backends`` to backends: which there are, and how each is made.

Strategy: a backend is made once, whatever the number of positions that name it. RabbitMQ's are
rows of a table, whose modules are imported only when they are named (their libraries are
extras); every other name is a third party's: an entry point of the group ``gatekeeper.backends``,
or ``MODULE:NAME``. A third party's factory is called with its options, a mapping of text: those
of ``gatekeeper.backends.NAME``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, cast

from gatekeeper.backends.cache import CacheBackend
from gatekeeper.backends.dummy import DummyBackend
from gatekeeper.backends.guard import Guarded
from gatekeeper.backends.internal import InternalBackend
from gatekeeper.backends.ip_range import IpRangeBackend
from gatekeeper.backends.loopback import InternalLoopbackBackend
from gatekeeper.config.settings import BackendPair, Settings
from gatekeeper.errors import ConfigError
from gatekeeper.policy.pairs import Pair
from gatekeeper.policy.ports import AuthnBackend, AuthzBackend
from gatekeeper.store.records import PasswordChanged, Reloaded, StoreEvent, UserDeleted
from gatekeeper.store.store import Store

GROUP = "gatekeeper.backends"
"""The entry points of third parties' backends."""
CACHE = "rabbit_auth_backend_cache"
AUTHN = ("authenticate",)
AUTHZ = ("authorize_login", "vhost_access", "resource_access", "topic_rule", "topic_access")

Make = Callable[[Settings, Store], Any]


def _http(settings: Settings, _store: Store) -> object:
    from gatekeeper.backends.http import HttpBackend  # noqa: PLC0415 - an optional dependency

    importlib.import_module("aiohttp")
    return Guarded(HttpBackend(settings.backends.http))


def _ldap(settings: Settings, _store: Store) -> object:
    from gatekeeper.backends.ldap.backend import LdapBackend  # noqa: PLC0415 - seldom used
    from gatekeeper.config.ldap import LdapSettings  # noqa: PLC0415

    return Guarded(LdapBackend.from_settings(settings.ldap or LdapSettings()))


def _oauth2(settings: Settings, _store: Store) -> object:
    from gatekeeper.backends.oauth2.backend import OAuth2Backend  # noqa: PLC0415 - the same

    if settings.oauth2 is None:
        raise ConfigError("auth_oauth2.resource_server_id is missing")
    return OAuth2Backend.from_settings(settings.oauth2)


_MAKERS: Mapping[str, tuple[Make, str]] = MappingProxyType(
    {
        "rabbit_auth_backend_internal": (lambda _, store: InternalBackend(store), ""),
        "rabbit_auth_backend_internal_loopback": (
            lambda _, store: InternalLoopbackBackend(store),
            "",
        ),
        "rabbit_auth_backend_dummy": (lambda _settings, _store: DummyBackend(), ""),
        "rabbit_auth_backend_ip_range": (
            lambda settings, _: IpRangeBackend(settings.backends.ip_range),
            "",
        ),
        "rabbit_auth_backend_http": (_http, "http"),
        "rabbit_auth_backend_ldap": (_ldap, ""),
        "rabbit_auth_backend_oauth2": (_oauth2, "oauth2"),
    }
)
"""How each of RabbitMQ's backends is made, and the extra that it needs."""


class Backends:
    """The backends of a configuration. Raises ConfigError for one that cannot be had."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._made: dict[str, Any] = {}
        self.pairs = tuple(self._pair(position) for position in settings.auth_backends)

    def _pair(self, position: BackendPair) -> Pair:
        authn = self._backend(position.authn, position.place, AUTHN)
        authz = tuple(self._backend(name, position.place, AUTHZ) for name in position.authz)
        # RabbitMQ takes the bare cache for a pair, for what it caches may be one.
        if position.both and position.authn != CACHE:
            return Pair.of(cast("Any", authn))
        return Pair(authn=cast("AuthnBackend", authn), authz=cast("tuple[AuthzBackend]", authz))

    def _backend(self, name: str, place: str, methods: tuple[str, ...]) -> object:
        if name not in self._made:
            self._made[name] = self._make(name, place)
        backend = self._made[name]
        if missing := [each for each in methods if not callable(getattr(backend, each, None))]:
            raise ConfigError(f"{place}: {name} cannot do this: it has no {', '.join(missing)}")
        return backend

    def _make(self, name: str, place: str) -> object:
        if name == CACHE:
            return self._cache(place)
        make, extra = _MAKERS.get(name, (None, ""))
        if make is None:
            return self._third_party(name, place)
        try:
            return make(self._settings, self._store)
        except ImportError as error:
            raise ConfigError(
                f"{place}: {name} needs {error.name}; install gatekeeper-amqp[{extra}]"
            ) from None

    def _cache(self, place: str) -> CacheBackend:
        cache = self._settings.backends.cache
        return CacheBackend(
            cast("Any", self._backend(cache.backend.authn, place, AUTHN)),
            cast("Any", self._backend(cache.backend.authz[0], place, AUTHZ)),
            ttl=cache.ttl,
            refusals=cache.refusals,
        )

    def _third_party(self, name: str, place: str) -> object:
        """Everything that its import or its factory may do wrong is the operator's business."""
        found = next(iter(entry_points(group=GROUP, name=name)), None)
        module, colon, attribute = name.partition(":")
        if found is None and not colon:
            raise ConfigError(
                f"{place}: there is no backend '{name}'; use internal, ldap, http, oauth2, cache, "
                f"ip_range, internal_loopback or dummy, an entry point of the group {GROUP}, or "
                "MODULE:NAME"
            )
        try:
            if found is not None:
                factory = found.load()
            else:
                factory = getattr(importlib.import_module(module), attribute)
            return factory(self._settings.backends.options.get(attribute or name, {}))
        except Exception as error:
            raise ConfigError(
                f"{place}: the backend '{name}' cannot be made: {type(error).__name__}: {error}"
            ) from error

    # --- life ---

    async def start(self) -> None:
        """Let those that need it prepare. Raises ConfigError."""
        await self._each("start")

    async def close(self) -> None:
        await self._each("close")

    async def problems(self) -> list[str]:
        """For ``--check-config``: what the backends find wrong when they look beyond this host."""
        found = []
        for backend in self._made.values():
            if (look := getattr(backend, "problems", None)) is not None:
                found += await look()
        return found

    async def _each(self, method: str) -> None:
        for backend in self._made.values():
            act = getattr(backend, method, None)
            if act is not None:
                await act()

    def clear_cache(self, user: bytes | None = None) -> int:
        """Forget answers on this user, or all; how many were forgotten."""
        cache = self._made.get(CACHE)
        return cache.clear(user) if isinstance(cache, CacheBackend) else 0

    def store_changed(self, event: StoreEvent) -> None:
        """In the event loop: a login may have taken its time, and be kept."""
        match event:
            case PasswordChanged(name) | UserDeleted(name):
                self.clear_cache(name)
            case Reloaded():
                self.clear_cache()
            case _:
                pass
