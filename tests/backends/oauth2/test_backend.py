"""Tokens against the backend, alone and under the engine: RabbitMQ's outcomes and texts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from gatekeeper.backends.oauth2 import backend as module
from gatekeeper.backends.oauth2.backend import OAuth2Backend, key_rings
from gatekeeper.backends.oauth2.claims import ClaimsError
from gatekeeper.backends.oauth2.token import TokenState
from gatekeeper.config.oauth2 import OAuth2Settings, OAuthProvider, ResourceServer
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
    TopicAccess,
)
from gatekeeper.policy.answers import EngineCrash, LoginRefused
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.pairs import Pair
from gatekeeper.policy.ports import Accepted, Failed, LoginAnswer, Refused
from tests.support.idp import IdentityProvider, SigningKey, claims, unsigned

PEER = Peer("10.0.0.9", 40000)
READ, WRITE, CONFIGURE = Permission.READ, Permission.WRITE, Permission.CONFIGURE
KEY = SigningKey("key-1")
KEYS = {
    algorithm: SigningKey(algorithm, algorithm)
    for algorithm in ("ES256", "ES384", "ES512", "ES256K", "Ed25519", "Ed448")
}
AN = "Authentication using an OAuth 2/JWT token failed: "
NO_AN = "Authentication using OAuth 2/JWT token failed: "
NOW = 1_800_000_000
SERVER = ResourceServer(id="rabbitmq", scope_prefix="rabbitmq.")
PROVIDER = OAuthProvider(
    signing_keys={key.kid: key.public_pem for key in (KEY, *KEYS.values())},
    default_key="key-1",
)


def settings(provider: OAuthProvider = PROVIDER, *servers: ResourceServer) -> OAuth2Settings:
    return OAuth2Settings(
        servers={server.id: server for server in servers or (SERVER,)}, providers={"": provider}
    )


def made(of: OAuth2Settings | None = None, now: float = 0) -> OAuth2Backend:
    found = of or settings()
    return OAuth2Backend(found, key_rings(found), (lambda: now) if now else time.time)


@pytest.fixture
def backend() -> OAuth2Backend:
    return made()


async def login(backend: OAuth2Backend, token: bytes | None) -> LoginAnswer:
    password = None if token is None else Secret(token)
    return await backend.authenticate(Credentials("PLAIN", b"whoever", password), PEER)


async def accepted(backend: OAuth2Backend, token: bytes) -> Accepted:
    answer = await login(backend, token)
    assert isinstance(answer, Accepted), answer
    return answer


# --- signatures ---


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        *((KEY, name) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        *((key, name) for name, key in KEYS.items()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_algorithms(key: SigningKey, algorithm: str) -> None:
    token = key.sign(claims("read:*/*"), algorithm=algorithm)
    assert (await accepted(made(), token)).username == b"alice"
    only = replace(PROVIDER, algorithms=(algorithm,))
    await accepted(made(settings(only)), token)
    another = replace(PROVIDER, algorithms=("HS256",))
    assert await login(made(settings(another)), token) == Refused(AN + "signature_invalid")


async def test_an_edwards_key_by_its_old_algorithm_name(backend: OAuth2Backend) -> None:
    signed = unsigned(claims(), {"alg": "EdDSA", "kid": "Ed25519"}).rstrip(b".")
    signature = KEYS["Ed25519"].private_key.sign(signed)
    encoded = base64.urlsafe_b64encode(signature).rstrip(b"=")
    await accepted(backend, signed + b"." + encoded)


def hmac_with_the_public_key() -> bytes:
    """The classic confusion: the RSA key's PEM as an HMAC secret."""
    signed = unsigned(claims("read:*/*"), {"alg": "HS256", "kid": "key-1"}).rstrip(b".")
    mac = hmac.new(KEY.public_pem, signed, hashlib.sha256).digest()
    return signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")


GOOD = KEY.sign(claims("read:*/*", "tag:administrator"))
HEAD, BODY, SIGNATURE = GOOD.split(b".")
INVALID = AN + "provided token is invalid"
MALFORMED = NO_AN + "{error,{invalid_token,error,badarg,[]}}"


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (hmac_with_the_public_key(), AN + "signature_invalid"),
        (unsigned(claims("read:*/*"), {"alg": "none", "kid": "key-1"}), AN + "signature_invalid"),
        (unsigned(claims(), {"alg": "none"}, "AAAA"), AN + "signature_invalid"),
        (SigningKey("key-1").sign(claims()), AN + "signature_invalid"),
        (HEAD + b"." + BODY + b".", AN + "signature_invalid"),
        (HEAD + b"." + BODY + b".AAAA", AN + "signature_invalid"),
        (HEAD + b"." + BODY + b"." + SIGNATURE[:-4], AN + "signature_invalid"),
        (KEY.sign(claims()).replace(b".", b".e30", 1), MALFORMED),
        (
            HEAD + b"." + KEY.sign(claims("write:*/*")).split(b".")[1] + b"." + SIGNATURE,
            AN + "signature_invalid",
        ),
        (KEYS["ES256"].sign(claims(), kid="ES384"), AN + "signature_invalid"),
        (KEYS["ES256"].sign(claims(), kid="key-1"), AN + "signature_invalid"),
        (unsigned(claims(), {"alg": "foo", "kid": "key-1"}, "AAAA"), INVALID),
        (unsigned(claims(), {"kid": "key-1"}, "AAAA"), INVALID),
        (unsigned(claims(), {"alg": ["RS256"]}, "AAAA"), INVALID),
        (unsigned(claims(), {"alg": "RS256", "crit": ["exp"]}, "AAAA"), INVALID),
        (unsigned(claims(), {"alg": "RS256", "b64": False}, "AAAA"), INVALID),
        (KEY.sign(claims(), kid="nobody's"),
         AN + "{error,{missing_oauth_provider_attributes,[issuer]}}"),
        (unsigned(claims(), {"alg": "RS256", "kid": 7}, "AAAA"), AN + "{error,key_not_found}"),
        (unsigned(claims(), {"alg": "RS256", "kid": None}, "AAAA"), AN + "{error,key_not_found}"),
        (None, MALFORMED),
        (b"", MALFORMED),
        (b"guest", MALFORMED),
        (b"a.b.c", MALFORMED),
        (b"..", MALFORMED),
        (GOOD + b".x", MALFORMED),
        (b" " + GOOD, MALFORMED),
        (HEAD + b"." + BODY + b"=." + SIGNATURE, MALFORMED),
        (KEY.sign(b"[]"), MALFORMED),
        (KEY.sign(b'{"aud": "rabbitmq", "exp": Infinity}'), MALFORMED),
        (KEY.sign(b'{"aud": "rabbitmq", "exp": 1e999}'), MALFORMED),
        (KEY.sign(b"[" * 50_000), MALFORMED),
        (KEY.sign(b'{"aud": "rabbitmq", "sub": "\xff"}'), MALFORMED),
    ],
)  # fmt: skip
async def test_refused_tokens(backend: OAuth2Backend, token: bytes | None, reason: str) -> None:
    with capture_logs() as lines:
        assert await login(backend, token) == Refused(reason)
    assert not lines


async def test_a_long_header_is_read(backend: OAuth2Backend) -> None:
    await accepted(backend, KEY.sign(claims(), x5c=["A" * 6000], nonce="n", custom={"a": 1}))


# --- claims ---


@pytest.mark.parametrize(
    ("exp", "reason"),
    [
        (NOW + 1, None),
        (NOW + 0.5, f'"Provided JWT token has expired at timestamp {NOW} (validated at {NOW})"'),
        (NOW + 1.5, None),
        (NOW, f'"Provided JWT token has expired at timestamp {NOW} (validated at {NOW})"'),
        (-5, f'"Provided JWT token has expired at timestamp -5 (validated at {NOW})"'),
        (10**30, None),
        ("soon", '"Provided JWT token has an invalid exp claim: value is not a number"'),
        (True, '"Provided JWT token has an invalid exp claim: value is not a number"'),
        (None, '"Provided JWT token has no exp claim"'),
    ],
)
async def test_expiry(exp: Any, reason: str | None) -> None:
    backend = made(now=NOW + 0.4)
    token = KEY.sign(claims("read:*/*", exp=exp))
    answer = await login(backend, token)
    if reason is not None:
        assert answer == Refused(AN + reason)
        return
    assert isinstance(answer, Accepted)
    assert backend.expiry(answer.state) == int(exp)


async def test_a_token_may_do_without_an_end_where_that_is_configured() -> None:
    backend = made(settings(PROVIDER, replace(SERVER, require_exp=False)))
    answer = await accepted(backend, KEY.sign(claims(exp=None)))
    assert backend.expiry(answer.state) is None
    assert isinstance(await login(backend, KEY.sign(claims(exp="x"))), Refused)
    assert isinstance(await login(backend, KEY.sign(claims(exp=1))), Refused)


async def test_what_is_not_looked_at(backend: OAuth2Backend) -> None:
    later = int(time.time()) + 9999
    await accepted(backend, KEY.sign(claims(nbf=later, iat=later, iss="nobody")))


async def test_name_and_tags(backend: OAuth2Backend) -> None:
    token = KEY.sign(claims("tag:administrator", "tag:x", "read:*/*", sub=None, client_id="ü"))
    answer = await accepted(backend, token)
    assert (answer.username, answer.tags) == ("ü".encode(), {"administrator", "x"})
    mail = made(settings(PROVIDER, replace(SERVER, preferred_username_claims=("email",))))
    assert (await accepted(mail, KEY.sign(claims(email="a@b")))).username == b"a@b"
    assert (await accepted(mail, KEY.sign(claims()))).username == b"unknown"


async def test_audience() -> None:
    server = replace(SERVER, id="b", scope_prefix="b:", preferred_username_claims=("client_id",))
    backend = made(settings(PROVIDER, SERVER, server))
    token = KEY.sign(claims("read:a/*", aud=["x", "b"], scope="b:read:b/*", client_id="c"))
    answer = await accepted(backend, token)
    assert answer.username == b"c"
    state = answer.state
    assert isinstance(state, TokenState)
    assert state.permissions(b"b").vhost_access
    assert not state.permissions(b"a").vhost_access
    assert await login(backend, KEY.sign(claims(aud="x"))) == Refused(
        NO_AN + "{error,no_matching_aud_found}"
    )


@pytest.mark.parametrize("more", [{"scope": 7}, {"aud": 7}, {"scope": ["rabbitmq.a", 7]}])
async def test_claims_of_odd_shapes_are_an_internal_error(
    backend: OAuth2Backend, more: dict[str, Any]
) -> None:
    token = KEY.sign({**claims(), **more})
    with pytest.raises(ClaimsError):
        await login(backend, token)
    refused = await engine(backend).login(Credentials("PLAIN", b"u", Secret(token)), PEER)
    assert isinstance(refused, LoginRefused)
    assert refused.reason == (
        "User 'u' authentication failed with internal error. "
        "Enable debug logs to see the real error."
    )


async def test_too_many_scopes(backend: OAuth2Backend) -> None:
    token = KEY.sign(claims(scope=[f"rabbitmq.{at}" for at in range(2049)]))
    assert await login(backend, token) == Refused(AN + "{error,too_many_scopes}")


# --- access ---


class Topics:
    def is_topic(self, vhost: bytes, exchange: bytes) -> bool:
        return exchange == b"topic"


def engine(backend: OAuth2Backend) -> Engine:
    return Engine([Pair.of(backend)], Topics())


async def entered(backend: OAuth2Backend, *scopes: str, **more: Any) -> tuple[Engine, Identity]:
    found = engine(backend)
    token = KEY.sign(claims(*scopes, **more))
    identity = await found.login(Credentials("PLAIN", b"", Secret(token)), PEER)
    assert isinstance(identity, Identity)
    return found, identity


async def judged(found: Engine, identity: Identity, check: Access | TopicAccess) -> Decision:
    decision = found.check(identity, b"v", check)
    assert isinstance(decision, Decision)  # at once
    return decision


async def test_access_through_the_engine(backend: OAuth2Backend) -> None:
    found, identity = await entered(
        backend, "read:v/q-{sub}", "write:v/topic/a.*", "write:v/amq.default", "configure:w/*"
    )
    assert (await found.vhost_access(identity, b"v", PEER)).allowed
    assert (await found.vhost_access(identity, b"w", PEER)).allowed
    assert not (await found.vhost_access(identity, b"x", PEER)).allowed
    cases = [
        (Access(READ, Kind.QUEUE, b"q-alice"), True),
        (Access(READ, Kind.QUEUE, b"q-bob"), False),
        (Access(WRITE, Kind.EXCHANGE, b""), True),
        (Access(CONFIGURE, Kind.QUEUE, b"q-alice"), False),
        (TopicAccess(WRITE, b"topic", b"a.b"), True),
        (TopicAccess(WRITE, b"topic", b"b"), False),
        (TopicAccess(READ, b"topic", b"a.b"), False),
        (TopicAccess(READ, b"direct", b"a.b"), True),
    ]
    answers = [(check, (await judged(found, identity, check)).allowed) for check, _ in cases]
    assert answers == cases


async def test_an_expired_token_allows_nothing() -> None:
    now = [float(NOW)]
    of = settings()
    backend = OAuth2Backend(of, key_rings(of), lambda: now[0])
    found, identity = await entered(backend, "read:v/*", exp=NOW + 10)
    assert found.expiry(identity) == NOW + 10
    check = Access(READ, Kind.QUEUE, b"q")
    assert (await judged(found, identity, check)).allowed
    now[0] += 10.7
    error = (
        ", backend rabbit_auth_backend_oauth2 returned an error: "
        f'"Provided JWT token has expired at timestamp {NOW + 10} (validated at {NOW + 10})"'
    )
    for decision in (
        await judged(found, identity, check),
        await found.vhost_access(identity, b"v", PEER),
        await judged(found, identity, TopicAccess(READ, b"topic", b"k")),
    ):
        assert (decision.allowed, decision.detail.decode()) == (False, error)


async def test_a_state_of_somebody_else_allows_nothing(backend: OAuth2Backend) -> None:
    user = AuthUser(b"u", frozenset(), None)
    assert not backend.vhost_access(user, b"v", PEER).allowed
    assert not backend.resource_access(user, b"v", Kind.QUEUE, b"q", READ).allowed
    assert backend.topic_rule(user, b"v", b"x")
    assert not backend.topic_access(user, b"v", b"x", b"k", READ, {}).allowed


async def test_as_authorisation_alone(backend: OAuth2Backend) -> None:
    token = KEY.sign(claims("read:v/*", "tag:administrator"))
    answer = await backend.authorize_login(
        b"bob", Credentials("PLAIN", b"bob", Secret(token)), PEER
    )
    assert isinstance(answer, Accepted)
    assert (answer.username, answer.tags) == (b"bob", frozenset())
    assert isinstance(
        await backend.authorize_login(b"bob", Credentials("EXTERNAL", b"bob"), PEER), Refused
    )


# --- a new secret ---


async def test_a_new_token_replaces_scopes_tags_and_expiry(backend: OAuth2Backend) -> None:
    found, old = await entered(backend, "read:v/a", "tag:administrator")
    later = int(time.time()) + 7200
    renewed = await found.update_secret(
        old, Secret(KEY.sign(claims("read:v/b", "tag:monitoring", exp=later)))
    )
    assert isinstance(renewed, Identity)
    assert (renewed.username, renewed.tags) == (b"alice", {"monitoring"})
    assert found.expiry(renewed) == later
    names = [b"a", b"b"]
    checks = [Access(READ, Kind.QUEUE, name) for name in names]
    assert [(await judged(found, renewed, check)).allowed for check in checks] == [False, True]
    assert [(await judged(found, old, check)).allowed for check in checks] == [True, False]


@pytest.mark.parametrize(
    ("secret", "answer"),
    [
        (KEY.sign(claims(sub="bob")), Refused("Not allowed to change username on refreshed token")),
        (SigningKey("key-1").sign(claims()), Refused(AN + "signature_invalid")),
        (KEY.sign(claims(aud="x")), Failed("no_matching_aud_found")),
        (b"nonsense", Failed("{invalid_token,error,badarg,[]}")),
    ],
)
async def test_a_new_secret_that_is_not_taken(
    backend: OAuth2Backend, secret: bytes, answer: LoginAnswer
) -> None:
    found, old = await entered(backend, "read:v/a")
    assert await found.update_secret(old, Secret(secret)) == answer


async def test_an_expired_new_token_is_taken_and_allows_nothing(backend: OAuth2Backend) -> None:
    found, old = await entered(backend, "read:v/a")
    renewed = await found.update_secret(old, Secret(KEY.sign(claims("read:v/a", exp=1))))
    assert isinstance(renewed, Identity)
    decision = await found.vhost_access(renewed, b"v", PEER)
    assert not decision.allowed
    assert b"has expired at timestamp 1 " in decision.detail


async def test_a_new_token_of_an_odd_shape_is_a_crash(backend: OAuth2Backend) -> None:
    found, old = await entered(backend, "read:v/a")
    answer = await found.update_secret(old, Secret(KEY.sign(claims(scope=7))))
    assert isinstance(answer, EngineCrash)


# --- secrets and providers ---


async def test_nothing_of_a_token_is_printed(backend: OAuth2Backend) -> None:
    answer = await accepted(backend, KEY.sign(claims("read:v/{mail}", mail="private@x")))
    shown = repr(answer)
    assert "private" not in shown
    assert "read" not in shown


async def test_start_warns_of_a_provider_out_of_reach(tmp_path: Any) -> None:
    async with IdentityProvider(tmp_path, KEY) as idp:
        of = settings(OAuthProvider(jwks_uri=idp.jwks_uri, https=idp.https))
        backend = OAuth2Backend.from_settings(of)
        await backend.start()
        await accepted(backend, GOOD)
        assert idp.requests == ["/jwks"]
        assert await backend.problems() == []
        idp.answer("/jwks", status=503)
        lines = await backend.problems()
        expected = (
            "auth_oauth2.jwks_uri: the signing keys cannot be fetched: "
            "{unexpected_status_code,503}; check the URL, the network and the https options"
        )
        assert lines == [expected]
        late = OAuth2Backend.from_settings(of)
        with capture_logs() as logged:
            await late.start()
        assert [line["log_level"] for line in logged] == ["warning"]
        del idp.answers["/jwks"]
        await accepted(late, GOOD)


async def test_a_provider_that_hangs_does_not_hold_up_the_start(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_WAIT", 0.1)
    async with IdentityProvider(tmp_path, KEY) as idp:
        idp.hold("/jwks")
        backend = OAuth2Backend.from_settings(
            settings(OAuthProvider(jwks_uri=idp.jwks_uri, https=idp.https))
        )
        with capture_logs() as logged:
            await backend.start()
        line = "auth_oauth2.jwks_uri: the signing keys cannot be fetched: timeout"
        assert [entry["event"] for entry in logged] == [line]
        idp.release.set()
        await accepted(backend, GOOD)
