"""RabbitMQ's credential validators."""

from __future__ import annotations

import pytest

from gatekeeper.errors import StoreError
from gatekeeper.store.validators import min_password_length, password_regexp


@pytest.mark.parametrize(
    ("password", "fine"), [(b"1234", False), ("éé1".encode(), True), (b"", False)]
)
def test_min_length_counts_bytes(password: bytes, fine: bool) -> None:
    complaint = min_password_length(5)(b"u", password)
    assert complaint == (None if fine else "minimum required password length is 5")


@pytest.mark.parametrize(("password", "fine"), [(b"abc1", True), (b"abc", False)])
def test_regexp_is_unanchored(password: bytes, fine: bool) -> None:
    complaint = password_regexp(b"[0-9]")(b"u", password)
    text = "provided password does not match the validator regular expression"
    assert complaint == (None if fine else text)


def test_regexp_must_compile() -> None:
    with pytest.raises(StoreError, match="no valid regular expression: missing"):
        password_regexp(b"(")
