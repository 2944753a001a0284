"""Tokens of the gate's own: what a provider or a file gives, and what it must not."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gatekeeper.backends.oauth2.service_token import (
    FILE_PAUSE,
    MAX_TOKEN,
    GrantedToken,
    ServiceToken,
    TokenInFile,
    token_source,
)
from gatekeeper.config.settings import ClientTls
from gatekeeper.config.tokens import TokenGrant
from gatekeeper.errors import BackendError, ConfigError
from gatekeeper.model import Secret
from tests.support.idp import IdentityProvider, SigningKey, claims

KEY = SigningKey("key", "ES256")
NOW = 1_000_000.0


@pytest.fixture
async def idp(tmp_path: Path) -> AsyncIterator[IdentityProvider]:
    async with IdentityProvider(tmp_path, KEY) as provider:
        yield provider


def source(idp: IdentityProvider, **more: Any) -> GrantedToken:
    fields = {
        "token_endpoint": idp.token_endpoint,
        "client_id": "gate",
        "client_secret": Secret(b"hunter2"),
        "https": idp.https,
        **more,
    }
    return GrantedToken(TokenGrant(**fields), "upstreams.x.oauth2", lambda: NOW)


async def test_what_the_provider_is_asked(idp: IdentityProvider) -> None:
    idp.grant(b"opaque-token", token_type="bearer", expires_in=300)
    grant = source(idp, client_id="gate:1", client_secret=Secret("ä b%".encode()), scope="a b")
    assert await grant.fetch() == ServiceToken(Secret(b"opaque-token"), NOW + 300)
    assert idp.forms == [{"grant_type": "client_credentials", "scope": "a b"}]
    scheme, _, pair = idp.authorizations[0].partition(" ")
    # RFC 6749, 2.3.1: both halves form-encoded, so that the colon between them is the only one.
    assert (scheme, base64.b64decode(pair)) == ("Basic", b"gate%3A1:%C3%A4+b%25")
    await source(idp).fetch()
    assert idp.forms[1] == {"grant_type": "client_credentials"}


@pytest.mark.parametrize(
    ("exp", "more", "expires"),
    [
        (None, {}, None),
        (None, {"expires_in": 60}, NOW + 60),
        (None, {"expires_in": "60"}, NOW + 60),
        (NOW + 50, {}, NOW + 50),
        (NOW + 50, {"expires_in": 60}, NOW + 50),
        (NOW + 70.5, {"expires_in": 60}, NOW + 60),
        (NOW + 50, {"expires_in": None}, NOW + 50),
        ("soon", {"expires_in": True}, None),
        (None, {"expires_in": "1e999"}, None),
        (10**400, {}, None),
    ],
)
async def test_when_a_token_ends(
    idp: IdentityProvider, exp: object, more: dict[str, Any], expires: float | None
) -> None:
    idp.grant(KEY.sign(claims("read:*/*", exp=exp)), **more)
    assert (await source(idp).fetch()).expires == expires


@pytest.mark.parametrize(
    ("names", "user"),
    [
        ({"sub": "s", "client_id": "c"}, b"s"),
        ({"sub": None, "client_id": "c"}, b"c"),
        ({"sub": 1, "client_id": "c"}, b"c"),
        ({"sub": None}, b""),
        ({"sub": "\udc80"}, b"?"),
    ],
)
async def test_whose_it_is(idp: IdentityProvider, names: dict[str, Any], user: bytes) -> None:
    idp.grant(KEY.sign(claims(**names)))
    assert (await source(idp).fetch()).user == user


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 401, "text": '{"error": "invalid_client"}'}, "answers 401: invalid_client"),
        ({"status": 400, "text": '{"error": "hunter2 is wrong"}'}, "the provider answers 400"),
        ({"status": 500, "text": "hunter2"}, "the provider answers 500"),
        ({"status": 302, "headers": {"Location": "/jwks"}}, "the provider answers 302"),
        ({"text": "hunter2"}, "the provider's answer holds no bearer token"),
        ({"text": "[]"}, "the provider's answer holds no bearer token"),
        ({"text": "{}"}, "the provider's answer holds no bearer token"),
        ({"text": '{"access_token": 1}'}, "the provider's answer holds no bearer token"),
        ({"text": '{"access_token": "t", "token_type": "mac"}'}, "holds no bearer token"),
        ({"text": '{"access_token": ""}'}, "this is no token"),
        ({"text": '{"access_token": "a b"}'}, "this is no token"),
        ({"text": '{"access_token": "a\\u0000b"}'}, "this is no token"),
        ({"text": '{"access_token": "\\ud800"}'}, "this is no token"),
        ({"text": '{"access_token": "%s"}' % ("a" * (MAX_TOKEN + 1))}, "this is no token"),
        ({"body": b"x" * (1024 * 1024 + 1)}, "document_too_large"),
    ],
)  # fmt: skip
async def test_wrong_answers(idp: IdentityProvider, answer: dict[str, Any], reason: str) -> None:
    idp.answer("/token", **answer)
    with pytest.raises(BackendError, match=reason) as caught:
        await source(idp).fetch()
    assert "hunter2" not in str(caught.value)
    assert idp.requests == ["/token"], "no redirect is followed"


async def test_a_provider_that_is_not_trusted_or_away(idp: IdentityProvider) -> None:
    idp.grant(b"t")
    with pytest.raises(BackendError, match="certificate"):
        await source(idp, https=ClientTls()).fetch()
    assert idp.requests == [], "not a byte of the secret"
    assert (await source(idp, https=ClientTls(verify_peer=False)).fetch()).secret.value == b"t"
    with pytest.raises(BackendError, match="failed_connect"):
        await source(idp, token_endpoint="https://localhost:1/token").fetch()


def test_a_cacertfile_that_cannot_be_used(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\n")
    grant = TokenGrant(
        token_endpoint="https://x/",
        client_id="c",
        client_secret=Secret(b"s"),
        https=ClientTls(cacertfile=broken),
    )
    with pytest.raises(ConfigError, match=r"upstreams\.b\.oauth2\.https\.cacertfile"):
        token_source(grant, "upstreams.b")


def test_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    grant = TokenGrant(token_endpoint="https://x/", client_id="c", client_secret=Secret(b"s"))
    with pytest.raises(ConfigError, match=r"b\.oauth2\.token_endpoint: needs aiohttp; install"):
        token_source(grant, "upstreams.b")


@pytest.mark.parametrize(
    ("expires", "pause"),
    [
        (NOW + 100, 80.0),
        (NOW + 1, 1.0),
        (NOW + 1e9, 86400.0),
        (None, 2880.0),
    ],
)
def test_when_the_next_is_due(expires: float | None, pause: float) -> None:
    grant = TokenGrant(token_endpoint="https://x/", client_id="c", client_secret=Secret(b"s"))
    made = GrantedToken(grant, "p", lambda: NOW)
    assert made.pause(ServiceToken(Secret(b"t"), expires)) == pause


def test_no_secret_is_shown() -> None:
    grant = TokenGrant(token_endpoint="https://x/", client_id="c", client_secret=Secret(b"hunter2"))
    assert "hunter2" not in repr((grant, ServiceToken(Secret(b"hunter2"))))


# --- a file ---


async def test_a_file_that_others_write(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = KEY.sign(claims(exp=int(time.time()) + 60, sub="svc"))
    path.write_bytes(b"\n " + token + b"\r\n")
    made = token_source(path, "upstreams.b")
    found = await made.fetch()
    assert (found.secret.value, found.user) == (token, b"svc")
    assert found.valid(time.time() + 50)
    assert not found.valid(time.time() + 61)
    assert made.pause(found) == FILE_PAUSE
    (tmp_path / "next").write_bytes(b"opaque")
    (tmp_path / "next").replace(path)
    assert await made.fetch() == ServiceToken(Secret(b"opaque"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "this is no token"),
        (b"  \n", "this is no token"),
        (b"two lines\nhunter2", "this is no token"),
        (b"a" * (MAX_TOKEN + 1), "this is no token"),
    ],
)
async def test_a_wrong_file(tmp_path: Path, data: bytes | None, reason: str) -> None:
    path = tmp_path / "token"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BackendError, match=reason) as caught:
        await TokenInFile(path).fetch()
    assert str(path) in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_slow_provider(idp: IdentityProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_request: web.Request) -> web.StreamResponse:
        await idp.release.wait()
        return web.Response()

    idp.answers["/token"] = never
    made = source(idp)
    monkeypatch.setattr(made._fetcher, "_timeout", 0.05)
    with pytest.raises(BackendError, match="timeout"):
        await made.fetch()
