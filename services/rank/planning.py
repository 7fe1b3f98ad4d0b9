"""Planning beside serving: a process of the lowest priority answers the controller's questions."""

from __future__ import annotations

import asyncio
import pickle
import sys
from contextlib import suppress

from scheduler.planner import Forecast, Question
from services.rank import planner_process
from services.rank.planner_process import LENGTH

ANSWER_S = 10.0
"""An answer takes milliseconds; a process that takes longer than this is stuck, or starved by what it serves."""

CLOSE_S = 2.0


class PlanningLostError(Exception):
    """The planning process has ended or does not answer; the next question starts another."""


class Planning:
    """Asks the planning process, which the first question starts. One question is answered at a time."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._spoilt = False  # half an answer may be on its way

    async def answer(self, question: Question) -> Forecast:
        """Return the forecast; PlanningLostError when the process ends, or takes longer than ANSWER_S."""
        process = await self._running()
        try:
            async with asyncio.timeout(ANSWER_S):
                return await _exchange(process, question)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            _kill(process)
            await self.close()
            raise PlanningLostError(f"the planning process was lost: {type(error).__name__}") from error
        except asyncio.CancelledError:
            self._spoilt = True
            _kill(process)
            raise

    async def close(self) -> None:
        """End the process."""
        process, self._process, self._spoilt = self._process, None, False
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await process.wait()
        except TimeoutError:
            _kill(process)
            await process.wait()

    async def _running(self) -> asyncio.subprocess.Process:
        if self._spoilt:
            await self.close()
        if self._process is None:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    planner_process.__name__,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
            except OSError as error:
                raise PlanningLostError(f"the planning process cannot be started: {error}") from error
        return self._process


async def _exchange(process: asyncio.subprocess.Process, question: Question) -> Forecast:
    assert process.stdin is not None
    assert process.stdout is not None
    data = pickle.dumps(question)
    process.stdin.write(LENGTH.pack(len(data)) + data)
    await process.stdin.drain()
    (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
    answered: Forecast = pickle.loads(await process.stdout.readexactly(length))  # noqa: S301 - our own child's
    return answered


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
