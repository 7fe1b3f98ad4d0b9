"""Planning beside serving: a process of the lowest priority answers the controller's questions.

It reads questions on standard input and writes answers on standard output, so it ends with its parent however that
ends. What it knows is ``scheduler/planner.py``, nothing else.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import struct
import sys
from contextlib import suppress

from scheduler.planner import Forecast, Question, forecast

_LENGTH = struct.Struct("<I")
_NICEST = 19
CLOSE_S = 2.0


class PlanningLostError(Exception):
    """The planning process has ended; the next question starts another."""


class Planning:
    """Asks the planning process, which the first question starts. One question is answered at a time."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def answer(self, question: Question) -> Forecast:
        """Return the forecast; PlanningLostError when the process ends before it answers."""
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        data = pickle.dumps(question)
        try:
            process.stdin.write(_LENGTH.pack(len(data)) + data)
            await process.stdin.drain()
            (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
            answered: Forecast = pickle.loads(await process.stdout.readexactly(length))  # noqa: S301 - our own child
        except (OSError, asyncio.IncompleteReadError) as error:
            await self.close()
            raise PlanningLostError("the planning process ended") from error
        except asyncio.CancelledError:
            # Half an answer may be on its way: whoever asks next begins with a process of its own.
            self._kill()
            raise
        return answered

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    __name__,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
            except OSError as error:
                raise PlanningLostError(f"the planning process cannot be started: {error}") from error
        return self._process


def main() -> None:
    """Answer questions until the parent closes the pipe."""
    # Ctrl-C goes to the whole group; the parent drains first and then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICEST)
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(head := questions.read(_LENGTH.size)) == _LENGTH.size:
        question: Question = pickle.loads(questions.read(_LENGTH.unpack(head)[0]))  # noqa: S301 - our own parent
        data = pickle.dumps(forecast(question))
        with suppress(BrokenPipeError):
            answers.write(_LENGTH.pack(len(data)) + data)
            answers.flush()


if __name__ == "__main__":
    main()
