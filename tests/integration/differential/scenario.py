"""Who may do what, and the names that sessions play with.

Patterns stay within the syntax on which PCRE and Python's re agree, because the oracle
evaluates them with re; the permission engine's own dialect is tested elsewhere.
Names below ``perm`` exist from the start and nobody may configure them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.rabbit import (
    Definitions,
    definitions,
    permission,
    service_account,
    topic_permission,
    user,
)

VHOSTS = ("/", "v2")
PASSWORD = "pw"
ALL_BUT_PERM = r"^(?!perm)"
SERVICE, SERVICE_PASSWORD = "gatekeeper", "s3rvice"


@dataclass(frozen=True, slots=True)
class Person:
    """configure, write, read: patterns per vhost; topics: (exchange, write, read) on ``/``."""

    name: str
    rights: dict[str, tuple[str, str, str]]
    tags: tuple[str, ...] = ()
    topics: tuple[tuple[str, str, str], ...] = ()


PEOPLE = (
    Person(
        "alice",
        {
            "/": (
                r"^(a\.|shared|amq\.gen)",
                r"^(a\.|shared|perm|amq\.(gen|topic|direct|default))",
                r"^(a\.|shared|perm|amq\.(gen|topic|fanout))",
            ),
            "v2": ("", "^a", "^a"),
        },
        topics=(
            ("perm.topic", r"^(ok|{username})\.", r"^(ok|in)\."),
            ("amq.topic", r"^ok\.", r"^in\."),
            ("a.x1", r"^ok\.", ""),
        ),
    ),
    Person(
        "bob",
        {"/": (r"^b\.", r"^(b\.|shared|perm\.topic$)", "shared"), "v2": (ALL_BUT_PERM, ".*", ".*")},
        topics=(("perm.topic", "", "^in"), ("shared.x", r"^{vhost}", "")),
    ),
    Person(
        "carol",
        {"/": (ALL_BUT_PERM, ".*", ".*"), "v2": (ALL_BUT_PERM, "", ".*")},
        tags=("impersonator",),
        topics=(("shared.x", r"^ok\.", r"^in\."), ("perm.topic", r"^ok\.", ".*")),
    ),
    Person("dave", {"/": ("", "", r"^(shared|perm|a\.)"), "v2": ("", "", "")}),
    Person("eve", {"/": (ALL_BUT_PERM, r"^[^b]", r"(q|x)\d?$")}),
    Person("nobody", {"/": ("", "", "")}),
    Person(
        "root",
        {"/": (ALL_BUT_PERM, ".*", ".*"), "v2": (ALL_BUT_PERM, ".*", ".*")},
        tags=("administrator",),
    ),
)
BY_NAME = {person.name: person for person in PEOPLE}
# How often each of them is chosen: those with mixed rights see the most.
WEIGHTS = {"alice": 8, "bob": 4, "carol": 3, "dave": 2, "eve": 4, "nobody": 1, "root": 2}

# Whom the scenario lets declare queues with generated names.
MAY_GENERATE = frozenset(
    {("alice", "/"), ("bob", "v2"), ("carol", "/"), ("carol", "v2"), ("eve", "/")}
    | {("root", "/"), ("root", "v2")}
)
# Never declared auto-delete: their removal cannot be seen by a gate, which may remember the
# type of such an exchange for some seconds (documented).
TOPIC_RULE_EXCHANGES = frozenset({b"a.x1", b"shared.x"})

EXCHANGE_TYPES = ("direct", "topic", "fanout", "headers")

PERMANENT_EXCHANGES = {
    b"perm.topic": "topic",
    b"perm.fan": "fanout",
    b"perm.headers": "headers",
    b"perm.internal": "direct",
}
BUILT_IN_EXCHANGES = {
    b"": "direct",
    b"amq.direct": "direct",
    b"amq.fanout": "fanout",
    b"amq.topic": "topic",
    b"amq.headers": "headers",
    b"amq.match": "headers",
    b"amq.rabbitmq.trace": "topic",
}
PERMANENT_QUEUES = (b"perm.q1", b"perm.q2")

QUEUES = (
    *(b"a.q1", b"a.q2", b"b.q1", b"b.q2", b"shared.q", b"perm.q1", b"perm.q2", b"e.q", b"other"),
    *(b"a.\xc3\xa9", b"amq.default", b"a.q1\n", b"\ra.q2", b"sha\nred.q", b"a." + b"l" * 230),
)
EXCHANGES = (
    *(b"a.x1", b"a.x2", b"b.x1", b"shared.x", b"perm.topic", b"perm.fan", b"perm.headers"),
    *(
        b"perm.internal",
        b"amq.direct",
        b"amq.topic",
        b"amq.fanout",
        b"amq.match",
        b"e.x",
        b"none.x",
    ),
    *(b"", b"\n", b"amq.default", b"a.x1\n", b"b\r\n.x1", b"amq.rabbitmq.trace"),
)
KEYS = (
    *(b"ok.1", b"in.1", b"no.1", b"alice.1", b"bob.1", b"ok.1\n", b"", b"#", b"*.1", b"/", b"x"),
    *(b"a.q1", b"shared.q", b"perm.q1", b"perm.q2", b"in.\xc3\xa9"),
)


def _permissions() -> list[dict[str, str]]:
    return [
        permission(person.name, vhost, *patterns)
        for person in PEOPLE
        for vhost, patterns in person.rights.items()
    ]


def _entities() -> dict[str, list[dict[str, object]]]:
    exchanges: list[dict[str, object]] = []
    queues: list[dict[str, object]] = []
    for vhost in VHOSTS:
        for name, kind in PERMANENT_EXCHANGES.items():
            exchanges.append(
                {
                    "name": name.decode(),
                    "vhost": vhost,
                    "type": kind,
                    "durable": True,
                    "auto_delete": False,
                    "internal": name.endswith(b"internal"),
                    "arguments": {},
                }
            )
        queues += [
            {
                "name": name.decode(),
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": {},
            }
            for name in PERMANENT_QUEUES
        ]
    return {"exchanges": exchanges, "queues": queues, "bindings": []}


def people_definitions() -> Definitions:
    """What the enforcer knows: the gate, and A together with :func:`native_definitions`."""
    return definitions(
        users=[user(person.name, PASSWORD, person.tags) for person in PEOPLE],
        vhosts=VHOSTS,
        permissions=_permissions(),
        topic_permissions=[
            topic_permission(person.name, *topic) for person in PEOPLE for topic in person.topics
        ],
    )


def native_definitions() -> Definitions:
    """A: people and entities, and the service account as the observer."""
    document = people_definitions()
    service = service_account(SERVICE_PASSWORD, SERVICE, VHOSTS)
    document["users"] += service["users"]
    document["permissions"] += service["permissions"]
    return document | _entities()


def upstream_definitions() -> Definitions:
    """Behind B: the service account and the entities, nobody else."""
    return service_account(SERVICE_PASSWORD, SERVICE, VHOSTS) | _entities()
