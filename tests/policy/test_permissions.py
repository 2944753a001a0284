"""Permission records against names, and the topic variables in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.model import Permission
from gatekeeper.policy import pcre
from gatekeeper.policy.permissions import (
    PermissionSet,
    TopicPatterns,
    TopicPermissionSet,
    check_resource,
    check_topic,
    expand,
    topic_pattern,
)

CONFIGURE, WRITE, READ = Permission.CONFIGURE, Permission.WRITE, Permission.READ


def test_each_right_has_its_own_pattern() -> None:
    permissions = PermissionSet(configure=b"^c$", write=b"^w$", read=b"^r$")
    allowed = {
        (right, name)
        for right in Permission
        for name in (b"c", b"w", b"r")
        if check_resource(permissions, right, name).allowed
    }
    assert allowed == {(CONFIGURE, b"c"), (WRITE, b"w"), (READ, b"r")}


@pytest.mark.parametrize(
    ("pattern", "allowed", "rule"),
    [
        (b"^app", True, "write pattern '^app' matches"),
        (b"^x", False, "write pattern '^x' does not match"),
        (b"", False, "write pattern '' does not match"),
        (b"(", False, "write pattern '(' is invalid (missing ) at offset 1): it denies"),
        (b"app" + b"?" * 1022, False, None),  # too long: denies as well
        ("^ä".encode(), False, "write pattern '^ä' does not match"),
        (b"^\xe4", False, "write pattern '^ä' does not match"),
    ],
)
def test_verdict_names_its_rule(pattern: bytes, allowed: bool, rule: str | None) -> None:
    verdict = check_resource(PermissionSet(b"", pattern, b""), WRITE, b"app.q")
    assert verdict.allowed is allowed
    assert verdict.error is None
    assert rule is None or verdict.rule == rule


@pytest.mark.parametrize(
    ("right", "key", "allowed"),
    [(WRITE, b"w.x", True), (WRITE, b"r.x", False), (READ, b"r.x", True), (READ, b"w.x", False)],
)
def test_topic_rights(right: Permission, key: bytes, allowed: bool) -> None:
    verdict = check_topic(TopicPermissionSet(write=b"^w", read=b"^r"), right, key, {})
    assert verdict.allowed is allowed


@pytest.mark.parametrize(
    ("patterns", "prefix"),
    [
        ((), b""),
        ((b".*",), b""),
        ((b"^ab",), b"ab"),
        ((b"^ab", b"^a", b".*"), b"ab"),
        ((b"^ab", b"^b"), None),
        ((b"^ab", b"b$"), None),
        ((b"",), None),
    ],
)
def test_topic_patterns_must_all_match(patterns: tuple[bytes, ...], prefix: bytes | None) -> None:
    keys = TopicPatterns(tuple(map(pcre.compile, patterns)))
    assert keys.prefix == prefix
    for key in (b"", b"a", b"ab", b"abc", b"b", b"bab"):
        assert keys.allows(key) is all(pcre.compile(each).matches(key) for each in patterns)
        if prefix is not None:
            assert keys.allows(key) is key.startswith(prefix)


@pytest.mark.parametrize(
    ("pattern", "source"),
    [(b"^{username}", rb"^a\.b"), (b"", b""), (b"(", None), (b"^" + b"x" * 1024, None)],
)
def test_topic_pattern(pattern: bytes, source: bytes | None) -> None:
    permissions = TopicPermissionSet(write=pattern, read=b"^r")
    found = topic_pattern(permissions, WRITE, {"username": b"a.b"})
    assert (found and found.source) == source
    read = topic_pattern(permissions, READ, {})
    assert read is not None
    assert read.source == b"^r"
    assert topic_pattern(permissions, CONFIGURE, {}) is None


def test_topics_have_no_configure_right() -> None:
    assert not check_topic(TopicPermissionSet(b".*", b".*"), CONFIGURE, b"k", {}).allowed


VARIABLES = {"username": b"bob", "vhost": b"/"}


@pytest.mark.parametrize(
    ("pattern", "variables", "expected"),
    [
        (b"^{username}\\.", VARIABLES, b"^bob\\."),
        (b"{vhost}{username}{vhost}", VARIABLES, b"/bob/"),
        (b"^x$", VARIABLES, b"^x$"),
        (b"a{2}{client_id}{USERNAME}", VARIABLES, b"a{2}{client_id}{USERNAME}"),
        # escaped, since 4.3.3
        (b"^{username}$", {"username": b".*"}, b"^\\.\\*$"),
        (b"{username}", {"username": rb"\^$.|?*+"}, rb"\\\^\$\.\|\?\*\+"),
        (b"{username}", {"username": b"()[]{}-"}, rb"\(\)\[\]\{\}\-"),
        (b"{username}", {"username": b"a b_1~/\xff"}, b"a b_1~/\xff"),
        # a value is never expanded again, whatever stands around it
        (b"{username}", {"username": b"{vhost}", "vhost": b"x"}, b"\\{vhost\\}"),
        (b"{{username}}", {"username": b"vhost", "vhost": b".*"}, b"{vhost}"),
        (b"{", VARIABLES, b"{"),
        (b"{}", VARIABLES, b"{}"),
    ],
)  # fmt: skip
def test_expand(pattern: bytes, variables: dict[str, bytes], expected: bytes) -> None:
    assert expand(pattern, variables) == expected


def test_empty_topic_pattern_is_the_empty_key_only() -> None:
    topic = TopicPermissionSet(write=b"", read=b"")
    assert check_topic(topic, WRITE, b"", VARIABLES).allowed
    assert not check_topic(topic, WRITE, b"x", VARIABLES).allowed


def test_expanded_pattern_that_is_too_long_denies() -> None:
    topic = TopicPermissionSet(write=b"^{username}", read=b"")
    verdict = check_topic(topic, WRITE, b"x" * 2000, {"username": b"x" * 1100})
    assert not verdict.allowed
    assert "longer than 1024 bytes" in verdict.rule


@given(st.binary(min_size=1, max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_a_user_name_stands_for_itself_only(user: bytes, key: bytes, vhost: bytes) -> None:
    """No name that a client can choose widens ``^{username}\\z``."""
    topic = TopicPermissionSet(write=b"\\A{username}\\z", read=b"")
    variables = {"username": user, "vhost": vhost}
    assert check_topic(topic, WRITE, user, variables).allowed
    assert check_topic(topic, WRITE, key, variables).allowed is (key == user)
