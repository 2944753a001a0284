"""``/explain`` and ``/who-can``, the gate's own: why may somebody do something, and who may?

The live decision path answers (``gatekeeper/admin/explain.py``), as for gatekeeperctl.
"""

from __future__ import annotations

from collections.abc import Iterator

from gatekeeper.admin.api.call import Call, Object, Reply, bad_request, missing
from gatekeeper.admin.api.shape import list_reply, object_reply
from gatekeeper.admin.explain import Question, QuestionError, explain, who_can
from gatekeeper.model import Kind, Permission
from gatekeeper.store.refusals import shown


async def explain_question(call: Call) -> Reply:
    """``user``, ``vhost``, ``operation`` (an AMQP method, or a permission) and ``name`` of the
    query; ``kind``, ``source``, ``routing_key`` and ``address`` where they matter."""
    question = Question(
        user=_needed(call, "user"),
        vhost=_needed(call, "vhost"),
        operation=shown(_needed(call, "operation")),
        name=_needed(call, "name"),
        kind=_kind(call),
        source=call.query.get("source", b""),
        routing_key=call.query.get("routing_key", b""),
        address=call.asked("address") or "127.0.0.1",
    )
    try:
        found = await explain(call.administration, question)
    except QuestionError as error:
        raise bad_request(str(error)) from error
    steps: list[Object] = [
        {"question": step.question, "allowed": step.allowed, "rule": step.rule}
        for step in found.steps
    ]
    return object_reply(call, {"allowed": found.allowed, "reply": found.reply, "steps": steps})


async def list_who_can(call: Call) -> Reply:
    """``vhost``, ``permission`` and ``name`` of the query, and ``kind``."""
    administration, vhost = call.administration, _needed(call, "vhost")
    name, kind = _needed(call, "name"), _kind(call)
    try:
        permission = Permission(shown(_needed(call, "permission")))
    except ValueError:
        raise bad_request("permission must be configure, write or read") from None
    if administration.store.vhost(vhost) is None:
        raise missing()

    def rows() -> Iterator[Object]:
        able = who_can(administration, vhost, permission, kind, name)
        return ({"user": shown(one.user), "rule": one.rule} for one in able)

    return await list_reply(call, rows, sort=("user",))


def _needed(call: Call, key: str) -> bytes:
    if key not in call.query:
        raise bad_request(f"[{{key_missing,{key}}}]")
    return call.query[key]


def _kind(call: Call) -> Kind:
    try:
        return Kind(call.asked("kind") or Kind.QUEUE)
    except ValueError:
        raise bad_request("kind must be queue or exchange") from None
