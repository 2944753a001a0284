"""The handshake towards a client: what RabbitMQ 4.3's server does from byte one to open-ok.

Strategy: one table, (state, method) -> handler, says everything a client may do; whatever is
not in it is an error, and how an error shows depends on the state alone (``_refuse``): before
``opening`` the peer is not trusted and gets silence for three seconds, from then on it gets a
connection.close. Bytes go in by :meth:`ClientHandshake.feed`, events come out one at a time.
Where a decision is the server's (login, open) the machine stands still until it is told, so
pipelined frames are looked at in order and never before their time.

Sources: RabbitMQ ``rabbit_reader``, ``rabbit_command_assembler``.
"""

from __future__ import annotations

import enum
import functools
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from gatekeeper.errors import AmqpError, ReplyCode, reply_text
from gatekeeper.model import Credentials
from gatekeeper.protocol import sasl, wire
from gatekeeper.protocol.erlang import amqp_error, frame_octets
from gatekeeper.protocol.events import (
    Closed,
    Event,
    Fail,
    Login,
    LogKind,
    Open,
    Send,
    State,
    Tuned,
)
from gatekeeper.protocol.header import HEADER_0_9_1, HEADER_1_1_0_9, HEADER_LENGTH, refuse_header
from gatekeeper.protocol.layouts import Abort, decode
from gatekeeper.protocol.methods import method_atom, method_name
from gatekeeper.protocol.stream import Frame, FrameBuffer, FrameError

SILENT_CLOSE_DELAY: Final = 3.0
"""Seconds of silence before an untrusted peer's socket is closed (RabbitMQ's constant)."""
CLOSING_TIMEOUT: Final = 30
"""At most these seconds are given to a client to answer connection.close."""
FRAME_MIN: Final = 8192
"""The smallest frame-max a client may negotiate (RabbitMQ 4.1.0 on)."""
FRAME_CAP: Final = 131072
"""No frame of a handshake may be larger, whatever was configured or negotiated."""
BUFFER_LIMIT: Final = 512 * 1024
"""Bytes that may wait at once: a whole receive buffer of pipelined frames, and a frame."""


class _Awaits(enum.Enum):
    NOTHING = enum.auto()
    LOGIN = enum.auto()
    OPEN = enum.auto()
    # Nothing more is read here: the session has taken over, or the connection is lost.
    NEVER = enum.auto()


class ClientHandshake:
    """One client's handshake.

    server_properties: raw table content for connection.start. mechanisms: names to offer, in
    order. channel_max, frame_max, heartbeat: for connection.tune, 0 for no limit.
    initial_frame_max: the frame limit until tune-ok. sasl_mechanisms: must hold every offered
    name (ValueError). Bytes of any content never raise; a call out of turn: RuntimeError.
    """

    def __init__(
        self,
        *,
        server_properties: bytes,
        mechanisms: tuple[str, ...],
        channel_max: int,
        frame_max: int,
        heartbeat: int,
        initial_frame_max: int,
        sasl_mechanisms: Mapping[str, sasl.Mechanism] = sasl.MECHANISMS,
    ) -> None:
        unknown = [name for name in mechanisms if name not in sasl_mechanisms]
        if unknown:
            raise ValueError(f"no such SASL mechanism: {', '.join(unknown)}")
        self.state = State.PRE_INIT
        self._server_properties = server_properties
        self._mechanisms = mechanisms
        self._sasl = sasl_mechanisms
        self._offer = Tuned(channel_max, frame_max, heartbeat)
        self._frame_max = initial_frame_max
        self._timeout = int(SILENT_CLOSE_DELAY)
        self._buffer = FrameBuffer()
        self._events: deque[Event] = deque()
        self._awaits = _Awaits.NOTHING
        self._answer: sasl.Mechanism | None = None
        self._logged_in = False
        self._mechanism = ""
        self._properties = b""
        self._capabilities: frozenset[bytes] = frozenset()
        self._client_name: bytes | None = None

    # --- For the server -------------------------------------------------------------------

    @property
    def wants_data(self) -> bool:
        """False while a decision is due or all is over: stop reading the socket."""
        return self._awaits is _Awaits.NOTHING

    def feed(self, data: bytes) -> None:
        """Take bytes from the client; after the end they are dropped.

        Holds at most BUFFER_LIMIT bytes: a client for which more would have to wait is lost.
        """
        if self.state is State.RUNNING:
            raise RuntimeError("the session has taken over")
        if self._awaits is _Awaits.NEVER:
            return
        if len(self._buffer) + len(data) > BUFFER_LIMIT:
            self._events.clear()
            self._abort(f"{{more_pipelined_than,{BUFFER_LIMIT}}}")
            return
        self._buffer.feed(data)

    def next_event(self) -> Event | None:
        """The next event; None: more data, a decision, or nothing at all is to come."""
        while not self._events and self._awaits is _Awaits.NOTHING:
            try:
                more = self._header() if self.state is State.PRE_INIT else self._frame()
            except FrameError as error:
                self._fatal_frame(error)
                more = True
            if not more:
                return None
        return self._events.popleft() if self._events else None

    def accept_login(self) -> bytes:
        """The client is who it says: connection.tune, to be sent."""
        self._decide(_Awaits.LOGIN)
        self._logged_in = True
        self.state = State.TUNING
        offer = self._offer
        args = offer.channel_max.to_bytes(2, "big") + offer.frame_max.to_bytes(4, "big")
        return wire.method(0, 10, 30, args + offer.heartbeat.to_bytes(2, "big"))

    def refuse_login(self, reason: str = "") -> Fail:
        """The client may not log in. ``reason`` is for the log; the client never learns it."""
        self._decide(_Awaits.LOGIN)
        log_text = f"{self._mechanism} login refused: {reason}"
        told = b"authentication_failure_close" in self._capabilities
        explanation = (
            f"Login was refused using authentication mechanism {self._mechanism}. "
            "For details see the broker logfile."
        )
        reply = _close(ReplyCode.ACCESS_REFUSED, explanation.encode()) if told else None
        if self.state is State.SECURING:
            # After a challenge RabbitMQ treats a refusal as any other handshake failure.
            term = amqp_error(ReplyCode.ACCESS_REFUSED, log_text, 10, 21)
            log_text = f"{{handshake_error,{self.state},{term}}}"
            return self._lose(
                LogKind.HANDSHAKE_ERROR, log_text, reply=reply, delay=SILENT_CLOSE_DELAY
            )
        # Told or not, RabbitMQ now reads on for three seconds, so a close-ok ends it at once.
        return self._lose(LogKind.LOGIN_REFUSED, log_text, reply=reply, listen=True)

    def accept_open(self) -> bytes:
        """The vhost is open: connection.open-ok, to be sent. The session takes over."""
        self._decide(_Awaits.OPEN)
        self.state = State.RUNNING
        self._awaits = _Awaits.NEVER
        return wire.method(0, 10, 41, wire.shortstr(b""))

    def refuse_open(self, code: ReplyCode, explanation: bytes) -> Fail:
        """The vhost cannot be opened: connection.close with the ids of connection.open."""
        self._decide(_Awaits.OPEN)
        reply = _close(code, explanation, 10, 40)
        text = explanation.decode("utf-8", "backslashreplace")
        if code is ReplyCode.NOT_ALLOWED:
            return self._lose(LogKind.OPEN_REFUSED, text, reply=reply, listen=True)
        log_text = _opening_error(code, text, 10, 40)
        return self._lose(LogKind.OPENING_ERROR, log_text, reply=reply, listen=True)

    def leftover(self) -> bytes:
        """After accept_open: what the client has sent behind connection.open, once."""
        if self.state is not State.RUNNING:
            raise RuntimeError(f"no session yet in state {self.state}")
        return self._buffer.drain()

    def _decide(self, expected: _Awaits) -> None:
        if self._awaits is not expected:
            raise RuntimeError(f"no {expected.name.lower()} to decide in state {self.state}")
        self._awaits = _Awaits.NOTHING

    # --- Header and frames ----------------------------------------------------------------

    def _header(self) -> bool:
        header = self._buffer.take(HEADER_LENGTH)
        if header is None:
            return False
        if header in (HEADER_0_9_1, HEADER_1_1_0_9):
            self.state = State.STARTING
            self._events.append(_start(self._server_properties, self._mechanisms))
            return True
        reply, log_text = refuse_header(header)
        self._events.append(self._lose(LogKind.BAD_HEADER, log_text, reply=reply))
        return True

    def _frame(self) -> bool:
        """Take one frame; False if none is complete. Raises FrameError."""
        frame = self._buffer.next(min(self._frame_max or FRAME_CAP, FRAME_CAP))
        if frame is None:
            return False
        if frame.channel:
            self._unexpected_frame(frame)
        elif frame.type == wire.FRAME_METHOD and len(frame.payload) >= 4:
            self._method(frame.payload)
        elif frame.type == wire.FRAME_BODY or (
            frame.type == wire.FRAME_HEADER and len(frame.payload) >= 12
        ):
            self._unexpected_frame(frame)
        elif frame.type != wire.FRAME_HEARTBEAT or frame.payload:
            shown = self._shown(frame.type, frame.payload)
            self._refuse(ReplyCode.FRAME_ERROR, f"{shown}: unknown_frame")
        return True

    def _unexpected_frame(self, frame: Frame) -> None:
        shown = self._shown(frame.type, frame.payload)
        self._refuse(ReplyCode.UNEXPECTED_FRAME, shown, channel=frame.channel)

    def _shown(self, frame_type: int, payload: bytes) -> str:
        """An offending frame as RabbitMQ prints it, save where it may hold a password."""
        octets = frame_octets(payload)
        if self.state in (State.STARTING, State.SECURING):
            octets = f"{len(payload)} octets, hidden"
        return f"type {frame_type}, {octets}"

    def _method(self, payload: bytes) -> None:
        ids = (int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big"))
        try:
            fields = _fields(ids, payload[4:])
        except Abort:
            # RabbitMQ's reader crashes on an unknown method: not a word, in any state.
            self._abort(f"{{unknown_method_id,{{{ids[0]},{ids[1]}}}}}")
            return
        except AmqpError as error:
            if self.state is State.CLOSED:
                self._unreadable_while_closing()
            elif error.code is ReplyCode.INTERNAL_ERROR:
                self._malformed(ids)
            else:
                self._refuse(error.code, str(error.explanation, errors="replace"), *ids)
            return
        handler = TRANSITIONS.get((self.state, method_name(*ids)))
        if handler:
            handler(self, fields)
        else:
            text = f"unexpected method in connection state {self.state}"
            self._refuse(ReplyCode.CHANNEL_ERROR, text, *ids)

    # --- Transitions: see TRANSITIONS -----------------------------------------------------

    def _start_ok(self, fields: tuple[Any, ...]) -> None:
        self._properties, name, response, _locale = fields
        try:
            self._mechanism, start = sasl.select(name, self._mechanisms, self._sasl)
        except sasl.SaslError as error:
            self._refuse(error.code, error.log_text, 10, 11)
            return
        properties = wire.known_table(self._properties)
        self._capabilities = _true_keys(properties.get(b"capabilities"))
        tag, client_name = properties.get(b"connection_name", ("V", None))
        self._client_name = client_name if tag == "S" and isinstance(client_name, bytes) else None
        self._authenticate(start, response, 11)

    def _secure_ok(self, fields: tuple[Any, ...]) -> None:
        assert self._answer is not None  # noqa: S101 - the state is entered with it
        self._authenticate(self._answer, fields[0], 21)

    def _authenticate(self, step: sasl.Mechanism, response: bytes, method_id: int) -> None:
        try:
            answer = step(response)
        except sasl.SaslError as error:
            self._refuse(error.code, error.log_text, 10, method_id)
            return
        except wire.WireError:
            self._malformed((10, method_id))
            return
        if isinstance(answer, sasl.Challenge):
            self._answer = answer.answer
            self.state = State.SECURING
            self._events.append(Send(wire.method(0, 10, 20, wire.longstr(answer.data))))
            return
        refusal = None
        if isinstance(answer, sasl.Refusal):
            refusal = answer.reason
            answer = Credentials(self._mechanism, b"")
        self._awaits = _Awaits.LOGIN
        self._events.append(
            Login(answer, self._properties, self._capabilities, self._client_name, refusal)
        )

    def _tune_ok(self, fields: tuple[Any, ...]) -> None:
        channel_max, frame_max, heartbeat = fields
        offer = self._offer
        fault = _out_of_range("frame_max", frame_max, FRAME_MIN, offer.frame_max) or _out_of_range(
            "channel_max", channel_max, 1, offer.channel_max
        )
        if fault:
            text = f"failed to negotiate connection parameters: {fault}"
            self._events.append(self._lose(LogKind.TUNE_FAILED, text, delay=SILENT_CLOSE_DELAY))
            return
        self.state = State.OPENING
        self._frame_max = frame_max
        self._timeout = heartbeat
        self._events.append(Tuned(channel_max, frame_max, heartbeat))

    def _open(self, fields: tuple[Any, ...]) -> None:
        self._awaits = _Awaits.OPEN
        self._events.append(Open(fields[0]))

    def _close(self, _fields: tuple[Any, ...]) -> None:
        self._events.append(Send(wire.method(0, 10, 51)))

    def _close_ok(self, _fields: tuple[Any, ...]) -> None:
        self._awaits = _Awaits.NEVER
        self._events.append(Closed())

    # --- Failures -------------------------------------------------------------------------

    def _refuse(
        self,
        code: ReplyCode,
        explanation: str,
        class_id: int = 0,
        method_id: int = 0,
        channel: int = 0,
    ) -> None:
        """An error of the client, shown as the state wants it."""
        if self.state is State.CLOSED:
            return
        if self.state is State.OPENING:
            log_text = _opening_error(code, explanation, class_id, method_id)
            reply = _close(code, explanation.encode(), class_id, method_id)
            self._events.append(
                self._lose(
                    LogKind.OPENING_ERROR, log_text, reply=reply, listen=True, channel=channel
                )
            )
            return
        self._silence(amqp_error(code, explanation, class_id, method_id), channel)

    def _malformed(self, ids: tuple[int, int]) -> None:
        """Arguments that cannot be read: silence in every state before running."""
        self._silence(f"{{cannot_decode,'{method_atom(*ids)}'}}")

    def _unreadable_while_closing(self) -> None:
        """Ignored; but without a user to name in its log RabbitMQ crashes over it, seen so."""
        if not self._logged_in:
            self._abort("cannot_decode")

    def _fatal_frame(self, error: FrameError) -> None:
        """Framing is lost: even a peer that is told cannot answer any more."""
        shown = f"{self._shown(error.type, error.payload)}: {error.reason}"
        code = ReplyCode.FRAME_ERROR
        if self.state is State.CLOSED and not self._logged_in:
            self._abort(amqp_error(code, shown, 0, 0))
            return
        if self.state is not State.OPENING:
            self._silence(amqp_error(code, shown, 0, 0))
            return
        log_text = _opening_error(code, shown, 0, 0)
        reply = _close(code, shown.encode())
        self._events.append(
            self._lose(LogKind.OPENING_ERROR, log_text, reply=reply, delay=SILENT_CLOSE_DELAY)
        )

    def _silence(self, term: str, channel: int = 0) -> None:
        log_text = f"{{handshake_error,{self.state},{term}}}"
        self._events.append(
            self._lose(LogKind.HANDSHAKE_ERROR, log_text, delay=SILENT_CLOSE_DELAY, channel=channel)
        )

    def _abort(self, term: str) -> None:
        log_text = f"{{handshake_error,{self.state},{term}}}"
        self._events.append(self._lose(LogKind.HANDSHAKE_ERROR, log_text))

    def _lose(
        self,
        kind: LogKind,
        log_text: str,
        *,
        reply: bytes | None = None,
        delay: float = 0.0,
        listen: bool = False,
        channel: int = 0,
    ) -> Fail:
        """End the handshake; with ``listen`` the closing dialogue is still read."""
        grace = min(self._timeout or CLOSING_TIMEOUT, CLOSING_TIMEOUT) if listen else 0
        fail = Fail(reply, delay, listen, float(grace), kind, log_text, self.state, channel)
        self.state = State.CLOSED
        self._awaits = _Awaits.NOTHING if listen else _Awaits.NEVER
        if not listen:
            self._buffer.drain()
        return fail


Handler = Callable[[ClientHandshake, tuple[Any, ...]], None]
"""Takes the fields of its method; what each of them is follows from the method's layout."""

TRANSITIONS: Final[Mapping[tuple[State, str], Handler]] = MappingProxyType(
    {
        (State.STARTING, "connection.start-ok"): ClientHandshake._start_ok,
        (State.SECURING, "connection.secure-ok"): ClientHandshake._secure_ok,
        (State.TUNING, "connection.tune-ok"): ClientHandshake._tune_ok,
        (State.OPENING, "connection.open"): ClientHandshake._open,
        (State.CLOSED, "connection.close"): ClientHandshake._close,
        (State.CLOSED, "connection.close-ok"): ClientHandshake._close_ok,
    }
)
"""What a client may send on channel 0, and when. Heartbeats are ignored in every state."""


_remembered_fields = functools.lru_cache(maxsize=256)(functools.partial(decode, 0))


def _fields(ids: tuple[int, int], data: bytes) -> tuple[Any, ...]:
    """As ``decode``: clients tune, and open a vhost, in few ways. What holds a secret is none."""
    if ids in _OFTEN_ALIKE and len(data) <= 512:
        return _remembered_fields(ids, data)
    return decode(0, ids, data)


_OFTEN_ALIKE: Final = frozenset({(10, 31), (10, 40)})


@functools.lru_cache(maxsize=16)
def _start(server_properties: bytes, mechanisms: tuple[str, ...]) -> Send:
    """connection.start: the same for everybody, until the broker says something new of itself."""
    args = (
        b"\x00\x09"
        + wire.longstr(server_properties)
        + wire.longstr(" ".join(mechanisms).encode())
        + wire.longstr(b"en_US")
    )
    return Send(wire.method(0, 10, 10, args))


def _out_of_range(field: str, chosen: int, minimum: int, offered: int) -> str | None:
    """RabbitMQ ``validate_negotiated_integer_value``; 0 is no limit on either side."""
    if chosen and chosen < minimum:
        order, bound, limit = "lower", "minimum", minimum
    elif offered and (not chosen or chosen > offered):
        order, bound, limit = "higher", "maximum", offered
    else:
        return None
    detail = " (no limit)" if field == "channel_max" and not chosen else ""
    return (
        f"negotiated {field} = {chosen}{detail} is {order} than the {bound} allowed value ({limit})"
    )


def _true_keys(capabilities: wire.Value | None) -> frozenset[bytes]:
    if capabilities is None or not isinstance(capabilities[1], dict):
        return frozenset()
    return frozenset(key for key, value in capabilities[1].items() if value == ("t", True))


def _close(code: ReplyCode, explanation: bytes, class_id: int = 0, method_id: int = 0) -> bytes:
    return wire.close_method(0, 10, code, reply_text(code, explanation), class_id, method_id)


def _opening_error(code: ReplyCode, explanation: str, class_id: int, method_id: int) -> str:
    error = amqp_error(code, explanation, class_id, method_id)
    return f" {{handshake_error,opening,\n {error}}}"
