"""``auth_ldap.*``: what the texts mean (RabbitMQ's own snippets) and what is refused."""

# ruff: noqa: E501  (a row of the tables holds a whole message)

from __future__ import annotations

from pathlib import Path

import pytest

from gatekeeper.config.erlang_terms import Atom
from gatekeeper.config.ldap import (
    ANONYMOUS,
    AS_USER,
    BindAs,
    LdapQueries,
    LdapSettings,
)
from gatekeeper.config.ldap_queries import (
    ALLOW,
    And,
    Attribute,
    Constant,
    Equals,
    Exists,
    For,
    InGroup,
    InGroupNested,
    Match,
    Not,
    Or,
    Scope,
    String,
    TagQuery,
)
from gatekeeper.config.settings import ClientTls
from gatekeeper.errors import ConfigError
from gatekeeper.model import Secret
from tests.config.test_encrypted import VECTOR
from tests.config.test_load import load, pki  # noqa: F401  (a fixture)

L = "auth_ldap."
SERVER = L + "servers.1 = h\n"

# fmt: off
MEANINGS = [
    ("servers.1 = DC1.domain.com\nauth_ldap.servers.10 = b\nauth_ldap.servers.2 = a", {"servers": ("DC1.domain.com", "a", "b")}),
    ("servers = none", {"servers": ()}),
    ("port = 1234", {"port": 1234}),
    ("connection_pool_size = 128", {"pool_size": 128}),
    ("timeout = 50000\nauth_ldap.idle_timeout = 90000", {"timeout": 50.0, "idle_timeout": 90.0}),
    ("timeout = infinity\nauth_ldap.idle_timeout = infinity", {"timeout": None, "idle_timeout": None}),
    ("idle_timeout = 0", {"idle_timeout": 0.0}),
    ("log = network_unsafe", {"log": "network_unsafe"}),
    ("user_dn_pattern = ${ad_user}-${ad_domain}", {"user_dn_pattern": b"${ad_user}-${ad_domain}"}),
    ("user_bind_pattern = ${ad_user}@x", {"user_bind_pattern": b"${ad_user}@x"}),
    ("user_bind_pattern = none", {"user_bind_pattern": None}),
    ("user_dn_pattern = cn=${username},ou=é", {"user_dn_pattern": b"cn=${username},ou=\xe9"}),
    ("group_lookup_base = DC=gopivotal,DC=com", {"group_lookup_base": b"DC=gopivotal,DC=com"}),
    ("group_lookup_base = none", {"group_lookup_base": None}),
    ("dn_lookup_attribute = userPrincipalName\nauth_ldap.dn_lookup_base = DC=a\nauth_ldap.dn_lookup_bind = as_user", {"dn_lookup_attribute": b"userPrincipalName", "dn_lookup_base": b"DC=a", "dn_lookup_bind": AS_USER}),
    ("dn_lookup_bind.user_dn = u\nauth_ldap.dn_lookup_bind.password = p", {"dn_lookup_bind": BindAs(b"u", Secret(b"p"))}),
    ("dn_lookup_bind = anon\nauth_ldap.other_bind = anon", {"dn_lookup_bind": ANONYMOUS, "other_bind": ANONYMOUS}),
    ("other_bind = as_user", {"other_bind": AS_USER}),
    ("other_bind.user_dn = u\nauth_ldap.other_bind.password = p", {"other_bind": BindAs(b"u", Secret(b"p"))}),
    ("use_starttls = true", {"use_starttls": True, "tls": ClientTls()}),
    ("use_ssl = true\nauth_ldap.ssl_options.verify = verify_none\nauth_ldap.ssl_options.sni = none", {"use_ssl": True, "tls": ClientTls(verify_peer=False)}),
    ("use_ssl = true\nauth_ldap.ssl_options.sni = ldap.example.com", {"use_ssl": True, "tls": ClientTls(sni="ldap.example.com")}),
    ("use_ssl = true\nauth_ldap.ssl_options = none\nauth_ldap.ssl_options.verify = verify_none", {"use_ssl": True, "tls": ClientTls()}),
    ('queries.vhost_access = {in_group, "cn=${vhost}-users,dc=x"}', {"queries": LdapQueries(vhost_access=InGroup(b"cn=${vhost}-users,dc=x", b"member"))}),
    ("queries.topic_access = '''\n{'not',\n {constant, true}}.\n'''", {"queries": LdapQueries(topic_access=Not(ALLOW))}),
    ("queries.tags = '''\n[{administrator, {constant, false}},\n {management, {constant, true}}].\n'''", {"queries": LdapQueries(tags=(TagQuery("administrator", Constant(False)), TagQuery("management", ALLOW)))}),
    ("queries.tags = []", {"queries": LdapQueries(tags=())}),
    ("""queries.resource_access = '''
      {for, [{permission, configure, {'and', [{in_group_nested, "cn=a", "memberOf", one_level}, {exists, "cn=${name}"}]}},
             {permission, write, {'or', [{equals, "${name}", {attribute, "${user_dn}", "mail"}}]}},
             {permission, read, {match, {string, "${name}"}, "^x"}}]}'''""",
     {"queries": LdapQueries(resource_access=For((
         ("permission", Atom("configure"), And((InGroupNested(b"cn=a", b"memberOf", Scope.ONE_LEVEL), Exists(b"cn=${name}")))),
         ("permission", Atom("write"), Or((Equals(String(b"${name}"), Attribute(b"${user_dn}", b"mail")),))),
         ("permission", Atom("read"), Match(String(b"${name}"), String(b"^x"), literal=True)),
     )))}),
]

ERRORS = [
    ('queries.vhost_access = {in_grop, "x"}', 'queries.vhost_access: no such query: {in_grop,"x"} is no query that answers yes or no'),
    ('queries.vhost_access = {in_group, "x"', "queries.vhost_access: no such query: line 1, column 15: expected ',' or '}'"),
    ('queries.vhost_access = {string, "x"}', 'queries.vhost_access: no such query: {string,"x"} is no query that answers'),
    ('queries.vhost_access = "x"', 'queries.vhost_access: no such query: "x" is no query that answers'),
    ("queries.vhost_access = {constant, maybe}", "queries.vhost_access: no such query: line 1, column 12: write 'maybe'"),
    ("queries.vhost_access = {constant, 1}", "queries.vhost_access: no such query: expected {constant, true} or"),
    ("queries.vhost_access = {'not', {'and', {constant, true}}}", "queries.vhost_access: no such query: expected a list of queries"),
    ("queries.vhost_access = {exists, 5}", "queries.vhost_access: no such query: expected a string such as"),
    ('queries.vhost_access = {exists, "€"}', "queries.vhost_access: no such query: a character above U+00FF"),
    ('queries.vhost_access = {equals, {constant, true}, "x"}', "queries.vhost_access: no such query: {constant,true} is no text"),
    ('queries.vhost_access = {equals, {attribute, "x", <<"y">>}, "x"}', "is no text"),
    ("queries.vhost_access = {for, [{a, b}]}", "queries.vhost_access: no such query: expected {Variable, Value, Query}, not {a,b}"),
    ("queries.vhost_access = {for, a}", "queries.vhost_access: no such query: expected {for, [{Variable"),
    ('queries.vhost_access = {in_group_nested, "a", "b", base}', "queries.vhost_access: no such query: base is no scope; expected subtree or"),
    ("queries.tags = {constant, true}", "queries.tags: no such query: expected a list such as"),
    ('queries.tags = [{"management", {constant, true}}]', "queries.tags: no such query: expected {Tag, Query}"),
    ("user_dn_pattern = cn=${username},ou=€", "user_dn_pattern: a character above U+00FF"),
    ("other_bind.user_dn = u", "other_bind.password: is missing or empty"),
    ("other_bind.user_dn = u\nauth_ldap.other_bind.password = ''", "other_bind.password: is missing or empty"),
    ("other_bind.password = hunter2", "other_bind.user_dn: is missing or empty"),
    ("other_bind = anon\nauth_ldap.other_bind.user_dn = u\nauth_ldap.other_bind.password = hunter2", "other_bind.user_dn: has no effect beside auth_ldap.other_bind = anon"),
    ("use_ssl = true\nauth_ldap.use_starttls = true", "use_starttls: StartTLS does not go over use_ssl"),
    ("use_ssl = true\nauth_ldap.ssl_options.crl_check = true", "ssl_options.crl_check: is not supported yet"),
    ("ssl_options.key.RSAPrivateKey = hunter2", "ssl_options.key.RSAPrivateKey: is not supported; put it into"),
    ("connection_pool_size = 0", "connection_pool_size: '0' does not fit"),
    ("log = yes", "log: 'yes' does not fit"),
]
# fmt: on


@pytest.mark.parametrize(("text", "expected"), MEANINGS)
def test_meaning(tmp_path: Path, text: str, expected: dict[str, object]) -> None:
    assert load(tmp_path, L + text).ldap == LdapSettings(**expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, L + text)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_nothing_is_set() -> None:
    assert LdapSettings().queries == LdapQueries(tags=(TagQuery("administrator", Constant(False)),))


def test_unset_is_none(tmp_path: Path) -> None:
    assert load(tmp_path, "").ldap is None


def test_tls_options_need_tls(tmp_path: Path, pki: Path) -> None:  # noqa: F811
    text = f"{L}ssl_options.cacertfile = {pki}/ca.pem\n"
    settings = load(tmp_path, text)
    assert settings.ldap
    assert settings.ldap.tls is None
    assert any("has no effect without auth_ldap.use_ssl" in line for line in settings.warnings)
    secure = load(tmp_path, text + f"{L}use_ssl = true").ldap
    assert secure
    assert secure.tls == ClientTls(cacertfile=pki / "ca.pem")


def test_an_encrypted_password(tmp_path: Path) -> None:
    text = (
        f"config_entry_decoder.passphrase = mypass\n{L}other_bind.user_dn = u\n"
        f"{L}other_bind.password = encrypted:{VECTOR}"
    )
    found = load(tmp_path, text).ldap
    assert found
    assert found.other_bind == BindAs(b"u", Secret(b"s3cr#t"))
