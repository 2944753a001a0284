"""Why is this allowed or refused, and for whom would it be? Exit codes: 0 allowed, 2 refused."""

from __future__ import annotations

from gatekeeper.cli.ctl.client import GateError
from gatekeeper.cli.ctl.command import (
    DATA,
    Answer,
    Call,
    Command,
    CommandError,
    Document,
    Refused,
    Row,
    Rows,
    bad_argument,
)

_PERMISSIONS = ("configure", "write", "read")
_KINDS = ("queue", "exchange")


def _check_kind(call: Call) -> None:
    if (call.text("kind") or "queue") not in _KINDS:
        bad_argument("--kind must be queue or exchange")


def _explain(call: Call) -> Answer:
    user, vhost, operation, name = call.arguments
    tags = call.text("tags")
    try:
        found = call.gate.ask(
            "explain",
            user=user,
            vhost=vhost,
            operation=operation,
            name=name,
            kind=call.text("kind"),
            source=call.text("source"),
            routing_key=call.text("routing-key"),
            address=call.text("from"),
            tags=None if tags is None else [tag for tag in tags.split(",") if tag],
            passive=call.options.get("passive"),
            dead_letter_exchange=call.text("dead-letter-exchange"),
            alternate_exchange=call.text("alternate-exchange"),
        )
    except GateError as error:
        if error.kind in {"bad_question", "bad_request"}:
            raise CommandError(DATA, error.message) from None
        raise
    assert isinstance(found, dict)  # noqa: S101 - what the gate sends
    shown = Document(found, _text(found))
    return shown if found["allowed"] else Refused(shown)


def _text(found: Row) -> str:
    steps = found["steps"]
    assert isinstance(steps, list)  # noqa: S101 - what the gate sends
    lines = [
        f"{'allowed' if step['allowed'] else 'refused'}: {step['question']} ({step['rule']})"
        for step in steps
    ]
    if found["reply"]:
        lines.append(f"The client is told: {found['reply']}")
    lines.append("Verdict: " + ("allowed" if found["allowed"] else "refused"))
    return "\n".join(lines)


def _check_who_can(call: Call) -> None:
    _check_kind(call)
    if call.arguments[1] not in _PERMISSIONS:
        bad_argument("the permission must be configure, write or read")


def _who_can(call: Call) -> Answer:
    vhost, permission, name = call.arguments
    rows = call.gate.rows(
        "who_can", vhost=vhost, permission=permission, name=name, kind=call.text("kind")
    )
    return Rows(rows)


_KIND = (
    "--kind <queue | exchange>",
    "what NAME is, where the operation does not tell; queue if not given",
)

COMMANDS = (
    Command(
        name="explain",
        section="Access Control",
        usage="explain <username> <vhost> <operation> <name> [--routing-key <key>] "
        "[--source <exchange>] [--from <address>] [--kind <queue | exchange>] [--tags <tag1,tag2>] "
        "[--passive] [--dead-letter-exchange <name>] [--alternate-exchange <name>]",
        description="Tells why the gate would allow or refuse an operation of a user. Exits with "
        "2 if it is refused",
        run=_explain,
        least=4,
        most=4,
        check=_check_kind,
        switches={
            "routing-key": str,
            "source": str,
            "from": str,
            "kind": str,
            "tags": str,
            "passive": bool,
            "dead-letter-exchange": str,
            "alternate-exchange": str,
        },
        banner=lambda call: (
            f'Explaining {call.arguments[2]} on "{call.arguments[3]}" for user '
            f'"{call.arguments[0]}" in vhost "{call.arguments[1]}" ...'
        ),
        help=(
            (
                "<operation>",
                "an AMQP method, such as queue.declare or basic.publish; or configure, write, read",
            ),
            ("<name>", "queue or exchange; of a binding, its destination"),
            ("--routing-key <key>", "of a publish or a binding"),
            ("--source <exchange>", "of a binding"),
            ("--from <address>", "where the client connects from; 127.0.0.1 if not given"),
            ("--tags <tag1,tag2>", "tags in addition to those that the backends know"),
            ("--passive", "of a declare"),
            ("--dead-letter-exchange <name>", "argument of queue.declare"),
            ("--alternate-exchange <name>", "argument of exchange.declare"),
            _KIND,
        ),
        guides=("access-control",),
    ),
    Command(
        name="who_can",
        section="Access Control",
        usage="who_can <vhost> <permission> <name> [--kind <queue | exchange>]",
        description="Lists the users of the internal database who have a permission on a queue "
        "or exchange",
        run=_who_can,
        least=3,
        most=3,
        check=_check_who_can,
        switches={"kind": str},
        banner=lambda call: (
            f'Listing users who can {call.arguments[1]} "{call.arguments[2]}" in vhost '
            f'"{call.arguments[0]}" ...'
        ),
        formatter="table",
        help=(("<permission>", "configure, write or read"), _KIND),
        guides=("access-control",),
    ),
)
