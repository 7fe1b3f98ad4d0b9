"""RankClient and AsyncRankClient: numpy arrays in, a ranking out.

with RankClient("127.0.0.1:8500") as client:
    answer = client.rank("wnd", {"dense": dense, "ids": ids}, top_k=10, timeout_s=0.1)
    print(answer.ranking, answer.scores)
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from deeprecsys.errors import FieldViolation, InvalidQueryError, UnavailableError
from deeprecsys.status import to_error
from deeprecsys.tensors import Array, to_array, to_tensor
from deeprecsys.v1 import rank_pb2, rank_pb2_grpc

DEFAULT_MAX_MESSAGE_BYTES = 64 << 20
"""The limit on messages in both directions; gRPC's own 4 MiB would refuse large queries of rmc1 and rmc2."""

_LARGEST_ID = 2**63 - 1
_CLOSED = "the client is closed"


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer to one query of N candidates.

    ``scores``: float32 [N], or [N, tasks], in the order of the candidates. ``ranking``: int64 [K], best first:
    positions, or the candidate ids where the query gave them. ``outputs``: the further outputs asked for, by name.
    ``queue_s`` and ``compute_s``: the server's seconds until its first inference and from there to the last's end.
    """

    scores: NDArray[np.float32]
    ranking: NDArray[np.int64]
    outputs: Mapping[str, Array]
    model: str
    version: str
    task: str
    backend: str
    batches: int
    queue_s: float
    compute_s: float


def channel_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Return the channel options that a client of the Rank service needs."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
    ]


def build_request(
    model: str,
    inputs: Mapping[str, ArrayLike],
    *,
    candidate_ids: ArrayLike | None = None,
    top_k: int = 0,
    task: str = "",
    version: str = "",
    outputs: Sequence[str] = (),
    priority: rank_pb2.Priority.ValueType = rank_pb2.PRIORITY_UNSPECIFIED,
    request_id: str = "",
) -> rank_pb2.RankRequest:
    """Return the message of one query.

    ``inputs``: by name, first axis N, or 1 for an input that holds for every candidate. ``candidate_ids``: N
    integers that fit INT64. ``top_k``: 0 for all. Raises InvalidQueryError for what cannot be put into a message.
    """
    try:
        tensors = [to_tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()]
        ids = b"" if candidate_ids is None else _id_bytes(candidate_ids)
        return rank_pb2.RankRequest(
            model=model,
            version=version,
            request_id=request_id,
            inputs=tensors,
            candidate_ids=ids,
            top_k=top_k,
            task=task,
            outputs=outputs,
            priority=priority,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidQueryError([FieldViolation("query", str(error))]) from error


def _id_bytes(candidate_ids: ArrayLike) -> bytes:
    """Return ids as INT64 bytes; InvalidQueryError for what is no integer or would become another one."""
    try:
        ids = np.asarray(candidate_ids)
    except (TypeError, ValueError, OverflowError) as error:
        raise _wrong_ids(f"not an array of integers: {error}") from error
    if not ids.size:
        raise _wrong_ids("empty: give one id per candidate, or None")
    if ids.dtype.kind not in "iu":
        raise _wrong_ids(f"must be integers of at most 64 bits, not {ids.dtype}")
    if int(ids.max()) > _LARGEST_ID:
        raise _wrong_ids(f"{int(ids.max())} is above {_LARGEST_ID}, the largest INT64")
    return ids.astype("<i8", copy=False).tobytes()


def _wrong_ids(description: str) -> InvalidQueryError:
    return InvalidQueryError([FieldViolation("candidate_ids", description)])


def read_response(response: rank_pb2.RankResponse) -> Ranking:
    """Return the answer that a message holds, as views of its bytes."""
    execution = response.execution
    return Ranking(
        scores=to_array(response.scores),  # type: ignore[arg-type]
        ranking=to_array(response.ranking),  # type: ignore[arg-type]
        outputs={tensor.name: to_array(tensor) for tensor in response.outputs},
        model=response.model,
        version=response.version,
        task=response.task,
        backend=execution.backend,
        batches=execution.batches,
        queue_s=execution.queue_seconds,
        compute_s=execution.compute_seconds,
    )


class RankClient:
    """A blocking client; safe to share between threads. Close it, or use it in a ``with`` block.

    ``target``: host:port. ``timeout_s``: the deadline of calls that do not name their own; None waits for ever.
    Every method raises the errors of :mod:`deeprecsys.errors`; UnavailableError once the client is closed.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(target, options=channel_options(max_message_bytes))
        self._stub = rank_pb2_grpc.RankServiceStub(self._channel)
        self._closed = False

    def rank(
        self, model: str, inputs: Mapping[str, ArrayLike], *, timeout_s: float | None = None, **query: Any
    ) -> Ranking:
        """Rank the candidates of one query; the keywords are those of :func:`build_request`."""
        request = build_request(model, inputs, **query)
        return read_response(self._call(self._stub.Rank, request, timeout_s))

    def model(self, name: str, *, version: str = "", timeout_s: float | None = None) -> rank_pb2.Model:
        """Return what one model wants and gives; ModelNotFoundError when it is not served."""
        request = rank_pb2.GetModelRequest(name=name, version=version)
        response: rank_pb2.GetModelResponse = self._call(self._stub.GetModel, request, timeout_s)
        return response.model

    def models(self, *, timeout_s: float | None = None) -> list[rank_pb2.Model]:
        """Return every model of the server's repository, those that are not ready too."""
        return list(self._call(self._stub.ListModels, rank_pb2.ListModelsRequest(), timeout_s).models)

    def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            return method(request, timeout=self._timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as failure:
            raise to_error(failure) from failure
        except ValueError as failure:  # gRPC's answer to a call on a closed channel
            if not self._closed:
                raise
            raise UnavailableError(_CLOSED) from failure

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncRankClient:
    """The asyncio twin of :class:`RankClient`: the same methods as coroutines, in an ``async with`` block."""

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(target, options=channel_options(max_message_bytes))
        self._stub: Any = rank_pb2_grpc.RankServiceStub(self._channel)
        self._closed = False

    async def rank(
        self, model: str, inputs: Mapping[str, ArrayLike], *, timeout_s: float | None = None, **query: Any
    ) -> Ranking:
        """Rank the candidates of one query; the keywords are those of :func:`build_request`."""
        request = build_request(model, inputs, **query)
        return read_response(await self._call(self._stub.Rank, request, timeout_s))

    async def model(self, name: str, *, version: str = "", timeout_s: float | None = None) -> rank_pb2.Model:
        """Return what one model wants and gives; ModelNotFoundError when it is not served."""
        request = rank_pb2.GetModelRequest(name=name, version=version)
        response: rank_pb2.GetModelResponse = await self._call(self._stub.GetModel, request, timeout_s)
        return response.model

    async def models(self, *, timeout_s: float | None = None) -> list[rank_pb2.Model]:
        """Return every model of the server's repository, those that are not ready too."""
        response: rank_pb2.ListModelsResponse = await self._call(
            self._stub.ListModels, rank_pb2.ListModelsRequest(), timeout_s
        )
        return list(response.models)

    async def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        if self._closed:
            raise UnavailableError(_CLOSED)
        try:
            return await method(request, timeout=self._timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as failure:
            raise to_error(failure) from failure
        except asyncio.CancelledError as failure:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise  # the caller was cancelled, not the call
            raise UnavailableError(_CLOSED) from failure

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
