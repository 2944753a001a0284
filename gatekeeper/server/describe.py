"""Connections and channels as listings show them (``infos.py``), made when somebody asks.

Strategy: an idle connection keeps references to what is there anyway; everything else is looked
up or worked out here, for one connection at a time.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gatekeeper.protocol import wire
from gatekeeper.protocol.channels import ChannelState, Mode
from gatekeeper.protocol.states import State
from gatekeeper.server.infos import (
    PROPERTIES_LIMIT,
    ChannelInfo,
    ClientProperties,
    ConnectionInfo,
)
from gatekeeper.server.registry import Live

_PROPERTY_LIMIT = 255
"""Bytes of a property that is shown although all of them are too long."""

_PROTOCOLS = MappingProxyType(
    {"TLSv1": "tlsv1", "TLSv1.1": "tlsv1.1", "TLSv1.2": "tlsv1.2", "TLSv1.3": "tlsv1.3"}
)


def shown_properties(raw: bytes) -> ClientProperties:
    """The client properties to keep: all, or those that are short where all are too long."""
    if len(raw) > PROPERTIES_LIMIT:
        short = wire.table(
            (key, value)
            for key, value in wire.read_table(raw).items()
            if value[0] == "S" and isinstance(value[1], bytes) and len(value[1]) <= _PROPERTY_LIMIT
        )
        raw = short if len(short) <= PROPERTIES_LIMIT else b""
    return ClientProperties(raw)


def connection_info(live: Live) -> ConnectionInfo:
    peer, tuned, client = live.peer, live.tuned, live.client
    tls = _tls(live)
    return ConnectionInfo(
        number=live.number,
        user=live.user,
        vhost=live.vhost,
        host=peer.host,
        port=peer.port,
        local_host=peer.local_host,
        local_port=peer.local_port,
        tls=peer.tls,
        ssl_protocol=tls.protocol,
        ssl_cipher=tls.suite.cipher,
        ssl_key_exchange=tls.suite.key_exchange,
        ssl_hash=tls.suite.mac,
        peer_cert_subject=tls.subject,
        peer_cert_issuer=tls.issuer,
        peer_cert_validity=tls.validity,
        state=_state(live),
        auth_mechanism=live.mechanism,
        timeout=tuned.heartbeat,
        frame_max=tuned.frame_max,
        channel_max=tuned.channel_max,
        client_properties=live.properties,
        connected_at=live.connected_at,
        recv_oct=0 if client is None else client.received,
        send_oct=0 if client is None else client.sent,
        channels=live.channels,
    )


def channel_infos(live: Live) -> Iterator[ChannelInfo]:
    """In the order of their numbers, as they are now."""
    if live.session is None:
        return
    peer = live.peer
    for number, channel in sorted(live.session.channels.items()):
        if channel.mode != Mode.UNOPENED:
            yield ChannelInfo(
                connection=live.number,
                number=number,
                user=live.user,
                vhost=live.vhost,
                host=peer.host,
                port=peer.port,
                local_host=peer.local_host,
                local_port=peer.local_port,
                state=_channel_state(live, channel),
                consumer_count=len(channel.view.consumers),
            )


def _state(live: Live) -> str:
    if live.session is None:
        return "opening"
    return "running" if live.session.state is State.RUNNING else "closing"


def _channel_state(live: Live, channel: ChannelState) -> str:
    return _state(live) if channel.in_service else "closing"


# --- TLS: rabbit_reader's ssl_* and rabbit_ssl's peer_cert_* -----------------------------------


@dataclass(frozen=True, slots=True)
class Suite:
    """A cipher suite in Erlang's words (``ssl:cipher_suites/2``)."""

    cipher: str = ""
    key_exchange: str = ""
    mac: str = ""


@dataclass(frozen=True, slots=True)
class _Tls:
    protocol: str = ""
    suite: Suite = Suite()
    subject: str = ""
    issuer: str = ""
    validity: str = ""


def _tls(live: Live) -> _Tls:
    if live.client is None or live.client.lost:
        return _Tls()
    over = live.client.transport.get_extra_info("ssl_object")
    chosen = None if over is None else over.cipher()
    if chosen is None:
        return _Tls()
    protocol, suite = _PROTOCOLS.get(over.version(), ""), suites().get(chosen[0], Suite())
    der = over.getpeercert(binary_form=True)
    if der is None:
        return _Tls(protocol, suite)
    # Only where clients have certificates: the import takes a while, and memory.
    from gatekeeper.server.certificates import certificate  # noqa: PLC0415

    shown = certificate(der)
    return _Tls(protocol, suite, shown.subject, shown.issuer, shown.validity)


@functools.cache
def suites() -> Mapping[str, Suite]:
    """By OpenSSL's name: all in which the server has a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:!aNULL:!PSK:!SRP:@SECLEVEL=0")
    return {each["name"]: _suite(each) for each in context.get_ciphers()}


def _suite(known: Mapping[str, Any]) -> Suite:
    exchange = known["kea"].removeprefix("kx-")
    signed = known["auth"].removeprefix("auth-")
    if signed not in {"any", exchange}:
        exchange = f"{exchange}_{signed}"
    cipher = known["symmetric"].replace("-", "_")
    if known["name"].endswith("CCM8"):
        cipher += "_8"
    mac = "aead" if known["aead"] else known["digest"] or ""
    return Suite(cipher, exchange, "sha" if mac == "sha1" else mac)
