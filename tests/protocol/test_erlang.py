"""Terms laid out over several lines, compared with what Erlang itself prints."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest

from gatekeeper.protocol.erlang import broken_lines, erlang_string, with_error

TERMS = [
    "timeout",
    '"no idea, {really}"',
    '{500,"no \\"idea\\", {really}"}',
    "{204,[]}",
    '{failed_connect,[{to_address,{"127.0.0.1",40403}},{inet,[inet],econnrefused}]}',
    "[{a,b},[c,[d]],{},{e}]",
]
END = "--end--"


def random_term(chance: random.Random, depth: int = 4) -> str:
    if depth == 0 or chance.random() < 0.3:
        return chance.choice(["timeout", "nxdomain", "500", '"a,b"', '"c\\\\"', "[]", "{}"])
    parts = ",".join(random_term(chance, depth - 1) for _ in range(chance.randint(1, 4)))
    return chance.choice(["{%s}", "[%s]", "{error,%s}"]) % parts


@pytest.mark.skipif(shutil.which("erl") is None, reason="Erlang is not installed")
def test_what_erlang_prints() -> None:
    chance = random.Random(3)
    terms = TERMS + [random_term(chance) for _ in range(200)]
    columns = [80 + chance.randrange(120) for _ in terms]
    show = (
        "Show = fun(Term, Column) -> Filled = lists:duplicate(Column, $x), "
        'io:format("~0tp--end--~s--end--", [Term, io_lib:format("~s~tp", [Filled, Term])]) end'
    )
    calls = [f"Show({term}, {column})" for term, column in zip(terms, columns, strict=True)]
    done = subprocess.run(
        ["erl", "-noinput", "-noshell", "-eval", ", ".join([show, *calls, "halt()."])],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    printed = done.stdout.split(END)
    assert len(printed) == 2 * len(terms) + 1
    for at, column in enumerate(columns):
        flat, broken = printed[2 * at], printed[2 * at + 1]
        assert "x" * column + broken_lines(flat, column) == broken


def test_what_is_not_an_error_stays_as_it_is() -> None:
    text = b"access to queue 'a returned an error: {b,c}' refused" + b"." * 80
    assert with_error(text, b"") == text
    assert with_error(text, b" by backend x: {b,c}") == text + b" by backend x: {b,c}"
    error = b", backend x returned an error: {b,c}"
    assert with_error(b"short", error) == b"short" + error
    indent = b" " * (len(text + error) - 4)
    assert with_error(text, error) == text + error[:-2] + b"\n" + indent + b"c}"


def test_strings() -> None:
    assert erlang_string("") == "[]"
    assert erlang_string('a"\n') == '"a\\"\\n"'
