"""A whole configuration: what the text means, and what an operator is told when it is wrong.

The meanings of RabbitMQ's keys were captured from RabbitMQ's own schema.
"""

# ruff: noqa: E501  (a row of the tables holds a whole message)

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatekeeper.config.load import load_settings
from gatekeeper.config.schema import KEYS
from gatekeeper.config.settings import (
    Address,
    Anonymous,
    BackendPair,
    CertLogin,
    ClientTls,
    ControlSettings,
    CredentialRules,
    DefaultLimits,
    DefaultUser,
    DefinitionsSettings,
    HttpsDefinitions,
    Limits,
    LocalDefinitions,
    LogSettings,
    ManagementListener,
    Permissions,
    Seed,
    ServerTls,
    Settings,
    SocketOptions,
    Upstream,
)
from gatekeeper.errors import ConfigError
from gatekeeper.model import Secret

BASE = """upstreams.default.servers.1 = broker:5672
upstreams.default.username = gk
upstreams.default.password = hunter2
"""
INTERNAL = "rabbit_auth_backend_internal"
PAIR = BackendPair(authn=INTERNAL, authz=(INTERNAL,), both=True)
SPLIT = BackendPair(authn=INTERNAL, authz=(INTERNAL,))
SECRET = Secret(b"hunter2")


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ca.pem, server.pem, server-key.pem and two files that are no PEM."""
    folder = tmp_path_factory.mktemp("pki")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert("gate.example.com")
    certificate.private_key_pem.write_to_path(folder / "server-key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    (folder / "no.pem").write_text("no certificate")
    (folder / "passphrase").write_text("mypass\n")
    return folder


@pytest.fixture
def here(pki: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Paths in the snippets are relative to the work directory."""
    monkeypatch.chdir(pki)
    return pki


def load(
    tmp_path: Path, text: str, environ: Mapping[str, str] | None = None, base: str = BASE
) -> Settings:
    (tmp_path / "gate.conf").write_text(base + text)
    return load_settings(tmp_path / "gate.conf", environ or {})


def test_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path, "")
    assert settings == Settings(
        tcp_listeners=(Address(host="", port=5672),),
        ssl_listeners=(),
        socket=SocketOptions(),
        tls=None,
        proxy_protocol=False,
        handshake_timeout=10.0,
        ssl_handshake_timeout=5.0,
        limits=Limits(),
        auth_mechanisms=("PLAIN", "AMQPLAIN", "ANONYMOUS"),
        anonymous=Anonymous(user=b"guest", password=Secret(b"guest")),
        auth_backends=(PAIR,),
        backends=settings.backends,
        permission_cache_ttl=30.0,
        loopback_users=frozenset({b"guest"}),
        seed=Seed(
            user=b"guest",
            password=Secret(b"guest"),
            vhost=b"/",
            permissions=Permissions(configure=b".*", write=b".*", read=b".*"),
            tags=("administrator",),
        ),
        password_hashing="rabbit_password_hashing_sha256",
        log=LogSettings(),
        upstreams={
            "default": Upstream(
                name="default",
                servers=(Address(host="broker", port=5672),),
                username=b"gk",
                password=SECRET,
            )
        },
        store_url="sqlite:///var/lib/gatekeeper/gatekeeper.db",
        drain_timeout=10.0,
        control=ControlSettings(socket=Path("/var/lib/gatekeeper/gatekeeper.db.sock")),
    )


def addresses(*pairs: tuple[str, int]) -> tuple[Address, ...]:
    return tuple(Address(host=host, port=port) for host, port in pairs)


LOG = LogSettings()
PERMISSIONS = Permissions(configure=b"a", write=b"c", read=b"b")

LOCAL = "definitions.import_backend = local\ndefinitions.local.path = ca.pem\n"
HTTPS = "definitions.import_backend = https\ndefinitions.https.url = https://u:p@h/d\n"
BY_PATH = LocalDefinitions(key="definitions.local.path", path=Path("ca.pem"))
BY_URL = HttpsDefinitions(url=Secret(b"https://u:p@h/d"))
DEFINITIONS = [
    (LOCAL, "definitions", DefinitionsSettings(sources=(BY_PATH,))),
    (LOCAL.replace("local\n", "local_filesystem\n", 1), "definitions.sources", (BY_PATH,)),
    (LOCAL.replace("local\n", "rabbitmq_definitions_import_local_filesystem\n", 1), "definitions.sources", (BY_PATH,)),
    (HTTPS, "definitions.sources", (BY_URL,)),
    (HTTPS.replace("https\n", "http\n", 1), "definitions.sources", (BY_URL,)),
    (HTTPS.replace("https\n", "rabbitmq_definitions_import_http\n", 1), "definitions.sources", (BY_URL,)),
    (HTTPS + "definitions.tls.cacertfile = ca.pem\ndefinitions.tls.verify = verify_none", "definitions.sources", (HttpsDefinitions(url=BY_URL.url, tls=ClientTls(cacertfile=Path("ca.pem"), verify_peer=False)),)),
    (LOCAL + "definitions.skip_if_unchanged = true\ndefinitions.hashing.algorithm = sha", "definitions", DefinitionsSettings(sources=(BY_PATH,), skip_if_unchanged=True, hashing_algorithm="sha")),
    (LOCAL + "management.load_definitions = .\nload_definitions = .", "definitions.sources", (LocalDefinitions(key="load_definitions", path=Path()), BY_PATH, LocalDefinitions(key="management.load_definitions", path=Path()))),
]  # fmt: skip
EVERYTHING = Permissions(configure=b".*", write=b".*", read=b".*")
VALIDATOR = "credential_validator.validation_backend = rabbit_credential_validator_"
ACCOUNTS = [
    (VALIDATOR + "accept_everything", "credentials", CredentialRules()),
    (VALIDATOR + "min_password_length", "credentials", CredentialRules(min_length=5)),
    (VALIDATOR + "min_password_length\ncredential_validator.min_length = 0", "credentials", CredentialRules(min_length=0)),
    (VALIDATOR + "password_regexp\ncredential_validator.regexp = ^.{8}", "credentials", CredentialRules(regexp=b"^.{8}")),
    ("credential_validator.min_length = 8", "credentials", CredentialRules()),
    ("default_users.x.password = a:b", "vhost_defaults.users", (DefaultUser(name=b"x", permissions=EVERYTHING, password=Secret(b"a:b")),)),
    ("default_users.b.tags = t, ,u\ndefault_users.a.vhost_pattern = ^v\ndefault_users.a.read = ^r\ndefault_users.a.write = ^w\ndefault_users.a.configure = ^c", "vhost_defaults.users", (DefaultUser(name=b"a", vhost_pattern=b"^v", permissions=Permissions(configure=b"^c", write=b"^w", read=b"^r")), DefaultUser(name=b"b", permissions=EVERYTHING, tags=("t", "u")))),
    ("default_limits.vhosts.2.max_queues = 7\ndefault_limits.vhosts.10.max_connections = 1\ndefault_limits.vhosts.10.pattern = ^v\ndefault_limits.vhosts.10.max_queues = 2", "vhost_defaults.limits", (DefaultLimits(pattern=b"^v", limits={"max-connections": 1, "max-queues": 2}), DefaultLimits(limits={"max-queues": 7}))),
    ("password_hashing_module = argon2id", "password_hashing", "gatekeeper_password_hashing_argon2id"),
    ("password_hashing_module = gatekeeper_password_hashing_argon2id", "password_hashing", "gatekeeper_password_hashing_argon2id"),
]  # fmt: skip
# fmt: off
MANAGEMENT_ACCEPTED = [
    ("management.tcp.port = 0\nmanagement.tcp.ip = ::1\nmanagement.tcp.request_timeout = 100\nmanagement.tcp.max_connections = infinity", (ManagementListener(address=Address(host="::1", port=0), request_timeout=0.1, max_connections=None),)),
    ("management.listener.port = 1\nmanagement.listener.server.compress = false", (ManagementListener(address=Address(host="", port=1), compress=False),)),
    ("management.listener.port = 1\nmanagement.listener.ssl = true\nmanagement.listener.ssl_opts.certfile = server.pem\nmanagement.listener.ssl_opts.keyfile = server-key.pem", (ManagementListener(address=Address(host="", port=1), tls=ServerTls(certfile=Path("server.pem"), keyfile=Path("server-key.pem")), tls_keys="management.listener.ssl_opts"),)),
    ("management.ssl.port = 1\nmanagement.ssl.certfile = server.pem\nmanagement.ssl.keyfile = server-key.pem\nmanagement.ssl.ciphers.1 = ECDHE-RSA-AES256-GCM-SHA384", (ManagementListener(address=Address(host="", port=1), tls=ServerTls(certfile=Path("server.pem"), keyfile=Path("server-key.pem"), ciphers=("ECDHE-RSA-AES256-GCM-SHA384",)), tls_keys="management.ssl"),)),
]
# fmt: on


@pytest.mark.parametrize(("text", "listeners"), MANAGEMENT_ACCEPTED)
@pytest.mark.usefixtures("here")
def test_management_listeners(
    tmp_path: Path, text: str, listeners: tuple[ManagementListener, ...]
) -> None:
    assert load(tmp_path, text).management.listeners == listeners


ACCEPTED = [
    # listeners and sockets
    ("listeners.tcp.a = 5673\nlisteners.tcp.b = ::1:5673\nlisteners.tcp.c = 10.0.0.1:5674", "tcp_listeners", addresses(("", 5673), ("::1", 5673), ("10.0.0.1", 5674))),
    ("listeners.tcp = none\nlisteners.tcp.a = 1\nlisteners.ssl.a = 5671\nssl_options.certfile = server.pem\nssl_options.keyfile = server-key.pem", "tcp_listeners", ()),
    ("listeners.ssl.a = 5671\nlisteners.ssl = none", "ssl_listeners", ()),
    ("listeners.tcp.a = 127.0.0.1:0\nlisteners.tcp.b = 127.0.0.1:0", "tcp_listeners", addresses(("127.0.0.1", 0), ("127.0.0.1", 0))),
    ("handshake_timeout = infinity", "handshake_timeout", None),
    ("handshake_timeout = 1500", "handshake_timeout", 1.5),
    ("ssl_handshake_timeout = 250", "ssl_handshake_timeout", 0.25),
    ("proxy_protocol = true", "proxy_protocol", True),
    ("tcp_listen_options.backlog = 7\ntcp_listen_options.nodelay = false\ntcp_listen_options.linger.on = false\ntcp_listen_options.linger.timeout = 3\ntcp_listen_options.keepalive = true\ntcp_listen_options.sndbuf = 1\ntcp_listen_options.recbuf = 2\ntcp_listen_options.tos = 16\ntcp_listen_options.priority = 4", "socket", SocketOptions(backlog=7, nodelay=False, linger=(False, 3), keepalive=True, sndbuf=1, recbuf=2, tos=16, priority=4)),
    ("tcp_listen_options = none\ntcp_listen_options.backlog = 7", "socket", SocketOptions()),
    # TLS
    ("ssl_options.depth = 2", "tls", ServerTls(depth=2)),
    ("ssl_options = none\nssl_options.depth = 2", "tls", None),
    ("listeners.ssl.1 = 5671\nssl_options.certfile = server.pem\nssl_options.keyfile = server-key.pem\nssl_options.cacertfile = ca.pem\nssl_options.password = hunter2\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\nssl_options.honor_cipher_order = true\nssl_options.versions.a = tlsv1.3\nssl_options.versions.b = tlsv1.2\nssl_options.ciphers.9 = ECDHE-RSA-AES256-GCM-SHA384\nssl_options.ciphers.1 = ECDHE-RSA-AES128-GCM-SHA256", "tls", ServerTls(certfile=Path("server.pem"), keyfile=Path("server-key.pem"), cacertfile=Path("ca.pem"), password=SECRET, verify_peer=True, fail_if_no_peer_cert=True, honor_cipher_order=True, versions=("tlsv1.2", "tlsv1.3"), ciphers=("ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256"))),
    ("ssl_options.versions.1 = tlsv1.3\nssl_options.ciphers.1 = TLS_AES_256_GCM_SHA384", "tls", ServerTls(versions=("tlsv1.3",))),
    ("ssl_options.crl_check = false\nssl_options.reuse_sessions = true", "tls", None),
    # authentication
    ("auth_mechanisms.1 = AMQPLAIN", "auth_mechanisms", ("AMQPLAIN",)),
    ("anonymous_login_user = none", "anonymous", None),
    ("anonymous_login_user = nobody\nanonymous_login_pass = pw", "anonymous", Anonymous(user=b"nobody", password=Secret(b"pw"))),
    ("ssl_cert_login_from = subject_alt_name\nssl_cert_login_san_type = email\nssl_cert_login_san_index = 2", "cert_login", CertLogin(source="subject_alternative_name", san_type="email", san_index=2)),
    ("auth_mechanisms.2 = PLAIN\nauth_mechanisms.10 = AMQPLAIN\nauth_mechanisms.3 = PLAIN", "auth_mechanisms", ("AMQPLAIN", "PLAIN")),
    ("auth_backends.1 = internal", "auth_backends", (PAIR,)),
    ("auth_backends.10 = internal\nauth_backends.2 = rabbit_auth_backend_internal", "auth_backends", (PAIR, PAIR)),
    ("auth_backends.5.authn = internal\nauth_backends.5.authz = internal", "auth_backends", (SPLIT,)),
    ("auth_backends.5.authn = internal\nauth_backends.6 = internal", "auth_backends", (SPLIT, PAIR)),
    ("loopback_users = none\nloopback_users.a = true", "loopback_users", frozenset()),
    ("loopback_users.guest = false", "loopback_users", frozenset()),
    ("loopback_users.alice = true", "loopback_users", frozenset({b"alice"})),
    ("loopback_users.a\\.b = true\nloopback_users.c = false", "loopback_users", frozenset({b"a.b"})),
    *DEFINITIONS,
    *ACCOUNTS,
    ("password_hashing_module = rabbit_password_hashing_sha512", "password_hashing", "rabbit_password_hashing_sha512"),
    ("credential_validator.validation_backend = rabbit_credential_validator_accept_everything", "warnings", ()),
    # the seed
    ("default_user = h\u00e9", "seed.user", "hé".encode()),
    ("default_pass = 'a#b'", "seed.password", Secret(b"a#b")),
    ("default_pass = foo:bar", "seed.password", Secret(b"foo:bar")),
    ("default_pass = ''", "seed.password", Secret(b"")),
    ("default_vhost = my vhost", "seed.vhost", b"my vhost"),
    ("default_permissions.configure = a\ndefault_permissions.read = b\ndefault_permissions.write = c", "seed.permissions", PERMISSIONS),
    ("default_permissions.configure = ''\ndefault_permissions.read = ''\ndefault_permissions.write = ''", "seed.permissions", Permissions(configure=b"", write=b"", read=b"")),
    ("default_user_tags.x = true\ndefault_user_tags.management = false", "seed.tags", ("x",)),
    ("default_user_tags.administrator = false", "seed.tags", ()),
    ("load_definitions = ca.pem", "definitions.sources", (LocalDefinitions(key="load_definitions", path=Path("ca.pem")),)),
    ("load_definitions = .", "definitions.sources", (LocalDefinitions(key="load_definitions", path=Path()),)),
    # limits
    ("heartbeat = 1\nheartbeat = 2", "limits.heartbeat", 2),
    ("frame_max = 128KB", "limits.frame_max", 131072),
    ("frame_max = 0", "limits.frame_max", 0),
    ("frame_max = 8192", "limits.frame_max", 8192),
    ("initial_frame_max = 4kb", "limits.initial_frame_max", 4096),
    ("max_channels_per_connection = 0", "limits.channel_max", 0),
    ("channel_max = 10", "limits.channel_max", 10),
    ("channel_max = 10\nmax_channels_per_connection = 20", "limits.channel_max", 20),
    ("max_message_size = 5", "limits.max_message_size", 5),
    ("max_connections = infinity", "warnings", ()),
    # logs
    ("log.console = false", "log.console", False),
    ("log.console.stdio = stderr", "log.console_stdio", "stderr"),
    ("log.console.use_colors = off", "log.console_use_colors", False),
    ("log.default.level = error", "log", dataclasses.replace(LOG, console_level="error", file_level="error", levels={"default": "error"})),
    ("log.console.level = debug\nlog.user.level = none", "log", dataclasses.replace(LOG, console_level="debug", levels={"default": "info", "user": "none"})),
    ("log.file = gate.log\nlog.file.level = warning\nlog.file.formatter = json", "log", dataclasses.replace(LOG, file=Path("gate.log"), file_level="warning", file_formatter="json")),
    ("log.file = gate.log\nlog.dir = /var/log", "log.file", Path("/var/log/gate.log")),
    ("log.file = /x/gate.log\nlog.dir = /var/log", "log.file", Path("/x/gate.log")),
    ("log.file = false", "log.file", None),
    ("log.syslog = false\nlog.journald = false", "warnings", ()),
    # the gate's own
    ("store.url = sqlite:////var/lib/gate.db", "store_url", "sqlite:////var/lib/gate.db"),
    ("store.url = sqlite::memory:", "store_url", "sqlite::memory:"),
    ("drain_timeout = 2500", "drain_timeout", 2.5),
    ("drain_timeout = 1m1.5s", "drain_timeout", 61.5),
    ("drain_timeout = 2h30m", "drain_timeout", 9000.0),
    ("drain_timeout = 0", "drain_timeout", 0.0),
    ("control.socket = none", "control", ControlSettings(configured=True)),
    (
        "control.socket = /run/g.sock",
        "control",
        ControlSettings(socket=Path("/run/g.sock"), configured=True),
    ),
    (
        "store.url = sqlite:////a%20b.db",
        "control",
        ControlSettings(socket=Path("/a b.db.sock")),
    ),
    ("store.url = sqlite::memory:", "control", ControlSettings()),
    ("", "workers", 1),
    ("workers = 1", "workers", 1),
    ("workers = 64", "workers", 64),
    # substitution and encrypted values
    ("default_user = $(NAME)\ndefault_vhost = $(default_user)-x", "seed.vhost", b"env-x"),
    ("config_entry_decoder.passphrase = $(PASSPHRASE)\ndefault_pass = encrypted:bz1z3IO3RWv94cAxVV3mlECQL+4OddHSW8mKqGcjm62p7mJ3UNyjjY1ypC0Ng6fP", "seed.password", Secret(b"s3cr#t")),
    ("config_entry_decoder.passphrase = mypassphrase\nconfig_entry_decoder.cipher = aes_256_cbc\nconfig_entry_decoder.hash = sha512\nconfig_entry_decoder.iterations = 1000\ndefault_pass = encrypted:cPAymwqmMnbPXXRVqVzpxJdrS8mHEKuo2V+3vt1u/fymexD9oztQ2G/oJ4PAaSb2c5N/hRJ2aqP/X0VAfx8xOQ==", "seed.password", Secret(b"guest")),
]  # fmt: skip

ENVIRON = {"NAME": "env", "PASSPHRASE": "mypass"}


@pytest.mark.parametrize(("text", "path", "expected"), ACCEPTED)
@pytest.mark.usefixtures("here")
def test_meaning(tmp_path: Path, text: str, path: str, expected: object) -> None:
    found: object = load(tmp_path, text, ENVIRON)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == expected
    assert "hunter2" not in repr(found)


UP = "upstreams.default."
OTHER = "upstreams.b.servers.1 = x:1\nupstreams.b.vhosts.1 = v\nupstreams.b.username = u\nupstreams.b.password = p\n"

UPSTREAMS = [
    (UP + "servers.10 = c:3\n" + UP + "servers.2 = [::1]:2\n" + UP + "servers.x = ::1:4", "default", "servers", addresses(("broker", 5672), ("::1", 2), ("c", 3), ("::1", 4))),
    (UP + "vhosts.2 = /\n" + UP + "vhosts.1 = é", "default", "vhosts", ("é".encode(), b"/")),
    (UP + "credentials = client", "default", "credentials", "client"),
    (UP + "proxy_protocol = v2", "default", "proxy_protocol", "v2"),
    (UP + "ssl = true", "default", "tls", ClientTls()),
    (UP + "ssl = true\n" + UP + "ssl_options.sni = none\n" + UP + "ssl_options.verify = verify_none", "default", "tls", ClientTls(sni="", verify_peer=False)),
    (UP + "ssl = true\n" + UP + "ssl_options.sni = a.b\n" + UP + "ssl_options.depth = 3\n" + UP + "ssl_options.password = p\n" + UP + "ssl_options.certfile = server.pem\n" + UP + "ssl_options.keyfile = server-key.pem\n" + UP + "ssl_options.cacertfile = ca.pem\n" + UP + "ssl_options.versions.1 = tlsv1.2\n" + UP + "ssl_options.ciphers.1 = ECDHE-RSA-AES256-GCM-SHA384", "default", "tls", ClientTls(sni="a.b", depth=3, password=Secret(b"p"), certfile=Path("server.pem"), keyfile=Path("server-key.pem"), cacertfile=Path("ca.pem"), versions=("tlsv1.2",), ciphers=("ECDHE-RSA-AES256-GCM-SHA384",))),
    (OTHER, "b", "vhosts", (b"v",)),
    (OTHER + "upstreams.b.vhosts.2 = w", "b", "vhosts", (b"v", b"w")),
    (OTHER, "default", "vhosts", ()),
]  # fmt: skip


@pytest.mark.parametrize(("text", "upstream", "field", "expected"), UPSTREAMS)
@pytest.mark.usefixtures("here")
def test_upstreams(tmp_path: Path, text: str, upstream: str, field: str, expected: object) -> None:
    assert getattr(load(tmp_path, text).upstreams[upstream], field) == expected


def test_upstream_without_service_account(tmp_path: Path) -> None:
    text = UP + "servers.1 = x:1\n" + UP + "credentials = client"
    upstream = load(tmp_path, text, base="").upstreams["default"]
    assert (upstream.username, upstream.password) == (b"", Secret(b""))


NOT_YET = "is not supported yet"

REFUSED = [
    # types, as RabbitMQ refuses them
    ("heartbeat = 60s", "heartbeat: '60s' does not fit: expected an integer, without a unit"),
    ("heartbeat = 65536", "heartbeat: '65536' does not fit: expected 0 to 65535"),
    ("heartbeat = -1", "heartbeat: '-1' does not fit: expected 0 to 65535"),
    ("heartbeat = ''", "heartbeat: '' does not fit: expected an integer, without a unit"),
    ("proxy_protocol = yes", "proxy_protocol: 'yes' does not fit: expected true or false"),
    ("proxy_protocol = TRUE", "proxy_protocol: 'TRUE' does not fit: expected true or false"),
    ("log.console.use_colors = true", "log.console.use_colors: 'true' does not fit: expected on or off"),
    ("frame_max = 128Kb", "frame_max: '128Kb' does not fit: expected bytes"),
    ("frame_max = 8191", "frame_max: '8191' does not fit: expected 8192 to 4294967295, or 0"),
    ("handshake_timeout = 10s", "handshake_timeout: '10s' does not fit: expected milliseconds (an integer without a unit) or infinity"),
    ("handshake_timeout = 0", "handshake_timeout: '0' does not fit: expected 1 to"),
    ("drain_timeout = 10 s", "drain_timeout: '10 s' does not fit: expected milliseconds, or a duration"),
    ("listeners.tcp.1 = localhost:5672", "listeners.tcp.1: 'localhost:5672' does not fit: expected PORT or IP:PORT"),
    ("listeners.tcp.1 = [::1]:5672", "listeners.tcp.1: '[::1]:5672' does not fit: expected PORT or IP:PORT"),
    ("listeners.tcp.1 = 65536", "listeners.tcp.1: '65536' does not fit: expected 0 to 65535"),
    ("listeners.tcp.1 = :5672", "listeners.tcp.1: ':5672' does not fit: expected PORT or IP:PORT"),
    ("listeners.tcp = off", "listeners.tcp: 'off' does not fit: expected none"),
    ("loopback_users.guest = no", "loopback_users.guest: 'no' does not fit: expected true or false"),
    ("log.default.level = warn", "log.default.level: 'warn' does not fit: expected debug, info, notice"),
    ("log.file = ''", "log.file: '' does not fit: expected a path"),
    ("default_user = ''", "default_user: '' does not fit: expected a name"),
    ("definitions.skip_if_unchanged = true", "definitions.import_backend: definition import source is configured but definitions.import_backend is not set"),
    ("load_definitions = ca.pem\ndefinitions.skip_if_unchanged = true", "definitions.import_backend: definition import source is configured but definitions.import_backend is not set"),
    ("definitions.tls.verify = verify_none", "definitions.import_backend: definition import source is configured but definitions.import_backend is not set"),
    ("definitions.import_backend = local", "definitions.local.path: local definition file path is not configured: local_path is not set"),
    ("definitions.import_backend = mine", "definitions.import_backend: 'mine' does not fit: expected local_filesystem,"),
    ("definitions.import_backend = https", "definitions.https.url: is missing; give an https:// URL"),
    ("definitions.import_backend = https\ndefinitions.https.url = http://u:hunter2@h/", "definitions.https.url: does not fit: expected an https:// URL"),
    ("definitions.import_backend = https\ndefinitions.https.url = https://[hunter2", "definitions.https.url: does not fit: expected an https:// URL"),
    ("definitions.local.path = nope", "definitions.local.path: 'nope' does not fit: the file does not exist"),
    ("management.load_definitions = nope", "management.load_definitions: 'nope' does not fit: the file does not exist"),
    ("definitions.hashing.algorithm = md5", "definitions.hashing.algorithm: 'md5' does not fit"),
    (HTTPS + "definitions.tls.certfile = ca.pem", "definitions.tls.keyfile: is missing; certfile needs it"),
    (HTTPS + "definitions.tls.crl_check = true", "definitions.tls.crl_check: " + NOT_YET),
    (HTTPS + "definitions.tls.cert = x", "definitions.tls.cert: is not supported; put it into definitions.tls.certfile"),
    (VALIDATOR + "password_regexp", "credential_validator.regexp: is missing"),
    (VALIDATOR + "password_regexp\ncredential_validator.regexp = (", "credential_validator.regexp: '(' does not fit: expected a regular expression: "),
    ("credential_validator.min_length = -1", "credential_validator.min_length: '-1' does not fit"),
    ("default_users.x.read = (", "default_users.x.read: '(' does not fit: expected a regular expression"),
    ("default_users.x.vhost_pattern = ''", "default_users.x.vhost_pattern: '' does not fit: expected a regular expression, not an empty text"),
    ("default_limits.vhosts.1.max_queues = 0", "default_limits.vhosts.1.max_queues: '0' does not fit"),
    ("default_limits.vhosts.1.pattern = [", "default_limits.vhosts.1.pattern: '[' does not fit"),
    ("password_hashing_module = md5", "password_hashing_module: 'md5' does not fit: expected rabbit_password_hashing_sha256,"),
    ("store.url = postgresql://u:hunter2@h/d", "store.url: the value does not fit: expected sqlite:///PATH"),
    ("store.url = sqlite://host/x", "store.url: the value does not fit: expected sqlite:///PATH"),
    ("store.url = sqlite:///", "store.url: the value does not fit: expected sqlite:///PATH"),
    (UP + "servers.1 = broker", UP + "servers.1: 'broker' does not fit: expected HOST:PORT"),
    (UP + "servers.2 = a b:1", UP + "servers.2: 'a b:1' does not fit: expected HOST:PORT with a host name"),
    (UP + "servers.2 = [x]:1", UP + "servers.2: '[x]:1' does not fit: expected HOST:PORT with a host name"),
    (UP + "servers.2 = x:0", UP + "servers.2: 'x:0' does not fit: expected 1 to 65535"),
    ("cluster_name = x\nheartbeat = $(cluster_name)", "heartbeat: '$(cluster_name)' does not fit: expected an integer"),
    # files
    ("ssl_options.cacertfile = nope.pem", "ssl_options.cacertfile: 'nope.pem' does not fit: the file does not exist"),
    ("ssl_options.cacertfile = .", "ssl_options.cacertfile: '.' does not fit: expected a file"),
    ("ssl_options.cacertfile = no.pem", "ssl_options.cacertfile: 'no.pem' does not fit: the file holds no PEM block"),
    ("load_definitions = nope.json", "load_definitions: 'nope.json' does not fit: the file does not exist"),
    # unknown keys
    ("no_such_key = hunter2", "no_such_key: there is no such setting; check its spelling"),
    ("heartbaet = 1", "heartbaet: there is no such setting; did you mean heartbeat?"),
    ("listener.tcp.1 = 1", "listener.tcp.1: there is no such setting; did you mean listeners.tcp.$name or"),
    ("mqtt.prefetsh = 1", "mqtt.prefetsh: there is no such setting; did you mean mqtt.prefetch"),
    (UP + "user = x", UP + "user: there is no such setting; did you mean upstreams.$name."),
    ("upstreams = x", "upstreams: there is no such setting"),
    # what would weaken the gate if it were ignored
    ("auth_backends.1 = in trenal", "auth_backends.1: 'in trenal' does not fit: expected a backend: internal, ldap"),
    ("auth_cache.cached_backend = cache", "auth_cache.cached_backend: a cache of the cache"),
    ("auth_http.user_path = localhost/auth", "auth_http.user_path: expected a URL such as http://"),
    ("auth_ip_range.default_masks = 10.0.0.0/99", "auth_ip_range.default_masks: '10.0.0.0/99' does not fit: expected networks"),
    ("auth_mechanisms.1 = EXTERNAL", "auth_mechanisms.1: EXTERNAL needs a TLS listener with ssl_options.verify = verify_peer"),
    ("auth_mechanisms.1 = SCRAM", "auth_mechanisms.1: 'SCRAM' does not fit: expected PLAIN, AMQPLAIN, ANONYMOUS, EXTERNAL or RABBIT-CR-DEMO"),
    ("ssl_options.crl_check = peer", "ssl_options.crl_check: " + NOT_YET),
    ("ssl_options.crl_sources.1.path = x", "ssl_options.crl_sources.1.path: " + NOT_YET),
    ("ssl_options.reuse_sessions = false", "ssl_options.reuse_sessions: cannot be turned off yet"),
    ("trust_store.directory = x", "trust_store.directory: " + NOT_YET),
    ("max_connections = 10", "max_connections: " + NOT_YET),
    ("connection_max = 10", "connection_max: " + NOT_YET),
    ("credential_validator.validation_backend = x", "credential_validator.validation_backend: 'x' does not fit: expected rabbit_credential_validator_accept_everything,"),
    ("http_dispatch.auth_backends.1 = ldap", "http_dispatch.auth_backends.1: is not supported: the management API would let in whom auth_backends lets in"),
    ("management.credential_encryption_secret = hunter2", "management.credential_encryption_secret: is not supported"),
    ("management.ssl.reuse_sessions = false", "management.ssl.reuse_sessions: cannot be turned off yet"),
    ("management.listener.ssl_opts.crl_check = peer", "management.listener.ssl_opts.crl_check: " + NOT_YET),
    ("management.ssl.port = 1\nmanagement.ssl.keyfile = server-key.pem", "management.ssl.certfile: is missing; a TLS listener needs it"),
    ("management.tcp.port = 1\nmanagement.listener.port = 1", "management.listener.port: another listener has the same address; give it another port"),
    ("management.tcp.max_connections = 0", "management.tcp.max_connections: '0' does not fit"),
    ("management.tcp.ip = localhost", "management.tcp.ip: 'localhost' does not fit: expected an IP address"),
    ("log.syslog = true", "log.syslog: " + NOT_YET),
    ("workers = 0", "workers: '0' does not fit"),
    ("workers = 65", "workers: '65' does not fit"),
    ("workers = 2.5", "workers: '2.5' does not fit"),
    ("store.url = sqlite::memory:\nworkers = 2", "workers: several processes cannot share sqlite::memory:; set store.url = sqlite:///PATH, or workers = 1"),
    ("advanced_config = nowhere", "advanced_config: cannot read 'nowhere': No such file"),
    # rules across keys
    ("listeners.tcp = none", "listeners.tcp: there is no listener at all"),
    ("listeners.tcp.a = 1\nlisteners.tcp.b = 1", "listeners.tcp.b: another listener has the same address"),
    ("listeners.tcp.a = 5671\nlisteners.ssl.b = 5671\nssl_options.certfile = server.pem\nssl_options.keyfile = server-key.pem", "listeners.ssl.b: another listener has the same address"),
    ("listeners.ssl.1 = 5671\nssl_options.certfile = server.pem", "ssl_options.keyfile: is missing; a TLS listener needs it"),
    ("listeners.ssl.1 = 5671\nssl_options.keyfile = server-key.pem", "ssl_options.certfile: is missing; a TLS listener needs it"),
    ("listeners.ssl.1 = 5671\nssl_options = none", "ssl_options: a TLS listener needs options"),
    ("ssl_options.certfile = server.pem", "ssl_options.keyfile: is missing; certfile needs it"),
    ("ssl_options.fail_if_no_peer_cert = true", "ssl_options.fail_if_no_peer_cert: has no effect without ssl_options.verify = verify_peer"),
    ("ssl_options.verify = verify_peer", "ssl_options.cacertfile: is missing; verify_peer needs"),
    ("ssl_options.versions.1 = tlsv1.1\nssl_options.versions.2 = tlsv1.3", "ssl_options.versions.1: the enabled versions have a gap; add tlsv1.2"),
    ("ssl_options.versions.1 = sslv3", "ssl_options.versions.1: 'sslv3' does not fit"),
    ("ssl_options.ciphers.1 = NO-SUCH", "ssl_options.ciphers.1: OpenSSL knows no such cipher"),
    ("ssl_options.ciphers.1 = aNULL", "ssl_options.ciphers.1: OpenSSL knows no such cipher"),
    ("ssl_options.ciphers.1 = HIGH:!DH", "ssl_options.ciphers.1: 'HIGH:!DH' does not fit: expected one OpenSSL cipher"),
    ("ssl_options.ciphers.1 = TLS_AES_256_GCM_SHA384", "ssl_options.ciphers.1: only TLS 1.3 ciphers are listed"),
    ("auth_backends.x = internal", "auth_backends.x: the position in the chain must be an integer"),
    ("auth_backends.1 = internal\nauth_backends.1.authn = internal", "auth_backends.1: this position is already taken"),
    ("auth_backends.1 = internal\nauth_backends.01 = internal", "auth_backends.01: this position is already taken"),
    ("default_permissions.read = x", "default_permissions.configure: is missing; give all three"),
    (UP + "username = ''", UP + "username: '' does not fit: expected a name"),
    (UP + "password = ''", UP + "password: is missing or empty"),
    (UP + "ssl_options.sni = x", UP + "ssl_options.sni: has no effect on a plain connection; set upstreams.default.ssl = true"),
    (UP + "ssl = true\n" + UP + "ssl_options.keyfile = server-key.pem", UP + "ssl_options.certfile: is missing; keyfile needs it"),
    (UP + "ssl = true\n" + UP + "ssl_options.ciphers.1 = X", UP + "ssl_options.ciphers.1: OpenSSL knows no such cipher"),
    (OTHER + "upstreams.c.servers.1 = x:1\nupstreams.c.vhosts.1 = v\nupstreams.c.credentials = client", "upstreams.c.vhosts.1: this virtual host is already routed to the upstream b"),
    (OTHER + UP + "vhosts.1 = v", "upstreams.b.vhosts.1: this virtual host is already routed to the upstream default"),
    ("upstreams.c.servers.1 = x:1\nupstreams.c.credentials = client", "upstreams.c.vhosts.1: is missing"),
    ("upstreams.c.vhosts.1 = x\nupstreams.c.credentials = client", "upstreams.c.servers.1: is missing"),
    (UP + "auth_mechanism = EXTERNAL", "upstreams.default.auth_mechanism: EXTERNAL needs a client certificate"),
    (UP + "auth_mechanism = EXTERNAL\n" + UP + "ssl = true\n" + UP + "ssl_options.certfile = server.pem\n" + UP + "ssl_options.keyfile = server-key.pem", "upstreams.default.password: has no effect with auth_mechanism = EXTERNAL"),
    ("upstreams.c.servers.1 = x:1\nupstreams.c.vhosts.1 = x\nupstreams.c.username = u", "upstreams.c.password: is missing or empty"),
    ("upstreams.c.servers.1 = x:1\nupstreams.c.vhosts.1 = x\nupstreams.c.credentials = client\nupstreams.c.password = p", "upstreams.c.username: is missing or empty"),
    # secrets
    ("default_pass = encrypted:hunter2", "default_pass: the value is encrypted, but there is no passphrase; set config_entry_decoder.passphrase"),
    ("config_entry_decoder.passphrase = hunter2\ndefault_pass = encrypted:AAAA", "default_pass: the encrypted value is cut off"),
    ("config_entry_decoder.passphrase = hunter2\ndefault_pass = encrypted:bz1z3IO3RWv94cAxVV3mlECQL+4OddHSW8mKqGcjm62p7mJ3UNyjjY1ypC0Ng6fP", "default_pass: the value does not decrypt; check config_entry_decoder.passphrase"),
    ("config_entry_decoder.passphrase = encrypted:hunter2", "config_entry_decoder.passphrase: the passphrase cannot be encrypted itself"),
    ("config_entry_decoder.cipher = des", "config_entry_decoder.cipher: 'des' does not fit: expected aes_128_cbc,"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED)
@pytest.mark.usefixtures("here")
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    lines = str(caught.value).splitlines()
    # A place (or the file, where something is missing), the key, the problem.
    found = [line.partition("gate.conf:")[2].lstrip("0123456789: ") for line in lines]
    assert found[0].startswith(message)
    assert len(found) == 1, "one mistake gives one line"
    assert "hunter2" not in str(caught.value)


def test_the_default_upstream_is_required(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "", base="")
    assert str(caught.value) == (
        f"{tmp_path}/gate.conf: upstreams.default.servers.1: is missing; give the broker as"
        " HOST:PORT, such as 127.0.0.1:5673"
    )


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    text = "heartbeat = x\nno_such = 1\n\nmax_connections = 1\ndefault_pass = encrypted:x\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    places = [line.split(": ")[0] for line in str(caught.value).splitlines()]
    assert places == [f"{tmp_path}/gate.conf:{line}:1" for line in (4, 5, 7, 8)]


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        ("vm_memory_high_watermark.relative = 0.5\nmqtt.vhost = /\ncluster_name = x", ["these RabbitMQ settings have no effect in the gate: vm_memory_high_watermark.relative, mqtt.vhost, cluster_name"]),
        ("management.tcp.port = 15672\nmanagement.rates_mode = none", ["these RabbitMQ settings have no effect in the gate: management.rates_mode"]),
        ("management.tcp.ip = 127.0.0.1", ["FILE:4:1: management.tcp.ip: has no effect without management.tcp.port"]),
        ("channel_max = 10", ["FILE:4:1: channel_max: was renamed to max_channels_per_connection; use the new name"]),
        ("channel_max = 10\nmax_channels_per_connection = 20", ["FILE:4:1: channel_max: was renamed to max_channels_per_connection; both are set, using max_channels_per_connection"]),
        ("auth_backends.3.authn = internal", ["FILE:4:1: auth_backends.3.authn: given alone, it is used for both .authn and .authz"]),
        ("credential_validator.regexp = x", ["FILE:4:1: credential_validator.regexp: has no effect without credential_validator.validation_backend = rabbit_credential_validator_password_regexp"]),
        ("log.file.level = debug", ["FILE:4:1: log.file.level: has no effect without log.file"]),
        ("ssl_options.ciphers.1 = TLS_AES_256_GCM_SHA384\nssl_options.ciphers.2 = ECDHE-RSA-AES256-GCM-SHA384", ["FILE:4:1: ssl_options.ciphers.1: TLS 1.3 ciphers cannot be chosen; OpenSSL's default is used"]),
        (UP + "ssl = true\n" + UP + "ssl_options.depth = 3", ["FILE:5:1: " + UP + "ssl_options.depth: cannot be enforced; limit chains with the authority's path length constraint (pathlen)"]),
        ("ssl_options.depth = 3", []),
        ("include nothing.conf", ["FILE:4:1: include nothing.conf: no such file; check the path"]),
    ],
)  # fmt: skip
def test_warnings(tmp_path: Path, text: str, warnings: list[str]) -> None:
    found = load(tmp_path, text + "\n").warnings
    assert [line.replace(f"{tmp_path}/gate.conf", "FILE") for line in found] == warnings


def test_more_files_win_in_the_order_of_their_paths(tmp_path: Path) -> None:
    more = tmp_path / "conf.d"
    more.mkdir()
    (more / "20.conf").write_text("heartbeat = 30\ndefault_user = fromconfd")
    (more / "10.conf").write_text("heartbeat = 20")
    (more / "30-other.txt").write_text("heartbeat = 40")
    (more / "sub").mkdir()
    text = "heartbeat = 10\ndefault_vhost = v"
    found = load(tmp_path, text, {"RABBITMQ_CONFIG_FILES": str(more)})
    assert (found.limits.heartbeat, found.seed.user, found.seed.vhost) == (40, b"fromconfd", b"v")
    found = load(tmp_path, text, {"RABBITMQ_CONFIG_FILES": str(more / "*.conf")})
    assert found.limits.heartbeat == 30
    found = load(tmp_path, text, {"RABBITMQ_CONFIG_FILES": str(tmp_path / "no.d")})
    assert found.limits.heartbeat == 10
    assert found.warnings == (
        f"the environment: RABBITMQ_CONFIG_FILES: no file matches '{tmp_path}/no.d'; check the path",
    )


def test_environment_beats_the_files_for_the_seed(tmp_path: Path) -> None:
    text = "default_user = a\ndefault_pass = b\ndefault_vhost = c"
    names = {"USER": "é", "PASS": "encrypted:x#$(y)", "VHOST": "/x"}
    environ = {f"RABBITMQ_DEFAULT_{name}": value for name, value in names.items()}
    seed = load(tmp_path, text, environ).seed
    assert (seed.user, seed.vhost) == ("é".encode(), b"/x")
    assert seed.password == Secret(b"encrypted:x#$(y)")
    empty = load(tmp_path, text, dict.fromkeys(environ, "")).seed
    assert (empty.user, empty.password, empty.vhost) == (b"a", Secret(b"b"), b"c")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the question is answered for it.
    monkeypatch.setattr("os.access", lambda *_: False)
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"load_definitions: .*cannot be read; check its perm"):
        load(tmp_path, f"load_definitions = {tmp_path}/d.json")


KEY = st.sampled_from([spec.pattern.replace("$", "") for spec in KEYS]) | st.text(
    alphabet="abc.\\_-", min_size=1, max_size=9
)
VALUE = st.sampled_from(
    ["1", "none", "true", "internal", "''", "$(default_pass)", "$(X)", "x:1", "verify_peer"]
) | st.text(max_size=20)
LINES = st.lists(st.tuples(KEY, VALUE).map(" = ".join) | st.text(max_size=20), max_size=8)


@given(lines=LINES)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None
)
def test_any_text_gives_settings_or_a_config_error(tmp_path: Path, lines: list[str]) -> None:
    text = BASE.encode() + "\n".join(lines).encode("utf-8", "replace")
    (tmp_path / "gate.conf").write_bytes(text)
    message = ""
    try:
        found = load_settings(tmp_path / "gate.conf", {"X": "hunter2"})
    except ConfigError as error:
        message = str(error)
    else:
        assert found.upstreams["default"].servers
    assert "hunter2" not in message
    assert all(line.startswith(str(tmp_path)) for line in message.splitlines())
