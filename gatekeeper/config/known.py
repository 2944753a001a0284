"""RabbitMQ's keys that the gate does not support: refused, or accepted without effect.

Strategy: fail closed. A key whose loss would let somebody in, lift a limit or leave the operator
without what was asked for is refused by name, with what to do instead. All others that RabbitMQ
knows (``rabbitmq_keys.txt``: 4.3.5 with its plugins) concern queues, clusters or other protocols
and are accepted, so that a broker's own file can be used; the caller warns once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files

from gatekeeper.config.conf import Key
from gatekeeper.config.spec import matches

_NO_CAP = (
    "is not supported yet, and without it there is no such limit; remove it and limit it in the"
    " store (user and virtual host limits) or at the broker"
)

_CRL = "is not supported yet: revoked certificates would be accepted; remove it"
_SESSIONS = "cannot be turned off yet: a resumed session would not check the certificate; remove it"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Keys that would weaken the gate if they were ignored.

    pattern: a key pattern; a last word ``**`` matches one or more words.
    reason: what is wrong and what to do, to follow the key's name.
    harmless: values that ask for what the gate does anyway.
    """

    pattern: str
    reason: str
    harmless: frozenset[str] = frozenset()

    def matches(self, key: Key) -> bool:
        words = tuple(self.pattern.split("."))
        if words[-1] == "**":
            return len(key) >= len(words) and matches(words[:-1], key[: len(words) - 1])
        return matches(words, key)


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "definitions.tls.crl_check",
        "is not supported yet: revoked certificates would be accepted; remove it",
        frozenset({"false"}),
    ),
    Refusal("definitions.tls.cert", "is not supported; put it into definitions.tls.certfile"),
    Refusal("max_connections", _NO_CAP, frozenset({"infinity"})),
    Refusal("connection_max", _NO_CAP, frozenset({"infinity"})),
    Refusal("ranch_connection_max", _NO_CAP, frozenset({"infinity"})),
    Refusal("channel_max_per_node", _NO_CAP, frozenset({"infinity"})),
    Refusal("vhost_max", _NO_CAP, frozenset({"infinity"})),
    Refusal(
        "ssl_options.crl_check",
        _CRL,
        frozenset({"false"}),
    ),
    Refusal(
        "ssl_options.crl_sources.**",
        _CRL,
    ),
    Refusal("ssl_options.cert", "is not supported; put it into ssl_options.certfile"),
    Refusal("ssl_options.key.**", "is not supported; put it into ssl_options.keyfile"),
    Refusal("ssl_options.psk_identity", "is not supported; use certificates"),
    Refusal(
        "ssl_options.reuse_sessions",
        _SESSIONS,
        frozenset({"true"}),
    ),
    Refusal(
        "auth_ldap.ssl_options.crl_check",
        "is not supported yet: revoked certificates would be accepted; remove it",
        frozenset({"false"}),
    ),
    Refusal(
        "auth_ldap.ssl_options.cert", "is not supported; put it into auth_ldap.ssl_options.certfile"
    ),
    Refusal(
        "auth_ldap.ssl_options.key.**",
        "is not supported; put it into auth_ldap.ssl_options.keyfile",
    ),
    Refusal("auth_ldap.ssl_options.psk_identity", "is not supported; use certificates"),
    Refusal(
        "trust_store.**",
        "is not supported yet; list the accepted authorities in ssl_options.cacertfile",
    ),
    Refusal(
        "tcp_listen_options.port",
        "is not supported; give the port in listeners.tcp or listeners.ssl",
    ),
    Refusal(
        "http_dispatch.auth_backends.**",
        "is not supported: the management API would let in whom auth_backends lets in; configure"
        " auth_backends and remove it",
    ),
    Refusal(
        "management.credential_encryption_secret",
        "is not supported: the answer of /api/login would hold the password, not an encrypted"
        " token; remove it",
    ),
    Refusal("management.ssl.reuse_sessions", _SESSIONS, frozenset({"true"})),
    *(
        Refusal(f"management.listener.ssl_opts.{name}", reason, harmless)
        for name, reason, harmless in (
            ("cert", "is not supported; put it into certfile", frozenset[str]()),
            ("key.**", "is not supported; put it into keyfile", frozenset[str]()),
            ("psk_identity", "is not supported; use certificates", frozenset[str]()),
            ("crl_check", _CRL, frozenset({"false"})),
            ("reuse_sessions", _SESSIONS, frozenset({"true"})),
        )
    ),
    Refusal(
        "log.syslog",
        "is not supported yet: nothing would be logged there; use log.console or log.file",
        frozenset({"false"}),
    ),
    Refusal(
        "log.journald",
        "is not supported yet: nothing would be logged there; use log.console, which systemd"
        " collects",
        frozenset({"false"}),
    ),
)


class KnownKeys:
    """RabbitMQ's key patterns, read from the package once per load."""

    def __init__(self) -> None:
        self._by_length: dict[int, list[Key]] = {}
        for pattern in known_patterns():
            words = tuple(pattern.split("."))
            self._by_length.setdefault(len(words), []).append(words)

    def __contains__(self, key: Key) -> bool:
        return any(matches(words, key) for words in self._by_length.get(len(key), ()))

    def patterns(self) -> Iterator[Key]:
        """Every pattern as words."""
        for patterns in self._by_length.values():
            yield from patterns


def known_patterns() -> Mapping[str, str]:
    """RabbitMQ 4.3.5's key patterns and types."""
    text = files("gatekeeper.config").joinpath("rabbitmq_keys.txt").read_text(encoding="utf-8")
    rows = (line.partition("\t") for line in text.splitlines() if not line.startswith("#"))
    return {pattern: datatype for pattern, _, datatype in rows}


def refusal(key: Key) -> Refusal | None:
    """The rule that refuses this key, unless its value is harmless."""
    return next((rule for rule in REFUSALS if rule.matches(key)), None)


def nearest(key: Key, patterns: Iterator[Key] | tuple[Key, ...], count: int = 3) -> list[str]:
    """Up to ``count`` patterns closest to a mistyped key by edit distance, best first.

    A free word of a pattern costs nothing. What is further away than a third of the key is no
    help and left out.
    """
    text = ".".join(key)
    limit = max(2, len(text) // 3)
    found: list[tuple[int, str]] = []
    for words in patterns:
        candidate = ".".join(
            key[at] if word.startswith("$") and at < len(key) else word
            for at, word in enumerate(words)
        )
        distance = edit_distance(text, candidate, limit)
        if distance is not None:
            found.append((distance, ".".join(words)))
    return [pattern for _, pattern in sorted(found)[:count]]


def edit_distance(a: str, b: str, limit: int) -> int | None:
    """Levenshtein's distance, or None where it is above the limit."""
    if abs(len(a) - len(b)) > limit:
        return None
    previous = list(range(len(b) + 1))
    for row, left in enumerate(a, 1):
        current = [row]
        for column, right in enumerate(b, 1):
            change = previous[column - 1] + (left != right)
            current.append(min(change, previous[column] + 1, current[-1] + 1))
        if min(current) > limit:
            return None
        previous = current
    return previous[-1] if previous[-1] <= limit else None
