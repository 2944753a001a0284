"""The harness itself: its codec against pamqp's, its processes, both forms of the scanner."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pamqp.frame
import pytest

from tests.support.amqp_codec import (
    METHODS,
    PROPERTIES,
    Raw,
    decode_header,
    decode_method,
    encode_header,
    encode_method,
    frame,
    table,
)
from tests.support.plain import load_compiled, load_plain
from tests.support.process import HarnessError, Process, free_port, listens, wait_until
from tests.support.rabbit import password_hash

SAMPLES: dict[str, Any] = {
    "o": 0,
    "h": 513,
    "l": 70_000,
    "q": 1 << 40,
    "s": b"name",
    "S": b"long \xff bytes",
    "t": {b"k": [1, b"x", {b"n": None}], b"b": True},
    "b": True,
}


def sample(name: str) -> dict[str, Any]:
    return {key: SAMPLES[kind] for key, kind in METHODS[name].arguments}


@pytest.mark.parametrize("name", METHODS)
def test_methods_come_back(name: str) -> None:
    arguments = sample(name)
    payload = encode_method(name, arguments)
    assert dict(decode_method(payload).arguments) == arguments
    with pytest.raises(ValueError, match="bytes"):
        decode_method(payload + b"x")


# pamqp does not know access.*, warns of recover-async, and reads these long strings as text.
UNKNOWN_TO_PAMQP = {"access.request", "access.request-ok", "basic.recover-async"}
TEXT = {"response", "challenge", "mechanisms", "locales", "new_secret"}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - UNKNOWN_TO_PAMQP))
def test_pamqp_reads_our_methods(name: str) -> None:
    arguments = {
        key: b"" if kind in "sS" and key.startswith("r") else value
        for (key, kind), value in zip(METHODS[name].arguments, sample(name).values(), strict=True)
    }
    arguments |= dict.fromkeys(arguments.keys() & TEXT, b"text")
    data = frame(1, 1, encode_method(name, arguments))
    consumed, channel, decoded = pamqp.frame.unmarshal(data)
    assert (consumed, channel) == (len(data), 1)
    class_name, method_name = name.split(".")
    wanted = f"{class_name}.{method_name.replace('-', '')}".lower()
    assert decoded.name.lower().replace("_", "") == wanted


def test_properties_come_back() -> None:
    properties = {key: SAMPLES[kind] for key, kind in PROPERTIES}
    assert decode_header(encode_header(7, properties)) == (7, properties)
    assert decode_header(encode_header(0, {})) == (0, {})


def test_the_encoder_does_not_judge() -> None:
    assert encode_method("queue.purge", {"queue": b"\xff"}).endswith(b"\x01\xff\x00")
    assert table([("a", 1), ("a", 2)]).count(b"\x01a") == 2
    assert table(Raw(b"anything")) == b"anything"
    with pytest.raises(TypeError, match="no argument"):
        encode_method("queue.purge", {"exchange": b"x"})


def test_a_password_hash_holds_its_salt() -> None:
    assert password_hash("x") != password_hash("x")


def test_a_process_that_ends_is_reported_at_once(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", "print('why'); exit(3)"], log=tmp_path / "log").start()
    with pytest.raises(HarnessError, match=r"(?s)status 3.*why"):
        process.wait_for(lambda: False, timeout=20, what="never")


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); time.sleep(60)"
    )
    with Process([sys.executable, "-c", script], log=tmp_path / "log") as process:
        process.wait_for(lambda: "ready" in process.output(), what="is ready")
        assert process.stop(timeout=0.3) == -signal.SIGKILL
        assert not process.running


def test_free_ports_are_free() -> None:
    assert not listens(free_port())


def test_waiting_has_an_end() -> None:
    with pytest.raises(HarnessError, match="the moon"):
        wait_until(lambda: False, timeout=0.05, what="the moon")


def test_both_forms_of_the_scanner_can_be_loaded() -> None:
    plain = load_plain("plain_frames_of_the_harness_test")
    assert plain.COMPILED is False
    compiled = load_compiled()
    if compiled is None:
        pytest.skip("the scanner is not compiled here")
    assert compiled.COMPILED is True
    assert compiled.NEED_MORE == plain.NEED_MORE
