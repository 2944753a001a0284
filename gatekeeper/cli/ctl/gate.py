"""The gate itself: whether it is there, how it stands, and its settings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from gatekeeper import __version__
from gatekeeper.cli.ctl.client import GateTimeoutError, UnreachableError
from gatekeeper.cli.ctl.command import (
    Answer,
    Call,
    Command,
    Document,
    Row,
    Rows,
    Text,
    Value,
)
from gatekeeper.cli.ctl.help import bright
from gatekeeper.cli.ctl.output import cell
from gatekeeper.cli.ctl.terms import Atom, Verbatim, erlang

_PATIENCE = 300
"""Seconds that await_startup waits, unless it is told otherwise."""
_PAUSE = 0.2


def _ping(call: Call) -> Answer:
    call.gate.ask("ping")
    return Text("Ping succeeded")


def _await_startup(call: Call) -> None:
    """Raises UnreachableError where it takes too long."""
    end = time.monotonic() + max(0, call.number("timeout", _PATIENCE))
    while True:
        try:
            call.gate.ask("ping")
        except UnreachableError:
            if time.monotonic() >= end:
                raise GateTimeoutError from None
            time.sleep(_PAUSE)
        else:
            return


def _version(call: Call) -> Answer:
    return Value({"version": __version__} if call.json else __version__)


# --- status ---


def _status(call: Call) -> Answer:
    found = call.gate.ask("status")
    assert isinstance(found, dict)  # noqa: S101 - what the gate sends
    return Document(found, "\n".join(_sections(found)))


def _sections(status: Row) -> Iterable[str]:
    yield bright("Runtime") + "\n"
    for title, key in _RUNTIME:
        yield f"{title}: {cell(status[key])}"
    yield from _section("Workers", map(_worker, _rows(status, "workers")))
    yield from _section("Log file(s)", (f" * {path}" for path in _items(status, "log_files")))
    yield from _section("Upstreams", map(_upstream, _rows(status, "upstreams")))
    totals = status["totals"]
    assert isinstance(totals, dict)  # noqa: S101 - what the gate sends
    yield from _section(
        "Totals",
        (
            f"Connection count: {totals['connection_count']}",
            f"Virtual host count: {totals['virtual_host_count']}",
        ),
    )
    yield from _section("Listeners", (_listener(row, status) for row in _rows(status, "listeners")))


_RUNTIME = (
    ("OS PID", "pid"),
    ("OS", "os"),
    ("Uptime (seconds)", "uptime"),
    ("Is under maintenance?", "is_under_maintenance"),
    ("Product name", "product_name"),
    ("Product version", "product_version"),
    ("Node name", "node"),
    ("Python version", "python_version"),
    ("Frame scanner", "frame_scanner"),
    ("Control socket", "control_socket"),
)


def _section(title: str, lines: Iterable[str]) -> Iterable[str]:
    yield f"\n{bright(title)}\n"
    found = list(lines)
    yield from found or ["(none)"]


def _items(status: Row, key: str) -> list[object]:
    found = status[key]
    assert isinstance(found, list)  # noqa: S101 - what the gate sends
    return found


def _rows(status: Row, key: str) -> Iterable[Mapping[str, object]]:
    for item in _items(status, key):
        assert isinstance(item, dict)  # noqa: S101 - what the gate sends
        yield item


def _worker(row: Row) -> str:
    return (
        f"Worker {row['worker']}: process {row['pid']}, {row['connections']} connections, "
        f"CPU time {row['cpu_ms']} ms"
    )


def _upstream(row: Row) -> str:
    servers = ", ".join(map(str, _items(row, "servers")))
    product = f", {row['product']} {row['version']}" if row["product"] else ""
    return f"{row['name']}: {servers}: {row['state']}{product}"


def _listener(row: Row, status: Row) -> str:
    return (
        f"Node: {status['node']}, interface: {row['interface']}, port: {row['port']}, "
        f"protocol: {row['protocol']}, purpose: {row['purpose']}"
    )


def _environment(call: Call) -> Answer:
    """Secrets are hidden by the gate."""
    found = call.gate.ask("environment")
    assert isinstance(found, dict)  # noqa: S101 - what the gate sends
    if call.options["formatter"] != "erlang":
        return Document({"gatekeeper": found}, cell(found))
    lines = (f"{{{erlang(Atom(key))},{erlang(value)}}}" for key, value in found.items())
    inner = ",\n      ".join(lines)
    return Value(Verbatim(f"[{{gatekeeper,\n     [{inner}]}}]"))


def _list_upstreams(call: Call) -> Answer:
    return Rows(call.gate.rows("list_upstreams"))


_MONITORING = "Monitoring, observability and health checks"

COMMANDS = (
    Command(
        name="ping",
        section=_MONITORING,
        usage="ping",
        description="Checks that the gate answers at its control socket",
        run=_ping,
        banner=lambda call: (
            f"Will ping {call.node}. This only checks if the gate answers at its control socket."
        ),
        timeout=True,
        guides=("monitoring",),
    ),
    Command(
        name="await_startup",
        section="Nodes",
        usage="await_startup",
        description="Waits for the gate to start",
        run=_await_startup,
        offline=True,
    ),
    Command(
        name="version",
        section="Help",
        usage="version",
        description="Displays CLI tools version",
        run=_version,
        offline=True,
    ),
    Command(
        name="status",
        section=_MONITORING,
        usage="status",
        description="Displays status of a node",
        run=_status,
        banner=lambda call: f"Status of node {call.node} ...",
        timeout=True,
        help=(("--formatter <json>", "alternative formatter (JSON)"),),
        guides=("monitoring",),
    ),
    Command(
        name="environment",
        section="Configuration and Environment",
        usage="environment",
        description="Displays the settings of the gate, without secrets",
        run=_environment,
        banner=lambda call: f"Application environment of node {call.node} ...",
        formatter="erlang",
        guides=("configure", "monitoring"),
    ),
    Command(
        name="list_upstreams",
        section=_MONITORING,
        usage="list_upstreams [--no-table-headers]",
        description="Lists the brokers behind the gate, and how they stand",
        run=_list_upstreams,
        banner=lambda _call: "Listing upstreams ...",
        formatter="table",
        timeout=True,
    ),
)
