"""Brokers: which one serves a vhost, what it says of itself, and connections to it.

One client connection is one upstream connection. Besides, each upstream is asked now and then,
on a connection of the gate's own, for its server properties and limits: clients are shown the
broker's own properties, and are offered no more than it allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gatekeeper.config.settings import Address, Limits, Upstream
from gatekeeper.errors import BackendError, GatekeeperError
from gatekeeper.model import Credentials, Peer, Secret
from gatekeeper.protocol import wire
from gatekeeper.protocol.events import Broken, Learned, Opened, Refused, Send, Stage, Tuned
from gatekeeper.protocol.upstream import UpstreamHandshake, upstream_properties
from gatekeeper.server.deadlines import TimeLimit
from gatekeeper.server.endpoint import Endpoint, SharedBuffer
from gatekeeper.server.infos import UpstreamStatus
from gatekeeper.server.proxy_protocol import build
from gatekeeper.server.renewal import Renewal
from gatekeeper.tls import client_context

if TYPE_CHECKING:
    from gatekeeper.backends.oauth2.service_token import ServiceToken

CONNECT_TIMEOUT = 5.0
"""Seconds to reach one server of an upstream."""
HANDSHAKE_TIMEOUT = 10.0
"""Seconds for TLS and the AMQP handshake with a broker."""
RETRY_FIRST, RETRY_MAX = 0.5, 5.0
"""Seconds between attempts to reach a broker that does not answer."""
SHOWN = 1000
"""Characters of a broker's product, version or error that are passed on."""
REFRESH = 60.0
"""Seconds after which a broker is asked again what it allows."""

CAPABILITIES = (
    b"publisher_confirms",
    b"exchange_exchange_bindings",
    b"basic.nack",
    b"consumer_cancel_notify",
    b"connection.blocked",
    b"consumer_priorities",
    b"authentication_failure_close",
    b"per_consumer_qos",
    b"direct_reply_to",
)


def unlearned_properties() -> bytes:
    """What a client is shown while no broker has answered yet: RabbitMQ's capabilities."""
    capabilities = dict.fromkeys(CAPABILITIES, ("t", True))
    return wire.table([(b"capabilities", ("F", capabilities)), (b"product", ("S", b"RabbitMQ"))])


class UpstreamUnavailableError(GatekeeperError):
    """No server of the upstream can be used. ``str`` is for the operator."""


class UpstreamRefusedError(GatekeeperError):
    """The broker closed the connection in an orderly way, before or at connection.open."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(f"{refused.code} {refused.text.decode('utf-8', 'replace')}")
        self.refused = refused


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """What a broker said of itself. limits: channel_max, frame_max, heartbeat as offered."""

    server_properties: bytes
    product: str
    version: str
    mechanisms: tuple[str, ...]
    limits: tuple[int, int, int] | None

    def said(self, learned: Learned, limits: tuple[int, int, int] | None) -> bool:
        """Is this all that it says now? product and version are among the properties."""
        return (
            self.server_properties == learned.server_properties
            and self.mechanisms == learned.mechanisms
            and self.limits == limits
        )


@dataclass(frozen=True, slots=True)
class UpstreamConnection:
    """An open connection. first: what the broker sent behind connection.open-ok.

    token: what it has logged in by, if it was one of the gate's own.
    """

    endpoint: Endpoint
    first: bytes
    token: ServiceToken | None = None


class UpstreamLink:
    """One upstream of the configuration. Raises ConfigError.

    renewal: of the service account's token, if it has one; ``app.py`` runs it.
    """

    def __init__(self, settings: Upstream, buffer: SharedBuffer) -> None:
        self.settings = settings
        self.facts: BrokerFacts | None = None
        self._buffer = buffer
        self._tls = None
        if settings.tls is not None:
            self._tls = client_context(settings.tls, f"upstreams.{settings.name}.ssl_options")
        self.renewal = _renewal(settings, self._refuses)
        self._turn = itertools.cycle(range(len(settings.servers)))
        self.status = UpstreamStatus(settings.name, None, 0, "", "", "")
        self._reach_patience = TimeLimit(CONNECT_TIMEOUT)
        self._patience = TimeLimit(HANDSHAKE_TIMEOUT)
        self.learned = asyncio.Event()
        self._stale = asyncio.Event()

    @property
    def service_vhost(self) -> bytes:
        return self.settings.vhosts[0] if self.settings.vhosts else b"/"

    @property
    def has_service_account(self) -> bool:
        settings = self.settings
        return bool(settings.username or settings.token) or settings.auth_mechanism == "EXTERNAL"

    @property
    def service_user(self) -> bytes:
        """Who the gate is at the broker, empty if that is not known."""
        token = None if self.renewal is None else self.renewal.current
        return self.settings.username or (b"" if token is None else token.user)

    def outdated(self, connection: UpstreamConnection) -> bool:
        """Is there a newer token than that of this connection of the gate's own?"""
        return self.renewal is not None and connection.token is not self.renewal.current

    async def secret_size(self, credentials: Credentials) -> int:
        """Bytes of the password that a client's connection will log in by. Raises
        UpstreamUnavailableError."""
        settings = self.settings
        if settings.credentials == "client":
            return 0 if credentials.password is None else len(credentials.password.value)
        token = await self._token()
        return len((settings.password if token is None else token.secret).value)

    async def _token(self) -> ServiceToken | None:
        if self.renewal is None:
            return None
        try:
            return await self.renewal.get()
        except BackendError as error:
            raise UpstreamUnavailableError(f"upstream {self.settings.name}: {error}") from None

    async def connect(
        self,
        vhost: bytes,
        credentials: Credentials,
        properties: bytes,
        wanted: tuple[int, int, int] | None,
        peer: Peer | None,
        token: ServiceToken | None = None,
    ) -> UpstreamConnection:
        """Log in at the broker and open the vhost.

        credentials: the client's, used where ``credentials = client``. properties: raw client
        properties. wanted: negotiated with the client, None takes the broker's. token: to log in
        by instead of the present one. Raises UpstreamUnavailableError, UpstreamRefusedError.
        """
        settings = self.settings
        mechanism: Literal["PLAIN", "AMQPLAIN", "EXTERNAL"] = settings.auth_mechanism
        username, password = settings.username, settings.password
        if settings.credentials == "client" and peer is not None:
            username, password = credentials.username, credentials.password or Secret(b"")
            mechanism = "AMQPLAIN" if credentials.mechanism == "AMQPLAIN" else "PLAIN"
        elif (token := token or await self._token()) is not None:
            password = token.secret
        handshake = UpstreamHandshake(
            mechanism=mechanism,
            username=username,
            password=password,
            vhost=vhost,
            client_properties=properties,
            wanted=wanted,
            eager=self.facts is not None and mechanism in self.facts.mechanisms,
        )
        endpoint = await self._reach(peer)
        try:
            with self._patience.begin():
                await self._shake(endpoint, handshake)
        except BaseException as error:
            endpoint.close(1.0) if isinstance(error, UpstreamRefusedError) else endpoint.abort()
            if isinstance(error, TimeoutError):
                raise UpstreamUnavailableError(
                    f"upstream {settings.name}: the broker did not finish the handshake within "
                    f"{HANDSHAKE_TIMEOUT:.0f} s"
                ) from None
            if self.renewal is not None and _login_refused(error):
                self.renewal.doubt(token)
            raise
        return UpstreamConnection(endpoint, handshake.leftover(), token)

    def _servers(self) -> Iterator[Address]:
        servers = self.settings.servers
        first = next(self._turn)
        return (servers[(first + i) % len(servers)] for i in range(len(servers)))

    async def _reach(self, peer: Peer | None) -> Endpoint:
        reasons = []
        for server in self._servers():
            try:
                with self._reach_patience.begin():
                    return await self._reach_server(server, peer)
            except TimeoutError:
                reasons.append(f"{server}: no answer within {CONNECT_TIMEOUT:.0f} s")
            except (OSError, ssl.SSLError, ssl.CertificateError) as error:
                reasons.append(f"{server}: {_plain(error)}")
        self._stale.set()  # so that its absence, and its return, are noticed and logged
        raise UpstreamUnavailableError(
            f"upstream {self.settings.name}: no broker can be reached ({'; '.join(reasons)})"
        )

    async def _reach_server(self, server: Address, peer: Peer | None) -> Endpoint:
        loop = asyncio.get_running_loop()
        proxy, tls = self.settings.proxy_protocol, self._tls
        if proxy is None:
            _, endpoint = await loop.create_connection(
                lambda: Endpoint(self._buffer),
                server.host,
                server.port,
                ssl=tls,
                server_hostname=self._server_name(server),
            )
            return endpoint
        # The PROXY header goes out in front of TLS, so TLS is started by hand then.
        _, endpoint = await loop.create_connection(
            lambda: Endpoint(self._buffer), server.host, server.port
        )
        endpoint.write(self._proxy_header(proxy, peer, endpoint))
        if tls is not None:
            transport = await loop.start_tls(
                endpoint.transport, endpoint, tls, server_hostname=self._server_name(server)
            )
            endpoint.connection_made(transport)
        return endpoint

    def _server_name(self, server: Address) -> str | None:
        tls = self.settings.tls
        if tls is None:
            return None
        if tls.sni == "":
            return "127.0.0.1"  # no SNI is ever sent for an address; the name is not checked
        return tls.sni or server.host

    @staticmethod
    def _proxy_header(version: str, peer: Peer | None, endpoint: Endpoint) -> bytes:
        if peer is None:
            here = endpoint.transport.get_extra_info("sockname")
            there = endpoint.transport.get_extra_info("peername")
            return build(version, (here[0], here[1]), (there[0], there[1]))
        source = (peer.host, peer.port)
        return build(version, source, (peer.local_host, peer.local_port))

    async def _shake(self, endpoint: Endpoint, handshake: UpstreamHandshake) -> None:
        name = self.settings.name
        learned: Learned | None = None
        endpoint.write(handshake.start())
        while True:
            while (event := handshake.next_event()) is not None:
                match event:
                    case Send(data):
                        endpoint.write(data)
                    case Learned():
                        learned = event
                        self._learn(learned, None)
                    case Tuned():
                        if learned is not None:
                            self._learn(learned, event)
                    case Opened():
                        return
                    case Refused():
                        raise UpstreamRefusedError(event)
                    case Broken(reason):
                        self._stale.set()
                        raise UpstreamUnavailableError(f"upstream {name}: {reason}")
            data = await endpoint.receive()
            if not data:
                raise UpstreamUnavailableError(
                    f"upstream {name}: the broker closed the connection during the handshake"
                )
            handshake.feed(data)

    def _learn(self, learned: Learned, tuned: Tuned | None) -> None:
        facts = self.facts
        limits = facts.limits if facts is not None else None
        if tuned is not None:
            limits = (tuned.channel_max, tuned.frame_max, tuned.heartbeat)
        if facts is not None and facts.said(learned, limits):
            return
        self.facts = BrokerFacts(
            learned.server_properties,
            learned.product.decode("utf-8", "replace"),
            learned.version.decode("utf-8", "replace"),
            learned.mechanisms,
            limits,
        )

    async def service(
        self, vhost: bytes, purpose: str, token: ServiceToken | None = None
    ) -> UpstreamConnection:
        """A connection of the gate's own, on the service account."""
        properties = upstream_properties(
            wire.table([(b"product", ("S", b"gatekeeper"))]),
            {"purpose": purpose},
            f"gatekeeper {purpose}".encode(),
        )
        nobody = Credentials("PLAIN", b"")
        return await self.connect(vhost, nobody, properties, None, None, token)

    async def _refuses(self, token: ServiceToken) -> bool:
        """Does the broker refuse a login by it? False where that cannot be told now."""
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                connection = await self.service(self.service_vhost, "token", token)
        except (TimeoutError, UpstreamRefusedError, UpstreamUnavailableError) as error:
            return _login_refused(error)
        await say_goodbye(connection.endpoint)
        return False

    async def learn(self) -> None:
        """Ask the broker once. Raises UpstreamUnavailableError, UpstreamRefusedError.

        A vhost that does not exist there is no obstacle: limits come before it. Without a
        service account only the server properties can be learned.
        """
        try:
            connection = await self.service(self.service_vhost, "probe")
        except UpstreamRefusedError:
            if self.facts is None or (self.has_service_account and self.facts.limits is None):
                raise
            return
        await say_goodbye(connection.endpoint)

    def judged(self, error: str) -> bool:
        """It has been asked. error: why it cannot be reached, empty where it has answered.
        False: the status is what it was."""
        before, facts = self.status, self.facts
        reachable = not error
        same = before.reachable is reachable
        self.status = UpstreamStatus(
            self.settings.name,
            reachable,
            before.since if same else time.time_ns() // 1_000_000,
            "" if facts is None else facts.product[:SHOWN],
            "" if facts is None else facts.version[:SHOWN],
            error[:SHOWN],
        )
        return self.status != before

    async def stale(self) -> None:
        """Wait until it is time to ask the broker again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REFRESH):
                await self._stale.wait()
        self._stale.clear()


_CLOSE_OK = wire.method(0, 10, 51)


async def say_goodbye(endpoint: Endpoint) -> None:
    """Close one of our own connections as AMQP wants it, within a second."""
    endpoint.write(wire.close_method(0, 10, 200, b"", 0, 0))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            received = b""
            while data := await endpoint.receive():
                received = received[-len(_CLOSE_OK) :] + data
                if _CLOSE_OK in received:
                    break  # RabbitMQ now waits for us to close the socket
    endpoint.abort()


class Upstreams:
    """All upstreams, and the routing of vhosts to them."""

    def __init__(self, settings: Mapping[str, Upstream], buffer: SharedBuffer) -> None:
        self.links = {name: UpstreamLink(each, buffer) for name, each in settings.items()}
        self._routes = {
            vhost: self.links[name] for name, each in settings.items() for vhost in each.vhosts
        }

    def route(self, vhost: bytes) -> UpstreamLink | None:
        return self._routes.get(vhost) or self.links.get("default")

    def server_properties(self) -> bytes:
        """Those of the default broker, else of any; the vhost is not known yet."""
        links = [self.links.get("default"), *self.links.values()]
        for link in links:
            if link is not None and link.facts is not None:
                return link.facts.server_properties
        return unlearned_properties()

    def offer(self, limits: Limits) -> tuple[int, int, int]:
        """channel_max, frame_max and heartbeat to offer: what we and every broker allow."""
        channel_max, frame_max = limits.channel_max, limits.frame_max
        for link in self.links.values():
            if link.facts is not None and link.facts.limits is not None:
                channel_max = _least(channel_max, link.facts.limits[0])
                frame_max = _least(frame_max, link.facts.limits[1])
        return channel_max, frame_max, limits.heartbeat


def _least(ours: int, theirs: int) -> int:
    """The stricter of two limits where 0 is none."""
    return min(ours, theirs) if ours and theirs else ours or theirs


def _renewal(
    settings: Upstream, refuses: Callable[[ServiceToken], Awaitable[bool]]
) -> Renewal | None:
    if settings.token is None:
        return None
    from gatekeeper.backends.oauth2.service_token import token_source  # noqa: PLC0415 - seldom used

    source = token_source(settings.token, f"upstreams.{settings.name}")
    return Renewal(settings.name, source, refuses)


def _login_refused(error: BaseException) -> bool:
    return isinstance(error, UpstreamRefusedError) and error.refused.stage is Stage.LOGIN


def _plain(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ssl.SSLError):
        return error.strerror
    return str(error) or type(error).__name__
