"""From a JSON document to definitions that are known to be well formed.

Nothing here knows what the store holds; that users and vhosts of permissions exist is found
out when the definitions are applied. Each entry keeps its path for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store import passwords
from gatekeeper.store.checks import check_pattern, checked_limits, checked_tags, must_be_json
from gatekeeper.store.definitions_entries import (
    Definitions,
    GlobalParameterEntry,
    PermissionEntry,
    TopicPermissionEntry,
    UserEntry,
    VhostEntry,
    VhostLimitsEntry,
)
from gatekeeper.store.definitions_json import Document, Entry, JsonObject, kind_of
from gatekeeper.store.records import (
    IMPORTED_HASH,
    USER_LIMITS,
    VHOST_LIMITS,
)
from gatekeeper.store.refusals import (
    InvalidLimitsError,
    InvalidPatternError,
    InvalidTagsError,
    InvalidValueError,
    one_line,
)

CLUSTER_NAME = "cluster_name"
VHOST_LIMITS_COMPONENT = "vhost-limits"

_HEADER = frozenset(
    {
        "rabbit_version",
        "rabbitmq_version",
        "product_name",
        "product_version",
        "rabbitmq_definition_format",
        "original_cluster_name",
        "original_vhost_name",
        "explanation",
    }
)
_SECTIONS = frozenset(
    {"users", "vhosts", "permissions", "topic_permissions", "parameters", "global_parameters"}
)
_MESSAGING = ("queues", "exchanges", "bindings")


def parse(document: Document) -> Definitions:
    """Raises DefinitionsError at the first malformed part."""
    _refuse_vhost_scope(document)
    algorithm = _algorithm_of_version(document)
    users = tuple(_user(entry, algorithm) for entry in document.entries("users"))
    vhosts = tuple(_vhost(entry) for entry in document.entries("vhosts"))
    shared = _Shared()
    permissions = tuple(
        _permission(at, entry, shared) for at, entry in enumerate(document.entries("permissions"))
    )
    topics = tuple(
        _topic_permission(at, entry, shared)
        for at, entry in enumerate(document.entries("topic_permissions"))
    )
    limits, other_parameters = _parameters(document)
    global_parameters = tuple(_global_parameters(document))
    _refuse_duplicates(document, users, (user.name for user in users))
    _refuse_duplicates(document, vhosts, (vhost.name for vhost in vhosts))
    _refuse_duplicates(document, permissions, (one.key for one in permissions))
    _refuse_duplicates(document, topics, (one.key for one in topics))
    _refuse_duplicates(document, limits, (one.vhost for one in limits))
    _refuse_duplicates(document, global_parameters, (one.name for one in global_parameters))
    return Definitions(
        document=document,
        users=users,
        vhosts=vhosts,
        permissions=permissions,
        topic_permissions=topics,
        vhost_limits=limits,
        global_parameters=global_parameters,
        warnings=(
            *ignored(document, _SECTIONS, other_parameters),
            *_useless_hashes(document, users),
        ),
    )


# -- sections ----------------------------------------------------------------------------


def _user(entry: Entry, default_algorithm: str | None) -> UserEntry:
    name = entry.name("name")
    if not name:
        entry.fail("name", "must not be empty; name the user")
    password, password_hash = entry.optional_text("password"), _password_hash(entry)
    if password is not None and password_hash is not None:
        entry.fail("password", "both password and password_hash are given; keep one")
    return UserEntry(
        path=entry.path,
        name=name,
        password=None if password is None else password.encode(),
        password_hash=password_hash,
        algorithm=entry.optional_text("hashing_algorithm") or default_algorithm,
        tags=_user_tags(entry),
        limits=_limits(entry, "limits", USER_LIMITS, "user-limits"),
    )


def _password_hash(entry: Entry) -> bytes | None:
    text = entry.optional_text("password_hash")
    if text is None:
        return None
    try:
        return passwords.from_base64(text)
    except ValueError:
        entry.fail(
            "password_hash",
            "not base64; take it from an export or from rabbitmqctl hash_password",
        )


def _user_tags(entry: Entry) -> tuple[str, ...]:
    tags = entry.tags("tags")
    if tags is None:
        administrator = entry.get("administrator")  # the format of RabbitMQ 2
        if not isinstance(administrator, bool):
            entry.fail("tags", 'missing; write "tags": [] for a user without tags')
        tags = ["administrator"] if administrator else []
    try:
        return checked_tags(tags)
    except InvalidTagsError as error:
        raise entry.document.error(f"{entry.path}.tags", str(error)) from error


def _vhost(entry: Entry) -> VhostEntry:
    metadata = entry.child("metadata")
    # 4.x repeats in the metadata what 3.x had beside it.
    sources = [entry] if metadata is None else [metadata, entry]
    tags = next((found for one in sources if (found := one.tags("tags")) is not None), None)
    return VhostEntry(
        path=entry.path,
        name=entry.name("name"),
        description=_first_text(sources, "description"),
        tags=None if tags is None else tuple(dict.fromkeys(tags)),
        default_queue_type=_queue_type(sources),
        protected=None if metadata is None else _flag(metadata, "protected_from_deletion"),
        limits=_limits(entry, "limits", VHOST_LIMITS, "limits"),
    )


def _first_text(sources: list[Entry], key: str) -> str | None:
    return next((text for one in sources if (text := one.optional_text(key)) is not None), None)


def _queue_type(sources: list[Entry]) -> str | None:
    queue_type = _first_text(sources, "default_queue_type")
    return None if queue_type == "undefined" else queue_type


def _flag(entry: Entry, key: str) -> bool | None:
    value = entry.get(key)
    if value is not None and not isinstance(value, bool):
        entry.fail(key, f"must be true or false, is {kind_of(value)}")
    return value


class _Shared:
    """What many entries have in common, kept once: names, patterns, sets of patterns.

    Each distinct pattern is compiled once, however many entries have it.
    """

    def __init__(self) -> None:
        self._names: dict[str, bytes] = {}
        self._patterns: dict[str, bytes] = {}
        self._permissions: dict[tuple[bytes, bytes, bytes], PermissionSet] = {}
        self._topics: dict[tuple[bytes, bytes], TopicPermissionSet] = {}

    def name(self, entry: Entry, key: str) -> bytes:
        return self._once(self._names, entry, key, Entry.name)

    def permissions(self, entry: Entry) -> PermissionSet:
        patterns = (
            self._pattern(entry, "configure"),
            self._pattern(entry, "write"),
            self._pattern(entry, "read"),
        )
        found = self._permissions.get(patterns)
        if found is None:
            found = self._permissions[patterns] = PermissionSet(*patterns)
        return found

    def topic_permissions(self, entry: Entry) -> TopicPermissionSet:
        patterns = (self._pattern(entry, "write"), self._pattern(entry, "read"))
        found = self._topics.get(patterns)
        if found is None:
            found = self._topics[patterns] = TopicPermissionSet(*patterns)
        return found

    def _pattern(self, entry: Entry, key: str) -> bytes:
        return self._once(self._patterns, entry, key, _pattern)

    @staticmethod
    def _once(
        known: dict[str, bytes], entry: Entry, key: str, judge: Callable[[Entry, str], bytes]
    ) -> bytes:
        text = entry.get(key)
        found = known.get(text) if isinstance(text, str) else None
        if found is None:
            found = judge(entry, key)
            known[found.decode()] = found
        return found


def _permission(at: int, entry: Entry, shared: _Shared) -> PermissionEntry:
    return PermissionEntry(
        at=at,
        key=(shared.name(entry, "user"), shared.name(entry, "vhost")),
        permissions=shared.permissions(entry),
    )


def _topic_permission(at: int, entry: Entry, shared: _Shared) -> TopicPermissionEntry:
    return TopicPermissionEntry(
        at=at,
        key=(
            shared.name(entry, "user"),
            shared.name(entry, "vhost"),
            shared.name(entry, "exchange"),
        ),
        permissions=shared.topic_permissions(entry),
    )


def _pattern(entry: Entry, key: str) -> bytes:
    pattern = entry.name(key)
    try:
        check_pattern(key, pattern)
    except InvalidPatternError as error:
        message = f"no valid regular expression: {error.reason} at offset {error.offset}"
        raise entry.document.error(f"{entry.path}.{key}", message) from error
    return pattern


def _parameters(document: Document) -> tuple[tuple[VhostLimitsEntry, ...], int]:
    """The vhost limits, and the number of parameters of other components."""
    limits: list[VhostLimitsEntry] = []
    others = 0
    for entry in document.entries("parameters"):
        if (checked := vhost_limits(entry)) is None:
            others += 1
        else:
            limits.append(VhostLimitsEntry(entry.path, entry.name("vhost"), checked))
    return tuple(limits), others


def vhost_limits(entry: Entry) -> Mapping[str, int] | None:
    """What a parameter says of its vhost's limits; None if it is about something else."""
    if entry.get("component") != VHOST_LIMITS_COMPONENT:
        return None
    return _limits(entry, "value", VHOST_LIMITS, "limits")


def _global_parameters(document: Document) -> Iterator[GlobalParameterEntry]:
    for entry in document.entries("global_parameters"):
        name = entry.text("name")
        if name == IMPORTED_HASH:
            continue  # another broker's: ours tells what was imported here
        value = entry.text("value") if name == CLUSTER_NAME else _any_json(entry, "value")
        yield GlobalParameterEntry(entry.path, name, value)


def _any_json(entry: Entry, key: str) -> object:
    """A value that must be there, of any type; no object in it has a key twice."""
    if key not in entry.fields:
        entry.fail(key, "missing; add it")
    value = entry.get(key)
    try:
        must_be_json(value)
    except InvalidValueError as error:
        raise entry.document.error(f"{entry.path}.{key}", str(error)) from error
    unseen = [value]
    while unseen:
        match unseen.pop():
            case JsonObject() as fields:
                unseen.extend(
                    Entry.of(entry.document, f"{entry.path}.{key}", fields).fields.values()
                )
            case list() as items:
                unseen.extend(items)
    return value


def _limits(entry: Entry, key: str, known: tuple[str, ...], where: str) -> Mapping[str, int]:
    value = entry.get(key)
    if value is None or value == []:  # Erlang's empty map may come out as a list
        return {}
    if not isinstance(value, JsonObject):
        entry.fail(key, f"must be an object, is {kind_of(value)}")
    fields = Entry.of(entry.document, f"{entry.path}.{key}", value).fields
    try:
        return checked_limits(fields, known, where)
    except InvalidLimitsError as error:
        raise entry.document.error(f"{entry.path}.{key}", str(error)) from error


# -- the document as a whole -------------------------------------------------------------


def _refuse_vhost_scope(document: Document) -> None:
    """An export of one virtual host has no users; taken for a whole one it would mislead."""
    root = document.root
    scoped = (
        root.get("rabbitmq_definition_format") == "single_virtual_host"
        or "original_vhost_name" in root
    )
    if not scoped:
        for section in _MESSAGING:
            listed = root.get(section)
            for entry in listed if isinstance(listed, list) else ():
                scoped = scoped or (isinstance(entry, JsonObject) and "vhost" not in entry)
    if scoped:
        raise document.error(
            "$",
            "these are the definitions of one virtual host, without users and permissions; "
            "export those of the whole cluster",
        )


def _algorithm_of_version(document: Document) -> str | None:
    """What a hash without algorithm was made with; None: by this program's default."""
    for key in ("rabbitmq_version", "rabbit_version"):
        version = document.root.get(key)
        if isinstance(version, str):
            if re.match(r"3\.[0-5](?:\.|$)", version):
                return passwords.MD5
            return passwords.SHA256 if version == "3.6.0" else None
    return None


class _Placed(Protocol):
    """An entry that knows where in the document it is."""

    @property
    def path(self) -> str: ...


def _refuse_duplicates(
    document: Document, entries: Sequence[_Placed], keys: Iterable[Hashable]
) -> None:
    """RabbitMQ imports a section's entries side by side: which of two wins is chance."""
    first: dict[Hashable, int] = {}
    for at, key in enumerate(keys):
        earlier = first.setdefault(key, at)
        if earlier != at:
            path = entries[earlier].path
            raise document.error(entries[at].path, f"is about the same as {path}; keep one of them")


def ignored(document: Document, used: frozenset[str], parameters: int) -> tuple[str, ...]:
    """One warning, or none. used: sections; parameters: how many are of no use."""
    counts = {"parameters of other components": parameters}
    for section, content in document.root.items():
        if section not in _HEADER and section not in used:
            counts[section] = len(content) if isinstance(content, list | dict) else 1
    named = ", ".join(f"{section} ({count})" for section, count in counts.items() if count)
    if not named:
        return ()
    return (one_line(f"{document.source}: ignored, a gate has no use for it: {named}"),)


def _useless_hashes(document: Document, users: tuple[UserEntry, ...]) -> tuple[str, ...]:
    """RabbitMQ takes any hash; one that no password can match deserves a word."""
    useless = [
        user
        for user in users
        if user.password_hash
        and not passwords.is_usable(
            user.password_hash, user.algorithm or passwords.DEFAULT_ALGORITHM
        )
    ]
    if not useless:
        return ()
    warning = (
        f"{document.source}: {len(useless)} user(s) cannot log in, for their password_hash does "
        f"not fit its hashing_algorithm, or that is unknown; the first is {useless[0].path}"
    )
    return (warning,)
