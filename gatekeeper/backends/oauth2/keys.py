"""The keys that an identity provider signs with: configured ones, and those it publishes.

Strategy: published keys are fetched when a token names a key that is not known, and replace all
that were published before, so that a withdrawn key ends with the next rotation. Whoever asks
while a fetch is under way waits for that one. Anybody may send tokens with made-up key names, so
fetches are rationed; a fetch brings all keys, hence the ration delays nobody who is genuine by
more than REFILL seconds. A fetch that fails leaves the known keys as they are.
Source: ``uaa_jwt``, ``uaa_jwt_jwk``, ``rabbit_oauth2_provider``, ``oauth2_client`` (4.3.5).
"""

from __future__ import annotations

import asyncio
import base64
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import structlog

from gatekeeper.backends.oauth2.claims import TokenRefusedError
from gatekeeper.backends.oauth2.fetch import Document, Fetcher
from gatekeeper.backends.oauth2.token import json_object
from gatekeeper.config.oauth2 import ALGORITHMS, OAuthProvider, key_type_of_pem
from gatekeeper.errors import BackendError

BURST = 5
REFILL = 5.0
"""Fetches that may follow each other, and seconds until there may be one more."""

_log = structlog.get_logger("default")

# What a published key consists of. Everything else that it says of itself (use, alg, key_ops) is
# left out: RabbitMQ goes by the type alone.
_MEMBERS: Mapping[str, tuple[str, ...]] = {
    "RSA": ("n", "e"),
    "EC": ("crv", "x", "y"),
    "OKP": ("crv", "x"),
    "oct": ("k",),
}


@dataclass(frozen=True, slots=True)
class Key:
    """A joserfc key and the algorithms that its type allows."""

    key: object = field(repr=False)
    algorithms: Collection[str]


class KeyRing:
    """All keys of one provider, by their ids; None is the id of a key without one."""

    def __init__(
        self,
        provider: OAuthProvider,
        fetcher: Fetcher | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.provider = provider
        if fetcher is None and self.publishes:
            fetcher = Fetcher(provider.https, provider.prefix + "https")
        self._fetcher = fetcher
        self._static: Mapping[str, Key] = {
            name: _of_pem(pem) for name, pem in provider.signing_keys.items()
        }
        self._published: Mapping[str | None, object] = {}
        self._parsed: dict[str | None, Key] = {}
        self._jwks_uri = provider.jwks_uri
        self._lock = asyncio.Lock()
        self._fetched = 0
        self._failure = ""
        self._ration = _Ration(clock)

    @property
    def publishes(self) -> bool:
        return bool(self.provider.jwks_uri or self.provider.discovery_endpoint)

    async def find(self, key_id: str | None) -> Key:
        """key_id: as the token names it. Raises TokenRefusedError."""
        wanted = self.provider.default_key if key_id is None else key_id
        found = self._known(wanted)
        if found is None:
            await self._renew()
            found = self._known(wanted)
        if found is None:
            raise TokenRefusedError("{error,key_not_found}")
        return found

    async def refresh(self) -> None:
        """Fetch the published keys now. Raises BackendError; the old keys stay then."""
        async with self._lock:
            await self._fetch()

    async def _renew(self) -> None:
        """Fetch, unless somebody just has while this one waited, or too many were."""
        if self._fetcher is None:
            raise TokenRefusedError("{error,{missing_oauth_provider_attributes,[issuer]}}")
        before = self._fetched
        async with self._lock:
            if self._fetched == before and self._ration.take():
                try:
                    await self._fetch()
                except BackendError as error:
                    _log.error(f"Failed to download signing keys: {{error,{error}}}")
            if self._failure:
                raise TokenRefusedError(f"{{error,{self._failure}}}")

    def _known(self, key_id: str | None) -> Key | None:
        """A published key goes before a configured one of the same name."""
        if key_id in self._parsed:
            return self._parsed[key_id]
        if key_id in self._published:
            key = self._parsed[key_id] = _of_jwk(self._published[key_id])
            return key
        return None if key_id is None else self._static.get(key_id)

    async def _fetch(self) -> None:
        try:
            keys = _jwks(await self._document())
        except BackendError as error:
            self._failure = str(error)
            self._jwks_uri = self.provider.jwks_uri  # it may have moved
            self._fetched += 1
            raise
        self._published = keys
        self._parsed.clear()
        self._failure = ""
        self._fetched += 1

    async def _document(self) -> Document:
        fetcher = self._fetcher
        if fetcher is None:
            raise BackendError("{missing_oauth_provider_attributes,[issuer]}")
        if not self._jwks_uri:
            self._jwks_uri = _discovered(await fetcher.get(self.provider.discovery_endpoint))
        return await fetcher.get(self._jwks_uri)


class _Ration:
    """A bucket of BURST fetches, one more every REFILL seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = float(BURST)
        self._at = clock()

    def take(self) -> bool:
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._at) / REFILL)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _discovered(document: Document) -> str:
    """``jwks_uri`` of an OpenID configuration. Raises BackendError."""
    words = [word.strip() for word in document.content_type.split(";")]
    if document.content_type and "application/json" not in words:
        raise BackendError("mime_type_is_not_json")
    if document.status not in {200, 201}:
        raise BackendError(f"{{unexpected_status_code,{document.status}}}")
    try:
        found = json_object(document.body).get("jwks_uri")
    except (ValueError, RecursionError):
        raise BackendError("invalid_openid_configuration") from None
    if not isinstance(found, str):
        raise BackendError("{missing_oauth_provider_attributes,[jwks_uri]}")
    if urlsplit(found).scheme != "https":
        raise BackendError("insecure_jwks_uri")
    return found


def _jwks(document: Document) -> Mapping[str | None, object]:
    """Published keys by id, not looked at any closer. Raises BackendError."""
    if document.status != 200:
        raise BackendError(f"{{unexpected_status_code,{document.status}}}")
    try:
        listed = json_object(document.body).get("keys", [])
    except (ValueError, RecursionError):
        raise BackendError("invalid_jwks_response") from None
    # All or none, as in RabbitMQ.
    if not isinstance(listed, list) or not all(isinstance(key, dict) for key in listed):
        raise BackendError("invalid_jwks_response")
    if not listed:
        raise BackendError("empty_jwks_response")
    # An id that is no text (null too) is one that no token can name.
    return {
        key.get("kid"): key for key in listed if "kid" not in key or isinstance(key["kid"], str)
    }


def _of_pem(pem: bytes) -> Key:
    return _imported(pem, key_type_of_pem(pem))


def _of_jwk(jwk: object) -> Key:
    """Raises TokenRefusedError: a key that cannot be used harms only the tokens that name it."""
    kty = jwk.get("kty") if isinstance(jwk, dict) else None
    if not isinstance(jwk, dict) or kty is None:
        raise TokenRefusedError("{error,no_kty}")
    if kty == "MAC" and isinstance(jwk.get("value"), str):
        secret = base64.urlsafe_b64encode(jwk["value"].encode()).rstrip(b"=").decode()
        kty, jwk = "oct", {"k": secret}
    members = _MEMBERS.get(kty) if isinstance(kty, str) else None
    if members is None:
        unknown = f'{{fields_missing_for_kty,<<"{kty}">>}}' if kty == "MAC" else "unknown_kty"
        raise TokenRefusedError(f"{{error,{unknown}}}")
    if any(not isinstance(jwk.get(name), str) for name in members):
        raise TokenRefusedError(f'{{error,{{fields_missing_for_kty,<<"{kty}">>}}}}')
    try:
        return _imported({"kty": kty, **{name: jwk[name] for name in members}}, kty)
    except Exception:  # noqa: BLE001 - whatever the libraries say to such a key
        raise TokenRefusedError("{error,invalid_signing_key}") from None


def _imported(material: bytes | dict[str, str], kty: str) -> Key:
    from joserfc.errors import SecurityWarning  # noqa: PLC0415 - an extra, and 10 MiB
    from joserfc.jwk import import_key  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # short keys, which RabbitMQ takes
        return Key(import_key(material, kty), ALGORITHMS[kty])  # type: ignore[call-overload]
