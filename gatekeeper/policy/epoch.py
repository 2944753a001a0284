"""Numbers that stand for "the policy as it is now".

Every committed change of users, permissions or limits moves them; whoever keeps a decision
compares and forgets. That is the whole of cache invalidation.

What a backend outside the gate has decided may be out of date without anybody knowing. When it
has been believed for long enough (``Epoch.age``), what was allowed no longer counts, but an
answer that comes at this moment does: it is news, and a backend that takes longer than that to
answer would never be heard otherwise.
"""

from __future__ import annotations


class Epoch:
    """Counters that only grow, as plain attributes: the scanner reads ``value``.

    value: decisions of another one are to be made anew. changes: questions that were put under
    another one are to be put anew.
    """

    __slots__ = ("changes", "value")

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.changes = value

    def bump(self) -> int:
        """The policy has changed."""
        self.value += 1
        self.changes += 1
        return self.value

    def age(self) -> None:
        """What was decided so far is old."""
        self.value += 1

    def __repr__(self) -> str:
        return f"Epoch({self.value})"
