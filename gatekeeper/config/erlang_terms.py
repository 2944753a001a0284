"""Erlang terms as text: what advanced.config and LDAP queries are written in. Pure.

Strategy: one regular expression for tokens, one small recursive descent over them, both bounded
(a depth, a size), so that no text can cost more than its length. Read are the literals that
``file:consult`` takes: atoms, numbers, characters, strings, binaries, lists, tuples, maps.

========== ======================================================================
Erlang     here
========== ======================================================================
atom       :class:`Atom`; ``true`` and ``false`` too
integer    int
float      float
"text"     str of code points; an empty list and ``""`` are one term: ``[]``
<<"...">>  bytes
[a, b]     list
{a, b}     tuple
#{a => b}  :class:`Map`
========== ======================================================================

Source: the Erlang reference manual, "Terms" (https://www.erlang.org/doc/system/data_types).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

DEPTH_LIMIT = 100
SIZE_LIMIT = 4 * 1024 * 1024
"""Characters of one text."""

_DIGITS = 40  # an integer of more would be slow to convert, and means nothing here


@dataclass(frozen=True, slots=True)
class Atom:
    """An atom, such as ``in_group`` or ``'not'``."""

    name: str

    def __str__(self) -> str:
        if re.fullmatch(r"[a-z][A-Za-z0-9_@]*", self.name) and self.name not in _RESERVED:
            return self.name
        return "'" + _escaped(self.name, "'") + "'"


@dataclass(frozen=True, slots=True)
class Map:
    """A map's pairs in the order they were written."""

    pairs: tuple[tuple[Term, Term], ...]


Term = Atom | int | float | str | bytes | list["Term"] | tuple["Term", ...] | Map

TRUE = Atom("true")
FALSE = Atom("false")


class TermError(Exception):
    """The text is no Erlang term. Neither message nor place shows more of it than one token.

    line, column: from 1, in characters. problem: what is wrong.
    """

    def __init__(self, line: int, column: int, problem: str) -> None:
        super().__init__(f"line {line}, column {column}: {problem}")
        self.line = line
        self.column = column
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a file. Tuples, which options are, know where they stood."""

    terms: tuple[Term, ...]
    _offsets: Mapping[int, int]
    _text: str = field(repr=False)

    def place(self, term: Term) -> tuple[int, int]:
        """Line and column of one of these tuples; 1, 1 of anything else."""
        return _place(self._text, self._offsets.get(id(term), 0))


def read_terms(text: str) -> Terms:
    """Every term of a text, each ended by a dot, as ``file:consult``. Raises TermError."""
    reader = _Reader(text)
    found: list[Term] = []
    while not reader.ended:
        found.append(reader.term())
        reader.dot()
    return Terms(tuple(found), reader.offsets, text)


def read_term(text: str) -> Term:
    """The one term of a text; the dot after it may be missing. Raises TermError."""
    reader = _Reader(text)
    term = reader.term()
    if not reader.ended:
        reader.dot()
    if not reader.ended:
        raise reader.error("one term only was expected")
    return term


def text_of(term: Term) -> str | None:
    """The text of a string or of a list of characters; None of every other term."""
    if isinstance(term, str):
        return term
    if isinstance(term, list):
        codes = [code for code in term if isinstance(code, int) and 0 <= code <= 0x10FFFF]
        if len(codes) == len(term):
            return "".join(map(chr, codes))
    return None


def shown(term: Term) -> str:
    """A term as Erlang would print it, on one line."""
    match term:
        case str():
            return '"' + _escaped(term, '"') + '"'
        case bytes():
            return '<<"' + _escaped(term.decode("latin-1"), '"') + '">>'
        case list():
            return "[" + ",".join(map(shown, term)) + "]"
        case tuple():
            return "{" + ",".join(map(shown, term)) + "}"
        case Map():
            return "#{" + ",".join(f"{shown(k)} => {shown(v)}" for k, v in term.pairs) + "}"
        case _:
            return str(term)


_TOKEN = re.compile(
    r"""
      (?P<space> \s+ | %[^\n]* )
    | (?P<float> [0-9][0-9_]*\.[0-9]+(?:[eE][+-]?[0-9]{1,3})? )
    | (?P<based> [0-9]{1,2}\#[0-9A-Za-z]+ )
    | (?P<integer> [0-9][0-9_]* )
    | (?P<atom> [a-z][A-Za-z0-9_@]* )
    | (?P<quoted> '(?:[^'\\]|\\.)*' )
    | (?P<string> "(?:[^"\\]|\\.)*" )
    | (?P<char> \$(?:\\(?:x\{[0-9a-fA-F]+\}|[0-7]{1,3}|\^.|.)|[^\\]) )
    | (?P<sign> << | >> | => | \#\{ | [\[\]{},.|/+-] )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(
    r"\\(?:x\{([0-9a-fA-F]{1,6})\}|x([0-9a-fA-F]{2})|([0-7]{1,3})|\^(.)|(.))", re.DOTALL
)
_LETTERS = {
    "b": "\b",
    "d": "\x7f",
    "e": "\x1b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "s": " ",
    "t": "\t",
    "v": "\v",
}
# fmt: off
_RESERVED = frozenset({
    "after", "and", "andalso", "band", "begin", "bnot", "bor", "bsl", "bsr", "bxor",
    "case", "catch", "cond", "div", "else", "end", "fun", "if", "let", "maybe",
    "not", "of", "or", "orelse", "receive", "rem", "try", "when", "xor",
})
# fmt: on


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


class _Reader:
    """Tokens with one of lookahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        if len(text) > SIZE_LIMIT:
            raise TermError(1, 1, f"more than {SIZE_LIMIT} characters")
        self._tokens = self._scan()
        self._next = next(self._tokens)
        self._depth = 0
        # By identity: the terms live as long as whoever asks for their places.
        self.offsets: dict[int, int] = {}

    def _scan(self) -> Iterator[_Token]:
        at = 0
        while at < len(self._text):
            found = _TOKEN.match(self._text, at)
            if found is None:
                quote = self._text[at] in "\"'"
                raise self._error(
                    at, "a quote is never closed" if quote else _stray(self._text[at])
                )
            kind = found.lastgroup or ""
            if kind != "space":
                yield _Token(kind, found[0], at)
            at = found.end()
        while True:
            yield _Token("end", "", at)

    @property
    def ended(self) -> bool:
        return self._next.kind == "end"

    def error(self, problem: str) -> TermError:
        return self._error(self._next.at, problem)

    def dot(self) -> None:
        self._expect(".", "expected '.' after the term")

    def term(self) -> Term:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise self.error(f"nested deeper than {DEPTH_LIMIT}")
        term = self._term()
        self._depth -= 1
        return term

    def _term(self) -> Term:
        token = self._next
        if token.kind == "sign":
            opened = _OPENING.get(token.text)
            if opened is None:
                raise self.error(f"expected a term, not {token.text}")
            self._take()
            opened_term = opened(self)
            if isinstance(opened_term, tuple) and opened_term:
                self.offsets[id(opened_term)] = token.at
            return opened_term
        read = _LITERALS.get(token.kind)
        if read is None:
            raise self.error("the text ends where a term was expected")
        if token.text in _RESERVED:
            raise self.error(f"write '{token.text}': without quotes it is no atom")
        try:
            value = read(self._take().text)
            while isinstance(value, str) and self._next.kind == "string":
                value += _string(self._take().text)
        except (ValueError, OverflowError):
            raise self._error(token.at, "this number or escape has no meaning") from None
        return value if value != "" else []

    def read_list(self) -> Term:
        return self._items("]")

    def read_tuple(self) -> Term:
        return tuple(self._items("}"))

    def read_map(self) -> Term:
        pairs: list[tuple[Term, Term]] = []
        while not self._taken("}"):
            if pairs:
                self._expect(",", "expected ',' or '}' in a map")
            key = self.term()
            self._expect("=>", "expected '=>' after a map's key")
            pairs.append((key, self.term()))
        return Map(tuple(pairs))

    def read_binary(self) -> Term:
        segments: list[bytes] = []
        while not self._taken(">>"):
            if segments:
                self._expect(",", "expected ',' or '>>' in a binary")
            segments.append(self._segment())
        return b"".join(segments)

    def _segment(self) -> bytes:
        """A string (its code points are octets, or UTF-8 after ``/utf8``), or one octet."""
        token = self._next
        value = self.term()
        text = text_of([value] if isinstance(value, int) else value)
        if text is None:
            raise self._error(token.at, "a binary holds strings and octets")
        coding = "latin-1"
        if self._taken("/"):
            if self._take().text != "utf8":
                raise self._error(token.at, "of a binary's types only utf8 is read")
            coding = "utf-8"
        try:
            return text.encode(coding)
        except UnicodeEncodeError:
            raise self._error(token.at, "does not fit into octets; write /utf8 after it") from None

    def read_negative(self) -> Term:
        return -self._number()

    def read_positive(self) -> Term:
        return self._number()

    def _number(self) -> int | float:
        value = self.term()
        if isinstance(value, int | float):
            return value
        raise self.error("a sign stands before a number")

    def _items(self, closing: str) -> list[Term]:
        items: list[Term] = []
        while not self._taken(closing):
            if items:
                self._expect(",", f"expected ',' or '{closing}'")
            items.append(self.term())
        return items

    def _take(self) -> _Token:
        token = self._next
        self._next = next(self._tokens)
        return token

    def _taken(self, sign: str) -> bool:
        if self._next.kind == "sign" and self._next.text == sign:
            self._take()
            return True
        return False

    def _expect(self, sign: str, problem: str) -> None:
        if not self._taken(sign):
            raise self.error(problem)

    def _error(self, at: int, problem: str) -> TermError:
        return TermError(*_place(self._text, at), problem)


def _place(text: str, at: int) -> tuple[int, int]:
    """Line and column of an offset, from 1."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def _stray(character: str) -> str:
    if character.isupper() or character == "_":
        return "there are no variables here; an atom starts with a small letter or is quoted"
    return "this character belongs to no term"


def _string(text: str) -> str:
    return _ESCAPE.sub(_unescaped, text[1:-1])


def _unescaped(found: re.Match[str]) -> str:
    wide, narrow, octal, control, letter = found.groups()
    if wide or narrow:
        return chr(int(wide or narrow, 16))
    if octal:
        return chr(int(octal, 8))
    if control:
        return chr(ord(control) & 31)
    return _LETTERS.get(letter, letter)


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError
    return int(text.replace("_", ""))


def _based(text: str) -> int:
    base, _, digits = text.partition("#")
    if len(digits) > _DIGITS or not 2 <= int(base) <= 36:
        raise ValueError
    return int(digits, int(base))


def _char(text: str) -> int:
    return ord(text[1]) if text[1] != "\\" else ord(_ESCAPE.sub(_unescaped, text[1:]))


_LITERALS: dict[str, Callable[[str], Term]] = {
    "atom": Atom,
    "quoted": lambda text: Atom(_string(text)),
    "string": _string,
    "integer": _integer,
    "based": _based,
    "float": lambda text: float(text.replace("_", "")),
    "char": _char,
}
_OPENING: dict[str, Callable[[_Reader], Term]] = {
    "[": _Reader.read_list,
    "{": _Reader.read_tuple,
    "#{": _Reader.read_map,
    "<<": _Reader.read_binary,
    "-": _Reader.read_negative,
    "+": _Reader.read_positive,
}


def _escaped(text: str, quote: str) -> str:
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", quote: "\\" + quote}
    return "".join(
        named.get(char) or (char if char.isprintable() else f"\\x{{{ord(char):X}}}")
        for char in text
    )
