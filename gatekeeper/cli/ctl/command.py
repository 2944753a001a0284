"""What a command is: a row of the table, what it is given, what it answers, how it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TextIO

from gatekeeper.cli.ctl.client import Gate, GateError
from gatekeeper.cli.ctl.terms import inspected

USAGE, DATA, NO_USER, UNAVAILABLE, SOFTWARE, TEMPORARY = 64, 65, 67, 69, 70, 75
REFUSED = 2
"""Exit codes (rabbitmqctl's ``core/exit_codes.ex``, after BSD's sysexits)."""

Row = Mapping[str, object]
OptionValue = str | int | bool


class CommandError(Exception):
    """The end of a call: an exit code, and what goes to standard error.

    text: behind a line ``Error:`` unless ``bare``. document: instead of it, in JSON format.
    """

    def __init__(
        self, code: int, text: str, *, bare: bool = False, document: Row | None = None
    ) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.bare = bare
        self.document = document


class ArgumentError(Exception):
    """The command line is wrong; the usage is shown with it. code: USAGE or DATA."""

    def __init__(self, text: str, code: int = USAGE) -> None:
        super().__init__(text)
        self.code = code


def bad_argument(text: str) -> NoReturn:
    raise ArgumentError(f"Bad argument: {text}", DATA)


# --- answers; None is "done, and nothing to say" ---


@dataclass(frozen=True, slots=True)
class Text:
    """A sentence. In JSON format: ``{"message": ...}``."""

    text: str


@dataclass(frozen=True, slots=True)
class Value:
    """What was asked for. In JSON format: ``{"result": "ok", "value": ...}``."""

    value: object


@dataclass(frozen=True, slots=True)
class Document:
    """An object for JSON format, and what else is printed."""

    document: Row
    text: str


@dataclass(frozen=True, slots=True)
class Rows:
    """A listing. streamed: one that prints nothing where there is nothing (else an empty line)."""

    rows: Iterable[Row]
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """Pieces of text to be printed as they are, in every format."""

    pieces: Iterator[str]


class NoOutput:
    """Not even in JSON format."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer all the same, with exit code REFUSED."""

    answer: Document


Answer = Text | Value | Document | Rows | Raw | NoOutput | Refused | None


# --- a call ---


@dataclass(slots=True)
class Call:
    """options: by name; ``formatter`` is always there, ``chosen_formatter`` only if it was given.
    gate: answers when it is asked. node: its name."""

    arguments: Sequence[str]
    options: Mapping[str, OptionValue]
    chosen_formatter: str | None
    stdin: TextIO
    prompt: Callable[[str], str | None]
    gate: Gate
    node: str

    @property
    def vhost(self) -> str:
        return str(self.options.get("vhost", "/"))

    @property
    def json(self) -> bool:
        return self.options.get("formatter") == "json"

    @property
    def terse(self) -> bool:
        return bool(self.options.get("quiet") or self.options.get("silent"))

    def text(self, option: str) -> str | None:
        value = self.options.get(option)
        return None if value is None else str(value)

    def number(self, option: str, default: int) -> int:
        value = self.options.get(option)
        return value if isinstance(value, int) else default

    def failed(self, code: int, text: str, message: str) -> NoReturn:
        """text: in words; message: what JSON format says instead, with exit code 69."""
        if self.json:
            document = {"result": "error", "node": self.node, "message": message}
            raise CommandError(UNAVAILABLE, text, document=document)
        raise CommandError(code, text)


Banner = Callable[[Call], str | None]


def no_banner(_call: Call) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A row of the table.

    least, most: positional arguments; most None: any number.
    switches: its own options and their types. aliases: one letter to an option's name.
    columns: the arguments are columns, of these; ``default`` where none is given.
    secret_from: the position of the first argument that must not be repeated in a message.
    headers: whether a table has a header line by default. timeout: shown in the usage line.
    offline: it needs no gate.
    """

    name: str
    section: str
    usage: str
    description: str
    run: Callable[[Call], Answer]
    least: int = 0
    most: int | None = 0
    banner: Banner = no_banner
    check: Callable[[Call], None] | None = None
    help: Sequence[tuple[str, str]] = ()
    guides: Sequence[str] = ()
    switches: Mapping[str, type] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    columns: Sequence[str] = ()
    default: Sequence[str] = ()
    formatter: str = "string"
    headers: bool = True
    timeout: bool = False
    secret_from: int | None = None
    offline: bool = False


def told(error: GateError) -> CommandError:
    """What an error of the gate is where a command has no words of its own."""
    details = error.details
    match error.kind:
        case "no_such_vhost":
            text = f"Virtual host '{details['name']}' does not exist"
            return CommandError(DATA, text, bare=True)
        case "no_such_user":
            text = f"{{:no_such_user, {inspected(str(details['name']))}}}"
        case "invalid_pattern":
            reason = f"{{~c{inspected(str(details['reason']))}, {details['offset']}}}"
            text = f"{{:invalid_regexp, {inspected(str(details['pattern']))}, {reason}}}"
        case "invalid_pid":
            # rabbitmqctl handles this one twice.
            text = f"Error:\n{{:invalid_pid_syntax, {inspected(str(details['pid']))}}}"
        case _:
            text = error.message
    return CommandError(UNAVAILABLE, text)
