"""SASL: which responses are credentials, and that no log text holds one."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.errors import ReplyCode
from gatekeeper.model import Credentials, Secret
from gatekeeper.protocol import layouts, sasl, wire
from gatekeeper.protocol.erlang import amqp_error, erlang_binary, erlang_string, frame_octets
from gatekeeper.protocol.methods import BY_NAME, METHODS, method_atom, method_name
from gatekeeper.protocol.sasl import Challenge, SaslError


def entries(*pairs: tuple[bytes, wire.Value]) -> bytes:
    return wire.table(pairs)


PLAIN = [
    (b"\0guest\0guest", b"guest", b"guest"),
    (b"\0\0", b"", b""),
    (b"\0user\0", b"user", b""),
    (b"\0\0secret", b"", b"secret"),
    (b"\0\xff\xc3\x28\0\xfe", b"\xff\xc3\x28", b"\xfe"),
    (b"\0a\r\n\0b\n", b"a\r\n", b"b\n"),
]


@pytest.mark.parametrize(("response", "username", "password"), PLAIN)
def test_plain(response: bytes, username: bytes, password: bytes) -> None:
    expected = Credentials("PLAIN", username, Secret(password))
    assert sasl.parse("PLAIN", response) == expected


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"\0",
        b"\0hidden",
        b"hidden\0hidden",
        b"az\0hidden\0hidden",
        b"\0u\0hidden\0",
        b"\0\0\0",
    ],
)
def test_plain_refuses(response: bytes) -> None:
    with pytest.raises(SaslError, match=rf"^response <<{len(response)} bytes, hidden>> invalid$"):
        sasl.parse("PLAIN", response)


LONG, BINARY = ("S", b"u"), ("x", b"u")


@pytest.mark.parametrize("login", [LONG, BINARY])
@pytest.mark.parametrize("password", [("S", b"p"), ("x", b"p")])
def test_amqplain(login: wire.Value, password: wire.Value) -> None:
    expected = Credentials("AMQPLAIN", b"u", Secret(b"p"))
    raw = entries((b"LOGIN", login), (b"PASSWORD", password))
    assert sasl.parse("AMQPLAIN", raw) == expected
    reverse = entries((b"other", ("V", None)), (b"PASSWORD", password), (b"LOGIN", login))
    assert sasl.parse("AMQPLAIN", reverse) == expected


def test_amqplain_first_duplicate_wins() -> None:
    raw = entries((b"LOGIN", LONG), (b"PASSWORD", LONG), (b"LOGIN", ("S", b"admin")))
    assert sasl.parse("AMQPLAIN", raw).username == b"u"
    with pytest.raises(SaslError, match="unsupported type"):
        sasl.parse("AMQPLAIN", entries((b"LOGIN", ("V", None))) + raw)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "is missing LOGIN or PASSWORD field"),
        (entries((b"LOGIN", LONG)), "is missing LOGIN or PASSWORD field"),
        (entries((b"PASSWORD", ("S", b"hidden"))), "is missing LOGIN or PASSWORD field"),
        (entries((b"login", LONG), (b"PASSWORD", LONG)), "is missing LOGIN or PASSWORD field"),
    ],
)
def test_amqplain_missing(raw: bytes, text: str) -> None:
    with pytest.raises(SaslError) as caught:
        sasl.parse("AMQPLAIN", raw)
    assert caught.value.log_text == f"AMQPLAIN auth info <<{len(raw)} bytes, hidden>> {text}"
    assert caught.value.code is ReplyCode.SYNTAX_ERROR


@pytest.mark.parametrize(
    "odd", [("V", None), ("I", 1), ("t", True), ("F", {}), ("A", []), ("A", [("S", b"x")])]
)
@pytest.mark.parametrize("key", [b"LOGIN", b"PASSWORD"])
def test_amqplain_types(odd: wire.Value, key: bytes) -> None:
    other = b"PASSWORD" if key == b"LOGIN" else b"LOGIN"
    with pytest.raises(SaslError, match="unsupported type for LOGIN or PASSWORD field"):
        sasl.parse("AMQPLAIN", entries((key, odd), (other, ("S", b"hidden"))))


def test_amqplain_is_read_as_a_table_without_a_length() -> None:
    raw = entries((b"LOGIN", LONG), (b"PASSWORD", LONG))
    for malformed in (wire.longstr(raw), raw + b"\0", raw[:-1]):
        with pytest.raises(SaslError, match="malformed"):
            sasl.parse("AMQPLAIN", malformed)
        with pytest.raises(wire.WireError):
            sasl.amqplain(malformed)


def test_challenge() -> None:
    challenge = sasl.cr_demo(b"user")
    assert challenge.data == b"Please tell me your password"
    expected = Credentials("RABBIT-CR-DEMO", b"user", Secret(b"p\0w"))
    assert challenge.answer(b"My password is p\0w") == expected
    with pytest.raises(SaslError, match=r"^Invalid response '<<10 bytes, hidden>>'$"):
        challenge.answer(b"my hidden!")
    with pytest.raises(SaslError, match="needs a challenge"):
        sasl.parse("RABBIT-CR-DEMO", b"user")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"EXTERNAL", "invalid"),
        (b"RABBIT-CR-DEMO", "invalid"),
        (b"OURS", "invalid"),
        (b"plain", "unknown"),
        (b"", "unknown"),
        (b"PLAIN ", "unknown"),
        (b"\xff", "unknown"),
    ],
)
def test_select(name: bytes, kind: str) -> None:
    mechanisms = {**sasl.MECHANISMS, "OURS": sasl.plain}
    assert sasl.select(b"PLAIN", ("PLAIN",), mechanisms) == ("PLAIN", sasl.plain)
    with pytest.raises(SaslError) as caught:
        sasl.select(name, ("AMQPLAIN", "PLAIN"), mechanisms)
    shown = name.decode("utf-8", "backslashreplace")
    assert caught.value.log_text == f"{kind} authentication mechanism '{shown}'"
    assert caught.value.code is ReplyCode.COMMAND_INVALID


def test_parse_knows_only_its_mechanisms() -> None:
    with pytest.raises(SaslError, match="unknown authentication mechanism 'NONE'"):
        sasl.parse("NONE", b"")


@given(st.binary(max_size=80), st.binary(max_size=40))
def test_any_response(response: bytes, second: bytes) -> None:
    for mechanism in sasl.MECHANISMS.values():
        with suppress(SaslError, wire.WireError):
            answer = mechanism(response)
            if isinstance(answer, Challenge):
                answer = answer.answer(second)
            assert isinstance(answer, Credentials)
            assert answer.password is not None


def test_no_secret_in_an_error() -> None:
    for mechanism, response in [
        ("PLAIN", b"zid\0user\0swordfish"),
        ("AMQPLAIN", entries((b"PASSWORD", ("S", b"swordfish")))),
        ("AMQPLAIN", entries((b"LOGIN", ("V", None)), (b"PASSWORD", ("S", b"swordfish")))),
        ("AMQPLAIN", b"\x08PASSWORDQswordfish"),
    ]:
        with pytest.raises(SaslError) as caught:
            sasl.parse(mechanism, response)
        assert "swordfish" not in repr(caught.value) + caught.value.log_text


# --- methods --------------------------------------------------------------------------------


def test_methods_are_those_that_can_be_read() -> None:
    assert set(METHODS) == set(layouts.LAYOUTS)
    content = {ids for ids, method in METHODS.items() if method.has_content}
    assert content == layouts.WITH_CONTENT
    assert {ids: (m.class_id, m.method_id) for ids, m in METHODS.items()} == {
        ids: ids for ids in METHODS
    }
    assert all(method.from_client or method.from_server for method in METHODS.values())


def test_methods_as_pamqp_names_them() -> None:
    from pamqp.commands import INDEX_MAPPING

    for index, command in INDEX_MAPPING.items():
        method = METHODS[index >> 16, index & 0xFFFF]
        assert method.name.replace("-", "").lower() == command.name.replace("_", "").lower()


@pytest.mark.parametrize(
    ("ids", "name", "atom"),
    [
        ((60, 70), "basic.get", "basic.get"),
        ((10, 31), "connection.tune-ok", "connection.tune_ok"),
        ((40, 51), "exchange.unbind-ok", "exchange.unbind_ok"),
        ((10, 99), "10.99", "10.99"),
        ((0, 0), "0.0", "none"),
    ],
)
def test_method_names(ids: tuple[int, int], name: str, atom: str) -> None:
    assert method_name(*ids) == name
    assert method_atom(*ids) == atom
    if ids in METHODS:
        assert BY_NAME[name] is METHODS[ids]
        assert METHODS[ids].atom == atom


# --- erlang: checked against io:format("~p") of OTP 25 ---------------------------------------


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", "<<>>"),
        (b"abc", '<<"abc">>'),
        (b'a"b\\\n\x1b', '<<"a\\"b\\\\\\n\\e">>'),
        (b"a\xe9", '<<"aé">>'),
        (b"a\x00", "<<97,0>>"),
        (b"\x7f", "<<127>>"),
        (b"\x9f", "<<159>>"),
    ],
)
def test_erlang_binary(data: bytes, shown: str) -> None:
    assert erlang_binary(data) == shown


def test_erlang_string_and_octets() -> None:
    assert erlang_string('a "é"\n\x01') == '"a \\"é\\"\\n\\x{1}"'
    assert amqp_error(ReplyCode.NOT_ALLOWED, "x", 10, 31) == (
        "{amqp_error,not_allowed,\"x\",'connection.tune_ok'}"
    )
    assert frame_octets(b"") == "all octets = <<>>"
    assert frame_octets(b"x" * 16) == 'all octets = <<"xxxxxxxxxxxxxxxx">>'
    assert frame_octets(bytes(17)) == "first 16 octets = <<0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0>>"
