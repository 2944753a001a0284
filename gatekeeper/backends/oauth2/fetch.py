"""Documents of an identity provider, over HTTPS: bounded in time and size.

A document is fetched when a key is missing or a token nears its end, which is rare: each fetch
has a session (and so a connection) of its own, and nothing stays open in between.
Source: ``uaa_jwks``, ``oauth2_client`` (4.3.5).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gatekeeper.config.settings import ClientTls
from gatekeeper.errors import BackendError
from gatekeeper.tls import client_context

TIMEOUT = 5.0
"""Seconds for one document. RabbitMQ has 60, but its clients have 10 to log in: a provider that
hangs must have failed before they are gone, or nobody would count the failure."""
MAX_DOCUMENT = 1024 * 1024
MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class Document:
    status: int
    content_type: str
    body: bytes = field(repr=False)  # it may hold a token


class Fetcher:
    """Fetches by the TLS options of one identity provider. Raises ConfigError."""

    def __init__(self, https: ClientTls, name: str, timeout: float = TIMEOUT) -> None:
        """name: of the options in the configuration, without the last dot."""
        self._tls = client_context(https, name)
        self._timeout = timeout

    async def get(self, url: str) -> Document:
        """Raises BackendError; its text is an Erlang-like term for the log."""
        return await self._request("GET", url, max_redirects=MAX_REDIRECTS)

    async def post(self, url: str, form: Mapping[str, str], authorization: str) -> Document:
        """The same for a form. A redirect is not followed: it would be told what is secret."""
        headers = {"Authorization": authorization, "Accept": "application/json"}
        return await self._request("POST", url, data=form, headers=headers, allow_redirects=False)

    async def _request(self, method: str, url: str, **options: Any) -> Document:
        import aiohttp  # noqa: PLC0415 - an extra

        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=self._tls),
                    timeout=aiohttp.ClientTimeout(total=self._timeout),
                    # Nothing compressed: what is counted is what is held.
                    auto_decompress=False,
                    headers={"Accept-Encoding": "identity"},
                    cookie_jar=aiohttp.DummyCookieJar(),
                ) as session,
                session.request(method, url, **options) as response,
            ):
                steps = (*response.history, response)
                if any(step.url.scheme != "https" for step in steps):
                    raise BackendError("insecure_redirect")
                body = await self._body(response.content.iter_any())
                return Document(response.status, response.headers.get("Content-Type", ""), body)
        except TimeoutError:
            raise BackendError("timeout") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            raise BackendError(f"{{failed_connect,{type(error).__name__}: {error}}}") from error
        except (aiohttp.ClientError, ValueError) as error:
            # What these say quotes the URL, which may hold a password or a key.
            raise BackendError(f"{{failed_connect,{type(error).__name__}}}") from None

    @staticmethod
    async def _body(content: AsyncIterator[bytes]) -> bytes:
        body = b""
        async for chunk in content:
            body += chunk
            if len(body) > MAX_DOCUMENT:
                raise BackendError("document_too_large")
        return body
