"""Both sides in lockstep; the first difference ends the session and is reported whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.integration.differential import versions
from tests.integration.differential.generator import Generator
from tests.integration.differential.operations import Login, Session, Step
from tests.integration.differential.scenario import PASSWORD
from tests.integration.differential.side import Answer, Heard, Observation, Side
from tests.support.amqp_codec import METHODS

STATE_TIMEOUT = 4.0
ROOT = Login("root", "/")


@dataclass(frozen=True, slots=True)
class Difference:
    seed: int
    session: int
    step: int
    operation: int
    what: str
    native: str
    gate: str
    script: str

    def __str__(self) -> str:
        return (
            f"seed {self.seed}, session {self.session}, step {self.step}"
            f" (operation {self.operation}): {self.what}\n"
            f"  {self.script}\n  A {self.native}\n  B {self.gate}"
        )


@dataclass(slots=True)
class Report:
    operations: int = 0
    sessions: int = 0
    refusals: int = 0
    predicted: int = 0
    differences: list[Difference] = field(default_factory=list)

    def __str__(self) -> str:
        summary = (
            f"{self.operations} operations in {self.sessions} sessions, {self.refusals} of them"
            f" refused, {self.predicted} answers predicted: {len(self.differences)} differences"
        )
        return "\n".join([summary, *map(str, self.differences)])


class Campaign:
    """``predict``: side B answers as 4.3.5 and A is 3.10.8; False: both are 3.10.8."""

    def __init__(self, native: Side, gate: Side, *, predict: bool) -> None:
        self.native = native
        self.gate = gate
        self.predict = predict
        self.report = Report()

    def run(self, seed: int, operations: int, *, bursts: float, steps: int = 40) -> Report:
        """At least ``operations`` operations from one seed."""
        generator = Generator(seed)
        done = number = 0
        while done < operations:
            session = generator.session(steps, bursts=bursts)
            done += self.run_session(session, number)
            number += 1
        return self.report

    def run_session(self, session: Session, number: int) -> int:
        """The operations that were run; a difference is in the report."""
        sides = (self.native, self.gate)
        for side in sides:
            side.begin(session)
        self.report.sessions += 1
        known = len(self.report.differences)
        done = 0
        for index, step in enumerate(session.steps):
            difference = self._step(session, step, index * 100)
            done += len(step.operations)
            if difference is not None:
                self._add(session, number, index, done, *difference)
                break
        else:
            difference = self._compare_states("state before the end")
            if difference is not None:
                self._add(session, number, len(session.steps), done, *difference)
        self.report.operations += done
        for side in sides:
            side.end()
        if len(self.report.differences) == known:
            difference = self._compare_states("state after the end")
            if difference is not None:
                self._add(session, number, len(session.steps), done, *difference)
        for side in sides:
            side.state.clean(side.port, ROOT.username, PASSWORD)
        return done

    def _add(
        self, session: Session, number: int, step: int, done: int, what: str, a: str, b: str
    ) -> None:
        users = ", ".join(f"{n}={x.username}@{x.vhost}" for n, x in enumerate(session.logins))
        script = str(session.steps[step]) if step < len(session.steps) else "(end)"
        self.report.differences.append(
            Difference(session.seed, number, step, done, what, a, b, f"{users}\n  {script}")
        )

    def _step(self, session: Session, step: Step, index: int) -> tuple[str, str, str] | None:
        login = session.logins[step.connection]
        planned = [
            versions.plan(
                operation,
                login,
                self._probe(login),
                index=index + n,
                burst=len(step.operations) > 1,
            )
            if self.predict
            else versions.Planned(operation, operation)
            for n, operation in enumerate(step.operations)
        ]
        native = self.native.run(step, [plan.operation for plan in planned])
        gate = self.gate.run(step, list(step.operations))
        if self.predict:
            self._rewrite(native, step, planned, login)
        self.report.refusals += sum(
            answer[0] == "channel.close"
            for heard in gate.heard.values()
            for answer in heard.replies
        )
        return next(_differences(native, gate), None)

    def _probe(self, login: Login) -> versions.Probe:
        return versions.Probe(
            lambda exchange: self.native.state.is_topic(login.vhost, exchange),
            lambda kind, name: self.native.state.exists(login.vhost, kind, name),
        )

    def _rewrite(
        self, seen: Observation, step: Step, planned: list[versions.Planned], login: Login
    ) -> None:
        heard = seen.of(step.connection, step.channel)
        for at, answer in enumerate(heard.replies):
            if answer[0] == "channel.close":
                rewritten = _rewritten(answer, planned, login)
                self.report.predicted += rewritten != answer
                heard.replies[at] = rewritten

    def _compare_states(self, what: str) -> tuple[str, str, str] | None:
        """Compare until equal: what follows a close is asynchronous in the broker."""
        deadline = time.monotonic() + STATE_TIMEOUT
        while True:
            native, gate = self.native.snapshot(), self.gate.snapshot()
            if native == gate:
                return None
            if time.monotonic() > deadline:
                only_a = [item for item in native if item not in gate]
                only_b = [item for item in gate if item not in native]
                return what, f"only {only_a}", f"only {only_b}"
            time.sleep(0.1)


def _rewritten(answer: Answer, planned: list[versions.Planned], login: Login) -> Answer:
    arguments = dict(answer[1])
    marked = [p for p in planned if p.marker is not None and p.marker in arguments["reply_text"]]
    for plan in marked or planned:
        method = METHODS[plan.operation.method]
        if (method.class_id, method.method_id) != (arguments["class_id"], arguments["method_id"]):
            continue
        text = arguments["reply_text"]
        new = versions.expected(plan, login, arguments["reply_code"], text)
        if new != text:
            class_id, method_id = versions.closing_ids(plan)
            arguments |= {
                "reply_code": 403,
                "reply_text": new,
                "class_id": class_id,
                "method_id": method_id,
            }
            return (answer[0], tuple(sorted(arguments.items(), key=repr)), *answer[2:])
    return answer


def _differences(native: Observation, gate: Observation) -> Iterator[tuple[str, str, str]]:
    nothing = Heard()
    closed = native.closed | gate.closed
    for key in sorted(native.heard.keys() | gate.heard.keys()):
        a, b = native.heard.get(key, nothing), gate.heard.get(key, nothing)
        place = f"connection {key[0]} channel {key[1]}"
        if key[0] in native.ended and key[0] in gate.ended and key[1]:
            # RabbitMQ's connection.close may overtake what its channels have answered before.
            common = min(len(a.replies), len(b.replies))
            yield from _unequal(f"{place}: replies", a.replies[:common], b.replies[:common])
        else:
            yield from _unequal(f"{place}: replies", a.replies, b.replies)
        if key in closed:
            # Confirms and deliveries that a queue process sends while the channel is being
            # closed may or may not come; whether the message moved is compared by the state.
            continue
        yield from _unequal(f"{place}: returns", a.returns, b.returns)
        yield from _unequal(f"{place}: deliveries", a.deliveries, b.deliveries)
        yield from _unequal(f"{place}: confirms", sorted(a.confirms), sorted(b.confirms))


def _unequal(what: str, a: object, b: object) -> Iterator[tuple[str, str, str]]:
    if a != b:
        yield what, repr(a), repr(b)
