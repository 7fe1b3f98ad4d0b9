"""How a serialised query reaches a server: one method, so that any server can stand behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Protocol

import grpc

from deeprecsys.client import channel_options
from deeprecsys.errors import DeepRecSysError

RANK_METHOD = "/deeprecsys.v1.RankService/Rank"
UNLIMITED = -1

FIRST_ANSWER_TIMEOUT_S = 60.0
"""What the first query of all may take: a server may load a model when it is asked for it."""

RawCall = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


class SendFailedError(DeepRecSysError):
    """A query got no answer; ``code`` says why in gRPC's terms, whatever the transport is."""

    def __init__(self, code: grpc.StatusCode, message: str = "") -> None:
        self.code = code
        super().__init__(f"{code.name}: {message}" if message else code.name)


class Transport(Protocol):
    """Anything that takes a serialised query to a server and brings the serialised answer back."""

    async def send(self, payload: bytes, timeout_s: float | None) -> bytes:
        """Return the answer; raises SendFailedError when there is none within ``timeout_s`` (None: no limit)."""
        ...


class GrpcTransport:
    """A unary method over grpc.aio, bytes in and bytes out. Make and close it inside the running loop.

    ``channels``: connections, taken in turn. ``method``: RankService.Rank, unless another service is driven.
    """

    def __init__(self, target: str, channels: int = 1, method: str = RANK_METHOD) -> None:
        options = [
            *channel_options(UNLIMITED),
            # Channels with equal options would share one connection.
            ("grpc.use_local_subchannel_pool", 1),
            # A server that comes back is noticed within a second, not within two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(channels)]
        # Without serialisers grpc passes bytes through as they are.
        calls: list[RawCall] = [channel.unary_unary(method) for channel in self._channels]
        self._calls = cycle(calls)

    async def send(self, payload: bytes, timeout_s: float | None) -> bytes:
        """Return the serialised response; raises SendFailedError with the call's code."""
        try:
            answer: bytes = await next(self._calls)(payload, timeout=timeout_s)
        except grpc.aio.AioRpcError as failure:
            raise SendFailedError(failure.code(), failure.details() or "") from failure
        return answer

    async def close(self) -> None:
        """Close the connections; calls in flight are cancelled."""
        await asyncio.gather(*(channel.close() for channel in self._channels))


@asynccontextmanager
async def grpc_transport(
    target: str, channels: int = 1, method: str = RANK_METHOD
) -> AsyncIterator[GrpcTransport]:
    """Yield a transport to the service at ``target`` and close it in the end."""
    transport = GrpcTransport(target, channels, method)
    try:
        yield transport
    finally:
        await transport.close()
