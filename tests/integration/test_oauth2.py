"""The same tokens at RabbitMQ 3.10.8 with its OAuth 2 plugin and at the gate: the same answers.

Not compared, because 3.10 has them otherwise than 4.3.5: variables in scopes (it has none), a
token without ``exp`` (it takes one), a token without ``aud`` or ``scope`` (it crashes, which is a
refusal too), ``client_id`` before ``sub`` as the name, and the permission word in refusals.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.amqp import Client, LostError, RefusedError
from tests.support.gate import Gate, GateConfig
from tests.support.idp import SigningKey, claims, unsigned
from tests.support.rabbit import RabbitNode, definitions, service_account

RSA, EC = SigningKey("rsa"), SigningKey("ec", "ES256")
SEED = 5
CASES = 1000

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True)
class Sides:
    rabbit: int
    gate: int


@pytest.fixture(scope="module")
def sides(broker: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    folder: Path = tmp_path_factory.mktemp("oauth2")
    keys = {}
    for key in (RSA, EC):
        path = folder / f"{key.kid}.pem"
        path.write_bytes(key.public_pem)
        keys[f"auth_oauth2.signing_keys.{key.kid}"] = str(path)
    values = {
        "auth_oauth2.resource_server_id": "rabbitmq",
        "auth_oauth2.default_key": "rsa",
        **keys,
    }
    conf = "\n".join(f"{key} = {value}" for key, value in values.items())
    node = RabbitNode(
        folder / "rabbit",
        definitions=service_account(vhosts=("/", "v2")),
        conf=f"auth_backends.1 = rabbit_auth_backend_oauth2\n{conf}",
        plugins=["rabbitmq_auth_backend_oauth2"],
    )
    config = GateConfig(folder / "gate", upstream=broker.port)
    config.with_definitions(definitions(vhosts=("/", "v2")))
    for key, value in {"auth_backends.1": "oauth2", **values}.items():
        config.set(key, value)
    with node, Gate(config) as gate:
        yield Sides(node.port, gate.port)


def entered(port: int, token: bytes, vhost: str) -> Client | str:
    """A client in state running, or how it was refused."""
    try:
        return Client.login(port, "", token.decode(), vhost)
    except RefusedError as refused:
        return f"{refused.code} {refused.text.decode()}"
    except LostError:
        return "lost"


def both(sides: Sides, token: bytes, vhost: str = "/") -> tuple[Client | str, Client | str]:
    return entered(sides.rabbit, token, vhost), entered(sides.gate, token, vhost)


def outcome(token: bytes, sides: Sides, vhost: str = "/") -> str:
    """What both sides answer to a login."""
    answers = []
    for client in both(sides, token, vhost):
        if isinstance(client, Client):
            client.abort()
            answers.append("in")
        else:
            answers.append(client)
    rabbit, gate = answers
    assert rabbit == gate
    return rabbit


REFUSED = "403 ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN."


@pytest.mark.parametrize(
    ("token", "enters"),
    [
        (RSA.sign(claims("read:%2F/*")), True),
        (RSA.sign(claims("read:%2F/*"), kid=None), True),
        (RSA.sign(claims("read:*/*"), algorithm="RS512"), True),
        (RSA.sign(claims("read:*/*"), algorithm="PS256"), True),
        (EC.sign(claims("read:*/*")), True),
        (RSA.sign(claims(scope=["rabbitmq.read:*/*"], aud=["x", "rabbitmq"])), True),
        (RSA.sign(claims("read:*/*", aud="x rabbitmq y")), True),
        (RSA.sign(claims("read:*/*", nbf=9999999999)), True),
        (EC.sign(claims("read:*/*"), kid=None), False),
        (EC.sign(claims("read:*/*"), kid="rsa"), False),
        (SigningKey("rsa").sign(claims("read:*/*")), False),
        (unsigned(claims("read:*/*"), {"alg": "none", "kid": "rsa"}), False),
        (unsigned(claims("read:*/*"), {"alg": "HS256", "kid": "rsa"}, "AAAA"), False),
        (RSA.sign(claims("read:*/*"), kid="nobody"), False),
        (RSA.sign(claims("read:*/*", aud="other")), False),
        (RSA.sign(claims("read:*/*", aud=["rabbitmq "])), False),
        (RSA.sign(claims("read:*/*", exp=1)), False),
        (RSA.sign(claims("read:*/*"))[:-9], False),
        (b"guest", False),
    ],
)
def test_logins(sides: Sides, token: bytes, enters: bool) -> None:
    answer = outcome(token, sides)
    assert (answer == "in") is enters
    assert enters or answer.startswith(REFUSED)


@pytest.mark.parametrize(
    ("scopes", "vhost", "enters"),
    [
        (["read:v2/x"], "v2", True),
        (["configure:v*/x/y"], "v2", True),
        (["write:%2F/x"], "/", True),
        (["write:%2f/x"], "/", True),
        (["write:*/x"], "/", True),
        (["write://x"], "/", False),
        (["write:v2"], "v2", False),
        (["write:v2/a/b/c"], "v2", False),
        (["write:v/x", "write:2/x"], "v2", False),
        (["write:%/x"], "v2", False),
        (["WRITE:v2/x"], "v2", False),
        (["tag:administrator"], "v2", False),
        ([], "v2", False),
    ],
)
def test_vhosts(sides: Sides, scopes: list[str], vhost: str, enters: bool) -> None:
    answer = outcome(RSA.sign(claims(*scopes)), sides, vhost)
    expected = f"530 NOT_ALLOWED - access to vhost '{vhost}' refused for user 'alice'"
    assert answer == ("in" if enters else expected)


# --- what a channel may do: three methods that tell "refused" (403) from everything else ---


def allowed(client: Client, permission: str, name: bytes, key: bytes | None = None) -> bool:
    """Exchanges and queues of these names do not exist, except amq.topic for routing keys."""
    client.open_channel(1)
    if permission == "configure":
        method = client.call(1, "queue.delete", queue=name)
    elif permission == "read":
        method = client.call(1, "queue.purge", queue=name)
    else:
        client.publish(1, name, key or b"", b"x")
        method = client.call(1, "channel.close", reply_code=200, reply_text=b"")
    if method.name == "channel.close":
        client.send(1, "channel.close-ok")
        if permission == "write" and method["reply_code"] in {403, 404}:
            client.read()  # our own close, answered
        return bool(method["reply_code"] != 403)
    if permission == "configure":
        client.call(1, "channel.close", reply_code=200, reply_text=b"")
    return True


def judged(sides: Sides, scopes: list[str], questions: list[tuple[Any, ...]]) -> list[bool]:
    """The answers of both sides to these questions of one token."""
    token = RSA.sign(claims("read:v2/entrance", *scopes))
    answers = []
    for client in both(sides, token, "v2"):
        assert isinstance(client, Client), client
        answers.append([allowed(client, *question) for question in questions])
        client.abort()
    rabbit, gate = answers
    assert rabbit == gate, (scopes, questions)
    return rabbit


def test_topics(sides: Sides) -> None:
    questions = [("write", b"amq.topic", key) for key in (b"a.b", b"b", b"", b"a/b")]
    for scopes, expected in (
        (["write:v2/amq.topic"], [False, False, False, False]),
        (["write:v2/amq.topic/a.*"], [True, False, False, False]),
        (["write:v2/amq.topic/a%2Fb"], [False, False, False, True]),
        (["write:v2/*/*"], [True, True, True, True]),
        (["write:v2/*/b", "write:v2/x/a.b"], [False, True, False, False]),
        (["write:v2/amq.topic", "read:v2/amq.topic/*"], [False, False, False, False]),
    ):
        assert judged(sides, scopes, questions) == expected, scopes


def test_random_patterns(sides: Sides) -> None:
    """Patterns and names of few letters, so that a match is as likely as none."""
    draw = random.Random(SEED)
    pieces = ["a", "b", "aa", *["*"] * 6, "%61", "%2A", "%2F", "+", "%", "/", "."]
    letters = [b"a", b"a", b"b", b"aa", b"*", b"/", b" ", b"."]
    answers: list[bool] = []
    while len(answers) < CASES:
        wanted = draw.choice(["read", "write", "configure"])
        scopes = []
        for _ in range(draw.randint(1, 4)):
            pattern = "".join(draw.choices(pieces, k=draw.randint(1, 5)))
            permission = draw.choice([wanted, wanted, "read"])
            scopes.append(f"{permission}:{draw.choice(['v2', '*', 'v*', 'w'])}/{pattern}")
        questions = [(wanted, b"".join(draw.choices(letters, k=k))) for k in (1, 2, 3, 4, 5, 2, 3)]
        answers += judged(sides, scopes, questions)
    # Both answers are frequent enough for the comparison to mean something.
    assert CASES / 8 < sum(answers) < CASES * 7 / 8
