"""RabbitMQ's HTTP backend: four questions to a web service, which answers allow or deny.

Strategy: one question is one form-encoded request; what the answer means is a pure function of
status and body, so that it can be tested without a server. Whatever is not an answer (another
status, no connection, too slow, too long) is an error, which refuses.

Source: ``rabbit_auth_backend_http`` of RabbitMQ 4.3, whose rules are followed to the letter
(``allowed`` gives the tag ``ed``), but for one: an https server's certificate is verified unless
``auth_http.ssl_options.verify`` says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote_plus, urlsplit

import structlog

from gatekeeper.config.backends import HttpBackendSettings
from gatekeeper.errors import printable
from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission, Variables
from gatekeeper.policy.ports import Accepted, Failed, LoginAnswer, Refused, Verdict
from gatekeeper.protocol.erlang import erlang_string
from gatekeeper.tls import client_context

if TYPE_CHECKING:
    import aiohttp

NAME = "rabbit_auth_backend_http"
BODY_LIMIT = 64 * 1024
"""Bytes of an answer; a longer one is an error."""
ATTEMPTS = 3
"""Requests per question while the server closes kept-alive connections before it answers."""
CONNECTIONS = 64
"""Connections to the service, at most; further questions wait, within their time limit."""

Parameters = Sequence[tuple[str, bytes]]

_log = structlog.get_logger("user")


class NoAnswerError(Exception):
    """The service did not answer the question; ``str`` is the Erlang term that RabbitMQ shows.

    unavailable: it cannot be reached, or is too slow, whatever it is asked.
    """

    def __init__(self, reason: str, *, unavailable: bool = False) -> None:
        super().__init__(reason)
        self.unavailable = unavailable


class BadAnswerError(Exception):
    """The service answered something that crashes RabbitMQ's backend (a 541)."""


class HttpBackend:
    """Authentication and authorisation by a web service. It keeps no state per user."""

    def __init__(self, settings: HttpBackendSettings) -> None:
        """Raises ConfigError where a TLS file cannot be used."""
        self._settings = settings
        tls = settings.tls
        self._tls = None if tls is None else client_context(tls, "auth_http.ssl_options")
        self._sni = None if tls is None else tls.sni
        self._session: aiohttp.ClientSession | None = None

    @property
    def name(self) -> str:
        return NAME

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    # --- the questions ---

    async def authenticate(self, credentials: Credentials, peer: Peer) -> LoginAnswer:
        return await self.authorize_login(credentials.username, credentials, peer)

    async def authorize_login(
        self, username: bytes, credentials: Credentials, peer: Peer
    ) -> LoginAnswer:
        """The same request whether the user is to be authenticated or is already."""
        parameters = [("username", username)]
        if credentials.password is not None:
            parameters.append(("password", credentials.password.value))
        try:
            status, body = await self._ask(self._settings.user_path, parameters)
            return login_answer(username, status, body)
        except NoAnswerError as error:
            return Failed(str(error), error.unavailable)

    async def vhost_access(self, user: AuthUser, vhost: bytes, peer: Peer) -> Verdict:
        return await self._verdict(
            self._settings.vhost_path,
            (
                ("username", user.username),
                ("vhost", vhost),
                ("ip", peer.host.encode()),
                ("tags", _tags(user)),
            ),
        )

    async def resource_access(
        self, user: AuthUser, vhost: bytes, kind: Kind, name: bytes, permission: Permission
    ) -> Verdict:
        return await self._verdict(
            self._settings.resource_path, _resource(user, vhost, kind, name, permission)
        )

    def topic_rule(self, user: AuthUser, vhost: bytes, exchange: bytes) -> bool:
        """Only the service knows."""
        return True

    async def topic_access(
        self,
        user: AuthUser,
        vhost: bytes,
        exchange: bytes,
        routing_key: bytes,
        permission: Permission,
        variables: Variables,
    ) -> Verdict:
        return await self._verdict(
            self._settings.topic_path,
            (
                *_resource(user, vhost, "topic", exchange, permission),
                ("routing_key", routing_key),
                *((f"variable_map.{name}", value) for name, value in variables.items()),
            ),
        )

    async def _verdict(self, url: str, parameters: Parameters) -> Verdict:
        try:
            status, body = await self._ask(url, parameters)
            verdict = access_answer(status, body)
        except NoAnswerError as error:
            return Verdict(False, error=str(error), unavailable=error.unavailable)
        if verdict.reason is None:
            return verdict
        _log.info(
            f"HTTP authorization denied for path {_shown(url)}: {verdict.reason}",
            user=printable(parameters[0][1]).decode(),
            reason=verdict.reason,
        )
        if self._settings.disclose:
            return verdict
        return Verdict(False, verdict.rule)

    # --- the requests ---

    async def _ask(self, url: str, parameters: Parameters) -> tuple[int, bytes]:
        """Raises NoAnswerError."""
        import aiohttp  # noqa: PLC0415 - an optional dependency

        form = encoded(parameters)
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                for _ in range(ATTEMPTS - 1):
                    with contextlib.suppress(aiohttp.ServerDisconnectedError):
                        return await self._request(url, form)
                return await self._request(url, form)
        except TimeoutError:
            raise NoAnswerError("timeout", unavailable=True) from None
        except aiohttp.ClientConnectorError as error:
            to = f"{{to_address,{{{erlang_string(error.host)},{error.port}}}}}"
            why = f"{{inet,[inet],{_cause(error)}}}"
            raise NoAnswerError(f"{{failed_connect,[{to},{why}]}}", unavailable=True) from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            # What aiohttp says may quote the URL, and a GET's holds the password. The server was
            # there: what it hung up on may be the question, such as a name beyond its limits.
            raise NoAnswerError(type(error).__name__) from None

    async def _request(self, url: str, form: str) -> tuple[int, bytes]:
        session = self._open()
        if self._settings.method == "get":
            from yarl import URL  # noqa: PLC0415 - comes with aiohttp

            joint = "&" if "?" in url else "?"
            # As it is: aiohttp would write the parameters in another way than RabbitMQ does.
            target = URL(f"{url}{joint}{form}", encoded=True)
            request = session.get(target, server_hostname=self._sni)
        else:
            request = session.post(
                url,
                data=form.encode(),
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                # A redirected POST becomes a GET without the question.
                allow_redirects=False,
                server_hostname=self._sni,
            )
        async with request as response:
            body = await response.content.read(BODY_LIMIT + 1)
            while not response.content.at_eof() and len(body) <= BODY_LIMIT:
                body += await response.content.read(BODY_LIMIT + 1 - len(body))
            if len(body) > BODY_LIMIT:
                raise NoAnswerError(f"{{body_too_long,{BODY_LIMIT}}}")
            return response.status, body

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp  # noqa: PLC0415 - an optional dependency

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=CONNECTIONS, ssl=True if self._tls is None else self._tls
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._settings.connection_timeout
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def encoded(parameters: Iterable[tuple[str, bytes]]) -> str:
    """``name=value&...``; literal are letters, digits and ``._~-``, a space is ``+``.

    Source: rabbit_http_util:quote_plus.
    """
    return "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in parameters)


def login_answer(username: bytes, status: int, body: bytes) -> LoginAnswer:
    """``allow TAG TAG``, ``deny`` or ``deny REASON``. Raises NoAnswerError."""
    text = _text(status, body)
    folded = text.lower()
    if folded == "deny" or text.startswith("deny "):
        if reason := text[len("deny") :].strip(" "):
            user = printable(username).decode()
            _log.info(
                f"HTTP authentication denied for user '{user}': {reason}", user=user, reason=reason
            )
        return Refused("Denied by the backing HTTP service")
    if folded.startswith("allow"):
        tags = (tag for tag in folded[len("allow") :].split(" ") if tag)
        return Accepted(username, frozenset(tags))
    raise NoAnswerError(f"{{bad_response,{erlang_string(text)}}}")


def access_answer(status: int, body: bytes) -> Verdict:
    """``allow``, ``deny`` or ``deny REASON``. Raises NoAnswerError, BadAnswerError."""
    text = _text(status, body)
    match text.lower():
        case "allow":
            return Verdict(True, "the HTTP service allows it")
        case "deny":
            return Verdict(False, "the HTTP service denies it")
    if text.startswith("deny "):
        return Verdict(False, "the HTTP service denies it", reason=text[len("deny") :].strip(" "))
    raise BadAnswerError(f"{len(body)} bytes that are neither allow nor deny")


def _text(status: int, body: bytes) -> str:
    """Without the spaces (nothing else) at both ends. Raises NoAnswerError."""
    text = body.decode("utf-8", "replace")
    if status not in {200, 201}:
        raise NoAnswerError(f"{{{status},{erlang_string(text)}}}")
    return text.strip(" ")


def _resource(
    user: AuthUser, vhost: bytes, kind: str, name: bytes, permission: Permission
) -> tuple[tuple[str, bytes], ...]:
    return (
        ("username", user.username),
        ("vhost", vhost),
        ("resource", kind.encode()),
        ("name", name),
        ("permission", permission.encode()),
        ("tags", _tags(user)),
    )


def _shown(url: str) -> str:
    """Without what may be a secret: a password before the host, a key in the query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _tags(user: AuthUser) -> bytes:
    return " ".join(sorted(user.tags)).encode()


def _cause(error: aiohttp.ClientConnectorError) -> str:
    """Erlang's word for why there is no connection."""
    match error.os_error:
        case ConnectionRefusedError():
            return "econnrefused"
        case socket.gaierror():
            return "nxdomain"
        case ssl.SSLCertVerificationError() as unverified:
            return f"{{tls_alert,{erlang_string(unverified.verify_message)}}}"
        case ssl.SSLError() as failed:
            return f"{{tls_alert,{erlang_string(failed.reason or 'handshake failure')}}}"
        case cause:
            return errno.errorcode.get(cause.errno or 0, type(cause).__name__).lower()
