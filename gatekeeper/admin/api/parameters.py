"""Global parameters, the cluster's name, and the lists of what only a broker has.

Vhost limits show up as a parameter (component ``vhost-limits``); policies are the broker's.

Source: ``rabbit_mgmt_wm_global_parameter``, ``_parameters``, ``_parameter``, ``_cluster_name``.
"""

from __future__ import annotations

from gatekeeper.admin.api.access import enterable
from gatekeeper.admin.api.call import (
    NO_CONTENT,
    Call,
    Object,
    Reply,
    missing,
    name_of,
    put_reply,
    texts,
)
from gatekeeper.admin.api.shape import list_reply, object_reply
from gatekeeper.store.draft import Draft
from gatekeeper.store.records import Vhost
from gatekeeper.store.refusals import shown

CLUSTER_NAME = "cluster_name"
COMPONENT = b"vhost-limits"
LIMITS = b"limits"
_ORDER = ("vhost", "name")


# --- global parameters ---


async def list_global(call: Call) -> Reply:
    store = call.administration.store
    return await list_reply(
        call,
        lambda: ({"name": name, "value": value} for name, value in store.list_global_parameters()),
        sort=_ORDER,
    )


async def get_global(call: Call) -> Reply:
    name = call.text("name")
    value = call.administration.store.global_parameter(name)
    if value is None:
        raise missing()
    return object_reply(call, {"name": name, "value": value})


async def put_global(call: Call) -> Reply:
    name = name_of(call, "name").decode()
    value = (await call.document("value"))["value"]
    created = call.administration.store.global_parameter(name) is None
    await call.change(
        "set_global_parameter",
        {"name": name},
        lambda draft: draft.set_global_parameter(name, value),
    )
    return put_reply(created=created)


async def delete_global(call: Call) -> Reply:
    name = call.text("name")
    if not await call.change(
        "clear_global_parameter", {"name": name}, lambda draft: draft.clear_global_parameter(name)
    ):
        raise missing()
    return NO_CONTENT


def cluster_name(call: Call) -> str:
    """As set; else the node's name, as in RabbitMQ."""
    name = call.administration.store.global_parameter(CLUSTER_NAME)
    return name if isinstance(name, str) else call.administration.node


async def get_cluster_name(call: Call) -> Reply:
    return object_reply(call, {"name": cluster_name(call)})


async def put_cluster_name(call: Call) -> Reply:
    name = texts(await call.document("name"), "name")[0].decode()

    def work(draft: Draft) -> None:
        draft.set_global_parameter(CLUSTER_NAME, name)

    await call.change("set_cluster_name", {"name": name}, work)
    return NO_CONTENT


# --- parameters of vhosts ---


def _limits_of(vhost: Vhost) -> Object:
    return {
        "value": dict(vhost.limits),
        "vhost": shown(vhost.name),
        "component": COMPONENT.decode(),
        "name": LIMITS.decode(),
    }


async def list_parameters(call: Call) -> Reply:
    store, wanted = call.administration.store, call.vhost
    if wanted is not None and store.vhost(wanted) is None and "component" in call.names:
        raise missing()
    found: list[Vhost] = []
    if call.names.get("component", COMPONENT) == COMPONENT:
        found = [
            vhost
            for vhost in await call.administration.all_rows(store.list_vhosts)
            if vhost.limits and wanted in {None, vhost.name}
        ]
    if not call.user.administrator:
        allowed = await enterable(call, (vhost.name for vhost in found))
        found = [vhost for vhost in found if vhost.name in allowed]
    return await list_reply(call, lambda: map(_limits_of, found), sort=_ORDER)


async def get_parameter(call: Call) -> Reply:
    vhost = call.administration.store.vhost(call.names["vhost"])
    known = (call.names["component"], call.names["name"]) == (COMPONENT, LIMITS)
    if vhost is None or not vhost.limits or not known:
        raise missing()
    return object_reply(call, _limits_of(vhost))


async def list_nothing(call: Call) -> Reply:
    """What only a broker has: policies, feature flags."""
    wanted = call.names.get("vhost")
    if wanted is not None and call.administration.store.vhost(wanted) is None:
        raise missing()
    return await list_reply(call, list)
