"""loopback_users from another host: a network namespace of its own, joined by a veth pair."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.admin.conftest import STATE
from tests.admin.serving import Api

ASK = """
import json, sys
from tests.admin.serving import ask
host, port, user = sys.argv[1:]
answer = ask(int(port), "GET", "/api/whoami", user=user, host=host)
print(json.dumps([answer.status, answer.json]))
"""


@dataclass(frozen=True)
class OtherHost:
    """A namespace; ``gate`` is this machine's address on the wire between the two."""

    name: str
    gate: str

    def ask(self, port: int, user: str) -> tuple[int, dict[str, object]]:
        done = subprocess.run(
            [
                "ip",
                "netns",
                "exec",
                self.name,
                sys.executable,
                "-c",
                ASK,
                self.gate,
                str(port),
                user,
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        status, body = json.loads(done.stdout)
        return status, body


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, timeout=20)


@pytest.fixture
def other_host() -> Iterator[OtherHost]:
    number = os.getpid() % 250
    name, here, there = f"gk{number}", f"gkh{number}", f"gkt{number}"
    subnet = f"10.213.{number}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        _ip("addr", "add", f"{subnet}.1/24", "dev", here)
        _ip("link", "set", here, "up")
        _ip("-n", name, "addr", "add", f"{subnet}.2/24", "dev", there)
        _ip("-n", name, "link", "set", there, "up")
        yield OtherHost(name, f"{subnet}.1")
    finally:
        _ip("link", "del", here, check=False)
        _ip("netns", "del", name, check=False)


@pytest.mark.parametrize("ip", ["0.0.0.0", "::"])
def test_a_loopback_user_comes_from_this_machine_only(
    tmp_path: Path, other_host: OtherHost, ip: str
) -> None:
    with Api(tmp_path, STATE, ip=ip) as api:
        assert api.ask("GET", "/api/whoami").status == 200  # guest, from here
        assert other_host.ask(api.port, "guest:guest") == (
            401,
            {"error": "not_authorised", "reason": "User can only log in via localhost"},
        )
        assert api.log.lines[-1][2].endswith("denied: user 'guest' can only connect via localhost")
        # A wrong password is not told apart from any other one.
        assert other_host.ask(api.port, "guest:wrong") == (
            401,
            {"error": "not_authorized", "reason": "Not_Authorized"},
        )
        assert other_host.ask(api.port, "mgmt:mgmt")[0] == 200
