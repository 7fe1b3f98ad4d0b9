"""Processes that a run starts for itself, and the memory in which they find its requests."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deeprecsys.errors import InternalError
from services.loadgen.messages import Fault, Stop, receive

CLOSE_S = 2.0

_Message = TypeVar("_Message")


@dataclass(frozen=True, eq=False)
class SharedRequests:
    """Requests in memory that child processes map: a file descriptor, and request k from offset[k] to offset[k + 1]."""

    number: int
    offset: NDArray[np.int64]


@contextmanager
def in_memory(payloads: Sequence[bytes]) -> Iterator[SharedRequests]:
    """Copy requests into memory for child processes. It has no name that could be left behind."""
    offset = np.concatenate(([0], np.cumsum([len(payload) for payload in payloads]))).astype(np.int64)
    with os.fdopen(os.memfd_create("requests"), "wb") as file:
        file.writelines((*payloads, b"\0"))  # an empty file could not be mapped
        file.flush()
        yield SharedRequests(file.fileno(), offset)


class Child:
    """A process of this run and the pipe to it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, pipe: Connection) -> None:
        self._name = name
        self._process = process
        self.pipe = pipe

    async def expect(self, kind: type[_Message], other: Callable[[Any], None] | None = None) -> _Message:
        """Return the next message of a kind, handing others over; InternalError when the process failed."""
        while True:
            try:
                message = await receive(self.pipe)
            except (EOFError, ConnectionResetError) as error:
                code = await self._process.wait()
                raise InternalError(f"{self._name} ended with exit code {code}") from error
            if isinstance(message, kind):
                return message
            if isinstance(message, Fault):
                raise InternalError(f"{self._name} failed: {message.error}")
            if other is not None:
                other(message)

    def stop(self) -> None:
        """Ask for the end of what it does."""
        with suppress(BrokenPipeError):
            self.pipe.send(Stop())


@asynccontextmanager
async def child_process(module: str, memory: SharedRequests) -> AsyncIterator[Child]:
    """Start ``python -m MODULE PIPE MEMORY``, never by fork: gRPC's threads would be lost; ends with the block."""
    ours, its = multiprocessing.Pipe()
    with ours:
        with its:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                str(its.fileno()),
                str(memory.number),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(its.fileno(), memory.number),
            )
        try:
            yield Child(module.rpartition(".")[2], process, ours)
        finally:
            ours.close()
            await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
