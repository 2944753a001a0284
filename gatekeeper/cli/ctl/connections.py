"""Connections and channels that are open, and closing them."""

from __future__ import annotations

from collections.abc import Callable

from gatekeeper.cli.ctl.command import Answer, Call, Command, Row, Rows, Value
from gatekeeper.cli.ctl.output import Address, FieldTable, Numbers

_CONNECTION = (
    "pid", "name", "port", "host", "peer_port", "peer_host", "ssl", "ssl_protocol",
    "ssl_key_exchange", "ssl_cipher", "ssl_hash", "peer_cert_subject", "peer_cert_issuer",
    "peer_cert_serial_number", "peer_cert_validity", "state", "channels", "protocol",
    "auth_mechanism", "user", "vhost", "container_id", "timeout", "frame_max", "channel_max",
    "client_properties", "recv_oct", "recv_cnt", "send_oct", "send_cnt", "send_pend",
    "connected_at",
)  # fmt: skip
_CHANNEL = (
    "pid", "connection", "name", "number", "user", "vhost", "transactional", "confirm",
    "consumer_count", "messages_unacknowledged", "messages_uncommitted", "acks_uncommitted",
    "messages_unconfirmed", "prefetch_count",
)  # fmt: skip
_SHAPES: dict[str, Callable[[object], object]] = {
    "host": lambda value: Address(str(value)),
    "peer_host": lambda value: Address(str(value)),
    "client_properties": lambda value: FieldTable(value if isinstance(value, list) else []),
}
_PROTOCOL = Numbers((0, 9, 1))


def _connection(call: Call, row: Row) -> Row:
    """The columns asked for; empty what only a broker counts (packets, AMQP 1.0's names)."""
    found = {"protocol": _PROTOCOL, **row}
    return {
        name: _SHAPES[name](found[name]) if name in _SHAPES else found.get(name)
        for name in call.arguments
    }


def _list_connections(call: Call) -> Answer:
    rows = call.gate.rows("list_connections")
    return Rows((_connection(call, row) for row in rows), streamed=True)


def _list_channels(call: Call) -> Answer:
    rows = call.gate.rows("list_channels")
    return Rows(({name: row[name] for name in call.arguments} for row in rows), streamed=True)


def _close_connection(call: Call) -> None:
    pid, reason = call.arguments
    call.gate.ask("close_connection", pid=pid, reason=reason)


def _close_all_user_connections(call: Call) -> None:
    user, reason = call.arguments
    call.gate.ask("close_connections", user=user, reason=reason)


def _close_all_connections(call: Call) -> Answer:
    """As rabbitmqctl, ``--limit`` counts within a vhost alone."""
    everywhere = bool(call.options.get("global"))
    closed = call.gate.ask(
        "close_connections",
        reason=call.arguments[0],
        all=everywhere,
        vhost=None if everywhere else call.vhost,
        limit=0 if everywhere else max(0, call.number("limit", 0)),
        delay=max(0, call.number("per-connection-delay", 0)),
    )
    return Value(f"Closed {closed} connections")


def _close_banner(call: Call) -> str:
    reason, limit = call.arguments[0], call.number("limit", 0)
    if call.options.get("global"):
        where = f"all connections to node {call.node} (across all vhosts)"
    else:
        where = f"{limit or 'all'} connections in vhost {call.vhost}"
    return f"Closing {where}, reason: {reason}..."


_MONITORING = "Monitoring, observability and health checks"

COMMANDS = (
    Command(
        name="list_connections",
        section=_MONITORING,
        usage="list_connections [--no-table-headers] [<column> ...]",
        description="Lists AMQP connections for the node",
        run=_list_connections,
        most=None,
        columns=_CONNECTION,
        default=("user", "peer_host", "peer_port", "state"),
        banner=lambda _call: "Listing connections ...",
        formatter="table",
        timeout=True,
        help=(("<column>", "must be one of " + ", ".join(sorted(_CONNECTION))),),
        guides=("connections",),
    ),
    Command(
        name="list_channels",
        section=_MONITORING,
        usage="list_channels [--no-table-headers] [<column> ...]",
        description="Lists all channels in the node",
        run=_list_channels,
        most=None,
        columns=_CHANNEL,
        default=("pid", "user", "consumer_count", "messages_unacknowledged"),
        banner=lambda _call: "Listing channels ...",
        formatter="table",
        timeout=True,
        help=(("<column>", "must be one of " + ", ".join(sorted(_CHANNEL))),),
        guides=("channels",),
    ),
    Command(
        name="close_connection",
        section="Operations",
        usage="close_connection <connection pid> <explanation>",
        description="Instructs the broker to close the connection associated with the Erlang "
        "process id",
        run=_close_connection,
        least=2,
        most=2,
        banner=lambda call: (
            f"Closing connection {call.arguments[0]}, reason: {call.arguments[1]}..."
        ),
        help=(
            ("<connection pid>", "connection identifier (Erlang PID), see list_connections"),
            ("<explanation>", "reason for connection closure"),
        ),
        guides=("connections",),
    ),
    Command(
        name="close_all_connections",
        section="Operations",
        usage="close_all_connections [--vhost <vhost> --limit <limit>] [-n <node> --global] "
        "[--per-connection-delay <delay>] <explanation>",
        description="Instructs the broker to close all connections for the specified vhost or "
        "entire RabbitMQ node",
        run=_close_all_connections,
        least=1,
        most=1,
        switches={"global": bool, "per-connection-delay": int, "limit": int},
        banner=_close_banner,
        help=(
            ("--global", "consider connections across all virtual hosts"),
            ("--limit <number>", "close up to this many connections"),
            ("--per-connection-delay <milliseconds>", "inject a delay between closures"),
        ),
        guides=("connections",),
    ),
    Command(
        name="close_all_user_connections",
        section="Operations",
        usage="close_all_user_connections <username> <explanation>",
        description="Instructs the broker to close all connections of the specified user",
        run=_close_all_user_connections,
        least=2,
        most=2,
        banner=lambda call: (
            f"Closing connections of user {call.arguments[0]}, reason: {call.arguments[1]}..."
        ),
        help=(
            ("<username>", "Self-explanatory"),
            (
                "<explanation>",
                "reason for connection closure, will be logged and provided to clients",
            ),
        ),
        guides=("connections",),
    ),
)
