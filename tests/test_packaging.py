"""What the container image would hold, checked without a container engine.

The Dockerfile is read, its COPY lines are done and its RUN lines that build and install are run,
with /src, /wheels and /opt/gatekeeper moved into a temporary folder; then the installed command
has to work there. What is left over (users, health check, exec form) is asserted on the file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gatekeeper import __version__
from gatekeeper._compile import CompileError, compile_scanner, extension_name
from tests.support.gate import GateConfig
from tests.support.process import LOOPBACK, Process, free_port, listens

ROOT = Path(__file__).resolve().parents[1]
EXTENSION = f"gatekeeper/protocol/{extension_name()}"

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str
    value: str
    stage: int

    def words(self) -> list[str]:
        """An instruction in exec form."""
        return json.loads(self.value)


def dockerfile() -> list[Instruction]:
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: list[Instruction] = []
    stage = -1
    for line in joined.splitlines():
        name, value = line.split(None, 1)
        stage += name == "FROM"
        found.append(Instruction(name, value.strip(), stage))
    return found


def values(name: str, stage: int) -> list[str]:
    return [i.value for i in dockerfile() if (i.name, i.stage) == (name, stage)]


def clean_environment(**extra: str) -> dict[str, str]:
    """No virtual environment, no PYTHONPATH, no choice of the scanner of this run."""
    dropped = ("PYTHON", "VIRTUAL_ENV", "GATEKEEPER_", "RABBITMQ_", "COV_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return kept | extra


def run(command: list[str | Path] | str, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True, slots=True)
class Image:
    """The builder stage's products: ``installed`` is what the image gets as /opt/gatekeeper."""

    wheel: Path
    installed: Path

    def command(self, *arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.installed / "bin" / "gatekeeper", *arguments],
            env=clean_environment(**extra),
            cwd=self.installed,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


def copy_context(source: Path) -> None:
    """The builder stage's COPY lines, as .dockerignore lets them see the tree."""
    admitted = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for line in values("COPY", 0):
        *names, target = line.split()
        for name in names:
            assert name in admitted, f".dockerignore keeps {name} from the build"
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name,
                    source / target,
                    ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.c"),
                )
            else:
                shutil.copy(ROOT / name, source / target)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("image")
    source, wheels, target = folder / "src", folder / "wheels", folder / "gatekeeper"
    source.mkdir()
    copy_context(source)
    builder = folder / "builder"
    venv.create(builder, with_pip=True)
    variables = dict(
        word.split("=", 1) for line in values("ENV", 0) for word in line.split() if "=" in word
    )
    environment = clean_environment(PATH=f"{builder / 'bin'}:{os.environ['PATH']}", **variables)
    for line in values("RUN", 0):
        if line.startswith("apt-get"):
            continue
        moved = line.replace("/opt/gatekeeper", str(target)).replace("/wheels", str(wheels))
        run(moved, source, environment)
    (wheel,) = wheels.glob("*.whl")
    return Image(wheel, target)


# --- the image's content ---------------------------------------------------------------------


def test_the_wheel_holds_the_compiled_scanner(image: Image) -> None:
    names = zipfile.ZipFile(image.wheel).namelist()
    assert EXTENSION in names
    assert "gatekeeper/protocol/frames.py" in names
    assert "gatekeeper/py.typed" in names
    assert not image.wheel.name.endswith("none-any.whl")


def test_the_wheel_holds_nothing_else(image: Image) -> None:
    names = zipfile.ZipFile(image.wheel).namelist()
    assert "gatekeeper/_compile.py" not in names
    strays = [n for n in names if not n.startswith(("gatekeeper/", "gatekeeper_amqp-"))]
    assert not strays
    assert not [n for n in names if n.endswith((".c", ".pyc"))]
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_the_installed_command_runs(image: Image) -> None:
    done = image.command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"gatekeeper {__version__}\n", "")


def test_the_image_can_do_everything(image: Image, tmp_path: Path) -> None:
    """Every backend, the management API and argon2id: no extra is missing."""
    conf = tmp_path / "gatekeeper.conf"
    conf.write_text(
        "upstreams.default.servers.1 = 127.0.0.1:5673\n"
        "upstreams.default.username = u\nupstreams.default.password = p\n"
        "auth_backends.1 = http\nauth_backends.2 = ldap\nauth_backends.3 = oauth2\n"
        "auth_ldap.servers.1 = 127.0.0.1\nauth_oauth2.resource_server_id = rabbitmq\n"
        f"auth_oauth2.signing_keys.k = {signing_key(tmp_path)}\n"
        "password_hashing_module = argon2id\nmanagement.tcp.port = 15672\n"
    )
    done = image.command("--config", conf, "--check-config")
    assert (done.returncode, done.stdout) == (0, f"{conf}: good\n"), done.stderr


def signing_key(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    path = folder / "key.pem"
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def test_the_installed_scanner_is_the_compiled_one(image: Image) -> None:
    script = "from gatekeeper.protocol import frames; print(frames.COMPILED, frames.__file__)"
    python = image.installed / "bin" / "python"
    printed = run([python, "-c", script], image.installed, clean_environment())
    assert printed.startswith("True ")
    assert str(image.installed) in printed


def test_the_image_has_no_installer(image: Image) -> None:
    assert not list((image.installed / "bin").glob("pip*"))


def image_variables() -> dict[str, str]:
    """The final stage's ENV, with the paths of the image moved to this checkout."""
    pairs = [word for line in values("ENV", 1) for word in line.split()]
    found = dict(pair.split("=", 1) for pair in pairs)
    found.pop("PATH")
    found["RABBITMQ_CONFIG_FILES"] = str(ROOT / "config" / "image.d")
    return found


def test_the_configuration_of_the_image_is_good(image: Image) -> None:
    conf = ROOT / "config" / "gatekeeper.conf"
    done = image.command(
        "--check-config", "--config", conf, GATEKEEPER_UPSTREAM_PASSWORD="x", **image_variables()
    )
    assert done.returncode == 0, done.stderr


def test_the_configuration_of_the_image_wants_its_password(image: Image) -> None:
    conf = ROOT / "config" / "gatekeeper.conf"
    done = image.command("--check-config", "--config", conf, **image_variables())
    assert done.returncode == 1
    assert "GATEKEEPER_UPSTREAM_PASSWORD" in done.stderr


@pytest.fixture
def installed_gate(image: Image, tmp_path: Path) -> Iterator[tuple[Process, int]]:
    """The installed command, with no broker behind it."""
    config = GateConfig(tmp_path, upstream=free_port())
    path = config.write()
    process = Process(
        [image.installed / "bin" / "gatekeeper", "--config", path],
        log=tmp_path / "log",
        env=clean_environment(),
    )
    with process:
        process.wait_for(lambda: listens(config.port), timeout=20, what="listens")
        yield process, config.port


def health_check() -> list[str]:
    (line,) = values("HEALTHCHECK", 1)
    return json.loads(line[line.index("[") :])


def test_the_health_check(installed_gate: tuple[Process, int]) -> None:
    process, port = installed_gate
    command, *arguments = health_check()
    assert command == "python"
    assert f"('{LOOPBACK}', 5672)" in arguments[1]

    def check(where: int) -> int:
        moved = [word.replace("5672", str(where)) for word in arguments]
        return subprocess.run(
            [sys.executable, *moved], capture_output=True, timeout=20, check=False
        ).returncode

    assert check(port) == 0
    assert check(free_port()) == 1
    assert process.stop() == 0


# --- the rest of the Dockerfile ----------------------------------------------------------------


def test_stages_and_user() -> None:
    bases = [i.value for i in dockerfile() if i.name == "FROM"]
    assert len(bases) == 2
    assert "slim" in bases[1]
    assert bases[0].split()[0] == bases[1].split()[0], "built for another Python than it runs on"
    (account,) = values("USER", 1)
    assert account == "10001:10001"
    (packages,) = values("RUN", 1)
    assert "libpcre2-8-0" in packages
    assert "--no-install-recommends" in packages
    assert "gcc" not in packages
    order = [i.name for i in dockerfile() if i.stage == 1]
    assert order.index("USER") > max(n for n, name in enumerate(order) if name in {"RUN", "COPY"})


def test_exec_form() -> None:
    """The gate itself gets SIGTERM, not a shell."""
    assert [i.words() for i in dockerfile() if i.name == "ENTRYPOINT"] == [["gatekeeper"]]
    (command,) = [i.words() for i in dockerfile() if i.name == "CMD"]
    assert command == ["--config", "/etc/gatekeeper/gatekeeper.conf"]
    assert health_check()[0] == "python"


def test_every_copied_file_exists() -> None:
    for line in values("COPY", 1):
        source = line.split()[0]
        if source.startswith("--from"):
            continue
        assert (ROOT / source).exists(), source


def test_no_secret_in_the_image() -> None:
    assert "PASSWORD" not in (ROOT / "Dockerfile").read_text()
    conf = (ROOT / "config" / "gatekeeper.conf").read_text()
    assert "upstreams.default.password = $(GATEKEEPER_UPSTREAM_PASSWORD)" in conf


def block(text: str, name: str, indent: int) -> str:
    """The lines below ``name:`` that are indented more."""
    lines = text.splitlines()
    start = lines.index(" " * indent + f"{name}:") + 1
    end = next(
        (
            n
            for n in range(start, len(lines))
            if lines[n].strip() and len(lines[n]) - len(lines[n].lstrip()) <= indent
        ),
        len(lines),
    )
    return "\n".join(lines[start:end])


def test_compose_publishes_the_gate_only() -> None:
    text = (ROOT / "config" / "compose.yaml").read_text()
    services = block(text, "services", 0)
    assert "ports:" in block(services, "gatekeeper", 2)
    broker = block(services, "rabbitmq", 2)
    assert "ports:" not in broker
    assert "networks: [broker]" in broker
    assert "internal: true" in block(block(text, "networks", 0), "broker", 2)


def test_the_sidecar_is_confined() -> None:
    text = (ROOT / "config" / "kubernetes-sidecar.yaml").read_text()
    for wanted in (
        "runAsNonRoot: true",
        "runAsUser: 10001",
        "readOnlyRootFilesystem: true",
        "allowPrivilegeEscalation: false",
        "drop: [ALL]",
        "listeners.tcp.1 = 127.0.0.1:5673",
    ):
        assert wanted in text
    assert text.count("containerPort:") == 1, "only the gate has a port"


# --- the build hook ------------------------------------------------------------------------------


def build_wheel(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A wheel from a copy of the tree, with the hatchling of this environment."""
    source = folder / "tree"
    source.mkdir()
    copy_context(source)
    return subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "out"],
        cwd=source,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def only_wheel(folder: Path) -> Path:
    (wheel,) = (folder / "out").glob("*.whl")
    return wheel


def test_pure_on_demand(tmp_path: Path) -> None:
    done = build_wheel(tmp_path, GATEKEEPER_PURE="1")
    assert done.returncode == 0, done.stderr
    assert only_wheel(tmp_path).name.endswith("py3-none-any.whl")
    assert "GATEKEEPER_PURE" in done.stdout + done.stderr


def test_pure_without_a_compiler(tmp_path: Path) -> None:
    done = build_wheel(tmp_path, CC="/nonexistent/cc")
    assert done.returncode == 0, done.stderr
    wheel = only_wheel(tmp_path)
    assert wheel.name.endswith("py3-none-any.whl")
    assert EXTENSION not in zipfile.ZipFile(wheel).namelist()
    assert "plain Python" in done.stdout + done.stderr


def test_a_required_scanner_that_fails_is_fatal(tmp_path: Path) -> None:
    done = build_wheel(tmp_path, CC="/nonexistent/cc", GATEKEEPER_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "the C compiler could not be started" in done.stderr + done.stdout
    assert not list((tmp_path / "out").glob("*.whl"))


def toy(folder: Path, source: str) -> Path:
    module = folder / "toy" / "thing.py"
    module.parent.mkdir()
    module.write_text(source)
    return Path("toy/thing.py")


def test_compile_a_toy(tmp_path: Path) -> None:
    built = compile_scanner(
        tmp_path, tmp_path / "out", toy(tmp_path, "def f(x):\n    return x + 1\n"), "toy.thing"
    )
    assert built == tmp_path / "out" / extension_name(Path("thing.py"))
    assert [path.name for path in built.parent.iterdir()] == [built.name]
    script = (
        "import importlib.util as u; s = u.spec_from_file_location('toy.thing', %r);"
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.f(1))"
    )
    assert run([sys.executable, "-c", script % str(built)], tmp_path, clean_environment()) == "2\n"


def test_a_source_that_does_not_compile(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="Cython failed"):
        compile_scanner(tmp_path, tmp_path / "out", toy(tmp_path, "def f(:\n"), "toy.thing")
    assert not (tmp_path / "out").exists()
