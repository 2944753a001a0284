"""The management HTTP API's settings, from RabbitMQ's keys (``rabbitmq_management.schema``).

Strategy: a listener is what has a port. Options of a listener that is not there are told, since
RabbitMQ would listen on its default port for them.
"""

from __future__ import annotations

from gatekeeper.config.settings import Address, Management, ManagementListener
from gatekeeper.config.tls import server_tls
from gatekeeper.config.typed import Problems, Typed

_HEADERS = {
    "management.csp.policy": "Content-Security-Policy",
    "management.hsts.policy": "Strict-Transport-Security",
    "management.headers.content_type_options": "X-Content-Type-Options",
    "management.headers.xss_protection": "X-XSS-Protection",
    "management.headers.frame_options": "X-Frame-Options",
    "management.headers.referrer_policy": "Referrer-Policy",
}


def management(typed: Typed, problems: Problems, warnings: list[str]) -> Management:
    """``management.*``."""
    return Management(
        listeners=_listeners(typed, problems, warnings),
        path_prefix=_prefix(typed.optional("management.path_prefix", str) or ""),
        max_body_size=typed.one("management.http.max_body_size", int),
        hide_allow_header=typed.one("management.http.hide_allow_header", bool),
        cors_origins=_origins(typed),
        cors_max_age=typed.one("management.cors.max_age", int),
        headers=tuple(
            (header, value)
            for key, header in _HEADERS.items()
            if (value := typed.optional(key, str)) is not None
        ),
        disable_basic_auth=typed.one("management.disable_basic_auth", bool),
        login_session_timeout=typed.optional("management.login_session_timeout", int),
        disable_stats=typed.one("management.disable_stats", bool),
        require_json_extension=typed.one("management.definitions.require_json_extension", bool),
    )


def _listeners(
    typed: Typed, problems: Problems, warnings: list[str]
) -> tuple[ManagementListener, ...]:
    old_tls = typed.one("management.listener.ssl", bool)
    forms = (
        # what its names begin with; its timers'; its TLS options', if it speaks TLS
        ("management.tcp", "management.tcp", None),
        ("management.ssl", "management.ssl", "management.ssl"),
        (
            "management.listener",
            "management.listener.server",
            "management.listener.ssl_opts" if old_tls else None,
        ),
    )
    found: list[ManagementListener] = []
    for keys, timers, tls_keys in forms:
        port = typed.optional(f"{keys}.port", int)
        if port is None:
            warnings.extend(_without_effect(typed, keys))
            continue
        address = Address(host=typed.optional(f"{keys}.ip", str) or "", port=port)
        if port and any(other.address == address for other in found):
            problems.add(
                typed.place(f"{keys}.port"),
                "another listener has the same address; give it another port",
            )
        found.append(
            ManagementListener(
                address=address,
                tls=None
                if tls_keys is None
                else server_tls(typed, problems, warnings, listening=True, keys=tls_keys),
                tls_keys=tls_keys or "",
                max_connections=_max_connections(typed, keys),
                request_timeout=typed.one(f"{timers}.request_timeout", float),
                idle_timeout=typed.one(f"{timers}.idle_timeout", float),
                inactivity_timeout=typed.one(f"{timers}.inactivity_timeout", float),
                max_keepalive=typed.one(f"{timers}.max_keepalive", int),
                compress=typed.one(f"{timers}.compress", bool),
            )
        )
    return tuple(found)


def _max_connections(typed: Typed, keys: str) -> int | None:
    # The old form has no such key.
    keys = "management.tcp" if keys == "management.listener" else keys
    value = typed.one(f"{keys}.max_connections", object)
    return value if isinstance(value, int) else None  # infinity


def _without_effect(typed: Typed, keys: str) -> list[str]:
    head = tuple(keys.split("."))
    return [
        f"{place}: has no effect without {keys}.port"
        for key, place in typed.places.items()
        if key[: len(head)] == head
    ][:1]


def _prefix(text: str) -> str:
    path = text.strip("/")
    return f"/{path}" if path else ""


def _origins(typed: Typed) -> frozenset[str]:
    if typed.is_set("management.cors.allow_origins"):
        return frozenset()
    return frozenset(typed.many("management.cors.allow_origins.$name", str).values())
