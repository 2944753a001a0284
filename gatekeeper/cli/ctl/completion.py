"""Completion of commands and options, and the few lines that each shell needs for it.

The shells ask ``gatekeeperctl autocomplete``, so that they know whatever this version knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gatekeeper.cli.ctl.command import Command
from gatekeeper.cli.ctl.help import TOOL
from gatekeeper.cli.ctl.parser import SWITCHES, parse

SCRIPTS: Mapping[str, str] = {
    "bash": f"""\
_{TOOL}() {{
    mapfile -t COMPREPLY < <({TOOL} autocomplete -- "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2>/dev/null)
}}
complete -o default -F _{TOOL} {TOOL}
""",
    "zsh": f"""\
#compdef {TOOL}
_{TOOL}() {{
    local -a found
    found=(${{(f)"$({TOOL} autocomplete -- "${{words[@]:1:$((CURRENT-1))}}" 2>/dev/null)"}})
    (( $#found )) && compadd -a found || _files
}}
compdef _{TOOL} {TOOL}
""",
    "fish": f"""\
function __{TOOL}
    set --local words (commandline --tokenize --cut-at-cursor) (commandline --current-token)
    {TOOL} autocomplete -- $words[2..] 2>/dev/null
end
complete --command {TOOL} --arguments '(__{TOOL})'
""",
}


def candidates(words: Sequence[str], commands: Mapping[str, Command]) -> Iterator[str]:
    """What the last of these words may become, in order."""
    last = words[-1] if words else ""
    before = [word for _, word in parse(words[:-1], {}, {}).arguments]
    command = commands.get(before[0]) if before else None
    if last.startswith("-"):
        own: Mapping[str, type] = {} if command is None else command.switches
        known = [f"--{name}" for name in {**SWITCHES, **own}]
    elif command is None:
        known = [] if before else list(commands)
    elif command.name == "help":
        known = list(commands)
    else:
        known = list(command.columns)
    return (word for word in sorted(known) if word.startswith(last))
