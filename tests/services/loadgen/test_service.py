"""A server that speaks something else is driven through a transport of one method and two translations."""

import asyncio
import json
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial

import grpc
import numpy as np
import pytest

from deeprecsys.errors import InternalError
from deeprecsys.tensors import to_array
from deeprecsys.v1 import rank_pb2
from services.loadgen.run import find_max, run_load
from services.loadgen.service import Service
from services.loadgen.settings import LoadSettings, ModelShare
from services.loadgen.transport import SendFailedError
from tests.services.loadgen.conftest import model_message


def as_json(request: bytes) -> bytes:
    """What a REST server would get: a line of JSON."""
    tensors = rank_pb2.RankRequest.FromString(request).inputs
    return json.dumps({tensor.name: to_array(tensor).tolist() for tensor in tensors}).encode() + b"\n"


def count_scores(answer: bytes) -> int:
    return len(json.loads(answer)["scores"])


class LineTransport:
    """One query at a time on a connection of its own; a fault of the network is UNAVAILABLE."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def send(self, payload: bytes, timeout_s: float | None) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    writer.write(payload)
                    answer = await reader.readline()
                finally:
                    writer.close()
        except TimeoutError as error:
            raise SendFailedError(grpc.StatusCode.DEADLINE_EXCEEDED) from error
        except OSError as error:
            raise SendFailedError(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        if not answer:
            raise SendFailedError(grpc.StatusCode.UNAVAILABLE, "the connection was closed")
        return answer


@asynccontextmanager
async def line_transport(port: int) -> AsyncIterator[LineTransport]:
    yield LineTransport(port)


class JsonPeer:
    """A server that answers each line with the row sums of `dense`; every tenth it hangs up."""

    def __init__(self) -> None:
        self.queries: list[dict[str, list[list[float]]]] = []
        self.hangs_up = False

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.queries.append(json.loads(await reader.readline()))
        if not (self.hangs_up and len(self.queries) % 10 == 0):
            scores = np.array(self.queries[-1]["dense"]).sum(axis=1).tolist()
            writer.write(json.dumps({"scores": scores}).encode() + b"\n")
        writer.close()


@pytest.fixture
def peer() -> Iterator[tuple[JsonPeer, Service]]:
    started: queue.Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()
    server = JsonPeer()

    async def serve() -> None:
        over = asyncio.Event()
        async with await asyncio.start_server(server.answer, "127.0.0.1", 0, limit=1 << 24) as listening:
            port = listening.sockets[0].getsockname()[1]
            started.put((port, asyncio.get_running_loop(), over))
            await over.wait()

    async def models(shares) -> list[rank_pb2.Model]:
        return [model_message(share.name) for share in shares]

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    port, loop, over = started.get(timeout=10)
    yield server, Service(models, partial(line_transport, port), as_json, count_scores)
    loop.call_soon_threadsafe(over.set)
    thread.join(timeout=10)


def settings(**changes) -> LoadSettings:
    facts = {"qps": 100.0, "duration_s": 0.5, "warmup_s": 0.0, "arrivals": "uniform", "min_queries": 1}
    return LoadSettings("a peer", (ModelShare("tiny"),), **{**facts, **changes})


@pytest.mark.parametrize("drivers", [1, 2])
def test_a_peer_is_driven_as_a_rank_service_is(peer, drivers):
    server, service = peer
    server.hangs_up = True
    result = run_load(settings(drivers=drivers), service=service)

    (tiny,) = result.models
    opened = 1 if drivers == 1 else 3  # the check, and the first query of each driver process
    assert len(server.queries) == 50 + opened
    assert tiny.codes == {"OK": 45, "UNAVAILABLE": 5}
    sent = sorted(len(query["dense"]) for query in server.queries)
    assert sorted([*tiny.samples.size.tolist(), *[tiny.samples.size.min()] * opened]) == sent


def test_the_highest_rate_of_a_peer_can_be_searched(peer):
    _, service = peer
    found = find_max(settings(qps=50.0, duration_s=0.2), max_probes=2, service=service)
    assert [probe.qps for probe in found.capacity.probes] == [50.0, 100.0]
    assert found.capacity.qps == 100.0


def test_a_peer_that_answers_something_else_is_found_before_the_run(peer):
    server, service = peer
    wrong = Service(service.models, service.connect, service.encode, lambda answer: 1)
    with pytest.raises(InternalError, match="candidates with 1 scores"):
        run_load(settings(sizes="fixed:4"), service=wrong)
    assert len(server.queries) == 1
