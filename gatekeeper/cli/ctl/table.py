"""Every command by its name, with the few that are about commands themselves."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gatekeeper.cli.ctl import (
    connections,
    definitions,
    explain,
    gate,
    limits,
    permissions,
    secrets,
    users,
    vhosts,
)
from gatekeeper.cli.ctl.command import (
    USAGE,
    Answer,
    Call,
    Command,
    CommandError,
    Raw,
    bad_argument,
)
from gatekeeper.cli.ctl.completion import SCRIPTS, candidates
from gatekeeper.cli.ctl.help import all_usage, command_usage, described, not_found


def _help(call: Call) -> Answer:
    if call.options.get("list-commands"):
        return Raw(iter((described(COMMANDS),)))
    if not call.arguments:
        return Raw(iter((all_usage(COMMANDS), "\n")))
    name = call.arguments[0]
    command = COMMANDS.get(name)
    if command is None:
        raise CommandError(USAGE, not_found(name, COMMANDS), bare=True)
    return Raw(iter((command_usage(command), "\n")))


def _autocomplete(call: Call) -> Answer:
    return Raw(f"{word}\n" for word in candidates(call.arguments, COMMANDS))


def _check_shell(call: Call) -> None:
    if call.arguments[0] not in SCRIPTS:
        bad_argument(f"the shell must be one of {', '.join(SCRIPTS)}")


def _completion(call: Call) -> Answer:
    return Raw(iter((SCRIPTS[call.arguments[0]],)))


_OWN = (
    Command(
        name="help",
        section="Help",
        usage="help (<command> | [--list-commands])",
        description="Displays usage information for a command",
        run=_help,
        most=1,
        switches={"list-commands": bool},
        offline=True,
        help=(("--list-commands", "only output a list of discovered commands"),),
    ),
    Command(
        name="autocomplete",
        section="Help",
        usage="autocomplete [prefix]",
        description="Provides command name autocomplete variants",
        run=_autocomplete,
        most=None,
        offline=True,
        guides=("cli",),
    ),
    Command(
        name="completion",
        section="Help",
        usage="completion <bash | zsh | fish>",
        description="Prints the completion script of a shell, to be sourced by it",
        run=_completion,
        least=1,
        most=1,
        check=_check_shell,
        offline=True,
    ),
)

COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        command.name: command
        for family in (
            _OWN,
            users.COMMANDS,
            vhosts.COMMANDS,
            permissions.COMMANDS,
            limits.COMMANDS,
            connections.COMMANDS,
            definitions.COMMANDS,
            gate.COMMANDS,
            secrets.COMMANDS,
            explain.COMMANDS,
        )
        for command in family
    }
)
