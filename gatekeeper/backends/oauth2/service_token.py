"""A token of the gate's own, to log in at a broker by: from an identity provider, or a file.

The token is only carried, so its signature is not looked at; when it ends is read from it where
the provider does not say. No message holds any part of a token or of what a provider sent with it.
Source: RFC 6749 sections 2.3.1, 4.4 and 5; RFC 6750 section 2.1 (the characters of a token).
"""

from __future__ import annotations

import asyncio
import base64
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote_plus

from gatekeeper.backends.oauth2.fetch import Document, Fetcher
from gatekeeper.backends.oauth2.token import MalformedTokenError, Unverified, json_object
from gatekeeper.config.oauth2 import USERNAME_CLAIMS
from gatekeeper.config.tokens import TokenGrant
from gatekeeper.errors import BackendError, ConfigError
from gatekeeper.model import Secret

MAX_TOKEN = 64 * 1024
"""Bytes of a token; a broker takes far shorter ones (its first frames have 4096 or 8192)."""
FILE_PAUSE = 3.0
"""Seconds between looks at a file."""
EARLY = 0.8
"""Of a token's life, after which the next is fetched."""
LEAST_PAUSE, LONGEST_PAUSE = 1.0, 86400.0
"""Seconds between fetches."""
UNKNOWN_LIFE = 3600.0
"""Seconds that a token is taken to live of which nobody says."""

_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*")
_ERROR = re.compile(r"[a-z_]{1,40}")


@dataclass(frozen=True, slots=True)
class ServiceToken:
    """expires: Unix seconds; None where nobody says. user: whose it says it is, or empty."""

    secret: Secret
    expires: float | None = None
    user: bytes = b""

    def valid(self, now: float) -> bool:
        return self.expires is None or self.expires > now


class TokenSource(Protocol):
    async def fetch(self) -> ServiceToken:
        """A token, which may be the same again. Raises BackendError."""

    def pause(self, token: ServiceToken) -> float:
        """Seconds until it is time to fetch the one after this."""


def token_source(token: TokenGrant | Path, upstream: str) -> TokenSource:
    """upstream: its keys in the configuration, without the last dot. Raises ConfigError."""
    if isinstance(token, Path):
        return TokenInFile(token)
    return GrantedToken(token, upstream + ".oauth2")


class GrantedToken:
    """By the client credentials grant. prefix: of the keys, for messages. Raises ConfigError."""

    def __init__(
        self, grant: TokenGrant, prefix: str, clock: Callable[[], float] = time.time
    ) -> None:
        try:
            import aiohttp  # noqa: F401, PLC0415 - an extra
        except ImportError as error:
            raise ConfigError(
                f"{prefix}.token_endpoint: needs {error.name}; install gatekeeper-amqp[oauth2]"
            ) from None
        self._grant = grant
        self._fetcher = Fetcher(grant.https, prefix + ".https")
        self._clock = clock

    async def fetch(self) -> ServiceToken:
        grant = self._grant
        form = {"grant_type": "client_credentials"}
        if grant.scope:
            form["scope"] = grant.scope
        pair = quote_plus(grant.client_id) + ":" + quote_plus(grant.client_secret.value)
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        asked = self._clock()
        return _granted(await self._fetcher.post(grant.token_endpoint, form, authorization), asked)

    def pause(self, token: ServiceToken) -> float:
        life = UNKNOWN_LIFE if token.expires is None else token.expires - self._clock()
        return min(max(LEAST_PAUSE, life * EARLY), LONGEST_PAUSE)


class TokenInFile:
    """From a file that others write. It is read each time: that is no dearer than a look at when
    it was changed, and not misled by links that are moved (Kubernetes)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def fetch(self) -> ServiceToken:
        try:
            data = await asyncio.to_thread(self._read)
        except OSError as error:
            raise BackendError(f"{self._path}: {error.strerror or type(error).__name__}") from None
        try:
            return _token(data.strip())
        except BackendError as error:
            raise BackendError(f"{self._path}: {error}") from None

    def _read(self) -> bytes:
        with self._path.open("rb") as stream:
            return stream.read(MAX_TOKEN + 2)

    def pause(self, token: ServiceToken) -> float:
        return FILE_PAUSE


def _granted(document: Document, asked: float) -> ServiceToken:
    """The token of a provider's answer. asked: when, in Unix seconds. Raises BackendError."""
    try:
        answer = json_object(document.body)
    except (ValueError, RecursionError):
        answer = {}
    if document.status != 200:
        error = answer.get("error")
        # Only what looks like one of the RFC's words (invalid_client) is repeated.
        shown = f": {error}" if isinstance(error, str) and _ERROR.fullmatch(error) else ""
        raise BackendError(f"the provider answers {document.status}{shown}")
    compact, kind = answer.get("access_token"), answer.get("token_type", "Bearer")
    if not isinstance(compact, str) or not isinstance(kind, str) or kind.lower() != "bearer":
        raise BackendError("the provider's answer holds no bearer token")
    life = _number(answer.get("expires_in"))
    return _token(compact.encode("utf-8", "replace"), None if life is None else asked + life)


def _token(compact: bytes, expires: float | None = None) -> ServiceToken:
    """expires: as the provider says; a token may say of itself that it ends sooner."""
    if len(compact) > MAX_TOKEN or not _TOKEN.fullmatch(compact):
        raise BackendError("this is no token")
    try:
        claims = Unverified.of(compact).claims
    except MalformedTokenError:
        return ServiceToken(Secret(compact), expires)  # an opaque one, which some brokers take
    ends = [end for end in (expires, _number(claims.get("exp"))) if end is not None]
    names = (claims.get(name) for name in USERNAME_CLAIMS)
    user = next((name for name in names if isinstance(name, str)), "")
    return ServiceToken(Secret(compact), min(ends, default=None), user.encode("utf-8", "replace"))


def _number(value: object) -> float | None:
    """Seconds as a number, or as text, which some providers send."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
