"""What the operator's configuration has to say about changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from gatekeeper.model import Secret
from gatekeeper.policy.pcre import Pattern
from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.store import passwords

CredentialValidator = Callable[[bytes, bytes], str | None]
"""User name and clear password to a complaint, or None. RabbitMQ: credential_validator."""


def accept_everything(_username: bytes, _password: bytes) -> str | None:
    """RabbitMQ's default validator."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultUser:
    """A user who gets these permissions in each new vhost that matches.

    password, tags: for the case that there is no such user yet; None is no password.
    """

    name: bytes
    vhost_pattern: Pattern
    permissions: PermissionSet
    password: Secret | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultLimits:
    """Limits of each new vhost that matches, by RabbitMQ's names."""

    pattern: Pattern
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class VhostDefaults:
    """``default_limits.vhosts.*`` and ``default_users.*``; patterns match anywhere in the name.

    A pattern that gives up on a name (PCRE's limits) does not match, as in RabbitMQ.
    """

    limits: tuple[DefaultLimits, ...] = ()
    users: tuple[DefaultUser, ...] = ()

    def limits_of(self, vhost: bytes) -> dict[str, int]:
        """Those of the first entry that matches."""
        return next((dict(one.limits) for one in self.limits if one.pattern.matches(vhost)), {})

    def users_of(self, vhost: bytes) -> Iterator[DefaultUser]:
        return (user for user in self.users if user.vhost_pattern.matches(vhost))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """validator: judges clear passwords when they are set. algorithm: hashes them."""

    validator: CredentialValidator = accept_everything
    algorithm: str = passwords.DEFAULT_ALGORITHM
    vhost_defaults: VhostDefaults = field(default_factory=VhostDefaults)
