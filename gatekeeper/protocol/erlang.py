"""Values as Erlang prints them, which is how RabbitMQ's reply texts and log lines show bytes."""

from __future__ import annotations

import re
from typing import Final

from gatekeeper.errors import ReplyCode
from gatekeeper.protocol.methods import method_atom

_SHOWN: Final = 16
_COLUMNS: Final = 80
_RETURNED: Final = b" returned an error: "
_PIECE: Final = re.compile(r'"(?:[^"\\]|\\.)*"|.', re.DOTALL)
_ESCAPES: Final = {
    8: "\\b",
    9: "\\t",
    10: "\\n",
    11: "\\v",
    12: "\\f",
    13: "\\r",
    27: "\\e",
    34: '\\"',
    92: "\\\\",
}


def erlang_binary(data: bytes) -> str:
    """Bytes as Erlang prints a binary: ``<<"abc">>`` if printable, else ``<<1,2,3>>``."""
    if data and all(32 <= octet < 127 or octet >= 160 or octet in _ESCAPES for octet in data):
        return '<<"' + "".join(_ESCAPES.get(octet, chr(octet)) for octet in data) + '">>'
    return "<<" + ",".join(map(str, data)) + ">>"


def frame_octets(payload: bytes) -> str:
    """How RabbitMQ shows an offending frame's payload in its reply text."""
    label = "all" if len(payload) <= _SHOWN else "first 16"
    return f"{label} octets = {erlang_binary(payload[:_SHOWN])}"


def erlang_string(text: str) -> str:
    """Text as Erlang prints a string: quoted, with control characters escaped; an empty one is
    the empty list."""
    if not text:
        return "[]"
    return '"' + "".join(_shown(char) for char in text) + '"'


def with_error(text: bytes, detail: bytes) -> bytes:
    """A refusal's text with what the engine adds to it, laid out as RabbitMQ's where that is a
    backend's error."""
    why, marker, term = detail.partition(_RETURNED)
    head = text + why + marker
    column = len(head.decode("utf-8", "replace"))
    if not marker or column < _COLUMNS:
        return text + detail
    return head + broken_lines(term.decode("utf-8", "replace"), column).encode()


def broken_lines(term: str, column: int) -> str:
    """A term as Erlang's ``~p`` prints it from a column on that lies beyond its 80 columns.

    Nothing fits there, so each element but the first is on a line of its own, below the first
    (``io_lib_pretty``). term: as it is on one line.
    """
    shown: list[str] = []
    starts: list[int] = []
    for piece in _PIECE.findall(term):
        shown.append(piece)
        column += len(piece)
        if piece in "{[":
            starts.append(column)
        elif piece in "}]" and starts:
            starts.pop()
        elif piece == "," and starts:
            column = starts[-1]
            shown.append("\n" + " " * column)
    return "".join(shown)


def amqp_error(code: ReplyCode, explanation: str, class_id: int, method_id: int) -> str:
    """RabbitMQ's ``#amqp_error{}`` as its log shows it; ids 0, 0 where no method is at fault."""
    atom = method_atom(class_id, method_id)
    shown = atom if atom == "none" else f"'{atom}'"
    return f"{{amqp_error,{code.name.lower()},{erlang_string(explanation)},{shown}}}"


def _shown(char: str) -> str:
    code = ord(char)
    if code in _ESCAPES:
        return _ESCAPES[code]
    return char if char.isprintable() else f"\\x{{{code:X}}}"
