"""RabbitMQ's password hashes, and argon2id, as passlib handlers in one CryptContext.

RabbitMQ stores ``salt (4 bytes) || H(salt || password)`` and writes it as bare base64, with
the algorithm beside it. In the context each hash carries its algorithm as a prefix
(``$rabbit-sha256$...``), so that it cannot be taken for another. A record keeps the raw bytes;
of argon2id, which RabbitMQ lacks, these are the octets of its usual text (``$argon2id$v=19$...``).

Every verification costs the same hash, also where there is nothing to compare with: an unknown
user, a cleared password and a malformed hash are not told apart by time. One of argon2id takes
some 20 ms and 19 MiB, so it has no place on the event loop.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from typing import ClassVar

import passlib.utils.handlers as uh
from passlib.context import CryptContext
from passlib.exc import MissingBackendError, PasswordSizeError
from passlib.handlers.argon2 import argon2

SHA256 = "rabbit_password_hashing_sha256"
SHA512 = "rabbit_password_hashing_sha512"
MD5 = "rabbit_password_hashing_md5"
ARGON2ID = "gatekeeper_password_hashing_argon2id"

DEFAULT_ALGORITHM = SHA256
LEGACY_ALGORITHM = MD5
"""What a user record without an algorithm means (RabbitMQ before 3.6)."""

SALT_BYTES = 4

ARGON2_MEMORY_KIB = 19 * 1024
ARGON2_ROUNDS = 2
ARGON2_LANES = 1
"""OWASP's minimum for argon2id (Password Storage Cheat Sheet)."""
ARGON2_MAX_MEMORY_KIB = 64 * 1024
ARGON2_MAX_ROUNDS = 16
ARGON2_MAX_LANES = 4
"""What an imported hash may cost: whoever may import is not to stop all logins by one."""


class _RabbitHandler(uh.HasRawSalt, uh.HasRawChecksum, uh.GenericHandler):  # type: ignore[misc]
    """``IDENT || base64(salt || H(salt || password))``."""

    setting_kwds = ("salt",)
    min_salt_size = max_salt_size = default_salt_size = SALT_BYTES
    digest: ClassVar[str]

    @classmethod
    def _generate_salt(cls) -> bytes:
        return secrets.token_bytes(SALT_BYTES)

    @classmethod
    def from_string(cls, hash: str | bytes, **context: object) -> _RabbitHandler:  # noqa: A002
        text = hash.decode("ascii") if isinstance(hash, bytes) else hash
        if not text.startswith(cls.ident):
            raise uh.exc.InvalidHashError(cls)
        try:
            raw = base64.b64decode(text[len(cls.ident) :], validate=True)
        except binascii.Error as error:
            raise uh.exc.MalformedHashError(cls, "not base64") from error
        return cls(salt=raw[:SALT_BYTES], checksum=raw[SALT_BYTES:])

    def to_string(self) -> str:
        return f"{self.ident}{base64.b64encode(self.salt + self.checksum).decode('ascii')}"

    def _calc_checksum(self, secret: str | bytes) -> bytes:
        password = secret.encode() if isinstance(secret, str) else secret
        return self._digest(self.salt, password)

    @classmethod
    def _digest(cls, salt: bytes, password: bytes) -> bytes:
        # The format is RabbitMQ's; MD5 is there to read what old brokers wrote.
        return hashlib.new(cls.digest, salt + password, usedforsecurity=False).digest()

    @classmethod
    def matches(cls, password: bytes, stored: bytes) -> bool:
        """What ``verify`` says of the same hash as text, for a tenth of the time. Raises
        PasswordSizeError as it does. stored: raw, of the right length."""
        uh.validate_secret(password)
        salt, digest = stored[:SALT_BYTES], stored[SALT_BYTES:]
        return hmac.compare_digest(cls._digest(salt, password), digest)


class RabbitSha256(_RabbitHandler):
    name = "rabbit_sha256"
    ident = "$rabbit-sha256$"
    checksum_size = 32
    digest = "sha256"


class RabbitSha512(_RabbitHandler):
    name = "rabbit_sha512"
    ident = "$rabbit-sha512$"
    checksum_size = 64
    digest = "sha512"


class RabbitMd5(_RabbitHandler):
    name = "rabbit_md5"
    ident = "$rabbit-md5$"
    checksum_size = 16
    digest = "md5"


_HANDLERS: dict[str, type[_RabbitHandler]] = {
    SHA256: RabbitSha256,
    SHA512: RabbitSha512,
    MD5: RabbitMd5,
}
_ARGON2 = argon2.using(
    type="ID", memory_cost=ARGON2_MEMORY_KIB, rounds=ARGON2_ROUNDS, parallelism=ARGON2_LANES
)
_ARGON2_FORM = re.compile(
    rb"\$argon2id\$v=19\$m=(?P<memory>[1-9][0-9]{0,9}),t=(?P<rounds>[1-9][0-9]{0,9}),"
    rb"p=(?P<lanes>[1-9][0-9]{0,9})\$(?P<salt>[A-Za-z0-9+/]{11,86})"
    rb"\$(?P<digest>[A-Za-z0-9+/]{22,86})"
)

RABBITMQ_ALGORITHMS = tuple(_HANDLERS)
ALGORITHMS = (*RABBITMQ_ALGORITHMS, ARGON2ID)

_CONTEXT = CryptContext(schemes=[*_HANDLERS.values(), _ARGON2], default=RabbitSha256.name)


class PasswordTooLongError(ValueError):
    """The password exceeds what passlib hashes (4096 bytes)."""


def is_slow(algorithm: str) -> bool:
    """Does a hash take so long, and so much memory, that it needs a thread?"""
    return algorithm == ARGON2ID


def is_available(algorithm: str) -> bool:
    """False: unknown, or the package that computes it is not installed."""
    return algorithm in _HANDLERS or (algorithm == ARGON2ID and bool(_ARGON2.has_backend()))


def hash_password(password: bytes, algorithm: str = DEFAULT_ALGORITHM) -> bytes:
    """A salted hash, raw: ``salt || digest``, of argon2id its text.

    Raises PasswordTooLongError, and ValueError for an algorithm that is unknown or not available.
    """
    if not is_available(algorithm):
        raise ValueError(f"unknown password hashing algorithm '{algorithm}'")
    handler = _HANDLERS.get(algorithm, _ARGON2)
    try:
        text: str = handler.hash(password)
    except PasswordSizeError as error:
        raise PasswordTooLongError("the password is longer than 4096 bytes") from error
    if handler is _ARGON2:
        return text.encode("ascii")
    return base64.b64decode(text.removeprefix(handler.ident))


def _nobody() -> str:
    """An argon2id hash of a password that nobody knows. Not computed: that is slow."""
    salt, digest = (
        base64.b64encode(secrets.token_bytes(size)).decode("ascii").rstrip("=") for size in (16, 32)
    )
    cost = f"m={ARGON2_MEMORY_KIB},t={ARGON2_ROUNDS},p={ARGON2_LANES}"
    return f"$argon2id$v=19${cost}${salt}${digest}"


_NOBODY, _NOBODY_ARGON2 = secrets.token_bytes(SALT_BYTES + RabbitSha256.checksum_size), _nobody()
"""For each cost, what no password matches. Made anew in each process."""


def verify(password: bytes, stored: bytes | None, algorithm: str = DEFAULT_ALGORITHM) -> bool:
    """Is this the password behind the stored hash? Compared in constant time.

    stored: raw, as :func:`hash_password` gives it. Nothing ever matches None (no such user), an
    empty hash (a cleared password), one of a wrong form, or one of an unknown algorithm; those
    cost one hash like any other, of ``algorithm`` if that is argon2id.
    """
    known = stored if stored is not None and is_usable(stored, algorithm) else None
    try:
        if algorithm == ARGON2ID:
            text = _NOBODY_ARGON2 if known is None else known.decode("ascii")
            matched = bool(_CONTEXT.verify(password, text))
        elif known is None:
            matched = RabbitSha256.matches(password, _NOBODY)
        else:
            matched = _HANDLERS[algorithm].matches(password, known)
    except (ValueError, MissingBackendError):  # too long; a form that only argon2 finds wrong
        return False
    return known is not None and matched


def is_usable(stored: bytes, algorithm: str) -> bool:
    """Could any password match? If it is not of this algorithm's form, none does."""
    handler = _HANDLERS.get(algorithm)
    if handler is not None:
        return len(stored) == SALT_BYTES + int(handler.checksum_size)
    if algorithm != ARGON2ID:
        return False
    form = _ARGON2_FORM.fullmatch(stored)
    if form is None:
        return False
    memory, rounds, lanes = (int(form[name]) for name in ("memory", "rounds", "lanes"))
    return (
        8 * lanes <= memory <= ARGON2_MAX_MEMORY_KIB
        and 1 <= rounds <= ARGON2_MAX_ROUNDS
        and 1 <= lanes <= ARGON2_MAX_LANES
        and _is_unpadded_base64(form["salt"])
        and _is_unpadded_base64(form["digest"])
    )


def _is_unpadded_base64(text: bytes) -> bool:
    """In the one form that an encoder writes: argon2 itself takes no other."""
    try:
        raw = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return False
    return base64.b64encode(raw).rstrip(b"=") == text


def from_base64(text: str) -> bytes:
    """A hash as RabbitMQ writes it, to raw bytes; ``''`` is no password. Raises ValueError."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not base64") from error


def to_base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
