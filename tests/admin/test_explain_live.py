"""What ``explain`` says is what a client gets: random questions, asked and then done for real.

The gate has two processes, so the one that explains is not one that serves clients.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.admin.test_control_socket import said
from tests.integration.differential import scenario
from tests.support.amqp import Client, RefusedError
from tests.support.gate import Gate, GateConfig
from tests.support.process import wait_until
from tests.support.rabbit import RabbitNode

QUESTIONS = 250
SEED = 20261125
VHOSTS = ("/", "v2", "none")
BY_RIGHTS = ("refused for user", "not permitted", "reserved prefix", "not found", "541")
"""What the gate itself refuses with; the rest is the broker's answer to what was allowed."""

ARGUMENTS: dict[str, Any] = {
    "exchange.declare": lambda q: {"exchange": q["name"], "type": "direct", **_declared(q)},
    "exchange.delete": lambda q: {"exchange": q["name"]},
    "exchange.bind": lambda q: {"destination": q["name"], **_bound(q)},
    "exchange.unbind": lambda q: {"destination": q["name"], **_bound(q)},
    "queue.declare": lambda q: {"queue": q["name"], **_declared(q)},
    "queue.bind": lambda q: {
        "queue": q["name"],
        "exchange": q["source"],
        "routing_key": q["routing_key"],
    },
    "queue.unbind": lambda q: {
        "queue": q["name"],
        "exchange": q["source"],
        "routing_key": q["routing_key"],
    },
    "queue.purge": lambda q: {"queue": q["name"]},
    "queue.delete": lambda q: {"queue": q["name"], "if_unused": False, "if_empty": False},
    "basic.consume": lambda q: {"queue": q["name"], "consumer_tag": b"explained"},
    "basic.get": lambda q: {"queue": q["name"]},
}


def _bound(question: dict[str, Any]) -> dict[str, Any]:
    return {"source": question["source"], "routing_key": question["routing_key"]}


def _declared(question: dict[str, Any]) -> dict[str, Any]:
    named = {
        "x-dead-letter-exchange": question["dead_letter_exchange"],
        "alternate-exchange": question["alternate_exchange"],
    }
    arguments = {key: value for key, value in named.items() if value is not None}
    return {"passive": question["passive"], "arguments": arguments}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    folder = tmp_path_factory.mktemp("explain")
    upstream = scenario.upstream_definitions()
    with RabbitNode(folder / "rabbit", definitions=upstream) as node:
        config = GateConfig(folder / "gate", upstream=node.port).set("workers", "2")
        config.with_definitions(scenario.people_definitions())
        with Gate(config) as gate:
            wait_until(lambda: " ready on " in gate.log_text(), what="the gate is ready")
            yield gate


def _question(rng: random.Random) -> dict[str, Any]:
    operation = rng.choice([*ARGUMENTS, "basic.publish", "basic.publish"])
    names = [name.decode() for name in (*scenario.QUEUES, *scenario.EXCHANGES)]
    exchanges = [name.decode() for name in scenario.EXCHANGES]
    return {
        "user": rng.choice([person.name for person in scenario.PEOPLE]),
        "vhost": rng.choices(VHOSTS, [20, 5, 1])[0],
        "operation": operation,
        "name": rng.choice(exchanges if operation == "basic.publish" else names),
        "source": rng.choice(exchanges),
        "routing_key": rng.choice(scenario.KEYS).decode(),
        "passive": rng.random() < 0.2,
        "dead_letter_exchange": rng.choice([None, None, *exchanges]),
        "alternate_exchange": rng.choice([None, None, *exchanges]),
    }


def _explained(gate: Gate, question: dict[str, Any]) -> tuple[bool, str]:
    asked = json.dumps({"operation": "explain", "arguments": question}).encode()
    (answer,) = said(gate.config.folder / "store.db.sock", asked + b"\n")
    return answer["result"]["allowed"], answer["result"]["reply"]


def _done(gate: Gate, question: dict[str, Any]) -> str | None:
    """The refusal that the client gets, as explain words it."""
    try:
        client = Client.login(
            gate.port, question["user"], scenario.PASSWORD, question["vhost"].encode()
        )
    except RefusedError as refused:
        return _said(refused.method)
    with client:
        client.open_channel()
        if question["operation"] == "basic.publish":
            client.publish(1, question["name"].encode(), question["routing_key"].encode())
            answer = client.call(1, "channel.close", reply_code=200, reply_text=b"")
        else:
            arguments = ARGUMENTS[question["operation"]](question)
            answer = client.call(1, question["operation"], **arguments)
        return _said(answer)


def _said(method: Any) -> str | None:
    if method.name not in {"channel.close", "connection.close"}:
        return None
    return f"{method['reply_code']} {method['reply_text'].decode()}"


def test_what_is_explained_is_what_happens(gate: Gate) -> None:
    rng = random.Random(SEED)
    differences = []
    refused = 0
    for _ in range(QUESTIONS):
        question = _question(rng)
        (allowed, reply), got = _explained(gate, question), _done(gate, question)
        refused += not allowed
        missed = allowed and any(words in (got or "") for words in BY_RIGHTS)
        if missed or (not allowed and reply != got):
            differences.append((question, allowed, reply, got))
    assert not differences, "\n".join(map(str, differences))
    assert QUESTIONS // 5 < refused < QUESTIONS * 4 // 5
