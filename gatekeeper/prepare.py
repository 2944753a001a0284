"""The store as the configuration wants it: opened with its rules, filled by definitions or seed.

Blocks, also on the network where definitions come from there: for the start, before anybody is
served.
"""

from __future__ import annotations

from collections.abc import Iterator

from gatekeeper.config.settings import (
    CredentialRules,
    DefinitionsSettings,
    LocalDefinitions,
    Settings,
)
from gatekeeper.errors import StoreError
from gatekeeper.logs import Logger
from gatekeeper.policy.epoch import Epoch
from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.store.definitions import import_sources
from gatekeeper.store.definitions_sources import Source, fetch, read_local
from gatekeeper.store.refusals import CredentialRefusedError
from gatekeeper.store.rules import CredentialValidator, accept_everything
from gatekeeper.store.seed import seed
from gatekeeper.store.store import Store
from gatekeeper.store.validators import min_password_length, password_regexp
from gatekeeper.tls import client_context


def open_store(settings: Settings, epoch: Epoch) -> Store:
    """Raises OperatorError."""
    return Store.open(
        settings.store_url,
        epoch,
        validator=_validator(settings.credentials),
        algorithm=settings.password_hashing,
        vhost_defaults=settings.vhost_defaults,
    )


def prepared_store(settings: Settings, epoch: Epoch, log: Logger) -> Store:
    """The store, opened, with the newest schema, the definitions and the seed in it.

    Raises OperatorError.
    """
    store = open_store(settings, epoch)
    try:
        _import(store, settings.definitions, log)
        seeded = _seed(store, settings)
    except BaseException:
        store.close()
        raise
    if seeded:
        log.info("Will seed default virtual host and user...")
    return store


def _validator(rules: CredentialRules) -> CredentialValidator:
    if rules.min_length is not None:
        return min_password_length(rules.min_length)
    if rules.regexp is not None:
        return password_regexp(rules.regexp)
    return accept_everything


def _import(store: Store, definitions: DefinitionsSettings, log: Logger) -> None:
    report = import_sources(
        store,
        tuple(_sources(definitions)),
        skip_if_unchanged=definitions.skip_if_unchanged,
        hashing_algorithm=definitions.hashing_algorithm,
    )
    if report.skipped and definitions.sources:
        log.info("Hash value of imported definitions matches current contents")
    for warning in report.warnings:
        log.warning(warning)


def _sources(definitions: DefinitionsSettings) -> Iterator[Source]:
    for source in definitions.sources:
        if isinstance(source, LocalDefinitions):
            yield read_local(source.path, source.key)
        else:
            context = client_context(source.tls, "definitions.tls")
            yield fetch(source.url.value.decode(), context)


def _seed(store: Store, settings: Settings) -> bool:
    start = settings.seed
    rights = start.permissions
    try:
        return seed(
            store,
            user=start.user,
            password=start.password.value,
            vhost=start.vhost,
            permissions=PermissionSet(rights.configure, rights.write, rights.read),
            tags=start.tags,
            definitions_configured=bool(settings.definitions.sources),
        )
    except CredentialRefusedError as error:
        raise StoreError(
            f"default_pass: refused: {error}; set another one (or that of a user in default_users)"
        ) from error
