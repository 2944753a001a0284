"""Whose answers may be out of date without the gate's knowing."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatekeeper.backends.staleness import may_go_stale
from gatekeeper.config.load import load_settings
from gatekeeper.config.settings import Settings
from tests.backends.test_registry import HEAD

OAUTH2 = """\
auth_backends.1 = oauth2
auth_oauth2.resource_server_id = r
auth_oauth2.jwks_uri = https://idp.example.com/keys
"""


def settings(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "gatekeeper.conf"
    path.write_text(HEAD + text)
    return load_settings(path, {})


@pytest.mark.parametrize(
    ("chain", "stale"),
    [
        ("", False),
        ("auth_backends.1 = internal_loopback\nauth_backends.2 = dummy\n", False),
        ("auth_backends.1.authn = http\nauth_backends.1.authz = internal\n", False),
        ("auth_backends.1.authn = internal\nauth_backends.1.authz = ip_range\n", False),
        (OAUTH2, False),
        ("auth_backends.1 = internal\nauth_backends.2 = http\n", True),
        ("auth_backends.1.authn = internal\nauth_backends.1.authz = ldap\n", True),
        ("auth_backends.1 = cache\nauth_cache.cached_backend = internal\n", True),
        ("auth_backends.1 = tests.backends.third_party:Office\n", True),
    ],
)
def test_whose_answers_may_go_stale(tmp_path: Path, chain: str, stale: bool) -> None:
    assert may_go_stale(settings(tmp_path, chain).auth_backends) is stale


def test_the_key(tmp_path: Path) -> None:
    assert settings(tmp_path, "").permission_cache_ttl == 30.0
    key = "gatekeeper.permission_cache_ttl = "
    assert settings(tmp_path, key + "1500\n").permission_cache_ttl == 1.5
    assert settings(tmp_path, key + "0\n").permission_cache_ttl == 0
