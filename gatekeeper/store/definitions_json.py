"""Strict JSON for definitions: every complaint names the file and the place in it.

Stricter than Python's reader: no repeated keys, no NaN, UTF-8 only, no lone surrogates. Two
readers of one document must not come to two policies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from gatekeeper.errors import DefinitionsError
from gatekeeper.store.checks import is_text
from gatekeeper.store.refusals import one_line


class JsonObject(dict[str, object]):
    """A JSON object that remembers the first key that it holds twice."""

    __slots__ = ("twice",)

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.twice: str | None = None
        if len(self) != len(pairs):
            # Not by looking back for each key: of 1 MB that would take minutes.
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    self.twice = key
                    break
                seen.add(key)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document. source: what it is called in messages, normally its file name."""

    source: str
    root: JsonObject

    def error(self, path: str, message: str) -> DefinitionsError:
        return DefinitionsError(one_line(f"{self.source}: {path}: {message}"))

    def entries(self, section: str) -> Iterator[Entry]:
        """The objects of a top-level list; none where the section is missing.

        Once only: each is let go of when the next is asked for, for there may be a million.
        """
        listed = self.root.get(section, [])
        if not isinstance(listed, list):
            raise self.error(section, f"must be a list, is {kind_of(listed)}")
        for at, entry in enumerate(listed):
            yield Entry.of(self, f"{section}[{at}]", entry)
            listed[at] = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a document, and the path to it."""

    document: Document
    path: str
    fields: JsonObject

    @classmethod
    def of(cls, document: Document, path: str, value: object) -> Entry:
        """Raises DefinitionsError unless ``value`` is an object without repeated keys."""
        if not isinstance(value, JsonObject):
            raise document.error(path, f"must be an object, is {kind_of(value)}")
        if value.twice is not None:
            raise document.error(path, f"the key '{value.twice}' occurs twice; keep one")
        return cls(document, path, value)

    def fail(self, key: str, message: str) -> NoReturn:
        raise self.document.error(f"{self.path}.{key}", message)

    def get(self, key: str) -> object:
        """The value, None where it is missing or null."""
        return self.fields.get(key)

    def text(self, key: str) -> str:
        """A string that must be there."""
        if key not in self.fields:
            self.fail(key, "missing; add it")
        value = self.fields[key]
        if not isinstance(value, str):
            self.fail(key, f"must be a string, is {kind_of(value)}")
        if not is_text(value):
            self.fail(key, "holds a lone surrogate escape; write the character itself")
        return value

    def optional_text(self, key: str) -> str | None:
        return None if self.get(key) is None else self.text(key)

    def name(self, key: str) -> bytes:
        """A name or pattern as the broker sees it: UTF-8 bytes."""
        return self.text(key).encode()

    def child(self, key: str) -> Entry | None:
        value = self.get(key)
        return None if value is None else Entry.of(self.document, f"{self.path}.{key}", value)

    def tags(self, key: str) -> list[str] | None:
        """A list of strings, or one string with commas; None where missing or null."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            return [tag.strip() for tag in self.text(key).split(",") if tag.strip()]
        if not isinstance(value, list):
            self.fail(key, f"must be a list of strings, is {kind_of(value)}")
        for at, tag in enumerate(value):
            if not isinstance(tag, str) or not is_text(tag):
                self.fail(f"{key}[{at}]", f"must be a string, is {kind_of(tag)}")
        return [tag for tag in value if tag]


def read_document(source: str, data: bytes) -> Document:
    """Parse ``data``; an empty document is ``{}``. Raises DefinitionsError with the place."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DefinitionsError(
            f"{source}: byte {error.start}: not UTF-8; save the file as UTF-8"
        ) from error
    if not text.strip():
        return Document(source, JsonObject([]))
    try:
        root = json.loads(text, object_pairs_hook=JsonObject, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise DefinitionsError(
            f"{source}: line {error.lineno} column {error.colno}: not valid JSON: {error.msg}"
        ) from error
    except RecursionError as error:
        raise DefinitionsError(f"{source}: nested too deeply; this is no definitions file") from (
            error
        )
    except ValueError as error:
        raise DefinitionsError(f"{source}: not valid JSON: {error}") from error
    document = Document(source, JsonObject([]))
    return Document(source, Entry.of(document, "$", root).fields)


def kind_of(value: object) -> str:
    """What a JSON value is, for messages; never its content, which may be a secret."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
