"""The shared memory through which one Triton server on this host gets the tensors of queries.

Inputs only: the answers are hundreds of times smaller and travel in messages, so that an inference which nobody waits
for any more can write into nobody's memory. CUDA shared memory would be another such class, with a handle for a key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from services.rank.engine import EngineError
from services.rank.shared_memory import PREFIX, Arena, Region, is_orphan
from services.rank.triton_endpoint import Endpoint, EndpointBusyError, SilentError

ASK_S = 1.5
GIVEN_UP_S = 10.0
"""How long the memory of a call without an answer is not used again: Triton may still be reading it."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a region: where Triton finds it, and its bytes here."""

    region: str
    offset: int
    data: NDArray[np.uint8]


class TensorMemory:
    """One region of ``size_bytes`` for one server; make and use it on the loop thread.

    Raises InvalidSettingError when there is not so much shared memory. Nothing is lent until the server has mapped it.
    """

    def __init__(self, size_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._region = Region(size_bytes)
        self._arena = Arena(size_bytes)
        self._mapped = False
        self._named = False  # the server was asked to map it, and may have
        self._offering = asyncio.Lock()  # the links of all models offer it, when the server comes

    async def offer(self, endpoint: Endpoint) -> None:
        """Have the server map the region unless it has, and let go of what dead owners had it map.

        Raises as :meth:`Endpoint.call` when the server cannot, as on another host; nothing is lent then.
        """
        async with self._offering:
            try:
                regions = await _mapped_there(endpoint)
                if self._region.key not in regions:
                    await self._have_mapped(endpoint, regions)
            except SilentError:
                raise  # whether it is mapped is as it was; a server that forgot it says so when it is used
            except EngineError:
                self._mapped = False
                raise
            self._mapped = True

    async def _have_mapped(self, endpoint: Endpoint, others: Collection[str]) -> None:
        key, size_bytes = self._region.key, self._region.size_bytes
        request = service_pb2.SystemSharedMemoryRegisterRequest(name=key, key=f"/{key}", byte_size=size_bytes)
        self._named = True
        await endpoint.call("SystemSharedMemoryRegister", request, ASK_S)
        # Only now is it known that both see the same memory, and that a key which is not there is nobody's.
        for other in others:
            if other.startswith(PREFIX) and is_orphan(other):
                await _unmap(endpoint, other)

    @contextmanager
    def lend(self, count: int) -> Iterator[Block | None]:
        """Lend so many bytes for one call; None when there are none, and the tensors must travel in the message."""
        offset = self._arena.take(count) if self._mapped else None
        if offset is None:
            yield None
            return
        try:
            yield Block(self._region.key, offset, self._region.data[offset : offset + count])
        except EndpointBusyError:
            self._arena.give(offset)  # refused: nobody reads it
            raise
        except BaseException:
            self._loop.call_later(GIVEN_UP_S, self._arena.give, offset)
            raise
        self._arena.give(offset)

    async def close(self, endpoint: Endpoint) -> None:
        """Have the server let go of the region, if it is there to do so and reads nothing of it, and remove it."""
        if self._named and self._arena.free_bytes == self._region.size_bytes:
            # One that is away has lost its mapping, too; the mapping of one that only hangs the next of us removes.
            with suppress(EngineError):
                await _unmap(endpoint, self._region.key)
        self.remove()

    def remove(self) -> None:
        """Remove the region here; what has mapped it keeps it until it lets go."""
        self._region.close()


async def _mapped_there(endpoint: Endpoint) -> Collection[str]:
    request = service_pb2.SystemSharedMemoryStatusRequest()
    response = await endpoint.call("SystemSharedMemoryStatus", request, ASK_S)
    return list(response.regions)


async def _unmap(endpoint: Endpoint, name: str) -> None:
    request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
    await endpoint.call("SystemSharedMemoryUnregister", request, ASK_S)
