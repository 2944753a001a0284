"""Which definitions are imported at the start.

RabbitMQ's order: ``load_definitions``, ``definitions.*``, ``management.load_definitions``.
Source: rabbit_definitions:maybe_load_definitions, rabbit.schema.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from gatekeeper.config import tls
from gatekeeper.config.keys_definitions import LOCAL_NAMES
from gatekeeper.config.settings import (
    ClientTls,
    DefinitionsSettings,
    HttpsDefinitions,
    LocalDefinitions,
)
from gatekeeper.config.typed import Problems, Typed
from gatekeeper.model import Secret

_BACKEND = "definitions.import_backend"
_PATH = "definitions.local.path"
_URL = "definitions.https.url"


def definitions(typed: Typed, problems: Problems, warnings: list[str]) -> DefinitionsSettings:
    first, last = (
        _local(typed, key) for key in ("load_definitions", "management.load_definitions")
    )
    more = _more(typed, problems, warnings) if typed.names("definitions") else None
    return DefinitionsSettings(
        sources=tuple(source for source in (first, more, last) if source is not None),
        skip_if_unchanged=typed.one("definitions.skip_if_unchanged", bool),
        hashing_algorithm=typed.one("definitions.hashing.algorithm", str),
    )


def _local(typed: Typed, key: str) -> LocalDefinitions | None:
    path = typed.optional(key, Path)
    return None if path is None else LocalDefinitions(key=key, path=path)


def _more(
    typed: Typed, problems: Problems, warnings: list[str]
) -> LocalDefinitions | HttpsDefinitions | None:
    """The one source of ``definitions.*``; None where it is wrong."""
    backend = typed.optional(_BACKEND, str)
    if backend is None:
        problems.add(
            typed.place(_BACKEND),
            "definition import source is configured but definitions.import_backend is not set; "
            "set it to local_filesystem or https",
        )
        return None
    if backend in LOCAL_NAMES:
        found = _local(typed, _PATH)
        if found is None:
            problems.add(
                typed.place(_PATH),
                "local definition file path is not configured: local_path is not set; set it",
            )
        return found
    url = typed.optional(_URL, Secret)
    if url is None or not _is_https(url):
        missing = "is missing; give" if url is None else "does not fit: expected"
        problems.add(typed.place(_URL), f"{missing} an https:// URL")
        return None
    options = tls.client_options(typed, "definitions.tls", problems, warnings)
    return HttpsDefinitions(url=url, tls=options or ClientTls())


def _is_https(url: Secret) -> bool:
    try:
        parts = urlsplit(url.value.decode())
        return parts.scheme == "https" and bool(parts.hostname)
    except ValueError:
        return False
