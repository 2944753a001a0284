"""One request as a handler sees it, and what a handler may answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from gatekeeper.admin.service import Actor, Administration
from gatekeeper.config.settings import Management
from gatekeeper.errors import GatekeeperError
from gatekeeper.model import Identity, Peer
from gatekeeper.server.infos import ChannelInfo, ConnectionInfo
from gatekeeper.store.draft import Draft
from gatekeeper.store.refusals import (
    CredentialRefusedError,
    InvalidPatternError,
    NoSuchUserError,
    NoSuchVhostError,
    RequestError,
    shown,
)

T = TypeVar("T")

JSON = "application/json"
SMALL_BODY = 64 * 1024
"""Bytes of JSON that may be read or written on the event loop."""
LOGGED = 1024
"""Characters of a value that go into the log: as many as a pattern may have bytes."""

Object = dict[str, object]
"""A JSON object."""
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """content_type is not sent where there is no body."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: Headers = ()


class ProblemError(GatekeeperError):
    """The answer is this reply; nothing has been done."""

    def __init__(self, reply: Reply, reason: str = "") -> None:
        super().__init__(reason or str(reply.status))
        self.reply = reply
        self.reason = reason


def problem(status: int, error: str, reason: object, **more: object) -> ProblemError:
    """``{"error", "reason"}`` as RabbitMQ words it; a reason may be a list (an Erlang tuple)."""
    body = {"error": error, "reason": reason, **more}
    return ProblemError(Reply(status, encoded(body)), str(reason))


def bad_request(reason: object) -> ProblemError:
    return problem(400, "bad_request", reason)


def missing() -> ProblemError:
    """The resource that the path names does not exist."""
    return problem(404, "Object Not Found", "Not Found")


def refuse_for(error: RequestError) -> NoReturn:
    """RabbitMQ's reason for what the store refuses, in a 400."""
    raise bad_request(_reason(error)) from error


def _reason(error: RequestError) -> object:
    match error:
        case NoSuchUserError():
            return ["no_such_user", shown(error.name)]
        case NoSuchVhostError():
            return ["no_such_vhost", shown(error.name)]
        case CredentialRefusedError():
            return "credential_validation_failed"
        case InvalidPatternError():
            return invalid_pattern(error, [*error.pattern])
        case _:
            return str(error)


def invalid_pattern(error: InvalidPatternError, pattern: object) -> list[object]:
    """A tuple of Erlang's, its text a list of characters; the pattern too, but not always."""
    return ["invalid_regexp", pattern, [[*map(ord, error.reason)], error.offset]]


def encoded(value: object) -> bytes:
    """JSON as RabbitMQ writes it: no spaces, UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is logged in. name: as text."""

    identity: Identity

    @property
    def name(self) -> str:
        return shown(self.identity.username)

    @property
    def tags(self) -> frozenset[str]:
        return self.identity.tags

    @property
    def administrator(self) -> bool:
        return "administrator" in self.tags

    @property
    def monitor(self) -> bool:
        return not self.tags.isdisjoint(("administrator", "monitoring"))

    @property
    def policymaker(self) -> bool:
        return not self.tags.isdisjoint(("administrator", "policymaker"))

    @property
    def may_manage(self) -> bool:
        return self.monitor or self.policymaker or "management" in self.tags


@dataclass(slots=True)
class Attempts:
    """Logins by HTTP since the start or the last reset."""

    succeeded: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """What all requests share."""

    administration: Administration
    management: Management
    attempts: Attempts = field(default_factory=Attempts)


@dataclass(slots=True)
class Call:
    """One request.

    path: the pattern that it met (``/users/:user``). names: what stands for its free words,
    percent-decoded. query, headers: the latter with names in lower case. read: the body, once;
    at most so many bytes, else a ProblemError.
    caller: None before the login and where none is asked for.
    connection, channel: found while the right to it was judged.
    """

    service: Service
    method: str
    path: str
    names: Mapping[str, bytes]
    query: Mapping[str, bytes]
    headers: Mapping[str, str]
    peer: Peer
    read: Callable[[int], Awaitable[bytes]]
    caller: Caller | None = None
    connection: ConnectionInfo | None = None
    channel: ChannelInfo | None = None

    @property
    def administration(self) -> Administration:
        return self.service.administration

    @property
    def user(self) -> Caller:
        """Of a route that asks for a login."""
        if self.caller is None:
            raise LookupError(f"{self.path} is open to all: nobody is logged in")
        return self.caller

    @property
    def actor(self) -> Actor:
        name = "" if self.caller is None else self.caller.name
        return Actor(name, f"{self.peer.host}:{self.peer.port}")

    def text(self, name: str) -> str:
        return shown(self.names[name])

    def asked(self, name: str) -> str | None:
        """A value of the query, if it is there."""
        value = self.query.get(name)
        return None if value is None else shown(value)

    @property
    def vhost(self) -> bytes | None:
        """Of the path or, for lists, of the header ``x-vhost``. Source: ``vhost/1``."""
        named = self.names.get("vhost")
        if named is not None:
            return named
        header = self.headers.get("x-vhost", "")
        return header.encode("utf-8", "surrogateescape") or None

    @property
    def without_stats(self) -> bool:
        return self.service.management.disable_stats or self.asked("disable_stats") == "true"

    async def change(
        self, action: str, target: Mapping[str, object], work: Callable[[Draft], T]
    ) -> T:
        """As Administration.change; what the store refuses is a 400 in RabbitMQ's words."""
        try:
            return await self.change_or_raise(action, target, work)
        except RequestError as error:
            refuse_for(error)

    async def change_or_raise(
        self, action: str, target: Mapping[str, object], work: Callable[[Draft], T]
    ) -> T:
        """As :meth:`change`; raises RequestError, for answers of another kind."""
        logged = {key: _brief(value) for key, value in target.items()}
        return await self.administration.change(self.actor, action, logged, work)

    async def document(self, *required: str) -> Object:
        """The body, an object that has these keys. Source: ``decode/2`` and ``with_decode/4``."""
        body = await self.read(self.service.management.max_body_size)
        if len(body) > SMALL_BODY:
            found = await self.administration.read(decoded, body)
        else:
            found = decoded(body)
        absent = [key for key in required if key not in found]
        if absent:
            terms = ",".join(f"{{key_missing,{key}}}" for key in absent)
            raise bad_request(f"[{terms}]")
        return found


def _brief(value: object) -> object:
    """For the log, which need not hold a megabyte because somebody sent one."""
    text = shown(value) if isinstance(value, bytes) else str(value)
    return value if len(text) <= LOGGED else f"{text[:LOGGED]}..."


def decoded(body: bytes) -> Object:
    """Raises ProblemError unless it is a JSON object, or one of what stands for an empty one."""
    if body in {b"", b"null", b"undefined"}:
        return {}
    try:
        value = strict_json(body)
    except ValueError:
        raise bad_request("not_json") from None
    if isinstance(value, str):
        raise bad_request(
            "invalid payload: the request body JSON-decoded to a string. "
            "Is the input doubly-JSON-encoded?"
        )
    if not isinstance(value, dict):
        raise bad_request("not_json")
    return value


def strict_json(body: bytes) -> object:
    """Raises ValueError for what is not JSON, NaN and lone surrogates included."""
    try:
        value: object = json.loads(body.decode(), parse_constant=_no_constant)
        if b"\\u" in body:
            # Names must be UTF-8; JSON's "\ud800" is a half of a character.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def texts(document: Object, *keys: str) -> list[bytes]:
    """Strings under these keys. RabbitMQ answers anything else with an empty 500."""
    for key in keys:
        if not isinstance(document[key], str):
            raise bad_request(f"{key} must be a string")
    return [str(document[key]).encode() for key in keys]


def boolean(value: object) -> bool | None:
    """Source: ``rabbit_misc:parse_bool/1``."""
    known: dict[object, bool] = {"true": True, "false": False}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value in known:
        return known[value]
    raise bad_request(["not_boolean", value])


def name_of(call: Call, key: str) -> bytes:
    """A name that is to be created: UTF-8, because JSON must be able to hold it."""
    name = call.names[key]
    try:
        name.decode()
    except UnicodeDecodeError:
        raise bad_request(f"the {key} name is not valid UTF-8") from None
    return name


NO_CACHE = ("Cache-Control", "no-cache")
CREATED = Reply(201)
NO_CONTENT = Reply(204)


def put_reply(*, created: bool) -> Reply:
    return CREATED if created else NO_CONTENT


def answer(value: object, status: int = 200, headers: Headers = ()) -> Reply:
    """A small JSON answer; lists go through ``shape``."""
    return Reply(status, encoded(value), headers=(NO_CACHE, *headers))


Handler = Callable[[Call], Awaitable[Reply]]
