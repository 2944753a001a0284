"""What the gate says of itself, under the names that RabbitMQ's clients look for.

A gate is one node. What it does not measure (queues, rates, disk) is empty or left out.

Source: ``rabbit_mgmt_wm_overview``, ``_nodes``, ``_node``, ``_extensions``, ``_version``,
``_environment``.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import resource
import time

from gatekeeper import __version__
from gatekeeper.admin.api.call import Call, Object, Reply, answer, missing
from gatekeeper.admin.api.parameters import cluster_name
from gatekeeper.admin.api.shape import list_reply, object_reply
from gatekeeper.config.settings import Address, ServerTls
from gatekeeper.logs import without_url_secrets
from gatekeeper.store.definitions_export import FORMAT_VERSION

PRODUCT = "gatekeeper"
DISC = "disc"
_EXCHANGE_TYPES = ("direct", "fanout", "headers", "topic")


@dataclasses.dataclass(frozen=True, slots=True)
class Listener:
    """protocol: ``amqp``, ``amqp/ssl``, ``http`` or ``https``, RabbitMQ's names."""

    protocol: str
    address: Address
    tls: ServerTls | None = None


def listeners(call: Call) -> list[Listener]:
    """All of the gate's own, as configured."""
    settings = call.administration.settings
    found = [Listener("amqp", one) for one in settings.tcp_listeners]
    found += [Listener("amqp/ssl", one, settings.tls) for one in settings.ssl_listeners]
    found += [
        Listener("http" if one.tls is None else "https", one.address, one.tls)
        for one in call.service.management.listeners
    ]
    return sorted(found, key=lambda one: (one.protocol, one.address.port))


async def overview(call: Call) -> Reply:
    administration = call.administration
    node, monitor = administration.node, call.user.monitor
    row: Object = {
        "management_version": FORMAT_VERSION,
        "rates_mode": "none",
        "sample_retention_policies": {"global": [], "basic": [], "detailed": []},
        "exchange_types": [
            {
                "name": name,
                "description": f"AMQP {name} exchange, as per the AMQP specification",
                "enabled": True,
            }
            for name in _EXCHANGE_TYPES
        ],
        "product_version": __version__,
        "product_name": PRODUCT,
        "rabbitmq_version": FORMAT_VERSION,
        "cluster_name": cluster_name(call),
        "cluster_tags": {},
        "node_tags": {},
        # Clients show these; the gate runs on something else.
        "erlang_version": "",
        "erlang_full_version": f"Python {platform.python_version()}",
        "crypto_lib_version": "",
        "disable_stats": call.without_stats,
        "default_queue_type": "classic",
        "is_op_policy_updating_enabled": False,
        "enable_queue_totals": False,
        "require_definition_json_extension": call.service.management.require_json_extension,
        "message_stats": {},
        "churn_rates": {},
        "queue_totals": {},
        "object_totals": await _totals(call),
        "statistics_db_event_queue": 0,
    }
    if monitor:
        row |= {"node": node, "listeners": _listener_rows(call), "contexts": _contexts(call)}
    return object_reply(call, row)


async def _totals(call: Call) -> Object:
    """Of oneself, for who may not monitor. Without statistics nobody's channels are listed."""
    fleet, nothing = call.administration.fleet, {"exchanges": 0, "queues": 0}
    if call.user.monitor and call.without_stats:
        usage = await fleet.statistics()
        return {"connections": sum(one.get("connections", 0) for one in usage.values()), **nothing}
    if call.without_stats:
        return {**nothing}
    own = None if call.user.monitor else call.user.identity.username
    connections = [one for one in await fleet.connections() if own in {None, one.user}]
    channels = [one for one in await fleet.channels() if own in {None, one.user}]
    return {
        "channels": len(channels),
        "connections": len(connections),
        "consumers": sum(one.consumer_count for one in channels),
        **nothing,
    }


def _listener_rows(call: Call) -> list[Object]:
    return [
        {
            "node": call.administration.node,
            "protocol": one.protocol,
            "ip_address": one.address.host or "::",
            "port": one.address.port,
            "socket_opts": [],
            "tls": one.tls is not None,
        }
        for one in listeners(call)
    ]


def _contexts(call: Call) -> list[Object]:
    return [
        {
            "node": call.administration.node,
            "description": "RabbitMQ Management",
            "path": call.service.management.path_prefix or "/",
            "ip": one.address.host or "::",
            "port": str(one.address.port),
            "ssl_opts": [],
        }
        for one in listeners(call)
        if one.protocol in {"http", "https"}
    ]


# --- the node ---


async def _node_object(call: Call) -> Object:
    administration = call.administration
    row: Object = {
        "name": administration.node,
        "type": DISC,
        "running": True,
        "being_drained": False,
    }
    if call.without_stats:
        return row
    usage = await administration.fleet.statistics()
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return row | {
        "os_pid": str(os.getpid()),
        "fd_total": files,
        "mem_used": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "mem_alarm": False,
        "disk_free_alarm": False,
        "partitions": [],
        "processors": os.cpu_count() or 1,
        "rates_mode": "none",
        "uptime": int((time.time() - administration.started) * 1000),
        "sockets_used": sum(one.get("connections", 0) for one in usage.values()),
        "auth_mechanisms": [
            {"name": name, "description": f"SASL {name} authentication", "enabled": True}
            for name in administration.settings.auth_mechanisms
        ],
        "exchange_types": [],
        "applications": [
            {"name": PRODUCT, "description": "AMQP 0-9-1 gate", "version": __version__}
        ],
        "contexts": _contexts(call),
        "enabled_plugins": [],
    }


async def list_nodes(call: Call) -> Reply:
    row = await _node_object(call)
    return await list_reply(call, lambda: [row], sort=("name",))


async def get_node(call: Call) -> Reply:
    if call.text("node") != call.administration.node:
        raise missing()
    return object_reply(call, await _node_object(call))


# --- small ones ---


async def extensions(_call: Call) -> Reply:
    return answer([{"javascript": "dispatcher.js"}])


async def version(_call: Call) -> Reply:
    """Of the API: RabbitMQ's, because clients choose their ways by it."""
    return answer(FORMAT_VERSION)


async def effective_config(call: Call) -> Reply:
    """The settings in force, one a line. Secrets are of types that hide themselves, and fields
    that may hold one are not for ``repr``."""
    settings = call.administration.settings
    lines = [
        without_url_secrets(f"{field.name} = {getattr(settings, field.name)!r}\n")
        for field in dataclasses.fields(settings)
        if field.repr
    ]
    return Reply(200, "".join(lines).encode(), "text/plain")
