"""The project's own backend `onnxruntime` in the real server: what shares a batch, and who pays for a fault."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc import aio as triton_client
from tritonclient.utils import InferenceServerException

from tests.conftest import LINEAR_CONFIG, linear_model, linear_scores, write_model

pytestmark = [pytest.mark.triton, pytest.mark.slow]
LIMIT_S = 20.0
TOGETHER = """
output { name: "logit" data_type: TYPE_FP32 dims: 1 }
instance_group { count: 1 }
dynamic_batching { preferred_batch_size: 9 max_queue_delay_microseconds: 5000000 }
"""
"""Requests wait for nine candidates in all, so that those of a test share one batch."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    write_model(place, "linear", linear_model(), LINEAR_CONFIG + TOGETHER)
    return place


def arrays(size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(size)
    return rng.random((size, 3), dtype=np.float32), rng.integers(0, 8, (size, 2), dtype=np.int32)


async def ask(client, dense: np.ndarray, ids: np.ndarray, *outputs: str):
    tensors = [
        InferInput("dense", dense.shape, "FP32").set_data_from_numpy(dense),
        InferInput("ids", ids.shape, "INT32").set_data_from_numpy(ids),
    ]
    wanted = [InferRequestedOutput(name) for name in outputs or ("score",)]
    return await client.infer("linear", tensors, outputs=wanted, client_timeout=LIMIT_S)


async def executions(client) -> int:
    statistics = await client.get_inference_statistics("linear", client_timeout=LIMIT_S)
    return statistics.model_stats[0].execution_count


async def test_queries_of_one_batch_get_their_own_rows_and_the_outputs_they_asked_for(
    triton, repository
) -> None:
    server = triton(repository, load=["linear"])
    async with triton_client.InferenceServerClient(server.target) as client:
        queries = [arrays(size) for size in (2, 3, 4)]
        outputs = [("score",), ("score", "logit"), ("logit",)]
        answers = await asyncio.gather(
            *(ask(client, *query, *names) for query, names in zip(queries, outputs, strict=True))
        )
        assert await executions(client) == 1
    for query, names, answer in zip(queries, outputs, answers, strict=True):
        assert {output.name for output in answer.get_response().outputs} == set(names)
        expected = linear_scores(*query)
        if "score" in names:
            np.testing.assert_allclose(answer.as_numpy("score")[:, 0], expected, atol=1e-6)
        if "logit" in names:
            np.testing.assert_allclose(
                answer.as_numpy("logit")[:, 0], np.log(expected / (1 - expected)), atol=1e-5
            )


async def test_of_a_batch_with_an_impossible_id_only_the_guilty_query_fails(triton, repository) -> None:
    server = triton(repository, load=["linear"])
    async with triton_client.InferenceServerClient(server.target) as client:
        good, (dense, ids) = arrays(5), arrays(4)
        ids[2, 1] = 1000
        async with asyncio.timeout(4):  # apart they would wait longer than that
            answer, fault = await asyncio.gather(
                ask(client, *good), ask(client, dense, ids), return_exceptions=True
            )
    assert isinstance(fault, InferenceServerException)
    assert fault.status() == "StatusCode.INTERNAL"
    assert "idx=1000 must be within" in fault.message()
    np.testing.assert_allclose(answer.as_numpy("score")[:, 0], linear_scores(*good), atol=1e-6)


async def test_a_version_without_a_file_is_refused_with_onnx_runtimes_reason(triton, repository) -> None:
    (repository / "linear" / "1" / "model.onnx").unlink()
    server = triton(repository)
    async with triton_client.InferenceServerClient(server.target) as client:
        with pytest.raises(InferenceServerException, match="NO_SUCHFILE"):
            await client.load_model("linear", client_timeout=LIMIT_S)
