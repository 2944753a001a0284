"""The keys of the OAuth 2 backend (``auth_oauth2.*``), as RabbitMQ 4.3.5 has them."""

from __future__ import annotations

from gatekeeper.config import datatypes as types
from gatekeeper.config.oauth2 import ALGORITHMS
from gatekeeper.config.spec import KeySpec, Section, row

_BOOLEAN = types.switch("true", "false", "boolean")
_TEXT = types.string()
_NAME = types.string(pattern=".+", expected="a name, not an empty text")
_PEM = types.pem_file()
_HTTPS = types.string(pattern=r"https://[^\s/?#]+([/?][^\s#]*)?", expected="a URL: https://...")
_VERIFY = types.enum("verify_peer", "verify_none")
_CRL_CHECK = types.enum("false", later=("true", "peer", "best_effort"))
_MATCH = types.enum("none", "wildcard")
_DEPTH = types.integer(0, 255)
_ALGORITHM = types.enum(*(name for names in ALGORITHMS.values() for name in names))

_PREFIX = "auth_oauth2."
_SERVER = _PREFIX + "resource_servers.$name."
_PROVIDER = _PREFIX + "oauth_providers.$name."
_NO_EFFECT = "Without effect: the gate only verifies tokens."


def _provider(prefix: str, whose: str) -> tuple[KeySpec, ...]:
    """The keys of a provider; ``whose`` ends the sentence about where it applies."""
    issuer = "https://id.example.com/realms/main"
    return (
        row(
            prefix + "issuer",
            _HTTPS,
            None,
            f"The identity provider{whose}: its OpenID configuration says where its signing keys "
            "are published, unless `jwks_uri` does.",
            example=issuer,
        ),
        row(
            prefix + "discovery_endpoint_path",
            _NAME,
            ".well-known/openid-configuration",
            "Path of the OpenID configuration, after the issuer.",
        ),
        row(
            prefix + "discovery_endpoint_params.$param",
            _TEXT,
            None,
            "A query parameter for the OpenID configuration.",
            example={"appid": "gatekeeper"},
        ),
        row(
            prefix + "jwks_uri",
            _HTTPS,
            None,
            "Where the signing keys are published (JWKS). They are fetched when a token names an "
            "unknown key.",
            example=issuer + "/certs",
        ),
        row(
            prefix + f"signing_keys.{'$name' if prefix == _PREFIX else '$id'}",
            _PEM,
            None,
            "A signing key by its id (`kid`): a public key or a certificate.",
            example={"key1": "/etc/gatekeeper/key1.pem"},
        ),
        row(
            prefix + "default_key",
            _NAME,
            None,
            "The id of the key for tokens that name none.",
            example="key1",
        ),
        row(
            prefix + "algorithms.$algorithm",
            _ALGORITHM,
            None,
            "A signature algorithm that is accepted; unset: all that fit the key's type.",
            example={"1": "RS256"},
        ),
        row(
            prefix + "https.cacertfile",
            _PEM,
            None,
            "Authorities that may sign the provider's certificate; unset: those the system trusts.",
            example="/etc/gatekeeper/id-ca.pem",
        ),
        row(
            prefix + "https.verify",
            _VERIFY,
            "verify_peer",
            "Check the provider's certificate and its name.",
        ),
        row(
            prefix + "https.depth",
            _DEPTH,
            "10",
            "Longest chain of intermediate certificates. Cannot be enforced.",
        ),
        row(
            prefix + "https.hostname_verification",
            _MATCH,
            "none",
            "Certificates for wildcard names (`*.example.com`) are accepted with either.",
        ),
        row(
            prefix + "https.crl_check",
            _CRL_CHECK,
            "false",
            "Revocation lists are not looked at.",
        ),
        *(
            row(prefix + name, _HTTPS, None, _NO_EFFECT, example=f"{issuer}/{path}")
            for name, path in (
                ("token_endpoint", "token"),
                ("authorization_endpoint", "auth"),
                ("end_session_endpoint", "logout"),
            )
        ),
    )


def _server(prefix: str, whose: str) -> tuple[KeySpec, ...]:
    """The keys of a resource server; only the root's have defaults, the others inherit."""
    root = prefix == _PREFIX
    return (
        row(
            prefix + "resource_server_type",
            _NAME,
            None,
            f"The `type` of rich authorisation requests (`authorization_details`){whose}.",
            example="rabbitmq",
        ),
        row(
            prefix + "scope_prefix",
            _TEXT,
            None,
            f"What scopes{whose} start with; may be empty. Unset: the resource server's id and a "
            "dot.",
            example="api://rabbitmq:",
        ),
        row(
            prefix + "additional_scopes_key",
            _TEXT,
            None,
            "Further claims that hold scopes: paths with dots, separated by spaces.",
            example="realm_access.roles",
        ),
        row(
            prefix + "scope_aliases.$alias",
            _TEXT,
            None,
            "Scopes, separated by spaces, that this scope of a token stands for.",
            example={"reader": "rabbitmq.read:*/*"},
        ),
        row(
            prefix + "scope_aliases.$index.alias",
            _NAME,
            None,
            "The same for a scope with characters that a key cannot hold, with `.scope`.",
            example={"1": "api://reader"},
        ),
        row(
            prefix + "scope_aliases.$index.scope",
            _TEXT,
            None,
            "Scopes that the alias of this number stands for.",
            example={"1": "rabbitmq.read:*/* rabbitmq.tag:management"},
        ),
        row(
            prefix + "preferred_username_claims.$preferred_username_claims",
            _NAME,
            {"1": "sub", "2": "client_id"} if root else None,
            "A claim that names the user; the first that a token has counts.",
            example="" if root else {"1": "preferred_username"},
        ),
        row(
            prefix + "verify_aud",
            _BOOLEAN,
            "true" if root else None,
            f"Accept only tokens whose `aud` names the resource server{whose}.",
            example="" if root else "true",
        ),
        row(
            prefix + "require_exp",
            _BOOLEAN,
            "true" if root else None,
            "Refuse tokens that never expire.",
            example="" if root else "true",
        ),
    )


SECTIONS: tuple[Section, ...] = (
    Section(
        "OAuth 2: tokens as passwords",
        (
            row(
                _PREFIX + "resource_server_id",
                _TEXT,
                None,
                "What tokens for this gate have in their `aud` claim.",
                example="rabbitmq",
            ),
            *_server(_PREFIX, ""),
            row(
                _PREFIX + "default_oauth_provider",
                _NAME,
                None,
                "The one of `auth_oauth2.oauth_providers` whose keys count for resource servers "
                "that name none; unset: the keys configured directly in `auth_oauth2`.",
                example="keycloak",
            ),
            *_provider(_PREFIX, ""),
            row(
                _PREFIX + "jwks_url",
                _HTTPS,
                None,
                "The older name of `auth_oauth2.jwks_uri`.",
                example="https://id.example.com/realms/main/certs",
            ),
            row(
                _PREFIX + "https.peer_verification",
                _VERIFY,
                "verify_peer",
                "The older name of `auth_oauth2.https.verify`.",
            ),
            row(
                _PREFIX + "https.fail_if_no_peer_cert",
                _BOOLEAN,
                "false",
                "Without effect: a server always has a certificate.",
            ),
        ),
    ),
    Section(
        "OAuth 2: several resource servers and identity providers",
        (
            row(
                _SERVER + "id",
                _NAME,
                None,
                "What tokens for this resource server have in their `aud` claim; unset: the name. "
                "All other settings are those of `auth_oauth2` unless set here.",
                example="billing-rabbitmq",
            ),
            row(
                _SERVER + "oauth_provider_id",
                _NAME,
                None,
                "The one of `auth_oauth2.oauth_providers` whose keys count for it.",
                example="keycloak",
            ),
            *_server(_SERVER, " of this resource server"),
            *_provider(_PROVIDER, " of this name"),
        ),
    ),
)
