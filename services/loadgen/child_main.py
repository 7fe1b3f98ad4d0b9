"""What every child process of a run does: its life, its requests, and how it hears that it shall end."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from mmap import ACCESS_READ, mmap
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from services.loadgen.loop import precise_loop
from services.loadgen.messages import Fault, receive


def run_child(serve: Callable[[Connection, mmap], Coroutine[None, None, None]]) -> None:
    """Serve until the pipe is closed; both file descriptors come from the command line.

    An error that is not the end of the pipe is told to the run and raised.
    """
    # Ctrl-C reaches every process of the terminal; the run decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe_number, memory_number = map(int, sys.argv[1:])
    with (
        Connection(pipe_number) as pipe,
        mmap(memory_number, 0, access=ACCESS_READ) as memory,
        asyncio.Runner(loop_factory=precise_loop) as runner,
        suppress(EOFError, BrokenPipeError),
    ):
        try:
            runner.run(serve(pipe, memory))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:
            pipe.send(Fault(f"{type(error).__name__}: {error}"))
            raise


def requests(memory: mmap, offset: NDArray[np.int64], chosen: NDArray[np.int64]) -> tuple[bytes, ...]:
    """Take requests (int64 [K] indices) out of the shared memory, before a run, so that sending copies nothing."""
    begin, end = offset[chosen].tolist(), offset[chosen + 1].tolist()
    return tuple(memory[b:e] for b, e in zip(begin, end, strict=True))


async def await_stop(pipe: Connection, stop: asyncio.Event) -> None:
    """Set the event on the next message, which can only be Stop, or when the run has gone."""
    with suppress(EOFError):
        await receive(pipe)
    stop.set()
