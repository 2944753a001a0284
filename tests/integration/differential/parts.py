"""Starts what the comparison needs: A and B, each with a broker of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.differential import scenario
from tests.integration.differential.side import Side
from tests.support.gate import Gate, GateConfig
from tests.support.rabbit import RabbitNode


@contextmanager
def sides(folder: Path, *, self_check: bool = False) -> Iterator[tuple[Side, Side]]:
    """(A, B). ``self_check``: B is a second native node instead of the gate."""
    first = RabbitNode(folder / "a", definitions=scenario.native_definitions(), management=True)
    second_definitions = (
        scenario.native_definitions() if self_check else scenario.upstream_definitions()
    )
    second = RabbitNode(folder / "b", definitions=second_definitions, management=True)
    with first, second:
        if self_check:
            yield from _closing(Side("A", first.port, first), Side("B", second.port, second))
            return
        config = GateConfig(folder / "gate", upstream=second.port)
        config.with_definitions(scenario.people_definitions())
        with Gate(config) as gate:
            yield from _closing(Side("A", first.port, first), Side("B", gate.port, second))


def _closing(a: Side, b: Side) -> Iterator[tuple[Side, Side]]:
    try:
        yield a, b
    finally:
        a.close()
        b.close()
