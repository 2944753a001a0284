"""Virtual hosts and their metadata."""

from __future__ import annotations

from collections.abc import Callable

from gatekeeper.cli.ctl.client import GateError
from gatekeeper.cli.ctl.command import (
    DATA,
    Answer,
    ArgumentError,
    Call,
    Command,
    Row,
    Rows,
    bad_argument,
)

_QUEUE_TYPES = ("quorum", "stream", "classic")
_PROTECTED = (
    "Cannot delete this virtual host: it is protected from deletion. To lift the protection, "
    "inspect and update its metadata"
)
_COLUMNS = (
    "name", "description", "tags", "default_queue_type", "protected_from_deletion", "tracing",
    "cluster_state", "metadata",
)  # fmt: skip


def _check_queue_type(call: Call) -> None:
    given = call.text("default-queue-type")
    if given == "":
        bad_argument("Default queue type must not be an empty string")
    if given is not None and given not in _QUEUE_TYPES:
        known = ", ".join(_QUEUE_TYPES)
        bad_argument(f"Default queue type must be one of: {known}. Provided: {given}")


def _tags(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [tag.strip() for tag in text.split(",") if tag]


def _add_vhost(call: Call) -> None:
    call.gate.ask(
        "add_vhost",
        vhost=call.arguments[0],
        description=call.text("description"),
        tags=_tags(call.text("tags")),
        default_queue_type=call.text("default-queue-type"),
    )


def _check_update(call: Call) -> None:
    known = {"description", "tags", "default-queue-type", "protected-from-deletion"}
    if not known & call.options.keys():
        raise ArgumentError("not enough arguments.")
    _check_queue_type(call)


def _update_vhost_metadata(call: Call) -> None:
    call.gate.ask(
        "update_vhost",
        vhost=call.arguments[0],
        description=call.text("description"),
        tags=_tags(call.text("tags")),
        default_queue_type=call.text("default-queue-type"),
        protected=call.options.get("protected-from-deletion"),
    )


def _set_vhost_tags(call: Call) -> None:
    vhost, *tags = call.arguments
    try:
        call.gate.ask("update_vhost", vhost=vhost, tags=tags)
    except GateError as error:
        if error.kind == "no_such_vhost":
            missing = f'Virtual host "{vhost}" does not exist'
            call.failed(DATA, missing, f"{missing}s")
        raise


def _tags_banner(call: Call) -> str:
    vhost, *tags = call.arguments
    return f'Setting tags for virtual host "{vhost}" to [{", ".join(tags)}] ...'


def _protect(*, protected: bool) -> Callable[[Call], None]:
    def run(call: Call) -> None:
        call.gate.ask("update_vhost", vhost=call.arguments[0], protected=protected)

    return run


def _delete_vhost(call: Call) -> None:
    try:
        call.gate.ask("delete_vhost", vhost=call.arguments[0])
    except GateError as error:
        if error.kind == "vhost_protected":
            call.failed(DATA, _PROTECTED, _PROTECTED)
        raise


def _list_vhosts(call: Call) -> Answer:
    def columns(row: Row) -> Row:
        return {name: row[name] for name in call.arguments}

    return Rows(map(columns, call.gate.rows("list_vhosts")))


_METADATA = {"description": str, "tags": str, "default-queue-type": str}
_METADATA_HELP = (
    ("<vhost>", "Virtual host name"),
    ("--description <description>", "Virtual host description"),
    ("--tags <tag1,tag2>", "Comma-separated list of tags"),
    (
        "--default-queue-type <quorum|classic|stream>",
        "Queue type to use if no type is explicitly provided by the client",
    ),
)
_GUIDES = ("vhosts",)

COMMANDS = (
    Command(
        name="add_vhost",
        section="Virtual hosts",
        usage="add_vhost <vhost> [--description <description> --tags "
        '"<tag1>,<tag2>,<...>" --default-queue-type <quorum|classic|stream>]',
        description="Creates a virtual host",
        run=_add_vhost,
        least=1,
        most=1,
        check=_check_queue_type,
        switches=_METADATA,
        aliases={"d": "description"},
        banner=lambda call: f'Adding vhost "{call.arguments[0]}" ...',
        help=_METADATA_HELP,
        guides=_GUIDES,
    ),
    Command(
        name="update_vhost_metadata",
        section="Virtual hosts",
        usage="update_vhost_metadata <vhost> [--description=<description>] "
        '[--tags="<tag1>,<tag2>,<...>"] [--default-queue-type=<quorum|classic|stream>] '
        "[--protected-from-deletion=<true|false>]",
        description="Updates metadata (tags, description, default queue type, protection from "
        "deletion) a virtual host",
        run=_update_vhost_metadata,
        least=1,
        most=1,
        check=_check_update,
        switches={**_METADATA, "protected-from-deletion": bool},
        aliases={"d": "description"},
        banner=lambda call: f'Updating metadata of vhost "{call.arguments[0]}" ...',
        help=(
            *_METADATA_HELP,
            (
                "--protected-from-deletion",
                (
                    "When set to true, will make it impossible to delete a virtual host until the "
                    "protection is removed"
                ),
            ),
        ),
        guides=_GUIDES,
    ),
    Command(
        name="set_vhost_tags",
        section="Virtual hosts",
        usage="set_vhost_tags <vhost> <tag> [...]",
        description="Sets virtual host tags",
        run=_set_vhost_tags,
        least=1,
        most=None,
        banner=_tags_banner,
        help=(("<vhost>", "Self-explanatory"), ("<tags>", "Space separated list of tags")),
        guides=_GUIDES,
    ),
    Command(
        name="enable_vhost_deletion_protection",
        section="Virtual hosts",
        usage="enable_vhost_deletion_protection <vhost>",
        description="Protects a virtual host from deletion (until the protection is removed)",
        run=_protect(protected=True),
        least=1,
        most=1,
        banner=lambda call: (
            f'Protecting virtual host "{call.arguments[0]}" from removal by updating its '
            "metadata..."
        ),
        help=(("<vhost>", "Virtual host name"),),
        guides=_GUIDES,
    ),
    Command(
        name="disable_vhost_deletion_protection",
        section="Virtual hosts",
        usage="disable_vhost_deletion_protection <vhost>",
        description="Removes deletion protection from a virtual host (so that it can be deleted)",
        run=_protect(protected=False),
        least=1,
        most=1,
        banner=lambda call: (
            f'Removing deletion protection from virtual host "{call.arguments[0]}" by updating '
            "its metadata..."
        ),
        help=(("<vhost>", "Virtual host name"),),
        guides=_GUIDES,
    ),
    Command(
        name="delete_vhost",
        section="Virtual hosts",
        usage="delete_vhost <vhost>",
        description="Deletes a virtual host",
        run=_delete_vhost,
        least=1,
        most=1,
        banner=lambda call: f'Deleting vhost "{call.arguments[0]}" ...',
        help=(("<vhost>", "Name of the virtual host to delete."),),
        guides=_GUIDES,
    ),
    Command(
        name="list_vhosts",
        section="Access Control",
        usage="list_vhosts [--no-table-headers] [<column> ...]",
        description="Lists virtual hosts",
        run=_list_vhosts,
        most=None,
        columns=_COLUMNS,
        default=("name",),
        banner=lambda _call: "Listing vhosts ...",
        formatter="table",
        timeout=True,
        help=(("<column>", "must be one of " + ", ".join(sorted(_COLUMNS))),),
        guides=("vhosts", "access-control"),
    ),
)
