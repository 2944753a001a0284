"""The one table of the keys that the gate supports, and the documents made from it.

Strategy: a KeySpec is a pattern, a type, what holds when it is not set, and one sentence.
Defaults are written as an operator would write them and go through the same conversion, so the
table cannot say one thing and the code do another. ``config/gatekeeper.annotated.conf`` and
the README's table are generated from here and compared by a test.

Longer than a module should be, because a table that is spread out cannot be checked by eye.

Names, types and defaults are RabbitMQ 4.3's (https://www.rabbitmq.com/docs/configure) except
for the gate's own keys (DESIGN.md section 7). A ``$word`` in a pattern is exactly one free word.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from gatekeeper.config import datatypes as types
from gatekeeper.config import (
    keys_accounts,
    keys_backends,
    keys_definitions,
    keys_management,
    keys_oauth2,
    keys_tokens,
)
from gatekeeper.config.conf import Key
from gatekeeper.config.encrypted import CIPHERS, HASHES
from gatekeeper.config.keys_backends import BACKEND
from gatekeeper.config.keys_control import SECTION as _CONTROL
from gatekeeper.config.keys_ldap import SECTION as _LDAP
from gatekeeper.config.keys_live import SECTION as _LIVE
from gatekeeper.config.keys_staleness import SECTION as _STALENESS
from gatekeeper.config.spec import KeySpec, Section, matches, row

_BOOLEAN = types.switch("true", "false", "boolean")
_FLAG = types.switch("on", "off", "on or off")
_NONE = types.enum("none")
_TEXT = types.string()
_NAME = types.string(pattern=".+", expected="a name, not an empty text")
_SECRET = types.secret()
_PEM = types.pem_file()
_LISTENER = types.listener()
_MECHANISM = types.enum("PLAIN", "AMQPLAIN", "ANONYMOUS", "EXTERNAL", "RABBIT-CR-DEMO")
_TLS_VERSION = types.enum("tlsv1", "tlsv1.1", "tlsv1.2", "tlsv1.3")
_VERIFY = types.enum("verify_peer", "verify_none")
_DEPTH = types.integer(0, 255)
_LEVEL = types.enum(
    "debug", "info", "notice", "warning", "error", "critical", "alert", "emergency", "none"
)
_FORMAT = types.enum("plaintext", "json")
_INT32 = 2**31 - 1
_UINT32 = 2**32 - 1
_BUFFER = types.integer(1, _INT32, "bytes")
_CHANNELS = types.integer(0, 65535)
_VERSIONS = {"1": "tlsv1.2", "2": "tlsv1.3"}
_CIPHER = {"1": "ECDHE-ECDSA-AES256-GCM-SHA384", "2": "ECDHE-RSA-AES256-GCM-SHA384"}
_CIPHER_NAME = types.string(pattern="[A-Za-z0-9_-]+", expected="one OpenSSL cipher name")

_UPSTREAM = "upstreams.$name."

SECTIONS: tuple[Section, ...] = (
    Section(
        "Upstreams: the brokers behind the gate",
        (
            row(
                _UPSTREAM + "servers.$n",
                types.server(),
                None,
                "A broker of this upstream, tried in the order of the numbers. The upstream "
                "`default` must exist: it serves every virtual host that is routed nowhere else.",
                example={"1": "127.0.0.1:5673"},
                required=True,
            ),
            row(
                _UPSTREAM + "vhosts.$n",
                _NAME,
                None,
                "A virtual host that is routed to this upstream.",
                example={"1": "orders"},
            ),
            row(
                _UPSTREAM + "credentials",
                types.enum("service", "client"),
                "service",
                "Log in to the broker with the service account, or with what the client presented "
                "(PLAIN and AMQPLAIN only).",
            ),
            row(
                _UPSTREAM + "username",
                _NAME,
                None,
                "The service account. With a token it may be left out; the broker takes the "
                "name from the token.",
                example="gatekeeper",
                required=True,
            ),
            row(
                _UPSTREAM + "password",
                _SECRET,
                None,
                "Its password; also `encrypted:...`, `$(<file)` or `$(VARIABLE)`.",
                example="$(GATEKEEPER_UPSTREAM_PASSWORD)",
                required=True,
            ),
            row(
                _UPSTREAM + "auth_mechanism",
                types.enum("PLAIN", "EXTERNAL"),
                "PLAIN",
                "How the service account logs in; `EXTERNAL`: by the certificate of this "
                "upstream's ssl_options, and without a password.",
            ),
            row(
                _UPSTREAM + "ssl",
                _BOOLEAN,
                "false",
                "Speak TLS to the broker.",
            ),
            row(
                _UPSTREAM + "ssl_options.cacertfile",
                _PEM,
                None,
                "Authorities that may sign the broker's certificate; unset: those the system "
                "trusts.",
                example="/etc/gatekeeper/broker-ca.pem",
            ),
            row(
                _UPSTREAM + "ssl_options.certfile",
                _PEM,
                None,
                "Client certificate to present to the broker.",
                example="/etc/gatekeeper/client.pem",
            ),
            row(
                _UPSTREAM + "ssl_options.keyfile",
                _PEM,
                None,
                "Its private key.",
                example="/etc/gatekeeper/client-key.pem",
            ),
            row(
                _UPSTREAM + "ssl_options.password",
                _SECRET,
                None,
                "Passphrase of the private key.",
                example="$(GATEKEEPER_CLIENT_KEY_PASSPHRASE)",
            ),
            row(
                _UPSTREAM + "ssl_options.verify",
                _VERIFY,
                "verify_peer",
                "Check the broker's certificate and its name.",
            ),
            row(
                _UPSTREAM + "ssl_options.sni",
                _TEXT,
                None,
                "The name to ask for and to check; unset: the server's host name; `none`: "
                "neither ask for a name nor check it.",
                example="broker.example.com",
            ),
            row(
                _UPSTREAM + "ssl_options.depth",
                _DEPTH,
                "1",
                "Longest chain of intermediate certificates that is accepted.",
            ),
            row(
                _UPSTREAM + "ssl_options.versions.$version",
                _TLS_VERSION,
                _VERSIONS,
                "A TLS version to offer; the enabled ones must have no gap.",
            ),
            row(
                _UPSTREAM + "ssl_options.ciphers.$cipher",
                _CIPHER_NAME,
                None,
                "A cipher suite to offer, in this order; unset: OpenSSL's default.",
                example=_CIPHER,
            ),
            row(
                _UPSTREAM + "proxy_protocol",
                types.enum("v1", "v2"),
                None,
                "Tell the broker the client's address with a PROXY protocol header of this "
                "version.",
                example="v2",
            ),
        ),
    ),
    keys_tokens.SECTION,
    Section(
        "Listeners",
        (
            row(
                "listeners.tcp.$name",
                _LISTENER,
                {"default": "5672"},
                "A plain AMQP listener; the last word is only a label. IPv6 goes without brackets.",
            ),
            row(
                "listeners.tcp",
                _NONE,
                None,
                "`none` opens no plain listener and wins over all `listeners.tcp.*`.",
                example="none",
            ),
            row(
                "listeners.ssl.$name",
                _LISTENER,
                None,
                "A TLS listener.",
                example={"default": "5671"},
            ),
            row(
                "listeners.ssl",
                _NONE,
                None,
                "`none` opens no TLS listener and wins over all `listeners.ssl.*`.",
                example="none",
            ),
            row(
                "proxy_protocol",
                _BOOLEAN,
                "false",
                "Expect a PROXY protocol header (v1 or v2) on every connection and take the "
                "client's address from it.",
            ),
            row(
                "handshake_timeout",
                types.milliseconds(infinity=True),
                "10000",
                "Time for the AMQP handshake, login included.",
            ),
            row(
                "ssl_handshake_timeout",
                types.milliseconds(infinity=False),
                "5000",
                "Time for the TLS handshake.",
            ),
            row(
                "tcp_listen_options",
                _NONE,
                None,
                "`none` leaves every `tcp_listen_options.*` at its default.",
                example="none",
            ),
            row(
                "tcp_listen_options.backlog",
                types.integer(1, _INT32),
                "128",
                "Connections that may wait to be accepted.",
            ),
            row(
                "tcp_listen_options.nodelay",
                _BOOLEAN,
                "true",
                "TCP_NODELAY.",
            ),
            row(
                "tcp_listen_options.linger.on",
                _BOOLEAN,
                "true",
                "SO_LINGER.",
            ),
            row(
                "tcp_listen_options.linger.timeout",
                types.integer(0, 65535, "seconds"),
                "0",
                "SO_LINGER's time.",
            ),
            row(
                "tcp_listen_options.keepalive",
                _BOOLEAN,
                None,
                "SO_KEEPALIVE; unset: the system's default.",
                example="true",
            ),
            row(
                "tcp_listen_options.sndbuf",
                _BUFFER,
                None,
                "SO_SNDBUF; unset: the system's default.",
                example="196608",
            ),
            row(
                "tcp_listen_options.recbuf",
                _BUFFER,
                None,
                "SO_RCVBUF; unset: the system's default.",
                example="196608",
            ),
            row(
                "tcp_listen_options.tos",
                types.integer(0, 255),
                None,
                "IP_TOS; unset: the system's default.",
                example="16",
            ),
            row(
                "tcp_listen_options.priority",
                types.integer(0, _INT32),
                None,
                "SO_PRIORITY; unset: the system's default.",
                example="4",
            ),
        ),
    ),
    Section(
        "TLS towards clients",
        (
            row(
                "ssl_options",
                _NONE,
                None,
                "`none` drops every `ssl_options.*`.",
                example="none",
            ),
            row(
                "ssl_options.cacertfile",
                _PEM,
                None,
                "Authorities that may sign client certificates.",
                example="/etc/gatekeeper/ca.pem",
            ),
            row(
                "ssl_options.certfile",
                _PEM,
                None,
                "The gate's certificate and its chain.",
                example="/etc/gatekeeper/server.pem",
            ),
            row(
                "ssl_options.keyfile",
                _PEM,
                None,
                "Its private key.",
                example="/etc/gatekeeper/server-key.pem",
            ),
            row(
                "ssl_options.password",
                _SECRET,
                None,
                "Passphrase of the private key.",
                example="$(GATEKEEPER_KEY_PASSPHRASE)",
            ),
            row(
                "ssl_options.verify",
                _VERIFY,
                "verify_none",
                "`verify_peer` asks clients for a certificate and checks it.",
            ),
            row(
                "ssl_options.fail_if_no_peer_cert",
                _BOOLEAN,
                "false",
                "With `verify_peer`: refuse clients that present none.",
            ),
            row(
                "ssl_options.depth",
                _DEPTH,
                "1",
                "Longest chain of intermediate certificates that is accepted.",
            ),
            row(
                "ssl_options.versions.$version",
                _TLS_VERSION,
                _VERSIONS,
                "A TLS version to accept; the enabled ones must have no gap.",
            ),
            row(
                "ssl_options.ciphers.$cipher",
                _CIPHER_NAME,
                None,
                "A cipher suite to accept, in this order; unset: OpenSSL's default.",
                example=_CIPHER,
            ),
            row(
                "ssl_options.honor_cipher_order",
                _BOOLEAN,
                None,
                "Prefer the gate's order of ciphers to the client's; unset: OpenSSL's default.",
                example="true",
            ),
        ),
    ),
    Section(
        "Authentication and access control",
        (
            row(
                "auth_mechanisms.$name",
                _MECHANISM,
                {"1": "PLAIN", "2": "AMQPLAIN", "3": "ANONYMOUS"},
                "A SASL mechanism to offer, in the alphabetical order of the last words.",
            ),
            row(
                "anonymous_login_user",
                _NAME,
                "guest",
                "The user that ANONYMOUS logs in; `none`: it is not offered.",
            ),
            row(
                "anonymous_login_pass",
                _SECRET,
                "guest",
                "Its password, which the backends judge like anybody's.",
            ),
            row(
                "ssl_cert_login_from",
                types.enum(
                    *("distinguished_name", "common_name"),
                    *("subject_alternative_name", "subject_alt_name"),
                ),
                "distinguished_name",
                "Where EXTERNAL finds the user's name in the client's certificate.",
            ),
            row(
                "ssl_cert_login_san_type",
                types.enum("dns", "ip", "email", "uri", "other_name"),
                "dns",
                "The type of alternative name that is the user's.",
            ),
            row(
                "ssl_cert_login_san_index",
                types.integer(0, 1000),
                "0",
                "Which alternative name of this type, counted from 0.",
            ),
            row(
                "auth_backends.$num",
                BACKEND,
                {"1": "internal"},
                "A backend that authenticates and authorises, asked in numerical order.",
            ),
            row(
                "auth_backends.$num.authn",
                BACKEND,
                None,
                "The backend that authenticates at this position.",
                example={"1": "internal"},
            ),
            row(
                "auth_backends.$num.authz",
                BACKEND,
                None,
                "The backend that authorises at this position.",
                example={"1": "internal"},
            ),
            row(
                "loopback_users.$user",
                _BOOLEAN,
                {"guest": "true"},
                "`true`: this user may only log in from the gate's own host. Any such key "
                "replaces the default list.",
            ),
            row(
                "loopback_users",
                _NONE,
                None,
                "`none` empties the list and wins over all `loopback_users.*`.",
                example="none",
            ),
            row(
                "password_hashing_module",
                types.enum(
                    "rabbit_password_hashing_sha256",
                    "rabbit_password_hashing_sha512",
                    "rabbit_password_hashing_md5",
                    "argon2id",
                    "gatekeeper_password_hashing_argon2id",
                ),
                "rabbit_password_hashing_sha256",
                "How new passwords are hashed. `argon2id`, which RabbitMQ lacks, is the hard one "
                "to guess by: some 20 ms a login, and passwords kept otherwise are hashed anew at "
                "the next login. It needs the extra `argon2`.",
            ),
        ),
    ),
    _LDAP,
    Section(
        "What a blank user database starts with",
        (
            row(
                "default_user",
                _NAME,
                "guest",
                "The first user; the variable RABBITMQ_DEFAULT_USER wins over it.",
            ),
            row(
                "default_pass",
                _SECRET,
                "guest",
                "Its password; the variable RABBITMQ_DEFAULT_PASS wins over it.",
            ),
            row(
                "default_vhost",
                _NAME,
                "/",
                "The first virtual host; the variable RABBITMQ_DEFAULT_VHOST wins over it.",
            ),
            row(
                "default_permissions.configure",
                _TEXT,
                ".*",
                "What the first user may configure. Give all three permissions or none.",
            ),
            row(
                "default_permissions.read",
                _TEXT,
                ".*",
                "What the first user may read.",
            ),
            row(
                "default_permissions.write",
                _TEXT,
                ".*",
                "What the first user may write.",
            ),
            row(
                "default_user_tags.$tag",
                _BOOLEAN,
                {"administrator": "true"},
                "`true`: the first user has this tag. Any such key replaces the default.",
            ),
        ),
    ),
    *keys_accounts.SECTIONS,
    *keys_definitions.SECTIONS,
    Section(
        "Protocol limits",
        (
            row(
                "heartbeat",
                types.integer(0, 65535, "seconds"),
                "60",
                "The heartbeat that is suggested to clients; 0 is off.",
            ),
            row(
                "frame_max",
                types.bytesize(8192, _UINT32, zero=True),
                "131072",
                "Largest frame that is offered; 0 is no limit.",
            ),
            row(
                "initial_frame_max",
                types.bytesize(4096, _UINT32),
                "8192",
                "Largest frame before the login is through.",
            ),
            row(
                "max_channels_per_connection",
                _CHANNELS,
                "2047",
                "Channels that are offered; 0 is no limit.",
            ),
            row(
                "channel_max",
                _CHANNELS,
                None,
                "Old name of `max_channels_per_connection`, which wins over it.",
                example="2047",
            ),
            row(
                "max_message_size",
                types.integer(1, 536870912, "bytes"),
                None,
                "Largest message body; unset: the broker's own limit.",
                example="16777216",
            ),
        ),
    ),
    Section(
        "Logs",
        (
            row(
                "log.default.level",
                _LEVEL,
                "info",
                "Level of everything that has no level of its own.",
            ),
            row(
                "log.connection.level",
                _LEVEL,
                None,
                "Level of connections that open and close.",
                example="info",
            ),
            row(
                "log.channel.level",
                _LEVEL,
                None,
                "Level of channel errors.",
                example="info",
            ),
            row(
                "log.user.level",
                _LEVEL,
                None,
                "Level of logins and refusals.",
                example="info",
            ),
            row(
                "log.audit.level",
                _LEVEL,
                None,
                "Level of what administrators do, and of what they may not (`warning`).",
                example="info",
            ),
            row(
                "log.console",
                _BOOLEAN,
                "true",
                "Log to the console.",
            ),
            row(
                "log.console.level",
                _LEVEL,
                None,
                "The console's level; unset: `log.default.level`. A category's own level wins.",
                example="info",
            ),
            row(
                "log.console.stdio",
                types.enum("stdout", "stderr"),
                "stdout",
                "Which stream the console is.",
            ),
            row(
                "log.console.formatter",
                _FORMAT,
                "plaintext",
                "Lines for people or JSON.",
            ),
            row(
                "log.console.use_colors",
                _FLAG,
                "on",
                "Colour the level, where the console is a terminal.",
            ),
            row(
                "log.file",
                types.output_path(off="false"),
                "false",
                "Log to this file; `false` for none. Reopened when it was moved away (logrotate).",
            ),
            row(
                "log.dir",
                types.output_path(),
                None,
                "Directory of a relative `log.file`; unset: the work directory.",
                example="/var/log/gatekeeper",
            ),
            row(
                "log.file.level",
                _LEVEL,
                None,
                "The file's level; unset: `log.default.level`. A category's own level wins.",
                example="info",
            ),
            row(
                "log.file.formatter",
                _FORMAT,
                "plaintext",
                "Lines for people or JSON.",
            ),
        ),
    ),
    _CONTROL,
    keys_management.SECTION,
    Section(
        "Erlang terms",
        (
            row(
                "advanced_config",
                types.readable_path(),
                None,
                "RabbitMQ's advanced.config, whose settings win over those of this file; the "
                "variable RABBITMQ_ADVANCED_CONFIG_FILE wins over this key.",
                example="/etc/gatekeeper/advanced.config",
            ),
        ),
    ),
    Section(
        "Encrypted values",
        (
            row(
                "config_entry_decoder.passphrase",
                _SECRET,
                None,
                "Passphrase of all `encrypted:` values; usually `$(<file)` or `$(VARIABLE)`.",
                example="$(GATEKEEPER_CONFIG_PASSPHRASE)",
            ),
            row(
                "config_entry_decoder.cipher",
                types.enum(*CIPHERS),
                "aes_128_cbc",
                "The cipher that `rabbitmqctl encode` used.",
            ),
            row(
                "config_entry_decoder.hash",
                types.enum(*HASHES),
                "sha256",
                "Its hash.",
            ),
            row(
                "config_entry_decoder.iterations",
                types.integer(1, 10_000_000),
                "1",
                "Its iterations.",
            ),
        ),
    ),
    Section(
        "The gate itself",
        (
            row(
                "store.url",
                types.string(
                    pattern=r"sqlite:(///[^\0?#]*[^\0?#/]|:memory:)",
                    expected="sqlite:///PATH",
                    hidden=True,
                ),
                "sqlite:///var/lib/gatekeeper/gatekeeper.db",
                "Where users and permissions live: `sqlite:///PATH`. The path counts from the "
                "root, not from the work directory.",
            ),
            row(
                "drain_timeout",
                types.duration(),
                "10000",
                "Time for clients to finish on SIGTERM: milliseconds, or a duration such as `30s`.",
            ),
            row(
                "workers",
                types.integer(1, 64),
                "1",
                "Processes that share the listeners, the store and one control plane; up to one "
                "for each core is of use. With more than one, a supervisor starts, watches and "
                "replaces them.",
            ),
        ),
    ),
    *keys_backends.SECTIONS,
    *keys_oauth2.SECTIONS,
    _LIVE,
    _STALENESS,
)

KEYS: tuple[KeySpec, ...] = tuple(spec for section in SECTIONS for spec in section.keys)
BY_PATTERN: Mapping[str, KeySpec] = MappingProxyType({spec.pattern: spec for spec in KEYS})


def find(key: Key) -> KeySpec | None:
    """The row of a key. No two rows match one key, which a test keeps so."""
    return next((spec for spec in KEYS if matches(spec.words, key)), None)


def markdown_table() -> str:
    """The key table for the README, between ``<!-- keys:begin -->`` and ``<!-- keys:end -->``."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for spec in KEYS:
        default = ", ".join(f"`{text}`" for text in spec.default.values())
        lines.append(f"| `{spec.pattern}` | {spec.type.name} | {default} | {spec.doc} |")
    return "\n".join(lines) + "\n"


def annotated_conf() -> str:
    """The text of ``config/gatekeeper.annotated.conf``."""
    return "\n".join(_annotated_lines()) + "\n"


def _annotated_lines() -> Iterator[str]:
    yield "# Every key that gatekeeper supports. A line '# key = value' shows a default, except"
    yield "# where it is marked as an example: there, nothing is set unless you set it."
    yield "# The format is rabbitmq.conf's. Paths are relative to the work directory."
    for section in SECTIONS:
        yield from ("", "#", f"# {section.title}", "#")
        for spec in section.keys:
            yield ""
            note = "" if spec.default or spec.required else " (Example.)"
            yield from textwrap.wrap(
                spec.doc + note,
                initial_indent="## ",
                subsequent_indent="## ",
                width=98,
                break_on_hyphens=False,
            )
            yield f"## Type: {spec.type.name}"
            for key, text in (spec.default or spec.example).items():
                yield f"{'' if spec.required else '# '}{key} = {text}"
