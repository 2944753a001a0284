"""The same chains of backends at RabbitMQ 3.10.8 and at the gate: the same answers.

Both ask the same HTTP service and the same directory, by the same lines of configuration, and
have the same internal users. Not compared, because 3.10 has them otherwise than 4.3.5: the
permission's word in refusals, by which an error's lines are indented too (so that it is cut
elsewhere), and a service's reason beside ``deny`` (4.3.0 on).
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.backends.http_service import Service
from tests.support.amqp import Client, LostError, RefusedError
from tests.support.gate import Gate, GateConfig
from tests.support.rabbit import (
    RabbitNode,
    definitions,
    permission,
    topic_permission,
    user,
)
from tests.support.slapd import GROUPS, PEOPLE, Slapd, password_of

SEED = 7
OPERATIONS = 120
WORD = re.compile(r" (configure|write|read) access to ")
INDENT = re.compile(r"\n +")

PLUGINS = (
    "rabbitmq_auth_backend_http",
    "rabbitmq_auth_backend_ldap",
    "rabbitmq_auth_backend_cache",
)
CHAINS = {
    "http, then internal": """\
auth_backends.1 = http
auth_backends.2 = internal
""",
    "ldap with internal, then http, then internal": """\
auth_backends.1.authn = ldap
auth_backends.1.authz = internal
auth_backends.2 = http
auth_backends.3 = internal
""",
    "internal with http, then ldap": """\
auth_backends.1.authn = internal
auth_backends.1.authz = http
auth_backends.2 = ldap
""",
    "a cache over http, then ldap": """\
auth_backends.1 = cache
auth_backends.2 = ldap
auth_cache.cached_backend = http
auth_cache.cache_ttl = 600000
""",
}
ADVANCED = f"""
[{{rabbitmq_auth_backend_ldap, [
   {{user_dn_pattern, "cn=${{username}},{PEOPLE}"}},
   {{vhost_access_query, {{equals, "${{vhost}}", "/"}}}},
   {{resource_access_query, {{for, [
     {{permission, configure, {{match, {{string, "${{name}}"}}, {{string, "^l"}}}}}},
     {{permission, write, {{in_group, "cn=admins,{GROUPS}"}}}},
     {{permission, read, {{in_group, "cn=no-such-group,{GROUPS}"}}}}]}}}},
   {{topic_access_query, {{match, "${{routing_key}}", "^ok"}}}}]}}].
"""
PEOPLE_INSIDE = definitions(
    users=[user("alice", "alice-pw", ["management"]), user("ann", "ann-pw")],
    vhosts=["/", "v2"],
    permissions=[
        permission("alice", "/", "^s", r"^(s|amq\.)", r"^(s|amq\.)"),
        permission("ann", "v2"),
        permission("ann", "/", "^s", "^amq.topic", "^s"),
    ],
    topic_permissions=[topic_permission("ann", "amq.topic", "^ok", "^ok")],
)
LOGINS = [
    ("alice", "alice-pw"),
    ("alice", password_of("alice")),
    ("bob", password_of("bob")),
    ("ann", "ann-pw"),
    ("hal", "hal-pw"),
    ("hal", "wrong"),
    ("dave", ""),
    ("nobody", "x"),
    ("broken", "x"),
    ("odd", "x"),
]


def answer(path: str, form: Mapping[str, str]) -> tuple[int, str]:
    """hal and ann are the service's; some questions it fails to answer."""
    name = form["username"]
    if name == "broken" or form.get("name") == "error":
        return 500, "no idea"
    if name == "odd" and path == "/user":
        return 200, "perhaps"
    if path == "/user":
        known = {"hal": "hal-pw", "ann": "ann-pw"}.get(name)
        right = known is not None and form.get("password", known) == known
        return 200, "allow policymaker" if right else "deny"
    allowed = {
        "/vhost": form["vhost"] == "/",
        "/resource": form.get("name", "").startswith(("h", "amq.")),
        "/topic": form.get("routing_key", "").startswith("ok"),
    }
    return 200, "allow" if allowed[path] else "deny"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """In a thread of its own: clients here block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    service = Service(decide=answer)

    def wait_for(work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(10)

    wait_for(service.start())
    yield service
    wait_for(service.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    with Slapd(tmp_path_factory.mktemp("slapd") / "d") as slapd:
        yield slapd


@dataclass(frozen=True, slots=True)
class Sides:
    rabbit: int
    gate: int


@pytest.fixture(scope="module", params=CHAINS)
def sides(
    request: pytest.FixtureRequest,
    broker: RabbitNode,
    service: Service,
    directory: Slapd,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Sides]:
    folder = tmp_path_factory.mktemp("chain")
    values: dict[str, Any] = {
        "auth_http.http_method": "post",
        **{
            f"auth_http.{path}_path": f"http://127.0.0.1:{service.port}/{path}"
            for path in ("user", "vhost", "resource", "topic")
        },
        "auth_ldap.servers.1": "127.0.0.1",
        "auth_ldap.port": directory.port,
    }
    chain = dict(line.split(" = ") for line in CHAINS[request.param].splitlines())
    conf = "\n".join(f"{key} = {value}" for key, value in (chain | values).items())
    node = RabbitNode(
        folder / "rabbit",
        definitions=PEOPLE_INSIDE,
        conf=conf,
        plugins=PLUGINS,
    )
    config = GateConfig(folder / "gate", upstream=broker.port).with_definitions(PEOPLE_INSIDE)
    for key, value in (chain | values).items():
        config.set(key, value)
    for side in (node.folder, config.folder):
        side.mkdir(parents=True)
        (side / "advanced.config").write_text(ADVANCED)
    config.set("advanced_config", str(config.folder / "advanced.config"))
    with node, Gate(config) as gate:
        yield Sides(node.port, gate.port)


def entered(port: int, login: tuple[str, str], vhost: str) -> Client | str:
    """A client in state running, or how it was refused."""
    try:
        return Client.login(port, *login, vhost)
    except RefusedError as refused:
        return f"{refused.code} {refused.text.decode()}"
    except LostError:
        return "lost"


def operation(chance: random.Random) -> tuple[str, dict[str, Any]]:
    name = chance.choice(["h1", "s1", "l1", "error", "other"]).encode()
    key = chance.choice([b"ok.1", b"no.1"])
    exchange = chance.choice([b"amq.topic", b"amq.direct"])
    exclusive = {"queue": name, "exclusive": True}
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("queue.declare", exclusive),
        ("queue.bind", {"queue": name, "exchange": exchange, "routing_key": key}),
        ("basic.get", {"queue": name}),
        ("queue.purge", {"queue": name}),
        ("exchange.delete", {"exchange": name}),
        ("basic.publish", {"exchange": exchange, "routing_key": key}),
        ("basic.publish", {"exchange": name, "routing_key": key}),
    ]
    return chance.choice(kinds)


def answered(client: Client, name: str, arguments: dict[str, Any]) -> str:
    """The first reply; a publish's is that of the method behind it."""
    client.open_channel()
    if name == "basic.publish":
        client.publish(1, arguments["exchange"], arguments["routing_key"])
        name, arguments = "basic.qos", {}
    reply = client.call(1, name, **arguments)
    if reply.name not in {"channel.close", "connection.close"}:
        client.send(1, "channel.close", reply_code=200)
        client.expect("channel.close-ok", 1)
        return reply.name
    client.send(1 if reply.name == "channel.close" else 0, f"{reply.name}-ok")
    return f"{reply.name} {reply['reply_code']} {reply['reply_text'].decode()}"


def test_logins(sides: Sides) -> None:
    for vhost in ("/", "v2"):
        for login in LOGINS:
            outcomes = []
            for port in (sides.rabbit, sides.gate):
                found = entered(port, login, vhost)
                outcomes.append(found if isinstance(found, str) else "in")
                if isinstance(found, Client):
                    found.close()
            assert outcomes[0] == outcomes[1], (login, vhost)


def test_operations(sides: Sides) -> None:
    chance = random.Random(SEED)
    people = [login for login in LOGINS if in_both(sides, login)]
    assert len(people) >= 3
    refusals = errors = 0
    for number in range(OPERATIONS):
        login, (name, arguments) = chance.choice(people), operation(chance)
        outcomes = []
        for port in (sides.rabbit, sides.gate):
            client = entered(port, login, "/")
            assert isinstance(client, Client)
            with client:
                outcomes.append(answered(client, name, arguments))
        assert same(*outcomes), (number, login, name, arguments, outcomes)
        refusals += "403" in outcomes[0]
        errors += "returned an error" in outcomes[0]
    assert OPERATIONS // 10 < refusals < OPERATIONS
    assert errors


def same(rabbit: str, gate: str) -> bool:
    """But for the permission's word, and what comes of it."""
    gate = INDENT.sub("\n", WORD.sub(" access to ", gate))
    rabbit = INDENT.sub("\n", rabbit)
    if gate.endswith("..."):
        return rabbit.startswith(gate.removesuffix("..."))
    return rabbit == gate


def in_both(sides: Sides, login: tuple[str, str]) -> bool:
    for port in (sides.rabbit, sides.gate):
        client = entered(port, login, "/")
        if isinstance(client, str):
            return False
        client.close()
    return True
