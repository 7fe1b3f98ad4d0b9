"""Offloading to a real Triton server through a real Rank server: what goes there, and answers like the CPU's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deeprecsys import AsyncRankClient
from deeprecsys.v1 import control_pb2, control_pb2_grpc
from services.triton_server.process import TritonProcess
from tests.conftest import LINEAR_CONFIG, linear_model, write_model
from tests.triton.offloading_rig import (
    RESUME_S,
    accelerators,
    expected,
    offloading,
    query,
    statistics,
    until,
    until_all_ready,
    until_offloaded,
)

pytestmark = pytest.mark.triton


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    place = tmp_path / "linear_repository"
    write_model(place, "linear", linear_model(), LINEAR_CONFIG)
    return place


async def test_the_threshold_is_exact_and_both_sides_score_alike(linear, triton, running) -> None:
    server = triton(linear)
    async with offloading(running, linear, server.target, offload_from=50) as client:
        for size, backend in ((1, "cpu"), (49, "cpu"), (50, "triton"), (51, "triton")):
            for user_side in (False, True):
                inputs = query(size, 1, user_side=user_side)
                answer = await client.rank("linear", inputs)
                assert (answer.backend, answer.batches) == (backend, 1)
                np.testing.assert_allclose(answer.scores, expected(inputs), atol=1e-5)


async def test_a_query_beyond_the_largest_batch_is_split_by_us(linear, triton, running) -> None:
    server = triton(linear)
    async with offloading(running, linear, server.target) as client:
        inputs = query(200)
        answer = await client.rank("linear", inputs)
        assert (answer.backend, answer.batches) == ("triton", 4)
        np.testing.assert_allclose(answer.scores, expected(inputs), atol=1e-5)


async def test_a_query_for_outputs_that_triton_does_not_have_stays_on_the_cpu(
    linear, triton, running
) -> None:
    server = triton(linear)
    async with offloading(running, linear, server.target) as client:
        answer = await client.rank("linear", query(60), outputs=["logit"])
        assert answer.backend == "cpu"
        np.testing.assert_allclose(answer.scores, expected(query(60)), atol=1e-5)


async def test_a_target_without_time_for_a_second_try_keeps_no_query_from_an_accelerator(
    linear, triton, running
) -> None:
    # Of 3 ms the margins leave an attempt less than half; without a deadline of the client it has 6.
    (linear / "linear" / "config.pbtxt").write_text(LINEAR_CONFIG.replace('"50"', '"3"'))
    async with offloading(running, linear, triton(linear).target) as client:
        async with AsyncRankClient(client.address) as unhurried:
            await until_offloaded(unhurried)


async def test_a_server_that_is_not_there_at_the_start_is_away_and_used_once_it_comes(
    linear, triton, launcher, running
) -> None:
    server = TritonProcess(launcher, linear)
    try:
        async with running(linear, triton=(server.target,), offload_from=50) as address:
            async with AsyncRankClient(address, timeout_s=5) as client:
                assert (await client.rank("linear", query(60))).backend == "cpu"
                await asyncio.to_thread(server.start)
                await until_offloaded(client)
    finally:
        server.close()


async def test_a_name_that_does_not_resolve_is_away_and_no_error(linear, running) -> None:
    async with running(linear, triton=("nowhere.invalid:8001",), offload_from=50) as address:
        async with AsyncRankClient(address, timeout_s=5) as client:
            assert (await client.rank("linear", query(60))).backend == "cpu"


async def test_another_model_under_the_same_name_is_refused_and_the_log_says_what_differs(
    linear, tmp_path, triton, running, caplog
) -> None:
    other = tmp_path / "other"
    write_model(other, "linear", linear_model(), LINEAR_CONFIG.replace("dims: [ 2 ]", "dims: [ 9 ]"))
    server = triton(other)
    async with running(linear, triton=(server.target,), offload_from=50) as address:
        async with AsyncRankClient(address, timeout_s=5) as client:
            await until(lambda: "accelerator refused" in caplog.text)
            (shown,) = await accelerators(address)
            assert (await client.rank("linear", query(60))).backend == "cpu"
    reasons = [record.reason for record in caplog.records if record.message == "accelerator refused"]
    assert reasons == ['input "ids" is [-1, 9] there, [-1, 2] here']
    assert (shown.endpoint, shown.ready, shown.reason) == (server.target, False, reasons[0])


async def test_a_threshold_may_be_pinned_where_an_accelerator_is_configured(linear, triton, running) -> None:
    server = triton(linear)
    async with running(linear, triton=(server.target,)) as address:
        async with (
            AsyncRankClient(address, timeout_s=5) as client,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub: Any = control_pb2_grpc.ControlServiceStub(channel)
            await until_all_ready(address)
            point = control_pb2.OperatingPoint(batch_size=16, offload_from=33)
            request = control_pb2.PinOperatingPointRequest(model="linear", point=point)
            pinned = (await stub.PinOperatingPoint(request)).model
            assert (pinned.point, pinned.pinned) == (point, True)
            await until_offloaded(client)
            assert (await client.rank("linear", query(32))).backend == "cpu"
            assert (await client.rank("linear", query(33))).backend == "triton"


async def test_several_servers_share_the_load(linear, triton, running) -> None:
    one, other = triton(linear), triton(linear)
    async with offloading(running, linear, one.target, other.target) as client:
        async with asyncio.timeout(RESUME_S):
            while min([await inferences(server) for server in (one, other)]) < 1:
                await asyncio.gather(*(client.rank("linear", query(60, k)) for k in range(8)))


async def inferences(server: TritonProcess) -> int:
    """How many inferences the server says it has made but for the warm-up."""
    return int((await statistics(server)).inference_stats.success.count) - 1
