"""Who may use a route: the login, and the rights that stand in the table's column.

Every refusal is a 401 in RabbitMQ's words (or a 404, where somebody may not know that a thing
exists) and leaves an event in the audit log.

Source: ``rabbit_web_dispatch_access_control``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from gatekeeper.admin.api.call import Call, Caller, ProblemError, Reply, missing, problem
from gatekeeper.admin.service import Actor
from gatekeeper.policy.answers import LoginRefused
from gatekeeper.server.infos import ChannelInfo, ConnectionInfo
from gatekeeper.store.refusals import shown

REALM = 'Basic realm="RabbitMQ Management"'
YIELD_EVERY = 100
"""Questions to the backends before other clients get their turn."""

_NO_ADMINISTRATOR = "Not administrator user"
_NO_MONITOR = "Not monitor user"
_NO_VHOST = "User not authorised to access virtual host"
_NO_OBJECT = "User not authorised to access object"
_BASIC_OFF = "HTTP access denied: basic auth disabled"

_SCHEME = re.compile(r"(basic|bearer) +([A-Za-z0-9._~+/=-]+)", re.IGNORECASE)
_UNTOLD = frozenset({"password"})
"""Free words of paths that never go into a log."""


class Right(enum.Enum):
    """Who may use a method of a route. All but NONE and FORM mean a login with one of
    RabbitMQ's four tags first."""

    NONE = "everybody, without a login"
    FORM = "everybody: the body holds the credentials"
    ANY = "everybody with a management tag"
    ADMINISTRATOR = "administrators"
    MONITOR = "administrators and those who monitor"
    GLOBAL_PARAMETERS = "policy makers"
    PARAMETERS = "administrators, and policy makers with access to the virtual host"
    VHOST = "administrators, and who has access to the virtual host"
    VHOST_VISIBLE = "administrators, and who may know of the virtual host"
    OWN_USER = "administrators, the user itself and, to look, those who monitor"
    OWN_CONNECTION = "the same, for the connection's user"
    OWN_CHANNEL = "the same, for the channel's user"


@dataclass(frozen=True, slots=True)
class _Login:
    username: bytes
    password: bytes = field(repr=False)


async def judge(call: Call, right: Right) -> None:
    """Log the caller in and see to the right. Raises ProblemError."""
    if right in {Right.NONE, Right.FORM}:
        return
    call.caller = await log_in(call, _credentials(call))
    refusal = await _refusal(call, right)
    if refusal is not None:
        call.service.attempts.failed += 1
        _deny(call, call.actor.user, refusal.reason)
        raise refusal
    call.service.attempts.succeeded += 1


async def log_in(call: Call, login: _Login) -> Caller:
    """Source: ``is_authorized/8``: credentials, loopback_users, a management tag."""
    result = await call.administration.authenticate(login.username, login.password, call.peer)
    if isinstance(result, LoginRefused):
        call.service.attempts.failed += 1
        _deny(call, shown(login.username), result.reason)
        if result.loopback:
            raise _unauthorised("User can only log in via localhost")
        raise problem(401, "not_authorized", "Not_Authorized")
    caller = Caller(result)
    if not caller.may_manage:
        call.service.attempts.failed += 1
        _deny(call, caller.name, "Not management user")
        raise _unauthorised("Not management user")
    return caller


async def log_in_by_form(call: Call, username: bytes, password: bytes) -> Caller:
    caller = await log_in(call, _Login(username, password))
    call.service.attempts.succeeded += 1
    return caller


async def may_enter(call: Call, vhost: bytes) -> bool:
    """By the live decision of the backends, as for a connection."""
    decision = await call.administration.engine.vhost_access(call.user.identity, vhost, call.peer)
    return decision.allowed


async def enterable(call: Call, vhosts: Iterable[bytes]) -> set[bytes]:
    """Those of the vhosts that the caller may enter."""
    allowed: set[bytes] = set()
    for at, vhost in enumerate(vhosts):
        if at % YIELD_EVERY == YIELD_EVERY - 1:
            await asyncio.sleep(0)
        if await may_enter(call, vhost):
            allowed.add(vhost)
    return allowed


# --- rights ---


async def _refusal(call: Call, right: Right) -> ProblemError | None:
    """Why not; None where the caller has the right."""
    user = call.user
    match right:
        case Right.ADMINISTRATOR:
            return None if user.administrator else _unauthorised(_NO_ADMINISTRATOR)
        case Right.MONITOR:
            return None if user.monitor else _unauthorised(_NO_MONITOR)
        case Right.GLOBAL_PARAMETERS:
            return None if user.policymaker else _unauthorised(_NO_OBJECT)
        case Right.PARAMETERS if not user.policymaker:
            return _unauthorised(_NO_OBJECT)
        case Right.PARAMETERS | Right.VHOST | Right.VHOST_VISIBLE:
            return await _vhost_refusal(call, right)
        case Right.OWN_USER:
            return _owner_refusal(call, call.names["user"])
        case Right.OWN_CONNECTION:
            call.connection = await _connection(call)
            return _owner_refusal(call, call.connection.user)
        case Right.OWN_CHANNEL:
            call.channel = await _channel(call)
            return _owner_refusal(call, call.channel.user)
        case Right.ANY:
            return None
        case _:
            raise LookupError(f"nobody has the right {right}")


async def _vhost_refusal(call: Call, right: Right) -> ProblemError | None:
    """Source: ``user_matches_vhost/2``: a vhost that does not exist is the handler's business."""
    vhost = call.vhost
    if call.user.administrator or vhost is None:
        return None
    if call.administration.store.vhost(vhost) is None:
        return None
    if right is Right.VHOST_VISIBLE and call.user.monitor:
        return None
    return None if await may_enter(call, vhost) else problem(404, "not_found", "Not Found")


def _owner_refusal(call: Call, owner: bytes) -> ProblemError | None:
    user = call.user
    anybodys = user.administrator if call.method == "DELETE" else user.monitor
    own = owner == user.identity.username
    return None if anybodys or own else _unauthorised(_NO_OBJECT)


async def _connection(call: Call) -> ConnectionInfo:
    wanted = call.text("connection")
    for one in await call.administration.fleet.connections():
        if one.name == wanted:
            return one
    raise missing()


async def _channel(call: Call) -> ChannelInfo:
    wanted = call.text("channel")
    for one in await call.administration.fleet.channels():
        if one.name == wanted:
            return one
    raise missing()


def _unauthorised(reason: str) -> ProblemError:
    return problem(401, "not_authorised", reason)


# --- credentials ---


def _credentials(call: Call) -> _Login:
    """Of the header Authorization. Source: ``parse_credentials/2``."""
    header = call.headers.get("authorization")
    basic = not call.service.management.disable_basic_auth
    if header is None:
        _deny(call, "", "no credentials")
        if not basic:
            raise _unauthorised("HTTP access denied: no credentials")
        raise ProblemError(Reply(401, headers=(("WWW-Authenticate", REALM),)), "no credentials")
    parsed = _SCHEME.fullmatch(header.strip())
    if parsed is None:
        raise ProblemError(Reply(400), "malformed Authorization header")
    if parsed[1].lower() == "bearer":
        return _Login(b"", parsed[2].encode())  # the backend for tokens needs no user name
    if not basic:
        _deny(call, "", _BASIC_OFF)
        raise _unauthorised(_BASIC_OFF)
    try:
        username, colon, password = base64.b64decode(parsed[2], validate=True).partition(b":")
    except binascii.Error:
        colon = b""
    if not colon:
        raise ProblemError(Reply(400), "malformed Authorization header")
    return _Login(username, password)


def _deny(call: Call, user: str, reason: str) -> None:
    names = {key: value for key, value in call.names.items() if key not in _UNTOLD}
    call.administration.denied(
        Actor(user, call.actor.address), f"{call.method} {call.path}", names, reason
    )
