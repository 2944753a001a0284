"""The keys of definitions that are imported at the start."""

from __future__ import annotations

from gatekeeper.config import datatypes as types
from gatekeeper.config.spec import Section, row

LOCAL = ("local_filesystem", "local", "rabbit_definitions_import_local_filesystem")
HTTPS = ("https", "http", "rabbit_definitions_import_https")
_PREFIXED = (
    "rabbitmq_definitions_import_local_filesystem",
    "rabbitmq_definitions_import_http",
)
LOCAL_NAMES = frozenset({*LOCAL, _PREFIXED[0]})

_TLS = "definitions.tls."
_PEM = types.pem_file()
_PATH = types.readable_path()

SECTIONS = (
    Section(
        "Definitions: what is imported at the start",
        (
            row(
                "load_definitions",
                _PATH,
                None,
                "Users, virtual hosts and permissions to import at the start: a JSON file, or a "
                "directory of them. Where any definitions are configured, a blank user database "
                "gets no first user.",
                example="/etc/gatekeeper/definitions.json",
            ),
            row(
                "management.load_definitions",
                _PATH,
                None,
                "The same by an older name; imported last.",
                example="/etc/gatekeeper/definitions.json",
            ),
            row(
                "definitions.import_backend",
                types.enum(*LOCAL, *HTTPS, *_PREFIXED),
                None,
                "Where more definitions come from, after those of `load_definitions`; any other "
                "`definitions.*` key needs it.",
                example="local_filesystem",
            ),
            row(
                "definitions.local.path",
                _PATH,
                None,
                "The file or directory of `local_filesystem`.",
                example="/etc/gatekeeper/definitions.d",
            ),
            row(
                "definitions.https.url",
                types.secret(),
                None,
                "The URL of `https`; redirects are followed to https only.",
                example="https://config.example.com/definitions.json",
            ),
            row(
                "definitions.skip_if_unchanged",
                types.switch("true", "false", "boolean"),
                "false",
                "`true`: definitions are imported only if they differ from the last import; "
                "changes made since stay, and a large file does not delay the start.",
            ),
            row(
                "definitions.hashing.algorithm",
                types.enum("sha", "sha224", "sha256", "sha384", "sha512"),
                "sha256",
                "By what hash they are compared.",
            ),
            row(
                _TLS + "verify",
                types.enum("verify_peer", "verify_none"),
                "verify_peer",
                "`verify_none`: do not check the certificate of the `https` server.",
            ),
            row(
                _TLS + "cacertfile",
                _PEM,
                None,
                "The authorities it is checked against; unset: the system's.",
                example="/etc/gatekeeper/ca.pem",
            ),
            row(
                _TLS + "certfile",
                _PEM,
                None,
                "The certificate to show to that server.",
                example="/etc/gatekeeper/client.pem",
            ),
            row(
                _TLS + "keyfile",
                _PEM,
                None,
                "Its key.",
                example="/etc/gatekeeper/client-key.pem",
            ),
            row(
                _TLS + "password",
                types.secret(),
                None,
                "Passphrase of the key.",
                example="$(KEY_PASSPHRASE)",
            ),
            row(
                _TLS + "depth",
                types.integer(0, 255),
                "1",
                "Accepted for RabbitMQ's sake: it cannot be enforced.",
            ),
            row(
                _TLS + "versions.$version",
                types.enum("tlsv1", "tlsv1.1", "tlsv1.2", "tlsv1.3"),
                {"1": "tlsv1.2", "2": "tlsv1.3"},
                "TLS versions towards that server, without gaps.",
            ),
            row(
                _TLS + "ciphers.$cipher",
                types.string(pattern="[A-Za-z0-9_-]+", expected="one OpenSSL cipher name"),
                None,
                "Ciphers for TLS 1.2 and older, by OpenSSL's names.",
                example={"1": "ECDHE-RSA-AES256-GCM-SHA384"},
            ),
        ),
    ),
)
