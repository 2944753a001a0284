"""What a session is made of: logins, steps, operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Generated:
    """The n-th queue name that the broker generated in this session, whatever it is."""

    index: int


@dataclass(frozen=True, slots=True)
class Content:
    properties: dict[str, Any]
    body: bytes


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    arguments: dict[str, Any]
    content: Content | None = None

    def __str__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        content = (
            "" if self.content is None else f" {self.content.properties} {self.content.body[:40]!r}"
        )
        return f"{self.method}({shown}){content}"


@dataclass(frozen=True, slots=True)
class Step:
    """dropped: sent before the step where the broker has closed the channel and the client has
    not answered yet: the broker must ignore them. close-ok and channel.open follow, and the
    step itself, all in one segment.
    """

    connection: int
    channel: int
    operations: tuple[Operation, ...]
    dropped: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        dropped = [
            f"(dropped where the channel was closed) {operation}" for operation in self.dropped
        ]
        lines = "\n    ".join([*dropped, *map(str, self.operations)])
        return f"connection {self.connection} channel {self.channel}:\n    {lines}"


@dataclass(frozen=True, slots=True)
class Login:
    username: str
    vhost: str


@dataclass(frozen=True, slots=True)
class Session:
    seed: int
    logins: tuple[Login, ...]
    steps: tuple[Step, ...]

    @property
    def operations(self) -> int:
        return sum(len(step.operations) for step in self.steps)
