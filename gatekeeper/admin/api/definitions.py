"""``/definitions``: everything the store holds, out and in.

An import is one transaction, unlike RabbitMQ's: a broken document changes nothing, and the
reason names the place in it.

Source: ``rabbit_mgmt_wm_definitions``.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from gatekeeper.admin.api.call import (
    JSON,
    NO_CONTENT,
    Call,
    ProblemError,
    Reply,
    bad_request,
    encoded,
    problem,
    strict_json,
)
from gatekeeper.errors import DefinitionsError
from gatekeeper.store.definitions import ImportReport, import_definitions
from gatekeeper.store.definitions_export import export_vhost_definitions, write_definitions
from gatekeeper.store.definitions_vhost import import_vhost_definitions
from gatekeeper.store.refusals import RequestError

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_PARSED = "failed_to_parse_json"
_BOM = b"\xef\xbb\xbf"
_NO_VHOST = "vhost_not_found"

_log = structlog.get_logger(__name__)


async def export(call: Call) -> Reply:
    store, vhost = call.administration.store, call.vhost
    if vhost is not None and store.vhost(vhost) is None:
        raise bad_request(_NO_VHOST)

    def work() -> bytes:
        if vhost is not None:
            return encoded(export_vhost_definitions(store, vhost))
        file = io.StringIO()
        write_definitions(store, file)
        return file.getvalue().encode()

    body = await call.administration.read(work)
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = [("Cache-Control", "no-cache"), ("ETag", tag)]
    if _matches(call.headers.get("if-none-match", ""), tag):
        return Reply(304, headers=tuple(headers))
    download = call.asked("download")
    if download is not None:
        if not _TOKEN.fullmatch(download):
            raise ProblemError(Reply(400), "download is no token")
        headers.append(("Content-Disposition", f"attachment; filename={download}"))
    return Reply(200, body, JSON, tuple(headers))


def _matches(header: str, tag: str) -> bool:
    return header.strip() == "*" or tag in {one.strip() for one in header.split(",")}


async def load(call: Call) -> Reply:
    body = await call.read(call.service.management.max_body_size)
    content_type = call.headers.get("content-type", "")
    if content_type.lower().startswith("multipart/form-data"):
        body = await call.administration.read(
            _uploaded,
            content_type,
            body,
            json_only=call.service.management.require_json_extension,
        )
    body = body.removeprefix(_BOM)
    if body:
        await call.administration.read(_must_be_object, body)
    vhost = call.vhost
    if vhost is not None and call.administration.store.vhost(vhost) is None:
        raise problem(404, "not_found", _NO_VHOST)
    await _carry_out(call, vhost, body)
    return NO_CONTENT


async def _carry_out(call: Call, vhost: bytes | None, body: bytes) -> None:
    store, creator = call.administration.store, call.user.identity.username
    work: Callable[[], ImportReport]
    if vhost is None:
        target = {}
        work = lambda: import_definitions(store, body, grant_to=creator)  # noqa: E731
    else:
        name = vhost
        target = {"vhost": vhost}
        work = lambda: import_vhost_definitions(store, name, body)  # noqa: E731
    try:
        report = await call.administration.carry_out(call.actor, "import_definitions", target, work)
    except (DefinitionsError, RequestError) as error:
        raise bad_request(str(error)) from error
    for warning in report.warnings:
        _log.warning(warning)


def _must_be_object(body: bytes) -> None:
    try:
        found = strict_json(body)
    except ValueError:
        raise bad_request(_NOT_PARSED) from None
    if not isinstance(found, dict):
        raise bad_request(_NOT_PARSED)


# --- uploads ---


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    filename: str | None
    content: bytes


def _uploaded(content_type: str, body: bytes, *, json_only: bool) -> bytes:
    """The content of the part ``file``."""
    file = next((part for part in _parts(content_type, body) if part.name == "file"), None)
    name = None if file is None else file.filename
    if json_only and (name is None or not name.lower().endswith(".json")):
        more = {} if name is None else {"filename": name}
        raise problem(400, "bad_request", "unsupported_file_extension", **more)
    if file is None:
        raise bad_request(_NOT_PARSED)
    return file.content


def _parts(content_type: str, body: bytes) -> list[_Part]:
    """Of multipart/form-data (RFC 7578). What is not well formed is left out."""
    boundary = _parameter(content_type, "boundary")
    if not boundary:
        raise ProblemError(Reply(400), "multipart without a boundary")
    found: list[_Part] = []
    for piece in (b"\r\n" + body).split(b"\r\n--" + boundary.encode())[1:]:
        if piece.startswith(b"--"):
            break
        head, _, content = piece.partition(b"\r\n\r\n")
        lines = head.decode("utf-8", "replace").split("\r\n")
        disposition = next(
            (line for line in lines if line.lower().startswith("content-disposition:")), ""
        )
        name = _parameter(disposition, "name")
        if name is not None:
            found.append(_Part(name, _parameter(disposition, "filename"), content))
    return found


def _parameter(header: str, name: str) -> str | None:
    found = re.search(rf';\s*{name}=(?:"([^"]*)"|([^\s;"]+))', header, re.IGNORECASE)
    return None if found is None else found[1] or found[2] or ""
