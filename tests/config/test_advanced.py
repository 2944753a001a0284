"""advanced.config: what its options mean, that they win, and what is refused."""

# ruff: noqa: E501  (a row of the tables holds a whole message)

from __future__ import annotations

from pathlib import Path

import pytest

from gatekeeper.config.ldap import ANONYMOUS, AS_USER, BindAs, LdapQueries, LdapSettings
from gatekeeper.config.ldap_queries import ALLOW, Constant, Exists, InGroup, Not, TagQuery
from gatekeeper.config.settings import Address, BackendPair, ClientTls, Permissions, Settings
from gatekeeper.errors import ConfigError
from gatekeeper.model import Secret
from tests.config.test_encrypted import VECTOR
from tests.config.test_load import load, pki  # noqa: F401  (a fixture)

INTERNAL = "rabbit_auth_backend_internal"


def advanced(tmp_path: Path, terms: str, conf: str = "") -> Settings:
    (tmp_path / "advanced.config").write_text(terms, encoding="utf-8")
    return load(tmp_path, f"{conf}\nadvanced_config = {tmp_path}/advanced.config\n")


def ldap(tmp_path: Path, options: str, conf: str = "") -> LdapSettings:
    found = advanced(tmp_path, f"[{{rabbitmq_auth_backend_ldap, [{options}]}}].", conf).ldap
    assert found is not None
    return found


# fmt: off
LDAP = [
    ('{servers, ["b", "a"]}, {port, 636}', {"servers": ("b", "a"), "port": 636}),
    ("{servers, []}", {"servers": ()}),
    ("{servers, [" + ",".join(f'"h{n}"' for n in range(12)) + "]}", {"servers": tuple(f"h{n}" for n in range(12))}),
    ("{servers, undefined}, {port, 1}", {"port": 1}),
    ("{pool_size, 3}, {timeout, infinity}, {idle_timeout, 1000}, {log, network}", {"pool_size": 3, "idle_timeout": 1.0, "log": "network"}),
    ('{user_dn_pattern, "cn=${username}"}, {user_bind_pattern, none}', {"user_dn_pattern": b"cn=${username}"}),
    ('{dn_lookup_attribute, "uid"}, {dn_lookup_base, "dc=x"}, {dn_lookup_bind, anon}', {"dn_lookup_attribute": b"uid", "dn_lookup_base": b"dc=x", "dn_lookup_bind": ANONYMOUS}),
    ("{dn_lookup_attribute, none}, {other_bind, as_user}", {"other_bind": AS_USER}),
    ('{other_bind, {"cn=s", "p"}}, {group_lookup_base, "dc=g"}', {"other_bind": BindAs(b"cn=s", Secret(b"p")), "group_lookup_base": b"dc=g"}),
    ('{other_bind, {<<"cn=s">>, <<"p">>}}', {"other_bind": BindAs(b"cn=s", Secret(b"p"))}),
    ("{anon_auth, false}, {port, 2}", {"port": 2}),
    ("use_ssl, {ssl_options, [{verify, verify_none}, {versions, ['tlsv1.2']}, {server_name_indication, \"x\"}]}, {ssl_hostname_verification, wildcard}",
     {"use_ssl": True, "tls": ClientTls(verify_peer=False, versions=("tlsv1.2",), sni="x")}),
    ("{use_starttls, true}, {ssl_options, []}", {"use_starttls": True, "tls": ClientTls()}),
    ("""{vhost_access_query, {in_group, "ou=${vhost}-users,dc=x"}}, % of the guide
        {resource_access_query, {'not', {constant, false}}},
        {topic_access_query, {exists, <<"dc=\\"x\\\\">>}},
        {tag_queries, [{administrator, {constant, false}}, {management, {constant, true}}]}""",
     {"queries": LdapQueries(
         vhost_access=InGroup(b"ou=${vhost}-users,dc=x", b"member"),
         resource_access=Not(Constant(False)),
         topic_access=Exists(b'dc="x\\'),
         tags=(TagQuery("administrator", Constant(False)), TagQuery("management", ALLOW)))}),
]

ERRORS = [
    ("[", "advanced.config:1:2: the text ends where a term was expected"),
    ("[{rabbit, []}]", "advanced.config:1:15: expected '.' after the term"),
    ("{rabbit, []}.", "expected one list of applications"),
    ("[]. [].", "expected one list of applications"),
    ("[rabbit].", "expected {Application, [{Option, Value}]}"),
    ('[{rabbit, ["x"]}].', "rabbit: expected {Option, Value}"),
    ("[{rabbit,\n [{auth_backends, []}]}].", "advanced.config:2:3: rabbit.auth_backends: the list is empty"),
    ("[{rabbit, [{auth_backends, [{rabbit_auth_backend_internal, []}]}]}].", "rabbit_auth_backend_internal has no authorisation backend"),
    ("[{rabbit, [{auth_backends, ['no backend']}]}].", "rabbit.auth_backends: no backend does not fit"),
    ("[{rabbit, [{auth_backends, [1]}]}].", "expected a backend, {Authn, Authz}"),
    ("[{rabbit, [{loopback_users, guest}]}].", "rabbit.loopback_users: expected a list"),
    ('[{rabbit, [{default_permissions, ["a"]}]}].', "expected three patterns"),
    ("[{rabbit, [{tcp_listeners, [{a, b, c}]}]}].", "expected ports or"),
    ("[{rabbit, [{heartbeat, -1}]}].", "advanced.config:1:12: heartbeat: '-1' does not fit"),
    ("[{rabbit, [{connection_max, 5}]}].", "rabbit.connection_max: is not supported yet"),
    ("[{rabbit, [{default_limits, [{vhosts, [x]}]}]}].", "rabbit.default_limits: is not read from here; write default_limits into the conf file"),
    ("[{rabbit, [{credential_validator, [{validation_backend, x}]}]}].", "credential_validator.validation_backend: 'x' does not fit"),
    ('[{rabbit, [{default_user, {encrypted, <<"hunter2">>}}]}].', "only a password can be encrypted"),
    ("[{rabbit, [{config_entry_decoder, [{passphrase, prompt}]}]}].", "a prompt is not supported"),
    ('[{rabbit, [{config_entry_decoder, [{passphrase, {file, "/nowhere"}}]}]}].', "cannot read '/nowhere'"),
    ("[{rabbit, [{ssl_options, [{verify_fun, {a, b}}]}]}].", "rabbit.ssl_options: expected one value"),
    ("[{rabbit, [{ssl_options, [{crl_check, true}]}]}].", "ssl_options.crl_check: is not supported yet"),
    ("[{rabbit, [{default_user, <<255>>}]}].", "a binary that is not UTF-8"),
    ("[{rabbitmq_auth_backend_ldap, [{anon_auth, true}]}].", "anon_auth: binds without a name or a password are not supported"),
    ("[{rabbitmq_auth_backend_ldap, [{other_bind, hunter2}]}].", "other_bind: expected as_user, anon or"),
    ("[{rabbitmq_auth_backend_ldap, [{nope, 1}]}].", "rabbitmq_auth_backend_ldap.nope: is not read from here; write auth_ldap.nope"),
    ('[{rabbitmq_auth_backend_ldap, [{vhost_access_query, {in_grop, "x"}}]}].', "auth_ldap.queries.vhost_access: no such query"),
    ("[{rabbitmq_auth_backend_nope, [{a, 1}]}].", "the gate has no such backend or mechanism"),
    ('[{rabbitmq_trust_store, [{directory, "x"}]}].', "rabbitmq_trust_store.directory: is not supported yet"),
]
# fmt: on


@pytest.mark.parametrize(("options", "expected"), LDAP)
def test_ldap(tmp_path: Path, options: str, expected: dict[str, object]) -> None:
    assert ldap(tmp_path, options) == LdapSettings(**expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("terms", "message"), ERRORS)
def test_error(tmp_path: Path, terms: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        advanced(tmp_path, terms)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_option_replaces_that_of_the_conf_file_as_a_whole(tmp_path: Path) -> None:
    conf = """
        auth_ldap.servers.1 = one
        auth_ldap.servers.2 = two
        auth_ldap.port = 1000
        auth_ldap.other_bind = anon
        auth_ldap.dn_lookup_base = dc=conf
        auth_ldap.queries.vhost_access = {constant, false}
    """
    options = (
        '{servers, ["three"]}, {other_bind, {"u", "p"}}, {vhost_access_query, {constant, true}}'
    )
    assert ldap(tmp_path, options, conf) == LdapSettings(
        servers=("three",),
        port=1000,
        other_bind=BindAs(b"u", Secret(b"p")),
        dn_lookup_base=b"dc=conf",
    )


def test_the_last_of_two_options_counts(tmp_path: Path) -> None:
    assert ldap(tmp_path, '{servers, ["a", "b"]}, {servers, ["c"]}').servers == ("c",)


def test_the_brokers_own_options(tmp_path: Path) -> None:
    found = advanced(
        tmp_path,
        """[{rabbit, [
            {tcp_listeners, [5673, {"127.0.0.1", 5674}]},
            {loopback_users, [<<"a">>, <<"b">>]},
            {default_user, <<"admin">>}, {default_pass, <<"p">>}, {default_vhost, <<"v">>},
            {default_permissions, [<<"c">>, <<"w">>, <<"r">>]},
            {default_user_tags, [management, monitoring]},
            {auth_mechanisms, ['AMQPLAIN', 'PLAIN']},
            {heartbeat, 30}, {channel_max, 7}, {frame_max, 0},
            {handshake_timeout, infinity},
            {tcp_listen_options, [{backlog, 5}, {linger, {true, 3}}, {exit_on_close, false}]},
            {password_hashing_module, rabbit_password_hashing_sha512}
        ]}].""",
        "max_channels_per_connection = 9\nloopback_users.guest = true\nheartbeat = 10",
    )
    assert found.tcp_listeners == (
        Address(host="", port=5673),
        Address(host="127.0.0.1", port=5674),
    )
    assert found.loopback_users == {b"a", b"b"}
    assert (found.seed.user, found.seed.password.value, found.seed.vhost) == (b"admin", b"p", b"v")
    assert found.seed.permissions == Permissions(configure=b"c", write=b"w", read=b"r")
    assert found.seed.tags == ("management", "monitoring")
    assert found.auth_mechanisms == ("AMQPLAIN", "PLAIN")
    assert (found.limits.heartbeat, found.limits.channel_max, found.limits.frame_max) == (30, 7, 0)
    assert found.handshake_timeout is None
    assert (found.socket.backlog, found.socket.linger) == (5, (True, 3))
    assert found.password_hashing == "rabbit_password_hashing_sha512"
    assert not any("advanced.config" in line for line in found.warnings)


def test_empty_lists(tmp_path: Path, pki: Path) -> None:  # noqa: F811
    terms = f"""[{{rabbit, [{{tcp_listeners, []}}, {{loopback_users, []}}, {{default_user_tags, []}},
        {{ssl_listeners, [5671]}},
        {{ssl_options, [{{certfile, "{pki}/server.pem"}}, {{keyfile, "{pki}/server-key.pem"}}]}}]}}]."""
    found = advanced(tmp_path, terms, "listeners.tcp.default = 5672")
    assert (found.tcp_listeners, found.loopback_users, found.seed.tags) == ((), frozenset(), ())
    assert found.ssl_listeners == (Address(host="", port=5671),)


def test_a_chain(tmp_path: Path) -> None:
    """Several authorisation backends, which no key of a conf file can say."""
    terms = """[{rabbit, [{auth_backends, [
        rabbit_auth_backend_ldap,
        {rabbit_auth_backend_ldap, rabbit_auth_backend_internal},
        {http, [ldap, internal]}]}]}]."""
    found = advanced(tmp_path, terms, "auth_backends.1 = internal")
    names = {name: f"rabbit_auth_backend_{name}" for name in ("ldap", "http")}
    assert found.auth_backends == (
        BackendPair(authn=names["ldap"], authz=(names["ldap"],), both=True),
        BackendPair(authn=names["ldap"], authz=(INTERNAL,)),
        BackendPair(authn=names["http"], authz=(names["ldap"], INTERNAL)),
    )
    assert found.auth_backends[0].place == (
        f"{tmp_path}/advanced.config:1:12: rabbit.auth_backends"
    )


def test_the_passphrase_of_encrypted_values(tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("mypass\nanother line\n")
    terms = f"""[{{rabbit, [{{default_pass, {{encrypted, <<"{VECTOR}">>}}}},
        {{config_entry_decoder, [{{passphrase, {{file, "{tmp_path}/passphrase"}}}},
                                 {{cipher, aes_128_cbc}}, {{hash, sha256}}, {{iterations, 1}}]}}]}}]."""
    assert advanced(tmp_path, terms).seed.password == Secret(b"s3cr#t")
    plain = '[{rabbit, [{config_entry_decoder, [{passphrase, <<"mypass">>}]}]}].'
    found = advanced(tmp_path, plain, f"default_pass = encrypted:{VECTOR}")
    assert found.seed.password == Secret(b"s3cr#t")


def test_what_has_no_effect_is_named_once(tmp_path: Path) -> None:
    terms = """[
        {kernel, [{net_ticktime, 60}]},
        {rabbit, [{vm_memory_high_watermark, 0.4}, {log, [{console, [{enabled, true}]}]}]},
        {rabbitmq_shovel, [{shovels, []}, {defaults, []}]},
        {logger, [{handler, default, #{level => info}}]}]."""
    found = advanced(tmp_path, terms, "")
    (line,) = [line for line in found.warnings if "advanced.config" in line]
    assert line.endswith(
        "these settings have no effect in the gate: kernel, rabbit.vm_memory_high_watermark,"
        " rabbit.log, rabbitmq_shovel, logger"
    )


def test_the_variable_wins_over_the_key(tmp_path: Path) -> None:
    (tmp_path / "other.config").write_text("[{rabbit, [{heartbeat, 11}]}].")
    (tmp_path / "advanced.config").write_text("[{rabbit, [{heartbeat, 22}]}].")
    text = f"advanced_config = {tmp_path}/advanced.config"
    for name, heartbeat in (("other.config", 11), ("nowhere", 22)):
        environ = {"RABBITMQ_ADVANCED_CONFIG_FILE": str(tmp_path / name)}
        assert load(tmp_path, text, environ).limits.heartbeat == heartbeat
    assert load(tmp_path, "", {"RABBITMQ_ADVANCED_CONFIG_FILE": "nowhere"}).limits.heartbeat == 60
