"""What the configuration says, as plain values: the one thing every other room reads.

Strategy: frozen values with everything resolved (defaults applied, secrets decrypted, paths
checked, units converted to seconds and bytes). Nothing here parses or validates; that is
:mod:`gatekeeper.config.build`. The names follow RabbitMQ's keys
(https://www.rabbitmq.com/docs/configure); the gate's own are in DESIGN.md section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gatekeeper.model import Secret

if TYPE_CHECKING:
    from gatekeeper.config.backends import BackendsSettings
    from gatekeeper.config.ldap import LdapSettings  # which is made of settings of this file
    from gatekeeper.config.oauth2 import OAuth2Settings  # which is made of settings of this file
    from gatekeeper.config.tokens import TokenGrant  # which is made of settings of this file

LogLevel = Literal[
    "debug", "info", "notice", "warning", "error", "critical", "alert", "emergency", "none"
]
LogFormat = Literal["plaintext", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen or connect.

    host: an IP literal (a host name too, for upstream servers), without brackets; ``""``
        means all interfaces, IPv4 and IPv6.
    port: 1 to 65535; a listener may say 0 (the system chooses).
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """``tcp_listen_options.*``. None: leave it to the operating system.

    linger: on or off, and seconds (SO_LINGER).
    sndbuf, recbuf: bytes.
    """

    backlog: int = 128
    nodelay: bool = True
    linger: tuple[bool, int] = (True, 0)
    keepalive: bool | None = None
    sndbuf: int | None = None
    recbuf: int | None = None
    tos: int | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """``ssl_options.*``: TLS towards the clients.

    certfile and keyfile are set wherever there is a TLS listener; cacertfile wherever
    verify_peer is.
    depth: the longest chain of intermediate certificates a client may present. Python's ssl
        cannot enforce it, of which Settings.warnings tells.
    versions: of ``tlsv1``, ``tlsv1.1``, ``tlsv1.2``, ``tlsv1.3``; ascending, without gaps.
    ciphers: for TLS 1.2 and older, in the operator's order; empty: the TLS library's default.
        Those of TLS 1.3 cannot be chosen in Python 3.11.
    honor_cipher_order: None: the TLS library's default.
    """

    cacertfile: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    password: Secret | None = None
    verify_peer: bool = False
    fail_if_no_peer_cert: bool = False
    depth: int = 1
    versions: tuple[str, ...] = ("tlsv1.2", "tlsv1.3")
    ciphers: tuple[str, ...] = ()
    honor_cipher_order: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """``upstreams.NAME.ssl_options.*``: TLS towards a broker.

    cacertfile: None with verify_peer means the system's trusted authorities.
    verify_peer: check the broker's certificate and its name.
    sni: the name to ask for and to check; None is the host name, ``""`` sends none and checks
        none, as RabbitMQ's ``sni = none``.
    depth, versions, ciphers: as in :class:`ServerTls`.
    """

    cacertfile: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    password: Secret | None = None
    verify_peer: bool = True
    sni: str | None = None
    depth: int = 1
    versions: tuple[str, ...] = ("tlsv1.2", "tlsv1.3")
    ciphers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is offered at ``connection.tune``.

    channel_max: channels a connection; 0 is no limit.
    frame_max: bytes; 0 is no limit. initial_frame_max: bytes, until the tuning is done.
    heartbeat: seconds; 0 is off.
    max_message_size: bytes of a body; None leaves it to the broker.
    """

    channel_max: int = 2047
    frame_max: int = 131072
    heartbeat: int = 60
    initial_frame_max: int = 8192
    max_message_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendPair:
    """One position of ``auth_backends``: RabbitMQ's module names, or third parties' names.

    both: one backend was named for both halves. place: where, for messages.
    """

    authn: str
    authz: tuple[str, ...]
    both: bool = False
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertLogin:
    """``ssl_cert_login_*``: where in its certificate EXTERNAL finds a client's name.

    san_index: among the alternative names of san_type, from 0.
    """

    source: Literal["distinguished_name", "common_name", "subject_alternative_name"] = (
        "distinguished_name"
    )
    san_type: Literal["dns", "ip", "email", "uri", "other_name"] = "dns"
    san_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Anonymous:
    """``anonymous_login_*``: whom the mechanism ANONYMOUS logs in."""

    user: bytes
    password: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Regular expressions, as RabbitMQ's ``set_permissions`` takes them."""

    configure: bytes
    write: bytes
    read: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """What a blank user database starts with (``default_user`` and its kin)."""

    user: bytes
    password: Secret
    vhost: bytes
    permissions: Permissions
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialRules:
    """``credential_validator.*``: what a new password must be like; at most one of the two.

    min_length: bytes. regexp: must match anywhere in it.
    """

    min_length: int | None = None
    regexp: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultUser:
    """``default_users.NAME.*``: who gets these permissions in each new vhost that matches.

    vhost_pattern: matches anywhere in the vhost's name.
    password, tags: for the case that there is no such user yet; None is no password.
    """

    name: bytes
    vhost_pattern: bytes = b".*"
    permissions: Permissions
    password: Secret | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultLimits:
    """``default_limits.vhosts.ID.*``: of each new vhost that matches, by RabbitMQ's names."""

    pattern: bytes = b".*"
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class VhostDefaults:
    """What each new vhost gets: of the limits the first that match, and all users that do."""

    limits: tuple[DefaultLimits, ...] = ()
    users: tuple[DefaultUser, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDefinitions:
    """A file or a directory of files. key: of the path, for messages."""

    key: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpsDefinitions:
    """url: an https:// URL; it may hold a password."""

    url: Secret
    tls: ClientTls = field(default_factory=ClientTls)


@dataclass(frozen=True, slots=True, kw_only=True)
class DefinitionsSettings:
    """What is imported at the start, in this order.

    sources: none means that no definitions are configured, and a blank store is seeded.
    hashing_algorithm: ``sha``, ``sha224``, ``sha256``, ``sha384`` or ``sha512``.
    """

    sources: tuple[LocalDefinitions | HttpsDefinitions, ...] = ()
    skip_if_unchanged: bool = False
    hashing_algorithm: str = "sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One broker or cluster behind the gate.

    servers: at least one, in the order to try.
    vhosts: routed here; the upstream ``default`` also serves every vhost routed nowhere else.
    credentials: ``service`` logs in upstream as username, ``client`` as the client did.
    username, password: the service account; both empty where there is none.
    token: where the token comes from that is its password then, by a grant or from a file.
    auth_mechanism: of the service account; EXTERNAL logs in by the certificate of ``tls``.
    tls: None is a plain connection.
    proxy_protocol: the header that tells the broker the client's address, None for no header.
    """

    name: str
    servers: tuple[Address, ...]
    vhosts: tuple[bytes, ...] = ()
    credentials: Literal["service", "client"] = "service"
    username: bytes = b""
    password: Secret = field(default_factory=lambda: Secret(b""))
    token: TokenGrant | Path | None = None
    auth_mechanism: Literal["PLAIN", "EXTERNAL"] = "PLAIN"
    tls: ClientTls | None = None
    proxy_protocol: Literal["v1", "v2"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """``log.*``. RabbitMQ's precedence (rabbit_prelaunch_logging): a category's own level,
    else the output's, else ``log.default.level``.

    console_level, file_level: of every category that is not in ``levels``; resolved.
    levels: category (``connection``, ``channel``, ``user``, ``audit``) to its own level, only
        where one is set; ``default`` is always there.
    """

    console: bool = True
    console_stdio: Literal["stdout", "stderr"] = "stdout"
    console_level: LogLevel = "info"
    console_formatter: LogFormat = "plaintext"
    console_use_colors: bool = True
    file: Path | None = None
    file_level: LogLevel = "info"
    file_formatter: LogFormat = "plaintext"
    levels: Mapping[str, LogLevel] = field(default_factory=lambda: {"default": "info"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementListener:
    """``management.tcp.*``, ``management.ssl.*`` or ``management.listener.*``.

    tls: None is plain HTTP. tls_keys: what the names of its options begin with, for messages.
    max_connections: None is no limit. max_keepalive: requests a connection.
    request_timeout: for the head of a request. idle_timeout: without a byte of a body or an
        answer. inactivity_timeout: for a whole body or a whole answer. All in seconds.
    """

    address: Address
    tls: ServerTls | None = None
    tls_keys: str = ""
    max_connections: int | None = 1024
    request_timeout: float = 5.0
    idle_timeout: float = 60.0
    inactivity_timeout: float = 300.0
    max_keepalive: int = 1000
    compress: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Management:
    """``management.*``: the HTTP API. Off where there is no listener.

    path_prefix: ``""``, or a path with a leading and without a trailing slash.
    max_body_size: bytes. cors_max_age: seconds. login_session_timeout: minutes, for clients.
    headers: sent with every answer, name and value.
    """

    listeners: tuple[ManagementListener, ...] = ()
    path_prefix: str = ""
    max_body_size: int = 10_000_000
    hide_allow_header: bool = False
    cors_origins: frozenset[str] = frozenset()
    cors_max_age: int = 1800
    headers: tuple[tuple[str, str], ...] = (
        ("Content-Security-Policy", "script-src 'self'; object-src 'self'"),
    )
    disable_basic_auth: bool = False
    login_session_timeout: int | None = None
    disable_stats: bool = False
    require_json_extension: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """``control.*``.

    socket: the local socket of gatekeeperctl; None: there is none.
    configured: the operator has named it, so a gate that cannot have it must not start.
    """

    socket: Path | None = None
    configured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration, valid as far as can be told without opening a socket.

    handshake_timeout, ssl_handshake_timeout, drain_timeout: seconds; a handshake_timeout of
        None never ends.
    store_url: ``sqlite:///PATH`` or ``sqlite::memory:``. Hidden from ``repr``: other stores hold
        a password in it.
    workers: processes that serve clients; with more than one the store is a file.
    ldap: None where no ``auth_ldap.*`` is set.
    permission_cache_ttl: seconds; 0 is no limit.
    warnings: what the operator should know, one line each; the caller logs them.
    """

    tcp_listeners: tuple[Address, ...]
    ssl_listeners: tuple[Address, ...]
    socket: SocketOptions
    tls: ServerTls | None
    proxy_protocol: bool
    handshake_timeout: float | None
    ssl_handshake_timeout: float
    limits: Limits
    auth_mechanisms: tuple[str, ...]
    cert_login: CertLogin = field(default_factory=CertLogin)
    anonymous: Anonymous | None
    auth_backends: tuple[BackendPair, ...]
    backends: BackendsSettings
    loopback_users: frozenset[bytes]
    seed: Seed
    password_hashing: str
    credentials: CredentialRules = CredentialRules()
    vhost_defaults: VhostDefaults = VhostDefaults()
    definitions: DefinitionsSettings = DefinitionsSettings()
    log: LogSettings
    upstreams: Mapping[str, Upstream]
    store_url: str = field(repr=False)
    drain_timeout: float
    control: ControlSettings = field(default_factory=ControlSettings)
    management: Management = field(default_factory=Management)
    workers: int = 1
    ldap: LdapSettings | None = None
    oauth2: OAuth2Settings | None = None
    password_change_closes_connections: bool = False
    permission_cache_ttl: float = 30.0
    warnings: tuple[str, ...] = ()
