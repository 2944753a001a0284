"""A real broker and a real gate before it, for the commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.replay import Said, ctl
from tests.support.gate import Gate, GateConfig
from tests.support.process import wait_until
from tests.support.rabbit import RabbitNode, service_account


@dataclass(frozen=True, slots=True)
class CtlGate:
    """A gate that can be talked to. folder: its own."""

    gate: Gate
    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / "store.db.sock"

    def ctl(self, *words: str, stdin: bytes = b"") -> Said:
        return ctl(*words, socket=self.socket, stdin=stdin)

    def ok(self, *words: str, stdin: bytes = b"") -> str:
        """What it prints, when all is well."""
        said = self.ctl(*words, stdin=stdin)
        assert (said.code, said.stderr) == (0, ""), said
        return said.stdout

    def contents(self) -> str:
        """The whole store, to see that nothing has changed."""
        return self.ok("export_definitions", "-") + self.ok("list_global_parameters")


def started(folder: Path, *, upstream: int, **keys: str) -> CtlGate:
    config = GateConfig(folder, upstream=upstream)
    for key, value in keys.items():
        config.set(key.replace("__", "."), value)
    gate = Gate(config)
    before = gate.log_text().count(" ready on ")
    gate.start()
    wait_until(lambda: gate.log_text().count(" ready on ") > before, what="the gate is ready")
    return CtlGate(gate, folder)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    with RabbitNode(tmp_path_factory.mktemp("broker"), definitions=service_account()) as node:
        yield node


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[CtlGate]:
    """Without a broker: it has no part in most commands."""
    found = started(tmp_path / "gate", upstream=1)
    yield found
    found.gate.stop()
