"""``/vhost-limits`` and ``/user-limits``.

Source: ``rabbit_mgmt_wm_limit``, ``_limits``, ``_user_limit``, ``_user_limits``.
"""

from __future__ import annotations

from collections.abc import Iterator

from gatekeeper.admin.api.access import enterable
from gatekeeper.admin.api.call import NO_CONTENT, Call, Object, Reply, bad_request, missing, problem
from gatekeeper.admin.api.shape import list_reply
from gatekeeper.store.refusals import InvalidLimitsError, shown


def _no_vhost() -> Exception:
    return problem(404, "not_found", "vhost_not_found")


# --- of vhosts ---


async def list_vhost_limits(call: Call) -> Reply:
    """Of the one that the path or ``x-vhost`` names, else of all that the caller may know of."""
    store, wanted = call.administration.store, call.vhost
    if wanted is not None:
        vhost = store.vhost(wanted)
        if vhost is None:
            raise missing()
        found = [vhost] if vhost.limits else []
    else:
        found = [one for one in await call.administration.all_rows(store.list_vhosts) if one.limits]
        if not call.user.monitor:
            allowed = await enterable(call, (one.name for one in found))
            found = [one for one in found if one.name in allowed]
    rows: list[Object] = [{"vhost": shown(one.name), "value": dict(one.limits)} for one in found]
    return await list_reply(call, lambda: rows)


async def put_vhost_limit(call: Call) -> Reply:
    vhost, limit = call.names["vhost"], call.text("name")
    if call.administration.store.vhost(vhost) is None:
        raise _no_vhost()
    value = (await call.document("value"))["value"]
    try:
        await call.change_or_raise(
            "set_vhost_limits",
            {"vhost": vhost, "limit": limit, "value": value},
            lambda draft: draft.set_vhost_limit(vhost, limit, value),
        )
    except InvalidLimitsError as error:
        raise bad_request(f"Validation failed\n\n{error}\n") from error
    return NO_CONTENT


async def delete_vhost_limit(call: Call) -> Reply:
    vhost, limit = call.names["vhost"], call.text("name")
    if call.administration.store.vhost(vhost) is None:
        raise _no_vhost()
    target = {"vhost": vhost, "limit": limit}
    await call.change(
        "clear_vhost_limits", target, lambda draft: draft.clear_vhost_limits(vhost, limit)
    )
    return NO_CONTENT


# --- of users ---


async def list_user_limits(call: Call) -> Reply:
    store = call.administration.store

    def rows() -> Iterator[Object]:
        return (
            {"user": shown(user.name), "value": dict(user.limits)}
            for user in store.list_users()
            if user.limits
        )

    return await list_reply(call, rows)


async def get_user_limits(call: Call) -> Reply:
    user = call.administration.store.user(call.names["user"])
    if user is None:
        raise missing()
    rows: list[Object] = (
        [{"user": shown(user.name), "value": dict(user.limits)}] if user.limits else []
    )
    return await list_reply(call, lambda: rows)


async def put_user_limit(call: Call) -> Reply:
    user, limit = call.names["user"], call.text("name")
    value = (await call.document("value"))["value"]
    await call.change(
        "set_user_limits",
        {"user": user, "limit": limit, "value": value},
        lambda draft: draft.set_user_limits(user, {limit: value}),
    )
    return NO_CONTENT


async def delete_user_limit(call: Call) -> Reply:
    user, limit = call.names["user"], call.text("name")
    if call.administration.store.user(user) is None:
        raise _no_vhost()  # RabbitMQ's words for it
    target = {"user": user, "limit": limit}
    await call.change(
        "clear_user_limits", target, lambda draft: draft.clear_user_limits(user, limit)
    )
    return NO_CONTENT
