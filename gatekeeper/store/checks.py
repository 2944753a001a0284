"""What a change may hold: patterns, tags, limits and texts, judged before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from gatekeeper.policy import pcre
from gatekeeper.store.refusals import (
    InvalidLimitsError,
    InvalidPatternError,
    InvalidTagsError,
    InvalidTextError,
    InvalidValueError,
)

MAX_TAGS = 32


def check_pattern(what: str, pattern: bytes) -> None:
    """Raises InvalidPatternError unless ``pattern`` compiles."""
    try:
        pcre.compile(pattern)
    except pcre.PatternError as error:
        raise InvalidPatternError(what, pattern, error.message, error.offset) from error


def checked_tags(tags: Iterable[str], limit: int | None = MAX_TAGS) -> tuple[str, ...]:
    """Tags without repetitions, in order. Raises InvalidTagsError."""
    kept = tuple(dict.fromkeys(tags))
    if limit is not None and len(kept) > limit:
        raise InvalidTagsError(f"a user can have at most {limit} tags (received {len(kept)})")
    for tag in kept:
        if not is_text(tag):
            raise InvalidTagsError("a tag is not valid Unicode text")
    return kept


def checked_limits(
    limits: Mapping[str, object], known: tuple[str, ...], where: str
) -> dict[str, int]:
    """Limits with known names and integer values, else InvalidLimitsError in RabbitMQ's words."""
    unknown = [(key, value) for key, value in limits.items() if key not in known]
    if unknown:
        terms = ",".join(f"{{{_term(key)},{_term(value)}}}" for key, value in unknown)
        raise InvalidLimitsError(f"Unrecognised terms [{terms}] in {where}")
    checked: dict[str, int] = {}
    for key, value in limits.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidLimitsError(f"{key} should be a number, actually was {_term(value)}")
        checked[key] = value
    return checked


def is_text(text: str) -> bool:
    """Can it be written as UTF-8? JSON's ``\\ud800`` cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def must_be_json(value: object) -> None:
    """Raises InvalidValueError unless JSON can hold ``value``: no NaN, no lone surrogates."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidValueError("the value is not JSON: NaN, a lone surrogate or too deep") from (
            error
        )


def must_be_text(text: str | None) -> None:
    """Raises InvalidTextError."""
    if text is not None and not is_text(text):
        raise InvalidTextError("a text holds a lone surrogate; write the character itself")


def _term(value: object) -> str:
    """A JSON scalar as Erlang prints it."""
    if isinstance(value, str):
        return f'<<"{value}">>'
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
