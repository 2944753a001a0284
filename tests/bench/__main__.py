"""The gate beside HAProxy and beside the broker itself, in turn, in one run.

Strategy: the order is rounds outermost, then measures, then routes, and the order of the
routes turns with every round. What else happens on the machine then falls on all routes
alike, and the ratios are taken within a round. A route that fails is reported and left out;
the others go on. Tables go to stdout, progress to stderr, nothing to the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.bench import crowd, machine, measures, streams, trips
from tests.bench.measures import Measure, Scale
from tests.bench.report import FORMATS, Results
from tests.bench.routes import DEFAULT_ROUTES, ROUTES, UPSTREAMS, Route, Upstream
from tests.bench.wire import BenchError

Outcome = TypeVar("Outcome", Upstream, Route)
FULL_ROUNDS, QUICK_ROUNDS = 7, 1


@dataclass(frozen=True, slots=True)
class Plan:
    """One entry of ``--only``: what to run against which upstream.

    fresh: give every reading a new process (memory: the allocator remembers). rounds: the first
    ones only, where a reading takes long and differs little; 0: all.
    """

    group: str
    upstream: str
    measure: Measure
    fresh: bool = False
    rounds: int = 0


SIZES = (16, 64, 1024, 65536)
PLANS = (
    *(Plan("publish", "sink", streams.publish(streams.plain(size))) for size in SIZES),
    *(Plan("deliver", "sink", streams.deliver(size)) for size in SIZES),
    *(Plan("confirms", "sink", streams.publish(streams.confirmed(size))) for size in SIZES),
    *(Plan("fifty", "sink", streams.publish(streams.fifty(size))) for size in SIZES),
    *(Plan("fifty", "sink", streams.deliver(size, 50)) for size in SIZES),
    Plan("topic", "sink", streams.publish(streams.topical(64))),
    Plan("topic", "sink", streams.publish(streams.remembered(64))),
    Plan("user-id", "sink", streams.publish(streams.own_name(64))),
    Plan("topic", "sink", streams.publish(streams.copied(64))),
    Plan("slow", "sink", streams.publish_slowly(streams.judged(64))),
    Plan("tls", "sink", streams.publish(streams.encrypted(1024))),
    Plan("tls", "sink", measures.handshakes("sink", tls=True)),
    Plan("confirm", "rabbit", trips.confirm),
    Plan("declare", "rabbit", trips.declare),
    Plan("get", "rabbit", trips.get),
    Plan("fairness", "sink", trips.fairness),
    Plan("end-to-end", "rabbit", measures.end_to_end),
    Plan("handshake", "sink", measures.handshakes("sink")),
    Plan("handshake", "rabbit", measures.handshakes("RabbitMQ")),
    Plan("storm", "sink", crowd.storm("sink")),
    Plan("storm", "rabbit", crowd.storm("RabbitMQ")),
    Plan("idle", "sink", crowd.idle, fresh=True, rounds=3),
    Plan("idle-tls", "sink", crowd.idle_tls, fresh=True, rounds=3),
    Plan("churn", "sink", crowd.churn, fresh=True, rounds=1),
)
GROUPS = tuple(dict.fromkeys(plan.group for plan in PLANS))


class Lab:
    """What is running: upstreams and routes, started when first wanted, kept until the end.

    What fails once is not tried again: it would cost its timeout in every round.
    """

    def __init__(self, stack: ExitStack, folder: Path, progress: Progress) -> None:
        self._stack = stack
        self._folder = folder
        self._progress = progress
        self._upstreams: dict[str, Upstream | BenchError] = {}
        self._routes: dict[tuple[str, str], Route | BenchError] = {}
        self._failed: set[tuple[Plan, str]] = set()
        self._left_out: dict[tuple[str, str], list[str]] = {}

    def notes(self) -> list[str]:
        """A line for each route and reason: what is missing from the table, and why."""
        return [
            f"{name}: left out of {', '.join(dict.fromkeys(groups))}: {reason}"
            for (name, reason), groups in self._left_out.items()
        ]

    def read(self, plan: Plan, name: str, scale: Scale) -> list[measures.Reading]:
        """The readings of one measure over one route; [] and a note where there are none."""
        if (plan, name) in self._failed:
            return []
        try:
            if plan.fresh:
                with ExitStack() as stack:
                    return list(plan.measure(self._open(plan.upstream, name, stack), scale))
            return list(plan.measure(self._route(plan.upstream, name), scale))
        except (BenchError, OSError) as error:
            self._failed.add((plan, name))
            groups = self._left_out.setdefault((name, str(error)), [])
            groups.append(f"{plan.group} ({plan.upstream})")
            return []

    def _route(self, upstream: str, name: str) -> Route:
        key = upstream, name
        if key not in self._routes:
            try:
                self._routes[key] = self._open(upstream, name, self._stack)
            except BenchError as error:
                self._routes[key] = error
        return _value(self._routes[key])

    def _open(self, upstream: str, name: str, stack: ExitStack) -> Route:
        broker = self._upstream(upstream)
        route = stack.enter_context(ROUTES[name](broker, self._new_folder(name)))
        if upstream == "sink":
            measures.verify(route)
        return route

    def _upstream(self, name: str) -> Upstream:
        if name not in self._upstreams:
            self._progress.show(f"start {name}")
            try:
                opener = UPSTREAMS[name](self._new_folder(name))
                self._upstreams[name] = self._stack.enter_context(opener)
            except BenchError as error:
                self._upstreams[name] = error
        return _value(self._upstreams[name])

    def _new_folder(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))


def _value(outcome: Outcome | BenchError) -> Outcome:
    if isinstance(outcome, BenchError):
        raise outcome
    return outcome


class Progress:
    """One line on a terminal's stderr that overwrites itself; silent elsewhere."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._tty = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._tty:
            elapsed = time.monotonic() - self._begin
            print(f"\r\x1b[K{elapsed:4.0f} s  {text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._tty:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """0: everything was measured; 1: something was left out; 2: nothing could be measured."""
    options = _parser().parse_args(argv)
    scale = measures.QUICK if options.quick else measures.FULL
    scale = dataclasses.replace(
        scale,
        idle=options.idle or scale.idle,
        idle_tls=options.idle or scale.idle_tls,
        storm=options.storm or scale.storm,
        churn_seconds=float(options.churn or scale.churn_seconds),
    )
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else FULL_ROUNDS)
    plans = [plan for plan in PLANS if plan.group in options.only]
    facts = machine.describe()
    results, progress, begin = Results(), Progress(), time.monotonic()
    try:
        # The proxy holds two descriptors a connection, the rest is for everything else.
        measures.raise_descriptor_limit(2 * max(scale.idle, scale.storm) + 500)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            lab = Lab(stack, folder, progress)
            _run(plans, options.routes, rounds, scale, lab, results, progress)
    except BenchError as error:
        progress.clear()
        print(f"bench: {error}", file=sys.stderr)
        return 2
    progress.clear()
    facts.append(("after the run", " ".join(f"{load:.2f}" for load in os.getloadavg())))
    facts.append(("rounds", f"{rounds}, {time.monotonic() - begin:.0f} s in all"))
    notes = lab.notes()
    _print(facts, results, options.routes, options.format, notes)
    return 1 if notes else 0


def _run(
    plans: Sequence[Plan],
    routes: Sequence[str],
    rounds: int,
    scale: Scale,
    lab: Lab,
    results: Results,
    progress: Progress,
) -> None:
    for number in range(rounds):
        turn = number % len(routes)
        for plan in plans:
            if plan.rounds and number >= plan.rounds:
                continue
            for name in (*routes[turn:], *routes[:turn]):
                progress.show(f"round {number + 1} of {rounds}: {plan.group}, {name}")
                for metric, value in lab.read(plan, name, scale):
                    results.add(metric, name, number, value)


def _print(
    facts: Sequence[tuple[str, str]],
    results: Results,
    routes: Sequence[str],
    formats: Sequence[str],
    notes: Sequence[str],
) -> None:
    table = results.table([name for name in routes if results.has(name)])
    for label, text in facts:
        print(f"{label}: {text}")
    for name in formats:
        print()
        print(FORMATS[name](table))
    print("\nMedian of the rounds ± half the distance of the quartiles; ratios within a round.")
    for note in notes:
        print(note)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument(
        "--only", type=_choice(GROUPS), default=GROUPS, metavar="A,B", help=",".join(GROUPS)
    )
    parser.add_argument(
        "--routes",
        type=_choice(tuple(ROUTES)),
        default=DEFAULT_ROUTES,
        metavar="A,B",
        help=f"of {','.join(ROUTES)}; default {','.join(DEFAULT_ROUTES)}",
    )
    parser.add_argument("--rounds", type=_positive, help="default 7, with --quick 1")
    parser.add_argument("--idle", type=_positive, help="idle connections to open")
    parser.add_argument("--storm", type=_positive, help="clients that log in at once")
    parser.add_argument("--churn", type=_positive, metavar="SECONDS", help="length of the churn")
    parser.add_argument(
        "--format", type=_choice(tuple(FORMATS)), default=tuple(FORMATS), help="plain,markdown"
    )
    return parser


def _positive(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


def _choice(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Reads a comma-separated list of known names, in the order given."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown: use {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main())
