"""What is asked for somebody who comes again is bounded, and nobody is forgotten."""

from __future__ import annotations

import asyncio

from gatekeeper.server.questions import MAX_ASKED, Questions
from gatekeeper.server.tasks import Owner


async def test_what_nobody_waits_for_any_more_is_bounded() -> None:
    loop = asyncio.get_running_loop()
    answers: list[asyncio.Future[bool]] = []
    resumed: list[int] = []
    errors: list[BaseException] = []

    def ask() -> asyncio.Future[bool]:
        answers.append(loop.create_future())
        return answers[-1]

    owner = Owner(errors.append)
    questions = Questions(owner, lambda: resumed.append(len(answers)))
    for key in range(10 * MAX_ASKED):
        assert questions.ask(1, key, 0, ask, False) is None
        questions.settled(1)  # its channel has ended, and been opened again
    assert len(answers) == len(owner) == MAX_ASKED
    assert questions.ask(1, "last", 0, ask, False) is None
    answers[0].set_result(True)
    while not resumed:
        await asyncio.sleep(0)
    assert questions.ask(1, "last", 0, ask, False) is None
    assert len(answers) == MAX_ASKED + 1
    answers[-1].set_result(True)
    while len(resumed) < 2:
        await asyncio.sleep(0)
    assert questions.ask(1, "last", 0, ask, False) is True
    await owner.close()
    assert errors == []
