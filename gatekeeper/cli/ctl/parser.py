"""The command line, read as rabbitmqctl's parser (Elixir's OptionParser, strict) reads it.

Options may stand anywhere; ``--`` ends them. What is wrong is collected, not raised: whether the
command exists is said first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gatekeeper.cli.ctl.command import OptionValue

SWITCHES: Mapping[str, type] = {
    "node": str,
    "quiet": bool,
    "silent": bool,
    "dry-run": bool,
    "vhost": str,
    "timeout": int,
    "longnames": bool,
    "formatter": str,
    "printer": str,
    "file": str,
    "script-name": str,
    "erlang-cookie": str,
    "help": bool,
    "print-stacktrace": bool,
    "table-headers": bool,
    "pad-to-header": bool,
    # Ours: where the gate is.
    "socket": str,
    "config": str,
}
ALIASES = {"p": "vhost", "n": "node", "q": "quiet", "s": "silent", "l": "longnames",
           "t": "timeout", "?": "help"}  # fmt: skip

_NUMBER = re.compile(r"-[0-9.]+")


@dataclass(slots=True)
class Line:
    """arguments: with their places in the line. wrong: options and what was given for them."""

    words: Sequence[str]
    arguments: list[tuple[int, str]] = field(default_factory=list)
    options: dict[str, OptionValue] = field(default_factory=dict)
    wrong: list[tuple[int, str, str]] = field(default_factory=list)


def parse(words: Sequence[str], switches: Mapping[str, type], aliases: Mapping[str, str]) -> Line:
    """switches, aliases: the command's own, besides everybody's."""
    reader = _Reader(words, {**SWITCHES, **switches}, {**ALIASES, **aliases})
    reader.read()
    return reader.line


class _Reader:
    def __init__(
        self, words: Sequence[str], switches: Mapping[str, type], aliases: Mapping[str, str]
    ) -> None:
        self.line = Line(words)
        self._switches = switches
        self._aliases = aliases
        self._left: Iterator[tuple[int, str]] = iter(enumerate(words))

    def read(self) -> None:
        for at, word in self._left:
            if word == "--":
                self.line.arguments.extend(self._left)
            elif word.startswith("--"):
                self._option(at, word, word[2:])
            elif word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word):
                letter, equals, value = word[1:].partition("=")
                self._option(at, word, self._aliases.get(letter, "") + equals + value)
            else:
                self.line.arguments.append((at, word))

    def _option(self, at: int, word: str, text: str) -> None:
        name, equals, value = text.partition("=")
        kind = self._switches.get(name)
        shown = word.partition("=")[0]
        if kind is None and name.startswith("no-") and self._switches.get(name[3:]) is bool:
            name, kind, value, equals = name[3:], bool, "false", "="
        if kind is None:
            self.line.wrong.append((at, shown, value))
        elif kind is bool:
            self._boolean(at, name, shown, value if equals else "true")
        elif equals:
            self._valued(at, name, shown, value)
        elif (found := self._next_value(at)) is None:
            self.line.wrong.append((at, shown, ""))
        else:
            self._valued(at, name, shown, found)

    def _boolean(self, at: int, name: str, shown: str, value: str) -> None:
        if value in {"true", "false"}:
            self.line.options[name] = value == "true"
        else:
            self.line.wrong.append((at, shown, value))

    def _valued(self, at: int, name: str, shown: str, value: str) -> None:
        if self._switches[name] is str:
            self.line.options[name] = value
        elif re.fullmatch(r"[+-]?[0-9]+", value):
            self.line.options[name] = int(value)
        else:
            self.line.wrong.append((at, shown, value))

    def _next_value(self, at: int) -> str | None:
        """The next word, unless it looks like an option itself."""
        if at + 1 >= len(self.line.words):
            return None
        word = self.line.words[at + 1]
        if word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word):
            return None
        next(self._left)
        return word
