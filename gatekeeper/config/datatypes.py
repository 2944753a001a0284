"""The types of the key table: text in, one Python value out, or a problem with its remedy.

Strategy: a Datatype is a name for the documentation and a function. The functions are as
strict as RabbitMQ's (cuttlefish's datatypes): ``yes``, ``TRUE`` and ``60s`` are errors where
RabbitMQ refuses them. No function puts the text into its message; the caller decides whether
the text may be shown.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.config.settings import Address
from gatekeeper.policy import pcre

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_BYTESIZE = re.compile(r"([0-9]{1,20})(KB|kb|MB|mb|GB|gb)?")
_DURATION = re.compile(r"(?:[0-9]{1,15}(?:\.[0-9]{1,9})?(?:ms|[fwdhms]))+")
_DURATION_PART = re.compile(r"([0-9.]+)(ms|[fwdhms])")
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")

_KIB = {"": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3}
_SECONDS = {
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
    "f": 1209600.0,
}


class BadValueError(Exception):
    """The text is not of this type. The message says what is: "expected ..."."""


@dataclass(frozen=True, slots=True)
class Datatype:
    """A type of the key table.

    name: for documentation and messages.
    convert: text to value; raises BadValueError.
    hidden: the text must never be shown.
    secret: the text may be ``encrypted:``, and becomes a Secret; always hidden too.
    """

    name: str
    convert: Callable[[str], object]
    hidden: bool = False
    secret: bool = False


def enum(*options: str, later: tuple[str, ...] = ()) -> Datatype:
    """One of these words, in this case; the value is the word.

    later: words that RabbitMQ accepts and the gate does not yet.
    """
    listed = " or ".join(", ".join(options).rsplit(", ", 1))

    def convert(text: str) -> str:
        if text in later:
            raise BadValueError(f"not supported yet; use {listed}")
        if text not in options:
            raise BadValueError(f"expected {listed}")
        return text

    return Datatype(f"one of {', '.join(options)}" if options[1:] else options[0], convert)


def switch(on: str, off: str, name: str) -> Datatype:
    """A boolean with these two literals."""

    def convert(text: str) -> bool:
        if text not in (on, off):
            raise BadValueError(f"expected {on} or {off}")
        return text == on

    return Datatype(name, convert)


def integer(low: int, high: int, unit: str = "") -> Datatype:
    """A decimal integer within these bounds."""

    def convert(text: str) -> int:
        if not _INTEGER.fullmatch(text):
            raise BadValueError("expected an integer, without a unit")
        return _bounded(int(text), low, high)

    return Datatype(f"integer{unit and f' ({unit})'}", convert)


def integer_or_infinity(low: int, high: int) -> Datatype:
    """As :func:`integer`, or the word ``infinity``; the value is then ``math.inf``."""
    bounded = integer(low, high)

    def convert(text: str) -> object:
        return math.inf if text == "infinity" else bounded.convert(text)

    return Datatype("integer or infinity", convert)


def bytesize(low: int, high: int, *, zero: bool = False) -> Datatype:
    """Bytes, with KB, MB or GB (powers of 1024); within the bounds, or 0 where zero is True."""

    def convert(text: str) -> int:
        parsed = _BYTESIZE.fullmatch(text)
        if parsed is None:
            raise BadValueError("expected bytes: an integer, with KB, MB or GB if need be")
        value = int(parsed[1]) * _KIB[(parsed[2] or "").lower()]
        return value if zero and value == 0 else _bounded(value, low, high, zero=zero)

    return Datatype("bytesize", convert)


def milliseconds(*, infinity: bool, zero: bool = False) -> Datatype:
    """Whole milliseconds of at least 1, or 0 where zero is True; the value is seconds,
    ``math.inf`` for ``infinity``."""

    def convert(text: str) -> float:
        if infinity and text == "infinity":
            return math.inf
        if not _INTEGER.fullmatch(text):
            also = " or infinity" if infinity else ""
            raise BadValueError(f"expected milliseconds (an integer without a unit){also}")
        return _bounded(int(text), 0 if zero else 1, 2**32 - 1) / 1000

    return Datatype("milliseconds or infinity" if infinity else "milliseconds", convert)


def duration() -> Datatype:
    """Milliseconds, or RabbitMQ's duration such as ``1m30s``; the value is seconds."""

    def convert(text: str) -> float:
        if _INTEGER.fullmatch(text):
            return _bounded(int(text), 0, 2**32 - 1) / 1000
        if not _DURATION.fullmatch(text):
            raise BadValueError(
                "expected milliseconds, or a duration of f, w, d, h, m, s and ms such as 1m30s"
            )
        seconds = sum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text))
        return _bounded(int(seconds * 1000), 0, 2**32 - 1) / 1000

    return Datatype("duration", convert)


def listener() -> Datatype:
    """``PORT`` or ``IP:PORT``; IPv6 as RabbitMQ writes it, without brackets (``::1:5672``)."""

    def convert(text: str) -> Address:
        host, colon, port = text.rpartition(":")
        address = Address(host=host, port=_port(port, lowest=0))
        if colon:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                raise BadValueError(
                    "expected PORT or IP:PORT; no host name, no brackets (::1:5672)"
                ) from None
        return address

    return Datatype("PORT or IP:PORT", convert)


def ip_address() -> Datatype:
    """An IP address; IPv6 without brackets."""

    def convert(text: str) -> str:
        if not _is_ip(text):
            raise BadValueError("expected an IP address, without brackets")
        return text

    return Datatype("IP address", convert)


def server() -> Datatype:
    """``HOST:PORT``; an IPv6 address with or without brackets."""

    def convert(text: str) -> Address:
        host, colon, port = text.rpartition(":")
        if not colon:
            raise BadValueError("expected HOST:PORT, such as 127.0.0.1:5672")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            valid = _is_ip(host) and ":" in host
        else:
            valid = _is_ip(host) or (len(host) <= 253 and bool(_HOST.fullmatch(host)))
        if not valid:
            raise BadValueError("expected HOST:PORT with a host name or an IP address")
        return Address(host=host, port=_port(port, lowest=1))

    return Datatype("HOST:PORT", convert)


def string(*, pattern: str = ".*", expected: str = "", hidden: bool = False) -> Datatype:
    """Any text that matches the pattern as a whole."""
    compiled = re.compile(pattern, re.DOTALL)

    def convert(text: str) -> str:
        if not compiled.fullmatch(text):
            raise BadValueError(f"expected {expected}")
        return text

    return Datatype("string", convert, hidden)


def regexp() -> Datatype:
    """A regular expression as RabbitMQ reads it (``valid_regex``); the value is bytes."""

    def convert(text: str) -> bytes:
        if not text:
            raise BadValueError("expected a regular expression, not an empty text")
        try:
            pcre.compile(text.encode())
        except pcre.PatternError as error:
            raise BadValueError(
                f"expected a regular expression: {error.message} at offset {error.offset}"
            ) from None
        return text.encode()

    return Datatype("regular expression", convert)


def words() -> Datatype:
    """Words between commas; the value is a tuple of them."""

    def convert(text: str) -> tuple[str, ...]:
        return tuple(word for part in text.split(",") if (word := part.strip()))

    return Datatype("comma-separated words", convert)


def constant(text: str, name: str, reason: str) -> Datatype:
    """A setting that has only one value so far. The value is the text."""

    def convert(given: str) -> str:
        if given != text:
            raise BadValueError(f"{reason}; use {text}")
        return given

    return Datatype(name, convert)


def secret() -> Datatype:
    """Text that is never shown. The caller decrypts and wraps it."""
    return Datatype("secret", str, hidden=True, secret=True)


def pem_file() -> Datatype:
    """A readable file that holds PEM, as RabbitMQ 4.3 checks; relative to the work directory."""

    def convert(text: str) -> Path:
        path = _existing(text, directory=False)
        try:
            with path.open("rb") as stream:
                found = b"-----BEGIN " in stream.read(1024 * 1024)
        except OSError:
            found = False
        if not found:
            raise BadValueError("the file holds no PEM block; convert it to PEM")
        return path

    return Datatype("PEM file", convert)


def readable_file() -> Datatype:
    """A file that can be read."""
    return Datatype("file", lambda text: _existing(text, directory=False))


def readable_path() -> Datatype:
    """A file or directory that can be read."""
    return Datatype("file or directory", lambda text: _existing(text, directory=True))


def output_path(*, off: str | None = None) -> Datatype:
    """A path that need not exist yet; the value is False for the word ``off``, if there is one."""

    def convert(text: str) -> Path | bool:
        if off is not None and text == off:
            return False
        if not text or "\0" in text:
            raise BadValueError("expected a path")
        return Path(text)

    return Datatype("path" if off is None else f"path or {off}", convert)


def _bounded(value: int, low: int, high: int, *, zero: bool = False) -> int:
    if not low <= value <= high:
        raise BadValueError(f"expected {low} to {high}{', or 0' if zero else ''}")
    return value


def _port(text: str, *, lowest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise BadValueError("expected a port, an integer")
    return _bounded(int(text), lowest, 65535)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _existing(text: str, *, directory: bool) -> Path:
    path = Path(text)
    try:
        mode = path.stat().st_mode
        readable = os.access(path, os.R_OK)
    except (OSError, ValueError):
        raise BadValueError(
            "the file does not exist or cannot be reached; check the path"
        ) from None
    if not (stat.S_ISREG(mode) or (directory and stat.S_ISDIR(mode))):
        raise BadValueError(f"expected a file{' or a directory' if directory else ''}")
    if not readable:
        raise BadValueError("the file cannot be read; check its permissions")
    return path
