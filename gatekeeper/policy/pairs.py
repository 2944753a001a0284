"""One position of ``auth_backends``: who authenticates, and who must all authorise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from gatekeeper.policy.ports import Accepted, AuthnBackend, AuthzBackend, TagSource

_NO_TAGS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Pair:
    """One position of ``auth_backends``.

    authz: in configured order, at least one. Use :meth:`of` for a position that names a single
    backend for both: such a backend is not asked a second time whether the user may log in.
    """

    authn: AuthnBackend
    authz: tuple[AuthzBackend, ...]
    single: bool = False
    tag_sources: tuple[str, ...] = field(init=False)
    _tell_tags: tuple[object, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.authz:
            # RabbitMQ reads an empty list as "allowed everything".
            raise ValueError(f"auth_backends: {self.authn.name} has no authorisation backend")
        if self.single and [id(backend) for backend in self.authz] != [id(self.authn)]:
            # Any other backend must be asked whether the user may log in.
            raise ValueError(f"auth_backends: {self.authn.name} is not its own authorisation")
        # Asked once: to look a protocol up takes as long as the rest of a login's judgement.
        sources = tuple(b for b in (self.authn, *self.authz) if isinstance(b, TagSource))
        object.__setattr__(self, "_tell_tags", sources)
        object.__setattr__(self, "tag_sources", tuple(dict.fromkeys(b.name for b in sources)))

    @classmethod
    def of(cls, backend: _Both) -> Pair:
        return cls(authn=backend, authz=(backend,), single=True)

    def fixed(self, backend: object, accepted: Accepted) -> frozenset[str]:
        """The tags that stay as they were at login."""
        told = any(backend is source for source in self._tell_tags)
        return _NO_TAGS if told else accepted.tags


class _Both(AuthnBackend, AuthzBackend, Protocol):
    """A backend that does both halves."""
