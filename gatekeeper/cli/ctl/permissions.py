"""Permissions and topic permissions."""

from __future__ import annotations

from collections.abc import Callable

from gatekeeper.cli.ctl.client import GateError
from gatekeeper.cli.ctl.command import NO_USER, UNAVAILABLE, Answer, Call, Command, Rows

_ACCESS = "access-control"
_USER = ("<username>", "Self-explanatory")
_PATTERNS = (
    ("<conf>", "Configuration permission pattern"),
    ("<write>", "Write permission pattern"),
    ("<read>", "Read permission pattern"),
)
_MISSING = {
    "no_such_user": (NO_USER, "User {} does not exist"),
    "no_such_vhost": (UNAVAILABLE, "Virtual host {} does not exist"),
    "no_such_exchange": (UNAVAILABLE, "Exchange {} does not exist"),
}


def _ask(call: Call, operation: str, **arguments: object) -> None:
    try:
        call.gate.ask(operation, **arguments)
    except GateError as error:
        if error.kind in _MISSING:
            code, template = _MISSING[error.kind]
            text = template.format(error.details["name"])
            call.failed(code, text, text)
        raise


def _set_permissions(call: Call) -> None:
    user, configure, write, read = call.arguments
    _ask(
        call,
        "set_permissions",
        user=user,
        vhost=call.vhost,
        configure=configure,
        write=write,
        read=read,
    )


def _set_permissions_globally(call: Call) -> None:
    user, configure, write, read = call.arguments
    _ask(call, "set_permissions_globally", user=user, configure=configure, write=write, read=read)


def _clear_permissions(call: Call) -> None:
    _ask(call, "clear_permissions", user=call.arguments[0], vhost=call.vhost)


def _set_topic_permissions(call: Call) -> None:
    user, exchange, write, read = call.arguments
    _ask(
        call,
        "set_topic_permissions",
        user=user,
        vhost=call.vhost,
        exchange=exchange,
        write=write,
        read=read,
    )


def _clear_topic_permissions(call: Call) -> None:
    user, exchange = (*call.arguments, None)[:2]
    _ask(call, "clear_topic_permissions", user=user, vhost=call.vhost, exchange=exchange)


def _topic_banner(call: Call) -> str:
    user, exchange = (*call.arguments, None)[:2]
    where = "" if exchange is None else f'on "{exchange}" '
    return f'Clearing topic permissions {where}for user "{user}" in vhost "{call.vhost}" ...'


def _of_vhost(operation: str) -> Callable[[Call], Answer]:
    return lambda call: Rows(call.gate.rows(operation, vhost=call.vhost))


def _of_user(operation: str) -> Callable[[Call], Answer]:
    return lambda call: Rows(call.gate.rows(operation, user=call.arguments[0]))


COMMANDS = (
    Command(
        name="set_permissions",
        section="Access Control",
        usage="set_permissions [--vhost <vhost>] <username> <conf> <write> <read>",
        description="Sets user permissions for a vhost",
        run=_set_permissions,
        least=4,
        most=4,
        banner=lambda call: (
            f'Setting permissions for user "{call.arguments[0]}" in vhost "{call.vhost}" ...'
        ),
        help=(_USER, *_PATTERNS),
        guides=(_ACCESS, "vhosts"),
    ),
    Command(
        name="set_permissions_globally",
        section="Access Control",
        usage="set_permissions_globally <username> <conf> <write> <read>",
        description="Sets user permissions for all virtual hosts.",
        run=_set_permissions_globally,
        least=4,
        most=4,
        banner=lambda call: (
            f'Setting permissions for user "{call.arguments[0]}" in all virtual hosts ...'
        ),
        help=(_USER, *_PATTERNS),
        guides=(_ACCESS, "vhosts"),
    ),
    Command(
        name="clear_permissions",
        section="Access Control",
        usage="clear_permissions [--vhost <vhost>] <username>",
        description="Revokes user permissions for a vhost",
        run=_clear_permissions,
        least=1,
        most=1,
        banner=lambda call: (
            f'Clearing permissions for user "{call.arguments[0]}" in vhost "{call.vhost}" ...'
        ),
        help=(("<username>", "Name of the user whose permissions should be revoked"),),
        guides=(_ACCESS,),
    ),
    Command(
        name="list_permissions",
        section="Access Control",
        usage="list_permissions [--vhost <vhost>] [--no-table-headers]",
        description="Lists user permissions in a virtual host",
        run=_of_vhost("list_permissions"),
        banner=lambda call: f'Listing permissions for vhost "{call.vhost}" ...',
        formatter="table",
        timeout=True,
        guides=(_ACCESS, "vhosts"),
    ),
    Command(
        name="list_user_permissions",
        section="Access Control",
        usage="list_user_permissions [--no-table-headers] <username>",
        description="Lists permissions of a user across all virtual hosts",
        run=_of_user("list_user_permissions"),
        least=1,
        most=1,
        banner=lambda call: f'Listing permissions for user "{call.arguments[0]}" ...',
        formatter="table",
        timeout=True,
        help=(("<username>", "Name of the user"),),
        guides=(_ACCESS, "vhosts"),
    ),
    Command(
        name="set_topic_permissions",
        section="Access Control",
        usage="set_topic_permissions [--vhost <vhost>] <username> <exchange> <write> <read>",
        description="Sets user topic permissions for an exchange",
        run=_set_topic_permissions,
        least=4,
        most=4,
        banner=lambda call: (
            f'Setting topic permissions on "{call.arguments[1]}" for user '
            f'"{call.arguments[0]}" in vhost "{call.vhost}" ...'
        ),
        help=(
            _USER,
            ("<exchange>", "Topic exchange to set the permissions for"),
            *_PATTERNS[1:],
        ),
        guides=(_ACCESS,),
    ),
    Command(
        name="clear_topic_permissions",
        section="Access Control",
        usage="clear_topic_permissions [--vhost <vhost>] <username> [<exchange>]",
        description="Clears user topic permissions for a vhost or exchange",
        run=_clear_topic_permissions,
        least=1,
        most=2,
        banner=_topic_banner,
        help=(
            ("<username>", "Name of the user whose topic permissions should be revoked"),
            ("<exchange>", "Exchange the permissions are for"),
        ),
        guides=(_ACCESS,),
    ),
    Command(
        name="list_topic_permissions",
        section="Access Control",
        usage="list_topic_permissions [--vhost <vhost>] [--no-table-headers]",
        description="Lists topic permissions in a virtual host",
        run=_of_vhost("list_topic_permissions"),
        banner=lambda call: f'Listing topic permissions for vhost "{call.vhost}" ...',
        formatter="table",
        timeout=True,
        guides=(_ACCESS,),
    ),
    Command(
        name="list_user_topic_permissions",
        section="Access Control",
        usage="list_user_topic_permissions [--no-table-headers] <username>",
        description="Lists user topic permissions",
        run=_of_user("list_user_topic_permissions"),
        least=1,
        most=1,
        banner=lambda call: f'Listing topic permissions for user "{call.arguments[0]}" ...',
        formatter="table",
        headers=False,
        timeout=True,
        help=(("<username>", "Name of the user"),),
        guides=(_ACCESS,),
    ),
)
