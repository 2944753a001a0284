"""From typed values to Settings: the rules that span several keys.

Strategy: one small function per part of Settings; each takes what it needs from the table's
values and reports into the same list of problems, so that an operator sees all of them at once.
RabbitMQ's rules are those of its schema translations (``rabbit.schema``, 4.3.5).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from gatekeeper.config import accounts, tls
from gatekeeper.config.backends import backends, module
from gatekeeper.config.build_oauth2 import oauth2
from gatekeeper.config.control import control
from gatekeeper.config.definitions import definitions
from gatekeeper.config.ldap import ldap
from gatekeeper.config.management import management
from gatekeeper.config.oauth2 import BACKEND as OAUTH2
from gatekeeper.config.settings import (
    Address,
    Anonymous,
    BackendPair,
    CertLogin,
    Limits,
    LogFormat,
    LogLevel,
    LogSettings,
    Permissions,
    Seed,
    Settings,
    SocketOptions,
)
from gatekeeper.config.typed import Problems, Typed
from gatekeeper.config.upstreams import upstreams
from gatekeeper.model import Secret

_CATEGORIES = ("connection", "channel", "user", "audit")
_PERMISSIONS = ("configure", "write", "read")


def build(typed: Typed, environ: Mapping[str, str]) -> Settings:
    """Settings from the values of the files and RabbitMQ's ``RABBITMQ_DEFAULT_*`` variables.

    Raises ConfigError with one line for every rule that is broken.
    """
    problems = Problems()
    warnings = list(typed.warnings)
    tcp = _listeners(typed, "tcp")
    ssl = _listeners(typed, "ssl")
    _check_listeners(typed, tcp, ssl, problems)
    timeout = typed.one("handshake_timeout", float)
    pairs = _backends(typed, problems, warnings)
    made = backends(typed, problems, warnings)
    used = {name for pair in (*pairs, made.cache.backend) for name in (pair.authn, *pair.authz)}
    settings = Settings(
        tcp_listeners=tuple(tcp.values()),
        ssl_listeners=tuple(ssl.values()),
        socket=_socket(typed),
        tls=tls.server_tls(typed, problems, warnings, listening=bool(ssl)),
        proxy_protocol=typed.one("proxy_protocol", bool),
        handshake_timeout=None if math.isinf(timeout) else timeout,
        ssl_handshake_timeout=typed.one("ssl_handshake_timeout", float),
        limits=_limits(typed, warnings),
        auth_mechanisms=_mechanisms(typed, problems, ssl=bool(ssl)),
        cert_login=_cert_login(typed),
        anonymous=_anonymous(typed),
        auth_backends=pairs,
        backends=made,
        loopback_users=_loopback_users(typed),
        seed=_seed(typed, environ, problems),
        password_hashing=accounts.password_hashing(typed),
        credentials=accounts.credential_rules(typed, problems, warnings),
        vhost_defaults=accounts.vhost_defaults(typed),
        definitions=definitions(typed, problems, warnings),
        log=_log(typed, warnings),
        upstreams=upstreams(typed, problems, warnings),
        ldap=ldap(typed, problems, warnings),
        store_url=typed.one("store.url", str),
        drain_timeout=typed.one("drain_timeout", float),
        control=control(typed),
        management=management(typed, problems, warnings),
        workers=_workers(typed, problems),
        oauth2=oauth2(typed, problems, warnings, used=OAUTH2 in used),
        password_change_closes_connections=typed.one(
            "gatekeeper.password_change_closes_connections", bool
        ),
        permission_cache_ttl=typed.one("gatekeeper.permission_cache_ttl", float),
        warnings=tuple(warnings),
    )
    problems.raise_if_any()
    return settings


def _workers(typed: Typed, problems: Problems) -> int:
    workers = typed.one("workers", int)
    if workers > 1 and typed.one("store.url", str) == "sqlite::memory:":
        problems.add(
            typed.place("workers"),
            "several processes cannot share sqlite::memory:; set store.url = sqlite:///PATH, or "
            "workers = 1",
        )
    return workers


def _listeners(typed: Typed, protocol: str) -> dict[str, Address]:
    """By label; ``none`` wins over every listener set beside it, as in RabbitMQ."""
    if typed.is_set(f"listeners.{protocol}"):
        return {}
    return typed.many(f"listeners.{protocol}.$name", Address)


def _check_listeners(
    typed: Typed, tcp: Mapping[str, Address], ssl: Mapping[str, Address], problems: Problems
) -> None:
    if not tcp and not ssl:
        problems.add(
            typed.place("listeners.tcp"),
            "there is no listener at all; set listeners.tcp.default or listeners.ssl.default",
        )
    taken: set[Address] = set()
    for protocol, listeners in (("tcp", tcp), ("ssl", ssl)):
        for label, address in listeners.items():
            if address in taken and address.port:
                problems.add(
                    typed.place(f"listeners.{protocol}.$name", label),
                    "another listener has the same address; give it another port",
                )
            taken.add(address)


def _socket(typed: Typed) -> SocketOptions:
    if typed.is_set("tcp_listen_options"):
        return SocketOptions()
    prefix = "tcp_listen_options."
    return SocketOptions(
        backlog=typed.one(prefix + "backlog", int),
        nodelay=typed.one(prefix + "nodelay", bool),
        linger=(typed.one(prefix + "linger.on", bool), typed.one(prefix + "linger.timeout", int)),
        keepalive=typed.optional(prefix + "keepalive", bool),
        sndbuf=typed.optional(prefix + "sndbuf", int),
        recbuf=typed.optional(prefix + "recbuf", int),
        tos=typed.optional(prefix + "tos", int),
        priority=typed.optional(prefix + "priority", int),
    )


def _limits(typed: Typed, warnings: list[str]) -> Limits:
    old, new = "channel_max", "max_channels_per_connection"
    channels = typed.one(new, int)
    if typed.is_set(old):
        if typed.is_set(new):
            warnings.append(f"{typed.place(old)}: was renamed to {new}; both are set, using {new}")
        else:
            warnings.append(f"{typed.place(old)}: was renamed to {new}; use the new name")
            channels = typed.one(old, int)
    return Limits(
        channel_max=channels,
        frame_max=typed.one("frame_max", int),
        heartbeat=typed.one("heartbeat", int),
        initial_frame_max=typed.one("initial_frame_max", int),
        max_message_size=typed.optional("max_message_size", int),
    )


def _mechanisms(typed: Typed, problems: Problems, *, ssl: bool) -> tuple[str, ...]:
    """By the text of the label (10 before 2), as RabbitMQ sorts them; each once."""
    labelled = typed.many("auth_mechanisms.$name", str)
    external = next((label for label, name in labelled.items() if name == "EXTERNAL"), None)
    verified = ssl and typed.one("ssl_options.verify", str) == "verify_peer"
    if external is not None and not verified:
        problems.add(
            typed.place("auth_mechanisms.$name", external),
            "EXTERNAL needs a TLS listener with ssl_options.verify = verify_peer: nobody could log"
            " in by it",
        )
    return tuple(dict.fromkeys(labelled[label] for label in sorted(labelled)))


def _cert_login(typed: Typed) -> CertLogin:
    source = typed.one("ssl_cert_login_from", str)
    return CertLogin(
        source=cast("Any", source.replace("alt_name", "alternative_name")),
        san_type=cast("Any", typed.one("ssl_cert_login_san_type", str)),
        san_index=typed.one("ssl_cert_login_san_index", int),
    )


def _anonymous(typed: Typed) -> Anonymous | None:
    """None where it is switched off (``anonymous_login_user = none``)."""
    user = typed.one("anonymous_login_user", str)
    if user == "none":
        return None
    return Anonymous(user=user.encode(), password=typed.one("anonymous_login_pass", Secret))


def _backends(typed: Typed, problems: Problems, warnings: list[str]) -> tuple[BackendPair, ...]:
    """By position, as a number. One of authn and authz alone stands for both."""
    pattern = "auth_backends.$num"
    split = {part: typed.many(f"{pattern}.{part}", str) for part in ("authn", "authz")}
    parts = split["authn"] | split["authz"]
    # The default holds only where no position is configured in either form.
    both = {} if parts and not _any_set(typed, pattern) else typed.many(pattern, str)
    chain: dict[int, BackendPair] = {}
    for label in [*both, *(name for name in parts if name not in both)]:
        form = next((f for f in ("", ".authn", ".authz") if typed.is_set(pattern + f, label)), "")
        place = typed.place(pattern + form, label)
        if not re.fullmatch(r"-?[0-9]{1,9}", label):
            problems.add(place, "the position in the chain must be an integer")
        elif int(label) in chain or (label in both and label in parts):
            problems.add(
                place,
                "this position is already taken; give it only once, and either"
                " .authn and .authz or neither",
            )
        else:
            authn, authz = split["authn"].get(label), split["authz"].get(label)
            if label not in both and (authn is None or authz is None):
                warnings.append(f"{place}: given alone, it is used for both .authn and .authz")
            name = both.get(label) or ""
            chain[int(label)] = BackendPair(
                authn=module(authn or authz or name),
                authz=(module(authz or authn or name),),
                both=label in both,
                place=place,
            )
    return tuple(chain[position] for position in sorted(chain))


def _any_set(typed: Typed, pattern: str) -> bool:
    return any(typed.is_set(pattern, label) for label in typed.many(pattern, object))


def _loopback_users(typed: Typed) -> frozenset[bytes]:
    if typed.is_set("loopback_users"):
        return frozenset()
    users = typed.many("loopback_users.$user", bool)
    return frozenset(user.encode() for user, restricted in users.items() if restricted)


def _seed(typed: Typed, environ: Mapping[str, str], problems: Problems) -> Seed:
    missing = [name for name in _PERMISSIONS if not typed.is_set(f"default_permissions.{name}")]
    if missing and len(missing) < len(_PERMISSIONS):
        problems.add(
            typed.place(f"default_permissions.{missing[0]}"),
            "is missing; give all three default_permissions or none of them",
        )
    given = {
        name: value.encode("utf-8", "surrogateescape")
        for name in ("USER", "PASS", "VHOST")
        # An empty variable counts as unset, as it does for RabbitMQ (rabbit_env).
        if (value := environ.get(f"RABBITMQ_DEFAULT_{name}"))
    }
    configure, write, read = (
        typed.one(f"default_permissions.{name}", str).encode() for name in _PERMISSIONS
    )
    tags = typed.many("default_user_tags.$tag", bool)
    return Seed(
        user=given.get("USER") or typed.one("default_user", str).encode(),
        password=(Secret(given["PASS"]) if "PASS" in given else typed.one("default_pass", Secret)),
        vhost=given.get("VHOST") or typed.one("default_vhost", str).encode(),
        permissions=Permissions(configure=configure, write=write, read=read),
        tags=tuple(tag for tag, wanted in tags.items() if wanted),
    )


def _log(typed: Typed, warnings: list[str]) -> LogSettings:
    default = _level(typed, "log.default.level") or "info"
    levels = {"default": default}
    for category in _CATEGORIES:
        if level := _level(typed, f"log.{category}.level"):
            levels[category] = level
    file = typed.optional("log.file", object)
    path = file if isinstance(file, Path) else None
    if path is not None:
        path = (typed.optional("log.dir", Path) or Path()) / path
    else:
        warnings.extend(
            f"{typed.place(key)}: has no effect without log.file"
            for key in ("log.dir", "log.file.level", "log.file.formatter")
            if typed.is_set(key)
        )
    return LogSettings(
        console=typed.one("log.console", bool),
        console_stdio="stderr" if typed.one("log.console.stdio", str) == "stderr" else "stdout",
        console_level=_level(typed, "log.console.level") or default,
        console_formatter=_format(typed, "log.console.formatter"),
        console_use_colors=typed.one("log.console.use_colors", bool),
        file=path,
        file_level=_level(typed, "log.file.level") or default,
        file_formatter=_format(typed, "log.file.formatter"),
        levels=levels,
    )


def _level(typed: Typed, key: str) -> LogLevel | None:
    return cast("LogLevel | None", typed.optional(key, str))  # the type's words are these


def _format(typed: Typed, key: str) -> LogFormat:
    return cast("LogFormat", typed.one(key, str))
