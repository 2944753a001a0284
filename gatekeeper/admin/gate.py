"""What the control socket tells of the gate and its connections, and definitions in and out."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import platform
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from gatekeeper import __version__
from gatekeeper.admin.request import (
    BadRequestError,
    Call,
    InvalidPidError,
    Listing,
    Row,
    batches,
    shown,
)
from gatekeeper.admin.service import Administration
from gatekeeper.config.settings import Address
from gatekeeper.logs import HIDDEN, without_url_secrets
from gatekeeper.model import Secret
from gatekeeper.protocol import wire
from gatekeeper.protocol.frames import COMPILED
from gatekeeper.server.infos import ChannelInfo, ConnectionInfo, UpstreamInfo
from gatekeeper.store.definitions import import_definitions
from gatekeeper.store.definitions_export import write_definitions

_CHUNK = 64 * 1024
_PID = re.compile(r"<(?P<node>[^<>\s]+)\.(?P<creation>[0-9]+)\.(?P<number>[0-9]+)\.[0-9]+>")
_LOCAL_PID = re.compile(r"<0\.(?P<number>[0-9]+)\.[0-9]+>")


async def ping(call: Call) -> Row:
    return {"node": call.administration.node, "version": __version__}


async def clear_cache(call: Call) -> int:
    """How many answers the cache backend has forgotten: about one user, or all."""
    user = call.arguments.optional_name("user")
    count = await call.administration.fleet.clear_caches(user)
    about = {} if user is None else {"user": user}
    target = {**about, "forgotten": count}
    call.administration.done(call.actor, "clear_auth_backend_cache", target)
    return count


# --- connections ---


def _pid(administration: Administration, number: int, rest: int) -> str:
    """Like an Erlang pid. The start of the gate is in it: an old one must not name a new
    connection."""
    return f"<{administration.node}.{int(administration.started)}.{number}.{rest}>"


async def list_connections(call: Call) -> Listing:
    """Every column of rabbitmqctl's that a gate knows."""
    administration = call.administration
    for some in batches(await administration.fleet.connections()):
        yield [_connection(administration, one) for one in some]


def _connection(administration: Administration, one: ConnectionInfo) -> Row:
    return {
        "pid": _pid(administration, one.number, 0),
        "name": one.name,
        "port": one.local_port,
        "host": one.local_host,
        "peer_port": one.port,
        "peer_host": one.host,
        "ssl": one.tls,
        "ssl_protocol": one.ssl_protocol,
        "ssl_key_exchange": one.ssl_key_exchange,
        "ssl_cipher": one.ssl_cipher,
        "ssl_hash": one.ssl_hash,
        "peer_cert_subject": one.peer_cert_subject,
        "peer_cert_issuer": one.peer_cert_issuer,
        "peer_cert_validity": one.peer_cert_validity,
        "state": one.state,
        "channels": one.channels,
        "auth_mechanism": one.auth_mechanism,
        "user": shown(one.user),
        "vhost": shown(one.vhost),
        "timeout": one.timeout,
        "frame_max": one.frame_max,
        "channel_max": one.channel_max,
        "client_properties": _table(wire.read_table(one.client_properties)),
        "recv_oct": one.recv_oct,
        "send_oct": one.send_oct,
        "connected_at": one.connected_at,
    }


def _table(table: wire.Table) -> list[object]:
    """``[[name, RabbitMQ's type, value], ...]``, as rabbitmqctl prints a field table in JSON."""
    return [
        [shown(key), wire.RABBIT_TYPES[tag], _value(value)] for key, (tag, value) in table.items()
    ]


def _value(value: object) -> object:
    match value:
        case bytes():
            return shown(value)
        case dict():
            return _table(value)
        case list():
            return [[wire.RABBIT_TYPES[tag], _value(inner)] for tag, inner in value]
        case tuple():
            return list(value)
        case _:
            return value


async def list_channels(call: Call) -> Listing:
    administration = call.administration
    for some in batches(await administration.fleet.channels()):
        yield [_channel(administration, one) for one in some]


def _channel(administration: Administration, one: ChannelInfo) -> Row:
    """None: RabbitMQ would know, the gate passes it on without looking."""
    return {
        "pid": _pid(administration, one.connection, one.number),
        "connection": _pid(administration, one.connection, 0),
        "name": one.name,
        "number": one.number,
        "user": shown(one.user),
        "vhost": shown(one.vhost),
        "transactional": one.transactional,
        "confirm": one.confirm,
        "consumer_count": one.consumer_count,
        "messages_unacknowledged": one.messages_unacknowledged,
        "messages_uncommitted": one.messages_uncommitted,
        "acks_uncommitted": one.acks_uncommitted,
        "messages_unconfirmed": one.messages_unconfirmed,
        "prefetch_count": one.prefetch_count,
    }


async def close_connection(call: Call) -> int:
    """By its pid; a connection that is gone is no error. Raises InvalidPidError."""
    administration = call.administration
    pid, reason = call.arguments.text("pid"), call.arguments.name("reason")
    found = _PID.fullmatch(pid)
    if found is not None:
        if int(found["creation"]) != int(administration.started):
            return 0
    else:
        found = _LOCAL_PID.fullmatch(pid)
        if found is None:
            raise InvalidPidError(pid)
    return await administration.close_connections(
        call.actor, reason=reason, number=int(found["number"])
    )


async def close_connections(call: Call) -> int:
    """Those of a user, of a vhost, or all; at most ``limit``, ``delay`` ms after one another."""
    administration, arguments = call.administration, call.arguments
    user, vhost = arguments.optional_name("user"), arguments.optional_name("vhost")
    limit, delay = arguments.number("limit"), arguments.number("delay")
    reason = arguments.name("reason")
    if user is None and vhost is None and not arguments.flag("all"):
        raise BadRequestError("give user or vhost, or say all")
    if not limit and not delay:
        return await administration.close_connections(
            call.actor, reason=reason, user=user, vhost=vhost
        )
    found = [
        one.number
        for one in await administration.fleet.connections()
        if user in {None, one.user} and vhost in {None, one.vhost}
    ]
    closed = 0
    for number in found[: limit or None]:
        closed += await administration.close_connections(call.actor, reason=reason, number=number)
        await asyncio.sleep(delay / 1000)
    return closed


# --- definitions ---


async def import_document(call: Call) -> Row:
    """The body. Raises DefinitionsError, and then nothing has changed."""
    source, skip = call.arguments.text("source"), call.arguments.flag("skip_if_unchanged")
    store = call.administration.store
    report = await call.administration.carry_out(
        call.actor,
        "import_definitions",
        {"source": source},
        lambda: import_definitions(store, call.body, source=source, skip_if_unchanged=skip),
    )
    return dataclasses.asdict(report)


async def export_document(call: Call) -> Listing:
    """The text in pieces, as of one moment. It lies in a file meanwhile: a slow reader must not
    keep a transaction open, nor a large store lie in memory."""
    read, store = call.administration.read, call.administration.store
    # In a folder for our user alone, and without a name: there are password hashes in it.
    with await read(lambda: tempfile.TemporaryFile("w+", encoding="utf-8")) as file:
        await read(write_definitions, store, file)
        file.seek(0)
        while chunk := await read(file.read, _CHUNK):
            yield [chunk]


# --- the gate itself ---


async def status(call: Call) -> Row:
    administration, settings = call.administration, call.administration.settings
    workers = await administration.fleet.statistics()
    vhosts = await administration.all_rows(administration.store.list_vhosts)
    return {
        "pid": os.getpid(),
        "os": platform.system(),
        "uptime": int(time.time() - administration.started),
        "is_under_maintenance": False,
        "product_name": "gatekeeper",
        "product_version": __version__,
        "python_version": platform.python_version(),
        "frame_scanner": "compiled" if COMPILED else "plain Python",
        "node": administration.node,
        "control_socket": None if settings.control.socket is None else str(settings.control.socket),
        "log_files": [str(settings.log.file)] if settings.log.file else ["<stdout>"],
        "workers": [{"worker": worker, **figures} for worker, figures in sorted(workers.items())],
        "upstreams": [_upstream(one) for one in administration.fleet.upstreams()],
        "totals": {
            "connection_count": sum(one["connections"] for one in workers.values()),
            "virtual_host_count": len(vhosts),
        },
        "listeners": [
            *(_listener(str(address), "amqp") for address in settings.tcp_listeners),
            *(_listener(str(address), "amqp/ssl") for address in settings.ssl_listeners),
        ],
    }


def _listener(address: str, protocol: str) -> Row:
    host, _, port = address.rpartition(":")
    purpose = "AMQP 0-9-1" + (" over TLS" if protocol == "amqp/ssl" else "")
    return {
        "interface": host or "[::]",
        "port": int(port),
        "protocol": protocol,
        "purpose": purpose,
    }


async def list_upstreams(call: Call) -> Listing:
    yield [_upstream(one) for one in call.administration.fleet.upstreams()]


_STATES = {None: "unknown", True: "running", False: "unreachable"}


def _upstream(one: UpstreamInfo) -> Row:
    return {
        "name": one.name,
        "servers": list(one.servers),
        "vhosts": [shown(vhost) for vhost in one.vhosts],
        "state": _STATES[one.status.reachable],
        "product": one.status.product,
        "version": one.status.version,
        "since": one.status.since,
        "error": one.status.error,
    }


async def environment(call: Call) -> Row:
    """The settings in force. Secrets, and whatever ``repr`` does not show either, are hidden."""
    return _fields(call.administration.settings)


def _fields(settings: object) -> Row:
    assert dataclasses.is_dataclass(settings)  # noqa: S101 - for the type checker
    return {
        field.name: _plain(getattr(settings, field.name)) if field.repr else HIDDEN
        for field in dataclasses.fields(settings)
    }


def _plain(value: object) -> object:
    match value:
        case Secret():
            return HIDDEN
        case None | bool() | int() | float():
            return value
        case str():
            return without_url_secrets(value)
        case bytes():
            return shown(value)
        case Path() | Address():
            return str(value)
        case Mapping():
            return {str(_plain(key)): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case set() | frozenset():
            return sorted((_plain(item) for item in value), key=str)
        case _ if dataclasses.is_dataclass(value):
            return _fields(value)
        case _:
            return HIDDEN  # nobody has said that it may be shown
