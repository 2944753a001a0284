"""``/vhosts``: virtual hosts, their protection, and what is inside them.

Source: ``rabbit_mgmt_wm_vhost``, ``_vhosts``, ``_vhost_deletion_protection``,
``_vhost_restart``; ``rabbit_vhost:put_vhost/6``.
"""

from __future__ import annotations

from gatekeeper.admin.api.access import enterable
from gatekeeper.admin.api.call import (
    NO_CONTENT,
    Call,
    Object,
    Reply,
    bad_request,
    boolean,
    missing,
    name_of,
    problem,
    put_reply,
)
from gatekeeper.admin.api.shape import list_reply, object_reply
from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.store.draft import Draft
from gatekeeper.store.records import Vhost
from gatekeeper.store.refusals import NoSuchVhostError, VhostProtectedError, shown

DEFAULT_QUEUE_TYPE = "classic"
_QUEUE_TYPES = frozenset(
    {
        "classic",
        "quorum",
        "stream",
        "rabbit_classic_queue",
        "rabbit_quorum_queue",
        "rabbit_stream_queue",
    }
)
_ALL = PermissionSet(b".*", b".*", b".*")


def vhost_object(vhost: Vhost, node: str) -> Object:
    queue_type = vhost.default_queue_type or DEFAULT_QUEUE_TYPE
    metadata: Object = {
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
        "metadata": metadata,
        "tracing": False,
        "cluster_state": {node: "running"},
    }


async def visible(call: Call) -> list[Vhost]:
    """Those that the caller may know of. Source: ``list_visible_vhosts/1``."""
    found = await call.administration.all_rows(call.administration.store.list_vhosts)
    if call.user.monitor:
        return found
    allowed = await enterable(call, (vhost.name for vhost in found))
    return [vhost for vhost in found if vhost.name in allowed]


async def list_vhosts(call: Call) -> Reply:
    found, node = await visible(call), call.administration.node
    return await list_reply(
        call, lambda: (vhost_object(vhost, node) for vhost in found), paged=True, sort=("name",)
    )


async def get_vhost(call: Call) -> Reply:
    return object_reply(call, vhost_object(existing(call), call.administration.node))


def existing(call: Call) -> Vhost:
    """The vhost that the path names, else 404."""
    vhost = call.administration.store.vhost(call.names["vhost"])
    if vhost is None:
        raise missing()
    return vhost


async def put_vhost(call: Call) -> Reply:
    name = name_of(call, "vhost")
    document = await call.document()
    boolean(document.get("tracing"))  # judged, as RabbitMQ does; a gate has nothing to trace
    description = document.get("description", "")
    if not isinstance(description, str):
        raise bad_request("description must be a string")
    tags = _tags(document.get("tags"))
    queue_type = _queue_type(document.get("default_queue_type", document.get("defaultqueuetype")))
    creator = call.user.identity.username

    def work(draft: Draft) -> bool:
        created = draft.put_vhost(
            name, description=description, tags=tags, default_queue_type=queue_type
        )
        if created and draft.has_user(creator):
            draft.set_permissions(creator, name, _ALL)  # maybe_grant_full_permissions
        return created

    return put_reply(created=await call.change("add_vhost", {"vhost": name}, work))


async def delete_vhost(call: Call) -> Reply:
    name = existing(call).name
    try:
        await call.change_or_raise(
            "delete_vhost", {"vhost": name}, lambda draft: draft.delete_vhost(name)
        )
    except VhostProtectedError as error:
        reason = (
            f"Refusing to delete virtual host '{shown(name)}' because it is protected from deletion"
        )
        raise problem(412, "precondition_failed", reason) from error
    except NoSuchVhostError:
        raise missing() from None
    return NO_CONTENT


async def protect(call: Call) -> Reply:
    name = call.names["vhost"]
    if call.administration.store.vhost(name) is None:
        reason = (
            f"Cannot enable deletion protection of virtual host '{shown(name)}' because it does"
            " not exist"
        )
        raise problem(404, "not_found", reason)
    return await _protection(call, name, protected=True)


async def unprotect(call: Call) -> Reply:
    return await _protection(call, existing(call).name, protected=False)


async def _protection(call: Call, name: bytes, *, protected: bool) -> Reply:
    def work(draft: Draft) -> None:
        draft.vhost(name)  # it must exist: put_vhost would make one
        draft.put_vhost(name, protected=protected)

    word = "enable" if protected else "disable"
    await call.change(f"{word}_vhost_deletion_protection", {"vhost": name}, work)
    return NO_CONTENT


async def start(call: Call) -> Reply:
    """A vhost of the gate always runs."""
    node = call.text("node")
    if node != call.administration.node:
        raise bad_request(f"Unknown node: {node}")
    name = call.names["vhost"]
    if call.administration.store.vhost(name) is None:
        text = f'Request to node {node} failed with {{no_such_vhost,<<"{shown(name)}">>}}'
        raise bad_request(text)
    return NO_CONTENT


# --- the body of a PUT ---


def _tags(value: object) -> list[str]:
    """Text with commas, or a list. Source: ``rabbit_vhost:parse_tags/1``."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [tag.strip() for tag in value.split(",")]
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        return [str(tag).strip() for tag in value]
    raise bad_request("tags must be a string or a list of strings")


def _queue_type(value: object) -> str:
    """Source: ``rabbit_queue_type:validate_default_queue_type/1``."""
    if value is None or value == "undefined":
        return DEFAULT_QUEUE_TYPE
    if not isinstance(value, str):
        raise bad_request(f"{value} is not a valid default_queue_type value")
    if not value:
        raise bad_request("default_queue_type must not be an empty string")
    if value not in _QUEUE_TYPES:
        raise bad_request(f"{value} is not a valid queue type")
    return value
