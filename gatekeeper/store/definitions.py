"""RabbitMQ's definitions files: import and export of users, vhosts, permissions and limits.

Import has two steps. ``parse`` judges the document alone and knows the JSON path of everything
it complains about; ``apply`` carries it out on a draft, so that a file, or a whole directory of
them, is one transaction: all or nothing. Merging is RabbitMQ's: what the file names is
overwritten, what it does not name stays. Sections about messaging are ignored, with one warning.

Source: rabbit_definitions, rabbit_auth_backend_internal:put_user.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gatekeeper.errors import DefinitionsError
from gatekeeper.store import passwords
from gatekeeper.store.definitions_json import Document, read_document
from gatekeeper.store.definitions_parse import (
    CLUSTER_NAME,
    VHOST_LIMITS_COMPONENT,
    Definitions,
    PermissionEntry,
    TopicPermissionEntry,
    parse,
)
from gatekeeper.store.draft import Draft
from gatekeeper.store.records import IMPORTED_HASH, User, Vhost
from gatekeeper.store.refusals import (
    CredentialRefusedError,
    NoSuchUserError,
    NoSuchVhostError,
    one_line,
    shown,
)
from gatekeeper.store.rows import Reader
from gatekeeper.store.store import Store

FORMAT_VERSION = "4.3.5"
"""The RabbitMQ version whose format an export has."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did.

    skipped: nothing was imported, the contents are those of the last import.
    The counts are of entries, new and overwritten. warnings: one line each, for the log.
    """

    users: int = 0
    vhosts: int = 0
    permissions: int = 0
    topic_permissions: int = 0
    skipped: bool = False
    warnings: tuple[str, ...] = ()


def import_definitions(
    store: Store,
    document: bytes | str,
    *,
    source: str = "definitions",
    skip_if_unchanged: bool = False,
) -> ImportReport:
    """Import one document. Raises DefinitionsError, with ``source`` in front of the place."""
    text = document.encode() if isinstance(document, str) else document
    return _import(store, [(source, text)], skip_if_unchanged=skip_if_unchanged)


def load_definitions(store: Store, path: Path, *, skip_if_unchanged: bool = False) -> ImportReport:
    """Import a file, or the files of a directory in order of their names, later ones on top.

    Hidden files and subdirectories are passed over. Raises DefinitionsError.
    """
    return _import(store, _read(path), skip_if_unchanged=skip_if_unchanged)


def export_definitions(store: Store, *, product: str = "gatekeeper") -> dict[str, object]:
    """The inverse of an import, as a JSON object with RabbitMQ's sections, as of one moment.

    The whole of it is in memory then: :func:`write_definitions` is for large stores. Raises
    DefinitionsError where a name is not UTF-8 (JSON cannot hold it), StoreError.
    """
    with store.view() as view:
        return {
            section: list(content) if isinstance(content, Iterator) else content
            for section, content in _sections(view, product)
        }


def write_definitions(store: Store, file: IO[str], *, product: str = "gatekeeper") -> None:
    """As :func:`export_definitions`, written entry by entry, one a line.

    After an error ``file`` holds a part of a document.
    """
    with store.view() as view:
        lead = "{"
        for section, content in _sections(view, product):
            file.write(f"{lead}\n{json.dumps(section)}: ")
            lead = ","
            if not isinstance(content, Iterator):
                file.write(json.dumps(content, ensure_ascii=False))
                continue
            file.write("[")
            for at, entry in enumerate(content):
                file.write(",\n  " if at else "\n  ")
                file.write(json.dumps(entry, ensure_ascii=False))
            file.write("]")
        file.write("\n}\n")


# -- import ------------------------------------------------------------------------------


def _import(
    store: Store, documents: Sequence[tuple[str, bytes]], *, skip_if_unchanged: bool
) -> ImportReport:
    with _uncollected():
        return _import_all(store, documents, skip_if_unchanged=skip_if_unchanged)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would walk millions of objects over and over.

    They form no cycles: what is let go of is freed all the same.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _import_all(
    store: Store, documents: Sequence[tuple[str, bytes]], *, skip_if_unchanged: bool
) -> ImportReport:
    digest = _digest(documents)
    if skip_if_unchanged and store.metadata(IMPORTED_HASH) == digest:
        return ImportReport(skipped=True)
    parsed = [parse(read_document(source, text)) for source, text in documents]
    with store.change() as draft:
        for definitions in parsed:
            _apply(draft, definitions)
        if skip_if_unchanged:
            draft.set_metadata(IMPORTED_HASH, digest)
    return ImportReport(
        users=sum(len(one.users) for one in parsed),
        vhosts=sum(len(one.vhosts) for one in parsed),
        permissions=sum(len(one.permissions) for one in parsed),
        topic_permissions=sum(len(one.topic_permissions) for one in parsed),
        warnings=tuple(warning for one in parsed for warning in one.warnings),
    )


def _digest(documents: Iterable[tuple[str, bytes]]) -> str:
    """Of the contents, length first: two files are not one that holds both."""
    digest = hashlib.sha256()
    for _, text in documents:
        digest.update(b"%d:" % len(text))
        digest.update(text)
    return digest.hexdigest()


def _apply(draft: Draft, definitions: Definitions) -> None:
    """RabbitMQ's order: users, vhosts, permissions, topic permissions, parameters."""
    document = definitions.document
    for user in definitions.users:
        try:
            draft.put_user(
                user.name,
                user.password,
                password_hash=user.password_hash,
                algorithm=user.algorithm,
                tags=user.tags,
                limits=user.limits,
            )
        except CredentialRefusedError as error:
            raise document.error(f"{user.path}.password", f"refused: {error}") from error
    for vhost in definitions.vhosts:
        draft.put_vhost(
            vhost.name,
            description=vhost.description,
            tags=vhost.tags,
            default_queue_type=vhost.default_queue_type,
            protected=vhost.protected,
        )
        if vhost.limits:
            draft.set_vhost_limits(vhost.name, vhost.limits)
    _apply_permissions(draft, definitions)
    for limits in definitions.vhost_limits:
        try:
            draft.set_vhost_limits(limits.vhost, limits.limits)
        except NoSuchVhostError as error:
            raise _unknown(document, limits.path, error) from error
    if definitions.cluster_name is not None:
        draft.set_metadata(CLUSTER_NAME, definitions.cluster_name)


def _apply_permissions(draft: Draft, definitions: Definitions) -> None:
    """All of a section by one statement, and each user and vhost looked for only once."""
    users = {user.name for user in definitions.users}
    vhosts = {vhost.name for vhost in definitions.vhosts}
    entries: Iterable[PermissionEntry | TopicPermissionEntry] = itertools.chain(
        definitions.permissions, definitions.topic_permissions
    )
    for entry in entries:
        user, vhost = entry.key[:2]
        try:
            if user not in users:
                draft.user(user)
                users.add(user)
            if vhost not in vhosts:
                draft.vhost(vhost)
                vhosts.add(vhost)
        except (NoSuchUserError, NoSuchVhostError) as error:
            raise _unknown(definitions.document, entry.path, error) from error
    # In the order of the key: neighbours go into the same page.
    draft.put_permissions(
        (one.key, one.permissions)
        for one in sorted(definitions.permissions, key=lambda one: one.key)
    )
    draft.put_topic_permissions(
        (one.key, one.permissions)
        for one in sorted(definitions.topic_permissions, key=lambda one: one.key)
    )


def _unknown(
    document: Document, path: str, error: NoSuchUserError | NoSuchVhostError
) -> DefinitionsError:
    if isinstance(error, NoSuchUserError):
        return document.error(f"{path}.user", f"{error}; add it to users")
    return document.error(f"{path}.vhost", f"{error}; add it to vhosts")


def _read(path: Path) -> list[tuple[str, bytes]]:
    try:
        if not path.is_dir():
            return [(str(path), path.read_bytes())]
        files = sorted(
            (entry for entry in path.iterdir() if entry.is_file() and entry.name[0] != "."),
            key=lambda entry: entry.name,
        )
        return [(str(file), file.read_bytes()) for file in files]
    except OSError as error:
        raise DefinitionsError(
            f"load_definitions: cannot read {error.filename or path}: {error.strerror}; "
            "check the path and its permissions"
        ) from error


# -- export ------------------------------------------------------------------------------


def _sections(view: Reader, product: str) -> Iterator[tuple[str, object]]:
    """Name and content in RabbitMQ's order; lists as iterators, to be used at once."""
    yield "rabbit_version", FORMAT_VERSION
    yield "rabbitmq_version", FORMAT_VERSION
    yield "product_name", product
    yield "product_version", FORMAT_VERSION
    yield "rabbitmq_definition_format", "cluster"
    yield "users", (_exported_user(user) for user in view.users())
    yield "vhosts", (_exported_vhost(vhost) for vhost in view.vhosts())
    yield (
        "permissions",
        (
            {
                "user": _text(user),
                "vhost": _text(vhost),
                "configure": _text(permissions.configure),
                "write": _text(permissions.write),
                "read": _text(permissions.read),
            }
            for user, vhost, permissions in view.all_permissions()
        ),
    )
    yield (
        "topic_permissions",
        (
            {
                "user": _text(user),
                "vhost": _text(vhost),
                "exchange": _text(exchange),
                "write": _text(permissions.write),
                "read": _text(permissions.read),
            }
            for user, vhost, exchange, permissions in view.all_topic_permissions()
        ),
    )
    yield (
        "parameters",
        (
            {
                "vhost": _text(vhost.name),
                "component": VHOST_LIMITS_COMPONENT,
                "name": "limits",
                "value": dict(vhost.limits),
            }
            for vhost in view.vhosts()
            if vhost.limits
        ),
    )
    cluster = view.metadata(CLUSTER_NAME)
    yield "global_parameters", [{"name": CLUSTER_NAME, "value": cluster}] if cluster else []
    for section in ("policies", "queues", "exchanges", "bindings"):
        yield section, []


def _exported_user(user: User) -> dict[str, object]:
    return {
        "name": _text(user.name),
        "password_hash": passwords.to_base64(user.password_hash),
        "hashing_algorithm": user.algorithm,
        "tags": list(user.tags),
        "limits": dict(user.limits),
    }


def _exported_vhost(vhost: Vhost) -> dict[str, object]:
    metadata: dict[str, object] = {"description": vhost.description, "tags": list(vhost.tags)}
    if vhost.default_queue_type is not None:
        metadata["default_queue_type"] = vhost.default_queue_type
    if vhost.protected:
        metadata["protected_from_deletion"] = True
    return {
        "name": _text(vhost.name),
        "description": vhost.description,
        "tags": list(vhost.tags),
        "limits": dict(vhost.limits),
        "metadata": metadata,
    }


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        what = one_line(shown(name))
        raise DefinitionsError(
            f"cannot export '{what}': the name or pattern is not UTF-8, and JSON holds nothing "
            "else; rename or delete it"
        ) from error
