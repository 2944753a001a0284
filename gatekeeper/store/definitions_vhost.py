"""The import of one virtual host's definitions, into it or another one.

RabbitMQ takes its parameters, policies and topology from such a document, whatever vhost they
came from, and nothing else: not even the limits and metadata that it exports beside them. What
a gate keeps of that are the vhost's limits, which are a parameter.
Source: rabbit_definitions:apply_defs/4.
"""

from __future__ import annotations

from gatekeeper.store.definitions import ImportReport
from gatekeeper.store.definitions_json import read_document
from gatekeeper.store.definitions_parse import ignored, vhost_limits
from gatekeeper.store.store import Store

_USED = frozenset(
    {
        # By RabbitMQ neither: it takes a cluster's document too.
        *("description", "limits", "metadata"),
        *("users", "vhosts", "permissions", "topic_permissions", "global_parameters"),
        "parameters",
    }
)


def import_vhost_definitions(
    store: Store, vhost: bytes, document: bytes, *, source: str = "definitions"
) -> ImportReport:
    """Raises DefinitionsError with ``source`` in front of the place, NoSuchVhostError."""
    parsed = read_document(source, document)
    parameters = [vhost_limits(entry) for entry in parsed.entries("parameters")]
    found = [limits for limits in parameters if limits is not None]
    with store.change() as draft:
        draft.vhost(vhost)
        for limits in found:
            draft.set_vhost_limits(vhost, limits)
    return ImportReport(warnings=ignored(parsed, _USED, len(parameters) - len(found)))
