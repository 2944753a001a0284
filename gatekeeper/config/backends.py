"""Settings of the backends that need few: HTTP, cache, ip_range, and those of third parties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from gatekeeper.config.settings import BackendPair, ClientTls
from gatekeeper.config.tls import client_options
from gatekeeper.config.typed import Problems, Typed


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpBackendSettings:
    """``auth_http.*``. Paths are URLs; timeouts are seconds. disclose: tell the client why."""

    method: Literal["get", "post"]
    user_path: str
    vhost_path: str
    resource_path: str
    topic_path: str
    request_timeout: float
    connection_timeout: float
    disclose: bool
    tls: ClientTls | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """``auth_cache.*``. ttl: seconds. backend: what is cached, by RabbitMQ's module names."""

    backend: BackendPair
    ttl: float
    refusals: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IpRangeSettings:
    """``auth_ip_range.*``: the networks that users of a tag, or without such tags, come from."""

    tag_masks: Mapping[str, tuple[str, ...]]
    default_masks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendsSettings:
    """What the backends are configured with; each has a value whether it is used or not.

    options: of third parties' backends, by the backend's name and the option's.
    """

    http: HttpBackendSettings
    cache: CacheSettings
    ip_range: IpRangeSettings
    options: Mapping[str, Mapping[str, str]] = field(repr=False)


_ALIASES = {
    name: f"rabbit_auth_backend_{name}"
    for name in (
        *("internal", "internal_loopback", "cache", "dummy", "http", "ldap", "oauth2"),
        *("ip_range", "amqp"),
    )
} | {"oauth": "rabbit_auth_backend_oauth2"}


def module(name: str) -> str:
    """RabbitMQ's module of a backend's short name; any other name as it is."""
    return _ALIASES.get(name, name)


def backends(typed: Typed, problems: Problems, warnings: list[str]) -> BackendsSettings:
    return BackendsSettings(
        http=_http(typed, problems, warnings),
        cache=_cache(typed, problems),
        ip_range=_ip_range(typed),
        options=_options(typed),
    )


def _http(typed: Typed, problems: Problems, warnings: list[str]) -> HttpBackendSettings:
    prefix = "auth_http."
    paths = {}
    for name in ("user_path", "vhost_path", "resource_path", "topic_path"):
        paths[name] = typed.one(prefix + name, str)
        parts = urlsplit(paths[name])
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            problems.add(
                typed.place(prefix + name), "expected a URL such as http://localhost:8000/auth/user"
            )
    return HttpBackendSettings(
        method="post" if typed.one(prefix + "http_method", str) == "post" else "get",
        request_timeout=typed.one(prefix + "request_timeout", float),
        connection_timeout=typed.one(prefix + "connection_timeout", float),
        disclose=typed.one(prefix + "authorization_failure_disclosure", bool),
        tls=client_options(typed, prefix + "ssl_options", problems, warnings),
        **paths,
    )


def _cache(typed: Typed, problems: Problems) -> CacheSettings:
    """One of authn and authz alone stands for both; the cache cannot cache itself."""
    key = "auth_cache.cached_backend"
    both = typed.one(key, str)
    authn = typed.optional(key + ".authn", str)
    authz = typed.optional(key + ".authz", str)
    pair = BackendPair(
        authn=module(authn or authz or both), authz=(module(authz or authn or both),)
    )
    if module("cache") in {pair.authn, *pair.authz}:
        problems.add(typed.place(key), "a cache of the cache; name the backend to be cached")
    return CacheSettings(
        backend=pair,
        ttl=typed.one("auth_cache.cache_ttl", float),
        refusals=typed.one("auth_cache.cache_refusals", bool),
    )


def _ip_range(typed: Typed) -> IpRangeSettings:
    tags = typed.many("auth_ip_range.tag_masks.$tag", str)
    return IpRangeSettings(
        tag_masks={tag: _listed(masks) for tag, masks in tags.items()},
        default_masks=_listed(typed.one("auth_ip_range.default_masks", str)),
    )


def _listed(masks: str) -> tuple[str, ...]:
    return tuple(mask.strip() for mask in masks.split(",") if mask.strip())


def _options(typed: Typed) -> Mapping[str, Mapping[str, str]]:
    options: dict[str, dict[str, str]] = {}
    for key in typed.places:
        if len(key) == 4 and key[:2] == ("gatekeeper", "backends"):
            _, _, backend, option = key
            value = typed.one("gatekeeper.backends.$backend.$option", str, backend, option)
            options.setdefault(backend, {})[option] = value
    return options
