"""The language of LDAP queries: from Erlang terms to a tree that can be evaluated. Pure.

Strategy: everything that can be wrong with a query is wrong when the configuration is read, so
the tree holds no malformed node and its evaluation (:mod:`gatekeeper.backends.ldap.evaluate`)
needs no case for one. RabbitMQ takes any term and only fails, or crashes, when it gets there.

Patterns become bytes as RabbitMQ makes them: one octet a code point (Latin-1).
Source: ``rabbit_auth_backend_ldap:evaluate0`` (4.3.5), https://www.rabbitmq.com/docs/ldap.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gatekeeper.config.erlang_terms import FALSE, TRUE, Atom, Term, shown, text_of

_SHOWN = 80
_SUBTREE = Atom("subtree")


class Scope(enum.IntEnum):
    """How far a search reaches; the values are LDAP's (RFC 4511 section 4.5.1.2)."""

    BASE = 0
    ONE_LEVEL = 1
    SUBTREE = 2


@dataclass(frozen=True, slots=True)
class Constant:
    value: bool


@dataclass(frozen=True, slots=True)
class Exists:
    dn: bytes


@dataclass(frozen=True, slots=True)
class InGroup:
    dn: bytes
    attribute: bytes


@dataclass(frozen=True, slots=True)
class InGroupNested:
    dn: bytes
    attribute: bytes
    scope: Scope


@dataclass(frozen=True, slots=True)
class For:
    """rows: a variable's name, the value it must have, the query that then decides."""

    rows: tuple[tuple[str, Term, Query], ...]


@dataclass(frozen=True, slots=True)
class Not:
    query: Query


@dataclass(frozen=True, slots=True)
class And:
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Or:
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Equals:
    left: Query
    right: Query


@dataclass(frozen=True, slots=True)
class Match:
    """literal: both sides are strings, where an empty pattern matches everything."""

    subject: Query
    pattern: Query
    literal: bool


@dataclass(frozen=True, slots=True)
class String:
    pattern: bytes


@dataclass(frozen=True, slots=True)
class Attribute:
    dn: bytes
    name: bytes


Query = (
    Constant
    | Exists
    | InGroup
    | InGroupNested
    | For
    | Not
    | And
    | Or
    | Equals
    | Match
    | String
    | Attribute
)


@dataclass(frozen=True, slots=True)
class TagQuery:
    """Who passes the query has the tag."""

    tag: str
    query: Query


class QueryError(Exception):
    """The term is no query; the message says which part and what was expected."""


ALLOW = Constant(True)
DENY = Constant(False)


def query(term: Term) -> Query:
    """A query that answers yes or no. Raises QueryError."""
    return _decision(term)


def tag_queries(term: Term) -> tuple[TagQuery, ...]:
    """``[{administrator, Query}, ...]`` in its order. Raises QueryError."""
    if not isinstance(term, list):
        raise QueryError(f"expected a list such as [{{management, Query}}], not {_shown(term)}")
    found: list[TagQuery] = []
    for row in term:
        match row:
            case (Atom(tag), inner):
                found.append(TagQuery(tag, _decision(inner)))
            case _:
                raise QueryError(f"expected {{Tag, Query}}, not {_shown(row)}")
    return tuple(found)


def pattern(term: Term) -> bytes:
    """A string or a binary with ``${...}`` in it. Raises QueryError."""
    if isinstance(term, bytes):
        return term
    text = text_of(term)
    if text is None:
        raise QueryError(f'expected a string such as "cn=${{username}},dc=x", not {_shown(term)}')
    return octets(text)


def octets(text: str) -> bytes:
    """RabbitMQ's octets of a configured text. Raises QueryError above U+00FF, where it crashes."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise QueryError(
            "a character above U+00FF, which RabbitMQ cannot fill in; write its UTF-8 octets as"
            r" escapes, such as \304\205"
        ) from None


def _decision(term: Term) -> Query:
    """A node that answers yes or no."""
    match term:
        case (Atom("for"), rows):
            return _for(rows, _decision)
        case (Atom(name), *arguments):
            build = _DECISIONS.get((name, len(arguments)))
            if build is not None:
                return build(*arguments)
    raise QueryError(f"{_shown(term)} is no query that answers yes or no; check its spelling")


def _text(term: Term) -> Query:
    """A node that gives a text, or several: what equals and match compare."""
    match term:
        case (Atom("string"), value):
            return String(pattern(value))
        case (Atom("attribute"), dn, name) if not isinstance(name, bytes):
            # RabbitMQ never finds an attribute that is named by a binary.
            return Attribute(pattern(dn), pattern(name))
        case (Atom("for"), rows):
            return _for(rows, _text)
        case list() | str():
            return String(pattern(term))
    raise QueryError(
        f"{_shown(term)} is no text; expected a string, {{string,_}}, {{attribute,_,_}}"
    )


def _constant(term: Term) -> Query:
    if term not in (TRUE, FALSE):
        raise QueryError(f"expected {{constant, true}} or {{constant, false}}, not {_shown(term)}")
    return Constant(term == TRUE)


def _for(term: Term, inner: Callable[[Term], Query]) -> Query:
    if not isinstance(term, list):
        raise QueryError(f"expected {{for, [{{Variable, Value, Query}}]}}, not {_shown(term)}")
    rows: list[tuple[str, Term, Query]] = []
    for row in term:
        match row:
            case (Atom(variable), value, then):
                rows.append((variable, value, inner(then)))
            case _:
                raise QueryError(f"expected {{Variable, Value, Query}}, not {_shown(row)}")
    return For(tuple(rows))


def _all(term: Term) -> tuple[Query, ...]:
    if not isinstance(term, list):
        raise QueryError(f"expected a list of queries, not {_shown(term)}")
    return tuple(map(_decision, term))


def _match(subject: Term, regex: Term) -> Query:
    literal = all(
        isinstance(side, str | list) or (isinstance(side, tuple) and side[:1] == (Atom("string"),))
        for side in (subject, regex)
    )
    return Match(_text(subject), _text(regex), literal)


def _nested(dn: Term, attribute: Term = "member", scope: Term = _SUBTREE) -> Query:
    found = _SCOPES.get(scope.name) if isinstance(scope, Atom) else None
    if found is None:
        raise QueryError(f"{_shown(scope)} is no scope; expected {' or '.join(_SCOPES)}")
    return InGroupNested(pattern(dn), pattern(attribute), found)


_SCOPES = MappingProxyType(
    {"subtree": Scope.SUBTREE}
    | dict.fromkeys(("singlelevel", "single_level", "onelevel", "one_level"), Scope.ONE_LEVEL)
)
_DECISIONS: Mapping[tuple[str, int], Callable[..., Query]] = MappingProxyType(
    {
        ("constant", 1): _constant,
        ("exists", 1): lambda dn: Exists(pattern(dn)),
        ("in_group", 1): lambda dn: InGroup(pattern(dn), b"member"),
        ("in_group", 2): lambda dn, attribute: InGroup(pattern(dn), pattern(attribute)),
        ("in_group_nested", 1): _nested,
        ("in_group_nested", 2): _nested,
        ("in_group_nested", 3): _nested,
        ("not", 1): lambda inner: Not(_decision(inner)),
        ("and", 1): lambda inner: And(_all(inner)),
        ("or", 1): lambda inner: Or(_all(inner)),
        ("equals", 2): lambda left, right: Equals(_text(left), _text(right)),
        ("match", 2): _match,
    }
)


def _shown(term: Term) -> str:
    text = shown(term)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
