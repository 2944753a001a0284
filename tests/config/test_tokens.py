"""``upstreams.NAME.oauth2.*`` and ``.token_file``: what is taken, and what an operator is told."""

# ruff: noqa: E501  (a row of the tables holds a whole message)

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from gatekeeper.config.load import load_settings
from gatekeeper.config.settings import ClientTls, Upstream
from gatekeeper.config.tokens import TokenGrant
from gatekeeper.errors import ConfigError
from gatekeeper.model import Secret
from tests.support.gate import run_gate
from tests.support.idp import SigningKey, claims

BASE = "upstreams.default.servers.1 = broker:5672\n"
UP = "upstreams.default."
O = UP + "oauth2."  # noqa: E741
GRANT = f"{O}token_endpoint = https://id/token\n{O}client_id = gate\n{O}client_secret = hunter2\n"


def load(folder: Path, text: str) -> tuple[Upstream, tuple[str, ...]]:
    trustme.CA().cert_pem.write_to_path(folder / "ca.pem")
    (folder / "token").write_text("abc")
    path = folder / "gate.conf"
    path.write_text(BASE + text.replace("DIR", str(folder)))
    settings = load_settings(path, {})
    return settings.upstreams["default"], settings.warnings


def test_a_grant(tmp_path: Path) -> None:
    upstream, warnings = load(
        tmp_path,
        f"{GRANT}{O}scope = a b\n{O}https.cacertfile = DIR/ca.pem\n{UP}username = svc",
    )
    assert upstream.token == TokenGrant(
        token_endpoint="https://id/token",
        client_id="gate",
        client_secret=Secret(b"hunter2"),
        scope="a b",
        https=ClientTls(cacertfile=tmp_path / "ca.pem"),
    )
    assert (upstream.username, upstream.password) == (b"svc", Secret(b""))
    assert warnings == ()
    assert "hunter2" not in repr(upstream)


def test_a_file(tmp_path: Path) -> None:
    upstream, _ = load(tmp_path, f"{UP}token_file = DIR/token")
    assert (upstream.token, upstream.username) == (tmp_path / "token", b"")


def test_no_token(tmp_path: Path) -> None:
    upstream, _ = load(tmp_path, f"{UP}username = a\n{UP}password = b")
    assert upstream.token is None


def test_a_token_for_the_gate_where_clients_log_in_as_themselves(tmp_path: Path) -> None:
    upstream, _ = load(tmp_path, GRANT + UP + "credentials = client")
    assert isinstance(upstream.token, TokenGrant)


def test_an_unchecked_provider_is_warned_of(tmp_path: Path) -> None:
    upstream, warnings = load(tmp_path, GRANT + O + "https.verify = verify_none")
    assert isinstance(upstream.token, TokenGrant)
    assert upstream.token.https.verify_peer is False
    assert len(warnings) == 1
    assert "upstreams.default.oauth2.https.verify: whoever can redirect" in warnings[0]


REFUSED = [
    (O + "token_endpoint = http://id/token", "token_endpoint: the value does not fit: expected a URL: https://..."),
    (O + "token_endpoint = https://user:hunter2@id/", "token_endpoint: the value does not fit"),
    (O + "client_id = x", "oauth2.token_endpoint: is missing; a token needs token_endpoint, client_id and client_secret"),
    (O + "https.verify = verify_none", "oauth2.token_endpoint: is missing"),
    (f"{O}token_endpoint = https://x/\n{O}client_id = x", "oauth2.client_secret: is missing"),
    (f"{O}token_endpoint = https://x/\n{O}client_secret = x", "oauth2.client_id: is missing"),
    (GRANT + O + "scope = ''", "oauth2.scope: '' does not fit"),
    (GRANT + O + "https.cacertfile = DIR/token", "oauth2.https.cacertfile: "),
    (GRANT + O + "https.depth = 1", "oauth2.https.depth: there is no such setting"),
    (GRANT + UP + "password = hunter2", "upstreams.default.password: has no effect beside oauth2.token_endpoint; remove one"),
    (GRANT + UP + "auth_mechanism = EXTERNAL", "auth_mechanism: EXTERNAL sends no password, and so no token"),
    (GRANT + UP + "token_file = DIR/token", "token_file: the token cannot come from both token_file and oauth2; remove one"),
    (UP + "token_file = DIR/none", "token_file: "),
    (UP + "token_file = DIR", "token_file: "),
    (f"{UP}token_file = DIR/token\n{UP}password = x", "upstreams.default.password: has no effect beside token_file; remove one"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value).splitlines()[0]
    assert "hunter2" not in str(caught.value)


# --- gatekeeper --check-config ---


@pytest.mark.parametrize(
    ("token", "status", "message"),
    [
        (SigningKey("k", "ES256").sign(claims()), 0, ""),
        (SigningKey("k", "ES256").sign(claims(exp=5)), 1, "upstreams.default: its token has ended already"),
        (b"hunter2 x", 1, "upstreams.default: there is no token: "),
    ],
    ids=["good", "old", "none"],
)  # fmt: skip
def test_check_config(tmp_path: Path, token: bytes, status: int, message: str) -> None:
    (tmp_path / "token").write_bytes(token)
    conf = tmp_path / "gate.conf"
    conf.write_text(f"{BASE}{UP}token_file = {tmp_path}/token\n")
    done = run_gate("--config", conf, "--check-config")
    assert (done.returncode, message in done.stderr) == (status, True)
    assert "hunter2" not in done.stderr + done.stdout


def test_check_config_asks_the_provider(tmp_path: Path) -> None:
    conf = tmp_path / "gate.conf"
    conf.write_text(BASE + GRANT.replace("https://id/", "https://localhost:1/"))
    done = run_gate("--config", conf, "--check-config")
    assert done.returncode == 1
    assert "upstreams.default: there is no token: {failed_connect," in done.stderr
