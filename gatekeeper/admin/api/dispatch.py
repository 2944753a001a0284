"""A request through the table, in the order in which Cowboy's REST handler decides.

Path (404), method (405), login and right (401), OPTIONS, Accept (406), Content-Type (415), then
the handler. Whatever goes wrong inside is a 500 that tells nothing.

Source: ``cowboy_rest``; ``rabbit_mgmt_headers``, ``rabbit_mgmt_cors``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from gatekeeper.admin.api.access import judge
from gatekeeper.admin.api.call import Call, Headers, ProblemError, Reply, Service, missing, problem
from gatekeeper.admin.api.table import Route, Table
from gatekeeper.config.settings import Management
from gatekeeper.errors import StoreError
from gatekeeper.logs import Logger
from gatekeeper.model import Peer
from gatekeeper.server.fleet import SilentWorkersError
from gatekeeper.store.refusals import RequestError

KNOWN_METHODS = frozenset({"HEAD", "GET", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})
API = "/api"

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_QUALITY_ZERO = re.compile(r"q=0(\.0{0,3})?")
_CACHE = ("Cache-Control", "public, max-age=0, must-revalidate")
_VARY = ("Vary", "accept, accept-encoding, origin")


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request off the wire.

    target: path and query as sent. headers: names in lower case. read: see Call.
    """

    method: str
    target: bytes
    headers: Mapping[str, str]
    peer: Peer
    read: Callable[[int], Awaitable[bytes]]


class Dispatcher:
    """log: for what goes wrong inside."""

    def __init__(self, service: Service, log: Logger) -> None:
        self._service = service
        self._log = log
        self._table = Table()
        prefix = f"{service.management.path_prefix}{API}".encode()
        self._prefix = [word for word in prefix.split(b"/") if word]

    async def answer(self, request: Incoming) -> Reply:
        """Never raises, except for what ends the connection (``read``)."""
        try:
            call, route = self._route(request)
        except ProblemError as error:
            return error.reply
        reply = await self._answered(call, route)
        common = _common(self._service.management, call, route)
        given = {name for name, _ in reply.headers}
        extra = tuple(header for header in common if header[0] not in given)
        return dataclasses.replace(reply, headers=(*reply.headers, *extra))

    def _route(self, request: Incoming) -> tuple[Call, Route]:
        if request.method not in KNOWN_METHODS:
            raise ProblemError(Reply(501))
        path, _, query = request.target.partition(b"?")
        found = self._table.find(_segments(path, self._prefix))
        if found is None:
            raise missing()
        route, names = found
        call = Call(
            service=self._service,
            method=request.method,
            path=route.path,
            names=names,
            query=_query(query),
            headers=request.headers,
            peer=request.peer,
            read=request.read,
        )
        return call, route

    async def _answered(self, call: Call, route: Route) -> Reply:
        try:
            return await _handled(call, route)
        except ProblemError as error:
            return error.reply
        except SilentWorkersError as error:
            return problem(503, "service_unavailable", str(error)).reply
        except RequestError as error:
            # A handler has not foreseen it; it is the asker's mistake all the same.
            return problem(400, "bad_request", str(error)).reply
        except StoreError as error:
            self._log.error("management: the store fails", path=call.path, reason=str(error))
            return problem(500, "internal_server_error", str(error)).reply
        except Exception:  # noqa: BLE001 - whatever it is: an answer without a word about it
            self._log.exception("management: a request failed", method=call.method, path=call.path)
            return Reply(500)


async def _handled(call: Call, route: Route) -> Reply:
    if call.method not in route.allow:
        return Reply(405, headers=(("Allow", ", ".join(route.allow)), ("Vary", "origin")))
    if call.method == "OPTIONS":
        return _options(call, route)
    endpoint = route.endpoints[call.method]
    await judge(call, endpoint.right)
    if not _acceptable(call.headers.get("accept", "*/*"), route.produces):
        return Reply(406)
    if call.method in {"PUT", "POST"} and not _supported(call, route):
        return Reply(415)
    return await endpoint.handler(call)


def _options(call: Call, route: Route) -> Reply:
    hidden = call.service.management.hide_allow_header
    allow = () if hidden else (("Allow", ", ".join(route.allow)),)
    return Reply(200, headers=(*allow, ("Vary", "origin")))


# --- the target ---


def _segments(path: bytes, prefix: list[bytes]) -> list[bytes]:
    """What follows ``/api``, decoded once; one trailing slash does not count.

    Dots are resolved after the decoding, so nothing can be named ``.`` or ``..`` by a path.
    Source: ``cowboy_router:split_path/2``, ``remove_dot_segments/2``.
    """
    if _BAD_ESCAPE.search(path):
        raise ProblemError(Reply(400))
    words = path.removeprefix(b"/").split(b"/")
    if not words[-1]:
        words.pop()
    found: list[bytes] = []
    for word in map(unquote_to_bytes, words):
        if word == b"..":
            del found[-1:]
        elif word != b".":
            found.append(word)
    if not path.startswith(b"/") or found[: len(prefix)] != prefix:
        raise missing()
    return found[len(prefix) :]


def _query(text: bytes) -> dict[str, bytes]:
    """The first of a name counts, as in RabbitMQ (``proplists:get_value``)."""
    if _BAD_ESCAPE.search(text):
        raise ProblemError(Reply(400))
    found: dict[str, bytes] = {}
    for pair in filter(None, text.split(b"&")):
        name, _, value = pair.replace(b"+", b" ").partition(b"=")
        found.setdefault(unquote_to_bytes(name).decode("utf-8", "replace"), unquote_to_bytes(value))
    return found


# --- media types ---


def _acceptable(accept: str, produced: str) -> bool:
    main = produced.partition("/")[0]
    for item in accept.split(","):
        media, *parameters = (part.strip().lower() for part in item.split(";"))
        if any(_QUALITY_ZERO.fullmatch(parameter) for parameter in parameters):
            continue
        if media in {"", "*/*", f"{main}/*", produced}:
            return True
    return False


def _supported(call: Call, route: Route) -> bool:
    media = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    return not route.accepts or media in route.accepts


# --- headers of every answer ---


def _common(management: Management, call: Call, route: Route) -> Headers:
    return (_CACHE, _VARY, *management.headers, *_cors(management, call, route))


def _cors(management: Management, call: Call, route: Route) -> Headers:
    """Also on refusals, so that a page can read why. Source: ``rabbit_mgmt_cors``."""
    origin = call.headers.get("origin")
    if origin is None or origin in {"null", "*"}:
        return ()
    if origin in management.cors_origins:
        headers: Headers = (
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Allow-Credentials", "true"),
        )
    elif "*" in management.cors_origins:
        headers = (("Access-Control-Allow-Origin", "*"),)
    else:
        return ()
    if call.method != "OPTIONS":
        return headers
    asked = call.headers.get("access-control-request-headers")
    # RabbitMQ sends the age only where no headers are asked for.
    more = (
        ("Access-Control-Max-Age", str(management.cors_max_age))
        if asked is None
        else ("Access-Control-Allow-Headers", asked)
    )
    return (*headers, more, ("Access-Control-Allow-Methods", ", ".join(route.allow)))
