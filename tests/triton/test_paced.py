"""PACED models in the real server: they wait what their table says, one batch at a time, and answer zeros."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc import aio as triton_client
from tritonclient.utils import InferenceServerException

from benchmarks.paced.repository import write_paced
from scheduler.latency import BackendProfile, LatencyCurve, LatencyPoint
from tests.conftest import LINEAR_CONFIG, linear_model, write_model
from tests.triton.offloading_rig import accelerators, expected, offloading, query

pytestmark = [pytest.mark.triton, pytest.mark.slow]
LIMIT_S = 20.0


def device() -> BackendProfile:
    """10 ms and 1 ms for each candidate."""
    seconds = {n: 0.01 + 0.001 * n for n in (1, 8, 64)}
    curve = LatencyCurve(tuple(LatencyPoint(n, s, s, s, s) for n, s in seconds.items()))
    return BackendProfile("device", curve, curve, modelled=True)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    batching = "dynamic_batching { } instance_group { count: 3 }"
    write_model(tmp_path / "exported", "linear", linear_model(), LINEAR_CONFIG + batching)
    return tmp_path / "exported"


@pytest.fixture
def paced(exported: Path, tmp_path: Path) -> Path:
    write_paced(exported / "linear", tmp_path / "paced", device())
    return tmp_path / "paced"


async def ask(client, size: int):
    inputs = query(size)
    tensors = [
        InferInput(name, array.shape, datatype).set_data_from_numpy(array)
        for (name, array), datatype in zip(inputs.items(), ("FP32", "INT32"), strict=True)
    ]
    outputs = [InferRequestedOutput("score")]
    return await client.infer("linear", tensors, outputs=outputs, client_timeout=LIMIT_S)


async def test_a_batch_takes_at_least_the_tables_time_by_tritons_own_count(triton, paced: Path) -> None:
    server = triton(paced, load=["linear"])
    async with triton_client.InferenceServerClient(server.target) as client:
        for size in (1, 30, 64):
            answer = await ask(client, size)
            np.testing.assert_array_equal(answer.as_numpy("score"), np.zeros((size, 1), np.float32))
        statistics = await client.get_inference_statistics("linear", client_timeout=LIMIT_S)
        batches = {
            batch.batch_size: batch.compute_infer.ns for batch in statistics.model_stats[0].batch_stats
        }
        config = (await client.get_model_config("linear", client_timeout=LIMIT_S)).config
    assert set(batches) == {1, 30, 64}
    for size, waited_ns in batches.items():
        assert waited_ns >= 1e9 * device().alone.mean_s(size)
    assert config.parameters["paced"].string_value == "true"


async def test_queries_that_wait_share_a_batch_and_its_one_wait(triton, paced: Path) -> None:
    server = triton(paced, load=["linear"])
    async with triton_client.InferenceServerClient(server.target) as client:
        answers = await asyncio.gather(*(ask(client, size) for size in (40, 8, 8, 8)))
        statistics = (await client.get_inference_statistics("linear", client_timeout=LIMIT_S)).model_stats[0]
    assert [len(answer.as_numpy("score")) for answer in answers] == [40, 8, 8, 8]
    assert statistics.inference_count == 64
    # At most the first began before the others had come; they came during its wait.
    assert statistics.execution_count <= 3
    for batch in statistics.batch_stats:
        each_ns = batch.compute_infer.ns / batch.compute_infer.count
        assert each_ns >= 1e9 * device().alone.mean_s(batch.batch_size)


async def test_a_model_without_the_label_is_refused(triton, paced: Path) -> None:
    config = paced / "linear" / "config.pbtxt"
    config.write_text(config.read_text().replace('key: "paced"', 'key: "paste"'))
    server = triton(paced)
    async with triton_client.InferenceServerClient(server.target) as client:
        with pytest.raises(InferenceServerException, match="a paced model has the parameter"):
            await client.load_model("linear", client_timeout=LIMIT_S)


async def test_the_rank_server_admits_a_paced_model_and_gets_its_zeros(
    exported: Path, triton, paced: Path, running
) -> None:
    server = triton(paced)
    async with offloading(running, exported, server.target, triton_tolerance=math.inf) as client:
        assert [each.ready for each in await accelerators(client.address)] == [True]
        offloaded, here = await client.rank("linear", query(60)), await client.rank("linear", query(10))
    assert (offloaded.backend, here.backend) == ("triton", "cpu")
    np.testing.assert_array_equal(offloaded.scores, np.zeros(60, np.float32))
    np.testing.assert_allclose(here.scores, expected(query(10)), atol=1e-5)
