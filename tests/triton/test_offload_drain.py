"""SIGTERM of the Rank server while a real Triton has its queries: they are answered, and nothing is left behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deeprecsys import AsyncRankClient, Ranking
from deeprecsys.errors import UnavailableError
from services.cli.server_process import server_process
from tests.conftest import LINEAR_CONFIG, linear_model, write_model
from tests.triton.held_triton import Held, until_waiting
from tests.triton.offloading_rig import RESUME_S, expected, query, until, until_all_ready

pytestmark = [pytest.mark.triton, pytest.mark.slow]
EXIT_LIMIT_S = 20.0


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    # A target so long that a server which is held does not count as hanging.
    write_model(place, "linear", linear_model(), LINEAR_CONFIG.replace('"50"', '"1000"'))
    return place


@asynccontextmanager
async def ended_with_queries_there(
    linear: Path, server, held: Held, timeout_s: float
) -> AsyncIterator[Sequence[asyncio.Task[Ranking]]]:
    """Three queries that a held Triton has when the Rank server, a process, is told to end; it must end well."""
    arguments = ["--triton", server.target, "--offload-from", "50", "--warmup-s", "0.02"]
    with server_process(linear, arguments) as (child, address):
        async with AsyncRankClient(address, timeout_s=timeout_s) as client:
            await until_all_ready(address)
            family = psutil.Process(child.pid).children(recursive=True)
            held.hold()
            asked = [asyncio.create_task(client.rank("linear", query(60)))]
            await until(held.is_running)
            asked += [asyncio.create_task(client.rank("linear", query(60, k))) for k in (1, 2)]
            await until_waiting(server, count=2)
            child.send_signal(signal.SIGTERM)
            await until_not_serving(address)
            assert not any(task.done() for task in asked)
            with pytest.raises(UnavailableError, match="draining"):
                await client.rank("linear", query(60, 3))
            yield asked
            for number, answer in enumerate(await asyncio.gather(*asked)):
                assert abs(answer.scores - expected(query(60, number))).max() < 1e-5
        assert await asyncio.to_thread(child.wait, EXIT_LIMIT_S) == 0
    assert not [process for process in family if process.is_running()]


async def until_not_serving(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        async with asyncio.timeout(RESUME_S):
            async for answer in watch:
                if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    return


async def test_a_drain_waits_for_what_the_accelerator_has(linear, tmp_path, triton) -> None:
    held = Held(tmp_path / "held")
    server = triton(held.repository)
    async with ended_with_queries_there(linear, server, held, timeout_s=10) as asked:
        held.release()
        assert [answer.backend for answer in await asyncio.gather(*asked)] == ["triton"] * 3


async def test_a_drain_ends_in_time_though_the_accelerator_never_answers(linear, tmp_path, triton) -> None:
    held = Held(tmp_path / "held")
    server = triton(held.repository)
    async with ended_with_queries_there(linear, server, held, timeout_s=3) as asked:
        assert [answer.backend for answer in await asyncio.gather(*asked)] == ["cpu"] * 3
