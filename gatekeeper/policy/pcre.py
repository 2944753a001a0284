"""RabbitMQ's patterns, run by the engine family that defines them: libpcre2-8 over ctypes.

Permission patterns are whatever Erlang's ``re`` makes of them: PCRE over bytes, unanchored,
ISO-8859-1 character classes, ``$`` also before a final LF, bounded work. Python's ``re`` reads
a third of that syntax differently and cannot be stopped on a hostile pattern.

Where PCRE2 departs from the PCRE that Erlang up to OTP 27 embeds, the pattern is brought back
to the older reading before it is compiled (``_as_pcre1``). One difference stays: a PCRE2
subroutine call such as ``(?1)`` may be backtracked into, as on OTP 28 and later.

The library is called with the interpreter lock held (``PyDLL``). A match is bounded to a few
milliseconds by its limits, so nobody waits long, and one scratch area can serve every thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from collections.abc import Callable

from gatekeeper.errors import GatekeeperError, OperatorError

MAX_PATTERN_BYTES = 1024
"""Longer patterns are refused (RabbitMQ 4.3.2 on: ``pattern_too_long``)."""

MATCH_LIMIT = 50_000
DEPTH_LIMIT = 50_000
"""RabbitMQ 4.3.2 on; reaching a limit is "no match". A pattern can lower them, never raise."""

HEAP_LIMIT_KIB = 16 * 1024
CACHED_PATTERNS = 2048

EMPTY_PATTERN = b"^$"
"""What an empty pattern means in RabbitMQ: the empty name (and a lone LF) only."""

_LIBRARY = "libpcre2-8.so.0"
_NEWLINE_LF = 2
_BSR_UNICODE = 1
_ERROR_TEXT_BYTES = 256

# The tables' layout: lower-casing, case flipping, ten 32-byte class bitmaps, type flags.
_FLIP_OFFSET, _BITMAP_OFFSET, _FLAGS_OFFSET, _TABLE_BYTES = 256, 512, 832, 1088
_BITMAPS, _BITMAP_BYTES = 10, 32

# Codes whose text differs from the one that RabbitMQ's own command line shows.
_PCRE1_TEXTS = {109: "nothing to repeat", 114: "missing )", 122: "unmatched parentheses"}

_LEADING_VERBS = re.compile(rb"(?:\(\*[A-Z0-9_]+(?:=[0-9]+)?\))+")
# What PCRE2 10.43 on takes as a quantifier, and what it was before.
_NEW_QUANTIFIER = re.compile(rb"\{[ \t]*(?:[0-9]+[ \t]*(?:,[ \t]*[0-9]*)?|,[ \t]*[0-9]+)[ \t]*\}")
_OLD_QUANTIFIER = re.compile(rb"\{[0-9]+(?:,[0-9]*)?\}")
_BRACED_ESCAPES = frozenset({b"x", b"o", b"N", b"p", b"P", b"g", b"k"})
_BACKSLASH, _BRACE = 0x5C, 0x7B

# What PCRE 8 lets pass: a letter that means nothing, escapes in a class, class then hyphen.
_LENIENT_CODES = frozenset({103, 107, 150})
_IDLE_ESCAPES = frozenset(b"\\%c" % letter for letter in b"FIJMOTYijmqy")
_IDLE_IN_CLASS = frozenset(b"\\%c" % letter for letter in b"ABCFGIJKMORTXYZgijkmqyz")
_CLASS_TOKEN = re.compile(rb"\\[dDwWsShHvV]|\[:\^?[a-z]+:\]|\\[pP](?:\{[^}]*\}|.)", re.DOTALL)
_TOKEN = re.compile(
    rb"\\Q.*?(?:\\E|\Z)|\\[pP](?:\{[^}]*\}|.)|\\.|\[:\^?[a-z]+:\]|\[\^?\]?|[^\\\[]", re.DOTALL
)
_MAY_HOLD_COMMENTS = re.compile(rb"\(\?(?:#|[a-zA-Z^-]*x)")


class PatternError(GatekeeperError):
    """A pattern cannot be compiled.

    message: what is wrong, in PCRE's words. offset: the byte where it was noticed.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} at offset {offset}")
        self.message = message
        self.offset = offset


class Pattern:
    """A compiled pattern. It frees its memory when the last reference goes."""

    __slots__ = ("_code", "_free", "_match", "_workspace", "source")

    def __init__(self, source: bytes, code: int, library: _Library) -> None:
        self.source = source
        self._code = code
        self._match = library.match_pattern
        self._workspace = library.workspace
        self._free = library.free

    def matches(self, subject: bytes) -> bool:
        """Is there a match anywhere in ``subject``? A limit reached or an error is a no."""
        # 0 is a match with more groups than there is room for; every failure is negative.
        return self._match(self._code, subject, len(subject), 0, 0, *self._workspace) >= 0

    def __del__(self) -> None:
        self._free(self._code)

    def __repr__(self) -> str:
        return f"Pattern({self.source!r})"


@functools.lru_cache(maxsize=CACHED_PATTERNS)
def compile(pattern: bytes) -> Pattern:  # noqa: A001 - the name that re and regex use
    """Compile a permission pattern; the empty one stands for ``^$``.

    Raises PatternError, and OperatorError where libpcre2 is missing.
    Source: rabbit_auth_backend_internal:check_resource_access, rabbit_re:run.
    """
    if len(pattern) > MAX_PATTERN_BYTES:
        raise PatternError(
            f"pattern is longer than {MAX_PATTERN_BYTES} bytes ({len(pattern)})", MAX_PATTERN_BYTES
        )
    library = load()
    return Pattern(pattern, library.compile(_as_pcre1(pattern or EMPTY_PATTERN)), library)


def escape(value: bytes) -> bytes:
    """A pattern that matches ``value`` and nothing else, by RabbitMQ's rule (rabbit_re:escape)."""
    return _SPECIAL.sub(rb"\\\g<0>", value)


_SPECIAL = re.compile(rb"[\\^$.|?*+()\[\]{}-]")


def literal_prefix(pattern: bytes) -> bytes | None:
    """How a subject must begin to match, where the pattern says that and nothing else.

    None where it says anything else, or is not seen at a glance to say only that. An anchor,
    octets that mean themselves, perhaps ``.*`` behind them: most topic permissions look like that.
    """
    if pattern == b".*":
        return b""
    found = _PREFIX.fullmatch(pattern)
    return None if found is None else _ESCAPED.sub(rb"\1", found[1])


_ESCAPED = re.compile(rb"\\([!-/:-@\[-`{-~])")
_PREFIX = re.compile(rb"\^((?:[^\x00\\^$.|?*+()\[\]{}]|\\[!-/:-@\[-`{-~])*)(?:\.\*)?")


def _as_pcre1(pattern: bytes) -> bytes:
    """The pattern in the spelling that makes PCRE2 read it as PCRE 8 does.

    ``(*UTF8)`` is spelled ``(*UTF)`` now. ``a{,2}`` and ``a{1, 2}`` are literal text in PCRE 8
    and in PCRE2 up to 10.42: the brace is escaped, except in ``\\Q...\\E``, where it is literal.
    """
    head = b""
    verbs = _LEADING_VERBS.match(pattern)
    if verbs:
        head = verbs[0].replace(b"(*UTF8)", b"(*UTF)")
        pattern = pattern[verbs.end() :]
    if b"{" not in pattern:
        return head + pattern
    out = bytearray(head)
    at, end = 0, len(pattern)
    while at < end:
        octet = pattern[at]
        stop = at + 1
        if octet == _BACKSLASH:
            stop = _end_of_escape(pattern, at)
        elif octet == _BRACE and _is_new_quantifier(pattern, at):
            out += b"\\"
        out += pattern[at:stop]
        at = stop
    return bytes(out)


def _end_of_escape(pattern: bytes, at: int) -> int:
    """Where the escape that begins at ``at`` ends; of a braced one, behind its opening brace."""
    if pattern.startswith(b"\\Q", at):
        close = pattern.find(b"\\E", at)
        return len(pattern) if close < 0 else close + 2
    braced = pattern[at + 1 : at + 2] in _BRACED_ESCAPES and pattern[at + 2 : at + 3] == b"{"
    return at + 3 if braced else at + 2


def _is_new_quantifier(pattern: bytes, at: int) -> bool:
    return bool(_NEW_QUANTIFIER.match(pattern, at)) and not _OLD_QUANTIFIER.match(pattern, at)


def _lenient(pattern: bytes) -> bytes | None:
    """A spelling of what PCRE 8 tolerates and PCRE2 calls an error, or None.

    ``[\\w-.]`` has a literal hyphen there, ``\\y`` (a letter with no meaning) is that letter, and
    in a class so are more of them (``\\B``, ``\\R``, ``\\z``). Only tried on a pattern that PCRE2
    refuses, so that nothing it understands is touched; not where comments could hide a bracket.
    """
    if _MAY_HOLD_COMMENTS.search(pattern):
        return None
    out = bytearray()
    at, in_class = 0, False
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:  # a stray byte: a backslash at the end
            return None
        text, at = token[0], token.end()
        follows = pattern[at : at + 2]
        if not in_class:
            if text[:1] == b"[":
                in_class = True
            elif text in _IDLE_ESCAPES:
                text = text[1:]
        elif text == b"]":
            in_class = False
        elif text in _IDLE_IN_CLASS:
            text = text[1:]
        elif _CLASS_TOKEN.fullmatch(text) and follows[:1] == b"-" and follows != b"-]":
            text, at = text + b"\\-", at + 1
        out += text
    return bytes(out)


class _RefusalError(Exception):
    """PCRE2's error code and offset, before it is known whether they are final."""

    def __init__(self, code: int, offset: int) -> None:
        super().__init__(code, offset)
        self.code = code
        self.offset = offset


class _Library:
    """libpcre2-8 with the contexts that every compilation and match of ours uses.

    It lives as long as the process: the compiled patterns point into ``_tables``.
    """

    def __init__(self, dll: ctypes.CDLL) -> None:
        self.compile_pattern = _function(
            dll,
            "pcre2_compile_8",
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint32,
            ctypes.POINTER(ctypes.c_int),
            ctypes.POINTER(ctypes.c_size_t),
            ctypes.c_void_p,
        )
        self.match_pattern = _function(
            dll,
            "pcre2_match_8",
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_size_t,
            ctypes.c_uint32,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        self.free: Callable[[int], object] = _function(
            dll, "pcre2_code_free_8", None, ctypes.c_void_p
        )
        self._error_text = _function(
            dll,
            "pcre2_get_error_message_8",
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_size_t,
        )
        self._tables = ctypes.create_string_buffer(_latin1_tables(dll), _TABLE_BYTES)
        self._compile_context = self._create(dll, "pcre2_compile_context_create_8", None)
        _set(dll, "pcre2_set_character_tables_8", self._compile_context, self._tables)
        _set(dll, "pcre2_set_newline_8", self._compile_context, ctypes.c_uint32(_NEWLINE_LF))
        _set(dll, "pcre2_set_bsr_8", self._compile_context, ctypes.c_uint32(_BSR_UNICODE))
        context = self._create(dll, "pcre2_match_context_create_8", None)
        for name, limit in (
            ("pcre2_set_match_limit_8", MATCH_LIMIT),
            ("pcre2_set_depth_limit_8", DEPTH_LIMIT),
            ("pcre2_set_heap_limit_8", HEAP_LIMIT_KIB),
        ):
            _set(dll, name, context, ctypes.c_uint32(limit))
        # One pair of offsets: only "does it match" is asked.
        self.workspace = self._create(dll, "pcre2_match_data_create_8", 1), context

    @staticmethod
    def _create(dll: ctypes.CDLL, name: str, pairs: int | None) -> int:
        if pairs is None:
            made = _function(dll, name, ctypes.c_void_p, ctypes.c_void_p)(None)
        else:
            create = _function(dll, name, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
            made = create(pairs, None)
        if not made:
            raise MemoryError(f"{name}: out of memory")
        return int(made)

    def compile(self, pattern: bytes) -> int:
        """The address of the compiled pattern. Raises PatternError."""
        try:
            return self._compile(pattern)
        except _RefusalError as refusal:
            error = refusal
        lenient = _lenient(pattern) if error.code in _LENIENT_CODES else None
        if lenient is not None:
            with contextlib.suppress(_RefusalError):
                return self._compile(lenient)
        raise PatternError(self._explain(error.code), error.offset)

    def _compile(self, pattern: bytes) -> int:
        code = ctypes.c_int()
        offset = ctypes.c_size_t()
        compiled = self.compile_pattern(
            pattern,
            len(pattern),
            0,
            ctypes.byref(code),
            ctypes.byref(offset),
            self._compile_context,
        )
        if not compiled:
            raise _RefusalError(code.value, offset.value)
        return int(compiled)

    def _explain(self, code: int) -> str:
        if code in _PCRE1_TEXTS:
            return _PCRE1_TEXTS[code]
        text = ctypes.create_string_buffer(_ERROR_TEXT_BYTES)
        self._error_text(code, text, _ERROR_TEXT_BYTES)
        return text.value.decode("ascii", "replace")


@functools.cache
def load() -> _Library:
    """libpcre2-8, loaded once. Raises OperatorError: call it at start, not at a first login."""
    return _load(_LIBRARY)


def _load(name: str) -> _Library:
    try:
        return _Library(ctypes.PyDLL(name))
    except (OSError, AttributeError) as error:
        raise OperatorError(
            f"cannot load {name} ({error}): permission patterns need PCRE2; "
            "install the package libpcre2-8-0 (Debian, Ubuntu) or pcre2 (Alpine, Fedora)"
        ) from error


def _function(
    dll: ctypes.CDLL, name: str, result: object, *arguments: object
) -> Callable[..., int]:
    function = getattr(dll, name)
    function.restype = result
    function.argtypes = arguments
    return function  # type: ignore[no-any-return]


def _set(dll: ctypes.CDLL, name: str, context: int, value: object) -> None:
    function = getattr(dll, name)
    function.restype = ctypes.c_int
    function(ctypes.c_void_p(context), value)


def _latin1_tables(dll: ctypes.CDLL) -> bytes:
    """Character tables for ISO-8859-1, as Erlang embeds them.

    The library's own tables are made for the C locale: ASCII. Each byte above 127 gets what
    an ASCII byte of the same nature has, so the meaning of the flag bits need not be known.
    Erlang counts a no-break space as punctuation, and NEL as a control, not as space.
    """
    made = _function(dll, "pcre2_maketables_8", ctypes.c_void_p, ctypes.c_void_p)(None)
    if not made:
        raise MemoryError("pcre2_maketables_8: out of memory")
    tables = bytearray(ctypes.string_at(made, _TABLE_BYTES))
    free = getattr(dll, "pcre2_maketables_free_8", None)
    if free is not None:  # since 10.34
        _function(dll, "pcre2_maketables_free_8", None, ctypes.c_void_p, ctypes.c_void_p)(
            None, made
        )
    for octet in range(0x80, 0x100):
        model = _ascii_model(octet)
        tables[octet] = tables[_FLIP_OFFSET + octet] = octet
        if model == ord("G"):
            tables[octet] = tables[_FLIP_OFFSET + octet] = octet + 0x20
        elif model == ord("g") and _ascii_model(octet - 0x20) == ord("G"):
            tables[_FLIP_OFFSET + octet] = octet - 0x20
        tables[_FLAGS_OFFSET + octet] = tables[_FLAGS_OFFSET + model]
        for row in range(_BITMAPS):
            start = _BITMAP_OFFSET + row * _BITMAP_BYTES
            bit = tables[start + (model >> 3)] >> (model & 7) & 1
            tables[start + (octet >> 3)] &= ~(1 << (octet & 7))
            tables[start + (octet >> 3)] |= bit << (octet & 7)
    return bytes(tables)


def _ascii_model(octet: int) -> int:
    """An ASCII byte of the same nature; the letters chosen are no hexadecimal digits."""
    if octet < 0xA0:
        return 0x01
    if octet in {0xAA, 0xB5, 0xBA} or (octet >= 0xDF and octet != 0xF7):
        return ord("g")
    if octet >= 0xC0 and octet not in {0xD7, 0xF7}:
        return ord("G")
    return ord("!")
