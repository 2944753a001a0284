"""The store as RabbitMQ's definitions file: the inverse of an import.

Source: rabbit_definitions:all_definitions, rabbit_mgmt_wm_definitions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO

import structlog

from gatekeeper.errors import DefinitionsError
from gatekeeper.store import passwords
from gatekeeper.store.definitions_parse import CLUSTER_NAME, VHOST_LIMITS_COMPONENT
from gatekeeper.store.records import IMPORTED_HASH, User, Vhost
from gatekeeper.store.refusals import NoSuchVhostError, one_line, shown
from gatekeeper.store.rows import Reader
from gatekeeper.store.store import Store

FORMAT_VERSION = "4.3.5"
"""The RabbitMQ version whose format an export has."""
INTERNAL_PREFIX = "internal"
"""Global parameters with such names are not exported."""


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


def export_vhost_definitions(
    store: Store, vhost: bytes, *, product: str = "gatekeeper"
) -> dict[str, object]:
    """What RabbitMQ exports of a single vhost: no users, no permissions.

    Raises NoSuchVhostError, DefinitionsError, StoreError.
    """
    record = store.vhost(vhost)
    if record is None:
        raise NoSuchVhostError(vhost)
    name = _text(vhost)
    return {
        "rabbit_version": FORMAT_VERSION,
        "rabbitmq_version": FORMAT_VERSION,
        "product_name": product,
        "product_version": FORMAT_VERSION,
        "rabbitmq_definition_format": "single_virtual_host",
        "original_vhost_name": name,
        "explanation": f"Definitions of virtual host '{name}'",
        "metadata": _metadata(record),
        "description": record.description,
        "limits": dict(record.limits),
        "parameters": _parameters(record),
        **{section: [] for section in _MESSAGING},
    }


_log = structlog.get_logger(__name__)
_MESSAGING = ("policies", "queues", "exchanges", "bindings")


def _sections(view: Reader, product: str) -> Iterator[tuple[str, object]]:
    """Name and content in RabbitMQ's order; lists as iterators, to be used at once."""
    yield "rabbit_version", FORMAT_VERSION
    yield "rabbitmq_version", FORMAT_VERSION
    yield "product_name", product
    yield "product_version", FORMAT_VERSION
    yield "rabbitmq_definition_format", "cluster"
    cluster = view.metadata(CLUSTER_NAME) or product
    yield "original_cluster_name", cluster
    yield "explanation", f"Definitions of cluster '{cluster}'"
    yield "users", _exported_users(view)
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
            {"vhost": _text(vhost.name), **parameter}
            for vhost in view.vhosts()
            for parameter in _parameters(vhost)
        ),
    )
    yield (
        "global_parameters",
        [
            {"name": name, "value": value}
            for name, value in view.all_metadata()
            if name != IMPORTED_HASH and not name.startswith(INTERNAL_PREFIX)
        ],
    )
    for section in _MESSAGING:
        yield section, []


def _exported_users(view: Reader) -> Iterator[dict[str, object]]:
    ours = 0
    for user in view.users():
        ours += bool(user.password_hash) and user.algorithm == passwords.ARGON2ID
        yield _exported_user(user)
    if ours:
        _log.warning(
            f"exported definitions: {ours} user(s) have an argon2id password, with which "
            "RabbitMQ lets nobody log in; a gatekeeper does"
        )


def _parameters(vhost: Vhost) -> list[dict[str, object]]:
    if not vhost.limits:
        return []
    limits = dict(vhost.limits)
    return [{"component": VHOST_LIMITS_COMPONENT, "name": "limits", "value": limits}]


def _exported_user(user: User) -> dict[str, object]:
    return {
        "name": _text(user.name),
        "password_hash": passwords.to_base64(user.password_hash),
        "hashing_algorithm": user.algorithm,
        "tags": list(user.tags),
        "limits": dict(user.limits),
    }


def _exported_vhost(vhost: Vhost) -> dict[str, object]:
    return {
        "name": _text(vhost.name),
        "description": vhost.description,
        "tags": list(vhost.tags),
        "limits": dict(vhost.limits),
        "metadata": _metadata(vhost),
    }


def _metadata(vhost: Vhost) -> dict[str, object]:
    metadata: dict[str, object] = {"description": vhost.description, "tags": list(vhost.tags)}
    if vhost.default_queue_type is not None:
        metadata["default_queue_type"] = vhost.default_queue_type
    if vhost.protected:
        metadata["protected_from_deletion"] = True
    return metadata


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        what = one_line(shown(name))
        raise DefinitionsError(
            f"cannot export '{what}': the name or pattern is not UTF-8, and JSON holds nothing "
            "else; rename or delete it"
        ) from error
