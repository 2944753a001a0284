"""What the control socket does to limits and global parameters. As ``access.py``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from gatekeeper.admin.access import CLUSTER_NAME, change, listed
from gatekeeper.admin.request import Call, Listing, NoSuchParameterError, Row, shown
from gatekeeper.store.draft import Draft
from gatekeeper.store.records import User, Vhost
from gatekeeper.store.refusals import NoSuchUserError, NoSuchVhostError


def _json(value: object) -> str:
    """As RabbitMQ prints it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)


def _limits(limits: Mapping[str, int]) -> str:
    return _json(dict(limits))


async def set_user_limits(call: Call) -> None:
    user, limits = call.arguments.name("user"), call.arguments.mapping("limits")
    await change(
        call,
        "set_user_limits",
        {"user": user, "limits": limits},
        lambda draft: draft.set_user_limits(user, limits),
    )


async def clear_user_limits(call: Call) -> None:
    user, limit = call.arguments.name("user"), call.arguments.text("limit")
    await change(
        call,
        "clear_user_limits",
        {"user": user, "limit": limit},
        lambda draft: draft.clear_user_limits(user, limit),
    )


async def user_limits(call: Call) -> str:
    """Of one user."""
    name = call.arguments.name("user")
    user = await call.administration.read(call.administration.store.user, name)
    if user is None:
        raise NoSuchUserError(name)
    return _limits(user.limits)


def list_user_limits(call: Call) -> Listing:
    """Of all users that have any."""

    def limited() -> Iterator[User]:
        return (user for user in call.administration.store.list_users() if user.limits)

    def row(user: User) -> Row:
        return {"user": shown(user.name), "limits": _limits(user.limits)}

    return listed(call, limited, row)


async def set_vhost_limits(call: Call) -> None:
    vhost, limits = call.arguments.name("vhost"), call.arguments.mapping("limits")
    await change(
        call,
        "set_vhost_limits",
        {"vhost": vhost, "limits": limits},
        lambda draft: draft.set_vhost_limits(vhost, limits),
    )


async def clear_vhost_limits(call: Call) -> None:
    vhost = call.arguments.name("vhost")

    def work(draft: Draft) -> None:
        # RabbitMQ looks for the parameter, not for the vhost.
        if not draft.has_vhost(vhost) or not draft.clear_vhost_limits(vhost):
            raise NoSuchParameterError

    await change(call, "clear_vhost_limits", {"vhost": vhost}, work)


async def vhost_limits(call: Call) -> str | None:
    """Of one vhost; None where it has none."""
    name = call.arguments.name("vhost")
    vhost = await call.administration.read(call.administration.store.vhost, name)
    if vhost is None:
        raise NoSuchVhostError(name)
    return _limits(vhost.limits) if vhost.limits else None


def list_vhost_limits(call: Call) -> Listing:
    """Of all vhosts that have any."""

    def limited() -> Iterator[Vhost]:
        return (vhost for vhost in call.administration.store.list_vhosts() if vhost.limits)

    def row(vhost: Vhost) -> Row:
        return {"vhost": shown(vhost.name), "limits": _limits(vhost.limits)}

    return listed(call, limited, row)


# --- global parameters ---


async def set_global_parameter(call: Call) -> None:
    name, value = call.arguments.text("name"), call.arguments.json("value")
    await change(
        call,
        "set_global_parameter",
        {"name": name},
        lambda draft: draft.set_global_parameter(name, value),
    )


async def clear_global_parameter(call: Call) -> None:
    name = call.arguments.text("name")

    def work(draft: Draft) -> None:
        if not draft.clear_global_parameter(name):
            raise NoSuchParameterError

    await change(call, "clear_global_parameter", {"name": name}, work)


async def list_global_parameters(call: Call) -> Listing:
    found = await call.administration.read(call.administration.store.list_global_parameters)
    yield [{"name": name, "value": _json(value)} for name, value in found]


async def set_cluster_name(call: Call) -> None:
    name = call.arguments.text("name")
    await change(
        call,
        "set_cluster_name",
        {"name": name},
        lambda draft: draft.set_global_parameter(CLUSTER_NAME, name),
    )
