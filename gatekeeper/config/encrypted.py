"""Decrypts ``encrypted:BASE64`` values as ``rabbitmqctl encode`` writes them.

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
_BINARY, _STRING, _NIL = 109, 107, 106
_ATOM, _ATOM_UTF8, _SMALL_ATOM, _SMALL_ATOM_UTF8 = 100, 118, 115, 119
_LENGTH_BYTES: Mapping[int, int] = MappingProxyType(
    {_BINARY: 4, _STRING: 2, _NIL: 0, _ATOM: 2, _ATOM_UTF8: 2, _SMALL_ATOM: 1, _SMALL_ATOM_UTF8: 1}
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
        key = hashlib.pbkdf2_hmac(
            HASHES[self.hash],
            self.passphrase.value,
            data[:_SALT_LENGTH],
            self.iterations,
            CIPHERS[self.cipher],
        )
        iv = data[_SALT_LENGTH : _SALT_LENGTH + _BLOCK_LENGTH]
        decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
        padded = decryptor.update(ciphertext) + decryptor.finalize()
        # Not limited to one block: some of RabbitMQ's own samples pad with more.
        plaintext = _term(padded[: -padded[-1]]) if 0 < padded[-1] <= len(padded) else None
        if plaintext is None:
            raise DecryptionError(
                "the value does not decrypt; check config_entry_decoder.passphrase, .cipher,"
                " .hash and .iterations against those of 'rabbitmqctl encode'"
            )
        return Secret(plaintext)


def _term(data: bytes) -> bytes | None:
    """The bytes of one Erlang binary, string or atom in external format, or None."""
    if len(data) < 2 or data[0] != _VERSION or data[1] not in _LENGTH_BYTES:
        return None
    start = 2 + _LENGTH_BYTES[data[1]]
    length = int.from_bytes(data[2:start], "big")
    return data[start:] if len(data) == start + length else None
