"""One call of gatekeeperctl, from its words to its exit code (``rabbitmqctl.ex``).

The order: the command exists, its options are known, ``--help``, the arguments fit, a gate
answers, the banner, the work, the answer. Nothing before "a gate answers" needs one.

A password on the command line is not repeated in messages, unlike rabbitmqctl does: those end up
in the logs of whatever runs the command.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from gatekeeper.cli.ctl.client import Gate, GateError, GateTimeoutError, UnreachableError
from gatekeeper.cli.ctl.command import (
    REFUSED,
    TEMPORARY,
    UNAVAILABLE,
    USAGE,
    ArgumentError,
    Call,
    Command,
    CommandError,
    NoOutput,
    OptionValue,
    Raw,
    Refused,
    told,
)
from gatekeeper.cli.ctl.help import all_usage, base_usage, command_usage, not_found
from gatekeeper.cli.ctl.output import FORMATTERS, MACHINE_READABLE, Style, formatted, to_json
from gatekeeper.cli.ctl.parser import Line, parse
from gatekeeper.cli.ctl.table import COMMANDS
from gatekeeper.errors import OperatorError

SOCKET_VARIABLE = "GATEKEEPER_CONTROL_SOCKET"
CONFIG_VARIABLE = "GATEKEEPER_CONFIG_FILE"
CONFIG = Path("/etc/gatekeeper/gatekeeper.conf")
HIDDEN = "***"


class Exit(Exception):  # noqa: N818 - not always an error
    """The end. text: for standard output where the code is 0, else for standard error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


def run(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """The exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # Names are bytes: what is no UTF-8 goes through as it is.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        _run(words, environ)
    except Exit as end:
        if end.text:
            _print(end.text, sys.stderr if end.code else sys.stdout)
        return end.code
    except BrokenPipeError:
        _unheard()
        return 0
    except KeyboardInterrupt:
        return 130
    return 0


def _run(words: Sequence[str], environ: Mapping[str, str]) -> None:
    if list(words) == ["--help"]:
        raise Exit(0, all_usage(COMMANDS))
    if words and words[0] in {"--version", "--auto-complete"}:
        words = [words[0].strip("-").replace("-", ""), *words[1:]]
    command = _command(words)
    line = parse(words, command.switches, command.aliases)
    if line.wrong:
        shown = (f"{name} : {_wrong(command, value)}" for _, name, value in line.wrong)
        text = "Invalid options for this command:\n" + "\n".join(shown)
        raise _argument_error(command, line, ArgumentError(text))
    if line.options.get("help"):
        raise Exit(0, command_usage(command))
    call = _call(command, line, environ)
    try:
        _check(command, call)
    except ArgumentError as error:
        raise _argument_error(command, line, error) from None
    try:
        _carry_out(command, call)
    except GateError as error:
        raise _failure(told(error), call) from None
    except CommandError as error:
        raise _failure(error, call) from None
    except UnreachableError as error:
        raise Exit(UNAVAILABLE, _unreachable(call.node, str(error))) from None
    except GateTimeoutError:
        raise Exit(
            TEMPORARY,
            f"Error: operation {command.name} on node {call.node} timed out. "
            f"Timeout value used: {call.number('timeout', 0) * 1000}",
        ) from None


def _command(words: Sequence[str]) -> Command:
    arguments = parse(words, {}, {}).arguments
    if not arguments:
        raise Exit(USAGE, all_usage(COMMANDS))
    name = arguments[0][1]
    command = COMMANDS.get(name)
    if command is None:
        raise Exit(USAGE, not_found(name, COMMANDS))
    return command


def _call(command: Command, line: Line, environ: Mapping[str, str]) -> Call:
    arguments = [word for _, word in line.arguments[1:]]
    options: dict[str, OptionValue] = dict(line.options)
    chosen = options.get("formatter")
    if chosen not in FORMATTERS:
        options["formatter"] = command.formatter  # as rabbitmqctl 4.x does with unknown ones
    if command.columns:
        arguments = _columns(arguments) or list(command.default)
    timeout = options.get("timeout")
    seconds = float(timeout) if isinstance(timeout, int) and timeout > 0 else None
    call = Call(
        arguments=arguments,
        options=options,
        chosen_formatter=None if chosen is None else str(chosen),
        stdin=sys.stdin,
        prompt=lambda text: None,
        gate=Gate(partial(_socket, options, environ), seconds),
        node=f"gatekeeper@{socket.gethostname().partition('.')[0]}",
    )
    call.prompt = lambda text: _prompted(text, quiet=call.terse)
    return call


def _columns(arguments: Sequence[str]) -> list[str]:
    pieces = (piece.strip() for word in arguments for piece in word.split(",") if piece)
    return list(dict.fromkeys(pieces))


def _check(command: Command, call: Call) -> None:
    """Raises ArgumentError."""
    count = len(call.arguments)
    if command.columns:
        if unknown := [name for name in call.arguments if name not in command.columns]:
            raise ArgumentError(f"Info key(s) {','.join(unknown)} are not supported")
        return
    if count < command.least:
        raise ArgumentError("not enough arguments.")
    if command.most is not None and count > command.most:
        raise ArgumentError("too many arguments.")
    if command.check is not None:
        command.check(call)


def _carry_out(command: Command, call: Call) -> None:
    if not command.offline:
        greeting = call.gate.ask("ping")
        if isinstance(greeting, dict):
            call.node = str(greeting["node"])
    machine = call.chosen_formatter in MACHINE_READABLE
    banner = None if call.terse or machine else command.banner(call)
    if banner is not None:
        _say(banner)
    if call.options.get("dry-run"):
        return
    answer = command.run(call)
    if isinstance(answer, NoOutput):
        return
    headers = bool(call.options.get("table-headers", command.headers))
    style = Style(
        str(call.options["formatter"]), headers and not call.options.get("silent"), call.node
    )
    code = 0
    if isinstance(answer, Refused):
        code, answer = REFUSED, answer.answer
    try:
        for piece in formatted(answer, style):
            sys.stdout.write(piece if isinstance(answer, Raw) else f"{piece}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _unheard()
    if code:
        raise Exit(code, "")


# --- where the gate is ---


def _socket(options: Mapping[str, OptionValue], environ: Mapping[str, str]) -> Path:
    """The control socket's path. Raises UnreachableError where nothing tells it."""
    given, config = options.get("socket"), options.get("config")
    if given is None and config is None:
        given, config = environ.get(SOCKET_VARIABLE), environ.get(CONFIG_VARIABLE)
    if given:
        return Path(str(given))
    path = Path(str(config or CONFIG))
    if not path.exists():
        raise UnreachableError(
            f"{path}: no such file; say where the gate's configuration is (--config FILE, or "
            f"{CONFIG_VARIABLE}), or its control socket (--socket PATH)"
        )
    # Costs as much as all the rest together, and is not needed with --socket.
    from gatekeeper.config.load import load_settings  # noqa: PLC0415

    try:
        found = load_settings(path, environ).control.socket
    except OperatorError as error:
        raise UnreachableError(str(error)) from None
    if found is None:
        raise UnreachableError(f"{path}: control.socket: this gate has no control socket")
    return found


def _unreachable(node: str, reason: str) -> str:
    return (
        f"Error: unable to perform an operation on node '{node}'. Please see diagnostics "
        "information and suggestions below.\n\n"
        "Most common reasons for this are:\n\n"
        " * The gate is not running\n"
        " * It has another control.socket than the configuration that was read here\n"
        " * This user may not use the socket: it is for root and the gate's own user\n\n"
        "DIAGNOSTICS\n===========\n\n"
        f"attempted to contact: [{node}]\n\n"
        f"{reason}\n"
    )


# --- errors ---


def _argument_error(command: Command, line: Line, error: ArgumentError) -> Exit:
    words = list(line.words)
    if command.secret_from is not None:
        for at, _ in line.arguments[1 + command.secret_from :]:
            words[at] = HIDDEN
        for at, name, value in line.wrong:
            words[at] = f"{name}={HIDDEN}" if value else name
    text = f"Error (argument validation): {error}\nArguments given:\n\t{' '.join(words)}\n"
    return Exit(error.code, text + base_usage(command))


def _wrong(command: Command, value: str) -> str:
    return HIDDEN if value and command.secret_from is not None else value


def _failure(error: CommandError, call: Call) -> Exit:
    if call.json and error.document is not None:
        return Exit(error.code, to_json(error.document))
    return Exit(error.code, error.text if error.bare else f"Error:\n{error.text}")


# --- text in and out ---


def _print(text: str, stream: TextIO) -> None:
    stream.write(f"{text}\n")


def _say(text: str) -> None:
    """What goes before the work. That nobody reads it does not keep the work from being done."""
    try:
        _print(text, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        _unheard()


def _unheard() -> None:
    """Whoever reads has seen enough; Python would complain again when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prompted(text: str, *, quiet: bool) -> str | None:
    """A line of standard input, without blanks around it; None at its end.

    On a terminal what is typed is not shown.
    """
    if sys.stdin.isatty():
        with contextlib.suppress(EOFError):
            return getpass.getpass("" if quiet else text).strip()
        return None
    if not quiet:
        _say(text)
    line = sys.stdin.readline()
    return line.strip() if line else None
