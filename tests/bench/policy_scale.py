"""How the store grows: ``python -m tests.bench.policy_scale [--users 1000,10000,100000]``.

For each number of users (a hundredth as many vhosts, ten permissions each) a definitions file is
generated, always the same, in an order that is nobody's key, with a pattern of its own for each
user. Each step is a process of its own, as in life:

* import: ``load_definitions`` into a new file; its time and the most memory it took.
* start: another process opens that file, which has been dropped from the page cache, and makes
  the engine ready; then the whole gate, before a broker that only shakes hands, until it listens.
* log in and check: the first of all, then a thousand users nobody has asked for yet, then the
  same ones again. A login is password, vhost and its limits; a check is one resource. Once more
  with the file in the page cache, as the system keeps it while the gate runs.
* memory: resident when ready, and after twenty thousand logins of different users.

The load average of the machine is the last line: with other work beside it, times mean less.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gatekeeper.backends.internal import InternalBackend
from gatekeeper.model import Access, Credentials, Identity, Kind, Peer, Permission, Secret
from gatekeeper.policy.engine import Engine
from gatekeeper.policy.pairs import Pair
from gatekeeper.store.definitions import load_definitions
from gatekeeper.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
SIZES = (1_000, 10_000, 100_000)
USERS_A_VHOST = 100
PERMISSIONS_A_USER = 10
SAMPLE = 1_000
"""Logins whose median is taken."""
MANY = 20_000
"""Logins after which the caches are as full as they get."""
STRIDE = 7_919
"""A prime: entry ``i`` of the file is number ``i * STRIDE`` of the sorted order."""
START_TIMEOUT = 60.0
PEER = Peer("127.0.0.1", 40000, "127.0.0.1", 5672, loopback=True)


# -- what is imported --------------------------------------------------------------------


def user_name(number: int) -> str:
    return f"user-{number:06d}"


def vhost_name(number: int) -> str:
    return f"vhost-{number:04d}"


def password(number: int) -> bytes:
    return b"password of %d" % number


def vhosts_of(number: int, vhosts: int) -> list[int]:
    """The vhosts that a user has permissions in: neighbours, so that none occurs twice."""
    return [(number + place) % vhosts for place in range(min(PERMISSIONS_A_USER, vhosts))]


def write_definitions(file: Path, users: int) -> int:
    """Written line by line: the generator needs no memory. The number of permissions."""
    vhosts = max(1, users // USERS_A_VHOST)
    permissions = 0
    with file.open("w", encoding="ascii") as out:
        out.write('{"rabbit_version": "4.3.5", "users": [')
        for at in range(users):
            out.write("," if at else "")
            json.dump(_user(at * STRIDE % users), out)
        out.write('], "vhosts": [')
        for at in range(vhosts):
            out.write("," if at else "")
            json.dump({"name": vhost_name(at), "limits": [], "metadata": {}}, out)
        out.write('], "permissions": [')
        for at in range(users):
            number = at * STRIDE % users
            for vhost in vhosts_of(number, vhosts):
                out.write(",\n" if permissions else "")
                permissions += 1
                own = f"^{user_name(number)}\\."
                entry = {
                    "user": user_name(number),
                    "vhost": vhost_name(vhost),
                    "configure": own,
                    "write": f"{own}|^amq\\.",
                    "read": ".*",
                }
                json.dump(entry, out)
        out.write("]}")
    return permissions


def _user(number: int) -> dict[str, object]:
    salt = number.to_bytes(4, "big")
    digest = hashlib.sha256(salt + password(number)).digest()
    return {
        "name": user_name(number),
        "password_hash": base64.b64encode(salt + digest).decode("ascii"),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["management"] if number % 10 == 0 else [],
        "limits": {"max-connections": 100} if number % 3 == 0 else {},
    }


# -- the steps, each in a process of its own ---------------------------------------------


def import_step(database: Path, users: int) -> dict[str, float]:
    begin = time.perf_counter()
    store = Store.open(f"sqlite://{database}")
    report = load_definitions(store, database.with_suffix(".json"))
    store.close()
    return {
        "seconds": time.perf_counter() - begin,
        "cpu": time.process_time(),
        "permissions": report.permissions,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def serve_step(database: Path, users: int) -> dict[str, float]:
    began = time.perf_counter()
    store = Store.open(f"sqlite://{database}")
    engine = Engine([Pair.of(InternalBackend(store))], _NoTopics())
    opened = time.perf_counter() - began
    found = {"open": opened, "rss": resident()}
    found.update(asyncio.run(_measure(store, engine, users)))
    store.close()
    return found


async def _measure(store: Store, engine: Engine, users: int) -> dict[str, float]:
    vhosts = max(1, users // USERS_A_VHOST)
    sample = [at * STRIDE % users for at in range(1, min(SAMPLE, users - 1) + 1)]
    first = await _login_and_check(store, engine, 0, vhosts)
    fresh = [await _login_and_check(store, engine, number, vhosts) for number in sample]
    again = [await _login_and_check(store, engine, number, vhosts) for number in sample]
    for at in range(MANY):
        await _login_and_check(store, engine, at * STRIDE % users, vhosts)
    logins, checks = 0, 1
    return {
        "first_login": first[logins],
        "first_check": first[checks],
        "new_login": statistics.median(times[logins] for times in fresh),
        "new_check": statistics.median(times[checks] for times in fresh),
        "known_login": statistics.median(times[logins] for times in again),
        "known_check": statistics.median(times[checks] for times in again),
        "rss_used": resident(),
    }


async def _login_and_check(
    store: Store, engine: Engine, number: int, vhosts: int
) -> tuple[float, float]:
    """Seconds that a login takes and seconds that its first check takes."""
    vhost = vhost_name(vhosts_of(number, vhosts)[-1]).encode()
    name = user_name(number).encode()
    began = time.perf_counter()
    identity = await engine.login(Credentials("PLAIN", name, Secret(password(number))), PEER)
    assert isinstance(identity, Identity), identity
    assert store.vhost(vhost) is not None
    store.vhost_limits(vhost)
    store.user_limits(name)
    assert (await engine.vhost_access(identity, vhost, PEER)).allowed
    logged_in = time.perf_counter()
    decision = engine.check(
        identity, vhost, Access(Permission.WRITE, Kind.EXCHANGE, name + b".events")
    )
    checked = time.perf_counter()
    assert decision.allowed, decision  # type: ignore[union-attr]
    return logged_in - began, checked - logged_in


class _NoTopics:
    def is_topic(self, vhost: bytes, exchange: bytes) -> bool:
        return False


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf(
        "SC_PAGE_SIZE"
    )


STEPS = {"import": import_step, "serve": serve_step}


# -- the program -------------------------------------------------------------------------


def measure(folder: Path, users: int) -> dict[str, float]:
    database = folder / f"{users}.db"
    document = database.with_suffix(".json")
    write_definitions(document, users)
    imported = _run("import", database, users)
    found = {f"import_{key}": value for key, value in imported.items()}
    found["document"] = document.stat().st_size
    found["file"] = database.stat().st_size
    drop_from_page_cache(database)
    found |= _run("serve", database, users)
    warm = _run("serve", database, users)
    found |= {f"warm_{key}": value for key, value in warm.items()}
    drop_from_page_cache(database)
    found["gate"], found["gate_rss"] = start_gate(folder, database)
    document.unlink()
    database.unlink()
    return found


def _run(step: str, database: Path, users: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.policy_scale", "--step", step]
    command += ["--database", str(database), "--users", str(users)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def drop_from_page_cache(file: Path) -> None:
    """What a machine that was just started would have of it: nothing."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def start_gate(folder: Path, database: Path) -> tuple[float, int]:
    """Seconds until the whole gate listens on the store, and its resident bytes then."""
    port, broker = free_port(), free_port()
    config = folder / "gatekeeper.conf"
    config.write_text(
        f"listeners.tcp.default = 127.0.0.1:{port}\n"
        f"upstreams.default.servers.1 = 127.0.0.1:{broker}\n"
        "upstreams.default.username = gatekeeper\n"
        "upstreams.default.password = secret\n"
        f"store.url = sqlite://{database}\n"
        "log.console.level = error\n",
        encoding="ascii",
    )
    module = [sys.executable, "-m"]
    with (
        running([*module, "tests.bench.sink", "--port", str(broker)], broker),
        running([*module, "gatekeeper.cli.gatekeeper", "--config", str(config)], port) as gate,
    ):
        seconds, process = gate
        status = Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()
        return seconds, int(status[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[tuple[float, subprocess.Popen[bytes]]]:
    """A process, once it listens on ``port``, and the seconds that took."""
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            while not _listens(port):
                if process.poll() is not None or time.perf_counter() - began > START_TIMEOUT:
                    raise SystemExit(f"policy_scale: {' '.join(command)} does not come up")
                time.sleep(0.005)
            yield time.perf_counter() - began, process
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Column = tuple[str, str, float, int]
"""Heading, key of the result, what one unit of the heading is, decimals."""
MS, US, MB = 1e-3, 1e-6, 1024.0**2
COLUMNS: tuple[Column, ...] = (
    ("users", "users", 1, 0),
    ("vhosts", "vhosts", 1, 0),
    ("permissions", "import_permissions", 1, 0),
    ("document MB", "document", MB, 1),
    ("store file MB", "file", MB, 1),
    ("import s", "import_seconds", 1, 2),
    ("import CPU s", "import_cpu", 1, 2),
    ("import peak MB", "import_peak", MB, 0),
    ("open store ms", "open", MS, 1),
    ("start gate s", "gate", 1, 2),
    ("first login ms", "first_login", MS, 2),
    ("first check us", "first_check", US, 0),
    ("new user's login us", "new_login", US, 0),
    ("new user's check us", "new_check", US, 1),
    ("  file in page cache: login", "warm_new_login", US, 0),
    ("  file in page cache: check", "warm_new_check", US, 1),
    ("known user's login us", "known_login", US, 0),
    ("known user's check us", "known_check", US, 1),
    ("ready MB", "rss", MB, 1),
    (f"after {MANY} logins MB", "rss_used", MB, 1),
    ("gate ready MB", "gate_rss", MB, 1),
    ("load average", "load", 1, 1),
)


def table(results: Sequence[dict[str, float]]) -> str:
    lines = []
    for heading, key, unit, decimals in COLUMNS:
        figures = "".join(f"{result[key] / unit:>14,.{decimals}f}" for result in results)
        lines.append(f"{heading:<28}{figures}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.policy_scale")
    parser.add_argument("--users", default=",".join(map(str, SIZES)), help="numbers, by comma")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--database", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sizes = [int(size) for size in options.users.split(",")]
    if options.step:
        print(json.dumps(STEPS[options.step](options.database, sizes[0])))
        return 0
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="policy-scale-") as folder:
        for users in sizes:
            begin = {"users": users, "vhosts": max(1, users // USERS_A_VHOST)}
            figures = measure(Path(folder), users)
            results.append(begin | figures | {"load": os.getloadavg()[0]})
            print(f"{users} users done", file=sys.stderr)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2), encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
