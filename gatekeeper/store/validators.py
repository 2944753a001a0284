"""RabbitMQ's credential validators: what a clear password must be like when it is set.

They judge new passwords only; hashes and logins are not their business. Texts are RabbitMQ's.
"""

from __future__ import annotations

from gatekeeper.errors import StoreError
from gatekeeper.policy import pcre
from gatekeeper.store.rules import CredentialValidator


def min_password_length(minimum: int) -> CredentialValidator:
    """``rabbit_credential_validator_min_password_length``; the length is in bytes."""

    def validate(_username: bytes, password: bytes) -> str | None:
        if len(password) >= minimum:
            return None
        return f"minimum required password length is {minimum}"

    return validate


def password_regexp(pattern: bytes) -> CredentialValidator:
    """``rabbit_credential_validator_password_regexp``: an unanchored pattern must match.

    Raises StoreError if the pattern does not compile.
    """
    try:
        compiled = pcre.compile(pattern)
    except pcre.PatternError as error:
        raise StoreError(
            f"credential_validator.regexp: no valid regular expression: {error}; correct it"
        ) from error

    def validate(_username: bytes, password: bytes) -> str | None:
        if compiled.matches(password):
            return None
        return "provided password does not match the validator regular expression"

    return validate
