"""Definitions, in and out."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

from gatekeeper.cli.ctl.command import (
    DATA,
    SOFTWARE,
    Answer,
    Call,
    Command,
    CommandError,
    NoOutput,
    Raw,
    Text,
    bad_argument,
)
from gatekeeper.cli.ctl.terms import inspected

_STARTED = (
    "Successfully started definition import. This process is asynchronous and can take some "
    "time. Watch target node logs for completion."
)


def _format(call: Call) -> str:
    return (call.text("format") or "json").lower()


def _check_format(call: Call) -> None:
    if _format(call) not in {"json", "erlang"}:
        bad_argument("Format should be either json or erlang")
    if _format(call) == "erlang":
        bad_argument("Erlang's term format is not supported by gatekeeper; use json")


# --- export ---


def _check_export(call: Call) -> None:
    _check_format(call)
    folder = Path(call.arguments[0]).parent
    if call.arguments[0] != "-" and not folder.exists():
        bad_argument(f"Directory {folder} does not exist")


def _export(call: Call) -> Answer:
    text = _one_line(call.gate.texts("export_definitions"))
    if call.arguments[0] == "-":
        return Raw(text)
    _write(Path(call.arguments[0]), text)
    return NoOutput()


def _one_line(pieces: Iterator[str]) -> Iterator[str]:
    """On one line without an end, as rabbitmqctl prints it. JSON has no line ends in strings."""
    return (piece.replace("\n", "") for piece in pieces)


def _write(path: Path, pieces: Iterator[str]) -> None:
    """Whole or not at all. For its owner alone, unlike rabbitmqctl's: it holds password hashes."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
        with _created(beside) as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        _cannot_write(path, error)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _created(path: Path) -> IO[str]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    return os.fdopen(descriptor, "w", encoding="utf-8")


def _cannot_write(path: Path, error: OSError) -> NoReturn:
    known = {
        errno.ENOENT: f"Parent directory or file {path} does not exist",
        errno.ENOTDIR: f"Parent directory of file {path} is not a directory",
        errno.ENOSPC: f"No space left on device hosting {path}",
        errno.EACCES: f"No permissions to write to file {path} or its parent directory",
        errno.EISDIR: f"Path {path} is a directory",
    }
    text = known.get(error.errno or 0, f"Could not write to file {path}: {error.strerror}")
    raise CommandError(DATA, text) from None


# --- import ---


def _check_import(call: Call) -> None:
    _check_format(call)
    for path in call.arguments:
        if not Path(path).exists():
            bad_argument(f"File {path} does not exist")


def _import(call: Call) -> Answer:
    if call.arguments:
        source = call.arguments[0]
        document = _read(Path(source))
        if not document:
            raise CommandError(DATA, f"File {source} is zero-sized")
    else:
        source = "standard input"
        document = call.stdin.buffer.read()
    _must_be_object(document)
    call.gate.send(
        "import_definitions",
        document,
        source=source,
        skip_if_unchanged=bool(call.options.get("skip-if-unchanged")),
    )
    if call.json:
        return None
    return NoOutput() if call.terse else Text(_STARTED)


def _read(path: Path) -> bytes:
    try:
        return path.absolute().read_bytes()
    except OSError as error:
        known = {
            errno.ENOENT: f"Parent directory or file {path} does not exist",
            errno.ENOTDIR: f"Parent directory of file {path} is not a directory",
            errno.EACCES: f"No permissions to read from file {path} or its parent directory",
            errno.EISDIR: f"Path {path} is a directory",
        }
        text = known.get(error.errno or 0, f"Could not read from file {path}: {error.strerror}")
        raise CommandError(DATA, text) from None


def _must_be_object(document: bytes) -> None:
    """The gate judges it again; here it is about rabbitmqctl's exit codes."""
    try:
        found = json.loads(document)
    except (ValueError, RecursionError) as error:
        reason = inspected(str(error))
        text = f"Failed to deserialise input (format: JSON) (error: {reason})"
        raise CommandError(DATA, text) from None
    if not isinstance(found, dict):
        raise CommandError(SOFTWARE, f"{{:badmap, {inspected(found)}}}\n")


def _import_banner(call: Call) -> str:
    where = f'a file at "{call.arguments[0]}"' if call.arguments else "standard input"
    return f"Importing definitions in JSON from {where} ..."


COMMANDS = (
    Command(
        name="export_definitions",
        section="Definitions",
        usage='export_definitions <file_path | "-"> [--format <json | erlang>]',
        description="Exports definitions in JSON or compressed Erlang Term Format.",
        run=_export,
        least=1,
        most=1,
        check=_check_export,
        switches={"format": str},
        banner=lambda call: (
            None
            if call.arguments[0] == "-"
            else f'Exporting definitions in JSON to a file at "{call.arguments[0]}" ...'
        ),
        timeout=True,
        help=(
            ("<file>", "Local file path to export to. Pass a dash (-) for stdout."),
            ("--format", "output format to use: json or erlang"),
        ),
        guides=("definitions",),
    ),
    Command(
        name="import_definitions",
        section="Definitions",
        usage="import_definitions <file_path> [--format <json | erlang>] [--skip-if-unchanged]",
        description="Imports definitions in JSON or compressed Erlang Term Format.",
        run=_import,
        most=1,
        check=_check_import,
        switches={"format": str, "skip-if-unchanged": bool},
        banner=_import_banner,
        timeout=True,
        help=(
            (
                "[file]",
                "Local file path to import from. If omitted will be read from standard input",
            ),
            ("--format", "input format to use: json or erlang"),
            (
                "--skip-if-unchanged",
                (
                    "Avoids repetitive definition imports when file contents are unchanged. Target "
                    "node must be configured accordingly"
                ),
            ),
        ),
        guides=("definitions",),
    ),
)
