"""``encrypted:`` values. The vectors are RabbitMQ's: from ``rabbitmqctl encode`` and its docs."""

from __future__ import annotations

import base64
import hashlib
import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.config.encrypted import CIPHERS, HASHES, Decoder, DecryptionError
from gatekeeper.model import Secret

VECTOR = "bz1z3IO3RWv94cAxVV3mlECQL+4OddHSW8mKqGcjm62p7mJ3UNyjjY1ypC0Ng6fP"
MINE = Decoder(Secret(b"mypass"))


@pytest.mark.parametrize(
    ("decoder", "encoded", "plaintext"),
    [
        (MINE, VECTOR, b"s3cr#t"),
        (
            Decoder(Secret(b"mypassphrase")),
            "P1Vbf81vsU3QogIxSDlllHcsj+23Wy9vp9/Eyl14NRROqHjJRKdwsShyWqMSESMF",
            b"guest",
        ),
        (
            Decoder(Secret(b"mypassphrase"), "aes_256_cbc", "sha512", 1000),
            "cPAymwqmMnbPXXRVqVzpxJdrS8mHEKuo2V+3vt1u/fymexD9oztQ2G/oJ4PAaSb2c5N/hRJ2aqP/X0VAfx8xOQ==",
            b"guest",
        ),
    ],
)
def test_rabbitmqs_vectors(decoder: Decoder, encoded: str, plaintext: bytes) -> None:
    assert decoder.decrypt(encoded) == Secret(plaintext)


def encode(decoder: Decoder, term: bytes, pad: int | None = None) -> str:
    """What ``rabbitmqctl encode`` does with an already serialised term."""
    assert decoder.passphrase is not None
    salt, iv = os.urandom(16), os.urandom(16)
    key = hashlib.pbkdf2_hmac(
        HASHES[decoder.hash],
        decoder.passphrase.value,
        salt,
        decoder.iterations,
        CIPHERS[decoder.cipher],
    )
    pad = 16 - len(term) % 16 if pad is None else pad
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    body = encryptor.update(term + bytes([pad]) * pad) + encryptor.finalize()
    return base64.b64encode(salt + iv + body).decode()


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("digest", HASHES)
def test_every_cipher_and_hash(cipher: str, digest: str) -> None:
    decoder = Decoder(Secret(b"p"), cipher, digest, 3)
    assert decoder.decrypt(encode(decoder, b"\x83m\0\0\0\2hi")).value == b"hi"


@pytest.mark.parametrize(
    ("term", "plaintext"),
    [
        (b"\x83m\0\0\0\2hi", b"hi"),
        (b"\x83k\0\2hi", b"hi"),
        (b"\x83j", b""),
        (b"\x83d\0\2hi", b"hi"),
        (b"\x83v\0\2hi", b"hi"),
        (b"\x83s\2hi", b"hi"),
        (b"\x83w\2hi", b"hi"),
    ],
)
def test_terms(term: bytes, plaintext: bytes) -> None:
    assert MINE.decrypt(encode(MINE, term)).value == plaintext


def test_padding_may_exceed_a_block() -> None:
    assert MINE.decrypt(encode(MINE, b"\x83w\x08guest---", pad=21)).value == b"guest---"


@pytest.mark.parametrize(
    "term",
    [
        b"",
        b"\x83",
        b"\x82m\0\0\0\2hi",  # another version
        b"\x83a\2",  # an integer
        b"\x83m\0\0\0\3hi",  # shorter than it says
        b"\x83m\0\0\0\1hi",  # longer than it says
        b"\x83m\0\0",
        b"\x83l\0\0\0\1a\1j",  # a list of integers
    ],
)
def test_other_plaintexts_are_refused(term: bytes) -> None:
    with pytest.raises(DecryptionError, match="does not decrypt; check"):
        MINE.decrypt(encode(MINE, term))


@pytest.mark.parametrize(
    ("decoder", "encoded", "message"),
    [
        (Decoder(), VECTOR, "no passphrase; set config_entry_decoder.passphrase"),
        (Decoder(Secret(b"wrong")), VECTOR, "does not decrypt; check"),
        (Decoder(Secret(b"mypass"), "aes_256_cbc"), VECTOR, "does not decrypt; check"),
        (Decoder(Secret(b"mypass"), hash="sha512"), VECTOR, "does not decrypt; check"),
        (Decoder(Secret(b"mypass"), iterations=2), VECTOR, "does not decrypt; check"),
        (MINE, "", "cut off"),
        (MINE, "not base64!", "no base64 follows"),
        (MINE, VECTOR[:-1], "no base64 follows"),
        (MINE, VECTOR[:-4], "cut off"),
        (MINE, VECTOR[:40], "cut off"),
        (MINE, "é" * 64, "no base64 follows"),
    ],
)
def test_failures(decoder: Decoder, encoded: str, message: str) -> None:
    with pytest.raises(DecryptionError, match=message) as caught:
        decoder.decrypt(encoded)
    for secret in ("mypass", "s3cr#t", VECTOR):
        assert secret not in str(caught.value)


@given(st.one_of(st.text(), st.binary(max_size=100).map(lambda b: base64.b64encode(b).decode())))
def test_anything_else_is_refused(encoded: str) -> None:
    with pytest.raises(DecryptionError):
        MINE.decrypt(encoded)


def test_repr_hides_the_passphrase() -> None:
    assert "mypass" not in repr(MINE)
