"""Answers as text: rabbitmqctl's formatters.

A formatter takes rows one by one and gives lines, so that a listing of any length is printed as
it comes. (``pretty_table`` has to see all of it for the widths.)
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

from gatekeeper.cli.ctl.command import Answer, Document, Raw, Row, Rows, Text, Value
from gatekeeper.cli.ctl.terms import erlang, inspected

MACHINE_READABLE = frozenset({"json", "csv", "json_stream", "erlang"})
"""Formats without a banner."""
FORMATTERS = ("table", "pretty_table", "json", "json_stream", "csv", "string", "erlang", "inspect")


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address: text in a table, its numbers in JSON."""

    text: str

    @property
    def numbers(self) -> list[int]:
        try:
            ip = ipaddress.ip_address(self.text)
        except ValueError:
            return []
        if ip.version == 4:
            return list(ip.packed)
        return [int.from_bytes(ip.packed[at : at + 2], "big") for at in range(0, 16, 2)]


@dataclass(frozen=True, slots=True)
class Numbers:
    """A tuple of numbers: ``{0,9,1}`` in a table."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FieldTable:
    """``[[name, type, value], ...]``: without the types in a table."""

    entries: Sequence[object]


@dataclass(frozen=True, slots=True)
class Style:
    """formatter: of FORMATTERS. headers: print a table's first line."""

    formatter: str
    headers: bool
    node: str


def formatted(answer: Answer, style: Style) -> Iterator[str]:
    """Lines, or pieces of a Raw answer."""
    name = style.formatter
    match answer:
        case None:
            if name == "json":
                yield to_json({"node": style.node, "result": "ok"})
        case Text(text):
            yield to_json({"message": text}) if name.startswith("json") else text
        case Value(value):
            whole = {"node": style.node, "result": "ok", "value": value}
            yield to_json(whole) if name == "json" else _single(value, name)
        case Document(document, text):
            yield to_json(document) if name.startswith("json") else text
        case Raw(pieces):
            yield from pieces
        case Rows(rows, streamed):
            yield from _listing(iter(rows), style, streamed=streamed)
        case _:
            return


def _single(value: object, formatter: str) -> str:
    if formatter == "erlang":
        return erlang(value)
    if formatter == "pretty_table":
        return "\n".join(_pretty([{"Output": value}]))
    return value if isinstance(value, str) else cell(value)


def _listing(rows: Iterator[Row], style: Style, *, streamed: bool) -> Iterator[str]:
    first = next(rows, None)
    if first is None and not streamed:
        yield "[]" if style.formatter == "json" else ""
        return
    yield from _LISTINGS[style.formatter](chain([] if first is None else [first], rows), style)


# --- the formatters of listings ---


def _table(rows: Iterable[Row], style: Style) -> Iterator[str]:
    for at, row in enumerate(rows):
        if not at and style.headers:
            yield "\t".join(row)
        yield "\t".join(map(cell, row.values()))


def _json(rows: Iterable[Row], _style: Style) -> Iterator[str]:
    yield "["
    for at, row in enumerate(rows):
        yield ("," if at else "") + to_json(row, sort=False)
    yield "]"


def _json_stream(rows: Iterable[Row], _style: Style) -> Iterator[str]:
    return (to_json(row, sort=False) for row in rows)


def _csv(rows: Iterable[Row], _style: Style) -> Iterator[str]:
    for at, row in enumerate(rows):
        if not at:
            yield ",".join(map(_quoted, row))
        yield ",".join(_quoted(cell(value)) for value in row.values())


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def _erlang(rows: Iterable[Row], _style: Style) -> Iterator[str]:
    yield f"[{','.join(erlang(_plain(row)) for row in rows)}]"


def _inspect(rows: Iterable[Row], _style: Style) -> Iterator[str]:
    yield "["
    for at, row in enumerate(rows):
        yield ("," if at else "") + inspected(_plain(row))
    yield "]"


# VT100 line drawing, which is what RabbitMQ's library makes (stdout_formatter).
_DRAW, _TEXT, _BOLD, _NORMAL = "\x1b(0", "\x1b(B", "\x1b[1m", "\x1b[0m"


def _pretty_listing(rows: Iterable[Row], _style: Style) -> Iterator[str]:
    return _pretty(list(rows))


def _pretty(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    titles = list(rows[0])
    cells = [[_pretty_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]

    def rule(left: str, middle: str, right: str) -> str:
        inner = middle.join("q" * (width + 2) for width in widths)
        return f"{_DRAW}{left}{inner}{right}{_TEXT}"

    def line(texts: Sequence[str], before: str = "", after: str = "") -> str:
        bar = f"{_DRAW}x{_TEXT}"
        padded = (
            f"{bar} {before}{text}{after}{' ' * (width - len(text))} "
            for text, width in zip(texts, widths, strict=True)
        )
        return "".join(padded) + bar

    yield rule("l", "w", "k")
    yield line(titles, _BOLD, _NORMAL)
    yield rule("t", "n", "u")
    for texts in cells:
        yield line(texts)
    yield rule("m", "v", "j")


def _pretty_cell(value: object) -> str:
    return ", ".join(map(cell, value)) if isinstance(value, list) else cell(value)


_LISTINGS: Mapping[str, Callable[[Iterable[Row], Style], Iterator[str]]] = MappingProxyType(
    {
        "table": _table,
        "string": _table,
        "pretty_table": _pretty_listing,
        "json": _json,
        "json_stream": _json_stream,
        "csv": _csv,
        "erlang": _erlang,
        "inspect": _inspect,
    }
)


# --- values ---


def cell(value: object) -> str:
    """A value in a table (``formatter_helpers.ex``). What is not known is empty."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case Address(text):
            return text
        case Numbers(numbers):
            return f"{{{','.join(map(str, numbers))}}}"
        case FieldTable(entries):
            return _field_table(entries)
        case list():
            return f"[{', '.join(map(cell, value))}]"
        case dict():
            pairs = (f"{key} => {cell(item)}" for key, item in sorted(value.items()))
            return f"#{{{', '.join(pairs)}}}"
        case _:
            return str(value)


def _field_table(entries: Sequence[object]) -> str:
    shown = []
    for entry in entries:
        assert isinstance(entry, list)  # noqa: S101 - what the gate sends
        name, kind, value = entry
        shown.append(f'{{"{name}",{_field(kind, value)}}}')
    return f"[{','.join(shown)}]"


def _field(kind: object, value: object) -> str:
    if kind == "table" and isinstance(value, list):
        return _field_table(value)
    if kind == "array" and isinstance(value, list):
        return f"[{','.join(_field(*inner) for inner in value)}]"
    return f'"{value}"' if isinstance(value, str) else cell(value)


def to_json(value: object, *, sort: bool = True) -> str:
    """Text that is no Unicode stays readable, and a lone surrogate valid JSON."""
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), sort_keys=sort)
    return "".join(f"\\u{ord(char):04x}" if 0xD800 <= ord(char) < 0xE000 else char for char in text)


def _plain(value: object) -> object:
    match value:
        case Address():
            return value.numbers
        case Numbers(numbers):
            return list(numbers)
        case FieldTable(entries):
            return list(entries)
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case _:
            return value
