"""RabbitMQ's password hashes, as passlib handlers in one CryptContext.

RabbitMQ stores ``salt (4 bytes) || H(salt || password)`` and writes it as bare base64, with
the algorithm beside it. In the context each hash carries its algorithm as a prefix
(``$rabbit-sha256$...``), so that it cannot be taken for another. A record keeps the raw bytes.

Every verification costs the same hash, also where there is nothing to compare with: an unknown
user, a cleared password and a malformed hash are not told apart by time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from typing import ClassVar

import passlib.utils.handlers as uh
from passlib.context import CryptContext
from passlib.exc import PasswordSizeError

SHA256 = "rabbit_password_hashing_sha256"
SHA512 = "rabbit_password_hashing_sha512"
MD5 = "rabbit_password_hashing_md5"

DEFAULT_ALGORITHM = SHA256
LEGACY_ALGORITHM = MD5
"""What a user record without an algorithm means (RabbitMQ before 3.6)."""

SALT_BYTES = 4


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
        # The format is RabbitMQ's; MD5 is there to read what old brokers wrote.
        return hashlib.new(self.digest, self.salt + password, usedforsecurity=False).digest()


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
ALGORITHMS = tuple(_HANDLERS)

_CONTEXT = CryptContext(schemes=list(_HANDLERS.values()), default=RabbitSha256.name)


class PasswordTooLongError(ValueError):
    """The password exceeds what passlib hashes (4096 bytes)."""


def hash_password(password: bytes, algorithm: str = DEFAULT_ALGORITHM) -> bytes:
    """A salted hash, raw: ``salt || digest``.

    Raises PasswordTooLongError, and ValueError for an unknown algorithm.
    """
    handler = _HANDLERS.get(algorithm)
    if handler is None:
        raise ValueError(f"unknown password hashing algorithm '{algorithm}'")
    try:
        text: str = handler.hash(password)
    except PasswordSizeError as error:
        raise PasswordTooLongError("the password is longer than 4096 bytes") from error
    return base64.b64decode(text.removeprefix(handler.ident))


_NOBODY = hash_password(secrets.token_bytes(16))
"""The hash of a password that nobody knows, made anew in each process."""


def verify(password: bytes, stored: bytes | None, algorithm: str = DEFAULT_ALGORITHM) -> bool:
    """Is this the password behind the stored hash? Compared in constant time.

    stored: raw ``salt || digest``. Nothing ever matches None (no such user), an empty hash (a
    cleared password), one of a wrong length, or one of an unknown algorithm; those cost one
    hash like any other.
    """
    handler = _HANDLERS.get(algorithm)
    usable = (
        handler is not None
        and stored is not None
        and len(stored) == SALT_BYTES + handler.checksum_size
    )
    if not usable or handler is None or stored is None:
        handler, stored = RabbitSha256, _NOBODY
    text = handler.ident + base64.b64encode(stored).decode("ascii")
    try:
        matched = _CONTEXT.verify(password, text)
    except PasswordSizeError:
        return False
    return bool(usable and matched)


def hash_size(algorithm: str) -> int | None:
    """Bytes of a raw hash of this algorithm; None if it is unknown."""
    handler = _HANDLERS.get(algorithm)
    return None if handler is None else SALT_BYTES + int(handler.checksum_size)


def from_base64(text: str) -> bytes:
    """A hash as RabbitMQ writes it, to raw bytes; ``''`` is no password. Raises ValueError."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not base64") from error


def to_base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
