"""ip_range, internal_loopback and dummy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gatekeeper.backends.dummy import DummyBackend
from gatekeeper.backends.internal import InternalBackend
from gatekeeper.backends.ip_range import IpRangeBackend
from gatekeeper.backends.loopback import InternalLoopbackBackend
from gatekeeper.config.backends import IpRangeSettings
from gatekeeper.model import (
    Access,
    AuthUser,
    Credentials,
    Decision,
    Identity,
    Kind,
    Peer,
    Permission,
    Secret,
)
from gatekeeper.policy.answers import LoginRefused
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.pairs import Pair
from gatekeeper.policy.ports import Accepted, Refused
from gatekeeper.store.store import Store
from tests.policy.fakes import LOCAL, PEER, FakeExchanges

U = Credentials("PLAIN", b"U", Secret(b"right"))


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.open("sqlite::memory:")
    store.add_user(b"U", b"right", tags=["lan", "management"])
    store.add_vhost(b"/")
    store.set_permissions(b"U", b"/", b"", b"^w", b"")
    yield store
    store.close()


# -- ip_range ----------------------------------------------------------------------------


def allowed(masks: str, host: str) -> bool:
    backend = IpRangeBackend(
        IpRangeSettings(tag_masks={}, default_masks=tuple(masks.split(",")) if masks else ())
    )
    return backend.vhost_access(AuthUser(b"u"), b"/", Peer(host, 1)).allowed


@pytest.mark.parametrize(
    ("masks", "host", "expected"),
    [
        ("::0/0", "10.0.0.1", True),
        ("::0/0", "fe80::1", True),
        ("0.0.0.0/0", "fe80::1", True),
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.1.2.3/8", "10.255.0.1", True),  # the mask's host bits do not count
        ("::ffff:192.168.0.0/112", "192.168.3.4", True),
        ("::ffff:192.168.0.0/112", "192.169.3.4", False),
        ("::ffff:192.168.0.0/112", "::ffff:192.168.3.4", True),
        ("::1/128", "::1", True),
        ("::1/128", "127.0.0.1", False),
        ("10.0.0.0/8,::1/128", "::1", True),
        ("10.0.0.1/32", "10.0.0.1", True),
        ("10.0.0.1/32", "10.0.0.2", False),
        ("", "10.0.0.1", False),
        ("::0/0", "", False),  # an address that is not known
        ("::0/0", "unknown", False),
    ],
)
def test_masks(masks: str, host: str, expected: bool) -> None:
    assert allowed(masks, host) is expected


@pytest.mark.parametrize(
    ("tags", "host", "expected"),
    [
        ({"lan"}, "192.168.1.1", True),
        ({"lan"}, "10.0.0.1", False),
        ({"vpn"}, "10.0.0.1", True),
        ({"lan", "vpn"}, "10.0.0.1", True),
        ({"nowhere"}, "192.168.1.1", False),
        ({"nowhere", "lan"}, "192.168.1.1", True),
        ({"other"}, "127.0.0.1", True),
        ({"other"}, "192.168.1.1", False),
        (set(), "127.0.0.1", True),
    ],
)
def test_networks_by_tag(tags: set[str], host: str, expected: bool) -> None:
    backend = IpRangeBackend(
        IpRangeSettings(
            tag_masks={"lan": ("192.168.0.0/16",), "vpn": ("10.0.0.0/8",), "nowhere": ()},
            default_masks=("127.0.0.0/8",),
        )
    )
    verdict = backend.vhost_access(AuthUser(b"u", frozenset(tags)), b"/", Peer(host, 1))
    assert verdict.allowed is expected
    assert verdict.rule


async def test_ip_range_beside_the_backend_that_authenticates(store: Store) -> None:
    """Its networks go by the tags that the other one gave."""
    internal = InternalBackend(store)
    ip_range = IpRangeBackend(
        IpRangeSettings(tag_masks={"lan": ("10.0.0.0/24",)}, default_masks=("::0/0",))
    )
    engine = Engine([Pair(authn=internal, authz=(ip_range,))], FakeExchanges())
    user = await engine.login(U, PEER)
    assert isinstance(user, Identity)
    assert (await engine.vhost_access(user, b"/", PEER)).allowed
    refused = await engine.vhost_access(user, b"/", Peer("10.0.1.9", 1))
    assert not refused.allowed
    assert "networks of lan" in refused.rule
    decision = engine.check(user, b"/", Access(Permission.WRITE, Kind.QUEUE, b"x"))
    assert isinstance(decision, Decision)
    assert decision.allowed, "what it does not look at, it allows"
    assert isinstance(ip_range.authenticate(U, PEER), Refused)


# -- internal_loopback -------------------------------------------------------------------


async def test_loopback(store: Store) -> None:
    engine = Engine([Pair.of(InternalLoopbackBackend(store))], FakeExchanges())
    assert isinstance(await engine.login(U, LOCAL), Identity)
    for credentials, peer, text in (
        (U, PEER, "the socket or address was not from loopback/localhost, which is prohibited"),
        (
            Credentials("AMQPLAIN", b"U", Secret(b"right")),
            LOCAL,
            "no socket or address was provided to the internal_loopback auth backend",
        ),
        (Credentials("PLAIN", b"U", Secret(b"wrong")), LOCAL, "user 'U' - invalid credentials"),
        (Credentials("PLAIN", b"U", Secret(b"")), LOCAL, "blank password"),
        (Credentials("PLAIN", b"X", Secret(b"right")), LOCAL, "user 'X' - invalid credentials"),
    ):
        answer = await engine.login(credentials, peer)
        assert isinstance(answer, LoginRefused)
        assert text in answer.reason
    user = await engine.login(U, LOCAL)
    assert isinstance(user, Identity)
    for name, allowed in ((b"w1", True), (b"x", False)):
        decision = engine.check(user, b"/", Access(Permission.WRITE, Kind.QUEUE, name))
        assert isinstance(decision, Decision)
        assert decision.allowed is allowed


# -- dummy -------------------------------------------------------------------------------


def test_dummy() -> None:
    dummy = DummyBackend()
    assert dummy.authenticate(U, LOCAL) == Refused("cannot log in conventionally as dummy user")
    assert dummy.authorize_login(b"U", U, LOCAL) == Accepted(b"U")
    user = AuthUser(b"U")
    assert dummy.vhost_access(user, b"/", PEER).allowed
    assert dummy.resource_access(user, b"/", Kind.QUEUE, b"q", Permission.READ).allowed
    assert dummy.topic_access(user, b"/", b"x", b"k", Permission.READ, {}).allowed
    assert not dummy.topic_rule(user, b"/", b"x")
