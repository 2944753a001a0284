"""The pattern dialect: facts observed on RabbitMQ and on Erlang's own ``re``."""

from __future__ import annotations

import ctypes
import gc
import resource
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.errors import OperatorError
from gatekeeper.policy import pcre

E_ACUTE = "é".encode()

# pattern, name, does it match
DIALECT = [
    # unanchored; $ before a final LF; no multi-line
    (b"b", b"abc", True),
    (b"^ab$", b"ab", True),
    (b"^ab$", b"ab\n", True),
    (b"^ab$", b"ab\n\n", False),
    (b"^ab$", b"ab\r", False),
    (rb"^ab\z", b"ab\n", False),
    (rb"^ab\Z", b"ab\n", True),
    (b"^b", b"a\nb", False),
    (b"(?m)^b", b"a\nb", True),
    (b"^b", b"a\rb", False),
    (b"(?m)^b", b"a\rb", False),
    # bytes, not characters; dot is not LF
    (b"^a.b$", b"a\nb", False),
    (b"^a.b$", b"a\rb", True),
    (b"(?s)^a.b$", b"a\nb", True),
    (b"^a.b$", b"a" + E_ACUTE + b"b", False),
    (b"^a..b$", b"a" + E_ACUTE + b"b", True),
    (b"(*UTF8)^a.b$", b"a" + E_ACUTE + b"b", True),
    (b"(*UTF)^a.b$", b"a" + E_ACUTE + b"b", True),
    (b"(*UCP)(*UTF8)^a.b$", b"a" + E_ACUTE + b"b", True),
    (b"(*UTF8)^a.b$", b"a\xffb", False),
    (b"^[" + E_ACUTE + b"]$", E_ACUTE, False),
    (b"^a$", b"A", False),
    (b"(?i)^a$", b"A", True),
    # the empty pattern
    (b"", b"", True),
    (b"", b"\n", True),
    (b"", b"x", False),
    # syntax that Python's re lacks
    (rb"^\Qa.b\E$", b"a.b", True),
    (rb"^\Qa.b\E$", b"axb", False),
    (rb"^a*+a", b"aaa", False),
    (rb"^(?>a|ab)c", b"abc", False),
    (rb"^(a|b)(?1)$", b"ab", True),
    (rb"^a\hb$", b"a\tb", True),
    (rb"^a\Rb$", b"a\r\nb", True),
    (rb"^a\Rb$", b"a\x85b", True),
    (rb"^a\Nb$", b"a\nb", False),
    (rb"^a\Nb$", b"axb", True),
    (rb"^a\Kb$", b"ab", True),
    (rb"^[[:alpha:]]+$", b"ab", True),
    (rb"^\x{61}$", b"a", True),
    (rb"^(?|a(x)|b(y))\1$", b"byy", True),
    (rb"^\cA$", b"\x01", True),
    (rb"^\p{L}$", b"a", True),
    (rb"^\p{L}$", b"1", False),
    # {,n} is text in PCRE 8 and in PCRE2 before 10.43; so are blanks in a quantifier
    (b"^a{,2}$", b"aa", False),
    (b"^a{,2}$", b"a{,2}", True),
    (b"^a{1, 2}$", b"a{1, 2}", True),
    (b"^a{ 1,2}$", b"aa", False),
    (b"^a{1,2}$", b"aa", True),
    (b"^a{2,}$", b"aaa", True),
    (b"^a{2}$", b"aa", True),
    (rb"^\Qa{,2}\E$", b"a{,2}", True),
    (rb"^\d{,2}$", b"1{,2}", True),
    (rb"^[{,2}]+$", b"{,2}", True),
    (b"^{,2}$", b"{,2}", True),
    # ISO-8859-1 classes and case
    (rb"^\w$", b"\xe9", True),
    (rb"^[[:alpha:]]$", b"\xe9", True),
    (rb"^[[:upper:]]$", b"\xc9", True),
    (rb"^[[:lower:]]$", b"\xdf", True),
    (rb"^[[:punct:]]$", b"\xa0", True),
    (rb"^[[:cntrl:]]$", b"\x85", True),
    (rb"^\s$", b"\xa0", False),
    (rb"^\s$", b"\x85", False),
    (rb"^\w$", b"\xd7", False),
    (b"(?i)^\xc9$", b"\xe9", True),
    (b"(?i)^\xe9$", b"\xc9", True),
    (b"(?i)^\xd7$", b"\xf7", False),
    (b"(?i)^\xdf$", b"\xff", False),
    # what PCRE 8 tolerates and PCRE2 does not
    (rb"^[\w-.]+$", b"a-b.c", True),
    (rb"^[\w-.]+$", b"a/b", False),
    (rb"^[\d-\w]+$", b"a-1", True),
    (rb"^[[:alpha:]-z]+$", b"a-z", True),
    (rb"^[\pL-z]+$", b"a-", True),
    (rb"^\y$", b"y", True),
    (rb"^[\B]\y$", b"By", True),
    (rb"^[]\w-.]+$", b"]a-.", True),
    (rb"^[^\w-.]+$", b"/", True),
    (rb"^[\w-.]\Q[\y\E$", b"-[\\y", True),
    # NUL is a byte like any other (Erlang before OTP 28 stops reading there)
    (b"^a\x00b$", b"a\x00b", True),
    (b"^a\x00b$", b"a", False),
    (b"^a$", b"a\x00", False),
]


@pytest.mark.parametrize(("pattern", "name", "expected"), DIALECT)
def test_dialect(pattern: bytes, name: bytes, expected: bool) -> None:
    assert pcre.compile(pattern).matches(name) is expected


LATIN1_LOWER = {0xAA, 0xB5, 0xBA, *range(0xDF, 0x100)} - {0xF7}
LATIN1_UPPER = set(range(0xC0, 0xDF)) - {0xD7}
# As Erlang/OTP 25's re reports them for single bytes above 127.
LATIN1 = {
    rb"\w": LATIN1_LOWER | LATIN1_UPPER,
    rb"\s": set(),
    rb"\d": set(),
    rb"\h": {0xA0},
    rb"\v": {0x85},
    b"[[:alpha:]]": LATIN1_LOWER | LATIN1_UPPER,
    b"[[:alnum:]]": LATIN1_LOWER | LATIN1_UPPER,
    b"[[:lower:]]": LATIN1_LOWER,
    b"[[:upper:]]": LATIN1_UPPER,
    b"[[:punct:]]": set(range(0xA0, 0x100)) - LATIN1_LOWER - LATIN1_UPPER,
    b"[[:graph:]]": set(range(0xA0, 0x100)),
    b"[[:print:]]": set(range(0xA0, 0x100)),
    b"[[:cntrl:]]": set(range(0x80, 0xA0)),
    b"[[:space:]]": set(),
    b"[[:blank:]]": set(),
    b"[[:xdigit:]]": set(),
}


@pytest.mark.parametrize("character_class", LATIN1)
def test_latin1_classes(character_class: bytes) -> None:
    pattern = pcre.compile(character_class)
    matching = {octet for octet in range(0x80, 0x100) if pattern.matches(bytes([octet]))}
    assert matching == LATIN1[character_class]


def test_case_folds_as_in_latin1() -> None:
    for octet in range(0x80, 0x100):
        pattern = pcre.compile(b"(?i)^%c$" % octet)
        folded = {other for other in range(0x100) if pattern.matches(bytes([other]))}
        expected = {octet}
        if octet in LATIN1_UPPER:
            expected.add(octet + 0x20)
        elif octet - 0x20 in LATIN1_UPPER:
            expected.add(octet - 0x20)
        assert folded == expected


@pytest.mark.parametrize(
    ("pattern", "message", "offset"),
    [
        (b"(", "missing )", 1),
        (b"*", "nothing to repeat", 0),
        (b"a)", "unmatched parentheses", 1),
        (b"[", "missing terminating ] for character class", 1),
        (b"a\\", "\\ at end of pattern", 2),
        (b"[\\w-.]\\", "invalid range in character class", 3),
        (b"[z-a]", "range out of order in character class", 3),
    ],
)
def test_invalid_pattern(pattern: bytes, message: str, offset: int) -> None:
    with pytest.raises(pcre.PatternError) as caught:
        pcre.compile(pattern)
    assert (caught.value.message, caught.value.offset) == (message, offset)
    assert str(caught.value) == f"{message} at offset {offset}"


@pytest.mark.parametrize(
    "pattern",
    [
        rb"\y(",  # the lenient spelling is no better
        rb"(?#[)\y",  # a comment could hide a bracket
        rb"(?x)\y",
        rb"(?i-x:\y)",
        rb"\L",
        rb"\y\L",
        rb"[a-\d]",
        rb"\y[a-\d]",
        rb"[\d-z]" + b"\\",
    ],
)
def test_not_every_error_is_forgiven(pattern: bytes) -> None:
    with pytest.raises(pcre.PatternError):
        pcre.compile(pattern)


def test_length_limit() -> None:
    assert pcre.compile(b"a" * 1024).matches(b"a" * 1024)
    with pytest.raises(pcre.PatternError, match="longer than 1024 bytes"):
        pcre.compile(b"a" * 1025)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (b"^(a+)+$", b"a" * 40 + b"!"),
        (b"^(a|a)*$", b"a" * 40 + b"!"),
        (b"(*LIMIT_MATCH=4000000000)^(a+)+$", b"a" * 40 + b"!"),
        (b"(*LIMIT_RECURSION=4000000000)(*LIMIT_HEAP=4000000)^(?:(a)|b)*$", b"a" * 300_000),
        (b"(x+x+)+y", b"x" * 5000),
        (b"(.*)" * 200 + b"z", b"x" * 60_000),
        (b"(" * 200 + b"a*" + b")*" * 200 + b"b", b"a" * 5000),
    ],
)
def test_hostile_pattern_is_no_match_and_soon(pattern: bytes, name: bytes) -> None:
    compiled = pcre.compile(pattern)
    started = time.thread_time()  # of this thread: the machine may be busy with others
    assert not compiled.matches(name)
    assert time.thread_time() - started < 0.05


def test_a_pattern_may_lower_its_limit() -> None:
    assert pcre.compile(b"^(?:a|b)*c").matches(b"ab" * 50 + b"c")
    assert not pcre.compile(b"(*LIMIT_MATCH=10)^(?:a|b)*c").matches(b"ab" * 50 + b"c")


def test_no_leak_over_many_compilations() -> None:
    def burn(count: int) -> None:
        for number in range(count):
            pcre.compile.__wrapped__(b"^(?:app|svc)%d\\.[a-z]+$" % number)

    burn(5000)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    burn(100_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024  # KiB


def test_cache_is_bounded_and_shared() -> None:
    assert pcre.compile(b"^shared$") is pcre.compile(b"^shared$")
    assert pcre.compile.cache_info().maxsize == pcre.CACHED_PATTERNS
    assert repr(pcre.compile(b"^shared$")) == "Pattern(b'^shared$')"


def test_threads_share_the_scratch_area() -> None:
    pattern = pcre.compile(b"^(a|b)*c$")
    wrong: list[bool] = []

    def hammer(name: bytes, expected: bool) -> None:
        wrong.extend(True for _ in range(3000) if pattern.matches(name) is not expected)

    threads = [
        threading.Thread(target=hammer, args=case)
        for case in [(b"ab" * 20 + b"c", True), (b"ab" * 20, False)] * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(st.binary(max_size=60))
def test_escape_matches_exactly_the_value(value: bytes) -> None:
    pattern = pcre.compile(b"\\A" + pcre.escape(value) + b"\\z")
    assert pattern.matches(value)
    assert not pattern.matches(value + b"x")
    assert not pattern.matches(b"x" + value)


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_any_bytes_compile_or_are_refused(pattern: bytes, name: bytes) -> None:
    try:
        compiled = pcre.compile(pattern)
    except pcre.PatternError:
        return
    assert compiled.matches(name) in {True, False}


_SYNTAX = [
    b"a", b"{", b"}", b",", b"1", b" ", b"[", b"]", b"\\", b"Q", b"E", b"-", b"^", b"$", b"(", b")",
    b"*", b"\\w", b"\\d", b"[:alpha:]", b"|", b"x", b"p", b"{,2}", b"{1,2}",
]  # fmt: skip


@given(st.lists(st.sampled_from(_SYNTAX), max_size=12).map(b"".join), st.binary(max_size=12))
def test_rewriting_changes_nothing_that_the_library_reads_alike(
    pattern: bytes, name: bytes
) -> None:
    """Up to PCRE2 10.42 the braces are literal anyway, so the escaped form must agree."""
    library = pcre.load()
    if not _reads_braces_as_text(library):
        pytest.skip("this libpcre2 reads {,n} as a quantifier")
    try:
        plain = pcre.Pattern(pattern, library.compile(pattern or b"^$"), library)
    except pcre.PatternError:
        with pytest.raises(pcre.PatternError):
            pcre.compile(pattern)
        return
    assert pcre.compile(pattern).matches(name) is plain.matches(name)


def _reads_braces_as_text(library: pcre._Library) -> bool:
    return pcre.Pattern(b"", library.compile(b"^a{,2}$"), library).matches(b"a{,2}")


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [
        (b".*", b""),
        (b"^", b""),
        (b"^.*", b""),
        (b"^k", b"k"),
        (rb"^k\.", b"k."),
        (rb"^k\..*", b"k."),
        (rb"^a\-b_c d#", b"a-b_c d#"),
        (rb"^\\\{", b"\\{"),
        (b"^\xe4\xff", b"\xe4\xff"),
        (b"^\n", b"\n"),
        (b"", None),  # the empty subject
        (b"k", None),  # anywhere
        (b"k.*", None),
        (b"^k.", None),
        (b"^k*", None),
        (b"^k?", None),
        (b"^k+", None),
        (b"^k{2}", None),
        (b"^k{", None),
        (b"^k$", None),
        (b"^k.*$", None),
        (b"^k.*.*", None),
        (b"^a|b", None),
        (b"^(a)", None),
        (b"^[a]", None),
        (rb"^\d", None),
        (rb"^\Qa\E", None),
        (rb"^\n", None),
        (b"^k\\", None),
        (rb"^\.*", None),
        (b"^a^", None),
        (b"^a\x00", None),
        (b"(?m)^k", None),
        (b"(*UTF)^k", None),
    ],
)  # fmt: skip
def test_literal_prefix(pattern: bytes, prefix: bytes | None) -> None:
    assert pcre.literal_prefix(pattern) == prefix


@given(
    pattern=st.lists(st.sampled_from([b"^", b"a", b".", rb"\.", b"*", b"-", rb"\-", b" ", b"\n",
                                      b"\xe4", rb"\\", b"$", b"?", b"{", b"}", b"(", b"#", b"1"]))
    .map(b"".join).map(b"^".__add__) | st.just(b".*"),
    rest=st.binary(max_size=4),
    cut=st.integers(0, 3),
)  # fmt: skip
def test_a_literal_prefix_says_all_that_the_pattern_says(
    pattern: bytes, rest: bytes, cut: int
) -> None:
    prefix = pcre.literal_prefix(pattern)
    if prefix is None:
        return
    compiled = pcre.compile(pattern)
    for subject in (rest, prefix, prefix + rest, prefix[:cut] + rest, rest + prefix):
        assert compiled.matches(subject) is subject.startswith(prefix)


def test_missing_library_names_the_package() -> None:
    with pytest.raises(OperatorError, match="install the package libpcre2-8-0"):
        pcre._load("libpcre2-8-not-there.so.0")


def test_another_library_is_refused() -> None:
    with pytest.raises(OperatorError, match="pcre2_compile_8"):
        pcre._load("libc.so.6")


def test_out_of_memory_is_not_a_null_pointer() -> None:
    empty = SimpleNamespace(
        pcre2_maketables_8=_Null(), pcre2_match_context_create_8=_Null(), make=_Null()
    )
    with pytest.raises(MemoryError, match="maketables"):
        pcre._latin1_tables(empty)  # type: ignore[arg-type]
    for pairs in (None, 1):
        with pytest.raises(MemoryError, match="make"):
            pcre._Library._create(empty, "make", pairs)  # type: ignore[arg-type]


class _Null:
    """A foreign function that fails to allocate."""

    restype: object = None
    argtypes: object = None

    def __call__(self, *_arguments: object) -> None:
        return None


def test_tables_of_a_library_without_the_free_call() -> None:
    """pcre2_maketables_free exists since 10.34 only."""
    real = ctypes.PyDLL("libpcre2-8.so.0")
    old = SimpleNamespace(pcre2_maketables_8=real.pcre2_maketables_8)
    assert pcre._latin1_tables(old) == pcre._latin1_tables(real)  # type: ignore[arg-type]
