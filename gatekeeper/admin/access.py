"""What the control socket does to users, vhosts, permissions, limits and global parameters.

A change takes its arguments first, so that a wrong one stops it before a transaction begins; who
did it and to what goes into the log with the change, secrets do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from gatekeeper.admin.request import (
    BadRequestError,
    Call,
    Listing,
    LoginRefusedError,
    NoSuchExchangeError,
    Row,
    shown,
)
from gatekeeper.model import Peer
from gatekeeper.policy.answers import LoginRefused
from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store import passwords
from gatekeeper.store.draft import Draft
from gatekeeper.store.records import User, Vhost
from gatekeeper.store.refusals import CredentialRefusedError

CLUSTER_NAME = "cluster_name"
DEFAULT_QUEUE_TYPE = "classic"
"""RabbitMQ's, where a vhost has none of its own."""
HERE = Peer("127.0.0.1", 0, loopback=True)

T = TypeVar("T")


async def change(
    call: Call, action: str, target: Mapping[str, object], work: Callable[[Draft], T]
) -> T:
    return await call.administration.change(call.actor, action, target, work)


async def listed(
    call: Call, listing: Callable[[], Iterator[T]], row: Callable[[T], Row]
) -> Listing:
    async for batch in call.administration.rows(listing):
        yield [row(one) for one in batch]


# --- users ---


async def add_user(call: Call) -> None:
    """With a password, or with a base64 hash made by the configured algorithm."""
    arguments = call.arguments
    user = arguments.name("user")
    password, hashed = arguments.optional_name("password"), _hash(call)
    if (password is None) is (hashed is None):
        raise BadRequestError("one of password and password_hash must be given")
    await change(
        call,
        "add_user",
        {"user": user},
        lambda draft: draft.add_user(user, password, password_hash=hashed),
    )


def _hash(call: Call) -> bytes | None:
    text = call.arguments.optional_text("password_hash")
    if text is None:
        return None
    try:
        return passwords.from_base64(text)
    except ValueError:
        raise BadRequestError("password_hash must be base64") from None


async def delete_user(call: Call) -> bool:
    """False if there was none."""
    user = call.arguments.name("user")
    return await change(call, "delete_user", {"user": user}, lambda draft: draft.delete_user(user))


async def change_password(call: Call) -> None:
    user, password = call.arguments.name("user"), call.arguments.name("password")
    await change(
        call,
        "change_password",
        {"user": user},
        lambda draft: draft.change_password(user, password),
    )


async def clear_password(call: Call) -> None:
    user = call.arguments.name("user")
    await change(call, "clear_password", {"user": user}, lambda draft: draft.clear_password(user))


async def set_user_tags(call: Call) -> None:
    user, tags = call.arguments.name("user"), call.arguments.texts("tags")
    await change(
        call,
        "set_user_tags",
        {"user": user, "tags": tags},
        lambda draft: draft.set_user_tags(user, tags),
    )


async def authenticate_user(call: Call) -> None:
    """As a login of a client on this machine. Raises LoginRefusedError."""
    user, password = call.arguments.name("user"), call.arguments.name("password")
    answer = await call.administration.authenticate(user, password, HERE)
    if isinstance(answer, LoginRefused):
        target = {"user": user}
        call.administration.denied(call.actor, "authenticate_user", target, answer.reason)
        raise LoginRefusedError(answer.reason)


async def hash_password(call: Call) -> str:
    """By the configured algorithm."""
    password = call.arguments.name("password")
    algorithm = call.administration.store.algorithm
    try:
        hashed = await call.administration.read(passwords.hash_password, password, algorithm)
    except ValueError as error:
        raise CredentialRefusedError(str(error)) from None
    return passwords.to_base64(hashed)


def list_users(call: Call) -> Listing:
    def row(user: User) -> Row:
        return {"user": shown(user.name), "tags": list(user.tags)}

    return listed(call, call.administration.store.list_users, row)


# --- vhosts ---


async def add_vhost(call: Call) -> bool:
    """False if it was there already; then nothing is changed (rabbit_vhost:add)."""
    return await _put_vhost(call, "add_vhost", new=True)


async def update_vhost(call: Call) -> bool:
    return await _put_vhost(call, "update_vhost_metadata", new=False)


async def _put_vhost(call: Call, action: str, *, new: bool) -> bool:
    arguments = call.arguments
    vhost, description = arguments.name("vhost"), arguments.optional_text("description")
    tags = arguments.texts("tags") if arguments.given("tags") else None
    queue_type = arguments.optional_text("default_queue_type")
    protected = arguments.optional_flag("protected")

    def work(draft: Draft) -> bool:
        if new and draft.has_vhost(vhost):
            return False
        if not new:
            draft.vhost(vhost)
        return draft.put_vhost(
            vhost,
            description=description,
            tags=tags,
            default_queue_type=queue_type,
            protected=protected,
        )

    target = {
        "vhost": vhost,
        "description": description,
        "tags": tags,
        "default_queue_type": queue_type,
        "protected_from_deletion": protected,
    }
    given = {key: value for key, value in target.items() if value is not None}
    return await change(call, action, given, work)


async def delete_vhost(call: Call) -> None:
    vhost = call.arguments.name("vhost")
    await change(call, "delete_vhost", {"vhost": vhost}, lambda draft: draft.delete_vhost(vhost))


def list_vhosts(call: Call) -> Listing:
    node = call.administration.node

    def row(vhost: Vhost) -> Row:
        queue_type = vhost.default_queue_type or DEFAULT_QUEUE_TYPE
        metadata: Row = {
            "description": vhost.description,
            "tags": list(vhost.tags),
            "default_queue_type": queue_type,
        }
        if vhost.protected:
            metadata["protected_from_deletion"] = True
        return {
            "name": shown(vhost.name),
            "description": vhost.description,
            "tags": list(vhost.tags),
            "default_queue_type": queue_type,
            "protected_from_deletion": vhost.protected,
            "tracing": False,
            "cluster_state": {node: "running"},
            "metadata": metadata,
        }

    return listed(call, call.administration.store.list_vhosts, row)


# --- permissions ---


def _permissions(call: Call) -> PermissionSet:
    configure, write, read = map(call.arguments.name, ("configure", "write", "read"))
    return PermissionSet(configure, write, read)


def _shown_permissions(permissions: PermissionSet) -> Row:
    return {
        "configure": shown(permissions.configure),
        "write": shown(permissions.write),
        "read": shown(permissions.read),
    }


async def set_permissions(call: Call) -> None:
    user, vhost = call.arguments.name("user"), call.arguments.name("vhost")
    permissions = _permissions(call)
    target = {"user": user, "vhost": vhost, **_shown_permissions(permissions)}
    await change(
        call,
        "set_permissions",
        target,
        lambda draft: draft.set_permissions(user, vhost, permissions),
    )


async def set_permissions_globally(call: Call) -> None:
    """In every vhost there is now; in none where the user or a pattern is refused."""
    user, permissions = call.arguments.name("user"), _permissions(call)
    vhosts = await call.administration.all_rows(call.administration.store.list_vhosts)

    def work(draft: Draft) -> None:
        draft.user(user)
        for vhost in vhosts:
            if draft.has_vhost(vhost.name):
                draft.set_permissions(user, vhost.name, permissions)

    target = {"user": user, **_shown_permissions(permissions)}
    await change(call, "set_permissions_globally", target, work)


async def clear_permissions(call: Call) -> bool:
    """False if there were none."""
    user, vhost = call.arguments.name("user"), call.arguments.name("vhost")
    return await change(
        call,
        "clear_permissions",
        {"user": user, "vhost": vhost},
        lambda draft: draft.clear_permissions(user, vhost),
    )


def list_permissions(call: Call) -> Listing:
    vhost, store = call.arguments.name("vhost"), call.administration.store
    return listed(
        call,
        lambda: store.list_permissions(vhost),
        lambda found: {"user": shown(found[0]), **_shown_permissions(found[2])},
    )


def list_user_permissions(call: Call) -> Listing:
    user, store = call.arguments.name("user"), call.administration.store
    return listed(
        call,
        lambda: store.list_user_permissions(user),
        lambda found: {"vhost": shown(found[0]), **_shown_permissions(found[1])},
    )


# --- topic permissions ---


async def set_topic_permissions(call: Call) -> None:
    """Whether the exchange exists is asked of the broker (RabbitMQ 4.3.2 on): after everything
    else, and where the broker does not tell, it is taken to exist."""
    user, vhost, exchange = map(call.arguments.name, ("user", "vhost", "exchange"))
    permissions = TopicPermissionSet(call.arguments.name("write"), call.arguments.name("read"))
    exists = await call.administration.exchange_exists(vhost, exchange)

    def work(draft: Draft) -> None:
        draft.set_topic_permissions(user, vhost, exchange, permissions)
        if not exists:
            raise NoSuchExchangeError(exchange)

    target = {"user": user, "vhost": vhost, "exchange": exchange, **_shown_topic(permissions)}
    await change(call, "set_topic_permissions", target, work)


def _shown_topic(permissions: TopicPermissionSet) -> Row:
    return {"write": shown(permissions.write), "read": shown(permissions.read)}


async def clear_topic_permissions(call: Call) -> int:
    """How many records there were; ``exchange`` missing: on all exchanges."""
    arguments = call.arguments
    user, vhost = arguments.name("user"), arguments.name("vhost")
    exchange = arguments.optional_name("exchange")
    target = {"user": user, "vhost": vhost}
    if exchange is not None:
        target["exchange"] = exchange
    return await change(
        call,
        "clear_topic_permissions",
        target,
        lambda draft: draft.clear_topic_permissions(user, vhost, exchange),
    )


def list_topic_permissions(call: Call) -> Listing:
    vhost, store = call.arguments.name("vhost"), call.administration.store
    return listed(
        call,
        lambda: store.list_topic_permissions(vhost),
        lambda found: {
            "user": shown(found[0]),
            "exchange": shown(found[2]),
            **_shown_topic(found[3]),
        },
    )


def list_user_topic_permissions(call: Call) -> Listing:
    user, store = call.arguments.name("user"), call.administration.store
    return listed(
        call,
        lambda: store.list_user_topic_permissions(user),
        lambda found: {
            "vhost": shown(found[0]),
            "exchange": shown(found[1]),
            **_shown_topic(found[2]),
        },
    )
