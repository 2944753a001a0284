"""From files to one set of values: includes, ``$(<file)``, last wins, ``$(NAME)``.

Strategy: splice every file into one list in the order RabbitMQ reads it, keep the last value
of each key at the place of its first, then substitute. The only module of this room that
reads configuration files. Everything it reads is bounded, because a path may name a device.

Rules: cuttlefish ``cuttlefish_conf`` (includes and file values, relative to the file that
holds them) and ``cuttlefish_generator`` (substitution: another key first, then the
environment). Unlike there, a value of the environment is taken literally, so a generated
password may hold ``$(``.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gatekeeper.config.conf import Include, Key, Origin, Setting, format_key, parse, parse_key
from gatekeeper.errors import ConfigError

_FILE_LIMIT = 16 * 1024 * 1024
_VALUE_LIMIT = 64 * 1024
_FILES_LIMIT = 1000
_DEPTH_LIMIT = 50

_FILE_VALUE = re.compile(r"\$\(<(.*)\)", re.DOTALL)
_REFERENCE = re.compile(r"\$\(([^)]*)\)")


@dataclass(frozen=True, slots=True)
class Value:
    """What a key is set to.

    text: after substitution.
    written: as it stands in the file, which is what a message may show: a substituted text can
        hold a secret of another place.
    """

    key: Key
    text: str = field(repr=False)
    written: str = field(repr=False)
    origin: Origin

    @property
    def place(self) -> str:
        """Where the value stands and what it is called, for the head of a message."""
        return f"{self.origin}: {format_key(self.key)}"


@dataclass(frozen=True, slots=True)
class Document:
    """All values, one per key, in the order of their first appearance.

    main: the first file, where a missing setting belongs.
    """

    main: str
    values: Mapping[Key, Value]
    warnings: tuple[str, ...] = ()


def read(files: Sequence[Path], environ: Mapping[str, str]) -> Document:
    """Read the files in this order (at least one).

    Raises ConfigError: a file cannot be read or is not UTF-8, the syntax is wrong, includes or
    substitutions go round in circles, a name to substitute is missing. Substitution errors are
    reported together, one line each.
    """
    reader = _Reader()
    merged: dict[Key, Setting] = {}
    for file in files:
        for setting in reader.settings(file, ()):
            merged[setting.key] = setting
    texts = {key: _file_value(setting) for key, setting in merged.items()}
    substitution = _Substitution(texts, environ)
    values: dict[Key, Value] = {}
    problems: list[str] = []
    for key, setting in merged.items():
        try:
            text = substitution.expand(key)
        except _SubstitutionError as error:
            problems.append(f"{setting.origin}: {format_key(key)}: {error}")
        else:
            values[key] = Value(key, text, setting.text, setting.origin)
    if problems:
        raise ConfigError("\n".join(problems))
    return Document(str(files[0]), values, tuple(reader.warnings))


class _Reader:
    """Reads files and follows includes."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._files = 0

    def settings(self, file: Path, parents: tuple[Path, ...], place: str = "") -> Iterator[Setting]:
        """The settings of a file, with the included ones at the place of their include.

        parents: the files that led here, outermost first.
        place: the include that named the file, for messages.
        """
        resolved = file.resolve()
        if resolved in parents:
            raise ConfigError(f"{place}: {file} includes itself; remove one of the includes")
        self._files += 1
        if self._files > _FILES_LIMIT:
            raise ConfigError(f"{place}: more than {_FILES_LIMIT} files; remove some includes")
        for entry in parse(read_text(file, place, _FILE_LIMIT), str(file)):
            if isinstance(entry, Setting):
                yield entry
                continue
            at = f"{entry.origin}: include {entry.path}"
            for included in self._matches(entry, file.parent, at):
                yield from self.settings(included, (*parents, resolved), at)

    def _matches(self, include: Include, base: Path, at: str) -> list[Path]:
        *folder, last = include.path.rsplit("/", 1)
        if any("*" in part for part in folder):
            raise ConfigError(f"{at}: '*' may only stand after the last '/'")
        pattern = f"{glob.escape(str(base))}/{include.path}"
        if include.path.startswith("/"):
            pattern = include.path
        found = [Path(name) for name in sorted(glob.glob(pattern))]  # noqa: PTH207  (keeps ..)
        if not found:
            # RabbitMQ says nothing, but a mistyped path would drop restrictions unseen.
            self.warnings.append(f"{at}: no such file; check the path")
        return [path for path in found if "*" not in last or path.is_file()]


def read_text(file: Path, place: str, limit: int) -> str:
    """A whole file. place: what named it, for messages. limit: bytes. Raises ConfigError."""
    prefix = f"{place}: " if place else ""
    try:
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise ConfigError(
            f"{prefix}cannot read {str(file)!r}: {reason}; check the path and its permissions"
        ) from None
    if len(data) > limit:
        raise ConfigError(
            f"{prefix}{str(file)!r} is longer than {limit} bytes; is it the right one?"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{prefix}{str(file)!r} is not UTF-8 at line {line}; convert it to UTF-8"
        ) from None


def _file_value(setting: Setting) -> str:
    """The setting's text, or the contents of the file it names without the last newline."""
    named = _FILE_VALUE.fullmatch(setting.text)
    if named is None:
        return setting.text
    file = Path(setting.origin.file).parent / named[1].strip()
    place = f"{setting.origin}: {format_key(setting.key)}"
    return read_text(file, place, _VALUE_LIMIT).removesuffix("\n").removesuffix("\r")


class _SubstitutionError(Exception):
    """The message is a problem and its remedy, without place and without any value."""


class _Substitution:
    """Expands ``$(NAME)``; each key once, so that shared references cost nothing twice."""

    def __init__(self, texts: Mapping[Key, str], environ: Mapping[str, str]) -> None:
        self._texts = texts
        self._environ = environ
        self._done: dict[Key, str] = {}

    def expand(self, key: Key, path: tuple[Key, ...] = ()) -> str:
        if key in self._done:
            return self._done[key]
        if key in path:
            circle = " -> ".join(format_key(k) for k in (*path[path.index(key) :], key))
            raise _SubstitutionError(f"$(...) goes round in a circle: {circle}; break it")
        if len(path) >= _DEPTH_LIMIT:
            raise _SubstitutionError(f"$(...) is nested deeper than {_DEPTH_LIMIT}; flatten it")
        pieces: list[str] = []
        length = at = 0
        text = self._texts[key]
        for reference in _REFERENCE.finditer(text):
            pieces += text[at : reference.start()], self._lookup(reference[1], (*path, key))
            at = reference.end()
            length += len(pieces[-1])
            if length > _VALUE_LIMIT:
                raise _SubstitutionError(f"$(...) gives more than {_VALUE_LIMIT} characters")
        self._done[key] = expanded = "".join((*pieces, text[at:]))
        return expanded

    def _lookup(self, written: str, path: tuple[Key, ...]) -> str:
        name = written.strip()
        key = parse_key(name)
        if key is not None and key in self._texts:
            return self.expand(key, path)
        value = self._environ.get(name)
        if value is None:
            raise _SubstitutionError(
                f"$({_shorten(name)}): no setting and no environment variable has this name;"
                " set one of them"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _SubstitutionError(
                f"$({_shorten(name)}): the environment variable is not UTF-8; convert it"
            ) from None
        return value


def _shorten(name: str) -> str:
    # Not more: after a lost ')' the name can run on into text that was meant as a password.
    return name if re.fullmatch(r"[\w.\\-]{1,100}", name) else "?"
