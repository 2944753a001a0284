"""Limits of users and virtual hosts, and global parameters."""

from __future__ import annotations

import json
from collections.abc import Callable

from gatekeeper.cli.ctl.client import GateError
from gatekeeper.cli.ctl.command import (
    UNAVAILABLE,
    Answer,
    Call,
    Command,
    CommandError,
    Rows,
    Text,
    Value,
)
from gatekeeper.cli.ctl.terms import erlang


def _json(text: str) -> object:
    """What the argument means as JSON, strictly; CommandError in rabbitmqctl's words."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        reason = f"{{error,{{failed_to_decode_json,{erlang(text)}}}}}"
        raise CommandError(UNAVAILABLE, f"Could not parse JSON document: {reason}") from None


def _no_constant(name: str) -> object:
    raise ValueError(name)


def _set_user_limits(call: Call) -> None:
    user, definition = call.arguments
    call.gate.ask("set_user_limits", user=user, limits=_json(definition))


def _clear_user_limits(call: Call) -> None:
    user, limit = call.arguments
    call.gate.ask("clear_user_limits", user=user, limit=limit)


def _clear_banner(call: Call) -> str:
    user, limit = call.arguments
    what = "all limits" if limit == "all" else f'"{limit}" limit'
    return f'Clearing {what} for user "{user}" ...'


def _user(call: Call) -> str:
    return call.text("user") or "guest"


def _list_user_limits(call: Call) -> Answer:
    if call.options.get("global"):
        return Rows(call.gate.rows("list_user_limits"))
    return Text(str(call.gate.ask("user_limits", user=_user(call))))


def _set_vhost_limits(call: Call) -> None:
    try:
        call.gate.ask("set_vhost_limits", vhost=call.vhost, limits=_json(call.arguments[0]))
    except GateError as error:
        if error.kind == "invalid_limits":
            text = f"Validation failed\n\n{error.message}\n"
            raise CommandError(UNAVAILABLE, text) from None
        raise


def _clear_vhost_limits(call: Call) -> None:
    call.gate.ask("clear_vhost_limits", vhost=call.vhost)


def _list_vhost_limits(call: Call) -> Answer:
    if call.options.get("global"):
        return Rows(call.gate.rows("list_vhost_limits"))
    found = call.gate.ask("vhost_limits", vhost=call.vhost)
    return Rows(()) if found is None else Value(found)


def _global_or(of_all: str, of_one: Callable[[Call], str]) -> Callable[[Call], str]:
    return lambda call: of_all if call.options.get("global") else of_one(call)


# --- global parameters ---


def _set_global_parameter(call: Call) -> None:
    name, value = call.arguments
    call.gate.ask("set_global_parameter", name=name, value=_json(value))


def _clear_global_parameter(call: Call) -> None:
    call.gate.ask("clear_global_parameter", name=call.arguments[0])


def _list_global_parameters(call: Call) -> Answer:
    return Rows(call.gate.rows("list_global_parameters"))


def _set_cluster_name(call: Call) -> None:
    call.gate.ask("set_cluster_name", name=call.arguments[0])


def _clear_auth_backend_cache(call: Call) -> None:
    """All of it as rabbitmqctl does, or what is known of one user."""
    call.gate.ask("clear_cache", **({"user": call.arguments[0]} if call.arguments else {}))


_ACCESS = ("access-control",)
_VHOSTS = ("vhosts",)
_NAME = ("<username>", "Self-explanatory")

COMMANDS = (
    Command(
        name="set_user_limits",
        section="Users",
        usage="set_user_limits <username> <definition>",
        description="Sets user limits",
        run=_set_user_limits,
        least=2,
        most=2,
        banner=lambda call: (
            f'Setting user limits to "{call.arguments[1]}" for user "{call.arguments[0]}" ...'
        ),
        help=(_NAME, ("<definition>", "Limit definitions as a JSON document")),
        guides=_ACCESS,
    ),
    Command(
        name="clear_user_limits",
        section="Users",
        usage="clear_user_limits <username> <limit_type> | all",
        description="Clears user connection/channel limits",
        run=_clear_user_limits,
        least=2,
        most=2,
        banner=_clear_banner,
        help=(_NAME, ("<limit_type>", "Limit type, must be max-connections or max-channels")),
        guides=_ACCESS,
    ),
    Command(
        name="list_user_limits",
        section="Users",
        usage="list_user_limits [--user <username>] [--global]",
        description="Displays configured user limits",
        run=_list_user_limits,
        switches={"global": bool, "user": str},
        banner=_global_or(
            "Listing limits for all users ...",
            lambda call: f'Listing limits for user "{_user(call)}" ...',
        ),
        formatter="table",
        help=(("--global", "list limits for all the users"),),
        guides=_ACCESS,
    ),
    Command(
        name="set_vhost_limits",
        section="Virtual hosts",
        usage="set_vhost_limits [--vhost <vhost>] <definition>",
        description="Sets virtual host limits",
        run=_set_vhost_limits,
        least=1,
        most=1,
        banner=lambda call: (
            f'Setting vhost limits to "{call.arguments[0]}" for vhost "{call.vhost}" ...'
        ),
        help=(("<definition>", "Limit definitions, must be a valid JSON document"),),
        guides=_VHOSTS,
    ),
    Command(
        name="clear_vhost_limits",
        section="Virtual hosts",
        usage="clear_vhost_limits [--vhost <vhost>]",
        description="Clears virtual host limits",
        run=_clear_vhost_limits,
        banner=lambda call: f'Clearing vhost "{call.vhost}" limits ...',
        guides=_VHOSTS,
    ),
    Command(
        name="list_vhost_limits",
        section="Virtual hosts",
        usage="list_vhost_limits [--vhost <vhost>] [--global] [--no-table-headers]",
        description="Displays configured virtual host limits",
        run=_list_vhost_limits,
        switches={"global": bool},
        banner=_global_or(
            "Listing limits for all vhosts ...",
            lambda call: f'Listing limits for vhost "{call.vhost}" ...',
        ),
        formatter="table",
        help=(("--global", "list global limits (those not associated with a virtual host)"),),
        guides=_VHOSTS,
    ),
    Command(
        name="set_global_parameter",
        section="Parameters",
        usage="set_global_parameter <name> <value>",
        description="Sets a runtime parameter.",
        run=_set_global_parameter,
        least=2,
        most=2,
        banner=lambda call: (
            f'Setting global runtime parameter "{call.arguments[0]}" to "{call.arguments[1]}" ...'
        ),
        help=(
            ("<name>", "global parameter name (identifier)"),
            ("<value>", "parameter value"),
        ),
        guides=("parameters",),
    ),
    Command(
        name="clear_global_parameter",
        section="Parameters",
        usage="clear_global_parameter <name>",
        description="Clears a global runtime parameter",
        run=_clear_global_parameter,
        least=1,
        most=1,
        banner=lambda call: f'Clearing global runtime parameter "{call.arguments[0]}" ...',
        help=(("<name>", "parameter name (identifier)"),),
        guides=("parameters",),
    ),
    Command(
        name="list_global_parameters",
        section="Parameters",
        usage="list_global_parameters [--no-table-headers]",
        description="Lists global runtime parameters",
        run=_list_global_parameters,
        banner=lambda _call: "Listing global runtime parameters ...",
        formatter="table",
        timeout=True,
        guides=("parameters",),
    ),
    Command(
        name="set_cluster_name",
        section="Configuration and Environment",
        usage="set_cluster_name <name>",
        description="Sets the cluster name",
        run=_set_cluster_name,
        least=1,
        most=1,
        banner=lambda call: f"Setting cluster name to {call.arguments[0]} ...",
        help=(("<name>", "New cluster name"),),
        guides=("vhosts", "access-control"),
    ),
    Command(
        name="clear_auth_backend_cache",
        section="Caches",
        usage="clear_auth_backend_cache [<username>]",
        description="Clears rabbitmq_auth_backend_cache plugin's cache on the target node",
        run=_clear_auth_backend_cache,
        most=1,
        banner=lambda _call: (
            "Will clear rabbitmq_auth_backend_cache plugin's cache on the target node..."
        ),
    ),
)
