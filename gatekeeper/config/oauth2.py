"""What ``auth_oauth2.*`` says: resource servers, and the providers that sign their tokens.

Everything that RabbitMQ looks up at each login (a server's own value, else the root's, else the
default) is resolved here already; :mod:`gatekeeper.config.build_oauth2` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509 import load_pem_x509_certificate

from gatekeeper.config.settings import ClientTls

BACKEND = "rabbit_auth_backend_oauth2"
ROOT = ""
"""The name of the provider that is configured without one."""
USERNAME_CLAIMS = ("sub", "client_id")

ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512", "ES256K"),
    "OKP": ("EdDSA", "Ed25519", "Ed448"),
    "oct": ("HS256", "HS384", "HS512"),
}
"""What a key of a type (JWK ``kty``) can verify: no algorithm is in two rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthProvider:
    """Where keys come from.

    jwks_uri, discovery_endpoint: URLs or "". Without a jwks_uri the endpoint tells it.
    default_key: the id of the key for tokens that name none.
    signing_keys: by id, public keys as PEM (SubjectPublicKeyInfo).
    algorithms: the allowed ones; None: all that fit the key.
    https: of which only cacertfile and verify_peer are ever set.
    """

    name: str = ROOT
    jwks_uri: str = ""
    discovery_endpoint: str = ""
    default_key: str | None = None
    signing_keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    algorithms: tuple[str, ...] | None = None
    https: ClientTls = field(default_factory=ClientTls)

    @property
    def prefix(self) -> str:
        """What the names of its keys in the configuration start with."""
        return f"auth_oauth2.oauth_providers.{self.name}." if self.name else "auth_oauth2."


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceServer:
    """Whom tokens are for: one value of ``aud``.

    resource_server_type: of rich authorisation requests; "" accepts none.
    additional_scopes_key: space-separated paths of claims, or "".
    scope_aliases: to the scopes that each stands for.
    provider: the name of its OAuthProvider.
    """

    id: str
    resource_server_type: str = ""
    verify_aud: bool = True
    require_exp: bool = True
    scope_prefix: str
    additional_scopes_key: str = ""
    preferred_username_claims: tuple[str, ...] = USERNAME_CLAIMS
    scope_aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    provider: str = ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuth2Settings:
    """servers: by id, at least one. providers: by name, those that a server uses."""

    servers: Mapping[str, ResourceServer]
    providers: Mapping[str, OAuthProvider]


# --- keys in PEM ---

_KEY_TYPES: tuple[tuple[type, str], ...] = (
    (rsa.RSAPublicKey, "RSA"),
    (ec.EllipticCurvePublicKey, "EC"),
    (ed25519.Ed25519PublicKey, "OKP"),
    (ed448.Ed448PublicKey, "OKP"),
)


def public_pem(pem: bytes) -> bytes:
    """The public key of a public key, certificate or private key, as PEM.

    Raises ValueError where there is none of a usable type.
    """
    key = _public_key(pem)
    _key_type(key)
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(encoding, form))  # type: ignore[attr-defined]


def key_type_of_pem(pem: bytes) -> str:
    """JWK ``kty`` of a public key in PEM. Raises ValueError."""
    return _key_type(_public_key(pem))


def _public_key(pem: bytes) -> object:
    try:
        if b"-----BEGIN CERTIFICATE-----" in pem:
            return load_pem_x509_certificate(pem).public_key()
        if b"PRIVATE KEY-----" in pem:
            return serialization.load_pem_private_key(pem, None).public_key()
        return serialization.load_pem_public_key(pem)
    except (TypeError, UnsupportedAlgorithm):  # encrypted, or of an unknown curve
        raise ValueError("no usable key") from None


def _key_type(key: object) -> str:
    for kind, name in _KEY_TYPES:
        if isinstance(key, kind):
            return name
    raise ValueError("a key of another type")
