"""``auth_ldap.*``: how the directory is reached, as whom it is asked, and what.

Strategy: settings with everything resolved, queries as trees. What would only fail, or quietly
weaken the gate, when the first user comes is a problem or a warning here.
Source: ``rabbitmq_auth_backend_ldap.schema`` and its Makefile's defaults (4.3.5).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeVar, cast

from gatekeeper.config import ldap_queries
from gatekeeper.config.erlang_terms import TermError, read_term
from gatekeeper.config.ldap_queries import ALLOW, DENY, Query, QueryError, TagQuery
from gatekeeper.config.settings import ClientTls
from gatekeeper.config.tls import client_options
from gatekeeper.config.typed import Problems, Typed
from gatekeeper.config.upstreams import ordered
from gatekeeper.model import Secret

T = TypeVar("T")

LogMode = Literal["false", "true", "network", "network_unsafe"]

_PREFIX = "auth_ldap."
_NONE = "none"


class AsUser(enum.Enum):
    """Bind as the user who logged in, with the same password."""

    AS_USER = "as_user"


class Anonymous(enum.Enum):
    """Do not bind at all."""

    ANONYMOUS = "anon"


AS_USER: Final = AsUser.AS_USER
ANONYMOUS: Final = Anonymous.ANONYMOUS


@dataclass(frozen=True, slots=True)
class BindAs:
    """Bind with this name and password."""

    dn: bytes
    password: Secret


Bind = AsUser | Anonymous | BindAs


@dataclass(frozen=True, slots=True, kw_only=True)
class LdapQueries:
    """What the directory is asked; the defaults are RabbitMQ's."""

    vhost_access: Query = ALLOW
    resource_access: Query = ALLOW
    topic_access: Query = ALLOW
    tags: tuple[TagQuery, ...] = (TagQuery("administrator", DENY),)


@dataclass(frozen=True, slots=True, kw_only=True)
class LdapSettings:
    """The whole of ``auth_ldap.*``. Patterns and names are octets, as RabbitMQ makes them.

    servers: in the order to try; None where none was ever configured, which refuses every login.
    timeout, idle_timeout: seconds; None never ends. An idle_timeout of 0 keeps no connection.
    user_bind_pattern: the name to bind with; None: user_dn_pattern.
    tls: with use_ssl or use_starttls.
    """

    servers: tuple[str, ...] | None = None
    port: int = 389
    pool_size: int = 64
    timeout: float | None = None
    idle_timeout: float | None = 300.0
    log: LogMode = "false"
    user_bind_pattern: bytes | None = None
    user_dn_pattern: bytes = b"${username}"
    dn_lookup_attribute: bytes | None = None
    dn_lookup_base: bytes | None = None
    dn_lookup_bind: Bind = AS_USER
    other_bind: Bind = AS_USER
    group_lookup_base: bytes | None = None
    use_ssl: bool = False
    use_starttls: bool = False
    tls: ClientTls | None = None
    queries: LdapQueries = field(default_factory=LdapQueries)


def ldap(typed: Typed, problems: Problems, warnings: list[str]) -> LdapSettings | None:
    """``auth_ldap.*`` with RabbitMQ's defaults behind it; None where nothing of it is set."""
    if not any(key[0] == "auth_ldap" for key in typed.values):
        return None
    reader = _Reader(typed, problems)
    use_ssl = typed.one(_PREFIX + "use_ssl", bool)
    use_starttls = typed.one(_PREFIX + "use_starttls", bool)
    if use_ssl and use_starttls:
        problems.add(
            typed.place(_PREFIX + "use_starttls"),
            "StartTLS does not go over use_ssl, which is TLS already; set one of them",
        )
    return LdapSettings(
        servers=_servers(typed),
        port=typed.one(_PREFIX + "port", int),
        pool_size=typed.one(_PREFIX + "connection_pool_size", int),
        timeout=_seconds(typed.one(_PREFIX + "timeout", float)),
        idle_timeout=_seconds(typed.one(_PREFIX + "idle_timeout", float)),
        log=cast("LogMode", typed.one(_PREFIX + "log", str)),
        user_bind_pattern=reader.octets("user_bind_pattern"),
        user_dn_pattern=reader.octets("user_dn_pattern") or b"",
        dn_lookup_attribute=reader.octets("dn_lookup_attribute"),
        dn_lookup_base=reader.octets("dn_lookup_base"),
        dn_lookup_bind=reader.bind("dn_lookup_bind"),
        other_bind=reader.bind("other_bind"),
        group_lookup_base=reader.octets("group_lookup_base"),
        use_ssl=use_ssl,
        use_starttls=use_starttls,
        tls=_tls(typed, problems, warnings, secure=use_ssl or use_starttls),
        queries=LdapQueries(
            vhost_access=reader.query("vhost_access", ldap_queries.query),
            resource_access=reader.query("resource_access", ldap_queries.query),
            topic_access=reader.query("topic_access", ldap_queries.query),
            tags=reader.query("tags", ldap_queries.tag_queries),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    typed: Typed
    problems: Problems

    def octets(self, name: str) -> bytes | None:
        """A text of the table; ``none`` is RabbitMQ's "not set"."""
        text = self.typed.optional(_PREFIX + name, str)
        if text is None or text == _NONE:
            return None
        try:
            return ldap_queries.octets(text)
        except QueryError as error:
            self.problems.add(self.typed.place(_PREFIX + name), str(error))
            return b""

    def bind(self, name: str) -> Bind:
        """``as_user``, ``anon`` or a name and a password, of which RabbitMQ takes both or none."""
        key = _PREFIX + name
        chosen = self.typed.optional(key, str)
        dn = self.octets(f"{name}.user_dn")
        password = self.typed.optional(f"{key}.password", Secret)
        if chosen is None and (dn is not None or password is not None):
            for part, value in (("user_dn", dn), ("password", password and password.value)):
                if not value:
                    self.problems.add(
                        self.typed.place(f"{key}.{part}"),
                        "is missing or empty; a bind needs both user_dn and password",
                    )
            return BindAs(dn or b"", password or Secret(b""))
        if dn is not None or password is not None:
            self.problems.add(
                self.typed.place(f"{key}.user_dn" if dn is not None else f"{key}.password"),
                f"has no effect beside {key} = {chosen}; remove one of them",
            )
        return ANONYMOUS if chosen == ANONYMOUS.value else AS_USER

    def query(self, name: str, build: Callable[..., T]) -> T:
        key = f"{_PREFIX}queries.{name}"
        try:
            return build(read_term(self.typed.one(key, str)))
        except (TermError, QueryError) as error:
            self.problems.add(self.typed.place(key), f"no such query: {error}")
            return build(read_term("[]" if name == "tags" else "{constant,false}"))


def _servers(typed: Typed) -> tuple[str, ...] | None:
    if typed.is_set(_PREFIX + "servers"):
        return ()
    return tuple(ordered(typed.many(_PREFIX + "servers.$server", str)).values()) or None


def _seconds(value: float) -> float | None:
    return None if math.isinf(value) else value


def _tls(
    typed: Typed, problems: Problems, warnings: list[str], *, secure: bool
) -> ClientTls | None:
    """RabbitMQ checks the server's certificate unless it is told not to; so does ``none``."""
    options = client_options(typed, _PREFIX + "ssl_options", problems, warnings)
    if not secure:
        if options is not None:
            warnings.append(
                f"{typed.place(_PREFIX + 'ssl_options')}: has no effect without"
                " auth_ldap.use_ssl or auth_ldap.use_starttls"
            )
        return None
    if options is None or typed.is_set(_PREFIX + "ssl_options"):
        return ClientTls()
    # Here RabbitMQ's "sni = none" is "not set": the name is checked all the same.
    return replace(options, sni=options.sni or None)
