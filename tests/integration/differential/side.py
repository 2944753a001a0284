"""One side of the comparison: runs a session's steps against one address, records what came.

After each step the side waits until everything that the step caused has arrived. A question that
changes nothing (access.request) follows the step on its channel; its answer comes after those
of the channel process. Confirms, consume-ok and cancel-ok, which queue processes send, are
awaited by name. Where channels have consumers, an observer asks every queue a question (which
queues behind the messages that the step published) and then each such channel.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.integration.differential.broker_state import BrokerState
from tests.integration.differential.names import Names
from tests.integration.differential.operations import Generated, Login, Operation, Session, Step
from tests.integration.differential.scenario import PASSWORD, VHOSTS
from tests.support.amqp import Client, DeadlineError, LostError
from tests.support.amqp_codec import Method, method_frame, publish_frames
from tests.support.rabbit import RabbitNode

STEP_TIMEOUT = 15.0
CONFIRM_TIMEOUT = 5.0
# After a connection's end the broker still requeues and deletes exclusive queues.
AFTERMATH = 0.2
QUEUE_SENT = {"basic.consume": "basic.consume-ok", "basic.cancel": "basic.cancel-ok"}

Answer = tuple[Any, ...]


@dataclass(slots=True)
class Channel:
    """What the side must know of a channel to wait for the right things.

    owing: the broker closed it, and our close-ok goes out with the next step.
    """

    opened: bool = False
    owing: bool = False
    confirming: bool = False
    published: int = 0
    outstanding: set[int] = field(default_factory=set)
    consuming: bool = False

    def reset(self) -> None:
        self.opened = self.owing = self.confirming = self.consuming = False
        self.published = 0
        self.outstanding.clear()


@dataclass(slots=True)
class Heard:
    """What one channel heard in one step, by what RabbitMQ orders among itself."""

    replies: list[Answer] = field(default_factory=list)
    returns: list[Answer] = field(default_factory=list)
    deliveries: list[Answer] = field(default_factory=list)
    confirms: set[tuple[str, int]] = field(default_factory=set)


@dataclass(slots=True)
class Observation:
    """What was heard, per (connection, channel).

    closed: where a close came, which races with what queue processes send.
    ended: connections that the server closed.
    """

    heard: dict[tuple[int, int], Heard] = field(default_factory=dict)
    closed: set[tuple[int, int]] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)

    def of(self, connection: int, channel: int) -> Heard:
        return self.heard.setdefault((connection, channel), Heard())


class Side:
    """``port``: where clients connect; ``node``: the broker that holds the state."""

    def __init__(self, name: str, port: int, node: RabbitNode) -> None:
        self.name = name
        self.port = port
        self.logins: tuple[Login, ...] = ()
        self._clients: dict[int, Client] = {}
        self._channels: dict[tuple[int, int], Channel] = {}
        self.state = BrokerState(node)
        self.names = Names()

    # -- a session ---------------------------------------------------------------------------

    def begin(self, session: Session) -> None:
        self.logins = session.logins
        self.names = Names()
        self._channels = {}
        self._clients = {}

    def run(self, step: Step, operations: list[Operation]) -> Observation:
        """Send ``operations`` (this side's form of the step's) and hear the answers."""
        seen = Observation()
        client = self._connected(step.connection)
        key = (step.connection, step.channel)
        channel = self._channels.setdefault(key, Channel())
        opening = b""
        if channel.owing:
            opening = self._encode(step.channel, step.dropped)
            opening += method_frame(step.channel, "channel.close-ok")
        if not channel.opened:
            channel.reset()
            channel.opened = True
            opening += method_frame(step.channel, "channel.open")
        data, wanted = self._compose(channel, step.channel, operations)
        try:
            client.send_raw(opening + data)
            self._hear(seen, step, wanted)
            if self._clients.get(step.connection) is client:
                self._await_confirms(seen, step)
        except LostError:
            seen.of(step.connection, 0).replies.append(("connection lost",))
            self._drop(step.connection)
        except DeadlineError:
            seen.of(*key).replies.append(("no answer", tuple(sorted(wanted.elements()))))
            self._drop(step.connection)
        self._settle(seen)
        return seen

    def end(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients = {}
        self._channels = {}

    def close(self) -> None:
        for client in self._clients.values():
            client.abort()
        self._clients = {}
        self.state.close()

    def snapshot(self) -> list[Answer]:
        """The broker's state, comparable with the other side's."""
        return self.state.snapshot(self.names)

    # -- sending -----------------------------------------------------------------------------

    def _connected(self, connection: int) -> Client:
        if connection not in self._clients:
            login = self.logins[connection]
            self._clients[connection] = Client.login(
                self.port, login.username, PASSWORD, login.vhost, timeout=STEP_TIMEOUT
            )
        return self._clients[connection]

    def _compose(
        self, channel: Channel, number: int, operations: list[Operation]
    ) -> tuple[bytes, Counter[str]]:
        """The segment, and the answers to await."""
        data = self._encode(number, operations)
        wanted: Counter[str] = Counter()
        for operation in operations:
            if operation.method in QUEUE_SENT and not operation.arguments.get("nowait"):
                wanted[QUEUE_SENT[operation.method]] += 1
            self._note(channel, operation.method)
        if operations[-1].method == "channel.close":
            wanted["channel.close-ok"] += 1
        else:
            wanted["access.request-ok"] += 1
            wanted["access.request-ok"] += sum(o.method == "access.request" for o in operations)
            data += method_frame(number, "access.request")
        return data, wanted

    def _encode(self, number: int, operations: Sequence[Operation]) -> bytes:
        data = b""
        for operation in operations:
            arguments = {key: self._concrete(value) for key, value in operation.arguments.items()}
            if operation.content is None:
                data += method_frame(number, operation.method, **arguments)
            else:
                content = operation.content
                data += publish_frames(
                    number, **arguments, body=content.body, properties=content.properties
                )
        return data

    def _note(self, channel: Channel, name: str) -> None:
        match name:
            case "channel.close":
                channel.reset()
            case "confirm.select":
                channel.confirming = True
            case "basic.consume":
                channel.consuming = True
            case "basic.publish" if channel.confirming:
                channel.published += 1
                channel.outstanding.add(channel.published)

    def _concrete(self, value: Any) -> Any:
        if isinstance(value, Generated):
            return self.names.queue(value.index)
        return value

    # -- hearing -----------------------------------------------------------------------------

    def _hear(self, seen: Observation, step: Step, wanted: Counter[str]) -> None:
        client = self._clients[step.connection]
        channel = self._channels[step.connection, step.channel]
        deadline = time.monotonic() + STEP_TIMEOUT
        while wanted.total():
            number, method = client.read(max(0.0, deadline - time.monotonic()))
            key = (step.connection, number)
            self._record(seen, key, method)
            if method.name == "connection.close":
                client.send(0, "connection.close-ok")
                client.at_eof(STEP_TIMEOUT)
                self._drop(step.connection)
                seen.ended.add(step.connection)
                seen.closed |= {(c, n) for c, n in self._channels if c == step.connection}
                return
            if number != step.channel:
                continue
            if method.name == "channel.close":
                seen.closed.add(key)
                if wanted["channel.close-ok"]:  # the closes cross: ours is answered too
                    self._record(seen, key, client.read()[1])
                channel.reset()
                channel.owing = True
                return
            if wanted[method.name]:
                wanted[method.name] -= 1

    def _await_confirms(self, seen: Observation, step: Step) -> None:
        key = (step.connection, step.channel)
        channel = self._channels[key]
        deadline = time.monotonic() + CONFIRM_TIMEOUT
        while channel.outstanding and channel.opened and key not in seen.closed:
            number, method = self._clients[step.connection].read(deadline - time.monotonic())
            self._record(seen, (step.connection, number), method)

    def _settle(self, seen: Observation) -> None:
        """Let deliveries arrive on channels that consume."""
        consuming = [
            key
            for key, channel in self._channels.items()
            if channel.consuming and channel.opened and key[0] in self._clients
        ]
        if not consuming:
            return
        for vhost in VHOSTS:
            self.state.message_counts(vhost)
        for key in consuming:
            client = self._clients.get(key[0])
            if client is None:
                continue
            try:
                client.send(key[1], "access.request")
                while True:
                    number, method = client.read()
                    if number == key[1] and method.name == "access.request-ok":
                        break
                    self._record(seen, (key[0], number), method)
            except (LostError, DeadlineError) as error:
                seen.of(*key).replies.append((type(error).__name__,))
                self._drop(key[0])

    def _drop(self, connection: int) -> None:
        client = self._clients.pop(connection, None)
        if client is not None:
            client.abort()
        for key, channel in self._channels.items():
            if key[0] == connection:
                channel.reset()
        time.sleep(AFTERMATH)

    def _record(self, seen: Observation, key: tuple[int, int], method: Method) -> None:
        heard = seen.of(*key)
        channel = self._channels.setdefault(key, Channel())
        match method.name:
            case "basic.ack" | "basic.nack":
                tag = method["delivery_tag"]
                tags = (
                    {n for n in channel.outstanding if n <= tag or tag == 0}
                    if method["multiple"]
                    else {tag}
                )
                heard.confirms |= {(method.name, n) for n in tags}
                channel.outstanding -= tags
            case "basic.deliver":
                heard.deliveries.append(self._answer(method))
            case "basic.return":
                heard.returns.append(self._answer(method))
            case _:
                heard.replies.append(self._answer(method))

    def _answer(self, method: Method) -> Answer:
        properties = None if method.properties is None else self.names.heard(method.properties)
        return (method.name, self.names.heard(method.arguments), properties, method.body)
