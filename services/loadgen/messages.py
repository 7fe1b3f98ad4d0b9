"""What a run and the processes that drive for it tell each other, over a pipe that only the two have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.loadgen.transport import Transport


@dataclass(frozen=True, eq=False)
class Setup:
    """First to a driver: how to connect, and where in the shared memory each request lies, as SharedRequests has it."""

    connect: Callable[[], AbstractAsyncContextManager[Transport]]
    offset: NDArray[np.int64]


@dataclass(frozen=True)
class Connected:
    """A driver has had its first answer and waits for runs."""


@dataclass(frozen=True)
class Ready:
    """A driver has its share of a run at hand; ``before_others``: the system lets it run before other processes."""

    before_others: bool


@dataclass(frozen=True)
class Go:
    """To every driver: begin at ``start_s`` on the clock that all processes share, with precedence or without."""

    start_s: float
    before_others: bool


@dataclass(frozen=True)
class Stop:
    """To a driver: end the run now and send what was measured."""


@dataclass(frozen=True)
class Fault:
    """A driver met an error that is none of the server's; its process is over."""

    error: str


async def receive(pipe: Connection) -> Any:
    """Wait for the next message; EOFError when the other side has gone."""
    if not pipe.poll():
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(pipe.fileno(), readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(pipe.fileno())
    # Only the beginning may be here: the rest is on its way from a process that does nothing else until it is sent.
    return pipe.recv()
