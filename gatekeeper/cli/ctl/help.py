"""Usage and help texts (``help_command.ex``), and names that come close to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from gatekeeper.cli.ctl.command import Command

TOOL = "gatekeeperctl"
_LIKE = 0.77
"""How like a command must be to be suggested."""
_GUIDES = "https://www.rabbitmq.com/docs/"
SECTIONS = (
    "Help",
    "Nodes",
    "Users",
    "Access Control",
    "Monitoring, observability and health checks",
    "Parameters",
    "Virtual hosts",
    "Configuration and Environment",
    "Definitions",
    "Operations",
    "Caches",
)
"""In the order of the list of commands."""

_GENERAL = """\
The following options are accepted by most or all commands.

short            | long          | description
-----------------|---------------|--------------------------------
-?               | --help        | displays command help
                 | --socket      | control socket of the gate
                 | --config      | configuration of the gate, which tells where the socket is;
                 |               | without both: $GATEKEEPER_CONTROL_SOCKET, else
                 |               | $GATEKEEPER_CONFIG_FILE, else
                 |               | /etc/gatekeeper/gatekeeper.conf
-n <node>        | --node <node> | accepted, without effect
-l               | --longnames   | accepted, without effect
-t               | --timeout <n> | for commands that support it, operation timeout in seconds
-q               | --quiet       | suppress informational messages
-s               | --silent      | suppress informational messages
                                 | and table header row
-p               | --vhost       | for commands that are scoped to a virtual host,
                 |               | virtual host to use
                 | --formatter   | alternative result formatter to use
                                 | if supported: json, pretty_table, table, csv, erlang
                                   not all commands support all (or any) alternative formatters."""


def bright(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m"


def base_usage(command: Command) -> str:
    timeout = " [--timeout <timeout>]" if command.timeout else ""
    return (
        f"\n{bright('Usage')}\n\n"
        f"{TOOL} [--node <node>] [--longnames] [--quiet] {command.usage}{timeout}"
    )


def command_usage(command: Command) -> str:
    parts = [base_usage(command), f"{command.description}.\n"]
    if command.help:
        options = "\n".join(f"{option}\n\t{text}\n" for option, text in command.help)
        parts.append(f"{bright('Arguments and Options')}\n\n{options}")
    if command.guides:
        guides = "\n".join(f" * {_GUIDES}{guide}\n" for guide in command.guides)
        parts.append(f"{bright('Relevant Doc Guides')}\n\n{guides}")
    parts.append(f"{bright('General Options')}\n\n{_GENERAL}")
    return "\n\n".join(parts) + "\n"


def all_usage(commands: Mapping[str, Command]) -> str:
    return (
        f"\n{bright('Usage')}\n\n"
        f"{TOOL} [--node <node>] [--timeout <timeout>] [--longnames] [--quiet] <command> "
        "[<command options>]\n\nAvailable commands:\n"
        f"{described(commands)}\n"
        f"Use '{TOOL} help <command>' to learn more about a specific command"
    )


def described(commands: Mapping[str, Command]) -> str:
    """Every command with its sentence, section by section."""
    return "".join(_sections(commands))


def _sections(commands: Mapping[str, Command]) -> Iterator[str]:
    width = max(map(len, commands))
    for section in SECTIONS:
        yield f"\n{bright(section)}:\n\n"
        for name, command in sorted(commands.items()):
            if command.section == section:
                yield f"   {name.ljust(width)}  {command.description}\n"


def not_found(name: str, commands: Mapping[str, Command]) -> str:
    near = difflib.get_close_matches(name, commands, 1, _LIKE)
    text = f"\nCommand '{name}' not found. \n"
    return text + (f"Did you mean '{near[0]}'? \n" if near else all_usage(commands))
