"""A process that drives its share of each run: ``python -m services.loadgen.driver_process PIPE MEMORY``.

Both arguments are inherited file descriptors: the pipe to the run, and the memory that holds all requests. It ends
when the pipe is closed.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from mmap import mmap
from multiprocessing.connection import Connection

import numpy as np

from services.loadgen.child_main import await_stop, requests, run_child
from services.loadgen.driver import OnProgress, Plan, drive
from services.loadgen.messages import Connected, Go, Ready, Setup, receive
from services.loadgen.precedence import before_others
from services.loadgen.recording import Trace
from services.loadgen.shares import Share
from services.loadgen.transport import FIRST_ANSWER_TIMEOUT_S, Transport


async def serve(pipe: Connection, memory: mmap) -> None:
    """Drive what comes through the pipe until it is closed."""
    setup: Setup = await receive(pipe)
    async with setup.connect() as transport:
        # The first query opens the connection, which no measured one shall wait for.
        await transport.send(memory[: setup.offset[1]], FIRST_ANSWER_TIMEOUT_S)
        pipe.send(Connected())
        while True:
            message = await receive(pipe)
            if isinstance(message, Share):  # a Stop may come when the run has just ended
                pipe.send(await _drive(message, setup, memory, transport, pipe))


async def _drive(share: Share, setup: Setup, memory: mmap, transport: Transport, pipe: Connection) -> Trace:
    """Drive one share, from the time that all drivers begin at."""
    plan = _plan(share, setup, memory)
    stop = asyncio.Event()
    with ExitStack() as stack:
        pipe.send(Ready(stack.enter_context(before_others())))
        go: Go = await receive(pipe)
        if not go.before_others:
            stack.close()
        watching = asyncio.create_task(await_stop(pipe, stop))
        show: OnProgress = pipe.send
        try:
            return await drive(
                plan,
                transport,
                share.limits,
                concurrency=share.concurrency,
                start_s=go.start_s,
                stop=stop,
                on_progress=show,
            )
        finally:
            watching.cancel()
            await asyncio.wait([watching])


def _plan(share: Share, setup: Setup, memory: mmap) -> Plan:
    """Take the requests of a share out of the shared memory, each once, so that sending copies nothing."""
    used, payload = np.unique(share.payload, return_inverse=True)
    return Plan(share.arrival_s, payload.astype(np.int64), requests(memory, setup.offset, used))


if __name__ == "__main__":
    run_child(serve)
