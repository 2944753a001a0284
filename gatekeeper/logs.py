"""Logs: RabbitMQ's categories, levels and line format, on structlog.

Strategy: one logger per category knows the lowest level that any output wants, so a line that
nobody wants costs one comparison. What passes is redacted once, then rendered for each output
that wants it. Outputs never raise: a full disk or a closed pipe loses lines, not clients.

Level rule (rabbit_prelaunch_logging): a category's own level, else the output's. Plain lines
look like RabbitMQ's, ``TIME [level] message``; every line of a longer message gets the same
head, so that text from a client cannot pass for a line of its own.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

import structlog

from gatekeeper.config.settings import LogFormat, LogLevel, LogSettings
from gatekeeper.errors import ConfigError, printable
from gatekeeper.model import Secret

LEVELS: Mapping[LogLevel, int] = MappingProxyType(
    {
        "debug": 10,
        "info": 20,
        "notice": 25,
        "warning": 30,
        "error": 40,
        "critical": 50,
        "alert": 60,
        "emergency": 70,
        "none": 1000,
    }
)
"""Severity by name; a line passes where its level is at least that of the setting."""

HIDDEN = "***"
_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)([^/@\s]*@)?([^\s?#'\"]*)(\?[^\s#'\"]*)?")
"""Scheme, user and password, the rest up to the query, the query."""

_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase|$)|pwd|secret|token|credential|private_?key|authorization|cookie",
    re.IGNORECASE,
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BARE = re.compile(r'[^\s"=]+')
_HEAD = ("time", "level", "category", "msg")
_REOPEN_SECONDS = 1.0
_COLORS = {"error": "\x1b[31m", "warning": "\x1b[33m", "debug": "\x1b[38;5;246m"}
_NO_COLOR = "\x1b[0m"

Event = MutableMapping[str, Any]


class Logger(structlog.BoundLoggerBase):
    """A category's logger. Fields are keyword arguments; ``bind`` keeps some for every line."""

    _logger: Channel

    def is_enabled(self, level: LogLevel) -> bool:
        """Would a line of this level go anywhere? For arguments that are costly to make."""
        return LEVELS[level] >= self._logger.floor

    def debug(self, event: str, **fields: object) -> None:
        if self._logger.floor <= 10:
            self._emit("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        if self._logger.floor <= 20:
            self._emit("info", event, fields)

    def notice(self, event: str, **fields: object) -> None:
        if self._logger.floor <= 25:
            self._emit("notice", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        if self._logger.floor <= 30:
            self._emit("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        if self._logger.floor <= 40:
            self._emit("error", event, fields)

    def critical(self, event: str, **fields: object) -> None:
        if self._logger.floor <= 50:
            self._emit("critical", event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """An error with the traceback of the exception that is being handled."""
        if self._logger.floor <= 40:
            self._emit("error", event, {"exc_info": True, **fields})

    def _emit(self, level: LogLevel, event: str, fields: dict[str, object]) -> None:
        try:
            _, processed = self._process_event(level, event, fields)
        except structlog.DropEvent:
            return
        self._logger.write(level, processed)


class Output(Protocol):
    """Where lines go. ``write`` takes whole lines and never raises."""

    @property
    def level(self) -> LogLevel: ...
    @property
    def render(self) -> Callable[[LogLevel, Mapping[str, Any]], str]: ...
    def write(self, text: str) -> None: ...
    def close(self) -> None: ...


class Channel:
    """A category: its outputs with the lowest level that each wants of it."""

    __slots__ = ("_category", "_outputs", "floor")

    def __init__(self, category: str, outputs: tuple[tuple[int, Output], ...]) -> None:
        self._category = category
        self._outputs = outputs
        self.floor = min((level for level, _ in outputs), default=LEVELS["none"])

    def write(self, level: LogLevel, event: Mapping[str, Any]) -> None:
        for lowest, output in self._outputs:
            if LEVELS[level] >= lowest:
                output.write(output.render(level, {**event, "category": self._category}))


class Outputs:
    """structlog's logger factory: a Channel per category over the configured outputs."""

    def __init__(self, settings: LogSettings, outputs: tuple[Output, ...]) -> None:
        self._levels = settings.levels
        self._outputs = outputs

    def __call__(self, category: str = "default") -> Channel:
        own = self._levels.get(category) if category != "default" else None
        return Channel(category, tuple((LEVELS[own or out.level], out) for out in self._outputs))

    def close(self) -> None:
        for output in self._outputs:
            output.close()


def configure(settings: LogSettings) -> None:
    """Open the outputs and make them structlog's; a second call replaces the first.

    Loggers that were made before keep the old outputs. The standard library's ``logging``
    (asyncio and libraries) goes to the category ``default`` from level warning on.
    Raises ConfigError: the log file cannot be opened.
    """
    outputs = Outputs(settings, _open(settings))
    close()
    structlog.configure(
        processors=[redact, structlog.processors.format_exc_info],
        wrapper_class=Logger,
        logger_factory=outputs,
        context_class=dict,
        cache_logger_on_first_use=False,
    )
    logging.getLogger().addHandler(_Bridge(get_logger("default")))


def close() -> None:
    """Undo :func:`configure`: close the outputs. Loggers that are still used lose their lines."""
    outputs = structlog.get_config()["logger_factory"]
    if not isinstance(outputs, Outputs):
        return
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Bridge):
            root.removeHandler(handler)
    structlog.reset_defaults()
    outputs.close()


def get_logger(category: str) -> Logger:
    """The logger of a category: ``default``, ``connection``, ``channel``, ``user`` or ``audit``.

    Call it after :func:`configure`; without, lines go to the console as by default.
    """
    if not isinstance(structlog.get_config()["logger_factory"], Outputs):
        configure(LogSettings())
    return cast("Logger", structlog.get_logger(category).bind())


def redact(_logger: object, _method: str, event: Event) -> Event:
    """structlog processor: hide every Secret and every field that is named like one."""
    return {key: _safe(key, value) for key, value in event.items()}


def _safe(key: str, value: object) -> object:
    if isinstance(value, Secret) or (_SECRET_KEY.search(key) and value is not None):
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(k): _safe(str(k), v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe("", item) for item in value]
    if isinstance(value, bytes):
        return printable(value).decode("utf-8", "replace")
    return value


def render_plain(level: LogLevel, event: Mapping[str, Any], color: str = "") -> str:
    """``TIME [level] message key=value``; every line of the message with the same head."""
    moment = datetime.now(UTC).astimezone().isoformat(" ", "microseconds")
    label = f"{color}[{level}]{_NO_COLOR}" if color else f"[{level}]"
    fields = [
        f"{key}={_field(value)}"
        for key, value in event.items()
        if key not in {"event", "category", "exception"}
    ]
    text = " ".join([str(event["event"]), *fields])
    if trace := event.get("exception"):
        text = f"{text}\n{trace}"
    lines = _CONTROL.sub(_escape, text).split("\n")
    return "".join(f"{moment} {label} {line}\n" for line in lines)


def render_color(level: LogLevel, event: Mapping[str, Any]) -> str:
    """As :func:`render_plain`, with the level in colour."""
    return render_plain(level, event, _COLORS.get(level, ""))


def render_json(level: LogLevel, event: Mapping[str, Any]) -> str:
    """One object a line: time (RFC 3339), level, category, msg, then the fields.

    A field that has one of these four names is written with an underscore behind it.
    """
    record: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(" ", "microseconds"),
        "level": level,
        "category": event["category"],
        "msg": event["event"],
    }
    for key, value in event.items():
        if key not in {"event", "category"}:
            record[f"{key}_" if key in _HEAD else key] = value
    return json.dumps(record, ensure_ascii=False, default=str) + "\n"


def _field(value: object) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def _open(settings: LogSettings) -> tuple[Output, ...]:
    outputs: list[Output] = []
    if settings.console:
        outputs.append(_Console(settings))
    if settings.file is not None:
        outputs.append(_File(settings.file, settings.file_level, settings.file_formatter))
    return tuple(outputs)


def _renderer(form: LogFormat) -> Callable[[LogLevel, Mapping[str, Any]], str]:
    return render_json if form == "json" else render_plain


class _Console:
    """Standard output or standard error, as they are when the logs are configured."""

    def __init__(self, settings: LogSettings) -> None:
        self._stream = sys.stderr if settings.console_stdio == "stderr" else sys.stdout
        self.level = settings.console_level
        self.render = _renderer(settings.console_formatter)
        plain = settings.console_formatter == "plaintext"
        if plain and settings.console_use_colors and self._stream.isatty():
            self.render = render_color

    def write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        data = text.encode(encoding, "backslashreplace").decode(encoding)
        try:
            self._stream.write(data)
            self._stream.flush()
        except (OSError, ValueError):  # the reader is gone, or the stream was closed
            return

    def close(self) -> None:
        """The stream belongs to the process."""


class _File:
    """Appends whole lines; opens the path anew when the file was moved away (logrotate)."""

    def __init__(self, path: Path, level: LogLevel, form: LogFormat) -> None:
        self._path = path
        self.level = level
        self.render = _renderer(form)
        try:
            self._file = self._open()
        except OSError as error:
            raise ConfigError(
                f"log.file: cannot open {str(path)!r}: {error.strerror}; check the path and its"
                " permissions"
            ) from None
        self._checked = time.monotonic()

    def _open(self) -> io.FileIO:
        # Not readable for everybody: names and addresses of clients are in it.
        mode = 0o640
        return io.FileIO(self._path, "a", opener=lambda path, flags: os.open(path, flags, mode))

    def write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            if time.monotonic() - self._checked >= _REOPEN_SECONDS:
                self._reopen()
            while data and (written := self._file.write(data)):
                data = data[written:]
        except (OSError, ValueError):  # disk full, or closed by a new configuration
            return

    def _reopen(self) -> None:
        self._checked = time.monotonic()
        if not self._moved():
            return
        try:
            fresh = self._open()
        except OSError:
            return  # better the moved file than none
        self._file.close()
        self._file = fresh

    def _moved(self) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        self._file.close()


class _Bridge(logging.Handler):
    """Hands lines of the standard library's ``logging`` on."""

    def __init__(self, target: Logger) -> None:
        super().__init__(logging.WARNING)
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit the format
            message = str(record.msg)
        write = self._target.error if record.levelno >= logging.ERROR else self._target.warning
        write(message, logger=record.name, exc_info=record.exc_info)


def without_url_secrets(text: str) -> str:
    """URLs in it without what may be a secret: user, password or token, and the query."""

    def shown(url: re.Match[str]) -> str:
        user = f"{HIDDEN}@" if url[2] else ""
        return f"{url[1]}{user}{url[3]}" + (f"?{HIDDEN}" if url[4] else "")

    return _URL.sub(shown, text)
