"""``/connections`` and ``/channels``: what is open now, and closing it.

What a gate does not measure (rates, reductions, garbage collection) is left out; what it passes
on without looking is null.

Source: ``rabbit_mgmt_wm_connection``, ``_connections``, ``_connection_user_name``,
``_connection_channels``, ``_channel``, ``_channels``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from gatekeeper.admin.api.call import NO_CONTENT, Call, Object, Reply, bad_request, missing
from gatekeeper.admin.api.shape import list_reply, object_reply
from gatekeeper.protocol import wire
from gatekeeper.server.infos import PROTOCOL, ChannelInfo, ConnectionInfo
from gatekeeper.store.refusals import shown

REASON = "Closed via management plugin"
_NO_STATS = "Stats in management UI are disabled on this node"
_ORDER = ("vhost", "name")
_TLS_TEXTS = (
    "ssl_protocol",
    "ssl_key_exchange",
    "ssl_cipher",
    "ssl_hash",
    "peer_cert_subject",
    "peer_cert_issuer",
    "peer_cert_validity",
)


def connection_object(
    one: ConnectionInfo, node: str, *, stats: bool, unset: str | None = None
) -> Object:
    """unset: what stands for an unknown TLS text; RabbitMQ says null in lists and "" alone."""
    provided = one.user_provided_name
    row: Object = {
        "auth_mechanism": one.auth_mechanism,
        "channel_max": one.channel_max,
        "client_properties": client_properties(one.client_properties),
        "connected_at": one.connected_at,
        "frame_max": one.frame_max,
        "host": one.local_host,
        "name": one.name,
        "node": node,
        "peer_host": one.host,
        "peer_port": one.port,
        "port": one.local_port,
        "protocol": PROTOCOL,
        "ssl": one.tls,
        "timeout": one.timeout,
        "type": "network",
        "user": shown(one.user),
        "user_who_performed_action": shown(one.user),
        "vhost": shown(one.vhost),
        **{name: getattr(one, name) or unset for name in _TLS_TEXTS},
    }
    if provided is not None:
        row["user_provided_name"] = shown(provided)
    if stats:
        row |= {
            "channels": one.channels,
            "recv_oct": one.recv_oct,
            "send_oct": one.send_oct,
            "state": one.state,
        }
    return row


def channel_object(one: ChannelInfo, node: str) -> Object:
    return {
        "acks_uncommitted": one.acks_uncommitted,
        "confirm": one.confirm,
        "connection_details": {
            "name": one.connection_name,
            "peer_host": one.host,
            "peer_port": one.port,
        },
        "consumer_count": one.consumer_count,
        "global_prefetch_count": one.global_prefetch_count,
        "messages_unacknowledged": one.messages_unacknowledged,
        "messages_uncommitted": one.messages_uncommitted,
        "messages_unconfirmed": one.messages_unconfirmed,
        "name": one.name,
        "node": node,
        "number": one.number,
        "prefetch_count": one.prefetch_count,
        "state": one.state,
        "transactional": one.transactional,
        "user": shown(one.user),
        "user_who_performed_action": shown(one.user),
        "vhost": shown(one.vhost),
    }


def client_properties(table: bytes) -> Object:
    """The table as JSON; nothing where it cannot be read."""
    try:
        found = wire.read_table(table)
    except wire.WireError:
        return {}
    return {shown(key): _plain(value) for key, value in found.items()}


def _plain(value: object) -> object:
    """A value of a field table, with or without its type tag, as JSON can hold it."""
    match value:
        case (str(), inner):
            return _plain(inner)
        case bool() | int() | str() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return shown(value)
        case dict():
            return {shown(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return None


# --- connections ---


async def list_connections(call: Call) -> Reply:
    found = _seen(call, await call.administration.fleet.connections())
    return await _connection_list(call, found, paged=True)


async def list_of_vhost(call: Call) -> Reply:
    if call.administration.store.vhost(call.names["vhost"]) is None:
        raise missing()
    found = _seen(call, await call.administration.fleet.connections())
    return await _connection_list(call, found, paged=False)


async def _connection_list(call: Call, found: list[ConnectionInfo], *, paged: bool) -> Reply:
    node, stats = call.administration.node, not call.without_stats
    return await list_reply(
        call,
        lambda: (connection_object(one, node, stats=stats) for one in found),
        sort=_ORDER,
        paged=paged,
    )


def _seen(call: Call, found: Iterable[ConnectionInfo]) -> list[ConnectionInfo]:
    """Those in the vhost that is asked for; of others than oneself only who monitors."""
    user, vhost = call.user, call.vhost
    return [
        one
        for one in found
        if vhost in {None, one.vhost} and (user.monitor or one.user == user.identity.username)
    ]


async def get_connection(call: Call) -> Reply:
    row = connection_object(
        _connection(call), call.administration.node, stats=not call.without_stats, unset=""
    )
    return object_reply(call, row)


async def delete_connection(call: Call) -> Reply:
    one = _connection(call)
    await call.administration.close_connections(call.actor, reason=_reason(call), number=one.number)
    return NO_CONTENT


async def list_of_user(call: Call) -> Reply:
    user, node = call.names["user"], call.administration.node
    found = [
        one
        for one in _seen(call, await call.administration.fleet.connections())
        if one.user == user
    ]
    rows: list[Object] = [
        {"name": one.name, "vhost": shown(one.vhost), "user": shown(one.user), "node": node}
        for one in found
    ]
    return await list_reply(call, lambda: rows, sort=_ORDER, paged=True)


async def delete_of_user(call: Call) -> Reply:
    await call.administration.close_connections(
        call.actor, reason=_reason(call), user=call.names["user"]
    )
    return NO_CONTENT


def _reason(call: Call) -> bytes:
    return call.headers.get("x-reason", REASON).encode("utf-8", "surrogateescape")


def _connection(call: Call) -> ConnectionInfo:
    if call.connection is None:
        raise missing()
    return call.connection


# --- channels ---


async def list_channels(call: Call) -> Reply:
    _need_stats(call)
    return await _channel_list(call, None, paged=True)


async def list_channels_of_vhost(call: Call) -> Reply:
    _need_stats(call)
    if call.administration.store.vhost(call.names["vhost"]) is None:
        raise missing()
    return await _channel_list(call, None, paged=False)


async def list_channels_of_connection(call: Call) -> Reply:
    return await _channel_list(call, _connection(call).number, paged=False)


async def _channel_list(call: Call, connection: int | None, *, paged: bool) -> Reply:
    node, user, vhost = call.administration.node, call.user, call.vhost
    found = [
        one
        for one in await call.administration.fleet.channels()
        if connection in {None, one.connection}
        and vhost in {None, one.vhost}
        and (user.monitor or one.user == user.identity.username)
    ]
    return await list_reply(
        call, lambda: (channel_object(one, node) for one in found), sort=_ORDER, paged=paged
    )


async def get_channel(call: Call) -> Reply:
    _need_stats(call)
    if call.channel is None:
        raise missing()
    return object_reply(call, channel_object(call.channel, call.administration.node))


def _need_stats(call: Call) -> None:
    if call.without_stats:
        raise bad_request(_NO_STATS)
