"""``explain`` and ``who_can`` on the control socket."""

from __future__ import annotations

from gatekeeper.admin.explain import Question, explain, who_can
from gatekeeper.admin.request import BadRequestError, Call, Listing, Row, shown
from gatekeeper.model import Kind, Permission


def _kind(call: Call) -> Kind:
    try:
        return Kind(call.arguments.optional_text("kind") or Kind.QUEUE)
    except ValueError:
        raise BadRequestError("kind must be queue or exchange") from None


async def explain_question(call: Call) -> Row:
    """Raises QuestionError, StoreError."""
    arguments = call.arguments
    question = Question(
        user=arguments.name("user"),
        vhost=arguments.name("vhost"),
        operation=arguments.text("operation"),
        name=arguments.name("name"),
        kind=_kind(call),
        source=arguments.optional_name("source") or b"",
        routing_key=arguments.optional_name("routing_key") or b"",
        address=arguments.optional_text("address") or "127.0.0.1",
        tags=frozenset(arguments.texts("tags")),
        passive=arguments.flag("passive"),
        dead_letter_exchange=arguments.optional_name("dead_letter_exchange"),
        alternate_exchange=arguments.optional_name("alternate_exchange"),
    )
    found = await explain(call.administration, question)
    return {
        "allowed": found.allowed,
        "reply": found.reply,
        "steps": [
            {"question": step.question, "allowed": step.allowed, "rule": step.rule}
            for step in found.steps
        ],
    }


async def list_who_can(call: Call) -> Listing:
    arguments, administration = call.arguments, call.administration
    vhost, name, kind = arguments.name("vhost"), arguments.name("name"), _kind(call)
    try:
        permission = Permission(arguments.text("permission"))
    except ValueError:
        raise BadRequestError("permission must be configure, write or read") from None
    able = administration.rows(lambda: who_can(administration, vhost, permission, kind, name))
    async for batch in able:
        yield [{"user": shown(one.user), "rule": one.rule} for one in batch]
