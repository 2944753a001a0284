"""The scanner, compiled and plain: the same answers, and the same as without a fast lane.

The readable code judges every frame when the fast lane is taken away; so what it lets through,
in whatever chunks the bytes come, is the measure of both forms of the scanner.
"""

from __future__ import annotations

import random
import struct
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.protocol import checks, parking, wire
from gatekeeper.protocol import frames as imported
from gatekeeper.protocol import session as session_module
from tests.protocol.dialogue import (
    Dialogue,
    Policy,
    call,
    everything_slow,
    open_channel,
    publish,
)
from tests.support.plain import load_compiled, load_plain

PLAIN = load_plain()


def form(module: ModuleType) -> str:
    return "compiled" if module.COMPILED else "plain"


EXTENSION = imported if imported.COMPILED else load_compiled()
FORMS = [PLAIN] if EXTENSION is None else [PLAIN, EXTENSION]
both = pytest.mark.parametrize("scanner", FORMS, ids=form)
# A session runs on what was imported; the plain functions take compiled channels as well.
in_session = pytest.mark.parametrize(
    "scanner", [PLAIN, imported] if imported.COMPILED else [PLAIN], ids=form
)


def header_with(*, flags: int, rest: bytes = b"") -> bytes:
    return flags.to_bytes(2, "big") + rest


def copies(*keys: bytes, name: bytes = b"CC") -> bytes:
    """Flags and properties of a message with routing keys in a header."""
    values: wire.Value = ("A", [("S", key) for key in keys])
    return b"\x20\x00" + wire.longstr(wire.table([(name, values)]))


def script(seed: int) -> bytes:
    """A random session: mostly sane, with refusals, oddities and a rare protocol error."""
    rnd = random.Random(seed)
    data = b"".join(open_channel(n) for n in (1, 2, 3))
    for _ in range(rnd.randint(5, 60)):
        n = rnd.choice((1, 1, 1, 2, 3))
        name = rnd.choice((b"ok", b"ok2", b"t", b"no", b"", b"amq.topic"))
        kind = rnd.random()
        if kind < 0.5:
            data += publish(
                n,
                rnd.choice((b"ok", b"ok", b"ok2", b"t", b"")),
                rnd.choice((b"k", b"k2", b"")),
                rnd.randbytes(rnd.choice((0, 1, 10, 300))),
                properties=rnd.choice(
                    (
                        b"\x00\x00",
                        b"\x10\x00\x02",
                        b"\x10\x01\x02",
                        b"\x00\x10" + wire.shortstr(b"alice"),
                        b"\x20\x00" + wire.longstr(wire.table([(b"a", ("t", True))])),
                        copies(b"k"),
                        copies(b"k2", b"no", b"k3"),
                        copies(*(b"k%d" % n for n in range(rnd.randrange(20)))),
                    )
                ),
                parts=rnd.choice((1, 1, 2, 3)),
            )
        elif kind < 0.6:
            data += call(n, rnd.choice(((60, 80), (60, 90), (60, 120))), rnd.randrange(9), 0)
        elif kind < 0.65:
            data += wire.frame(8, 0, b"")
        elif kind < 0.72:
            one = call(n, (50, 10), 0, name, rnd.choice((0, 1, 16, 17)), b"")
            data += one * rnd.choice((1, 1, 3))
        elif kind < 0.78:
            data += call(n, (60, 70), 0, name, 0) * rnd.choice((1, 3))
        elif kind < 0.84:
            data += publish(n, name, rnd.choice((b"k", b"no")), parts=2)
        elif kind < 0.90:
            data += call(n, (20, 41)) + open_channel(n)
        elif kind < 0.93:
            data += call(n, (20, 40), 200, b"", 0, 0) + open_channel(n)
        elif kind < 0.97:
            first, second = publish(1), publish(2)
            cut = len(call(1, (60, 40), 0, b"ok", b"k", 0))
            data += first[:cut] + second[:cut] + first[cut:] + second[cut:]
        elif kind < 0.98:
            data += publish(n, properties=b"\x80")
        elif kind < 0.99:
            data += rnd.randbytes(rnd.randint(1, 20))
        else:
            data += call(n, (60, 20), 0, b"ok", rnd.choice((b"", b"t")), 0, b"")
    return data


@pytest.fixture(autouse=True)
def made_up_names_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of one script must give the same bytes."""
    monkeypatch.setattr(checks.secrets, "token_urlsafe", lambda size: "x" * size)


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """No channel waits apart (test_parking.py): then the order among channels is fixed too."""
    monkeypatch.setattr(parking, "MAX_LOTS", 0)


def play(data: bytes, sizes: list[int], prefixes: dict[bytes, bytes] | None = None) -> Dialogue:
    dialogue = Dialogue(Policy(topics={b"t"}, prefixes=prefixes or {}))
    dialogue.send(data, sizes=sizes)
    return dialogue


def chunks(seed: int, length: int) -> list[int]:
    rnd = random.Random(seed)
    top = rnd.choice((1, 3, 9, 40, 500, 5000))
    out: list[int] = []
    while sum(out) < length:
        out.append(rnd.randint(1, top))
    return out


def use(monkeypatch: pytest.MonkeyPatch, scanner: ModuleType) -> None:
    """Have the session run on one form of the scanner; its channels stay what they are."""
    if scanner is not imported and imported.COMPILED:
        monkeypatch.setattr(session_module, "scan_client", scanner.scan_client)
        monkeypatch.setattr(session_module, "scan_broker", scanner.scan_broker)


@in_session
@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("seed", range(150))
def test_any_chunking_gives_what_the_readable_code_gives(
    seed: int, scanner: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = script(seed)
    prefixes = {b"t": b"k"} if seed % 3 == 1 else {b"t": b"k2"} if seed % 3 == 2 else {}
    with monkeypatch.context() as slow:
        everything_slow(slow)
        truth = play(data, [], prefixes)
    use(monkeypatch, scanner)
    whole = play(data, [], prefixes)
    parts = play(data, chunks(seed, len(data)), prefixes)
    for other in (whole, parts):
        assert bytes(other.broker.received) == bytes(truth.broker.received)
        assert other.by_channel() == truth.by_channel()
        assert other.state == truth.state
        assert other.session.abort == truth.session.abort


@in_session
@pytest.mark.usefixtures("in_order")
def test_byte_by_byte(scanner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, scanner)
    data = script(7)
    assert play(data, [1] * len(data)).broker.received == play(data, []).broker.received


@both
@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_dealt_with(scanner: ModuleType, data: bytes) -> None:
    """Neither form raises, passes an incomplete frame or answers an offset out of range."""
    lane = scanner.Lane(131072, 1 << 29, b"alice")
    channel = scanner.Channel()
    channel.approve_exchange(b"ok")
    lane.channels[1] = channel
    for scan in (scanner.scan_client, scanner.scan_broker):
        for start in (0, len(data) // 2):
            done = scan(lane, bytearray(data), start, len(data))
            assert start <= done <= len(data)
            assert lane.stop in (0, 1)


@pytest.mark.skipif(EXTENSION is None, reason="no compiled scanner: was there a C compiler?")
@settings(max_examples=500, deadline=None)
@given(seed=st.integers(0, 10**6), flips=st.lists(st.tuples(st.integers(0), st.integers(0, 255))))
def test_both_forms_agree_on_mutated_frames(seed: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(b"".join(publish(1, parts=1 + seed % 3) for _ in range(4)))
    for at, value in flips:
        data[at % len(data)] = value
    ends = []
    for scanner in FORMS:
        lane = scanner.Lane(4096, 1 << 20, b"alice")
        channel = scanner.Channel()
        channel.approve_exchange(b"ok")
        channel.approve_key(b"\x01t\x01k")
        lane.channels[1] = channel
        end = scanner.scan_client(lane, data, 0, len(data))
        ends.append((end, lane.stop, channel.expect, channel.remaining))
    assert ends[0] == ends[1]


@both
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_approved_prefixes(scanner: ModuleType, data: st.DataObject) -> None:
    """Names of a few letters, so that they are often alike; some as long as may be."""
    names = st.text("ab", max_size=3).map(str.encode) | st.sampled_from([b"a" * 255, b"ab" * 127])
    rules = data.draw(st.dictionaries(names.filter(bool), names, max_size=5))
    channel = scanner.Channel()
    taken = {name: rule for name, rule in rules.items() if channel.approve_prefix(name, rule)}
    assert len(channel.prefixes) == sum(len(name) + len(rule) + 2 for name, rule in taken.items())
    lane = scanner.Lane(131072, 1 << 29, b"alice")
    lane.channels[1] = channel
    for _ in range(5):
        exchange, key = data.draw(names), data.draw(names)
        unit = publish(1, exchange, key)
        done = scanner.scan_client(lane, bytearray(unit), 0, len(unit))
        assert done in (0, len(unit))
        assert bool(done) is (exchange in taken and key.startswith(taken[exchange]))
    channel.forget()
    assert not channel.prefixes


@both
def test_the_fast_lane_needs_every_part_of_the_unit(scanner: ModuleType) -> None:
    unit = publish(1)
    lane = scanner.Lane(131072, 1 << 29, b"alice")
    channel = scanner.Channel()
    channel.approve_exchange(b"ok")
    lane.channels[1] = channel
    method = len(call(1, (60, 40), 0, b"ok", b"k", 0))
    header = method + 8 + 15
    for cut in range(len(unit)):
        channel.expect, channel.remaining = 0, 0
        done = scanner.scan_client(lane, bytearray(unit[:cut]), 0, cut)
        assert done == (header if cut >= header else 0)
        assert lane.stop == 0


@both
@pytest.mark.parametrize(
    "flags", [0x0010, 0x0001, 0x0002, 0x8010], ids=["user-id", "more", "low bit", "another"]
)
def test_headers_with_something_to_judge_leave_the_fast_lane(
    scanner: ModuleType, flags: int
) -> None:
    unit = publish(1, properties=struct.pack(">H", flags) + b"\x00\x00")
    lane = scanner.Lane(131072, 1 << 29, b"alice")
    channel = scanner.Channel()
    channel.approve_exchange(b"ok")
    lane.channels[1] = channel
    assert scanner.scan_client(lane, bytearray(unit), 0, len(unit)) == 0
    assert lane.stop == 1


TABLES: list[tuple[bytes, bool]] = [
    (b"", True),
    (wire.table([(b"a", ("S", b"CC")), (b"cc", ("t", True)), (b"XCC", ("V", None))]), True),
    (
        wire.table(
            [(b"%d" % n, value) for n, value in enumerate(
                (("I", 1), ("l", 2), ("D", (1, 2)), ("s", 3), ("d", 1.5), ("f", 1.5), ("b", 1),
                 ("F", {b"CC": ("A", [("S", b"no")])}), ("A", [("S", b"CC")]), ("x", b"CC"))
            )]
        ),
        True,
    ),
    (wire.table([(b"a", ("V", None)), (b"CC", ("A", []))]), True),
    (wire.table([(b"BCC", ("S", b"x"))]), False),
    (b"\x01a?", False),
    (b"\x01aS\x00\x00\x00\xff", False),
    (b"\x01aI\x00", False),
    (b"\x05a", False),
]  # fmt: skip


@both
@pytest.mark.parametrize(("table", "passes"), TABLES)
def test_approved_keys_leave_the_fast_lane_for_cc_and_bcc(
    scanner: ModuleType, table: bytes, passes: bool
) -> None:
    lane = scanner.Lane(131072, 1 << 29, b"alice")
    channel = scanner.Channel()
    channel.approve_key(b"\x01t\x01k")
    lane.channels[1] = channel
    data = publish(1, b"t", b"k", properties=b"\xa0\x00\x01x" + wire.longstr(table))
    done = scanner.scan_client(lane, bytearray(data), 0, len(data))
    assert (done == len(data)) is passes


@both
@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60), flags=st.integers(0, 0xFFFF), keyed=st.booleans())
def test_harmless_properties_hold_nothing_to_judge(
    scanner: ModuleType, data: bytes, flags: int, keyed: bool
) -> None:
    """What the scanner calls harmless, the strict reader must find harmless or malformed."""
    lane = scanner.Lane(131072, 1 << 29, b"alice")
    channel = scanner.Channel()
    if keyed:
        channel.approve_key(b"\x01t\x01k")
    else:
        channel.approve_exchange(b"t")
    lane.channels[1] = channel
    properties = flags.to_bytes(2, "big") + data
    unit = publish(1, b"t", b"k", b"", properties=properties)
    if scanner.scan_client(lane, bytearray(unit), 0, len(unit)) != len(unit):
        return
    assert flags & 3 == 0
    try:
        read = wire.read_properties(properties)
    except wire.WireError:
        return  # the broker refuses it, with whatever is in it
    assert read.user_id in (None, b"alice")
    assert not keyed or (read.cc is None and read.bcc is None)


@both
@pytest.mark.parametrize(
    ("flags", "rest"),
    [
        (0x0010, b"\x05alice"),
        (0xFFFC, b"\x01t\x01e\0\0\0\0\x02\x05\x01c\x01r\x011\x01m" + b"\0" * 8 + b"\x01y"
         b"\x05alice\x01a\x01c"),
    ],
)  # fmt: skip
def test_the_users_own_user_id_stays_in_the_fast_lane(
    scanner: ModuleType, flags: int, rest: bytes
) -> None:
    for name, passes in ((b"alice", True), (b"alicf", False), (b"alic", False), (b"", False)):
        lane = scanner.Lane(131072, 1 << 29, name)
        channel = scanner.Channel()
        channel.approve_exchange(b"ok")
        lane.channels[1] = channel
        unit = publish(1, properties=flags.to_bytes(2, "big") + rest)
        assert (scanner.scan_client(lane, bytearray(unit), 0, len(unit)) == len(unit)) is passes
        for cut in range(len(rest)):
            short = publish(1, properties=flags.to_bytes(2, "big") + rest[:cut])
            channel.expect = 0
            done = scanner.scan_client(lane, bytearray(short), 0, len(short))
            assert done in (0, len(short))


def test_a_pair_has_one_spelling() -> None:
    """Exchange "a" with key "bc" must not be taken for exchange "ab" with key "c"."""
    for scanner in FORMS:
        lane = scanner.Lane(131072, 1 << 29, b"alice")
        channel = scanner.Channel()
        channel.approve_key(b"\x01a\x02bc")
        lane.channels[1] = channel
        data = publish(1, b"ab", b"c")
        assert scanner.scan_client(lane, bytearray(data), 0, len(data)) == 0


# --- the set of names ---


@both
@settings(max_examples=200, deadline=None)
@given(names=st.lists(st.binary(max_size=20), max_size=80), others=st.lists(st.binary(max_size=20)))
def test_names_hold_what_was_added_and_nothing_else(
    scanner: ModuleType, names: list[bytes], others: list[bytes]
) -> None:
    held, added = scanner.Names(), set()
    for name in names:
        assert held.add(name) is (name not in added)
        added.add(name)
        assert len(held) == len(added)
    for name in [*names, *others]:
        padded = b"<" + name + b">"
        assert held.find(padded, 1, 1 + len(name)) is (name in added)


@both
def test_names_that_share_their_beginning_are_spread(scanner: ModuleType) -> None:
    held = scanner.Names()
    names = [b"\x09amq.topic\x06k.%d" % n for n in range(20_000)]
    assert all(held.add(name) for name in names)
    assert len(held) == len(names)
    assert all(held.find(name, 0, len(name)) for name in names)
    assert not held.find(b"\x09amq.topic\x06k.x", 0, 14)


@pytest.mark.parametrize("count", [33, 500])
def test_names_that_collide_are_forgotten(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(PLAIN.octets, "hash_of", lambda _raw, _a, _b: 7)
    held = PLAIN.Names()
    names = [b"%d" % n for n in range(count)]
    for name in names:
        assert held.add(name)
        assert held.find(name, 0, len(name))
    assert sum(held.find(name, 0, len(name)) for name in names) == len(held) <= 32
    assert not held.find(b"none", 0, 4)
    assert len(held.arena) < 1000


# --- routing keys in headers ---

ROUTE = st.sampled_from([b"k", b"k2", b"k3", b"", b"x" * 255, b"x" * 256])
ELEMENT = st.one_of(st.tuples(st.just("S"), ROUTE), st.sampled_from([("t", True), ("V", None)]))
ENTRY = st.tuples(
    st.sampled_from([b"CC", b"BCC", b"cc", b"XCC", b"BC", b"a"]),
    st.one_of(
        st.tuples(st.just("A"), st.lists(ELEMENT, max_size=4)),
        st.sampled_from([("S", b"k"), ("V", None), ("F", {b"CC": ("S", b"k9")}), ("d", 1.5)]),
    ),
)


@both
@settings(max_examples=500, deadline=None)
@given(
    entries=st.lists(ENTRY, max_size=4),
    approved=st.sets(st.sampled_from([b"k", b"k2", b"k3", b"", b"x" * 255])),
    cut=st.integers(-2, 0),
    whole=st.booleans(),
)
def test_a_header_passes_only_with_routes_that_are_approved(
    scanner: ModuleType, entries: list[tuple[bytes, wire.Value]], approved: set[bytes],
    cut: int, whole: bool,
) -> None:  # fmt: skip
    """What passes, and what is asked, is measured by the strict reader."""
    lane = scanner.Lane(131072, 1 << 29, b"alice")
    lane.channels[1] = channel = scanner.Channel()
    for key in approved:
        channel.approve_key(b"\x01t" + wire.shortstr(key))
    table = wire.table(entries)
    properties = b"\x20\x00" + wire.longstr(table[: len(table) + cut] if cut else table)
    if whole:
        properties = properties[:1] + b"\x08" + properties[2:] + b"\x03app"
    unit = publish(1, b"t", b"k", b"", properties=properties)
    done = scanner.scan_client(lane, bytearray(unit), 0, len(unit))
    try:
        read = wire.read_properties(properties)
    except wire.WireError:
        # Passed on, the broker refuses it; but the gate never asks about what cannot be read.
        assert lane.stop != scanner.ASK or lane.key != b"k"
        return
    routes = [b"k"]
    for found in (read.cc, read.bcc):
        routes += found if isinstance(found, list) else []
    if done == len(unit):
        assert set(routes) <= approved
        assert not isinstance(read.cc, str)
        assert not isinstance(read.bcc, str)
    elif lane.stop == scanner.ASK:
        arrays = [
            value[1]
            for key, value in entries
            if key in (b"CC", b"BCC") and isinstance(value[1], list)
        ]
        asked = {route for array in arrays for kind, route in array if kind == "S"}
        assert lane.exchange == b"t"
        assert lane.key in asked | {b"k"}
        assert lane.key not in approved


@both
def test_what_is_not_approved_is_asked(scanner: ModuleType) -> None:
    lane = scanner.Lane(131072, 1 << 29, b"alice")
    lane.channels[1] = channel = scanner.Channel()
    unit = bytearray(publish(1, b"t", b"k", properties=copies(b"c", name=b"BCC")))
    asked = []
    while scanner.scan_client(lane, unit, 0, len(unit)) == 0:
        assert lane.stop == scanner.ASK
        asked.append((lane.exchange, lane.key))
        channel.approve_key(wire.shortstr(lane.exchange) + wire.shortstr(lane.key))
    assert asked == [(b"t", b"k"), (b"t", b"c")]


# --- the same publish again ---


def frame_by_frame(scanner: ModuleType, lane: object, channel: object, data: bytearray) -> int:
    """How far the scanner gets where it never sees two publishes in one scan."""
    pos = 0
    while pos < len(data):
        channel.unit = None  # type: ignore[attr-defined]
        for end in range(pos + 8, len(data) + 1):
            done = scanner.scan_client(lane, data, pos, end)
            if done > pos or lane.stop != scanner.NEED_MORE:  # type: ignore[attr-defined]
                break
        if done == pos:
            return pos
        pos = done
    return pos


@both
@settings(max_examples=300, deadline=None)
@given(
    bodies=st.lists(st.sampled_from([b"", b"a", b"bb", b"c" * 300]), min_size=2, max_size=4),
    parts=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2),
    keyed=st.booleans(),
)
def test_a_repeated_publish_passes_if_it_would_have_alone(
    scanner: ModuleType, bodies: list[bytes], parts: list[int],
    flips: list[tuple[int, int]], keyed: bool,
) -> None:  # fmt: skip
    data = bytearray()
    for body, count in zip(bodies, parts, strict=False):
        data += publish(1, b"ok", b"k", body, properties=b"\x00\x10\x05alice", parts=count)
    first = len(publish(1, b"ok", b"k", bodies[0], properties=b"\x00\x10\x05alice", parts=parts[0]))
    for at, value in flips:
        data[first + at % (len(data) - first)] = value
    ends = []
    for alone in (False, True):
        lane = scanner.Lane(4096, 400, b"alice")
        lane.channels[1] = channel = scanner.Channel()
        if keyed:
            channel.approve_key(b"\x02ok\x01k")
        else:
            channel.approve_exchange(b"ok")
        if alone:
            end = frame_by_frame(scanner, lane, channel, data)
        else:
            end = scanner.scan_client(lane, data, 0, len(data))
        ends.append((end, lane.stop, channel.expect, channel.remaining))
    assert ends[0] == ends[1]


@both
def test_a_channel_keeps_no_long_header(scanner: ModuleType) -> None:
    """A client may have thousands of channels, and send each of them a header of a whole frame."""
    lane = scanner.Lane(131072, 1 << 29, b"alice")
    lane.channels[1] = channel = scanner.Channel()
    channel.approve_exchange(b"ok")
    table = wire.longstr(wire.table([(b"a", ("S", b"x" * 130_000))]))
    data = bytearray(publish(1, properties=b"\x20\x00" + table) * 2)
    assert scanner.scan_client(lane, data, 0, len(data)) == len(data)
    assert channel.unit is None
    data = bytearray(publish(1) * 2)
    assert scanner.scan_client(lane, data, 0, len(data)) == len(data)
    assert data.startswith(channel.unit)


@both
def test_nothing_passes_after_its_approval_is_forgotten(scanner: ModuleType) -> None:
    lane = scanner.Lane(131072, 1 << 29, b"alice")
    lane.channels[1] = channel = scanner.Channel()
    get = call(1, (60, 70), 0, b"q", 1)
    data = bytearray(publish(1) * 2)
    channel.approve_exchange(b"ok")
    channel.approve_method(get[7:-1])
    assert scanner.scan_client(lane, data, 0, len(data)) == len(data)
    assert scanner.scan_client(lane, bytearray(get), 0, len(get)) == len(get)
    channel.forget()
    assert scanner.scan_client(lane, data, 0, len(data)) == 0
    assert scanner.scan_client(lane, bytearray(get), 0, len(get)) == 0


# --- answers to queue.declare ---


@both
@pytest.mark.parametrize(
    ("named", "frame", "passes"),
    [
        (0, call(1, (50, 11), b"q", 0, 0), False),
        (1, call(1, (50, 11), b"q", 0, 0), True),
        (1, call(1, (50, 11), b"r", 0, 0), False),
        (1, call(1, (50, 11), b"qq", 0, 0), False),
        (2, call(1, (50, 11), b"r", 0, 0), True),
        (2, call(2, (50, 11), b"q", 0, 0), False),
        (1, wire.method(1, 50, 11, b"\x01q" + bytes(7)), False),
        (2, wire.method(1, 50, 11, b"\x01q" + bytes(9)), False),
        (2, wire.method(1, 50, 11), False),
    ],
)
def test_declares_are_answered_past_the_session(
    scanner: ModuleType, named: int, frame: bytes, passes: bool
) -> None:
    lane = scanner.Lane(131072, 1 << 29, b"alice")
    lane.channels[1] = channel = scanner.Channel()
    channel.named, channel.queue = named, b"q"
    done = scanner.scan_broker(lane, bytearray(frame), 0, len(frame))
    assert done == (len(frame) if passes else 0)
    assert channel.named == named - passes
