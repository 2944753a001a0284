"""Values as Elixir's ``inspect`` and Erlang's ``~p`` print them, and small Erlang terms read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gatekeeper.protocol.erlang import erlang_binary

_ATOM = re.compile(r"[a-z][A-Za-z0-9_@]*")
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\", "\x1b": "\\e"}


class Atom(str):
    __slots__ = ()


class Verbatim(str):
    """What is a term already."""

    __slots__ = ()


class Charlist(str):
    """An Erlang string."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Tuple:
    items: tuple[object, ...]


class NotATermError(ValueError):
    """What should be an Erlang term is none, or one that is not supported."""


def inspected(value: object) -> str:
    """Elixir's ``inspect``, of what JSON can hold."""
    match value:
        case str():
            return f'"{_escaped(value)}"'
        case bool() | None:
            return {True: "true", False: "false", None: "nil"}[value]
        case list():
            return f"[{', '.join(map(inspected, value))}]"
        case dict():
            pairs = (f"{inspected(key)} => {inspected(item)}" for key, item in value.items())
            return f"%{{{', '.join(pairs)}}}"
        case _:
            return str(value)


def erlang(value: object) -> str:
    """Erlang's ``~p`` on one line; text is a binary."""
    match value:
        case Verbatim():
            return str(value)
        case Atom():
            return value if _ATOM.fullmatch(value) else f"'{value}'"
        case Charlist():
            return f'"{_escaped(value)}"'
        case str():
            try:
                return erlang_binary(value.encode("latin-1"))
            except UnicodeEncodeError:
                return f'<<"{_escaped(value)}"/utf8>>'
        case bool() | None:
            return {True: "true", False: "false", None: "undefined"}[value]
        case Tuple(items):
            return f"{{{','.join(map(erlang, items))}}}"
        case Mapping():
            pairs = (f"{{{erlang(Atom(key))},{erlang(item)}}}" for key, item in value.items())
            return f"[{','.join(pairs)}]"
        case list() | tuple():
            return f"[{','.join(map(erlang, value))}]"
        case _:
            return str(value)


def wrapped(items: list[str], width: int = 80) -> str:
    """A list of short terms as ``~p`` breaks it into lines."""
    lines, line = [], "["
    for at, item in enumerate(items):
        piece = item + ("]" if at == len(items) - 1 else ",")
        if len(line) + len(piece) > width and line != " ":
            lines.append(line)
            line = " "
        line += piece
    return "\n".join([*lines, line]) if items else "[]"


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(char, char) for char in text)


# --- reading: <<"binary">>, "string", atom, {encrypted, Term} ---

_TOKEN = re.compile(
    r"""\s*(?:
        <<\s*"(?P<binary>(?:[^"\\]|\\.)*)"\s*(?:/utf8)?\s*>> | "(?P<string>(?:[^"\\]|\\.)*)"
        | (?P<atom>[a-z][A-Za-z0-9_@]*) | '(?P<quoted>(?:[^'\\]|\\.)*)'
        | (?P<integer>-?[0-9]+) | (?P<empty><<\s*>>)
    )\s*""",
    re.VERBOSE | re.DOTALL,
)
_ENCRYPTED = re.compile(r"\s*\{\s*encrypted\s*,(?P<term>.*)\}\s*", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_MEANINGS = {"n": "\n", "t": "\t", "r": "\r", "e": "\x1b", "s": " "}


def read_term(text: str) -> object:
    """str (a binary), Charlist, Atom or int. Raises NotATermError."""
    found = _TOKEN.fullmatch(text)
    if found is None:
        raise NotATermError(text)
    if found["binary"] is not None:
        return _unescaped(found["binary"])
    if found["empty"] is not None:
        return ""
    if found["string"] is not None:
        return Charlist(_unescaped(found["string"]))
    if found["integer"] is not None:
        return int(found["integer"])
    return Atom(found["atom"] or _unescaped(found["quoted"]))


def read_encrypted(text: str) -> str:
    """The base64 of ``{encrypted, Term}`` or of a bare term. Raises NotATermError."""
    found = _ENCRYPTED.fullmatch(text)
    term = read_term(text if found is None else found["term"])
    if not isinstance(term, str):
        raise NotATermError(text)
    return str(term)


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: _MEANINGS.get(found[1], found[1]), text)
