"""The rows of ``auth_ldap.*`` (:mod:`gatekeeper.config.schema`)."""

from __future__ import annotations

from gatekeeper.config import datatypes as types
from gatekeeper.config.keys_backends import client_tls_rows
from gatekeeper.config.spec import KeySpec, Section, row

_PREFIX = "auth_ldap."
_SSL = _PREFIX + "ssl_options."
_BOOLEAN = types.switch("true", "false", "boolean")
_TEXT = types.string()
_NAME = types.string(pattern=".+", expected="a name, not an empty text")
_QUERY = types.string(pattern=".*", expected="an Erlang term")
_BIND = types.enum("as_user", "anon")
_PORT = types.integer(1, 65535)


def _bind(key: str, what: str) -> tuple[KeySpec, ...]:
    return (
        row(
            _PREFIX + key,
            _BIND,
            None,
            f"As whom {what}: `as_user` (the default), the user with the same password, or "
            "`anon`, without a bind.",
            example="anon",
        ),
        row(
            _PREFIX + f"{key}.user_dn",
            _NAME,
            None,
            "Or as this DN; give its password too.",
            example="cn=gatekeeper,dc=example,dc=com",
        ),
        row(
            _PREFIX + f"{key}.password",
            types.secret(),
            None,
            "Its password.",
            example="$(GATEKEEPER_LDAP_PASSWORD)",
        ),
    )


def _query(key: str, default: str, what: str) -> KeySpec:
    return row(_PREFIX + f"queries.{key}", _QUERY, default, what)


SECTION = Section(
    "The ldap backend",
    (
        row(
            _PREFIX + "servers.$server",
            _NAME,
            None,
            "A directory server, by host name or address; tried in the order of the numbers.",
            example={"1": "ldap.example.com"},
        ),
        row(
            _PREFIX + "servers",
            types.enum("none"),
            None,
            "`none`: there is no server, whatever `auth_ldap.servers.*` says.",
            example="none",
        ),
        row(_PREFIX + "port", _PORT, "389", "Their port."),
        row(
            _PREFIX + "connection_pool_size",
            types.integer(1, 10_000),
            "64",
            "Checks that may be asked at once, each on a connection of its own.",
        ),
        row(
            _PREFIX + "timeout",
            types.milliseconds(infinity=True),
            "infinity",
            "Time for a server to take a connection, and for each of its answers.",
        ),
        row(
            _PREFIX + "idle_timeout",
            types.milliseconds(infinity=True, zero=True),
            "300000",
            "Time after which an unused connection is closed; 0: one connection a check.",
        ),
        row(
            _PREFIX + "log",
            types.enum("true", "false", "network", "network_unsafe"),
            "false",
            "Log each step of the backend; `network`: and what is sent, with names masked; "
            "`network_unsafe`: unmasked. Passwords are never logged.",
        ),
        row(
            _PREFIX + "user_bind_pattern",
            _TEXT,
            None,
            "The name to bind with at login; unset: `auth_ldap.user_dn_pattern`.",
            example=r"${ad_user}@${ad_domain}.example.com",
        ),
        row(
            _PREFIX + "user_dn_pattern",
            _TEXT,
            "${username}",
            "The user's DN. Variables: `${username}`, and `${ad_domain}`, `${ad_user}` of a name "
            r"such as `DOMAIN\user`.",
        ),
        row(
            _PREFIX + "dn_lookup_attribute",
            _TEXT,
            None,
            "Search the user's DN by this attribute, whose value is the filled "
            "`auth_ldap.user_dn_pattern`; unset or `none`: no search.",
            example="userPrincipalName",
        ),
        row(
            _PREFIX + "dn_lookup_base",
            _TEXT,
            None,
            "Where to search for it.",
            example="ou=people,dc=example,dc=com",
        ),
        *_bind("dn_lookup_bind", "the user's DN is searched"),
        *_bind("other_bind", "all other queries are asked, and those of logins without password"),
        row(
            _PREFIX + "group_lookup_base",
            _TEXT,
            None,
            "Where `in_group_nested` searches; unset or `none`: `auth_ldap.dn_lookup_base`.",
            example="ou=groups,dc=example,dc=com",
        ),
        row(_PREFIX + "use_ssl", _BOOLEAN, "false", "Speak TLS from the first byte (LDAPS)."),
        row(_PREFIX + "use_starttls", _BOOLEAN, "false", "Begin TLS on a plain connection."),
        row(
            _PREFIX + "ssl_options",
            types.enum("none"),
            None,
            "`none` drops every `auth_ldap.ssl_options.*`.",
            example="none",
        ),
        *(each for each in client_tls_rows("auth_ldap", "the server") if each.words[-1] != "sni"),
        row(
            _SSL + "sni",
            _TEXT,
            None,
            "The name to ask for and to check; unset or `none`: that of the server.",
            example="ldap.example.com",
        ),
        row(
            _SSL + "hostname_verification",
            types.enum("wildcard", "none"),
            "none",
            "Without effect: certificates for `*.example.com` are always understood.",
        ),
        _query(
            "vhost_access",
            "{constant, true}",
            "Who may use a virtual host: a query in RabbitMQ's Erlang terms; a longer one stands "
            "between `'''` and `'''`.",
        ),
        _query(
            "resource_access",
            "{constant, true}",
            "Who may configure, write or read a queue or an exchange.",
        ),
        _query(
            "topic_access",
            "{constant, true}",
            "Who may write or read a routing key of a topic exchange.",
        ),
        _query(
            "tags",
            "[{administrator, {constant, false}}]",
            "Who has which tag: a list of `{Tag, Query}`.",
        ),
    ),
)
