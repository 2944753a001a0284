"""The seeded generator of sessions: every decision comes from one random source.

A step is one or more operations on one channel that go out in one segment, led by close-ok and
channel.open (and by operations that must be ignored) where it was just refused. Steps of one are
the sequential half; bursts (steps of several) are the pipelined half. Bursts keep to channels
of their own and consume, if at all, last: what a queue process sends to a channel that is being
closed is a race inside RabbitMQ, which no two brokers answer alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.integration.differential import scenario
from tests.integration.differential.operations import (
    Content,
    Generated,
    Login,
    Operation,
    Session,
    Step,
)
from tests.support.amqp_codec import Raw

T = TypeVar("T")

SEQUENTIAL_CHANNELS = (1, 2)
BURST_CHANNELS = (11, 12)
CONSUMER_TAGS = (b"t1", b"t2", b"")


@dataclass(slots=True)
class Generator:
    """Sessions from one seed."""

    seed: int
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def session(self, steps: int, *, bursts: float) -> Session:
        """``bursts``: share of the steps that are bursts, 0 to 1."""
        names = list(scenario.WEIGHTS)
        logins: list[Login] = []
        while len(logins) < 3:
            name = self.random.choices(names, list(scenario.WEIGHTS.values()))[0]
            vhosts = list(scenario.BY_NAME[name].rights)
            logins.append(Login(name, vhosts[0] if self.chance(0.85) else vhosts[-1]))
        made = []
        for _ in range(steps):
            connection = self.random.randrange(len(logins))
            login = logins[connection]
            if self.chance(bursts):
                channel = self.pick(BURST_CHANNELS)
                operations = tuple(self._burst(login))
            else:
                channel = self.pick(SEQUENTIAL_CHANNELS)
                operations = (self._operation(login, burst=False),)
            made.append(Step(connection, channel, operations, self._dropped(login)))
        return Session(self.seed, tuple(logins), tuple(made))

    # -- choices ---------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def pick(self, choices: Sequence[T]) -> T:
        return self.random.choice(choices)

    def queue(self) -> Any:
        draw = self.random.random()
        if draw < 0.14:
            return b""
        if draw < 0.22:
            return Generated(self.random.randrange(2))
        if draw < 0.27:
            return self.pick((b"\n", b"\r\n", b"amq.rabbitmq.reply-to", b"amq.foo", b"amq.gen-x"))
        return self.pick(scenario.QUEUES)

    def exchange(self) -> bytes:
        return self.pick(scenario.EXCHANGES)

    def key(self) -> bytes:
        return self.pick(scenario.KEYS)

    # -- operations ------------------------------------------------------------------------

    def _burst(self, login: Login) -> Iterator[Operation]:
        declared = (login.username, login.vhost) in scenario.MAY_GENERATE and self.chance(0.4)
        if declared:
            yield Operation("queue.declare", {"queue": b""})
        for _ in range(self.random.randrange(2, 9)):
            yield self._pipelined(login, shortcuts=declared)
        if self.chance(0.1):
            consume = self.consume(login)
            if declared or consume.arguments["queue"]:
                yield consume
        elif self.chance(0.1):  # where something before it failed, the closes of both sides cross
            yield Operation("channel.close", {"reply_code": 200, "reply_text": b"bye"})

    def _dropped(self, login: Login) -> tuple[Operation, ...]:
        count = self.random.choices((0, 1, 3), (6, 3, 2))[0]
        return tuple(self._pipelined(login, shortcuts=False) for _ in range(count))

    def _pipelined(self, login: Login, *, shortcuts: bool) -> Operation:
        """An operation that may come after a refusal on its channel and is then dropped.

        RabbitMQ expands an empty queue name before it looks whether the channel is closing, so
        that one without a last queue raises a second channel.close (404) on a closed channel.
        """
        while True:
            operation = self._operation(login, burst=True)
            shortcut = (
                operation.arguments.get("queue") == b"" and operation.method != "queue.declare"
            )
            if shortcuts or not shortcut:
                return operation

    def _operation(self, login: Login, *, burst: bool) -> Operation:
        table = _BURST if burst else _SEQUENTIAL
        make = self.random.choices(list(table), list(table.values()))[0]
        return make(self, login)

    def queue_declare(self, _login: Login) -> Operation:
        arguments: dict[Any, Any] = {}
        if self.chance(0.25):
            arguments["x-dead-letter-exchange"] = self.pick(
                (*scenario.EXCHANGES, b"none.x", 7, True, Raw(b"x\0\0\0\4a.x1"))
            )
        if self.chance(0.15):
            key, value = self.pick(
                (
                    ("x-max-length", 3),
                    ("x-max-length", -1),
                    ("x-message-ttl", 3_600_000),
                    ("x-queue-type", "classic"),
                    ("X-Dead-Letter-Exchange", "none.x"),
                )
            )
            arguments[key] = value
        exclusive = self.chance(0.1)
        return Operation(
            "queue.declare",
            {
                "queue": self.queue(),
                "durable": self.chance(0.1),
                "exclusive": exclusive,
                "auto_delete": self.chance(0.05),
                "nowait": self.chance(0.15),
                "arguments": arguments,
            },
        )

    def queue_passive(self, _login: Login) -> Operation:
        return Operation(
            "queue.declare",
            {"queue": self.queue(), "passive": True, "nowait": self.chance(0.1)},
        )

    def queue_delete(self, _login: Login) -> Operation:
        return Operation(
            "queue.delete",
            {
                "queue": self.queue(),
                "if_unused": self.chance(0.2),
                "if_empty": self.chance(0.2),
                "nowait": self.chance(0.15),
            },
        )

    def queue_purge(self, _login: Login) -> Operation:
        return Operation("queue.purge", {"queue": self.queue(), "nowait": self.chance(0.15)})

    def queue_bind(self, _login: Login) -> Operation:
        return Operation(
            "queue.bind",
            {
                "queue": self.queue(),
                "exchange": self.exchange(),
                "routing_key": self.key(),
                "nowait": self.chance(0.15),
                "arguments": {"x-match": "all", "h": 1} if self.chance(0.1) else {},
            },
        )

    def queue_bind_volatile(self, _login: Login) -> Operation:
        method = self.pick(("queue.bind", "queue.unbind"))
        return Operation(
            method,
            {
                "queue": b"amq.rabbitmq.reply-to." + self.pick((b"x", b"g1h", b"")),
                "exchange": self.exchange(),
                "routing_key": self.key(),
            },
        )

    def queue_unbind(self, _login: Login) -> Operation:
        return Operation(
            "queue.unbind",
            {"queue": self.queue(), "exchange": self.exchange(), "routing_key": self.key()},
        )

    def exchange_declare(self, _login: Login) -> Operation:
        name = self.exchange()
        arguments: dict[Any, Any] = {}
        if self.chance(0.25):
            arguments["alternate-exchange"] = self.pick(
                (*scenario.EXCHANGES, b"a.ae\n", 7, True, Raw(b"x\0\0\0\4a.x1"))
            )
        rule = name.replace(b"\n", b"").replace(b"\r", b"") in scenario.TOPIC_RULE_EXCHANGES
        return Operation(
            "exchange.declare",
            {
                "exchange": name,
                "type": self.pick(scenario.EXCHANGE_TYPES),
                "durable": self.chance(0.1),
                "auto_delete": self.chance(0.05) and not rule,
                "internal": self.chance(0.1) and not rule,
                "nowait": self.chance(0.15),
                "arguments": arguments,
            },
        )

    def exchange_passive(self, _login: Login) -> Operation:
        return Operation(
            "exchange.declare",
            {
                "exchange": self.exchange(),
                "type": self.pick((*scenario.EXCHANGE_TYPES, "", "no-such-type")),
                "passive": True,
                "nowait": self.chance(0.1),
            },
        )

    def exchange_delete(self, _login: Login) -> Operation:
        return Operation(
            "exchange.delete",
            {
                "exchange": self.exchange(),
                "if_unused": self.chance(0.3),
                "nowait": self.chance(0.15),
            },
        )

    def exchange_bind(self, _login: Login) -> Operation:
        return Operation(
            self.pick(("exchange.bind", "exchange.bind", "exchange.unbind")),
            {
                "destination": self.exchange(),
                "source": self.exchange(),
                "routing_key": self.key(),
                "nowait": self.chance(0.15),
            },
        )

    def get(self, _login: Login) -> Operation:
        return Operation("basic.get", {"queue": self.queue(), "no_ack": self.chance(0.6)})

    def consume(self, _login: Login) -> Operation:
        return Operation(
            "basic.consume",
            {
                "queue": self.queue(),
                "consumer_tag": self.pick(CONSUMER_TAGS),
                "no_ack": self.chance(0.6),
                "exclusive": self.chance(0.1),
                "nowait": self.chance(0.1),
            },
        )

    def cancel(self, _login: Login) -> Operation:
        return Operation(
            "basic.cancel", {"consumer_tag": self.pick(CONSUMER_TAGS), "nowait": self.chance(0.15)}
        )

    def publish(self, login: Login) -> Operation:
        properties: dict[str, Any] = {}
        if self.chance(0.2):
            properties["user_id"] = login.username
        if self.chance(0.2):
            properties["delivery_mode"] = 2
        if self.chance(0.1):
            properties |= {"content_type": "text/plain", "message_id": "m1", "priority": 3}
        if self.chance(0.1):
            properties["headers"] = {"h": 1, "deep": {"list": [1, "two", None, True]}}
        return self._publish(self.exchange(), properties)

    def publish_carbon(self, _login: Login) -> Operation:
        """CC and BCC to topic exchanges with topic rules, and elsewhere."""
        headers: list[tuple[Any, Any]] = []
        for key in ("CC", "BCC"):
            if self.chance(0.6):
                keys: list[Any] = [self.key() for _ in range(self.random.randrange(0, 3))]
                if self.chance(0.2):
                    keys.append(self.pick((5, True, Raw(b"x\0\0\0\4no.1"))))
                headers.append((key, keys))
        if self.chance(0.2):
            headers.append(("cc", ["no.1"]))
        if headers and self.chance(0.2):  # the second of two equal keys counts for nothing
            headers.append((headers[0][0], ["no.1", "ok.1"]))
        exchange = self.pick((b"perm.topic", b"perm.topic", b"amq.topic", b"perm.fan", b""))
        return self._publish(exchange, {"headers": headers})

    def publish_carbon_declared(self, _login: Login) -> Operation:
        """The same to exchanges that come and go, whose type has to be found out."""
        headers = {"CC": [self.key()], "BCC": [self.key()]}
        return self._publish(self.pick((b"a.x1", b"shared.x")), {"headers": headers})

    def publish_faulty(self, login: Login) -> Operation:
        """One fault in the properties, on an exchange that exists and is not topic.

        RabbitMQ changed the order of these checks among each other and against the topic
        check (3.10 to 4.x), so never two of them at once.
        """
        other = "bob" if login.username == "alice" else "alice"
        properties: dict[str, Any] = self.pick(
            (
                {"user_id": other},
                {"user_id": ""},
                {"user_id": login.username + "\n"},
                {"user_id": scenario.SERVICE},
                {"expiration": "x"},
                {"expiration": ""},
                {"expiration": "-1"},
                {"expiration": "12x"},
                {"expiration": "3600000"},
                {"headers": {"CC": "no.1"}},
                {"headers": {"BCC": 7}},
                {"reply_to": "amq.rabbitmq.reply-to"},
                {"reply_to": "a.q1"},
            )
        )
        exchange = self.pick((b"perm.fan", b"perm.headers", b"amq.direct", b"amq.fanout", b""))
        return self._publish(exchange, properties)

    def publish_immediate(self, _login: Login) -> Operation:
        return Operation(
            "basic.publish",
            {"exchange": self.exchange(), "routing_key": self.key(), "immediate": True},
            Content({}, b"now"),
        )

    def _publish(self, exchange: bytes, properties: dict[str, Any]) -> Operation:
        size = self.random.choices((0, 1, 10, 200_000), (4, 10, 10, 1))[0]
        return Operation(
            "basic.publish",
            {
                "exchange": exchange,
                "routing_key": self.key(),
                "mandatory": self.chance(0.25),
            },
            Content(properties, self.random.randbytes(1) * size),
        )

    def settle(self, _login: Login) -> Operation:
        tag = self.random.choices((0, 1, 2, 3), (2, 5, 3, 1))[0]
        return self.pick(
            (
                Operation("basic.ack", {"delivery_tag": tag, "multiple": self.chance(0.3)}),
                Operation(
                    "basic.nack",
                    {
                        "delivery_tag": tag,
                        "multiple": self.chance(0.3),
                        "requeue": self.chance(0.5),
                    },
                ),
                Operation("basic.reject", {"delivery_tag": tag, "requeue": self.chance(0.5)}),
            )
        )

    def recover(self, _login: Login) -> Operation:
        return Operation(
            self.pick(("basic.recover", "basic.recover-async")),
            {"requeue": self.chance(0.9)},
        )

    def mode(self, _login: Login) -> Operation:
        return self.pick(
            (
                Operation("confirm.select", {}),
                Operation("confirm.select", {}),
                Operation("confirm.select", {"nowait": True}),
                Operation("tx.select", {}),
                Operation("tx.commit", {}),
                Operation("tx.rollback", {}),
            )
        )

    def harmless(self, _login: Login) -> Operation:
        return self.pick(
            (
                Operation("basic.qos", {"prefetch_count": self.random.randrange(0, 5)}),
                Operation("channel.flow", {"active": True}),
                Operation("access.request", {"realm": b"/data", "active": True}),
            )
        )

    def close(self, _login: Login) -> Operation:
        return Operation("channel.close", {"reply_code": 200, "reply_text": b"done"})

    def hard_error(self, login: Login) -> Operation:
        """Something that costs the connection."""
        unknown_type = Operation("exchange.declare", {"exchange": b"a.x2", "type": "no-such-type"})
        choices = [
            Operation("channel.flow", {"active": False}),
            Operation("basic.qos", {"prefetch_size": 1}),
            Operation("basic.recover", {"requeue": False}),
            Operation("channel.open", {}),
            Operation("channel.flow-ok", {"active": True}),
            Operation("basic.get-empty", {}),
            Operation("queue.declare-ok", {"queue": b"a.q1"}),
            Operation("channel.close-ok", {}),
        ]
        # Where the type and the permission are both at fault, 3.10 and 4.3 answer on
        # different scopes (503 on the connection, 406 on the channel).
        if login.username in {"root", "carol"} or (login.username, login.vhost) == ("alice", "/"):
            choices.append(unknown_type)
        return self.pick(choices)


_SEQUENTIAL: dict[Callable[[Generator, Login], Operation], int] = {
    Generator.queue_declare: 14,
    Generator.queue_passive: 5,
    Generator.queue_delete: 5,
    Generator.queue_purge: 3,
    Generator.queue_bind: 9,
    Generator.queue_bind_volatile: 1,
    Generator.queue_unbind: 3,
    Generator.exchange_declare: 9,
    Generator.exchange_passive: 4,
    Generator.exchange_delete: 4,
    Generator.exchange_bind: 6,
    Generator.get: 8,
    Generator.consume: 5,
    Generator.cancel: 2,
    Generator.publish: 14,
    Generator.publish_carbon: 5,
    Generator.publish_carbon_declared: 3,
    Generator.publish_faulty: 4,
    Generator.publish_immediate: 1,
    Generator.settle: 4,
    Generator.recover: 1,
    Generator.mode: 4,
    Generator.harmless: 2,
    Generator.close: 1,
    Generator.hard_error: 1,
}
# No consumers (see the head), and nothing whose prediction needs the state amid the burst.
_BURST: dict[Callable[[Generator, Login], Operation], int] = {
    make: weight
    for make, weight in _SEQUENTIAL.items()
    if make
    not in {
        Generator.consume,
        Generator.cancel,
        Generator.publish_carbon_declared,
        Generator.close,
        Generator.hard_error,
    }
}
