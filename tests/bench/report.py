"""From readings to tables: medians, spread, and the ratio beside HAProxy."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.bench.measures import Metric
from tests.bench.wire import BenchError

BASELINES = ("haproxy", "direct")
NOTHING = "-"


class Results:
    """Readings by metric and route, one for each round, in the order of appearance."""

    def __init__(self) -> None:
        self._rows: dict[Metric, dict[str, dict[int, float]]] = {}

    def add(self, metric: Metric, route: str, round_number: int, value: float) -> None:
        self._rows.setdefault(metric, {}).setdefault(route, {})[round_number] = value

    def has(self, route: str) -> bool:
        return any(route in values for values in self._rows.values())

    def table(self, routes: Sequence[str]) -> list[list[str]]:
        """Header and rows as text; the last columns: ratios beside HAProxy and ``direct``."""
        compared = [
            (name, base)
            for base in BASELINES
            if base in routes
            for name in routes
            if name not in BASELINES
        ]
        head = ["measure", "unit", *routes, *(f"{name} / {base}" for name, base in compared)]
        rows = [head]
        for metric, values in self._rows.items():
            cells = [_cell(metric, values.get(name, {})) for name in routes]
            ratios = [
                _ratio(metric, values.get(name, {}), values.get(base, {}))
                for name, base in compared
            ]
            rows.append([metric.title, metric.unit, *cells, *ratios])
        return rows


def _cell(metric: Metric, values: dict[int, float]) -> str:
    """The median, and half the distance of the quartiles in per cent of it."""
    if not values:
        return NOTHING
    median = statistics.median(values.values())
    text = f"{median:,.{metric.digits}f}"
    if len(values) < 3 or not median:
        return text
    low, _, high = statistics.quantiles(values.values(), n=4, method="inclusive")
    return f"{text} ±{50 * (high - low) / abs(median):.0f}%"


def _ratio(metric: Metric, values: dict[int, float], baseline: dict[int, float]) -> str:
    """The median of the rounds' own ratios: both sides of one saw the same disturbance."""
    pairs = [values[n] / baseline[n] for n in values.keys() & baseline.keys() if baseline[n]]
    if not metric.compared or not pairs:
        return NOTHING
    return f"{statistics.median(pairs):.2f}"


def plain(table: Sequence[Sequence[str]]) -> str:
    widths = _widths(table)
    lines = [_pad(row, widths, "  ").rstrip() for row in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def markdown(table: Sequence[Sequence[str]]) -> str:
    widths = _widths(table)
    lines = [f"| {_pad(row, widths, ' | ')} |" for row in table]
    marks = ["-" * width if n < 2 else "-" * (width - 1) + ":" for n, width in enumerate(widths)]
    lines.insert(1, f"| {' | '.join(marks)} |")
    return "\n".join(lines)


FORMATS = {"plain": plain, "markdown": markdown}


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    if len({len(row) for row in table}) != 1:
        raise BenchError("rows of a table differ in length")
    return [max(3, *map(len, column)) for column in zip(*table, strict=True)]


def _pad(row: Sequence[str], widths: Sequence[int], gap: str) -> str:
    pairs = zip(row, widths, strict=True)
    return gap.join(
        cell.ljust(width) if n < 2 else cell.rjust(width) for n, (cell, width) in enumerate(pairs)
    )
