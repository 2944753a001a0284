"""Where definitions come from: a file, a directory of files, an HTTPS server.

Source: rabbit_definitions_import_local_filesystem, _import_https, rabbit_definitions_hashing.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gatekeeper.errors import DefinitionsError

CONNECT_TIMEOUT = 120.0
"""Seconds for each step of a connection (RabbitMQ: connect_timeout)."""
DOWNLOAD_TIMEOUT = 600.0
"""Seconds for a whole download."""
MAX_DOWNLOAD = 512 * 1024 * 1024
"""Bytes; a million permissions are about 150 MB."""
_CHUNK = 1024 * 1024
_URL = "definitions.https.url"
_HASHES = {"sha": "sha1"}


@dataclass(frozen=True, slots=True)
class Source:
    """Documents as (name for messages, content), and how RabbitMQ hashes them: as a list of
    files, or (``alone``) as the one body of a response."""

    documents: tuple[tuple[str, bytes], ...]
    alone: bool = False

    def digest(self, algorithm: str) -> str:
        """The hash that RabbitMQ keeps of such contents, in hex: of Erlang's external format.

        algorithm: by RabbitMQ's name, such as ``sha256``.
        """
        digest = hashlib.new(_HASHES.get(algorithm, algorithm), usedforsecurity=False)
        for part in self._external():
            digest.update(part)
        return digest.hexdigest()

    def _external(self) -> Iterator[bytes]:
        yield b"\x83"  # the format's version
        if not self.documents:
            yield b"w\x09undefined"
            return
        if not self.alone:
            yield b"l" + len(self.documents).to_bytes(4, "big")
        for _, content in self.documents:
            yield b"m" + len(content).to_bytes(4, "big")
            yield content
        if not self.alone:
            yield b"j"


def read_local(path: Path, key: str = "load_definitions") -> Source:
    """A file, or the files of a directory in order of their names, hidden ones left out.

    Raises DefinitionsError, with ``key`` in front.
    """
    try:
        if not path.is_dir():
            return Source(((str(path), path.read_bytes()),))
        files = sorted(
            (entry for entry in path.iterdir() if entry.is_file() and entry.name[0] != "."),
            key=lambda entry: entry.name,
        )
        return Source(tuple((str(file), file.read_bytes()) for file in files))
    except OSError as error:
        raise DefinitionsError(
            f"{key}: cannot read {error.filename or path}: {error.strerror}; "
            "check the path and its permissions"
        ) from error


def fetch(url: str, context: ssl.SSLContext) -> Source:
    """What an HTTPS server answers to a GET; it may redirect, but only to HTTPS.

    ``user:password@`` in the URL is Basic authentication, for its own server only. Messages show
    neither that nor the query. Blocks; raises DefinitionsError.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise DefinitionsError(f"{_URL}: no valid URL: {error}") from None
    shown = _shown(parts)
    if parts.scheme != "https" or not parts.hostname:
        raise DefinitionsError(f"{_URL}: {shown} is no https:// URL")
    login, _, host = parts.netloc.rpartition("@")
    plain = urllib.parse.urlunsplit(("https", host, parts.path or "/", parts.query, ""))
    request = urllib.request.Request(plain)  # noqa: S310 - https, see above
    if login:
        pair = urllib.parse.unquote_to_bytes(login)
        basic = base64.b64encode(pair if b":" in pair else pair + b":").decode("ascii")
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    try:
        with _opener(context).open(request, timeout=CONNECT_TIMEOUT) as response:
            return Source(((shown, _body(response, shown)),), alone=True)
    except urllib.error.HTTPError as error:
        error.close()
        raise DefinitionsError(
            f"{_URL}: {shown}: URL request failed with response code {error.code}"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DefinitionsError(
            f"{_URL}: {shown}: {_one_reason(reason)}; check the URL, the server and "
            "definitions.tls.*"
        ) from None


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme != "https":
            fp.close()
            raise urllib.error.URLError("redirected to something that is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(context: ssl.SSLContext) -> urllib.request.OpenerDirector:
    """Only what is needed: no proxies by environment variables, no file: and no http: URLs."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),  # everything but 2xx is an error
        _HttpsOnly(),
    ):
        opener.add_handler(handler)
    return opener


def _body(response: IO[bytes], shown: str) -> bytes:
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT
    body = bytearray()
    while chunk := response.read(_CHUNK):
        body += chunk
        if len(body) > MAX_DOWNLOAD:
            raise DefinitionsError(
                f"{_URL}: {shown}: the answer is longer than {MAX_DOWNLOAD} bytes"
            )
        if time.monotonic() > deadline:
            raise DefinitionsError(
                f"{_URL}: {shown}: the answer took longer than {DOWNLOAD_TIMEOUT:g} s"
            )
    return bytes(body)


def _shown(parts: urllib.parse.SplitResult) -> str:
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme or '?'}://{host}{parts.path}"


def _one_reason(error: object) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__ if isinstance(error, Exception) else str(error)
