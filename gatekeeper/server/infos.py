"""What the gate can tell of a connection, a channel and an upstream, as plain values.

The names are those of ``rabbitmqctl list_connections`` and ``list_channels`` and of the
management API (surface.md 3.3, 4.2). What RabbitMQ knows and a gate does not is left out, or
None where a later gate may know it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from gatekeeper.model import Peer
from gatekeeper.protocol import wire

PROTOCOL = "AMQP 0-9-1"

PROPERTIES_LIMIT = 8192
"""Bytes of client properties that are kept and shown."""

ClientProperties = NewType("ClientProperties", bytes)
"""A field table as the client sent it, without its length: ``wire.read_table`` reads it."""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """A client's connection, from connection.open on.

    number: N of ``<0.N.0>`` in the log; no two connections of the gate share one.
    ssl_*, peer_cert_*: in RabbitMQ's words, empty without TLS or without a client certificate.
    state: ``opening``, ``running`` or ``closing``.
    timeout: the heartbeat, in seconds. channel_max, frame_max: as negotiated; 0 is no limit.
    client_properties: without the longest ones where they are beyond PROPERTIES_LIMIT bytes.
    connected_at: ms since the epoch.
    recv_oct, send_oct: bytes on the client's socket, without TLS's own.
    """

    number: int
    user: bytes
    vhost: bytes
    host: str
    port: int
    local_host: str
    local_port: int
    tls: bool
    ssl_protocol: str
    ssl_cipher: str
    ssl_key_exchange: str
    ssl_hash: str
    peer_cert_subject: str
    peer_cert_issuer: str
    peer_cert_validity: str
    state: str
    auth_mechanism: str
    timeout: int
    frame_max: int
    channel_max: int
    client_properties: ClientProperties
    connected_at: int
    recv_oct: int
    send_oct: int
    channels: int

    @property
    def name(self) -> str:
        """``PEER:PORT -> HOST:PORT``."""
        return str(Peer(self.host, self.port, self.local_host, self.local_port))

    @property
    def user_provided_name(self) -> bytes | None:
        """The client property ``connection_name``, if it is a text."""
        tag, value = wire.read_table(self.client_properties).get(b"connection_name", ("V", None))
        return value if tag == "S" and isinstance(value, bytes) else None


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """A channel that is open, or in the course of closing.

    connection: its ConnectionInfo.number; host to local_port: of that, too.
    state: ``running`` or ``closing``.
    None: the gate passes on what would tell it without looking.
    """

    connection: int
    number: int
    user: bytes
    vhost: bytes
    host: str
    port: int
    local_host: str
    local_port: int
    state: str
    consumer_count: int
    prefetch_count: int | None = None
    global_prefetch_count: int | None = None
    transactional: bool | None = None
    confirm: bool | None = None
    messages_unacknowledged: int | None = None
    messages_unconfirmed: int | None = None
    messages_uncommitted: int | None = None
    acks_uncommitted: int | None = None

    @property
    def connection_name(self) -> str:
        return str(Peer(self.host, self.port, self.local_host, self.local_port))

    @property
    def name(self) -> str:
        """``CONNECTION (N)``."""
        return f"{self.connection_name} ({self.number})"


@dataclass(frozen=True, slots=True)
class UpstreamStatus:
    """How it stands with the brokers of one upstream.

    reachable: None until they have been asked. since: when that changed last, ms since the
    epoch. product, version: of the broker that answered last, empty before. error: why they
    cannot be reached now, else empty.
    """

    name: str
    reachable: bool | None
    since: int
    product: str
    version: str
    error: str


@dataclass(frozen=True, slots=True)
class UpstreamInfo:
    """An upstream and its status. servers: ``HOST:PORT``. vhosts: those routed to it."""

    servers: tuple[str, ...]
    vhosts: tuple[bytes, ...]
    status: UpstreamStatus

    @property
    def name(self) -> str:
        return self.status.name
