"""Moves bytes between two endpoints and a session. It never reads AMQP.

Everything here is synchronous and short: a chunk comes in, the session says what is to be sent,
it is sent. Backpressure: one side is not read from while the other cannot take more.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable

from gatekeeper.errors import AmqpError, ReplyCode
from gatekeeper.model import Secret
from gatekeeper.protocol.session import Session
from gatekeeper.protocol.states import State
from gatekeeper.server.endpoint import (
    HOLD_CLOSED,
    HOLD_PRESSURE,
    HOLD_STALLED,
    HOLD_UNREAD,
    Endpoint,
)

DRAIN_TIMEOUT = 5.0
"""Seconds for the broker to answer what came before a client's error."""
CLOSE_OK_TIMEOUT = 10.0
"""Seconds for the client to answer a connection.close before its socket is closed."""
GONE_TIMEOUT = 10.0
"""Seconds for answers to what a client had sent that is gone."""
FATAL_DELAY = 3.0
"""Seconds that RabbitMQ waits after a broken frame stream (SILENT_CLOSE_DELAY)."""


class End(enum.Enum):
    """How a session came to its end, for the log."""

    ORDERLY = enum.auto()
    LOST = enum.auto()  # the client's connection ended without a word
    FATAL_FRAME = enum.auto()  # the client's frame stream was broken
    SILENT = enum.auto()  # the client missed its heartbeats


class Pump:
    """One running connection.

    ended: called once. forced: called with the error when a
    running session is ended that its client did not end. heartbeat: seconds as negotiated, 0 for
    none; heartbeats themselves just pass, but a peer from which nothing has come for two to three
    of them is given up: a broker as a client of its would, a client as RabbitMQ does.
    """

    __slots__ = (
        "_broker",
        "_client",
        "_client_heard",
        "_client_silences",
        "_ended",
        "_forced",
        "_heard",
        "_heartbeat",
        "_loop",
        "_resuming",
        "_silences",
        "_state",
        "_timer",
        "_watch",
        "session",
    )

    def __init__(
        self,
        session: Session,
        client: Endpoint,
        broker: Endpoint,
        ended: Callable[[End], None],
        forced: Callable[[AmqpError], None],
        heartbeat: int = 0,
    ) -> None:
        self.session = session
        self._client = client
        self._broker = broker
        self._ended: Callable[[End], None] | None = ended
        self._forced = forced
        self._state = State.RUNNING
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._heartbeat = heartbeat
        self._heard = True
        self._silences = 0
        self._client_heard = True
        self._client_silences = 0
        self._resuming = False
        self._watch: asyncio.TimerHandle | None = None

    def start(self, from_client: bytes, from_broker: bytes) -> None:
        """Take both sockets over; the arguments are what the handshakes have read too much."""
        client, broker = self._client, self._broker
        client.on_lost, broker.on_lost = self._client_lost, self._broker_lost
        client.on_writable = self._client_writable
        broker.on_writable = self._broker_writable
        if client.lost:
            self._client_lost(client.error)
            return
        if self._heartbeat:
            self._watch = self._loop.call_later(self._heartbeat, self._listen)
        broker.consume(self._from_broker, from_broker)
        client.consume(self._from_client, from_client)
        if broker.lost:
            self._broker_lost(broker.error)

    # --- bytes ---

    # Every wake-up passes here: what is due seldom stands behind a look at an attribute.

    def _from_client(self, buf: bytearray, pos: int, end: int) -> int:
        session, client = self.session, self._client
        self._client_heard = True
        done = session.client_data(buf, pos, end)
        moved = done > pos or len(session.to_broker) > 0
        if session.to_client and not client.writable:
            # The gate's own answers to a client that does not read must not pile up. What comes
            # from the broker is no reason to stop: such a client may be busy publishing.
            client.hold(HOLD_UNREAD)
        if session.to_client or session.state is not self._state:
            self._flush()
        elif session.to_broker:
            self._broker.send(session.to_broker)
        if session.client_stalled:
            client.hold(HOLD_STALLED)
            if session.client_tired:
                self.resume()
        elif client.held:
            client.release(HOLD_STALLED)
        if session.broker_stalled and moved:
            # It may wait for the end of the client's content.
            self.resume()
        return done

    def _from_broker(self, buf: bytearray, pos: int, end: int) -> int:
        session, broker = self.session, self._broker
        self._heard = True
        done = session.broker_data(buf, pos, end)
        if session.to_broker and not broker.writable:
            # What the gate itself sends, such as late deliveries that it gives back.
            broker.hold(HOLD_UNREAD)
        if session.to_broker or session.state is not self._state:
            self._flush()
        elif session.to_client:
            self._client.send(session.to_client)
        if session.broken is not None:
            self._give_up(session.broken)
            return end
        if session.broker_stalled:
            broker.hold(HOLD_STALLED)
            if session.broker_tired:
                self.resume()
        elif broker.held:
            broker.release(HOLD_STALLED)
        if (session.client_stalled or session.parked.lots) and done > pos:
            # What it waits for may just have come. Not now: the shared buffer is in use.
            self.resume()
        return done

    def _flush(self) -> None:
        session = self.session
        if session.to_broker:
            self._broker.send(session.to_broker)
        if session.to_client:
            self._client.send(session.to_client)
        if session.state is not self._state:
            self._moved(session.state)

    def resume(self) -> None:
        """An answer has come: judge again what waited for it, in the loop's next turn."""
        if not self._resuming:
            self._resuming = True
            self._loop.call_soon(self._refeed)

    def recheck(self) -> None:
        """The user's rights have changed: what was granted for good (consumers) is asked again."""
        if self._ended is None:
            return
        try:
            self.session.recheck()
            self._rechecked()
        except Exception:
            self._client.abort()
            raise

    def _rechecked(self) -> None:
        self._flush()
        if self.session.consumers.tired:
            self.resume()

    def _refeed(self) -> None:
        self._resuming = False
        if self._ended is None:
            return
        try:
            if self.session.consumers.busy:
                self.session.consumers.go_on()
                self._rechecked()
            if self._client.lost:
                self._without_client()
            elif self.session.client_stalled or self.session.parked.lots:
                self._client.refeed()
            if self.session.broker_stalled:
                self._broker.refeed()
        except Exception:
            # In a read callback the loop would close the socket; here it is ours to do.
            self._client.abort()
            raise

    # --- backpressure ---

    def _client_writable(self, writable: bool) -> None:
        if writable:
            self._client.release(HOLD_UNREAD)
        self._press(self._broker, writable=writable)

    def _broker_writable(self, writable: bool) -> None:
        if writable:
            self._broker.release(HOLD_UNREAD)
        self._press(self._client, writable=writable)

    @staticmethod
    def _press(source: Endpoint, *, writable: bool) -> None:
        if writable:
            source.release(HOLD_PRESSURE)
        else:
            source.hold(HOLD_PRESSURE)

    # --- a silent peer ---

    def _listen(self) -> None:
        """Once a heartbeat interval. While we do not read, silence says nothing."""
        self._silences = 0 if self._heard or self._broker.held else self._silences + 1
        self._heard = False
        if self._silences >= 2:
            text = f"missed heartbeats from upstream broker, timeout: {self._heartbeat}s"
            self._lose_broker(text.encode())
            return
        silent = not self._client_heard and not self._client.held
        self._client_silences = self._client_silences + 1 if silent else 0
        self._client_heard = False
        if self._client_silences >= 2:
            self._give_up_client()
            return
        self._watch = self._loop.call_later(self._heartbeat, self._listen)

    def _give_up_client(self) -> None:
        """Closed without a connection.close (``rabbit_reader`` on heartbeat_timeout)."""
        self._client.abort()
        self._finish(End.SILENT)

    # --- ends ---

    def _moved(self, state: State) -> None:
        """The session's state has changed: start the timer, or the end, that belongs to it."""
        self._state = state
        session = self.session
        if self._client.lost:
            if not self._outlasts_the_client():
                self._finish()  # it had left before (``_client_lost``): nobody is to be told
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if state in (State.DRAINING, State.FAILING):
            self._timer = self._loop.call_later(DRAIN_TIMEOUT, self._drained)
        elif state is State.RUNNING:
            # The client's error was void. If nothing of its bytes was left, none is fed again.
            self._client.release(HOLD_STALLED)
        elif state is State.TOLD:
            # Nothing more of the broker's can be for this client.
            self._broker.close(1.0)
            fatal = session.fatal
            self._timer = self._loop.call_later(
                FATAL_DELAY if fatal else CLOSE_OK_TIMEOUT, self._finish
            )
            self._client.release(HOLD_STALLED | HOLD_PRESSURE)
            self._loop.call_soon(self._client.refeed)
        elif state in (State.CLIENT_CLOSING, State.BROKER_CLOSING):
            self._timer = self._loop.call_later(CLOSE_OK_TIMEOUT, self._finish)
        elif state is State.DONE:
            if session.abort:
                self._client.abort()
            self._finish()

    def _drained(self) -> None:
        self.session.endings.tell()
        self._flush()

    def _give_up(self, reason: str) -> None:
        self.close(AmqpError(ReplyCode.INTERNAL_ERROR, f"upstream broker: {reason}".encode()))

    def close(self, error: AmqpError) -> None:
        """End the connection from the gate's side: the client is told, the broker dropped."""
        if self.session.state is State.RUNNING:
            self._forced(error)
        self.session.endings.close(error)
        self._flush()

    def renew(self, secret: Secret) -> None:
        """The service account has a new secret, which the broker must know here too."""
        if not self.session.renewals.renew(secret.value):
            text = b"upstream broker: the gate's new credentials are longer than frame_max"
            self.close(AmqpError(ReplyCode.CONNECTION_FORCED, text))
        self._flush()

    def _client_lost(self, _error: Exception | None) -> None:
        """What still waits for an answer is done all the same, if one comes soon: there are clients
        that publish and leave. (RabbitMQ's channels finish what they are at.)"""
        if self._ended is not None and self._outlasts_the_client():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(GONE_TIMEOUT, self._finish)
            return
        self._finish()

    def _outlasts_the_client(self) -> bool:
        waits = bool(self.session.parked.lots)
        return waits and self.session.among(State.RUNNING, State.FAILING)

    def _without_client(self) -> None:
        self.session.client_data(bytearray(), 0, 0)
        self._flush()
        if self.session.client_tired:
            self.resume()
        elif not self.session.parked.lots:
            self._finish()

    def _broker_lost(self, _error: Exception | None) -> None:
        if self._ended is None:
            return
        if self._client_silences and not self._client_heard:
            # The broker counts the same client's heartbeats, and was the first to act on it.
            self._give_up_client()
            return
        self._lose_broker(b"upstream broker connection lost")

    def _lose_broker(self, explanation: bytes) -> None:
        if self.session.state is State.RUNNING:
            self._forced(AmqpError(ReplyCode.CONNECTION_FORCED, explanation))
        self.session.endings.broker_lost(explanation)
        self._flush()

    def _finish(self, end: End | None = None) -> None:
        ended, self._ended = self._ended, None
        if ended is None:
            return
        for timer in (self._timer, self._watch):
            if timer is not None:
                timer.cancel()
        if end is None:
            lost = self.session.state is State.RUNNING
            end = End.FATAL_FRAME if self.session.fatal else End.LOST if lost else End.ORDERLY
        for endpoint in (self._client, self._broker):
            endpoint.hold(HOLD_CLOSED)
            endpoint.close()
        ended(end)
