"""The keys of the HTTP, cache and ip_range backends, and of third parties'."""

from __future__ import annotations

import ipaddress

from gatekeeper.config import datatypes as types
from gatekeeper.config.datatypes import BadValueError, Datatype
from gatekeeper.config.spec import KeySpec, Section, row

BOOLEAN = types.switch("true", "false", "boolean")
BACKEND = types.string(
    pattern=r"[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_.]*)?",
    expected="a backend: internal, ldap, http, oauth2, cache, ip_range, internal_loopback, dummy, "
    "RabbitMQ's module name, or a third party's entry point or MODULE:NAME",
)
_TEXT = types.string()
_MILLISECONDS = types.milliseconds(infinity=False)
_NAMES = ("user", "vhost", "resource", "topic")
_ASKED = {
    "user": "who a user is",
    "vhost": "a user's access to a virtual host",
    "resource": "a user's rights on a queue or an exchange",
    "topic": "a user's rights on a routing key",
}


def _masks() -> Datatype:
    def convert(text: str) -> str:
        for mask in filter(None, (part.strip() for part in text.split(","))):
            try:
                ipaddress.ip_network(mask, strict=False)
            except ValueError:
                raise BadValueError(
                    "expected networks such as 10.0.0.0/8, ::ffff:192.168.0.0/112"
                ) from None
        return text

    return Datatype("networks, comma-separated", convert)


def client_tls_rows(prefix: str, whom: str) -> tuple[KeySpec, ...]:
    """``PREFIX.ssl_options.*`` towards a server that is not a broker. whom: "the service"."""
    options = f"{prefix}.ssl_options."
    files = types.pem_file()
    return (
        row(
            options + "cacertfile",
            files,
            None,
            f"Authorities that may sign {whom}'s certificate; unset: those the system trusts.",
            example="/etc/gatekeeper/ca.pem",
        ),
        row(
            options + "certfile",
            files,
            None,
            f"Client certificate to present to {whom}.",
            example="/etc/gatekeeper/client.pem",
        ),
        row(
            options + "keyfile",
            files,
            None,
            "Its private key.",
            example="/etc/gatekeeper/client-key.pem",
        ),
        row(
            options + "password",
            types.secret(),
            None,
            "Passphrase of the private key.",
            example="$(GATEKEEPER_CLIENT_KEY_PASSPHRASE)",
        ),
        row(
            options + "verify",
            types.enum("verify_peer", "verify_none"),
            "verify_peer",
            f"Check {whom}'s certificate and its name.",
        ),
        row(
            options + "sni",
            _TEXT,
            None,
            "The name to ask for and to check; unset: the host name; `none`: neither.",
            example="service.example.com",
        ),
        row(
            options + "depth",
            types.integer(0, 255),
            "1",
            "Longest chain of intermediate certificates that is accepted.",
        ),
        row(
            options + "versions.$version",
            types.enum("tlsv1", "tlsv1.1", "tlsv1.2", "tlsv1.3"),
            {"1": "tlsv1.2", "2": "tlsv1.3"},
            "A TLS version to offer; the enabled ones must have no gap.",
        ),
        row(
            options + "ciphers.$cipher",
            types.string(pattern="[A-Za-z0-9_-]+", expected="one OpenSSL cipher name"),
            None,
            "A cipher suite to offer, in this order; unset: OpenSSL's default.",
            example={"1": "ECDHE-ECDSA-AES256-GCM-SHA384"},
        ),
    )


SECTIONS: tuple[Section, ...] = (
    Section(
        "The HTTP backend",
        (
            row(
                "auth_http.http_method",
                types.enum("get", "post"),
                "get",
                "How the service is asked; `post` keeps passwords out of its access log.",
            ),
            *(
                row(
                    f"auth_http.{name}_path",
                    _TEXT,
                    f"http://localhost:8000/auth/{name}",
                    f"The URL that is asked for {_ASKED[name]}.",
                )
                for name in _NAMES
            ),
            row(
                "auth_http.request_timeout",
                _MILLISECONDS,
                "15000",
                "Time for an answer (ms), the connection included.",
            ),
            row(
                "auth_http.connection_timeout",
                _MILLISECONDS,
                "15000",
                "Time for a connection to the service (ms).",
            ),
            row(
                "auth_http.authorization_failure_disclosure",
                BOOLEAN,
                "false",
                "Tell the client the reason that the service gives with `deny`.",
            ),
            *client_tls_rows("auth_http", "the service"),
        ),
    ),
    Section(
        "The cache backend",
        (
            row(
                "auth_cache.cached_backend",
                BACKEND,
                "internal",
                "The backend whose answers are kept.",
            ),
            row(
                "auth_cache.cached_backend.authn",
                BACKEND,
                None,
                "The backend whose answers to logins are kept.",
                example="http",
            ),
            row(
                "auth_cache.cached_backend.authz",
                BACKEND,
                None,
                "The backend whose answers on access are kept.",
                example="http",
            ),
            row(
                "auth_cache.cache_ttl",
                _MILLISECONDS,
                "15000",
                "How long an answer is kept (ms).",
            ),
            row(
                "auth_cache.cache_refusals",
                BOOLEAN,
                "false",
                "Keep refusals too; errors are never kept.",
            ),
        ),
    ),
    Section(
        "The ip_range backend: which networks users may come from",
        (
            row(
                "auth_ip_range.tag_masks.$tag",
                _masks(),
                None,
                "The networks of users with this tag; none: nobody with it gets in.",
                example={"lan": "192.168.0.0/16, 10.0.0.0/8"},
            ),
            row(
                "auth_ip_range.default_masks",
                _masks(),
                "::0/0",
                "The networks of users without any such tag.",
            ),
        ),
    ),
    Section(
        "Third parties' backends",
        (
            KeySpec(
                "gatekeeper.backends.$backend.$option",
                types.string(hidden=True),
                "An option of a third party's backend, by its entry point's name.",
                example={"gatekeeper.backends.mine.path": "/etc/mine.txt"},
            ),
        ),
    ),
)
