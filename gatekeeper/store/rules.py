"""What the operator's configuration has to say about changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gatekeeper.config.settings import DefaultUser, VhostDefaults
from gatekeeper.policy import pcre
from gatekeeper.store import passwords

CredentialValidator = Callable[[bytes, bytes], str | None]
"""User name and clear password to a complaint, or None. RabbitMQ: credential_validator."""


def accept_everything(_username: bytes, _password: bytes) -> str | None:
    """RabbitMQ's default validator."""
    return None


def limits_of(defaults: VhostDefaults, vhost: bytes) -> dict[str, int]:
    """What a new vhost is limited to. A pattern that gives up on a name (PCRE's limits) does not
    match, as in RabbitMQ."""
    matching = (one.limits for one in defaults.limits if _matches(one.pattern, vhost))
    return dict(next(matching, {}))


def users_of(defaults: VhostDefaults, vhost: bytes) -> Iterator[DefaultUser]:
    """Who gets permissions in a new vhost."""
    return (user for user in defaults.users if _matches(user.vhost_pattern, vhost))


def _matches(pattern: bytes, vhost: bytes) -> bool:
    return pcre.compile(pattern).matches(vhost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """validator: judges clear passwords when they are set. algorithm: hashes them.

    vhost_defaults: what each new vhost gets.
    """

    validator: CredentialValidator = accept_everything
    algorithm: str = passwords.DEFAULT_ALGORITHM
    vhost_defaults: VhostDefaults = field(default_factory=VhostDefaults)
