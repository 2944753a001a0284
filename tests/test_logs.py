"""Log lines: who sees them, what they look like, and that no secret is ever in one."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatekeeper import logs
from gatekeeper.config.settings import LogLevel, LogSettings
from gatekeeper.errors import ConfigError
from gatekeeper.logs import LEVELS, configure, get_logger
from gatekeeper.model import Credentials, Secret

HEAD = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d"
METHODS: tuple[LogLevel, ...] = ("debug", "info", "notice", "warning", "error", "critical")


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    yield
    logs.close()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def bodies(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Plain lines without their time."""
    found = [re.fullmatch(rf"{HEAD} (.*)", line) for line in lines(capsys)]
    assert all(found)
    return [line[1] for line in found if line]


def write_all(category: str) -> None:
    logger = get_logger(category)
    for method in METHODS:
        getattr(logger, method)(f"{category} {method}")


@pytest.mark.parametrize(
    ("chosen", "category", "lowest"),
    [
        ({}, "default", "info"),
        ({}, "connection", "info"),
        ({"console_level": "debug"}, "connection", "debug"),
        ({"console_level": "error"}, "default", "error"),
        ({"levels": {"default": "info", "connection": "warning"}}, "connection", "warning"),
        ({"levels": {"default": "info", "connection": "warning"}}, "channel", "info"),
        ({"levels": {"default": "info", "user": "debug"}}, "user", "debug"),
        ({"levels": {"default": "info", "user": "notice"}}, "user", "notice"),
        # A category's own level wins over the output's, as in RabbitMQ.
        (
            {"console_level": "error", "levels": {"default": "info", "user": "debug"}},
            "user",
            "debug",
        ),
        ({"levels": {"default": "info", "channel": "none"}}, "channel", "none"),
        ({"console_level": "none"}, "default", "none"),
        ({"console_level": "alert"}, "default", "alert"),
        ({"console": False}, "default", "none"),
    ],
)
def test_levels(
    capsys: pytest.CaptureFixture[str], chosen: dict[str, object], category: str, lowest: LogLevel
) -> None:
    configure(replace(LogSettings(), **chosen))  # type: ignore[arg-type]
    write_all(category)
    assert bodies(capsys) == [
        f"[{method}] {category} {method}" for method in METHODS if LEVELS[method] >= LEVELS[lowest]
    ]
    logger = get_logger(category)
    assert all(logger.is_enabled(m) == (LEVELS[m] >= LEVELS[lowest]) for m in METHODS)


def test_a_filtered_line_does_no_work(capsys: pytest.CaptureFixture[str]) -> None:
    class Explosive:
        def __str__(self) -> str:
            raise AssertionError("rendered")

        __repr__ = __str__

    configure(LogSettings())
    get_logger("connection").bind(peer=Explosive()).debug("x", value=Explosive())
    assert lines(capsys) == []


def test_outputs_have_their_own_levels(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "gate.log"
    configure(LogSettings(console_level="error", file=file, file_level="debug"))
    write_all("default")
    assert [line.split()[0] for line in bodies(capsys)] == ["[error]", "[critical]"]
    assert len(file.read_text().splitlines()) == len(METHODS)


def test_plain_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings())
    get_logger("user").bind(peer="127.0.0.1:1").info(
        "hello", name=b"a b", odd=b"\xff", n=3, none=None, level="x", empty="", items=[1, b"b"]
    )
    (body,) = bodies(capsys)
    assert body == (
        '[info] hello peer=127.0.0.1:1 name="a b" odd=ÿ n=3 none=None level=x empty=""'
        ' items=[1, "b"]'
    )


def test_every_line_of_a_message_has_the_head(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings())
    get_logger("connection").error("closing AMQP connection (x):\nlost\n\nend", n=1)
    text = capsys.readouterr().out.splitlines()
    assert len({re.match(HEAD, line)[0] for line in text}) == 1  # type: ignore[index]
    assert [line.partition("] ")[2] for line in text] == [
        "closing AMQP connection (x):",
        "lost",
        "",
        "end n=1",
    ]


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings())
    get_logger("user").info("a\x1b[31m\r\x00\x85\u2028\udcff\tz", field="x\ny\x07")
    assert bodies(capsys) == [
        '[info] a\\x1b[31m\\r\\x00\\x85\\u2028\\udcff\tz field="x\\ny\\u0007"'
    ]


def test_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings())
    try:
        int("bad")
    except ValueError:
        get_logger("default").exception("it failed", n=1)
    found = bodies(capsys)
    assert found[:2] == ["[error] it failed n=1", "[error] Traceback (most recent call last):"]
    assert found[-1].startswith("[error] ValueError: invalid literal")


def test_json_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(console_formatter="json"))
    get_logger("channel").bind(peer="p").warning(
        "two\nlines", queue=b"q\xc3\xa9", time=1, msg=2, other=object
    )
    (line,) = lines(capsys)
    record = json.loads(line)
    assert re.fullmatch(HEAD, record.pop("time"))
    assert record == {
        "level": "warning",
        "category": "channel",
        "msg": "two\nlines",
        "peer": "p",
        "queue": "qé",
        "time_": 1,
        "msg_": 2,
        "other": str(object),
    }


SECRET = "hunter2"
FIELDS = st.sampled_from(
    [
        {"password": SECRET},
        {"default_pass": SECRET.encode()},
        {"Passphrase": [SECRET]},
        {"client_secret": {"a": SECRET}},
        {"access_token": SECRET},
        {"Authorization": f"Basic {SECRET}"},
        {"private_key": SECRET},
        {"value": Secret(SECRET.encode())},
        {"value": [1, (Secret(SECRET.encode()),)]},
        {"value": {"a": {"b": Secret(SECRET.encode())}}},
        {"value": {"a": {"db_password": SECRET}}},
        {"value": {Secret(SECRET.encode())}},
        {"value": Credentials("PLAIN", b"u", Secret(SECRET.encode()))},
        {"value": [Credentials("PLAIN", b"u", Secret(SECRET.encode()))]},
    ]
)


@given(
    fields=st.lists(FIELDS, min_size=1, max_size=3),
    method=st.sampled_from(METHODS),
    form=st.sampled_from(["plaintext", "json"]),
    bound=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_secrets_never_appear(
    capsys: pytest.CaptureFixture[str],
    fields: list[dict[str, object]],
    method: str,
    form: str,
    bound: bool,
) -> None:
    configure(LogSettings(console_level="debug", console_formatter=form))  # type: ignore[arg-type]
    merged = {name: value for field in fields for name, value in field.items()}
    logger = get_logger("user")
    if bound:
        getattr(logger.bind(**merged), method)("login")
    else:
        getattr(logger, method)("login", **merged)
    out = capsys.readouterr().out
    assert "login" in out
    assert "***" in out
    assert SECRET not in out


def test_secrets_in_the_message_are_hidden_by_their_type(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(LogSettings())
    get_logger("user").info(f"{Secret(SECRET.encode())} {Secret(SECRET.encode())!r}")
    assert bodies(capsys) == ["[info] Secret(***) Secret(***)"]


def test_standard_logging_is_bridged(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings())
    configure(LogSettings())  # not twice
    logger = logging.getLogger("asyncio")
    logger.info("quiet")
    logger.warning("slow %s", "callback")
    try:
        int("bad")
    except ValueError:
        logger.exception("lost")
    found = bodies(capsys)
    assert found[:3] == [
        "[warning] slow callback logger=asyncio",
        "[error] lost logger=asyncio",
        "[error] Traceback (most recent call last):",
    ]
    assert found[-1].startswith("[error] ValueError: invalid literal")


def test_standard_logging_with_a_wrong_format_is_bridged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(LogSettings())
    record = logging.LogRecord("lib", logging.ERROR, "f", 1, "broken %d", ("x",), None)
    logging.getLogger().handlers[-1].handle(record)
    assert bodies(capsys) == ["[error] broken %d logger=lib"]


def test_close_undoes_configure(capsys: pytest.CaptureFixture[str]) -> None:
    handlers = logging.getLogger().handlers[:]
    configure(LogSettings())
    logs.close()
    logs.close()
    assert logging.getLogger().handlers == handlers
    assert not structlog.is_configured()
    assert lines(capsys) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("colors", "form", "expected"),
    [(True, "plaintext", "\x1b[31m[error]\x1b[0m x"), (False, "plaintext", "[error] x")],
)
def test_colors_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, colors: bool, form: str, expected: str
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    configure(LogSettings(console_use_colors=colors, console_formatter=form))  # type: ignore[arg-type]
    get_logger("default").error("x")
    assert terminal.getvalue().endswith(f"{expected}\n")


def test_json_has_no_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    configure(LogSettings(console_formatter="json"))
    get_logger("default").error("x")
    assert json.loads(terminal.getvalue())["msg"] == "x"


def test_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(console_stdio="stderr"))
    get_logger("default").info("x")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("[info] x\n")


def test_a_narrow_encoding_loses_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    configure(LogSettings())
    get_logger("default").info("é")
    assert raw.getvalue().endswith(b"[info] \\xe9\n")


def test_a_broken_console_harms_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Broken())
    configure(LogSettings(file=tmp_path / "gate.log"))
    get_logger("default").info("x")
    assert (tmp_path / "gate.log").read_text().endswith("[info] x\n")


def test_file_is_private_and_appended_to(tmp_path: Path) -> None:
    file = tmp_path / "gate.log"
    for text in ("one", "two"):
        configure(LogSettings(console=False, file=file))
        get_logger("default").info(text)
    assert [line.split()[-1] for line in file.read_text().splitlines()] == ["one", "two"]
    assert file.stat().st_mode & 0o007 == 0


def test_file_is_opened_anew_after_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    file, old = tmp_path / "gate.log", tmp_path / "gate.log.1"
    configure(LogSettings(console=False, file=file))
    logger = get_logger("default")
    logger.info("one")
    file.rename(old)
    logger.info("two")  # within the second: still the old file
    now[0] += 1.0
    logger.info("three")
    assert [line.split()[-1] for line in old.read_text().splitlines()] == ["one", "two"]
    assert [line.split()[-1] for line in file.read_text().splitlines()] == ["three"]


def test_lost_directory_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    folder, moved = tmp_path / "log", tmp_path / "moved"
    folder.mkdir()
    configure(LogSettings(console=False, file=folder / "gate.log"))
    folder.rename(moved)
    now[0] += 5.0
    get_logger("default").info("x")
    assert (moved / "gate.log").read_text().endswith("[info] x\n")


def test_a_closed_file_harms_nobody(tmp_path: Path) -> None:
    configure(LogSettings(console=False, file=tmp_path / "a.log"))
    old = get_logger("default")
    configure(LogSettings(console=False, file=tmp_path / "b.log"))
    old.info("x")
    assert (tmp_path / "a.log").read_text() == ""


def test_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(LogSettings(file=tmp_path / "no" / "gate.log"))
    assert str(caught.value) == (
        f"log.file: cannot open '{tmp_path}/no/gate.log': No such file or directory; check the"
        " path and its permissions"
    )


def test_unconfigured_loggers_still_redact(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger("user").notice("x", password=SECRET)
    assert bodies(capsys) == ["[notice] x password=***"]


def test_capture_logs_of_structlog_works() -> None:
    configure(LogSettings())
    with structlog.testing.capture_logs() as captured:
        get_logger("user").bind(a=1).notice("x", b=2)
    assert captured == [{"a": 1, "b": 2, "event": "x", "log_level": "notice"}]


@given(text=st.text(), value=st.text() | st.binary() | st.integers() | st.none())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_is_whole_lines(tmp_path: Path, text: str, value: object) -> None:
    plain, record = tmp_path / "plain.log", tmp_path / "json.log"
    for path, form in ((plain, "plaintext"), (record, "json")):
        path.unlink(missing_ok=True)
        configure(LogSettings(console=False, file=path, file_formatter=form))  # type: ignore[arg-type]
        get_logger("user").info(text, value=value)
    for line in plain.read_bytes().decode().split("\n")[:-1]:
        assert re.match(rf"{HEAD} \[info\] ", line)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", line)
    (line,) = record.read_bytes().decode().split("\n")[:-1]
    assert json.loads(line)["msg"] == text
