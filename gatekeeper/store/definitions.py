"""RabbitMQ's definitions files: the import of users, vhosts, permissions, limits and parameters.

It has two steps. ``parse`` judges the document alone and knows the JSON path of everything
it complains about; ``apply`` carries it out on a draft, so that a file, or a whole directory of
them, is one transaction: all or nothing. Merging is RabbitMQ's: what the file names is
overwritten, what it does not name stays. Sections about messaging are ignored, with one warning.

Source: rabbit_definitions, rabbit_auth_backend_internal:put_user.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.errors import DefinitionsError
from gatekeeper.store.definitions_entries import (
    Definitions,
    PermissionEntry,
    TopicPermissionEntry,
)
from gatekeeper.store.definitions_json import Document, read_document
from gatekeeper.store.definitions_parse import parse
from gatekeeper.store.definitions_sources import Source, read_local
from gatekeeper.store.draft import Draft
from gatekeeper.store.records import IMPORTED_HASH
from gatekeeper.store.refusals import CredentialRefusedError, NoSuchUserError, NoSuchVhostError
from gatekeeper.store.store import Store


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
    grant_to: bytes | None = None,
) -> ImportReport:
    """Import one document. Raises DefinitionsError, with ``source`` in front of the place.

    grant_to: this user gets all permissions in the vhosts that are new (RabbitMQ: who imports
    over HTTP).
    """
    text = document.encode() if isinstance(document, str) else document
    return import_sources(
        store,
        [Source(((source, text),))],
        skip_if_unchanged=skip_if_unchanged,
        grant_to=grant_to,
    )


def load_definitions(store: Store, path: Path, *, skip_if_unchanged: bool = False) -> ImportReport:
    """Import a file, or the files of a directory in order of their names, later ones on top.

    Hidden files and subdirectories are passed over. Raises DefinitionsError.
    """
    return import_sources(store, [read_local(path)], skip_if_unchanged=skip_if_unchanged)


def import_sources(
    store: Store,
    sources: Iterable[Source],
    *,
    skip_if_unchanged: bool = False,
    hashing_algorithm: str = "sha256",
    grant_to: bytes | None = None,
) -> ImportReport:
    """Import all sources by one transaction, later ones on top. Raises DefinitionsError.

    skip_if_unchanged: leave out a source whose hash is that of the last one before it. There is
    one hash for all, as in RabbitMQ: of several different sources none is ever left out.
    """
    with _uncollected():
        if not skip_if_unchanged:
            return _import(store, sources, None, grant_to)
        last, changed = store.metadata(IMPORTED_HASH), []
        for source in sources:
            digest = source.digest(hashing_algorithm)
            if digest != last:
                changed.append(source)
            last = digest
        if not changed:
            return ImportReport(skipped=True)
        return _import(store, changed, last, grant_to)


# -- import ------------------------------------------------------------------------------


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


def _import(
    store: Store, sources: Iterable[Source], digest: object, grant_to: bytes | None
) -> ImportReport:
    """digest: to be kept as that of the last import; None: it is not asked for."""
    parsed = [
        parse(read_document(name, text)) for source in sources for name, text in source.documents
    ]
    with store.change() as draft:
        for definitions in parsed:
            _apply(draft, definitions, grant_to)
        if digest is not None:
            draft.set_metadata(IMPORTED_HASH, digest)
    return ImportReport(
        users=sum(len(one.users) for one in parsed),
        vhosts=sum(len(one.vhosts) for one in parsed),
        permissions=sum(len(one.permissions) for one in parsed),
        topic_permissions=sum(len(one.topic_permissions) for one in parsed),
        warnings=tuple(warning for one in parsed for warning in one.warnings),
    )


def _apply(draft: Draft, definitions: Definitions, grant_to: bytes | None) -> None:
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
        try:
            draft.put_vhost(
                vhost.name,
                # What the file does not say of a vhost that is there already is emptied
                # (rabbit_definitions:add_vhost), other than the two below.
                description=vhost.description or "",
                tags=vhost.tags or (),
                default_queue_type=vhost.default_queue_type,
                protected=vhost.protected,
                grant_to=grant_to,
            )
        except CredentialRefusedError as error:
            message = f"the password of a default user (default_users) is refused: {error}"
            raise document.error(vhost.path, message) from error
        if vhost.limits:
            draft.set_vhost_limits(vhost.name, vhost.limits)
    _apply_permissions(draft, definitions)
    for parameter in definitions.global_parameters:
        draft.set_global_parameter(parameter.name, parameter.value)
    for limits in definitions.vhost_limits:
        try:
            draft.set_vhost_limits(limits.vhost, limits.limits)
        except NoSuchVhostError as error:
            raise _unknown(document, limits.path, error) from error


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
