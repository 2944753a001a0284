"""The table of what the control socket does, and what each error is called there.

One row an operation: what carries it out, the arguments that it needs, those that it may have,
and whether a body comes with it. There is nothing else that the socket could do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gatekeeper.admin import access, explaining, gate, limits
from gatekeeper.admin.explain import QuestionError
from gatekeeper.admin.request import (
    BadRequestError,
    InvalidPidError,
    LoginRefusedError,
    NoSuchExchangeError,
    NoSuchParameterError,
    Operation,
    Row,
    shown,
)
from gatekeeper.errors import DefinitionsError, GatekeeperError
from gatekeeper.server.fleet import SilentWorkersError
from gatekeeper.store.refusals import (
    CredentialRefusedError,
    InvalidLimitsError,
    InvalidPatternError,
    NoSuchUserError,
    NoSuchVhostError,
    RequestError,
    UserExistsError,
    VhostProtectedError,
)

_RIGHTS = "configure write read"
_VHOST = "description tags default_queue_type protected"

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "ping": Operation(gate.ping),
        "status": Operation(gate.status),
        "environment": Operation(gate.environment),
        "clear_cache": Operation(gate.clear_cache, may="user"),
        "list_upstreams": Operation(gate.list_upstreams),
        "add_user": Operation(access.add_user, "user", "password password_hash"),
        "delete_user": Operation(access.delete_user, "user"),
        "change_password": Operation(access.change_password, "user password"),
        "clear_password": Operation(access.clear_password, "user"),
        "set_user_tags": Operation(access.set_user_tags, "user tags"),
        "authenticate_user": Operation(access.authenticate_user, "user password"),
        "list_users": Operation(access.list_users),
        "add_vhost": Operation(access.add_vhost, "vhost", _VHOST),
        "update_vhost": Operation(access.update_vhost, "vhost", _VHOST),
        "delete_vhost": Operation(access.delete_vhost, "vhost"),
        "list_vhosts": Operation(access.list_vhosts),
        "set_permissions": Operation(access.set_permissions, f"user vhost {_RIGHTS}"),
        "set_permissions_globally": Operation(access.set_permissions_globally, f"user {_RIGHTS}"),
        "clear_permissions": Operation(access.clear_permissions, "user vhost"),
        "list_permissions": Operation(access.list_permissions, "vhost"),
        "list_user_permissions": Operation(access.list_user_permissions, "user"),
        "set_topic_permissions": Operation(
            access.set_topic_permissions, "user vhost exchange write read"
        ),
        "clear_topic_permissions": Operation(
            access.clear_topic_permissions, "user vhost", "exchange"
        ),
        "list_topic_permissions": Operation(access.list_topic_permissions, "vhost"),
        "list_user_topic_permissions": Operation(access.list_user_topic_permissions, "user"),
        "set_user_limits": Operation(limits.set_user_limits, "user limits"),
        "clear_user_limits": Operation(limits.clear_user_limits, "user limit"),
        "user_limits": Operation(limits.user_limits, "user"),
        "list_user_limits": Operation(limits.list_user_limits),
        "set_vhost_limits": Operation(limits.set_vhost_limits, "vhost limits"),
        "clear_vhost_limits": Operation(limits.clear_vhost_limits, "vhost"),
        "vhost_limits": Operation(limits.vhost_limits, "vhost"),
        "list_vhost_limits": Operation(limits.list_vhost_limits),
        "set_global_parameter": Operation(limits.set_global_parameter, "name value"),
        "clear_global_parameter": Operation(limits.clear_global_parameter, "name"),
        "list_global_parameters": Operation(limits.list_global_parameters),
        "set_cluster_name": Operation(limits.set_cluster_name, "name"),
        "list_connections": Operation(gate.list_connections),
        "list_channels": Operation(gate.list_channels),
        "close_connection": Operation(gate.close_connection, "pid reason"),
        "close_connections": Operation(
            gate.close_connections, "reason", "user vhost all limit delay"
        ),
        "import_definitions": Operation(
            gate.import_document, "source", "skip_if_unchanged", body=True
        ),
        "export_definitions": Operation(gate.export_document),
        "explain": Operation(
            explaining.explain_question,
            "user vhost operation name",
            "kind source routing_key address tags passive dead_letter_exchange alternate_exchange",
        ),
        "who_can": Operation(explaining.list_who_can, "vhost permission name", "kind"),
    }
)


# --- errors ---


@dataclass(frozen=True, slots=True)
class _Kind:
    """details: what the client makes its own words of, besides the message."""

    error: type[GatekeeperError]
    name: str
    details: Callable[..., Row] = lambda _error: {}


def _named(error: NoSuchUserError | NoSuchVhostError | NoSuchExchangeError) -> Row:
    return {"name": shown(error.name)}


def _pattern(error: InvalidPatternError) -> Row:
    return {
        "what": error.what,
        "pattern": shown(error.pattern),
        "reason": error.reason,
        "offset": error.offset,
    }


_KINDS = (
    _Kind(BadRequestError, "bad_request"),
    _Kind(QuestionError, "bad_question"),
    _Kind(NoSuchUserError, "no_such_user", _named),
    _Kind(NoSuchVhostError, "no_such_vhost", _named),
    _Kind(NoSuchExchangeError, "no_such_exchange", _named),
    _Kind(NoSuchParameterError, "no_such_parameter"),
    _Kind(UserExistsError, "user_exists", _named),
    _Kind(VhostProtectedError, "vhost_protected", _named),
    _Kind(InvalidPatternError, "invalid_pattern", _pattern),
    _Kind(InvalidLimitsError, "invalid_limits"),
    _Kind(InvalidPidError, "invalid_pid", lambda error: {"pid": error.pid}),
    _Kind(CredentialRefusedError, "credential_refused"),
    _Kind(LoginRefusedError, "login_refused"),
    _Kind(DefinitionsError, "definitions"),
    _Kind(RequestError, "refused"),
    _Kind(SilentWorkersError, "silent_workers"),
    _Kind(GatekeeperError, "failed"),
)
"""The first that fits; what is none of them is a mistake of ours."""


def described(error: Exception) -> Row | None:
    """``kind``, ``message`` and details; None for an error that nobody has foreseen."""
    kind = next((kind for kind in _KINDS if isinstance(error, kind.error)), None)
    if kind is None:
        return None
    return {"kind": kind.name, "message": str(error), **kind.details(error)}
