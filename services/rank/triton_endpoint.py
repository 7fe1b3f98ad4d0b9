"""One Triton server: its one channel, its calls, what is on the way to it, and what its failures mean."""

from __future__ import annotations

from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.rank.engine import EngineError

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that comes back is found within a second; so is one whose host's name resolves again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]
_UNRESOLVED = ("errors resolving", "DNS resolution failed", "name resolution")
_UNLOADED = "is not at ready state"
_BUSY = ("Exceeds maximum queue size", "timeout expired")


class EndpointAwayError(EngineError):
    """The server, or the model there, is gone: nothing was scored, and nothing will be until it is back."""


class UnresolvedError(EndpointAwayError):
    """The host's name does not resolve, at least not yet."""


class ModelAbsentError(EndpointAwayError):
    """The server is there but the model is not: not loaded, or being unloaded."""


class ModelDeadError(EndpointAwayError):
    """The server calls the model ready, but the process that runs it is dead."""


class EndpointBusyError(EngineError):
    """The server refused a query because its queue is full or because it waited there for too long."""


class AttemptFailedError(EngineError):
    """No answer in time, or a failure that may be this query's own."""


class Endpoint:
    """A Triton server at ``address`` (host:port). Make and use it on the loop thread.

    ``candidates``, ``queries`` and ``tensor_bytes`` count what is on the way; whoever sends keeps them.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.candidates = 0
        self.queries = 0
        self.tensor_bytes = 0
        self._calls = 0
        self._open()

    def _open(self) -> None:
        self._channel = grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer: Any = self._channel.unary_unary(
            _INFER, response_deserializer=service_pb2.ModelInferResponse.FromString
        )

    async def call(self, method: str, request: Any, limit_s: float) -> Any:
        """Call one of the unary methods of GRPCInferenceService; raises as :meth:`infer`."""
        return await self._answer(getattr(self._stub, method)(request, timeout=limit_s))

    async def infer(self, request: bytes, limit_s: float) -> Any:
        """Send a ModelInferRequest that is bytes already and return the ModelInferResponse.

        Raises EndpointAwayError, EndpointBusyError, or AttemptFailedError, also when ``limit_s`` passes. Cancelling
        cancels the call.
        """
        return await self._answer(self._infer(request, timeout=limit_s))

    async def _answer(self, call: Any) -> Any:
        self._calls += 1
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise to_engine_error(failure) from failure
        finally:
            self._calls -= 1

    async def reopen(self) -> None:
        """Begin anew with another channel, unless calls are on the way: closing one would cancel them.

        For a name that does not resolve, which a channel asks for at ever longer intervals, up to two minutes.
        """
        if not self._calls:
            old = self._channel
            self._open()
            await old.close()

    async def close(self) -> None:
        """Close the channel; calls on it are cancelled."""
        await self._channel.close()


def to_engine_error(failure: grpc.aio.AioRpcError) -> EngineError:
    """Return what a failed call means; the text is for the log."""
    code, details = failure.code(), failure.details() or ""
    text = f"{code.name}: {details[:200]}"
    if code is grpc.StatusCode.UNAVAILABLE and any(sign in details for sign in _BUSY):
        return EndpointBusyError(text)
    if code is grpc.StatusCode.UNAVAILABLE and any(sign in details for sign in _UNRESOLVED):
        return UnresolvedError(text)
    if "Stub process" in details:
        return ModelDeadError(text)
    # A server that stops answers NOT_FOUND "has no available versions"; a version that it knows but has unloaded, or
    # failed to load, is UNAVAILABLE.
    if code is grpc.StatusCode.NOT_FOUND or _UNLOADED in details:
        return ModelAbsentError(text)
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNIMPLEMENTED}:
        return EndpointAwayError(text)
    return AttemptFailedError(text)
