"""A stand-in server for the load generator's tests: it speaks RankService and does what a test tells it to."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest

from deeprecsys.tensors import to_tensor
from deeprecsys.v1 import rank_pb2, rank_pb2_grpc


def model_message(name: str = "tiny", **changes: object) -> rank_pb2.Model:
    dense = rank_pb2.Input(name="dense", data_type=rank_pb2.DATA_TYPE_FLOAT32, shape=[-1, 4], user_side=True)
    ids = rank_pb2.Input(name="ids", data_type=rank_pb2.DATA_TYPE_INT32, shape=[-1, 2, 3], id_rows=[7, 1000])
    facts: dict[str, object] = {
        "versions": ["2", "1"],
        "ready": True,
        "inputs": [dense, ids],
        "sla": rank_pb2.Sla(percentile=95, seconds=5.0),
        "max_candidates": 1000,
        "max_request_bytes": 64 << 20,
    }
    return rank_pb2.Model(name=name, **{**facts, **changes})


@dataclass
class StandIn(rank_pb2_grpc.RankServiceServicer):
    """Answers zeros; ``behave(nth, request)`` may return a code to fail the nth query with."""

    models: dict[str, rank_pb2.Model]
    behave: Callable[[int, rank_pb2.RankRequest], grpc.StatusCode | None] = lambda nth, request: None
    missing_scores: int = 0
    requests: list[rank_pb2.RankRequest] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    target: str = ""
    server: grpc.aio.Server | None = None

    async def GetModel(self, request, context):  # noqa: N802 - gRPC's name
        if request.name not in self.models:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name}")
        return rank_pb2.GetModelResponse(model=self.models[request.name])

    async def Rank(self, request, context):  # noqa: N802 - gRPC's name
        self.requests.append(request)
        nth = len(self.requests) - 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            code = self.behave(nth, request)
        finally:
            self.in_flight -= 1
        if code is not None:
            await context.abort(code, "as the test asked")
        scores = np.zeros(candidates(request) - self.missing_scores, dtype=np.float32)
        return rank_pb2.RankResponse(model=request.model, scores=to_tensor("scores", scores))


def candidates(request: rank_pb2.RankRequest) -> int:
    return max(tensor.shape[0] for tensor in request.inputs)


@asynccontextmanager
async def serving() -> AsyncIterator[StandIn]:
    servicer = StandIn({name: model_message(name) for name in ("tiny", "other")})
    servicer.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    rank_pb2_grpc.add_RankServiceServicer_to_server(servicer, servicer.server)
    servicer.target = f"127.0.0.1:{servicer.server.add_insecure_port('127.0.0.1:0')}"
    await servicer.server.start()
    try:
        yield servicer
    finally:
        await servicer.server.stop(None)


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    async with serving() as servicer:
        yield servicer


@pytest.fixture
def stand_in_elsewhere() -> Iterator[StandIn]:
    """The same on a thread of its own, for what brings its own event loop."""
    started: queue.Queue[tuple[StandIn, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def serve() -> None:
        over = asyncio.Event()
        async with serving() as servicer:
            started.put((servicer, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    servicer, loop, over = started.get(timeout=10)
    yield servicer
    loop.call_soon_threadsafe(over.set)
    thread.join(timeout=10)
