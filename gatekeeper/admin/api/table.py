"""Every path of the API, its methods, who may use them and the handler: the one table.

``:word`` stands for one segment. GET brings HEAD and every path has OPTIONS. Where two paths
match, the first one counts.

Source: ``rabbit_mgmt_dispatcher:dispatcher/0`` and each module's ``allowed_methods/2``,
``is_authorized/2`` and ``content_types_accepted/2``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gatekeeper.admin.api import (
    connections,
    definitions,
    explaining,
    health,
    limits,
    overview,
    parameters,
    permissions,
    session,
    users,
    vhosts,
)
from gatekeeper.admin.api.access import Right
from gatekeeper.admin.api.call import JSON, Handler

ANY_TYPE: tuple[str, ...] = ()
ONLY_JSON = (JSON,)
FORM = ("application/x-www-form-urlencoded",)
DOCUMENT = (JSON, "multipart/form-data")


@dataclass(frozen=True, slots=True)
class Endpoint:
    method: str
    right: Right
    handler: Handler


@dataclass(frozen=True, slots=True)
class Route:
    """accepts: the media types of a body; empty: any, or none. produces: that of an answer.
    allow: the methods, in RabbitMQ's order."""

    path: str
    endpoints: Mapping[str, Endpoint]
    accepts: tuple[str, ...]
    produces: str
    allow: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.path.strip("/").split("/"))


def _route(
    path: str,
    *endpoints: Endpoint,
    accepts: tuple[str, ...] = ANY_TYPE,
    produces: str = JSON,
    head: bool = True,
) -> Route:
    methods = {one.method: one for one in endpoints}
    if head and "GET" in methods:
        methods = {"HEAD": methods["GET"], **methods}
    allow = (*methods, "OPTIONS")
    return Route(path, MappingProxyType(methods), accepts, produces, allow)


def _get(right: Right, handler: Handler) -> Endpoint:
    return Endpoint("GET", right, handler)


def _put(right: Right, handler: Handler) -> Endpoint:
    return Endpoint("PUT", right, handler)


def _post(right: Right, handler: Handler) -> Endpoint:
    return Endpoint("POST", right, handler)


def _delete(right: Right, handler: Handler) -> Endpoint:
    return Endpoint("DELETE", right, handler)


_ADMIN, _MONITOR, _ANY, _NONE = Right.ADMINISTRATOR, Right.MONITOR, Right.ANY, Right.NONE
_GLOBALS, _OWN_CONNECTION = Right.GLOBAL_PARAMETERS, Right.OWN_CONNECTION

ROUTES: tuple[Route, ...] = (
    # who is asking
    _route("/whoami", _get(_ANY, session.whoami)),
    _route(
        "/login",
        _post(Right.FORM, session.log_in),
        _delete(_NONE, session.log_out),
        accepts=FORM,
    ),
    _route(
        "/auth/attempts/:node",
        _get(_MONITOR, session.attempts),
        _delete(_ADMIN, session.reset_attempts),
    ),
    _route(
        "/auth/attempts/:node/source",
        _get(_MONITOR, session.attempts_by_source),
        _delete(_ADMIN, session.reset_attempts),
    ),
    _route("/auth/hash_password/:password", _get(_ADMIN, users.hash_password), head=False),
    # the gate
    _route("/overview", _get(_ANY, overview.overview)),
    _route("/version", _get(_NONE, overview.version)),
    _route("/nodes", _get(_MONITOR, overview.list_nodes)),
    _route("/nodes/:node", _get(_MONITOR, overview.get_node)),
    _route("/extensions", _get(_ANY, overview.extensions)),
    _route(
        "/cluster-name",
        _get(_ANY, parameters.get_cluster_name),
        _put(_ADMIN, parameters.put_cluster_name),
    ),
    _route("/config/effective", _get(_ADMIN, overview.effective_config), produces="text/plain"),
    _route("/feature-flags", _get(_ANY, parameters.list_nothing)),
    _route("/deprecated-features", _get(_ANY, parameters.list_nothing)),
    _route("/deprecated-features/used", _get(_ANY, parameters.list_nothing)),
    # why, and who: the gate's own
    _route("/explain", _get(_ADMIN, explaining.explain_question)),
    _route("/who-can", _get(_ADMIN, explaining.list_who_can)),
    # users
    _route("/users", _get(_ADMIN, users.list_users)),
    _route("/users/bulk-delete", _post(_ADMIN, users.bulk_delete)),
    _route("/users/without-permissions", _get(_ADMIN, users.list_without_permissions)),
    _route(
        "/users/:user",
        _get(_ADMIN, users.get_user),
        _put(_ADMIN, users.put_user),
        _delete(_ADMIN, users.delete_user),
    ),
    _route("/users/:user/permissions", _get(_ADMIN, permissions.list_of_user)),
    _route("/users/:user/topic-permissions", _get(_ADMIN, permissions.list_topic_of_user)),
    _route("/user-limits", _get(_ADMIN, limits.list_user_limits), head=False),
    _route("/user-limits/:user", _get(Right.OWN_USER, limits.get_user_limits), head=False),
    _route(
        "/user-limits/:user/:name",
        _put(_ADMIN, limits.put_user_limit),
        _delete(_ADMIN, limits.delete_user_limit),
        accepts=ONLY_JSON,
    ),
    # virtual hosts
    _route("/vhosts", _get(_ANY, vhosts.list_vhosts)),
    _route(
        "/vhosts/:vhost",
        _get(_ADMIN, vhosts.get_vhost),
        _put(_ADMIN, vhosts.put_vhost),
        _delete(_ADMIN, vhosts.delete_vhost),
    ),
    _route(
        "/vhosts/:vhost/deletion/protection",
        _post(_ADMIN, vhosts.protect),
        _delete(_ADMIN, vhosts.unprotect),
    ),
    _route("/vhosts/:vhost/start/:node", _post(_ADMIN, vhosts.start)),
    _route("/vhosts/:vhost/permissions", _get(_ADMIN, permissions.list_of_vhost)),
    _route("/vhosts/:vhost/topic-permissions", _get(_ADMIN, permissions.list_topic_of_vhost)),
    _route("/vhosts/:vhost/connections", _get(Right.VHOST, connections.list_of_vhost)),
    _route("/vhosts/:vhost/channels", _get(Right.VHOST, connections.list_channels_of_vhost)),
    _route("/vhost-limits", _get(Right.VHOST_VISIBLE, limits.list_vhost_limits), head=False),
    _route("/vhost-limits/:vhost", _get(Right.VHOST_VISIBLE, limits.list_vhost_limits), head=False),
    _route(
        "/vhost-limits/:vhost/:name",
        _put(_ADMIN, limits.put_vhost_limit),
        _delete(_ADMIN, limits.delete_vhost_limit),
        accepts=ONLY_JSON,
    ),
    # permissions
    _route("/permissions", _get(_ADMIN, permissions.list_all)),
    _route(
        "/permissions/:vhost/:user",
        _get(_ADMIN, permissions.get),
        _put(_ADMIN, permissions.put),
        _delete(_ADMIN, permissions.delete),
    ),
    _route("/topic-permissions", _get(_ADMIN, permissions.list_all_topic)),
    *(
        _route(
            path,
            _get(_ADMIN, permissions.get_topic),
            _put(_ADMIN, permissions.put_topic),
            _delete(_ADMIN, permissions.delete_topic),
        )
        for path in (
            "/topic-permissions/:vhost/:user",
            "/topic-permissions/:vhost/:user/:exchange",
        )
    ),
    # connections and channels
    _route("/connections", _get(_ANY, connections.list_connections)),
    _route(
        "/connections/:connection",
        _get(_OWN_CONNECTION, connections.get_connection),
        _delete(_OWN_CONNECTION, connections.delete_connection),
    ),
    _route(
        "/connections/username/:user",
        _get(Right.OWN_USER, connections.list_of_user),
        _delete(Right.OWN_USER, connections.delete_of_user),
    ),
    _route(
        "/connections/:connection/channels",
        _get(_OWN_CONNECTION, connections.list_channels_of_connection),
    ),
    _route("/channels", _get(_ANY, connections.list_channels)),
    _route("/channels/:channel", _get(Right.OWN_CHANNEL, connections.get_channel)),
    # definitions and parameters
    *(
        _route(
            path,
            _get(_ADMIN, definitions.export),
            _post(_ADMIN, definitions.load),
            accepts=DOCUMENT,
        )
        for path in ("/definitions", "/all-configuration", "/definitions/:vhost")
    ),
    _route("/global-parameters", _get(_GLOBALS, parameters.list_global)),
    _route(
        "/global-parameters/:name",
        _get(_GLOBALS, parameters.get_global),
        _put(_GLOBALS, parameters.put_global),
        _delete(_GLOBALS, parameters.delete_global),
    ),
    _route("/parameters", _get(Right.PARAMETERS, parameters.list_parameters)),
    _route("/parameters/:component", _get(Right.PARAMETERS, parameters.list_parameters)),
    _route("/parameters/:component/:vhost", _get(Right.PARAMETERS, parameters.list_parameters)),
    _route("/parameters/:component/:vhost/:name", _get(Right.PARAMETERS, parameters.get_parameter)),
    *(
        _route(path, _get(Right.VHOST, parameters.list_nothing))
        for path in (
            "/policies",
            "/policies/:vhost",
            "/operator-policies",
            "/operator-policies/:vhost",
        )
    ),
    # health
    _route("/aliveness-test/:vhost", _get(Right.VHOST, health.aliveness)),
    _route("/healthchecks/node", _get(_ANY, health.node)),
    _route("/healthchecks/node/:node", _get(_ANY, health.node)),
    *(
        _route(f"/health/checks/{name}", _get(_ANY, health.fine))
        for name in (
            "alarms",
            "local-alarms",
            "virtual-hosts",
            "metadata-store/initialized",
            "metadata-store/initialized/with-data",
        )
    ),
    *(
        _route(f"/health/checks/{name}", _get(_NONE, health.fine))
        for name in (
            "below-node-connection-limit",
            "reached-target-cluster-size",
            "is-in-service",
        )
    ),
    _route("/health/checks/ready-to-serve-clients", _get(_NONE, health.ready)),
    _route("/health/checks/node-is-quorum-critical", _get(_ANY, health.single_node)),
    _route("/health/checks/certificate-expiration/:within/:unit", _get(_ANY, health.certificates)),
    _route("/health/checks/port-listener/:port", _get(_ANY, health.port_listener)),
    _route("/health/checks/protocol-listener/:protocols", _get(_ANY, health.protocol_listener)),
)


class Table:
    """The routes by length."""

    def __init__(self, routes: tuple[Route, ...] = ROUTES) -> None:
        self._by_length: dict[int, list[tuple[tuple[str, ...], Route]]] = {}
        for route in routes:
            self._by_length.setdefault(len(route.words), []).append((route.words, route))

    def find(self, segments: list[bytes]) -> tuple[Route, dict[str, bytes]] | None:
        """The route of a path, and what stands for its free words."""
        for words, route in self._by_length.get(len(segments), ()):
            if all(_fits(word, given) for word, given in zip(words, segments, strict=True)):
                return route, dict(_bound(words, segments))
        return None


def _fits(word: str, given: bytes) -> bool:
    return word.startswith(":") or word.encode() == given


def _bound(words: tuple[str, ...], segments: list[bytes]) -> Iterator[tuple[str, bytes]]:
    for word, given in zip(words, segments, strict=True):
        if word.startswith(":"):
            yield word[1:], given
