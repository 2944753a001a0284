"""Every known difference between the installed broker (3.10.8) and what the gate answers.

Each entry says what 3.10.8 does, what 4.3.5 or the gate does, and how the harness predicts the
latter. A prediction has one of two forms: the native side is *asked another question* whose
old answer is the new answer to the original one (``native_operation``), or its answer is
*rewritten* (``expected``). Where a whole class of sessions would be undecidable, the generator
does not make them and says so there. Nothing else is forgiven.

1  The permission's name in a refusal: since 3.12. Rewritten: the oracle names the first check
   that fails, and only a text equal to that check's old text becomes that check's new text.
2  A passive declare needs any of the three permissions: since 4.2.7 and 4.3.1 (3.10: none).
   Where the user has none of them, the native side is asked the active declare, which it
   refuses for want of configure, with the same method id.
3  Topic permission is checked for CC and BCC too: since 4.0.3. Where one of those keys is the
   first to fail, the native side is asked to publish with that key as its routing key.
4  The rights that an alternate or dead-letter exchange needs: RabbitMQ asks only when the
   entity is new, the gate always (a gate cannot know without a race; documented). Where those
   rights are missing and the entity exists, or may, the native side is made to close its
   channel, and the refusal is predicted by the oracle.
5  Binding a volatile reply queue is refused with a text of its own: since 4.2.6. Predicted;
   3.10 closes the channel too (403 or 404), so the states stay the same.
6  Not made: a publish to an *internal* topic exchange that has a topic rule. RabbitMQ refuses it
   for being internal, a gate for the topic where that is not granted; both by 403.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.integration.differential import oracle, scenario
from tests.integration.differential.operations import Content, Login, Operation
from tests.integration.differential.oracle import Need
from tests.support.amqp_codec import METHODS

VOLATILE_PREFIX = b"amq.rabbitmq.reply-to."
VOLATILE_TEXT = b"ACCESS_REFUSED - cannot bind or unbind to a volatile (direct reply-to) queue"
_REFUSED_RESOURCE = re.compile(
    rb"access to (?P<kind>queue|exchange) '(?P<name>.*)' in vhost ", re.DOTALL
)
_CUT_SHORT = re.compile(rb"access to (?P<kind>queue) '(?P<name>.*)\.\.\.$", re.DOTALL)
_REFUSED_TOPIC = re.compile(rb"access to topic '(?P<key>.*)' in exchange '.*' in vhost ", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Probe:
    """What the native side knows at this moment.

    topic: does this exchange exist and have type topic? exists: (kind, stripped name).
    """

    topic: Callable[[bytes], bool]
    exists: Callable[[str, bytes], bool]


@dataclass(frozen=True, slots=True)
class Planned:
    """An operation as the native side gets it.

    marker: text that only the native side's close of *this* operation holds; where it comes,
    ``prediction`` is the close that the gate has to give.
    """

    operation: Operation
    original: Operation
    marker: bytes | None = None
    prediction: bytes = b""


def plan(operation: Operation, login: Login, probe: Probe, *, index: int, burst: bool) -> Planned:
    """The native side's form of an operation; see the list at the head."""
    passive = _passive(operation, login)
    if passive is not None:
        return Planned(passive, operation)
    if _volatile_bind(operation):
        return _closer(operation, index, VOLATILE_TEXT)
    carbon = _carbon(operation, login, probe)
    if carbon is not None:
        return Planned(carbon, operation)
    linked = _linked(operation, login, probe, burst=burst)
    if linked is not None:
        return _closer(operation, index, linked.shown(login, word=True))
    return Planned(operation, operation)


def expected(planned: Planned, login: Login, code: int, text: bytes) -> bytes:
    """The text of a channel.close as the gate has to give it, from the native side's."""
    if planned.marker is not None and planned.marker in text:
        return planned.prediction
    if code != 403:
        return text
    for need in _candidates(planned.operation, text):
        if not oracle.allowed(login, need) and need.shown(login, word=False) == text:
            return need.shown(login, word=True)
    return text


def _volatile_bind(operation: Operation) -> bool:
    if operation.method not in {"queue.bind", "queue.unbind"}:
        return False
    return oracle.strip(oracle.plain_name(operation.arguments["queue"])).startswith(VOLATILE_PREFIX)


def closing_ids(planned: Planned) -> tuple[int, int]:
    spec = METHODS[planned.original.method]
    return spec.class_id, spec.method_id


def _candidates(operation: Operation, text: bytes) -> list[Need]:
    """The checks in order; a shortcut or a generated name takes the name that the text holds."""
    found = _REFUSED_RESOURCE.search(text) or _CUT_SHORT.search(text)
    topic = _REFUSED_TOPIC.search(text)
    result = []
    for need in oracle.needs(operation):
        unknown = need.name is None or need.name == oracle.GENERATED_SAMPLE
        if unknown and found and found["kind"].decode() == need.kind:
            result.append(replace(need, name=_whole(found)))
        elif need.name is not None:
            result.append(need)
    for need in oracle.topic_needs(operation):
        # An empty queue and an empty routing key together: the key is the queue's name.
        key = topic["key"] if topic and not need.routing_key else need.routing_key
        result.append(replace(need, routing_key=key))
    return result


def _whole(found: re.Match[bytes]) -> bytes:
    """The name in a refusal; where the text was cut short, the one of the pool that begins so."""
    name = found["name"]
    if found.re is _CUT_SHORT:
        return next(known for known in scenario.QUEUES if known.startswith(name))
    return name


def _passive(operation: Operation, login: Login) -> Operation | None:
    arguments = operation.arguments
    if not arguments.get("passive"):
        return None
    kind = operation.method.split(".")[0]
    given = arguments[kind]
    raw = oracle.plain_name(given)
    name = oracle.strip(raw)
    if raw.startswith(oracle.REPLY_TO) or (kind == "exchange" and not name):
        return None
    if oracle.any_allowed(login, kind, name):
        return None
    if kind == "queue" and (not name or name.startswith(b"amq.")):
        # The active declare of such a name is another question: ask to delete it instead; the
        # ids are put right by closing_ids.
        return Operation("queue.delete", {"queue": given or b"\n"})
    active = {"passive": False, "type": "direct"} if kind == "exchange" else {"passive": False}
    return replace(operation, arguments=arguments | active)


def _carbon(operation: Operation, login: Login, probe: Probe) -> Operation | None:
    if operation.method != "basic.publish" or not oracle.allowed(login, oracle.needs(operation)[0]):
        return None
    wanted = oracle.topic_needs(operation)
    refused = next((need for need in wanted if not oracle.allowed(login, need)), None)
    if refused is None or refused is wanted[0] or not probe.topic(operation.arguments["exchange"]):
        return None
    key = refused.routing_key
    assert operation.content is not None
    headless = {k: v for k, v in operation.content.properties.items() if k != "headers"}
    return replace(
        operation,
        arguments=operation.arguments | {"routing_key": key},
        content=Content(headless, operation.content.body),
    )


def _linked(operation: Operation, login: Login, probe: Probe, *, burst: bool) -> Need | None:
    wanted = oracle.needs(operation)
    if len(wanted) < 3 or "declare" not in operation.method:
        return None
    configure, *linked = wanted
    kind, name = configure.kind, configure.name or b""
    refused = next((need for need in linked if not oracle.allowed(login, need)), None)
    if refused is None or not oracle.allowed(login, configure):
        return None
    if kind == "exchange" and not name:  # refused before any permission
        return None
    if name.startswith(b"amq."):  # generated, built in or refused: the gate need not know more
        return None
    return refused if burst or probe.exists(kind, name) else None


def _closer(original: Operation, index: int, prediction: bytes) -> Planned:
    marker = b"closer-%d" % index
    return Planned(Operation("queue.purge", {"queue": marker}), original, marker, prediction)
