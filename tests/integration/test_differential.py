"""The gate against RabbitMQ: sessions written down by hand, and a short run of random ones.

``make differential`` is the long run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.differential.campaign import Campaign
from tests.integration.differential.operations import Content, Login, Operation, Session, Step
from tests.integration.differential.parts import sides
from tests.integration.differential.side import Side

OPERATIONS = 400

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Side, Side]]:
    with sides(tmp_path_factory.mktemp("differential")) as found:
        yield found


def declare(exchange: bytes, kind: str, **more: Any) -> Operation:
    return Operation("exchange.declare", {"exchange": exchange, "type": kind, **more})


def queue(name: bytes, **more: Any) -> Operation:
    return Operation("queue.declare", {"queue": name, **more})


def bind(name: bytes, exchange: bytes, key: bytes, **more: Any) -> Operation:
    return Operation(
        "queue.bind", {"queue": name, "exchange": exchange, "routing_key": key, **more}
    )


def publish(
    exchange: bytes, key: bytes, *, immediate: bool = False, **properties: Any
) -> Operation:
    arguments = {"exchange": exchange, "routing_key": key, "immediate": immediate}
    return Operation("basic.publish", arguments, Content(properties, b"body"))


def get(name: bytes) -> Operation:
    return Operation("basic.get", {"queue": name, "no_ack": True})


ACK_NOTHING = Operation("basic.ack", {"delivery_tag": 9})
DELETE = Operation("exchange.delete", {"exchange": b"a.x1"})
FORBIDDEN = Operation("queue.delete", {"queue": b"b.q1"})

# Each is alice's (scenario.py); a step is one segment. She has topic rules for a.x1: write ^ok\.,
# read nothing.
SESSIONS: dict[str, list[list[Operation]]] = {
    "an exchange with a topic rule, declared and used in one segment": [
        [queue(b"a.q1"), declare(b"a.x1", "direct"), bind(b"a.q1", b"a.x1", b"no.1")],
        [publish(b"a.x1", b"no.1"), get(b"a.q1")],
    ],
    "the same without waiting for the declare": [
        [queue(b"a.q1"), declare(b"a.x1", "direct", nowait=True), bind(b"a.q1", b"a.x1", b"no.1")],
        [publish(b"a.x1", b"no.1"), get(b"a.q1")],
    ],
    "the same with a topic exchange": [
        [queue(b"a.q1"), declare(b"a.x1", "topic"), bind(b"a.q1", b"a.x1", b"no.1")],
        [queue(b"a.q1"), publish(b"a.x1", b"ok.1"), publish(b"a.x1", b"no.1"), get(b"a.q1")],
    ],
    "an exchange that changes its type": [
        [declare(b"a.x1", "direct")],
        [publish(b"a.x1", b"no.1")],
        [DELETE, declare(b"a.x1", "topic")],
        [publish(b"a.x1", b"ok.1")],
        [publish(b"a.x1", b"no.1")],
        [DELETE],
        [publish(b"a.x1", b"ok.1")],
        [declare(b"a.x1", "fanout"), publish(b"a.x1", b"no.1")],
    ],
    "unbinding what does not exist": [
        [
            Operation(
                "queue.unbind", {"queue": b"a.q9", "exchange": b"a.x1", "routing_key": b"no.1"}
            )
        ],
    ],
    "the broker refuses before the gate would": [
        [ACK_NOTHING, FORBIDDEN, queue(b"a.q1")],
        [queue(b"a.q1"), bind(b"a.q1", b"none.x", b"k"), FORBIDDEN],
    ],
    "the broker refuses before the gate would end the connection": [
        [ACK_NOTHING, publish(b"", b"a.q1", immediate=True)],
        [queue(b"a.q1")],
    ],
    "the gate refuses before the broker would": [
        [queue(b"a.q1"), FORBIDDEN, ACK_NOTHING, publish(b"", b"a.q1", immediate=True)],
        [queue(b"a.q1"), get(b"a.q1")],
    ],
    "a generated queue by its shortcut": [
        [queue(b""), bind(b"", b"amq.topic", b"in.1"), publish(b"amq.topic", b"in.1"), get(b"")],
        [queue(b"", nowait=True), bind(b"", b"amq.topic", b"in.2"), get(b"")],
        [queue(b"", nowait=True), queue(b"a.q1"), get(b"")],
    ],
    "CC and BCC where a topic rule applies": [
        [publish(b"perm.topic", b"ok.1", headers={"CC": ["ok.2", "alice.1"], "BCC": ["ok.3"]})],
        [publish(b"perm.topic", b"ok.1", headers={"CC": ["ok.2", "no.1"]})],
        [publish(b"perm.topic", b"ok.1", headers={"BCC": ["no.2"]})],
        [publish(b"perm.topic", b"no.1", headers={"CC": ["ok.1"]})],
        [publish(b"perm.topic", b"ok.1", headers=[("CC", ["ok.1"]), ("CC", ["no.1"])])],
    ],
    "the user-id property": [
        [publish(b"perm.fan", b"", user_id="alice"), queue(b"a.q1")],
        [publish(b"perm.fan", b"", user_id="bob"), queue(b"a.q1")],
        [publish(b"perm.fan", b"", user_id="gatekeeper")],
        [publish(b"perm.fan", b"", user_id="")],
    ],
}


@pytest.mark.parametrize("name", SESSIONS)
def test_session(both: tuple[Side, Side], name: str) -> None:
    steps = tuple(Step(0, 11, tuple(operations)) for operations in SESSIONS[name])
    campaign = Campaign(*both, predict=True)
    campaign.run_session(Session(0, (Login("alice", "/"),), steps), 0)
    assert not campaign.report.differences, str(campaign.report)


@pytest.mark.parametrize(
    ("seed", "bursts"), [(11, 0.0), (12, 1.0)], ids=["sequential", "pipelined"]
)
def test_random_sessions(both: tuple[Side, Side], seed: int, bursts: float) -> None:
    report = Campaign(*both, predict=True).run(seed, OPERATIONS, bursts=bursts)
    assert report.operations >= OPERATIONS
    assert report.refusals > OPERATIONS // 10, "the scenario refuses too little to tell anything"
    assert not report.differences, str(report)
