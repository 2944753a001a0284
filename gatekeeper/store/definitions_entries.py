"""The entries of a definitions document, well formed, each with its path for complaints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store.definitions_json import Document
from gatekeeper.store.records import UserVhost, UserVhostExchange


@dataclass(frozen=True, slots=True)
class UserEntry:
    """password, password_hash: at most one of them; neither is a user without a password."""

    path: str
    name: bytes
    password: bytes | None = field(repr=False)
    password_hash: bytes | None = field(repr=False)
    algorithm: str | None
    tags: tuple[str, ...]
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class VhostEntry:
    """None: not named in the file, to be left as it is."""

    path: str
    name: bytes
    description: str | None
    tags: tuple[str, ...] | None
    default_queue_type: str | None
    protected: bool | None
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PermissionEntry:
    """at: its place in the section. There may be a million: the path is made when needed."""

    at: int
    key: UserVhost
    permissions: PermissionSet

    @property
    def path(self) -> str:
        return f"permissions[{self.at}]"


@dataclass(frozen=True, slots=True)
class TopicPermissionEntry:
    at: int
    key: UserVhostExchange
    permissions: TopicPermissionSet

    @property
    def path(self) -> str:
        return f"topic_permissions[{self.at}]"


@dataclass(frozen=True, slots=True)
class VhostLimitsEntry:
    path: str
    vhost: bytes
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class GlobalParameterEntry:
    """value: any JSON."""

    path: str
    name: str
    value: object


@dataclass(frozen=True, slots=True)
class Definitions:
    document: Document
    users: tuple[UserEntry, ...]
    vhosts: tuple[VhostEntry, ...]
    permissions: tuple[PermissionEntry, ...]
    topic_permissions: tuple[TopicPermissionEntry, ...]
    vhost_limits: tuple[VhostLimitsEntry, ...]
    global_parameters: tuple[GlobalParameterEntry, ...]
    warnings: tuple[str, ...]
