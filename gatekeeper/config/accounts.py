"""How passwords are hashed and judged, and what new virtual hosts get."""

from __future__ import annotations

from gatekeeper.config.keys_accounts import ACCEPT_EVERYTHING, MIN_LENGTH, REGEXP
from gatekeeper.config.settings import (
    CredentialRules,
    DefaultLimits,
    DefaultUser,
    Permissions,
    VhostDefaults,
)
from gatekeeper.config.typed import Problems, Typed
from gatekeeper.model import Secret

_VALIDATOR = "credential_validator."
_USERS = "default_users.$name."
_LIMITS = "default_limits.vhosts.$id."
_ALL = b".*"
_ALIASES = {"argon2id": "gatekeeper_password_hashing_argon2id"}


def password_hashing(typed: Typed) -> str:
    name = typed.one("password_hashing_module", str)
    return _ALIASES.get(name, name)


def credential_rules(typed: Typed, problems: Problems, warnings: list[str]) -> CredentialRules:
    """``credential_validator.*``; a rule's own key counts only where the rule is chosen."""
    chosen = typed.one(_VALIDATOR + "validation_backend", str)
    for key, rule in (("min_length", MIN_LENGTH), ("regexp", REGEXP)):
        if typed.is_set(_VALIDATOR + key) and chosen != rule:
            warnings.append(
                f"{typed.place(_VALIDATOR + key)}: has no effect without "
                f"{_VALIDATOR}validation_backend = {rule}"
            )
    if chosen == ACCEPT_EVERYTHING:
        return CredentialRules()
    if chosen == MIN_LENGTH:
        return CredentialRules(min_length=typed.one(_VALIDATOR + "min_length", int))
    regexp = typed.optional(_VALIDATOR + "regexp", bytes)
    if regexp is None:
        problems.add(
            typed.place(_VALIDATOR + "regexp"),
            f"is missing; {REGEXP} needs the pattern that passwords must match",
        )
    return CredentialRules(regexp=regexp)


def vhost_defaults(typed: Typed) -> VhostDefaults:
    """In the order of the names' text, as RabbitMQ's maps have it."""
    users = sorted(typed.names("default_users"))
    limits = sorted(key[2] for key in typed.values if key[:2] == ("default_limits", "vhosts"))
    return VhostDefaults(
        limits=tuple(_default_limits(typed, label) for label in dict.fromkeys(limits)),
        users=tuple(_default_user(typed, name) for name in users),
    )


def _default_user(typed: Typed, name: str) -> DefaultUser:
    def regexp(key: str) -> bytes:
        return typed.optional(_USERS + key, bytes, name) or _ALL

    return DefaultUser(
        name=name.encode(),
        vhost_pattern=regexp("vhost_pattern"),
        permissions=Permissions(
            configure=regexp("configure"), write=regexp("write"), read=regexp("read")
        ),
        password=typed.optional(_USERS + "password", Secret, name),
        tags=typed.optional(_USERS + "tags", tuple, name) or (),
    )


def _default_limits(typed: Typed, label: str) -> DefaultLimits:
    limits = {
        name: value
        for name in ("max-connections", "max-queues")
        if (value := typed.optional(_LIMITS + name.replace("-", "_"), int, label)) is not None
    }
    pattern = typed.optional(_LIMITS + "pattern", bytes, label) or _ALL
    return DefaultLimits(pattern=pattern, limits=limits)
