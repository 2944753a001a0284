"""What a query answers: RabbitMQ's evaluation, lazily and in its order, over any directory.

Strategy: an error of the directory is a value, :class:`Failure`, because queries treat it as one
(``or`` goes on, ``equals`` says no); it never counts as true. A lost connection is an exception
(:class:`~gatekeeper.backends.ldap.connection.LostError`): RabbitMQ reads it as one more error
value, which ``not`` may turn into a yes; here the check starts again and at last fails.

Source: ``rabbit_auth_backend_ldap:evaluate0``, ``search_nested_group``, ``do_match_multi`` (4.3.5).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gatekeeper.backends.ldap.messages import Entry, equality, present
from gatekeeper.backends.ldap.names import Arguments
from gatekeeper.backends.ldap.trace import Trace
from gatekeeper.config.ldap_queries import (
    And,
    Attribute,
    Constant,
    Equals,
    Exists,
    For,
    InGroup,
    InGroupNested,
    Match,
    Not,
    Or,
    Query,
    Scope,
    String,
)
from gatekeeper.errors import BackendError
from gatekeeper.policy import pcre

GROUPS_LIMIT = 10_000
"""Groups that one ``in_group_nested`` looks at."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that is a value. ``reason``: LDAP's or RabbitMQ's word for it.

    unavailable: the directory cannot be reached, or is too slow, whatever it is asked.
    """

    reason: str
    unavailable: bool = False


Value = bool | bytes | tuple[bytes, ...] | Failure
"""yes or no, a text, several texts (an attribute with several values), an error."""


class Directory(Protocol):
    async def search(
        self, base: bytes, scope: Scope, filter_: bytes, attribute: bytes
    ) -> Sequence[Entry] | Failure:
        """Entries in eldap's order: the one that the server sent last comes first."""


@dataclass(frozen=True, slots=True)
class Evaluator:
    """One check of one user.

    user_dn: whom the groups must list. group_base: where nested groups are searched.
    """

    directory: Directory
    arguments: Arguments
    user_dn: bytes
    group_base: bytes
    trace: Trace

    async def decide(self, query: Query) -> bool | Failure:
        """The answer to a query that answers yes or no. Raises BackendError and LostError."""
        value = await self.evaluate(query)
        if isinstance(value, bool | Failure):
            return value
        raise BackendError("an LDAP query gave a text where a decision was needed")

    async def evaluate(self, query: Query) -> Value:
        self.trace.step("evaluating query: %s", query)
        return await _EVALUATE[type(query)](self, query)

    async def _constant(self, query: Constant) -> Value:
        self.trace.step("evaluated constant: %s", query.value)
        return query.value

    async def _for(self, query: For) -> Value:
        for variable, wanted, then in query.rows:
            value = self.arguments.get(variable)
            if value is None:
                return Failure(f"args_do_not_contain {variable}")
            # A string never equals a name: names are binaries. As Erlang compares them.
            if type(value) is type(wanted) and value == wanted:
                self.trace.step("selecting subquery %s = %s", variable, value)
                return await self.evaluate(then)
        return Failure("for_query_incomplete")

    async def _exists(self, query: Exists) -> Value:
        dn = self._dn(query.dn)
        found = await self._object(dn, present(b"objectClass"))
        self.trace.step('evaluated exists for "%s": %s', dn, found)
        return found

    async def _in_group(self, query: InGroup) -> Value:
        dn = self._dn(query.dn)
        found = await self._object(dn, equality(query.attribute, self.user_dn))
        self.trace.step('evaluated in_group for "%s": %s', dn, found)
        return found

    async def _in_group_nested(self, query: InGroupNested) -> Value:
        """Up from the user through the groups that list it, until the group is met.

        Each DN is looked at once, which ends circles. RabbitMQ looks at a DN again on every path
        to it; what can be reached is the same. A failed search counts as "in no group".
        """
        target = _folded(self._dn(query.dn))
        waiting, seen = [self.user_dn], {_folded(self.user_dn)}
        while waiting:
            member = waiting.pop()
            found = await self.directory.search(
                self.group_base, query.scope, equality(query.attribute, member), b"dn"
            )
            if isinstance(found, Failure):
                if found == REFERRAL:
                    raise BackendError("LDAP referrals are not supported")
                self.trace.top('error searching for parent groups for "%s": %s', member, found)
                continue
            for group in found:
                folded = _folded(group.dn)
                if folded == target:
                    return True
                if folded in seen:
                    self.trace.top("DN %s was met before, searching for %s", group.dn, query.dn)
                    continue
                if len(seen) > GROUPS_LIMIT:
                    raise BackendError(f"in_group_nested: more than {GROUPS_LIMIT} groups")
                seen.add(folded)
                waiting.append(group.dn)
        return False

    async def _not(self, query: Not) -> Value:
        value = await self.decide(query.query)
        if isinstance(value, Failure):
            # RabbitMQ crashes here too: 'not' of an error has no meaning.
            raise BackendError(f"LDAP: 'not' of a query that failed: {value.reason}")
        self.trace.step("negated result to %s", value)
        return not value

    async def _and(self, query: And) -> Value:
        """Stops at the first that is not true: a no, unless it was the last (then its value)."""
        value: Value = True
        last = len(query.queries) - 1
        for at, inner in enumerate(query.queries):
            value = await self.decide(inner)
            if value is not True:
                value = value if at == last else False
                break
        self.trace.step("'and' result: %s", value)
        return value

    async def _or(self, query: Or) -> Value:
        """Stops at the first true; an error stays one only where it came last."""
        value: Value = False
        for inner in query.queries:
            value = await self.decide(inner)
            if value is True:
                break
        self.trace.step("'or' result: %s", value)
        return value

    async def _equals(self, query: Equals) -> Value:
        left, right = await self.evaluate(query.left), await self.evaluate(query.right)
        if isinstance(left, Failure) or isinstance(right, Failure):
            return False
        equal = left == right or _among(left, right) or _among(right, left)
        self.trace.step('evaluated equals "%s", "%s": %s', left, right, equal)
        return equal

    async def _match(self, query: Match) -> Value:
        subject = await self.evaluate(query.subject)
        pattern = await self.evaluate(query.pattern)
        if isinstance(subject, bool | Failure) or isinstance(pattern, bool | Failure):
            return False
        matched = _matches_any(subject, pattern, literal=query.literal)
        self.trace.step('evaluated match "%s" against RE "%s": %s', subject, pattern, matched)
        return matched

    async def _string(self, query: String) -> Value:
        filled = self.arguments.fill(query.pattern)
        self.trace.step('evaluated string for "%s"', filled)
        return filled

    async def _attribute(self, query: Attribute) -> Value:
        """The values of the first entry, in eldap's order, that has the attribute."""
        dn = self._dn(query.dn)
        found = await self.directory.search(dn, Scope.SUBTREE, present(b"objectClass"), query.name)
        if isinstance(found, Failure):
            return found
        values = next(filter(None, (entry.values(query.name) for entry in found)), ())
        self.trace.step('evaluated attribute "%s" for "%s": %s', query.name, dn, values)
        if not values:
            return Failure("not_found")
        return values[0] if len(values) == 1 else values

    async def _object(self, dn: bytes, filter_: bytes) -> bool | Failure:
        """Is there an entry of this DN that fits the filter? A DN that is nowhere is an error."""
        found = await self.directory.search(dn, Scope.BASE, filter_, b"objectClass")
        return found if isinstance(found, Failure) else bool(found)

    def _dn(self, pattern: bytes) -> bytes:
        dn = self.arguments.fill_dn(pattern)
        self.trace.detail('filled DN template "%s": "%s"', pattern, dn)
        return dn


REFERRAL = Failure("referrals_not_supported")

_EVALUATE: dict[type[Query], Callable[..., Awaitable[Value]]] = {
    Constant: Evaluator._constant,
    For: Evaluator._for,
    Exists: Evaluator._exists,
    InGroup: Evaluator._in_group,
    InGroupNested: Evaluator._in_group_nested,
    Not: Evaluator._not,
    And: Evaluator._and,
    Or: Evaluator._or,
    Equals: Evaluator._equals,
    Match: Evaluator._match,
    String: Evaluator._string,
    Attribute: Evaluator._attribute,
}


def _among(one: Value, several: Value) -> bool:
    return isinstance(several, tuple) and one in several


def _matches_any(
    subject: bytes | tuple[bytes, ...], pattern: bytes | tuple[bytes, ...], *, literal: bool
) -> bool:
    """One side may have several values. An empty side never matches, unless both are literal."""
    if isinstance(subject, tuple) and isinstance(pattern, tuple):
        return False
    if not literal and (not subject or not pattern):
        return False
    subjects = subject if isinstance(subject, tuple) else (subject,)
    patterns = pattern if isinstance(pattern, tuple) else (pattern,)
    return any(_matches(one, other) for one in subjects for other in patterns)


def _matches(subject: bytes, pattern: bytes) -> bool:
    if not pattern:
        return True
    if len(pattern) > pcre.MAX_PATTERN_BYTES:
        # RabbitMQ would run it. Not a no, which 'not' would turn into a yes.
        raise BackendError(f"an LDAP pattern of more than {pcre.MAX_PATTERN_BYTES} octets")
    try:
        return pcre.compile(pattern).matches(subject)
    except pcre.PatternError:
        return False


def _folded(dn: bytes) -> str:
    """For RabbitMQ's comparison without case, which takes octets for code points."""
    return dn.decode("latin-1").casefold()
