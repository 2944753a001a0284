"""Includes, file values, substitution and the order in which values win."""

# ruff: noqa: E501  (a row of the table holds a whole message)

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gatekeeper.config.conf import format_key
from gatekeeper.config.sources import Document, read
from gatekeeper.errors import ConfigError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files into a fresh directory; the first is returned."""

    def do(main: str | bytes, **others: str | bytes) -> Path:
        files = {"main_conf": main, **others}
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/").replace("_conf", ".conf")
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / "main.conf"

    return do


def values(document: Document) -> dict[str, str]:
    return {format_key(key): value.text for key, value in document.values.items()}


def load(file: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    return values(read([file], environ or {}))


def error(file: Path, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read([file], environ or {})
    return str(caught.value).replace(str(file.parent), "DIR")


def test_last_value_wins_at_the_first_place(write: Write) -> None:
    file = write("a = 1\nb = 2\na = 3\n")
    assert list(load(file).items()) == [("a", "3"), ("b", "2")]
    assert str(read([file], {}).values[("a",)].origin) == f"{file}:3:1"


def test_later_files_win(write: Write) -> None:
    file = write("a = 1\nb = $(a)", b_conf="a = 2\nc = $(b)")
    document = read([file, file.parent / "b.conf"], {})
    assert values(document) == {"a": "2", "b": "2", "c": "2"}
    assert document.main == str(file)


def test_include_is_spliced_in_place(write: Write) -> None:
    file = write(
        "a = 1\nb = 1\ninclude sub/*.conf\nb = 9\n",
        sub__20_conf="a = 20\n",
        sub__10_conf="a = 10\nc = $(a)\ninclude ../deep.conf",
        sub__other="a = 99\n",
        deep_conf="d = 1",
    )
    assert load(file) == {"a": "20", "b": "9", "c": "20", "d": "1"}


def test_include_absolute(write: Write) -> None:
    file = write("")
    other = file.parent / "x.conf"
    other.write_text("a = 1")
    file.write_text(f"include {other}")
    assert load(file) == {"a": "1"}


def test_include_of_nothing_warns(write: Write) -> None:
    file = write("include missing.conf\ninclude none/*.conf\na = 1")
    document = read([file], {})
    assert values(document) == {"a": "1"}
    assert list(document.warnings) == [
        f"{file}:1:1: include missing.conf: no such file; check the path",
        f"{file}:2:1: include none/*.conf: no such file; check the path",
    ]


def test_include_twice_is_no_circle(write: Write) -> None:
    file = write("include a.conf\nx = 0\ninclude a.conf", a_conf="x = 1")
    assert load(file) == {"x": "1"}


@pytest.mark.parametrize(
    ("main", "others", "message"),
    [
        ("include main.conf", {}, "DIR/main.conf:1:1: include main.conf: DIR/main.conf includes itself; remove one of the includes"),
        ("include a.conf", {"a_conf": "\ninclude ma*.conf"}, "DIR/a.conf:2:1: include ma*.conf: DIR/main.conf includes itself; remove one of the includes"),
        ("include a*/b.conf", {}, "DIR/main.conf:1:1: include a*/b.conf: '*' may only stand after the last '/'"),
        ("include sub", {"sub__x": ""}, "DIR/main.conf:1:1: include sub: cannot read 'DIR/sub': Is a directory; check the path and its permissions"),
        ("include a.conf", {"a_conf": "a"}, "DIR/a.conf:1:2: syntax error: there is no '=' after the key; write KEY = VALUE"),
        ("include a.conf", {"a_conf": b"a = 1\nb = \xff"}, "DIR/main.conf:1:1: include a.conf: 'DIR/a.conf' is not UTF-8 at line 2; convert it to UTF-8"),
        (b"a = \xff", {}, "'DIR/main.conf' is not UTF-8 at line 1; convert it to UTF-8"),
        ("a = $(<nope)", {}, "DIR/main.conf:1:1: a: cannot read 'DIR/nope': No such file or directory; check the path and its permissions"),
        ("a = $(<x\0y)", {}, "DIR/main.conf:1:1: a: cannot read 'DIR/x\\x00y': not a file name; check the path and its permissions"),
        ("a = $(</dev/zero)", {}, "DIR/main.conf:1:1: a: '/dev/zero' is longer than 65536 bytes; is it the right one?"),
        ("a = $(b)\nc = $(d)", {}, "DIR/main.conf:1:1: a: $(b): no setting and no environment variable has this name; set one of them\nDIR/main.conf:2:1: c: $(d): no setting and no environment variable has this name; set one of them"),
        ("a = $(a)", {}, "DIR/main.conf:1:1: a: $(...) goes round in a circle: a -> a; break it"),
        ("a = x$(b)\nb = $(c)\nc = y$(b)", {}, "DIR/main.conf:1:1: a: $(...) goes round in a circle: b -> c -> b; break it\nDIR/main.conf:2:1: b: $(...) goes round in a circle: b -> c -> b; break it\nDIR/main.conf:3:1: c: $(...) goes round in a circle: c -> b -> c; break it"),
        ("a = $(hunter2 with blanks)", {}, "DIR/main.conf:1:1: a: $(?): no setting and no environment variable has this name; set one of them"),
        ("a = $()", {}, "DIR/main.conf:1:1: a: $(?): no setting and no environment variable has this name; set one of them"),
        ("a = $(LATIN)", {}, "DIR/main.conf:1:1: a: $(LATIN): the environment variable is not UTF-8; convert it"),
    ],
)  # fmt: skip
def test_errors(
    write: Write, main: str | bytes, others: dict[str, str | bytes], message: str
) -> None:
    assert error(write(main, **others), {"LATIN": "\udcff"}) == message


def test_missing_main_file(tmp_path: Path) -> None:
    assert error(tmp_path / "main.conf").startswith("cannot read 'DIR/main.conf': No such file")


def test_byte_order_mark_and_crlf(write: Write) -> None:
    assert load(write(b"\xef\xbb\xbfa = 1\r\nb = 2\r\n")) == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$(ENV)", "env"),
        ("pre-$(ENV)-$(ENV)-post", "pre-env-env-post"),
        ("'a # $(ENV)'", "a # env"),
        ("$( ENV )", "env"),
        ("$(key)", "from key"),
        ("$(dotted.key)", "value"),
        ("$(chain)", "<from key>"),
        ("$(BOTH)", "the key wins"),
        ("$(EMPTY)x", "x"),
        ("$(NESTED)", "$(ENV)"),
        ("$(", "$("),
        ("$(ENV", "$(ENV"),
        ("$ENV", "$ENV"),
        ("$(<secret)", "from file"),
        ("$(< sub/secret )", "two\n"),
        ("$(<refers)", "a env"),
        ("'$(<secret)'", "from file"),
        ("x$(<secret)", None),
    ],
)
def test_substitution(write: Write, text: str, value: str | None) -> None:
    file = write(
        f"t = {text}\nkey = from key\ndotted.key = value\nchain = <$(key)>\nBOTH = the key wins",
        secret="from file\n",
        sub__secret="two\n\r\n",
        refers="a $(ENV)",
    )
    environ = {"ENV": "env", "BOTH": "the variable", "EMPTY": "", "NESTED": "$(ENV)"}
    if value is None:
        assert "$(?): no setting" in error(file, environ)
    else:
        assert load(file, environ)["t"] == value


def test_file_value_is_relative_to_the_file_that_names_it(write: Write) -> None:
    file = write("include sub/a.conf", sub__a_conf="a = $(<pw)", sub__pw="right", pw="wrong")
    assert load(file) == {"a": "right"}


def test_substitution_is_bounded(write: Write) -> None:
    doubling = "\n".join(f"k{n} = $(k{n + 1})$(k{n + 1})" for n in range(40))
    assert "gives more than 65536 characters" in error(write(f"{doubling}\nk40 = 0123456789"))
    chain = "\n".join(f"k{n} = $(k{n + 1})" for n in range(60))
    assert "nested deeper than 50" in error(write(f"{chain}\nk60 = x"))


def test_the_number_of_files_is_bounded(write: Write) -> None:
    others = {f"f{n}_conf": f"include f{n + 1}.conf\n" * 2 for n in range(12)}
    message = error(write("include f0.conf", **others, f12_conf=""))
    assert message.endswith("more than 1000 files; remove some includes")


def test_messages_and_repr_show_what_is_written_not_the_value(write: Write) -> None:
    document = read([write("a = $(PW)")], {"PW": "hunter2"})
    value = document.values[("a",)]
    assert (value.text, value.written) == ("hunter2", "$(PW)")
    assert "hunter2" not in repr(document)
