"""An identity provider on loopback: HTTPS by a certificate of its own, keys that can rotate.

What it answers is set by a test; every request is noted.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from gatekeeper.config.settings import ClientTls

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
JoseKey = RSAKey | ECKey | OKPKey | OctKey

_MAKERS: dict[str, Callable[[], Any]] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ES256K": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
}
_KINDS: dict[str, type[Any]] = {"RS": RSAKey, "PS": RSAKey, "ES": ECKey, "Ed": OKPKey}


class SigningKey:
    """A real key pair; signs tokens by ``algorithm``."""

    def __init__(self, kid: str = "key-1", algorithm: str = "RS256") -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.private_key = _MAKERS[algorithm]()
        self.private_pem: bytes = self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self.public_pem: bytes = self.private_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._key: JoseKey = _KINDS[algorithm[:2]].import_key(self.private_pem)

    def jwk(self, **more: Any) -> dict[str, Any]:
        return {**self._key.as_dict(private=False), "kid": self.kid, **more}

    def sign(
        self, payload: Mapping[str, Any] | bytes, *, algorithm: str = "", **header: Any
    ) -> bytes:
        """A token; a header of None is left out. ``algorithm``: another that fits the key."""
        protected = {"alg": algorithm or self.algorithm, "kid": self.kid, "typ": "JWT", **header}
        protected = {name: value for name, value in protected.items() if value is not None}
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        registry = jws.JWSRegistry(algorithms=[protected["alg"]], strict_check_header=False)
        registry.max_payload_length = registry.max_header_length = 1 << 24
        return jws.serialize_compact(protected, data, self._key, registry=registry).encode()


def claims(*scopes: str, **more: Any) -> dict[str, Any]:
    """Of a token for ``rabbitmq`` that ends in an hour; None leaves a claim out."""
    found = {
        "aud": "rabbitmq",
        "sub": "alice",
        "exp": int(time.time()) + 3600,
        "scope": " ".join(f"rabbitmq.{scope}" for scope in scopes),
        **more,
    }
    return {name: value for name, value in found.items() if value is not None}


def unsigned(payload: Mapping[str, Any], header: Mapping[str, Any], signature: str = "") -> bytes:
    """A token with any header and any signature."""

    def encoded(part: Mapping[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()

    return f"{encoded(header)}.{encoded(payload)}.{signature}".encode()


class IdentityProvider:
    """``async with``; ``answers`` maps a path to what is answered there."""

    def __init__(self, folder: Path, *keys: SigningKey) -> None:
        self.keys = list(keys)
        self.requests: list[str] = []
        self.forms: list[dict[str, object]] = []
        self.authorizations: list[str] = []
        self.answers: dict[str, Answer] = {}
        authority = trustme.CA()
        self.authority = folder / "idp-ca.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self.https = ClientTls(cacertfile=self.authority)
        self._certificate = authority.issue_cert("localhost")
        self._runner: web.AppRunner | None = None
        self.url = ""
        # Held while a slow answer is out; a test sets it to let go.
        self.release = asyncio.Event()

    async def __aenter__(self) -> Self:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._certificate.configure_cert(context)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"https://localhost:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release.set()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def jwks_uri(self) -> str:
        return self.url + "/jwks"

    @property
    def token_endpoint(self) -> str:
        return self.url + "/token"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        if request.path in self.answers:
            return await self.answers[request.path](request)
        if request.path == "/jwks":
            return web.json_response({"keys": [key.jwk() for key in self.keys]})
        if request.path.endswith("/.well-known/openid-configuration"):
            return web.json_response({"issuer": self.url, "jwks_uri": self.jwks_uri})
        return web.Response(status=404)

    def answer(self, path: str, **response: Any) -> None:
        """Always the same there: keywords of ``aiohttp.web.Response``."""

        async def fixed(_request: web.Request) -> web.StreamResponse:
            return web.Response(**response)

        self.answers[path] = fixed

    def grant(self, *tokens: bytes, **more: Any) -> None:
        """Give these out at ``token_endpoint``, one after the other, the last for ever.

        more: members of the answer beside ``access_token``.
        """
        left = list(tokens)

        async def give(request: web.Request) -> web.StreamResponse:
            self.forms.append({**await request.post()})
            self.authorizations.append(request.headers.get("Authorization", ""))
            token = left.pop(0) if left[1:] else left[0]
            return web.json_response({"access_token": token.decode(), **more})

        self.answers["/token"] = give

    def hold(self, path: str) -> None:
        """Answer only when ``release`` is set."""

        async def slow(_request: web.Request) -> web.StreamResponse:
            await self.release.wait()
            return web.json_response({"keys": [key.jwk() for key in self.keys]})

        self.answers[path] = slow
