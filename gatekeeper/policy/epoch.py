"""One number that stands for "the policy as it is now".

Every committed change of users, permissions or limits bumps it; whoever keeps a decision
compares the number and forgets. That is the whole of cache invalidation.
"""

from __future__ import annotations


class Epoch:
    """A counter that only grows. ``value`` is a plain attribute: the scanner reads it."""

    __slots__ = ("value",)

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def bump(self) -> int:
        self.value += 1
        return self.value

    def __repr__(self) -> str:
        return f"Epoch({self.value})"
