"""Which permissions an operation needs, in order, and whether a user has them.

A second, small implementation of the documented rules (RabbitMQ 4.3.5), written for the tests
and evaluated with Python's re on the scenario's simple patterns. It knows nothing of state:
whether a queue exists, what a channel declared last. What depends on that is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.integration.differential.operations import Generated, Login, Operation
from tests.integration.differential.scenario import BY_NAME

CONFIGURE, WRITE, READ = "configure", "write", "read"
REPLY_TO = b"amq.rabbitmq.reply-to"
GENERATED_SAMPLE = b"amq.gen-AAAAAAAAAAAAAAAAAAAAAA"
# How the harness prints a generated name after it made both sides' names comparable.
GENERATED_SHOWN = re.compile(rb"<gen \d+>|amq\.gen-none")


@dataclass(frozen=True, slots=True)
class Need:
    """One permission check. ``name`` None: the last declared queue, which only a reply tells."""

    permission: str
    kind: str
    name: bytes | None
    routing_key: bytes | None = None

    def shown(self, login: Login, *, word: bool) -> bytes:
        """The refusal's text, with the permission word (3.12 on) or without."""
        prefix = f"{self.permission} ".encode() if word else b""
        name = _default(self.kind, self.name or b"")
        if self.routing_key is None:
            what = b"%s '%s'" % (self.kind.encode(), name)
        else:
            what = b"topic '%s' in exchange '%s'" % (self.routing_key, name)
        text = b"ACCESS_REFUSED - %saccess to %s in vhost '%s' refused for user '%s'" % (
            prefix,
            what,
            login.vhost.encode(),
            login.username.encode(),
        )
        return text if len(text) <= 255 else text[:252] + b"..."


def strip(name: bytes) -> bytes:
    """As the broker strips names of queues and exchanges in most methods."""
    return name.replace(b"\n", b"").replace(b"\r", b"")


def _default(kind: str, name: bytes) -> bytes:
    return b"amq.default" if kind == "exchange" and not name else name


def _pattern(text: str) -> str:
    return text or "^$"


def _matches(pattern: str, name: bytes) -> bool:
    return (
        re.search(_pattern(pattern).encode(), GENERATED_SHOWN.sub(GENERATED_SAMPLE, name))
        is not None
    )


def allowed(login: Login, need: Need) -> bool:
    person = BY_NAME[login.username]
    if need.routing_key is not None:
        return _topic_allowed(login, need)
    configure, write, read = person.rights[login.vhost]
    pattern = {CONFIGURE: configure, WRITE: write, READ: read}[need.permission]
    return _matches(pattern, _default(need.kind, need.name or b""))


def _topic_allowed(login: Login, need: Need) -> bool:
    if login.vhost != "/":
        return True
    for exchange, write, read in BY_NAME[login.username].topics:
        if exchange.encode() == need.name:
            pattern = _pattern(write if need.permission == WRITE else read)
            pattern = pattern.replace("{username}", login.username).replace("{vhost}", login.vhost)
            return _matches(pattern, need.routing_key or b"")
    return True


def any_allowed(login: Login, kind: str, name: bytes) -> bool:
    return any(allowed(login, Need(word, kind, name)) for word in (READ, WRITE, CONFIGURE))


def plain_name(value: Any) -> bytes:
    return GENERATED_SAMPLE if isinstance(value, Generated) else value


def needs(operation: Operation) -> list[Need]:
    """Permission checks on names in the order of evaluation; not the topic checks."""
    make = _NEEDS.get(operation.method)
    return list(make(operation.arguments)) if make else []


def _strip_queue(arguments: Mapping[str, Any]) -> bytes | None:
    """None for the shortcut: exactly empty, before stripping."""
    name = plain_name(arguments["queue"])
    return strip(name) if name else None


def _raw_queue(arguments: Mapping[str, Any]) -> bytes | None:
    return plain_name(arguments["queue"]) or None


def _queue_declare(arguments: Mapping[str, Any]) -> Iterator[Need]:
    raw = plain_name(arguments["queue"])
    if raw.startswith(REPLY_TO) or arguments.get("passive"):
        return
    name = strip(raw) or GENERATED_SAMPLE
    yield Need(CONFIGURE, "queue", name)
    yield from _linked(arguments, "x-dead-letter-exchange", "queue", name)


def _exchange_declare(arguments: Mapping[str, Any]) -> Iterator[Need]:
    if arguments.get("passive"):
        return
    name = strip(arguments["exchange"])
    yield Need(CONFIGURE, "exchange", name)
    yield from _linked(arguments, "alternate-exchange", "exchange", name)


def _linked(arguments: Mapping[str, Any], key: str, kind: str, name: bytes) -> Iterator[Need]:
    """Read on the entity itself and write on the exchange that it names."""
    target = arguments.get("arguments", {}).get(key)
    if isinstance(target, bytes):
        yield Need(READ, kind, name)
        yield Need(WRITE, "exchange", target)


def _queue_bind(arguments: Mapping[str, Any]) -> Iterator[Need]:
    yield Need(WRITE, "queue", _strip_queue(arguments))
    yield Need(READ, "exchange", strip(arguments["exchange"]))


def _exchange_bind(arguments: Mapping[str, Any]) -> Iterator[Need]:
    yield Need(WRITE, "exchange", strip(arguments["destination"]))
    yield Need(READ, "exchange", strip(arguments["source"]))


def _consume(arguments: Mapping[str, Any]) -> Iterator[Need]:
    if arguments["queue"] != REPLY_TO:
        yield Need(READ, "queue", _raw_queue(arguments))


def _exchange_delete(arguments: Mapping[str, Any]) -> Iterator[Need]:
    name = strip(arguments["exchange"])
    if name and not name.startswith(b"amq."):
        yield Need(CONFIGURE, "exchange", name)


_NEEDS: dict[str, Callable[[Mapping[str, Any]], Iterator[Need]]] = {
    "queue.declare": _queue_declare,
    "queue.delete": lambda a: iter([Need(CONFIGURE, "queue", _strip_queue(a))]),
    "queue.purge": lambda a: iter([Need(READ, "queue", _raw_queue(a))]),
    "queue.bind": _queue_bind,
    "queue.unbind": _queue_bind,
    "exchange.declare": _exchange_declare,
    "exchange.delete": _exchange_delete,
    "exchange.bind": _exchange_bind,
    "exchange.unbind": _exchange_bind,
    "basic.get": lambda a: iter([Need(READ, "queue", _raw_queue(a))]),
    "basic.consume": _consume,
    "basic.publish": lambda a: iter([Need(WRITE, "exchange", a["exchange"])]),
}


def topic_needs(operation: Operation) -> list[Need]:
    """Topic checks, which apply where the exchange exists and is of type topic."""
    arguments = operation.arguments
    match operation.method:
        case "basic.publish":
            name = arguments["exchange"]
            return [Need(WRITE, "exchange", name, key) for key in published_keys(operation)]
        case "queue.bind" | "queue.unbind":
            return [Need(READ, "exchange", strip(arguments["exchange"]), arguments["routing_key"])]
        case "exchange.bind" | "exchange.unbind":
            return [Need(READ, "exchange", strip(arguments["source"]), arguments["routing_key"])]
    return []


def published_keys(operation: Operation) -> list[bytes]:
    """Routing key, then CC, then BCC; of equal header keys the first counts."""
    keys = [operation.arguments["routing_key"]]
    properties = operation.content.properties if operation.content else {}
    headers = properties.get("headers", {})
    pairs = list(headers.items()) if isinstance(headers, Mapping) else headers
    for wanted in ("CC", "BCC"):
        value = next((value for key, value in pairs if key == wanted), None)
        if isinstance(value, list):
            texts = [item for item in value if isinstance(item, str | bytes)]
            keys += [item.encode() if isinstance(item, str) else item for item in texts]
    return keys
