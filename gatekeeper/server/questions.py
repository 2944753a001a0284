"""Questions whose answers may take time, for somebody who asks again instead of waiting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar, cast

from gatekeeper.server.tasks import Owner

_T = TypeVar("_T")


class Questions:
    """resume: called when an outstanding answer has come: ask again, it is there."""

    __slots__ = ("_answers", "_asked", "_owner", "_round", "resume")

    def __init__(self, owner: Owner, resume: Callable[[], None]) -> None:
        self._owner = owner
        self.resume = resume
        self._answers: dict[Hashable, tuple[int, object]] = {}
        self._asked: dict[Hashable, tuple[int, int]] = {}
        self._round = 0

    def ask(
        self, key: Hashable, era: int, ask: Callable[[], _T | Awaitable[_T]], failed: _T
    ) -> _T | None:
        """The answer to ``key``, or None: it is under way.

        era: an answer counts only in the one that it was asked in. failed: the answer where a
        question ends in an exception.
        """
        if key in self._asked:
            return None
        kept = self._answers.get(key)
        if kept is not None and kept[0] == era:
            return cast("_T", kept[1])
        answer = ask()
        if not isinstance(answer, Awaitable):
            return answer
        self._asked[key] = (era, self._round)
        self._owner.start(self._settle(key, answer, failed))
        return None

    def settled(self) -> None:
        """What was asked for is decided: its answers count for nothing else."""
        self._round += 1
        self._answers.clear()

    async def _settle(self, key: Hashable, pending: Awaitable[object], answer: object) -> None:
        """answer: where it ends in an exception."""
        try:
            answer = await pending
        finally:  # whatever has happened: a client must not wait for an answer for ever
            era, asked_in = self._asked.pop(key)
            # Nobody may want it any more (the broker has closed the channel meanwhile); another
            # frame that asks the same much later must not be given it.
            if asked_in == self._round:
                self._answers[key] = (era, answer)
            self.resume()
