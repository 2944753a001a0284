"""The composition of backends: chains, pairs, refusals, crashes, at once and later."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from dataclasses import FrozenInstanceError

import pytest

from gatekeeper.model import (
    Access,
    AnyAccess,
    AuthUser,
    Check,
    Credentials,
    Decision,
    Identity,
    Kind,
    Permission,
    Secret,
    TopicAccess,
)
from gatekeeper.policy import pcre
from gatekeeper.policy.answers import EngineCrash, LoginRefused, NonsenseError
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.epoch import Epoch
from gatekeeper.policy.explain import explain
from gatekeeper.policy.pairs import Pair
from gatekeeper.policy.ports import Accepted, Failed, Refused, Verdict

from .fakes import ALLOW, BOB, DENY, LOCAL, PEER, FakeBackend, FakeExchanges

CONFIGURE, WRITE, READ = Permission.CONFIGURE, Permission.WRITE, Permission.READ
PUBLISH = Access(WRITE, Kind.EXCHANGE, b"x")
INTERNAL_ERROR = (
    "User 'bob' authentication failed with internal error. Enable debug logs to see the real error."
)


def single(backend: FakeBackend) -> Pair:
    return Pair.of(backend)


def engine(*pairs: Pair, exchanges: FakeExchanges | None = None) -> Engine:
    return Engine(pairs, exchanges or FakeExchanges())


async def decide(subject: Engine, check: Check, identity: Identity | None = None) -> Decision:
    answer = subject.check(identity or identity_of(subject), b"/", check)
    return await answer if inspect.isawaitable(answer) else answer


def identity_of(subject: Engine) -> Identity:
    return Identity(b"bob", frozenset(), tuple((name, "state") for name in subject._authz))


def refused(name: str, reason: str, *, later: bool = False) -> FakeBackend:
    return FakeBackend(name, login=Refused(reason), later=later)


# -- login -------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True])
async def test_single_backend_is_asked_once(later: bool) -> None:
    backend = FakeBackend(later=later)
    identity = await engine(single(backend)).login(BOB, PEER)
    assert identity == Identity(b"bob", frozenset({"t"}), ((backend.name, "state"),))
    assert backend.asked == [("authenticate", b"bob")]


async def test_no_backends_refuse() -> None:
    assert await engine().login(BOB, PEER) == LoginRefused("No modules checked 'bob'")


async def test_first_that_accepts_ends_the_chain() -> None:
    first, second, third = refused("a", "no"), FakeBackend("b"), FakeBackend("c")
    identity = await engine(single(first), single(second), single(third)).login(BOB, PEER)
    assert isinstance(identity, Identity)
    assert identity.grants == (("b", "state"),)
    assert third.asked == []


async def test_last_refusal_is_reported() -> None:
    subject = engine(single(refused("a", "first")), single(refused("b", "second", later=True)))
    assert await subject.login(BOB, PEER) == LoginRefused("second")


async def test_failure_is_a_refusal_and_the_next_is_tried() -> None:
    broken = FakeBackend("rabbit_auth_backend_http", login=Failed("{econnrefused}"))
    assert await engine(single(broken)).login(BOB, PEER) == LoginRefused(
        "rabbit_auth_backend_http failed authenticating bob: {econnrefused}"
    )
    assert isinstance(
        await engine(single(broken), single(FakeBackend())).login(BOB, PEER), Identity
    )


@pytest.mark.parametrize("later", [False, True])
async def test_exception_ends_the_chain(later: bool) -> None:
    error = RuntimeError("boom")
    after = FakeBackend("after")
    subject = engine(single(FakeBackend(login=error, later=later)), single(after))
    answer = await subject.login(BOB, PEER)
    assert isinstance(answer, LoginRefused)
    assert (answer.reason, answer.cause) == (INTERNAL_ERROR, error)
    assert after.asked == []


@pytest.mark.parametrize("nonsense", [None, True, Identity(b"bob"), Verdict(True), "allow"])
async def test_nonsense_is_an_internal_error(nonsense: object) -> None:
    answer = await engine(single(FakeBackend(login=nonsense))).login(BOB, PEER)
    assert isinstance(answer, LoginRefused)
    assert answer.reason == INTERNAL_ERROR
    assert isinstance(answer.cause, NonsenseError)


@pytest.mark.parametrize("later", [False, True])
async def test_pair_merges_tags_and_passes_the_new_name(later: bool) -> None:
    authn = FakeBackend("n", login=Accepted(b"robert", frozenset({"t"})), later=later)
    left = FakeBackend("left", authorization=Accepted(b"-", frozenset({"l"}), 1), later=later)
    right = FakeBackend("right", authorization=Accepted(b"-", frozenset({"r"}), 2), later=later)
    identity = await engine(Pair(authn, (left, right))).login(BOB, PEER)
    assert identity == Identity(b"robert", frozenset({"t", "l", "r"}), (("left", 1), ("right", 2)))
    assert left.asked == right.asked == [("authorize", b"robert")]


async def test_pair_of_the_same_backend_is_asked_both_ways() -> None:
    both = FakeBackend()
    identity = await engine(Pair(both, (both,))).login(BOB, PEER)
    assert isinstance(identity, Identity)
    assert identity.grants == ((both.name, 7),)
    assert [question[0] for question in both.asked] == ["authenticate", "authorize"]


async def test_single_authorization_refusal_keeps_its_text() -> None:
    authz = FakeBackend("z", authorization=Refused("not here"))
    assert await engine(Pair(FakeBackend("n"), (authz,))).login(BOB, PEER) == LoginRefused(
        "not here"
    )


async def test_authorization_failure_text_names_the_authenticated_user() -> None:
    authn = FakeBackend("n", login=Accepted(b"robert"))
    authz = FakeBackend("z", authorization=Failed("timeout"))
    assert await engine(Pair(authn, (authz,))).login(BOB, PEER) == LoginRefused(
        "z failed authorizing robert: timeout"
    )


async def test_authorization_refusal_before_others_is_an_internal_error() -> None:
    """The right-most is asked first; what is left unasked makes RabbitMQ crash."""
    left, right = FakeBackend("left"), FakeBackend("right", authorization=Refused("no"))
    after = FakeBackend("after")
    subject = engine(Pair(FakeBackend("n"), (left, right)), single(after))
    answer = await subject.login(BOB, PEER)
    assert isinstance(answer, LoginRefused)
    assert answer.reason == INTERNAL_ERROR
    assert left.asked == after.asked == []


async def test_refusal_by_the_last_one_asked_keeps_its_text_and_the_chain() -> None:
    left, right = FakeBackend("left", authorization=Refused("no")), FakeBackend("right")
    pair = Pair(FakeBackend("n"), (left, right))
    assert await engine(pair).login(BOB, PEER) == LoginRefused("no")
    assert isinstance(await engine(pair, single(FakeBackend())).login(BOB, PEER), Identity)


@pytest.mark.parametrize(
    ("username", "peer", "text"),
    [
        (b"guest", PEER, "user 'guest' can only connect via localhost"),
        (b"guest", LOCAL, None),
        (b"Guest", PEER, None),
        (b"bob", PEER, None),
    ],
)
async def test_loopback_rule_is_on_the_authenticated_name(
    username: bytes, peer: object, text: str | None
) -> None:
    subject = engine(single(FakeBackend(login=Accepted(username))))
    answer = await subject.login(BOB, peer)  # type: ignore[arg-type]
    if text:
        assert answer == LoginRefused(text, loopback=True)
    else:
        assert isinstance(answer, Identity)


async def test_loopback_users_are_configurable() -> None:
    backend = FakeBackend(login=Accepted(b"guest"))
    free = Engine([single(backend)], FakeExchanges(), loopback_users=())
    assert isinstance(await free.login(BOB, PEER), Identity)


async def test_names_that_are_not_utf8_are_shown_as_latin1() -> None:
    answer = await engine().login(Credentials("PLAIN", b"J\xfcrg", Secret(b"")), PEER)
    assert answer == LoginRefused("No modules checked 'Jürg'")


def test_construction_refuses_what_would_open_a_hole() -> None:
    with pytest.raises(ValueError, match="no authorisation backend"):
        Pair(FakeBackend(), ())
    for authz in [(FakeBackend("other"),), (FakeBackend(), FakeBackend())]:
        with pytest.raises(ValueError, match="is not its own authorisation"):
            Pair(FakeBackend(), authz, single=True)
    with pytest.raises(ValueError, match="two authorisation backends are named same"):
        engine(single(FakeBackend("same")), single(FakeBackend("same")))


# -- access ------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True])
async def test_vhost_access(later: bool) -> None:
    backend = FakeBackend(later=later)
    subject = engine(single(backend))
    assert await subject.vhost_access(identity_of(subject), b"v", PEER) == Decision(
        True, "rabbit_auth_backend_fake: says yes"
    )
    assert backend.asked == [("vhost", b"bob", "state", b"v")]


def test_a_synchronous_backend_answers_at_once() -> None:
    subject = engine(single(FakeBackend()))
    for check in (PUBLISH, AnyAccess(Kind.QUEUE, b"q"), TopicAccess(WRITE, b"x", b"k")):
        assert isinstance(subject.check(identity_of(subject), b"/", check), Decision)


@pytest.mark.parametrize(
    "check", [PUBLISH, AnyAccess(Kind.QUEUE, b"q"), TopicAccess(READ, b"x", b"")]
)
async def test_an_asynchronous_backend_gives_an_awaitable(check: Check) -> None:
    subject = engine(single(FakeBackend(later=True)))
    answer = subject.check(identity_of(subject), b"/", check)
    assert isinstance(answer, Awaitable)
    assert (await answer).allowed


@pytest.mark.parametrize(
    ("kind", "name", "asked"),
    [
        (Kind.EXCHANGE, b"", b"amq.default"),
        (Kind.EXCHANGE, b"amq.default", b"amq.default"),
        (Kind.QUEUE, b"", b""),
    ],
)
async def test_default_exchange_has_an_alias(kind: Kind, name: bytes, asked: bytes) -> None:
    backend = FakeBackend()
    await decide(engine(single(backend)), Access(WRITE, kind, name))
    assert backend.asked == [("resource", b"bob", "state", b"/", kind, asked, WRITE)]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("verdict", "detail"),
    [
        (DENY, b""),
        (Verdict(False, reason="office hours"), b" by backend b: office hours"),
        (Verdict(False, reason=""), b" by backend b: "),
        (Verdict(False, error="timeout"), b", backend b returned an error: timeout"),
        (Verdict(True, error="timeout"), b", backend b returned an error: timeout"),
        (Verdict("yes"), b""),  # type: ignore[arg-type]
        (Verdict(1), b""),  # type: ignore[arg-type]
    ],
)
async def test_refusal_details(verdict: Verdict, detail: bytes, later: bool) -> None:
    subject = engine(single(FakeBackend("b", default=verdict, later=later)))
    decision = await decide(subject, PUBLISH)
    assert (decision.allowed, decision.detail, decision.crashed) == (False, detail, False)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("broken", [RuntimeError("boom"), None, True, "allow", Decision(True)])
async def test_a_broken_backend_is_a_crash_and_never_allows(broken: object, later: bool) -> None:
    subject = engine(
        single(FakeBackend("b", default=broken, vhost=broken, topic=broken, later=later))
    )
    identity = identity_of(subject)
    decisions = [
        await decide(subject, PUBLISH),
        await decide(subject, AnyAccess(Kind.QUEUE, b"q")),
        await decide(subject, TopicAccess(WRITE, b"x", b"k")),
        await subject.vhost_access(identity, b"/", PEER),
    ]
    for decision in decisions:
        assert isinstance(decision, EngineCrash)
        assert decision.crashed
        assert not decision.allowed
        assert decision.cause is not None
        assert decision.detail == b""
        with pytest.raises(FrozenInstanceError):
            decision.allowed = True  # type: ignore[misc]


@pytest.mark.parametrize("later", [False, True])
async def test_every_backend_must_allow_in_configured_order(later: bool) -> None:
    yes, no, never = (
        FakeBackend("yes", later=later),
        FakeBackend("no", default=Verdict(False, reason="r"), later=later),
        FakeBackend("never", default=RuntimeError(), later=later),
    )
    subject = engine(Pair(FakeBackend("n"), (yes, no, never)))
    decision = await decide(subject, PUBLISH)
    assert decision.detail == b" by backend no: r"
    assert len(yes.asked) == len(no.asked) == 1
    assert never.asked == []


async def test_backends_that_answer_at_once_and_later_mix() -> None:
    backends = [FakeBackend(str(at), later=at % 2 == 1) for at in range(4)]
    subject = engine(Pair(FakeBackend("n"), tuple(backends)))
    assert await decide(subject, PUBLISH) == Decision(True, "3: says yes")
    assert [len(backend.asked) for backend in backends] == [1, 1, 1, 1]


async def test_identity_without_grants_is_refused_everything() -> None:
    subject = engine(single(FakeBackend()))
    nobody = Identity(b"bob")
    assert not (await decide(subject, PUBLISH, nobody)).allowed
    assert not (await subject.vhost_access(nobody, b"/", PEER)).allowed


async def test_grant_of_an_unknown_backend_is_a_crash() -> None:
    subject = engine(single(FakeBackend()))
    stranger = Identity(b"bob", grants=(("gone", None),))
    assert (await decide(subject, PUBLISH, stranger)).crashed
    assert subject.topic_rule(stranger, b"/", b"x")


ANY = AnyAccess(Kind.QUEUE, b"q")
BROKEN = Verdict(False, error="timeout")


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("access", "allowed", "asked"),
    [
        ({READ: ALLOW}, True, [READ]),
        ({READ: DENY, WRITE: ALLOW}, True, [READ, WRITE]),
        ({READ: DENY, WRITE: BROKEN, CONFIGURE: ALLOW}, True, [READ, WRITE, CONFIGURE]),
        ({READ: DENY, WRITE: DENY, CONFIGURE: DENY}, False, [READ, WRITE, CONFIGURE]),
        ({READ: DENY, WRITE: RuntimeError()}, False, [READ, WRITE]),
        ({READ: RuntimeError()}, False, [READ]),
    ],
)  # fmt: skip
async def test_any_access_order(
    access: dict[Permission, object], allowed: bool, asked: list[Permission], later: bool
) -> None:
    backend = FakeBackend(access=access, later=later)
    decision = await decide(engine(single(backend)), ANY)
    assert decision.allowed is allowed
    assert [question[-1] for question in backend.asked] == asked


@pytest.mark.parametrize("later", [False, True])
async def test_any_access_refusal_is_the_one_of_configure(later: bool) -> None:
    access = {right: Verdict(False, reason=right.value) for right in Permission}
    decision = await decide(engine(single(FakeBackend("b", access=access, later=later))), ANY)
    assert decision.detail == b" by backend b: configure"


async def test_any_access_on_the_default_exchange() -> None:
    backend = FakeBackend()
    await decide(engine(single(backend)), AnyAccess(Kind.EXCHANGE, b""))
    assert backend.asked[0][5] == b"amq.default"


# -- topics ------------------------------------------------------------------------------

TOPIC = TopicAccess(WRITE, b"x", b"k")


async def test_topic_check_carries_key_and_variables() -> None:
    backend = FakeBackend(topic=DENY)
    assert not (await decide(engine(single(backend)), TOPIC)).allowed
    assert backend.asked[-1] == ("topic", b"x", b"k", WRITE, {"username": b"bob", "vhost": b"/"})


async def test_no_topic_rule_spares_the_exchange_type() -> None:
    exchanges, backend = FakeExchanges(), FakeBackend(rule=False, topic=DENY)
    assert (await decide(engine(single(backend), exchanges=exchanges), TOPIC)).allowed
    assert exchanges.asked == []


async def test_default_exchange_is_never_a_topic() -> None:
    backend = FakeBackend(topic=DENY)
    subject = engine(single(backend))
    assert not subject.topic_rule(identity_of(subject), b"/", b"")
    assert (await decide(subject, TopicAccess(WRITE, b"", b"k"))).allowed
    assert backend.asked == []


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("kind", "allowed", "crashed"),
    [
        (True, False, False),
        (False, True, False),
        (RuntimeError(), False, True),
    ],
)
async def test_exchange_type_decides_whether_the_rule_applies(
    kind: object, allowed: bool, crashed: bool, later: bool
) -> None:
    exchanges = FakeExchanges(kind, later=later)
    decision = await decide(engine(single(FakeBackend(topic=DENY)), exchanges=exchanges), TOPIC)
    assert (decision.allowed, decision.crashed) == (allowed, crashed)


@pytest.mark.parametrize(("kind", "later"), [(None, False), ("no", False), (None, True), (0, True)])
async def test_an_unclear_exchange_type_never_lifts_the_rule(kind: object, later: bool) -> None:
    exchanges = FakeExchanges(kind, later=later)
    decision = await decide(engine(single(FakeBackend(topic=DENY)), exchanges=exchanges), TOPIC)
    assert not decision.allowed


class Patterned(FakeBackend):
    """patterns: what it answers about the keys of an exchange."""

    def __init__(self, name: str, *patterns: bytes, answer: object = ...) -> None:
        super().__init__(name)
        self.answer = tuple(map(pcre.compile, patterns)) if answer is ... else answer

    def topic_patterns(self, *arguments: object) -> object:
        self.asked.append(arguments)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def patterns_of(*backends: FakeBackend, kind: object = True, later: bool = False) -> object:
    subject = engine(Pair(FakeBackend("n"), backends), exchanges=FakeExchanges(kind, later=later))
    found = subject.topic_patterns(identity_of(subject), b"/", b"x")
    return found and [pattern.source for pattern in found.patterns]


def test_topic_patterns_are_those_of_all_backends() -> None:
    assert patterns_of(Patterned("a", b"^a"), Patterned("b", b"b", b"c")) == [b"^a", b"b", b"c"]
    assert patterns_of(Patterned("a")) == []
    backend = Patterned("a")
    assert patterns_of(backend) == []
    user = AuthUser(b"bob", state="state")
    assert backend.asked == [
        (user, b"/", b"x", WRITE, {"username": b"bob", "vhost": b"/"}),
    ]


def test_where_one_backend_cannot_tell_by_patterns_each_key_is_asked_about() -> None:
    for other in (
        FakeBackend("b"),
        Patterned("b", answer=None),
        Patterned("b", answer=RuntimeError()),
        Patterned("b", answer=7),
    ):
        assert patterns_of(Patterned("a", b"^a"), other) is None
    subject = engine(single(Patterned("a", b"^a")))
    assert subject.topic_patterns(Identity(b"bob"), b"/", b"x") is None
    assert subject.topic_patterns(Identity(b"bob", grants=(("gone", None),)), b"/", b"x") is None


@pytest.mark.parametrize(
    ("kind", "later", "patterns"),
    [
        (False, False, []),
        (False, True, None),
        (None, False, None),
        (0, False, None),
        ("no", False, None),
        (RuntimeError(), False, None),
    ],
)
def test_topic_patterns_wait_for_no_exchange_type(
    kind: object, later: bool, patterns: object
) -> None:
    assert patterns_of(Patterned("a", b"^a"), kind=kind, later=later) == patterns


def test_topic_rule_is_any_backend_and_doubt_is_yes() -> None:
    def rule(*rules: object) -> bool:
        backends = tuple(FakeBackend(str(at), rule=rule) for at, rule in enumerate(rules))
        subject = engine(Pair(FakeBackend("n"), backends))
        return subject.topic_rule(identity_of(subject), b"/", b"x")

    assert not rule(False, False)
    assert rule(False, True)
    assert rule(RuntimeError(), False)


# -- explain, epoch ----------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("check", "verdict", "sentence"),
    [
        (
            PUBLISH,
            ALLOW,
            "allowed: write access to exchange 'x' in vhost '/' for user 'bob' (b: says yes)",
        ),
        (
            ANY,
            Verdict(False, error="timeout"),
            "refused: any access to queue 'q' in vhost '/' for user 'bob', BACKEND_ERROR (b)",
        ),
        (
            TOPIC,
            DENY,
            "refused: write access to topic 'k' in exchange 'x' in vhost '/' for user 'bob' (RULE)",
        ),
    ],
)
async def test_explain(check: Check, verdict: Verdict, sentence: str, later: bool) -> None:
    subject = engine(single(FakeBackend("b", default=verdict, topic=verdict, later=later)))
    sentence = sentence.replace("BACKEND_ERROR", "backend b returned an error: timeout")
    sentence = sentence.replace("RULE", "b: says no")
    assert await explain(subject, identity_of(subject), b"/", check) == sentence


async def test_explain_a_decision_without_a_rule() -> None:
    class Silent(Engine):
        def check(self, identity: Identity, vhost: bytes, check: Check) -> Decision:
            return Decision(False)

    sentence = await explain(Silent([], FakeExchanges()), Identity(b"u"), b"v", PUBLISH)
    assert sentence == "refused: write access to exchange 'x' in vhost 'v' for user 'u'"


def test_epoch_only_grows() -> None:
    epoch = Epoch()
    assert [epoch.bump(), epoch.bump(), epoch.value] == [1, 2, 2]
    assert repr(epoch) == "Epoch(2)"


# -- tags while the connection lives -------------------------------------------------------


class Tagger(FakeBackend):
    """Knows its users' tags at any time."""

    now: object = frozenset({"now"})

    def tags_now(self, username: bytes) -> frozenset[str]:
        if isinstance(self.now, Exception):
            raise self.now
        return self.now  # type: ignore[return-value]


async def logged_in(*pairs: Pair) -> tuple[Engine, Identity]:
    one = engine(*pairs)
    identity = await one.login(BOB, PEER)
    assert isinstance(identity, Identity)
    return one, identity


async def test_tags_of_a_backend_that_does_not_know_them_stay_as_they_were() -> None:
    one, identity = await logged_in(Pair.of(FakeBackend()))
    assert one.refreshed(identity) is identity


async def test_tags_of_now() -> None:
    backend = Tagger()
    one, identity = await logged_in(Pair.of(backend))
    assert identity.tags == {"t"}
    assert one.refreshed(identity).tags == {"now"}
    backend.now = frozenset({"t"})
    assert one.refreshed(identity) is identity
    backend.now = ValueError("unreadable")
    assert one.refreshed(identity).tags == frozenset()


@pytest.mark.parametrize("tagger_authenticates", [False, True])
async def test_tags_of_several_backends(*, tagger_authenticates: bool) -> None:
    """Those of a backend that does not know them now stay; the others are those of now."""
    tagger, other = Tagger("tagger"), FakeBackend("other")
    pair = Pair(tagger, (other,)) if tagger_authenticates else Pair(other, (other, tagger))
    one, identity = await logged_in(pair)
    assert identity.tags == {"t", "z"}
    fixed = {"z"} if tagger_authenticates else {"t", "z"}
    assert one.refreshed(identity).tags == fixed | {"now"}
    tagger.now = frozenset()
    assert one.refreshed(identity).tags == fixed
