"""From auth_backends to backends: names, halves, third parties, mistakes."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper.backends import registry
from gatekeeper.backends.cache import CacheBackend
from gatekeeper.backends.dummy import DummyBackend
from gatekeeper.backends.guard import Guarded
from gatekeeper.backends.internal import InternalBackend
from gatekeeper.backends.ip_range import IpRangeBackend
from gatekeeper.backends.loopback import InternalLoopbackBackend
from gatekeeper.backends.oauth2.backend import OAuth2Backend
from gatekeeper.backends.registry import Backends
from gatekeeper.config.load import load_settings
from gatekeeper.errors import ConfigError
from gatekeeper.model import (
    Access,
    Credentials,
    Decision,
    Identity,
    Kind,
    Permission,
    Secret,
    TopicAccess,
)
from gatekeeper.policy.engine import Engine
from gatekeeper.store.store import Store
from tests.policy.fakes import PEER, FakeExchanges
from tests.support.gate import run_gate
from tests.support.process import free_port

HEAD = """\
upstreams.default.servers.1 = broker:5672
upstreams.default.username = gk
upstreams.default.password = x
"""
OFFICE = "tests.backends.third_party:Office"


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.open("sqlite::memory:")
    yield store
    store.close()


def backends(tmp_path: Path, store: Store, text: str) -> Backends:
    path = tmp_path / "gatekeeper.conf"
    path.write_text(HEAD + text)
    return Backends(load_settings(path, {}), store)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("internal", InternalBackend),
        ("rabbit_auth_backend_internal", InternalBackend),
        ("internal_loopback", InternalLoopbackBackend),
        ("rabbit_auth_backend_internal_loopback", InternalLoopbackBackend),
        ("dummy", DummyBackend),
        ("ip_range", IpRangeBackend),
        ("rabbit_auth_backend_ip_range", IpRangeBackend),
        ("http", Guarded),
        ("rabbit_auth_backend_http", Guarded),
    ],
)
def test_one_backend_for_both_halves(
    tmp_path: Path, store: Store, name: str, kind: type[object]
) -> None:
    (pair,) = backends(tmp_path, store, f"auth_backends.1 = {name}\n").pairs
    assert type(pair.authn) is kind
    assert pair.authz == (pair.authn,)
    assert pair.single
    assert pair.authn.name == f"rabbit_auth_backend_{name.removeprefix('rabbit_auth_backend_')}"


def test_halves(tmp_path: Path, store: Store) -> None:
    """Each backend is made once; a pair asks whether the user may log in."""
    text = "auth_backends.1.authn = http\nauth_backends.1.authz = internal\n"
    text += "auth_backends.2 = internal\n"
    first, second = backends(tmp_path, store, text).pairs
    assert first.authn.name == "rabbit_auth_backend_http"
    assert first.authz == (second.authn,)
    assert not first.single
    assert second.single


def test_the_same_name_for_both_halves_is_a_pair(tmp_path: Path, store: Store) -> None:
    text = "auth_backends.1.authn = internal\nauth_backends.1.authz = internal\n"
    (pair,) = backends(tmp_path, store, text).pairs
    assert not pair.single


def test_cache(tmp_path: Path, store: Store) -> None:
    text = (
        "auth_backends.1 = cache\nauth_cache.cached_backend.authn = http\n"
        "auth_cache.cached_backend.authz = internal\nauth_cache.cache_ttl = 5000\n"
        "auth_cache.cache_refusals = true\n"
    )
    made = backends(tmp_path, store, text)
    (pair,) = made.pairs
    cache = pair.authn
    assert isinstance(cache, CacheBackend)
    assert pair.authz == (cache,)
    assert not pair.single
    assert isinstance(cache._authn, Guarded)
    assert isinstance(cache._authz, InternalBackend)
    assert (cache._ttl, cache._refusals) == (5.0, True)
    assert made.clear_cache() == 0
    assert made.clear_cache(b"u") == 0


# -- third parties -----------------------------------------------------------------------


def test_the_readme_shows_the_third_partys_backend() -> None:
    root = Path(__file__).parents[2]
    code = (root / "tests/backends/third_party.py").read_text().split('"""\n\n', 1)[1]
    assert f"```python\n{code}```\n" in (root / "README.md").read_text()


@pytest.fixture
def people(tmp_path: Path) -> Path:
    path = tmp_path / "people"
    path.write_text("eve:pw\n")
    return path


class FakeEntryPoint:
    name = "office"
    group = registry.GROUP

    def load(self) -> object:
        from tests.backends.third_party import Office

        return Office


@pytest.mark.parametrize("name", [OFFICE, "office"])
async def test_a_third_partys_backend(
    tmp_path: Path, store: Store, people: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its import path, or by its entry point."""
    real = importlib.metadata.entry_points

    def entry_points(**wanted: str) -> object:
        mine = wanted == {"group": registry.GROUP, "name": "office"}
        return [FakeEntryPoint()] if mine else real(**wanted)

    monkeypatch.setattr(registry, "entry_points", entry_points)
    option = f"gatekeeper.backends.{name.rpartition(':')[2]}.people = {people}\n"
    text = f"auth_backends.1 = {name}\nauth_backends.2 = internal\n{option}"
    made = backends(tmp_path, store, text)
    engine = Engine(made.pairs, FakeExchanges())
    await made.start()
    eve = await engine.login(Credentials("PLAIN", b"eve", Secret(b"pw")), PEER)
    assert isinstance(eve, Identity)
    assert eve.tags == {"management"}
    assert (await engine.vhost_access(eve, b"office", PEER)).allowed
    assert not (await engine.vhost_access(eve, b"/", PEER)).allowed
    for check, allowed in (
        (Access(Permission.READ, Kind.QUEUE, b"eve.in"), True),
        (Access(Permission.READ, Kind.QUEUE, b"in"), False),
        (TopicAccess(Permission.WRITE, b"x", b"office.1"), True),
        (TopicAccess(Permission.WRITE, b"x", b"home.1"), False),
    ):
        decision = engine.check(eve, b"office", check)
        assert isinstance(decision, Decision)
        assert decision.allowed is allowed
    await made.close()


BAD = """\
class Half:
    name = "half"
    def __init__(self, options): pass
    def authenticate(self, credentials, peer): pass
    def authorize_login(self, username, credentials, peer): pass
    def vhost_access(self, user, vhost, peer): pass
    def resource_access(self, user, vhost, kind, name, permission): pass
class Breaks(Half):
    def __init__(self, options): raise RuntimeError("no luck")
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "auth_backends.1 = intrenal",
            "auth_backends.1: there is no backend 'intrenal'; use internal",
        ),
        (
            "auth_backends.7.authz = nope\nauth_backends.7.authn = internal",
            "auth_backends.7.authn: there is no backend 'nope'",
        ),
        ("auth_backends.1 = amqp", "there is no backend 'rabbit_auth_backend_amqp'"),
        ("auth_cache.cached_backend = nope\nauth_backends.1 = cache", "there is no backend 'nope'"),
        ("auth_backends.1 = nosuchmodule:X", "'nosuchmodule:X' cannot be made: ModuleNotFound"),
        ("auth_backends.1 = badbackends:Missing", "cannot be made: AttributeError"),
        ("auth_backends.1 = badbackends:Breaks", "cannot be made: RuntimeError: no luck"),
        (
            "auth_backends.1 = badbackends:Half",
            "badbackends:Half cannot do this: it has no topic_rule, topic_access",
        ),
    ],
)
def test_mistakes(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "badbackends.py").write_text(BAD)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("badbackends", None)
    with pytest.raises(ConfigError) as caught:
        backends(tmp_path, store, text + "\n")
    assert message in str(caught.value)
    assert str(tmp_path / "gatekeeper.conf") in str(caught.value)


def test_a_missing_extra(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigError, match=r"needs aiohttp; install gatekeeper-amqp\[http\]"):
        backends(tmp_path, store, "auth_backends.1 = http\n")


def oauth2_conf(tmp_path: Path) -> str:
    return (
        "auth_backends.1 = oauth2\nauth_oauth2.resource_server_id = rabbitmq\n"
        f"auth_oauth2.jwks_uri = https://localhost:{free_port()}/jwks\n"
    )


@pytest.mark.parametrize("name", ["oauth2", "oauth", "rabbit_auth_backend_oauth2"])
async def test_oauth2(tmp_path: Path, store: Store, name: str) -> None:
    text = oauth2_conf(tmp_path).replace("= oauth2", f"= {name}")
    made = backends(tmp_path, store, text)
    assert isinstance(made.pairs[0].authn, OAuth2Backend)
    problems = await made.problems()
    assert len(problems) == 1
    assert problems[0].startswith("auth_oauth2.jwks_uri: the signing keys cannot be fetched: ")


async def test_oauth2_behind_the_cache_needs_its_settings_too(tmp_path: Path, store: Store) -> None:
    text = "auth_backends.1 = cache\nauth_cache.cached_backend = oauth2\n"
    with pytest.raises(ConfigError, match="resource_server_id: is missing"):
        backends(tmp_path, store, text)
    made = backends(tmp_path, store, text + oauth2_conf(tmp_path).partition("\n")[2])
    assert made.pairs[0].authz[0].name == "rabbit_auth_backend_cache"


def test_oauth2_without_its_libraries(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "joserfc.jwk", None)
    with pytest.raises(ConfigError, match=r"auth_backends.1: .* install gatekeeper-amqp\[oauth2\]"):
        backends(tmp_path, store, oauth2_conf(tmp_path))


def test_check_config_says_what_the_backends_find(tmp_path: Path) -> None:
    path = tmp_path / "gatekeeper.conf"
    path.write_text(HEAD + oauth2_conf(tmp_path))
    done = run_gate("--check-config", "--config", path)
    assert done.returncode == 1
    assert done.stderr.startswith("gatekeeper: auth_oauth2.jwks_uri: the signing keys cannot be")
    assert done.stderr.count("\n") == 1
