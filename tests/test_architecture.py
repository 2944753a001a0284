"""The shape of the package, kept by its syntax trees: who may import whom, and what is banned.

DESIGN section 2: a room may import from the lines above its own, from itself, and from nothing
else; two rooms on one line do not know each other.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gatekeeper"

# From what everyone may use down to what uses everything. The commands stand last: starting the
# composition root is what they are for.
LINES: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"model"}),
    frozenset({"protocol"}),
    frozenset({"policy"}),
    frozenset({"config"}),
    frozenset({"logs", "store", "tls"}),
    frozenset({"backends", "prepare"}),
    frozenset({"server"}),
    frozenset({"admin"}),
    frozenset({"administration"}),
    frozenset({"app"}),
    frozenset({"supervisor"}),
    frozenset({"cli"}),
)
RANK = {room: rank for rank, line in enumerate(LINES) for room in line}
# The build hook is no room: it runs before there is a package.
OUTSIDE = frozenset({"__init__", "_compile"})

# No sockets, no clock, no event loop, no files: bytes in, values out.
# fmt: off
IMPURE = frozenset({
    "asyncio", "concurrent", "datetime", "http", "io", "logging", "multiprocessing", "os",
    "pathlib", "queue", "sched", "select", "selectors", "shutil", "signal", "socket",
    "socketserver", "sqlite3", "ssl", "structlog", "subprocess", "tempfile", "threading", "time",
    "urllib", "uvloop",
})
POLICY_BANNED = frozenset({
    "http", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "tempfile", "urllib",
    "uvloop",
})
# fmt: on
# Third-party packages that a room may import; backends/ may import what it needs, lazily.
THIRD_PARTY = {
    "errors": set[str](),
    "model": set[str](),
    "protocol": {"pamqp"},
    "policy": set[str](),
}
TASK_MAKERS = frozenset({"create_task", "ensure_future"})
TASK_OWNER = Path("server/tasks.py")

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def room_of(path: Path) -> str:
    """``server`` for gatekeeper/server/pump.py, ``model`` for gatekeeper/model.py."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]).rstrip(".")
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imports(parse(path), package_of(path)):
        parts = name.split(".")
        if parts[0] == "gatekeeper" and len(parts) > 1 and parts[1] in RANK:
            yield line, parts[1]


def modules(path: Path) -> Iterator[tuple[int, str]]:
    """Top-level names of what is imported from outside the package."""
    for line, name in imports(parse(path), package_of(path)):
        top = name.split(".")[0]
        if top != "gatekeeper":
            yield line, top


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_every_file_is_in_a_room() -> None:
    strays = {room_of(path) for path in FILES} - RANK.keys() - OUTSIDE
    assert not strays, f"not on the list of rooms (DESIGN section 2): {sorted(strays)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    if room in OUTSIDE:
        allowed = {room}
    else:
        allowed = {room} | {other for other, rank in RANK.items() if rank < RANK[room]}
    wrong = [
        f"{place(path, line)} imports {r}" for line, r in imported_rooms(path) if r not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "banned"),
    [("protocol", IMPURE), ("policy", POLICY_BANNED)],
    ids=["protocol", "policy"],
)
def test_rooms_without_input_or_output(room: str, banned: frozenset[str]) -> None:
    paths = [path for path in FILES if room_of(path) == room]
    assert paths
    wrong = [
        f"{place(path, line)} imports {name}"
        for path in paths
        for line, name in modules(path)
        if name in banned
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", sorted(THIRD_PARTY))
def test_third_party_packages(room: str) -> None:
    wrong = [
        f"{place(path, line)} imports {name}"
        for path in FILES
        if room_of(path) == room
        for line, name in modules(path)
        if name not in sys.stdlib_module_names and name not in THIRD_PARTY[room]
    ]
    assert not wrong, "\n".join(wrong)


def task_makers(tree: ast.AST) -> Iterator[int]:
    """Lines that make a task which nobody owns; a TaskGroup's own create_task is one's owner."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in TASK_MAKERS:
            yield node.lineno
        if isinstance(called, ast.Attribute) and called.attr in TASK_MAKERS:
            owner = called.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if name not in {"group", "tasks", "task_group"}:
                yield node.lineno


def test_every_task_has_an_owner() -> None:
    wrong = [
        place(path, line)
        for path in FILES
        if path.relative_to(PACKAGE) != TASK_OWNER
        for line in task_makers(parse(path))
    ]
    assert not wrong, f"a task without an owner (use server.tasks.Owner): {wrong}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("asyncio.create_task(f())", 1),
        ("loop.create_task(f())", 1),
        ("asyncio.get_running_loop().create_task(f())", 1),
        ("from asyncio import ensure_future\nensure_future(f())", 1),
        ("group.create_task(f())", 0),
        ("self.group.create_task(f())", 0),
    ],
)
def test_the_task_rule_sees_what_it_should(source: str, expected: int) -> None:
    assert len(list(task_makers(ast.parse(source)))) == expected


def test_relative_imports_are_resolved() -> None:
    tree = ast.parse("from ..store import users\nfrom . import wire\nimport gatekeeper.model")
    names = [name for _line, name in imports(tree, "gatekeeper.protocol")]
    assert names == ["gatekeeper.store.users", "gatekeeper.protocol.wire", "gatekeeper.model"]
