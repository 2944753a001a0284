"""RabbitMQ's documented hash vectors, and everything that must not match."""

from __future__ import annotations

import hashlib

import pytest
from argon2 import PasswordHasher, low_level
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.store import passwords
from gatekeeper.store.passwords import ARGON2ID, MD5, SHA256, SHA512, from_base64, to_base64

TEST12_SHA512 = (
    "kI3GChuNuIYf8lRbCCxZjgjKwsY19ns6+uFO0zcXRBGA/XGJPYD8OWMy7EB8TaOmAzjP2azv84GbINYwX2cDWb4DHnc="
)
VECTORS = [
    (SHA256, "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR", b"test12"),
    (SHA512, TEST12_SHA512, b"test12"),
    (MD5, "kI3GChNpte2FApYFXScl+0dIluk=", b"test12"),
    (SHA256, "27cx5+wEi8R8uwTeTr3hk5azuV3yYxxAtwPPhCyrbdsxVhqq", b"foobarbaz"),
    (SHA256, "BMT6cj/MsI+4UOBtsPPQWpQfk7ViRLj4VqpMTxu54FU3qa1G", b"guest4"),
    (MD5, "8LYTIFbVUwi8HuV/dGlp2BYsD1I=", b"guest"),
]


@pytest.mark.parametrize(("algorithm", "text", "password"), VECTORS)
def test_vectors(algorithm: str, text: str, password: bytes) -> None:
    stored = from_base64(text)
    assert passwords.verify(password, stored, algorithm)
    assert not passwords.verify(password + b"x", stored, algorithm)
    assert not passwords.verify(b"", stored, algorithm)
    assert to_base64(stored) == text
    assert passwords.is_usable(stored, algorithm)
    for other in passwords.ALGORITHMS:
        assert passwords.verify(password, stored, other) is (other == algorithm)


@pytest.mark.parametrize("algorithm", passwords.RABBITMQ_ALGORITHMS)
@given(password=st.binary(max_size=80))
def test_hash_and_verify(algorithm: str, password: bytes) -> None:
    stored = passwords.hash_password(password, algorithm)
    name = algorithm.rpartition("_")[2]
    assert stored[4:] == hashlib.new(name, stored[:4] + password).digest()
    assert passwords.verify(password, stored, algorithm)
    assert not passwords.verify(password + b"\0", stored, algorithm)


def test_salts_differ() -> None:
    assert len({passwords.hash_password(b"same")[:4] for _ in range(50)}) > 45


@pytest.mark.parametrize(
    ("stored", "algorithm"),
    [
        (None, SHA256),  # no such user
        (b"", SHA256),  # a cleared password
        (b"abc", SHA256),
        (b"abcd", SHA256),
        (hashlib.sha256(b"abcdpw").digest(), SHA256),  # without its salt
        (b"abcd" + hashlib.sha256(b"abcdpw").digest(), SHA512),
        (b"abcd" + hashlib.sha256(b"abcdpw").digest(), "rabbit_password_hashing_none"),
        (b"abcd" + hashlib.sha256(b"abcdpw").digest(), ""),
        (b"abcd" + hashlib.sha256(b"abcdpw").digest() + b"\0", SHA256),
    ],
)
@pytest.mark.parametrize("password", [b"pw", b""])
def test_never_matches(stored: bytes | None, algorithm: str, password: bytes) -> None:
    assert not passwords.verify(password, stored, algorithm)


def test_unusable_hashes_cost_a_hash_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = hashlib.new

    def counting(name: str, data: bytes = b"", **options: bool) -> object:
        made.append(name)
        return real(name, data, **options)

    good = passwords.hash_password(b"pw")
    monkeypatch.setattr(hashlib, "new", counting)
    for stored in (good, None, b"", b"short"):
        made.clear()
        passwords.verify(b"pw", stored)
        assert made == ["sha256"]


def test_a_password_beyond_reason() -> None:
    with pytest.raises(passwords.PasswordTooLongError, match="4096 bytes"):
        passwords.hash_password(b"x" * 4097)
    assert not passwords.verify(b"x" * 4097, passwords.hash_password(b"x"))


def test_unknown_algorithm_is_refused_for_new_hashes() -> None:
    with pytest.raises(ValueError, match="unknown password hashing algorithm 'bcrypt'"):
        passwords.hash_password(b"x", "bcrypt")
    assert not passwords.is_usable(b"x", "bcrypt")


@pytest.mark.parametrize("text", ["!!!", "abc", "kI3G CqW5", "ä", "kI3G\n"])
def test_not_base64(text: str) -> None:
    with pytest.raises(ValueError, match="not base64"):
        from_base64(text)
    assert from_base64("") == b""


@pytest.mark.parametrize(
    "handler", [passwords.RabbitSha256, passwords.RabbitSha512, passwords.RabbitMd5]
)
def test_handlers_recognise_their_own(handler: type[passwords._RabbitHandler]) -> None:
    text = handler.hash(b"pw")
    assert [one for one in passwords._HANDLERS.values() if one.identify(text)] == [handler]
    assert handler.verify("pw", text.encode())
    for bad in ("$other$abcd", handler.ident + "!!", handler.ident + "YWJjZA=="):
        with pytest.raises(ValueError):
            handler.verify(b"pw", bad)


# -- argon2id ----------------------------------------------------------------------------

ARGON2_HASH = passwords.hash_password(b"p\0w", ARGON2ID)


def test_argon2id_is_written_as_everybody_writes_it() -> None:
    assert ARGON2_HASH.startswith(b"$argon2id$v=19$m=19456,t=2,p=1$")
    assert PasswordHasher().verify(ARGON2_HASH.decode(), b"p\0w")
    assert passwords.verify(b"p\0w", ARGON2_HASH, ARGON2ID)
    for wrong in (b"p", b"p\0wx", b"", b"x" * 4097):
        assert not passwords.verify(wrong, ARGON2_HASH, ARGON2ID)
    assert passwords.hash_password(b"p\0w", ARGON2ID) != ARGON2_HASH
    with pytest.raises(passwords.PasswordTooLongError):
        passwords.hash_password(b"x" * 4097, ARGON2ID)


def test_argon2id_of_others() -> None:
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1, hash_len=16, salt_len=8)
    assert passwords.verify(b"pw", cheap.hash(b"pw").encode(), ARGON2ID)


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\xff",
        b"$argon2id$",
        ARGON2_HASH + b"x" * 50,
        ARGON2_HASH + b"=",
        ARGON2_HASH + b"\n",
        ARGON2_HASH.rpartition(b"$")[0],
        ARGON2_HASH.replace(b"$v=19", b""),
        ARGON2_HASH.replace(b"argon2id", b"argon2i"),
        ARGON2_HASH.replace(b"t=2", b"t=0"),
        ARGON2_HASH.replace(b"t=2", b"t=17"),  # too dear, like the next two
        ARGON2_HASH.replace(b"m=19456", b"m=1048576"),
        ARGON2_HASH.replace(b"p=1", b"p=5"),
        ARGON2_HASH.replace(b"m=19456", b"m=7"),
    ],
)
def test_argon2id_that_cannot_be_right(stored: bytes) -> None:
    assert not passwords.is_usable(stored, ARGON2ID)
    assert not passwords.verify(b"p\0w", stored, ARGON2ID)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_shortened_argon2id_hash_never_matches(cut: int) -> None:
    assert not passwords.verify(b"p\0w", ARGON2_HASH[:-cut], ARGON2ID)


def test_where_there_is_nothing_to_compare_with_argon2id_costs_as_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bytes] = []
    real = low_level.verify_secret

    def counting(text: bytes, secret: bytes, kind: low_level.Type) -> bool:
        asked.append(text.rpartition(b"$")[0].rpartition(b"$")[0])
        return real(text, secret, kind)

    monkeypatch.setattr(low_level, "verify_secret", counting)
    for stored in (ARGON2_HASH, None, b"", b"short"):
        passwords.verify(b"pw", stored, ARGON2ID)
    assert asked == [b"$argon2id$v=19$m=19456,t=2,p=1"] * 4
