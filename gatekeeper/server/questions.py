"""Questions whose answers may take time, for somebody who asks again instead of waiting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar, cast

from gatekeeper.server.tasks import Owner

MAX_ASKED = 64
"""Questions under way, with those that nobody wants any more: a client whose channels end while
they wait, and that opens them again, could leave any number of them behind."""

_T = TypeVar("_T")


class Questions:
    """resume: called when an outstanding answer has come: ask again, it is there."""

    __slots__ = ("_answers", "_asked", "_owner", "resume")

    def __init__(self, owner: Owner, resume: Callable[[], None]) -> None:
        self._owner = owner
        self.resume = resume
        self._answers: dict[int, dict[Hashable, tuple[int, object]]] = {}
        self._asked: dict[tuple[int, Hashable], int | None] = {}  # None: nobody wants it any more

    def ask(
        self,
        asker: int,
        key: Hashable,
        era: int,
        ask: Callable[[], _T | Awaitable[_T]],
        failed: _T,
    ) -> _T | None:
        """The answer to ``key``, or None: it is under way.

        asker: whose the answer is. era: it counts only in the one that it was asked in.
        failed: the answer where a question ends in an exception.
        """
        if (asker, key) in self._asked:
            return None
        kept = self._answers.get(asker, {}).get(key)
        if kept is not None and kept[0] == era:
            return cast("_T", kept[1])
        if len(self._asked) >= MAX_ASKED:
            return None  # ``resume`` comes with the first that is answered
        answer = ask()
        if not isinstance(answer, Awaitable):
            return answer
        self._asked[asker, key] = era
        self._owner.start(self._settle(asker, key, answer, failed))
        return None

    def settled(self, asker: int) -> None:
        """What it asked for is decided: its answers count for nothing else."""
        self._answers.pop(asker, None)
        # Nobody may want what is still under way (the broker has closed the channel meanwhile);
        # another frame that asks the same much later must not be given it.
        for question in self._asked:
            if question[0] == asker:
                self._asked[question] = None

    async def _settle(
        self, asker: int, key: Hashable, pending: Awaitable[object], answer: object
    ) -> None:
        """answer: where it ends in an exception."""
        try:
            answer = await pending
        finally:  # whatever has happened: a client must not wait for an answer for ever
            era = self._asked.pop((asker, key))
            if era is not None:
                self._answers.setdefault(asker, {})[key] = (era, answer)
            self.resume()
