"""``auth_oauth2.*``: what is inherited from where, and what an operator is told."""

# ruff: noqa: E501  (a row of the tables holds a whole message)

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec

from gatekeeper.config.load import load_settings
from gatekeeper.config.oauth2 import (
    OAuth2Settings,
    OAuthProvider,
    ResourceServer,
    key_type_of_pem,
    public_pem,
)
from gatekeeper.config.settings import ClientTls, Settings
from gatekeeper.errors import ConfigError

BASE = """upstreams.default.servers.1 = broker:5672
upstreams.default.username = gk
upstreams.default.password = hunter2
"""
ISSUER = "auth_oauth2.issuer = https://id/realm\n"
DISCOVERY = "https://id/realm/.well-known/openid-configuration"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("id")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = serialization.Encoding.PEM
    (tmp_path / "public.pem").write_bytes(key.public_key().public_bytes(pem, form))
    pkcs8, no = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "private.pem").write_bytes(key.private_bytes(pem, pkcs8, no))
    locked = serialization.BestAvailableEncryption(b"x")
    (tmp_path / "locked.pem").write_bytes(key.private_bytes(pem, pkcs8, locked))
    other = dsa.generate_private_key(1024).public_key().public_bytes(pem, form)
    (tmp_path / "dsa.pem").write_bytes(other)
    (tmp_path / "broken.pem").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n")
    return tmp_path


def load(folder: Path, text: str) -> Settings:
    path = folder / "gatekeeper.conf"
    path.write_text(BASE + text.replace("DIR", str(folder)))
    return load_settings(path, {})


def oauth2(folder: Path, text: str) -> OAuth2Settings:
    found = load(folder, text).oauth2
    assert found is not None
    return found


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load(folder, text)
    place = f"{folder}/gatekeeper.conf"
    return [line.removeprefix(place) for line in str(error.value).splitlines()]


def test_nothing_is_needed_where_nothing_is_configured(folder: Path) -> None:
    assert load(folder, "").oauth2 is None


def test_the_least_that_works(folder: Path) -> None:
    found = oauth2(folder, "auth_oauth2.resource_server_id = rabbitmq\n" + ISSUER)
    assert found == OAuth2Settings(
        servers={"rabbitmq": ResourceServer(id="rabbitmq", scope_prefix="rabbitmq.")},
        providers={"": OAuthProvider(discovery_endpoint=DISCOVERY)},
    )


def test_everything_of_one_server(folder: Path) -> None:
    found = oauth2(
        folder,
        """
auth_oauth2.resource_server_id = r
auth_oauth2.resource_server_type = rabbitmq-type
auth_oauth2.scope_prefix = api://x:
auth_oauth2.additional_scopes_key = realm_access.roles extra
auth_oauth2.scope_aliases.reader = r.read:*/* r.tag:management
auth_oauth2.scope_aliases.1.alias = api://Admin
auth_oauth2.scope_aliases.1.scope = r.tag:administrator
auth_oauth2.scope_aliases.2.alias = lonely
auth_oauth2.verify_aud = false
auth_oauth2.require_exp = false
auth_oauth2.preferred_username_claims.2 = email
auth_oauth2.preferred_username_claims.1 = user_name
auth_oauth2.default_key = k1
auth_oauth2.signing_keys.k1 = DIR/public.pem
auth_oauth2.signing_keys.k2 = DIR/certificate.pem
auth_oauth2.jwks_uri = https://id/keys
auth_oauth2.jwks_url = https://id/old
auth_oauth2.algorithms.1 = ES256
auth_oauth2.algorithms.2 = RS256
auth_oauth2.https.cacertfile = DIR/ca.pem
auth_oauth2.https.fail_if_no_peer_cert = true
auth_oauth2.https.hostname_verification = wildcard
auth_oauth2.https.crl_check = false
auth_oauth2.token_endpoint = https://id/token
""",
    )
    assert found.servers == {
        "r": ResourceServer(
            id="r",
            resource_server_type="rabbitmq-type",
            scope_prefix="api://x:",
            additional_scopes_key="realm_access.roles extra",
            scope_aliases={
                "reader": ("r.read:*/*", "r.tag:management"),
                "api://Admin": ("r.tag:administrator",),
            },
            verify_aud=False,
            require_exp=False,
            preferred_username_claims=("user_name", "email"),
        )
    }
    provider = found.providers[""]
    assert (provider.jwks_uri, provider.default_key) == ("https://id/keys", "k1")
    assert provider.algorithms == ("ES256", "RS256")
    assert provider.https == ClientTls(cacertfile=folder / "ca.pem")
    assert {k: key_type_of_pem(v) for k, v in provider.signing_keys.items()} == {
        "k1": "EC", "k2": "EC",
    }  # fmt: skip


def test_several_servers_and_providers(folder: Path) -> None:
    found = oauth2(
        folder,
        """
auth_oauth2.default_oauth_provider = a
auth_oauth2.additional_scopes_key = roles
auth_oauth2.verify_aud = false
auth_oauth2.scope_aliases.x = y
auth_oauth2.resource_servers.one.require_exp = false
auth_oauth2.resource_servers.two.id = second
auth_oauth2.resource_servers.two.oauth_provider_id = b
auth_oauth2.resource_servers.two.scope_prefix = p
auth_oauth2.resource_servers.two.additional_scopes_key = other
auth_oauth2.resource_servers.two.verify_aud = true
auth_oauth2.resource_servers.two.scope_aliases.z = w
auth_oauth2.resource_servers.two.preferred_username_claims.1 = email
auth_oauth2.resource_servers.two.resource_server_type = t
auth_oauth2.oauth_providers.a.issuer = https://a/
auth_oauth2.oauth_providers.a.discovery_endpoint_path = /custom
auth_oauth2.oauth_providers.a.discovery_endpoint_params.p = x y
auth_oauth2.oauth_providers.b.jwks_uri = https://b/keys
auth_oauth2.oauth_providers.b.default_key = kb
auth_oauth2.oauth_providers.b.algorithms.1 = RS512
auth_oauth2.oauth_providers.b.https.verify = verify_none
auth_oauth2.oauth_providers.unused.jwks_uri = https://unused/keys
""",
    )
    one = found.servers["one"]
    assert one == ResourceServer(
        id="one",
        scope_prefix="one.",
        additional_scopes_key="roles",
        verify_aud=False,
        require_exp=False,
        scope_aliases={"x": ("y",)},
        provider="a",
    )
    assert found.servers["second"] == ResourceServer(
        id="second",
        scope_prefix="p",
        additional_scopes_key="other",
        scope_aliases={"z": ("w",)},
        preferred_username_claims=("email",),
        resource_server_type="t",
        provider="b",
    )
    assert found.providers == {
        "a": OAuthProvider(name="a", discovery_endpoint="https://a/custom?p=x+y"),
        "b": OAuthProvider(
            name="b",
            jwks_uri="https://b/keys",
            default_key="kb",
            algorithms=("RS512",),
            https=ClientTls(verify_peer=False),
        ),
    }


def test_the_roots_prefix_is_inherited(folder: Path) -> None:
    text = "auth_oauth2.scope_prefix = p.\nauth_oauth2.resource_servers.a.id = a\n" + ISSUER
    assert oauth2(folder, text).servers["a"].scope_prefix == "p."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ISSUER, [": auth_oauth2.resource_server_id: is missing; it is what tokens must have in their aud claim"]),
        ("auth_oauth2.resource_server_id = r\n", [": auth_oauth2.issuer: is missing; without issuer, jwks_uri or signing_keys no token can be verified"]),
        (
            "auth_oauth2.resource_server_id = r\nauth_oauth2.default_oauth_provider = p\n",
            [":5:1: auth_oauth2.default_oauth_provider: there is no oauth provider 'p'; configure auth_oauth2.oauth_providers.p"],
        ),
        (
            "auth_oauth2.resource_servers.r.oauth_provider_id = p\n",
            [":4:1: auth_oauth2.resource_servers.r.oauth_provider_id: there is no oauth provider 'p'; configure auth_oauth2.oauth_providers.p"],
        ),
        (
            "auth_oauth2.resource_servers.r.oauth_provider_id = p\nauth_oauth2.oauth_providers.p.default_key = k\n",
            [": auth_oauth2.oauth_providers.p.issuer: is missing; without issuer, jwks_uri or signing_keys no token can be verified"],
        ),
        (
            ISSUER + "auth_oauth2.resource_servers.a.id = x\nauth_oauth2.resource_servers.b.id = x\n",
            [":6:1: auth_oauth2.resource_servers.b.id: another resource server has the same id; give each its own"],
        ),
        *(
            (
                f"auth_oauth2.resource_server_id = r\nauth_oauth2.signing_keys.k = DIR/{name}.pem\n" + ISSUER,
                [":5:1: auth_oauth2.signing_keys.k: the file holds no RSA, EC or Ed key; give a public key or a certificate"],
            )
            for name in ("broken", "dsa", "locked")
        ),
        ("auth_oauth2.jwks_uri = http://id/\n", [":4:1: auth_oauth2.jwks_uri: 'http://id/' does not fit: expected a URL: https://..."]),
        ("auth_oauth2.algorithms.1 = none\n", None),
        ("auth_oauth2.https.crl_check = true\n", None),
        ("auth_oauth2.verify_aud = no\n", None),
        ("auth_oauth2.signing_keys.k = DIR/nowhere.pem\n", None),
        ("auth_oauth2.scope_pattern_syntax = regex\n", None),  # later than 4.3.5
    ],
)  # fmt: skip
def test_problems(folder: Path, text: str, expected: list[str] | None) -> None:
    found = problems(folder, text)
    if expected is not None:
        assert found == expected


def test_warnings(folder: Path) -> None:
    found = load(
        folder,
        ISSUER
        + """auth_oauth2.resource_server_id = r
auth_oauth2.https.peer_verification = verify_none
auth_oauth2.scope_aliases.1.scope = x
""",
    )
    assert found.oauth2 is not None
    assert not found.oauth2.providers[""].https.verify_peer
    skipped, unverified = (line.partition("auth_oauth2.")[2] for line in found.warnings)
    assert skipped == "scope_aliases.1.scope: skipped, because .alias is missing"
    assert unverified == (
        "https.peer_verification: whoever can redirect the gate's connections can make keys of "
        "their own count; use verify_peer"
    )
    newer = load(folder, ISSUER + "auth_oauth2.resource_server_id = r\n"
                 "auth_oauth2.https.peer_verification = verify_none\n"
                 "auth_oauth2.https.verify = verify_peer\nauth_oauth2.https.depth = 3\n")  # fmt: skip
    assert newer.oauth2 is not None
    assert newer.oauth2.providers[""].https.verify_peer
    assert "https.depth: cannot be enforced" in newer.warnings[0]


@pytest.mark.parametrize("name", ["public", "private", "certificate"])
def test_any_pem_of_a_key_gives_its_public_half(folder: Path, name: str) -> None:
    pem = public_pem((folder / f"{name}.pem").read_bytes())
    assert pem.startswith(b"-----BEGIN PUBLIC KEY-----")
    assert key_type_of_pem(pem) == "EC"
