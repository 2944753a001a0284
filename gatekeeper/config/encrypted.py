"""Decrypts ``encrypted:BASE64`` values as ``rabbitmqctl encode`` writes them, and writes them.

Strategy: one pure function over bytes; every failure is a DecryptionError whose text says what
to check and never shows passphrase, key or plaintext.

Format (RabbitMQ's ``credentials_obfuscation_pbe``): base64 of salt (16 bytes), IV (the cipher's
block size), ciphertext. Key: PBKDF2-HMAC of the passphrase. Plaintext: one term in Erlang's
external format, padded so that the last byte gives the length of the padding. Defaults are
AES-128-CBC, SHA-256, 1 iteration; older documents use AES-256-CBC, SHA-512, 1000.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from gatekeeper.model import Secret

TAG = "encrypted:"

CIPHERS: Mapping[str, int] = MappingProxyType(
    {
        "aes_128_cbc": 16,
        "aes_192_cbc": 24,
        "aes_256_cbc": 32,
        # Names of Erlang before OTP 22, still seen in old advanced.config files.
        "aes_cbc128": 16,
        "aes_cbc192": 24,
        "aes_cbc256": 32,
    }
)
"""Cipher name to key length in bytes."""

HASHES: Mapping[str, str] = MappingProxyType(
    {"sha": "sha1"} | {name: name for name in ("sha224", "sha256", "sha384", "sha512")}
)
"""RabbitMQ's name of a hash to Python's."""

_SALT_LENGTH = 16
_BLOCK_LENGTH = 16
_VERSION = 131
BINARY, STRING, ATOM = 109, 107, 119
"""Tags of terms that are written (an atom of at most 255 bytes)."""
_NIL, _ATOM, _ATOM_UTF8, _SMALL_ATOM = 106, 100, 118, 115
_LENGTH_BYTES: Mapping[int, int] = MappingProxyType(
    {BINARY: 4, STRING: 2, _NIL: 0, _ATOM: 2, _ATOM_UTF8: 2, _SMALL_ATOM: 1, ATOM: 1}
)


class DecryptionError(Exception):
    """The value cannot be decrypted. The text is a problem and its remedy, nothing secret."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """RabbitMQ's ``config_entry_decoder``.

    passphrase: None where none is configured; then every value is refused.
    cipher: a key of CIPHERS. hash: a key of HASHES. iterations: at least 1.
    """

    passphrase: Secret | None = None
    cipher: str = "aes_128_cbc"
    hash: str = "sha256"
    iterations: int = 1

    def decrypt(self, encoded: str) -> Secret:
        """The plaintext of what stands after ``encrypted:``.

        Raises DecryptionError: no passphrase, not base64, too short, wrong parameters.
        """
        return Secret(self.decrypt_term(encoded)[1])

    def decrypt_term(self, encoded: str) -> tuple[int, bytes]:
        """The tag of the Erlang term that was encrypted, and its bytes. As :meth:`decrypt`."""
        if self.passphrase is None:
            raise DecryptionError(
                "the value is encrypted, but there is no passphrase; set"
                " config_entry_decoder.passphrase"
            )
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise DecryptionError(
                "no base64 follows 'encrypted:'; copy the whole output of 'rabbitmqctl encode'"
            ) from None
        ciphertext = data[_SALT_LENGTH + _BLOCK_LENGTH :]
        if not ciphertext or len(ciphertext) % _BLOCK_LENGTH:
            raise DecryptionError(
                "the encrypted value is cut off; copy the whole output of 'rabbitmqctl encode'"
            )
        key = self._key(self.passphrase, data[:_SALT_LENGTH])
        iv = data[_SALT_LENGTH : _SALT_LENGTH + _BLOCK_LENGTH]
        decryptor = self._cipher(key, iv).decryptor()
        padded = decryptor.update(ciphertext) + decryptor.finalize()
        # Not limited to one block: some of RabbitMQ's own samples pad with more.
        plaintext = _term(padded[: -padded[-1]]) if 0 < padded[-1] <= len(padded) else None
        if plaintext is None:
            raise DecryptionError(
                "the value does not decrypt; check config_entry_decoder.passphrase, .cipher,"
                " .hash and .iterations against those of 'rabbitmqctl encode'"
            )
        return plaintext

    def encrypt_term(self, tag: int, text: bytes) -> str:
        """The inverse, with a new salt: what stands after ``encrypted:``.

        tag: BINARY, STRING or ATOM. Raises DecryptionError where there is no passphrase.
        """
        if self.passphrase is None:
            raise DecryptionError("there is no passphrase")
        term = bytes((_VERSION, tag)) + len(text).to_bytes(_LENGTH_BYTES[tag], "big") + text
        padding = _BLOCK_LENGTH - len(term) % _BLOCK_LENGTH
        salt, iv = os.urandom(_SALT_LENGTH), os.urandom(_BLOCK_LENGTH)
        encryptor = self._cipher(self._key(self.passphrase, salt), iv).encryptor()
        data = encryptor.update(term + bytes((padding,)) * padding) + encryptor.finalize()
        return base64.b64encode(salt + iv + data).decode("ascii")

    def _key(self, passphrase: Secret, salt: bytes) -> bytes:
        return hashlib.pbkdf2_hmac(
            HASHES[self.hash], passphrase.value, salt, self.iterations, CIPHERS[self.cipher]
        )

    @staticmethod
    def _cipher(key: bytes, iv: bytes) -> Cipher[modes.CBC]:
        return Cipher(algorithms.AES(key), modes.CBC(iv))


def _term(data: bytes) -> tuple[int, bytes] | None:
    """One Erlang binary, string or atom in external format: its tag and its bytes, or None."""
    if len(data) < 2 or data[0] != _VERSION or data[1] not in _LENGTH_BYTES:
        return None
    start = 2 + _LENGTH_BYTES[data[1]]
    length = int.from_bytes(data[2:start], "big")
    return (data[1], data[start:]) if len(data) == start + length else None
