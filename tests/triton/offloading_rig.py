"""What the offloading tests share: a Rank server in front of real Triton servers, valid queries, and steady load."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deeprecsys import AsyncRankClient
from deeprecsys.errors import RankError
from deeprecsys.v1 import control_pb2, control_pb2_grpc
from services.triton_server.process import TritonProcess
from tests.conftest import ServerFactory, linear_scores

RESUME_S = 5.0
"""How soon offloading begins once a server is there, at most."""

OFFLOAD_FROM = 50


class AddressedClient(AsyncRankClient):
    """A client that remembers its server's address."""

    def __init__(self, address: str, timeout_s: float) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self.address = address


def query(size: int, seed: int = 0, *, user_side: bool = False) -> dict[str, np.ndarray]:
    """A valid query to the model `linear`."""
    rng = np.random.default_rng([size, seed])
    dense = rng.random((1 if user_side else size, 3), dtype=np.float32)
    return {"dense": dense, "ids": rng.integers(0, 8, (size, 2)).astype(np.int32)}


def expected(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The scores that `linear` must give."""
    return linear_scores(np.broadcast_to(inputs["dense"], (len(inputs["ids"]), 3)), inputs["ids"])


async def until(condition: Callable[[], bool], limit_s: float = RESUME_S) -> None:
    """Wait until something holds; TimeoutError if it does not come true."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - a test that looks from outside
            await asyncio.sleep(0.01)


async def until_offloaded(
    client: AsyncRankClient,
    model: str = "linear",
    inputs: dict[str, np.ndarray] | None = None,
    limit_s: float = RESUME_S,
) -> None:
    """Ask until Triton answers; offloading begins in the background."""
    async with asyncio.timeout(limit_s):
        while (await client.rank(model, inputs or query(60))).backend != "triton":  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.01)


async def accelerators(address: str, model: str = "linear") -> list[control_pb2.Accelerator]:
    """Return where each endpoint stands for a model, as the service tells it."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = control_pb2_grpc.ControlServiceStub(channel)
        found = await stub.ListOperatingPoints(control_pb2.ListOperatingPointsRequest(model=model))
    return list(found.models[0].accelerators)


async def until_reason(address: str, part: str, limit_s: float = RESUME_S) -> str:
    """Wait until the service says that its one endpoint is not used for this reason, and return all of it."""
    async with asyncio.timeout(limit_s):
        while True:
            (shown,) = await accelerators(address)
            if part in shown.reason:
                assert not shown.ready
                return shown.reason
            await asyncio.sleep(0.01)


async def statistics(server: TritonProcess, version: str = "1") -> Any:
    """Return what Triton has counted of a version of the model `linear`, a ModelStatistics."""
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="linear", version=version))
        return found.model_stats[0]


async def until_scored(*servers: TritonProcess, count: int, version: str = "1") -> list[int]:
    """Wait until the servers have counted so many candidates together, and return those of each.

    Triton counts an inference a little after it has answered.
    """
    async with asyncio.timeout(RESUME_S):
        while sum(got := [(await statistics(s, version)).inference_count for s in servers]) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return got


async def until_all_ready(address: str) -> None:
    """Wait until every endpoint is used."""
    async with asyncio.timeout(RESUME_S):
        while not all(accelerator.ready for accelerator in await accelerators(address)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def offloading(
    running: ServerFactory, repository: Path, *targets: str, **settings: Any
) -> AsyncIterator[AddressedClient]:
    """A Rank server that offloads queries of 50 and more to these servers, and a client of it once it does."""
    chosen = {"offload_from": OFFLOAD_FROM, "triton": targets, **settings}
    async with running(repository, **chosen) as address, AddressedClient(address, timeout_s=5) as client:
        await until_all_ready(address)
        yield client


@dataclass
class Load:
    """Queries sent at a steady rate, whatever becomes of them, until ``stop``; every answer is checked."""

    client: AsyncRankClient
    qps: float
    timeout_s: float
    sizes: tuple[int, ...] = (60, 200, 50, 10)
    answers: list[tuple[float, float, str]] = field(default_factory=list)  # when sent, seconds, backend
    large: list[tuple[float, float, str]] = field(default_factory=list)  # those of them that may be offloaded
    faults: list[RankError] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)  # that answered
    wrong: int = 0
    _stopped: bool = False

    async def run(self) -> None:
        """Send until stopped, then wait for the last answer."""
        begun_s, sent = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while not self._stopped:
                await asyncio.sleep(max(0.0, begun_s + sent / self.qps - time.monotonic()))
                group.create_task(self._ask(sent))
                sent += 1

    def stop(self) -> None:
        """Send no more."""
        self._stopped = True

    async def _ask(self, number: int) -> None:
        inputs = query(self.sizes[number % len(self.sizes)], number % 50)
        sent_s = time.monotonic()
        try:
            answer = await self.client.rank("linear", inputs, timeout_s=self.timeout_s)
        except RankError as fault:
            self.faults.append(fault)
            return
        self.answers.append((sent_s, time.monotonic() - sent_s, answer.backend))
        if inputs["ids"].shape[0] >= OFFLOAD_FROM:
            self.large.append(self.answers[-1])
        self.versions.add(answer.version)
        self.wrong += not np.allclose(answer.scores, expected(inputs), atol=1e-5)

    def offloaded(self, since_s: float = -math.inf, until_s: float = math.inf) -> int:
        """How many queries sent in this time Triton answered."""
        return self.sent(since_s, until_s).count("triton")

    def sent(self, since_s: float = -math.inf, until_s: float = math.inf) -> list[str]:
        """Which backends answered the queries sent in this time that are large enough to be offloaded."""
        return [backend for at, _, backend in self.large if since_s <= at < until_s]

    def slowest_s(self, since_s: float = -math.inf) -> float:
        """The longest that a query took which was sent since then."""
        return max(took for at, took, _ in self.answers if at >= since_s)

    def report(self, event: str, since_s: float) -> str:
        """One line about the latency since an event, for whoever runs pytest -s."""
        seconds = sorted(took for at, took, _ in self.answers if at >= since_s - self.timeout_s)
        p50, p99 = (seconds[int(q * (len(seconds) - 1))] * 1e3 for q in (0.5, 0.99))
        longest = seconds[-1] * 1e3
        return (
            f"{event}: {len(seconds)} queries, p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {longest:.1f} ms"
        )


@asynccontextmanager
async def load(client: AsyncRankClient, qps: float, timeout_s: float) -> AsyncIterator[Load]:
    """Steady load during the block; at its end not one query may have failed or have been answered wrongly."""
    sending = Load(client, qps, timeout_s)
    task = asyncio.create_task(sending.run())
    try:
        yield sending
    finally:
        sending.stop()
        await task
    assert not sending.faults, f"{len(sending.faults)} failed, such as {sending.faults[:3]}"
    assert not sending.wrong
