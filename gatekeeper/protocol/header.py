"""The protocol header: the first eight bytes, and what RabbitMQ 4 answers to those it refuses."""

from __future__ import annotations

from typing import Final

from gatekeeper.protocol.erlang import erlang_binary

HEADER_LENGTH: Final = 8
HEADER_0_9_1: Final = b"AMQP\x00\x00\x09\x01"
HEADER_1_1_0_9: Final = b"AMQP\x01\x01\x00\x09"
"""How some old clients of 0-9 announce themselves; served as 0-9-1."""
HEADER_SASL_1_0: Final = b"AMQP\x03\x01\x00\x00"


def refuse_header(header: bytes) -> tuple[bytes, str]:
    """The protocol header to answer with, and the text for the log.

    As RabbitMQ 4: an unknown 0-9 gets the 0-9-1 header, everything else that of AMQP 1.0 with
    SASL. The one exception is a client that asked for just that: we do not speak 1.0.
    """
    if not header.startswith(b"AMQP"):
        return HEADER_SASL_1_0, _foreign(header)
    version = header[4:]
    log_text = "{bad_version,{" + ",".join(map(str, version)) + "}}"
    known_0_9 = version[:2] == b"\x00\x00" and version[2] >= 9
    if known_0_9 or header == HEADER_SASL_1_0:
        return HEADER_0_9_1, log_text
    return HEADER_SASL_1_0, log_text


def _foreign(header: bytes) -> str:
    hint = " detected on {} port. Ensure the client is connecting to the correct port."
    if header[:2] == b"\x16\x03" and header[5] == 1:
        return "TLS client" + hint.format("non-TLS AMQP")
    if header.startswith(b"GET "):
        return "HTTP GET request" + hint.format("AMQP")
    return f"client did not start with AMQP protocol header: {erlang_binary(header)}"
