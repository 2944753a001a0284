"""Scopes and wildcards, with RabbitMQ's outcomes (its own suites, and what its code says)."""

from __future__ import annotations

import pytest

from gatekeeper.backends.oauth2.scopes import Pattern, VhostScopes, expand, variables
from gatekeeper.model import Permission

READ, WRITE, CONFIGURE = Permission.READ, Permission.WRITE, Permission.CONFIGURE


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (b"foo", [b"foo"], [b"", b"fo", b"foo ", b"Foo", b"xfoo"]),
        (b"", [b""], [b"a"]),
        (b"*", [b"", b"a", b"a/b", b"\xff\x00"], []),
        (b"**", [b"a", b"ab"], [b""]),
        (b"foo*", [b"foo", b"foobar"], [b"fo", b"xfoo"]),
        (b"foo**", [b"foobar"], [b"foo"]),
        (b"*foo", [b"foo", b"xfoo", b"fofoo"], [b"", b"foox"]),
        (b"*oo", [b"oo", b"foo"], [b"fooo", b"ooo"]),
        (b"a*a", [b"aa", b"aba"], [b"a", b"abaa", b"ab"]),
        (b"a*b*c", [b"abc", b"axbyc", b"abbc"], [b"ac", b"abcx", b"acb"]),
        (b"*a*", [b"a", b"xa", b"ax", b"xax"], [b"", b"x"]),
        (b"*%2A*", [b"*", b"a*b"], [b"a"]),
        (b"%2a", [b"*"], [b"a", b""]),
        (b"a%2Fb", [b"a/b"], [b"ab", b"a%2Fb"]),
        (b"a+b", [b"a b"], [b"a+b"]),
        (b"a%2Bb", [b"a+b"], [b"a b"]),
        (b"a%20b", [b"a b"], []),
        (b"%", [], [b"%", b""]),
        (b"%2", [], [b"%2", b"\x02"]),
        (b"%zz*", [], [b"%zz", b"x", b""]),
        (b"*%", [], [b"x", b"%", b""]),
        (b"%2*A", [], [b"*", b"%2A"]),
        (b"%FF", [b"\xff"], [b"\xc3\xbf"]),
        ("ü*".encode(), ["üx".encode()], [b"\xc3"]),
        (b".*", [b".", b".x"], [b"x"]),
    ],
)
def test_patterns(pattern: bytes, matching: list[bytes], others: list[bytes]) -> None:
    compiled = Pattern.of(pattern)
    assert [s for s in matching if not compiled.matches(s)] == []
    assert [s for s in others if compiled.matches(s)] == []


CLAIMS = {b"sub": b"alice", b"team": b"*", b"path": b"a/b", b"": b"empty"}


@pytest.mark.parametrize(
    ("scope", "expanded"),
    [
        (b"read:{vhost}/{sub}-*", b"read:v1/alice-*"),
        (b"read:*/q.{sub}.x", b"read:*/q.alice.x"),
        (b"read:*/{nobody}", b"read:*/nobody"),
        (b"read:{team}/{path}", b"read:*/a/b"),
        (b"read:*/{sub}{sub}", b"read:*/alicealice"),
        (b"read:*/{}", b"read:*/empty"),
        (b"read:*/{a.b}", b""),
        (b"read:*/{a*}", b""),
        (b"read:*/{{sub}}", b""),
        (b"x}y", b"x}y"),
        (b"read:*/{sub", b"read:*/alice"),  # a brace may be missing at the very end
        (b"read:*/{", b"read:*/"),
        (b"read:*/{sub.x", b""),
        (b"{sub}{a.b}tail", b""),
        (b"", b""),
        (b"...", b"..."),
    ],
)
def test_variables(scope: bytes, expanded: bytes) -> None:
    values = {b"vhost": b"v1", **CLAIMS}
    assert expand(scope, lambda name: values.get(name, name)) == expanded


def test_which_variables_are_needed() -> None:
    assert variables([b"read:{vhost}/{sub}", b"{a.b}", b"tag:x", b"{c"]) == {
        b"vhost", b"sub", b"a", b"c",
    }  # fmt: skip


def scopes(*texts: str, vhost: bytes = b"v") -> VhostScopes:
    return VhostScopes.of([text.encode() for text in texts], vhost, lambda name: name)


@pytest.mark.parametrize(
    ("scope", "access"),
    [
        ("read:v/x", True),
        ("write:v/x", True),
        ("configure:v/x/y", True),
        ("read:*/x", True),
        ("read:%76/", True),
        ("read:w/x", False),
        ("read:v", False),
        ("read:v/x/y/z", False),
        ("READ:v/x", False),
        (" read:v/x", False),
        ("read:/x", False),
        ("tag:administrator", False),
        ("rabbitmq.read:v/x", False),
        ("", False),
    ],
)
def test_vhost_access(scope: str, access: bool) -> None:
    assert scopes(scope).vhost_access is access


@pytest.mark.parametrize(
    ("held", "name", "permission", "access"),
    [
        (["read:v/q"], b"q", READ, True),
        (["read:v/q"], b"q", WRITE, False),
        (["read:v/q"], b"q", CONFIGURE, False),
        (["read:v/q/key"], b"q", READ, True),  # a third part does not matter here
        (["read:v/q*", "write:v/x"], b"qx", READ, True),
        (["read:v/q*", "write:v/x"], b"x", READ, False),
        (["read:w/q", "write:v/q"], b"q", READ, False),
        (["write:v/amq.default"], b"amq.default", WRITE, True),
        (["write:v/a%2Fb"], b"a/b", WRITE, True),
        (["configure:v/"], b"", CONFIGURE, True),
        ([], b"q", READ, False),
    ],
)
def test_resource_access(
    held: list[str], name: bytes, permission: Permission, access: bool
) -> None:
    assert scopes(*held).resource_access(name, permission) is access


@pytest.mark.parametrize(
    ("held", "key", "permission", "access"),
    [
        (["write:v/x/a.*"], b"a.b", WRITE, True),
        (["write:v/x/a.*"], b"b", WRITE, False),
        (["write:v/x/a.*"], b"a.b", READ, False),
        (["write:v/x"], b"a", WRITE, False),  # no third part: no topic at all
        (["write:v/*/*"], b"", WRITE, True),
        (["write:v/y/*"], b"a", WRITE, False),
        (["write:*/x/a%2Fb"], b"a/b", WRITE, True),
    ],
)
def test_topic_access(held: list[str], key: bytes, permission: Permission, access: bool) -> None:
    assert scopes(*held).topic_access(b"x", key, permission) is access


@pytest.mark.parametrize(
    ("held", "rule"),
    [
        (["write:v/*/*", "read:v/x/*"], False),
        (["write:v/*/*"], True),
        (["write:v/*/*", "read:v/x/**"], True),
        (["write:v/*", "read:v/*"], True),
        (["write:v/*/*", "read:w/*/*"], True),
        ([], True),
    ],
)
def test_a_topic_rule_exists_unless_every_key_is_granted(held: list[str], rule: bool) -> None:
    assert scopes(*held).topic_rule(b"x") is rule
