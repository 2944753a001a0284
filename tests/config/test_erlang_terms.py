"""The reader of Erlang terms: every kind of literal, every error with its place, any text."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.config.erlang_terms import (
    Atom,
    Map,
    Term,
    TermError,
    read_term,
    read_terms,
    shown,
    text_of,
)

# fmt: off
TERMS: list[tuple[str, Term]] = [
    ("true", Atom("true")),
    ("'not'", Atom("not")),
    ("in_group@2", Atom("in_group@2")),
    (r"'a\'b'", Atom("a'b")),
    ("'PLAIN'", Atom("PLAIN")),
    ("5672", 5672),
    ("1_000", 1000),
    ("-1", -1),
    ("+1", 1),
    ("16#fF", 255),
    ("$a", 97),
    (r"$\n", 10),
    ("0.4", 0.4),
    ("-1.5e3", -1500.0),
    ('"abc"', "abc"),
    ('"a" "b"\n"c"', "abc"),
    ('""', []),
    ("[]", []),
    (r'"\"\\\n\x41\x{E9}\101\s\^A"', '"\\\nA\xe9A \x01'),
    ('"é€"', "é€"),
    ("<<>>", b""),
    ('<<"ab">>', b"ab"),
    ('<<"ab",0,255>>', b"ab\0\xff"),
    ('<<"", "a">>', b"a"),
    ('<<"é">>', b"\xe9"),
    ('<<"é"/utf8>>', "é".encode()),
    ("[a, [b], {}]", [Atom("a"), [Atom("b")], ()]),
    ("{a,1}", (Atom("a"), 1)),
    ('#{a => 1, "b" => []}', Map(((Atom("a"), 1), ("b", [])))),
    ("% first\n{a, % in between '\"\n b} % last", (Atom("a"), Atom("b"))),
    ("a .", Atom("a")),
    ("a.\n", Atom("a")),
]

ERRORS = [
    ("", 1, 1, "ends where a term was expected"),
    ("{a,", 1, 4, "ends where a term was expected"),
    ("{a b}", 1, 4, "expected ',' or '}'"),
    ("[a,]", 1, 4, "expected a term, not ]"),
    ("[a|b]", 1, 3, "expected ',' or ']'"),
    ("{a}\n}", 2, 1, "expected '.' after the term"),
    ("a. b", 1, 4, "one term only"),
    ('{a,\n  "abc}', 2, 3, "a quote is never closed"),
    ("Name", 1, 1, "there are no variables"),
    ("not", 1, 1, "write 'not'"),
    ("{a;b}", 1, 3, "belongs to no term"),
    ("<<a>>", 1, 3, "a binary holds strings and octets"),
    ("<<256>>", 1, 3, "does not fit into octets"),
    ('<<"€">>', 1, 3, "does not fit into octets"),
    ('<<"a"/utf16>>', 1, 3, "only utf8"),
    ("- a", 1, 4, "a sign stands before a number"),
    ("99#1", 1, 1, "has no meaning"),
    ("9" * 41, 1, 1, "has no meaning"),
    (r'"\x{110000}"', 1, 1, "has no meaning"),
    ("#{a}", 1, 4, "expected '=>'"),
    ("[" * 101, 1, 101, "nested deeper"),
    ("-" * 101 + "1", 1, 101, "nested deeper"),
    ("a" * (4 * 1024 * 1024 + 1), 1, 1, "more than"),
]
# fmt: on


@pytest.mark.parametrize(("text", "term"), TERMS, ids=[text for text, _ in TERMS])
def test_literal(text: str, term: Term) -> None:
    assert read_term(text) == term
    assert read_term(shown(term)) == term


@pytest.mark.parametrize(
    ("text", "line", "column", "problem"), ERRORS, ids=[row[0][:20] for row in ERRORS]
)
def test_error(text: str, line: int, column: int, problem: str) -> None:
    with pytest.raises(TermError) as caught:
        read_term(text)
    error = caught.value
    assert problem in error.problem
    assert (error.line, error.column) == (line, column)


def test_a_file_of_terms_knows_where_its_options_are() -> None:
    terms = read_terms('[{rabbit,\n  [{a, 1},\n   {b, {c, "d"}}]}].\nx.')
    assert len(terms.terms) == 2
    assert isinstance(terms.terms[0], list)
    match terms.terms[0][0]:
        case (_, [first, (_, inner) as second]):
            assert [terms.place(t) for t in (first, second, inner)] == [(2, 4), (3, 4), (3, 8)]
        case _:
            raise AssertionError(terms)


def test_text_of_a_list_of_characters() -> None:
    assert [text_of(term) for term in ("ab", [97, 98], [], [Atom("a")], b"ab")] == [
        "ab", "ab", "", None, None,
    ]  # fmt: skip


SIMPLE = (
    st.integers(-(10**20), 10**20)
    | st.text(min_size=1, max_size=8)
    | st.binary(max_size=8)
    | st.text(max_size=8).map(Atom)
)
NESTED = st.recursive(SIMPLE, lambda t: st.lists(t, max_size=3) | st.lists(t).map(tuple))


@given(term=NESTED)
def test_what_is_shown_reads_back(term: Term) -> None:
    assert read_term(shown(term)) == term


@given(text=st.text(alphabet="ab1${}[]<>\"'\\.,%#-/= \n", max_size=40) | st.text(max_size=20))
def test_any_text_is_terms_or_an_error(text: str) -> None:
    with contextlib.suppress(TermError):
        read_terms(text)
