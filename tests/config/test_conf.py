"""The syntax of rabbitmq.conf. The cases are what RabbitMQ's own parser answered (cuttlefish 3.7
and, for quotes over several lines and the byte order mark, its change log)."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatekeeper.config.conf import Include, Setting, format_key, parse, parse_key
from gatekeeper.errors import ConfigError

ACCEPTED = [
    ("", []),
    ("# only\n", []),
    ("## x\n\n\n   # indented\n \t \n", []),
    ("a = b\n", [("a", "b")]),
    ("a=b", [("a", "b")]),
    ("\ta = b", [("a", "b")]),
    ("a.b   =   c   \n", [("a.b", "c")]),
    ("a = b   \n   \nc = d\n", [("a", "b"), ("c", "d")]),
    ("a = b\r\nc = d\r\n", [("a", "b"), ("c", "d")]),
    ("a = b\r\n\r\n# c\r\nd = e", [("a", "b"), ("d", "e")]),
    ("a = 1\na = 2\n", [("a", "1"), ("a", "2")]),
    ("a-b_c.D9 = x\n", [("a-b_c.D9", "x")]),
    ("a\\.b = c\n", [("a\\.b", "c")]),
    ("a = b = c\n", [("a", "b = c")]),
    ("a = c # comment\n", [("a", "c")]),
    ("a = c#comment\n", [("a", "c")]),
    ("a = abc\\#def\n", [("a", "abc\\")]),
    ("a = b\\\n", [("a", "b\\")]),
    ("a = c;d % e\n", [("a", "c;d % e")]),
    ('a = "quoted"\n', [("a", '"quoted"')]),
    ("a = it's\n", [("a", "it's")]),
    ("a = x 'y#z'\n", [("a", "x 'y")]),
    ("a = ''\n", [("a", "")]),
    ("a = '' # empty\nb = c", [("a", ""), ("b", "c")]),
    ("a = 'c#d'\n", [("a", "c#d")]),
    ("a = 'c#d' # trailing comment\n", [("a", "c#d")]),
    ("a = 'c#d'#trailing\r\nb = c", [("a", "c#d"), ("b", "c")]),
    ("a = '  x  '\n", [("a", "  x  ")]),
    ("a = 'x\ny'\nb = c\n", [("a", "x\ny"), ("b", "c")]),
    ("a = 'unterminated\n", [("a", "'unterminated")]),
    ("a = 'unterminated # c\nb = d", [("a", "'unterminated"), ("b", "d")]),
    ("a = '''x'''\n", [("a", "x")]),
    ("a = '''it's ''it'''\n", [("a", "it's ''it")]),
    ("a = '''\nx\n  y # z\n'''\nb = c", [("a", "x\n  y # z"), ("b", "c")]),
    ("a = $(HOME)\n", [("a", "$(HOME)")]),
    ("a = encrypted:abc+/=\n", [("a", "encrypted:abc+/=")]),
    ("a = é ü\n", [("a", "é ü")]),
    ("include other.conf\n", ["other.conf"]),
    ("  include \t sub/*.conf # more", ["sub/*.conf"]),
    ("a = 1\ninclude /etc/x-y_z.conf\nb = 2", [("a", "1"), "/etc/x-y_z.conf", ("b", "2")]),
    ("include = 1\n", [("include", "1")]),
    ("include=1\n", [("include", "1")]),
    ("includefoo = 1\n", [("includefoo", "1")]),
]  # fmt: skip

REFUSED = [
    ("  a . b = c\n", "f:1:5: syntax error: expected '='"),
    ("a.b..c = d\n", "f:1:4: syntax error: keys hold only"),
    (".a = d\n", "f:1:1: syntax error: a line starts with a key"),
    ("a$ = x\n", "f:1:2: syntax error: keys hold only"),
    ("loopback_users.guest@x = false\n", "f:1:21: syntax error: keys hold only"),
    ("é = x\n", "f:1:1: syntax error: a line starts with a key"),
    ("\ufeffa = b\n", "f:1:1: syntax error: a line starts with a key"),
    ("a =\n", "f:1:4: syntax error: the value is missing"),
    ("a = # only comment\n", "f:1:5: syntax error: the value is missing"),
    ("a =", "f:1:4: syntax error: the value is missing"),
    ("a =\r\nb = c", "f:1:4: syntax error: the value is missing"),
    ("a = 'it''s'\n", "f:1:9: syntax error: only a comment may follow the closing quote"),
    ("a = 'c#d'x\n", "f:1:10: syntax error: only a comment"),
    ("a = 'x' y\n", "f:1:9: syntax error: only a comment"),
    ("a = ''''\n", "f:1:7: syntax error: only a comment"),
    ("a = 'x\ny' z\n", "f:2:4: syntax error: only a comment"),
    ("a = 'x\nb = 'y'\n", "f:2:6: syntax error: only a comment"),
    ("a = '''x''' y\n", "f:1:13: syntax error: only a comment"),
    ("junk line\n", "f:1:6: syntax error: expected '='"),
    ("junk\n", "f:1:5: syntax error: there is no '='"),
    ("a : b\n", "f:1:3: syntax error: expected '='"),
    ("a = b\\\nc\n", "f:2:2: syntax error: there is no '='"),
    ("[section]\na = b\n", "f:1:1: syntax error: there are no section headers"),
    ("; c\n", "f:1:1: syntax error: a comment starts with #"),
    ("%% x\n", "f:1:1: syntax error: a comment starts with #"),
    ("a = 1\n\n  b\n", "f:3:4: syntax error: there is no '='"),
    ("include\n", "f:1:8: syntax error: include takes one path"),
    ("include a b\n", "f:1:9: syntax error: include takes one path"),
    ("include a?.conf\n", "f:1:9: syntax error: include takes one path"),
    ("a = '''\n\n'''\nb\n", "f:4:2: syntax error: there is no '='"),
]


@pytest.mark.parametrize(("text", "expected"), ACCEPTED)
def test_accepted(text: str, expected: list[object]) -> None:
    entries = [
        (format_key(entry.key), entry.text) if isinstance(entry, Setting) else entry.path
        for entry in parse(text, "f")
    ]
    assert entries == expected


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_syntax_error_shows_nothing_of_the_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("default_pass hunter2\n", "f")
    assert "hunter2" not in str(caught.value)


def test_repr_hides_the_value() -> None:
    assert "hunter2" not in repr(parse("default_pass = hunter2", "f"))


def test_origins() -> None:
    text = "# c\n\n  a = 'x\ny\n'\r\ninclude b\n\tc = '''\n\n''' # d\nd = e"
    places = [str(entry.origin) for entry in parse(text, "f")]
    assert places == ["f:3:3", "f:6:1", "f:7:2", "f:10:1"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a", ("a",)),
        ("a.b", ("a", "b")),
        ("a\\.b.c", ("a.b", "c")),
        ("", None),
        ("a.", None),
        ("a b", None),
        ("a.$n", None),
        ("a\n", None),
    ],
)
def test_keys(text: str, key: tuple[str, ...] | None) -> None:
    assert parse_key(text) == key
    if key is not None:
        assert format_key(key) == text


GRAMMAR = st.text(alphabet="ab.\\= \t'#\r\n$(<)[é\x00include", max_size=60)


@given(st.one_of(st.text(), GRAMMAR))
@example("a = '")
@example("a = '''\n''''\n")
@example("\r\r\n = \r")
def test_any_text_gives_entries_or_one_line(text: str) -> None:
    try:
        entries = parse(text, "f")
    except ConfigError as error:
        message = str(error)
    else:
        message = ""
        lines = text.split("\n")
        for entry in entries:
            line = lines[entry.origin.line - 1][entry.origin.column - 1 :]
            name = "include" if isinstance(entry, Include) else format_key(entry.key)
            assert line.startswith(name)
    assert not message or re.fullmatch(r"f:[0-9]+:[0-9]+: syntax error: .+", message)


@given(st.text(alphabet=st.characters(exclude_characters="'\r\n", exclude_categories=["Cs"])))
def test_single_quotes_carry_any_line(value: str) -> None:
    assert parse(f"a = '{value}' # x\nb = c", "f")[0] == parse(f"a = '{value}'", "f")[0]
    entry = parse(f"a = '{value}'", "f")[0]
    assert isinstance(entry, Setting)
    assert entry.text == value
