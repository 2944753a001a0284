"""What a row of the key table is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gatekeeper.config.conf import Key
from gatekeeper.config.datatypes import Datatype

_NAMES = {
    "upstreams": "default",
    "oauth_providers": "keycloak",
    "resource_servers": "billing",
}
"""The name that a first free word has in the documents."""


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One row.

    default: key to text, what holds when nothing matches the pattern; empty: not set.
    example: the same for the documents where there is no default.
    required: the sample sets it instead of showing it in a comment.
    """

    pattern: str
    type: Datatype
    doc: str
    default: Mapping[str, str] = field(default_factory=dict)
    example: Mapping[str, str] = field(default_factory=dict)
    required: bool = False

    @property
    def words(self) -> Key:
        return tuple(self.pattern.split("."))


@dataclass(frozen=True, slots=True)
class Section:
    """Rows that belong together, with a heading for the documents."""

    title: str
    keys: tuple[KeySpec, ...]


def row(
    pattern: str,
    datatype: Datatype,
    default: str | Mapping[str, str] | None,
    doc: str,
    *,
    example: str | Mapping[str, str] = "",
    required: bool = False,
) -> KeySpec:
    """A row. Of a pattern with free words, the mapping's keys fill the last one."""
    return KeySpec(
        pattern, datatype, doc, _texts(pattern, default), _texts(pattern, example), required
    )


def _texts(pattern: str, given: str | Mapping[str, str] | None) -> Mapping[str, str]:
    if not given:
        return {}
    for free, name in _NAMES.items():
        pattern = pattern.replace(free + ".$name", f"{free}.{name}")
    words = pattern.split(".")
    if isinstance(given, str):
        return {".".join(words): given}
    at = next(at for at, word in enumerate(words) if word.startswith("$"))
    return {".".join([*words[:at], name, *words[at + 1 :]]): given[name] for name in given}


def matches(words: Key, key: Key) -> bool:
    """Does a pattern's word list match a key? A ``$word`` matches any one word."""
    return len(words) == len(key) and all(
        pattern.startswith("$") or pattern == word for pattern, word in zip(words, key, strict=True)
    )
