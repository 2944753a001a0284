"""The yardstick itself: ``pytest tests/bench``. Not part of the ordinary run (see README.md)."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pamqp import commands, frame
from pamqp.header import ContentHeader

from tests.bench import crowd, instructions, measures, streams, trips, wake, wire
from tests.bench.__main__ import main
from tests.bench.client import Client, RefusedError
from tests.bench.measures import Metric, Scale
from tests.bench.meter import Meter
from tests.bench.report import Results, markdown, plain
from tests.bench.routes import ROUTES, Route, Upstream, sink
from tests.bench.wire import BenchError

TINY = Scale(200_000, 10, 100, 0.1, 2, 5, 3, 6, 0.2)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with sink(tmp_path_factory.mktemp("sink")) as upstream:
        yield upstream


@pytest.fixture(
    params=[
        "direct",
        pytest.param(
            "haproxy",
            marks=pytest.mark.skipif(
                shutil.which("haproxy") is None, reason="haproxy is not installed"
            ),
        ),
    ]
)
def route(request: pytest.FixtureRequest, broker: Upstream, tmp_path: Path) -> Iterator[Route]:
    with ROUTES[request.param](broker, tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("size", [0, 1, 64, 1024])
def test_units_are_amqp(size: int) -> None:
    for unit, method in (
        (wire.publish(3, size), commands.Basic.Publish),
        (wire.deliver(3, b"tag", size), commands.Basic.Deliver),
    ):
        parsed, at = [], 0
        for _ in range(2):
            used, channel, value = frame.unmarshal(unit[at:])
            assert channel == 3
            parsed.append(value)
            at += used
        assert isinstance(parsed[0], method)
        assert parsed[0].exchange == "bench"
        assert isinstance(parsed[1], ContentHeader)
        assert parsed[1].body_size == size
        assert parsed[1].properties.delivery_mode == 1
        assert len(unit) - at == size + 8


def test_units_carry_their_properties() -> None:
    unit = wire.publish(1, 64, headers={"CC": ["k.b"]}, user_id=b"bench")
    used, _, _ = frame.unmarshal(unit)
    _, _, header = frame.unmarshal(unit[used:])
    assert isinstance(header, ContentHeader)
    assert header.properties.headers == {"CC": ["k.b"]}
    assert header.properties.user_id == "bench"
    assert header.properties.delivery_mode == 1
    used, _, ack = frame.unmarshal(wire.ack(1, 300, multiple=True))
    assert isinstance(ack, commands.Basic.Ack)
    assert (ack.delivery_tag, ack.multiple) == (300, True)


def test_the_topic_stream_has_each_key_once() -> None:
    unit, keys = streams.topical(16, 30).unit, set()
    while unit:
        used, _, value = frame.unmarshal(unit)
        unit = unit[used:]
        if isinstance(value, commands.Basic.Publish):
            keys.add(value.routing_key)
    assert keys == {f"k.{n}" for n in range(30)}


@pytest.mark.parametrize("every", [1, 3])
def test_the_sink_confirms_what_has_come(broker: Upstream, every: int) -> None:
    unit = wire.publish(1, 64)
    with Client(broker.port) as client:
        client.open_channel()
        client.confirm_select()
        client.declare_queue(b"confirm:%d:%d:%d" % (7 * len(unit), len(unit), every))
        acks = [wire.ack(1, tag, multiple=True) for tag in range(every, 8, every)]
        client.blast(unit, 7)
        assert client.digest(sum(map(len, acks))) == zlib.crc32(b"".join(acks))
        client.declare_queue(b"arrived")


def test_a_round_trip_takes_one_answer_only(broker: Upstream) -> None:
    with Client(broker.port) as client:
        client.open_channel()
        get = wire.method(1, 60, 70, b"\0\0" + wire.short(b"q") + b"\x01")
        assert trips.round_trip(client, get, (60, 72)) > 0
        with pytest.raises(BenchError, match="expected the method"):
            trips.round_trip(client, get, (60, 71))
        with pytest.raises(BenchError, match="alone"):
            trips.round_trip(client, get + get, (60, 72))


def test_who_is_not_let_in_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    inside, times, failed = crowd.rush(port, 3)
    assert (inside, times, failed) == ([], [], 3)


@pytest.mark.parametrize("name", instructions.CASES)
def test_the_scanner_lets_every_case_pass(name: str) -> None:
    case = instructions.CASES[name]
    instructions.work(case, 1)
    assert case.messages * 64 < len(case.data) <= instructions.BUFFER


def test_instructions_are_not_counted_where_the_scanner_stops() -> None:
    case = replace(instructions.approved_exchange(64), exchanges=frozenset())
    with pytest.raises(BenchError, match="does not let all"):
        instructions.work(case, 1)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instructions_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert instructions.main(["deliver 64 B"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert float(line.split()[-2]) > 50


@pytest.mark.parametrize("name", wake.TRIPS)
async def test_a_wake_up_passes_what_comes(name: str) -> None:
    wake.work(name, 2)


async def test_a_wake_up_that_is_refused_is_not_measured() -> None:
    refused = wire.publish(1, 64, exchange=b"no")
    with pytest.raises(BenchError, match="octets passed"):
        wake.Wake().trip(refused, wire.ack(1, 1))


def test_split_takes_whole_frames_only() -> None:
    whole = wire.method(1, 20, 11, b"\0\0\0\0") + wire.method(2, 60, 11)
    for cut in range(len(whole) + 1):
        inbox = bytearray(whole[:cut])
        channels = [channel for _, channel, _ in wire.split(inbox)]
        inbox += whole[cut:]
        channels += [channel for _, channel, _ in wire.split(inbox)]
        assert channels == [1, 2]
        assert not inbox


def test_split_refuses_a_lost_frame_end() -> None:
    with pytest.raises(BenchError, match="no frame end"):
        list(wire.split(bytearray(wire.method(1, 20, 11)[:-1] + b"\0")))


@pytest.mark.parametrize(("unit", "count"), [(b"abc", 0), (b"abc", 5), (b"x" * 1000, 700)])
def test_stream_repeats_the_unit(unit: bytes, count: int) -> None:
    stream, sent = wire.Stream(unit, count), bytearray()
    while stream.left:
        taken = stream.pending()[:7777]
        sent += taken
        stream.advance(len(taken))
    assert sent == unit * count


def test_every_byte_is_accounted_for(route: Route) -> None:
    measures.verify(route)


def test_arrival_is_not_reported_early(broker: Upstream) -> None:
    unit = wire.publish(1, 64)
    with Client(broker.port) as client:
        client.open_channel()
        client.declare_queue(b"discard:%d" % (10 * len(unit)))
        client.blast(unit, 9)
        client.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):  # the tenth unit has not been sent
            client.declare_queue(b"arrived")
        client.sock.settimeout(5)
        # The unanswered declare was 10th-unit bytes to the sink: make the unit complete.
        declare = len(
            wire.method(1, 50, 10, b"\0\0" + wire.short(b"arrived") + b"\0" + wire.table({}))
        )
        client.sock.sendall(bytes(len(unit) - declare))
        assert client.declare_queue(b"arrived") == 0


def test_a_changed_byte_is_seen(broker: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zlib.crc32", lambda _: 1)
    with pytest.raises(BenchError, match="did not arrive as they were sent"):
        measures.verify(Route("direct", broker.port))


def test_a_gate_that_lets_everything_pass_is_not_measured(broker: Upstream) -> None:
    with pytest.raises(BenchError, match="no write permission"):
        measures.verify(Route("gate", broker.port))


@pytest.mark.parametrize(
    "measure",
    [
        streams.publish(streams.plain(64)),
        streams.publish(streams.plain(65536)),
        streams.publish(streams.confirmed(16)),
        streams.publish(streams.fifty(64)),
        streams.publish(streams.own_name(64)),
        streams.publish(streams.topical(16, 50)),
        streams.publish_slowly(streams.judged(64)),
        streams.publish(streams.encrypted(1024)),
        streams.deliver(64),
        streams.deliver(1024, 50),
        trips.fairness,
        measures.handshakes("sink"),
        measures.handshakes("sink", tls=True),
        crowd.storm("sink"),
        crowd.idle,
        crowd.idle_tls,
        crowd.churn,
    ],
)
def test_measures_give_figures(route: Route, measure: measures.Measure) -> None:
    readings = dict(measure(route, TINY))
    refused = {metric: value for metric, value in readings.items() if "not let in" in metric.title}
    assert not any(refused.values())
    assert all(value > 0 for metric, value in readings.items() if metric not in refused)
    if route.meter is not None and not refused and measure is not trips.fairness:
        assert any("CPU" in metric.title or "RSS" in metric.title for metric in readings)


def test_meter_counts_cpu_and_not_sleep() -> None:
    meter = Meter(os.getpid())
    begin, own = meter.cpu_ns(), time.process_time_ns()
    time.sleep(0.05)
    slept = meter.cpu_ns() - begin
    sum(range(2_000_000))
    spent, own = meter.cpu_ns() - begin, time.process_time_ns() - own
    assert slept < 25_000_000
    assert spent == pytest.approx(own, rel=0.2)
    assert meter.rss_bytes() > 1_000_000


def test_refusals_carry_code_and_text(broker: Upstream) -> None:
    with Client(broker.port) as client:
        client.open_channel()
        close = wire.method(
            1, 20, 40, b"\x01\x93" + wire.short(b"ACCESS_REFUSED - no") + b"\0\0\0\0"
        )
        client._inbox += close
        with pytest.raises(RefusedError, match="channel closed: 403 ACCESS_REFUSED - no"):
            client.declare_queue(b"any")
        client._expect(50, 11)  # the sink knows of no refusal and has answered


def test_report_pairs_rounds() -> None:
    metric = Metric("m", "ns", 1)
    results = Results()
    for number, (ours, theirs) in enumerate([(10.0, 20.0), (30.0, 20.0), (40.0, 80.0)]):
        results.add(metric, "gate", number, ours)
        results.add(metric, "haproxy", number, theirs)
    results.add(Metric("busy", "%", compared=False), "gate", 0, 90)
    table = results.table(["direct", "haproxy", "gate"])
    assert table == [
        ["measure", "unit", "direct", "haproxy", "gate", "gate / haproxy", "gate / direct"],
        ["m", "ns", "-", "20.0 ±75%", "30.0 ±25%", "0.50", "-"],
        ["busy", "%", "-", "-", "90", "-", "-"],
    ]
    assert len(plain(table).splitlines()) == 4
    assert all(line.count("|") == 8 for line in markdown(table).splitlines())


def test_a_route_that_cannot_start_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.bench.routes.gate_command", lambda: tmp_path / "absent")
    status = main(["--quick", "--only", "idle", "--idle", "3", "--routes", "direct,gate"])
    out = capsys.readouterr().out
    assert status == 1
    assert (
        f"gate: left out of idle (sink): {tmp_path}/absent does not exist: run make install" in out
    )


@pytest.mark.parametrize(
    "argv", [["--only", "everything"], ["--rounds", "0"], ["--routes", "direct,nginx"]]
)
def test_bad_arguments_are_named(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert json.dumps(argv[1])[1:-1].split(",")[-1] in capsys.readouterr().err
