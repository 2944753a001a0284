"""The control channel's messages: every one there and back, and nothing else."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.server.certificates import TEXT_LIMIT
from gatekeeper.server.infos import (
    PROPERTIES_LIMIT,
    ChannelInfo,
    ClientProperties,
    ConnectionInfo,
    UpstreamStatus,
)
from gatekeeper.server.member import PART, weight
from gatekeeper.server.messages import (
    FRAME_LIMIT,
    NAME_LIMIT,
    Admit,
    AdmitChannel,
    Admitted,
    Changed,
    ChannelAdmitted,
    ChannelsChanged,
    ChannelsCounted,
    ClearCaches,
    CloseConnections,
    ControlError,
    Done,
    Ended,
    ExchangeChanged,
    Failed,
    Frames,
    ListChannels,
    ListConnections,
    Listed,
    ListedChannels,
    Message,
    Opened,
    Refresh,
    Started,
    Statistics,
    Stop,
    Undone,
    UnwatchUser,
    UpstreamChanged,
    WatchUser,
    decode,
    encode,
)
from gatekeeper.store.passwords import SHA256
from gatekeeper.store.records import User

ALL_OCTETS = bytes(range(255))
INFO = ConnectionInfo(
    number=7,
    user=b"alice",
    vhost=ALL_OCTETS,
    host="::1",
    port=65535,
    local_host="127.0.0.1",
    local_port=5672,
    tls=True,
    ssl_protocol="tlsv1.3",
    ssl_cipher="aes_256_gcm",
    ssl_key_exchange="any",
    ssl_hash="aead",
    peer_cert_subject="CN=ünï 😀",
    peer_cert_issuer="",
    peer_cert_validity="",
    state="running",
    auth_mechanism="PLAIN",
    timeout=60,
    frame_max=131072,
    channel_max=2047,
    client_properties=ClientProperties(ALL_OCTETS),
    connected_at=1795453064721,
    recv_oct=2**62,
    send_oct=0,
    channels=1,
)
LONGEST = replace(
    INFO,
    user=b"\xff" * NAME_LIMIT,
    vhost=b"\0" * 255,
    host="f" * 45,
    local_host="f" * 45,
    peer_cert_subject="😀" * TEXT_LIMIT,
    peer_cert_issuer="\0" * TEXT_LIMIT,
    client_properties=ClientProperties(bytes(PROPERTIES_LIMIT)),
)
CHANNEL = ChannelInfo(7, 1, b"alice", ALL_OCTETS, "::1", 1, "::1", 5672, "running", 3)
MESSAGES: list[Message] = [
    ListConnections(1),
    CloseConnections(2, None, None, None, b"reason"),
    CloseConnections(2**62, 5, ALL_OCTETS, b"", ALL_OCTETS),
    Refresh(3),
    ClearCaches(3, None),
    ClearCaches(4, b"\xffalice"),
    Statistics(4),
    Stop(hurry=True),
    Admitted(5, "vhost"),
    Started(("amqp://127.0.0.1:5672", "amqps://[::]:5671")),
    Started(()),
    Failed("cannot listen: ünïcödé 😀"),
    Admit(6, 9, b"alice", b"/", None, 0),
    Opened(9, ALL_OCTETS, b"/"),
    Ended(9),
    Changed(),
    ExchangeChanged(b"/", ALL_OCTETS),
    Listed(7, (INFO, INFO), more=True),
    Listed(7, (), more=False),
    Done(8, {"closed": 3}),
    Undone(9, "disk full"),
    ListChannels(10),
    ListedChannels(10, (CHANNEL, replace(CHANNEL, confirm=True, prefetch_count=0)), more=False),
    WatchUser(ALL_OCTETS, 1),
    UnwatchUser(b"alice"),
    AdmitChannel(11, b"alice", 0),
    ChannelAdmitted(11, b"alice", granted=True),
    ChannelAdmitted(12, b"alice", granted=None),
    ChannelsCounted(b"alice", 1, 65535),
    ChannelsChanged(b"alice", 1, 2),
    UpstreamChanged(UpstreamStatus("default", None, 0, "RabbitMQ", "4.3.5", "it is gone")),
]


def frame(body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + body


@pytest.mark.parametrize("limit", [0, 2**63, 10**100])
def test_whatever_limit_a_user_has_can_be_told(limit: int) -> None:
    """One that is no message would cost the worker its line, and its clients theirs."""
    user = User(b"u", b"", SHA256, limits={"max-connections": limit, "max-channels": limit})
    limits = user.effective_limits
    assert limits.max_connections is not None
    assert limits.max_channels is not None
    for message in (
        Admit(1, 2, b"u", b"/", None, limits.max_connections),
        AdmitChannel(1, b"u", limits.max_channels),
    ):
        assert list(Frames().feed(encode(message))) == [message]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_there_and_back_however_it_is_cut(message: Message) -> None:
    data = encode(message)
    assert list(Frames().feed(data)) == [message]
    frames = Frames()
    one_by_one = [m for at in range(len(data)) for m in frames.feed(data[at : at + 1])]
    assert one_by_one == [message]
    frames = Frames()
    assert list(frames.feed(data + data + data[:5])) == [message, message]
    assert list(frames.feed(data[5:])) == [message]


def test_every_message_type_is_tried() -> None:
    from gatekeeper.server import messages

    assert {type(message) for message in MESSAGES} == set(messages._MESSAGES)


@pytest.mark.parametrize("info", [INFO, LONGEST, CHANNEL], ids=["usual", "longest", "channel"])
def test_a_part_of_a_list_fits(info: ConnectionInfo | ChannelInfo) -> None:
    """As many as the member puts into one message; at least one."""
    count = PART // weight(info)
    assert count >= 1
    if isinstance(info, ChannelInfo):
        encode(ListedChannels(2**63 - 1, (info,) * count, more=True))
    else:
        encode(Listed(2**63 - 1, (info,) * count, more=True))


BAD = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"{",
    b"\xff\xfe",
    b'{"is":"Stop"}',
    b'{"is":"Stop","hurry":1}',
    b'{"is":"Stop","hurry":null}',
    b'{"is":"Stop","hurry":true,"more":1}',
    b'{"is":"Stop","hurry":true,"hurry":false}',
    b'{"is":"Stop","hurry":true} x',
    b'{"is":["Stop"],"hurry":true}',
    b'{"is":"stop","hurry":true}',
    b'{"is":"ConnectionInfo"}',
    b'{"hurry":true}',
    b'{"is":"Refresh","id":-1}',
    b'{"is":"Refresh","id":1.0}',
    b'{"is":"Refresh","id":true}',
    b'{"is":"Refresh","id":NaN}',
    b'{"is":"Refresh","id":Infinity}',
    b'{"is":"Refresh","id":9223372036854775808}',
    b'{"is":"Refresh","id":"1"}',
    b'{"is":"Refresh","id":' + b"1" * 5000 + b"}",
    b'{"is":"Admitted","id":1,"reached":"both"}',
    b'{"is":"Admitted","id":1,"reached":["none"]}',
    b'{"is":"Opened","number":1,"user":"\\u0100","vhost":"/"}',
    b'{"is":"Opened","number":1,"user":"' + b"a" * (NAME_LIMIT + 1) + b'","vhost":"/"}',
    b'{"is":"Opened","number":1,"user":null,"vhost":"/"}',
    b'{"is":"Done","id":1,"figures":{"a":"b"}}',
    b'{"is":"Done","id":1,"figures":[]}',
    b'{"is":"Started","addresses":"amqp"}',
    b'{"is":"Started","addresses":[1]}',
    b'{"is":"Listed","id":1,"connections":[{}],"more":false}',
    b'{"is":"Failed","error":"' + b"x" * 2001 + b'"}',
    b"[" * 10000 + b"]" * 10000,
    b'{"is":' * 5000,
]


@pytest.mark.parametrize("body", BAD, ids=lambda body: repr(body[:40]))
def test_what_is_no_message(body: bytes) -> None:
    with pytest.raises(ControlError) as caught:
        decode(body)
    assert str(caught.value) == f"{len(body)} bytes that are no message"


def test_a_frame_that_is_too_long_is_refused_by_its_length() -> None:
    assert list(Frames().feed(struct.pack(">L", FRAME_LIMIT))) == []
    with pytest.raises(ControlError, match="too long"):
        list(Frames().feed(struct.pack(">L", FRAME_LIMIT + 1)))
    with pytest.raises(ControlError, match="too long"):
        encode(Listed(1, (INFO,) * 1000, more=False))


@given(st.binary(max_size=300))
def test_random_bytes_are_an_error_or_wait_for_more(data: bytes) -> None:
    try:
        messages = list(Frames().feed(data))
    except ControlError:
        return
    assert all(encode(message) for message in messages)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_message_with_one_thing_changed(message: Message, data: st.DataObject) -> None:
    """What is accepted means exactly what was sent: encoded again it is the same."""
    value: dict[str, Any] = json.loads(encode(message)[4:])
    key = data.draw(st.sampled_from(sorted(value)) | st.text(max_size=8))
    if data.draw(st.booleans()):
        value.pop(key, None)
    else:
        value[key] = data.draw(JSON)
    body = json.dumps(value).encode()
    try:
        got = decode(body)
    except ControlError:
        return
    assert json.loads(encode(got)[4:]) == value


@given(st.lists(st.sampled_from(MESSAGES), max_size=6), st.lists(st.floats(0, 1), max_size=8))
def test_any_cut(messages: list[Message], cuts: list[float]) -> None:
    stream = b"".join(map(encode, messages))
    ends = sorted(int(cut * len(stream)) for cut in cuts)
    frames, got, at = Frames(), list[Message](), 0
    for end in [*ends, len(stream)]:
        got += frames.feed(stream[at:end])
        at = end
    assert got == messages
