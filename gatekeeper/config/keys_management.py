"""The keys of the management HTTP API: rows of the key table (``schema.py``).

Names, types and defaults are RabbitMQ's, with one difference: the API is off unless a port is
set. A gate stands where clients are, and must not open a second door unasked.
"""

from __future__ import annotations

from gatekeeper.config import datatypes as types
from gatekeeper.config.spec import KeySpec, Section, row

_BOOLEAN = types.switch("true", "false", "boolean")
_TEXT = types.string(pattern="[^\\r\\n\\0]*", expected="one line of text")
_PORT = types.integer(0, 65535)
_IP = types.ip_address()
_PEM = types.pem_file()
_MILLISECONDS = types.milliseconds(infinity=False)
_VERSION = types.enum("tlsv1", "tlsv1.1", "tlsv1.2", "tlsv1.3")
_VERSIONS = {"1": "tlsv1.2", "2": "tlsv1.3"}
_CIPHER = types.string(pattern="[A-Za-z0-9_-]+", expected="one OpenSSL cipher name")


def _timers(prefix: str) -> tuple[KeySpec, ...]:
    """Cowboy's limits, under RabbitMQ's names for them."""
    return (
        row(
            prefix + "request_timeout",
            _MILLISECONDS,
            "5000",
            "Time for the head of a request, and for the next one on a connection that is kept.",
        ),
        row(
            prefix + "idle_timeout",
            _MILLISECONDS,
            "60000",
            "Longest time without a byte while a body is read or an answer is written.",
        ),
        row(
            prefix + "inactivity_timeout",
            _MILLISECONDS,
            "300000",
            "Time for a whole body, and for the whole of an answer.",
        ),
        row(
            prefix + "max_keepalive",
            types.integer(1, 2**31 - 1),
            "1000",
            "Requests on one connection.",
        ),
        row(prefix + "compress", _BOOLEAN, "true", "Compress answers for clients that ask for it."),
    )


def _listener(prefix: str, port: int, what: str) -> tuple[KeySpec, ...]:
    return (
        row(
            prefix + "port",
            _PORT,
            None,
            f"Serve the management HTTP API {what} on this port. Unset: not at all (RabbitMQ "
            f"listens on {port} then).",
            example=str(port),
        ),
        row(prefix + "ip", _IP, None, "Its address; unset: all addresses.", example="127.0.0.1"),
        row(
            prefix + "max_connections",
            types.integer_or_infinity(1, 2**31 - 1),
            "1024",
            "Connections at a time; further ones are closed at once. RabbitMQ's default is "
            "`infinity`.",
        ),
        *_timers(prefix),
    )


def _tls(prefix: str) -> tuple[KeySpec, ...]:
    return (
        row(
            prefix + "cacertfile",
            _PEM,
            None,
            "Authorities that may sign client certificates.",
            example="/etc/gatekeeper/ca.pem",
        ),
        row(
            prefix + "certfile",
            _PEM,
            None,
            "The certificate, with intermediate ones.",
            example="/etc/gatekeeper/cert.pem",
        ),
        row(prefix + "keyfile", _PEM, None, "Its private key.", example="/etc/gatekeeper/key.pem"),
        row(
            prefix + "password",
            types.secret(),
            None,
            "Passphrase of the private key.",
            example="$(</run/secrets/key-passphrase)",
        ),
        row(
            prefix + "verify",
            types.enum("verify_peer", "verify_none"),
            "verify_none",
            "Check the certificates of clients.",
        ),
        row(
            prefix + "fail_if_no_peer_cert",
            _BOOLEAN,
            "false",
            "Refuse clients without a certificate.",
        ),
        row(prefix + "depth", types.integer(0, 255), "1", "As `ssl_options.depth`."),
        row(prefix + "versions.$version", _VERSION, _VERSIONS, "As `ssl_options.versions`."),
        row(
            prefix + "honor_cipher_order",
            _BOOLEAN,
            None,
            "As `ssl_options.honor_cipher_order`.",
            example="true",
        ),
    )


SECTION = Section(
    "The management HTTP API",
    (
        *_listener("management.tcp.", 15672, "without TLS"),
        *_listener("management.ssl.", 15671, "over TLS"),
        *_tls("management.ssl."),
        row(
            "management.ssl.ciphers.$cipher",
            _CIPHER,
            None,
            "As `ssl_options.ciphers`.",
            example={"1": "ECDHE-ECDSA-AES256-GCM-SHA384"},
        ),
        row(
            "management.listener.port",
            _PORT,
            None,
            "Old name of `management.tcp.port` or, with `management.listener.ssl`, "
            "`management.ssl.port`; one more listener beside those.",
            example="15672",
        ),
        row("management.listener.ip", _IP, None, "Old name of the same.", example="127.0.0.1"),
        row("management.listener.ssl", _BOOLEAN, "false", "That listener speaks TLS."),
        row(
            "management.listener.ssl_opts",
            types.enum("none"),
            None,
            "`none`: no `management.listener.ssl_opts.*` counts.",
            example="none",
        ),
        *_timers("management.listener.server."),
        *_tls("management.listener.ssl_opts."),
        row(
            "management.path_prefix",
            types.string(pattern=r"[A-Za-z0-9._~/-]*", expected="a path without escapes"),
            None,
            "Serve everything below this path: `/rabbit` makes it `/rabbit/api/...`.",
            example="/rabbit",
        ),
        row(
            "management.http.max_body_size",
            types.integer(0, 2**31 - 1, "bytes"),
            "10000000",
            "Largest request body; larger ones are refused with 400.",
        ),
        row(
            "management.http.hide_allow_header",
            _BOOLEAN,
            "false",
            "Send the header Allow with 405 only.",
        ),
        row(
            "management.cors.allow_origins",
            types.enum("none"),
            None,
            "`none` wins over all `management.cors.allow_origins.*`.",
            example="none",
        ),
        row(
            "management.cors.allow_origins.$name",
            _TEXT,
            None,
            "A web page from this origin may use the API; `*`: from any, without credentials.",
            example={"1": "https://console.example.com"},
        ),
        row(
            "management.cors.max_age",
            types.integer(0, 2**31 - 1, "seconds"),
            "1800",
            "How long a browser may remember that.",
        ),
        row(
            "management.csp.policy",
            _TEXT,
            "script-src 'self'; object-src 'self'",
            "Content-Security-Policy of every answer.",
        ),
        row(
            "management.hsts.policy",
            _TEXT,
            None,
            "Strict-Transport-Security of every answer.",
            example="max-age=31536000; includeSubDomains",
        ),
        *(
            row(f"management.headers.{name}", _TEXT, None, f"{header} of every answer.", example=e)
            for name, header, e in (
                ("content_type_options", "X-Content-Type-Options", "nosniff"),
                ("xss_protection", "X-XSS-Protection", "1; mode=block"),
                ("frame_options", "X-Frame-Options", "DENY"),
                ("referrer_policy", "Referrer-Policy", "no-referrer"),
            )
        ),
        row(
            "management.disable_basic_auth",
            _BOOLEAN,
            "false",
            "Refuse user name and password in requests; tokens (`Bearer`) remain.",
        ),
        row(
            "management.login_session_timeout",
            types.integer(0, 2**31 - 1, "minutes"),
            None,
            "Told to clients by whoami and login, for them to keep.",
            example="60",
        ),
        row(
            "management.disable_stats",
            _BOOLEAN,
            "false",
            "Answer without statistics of connections; channels are not listed then.",
        ),
        row(
            "management.definitions.require_json_extension",
            _BOOLEAN,
            "false",
            "An uploaded definitions file (multipart) must be called `*.json`.",
        ),
    ),
)
