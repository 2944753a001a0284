"""What the supervisor and its workers say to each other, as bytes.

Strategy: a message is a frozen dataclass; its name on the wire and the types of its fields are
all there is to a format, so one table (`_BY_NAME`) and one codec serve all of them. A frame is a
length (4 octets, big-endian) and that many bytes of UTF-8 JSON: an object with the message's
name under ``is`` and exactly its fields. Names of users and vhosts are bytes and travel as
Latin-1, an octet a character.

The two ends are one program, so there is no leniency: a size, a name, a field or a type that is
not in the table is an error, and whoever reads it gives the channel up.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType, NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from gatekeeper.errors import GatekeeperError
from gatekeeper.server.infos import (
    PROPERTIES_LIMIT,
    ChannelInfo,
    ClientProperties,
    ConnectionInfo,
    UpstreamStatus,
)
from gatekeeper.server.registry import Limit

FRAME_LIMIT = 128 * 1024
"""Bytes of one message, at most; lists that may be longer are sent in parts."""
NAME_LIMIT = 8 * 1024
"""Octets of a name. A user's is no short string: it may be a token's subject or a certificate's
DN. With all else that a listing shows of a connection it must fit a frame, escaped sixfold."""
TEXT_LIMIT = 2000
"""Characters of a text for people, at most; longer ones are cut when they are sent."""
INTEGER_LIMIT = 2**63
ITEMS_LIMIT = 1000

_LENGTH = struct.Struct(">L")


class ControlError(GatekeeperError):
    """Bytes on a control channel that are no message; ``str`` is one line for the log."""


# --- to a worker ---


@dataclass(frozen=True, slots=True)
class ListConnections:
    id: int


@dataclass(frozen=True, slots=True)
class ListChannels:
    id: int


@dataclass(frozen=True, slots=True)
class CloseConnections:
    """Close those that match everything that is not None, with 320 and ``reason``."""

    id: int
    number: int | None
    user: bytes | None
    vhost: bytes | None
    reason: bytes


@dataclass(frozen=True, slots=True)
class Refresh:
    """Another process has changed the store: take it over before you answer."""

    id: int


@dataclass(frozen=True, slots=True)
class ClearCaches:
    """Forget what backends have answered of this user, None: of everybody."""

    id: int
    user: bytes | None


@dataclass(frozen=True, slots=True)
class Statistics:
    id: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop in order; ``hurry``: without waiting for clients to leave."""

    hurry: bool


@dataclass(frozen=True, slots=True)
class Admitted:
    """The answer to Admit; ``reached`` is "none" where the connection has its place."""

    id: int
    reached: Limit


@dataclass(frozen=True, slots=True)
class WatchUser:
    """Say, with this round, how many channels the user has, and from then on what changes."""

    user: bytes
    round: int


@dataclass(frozen=True, slots=True)
class UnwatchUser:
    """Nobody counts this user's channels any more."""

    user: bytes


@dataclass(frozen=True, slots=True)
class ChannelAdmitted:
    """The answer to AdmitChannel. None: the channels cannot be counted now."""

    id: int
    user: bytes
    granted: bool | None


# --- both ways ---


@dataclass(frozen=True, slots=True)
class ExchangeChanged:
    """A client has declared or deleted it: what was known of it no longer counts."""

    vhost: bytes
    exchange: bytes


# --- from a worker ---


@dataclass(frozen=True, slots=True)
class Started:
    """It listens."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """It cannot start, and what the operator has to mend."""

    error: str


@dataclass(frozen=True, slots=True)
class Admit:
    """A place for a connection that limits apply to; None: no limit of this kind."""

    id: int
    number: int
    user: bytes
    vhost: bytes
    vhost_limit: int | None
    user_limit: int | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection that no limit applies to counts from now on."""

    number: int
    user: bytes
    vhost: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection, however it got its place, has given it back."""

    number: int


@dataclass(frozen=True, slots=True)
class AdmitChannel:
    """A place for one more channel of a user whose channels are limited."""

    id: int
    user: bytes
    limit: int


@dataclass(frozen=True, slots=True)
class ChannelsCounted:
    """The answer to WatchUser: what the user has, places granted before that included."""

    user: bytes
    round: int
    channels: int


@dataclass(frozen=True, slots=True)
class ChannelsChanged:
    """A watched user's channels since the last such message.

    opened: without asking, for this worker knows of no limit. ended: closed, or a place that is
    given back.
    """

    user: bytes
    opened: int
    ended: int


@dataclass(frozen=True, slots=True)
class UpstreamChanged:
    status: UpstreamStatus


@dataclass(frozen=True, slots=True)
class Changed:
    """This worker has committed a change of the store."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A part of the answer to ListConnections; ``more`` parts follow."""

    id: int
    connections: tuple[ConnectionInfo, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class ListedChannels:
    """The same for ListChannels."""

    id: int
    channels: tuple[ChannelInfo, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to what has figures for an answer, or none."""

    id: int
    figures: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Undone:
    """The answer to what could not be done."""

    id: int
    error: str


Request = ListConnections | ListChannels | CloseConnections | Refresh | ClearCaches | Statistics
ToWorker = Request | Stop | Admitted | WatchUser | UnwatchUser | ChannelAdmitted | ExchangeChanged
Answer = Listed | ListedChannels | Done | Undone
OfChannels = AdmitChannel | ChannelsCounted | ChannelsChanged
FromWorker = (
    Started
    | Failed
    | Admit
    | Opened
    | Ended
    | OfChannels
    | UpstreamChanged
    | Changed
    | ExchangeChanged
    | Answer
)
Message = ToWorker | FromWorker

_MESSAGES = (
    *(ListConnections, ListChannels, CloseConnections, Refresh, Statistics, Stop, Admitted),
    *(WatchUser, UnwatchUser, ChannelAdmitted, ExchangeChanged, ClearCaches),
    *(Started, Failed, Admit, Opened, Ended, AdmitChannel, ChannelsCounted, ChannelsChanged),
    *(UpstreamChanged, Changed, Listed, ListedChannels, Done, Undone),
)

Read = Callable[[Any], Any]


def _check(condition: object) -> None:
    if not condition:
        raise ValueError


def _read_int(value: Any) -> int:
    _check(type(value) is int and 0 <= value < INTEGER_LIMIT)
    return cast("int", value)


def _read_bool(value: Any) -> bool:
    _check(type(value) is bool)
    return cast("bool", value)


def _read_str(value: Any) -> str:
    _check(type(value) is str and len(value) <= TEXT_LIMIT)
    return cast("str", value)


def _read_bytes(value: Any) -> bytes:
    _check(type(value) is str and len(value) <= NAME_LIMIT)
    return cast("str", value).encode("latin-1")


def _read_properties(value: Any) -> bytes:
    _check(type(value) is str and len(value) <= PROPERTIES_LIMIT)
    return cast("str", value).encode("latin-1")


def _read_figures(value: Any) -> Mapping[str, int]:
    _check(type(value) is dict and len(value) <= ITEMS_LIMIT)
    return MappingProxyType({_read_str(key): _read_int(each) for key, each in value.items()})


def _read_fields(kind: type[Any], readers: Mapping[str, Read], value: Any) -> Any:
    _check(type(value) is dict and value.keys() == readers.keys())
    return kind(**{name: read(value[name]) for name, read in readers.items()})


_SCALARS: dict[Any, Read] = {
    int: _read_int,
    bool: _read_bool,
    str: _read_str,
    bytes: _read_bytes,
    ClientProperties: _read_properties,
    Mapping[str, int]: _read_figures,
}


def _reader(annotation: Any) -> Read:
    """How a field of this type is read; raises KeyError for a type that no message has."""
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        words = {word: word for word in arguments}
        return words.__getitem__
    if get_origin(annotation) is tuple:
        read = _reader(arguments[0])

        def read_all(value: Any) -> tuple[Any, ...]:
            _check(type(value) is list and len(value) <= ITEMS_LIMIT)
            return tuple(read(each) for each in value)

        return read_all
    if NoneType in arguments:
        some = _reader(arguments[0])
        return lambda value: None if value is None else some(value)
    readers = _readers(annotation)
    return lambda value: _read_fields(annotation, readers, value)


def _readers(kind: type[Any]) -> Mapping[str, Read]:
    hints = get_type_hints(kind)
    return {field.name: _reader(hints[field.name]) for field in fields(kind)}


_BY_NAME: Mapping[str, tuple[type[Any], Mapping[str, Read]]] = MappingProxyType(
    {kind.__name__: (kind, _readers(kind)) for kind in _MESSAGES}
)


def encode(message: Message) -> bytes:
    """The frame. Raises ControlError for a message that exceeds FRAME_LIMIT."""
    values = {"is": type(message).__name__, **_values(message)}
    body = json.dumps(values, default=_plain, separators=(",", ":")).encode("ascii")
    if len(body) > FRAME_LIMIT:
        raise ControlError(f"a message of {len(body)} bytes is too long to be sent")
    return _LENGTH.pack(len(body)) + body


def _values(item: Any) -> dict[str, object]:
    return {field.name: getattr(item, field.name) for field in fields(item)}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value):
        return _values(value)
    raise TypeError(type(value).__name__)


def decode(body: bytes) -> Message:
    """One message from a frame's body. Raises ControlError."""
    try:
        value = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
        kind, readers = _BY_NAME[value.pop("is")]
        return cast("Message", _read_fields(kind, readers, value))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # What is in it may be anything: it is not repeated.
        raise ControlError(f"{len(body)} bytes that are no message") from None


def _no_constant(_name: str) -> object:
    """NaN and the infinities, which Python reads and JSON does not have."""
    raise ValueError


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    _check(len(value) == len(pairs))
    return value


class Frames:
    """Bytes in, messages out, however the bytes were cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete now. Raises ControlError; then nothing more is read.

        Less than one frame is kept from call to call, provided the iterator is exhausted.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > FRAME_LIMIT:
                raise ControlError(f"a message of {size} bytes is too long")
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield decode(body)
