"""Keys of a real identity provider over HTTPS: found, rotated, rationed, and in trouble."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from gatekeeper.backends.oauth2.claims import TokenRefusedError
from gatekeeper.backends.oauth2.fetch import MAX_DOCUMENT, Fetcher
from gatekeeper.backends.oauth2.keys import BURST, REFILL, KeyRing
from gatekeeper.config.oauth2 import OAuthProvider
from gatekeeper.config.settings import ClientTls
from gatekeeper.errors import BackendError, ConfigError
from tests.support.idp import IdentityProvider, SigningKey

ONE, TWO = SigningKey("one"), SigningKey("two", "ES256")


@pytest.fixture
async def idp(tmp_path: Path) -> AsyncIterator[IdentityProvider]:
    async with IdentityProvider(tmp_path, ONE) as idp:
        yield idp


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ring(idp: IdentityProvider, clock: Callable[[], float] = Clock(), **more: Any) -> KeyRing:  # noqa: B008
    provider = OAuthProvider(jwks_uri=idp.jwks_uri, https=idp.https, **more)
    return KeyRing(provider, clock=clock)


async def refusal(ring: KeyRing, key_id: str | None) -> str:
    with pytest.raises(TokenRefusedError) as refused:
        await ring.find(key_id)
    return str(refused.value)


async def test_keys_are_fetched_once_and_again_for_an_unknown_one(idp: IdentityProvider) -> None:
    keys = ring(idp)
    assert "RS256" in (await keys.find("one")).algorithms
    assert await keys.find("one") is await keys.find("one")
    assert len(idp.requests) == 1
    idp.keys = [TWO]
    assert (await keys.find("one")).algorithms[0] == "RS256"  # not known to be gone yet
    assert "ES256" in (await keys.find("two")).algorithms
    assert len(idp.requests) == 2
    assert await refusal(keys, "one") == "{error,key_not_found}"  # withdrawn with the rotation


async def test_made_up_keys_are_rationed(idp: IdentityProvider) -> None:
    clock = Clock()
    keys = ring(idp, clock)
    for at in range(BURST * 3):
        assert await refusal(keys, f"made up {at}") == "{error,key_not_found}"
    assert len(idp.requests) == BURST
    clock.now += REFILL
    idp.keys = [TWO]
    await keys.find("two")
    assert len(idp.requests) == BURST + 1
    assert await refusal(keys, "another") == "{error,key_not_found}"
    assert len(idp.requests) == BURST + 1


async def test_many_logins_wait_for_one_fetch(idp: IdentityProvider) -> None:
    idp.hold("/jwks")
    keys = ring(idp)
    asking = [asyncio.get_running_loop().create_task(keys.find("one")) for _ in range(50)]
    while not idp.requests:
        await asyncio.sleep(0.01)
    idp.release.set()
    found = await asyncio.gather(*asking)
    assert len(set(map(id, found))) == 1
    assert len(idp.requests) == 1


async def test_who_gives_up_leaves_the_fetch_to_the_next(idp: IdentityProvider) -> None:
    idp.hold("/jwks")
    keys = ring(idp)
    loop = asyncio.get_running_loop()
    first, second = (loop.create_task(keys.find("one")) for _ in range(2))
    while not idp.requests:
        await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    idp.release.set()
    assert "RS256" in (await second).algorithms


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ({"status": 500}, "{unexpected_status_code,500}"),
        ({"status": 201, "text": '{"keys": [{"kid": "x"}]}'}, "{unexpected_status_code,201}"),
        ({"text": "<html>"}, "invalid_jwks_response"),
        ({"text": "[]"}, "invalid_jwks_response"),
        ({"body": b'{"keys": "\xff"}'}, "invalid_jwks_response"),
        ({"text": '{"keys": 7}'}, "invalid_jwks_response"),
        ({"text": '{"keys": ["x"]}'}, "invalid_jwks_response"),
        ({"text": "[" * 100_000}, "invalid_jwks_response"),
        ({"text": "{}"}, "empty_jwks_response"),
        ({"text": '{"keys": []}'}, "empty_jwks_response"),
        ({"body": b" " * (MAX_DOCUMENT + 1)}, "document_too_large"),
        ({"status": 302, "headers": {"Location": "http://localhost:1/jwks"}}, None),
        ({"status": 302, "headers": {"Location": "/jwks"}}, None),
    ],
)
async def test_wrong_content_leaves_the_known_keys(
    idp: IdentityProvider, response: dict[str, Any], reason: str | None
) -> None:
    keys = ring(idp)
    await keys.find("one")
    idp.answer("/jwks", **response)
    refused = await refusal(keys, "two")
    if reason is None:
        assert refused.startswith("{error,{failed_connect,")
    else:
        assert refused == f"{{error,{reason}}}"
    await keys.find("one")
    del idp.answers["/jwks"]
    idp.keys.append(TWO)
    await keys.find("two")


async def test_a_redirect_to_another_https_address_is_followed(idp: IdentityProvider) -> None:
    idp.answer("/jwks", status=301, headers={"Location": "/moved"})
    idp.answer("/moved", text=json.dumps({"keys": [ONE.jwk()]}))
    await ring(idp).find("one")


async def test_what_an_address_holds_stays_out_of_texts(idp: IdentityProvider) -> None:
    """It may be a password, or a key in the query; the text goes to the log."""
    idp.answer("/jwks", status=302, headers={"Location": "/jwks?key=hunter2"})
    uri = f"{idp.jwks_uri.replace('//', '//gate:hunter2@')}?key=hunter2"
    keys = KeyRing(OAuthProvider(jwks_uri=uri, https=idp.https), clock=Clock())
    assert await refusal(keys, "one") == "{error,{failed_connect,TooManyRedirects}}"


async def test_a_redirect_through_plain_http_is_not(idp: IdentityProvider) -> None:
    plain = web.Application()
    body = json.dumps({"keys": [ONE.jwk()]})

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=body)

    plain.router.add_get("/jwks", answer)
    runner = web.AppRunner(plain)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    location = f"http://localhost:{runner.addresses[0][1]}/jwks"
    idp.answer("/jwks", status=302, headers={"Location": location})
    assert await refusal(ring(idp), "one") == "{error,insecure_redirect}"
    await runner.cleanup()


async def test_a_provider_that_is_slow(idp: IdentityProvider) -> None:
    idp.hold("/jwks")
    provider = OAuthProvider(jwks_uri=idp.jwks_uri, https=idp.https)
    keys = KeyRing(provider, Fetcher(provider.https, "x", timeout=0.2), Clock())
    assert await refusal(keys, "one") == "{error,timeout}"


async def test_a_provider_that_is_gone_and_comes_back(tmp_path: Path) -> None:
    async with IdentityProvider(tmp_path, ONE) as idp:
        keys = ring(idp, clock := Clock())
        await keys.find("one")
    for _ in range(BURST * 2):  # what is known stays, what is not is refused
        assert (await refusal(keys, "two")).startswith("{error,{failed_connect,ClientConnector")
        await keys.find("one")
    with pytest.raises(BackendError):
        await keys.refresh()
    clock.now += REFILL
    assert (await refusal(keys, "two")).startswith("{error,{failed_connect,")


@pytest.mark.parametrize("verify", [True, False])
async def test_a_certificate_that_nobody_vouches_for(
    idp: IdentityProvider, tmp_path: Path, verify: bool
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    keys = KeyRing(
        OAuthProvider(jwks_uri=idp.jwks_uri, https=ClientTls(cacertfile=other, verify_peer=verify))
    )
    if verify:
        assert "Certificate" in await refusal(keys, "one")
    else:
        await keys.find("one")


async def test_a_certificate_for_another_name(idp: IdentityProvider) -> None:
    provider = OAuthProvider(
        jwks_uri=idp.jwks_uri.replace("localhost", "127.0.0.1"), https=idp.https
    )
    assert "Certificate" in await refusal(KeyRing(provider), "one")


def test_authorities_that_cannot_be_read(tmp_path: Path) -> None:
    https = ClientTls(cacertfile=tmp_path / "none.pem")
    with pytest.raises(ConfigError, match=r"auth_oauth2\.oauth_providers\.p\.https\.cacertfile"):
        KeyRing(OAuthProvider(name="p", jwks_uri="https://localhost/", https=https))


# --- discovery ---


def discovering(idp: IdentityProvider, path: str = "/.well-known/openid-configuration") -> KeyRing:
    provider = OAuthProvider(discovery_endpoint=idp.url + path, https=idp.https)
    return KeyRing(provider, clock=Clock())


async def test_discovery_happens_once_and_again_when_the_keys_have_moved(
    idp: IdentityProvider,
) -> None:
    keys = discovering(idp, "/realm/.well-known/openid-configuration?a=1")
    await keys.find("one")
    await refusal(keys, "x")
    discovery = "/realm/.well-known/openid-configuration?a=1"
    assert idp.requests == [discovery, "/jwks", "/jwks"]
    idp.answer("/jwks", status=404)
    await refusal(keys, "x")
    idp.answer("/.well-known", status=404)
    moved = json.dumps({"jwks_uri": idp.url + "/moved"})
    idp.answer(discovery.partition("?")[0], text=moved, content_type="application/json")
    idp.answer("/moved", text=json.dumps({"keys": [TWO.jwk()]}))
    await keys.find("two")
    assert idp.requests[-2:] == [discovery, "/moved"]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ({"status": 404, "content_type": "application/json"}, "{unexpected_status_code,404}"),
        ({"text": "{}", "content_type": "text/html"}, "mime_type_is_not_json"),
        ({"text": "{", "content_type": "application/json"}, "invalid_openid_configuration"),
        (
            {"text": "{}", "content_type": "application/json"},
            "{missing_oauth_provider_attributes,[jwks_uri]}",
        ),
        (
            {"text": '{"jwks_uri": "http://x/"}', "content_type": "application/json"},
            "insecure_jwks_uri",
        ),
    ],
)
async def test_discovery_in_trouble(
    idp: IdentityProvider, response: dict[str, Any], reason: str
) -> None:
    keys = discovering(idp)
    idp.answer("/.well-known/openid-configuration", **response)
    assert await refusal(keys, "one") == f"{{error,{reason}}}"
    del idp.answers["/.well-known/openid-configuration"]
    await keys.find("one")


# --- which key ---


async def test_configured_keys_need_no_provider() -> None:
    provider = OAuthProvider(signing_keys={"one": ONE.public_pem}, default_key="one")
    keys = KeyRing(provider)
    assert await keys.find("one") is await keys.find(None)
    assert await refusal(keys, "two") == "{error,{missing_oauth_provider_attributes,[issuer]}}"


async def test_a_published_key_goes_before_a_configured_one(idp: IdentityProvider) -> None:
    keys = ring(idp, signing_keys={"one": TWO.public_pem, "three": TWO.public_pem})
    assert "ES256" in (await keys.find("one")).algorithms  # nothing fetched so far
    await refusal(keys, "unknown")
    assert "RS256" in (await keys.find("one")).algorithms
    assert "ES256" in (await keys.find("three")).algorithms


async def test_a_token_without_a_key_id(idp: IdentityProvider) -> None:
    assert await refusal(ring(idp), None) == "{error,key_not_found}"
    unnamed = ONE.jwk()
    del unnamed["kid"]
    idp.answer("/jwks", text=json.dumps({"keys": [unnamed, {**TWO.jwk(), "kid": None}]}))
    assert "RS256" in (await ring(idp).find(None)).algorithms
    assert await refusal(ring(idp, default_key="x"), None) == "{error,key_not_found}"


@pytest.mark.parametrize(
    ("jwk", "reason"),
    [
        ({}, "no_kty"),
        ({"kty": None}, "no_kty"),
        ({"kty": "XYZ"}, "unknown_kty"),
        ({"kty": ["RSA"]}, "unknown_kty"),
        ({"kty": "RSA", "n": "AQAB"}, '{fields_missing_for_kty,<<"RSA">>}'),
        ({"kty": "RSA", "n": 7, "e": "AQAB"}, '{fields_missing_for_kty,<<"RSA">>}'),
        ({"kty": "oct"}, '{fields_missing_for_kty,<<"oct">>}'),
        ({"kty": "MAC"}, '{fields_missing_for_kty,<<"MAC">>}'),
        ({"kty": "RSA", "n": "AQAB", "e": "!"}, "invalid_signing_key"),
        ({"kty": "EC", "crv": "P-256", "x": "AQAB", "y": "AQAB"}, "invalid_signing_key"),
        ({"kty": "EC", "crv": "P-1", "x": "AQAB", "y": "AQAB"}, "invalid_signing_key"),
        ({"kty": "OKP", "crv": "Ed25519", "x": "AQAB"}, "invalid_signing_key"),
    ],
)
async def test_a_bad_key_harms_only_itself(
    idp: IdentityProvider, jwk: dict[str, Any], reason: str
) -> None:
    idp.answer("/jwks", text=json.dumps({"keys": [{**jwk, "kid": "bad"}, ONE.jwk()]}))
    keys = ring(idp)
    assert await refusal(keys, "bad") == f"{{error,{reason}}}"
    await keys.find("one")


@pytest.mark.parametrize(
    "more", [{"use": "enc"}, {"key_ops": ["encrypt"]}, {"alg": "SHA256withRSA"}]
)
async def test_only_the_type_of_a_key_counts(idp: IdentityProvider, more: dict[str, Any]) -> None:
    idp.answer("/jwks", text=json.dumps({"keys": [ONE.jwk(**more)]}))
    assert "PS512" in (await ring(idp).find("one")).algorithms


async def test_shared_secrets(idp: IdentityProvider) -> None:
    published = [
        {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0", "kid": "oct"},
        {"kty": "MAC", "value": "secret-secret-secret-secret", "kid": "mac"},
    ]
    idp.answer("/jwks", text=json.dumps({"keys": published}))
    keys = ring(idp)
    assert set((await keys.find("oct")).algorithms) == {"HS256", "HS384", "HS512"}
    assert "secret" not in repr(await keys.find("mac"))
