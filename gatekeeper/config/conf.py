"""The syntax of rabbitmq.conf as RabbitMQ 4.3 reads it. Pure: text in, entries out.

Strategy: walk the text once, line by line, without regular expressions that can backtrack
over a whole file. Only quoted values cross lines. What a value means (substitution, file
contents, types) is not decided here; see :mod:`gatekeeper.config.sources` and
:mod:`gatekeeper.config.schema`.

Rules: cuttlefish's grammar (``conf_parse.peg``) with the 3.6 additions: triple quotes, and a
byte order mark that the reader drops. Where it surprises: ``#`` starts a comment even inside a
word; only single quotes quote, and only at the start of a value; a quote that is never closed
is an ordinary character; ``:``, blanks and section headers are errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gatekeeper.errors import ConfigError

Key = tuple[str, ...]
"""The words of a key, with ``\\.`` already turned into a plain dot."""

_BLANKS = " \t"
_WORD = r"(?:\\\.|[A-Za-z0-9_-])+"
_KEY = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_SPLIT = re.compile(r"(?<!\\)\.")
_INCLUDE = re.compile(r"include[ \t]+([A-Za-z0-9_./*-]+)[ \t]*(?:#.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a setting stands. line and column count from 1; columns are characters."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Setting:
    """``KEY = VALUE``; the text is unquoted and otherwise as written."""

    key: Key
    text: str = field(repr=False)
    origin: Origin


@dataclass(frozen=True, slots=True)
class Include:
    """``include PATH``; ``*`` may stand in the path's last part."""

    path: str
    origin: Origin


def parse(text: str, file: str) -> tuple[Setting | Include, ...]:
    """Read a whole file's text.

    file: its name, for origins and messages.
    Raises ConfigError for the first line that is neither setting, include, comment nor blank:
    one line with file, line, column and remedy. It never shows the text of the line, which
    may hold a secret.
    """
    return tuple(_Parser(text, file).entries())


def parse_key(text: str) -> Key | None:
    """The words of a key, or None where the text is no key."""
    if not _KEY.fullmatch(text):
        return None
    return tuple(word.replace("\\.", ".") for word in _SPLIT.split(text))


def format_key(key: Key) -> str:
    """A key as it would be written in a file."""
    return ".".join(word.replace(".", "\\.") for word in key)


class _Parser:
    """A position in a text, and where the current line began."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._line = 1
        self._line_start = 0

    def entries(self) -> list[Setting | Include]:
        found: list[Setting | Include] = []
        while self._line_start < len(self._text):
            entry, end = self._entry()
            if entry is not None:
                found.append(entry)
            self._next_line(end)
        return found

    def _entry(self) -> tuple[Setting | Include | None, int]:
        """One entry that starts on the current line, and the offset where it ended."""
        start = self._skip_blanks(self._line_start)
        end = self._end_of_line(start)
        if start == end or self._text[start] == "#":
            return None, end
        key = _KEY.match(self._text, start, end)
        if key is None:
            raise self._error(start, _remedy_for_start(self._text[start]))
        equals = self._skip_blanks(key.end())
        if equals < end and self._text[equals] == "=":
            words = parse_key(key[0])
            assert words is not None  # noqa: S101  (the pattern that just matched)
            origin = self._origin(start)
            value, end = self._value(self._skip_blanks(equals + 1))
            return Setting(words, value, origin), end
        if include := _INCLUDE.fullmatch(self._text, start, end):
            return Include(include[1], self._origin(start)), end
        if key[0] == "include":
            problem = "include takes one path of letters, digits and . _ - / *"
        elif equals == end:
            problem = "there is no '=' after the key; write KEY = VALUE"
        elif equals == key.end() and self._text[equals] != ":":
            problem = r"keys hold only letters, digits, '_' and '-' ('\.' for a dot in a word)"
        else:
            problem = "expected '=' after the key; write KEY = VALUE"
        raise self._error(equals, problem)

    def _value(self, start: int) -> tuple[str, int]:
        """The value at start, and the offset where its line ends."""
        text = self._text
        for quote in ("'''", "'"):
            if not text.startswith(quote, start):
                continue
            close = text.find(quote, start + len(quote))
            if close < 0:
                # cuttlefish falls through: to the shorter quote, at last to an ordinary value.
                continue
            inner = text[start + len(quote) : close]
            after = self._skip_blanks(close + len(quote))
            end = self._end_of_line(after)
            if after < end and text[after] != "#":
                raise self._error(
                    after,
                    "only a comment may follow the closing quote; put a value that holds a"
                    " single quote between ''' and '''",
                )
            return (inner.strip("\r\n") if quote == "'''" else inner), end
        end = self._end_of_line(start)
        comment = text.find("#", start, end)
        value = text[start : comment if comment >= 0 else end].rstrip(_BLANKS)
        if not value:
            raise self._error(start, "the value is missing; write '' for an empty one")
        return value, end

    def _skip_blanks(self, at: int) -> int:
        while at < len(self._text) and self._text[at] in _BLANKS:
            at += 1
        return at

    def _end_of_line(self, at: int) -> int:
        """Offset of the LF or CRLF that ends the line of ``at``, or of the end of the text."""
        newline = self._text.find("\n", at)
        if newline < 0:
            return len(self._text)
        return newline - 1 if newline > at and self._text[newline - 1] == "\r" else newline

    def _next_line(self, end: int) -> None:
        """Move to the line after the one that ends at ``end``."""
        newline = self._text.find("\n", end)
        after = len(self._text) if newline < 0 else newline + 1
        self._line += self._text.count("\n", self._line_start, after)
        self._line_start = after

    def _origin(self, at: int) -> Origin:
        lines = self._text.count("\n", self._line_start, at)
        start = self._text.rfind("\n", self._line_start, at) + 1 if lines else self._line_start
        return Origin(self._file, self._line + lines, at - start + 1)

    def _error(self, at: int, problem: str) -> ConfigError:
        return ConfigError(f"{self._origin(at)}: syntax error: {problem}")


def _remedy_for_start(character: str) -> str:
    if character == "[":
        return "there are no section headers in this format; write whole keys"
    if character in ";%/":
        return "a comment starts with #"
    return r"a line starts with a key: letters, digits, '_' and '-' in words joined by '.'"
