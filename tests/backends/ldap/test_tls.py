"""TLS to a real directory: LDAPS and StartTLS, what is trusted and what is not, on both loops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import trustme
import uvloop

from gatekeeper.config.settings import ClientTls
from gatekeeper.policy.ports import Accepted, Failed, LoginAnswer
from tests.backends.ldap.asking import backend, login, queries
from tests.support.rabbit import TlsFiles
from tests.support.slapd import Slapd

KINDS = ("use_ssl", "use_starttls")
LOOPS = (asyncio.new_event_loop, uvloop.new_event_loop)
REFUSED = Failed("ldap_connect_error", unavailable=True)


async def attempt(slapd: Slapd, kind: str, tls: ClientTls) -> LoginAnswer:
    """One login that asks something after the bind, twice over one connection."""
    port = slapd.tls_port if kind == "use_ssl" else slapd.port
    asked = queries(tags='[{management, {exists, "${user_dn}"}}]')
    async with backend(port, tls=tls, queries=asked, **{kind: True}) as made:
        first = await login(made, "alice")
        assert first == await login(made, "alice")
    return first


def run(loop: Any, work: Coroutine[Any, Any, LoginAnswer]) -> LoginAnswer:
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(work)


@pytest.mark.parametrize("loop", LOOPS, ids=("asyncio", "uvloop"))
@pytest.mark.parametrize("kind", KINDS)
def test_trusted(slapd: Slapd, tls_files: TlsFiles, kind: str, loop: Any) -> None:
    answer = run(loop, attempt(slapd, kind, ClientTls(cacertfile=tls_files.ca)))
    assert isinstance(answer, Accepted)
    assert answer.tags == {"management"}


@pytest.mark.parametrize("loop", LOOPS, ids=("asyncio", "uvloop"))
@pytest.mark.parametrize("kind", KINDS)
def test_not_trusted(slapd: Slapd, tmp_path: Any, kind: str, loop: Any) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    assert run(loop, attempt(slapd, kind, ClientTls(cacertfile=stranger))) == REFUSED
    assert run(loop, attempt(slapd, kind, ClientTls())) == REFUSED


@pytest.mark.parametrize("kind", KINDS)
async def test_another_name(slapd: Slapd, tls_files: TlsFiles, kind: str) -> None:
    named = ClientTls(cacertfile=tls_files.ca, sni="ldap.example.com")
    assert await attempt(slapd, kind, named) == REFUSED


@pytest.mark.parametrize("kind", KINDS)
async def test_verify_none(slapd: Slapd, kind: str) -> None:
    answer = await attempt(slapd, kind, ClientTls(verify_peer=False))
    assert isinstance(answer, Accepted)


async def test_tls_at_a_plain_port(slapd: Slapd, tls_files: TlsFiles) -> None:
    tls = ClientTls(cacertfile=tls_files.ca)
    async with backend(slapd.port, tls=tls, use_ssl=True) as made:
        assert await login(made, "alice") == REFUSED


async def test_starttls_at_a_server_without(tls_files: TlsFiles, tmp_path: Any) -> None:
    tls = ClientTls(cacertfile=tls_files.ca)
    with Slapd(tmp_path / "plain") as plain:
        async with backend(plain.port, tls=tls, use_starttls=True) as made:
            assert await login(made, "alice") == REFUSED


@pytest.mark.parametrize("kind", KINDS)
async def test_tls_without_options_checks_the_certificate(slapd: Slapd, kind: str) -> None:
    port = slapd.tls_port if kind == "use_ssl" else slapd.port
    async with backend(port, **{kind: True}) as made:
        assert await login(made, "alice") == REFUSED
