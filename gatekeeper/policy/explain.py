"""Why would this be allowed or refused? One sentence, out of the live path.

Nothing is decided here: the engine judges the check as it would for a connection, and the
decision carries the rule that made it.
"""

from __future__ import annotations

import inspect

from gatekeeper.errors import printable
from gatekeeper.model import Access, AnyAccess, Check, Decision, Identity
from gatekeeper.policy.engine import Engine


async def explain(engine: Engine, identity: Identity, vhost: bytes, check: Check) -> str:
    """``allowed: write access to exchange 'x' in vhost '/' for user 'u' (RULE)``."""
    answer = engine.check(identity, vhost, check)
    decision: Decision = await answer if inspect.isawaitable(answer) else answer
    verdict = "allowed" if decision.allowed else "refused"
    where = f"in vhost '{_shown(vhost)}' for user '{_shown(identity.username)}'"
    detail = decision.detail.decode("utf-8", "replace")
    rule = f" ({decision.rule})" if decision.rule else ""
    return f"{verdict}: {asked(check)} {where}{detail}{rule}"


def asked(check: Check) -> str:
    """The question, in RabbitMQ's words."""
    if isinstance(check, Access):
        return f"{check.permission} access to {check.kind} '{_shown(check.name)}'"
    if isinstance(check, AnyAccess):
        return f"any access to {check.kind} '{_shown(check.name)}'"
    key, exchange = _shown(check.routing_key), _shown(check.exchange)
    return f"{check.permission} access to topic '{key}' in exchange '{exchange}'"


def _shown(name: bytes) -> str:
    return printable(name).decode()
