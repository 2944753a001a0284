"""One client connection's life, from accept to close.

Read :meth:`Connection.live` from top to bottom: handshake and authenticate, authorise the vhost,
connect upstream, pump, close. Nothing of a client reaches a broker before the vhost is granted.
Any error ends in a refusal or a closed socket, never in a session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gatekeeper import __version__
from gatekeeper.config.settings import Settings
from gatekeeper.errors import AmqpError, ReplyCode, printable
from gatekeeper.logs import Logger
from gatekeeper.model import Identity, Peer
from gatekeeper.policy.answers import LoginRefused
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.epoch import Epoch
from gatekeeper.protocol import wire
from gatekeeper.protocol.checks import Context
from gatekeeper.protocol.events import (
    Closed,
    Fail,
    Login,
    Open,
    Refused,
    Send,
    Stage,
    State,
    Tuned,
)
from gatekeeper.protocol.handshake import ClientHandshake
from gatekeeper.protocol.session import Session
from gatekeeper.protocol.upstream import upstream_properties
from gatekeeper.server.authority import Authority, vhost_refused
from gatekeeper.server.channel import NoAnswerError
from gatekeeper.server.deadlines import Deadline, TimeLimit
from gatekeeper.server.describe import shown_properties
from gatekeeper.server.endpoint import HOLD_CLOSED, Endpoint
from gatekeeper.server.exchanges import Exchanges
from gatekeeper.server.expiry import Expiry
from gatekeeper.server.lines import ConnectionLines
from gatekeeper.server.mechanisms import Mechanisms
from gatekeeper.server.pump import End, Pump
from gatekeeper.server.registry import Arrival, Live, Registry
from gatekeeper.server.tasks import Owner
from gatekeeper.server.upstreams import (
    UpstreamConnection,
    UpstreamLink,
    UpstreamRefusedError,
    Upstreams,
    UpstreamUnavailableError,
)
from gatekeeper.store.store import Store

PROPERTIES_LIMIT = 3000
"""Bytes of password and client properties that are mirrored whole. A broker takes no larger frame
than 4096 bytes before the tuning (8192 from 4.1 on), is silent about one; the rest is ours."""
ESSENTIAL_PROPERTIES = frozenset({b"capabilities", b"product", b"version", b"platform"})


@dataclass(frozen=True, slots=True)
class Gate:
    """What all connections share; made once, by ``app.py``. patience: with a client's handshake."""

    settings: Settings
    patience: TimeLimit
    mechanisms: Mechanisms
    store: Store
    engine: Engine
    epoch: Epoch
    upstreams: Upstreams
    exchanges: Exchanges
    registry: Registry
    owner: Owner
    connection_log: Logger
    channel_log: Logger
    user_log: Logger


@dataclass(frozen=True, slots=True)
class Greeted:
    """A client that has authenticated, tuned and asked for a vhost."""

    identity: Identity
    login: Login
    tuned: Tuned
    vhost: bytes


class Connection:
    __slots__ = (
        "_arrival",
        "_client",
        "_connected_at",
        "_deadline",
        "_ended",
        "_expiry",
        "_gate",
        "_handshake",
        "_judged",
        "_leave",
        "_lines",
        "_number",
        "_peer",
        "_running",
    )

    def __init__(self, gate: Gate, endpoint: Endpoint, peer: Peer, number: int) -> None:
        self._gate = gate
        self._client = endpoint
        self._peer = peer
        self._number = number
        self._connected_at = time.time_ns() // 1_000_000
        self._lines = ConnectionLines(
            gate.connection_log, gate.channel_log, gate.user_log, number, peer
        )
        settings = gate.settings
        channel_max, frame_max, heartbeat = gate.upstreams.offer(settings.limits)
        offered, able = gate.mechanisms.of(endpoint, peer)
        self._handshake = ClientHandshake(
            server_properties=gate.upstreams.server_properties(),
            mechanisms=offered,
            sasl_mechanisms=able,
            channel_max=channel_max,
            frame_max=frame_max,
            heartbeat=heartbeat,
            initial_frame_max=settings.limits.initial_frame_max,
        )
        self._deadline: Deadline | None = None
        self._arrival: Arrival | None = None
        self._judged = gate.epoch.changes
        self._running: Live | None = None
        self._ended: asyncio.Future[End] | None = None
        self._expiry: Expiry | None = None
        self._leave: Callable[[], None] | None = None

    async def live(self) -> None:
        """The whole life; returns when the client's socket is closed or about to be."""
        live: Live | None = None
        try:
            with self._gate.patience.begin() as deadline:
                self._deadline = deadline
                greeted = await self._greet()
                if greeted is None:
                    return
                live = await self._authorise(greeted)
                if live is None:
                    return
                deadline.lift()  # from here on it is the broker that takes time
                upstream = await self._connect_upstream(greeted, live)
                if upstream is None:
                    return
            ended = self._pump(greeted, live, upstream)
            # Most connections idle most of their life: keep nothing that only the way in needed.
            del self._handshake, self._deadline, self._arrival, greeted, upstream, deadline
            self._lines.ended(await ended)
        except TimeoutError:
            awaited = "handshake" if self._handshake.state is State.PRE_INIT else "frame_header"
            self._lines.handshake_timeout(awaited)
        finally:
            if self._expiry is not None:
                self._expiry.cancel()
            if self._leave is not None:
                self._leave()
            if live is not None:
                self._gate.registry.remove(live)
            self._client.hold(HOLD_CLOSED)
            self._client.close()

    # --- handshake and authentication ---

    async def _greet(self) -> Greeted | None:
        """Everything up to connection.open; None where it came to nothing (and was dealt with)."""
        handshake, client = self._handshake, self._client
        identity: Identity | None = None
        login: Login | None = None
        tuned = Tuned(0, 0, 0)
        accepted = False
        while True:
            match handshake.next_event():
                case None:
                    data = await client.receive()
                    if not data:
                        self._gone(accepted=accepted)
                        return None
                    if not accepted:
                        accepted = True
                        self._lines.accepted()
                    handshake.feed(data)
                case Send(data):
                    client.write(data)
                case Login() as login:
                    identity = await self._authenticate(login)
                    if identity is None:
                        return None
                case Tuned() as tuned:
                    pass
                case Open(vhost):
                    if identity is not None and login is not None:
                        return Greeted(identity, login, tuned, vhost)
                case Closed(reply):
                    client.write(reply)
                    self._lines.ended(End.ORDERLY)
                    return None
                case Fail() as fail:
                    await self._fail(fail)
                    return None

    def _gone(self, *, accepted: bool) -> None:
        if accepted:
            self._lines.ended(End.LOST)
        else:
            self._lines.probed()

    async def _authenticate(self, login: Login) -> Identity | None:
        if login.client_name:
            self._lines.client_name(login.client_name)
        if login.refusal is not None:
            await self._fail(self._handshake.refuse_login(login.refusal))
            return None
        self._arrival = self._gate.registry.arriving(login.credentials.username)
        result = await self._gate.engine.login(login.credentials, self._peer)
        if isinstance(result, LoginRefused):
            self._lines.login_failed(login.credentials.username, result.reason)
            await self._fail(self._handshake.refuse_login(result.reason))
            return None
        self._lines.authenticated(result.username)
        self._client.write(self._handshake.accept_login())
        return result

    async def _fail(self, fail: Fail) -> None:
        """End a handshake the way RabbitMQ does: told at once, or after a silence, or not."""
        self._lines.failed(fail)
        client = self._client
        if self._deadline is not None:
            self._deadline.lift()  # the failure has a time limit of its own
        if fail.reply is not None:
            client.write(fail.reply)
        if fail.await_close_ok:
            try:
                async with asyncio.timeout(fail.grace):
                    await self._await_close_ok()
            except TimeoutError:
                pass
        elif fail.silent_delay:
            client.hold(HOLD_CLOSED)
            await asyncio.sleep(fail.silent_delay)

    async def _await_close_ok(self) -> None:
        while True:
            event = self._handshake.next_event()
            if isinstance(event, Closed):
                self._client.write(event.reply)
                return
            if isinstance(event, Send):
                self._client.write(event.data)
            elif isinstance(event, Fail):
                await asyncio.sleep(event.silent_delay)
                return
            elif event is None:
                data = await self._client.receive()
                if not data:
                    return
                self._handshake.feed(data)

    # --- the vhost ---

    async def _authorise(self, greeted: Greeted) -> Live | None:
        """RabbitMQ's order: the vhost exists, its limit, the user's limit, access."""
        gate = self._gate
        live = Live(
            self._number,
            self._peer,
            greeted.identity.username,
            greeted.vhost,
            mechanism=greeted.login.credentials.mechanism,
            properties=shown_properties(greeted.login.client_properties),
            tuned=greeted.tuned,
            connected_at=self._connected_at,
            client=self._client,
        )
        refusal = await self._admit(live)
        if self._arrival is not None:
            live.doomed = live.doomed or self._arrival.doomed
        if refusal is not None:
            await self._refuse_open(refusal)
            return None
        try:
            error = await self._vhost_access(greeted)
        except BaseException:
            gate.registry.remove(live)
            raise
        if error is not None:
            await self._refuse_open(error, live)
            return None
        return live

    async def _admit(self, live: Live) -> AmqpError | None:
        """Have the connection counted, unless it meets a limit."""
        gate, vhost, user = self._gate, live.vhost, live.user
        shown_vhost, shown_user = printable(vhost), printable(user)
        if gate.store.vhost(vhost) is None:
            return _not_allowed(b"vhost %b not found" % shown_vhost)
        of_vhost = gate.store.vhost_limits(vhost).max_connections
        of_user = gate.store.user_limits(user).max_connections
        try:
            reached = await gate.registry.admit(live, vhost_limit=of_vhost, user_limit=of_user)
        except NoAnswerError as error:
            self._lines.upstream_failed(f"connection limits cannot be checked: supervisor: {error}")
            text = b"connection limits cannot be checked now"
            return AmqpError(ReplyCode.CONNECTION_FORCED, text)
        match reached:
            case "vhost":
                text = (
                    b"access to vhost '%b' refused for user '%b': connection limit (%d) is reached"
                )
                return _not_allowed(text % (shown_vhost, shown_user, of_vhost))
            case "user":
                text = b"connection refused for user '%b': user connection limit (%d) is reached"
                return _not_allowed(text % (shown_user, of_user))
            case "none":
                return None

    async def _vhost_access(self, greeted: Greeted) -> AmqpError | None:
        identity, vhost = greeted.identity, greeted.vhost
        self._judged = self._gate.epoch.changes  # before the question: it may take its time
        decision = await self._gate.engine.vhost_access(identity, vhost, self._peer)
        if decision.allowed:
            return None
        if decision.crashed:
            return AmqpError(ReplyCode.INTERNAL_ERROR)
        return vhost_refused(vhost, identity.username, decision)

    async def _refuse_open(self, error: AmqpError, live: Live | None = None) -> None:
        if live is not None:
            self._gate.registry.remove(live)  # it takes nobody's place while it reads the reason
        await self._fail(self._handshake.refuse_open(error.code, error.explanation))

    # --- the broker ---

    async def _connect_upstream(self, greeted: Greeted, live: Live) -> UpstreamConnection | None:
        """Log in at the broker; then make sure that the grant still stands."""
        gate = self._gate
        link = gate.upstreams.route(greeted.vhost)
        try:
            if link is None:
                raise UpstreamUnavailableError("no upstream serves this vhost")  # noqa: TRY301
            upstream = await self._log_in(link, greeted)
        except UpstreamUnavailableError as error:
            self._lines.upstream_failed(str(error))
            forced = AmqpError(ReplyCode.CONNECTION_FORCED, b"upstream broker is unavailable")
            await self._refuse_open(forced, live)
            return None
        except UpstreamRefusedError as error:
            self._lines.upstream_failed(str(error))
            await self._refuse_open(self._translated(error.refused, link, greeted), live)
            return None
        refusal = live.doomed
        while refusal is None and gate.epoch.changes != self._judged:
            refusal = await self._vhost_access(greeted) or live.doomed
        if refusal is None and not self._client.lost:
            return upstream
        upstream.endpoint.abort()
        if refusal is not None:
            await self._refuse_open(refusal, live)
        return None

    async def _log_in(self, link: UpstreamLink, greeted: Greeted) -> UpstreamConnection:
        login, tuned, user = greeted.login, greeted.tuned, greeted.identity.username
        where = f"{self._peer.host}:{self._peer.port}"
        room = PROPERTIES_LIMIT - await link.secret_size(login.credentials)
        client_properties = login.client_properties
        for kept in (ESSENTIAL_PROPERTIES, frozenset({b"capabilities"})):
            if len(client_properties) > room:
                client_properties = wire.table(
                    (key, value)
                    for key, value in wire.read_table(client_properties).items()
                    if key in kept
                )
        properties = upstream_properties(
            client_properties,
            {"user": user, "peer": where, "version": __version__},
            user + b"@" + where.encode(),
        )
        return await link.connect(
            greeted.vhost,
            login.credentials,
            properties,
            (tuned.channel_max, tuned.frame_max, tuned.heartbeat),
            self._peer,
        )

    @staticmethod
    def _translated(refused: Refused, link: UpstreamLink | None, greeted: Greeted) -> AmqpError:
        """The broker's refusal in the client's terms."""
        user = printable(greeted.identity.username)
        if refused.stage is not Stage.OPEN or link is None:
            if link is not None and link.settings.credentials == "client":
                text = b"access to vhost '%b' refused for user '%b' by the upstream broker"
                return _not_allowed(text % (printable(greeted.vhost), user))
            return AmqpError(ReplyCode.INTERNAL_ERROR, b"upstream broker refused the connection")
        try:
            code = ReplyCode(refused.code)
        except ValueError:
            code = ReplyCode.INTERNAL_ERROR
        explanation = refused.text.removeprefix(code.name.encode() + b" - ")
        ours = b"user '%b'" % link.service_user
        return AmqpError(code, explanation.replace(ours, b"user '%b'" % user))

    # --- the session ---

    def _pump(
        self, greeted: Greeted, live: Live, upstream: UpstreamConnection
    ) -> asyncio.Future[End]:
        """Start the session; the future tells when it has ended, and how."""
        gate, lines, identity = self._gate, self._lines, greeted.identity
        ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._running, self._ended = live, ended
        authority = Authority(
            engine=gate.engine,
            exchanges=gate.exchanges,
            epoch=gate.epoch,
            owner=gate.owner,
            identity=identity,
            vhost=greeted.vhost,
            peer=self._peer,
            lines=lines,
            registry=gate.registry,
            live=live,
            channel_limit=lambda: gate.store.user_limits(identity.username).max_channels,
        )
        link = gate.upstreams.route(greeted.vhost)
        session = Session(
            Context(
                vhost=greeted.vhost,
                username=identity.username,
                impersonator=authority.may_impersonate(),  # the login may be a while ago
                max_message_size=gate.settings.limits.max_message_size,
                service_user=link.service_user if link is not None else None,
            ),
            authority,
            gate.epoch,
            frame_max=greeted.tuned.frame_max,
            channel_max=greeted.tuned.channel_max,
            cancel_notify=b"consumer_cancel_notify" in greeted.login.capabilities,
            relay_secret=link is not None and link.settings.credentials == "client",
        )

        heartbeat = greeted.tuned.heartbeat
        lines.heartbeat = heartbeat
        pump = Pump(session, self._client, upstream.endpoint, self._end, lines.forced, heartbeat)
        authority.resume = pump.resume
        live.session = session
        live.close = pump.close
        live.recheck = pump.recheck
        authority.renewed = self._await_expiry
        self._client.write(self._handshake.accept_open())
        lines.opened(greeted.vhost)
        self._await_expiry(identity)
        pump.start(self._handshake.leftover(), upstream.first)
        if link is not None and link.renewal is not None and upstream.token is not None:
            self._leave = partial(link.renewal.leave, pump.renew)
            link.renewal.follow(upstream.token, pump.renew)
        return ended

    def _end(self, how: End) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(how)

    def _await_expiry(self, identity: Identity) -> None:
        """End the connection when the user's credentials end, and no earlier ones any more."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        at = self._gate.engine.expiry(identity)
        if at is not None:
            self._expiry = Expiry(at, self._expired)

    def _expired(self) -> None:
        self._lines.credential_expired()
        if self._running is not None:
            self._running.end(AmqpError(ReplyCode.CONNECTION_FORCED, b"credential expired"))


def _not_allowed(explanation: bytes) -> AmqpError:
    return AmqpError(ReplyCode.NOT_ALLOWED, explanation, 10, 40)
