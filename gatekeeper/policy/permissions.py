"""Permission records and what they say: patterns against names, nothing else.

A record that is absent denies (resources) or does not restrict (topics): that difference is
the caller's, who looks the record up. An invalid pattern denies (RabbitMQ 4.3.2 on); it can
only come from a topic variable or from a store that was written by other means.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

from gatekeeper.errors import printable
from gatekeeper.model import Permission, Variables
from gatekeeper.policy import pcre
from gatekeeper.policy.ports import Verdict


@dataclass(frozen=True, slots=True)
class PermissionSet:
    """What a user may do in a vhost: one pattern per right, over queue and exchange names."""

    configure: bytes
    write: bytes
    read: bytes

    def pattern(self, permission: Permission) -> bytes:
        if permission is Permission.CONFIGURE:
            return self.configure
        return self.write if permission is Permission.WRITE else self.read


@dataclass(frozen=True, slots=True)
class TopicPermissionSet:
    """Which routing keys a user may publish with and bind on one exchange of a vhost."""

    write: bytes
    read: bytes


def check_resource(permissions: PermissionSet, permission: Permission, name: bytes) -> Verdict:
    """Does the pattern of this right match the name? Kind is no part of the match.

    Source: rabbit_auth_backend_internal:check_resource_access.
    """
    return _judge(permission.value, permissions.pattern(permission), name)


def check_topic(
    permissions: TopicPermissionSet,
    permission: Permission,
    routing_key: bytes,
    variables: Variables,
) -> Verdict:
    """Does the pattern, with its variables filled in, match the routing key?

    There is no configure right on topics: asked for, it is denied.
    Source: rabbit_auth_backend_internal:check_topic_access.
    """
    if permission is Permission.CONFIGURE:
        return Verdict(False, "topic permissions have no configure right")
    pattern = permissions.write if permission is Permission.WRITE else permissions.read
    return _judge(_TOPIC_RIGHTS[permission], expand(pattern, variables), routing_key)


@dataclass(frozen=True, slots=True)
class TopicPatterns:
    """Patterns that a routing key must all match; none: every key is allowed.

    prefix: every key that begins with it is allowed; None: only the patterns tell.
    """

    patterns: tuple[pcre.Pattern, ...]
    prefix: bytes | None = field(init=False)

    def __post_init__(self) -> None:
        prefixes = [pcre.literal_prefix(pattern.source) for pattern in self.patterns]
        known = [prefix for prefix in prefixes if prefix is not None]
        longest = max(known, key=len, default=b"")
        said = len(known) == len(prefixes) and all(map(longest.startswith, known))
        object.__setattr__(self, "prefix", longest if said else None)

    def allows(self, routing_key: bytes) -> bool:
        for pattern in self.patterns:  # noqa: SIM110 - a generator costs as much as the match
            if not pattern.matches(routing_key):
                return False
        return True


def topic_pattern(
    permissions: TopicPermissionSet, permission: Permission, variables: Variables
) -> pcre.Pattern | None:
    """What :func:`check_topic` matches every routing key with; None where there is no such thing:
    it denies whatever the key."""
    if permission is Permission.CONFIGURE:
        return None
    pattern = permissions.write if permission is Permission.WRITE else permissions.read
    return _rule(_TOPIC_RIGHTS[permission], expand(pattern, variables)).pattern


def expand(pattern: bytes, variables: Variables) -> bytes:
    """Fill ``{username}``, ``{vhost}`` and so on into a topic pattern, escaped.

    All in one pass, so that a value can never form a placeholder with what stands around it
    (RabbitMQ replaces one key after the other, in sorted order: with escaped values the two
    differ only where a pattern wraps a placeholder in more braces). Unknown placeholders stay
    as they are. Source: rabbit_auth_backend_internal:expand_topic_permission, 4.3.3 on.
    """
    if b"{" not in pattern:
        return pattern
    return _PLACEHOLDER.sub(lambda found: _value(found, variables), pattern)


_TOPIC_RIGHTS = {Permission.WRITE: "topic write", Permission.READ: "topic read"}
_PLACEHOLDER = re.compile(rb"\{([A-Za-z0-9_]+)\}")


def _value(found: re.Match[bytes], variables: Variables) -> bytes:
    value = variables.get(found[1].decode("ascii"))
    return found[0] if value is None else pcre.escape(value)


@dataclass(frozen=True, slots=True)
class _Rule:
    """A pattern made ready for one right: its verdicts are there before they are needed."""

    pattern: pcre.Pattern | None
    match: Verdict
    miss: Verdict


def _judge(what: str, pattern: bytes, name: bytes) -> Verdict:
    rule = _rule(what, pattern)
    if rule.pattern is None:
        return rule.miss
    return rule.match if rule.pattern.matches(name) else rule.miss


@functools.lru_cache(maxsize=pcre.CACHED_PATTERNS)
def _rule(what: str, pattern: bytes) -> _Rule:
    shown = f"{what} pattern '{_shown(pattern)}'"
    try:
        compiled = pcre.compile(pattern)
    except pcre.PatternError as error:
        invalid = Verdict(False, f"{shown} is invalid ({error}): it denies")
        return _Rule(None, invalid, invalid)
    return _Rule(
        compiled, Verdict(True, f"{shown} matches"), Verdict(False, f"{shown} does not match")
    )


def _shown(name: bytes) -> str:
    return printable(name).decode()
