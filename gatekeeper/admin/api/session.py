"""Who am I, logging in, and what is told about logins.

Source: ``rabbit_mgmt_wm_whoami``, ``_login``, ``_auth_attempts``.
"""

from __future__ import annotations

import base64
from urllib.parse import parse_qsl

from gatekeeper.admin.api.access import log_in_by_form
from gatekeeper.admin.api.call import NO_CONTENT, Call, Caller, Object, Reply, answer, missing
from gatekeeper.admin.api.shape import list_reply, object_reply

INTERNAL = "rabbit_auth_backend_internal"
FORM_LIMIT = 64_000
"""Bytes of a login: read before anybody is known, so as many as Cowboy's default."""
MAX_FIELDS = 20


def _user_object(call: Call, user: Caller) -> Object:
    backends = {name for name, _ in user.identity.grants}
    row: Object = {
        "name": user.name,
        "tags": sorted(user.tags),
        "is_internal_user": INTERNAL in backends,
    }
    timeout = call.service.management.login_session_timeout
    return row if timeout is None else {**row, "login_session_timeout": timeout}


async def whoami(call: Call) -> Reply:
    return object_reply(call, _user_object(call, call.user))


async def log_in(call: Call) -> Reply:
    """The token is what the client would send as Basic anyway."""
    fields = dict(_fields(await call.read(FORM_LIMIT)))
    username, password = fields.get(b"username", b""), fields.get(b"password", b"")
    user = await log_in_by_form(call, username, password)
    token = base64.b64encode(user.identity.username + b":" + password).decode()
    return answer({"token": {"type": "basic", "value": token}, "user": _user_object(call, user)})


async def log_out(_call: Call) -> Reply:
    """There is no session to end."""
    return NO_CONTENT


def _fields(body: bytes) -> list[tuple[bytes, bytes]]:
    """Of a form; none where it is not one. The first of a name counts, as in RabbitMQ."""
    try:
        text = body.decode("latin-1")
        found = parse_qsl(
            text, keep_blank_values=True, encoding="latin-1", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        return []
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reversed(found)]


# --- attempts ---


def _must_be_this_node(call: Call) -> None:
    if call.text("node") != call.administration.node:
        raise missing()


async def attempts(call: Call) -> Reply:
    _must_be_this_node(call)
    counted = call.service.attempts
    total = counted.succeeded + counted.failed
    row: Object = {
        "protocol": "http",
        "auth_attempts": total,
        "auth_attempts_failed": counted.failed,
        "auth_attempts_succeeded": counted.succeeded,
    }
    return await list_reply(call, lambda: [row] if total else [])


async def attempts_by_source(call: Call) -> Reply:
    """Sources are not tracked, which is RabbitMQ's default too."""
    _must_be_this_node(call)
    return await list_reply(call, list)


async def reset_attempts(call: Call) -> Reply:
    _must_be_this_node(call)
    counted = call.service.attempts
    counted.succeeded = counted.failed = 0
    call.administration.done(call.actor, "reset_auth_attempts", {})
    return NO_CONTENT
