"""``/users``: the users of the gate's own database.

Source: ``rabbit_mgmt_wm_user``, ``_users``, ``_users_bulk_delete``, ``_hash_password``;
``rabbit_auth_backend_internal:put_user/3``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gatekeeper.admin.api.call import (
    NO_CONTENT,
    Call,
    Object,
    Reply,
    answer,
    bad_request,
    boolean,
    missing,
    name_of,
    put_reply,
    texts,
)
from gatekeeper.admin.api.shape import list_reply, object_reply
from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.store import passwords
from gatekeeper.store.checks import MAX_TAGS
from gatekeeper.store.draft import Draft
from gatekeeper.store.records import User
from gatekeeper.store.refusals import shown

PROTECTED = "protected"
_READ_ONLY = "Protected users cannot be modified via the HTTP API"


def user_object(user: User) -> Object:
    return {
        "name": shown(user.name),
        "password_hash": passwords.to_base64(user.password_hash),
        "hashing_algorithm": user.algorithm,
        "tags": list(user.tags),
        "limits": dict(user.limits),
    }


async def list_users(call: Call) -> Reply:
    store = call.administration.store
    return await list_reply(
        call, lambda: map(user_object, store.list_users()), paged=True, sort=("name",)
    )


async def list_without_permissions(call: Call) -> Reply:
    store = call.administration.store

    def rows() -> Iterator[Object]:
        granted = {user for user, _, _ in store.list_permissions()}
        return (user_object(user) for user in store.list_users() if user.name not in granted)

    return await list_reply(call, rows, paged=True, sort=("name",))


async def get_user(call: Call) -> Reply:
    return object_reply(call, user_object(existing(call)))


def existing(call: Call) -> User:
    """The user that the path names, else 404."""
    user = call.administration.store.user(call.names["user"])
    if user is None:
        raise missing()
    return user


async def put_user(call: Call) -> Reply:
    name = name_of(call, "user")
    _refuse_protected(call.administration.store.user(name))
    wanted = _wanted(await call.document())

    def work(draft: Draft) -> bool:
        # Again, inside the transaction: somebody may have protected the user meanwhile.
        if draft.has_user(name):
            _refuse_protected(draft.user(name))
        return draft.put_user(
            name,
            wanted.password,
            password_hash=wanted.password_hash,
            algorithm=wanted.algorithm,
            tags=wanted.tags,
            limits=wanted.limits,
            permissions=wanted.permissions,
        )

    target = {"user": name, "tags": ",".join(wanted.tags)}
    return put_reply(created=await call.change("put_user", target, work))


async def delete_user(call: Call) -> Reply:
    name = existing(call).name

    def work(draft: Draft) -> bool:
        if draft.has_user(name):
            _refuse_protected(draft.user(name))
        return draft.delete_user(name)

    if not await call.change("delete_user", {"user": name}, work):
        raise missing()
    return NO_CONTENT


async def bulk_delete(call: Call) -> Reply:
    users = (await call.document("users"))["users"]
    if not isinstance(users, list) or not all(isinstance(name, str) for name in users):
        raise bad_request("users must be a list of strings")
    names = [str(name).encode() for name in users]

    def work(draft: Draft) -> None:
        for name in names:
            if draft.has_user(name) and PROTECTED not in draft.user(name).tags:
                draft.delete_user(name)

    await call.change("bulk_delete_users", {"users": [shown(name) for name in names]}, work)
    return NO_CONTENT


async def hash_password(call: Call) -> Reply:
    algorithm = call.administration.settings.password_hashing
    try:
        hashed = await call.administration.read(
            passwords.hash_password, call.names["password"], algorithm
        )
    except ValueError as error:
        raise bad_request(str(error)) from None
    return answer({"ok": passwords.to_base64(hashed)})


def _refuse_protected(user: User | None) -> None:
    if user is not None and PROTECTED in user.tags:
        raise bad_request(_READ_ONLY)


# --- the body of a PUT ---


@dataclass(frozen=True, slots=True)
class _Wanted:
    tags: tuple[str, ...]
    password: bytes | None = field(repr=False)
    password_hash: bytes | None = field(repr=False)
    algorithm: str | None
    limits: Object
    permissions: Mapping[bytes, PermissionSet]


def _wanted(document: Object) -> _Wanted:
    """Judged in RabbitMQ's order; of several mistakes it names the same one first."""
    if (count := _tag_count(document.get("tags"))) > MAX_TAGS:
        raise bad_request(f"A user can have at most {MAX_TAGS} tags (received {count})")
    tags = _tags(document)
    limits = document.get("limits")
    if limits is not None and not isinstance(limits, dict):
        raise bad_request("limits must be an object")
    if "password" in document and "password_hash" in document:
        raise bad_request("both_password_and_password_hash_are_provided")
    return _Wanted(
        tags=tags,
        password=texts(document, "password")[0] if "password" in document else None,
        password_hash=_hash(document) if "password_hash" in document else None,
        algorithm=_algorithm(document.get("hashing_algorithm")),
        limits=limits or {},
        permissions=_permissions(document.get("permissions")),
    )


def _tag_count(tags: object) -> int:
    if isinstance(tags, str):
        return sum(1 for tag in tags.split(",") if tag)
    return len(tags) if isinstance(tags, list) else 0


def _tags(document: Object) -> tuple[str, ...]:
    tags = document.get("tags")
    if isinstance(tags, str):
        return tuple(tag.strip(" ") for tag in tags.split(",") if tag)
    if isinstance(tags, list):
        return tuple(_tag(tag) for tag in tags)
    if "tags" in document:
        raise bad_request("tags must be a string or a list of strings")
    administrator = boolean(document.get("administrator"))
    if administrator is None:
        raise bad_request("tags_not_present")
    return ("administrator",) if administrator else ()


def _tag(tag: object) -> str:
    """A list's item; a number is a tag to RabbitMQ as well."""
    match tag:
        case str():
            return tag.strip(" ")
        case bool():
            return str(tag).lower()
        case int():
            return str(tag)
        case _:
            raise bad_request("tags must be a string or a list of strings")


def _hash(document: Object) -> bytes:
    text = document["password_hash"]
    try:
        return passwords.from_base64(text if isinstance(text, str) else "!")
    except ValueError:
        raise bad_request(["not_base64", text]) from None


def _algorithm(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise bad_request("hashing_algorithm must be a string")


def _permissions(value: object) -> dict[bytes, PermissionSet]:
    """Of a new user, by vhost."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request("permissions must be an object")
    found: dict[bytes, PermissionSet] = {}
    for vhost, patterns in value.items():
        if not isinstance(patterns, dict) or not {"configure", "write", "read"} <= patterns.keys():
            raise bad_request("permissions must have configure, write and read for each vhost")
        found[vhost.encode()] = PermissionSet(*texts(patterns, "configure", "write", "read"))
    return found
