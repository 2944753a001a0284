"""A JSON Web Token: read, verified by joserfc, and what is kept of it afterwards.

A token is a password: no message here holds any part of one. The payload is read once before
the signature is checked, to find out whose key to check it with; what counts afterwards is the
payload as the signature covers it.
Source: ``uaa_jwt``, ``uaa_jwt_jwt``, ``rabbit_auth_backend_oauth2`` (4.3.5).
"""

from __future__ import annotations

import base64
import json
import math
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from gatekeeper.backends.oauth2.claims import Claims, TokenRefusedError, tags, username
from gatekeeper.backends.oauth2.scopes import VhostScopes, variables
from gatekeeper.config.oauth2 import ResourceServer

MALFORMED = "{invalid_token,error,badarg,[]}"
SIGNATURE_INVALID = "signature_invalid"
MAX_HEADER = 64 * 1024
"""Bytes of a token's header: certificate chains (``x5c``) may stand in it."""

_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+")
# RabbitMQ replaces both claims of a token by its own values, which are not text.
_REPLACED = frozenset({"scope", "x-rmq-require-exp"})


class MalformedTokenError(Exception):
    """This is no token, or one whose header says nothing that can be used."""


@dataclass(frozen=True, slots=True)
class Unverified:
    """A token as it says of itself."""

    compact: bytes = field(repr=False)
    header: Claims = field(repr=False)
    claims: Claims = field(repr=False)

    @classmethod
    def of(cls, compact: bytes) -> Unverified:
        """Raises MalformedTokenError."""
        segments = compact.split(b".")
        if len(segments) != 3:
            raise MalformedTokenError
        return cls(compact, _object(segments[0]), _object(segments[1]))

    @property
    def key_id(self) -> str | None:
        """None where the token names no key. Raises TokenRefusedError where it names nonsense."""
        if "kid" not in self.header:
            return None
        named = self.header["kid"]
        if not isinstance(named, str):
            raise TokenRefusedError("{error,key_not_found}")
        return named

    def check_header(self, known: Collection[str]) -> None:
        """Raises MalformedTokenError for an algorithm that nobody knows, and for extensions
        that change what a signature covers (``b64``) or must be understood (``crit``)."""
        algorithm = self.header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in {"none", *known}:
            raise MalformedTokenError
        if "b64" in self.header or "crit" in self.header:
            raise MalformedTokenError


def _object(segment: bytes) -> dict[str, object]:
    if not _BASE64URL.fullmatch(segment):
        raise MalformedTokenError
    try:
        data = base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
        return json_object(data)
    except (ValueError, RecursionError):
        raise MalformedTokenError from None


def json_object(data: bytes) -> dict[str, object]:
    """A JSON object as Erlang reads it: UTF-8, and numbers only. Raises ValueError,
    RecursionError."""
    value = json.loads(data.decode(), parse_constant=_no_number, parse_float=_finite)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - it is the text that is wrong
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError("not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def verified(token: Unverified, key: object, algorithms: Collection[str]) -> Claims:
    """The claims, if this key has signed them by one of these algorithms.

    key: a joserfc key. algorithms: those of the key's own type that are allowed; never empty
        and never ``none``, so that no key can be taken for one of another type.
    Raises TokenRefusedError.
    """
    # Imported late, because it costs 10 MiB (cryptography) that only this backend needs.
    from joserfc import errors, jws  # noqa: PLC0415

    if token.header.get("alg") not in algorithms:
        raise TokenRefusedError(SIGNATURE_INVALID)
    registry = jws.JWSRegistry(algorithms=algorithms, strict_check_header=False)
    registry.max_header_length = MAX_HEADER
    try:
        with warnings.catch_warnings():
            # joserfc advises against some algorithms (EdDSA by its old name); RabbitMQ has them.
            warnings.simplefilter("ignore", errors.SecurityWarning)
            signed = jws.deserialize_compact(token.compact, key, registry=registry)  # type: ignore[arg-type]
        return json_object(signed.payload)
    except (errors.JoseError, ValueError, TypeError, RecursionError):
        raise TokenRefusedError(SIGNATURE_INVALID) from None


@dataclass(slots=True, eq=False)
class TokenState:
    """What is kept of a verified token: the state of an OAuth 2 user.

    server: the resource server that it is for.
    scopes: normalised (claims.scopes). claims: those texts that usernames and scopes may need.
    expires_at: Unix seconds, None for never. invalid_expiry: ``exp`` is no number.
    """

    server: ResourceServer
    scopes: tuple[bytes, ...] = field(repr=False)
    claims: Mapping[str, str] = field(repr=False)
    expires_at: int | None
    invalid_expiry: bool
    # The permissions in the vhost asked about last: a connection has one vhost.
    _vhost: bytes | None = field(default=None, repr=False)
    _permissions: VhostScopes = field(default_factory=lambda: VhostScopes(()), repr=False)

    @classmethod
    def of(
        cls,
        claims: Claims,
        server: ResourceServer,
        scopes: tuple[str, ...],
        username_claims: Collection[str],
    ) -> TokenState:
        """username_claims: of all resource servers; a later token may be for another one.

        Raises UnicodeEncodeError where a scope is no text that UTF-8 can hold.
        """
        encoded = tuple(scope.encode() for scope in scopes)
        needed = {name.decode("utf-8", "replace") for name in variables(encoded)}
        kept = {
            name: value
            for name in (needed | set(username_claims)) - _REPLACED
            if isinstance(value := claims.get(name), str)
        }
        exp = claims.get("exp")
        number = isinstance(exp, int | float) and not isinstance(exp, bool)
        return cls(
            server,
            encoded,
            kept,
            expires_at=int(exp) if number else None,  # type: ignore[call-overload]
            invalid_expiry="exp" in claims and not number,
        )

    @property
    def username(self) -> bytes:
        return self.username_by(self.server).encode()

    def username_by(self, server: ResourceServer) -> str:
        return username(self.claims, server.preferred_username_claims)

    @property
    def tags(self) -> frozenset[str]:
        return tags([scope.decode() for scope in self.scopes])

    def expired(self, now: float) -> str | None:
        """Why the token is no longer, or was never, good for anything; RabbitMQ's text."""
        if self.invalid_expiry:
            return "Provided JWT token has an invalid exp claim: value is not a number"
        if self.expires_at is None:
            return "Provided JWT token has no exp claim" if self.server.require_exp else None
        if self.expires_at <= int(now):
            return (
                f"Provided JWT token has expired at timestamp {self.expires_at} "
                f"(validated at {int(now)})"
            )
        return None

    def permissions(self, vhost: bytes) -> VhostScopes:
        if vhost != self._vhost:
            self._permissions = VhostScopes.of(self.scopes, vhost, self._value)
            self._vhost = vhost
        return self._permissions

    def _value(self, name: bytes) -> bytes:
        """Of a variable: the claim of that name, or else the name itself."""
        value = self.claims.get(name.decode("utf-8", "replace"))
        return name if value is None else value.encode()
