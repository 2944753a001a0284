"""The guide's combinations of backends: who is asked, in what order, and what comes of it.

Behind the backends are a real directory, a real HTTP service and the store. Who knows whom:

=======  =========  ======  ====  ==================================================
user     directory  store   HTTP  note
=======  =========  ======  ====  ==================================================
alice    yes        yes     yes   the store has a password of its own; in admins
bob      yes        no      no
ann      no         yes     no
hal      no         no      yes
nobody   no         no      no
=======  =========  ======  ====  ==================================================
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gatekeeper.backends.registry import Backends
from gatekeeper.config.load import load_settings
from gatekeeper.config.settings import Settings
from gatekeeper.model import Access, Credentials, Identity, Kind, Peer, Permission, Secret
from gatekeeper.policy.answers import LoginRefused
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.pairs import Pair
from gatekeeper.store.store import Store
from tests.backends import guide
from tests.backends.http_service import Service
from tests.backends.test_registry import HEAD
from tests.policy.fakes import FakeExchanges
from tests.server.remote import http_keys
from tests.support.process import free_port
from tests.support.slapd import GROUPS, PEOPLE, Slapd, in_people, password_of

HERE, AWAY = Peer("127.0.0.1", 4000, loopback=True), Peer("192.0.2.9", 4000)
SITE = f"""
auth_ldap.servers.1 = 127.0.0.1
auth_ldap.user_dn_pattern = cn=${{username}},{PEOPLE}
auth_ldap.queries.vhost_access = {{equals, "${{vhost}}", "/"}}
auth_ldap.queries.resource_access = {{match, "${{name}}", "^l"}}
auth_ldap.queries.tags = [{{administrator, {{in_group, "cn=admins,{GROUPS}"}}}}]
auth_ip_range.default_masks = 127.0.0.0/8
"""
"""What the guide's examples leave to other guides. The last one of a key counts, so that an
example stands as it is and the test's own addresses behind it."""
NO_SUCH = "user '{}' - invalid credentials"


def service(path: str, form: Mapping[str, str]) -> str:
    """Everybody may use any virtual host, and what begins with h."""
    if path == "/user":
        right = {"hal": "hal", "alice": password_of("alice")}.get(form["username"])
        return "allow Monitoring" if form["password"] == right else "deny"
    allowed = path == "/vhost" or form["name"].startswith("h")
    return "allow" if allowed else "deny"


class Spy:
    """A backend that notes what it is asked, in the order of the questions."""

    def __init__(self, backend: Any, asked: list[str]) -> None:
        self._backend = backend
        self._asked = asked
        self._short = backend.name.removeprefix("rabbit_auth_backend_")

    @property
    def name(self) -> str:
        return str(self._backend.name)

    def __getattr__(self, method: str) -> Any:
        ask = getattr(self._backend, method)

        def noted(*question: Any) -> Any:
            self._asked.append(f"{self._short}.{method}")
            return ask(*question)

        return noted


def spied(pairs: tuple[Pair, ...], asked: list[str]) -> list[Pair]:
    spies: dict[int, Any] = {}

    def spy(backend: object) -> Any:
        return spies.setdefault(id(backend), Spy(backend, asked))

    return [
        Pair(authn=spy(pair.authn), authz=tuple(map(spy, pair.authz)), single=pair.single)
        for pair in pairs
    ]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    with Slapd(tmp_path_factory.mktemp("slapd") / "d") as slapd:
        yield slapd


@pytest.fixture
async def web() -> AsyncIterator[Service]:
    web = Service(decide=service)
    await web.start()
    yield web
    await web.stop()


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.open("sqlite::memory:")
    for vhost in (b"/", b"v2"):
        store.add_vhost(vhost)
    for user in (b"alice", b"ann"):
        store.add_user(user, b"store-" + user, tags=("management",))
        store.set_permissions(user, b"v2", b"^s", b"^s", b"^s")
    yield store
    store.close()


def settings(folder: Path, text: str) -> Settings:
    path = folder / "gatekeeper.conf"
    path.write_text(HEAD + text)
    return load_settings(path, {})


@dataclass(frozen=True)
class Case:
    """``asked`` to log in; then the refusal, or what the user is and may.

    vhosts, names: of "/" and "v2", and of "l1", "s1" and "h1" (in "v2"), those allowed.
    judges: who is asked about access.
    """

    chain: str
    user: str
    password: str
    asked: str
    refusal: str = ""
    tags: str = ""
    vhosts: str = ""
    names: str = ""
    judges: str = ""
    peer: Peer = HERE


LDAP_PASSWORD, OWN = password_of("alice"), "store-alice"
IN, MAY = "authenticate", "authorize_login"
# fmt: off
CASES = {
    "internal only": Case(guide.INTERNAL, "ann", "store-ann",
        f"internal.{IN}", tags="management", vhosts="v2", names="s1", judges="internal"),
    "internal only: whom the directory alone knows": Case(guide.INTERNAL, "bob", password_of("bob"),
        f"internal.{IN}", NO_SUCH.format("bob")),
    "ldap only": Case(guide.LDAP, "alice", LDAP_PASSWORD,
        f"ldap.{IN}", tags="administrator", vhosts="/", names="l1", judges="ldap"),
    "ldap only: the store is not consulted": Case(guide.LDAP, "ann", "store-ann",
        f"ldap.{IN}", in_people("ann")),
    "ldap, then internal: the first that knows the user is final": Case(
        guide.LDAP_THEN_INTERNAL, "alice", LDAP_PASSWORD,
        f"ldap.{IN}", tags="administrator", vhosts="/", names="l1", judges="ldap"),
    "ldap, then internal: the directory refuses the store's password, the store takes it": Case(
        guide.LDAP_THEN_INTERNAL, "alice", OWN,
        f"ldap.{IN} internal.{IN}", tags="management", vhosts="v2", names="s1", judges="internal"),
    "ldap, then internal: only the store knows the user": Case(
        guide.LDAP_THEN_INTERNAL, "ann", "store-ann",
        f"ldap.{IN} internal.{IN}", tags="management", vhosts="v2", names="s1", judges="internal"),
    "ldap, then internal: nobody does, and the last refusal counts": Case(
        guide.LDAP_THEN_INTERNAL, "nobody", "x",
        f"ldap.{IN} internal.{IN}", NO_SUCH.format("nobody")),
    "ldap, then HTTP: the directory knows the user": Case(
        guide.LDAP_THEN_HTTP, "bob", password_of("bob"),
        f"ldap.{IN}", vhosts="/", names="l1", judges="ldap"),
    "ldap, then HTTP: the service does": Case(guide.LDAP_THEN_HTTP, "hal", "hal",
        f"ldap.{IN} http.{IN}", tags="monitoring", vhosts="/ v2", names="h1", judges="http"),
    "ldap, then HTTP: neither": Case(guide.LDAP_THEN_HTTP, "ann", "store-ann",
        f"ldap.{IN} http.{IN}", "Denied by the backing HTTP service"),
    "internal with ip_range": Case(guide.INTERNAL_WITH_IP_RANGE, "ann", "store-ann",
        f"internal.{IN} ip_range.{MAY}", tags="management", vhosts="/ v2", names="l1 s1 h1",
        judges="ip_range"),
    "internal with ip_range: from elsewhere": Case(guide.INTERNAL_WITH_IP_RANGE, "ann", "store-ann",
        f"internal.{IN} ip_range.{MAY}", tags="management", vhosts="", names="l1 s1 h1",
        judges="ip_range", peer=AWAY),
    "internal with ip_range: a wrong password": Case(guide.INTERNAL_WITH_IP_RANGE, "ann", "x",
        f"internal.{IN}", NO_SUCH.format("ann")),
    "ldap with internal: the tags of both, the store's rights": Case(
        guide.LDAP_WITH_INTERNAL, "alice", LDAP_PASSWORD,
        f"ldap.{IN} internal.{MAY}", tags="administrator management", vhosts="v2", names="s1",
        judges="internal"),
    "ldap with internal: the store's password is of no use": Case(
        guide.LDAP_WITH_INTERNAL, "alice", OWN, f"ldap.{IN}", in_people("alice")),
    "ldap with internal: the store must know the user as well": Case(
        guide.LDAP_WITH_INTERNAL, "bob", password_of("bob"),
        f"ldap.{IN} internal.{MAY}", NO_SUCH.format("bob")),
    "ldap with internal, then internal: found in the directory": Case(
        guide.LDAP_WITH_INTERNAL_THEN_INTERNAL, "alice", LDAP_PASSWORD,
        f"ldap.{IN} internal.{MAY}", tags="administrator management", vhosts="v2", names="s1",
        judges="internal"),
    "ldap with internal, then internal: not found there": Case(
        guide.LDAP_WITH_INTERNAL_THEN_INTERNAL, "ann", "store-ann",
        f"ldap.{IN} internal.{IN}", tags="management", vhosts="v2", names="s1", judges="internal"),
    "ldap with internal, then internal: found there and not in the store": Case(
        guide.LDAP_WITH_INTERNAL_THEN_INTERNAL, "bob", password_of("bob"),
        f"ldap.{IN} internal.{MAY} internal.{IN}", NO_SUCH.format("bob")),
    "a cache over ldap and internal, as if it were not there": Case(
        "auth_backends.1 = cache\nauth_cache.cached_backend.authn = ldap\n"
        "auth_cache.cached_backend.authz = internal\nauth_backends.2 = internal\n",
        "ann", "store-ann",
        f"cache.{IN} internal.{IN}", tags="management", vhosts="v2", names="s1", judges="internal"),
    "http authenticates, ldap authorises": Case(
        "auth_backends.1.authn = http\nauth_backends.1.authz = ldap\n", "alice", LDAP_PASSWORD,
        f"http.{IN} ldap.{MAY}", tags="monitoring administrator", vhosts="/", names="l1",
        judges="ldap"),
    "http authenticates, and ldap does not know the user": Case(
        "auth_backends.1.authn = http\nauth_backends.1.authz = ldap\n", "hal", "hal",
        f"http.{IN} ldap.{MAY}", in_people("hal")),
    "nobody but the dummy": Case("auth_backends.1 = dummy\n", "ann", "store-ann",
        f"dummy.{IN}", "cannot log in conventionally as dummy user"),
}
# fmt: on


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_combination(
    tmp_path: Path, directory: Slapd, web: Service, store: Store, case: Case
) -> None:
    here = {"auth_ldap.port": directory.port, **http_keys(web.port)}
    text = case.chain + SITE + "".join(f"{key} = {value}\n" for key, value in here.items())
    backends = Backends(settings(tmp_path, text), store)
    asked: list[str] = []
    engine = Engine(spied(backends.pairs, asked), FakeExchanges())
    await backends.start()
    try:
        credentials = Credentials("PLAIN", case.user.encode(), Secret(case.password.encode()))
        found = await engine.login(credentials, case.peer)
        assert asked == case.asked.split()
        if isinstance(found, LoginRefused):
            assert case.refusal
            assert case.refusal in found.reason
            return
        assert not case.refusal, found
        assert found.username == case.user.encode()
        assert found.tags == frozenset(case.tags.split())
        asked.clear()
        vhosts, names = await allowed(engine, found, case.peer)
        assert (vhosts, names) == (case.vhosts, case.names)
        assert {each.partition(".")[0] for each in asked} == {case.judges}
    finally:
        await backends.close()


async def allowed(engine: Engine, identity: Identity, peer: Peer) -> tuple[str, str]:
    vhosts = [
        vhost
        for vhost in ("/", "v2")
        if (await engine.vhost_access(identity, vhost.encode(), peer)).allowed
    ]
    names = []
    for name in ("l1", "s1", "h1"):
        check = Access(Permission.CONFIGURE, Kind.QUEUE, name.encode())
        decision: Any = engine.check(identity, b"v2", check)
        if not hasattr(decision, "allowed"):
            decision = await decision
        if decision.allowed:
            names.append(name)
    return " ".join(vhosts), " ".join(names)


@pytest.mark.parametrize("example", guide.TERMS)
def test_the_same_in_erlang_terms(tmp_path: Path, example: str) -> None:
    """Word by word, and the advanced.config says the same."""
    needed = "auth_oauth2.resource_server_id = r\nauth_oauth2.jwks_uri = https://i.example.com/k\n"
    more = needed if example == guide.OAUTH2 else ""
    plain = settings(tmp_path, example + more)
    (tmp_path / "advanced.config").write_text(guide.TERMS[example])
    path = tmp_path / "advanced.config"
    advanced = settings(tmp_path, f"advanced_config = {path}\n{more}")
    assert plain.auth_backends == advanced.auth_backends
    store = Store.open("sqlite::memory:")
    try:
        made = [Backends(each, store).pairs for each in (plain, advanced)]
    finally:
        store.close()
    names, again = (
        [(pair.authn.name, pair.single, [each.name for each in pair.authz]) for pair in pairs]
        for pairs in made
    )
    assert names == again


def test_the_rest_of_the_guide(tmp_path: Path) -> None:
    loaded = settings(tmp_path, guide.LOOPBACK_USERS + guide.DEFAULT_USER + guide.LDAP_THEN_HTTP)
    assert loaded.loopback_users == frozenset()
    assert loaded.seed.user == b"a-user"
    assert loaded.seed.password.value == b"768a852ed69ce916fa7faa278c962de3e4275e5f"
    assert loaded.backends.http.user_path == "http://my-authenticator-app/auth/user"
    (tmp_path / "advanced.config").write_text(guide.MECHANISMS)
    advanced = settings(tmp_path, f"advanced_config = {tmp_path / 'advanced.config'}\n")
    assert set(advanced.auth_mechanisms) == {"PLAIN", "AMQPLAIN"}


async def test_a_directory_that_is_gone_is_no_answer(tmp_path: Path, store: Store) -> None:
    """RabbitMQ goes on to the next; where there is none, its error is the refusal."""
    chain = f"{SITE}auth_ldap.port = {free_port()}\n"
    for example, login in ((guide.LDAP_THEN_INTERNAL, True), (guide.LDAP, False)):
        backends = Backends(settings(tmp_path, example + chain), store)
        engine = Engine(backends.pairs, FakeExchanges())
        await backends.start()
        found = await engine.login(Credentials("PLAIN", b"ann", Secret(b"store-ann")), HERE)
        await backends.close()
        assert isinstance(found, Identity) is login
        if isinstance(found, LoginRefused):
            assert found.reason == (
                "rabbit_auth_backend_ldap failed authenticating ann: ldap_connect_error"
            )
