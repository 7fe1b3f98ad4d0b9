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
    # A connection that is lost means a server that was: not one that had nothing to do.
    ("grpc.client_idle_timeout_ms", (1 << 31) - 1),
    # Whatever proxy the environment names is for the way out, not for a server beside this one.
    ("grpc.enable_http_proxy", 0),
]
LINGER_S = 10.0
"""What calls on a channel that was replaced get to end."""


class EndpointAwayError(EngineError):
    """The server, or the model there, is gone: nothing was scored, and nothing will be until it is back."""


class UnresolvedError(EndpointAwayError):
    """The host's name does not resolve, at least not yet."""


class ModelAbsentError(EndpointAwayError):
    """The server is there but the model is not: not loaded, or being unloaded."""


class ModelDeadError(EndpointAwayError):
    """The server calls the model ready, but the process that runs it is dead."""


class RegionLostError(EndpointAwayError):
    """The server does not know our shared memory: it was started anew, and the model has to be asked for again."""


class EndpointBusyError(EngineError):
    """The server refused a query because its queue is full or because it waited there for too long."""


class AttemptFailedError(EngineError):
    """No answer in time, or a failure that may be this query's own."""


class SilentError(AttemptFailedError):
    """No answer in time."""


class Endpoint:
    """A Triton server at ``address`` (host:port, or dns:///host:port). Make and use it on the loop thread.

    ``candidates``, ``queries`` and ``tensor_bytes`` count what is on the way; whoever sends keeps them.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.candidates = 0
        self.queries = 0
        self.tensor_bytes = 0
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
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise to_engine_error(failure) from failure

    async def reopen(self) -> None:
        """Begin anew with another channel; calls that are on the way end on the old one, and this waits for them.

        For a name that does not resolve, which a channel asks for at ever longer intervals, up to two minutes; and for
        a host that vanished without a word, to which the kernel keeps a dead connection for as long.
        """
        old = self._channel
        self._open()
        await old.close(LINGER_S)

    async def lost(self) -> None:
        """Wait until a connection, one that is there or one to come, is lost."""
        while True:
            channel = self._channel
            state = channel.get_state()
            await channel.wait_for_state_change(state)
            if state is grpc.ChannelConnectivity.READY and channel is self._channel:
                return

    async def close(self) -> None:
        """Close the channel; calls on it are cancelled."""
        await self._channel.close()


_Code = grpc.StatusCode
_ANY: frozenset[grpc.StatusCode] = frozenset(_Code)
_MEANINGS: tuple[tuple[frozenset[grpc.StatusCode], tuple[str, ...], type[EngineError]], ...] = (
    (frozenset({_Code.UNAVAILABLE}), ("Exceeds maximum queue size", "timeout expired"), EndpointBusyError),
    (
        frozenset({_Code.UNAVAILABLE}),
        ("errors resolving", "DNS resolution failed", "name resolution"),
        UnresolvedError,
    ),
    (_ANY, ("find shared memory region",), RegionLostError),
    (_ANY, ("Stub process",), ModelDeadError),
    # A server that stops answers NOT_FOUND "has no available versions"; a version that it knows but has unloaded, or
    # failed to load, is UNAVAILABLE.
    (frozenset({_Code.NOT_FOUND}), ("",), ModelAbsentError),
    (_ANY, ("is not at ready state",), ModelAbsentError),
    (frozenset({_Code.UNAVAILABLE, _Code.CANCELLED, _Code.UNIMPLEMENTED}), ("",), EndpointAwayError),
    (frozenset({_Code.DEADLINE_EXCEEDED}), ("",), SilentError),
    (_ANY, ("",), AttemptFailedError),
)
"""What a failed call means, the first row that fits: its codes, texts one of which its details hold."""


def to_engine_error(failure: grpc.aio.AioRpcError) -> EngineError:
    """Return what a failed call means; the text is for the log."""
    code, details = failure.code(), failure.details() or ""
    kind = next(
        kind for codes, texts, kind in _MEANINGS if code in codes and any(text in details for text in texts)
    )
    return kind(f"{code.name}: {details[:200]}")
