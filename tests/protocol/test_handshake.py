"""The handshake towards a client: the way through, and what each step may refuse."""

from __future__ import annotations

import pytest
from pamqp import commands, encode
from pamqp import frame as pamqp_frame

from gatekeeper.errors import ReplyCode
from gatekeeper.model import Credentials, Secret
from gatekeeper.protocol import sasl, wire
from gatekeeper.protocol.events import (
    Closed,
    Fail,
    Login,
    LogKind,
    Open,
    Send,
    State,
    Tuned,
)
from gatekeeper.protocol.handshake import ClientHandshake
from tests.protocol.client_side import (
    CLOSE,
    CLOSE_OK,
    HEADER,
    HEARTBEAT,
    TELL_ME,
    TUNE_OK,
    Feed,
    at,
    drain,
    feed_by_bytes,
    feed_whole,
    make,
    open_vhost,
    start_ok,
    tune_ok,
)


@pytest.fixture(params=[feed_whole, feed_by_bytes], ids=["whole", "by bytes"])
def feed(request: pytest.FixtureRequest) -> Feed:
    chosen: Feed = request.param
    return chosen


# --- The way through ------------------------------------------------------------------------


@pytest.mark.parametrize("header", [HEADER, b"AMQP\1\1\0\x09"])
def test_the_way_through(feed: Feed, header: bytes) -> None:
    machine = make()
    [start] = feed(machine, header)
    assert isinstance(start, Send)
    size, channel, method = pamqp_frame.unmarshal(start.data)
    assert (size, channel) == (len(start.data), 0)
    assert isinstance(method, commands.Connection.Start)
    assert (method.version_major, method.version_minor) == (0, 9)
    assert method.server_properties == {"product": "RabbitMQ"}
    assert method.mechanisms == "PLAIN AMQPLAIN RABBIT-CR-DEMO"
    assert method.locales == "en_US"

    assert machine.wants_data
    [login] = feed(machine, HEARTBEAT + start_ok())
    credentials = Credentials("PLAIN", b"guest", Secret(b"swordfish"))
    assert login == Login(credentials, TELL_ME, frozenset({b"authentication_failure_close"}), None)
    assert "swordfish" not in repr(login)
    assert machine.state is State.STARTING
    assert not machine.wants_data

    tune = pamqp_frame.unmarshal(machine.accept_login())[2]
    assert isinstance(tune, commands.Connection.Tune)
    assert dict(tune) == {"channel_max": 2047, "frame_max": 131072, "heartbeat": 60}
    assert machine.wants_data
    assert feed(machine, HEARTBEAT + TUNE_OK + HEARTBEAT) == [Tuned(100, 131072, 20)]
    assert machine.state is State.OPENING
    assert feed(machine, open_vhost(b"v\xc3\xa9\n\0")) == [Open(b"v\xc3\xa9\n\0")]
    assert not machine.wants_data

    assert machine.accept_open() == pamqp_frame.marshal(commands.Connection.OpenOk(), 0)
    assert machine.state is State.RUNNING
    assert machine.leftover() == b""
    assert machine.next_event() is None
    with pytest.raises(RuntimeError, match="the session has taken over"):
        machine.feed(b"x")


def test_pipelined_in_one_segment(feed: Feed) -> None:
    machine = make()
    behind = wire.method(1, 20, 10, b"\0") + b"\xff half a frame"
    whole = HEADER + start_ok() + HEARTBEAT + TUNE_OK + open_vhost() + behind
    events = feed(machine, whole)
    assert [type(event) for event in events] == [Send, Login]
    # Nothing is looked at before the login is decided.
    assert machine.next_event() is None
    machine.accept_login()
    assert drain(machine) == [Tuned(100, 131072, 20), Open(b"/")]
    machine.feed(b"more")
    assert machine.next_event() is None
    machine.accept_open()
    assert machine.leftover() == behind + b"more"
    assert machine.leftover() == b""


def test_challenge(feed: Feed) -> None:
    machine = make()
    events = feed(machine, HEADER + start_ok(mechanism=b"RABBIT-CR-DEMO", response=b"guest"))
    challenge = wire.method(0, 10, 20, wire.longstr(b"Please tell me your password"))
    assert events[1:] == [Send(challenge)]
    assert machine.state is State.SECURING
    [login] = feed(machine, HEARTBEAT + wire.method(0, 10, 21, wire.longstr(b"My password is x")))
    assert isinstance(login, Login)
    assert login.credentials == Credentials("RABBIT-CR-DEMO", b"guest", Secret(b"x"))
    machine.accept_login()
    assert machine.state is State.TUNING


def test_a_mechanism_may_be_any_closure_and_may_ask_twice() -> None:
    def ask(_response: bytes) -> sasl.Challenge:
        return sasl.Challenge(b"1", lambda _one: sasl.Challenge(b"2", who))

    def who(name: bytes) -> Credentials:
        return Credentials("EXTERNAL", name)

    machine = ClientHandshake(
        server_properties=b"",
        mechanisms=("EXTERNAL",),
        channel_max=0,
        frame_max=0,
        heartbeat=0,
        initial_frame_max=0,
        sasl_mechanisms={"EXTERNAL": ask},
    )
    feed_whole(machine, HEADER + start_ok(mechanism=b"EXTERNAL"))
    assert feed_whole(machine, wire.method(0, 10, 21, wire.longstr(b"")))
    [login] = feed_whole(machine, wire.method(0, 10, 21, wire.longstr(b"CN=me")))
    assert isinstance(login, Login)
    assert login.credentials == Credentials("EXTERNAL", b"CN=me")


def test_only_known_mechanisms_can_be_offered() -> None:
    with pytest.raises(ValueError, match="no such SASL mechanism: EXTERNAL"):
        ClientHandshake(
            server_properties=b"",
            mechanisms=("PLAIN", "EXTERNAL"),
            channel_max=0,
            frame_max=0,
            heartbeat=0,
            initial_frame_max=0,
        )


# client properties -> capabilities, client name
PROPERTIES = [
    ([], set(), None),
    ([(b"capabilities", ("F", {}))], set(), None),
    ([(b"capabilities", ("S", b"x"))], set(), None),
    ([(b"capabilities", ("A", [("t", True)]))], set(), None),
    ([(b"Capabilities", ("F", {b"a": ("t", True)}))], set(), None),
    (
        [(b"capabilities", ("F", {b"a": ("t", True), b"b": ("t", False), b"c": ("B", 1)}))],
        {b"a"},
        None,
    ),
    (
        [
            (b"capabilities", ("V", None)),
            (b"capabilities", ("F", {b"authentication_failure_close": ("t", True)})),
        ],
        set(),
        None,
    ),
    ([(b"connection_name", ("S", b"app\xff"))], set(), b"app\xff"),
    ([(b"connection_name", ("x", b"app"))], set(), None),
    ([(b"connection_name", ("I", 1)), (b"connection_name", ("S", b"app"))], set(), None),
]


@pytest.mark.parametrize(("properties", "capabilities", "name"), PROPERTIES)
def test_client_properties(
    properties: list[tuple[bytes, wire.Value]], capabilities: set[bytes], name: bytes | None
) -> None:
    machine = at(State.STARTING)
    raw = wire.table(properties)
    [login] = feed_whole(machine, start_ok(raw))
    assert isinstance(login, Login)
    assert (login.capabilities, login.client_name) == (capabilities, name)
    assert login.client_properties == raw
    # The capability that tells of a refusal follows the same rules.
    fail = machine.refuse_login("no")
    assert fail.reply is None


def test_pamqp_start_ok_is_understood() -> None:
    method = commands.Connection.StartOk(
        {"capabilities": {"consumer_cancel_notify": True}, "connection_name": "me"},
        "AMQPLAIN",
        encode.field_table({"LOGIN": "u", "PASSWORD": "p"})[4:].decode("latin-1"),
        "en_US",
    )
    [login] = feed_whole(at(State.STARTING), pamqp_frame.marshal(method, 0))
    assert isinstance(login, Login)
    assert login.credentials == Credentials("AMQPLAIN", b"u", Secret(b"p"))
    assert login.capabilities == {b"consumer_cancel_notify"}
    assert login.client_name == b"me"


# --- The header -----------------------------------------------------------------------------

OURS, SASL_1_0 = HEADER, b"AMQP\3\1\0\0"
NOT_AMQP = "client did not start with AMQP protocol header: "
PORT = "Ensure the client is connecting to the correct port."
HEADERS = [
    (b"AMQP\1\1\x08\0", SASL_1_0, "{bad_version,{1,1,8,0}}"),
    (b"AMQP\1\1\x09\1", SASL_1_0, "{bad_version,{1,1,9,1}}"),
    (b"AMQP\0\1\0\0", SASL_1_0, "{bad_version,{0,1,0,0}}"),
    (b"AMQP\2\1\0\0", SASL_1_0, "{bad_version,{2,1,0,0}}"),
    (b"AMQP\3\1\0\0", OURS, "{bad_version,{3,1,0,0}}"),
    (b"AMQP\0\0\x09\0", OURS, "{bad_version,{0,0,9,0}}"),
    (b"AMQP\0\0\x09\2", OURS, "{bad_version,{0,0,9,2}}"),
    (b"AMQP\0\0\xff\xff", OURS, "{bad_version,{0,0,255,255}}"),
    (b"AMQP\0\0\x08\1", SASL_1_0, "{bad_version,{0,0,8,1}}"),
    (b"AMQP\0\1\x09\1", SASL_1_0, "{bad_version,{0,1,9,1}}"),
    (b"GET / HT", SASL_1_0, f"HTTP GET request detected on AMQP port. {PORT}"),
    (b"\x16\3\1\2\0\1\0\1", SASL_1_0, f"TLS client detected on non-TLS AMQP port. {PORT}"),
    (b"\x16\3\1\2\0\2\0\1", SASL_1_0, f"{NOT_AMQP}<<22,3,1,2,0,2,0,1>>"),
    (b"amqp\0\0\x09\1", SASL_1_0, f"{NOT_AMQP}<<97,109,113,112,0,0,9,1>>"),
    (b"POST / H", SASL_1_0, f'{NOT_AMQP}<<"POST / H">>'),
]


@pytest.mark.parametrize(("header", "answer", "log_text"), HEADERS)
def test_refused_headers(feed: Feed, header: bytes, answer: bytes, log_text: str) -> None:
    machine = make()
    [fail] = feed(machine, header + b"whatever follows")
    assert fail == Fail(answer, 0.0, False, 0.0, LogKind.BAD_HEADER, log_text, State.PRE_INIT)
    assert not machine.wants_data
    assert machine.state is State.CLOSED


def test_seven_bytes_are_waited_on() -> None:
    machine = make()
    assert feed_whole(machine, b"\0" * 7) == []
    assert feed_whole(machine, b"") == []
    assert machine.wants_data


# --- Login refused --------------------------------------------------------------------------

REFUSED = (
    b"ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. "
    b"For details see the broker logfile."
)
LOG = "PLAIN login refused: user 'guest' - invalid credentials"


def test_a_refused_login_is_told(feed: Feed) -> None:
    machine = at(State.STARTING)
    feed(machine, start_ok())
    fail = machine.refuse_login("user 'guest' - invalid credentials")
    reply = wire.close_method(0, 10, 403, REFUSED, 0, 0)
    assert fail == Fail(reply, 0.0, True, 3.0, LogKind.LOGIN_REFUSED, LOG, State.STARTING)
    assert machine.wants_data
    assert feed(machine, CLOSE_OK + b"dropped") == [Closed()]
    assert not machine.wants_data
    machine.feed(b"dropped")
    assert machine.next_event() is None


def test_a_refused_login_is_silent_without_the_capability(feed: Feed) -> None:
    machine = at(State.STARTING)
    feed(machine, start_ok(b""))
    fail = machine.refuse_login("user 'guest' - invalid credentials")
    # Closed after three seconds, or as soon as the client says so; seen on RabbitMQ 3.10.8.
    assert fail == Fail(None, 0.0, True, 3.0, LogKind.LOGIN_REFUSED, LOG, State.STARTING)
    assert feed(machine, CLOSE) == [Send(CLOSE_OK)]
    assert feed(machine, CLOSE_OK) == [Closed()]


# What a refused client sends next, and whether RabbitMQ 3.10.8 then closes at once.
AFTER_REFUSAL = [
    (wire.method(0, 10, 99), True),
    (wire.method(0, 10, 40), True),
    (wire.method(0, 10, 51, b"x"), True),
    (wire.close_method(0, 10, 200, b"\xff", 0, 0), True),
    (open_vhost()[:-1] + b"\xcf", True),
    (b"\1\0\0\0\2\0\1", True),
    (wire.frame(5, 0, b""), False),
    (wire.method(1, 10, 99), False),
    (wire.frame(1, 1, b""), False),
    (wire.frame(8, 1, b""), False),
    (wire.frame(3, 0, b""), False),
    (start_ok(), False),
    (HEARTBEAT, False),
]


@pytest.mark.parametrize("properties", [TELL_ME, b""])
@pytest.mark.parametrize(("data", "at_once"), AFTER_REFUSAL)
def test_after_a_refused_login(feed: Feed, properties: bytes, data: bytes, at_once: bool) -> None:
    machine = at(State.STARTING)
    feed(machine, start_ok(properties))
    machine.refuse_login("no")
    events = feed(machine, data)
    assert len(events) == at_once
    assert machine.wants_data is not at_once
    for event in events:
        assert isinstance(event, Fail)
        assert (event.reply, event.silent_delay, event.state) == (None, 0.0, State.CLOSED)


@pytest.mark.parametrize("properties", [TELL_ME, b""])
def test_refused_after_a_challenge(properties: bytes) -> None:
    machine = at(State.SECURING, properties)
    feed_whole(machine, wire.method(0, 10, 21, wire.longstr(b"My password is x")))
    fail = machine.refuse_login("no")
    text = REFUSED.replace(b"PLAIN", b"RABBIT-CR-DEMO")
    told = wire.close_method(0, 10, 403, text, 0, 0) if properties else None
    assert (fail.reply, fail.silent_delay, fail.await_close_ok) == (told, 3.0, False)
    assert fail.log_kind is LogKind.HANDSHAKE_ERROR
    assert fail.log_text == (
        "{handshake_error,securing,{amqp_error,access_refused,"
        "\"RABBIT-CR-DEMO login refused: no\",'connection.secure_ok'}}"
    )
    assert not machine.wants_data


# --- Silent failures ------------------------------------------------------------------------

BAD_START_OK = [
    (start_ok(mechanism=b"NONE"), "command_invalid,\"unknown authentication mechanism 'NONE'\""),
    (start_ok(mechanism=b"plain"), "command_invalid,\"unknown authentication mechanism 'plain'\""),
    (
        start_ok(mechanism=b"EXTERNAL"),
        "command_invalid,\"invalid authentication mechanism 'EXTERNAL'\"",
    ),
    (start_ok(response=b"swordfish"), 'syntax_error,"response <<9 bytes, hidden>> invalid"'),
    (
        start_ok(mechanism=b"AMQPLAIN", response=b""),
        'syntax_error,"AMQPLAIN auth info <<0 bytes, hidden>> is missing LOGIN or PASSWORD field"',
    ),
    (start_ok(mechanism=b"\xff"), 'frame_error,"Malformed UTF-8 in shortstr"'),
    (start_ok(locale=b"\xff"), 'frame_error,"Malformed UTF-8 in shortstr"'),
    (start_ok(mechanism=b"AMQPLAIN", response=b"swordfish"), None),
    (start_ok(properties=b"\1kQ"), None),
    (start_ok(properties=b"\1kF\0\0\0\2\0F"), None),
    (wire.method(0, 10, 11, b""), None),
    (wire.method(0, 10, 11, start_ok()[11:-1] + b"\0"), None),
]


@pytest.mark.parametrize(("data", "error"), BAD_START_OK)
def test_bad_start_ok(feed: Feed, data: bytes, error: str | None) -> None:
    machine = at(State.STARTING)
    [fail] = feed(machine, data + HEARTBEAT)
    term = f"{{amqp_error,{error},'connection.start_ok'}}"
    if error is None:
        term = "{cannot_decode,'connection.start_ok'}"
    log_text = f"{{handshake_error,starting,{term}}}"
    expected = Fail(None, 3.0, False, 0.0, LogKind.HANDSHAKE_ERROR, log_text, State.STARTING)
    assert fail == expected
    assert machine.state is State.CLOSED
    assert feed(machine, start_ok()) == []


@pytest.mark.parametrize("response", [b"", b"my password is x", b"swordfish"])
def test_bad_secure_ok(response: bytes) -> None:
    machine = at(State.SECURING)
    [fail] = feed_whole(machine, wire.method(0, 10, 21, wire.longstr(response)))
    assert isinstance(fail, Fail)
    assert (fail.reply, fail.silent_delay, fail.state) == (None, 3.0, State.SECURING)
    assert f"Invalid response '<<{len(response)} bytes, hidden>>'" in fail.log_text


# --- tune-ok --------------------------------------------------------------------------------

# What is offered, what is chosen (channel_max and frame_max), and what is wrong with it.
TUNES = [
    ((2047, 131072), (2047, 131072), None),
    ((2047, 131072), (1, 8192), None),
    (
        (2047, 131072),
        (2047, 8191),
        "frame_max = 8191 is lower than the minimum allowed value (8192)",
    ),
    ((2047, 131072), (2047, 1), "frame_max = 1 is lower than the minimum allowed value (8192)"),
    (
        (2047, 131072),
        (2047, 131073),
        "frame_max = 131073 is higher than the maximum allowed value (131072)",
    ),
    ((2047, 131072), (2047, 0), "frame_max = 0 is higher than the maximum allowed value (131072)"),
    (
        (2047, 131072),
        (2048, 131072),
        "channel_max = 2048 is higher than the maximum allowed value (2047)",
    ),
    (
        (2047, 131072),
        (0, 131072),
        "channel_max = 0 (no limit) is higher than the maximum allowed value (2047)",
    ),
    ((2047, 131072), (0, 1), "frame_max = 1 is lower than the minimum allowed value (8192)"),
    ((0, 0), (0, 0), None),
    ((0, 0), (65535, 2**32 - 1), None),
    ((0, 0), (5, 100), "frame_max = 100 is lower than the minimum allowed value (8192)"),
    ((0, 131072), (0, 8192), None),
]


@pytest.mark.parametrize(("offered", "chosen", "fault"), TUNES)
def test_tune_ok(
    feed: Feed, offered: tuple[int, int], chosen: tuple[int, int], fault: str | None
) -> None:
    machine = make(channel_max=offered[0], frame_max=offered[1])
    feed(machine, HEADER + start_ok())
    machine.accept_login()
    [event] = feed(machine, tune_ok(*chosen, 65535) + HEARTBEAT)
    if fault is None:
        assert event == Tuned(*chosen, 65535)
        return
    log_text = f"failed to negotiate connection parameters: negotiated {fault}"
    assert event == Fail(None, 3.0, False, 0.0, LogKind.TUNE_FAILED, log_text, State.TUNING)


# --- open -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("heartbeat", "grace"), [(0, 30.0), (1, 1.0), (30, 30.0), (600, 30.0)])
def test_a_refused_open(feed: Feed, heartbeat: int, grace: float) -> None:
    machine = at(State.OPENING, heartbeat=heartbeat)
    assert feed(machine, open_vhost(b"v")) == [Open(b"v")]
    fail = machine.refuse_open(ReplyCode.NOT_ALLOWED, b"vhost v not found")
    reply = wire.close_method(0, 10, 530, b"NOT_ALLOWED - vhost v not found", 10, 40)
    kind = LogKind.OPEN_REFUSED
    assert fail == Fail(reply, 0.0, True, grace, kind, "vhost v not found", State.OPENING)
    # Crossing closes: the client's is answered, and its close-ok is still waited for.
    assert feed(machine, CLOSE + open_vhost() + CLOSE_OK) == [Send(CLOSE_OK), Closed()]


def test_a_vhost_that_is_down_and_a_name_that_is_not_utf8() -> None:
    machine = at(State.OPENING)
    feed_whole(machine, open_vhost())
    fail = machine.refuse_open(ReplyCode.INTERNAL_ERROR, b"vhost '\xff' is down")
    text = b"INTERNAL_ERROR - vhost '\xff' is down"
    assert fail.reply == wire.close_method(0, 10, 541, text, 10, 40)
    assert fail.log_kind is LogKind.OPENING_ERROR
    assert fail.log_text == (
        " {handshake_error,opening,\n {amqp_error,internal_error,"
        "\"vhost '\\\\xff' is down\",'connection.open'}}"
    )
