"""How an answer is cut to what was asked for: columns, order, filter, pages.

Everything here is for a thread: a list may have a million rows, and sorting one takes its time.

Source: ``rabbit_mgmt_util`` (``sort_list``, ``filter_and_paginate``, ``extract_columns``).
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gatekeeper.admin.api.call import NO_CACHE, Call, Object, Reply, answer, encoded, problem
from gatekeeper.policy import pcre

PAGE_SIZE, MAX_PAGE_SIZE = 100, 500
MAX_FILTER = 1024
RUN = 1000
"""Rows that are sorted in one go."""

_INTEGER = re.compile(rb"[+-]?[0-9]{1,18}")
_INVALID = "invalid_pagination_parameters"


@dataclass(frozen=True, slots=True)
class Page:
    """``page``, ``page_size``, ``name`` and ``use_regex`` of a query."""

    number: int
    size: int
    name: bytes
    regex: bool


async def list_reply(
    call: Call,
    rows: Callable[[], Iterable[Object]],
    *,
    sort: tuple[str, ...] = (),
    paged: bool = False,
) -> Reply:
    """A list as the query wants it. rows: read in a thread. sort: columns, where none is asked
    for. paged: this list can be had in pages."""
    page = _page(call)
    return await call.administration.read(
        lambda: _shaped(call, rows(), sort, page if paged else None)
    )


def object_reply(call: Call, row: Object, status: int = 200) -> Reply:
    """One object, with the columns that were asked for."""
    _page(call)
    return answer(_cut(row, _columns(call)), status)


def _shaped(call: Call, rows: Iterable[Object], sort: tuple[str, ...], page: Page | None) -> Reply:
    ordered = list(rows)
    columns = tuple(filter(None, (call.asked("sort"), *sort)))
    if columns:
        ordered = _sorted(ordered, columns)
    if call.asked("sort_reverse") == "true":
        ordered.reverse()
    wanted = _columns(call)
    if page is None:
        return Reply(200, _encoded(_cut(row, wanted) for row in ordered), headers=(NO_CACHE,))
    kept = list(filter(_named_like(page), ordered))
    first = (page.number - 1) * page.size
    if first > len(kept):
        reason = f"Page out of range, page: {page.number} page size: {page.size}, len: {len(kept)}"
        raise problem(400, "page_out_of_range", reason)
    items = kept[first : first + page.size]
    return answer(
        {
            "total_count": len(ordered),
            "item_count": len(items),
            "filtered_count": len(kept),
            "page": page.number,
            "page_size": page.size,
            "page_count": -(-len(kept) // page.size),
            "items": [_cut(row, wanted) for row in items],
        }
    )


# One call that sorts or encodes a whole list holds the interpreter, and with it every client of
# this process, for as long as it takes: a second and more for 100 000 rows.


def _encoded(rows: Iterable[object]) -> bytes:
    return b"[" + b",".join(map(encoded, rows)) + b"]"


def _sorted(rows: list[Object], columns: tuple[str, ...]) -> list[Object]:
    """Equal rows stay in their order."""

    def key(row: Object) -> list[tuple[int, float, bytes]]:
        return [_rank(_dotted(row, column)) for column in columns]

    runs = [sorted(rows[at : at + RUN], key=key) for at in range(0, len(rows), RUN)]
    return list(heapq.merge(*runs, key=key))


# --- pages ---


def _page(call: Call) -> Page | None:
    """None where no page is asked for. Source: ``pagination_params/1``."""
    number, size = _integer(call, "page"), _integer(call, "page_size")
    name, regex = call.query.get("name", b""), call.query.get("use_regex") == b"true"
    if regex and len(name) > MAX_FILTER:
        raise problem(400, _INVALID, "name filter regex is too long")
    if number is None:
        return None
    if number > 0 and size is None:
        size = PAGE_SIZE
    if size is None or number <= 0 or not 0 < size <= MAX_PAGE_SIZE:
        shown = "undefined" if size is None else size
        raise problem(
            400,
            _INVALID,
            f"Invalid pagination parameters: page number {number}, page size {shown}",
        )
    return Page(number, size, name, regex)


def _integer(call: Call, key: str) -> int | None:
    value = call.query.get(key)
    if value is None:
        return None
    if not _INTEGER.fullmatch(value):
        raise problem(400, "bad_request", "Pagination parameters are invalid")
    return int(value)


def _named_like(page: Page) -> Callable[[Object], bool]:
    """Does a row's name hold the text, or match the pattern? Case does not matter."""
    if not page.name:
        return lambda _row: True
    if not page.regex:
        part = page.name.decode("latin-1").lower()
        return lambda row: part in _name(row).decode("latin-1").lower()
    try:
        # PCRE's own bounds on effort hold: the pattern is whatever somebody typed.
        pattern = pcre.compile(b"(?i)" + page.name)
    except pcre.PatternError:
        return lambda _row: False
    return lambda row: pattern.matches(_name(row))


def _name(row: Object) -> bytes:
    return str(row.get("name", "")).encode()


# --- order ---


def _dotted(row: Object, column: str) -> object:
    value: object = row
    for word in column.split("."):
        if not isinstance(value, dict) or word not in value:
            return 0  # "nothing" comes before everything else
        value = value[word]
    return value


def _rank(value: object) -> tuple[int, float, bytes]:
    """A key with Erlang's order of types: number, atom, map, list, string."""
    match value:
        case bool() | None:
            return (1, 0, str(value).lower().encode() if value is not None else b"null")
        case int() | float():
            return (0, value, b"")
        case dict():
            return (2, len(value), repr(sorted(value.items(), key=repr)).encode())
        case list():
            return (3, 0, repr(value).encode())
        case _:
            return (4, 0, str(value).encode())


# --- columns ---

_Columns = tuple[tuple[str, ...], ...] | None
"""Dotted paths as words; None: all."""


def _columns(call: Call) -> _Columns:
    asked = call.asked("columns")
    if asked is None:
        return None
    paths = (tuple(filter(None, path.split("."))) for path in asked.split(","))
    return tuple(filter(None, paths))


def _cut(value: object, columns: _Columns) -> object:
    if columns is None:
        return value
    if isinstance(value, list):
        return [_cut(item, columns) for item in value]
    if not isinstance(value, dict):
        return value
    heads = {path[0] for path in columns}
    return {key: _cut(item, _below(key, columns)) for key, item in value.items() if key in heads}


def _below(key: str, columns: tuple[tuple[str, ...], ...]) -> _Columns:
    """What is asked for inside ``key``; a path that ends here asks for all of it."""
    deeper = [path[1:] for path in columns if path[0] == key]
    return None if () in deeper else tuple(deeper)
