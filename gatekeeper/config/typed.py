"""From texts to typed values, by the key table: every error of the files at once.

Strategy: go through the document once. Each key is supported (convert it), refused (an error
that says what to do), known to RabbitMQ (one warning for all of them) or unknown (an error with
the nearest names). Secrets come last, because the passphrase of ``encrypted:`` values is itself
a setting. A message shows a value only as it stands in the file and never that of a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from gatekeeper.config.conf import Key, format_key, parse_key
from gatekeeper.config.datatypes import BadValueError
from gatekeeper.config.encrypted import TAG, Decoder, DecryptionError
from gatekeeper.config.known import KnownKeys, nearest, refusal
from gatekeeper.config.schema import BY_PATTERN, KEYS, find
from gatekeeper.config.sources import Document, Value
from gatekeeper.config.spec import KeySpec, matches
from gatekeeper.errors import ConfigError
from gatekeeper.model import Secret

T = TypeVar("T")

_SHOWN = 60
_PASSPHRASE: Key = ("config_entry_decoder", "passphrase")


class Problems:
    """Errors that are reported together, one line each."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, place: str, text: str) -> None:
        """place: where; text: what is wrong and what to do."""
        self._lines.append(f"{place}: {text}")

    def raise_if_any(self) -> None:
        """Raises ConfigError with all of them."""
        if self._lines:
            raise ConfigError("\n".join(self._lines))


@dataclass(frozen=True, slots=True)
class Typed:
    """The values of a document by key, with the defaults of the table behind them.

    places: where each key is set, for messages; main: the place of what is set nowhere.
    """

    main: str
    values: Mapping[Key, object] = field(repr=False)
    places: Mapping[Key, str]
    warnings: tuple[str, ...]

    def is_set(self, pattern: str, *free: str) -> bool:
        """Is this one key set? ``free`` fills the pattern's free words."""
        return _fill(pattern, free) in self.values

    def place(self, pattern: str, *free: str) -> str:
        """Where the key is set, or the main file and the key's name."""
        key = _fill(pattern, free)
        return self.places.get(key, f"{self.main}: {format_key(key)}")

    def optional(self, pattern: str, kind: type[T], *free: str) -> T | None:
        """The value or the default; None where there is neither."""
        key = _fill(pattern, free)
        if key in self.values:
            return _as(kind, self.values[key], pattern)
        return next(iter(_defaults(pattern, kind).values()), None)

    def one(self, pattern: str, kind: type[T], *free: str) -> T:
        """The value or the default of a key that has one."""
        value = self.optional(pattern, kind, *free)
        if value is None:
            raise LookupError(f"{pattern} has no default")
        return value

    def many(self, pattern: str, kind: type[T], *free: str) -> dict[str, T]:
        """The values of a pattern's last free word, in file order, or the defaults.

        free: the free words before the last one.
        """
        words = BY_PATTERN[pattern].words
        last = max(at for at, word in enumerate(words) if word.startswith("$"))
        head = _fill(".".join(words[:last]), free)
        found = {
            key[last]: _as(kind, value, pattern)
            for key, value in self.values.items()
            if matches(words, key) and key[:last] == head
        }
        return found or _defaults(pattern, kind)

    def names(self, first: str) -> tuple[str, ...]:
        """The second words of all keys that start with this word, in file order."""
        return tuple(dict.fromkeys(key[1] for key in self.values if key[0] == first))


def check(document: Document) -> Typed:
    """Convert every value of the document.

    Raises ConfigError with one line for every wrong value, refused or unknown key.
    """
    problems = Problems()
    ignored: list[str] = []
    known = KnownKeys()
    values: dict[Key, object] = {}
    secrets: list[Value] = []
    for key, value in document.values.items():
        spec = find(key)
        if spec is None:
            _unsupported(value, known, ignored, problems)
        elif spec.type.secret:
            secrets.append(value)
        else:
            try:
                values[key] = spec.type.convert(value.text)
            except BadValueError as error:
                shown = "the value" if spec.type.hidden else _shown(value.written)
                problems.add(value.place, f"{shown} does not fit: {error}")
    _secrets(secrets, values, problems)
    problems.raise_if_any()
    warnings = list(document.warnings)
    if ignored:
        warnings.append("these RabbitMQ settings have no effect in the gate: " + ", ".join(ignored))
    # In the order of the document, which some settings depend on.
    ordered = {key: values[key] for key in document.values if key in values}
    places = {key: document.values[key].place for key in ordered}
    return Typed(document.main, ordered, places, tuple(warnings))


def _unsupported(value: Value, known: KnownKeys, ignored: list[str], problems: Problems) -> None:
    key = value.key
    rule = refusal(key)
    if rule is not None:
        if value.text not in rule.harmless:
            problems.add(value.place, rule.reason)
    elif key in known:
        ignored.append(format_key(key))
    else:
        close = nearest(key, tuple(spec.words for spec in KEYS)) or nearest(key, known.patterns())
        meant = f"did you mean {' or '.join(close)}?" if close else "check its spelling"
        problems.add(value.place, f"there is no such setting; {meant}")


def _secrets(secrets: list[Value], values: dict[Key, object], problems: Problems) -> None:
    """Wrap and decrypt; ``values`` holds the decoder's other settings already."""
    decoder = Decoder(
        cipher=_decoder_setting(values, "cipher", str),
        hash=_decoder_setting(values, "hash", str),
        iterations=_decoder_setting(values, "iterations", int),
        passphrase=next((Secret(v.text.encode()) for v in secrets if v.key == _PASSPHRASE), None),
    )
    for value in secrets:
        encoded = value.text.removeprefix(TAG)
        if encoded == value.text:
            # RabbitMQ takes any WORD: as a tag and so breaks passwords with a colon; only
            # this one tag has a meaning.
            values[value.key] = Secret(value.text.encode())
        elif value.key == _PASSPHRASE:
            problems.add(value.place, "the passphrase cannot be encrypted itself; use $(<file)")
        else:
            try:
                values[value.key] = decoder.decrypt(encoded)
            except DecryptionError as error:
                problems.add(value.place, str(error))


def _decoder_setting(values: Mapping[Key, object], name: str, kind: type[T]) -> T:
    pattern = f"config_entry_decoder.{name}"
    if (key := _fill(pattern, ())) in values:
        return _as(kind, values[key], pattern)
    return next(iter(_defaults(pattern, kind).values()))


def _defaults(pattern: str, kind: type[T]) -> dict[str, T]:
    """The table's defaults by their last free word ('' where there is none), converted."""
    spec = BY_PATTERN[pattern]
    last = max((at for at, word in enumerate(spec.words) if word.startswith("$")), default=-1)
    found: dict[str, T] = {}
    for written, text in spec.default.items():
        key = parse_key(written) or ()
        found[key[last] if last >= 0 else ""] = _as(kind, _converted(spec, text), pattern)
    return found


def _converted(spec: KeySpec, text: str) -> object:
    return Secret(text.encode()) if spec.type.secret else spec.type.convert(text)


def _fill(pattern: str, free: tuple[str, ...]) -> Key:
    rest = iter(free)
    return tuple(next(rest) if word.startswith("$") else word for word in pattern.split("."))


def _as(kind: type[T], value: object, pattern: str) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"the type of {pattern} does not give {kind.__name__}")
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
