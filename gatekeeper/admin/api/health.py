"""Health checks. RabbitMQ's names; what they look at is the gate and the brokers behind it.

A failed check is a 503 whose body says why.

Source: ``rabbit_mgmt_wm_health_check_*``, ``_healthchecks``, ``_aliveness_test``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from gatekeeper.admin.api.access import may_enter
from gatekeeper.admin.api.call import Call, Object, Reply, bad_request, missing, problem
from gatekeeper.admin.api.overview import listeners
from gatekeeper.admin.api.shape import object_reply

_NOT_READY = "a broker behind the gate cannot be reached"
_DAYS = {"days": 1.0, "weeks": 7.0, "months": 365 / 12, "years": 365.0}
_INTEGER = re.compile(r"[+-]?[0-9]{1,7}")
_PORT = re.compile(r"[+-]?[0-9]{1,9}")

_PROTOCOLS = {
    "amqp091": "amqp",
    "amqp0.9.1": "amqp",
    "amqp0-9-1": "amqp",
    "amqp0_9_1": "amqp",
    "amqps": "amqp/ssl",
    "http1": "http",
    "http1.1": "http",
    "http_api": "http",
    "management": "http",
    "management_ui": "http",
    "ui": "http",
}
"""Other names of the protocols that a gate may speak (``normalize_protocol/1``)."""


def _ok(call: Call, **more: object) -> Reply:
    return object_reply(call, {"status": "ok", **more})


def _failed(call: Call, reason: str, **more: object) -> Reply:
    return object_reply(call, {"status": "failed", "reason": reason, **more}, 503)


async def fine(call: Call) -> Reply:
    """What cannot fail in a gate: it has no alarms, and its virtual hosts always run."""
    return _ok(call)


async def single_node(call: Call) -> Reply:
    return _ok(call, reason="single node cluster")


async def node(call: Call) -> Reply:
    if "node" in call.names and call.text("node") != call.administration.node:
        raise missing()
    return _ok(call)


# --- the brokers ---


async def ready(call: Call) -> Reply:
    """Are clients served? Not where a broker cannot be reached. Which one is not for everybody."""
    return _failed(call, _NOT_READY) if _unreachable(call) else _ok(call)


async def aliveness(call: Call) -> Reply:
    """Could the caller work in this vhost now?"""
    vhost = call.names["vhost"]
    if call.administration.store.vhost(vhost) is None:
        raise missing()
    if not await may_enter(call, vhost):
        raise problem(401, "not_authorised", "Access refused.")
    down = _unreachable(call, vhost)
    return _failed(call, "; ".join(down)) if down else _ok(call)


def _unreachable(call: Call, vhost: bytes | None = None) -> list[str]:
    """One line for each upstream that is down, of this vhost or of all."""
    upstreams = call.administration.fleet.upstreams()
    if vhost is not None:
        routed = [one for one in upstreams if vhost in one.vhosts]
        upstreams = routed or [one for one in upstreams if one.name == "default"]
    return [
        f"upstream {one.name} is unreachable: {one.status.error}"
        for one in upstreams
        if one.status.reachable is False
    ]


# --- listeners ---


async def port_listener(call: Call) -> Reply:
    text = call.text("port")
    if not _PORT.fullmatch(text):
        raise bad_request("Invalid port")
    port = int(text)
    ports = [one.address.port for one in listeners(call)]
    if port in ports:
        return _ok(call, port=port)
    return _failed(call, "No active listener", missing=port, ports=ports)


async def protocol_listener(call: Call) -> Reply:
    asked = (word.lower() for word in call.text("protocols").split(","))
    wanted = {_PROTOCOLS.get(word, word) for word in asked}
    active = {one.protocol for one in listeners(call)}
    if wanted <= active:
        return _ok(call, protocols=sorted(active))
    return _failed(
        call, "No active listener", missing=sorted(wanted - active), protocols=sorted(active)
    )


# --- certificates ---


async def certificates(call: Call) -> Reply:
    """Does a certificate of a TLS listener expire within this time?"""
    within, unit = call.text("within"), call.text("unit").lower()
    if not _INTEGER.fullmatch(within):
        raise bad_request("Invalid expiration value.")
    if unit not in _DAYS:
        raise bad_request("Time unit not recognised. Supported units: days, weeks, months, years.")
    try:
        until = datetime.now(UTC) + timedelta(days=int(within) * _DAYS[unit])
    except OverflowError:
        raise bad_request("Invalid expiration value.") from None
    expired = await call.administration.read(lambda: list(_expired(call, until)))
    return _failed(call, "Certificates expiring", expired=expired) if expired else _ok(call)


def _expired(call: Call, until: datetime) -> Iterable[Object]:
    for one in listeners(call):
        if one.tls is None:
            continue
        own = _expiries(one.tls.certfile, until)
        authorities = _expiries(one.tls.cacertfile, until)
        if own or authorities:
            yield {
                "node": call.administration.node,
                "protocol": one.protocol,
                "interface": one.address.host or "::",
                "port": one.address.port,
                "certfile": str(one.tls.certfile or ""),
                "cacertfile": str(one.tls.cacertfile or ""),
                "certfile_expires_on": own,
                "cacertfile_expires_on": authorities,
            }


def _expiries(path: Path | None, until: datetime) -> list[str]:
    """When those of a file's certificates expire that do before ``until``."""
    if path is None:
        return []
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        return [f"cannot be read: {type(error).__name__}"]
    ends = (one.not_valid_after_utc for one in found)
    return [f"{end:%Y-%m-%d} {end.hour}:{end:%M:%S}" for end in ends if end < until]
