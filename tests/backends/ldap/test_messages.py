"""LDAP's octets: whole, byte by byte, with trailing bytes, and any octets at all."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.backends.ldap import messages
from gatekeeper.backends.ldap.messages import Entry, Message, MessageError, Reference, Result
from gatekeeper.config.ldap_queries import Scope

# ruff: noqa: E501  (a row holds a whole message)
# fmt: off
ANSWERS = [
    ("300c02010161070a010004000400", Message(1, Result(0))),
    ("300c02010261070a013104000400", Message(2, Result(49))),
    ("300d0202012c65070a012004000400", Message(300, Result(32))),
    ("300c02010178070a010004000400", Message(1, Result(0))),
    ("3011020101640c0404636e3d61300430020400", None),
    ("30180201016413040463 6e3d61300b30090402636e3103040161".replace(" ", ""),
     Message(1, Entry(b"cn=a", ((b"cn", (b"a",)),)))),
    ("300d020103640804046 36e3d613000".replace(" ", ""), Message(3, Entry(b"cn=a"))),
    ("300c02010173070405 6c6461703a".replace(" ", ""), Message(1, Reference())),
    ("308400000 00c02010161070a010004000400".replace(" ", ""), Message(1, Result(0))),
    # with a referral and a control, which nobody reads
    ("302002010165130a010a04000400a30a04086c6461703a2f2f78a006300404023132", Message(1, Result(10))),
]
# fmt: on


@pytest.mark.parametrize(("data", "expected"), ANSWERS)
def test_answer(data: str, expected: Message | None) -> None:
    octets = bytes.fromhex(data)
    for end in range(len(octets)):
        assert messages.split(octets[:end]) is None
    assert messages.split(octets) == messages.split(octets + b"\x30") == len(octets)
    if expected is None:
        with pytest.raises(MessageError):
            messages.parse(octets)
    else:
        assert messages.parse(octets) == expected
    with pytest.raises(MessageError):
        messages.parse(octets + b"\x30\x00")


@pytest.mark.parametrize("data", ["00", "31", "3080", "3085", "308400400001"])
def test_no_message(data: str) -> None:
    with pytest.raises(MessageError):
        messages.split(bytes.fromhex(data) + b"\0\0\0\0\0\0")


def test_requests() -> None:
    assert messages.bind(1, b"cn=a", b"p").hex() == "3011020101600c0201030404636e3d61800170"
    assert messages.unbind(128).hex() == "3006020200804200"
    assert messages.start_tls(1).hex() == (
        "301d02010177188016312e332e362e312e342e312e313436362e3230303337"
    )
    search = messages.search(1, b"x", Scope.ONE_LEVEL, messages.equality(b"a", b"*)("), b"dn")
    assert search.hex() == (
        "3027020101632204017 80a01010a0103020100020100010100a308040161 04032a2928300404 02646e"
    ).replace(" ", "")
    long = messages.bind(1, b"x" * 200, b"y" * 70000)
    assert messages.split(long) == len(long)


@given(data=st.binary(max_size=60))
def test_any_octets_are_a_message_or_an_error(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        messages.split(data)
    with contextlib.suppress(MessageError):
        messages.parse(data)


@given(
    at=st.integers(0, 30),
    octet=st.integers(0, 255),
    which=st.sampled_from([row[0] for row in ANSWERS]),
)
def test_a_changed_octet_is_a_message_or_an_error(at: int, octet: int, which: str) -> None:
    data = bytearray(bytes.fromhex(which))
    data[at % len(data)] = octet
    with contextlib.suppress(MessageError):
        messages.parse(bytes(data))
