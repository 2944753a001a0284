"""The internal backend, alone and under the engine: RabbitMQ's outcomes and texts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gatekeeper.backends.internal import InternalBackend
from gatekeeper.model import (
    Access,
    AnyAccess,
    AuthUser,
    Credentials,
    Decision,
    Identity,
    Kind,
    Peer,
    Permission,
    Secret,
    TopicAccess,
)
from gatekeeper.policy.answers import LoginRefused
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.explain import explain
from gatekeeper.policy.pairs import Pair
from gatekeeper.policy.ports import Accepted, Failed, Refused, Verdict
from gatekeeper.store import passwords
from gatekeeper.store.store import Store

PEER = Peer("10.0.0.9", 40000)
WRITE, READ, CONFIGURE = Permission.WRITE, Permission.READ, Permission.CONFIGURE
BLANK = (
    "user 'U' attempted to log in with a blank password, which is prohibited by the internal "
    "authN backend. To use TLS/x509 certificate-based authentication, see the "
    "rabbitmq_auth_mechanism_ssl plugin and configure the client to use the EXTERNAL "
    "authentication mechanism. Alternatively change the password for the user to be non-blank."
)


class Topics:
    def is_topic(self, vhost: bytes, exchange: bytes) -> bool:
        return exchange == b"amq.topic"


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.open("sqlite::memory:")
    store.add_user(b"U", b"right", tags=["management"])
    store.add_user(b"cleared", b"right")
    store.clear_password(b"cleared")
    store.add_vhost(b"/")
    store.set_permissions(b"U", b"/", b"", b"^w", b"^(r|amq\\.default$)")
    yield store
    store.close()


@pytest.fixture
def backend(store: Store) -> InternalBackend:
    return InternalBackend(store)


@pytest.fixture
def engine(backend: InternalBackend) -> Engine:
    return Engine([Pair.of(backend)], Topics())


def credentials(name: bytes, password: bytes | None) -> Credentials:
    return Credentials("PLAIN", name, None if password is None else Secret(password))


USER = Identity(b"U", frozenset(), (("rabbit_auth_backend_internal", None),))


@pytest.mark.parametrize(
    ("name", "password", "reason"),
    [
        (b"U", b"right", None),
        (b"U", None, None),  # EXTERNAL: only existence
        (b"cleared", None, None),
        (b"U", b"wrong", "user 'U' - invalid credentials"),
        (b"u", b"right", "user 'u' - invalid credentials"),
        (b"ghost", b"right", "user 'ghost' - invalid credentials"),
        (b"ghost", None, "user 'ghost' - invalid credentials"),
        (b"cleared", b"right", "user 'cleared' - invalid credentials"),
        (b"", b"x", "user '' - invalid credentials"),
        (b"U", b"", BLANK),
        (b"ghost", b"", BLANK.replace("'U'", "'ghost'")),
        (b"cleared", b"", BLANK.replace("'U'", "'cleared'")),
    ],
)
def test_authentication(
    backend: InternalBackend, name: bytes, password: bytes | None, reason: str | None
) -> None:
    answer = backend.authenticate(credentials(name, password), PEER)
    if reason is None:
        tags = frozenset({"management"}) if name == b"U" else frozenset()
        assert answer == Accepted(name, tags)
    else:
        assert answer == Refused(reason)


def test_an_unknown_user_costs_a_hash(
    backend: InternalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(passwords, "verify", lambda *arguments: bool(seen.append(arguments)))
    backend.authenticate(credentials(b"ghost", b"pw"), PEER)
    assert seen == [(b"pw", None)]


def test_authorization_of_whom_another_backend_authenticated(backend: InternalBackend) -> None:
    login = credentials(b"other", b"")
    assert backend.authorize_login(b"U", login, PEER) == Accepted(b"U", frozenset({"management"}))
    assert backend.authorize_login(b"ghost", login, PEER) == Refused(
        "user 'ghost' - invalid credentials"
    )


async def test_login_through_the_engine(engine: Engine) -> None:
    identity = await engine.login(credentials(b"U", b"right"), PEER)
    assert identity == Identity(
        b"U", frozenset({"management"}), (("rabbit_auth_backend_internal", None),)
    )
    assert await engine.login(credentials(b"U", b"wrong"), PEER) == LoginRefused(
        "user 'U' - invalid credentials"
    )


async def test_tags_are_those_of_now(store: Store, engine: Engine) -> None:
    identity = await engine.login(credentials(b"U", b"right"), PEER)
    assert isinstance(identity, Identity)
    assert engine.refreshed(identity) is identity
    store.set_user_tags(b"U", ("impersonator", "policymaker"))
    assert engine.refreshed(identity).tags == {"impersonator", "policymaker"}
    store.delete_user(b"U")
    assert engine.refreshed(identity).tags == frozenset()


async def test_vhost_access_is_a_permission_record(store: Store, engine: Engine) -> None:
    store.add_vhost(b"v")
    assert (await engine.vhost_access(USER, b"/", PEER)).allowed
    assert not (await engine.vhost_access(USER, b"v", PEER)).allowed
    store.set_permissions(b"U", b"v", b"", b"", b"")
    assert (await engine.vhost_access(USER, b"v", PEER)).allowed
    assert not (await engine.vhost_access(USER, b"V", PEER)).allowed


@pytest.mark.parametrize(
    ("check", "allowed"),
    [
        (Access(WRITE, Kind.QUEUE, b"w1"), True),
        (Access(WRITE, Kind.EXCHANGE, b"w1"), True),
        (Access(WRITE, Kind.QUEUE, b"r1"), False),
        (Access(READ, Kind.QUEUE, b"r1"), True),
        (Access(READ, Kind.EXCHANGE, b""), True),  # amq.default
        (Access(WRITE, Kind.EXCHANGE, b""), False),
        (Access(READ, Kind.QUEUE, b""), False),
        (Access(CONFIGURE, Kind.QUEUE, b""), True),
        (Access(CONFIGURE, Kind.QUEUE, b"\n"), True),
        (Access(CONFIGURE, Kind.QUEUE, b"w1"), False),
        (AnyAccess(Kind.QUEUE, b"w1"), True),
        (AnyAccess(Kind.QUEUE, b"r1"), True),
        (AnyAccess(Kind.QUEUE, b"x"), False),
    ],
)
def test_resource_access(engine: Engine, check: Access | AnyAccess, allowed: bool) -> None:
    decision = engine.check(USER, b"/", check)
    assert isinstance(decision, Decision)
    assert (decision.allowed, decision.detail) == (allowed, b"")
    elsewhere = engine.check(USER, b"other", check)
    assert isinstance(elsewhere, Decision)
    assert not elsewhere.allowed


def test_topic_access(store: Store, engine: Engine) -> None:
    def allowed(permission: Permission, exchange: bytes, key: bytes) -> bool:
        decision = engine.check(USER, b"/", TopicAccess(permission, exchange, key))
        assert isinstance(decision, Decision)
        return decision.allowed

    assert allowed(WRITE, b"amq.topic", b"any")  # no record
    store.set_topic_permissions(b"U", b"/", b"amq.topic", b"^{username}\\.", b"")
    store.set_topic_permissions(b"U", b"/", b"amq.direct", b"^$", b"^$")
    assert engine.topic_rule(USER, b"/", b"amq.topic")
    assert not engine.topic_rule(USER, b"/", b"amq.fanout")
    assert allowed(WRITE, b"amq.topic", b"U.x")
    assert not allowed(WRITE, b"amq.topic", b"x.U.x")
    assert not allowed(READ, b"amq.topic", b"U.x")
    assert allowed(WRITE, b"amq.direct", b"anything")  # not of type topic
    assert allowed(WRITE, b"", b"queue")


@pytest.mark.parametrize(
    "pattern", [b".*", b"^{username}\\.", b"^U", b"", b"(U|V)\\.x$", b"^{vhost}", b"^{client_id}"]
)
def test_topic_patterns_say_what_topic_access_says(
    store: Store, engine: Engine, backend: InternalBackend, pattern: bytes
) -> None:
    store.set_topic_permissions(b"U", b"/", b"amq.topic", pattern, b"")
    keys = engine.topic_patterns(USER, b"/", b"amq.topic")
    assert keys is not None
    for key in (b"", b"U", b"U.x", b"V.x", b"x.U.x", b"/", b"{client_id}", b"\n"):
        decision = engine.check(USER, b"/", TopicAccess(WRITE, b"amq.topic", key))
        assert isinstance(decision, Decision)
        assert keys.allows(key) is decision.allowed
        if keys.prefix is not None:
            assert key.startswith(keys.prefix) is decision.allowed
    anything = engine.topic_patterns(USER, b"/", b"amq.direct")  # not of type topic
    assert anything is not None
    assert anything.prefix == b""
    assert backend.topic_patterns(AuthUser(b"U"), b"/", b"x", WRITE, {}) == ()


def test_an_invalid_topic_pattern_is_asked_about_each_key(
    store: Store, backend: InternalBackend
) -> None:
    """The variable makes it too long: it denies, and its reason is the check's to give."""
    store.set_topic_permissions(b"U", b"/", b"x", b"^{long}", b"")
    variables = {"long": b"x" * 1024}
    assert backend.topic_patterns(AuthUser(b"U"), b"/", b"x", WRITE, variables) is None
    assert not backend.topic_access(AuthUser(b"U"), b"/", b"x", b"k", WRITE, variables).allowed


def test_topic_access_of_the_backend_alone(backend: InternalBackend) -> None:
    """The record may go between the question of the rule and the check."""
    assert backend.topic_access(AuthUser(b"U"), b"/", b"x", b"k", WRITE, {}).allowed


def test_revocation_is_immediate(store: Store, engine: Engine) -> None:
    check = Access(WRITE, Kind.QUEUE, b"w1")
    before = store.epoch.value
    store.clear_permissions(b"U", b"/")
    assert store.epoch.value > before
    assert not engine.check(USER, b"/", check).allowed  # type: ignore[union-attr]
    store.set_permissions(b"U", b"/", b"", b".*", b"")
    assert engine.check(USER, b"/", check).allowed  # type: ignore[union-attr]
    store.delete_user(b"U")
    assert not engine.check(USER, b"/", check).allowed  # type: ignore[union-attr]


async def test_explain(engine: Engine) -> None:
    assert await explain(engine, USER, b"/", Access(WRITE, Kind.QUEUE, b"x")) == (
        "refused: write access to queue 'x' in vhost '/' for user 'U' "
        "(rabbit_auth_backend_internal: write pattern '^w' does not match)"
    )
    assert await explain(engine, USER, b"v", Access(WRITE, Kind.QUEUE, b"x")) == (
        "refused: write access to queue 'x' in vhost 'v' for user 'U' "
        "(rabbit_auth_backend_internal: user 'U' has no permissions in vhost 'v')"
    )


def test_a_store_that_cannot_be_read_refuses(
    store: Store, backend: InternalBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong is for the log: the client may be shown the answer."""
    store.set_topic_permissions(b"U", b"/", b"x", b".*", b".*")
    store.close()
    login = Credentials("PLAIN", b"U", Secret(b"right"))
    for answer in (
        backend.authenticate(login, PEER),
        backend.authenticate(Credentials("EXTERNAL", b"U"), PEER),
        backend.authorize_login(b"U", login, PEER),
    ):
        assert answer == Failed("the user database cannot be read")
    where = (AuthUser(b"U"), b"/")
    for verdict in (
        backend.vhost_access(*where, PEER),
        backend.resource_access(*where, Kind.QUEUE, b"q", Permission.WRITE),
        backend.topic_access(*where, b"x", b"k", Permission.WRITE, {}),
    ):
        assert verdict == Verdict(False, error="the user database cannot be read")
    assert backend.topic_rule(*where, b"x") is True
    assert backend.tags_now(b"U") == frozenset()
    assert "closed database" in capsys.readouterr().out
