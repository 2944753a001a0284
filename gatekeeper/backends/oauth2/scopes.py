"""Scopes as permissions: ``read|write|configure:VHOST/NAME[/ROUTING-KEY]`` with wildcards.

Everything is bytes, and everything odd about the matching is RabbitMQ's own and kept: no
backtracking, escapes that make a pattern void, variables inserted without escaping.
Source: ``rabbit_oauth2_scope``, ``wildcard``, ``rabbit_auth_backend_oauth2:get_expanded_scopes``
(4.3.5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gatekeeper.model import Permission

Lookup = Callable[[bytes], bytes]
"""A variable's name to what is inserted for it."""

_PERMISSIONS = {f"{permission}:".encode(): permission for permission in Permission}
_ESCAPE = re.compile(rb"%(?:([0-9A-Fa-f]{2})|)|\+")
_BRACES = re.compile(rb"([{.*}])")


class _BadEscapeError(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern split at its ``*``, pieces decoded; None: it matches nothing (a bad escape)."""

    pieces: tuple[bytes, ...] | None

    @classmethod
    def of(cls, text: bytes) -> Pattern:
        """``%2A`` and ``%2F`` are literals, because decoding comes after splitting."""
        try:
            return cls(tuple(_ESCAPE.sub(_decoded, piece) for piece in text.split(b"*")))
        except _BadEscapeError:
            return cls(None)

    @property
    def matches_all(self) -> bool:
        return self.pieces == (b"", b"")

    def matches(self, subject: bytes) -> bool:
        """Each piece is looked for at its leftmost position and never again: ``*oo`` does not
        match ``fooo``, and ``**`` does not match the empty name."""
        if self.pieces is None:
            return False
        first, *rest = self.pieces
        if not subject.startswith(first):
            return False
        at, left = len(first), len(rest)
        for piece in rest:
            left -= 1
            if not piece and not left:
                return True
            if at == len(subject):
                return False
            if piece:
                found = subject.find(piece, at)
                if found < 0:
                    return False
                at = found + len(piece)
        return at == len(subject)


def _decoded(escape: re.Match[bytes]) -> bytes:
    if escape[0] == b"+":
        return b" "
    if escape[1] is None:
        raise _BadEscapeError
    return bytes.fromhex(escape[1].decode())


@dataclass(frozen=True, slots=True)
class ScopePermission:
    """What one scope grants. routing_key: None where the scope has only two parts."""

    permission: Permission
    vhost: Pattern
    name: Pattern
    routing_key: Pattern | None

    @classmethod
    def of(cls, scope: bytes) -> ScopePermission | None:
        """None for a scope that is no permission (a tag, another's, four parts)."""
        for prefix, permission in _PERMISSIONS.items():
            if scope.startswith(prefix):
                parts = scope[len(prefix) :].split(b"/")
                if len(parts) not in {2, 3}:
                    return None
                vhost, name, *key = map(Pattern.of, parts)
                return cls(permission, vhost, name, key[0] if key else None)
        return None


@dataclass(frozen=True, slots=True)
class VhostScopes:
    """The permissions that a token's scopes give in one vhost."""

    permissions: tuple[ScopePermission, ...]

    @classmethod
    def of(cls, scopes: Iterable[bytes], vhost: bytes, lookup: Lookup) -> VhostScopes:
        """lookup: of the variables other than ``vhost``."""

        def value(name: bytes) -> bytes:
            return vhost if name == b"vhost" else lookup(name)

        parsed = (ScopePermission.of(expand(scope, value)) for scope in scopes)
        return cls(tuple(found for found in parsed if found and found.vhost.matches(vhost)))

    @property
    def vhost_access(self) -> bool:
        """A scope of any permission is access to its vhost."""
        return bool(self.permissions)

    def resource_access(self, name: bytes, permission: Permission) -> bool:
        return any(
            scope.permission is permission and scope.name.matches(name)
            for scope in self.permissions
        )

    def topic_access(self, exchange: bytes, routing_key: bytes, permission: Permission) -> bool:
        """Only scopes that have a third part count."""
        return any(
            scope.permission is permission
            and scope.routing_key is not None
            and scope.name.matches(exchange)
            and scope.routing_key.matches(routing_key)
            for scope in self.permissions
        )

    def topic_rule(self, exchange: bytes) -> bool:
        """Could :meth:`topic_access` refuse to write or to read any routing key here?"""
        return not all(
            any(
                scope.permission is permission
                and scope.routing_key is not None
                and scope.routing_key.matches_all
                and scope.name.matches(exchange)
                for scope in self.permissions
            )
            for permission in (Permission.WRITE, Permission.READ)
        )


def expand(scope: bytes, lookup: Lookup) -> bytes:
    """A scope with the values of its ``{variables}``.

    RabbitMQ splits at braces, dots and stars alike, so that a name with a dot or a star, or a
    brace inside braces, empties the whole scope. A variable may lack its closing brace only at
    the very end.
    """
    parts = _BRACES.split(scope)
    while parts and not parts[-1]:
        parts.pop()
    expanded = b""
    rest = iter(parts)
    for part in rest:
        if part != b"{":
            expanded += part
            continue
        name = next(rest, None)
        if name is None:
            break
        expanded += lookup(name)
        if next(rest, b"}") != b"}":
            return b""
    return expanded


def variables(scopes: Iterable[bytes]) -> frozenset[bytes]:
    """The names of all variables that expanding these scopes asks for."""
    names: set[bytes] = set()

    def note(name: bytes) -> bytes:
        names.add(name)
        return b""

    for scope in scopes:
        expand(scope, note)
    return frozenset(names)
