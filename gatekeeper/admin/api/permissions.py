"""Permissions and topic permissions, by vhost and user, and the lists of both.

Source: ``rabbit_mgmt_wm_permission``, ``_permissions``, ``_permissions_user``,
``_permissions_vhost`` and their ``topic_`` kin.
"""

from __future__ import annotations

from collections.abc import Iterator

from gatekeeper.admin.api.call import (
    NO_CONTENT,
    Call,
    Object,
    Reply,
    bad_request,
    invalid_pattern,
    missing,
    put_reply,
    refuse_for,
    texts,
)
from gatekeeper.admin.api.shape import list_reply, object_reply
from gatekeeper.model import DEFAULT_EXCHANGE_ALIAS
from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store.draft import Draft
from gatekeeper.store.refusals import InvalidPatternError, RequestError, shown

_ORDER = ("vhost", "user")


def _permission(user: bytes, vhost: bytes, permissions: PermissionSet) -> Object:
    return {
        "user": shown(user),
        "vhost": shown(vhost),
        "configure": shown(permissions.configure),
        "write": shown(permissions.write),
        "read": shown(permissions.read),
    }


def _topic_permission(
    user: bytes, vhost: bytes, exchange: bytes, permissions: TopicPermissionSet
) -> Object:
    return {
        "user": shown(user),
        "vhost": shown(vhost),
        "exchange": shown(exchange),
        "write": shown(permissions.write),
        "read": shown(permissions.read),
    }


def _names(call: Call) -> tuple[bytes, bytes]:
    return call.names["user"], call.names["vhost"]


def _must_exist(call: Call) -> None:
    """Before the body is looked at, as RabbitMQ does."""
    user, vhost = _names(call)
    store = call.administration.store
    if store.user(user) is None or store.vhost(vhost) is None:
        raise bad_request("vhost_or_user_not_found")


# --- permissions ---


async def list_all(call: Call) -> Reply:
    store = call.administration.store
    return await list_reply(
        call, lambda: (_permission(*row) for row in store.list_permissions()), sort=_ORDER
    )


async def list_of_vhost(call: Call) -> Reply:
    store, vhost = call.administration.store, call.names["vhost"]
    if store.vhost(vhost) is None:
        raise missing()
    return await list_reply(
        call, lambda: (_permission(*row) for row in store.list_permissions(vhost)), sort=_ORDER
    )


async def list_of_user(call: Call) -> Reply:
    store, user = call.administration.store, call.names["user"]
    if store.user(user) is None:
        raise missing()
    return await list_reply(
        call,
        lambda: (_permission(user, *row) for row in store.list_user_permissions(user)),
        sort=_ORDER,
    )


async def get(call: Call) -> Reply:
    user, vhost = _names(call)
    permissions = call.administration.store.permissions(user, vhost)
    if permissions is None:
        raise missing()
    return object_reply(call, _permission(user, vhost, permissions))


async def put(call: Call) -> Reply:
    _must_exist(call)
    user, vhost = _names(call)
    document = await call.document("configure", "write", "read")
    permissions = PermissionSet(*texts(document, "configure", "write", "read"))

    def work(draft: Draft) -> bool:
        created = not draft.has_permissions(user, vhost)
        draft.set_permissions(user, vhost, permissions)
        return created

    return put_reply(
        created=await call.change("set_permissions", _permission(user, vhost, permissions), work)
    )


async def delete(call: Call) -> Reply:
    user, vhost = _names(call)
    target = {"user": user, "vhost": vhost}
    if call.administration.store.permissions(user, vhost) is None or not await call.change(
        "clear_permissions", target, lambda draft: draft.clear_permissions(user, vhost)
    ):
        raise missing()
    return NO_CONTENT


# --- topic permissions ---


async def list_all_topic(call: Call) -> Reply:
    store = call.administration.store
    return await list_reply(
        call,
        lambda: (_topic_permission(*row) for row in store.list_topic_permissions()),
        sort=_ORDER,
    )


async def list_topic_of_vhost(call: Call) -> Reply:
    store, vhost = call.administration.store, call.names["vhost"]
    if store.vhost(vhost) is None:
        raise missing()
    return await list_reply(
        call,
        lambda: (_topic_permission(*row) for row in store.list_topic_permissions(vhost)),
        sort=_ORDER,
    )


async def list_topic_of_user(call: Call) -> Reply:
    store, user = call.administration.store, call.names["user"]
    if store.user(user) is None:
        raise missing()
    return await list_reply(
        call,
        lambda: (_topic_permission(user, *row) for row in store.list_user_topic_permissions(user)),
        sort=_ORDER,
    )


async def _topic_rows(call: Call) -> list[Object]:
    """Of the user in the vhost. An exchange in the path makes no difference to RabbitMQ."""
    user, vhost = _names(call)
    store = call.administration.store
    if store.user(user) is None or store.vhost(vhost) is None:
        raise missing()

    def rows() -> Iterator[Object]:
        return (
            _topic_permission(user, *row)
            for row in store.list_user_topic_permissions(user)
            if row[0] == vhost
        )

    found = await call.administration.all_rows(rows)
    if not found:
        raise missing()
    return found


async def get_topic(call: Call) -> Reply:
    rows = await _topic_rows(call)
    return await list_reply(call, lambda: rows)


async def put_topic(call: Call) -> Reply:
    _must_exist(call)
    user, vhost = _names(call)
    document = await call.document("exchange", "write", "read")
    exchange, write, read = texts(document, "exchange", "write", "read")
    permissions = TopicPermissionSet(write, read)

    def work(draft: Draft) -> bool:
        created = not draft.has_topic_permissions(user, vhost)
        draft.set_topic_permissions(user, vhost, exchange, permissions)
        return created

    target = _topic_permission(user, vhost, exchange, permissions)
    try:
        created = await call.change_or_raise("set_topic_permissions", target, work)
    except InvalidPatternError as error:
        raise bad_request(invalid_pattern(error, shown(error.pattern))) from error
    except RequestError as error:
        refuse_for(error)
    return put_reply(created=created)


async def delete_topic(call: Call) -> Reply:
    await _topic_rows(call)
    user, vhost = _names(call)
    exchange = call.names.get("exchange")
    if exchange == DEFAULT_EXCHANGE_ALIAS:
        exchange = b""
    target = {"user": user, "vhost": vhost, "exchange": exchange}
    await call.change(
        "clear_topic_permissions",
        {key: value for key, value in target.items() if value is not None},
        lambda draft: draft.clear_topic_permissions(user, vhost, exchange),
    )
    return NO_CONTENT
