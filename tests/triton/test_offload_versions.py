"""Another version comes to a real Triton, or goes, under load: every answer is by the weights of the version asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.rank.offloading import REFUSED_WAIT_S
from services.triton_server.process import TritonProcess
from tests.conftest import LINEAR_CONFIG, TABLE, linear_model, write_model
from tests.triton.offloading_rig import (
    RESUME_S,
    accelerators,
    expected,
    load,
    offloading,
    query,
    until,
    until_reason,
    until_scored,
)

pytestmark = [pytest.mark.triton, pytest.mark.slow]

QPS = 60.0
SLA_S = 0.2
CONFIG = (
    LINEAR_CONFIG.replace('"50"', f'"{SLA_S * 1e3:g}"') + "instance_group { count: 1 } dynamic_batching { }"
)


def other_weights() -> bytes:
    """The model `linear` with its table upside down: the same shapes, other scores."""
    model = onnx.load_from_string(linear_model())
    (table,) = [tensor for tensor in model.graph.initializer if tensor.name == "table"]
    table.CopyFrom(numpy_helper.from_array(TABLE[::-1].copy(), "table"))
    return model.SerializeToString()


def serve_versions(repository: Path, versions: Sequence[int]) -> None:
    """Write which versions Triton is to have once it loads the model anew."""
    policy = f"version_policy {{ specific {{ versions: {list(versions)} }} }}"
    (repository / "linear" / "config.pbtxt").write_text(f"{CONFIG} {policy}")


def publish(repository: Path, version: str, onnx_bytes: bytes) -> None:
    directory = repository / "linear" / version
    directory.mkdir()
    (directory / "model.onnx").write_bytes(onnx_bytes)


async def ask_triton(server: TritonProcess, method: str, request: Any) -> Any:
    async with grpc.aio.insecure_channel(server.target) as channel:
        return await getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)(request)


async def reload(server: TritonProcess) -> None:
    await ask_triton(
        server, "RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name="linear")
    )


async def score_there(server: TritonProcess, version: str) -> np.ndarray:
    """What a version scores at Triton itself for `query(60)`."""
    inputs = query(60)
    request = service_pb2.ModelInferRequest(model_name="linear", model_version=version)
    request.inputs.add(name="dense", datatype="FP32", shape=[60, 3])
    request.inputs.add(name="ids", datatype="INT32", shape=[60, 2])
    request.raw_input_contents.extend(inputs[name].tobytes() for name in ("dense", "ids"))
    answer = await ask_triton(server, "ModelInfer", request)
    assert answer.model_version == version
    return np.frombuffer(answer.raw_output_contents[0], np.float32)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """What the Rank server reads: version 1 alone."""
    place = tmp_path / "repository"
    write_model(place, "linear", linear_model(), CONFIG)
    return place


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """What Triton reads: version 1 to begin with."""
    place = tmp_path / "theirs"
    write_model(place, "linear", linear_model(), CONFIG)
    serve_versions(place, [1])
    return place


async def test_a_newer_version_beside_ours_changes_no_answer(linear, theirs, triton, running) -> None:
    server = triton(theirs)
    async with offloading(running, linear, server.target) as client:
        async with load(client, QPS, 5 * SLA_S) as sending:
            await until(lambda: sending.offloaded() > QPS / 2)
            publish(theirs, "2", other_weights())
            serve_versions(theirs, [1, 2])
            await reload(server)
            loaded_s = time.monotonic()
            await until(lambda: sending.offloaded(since_s=loaded_s) > QPS)
        # The test can tell the two apart, and asking without a version would have been wrong.
        assert np.abs(await score_there(server, "2") - expected(query(60))).max() > 0.1
        await until_scored(server, count=60, version="2")  # this one query, and none of those under load
    assert sending.versions == {"1"}


async def test_while_our_version_is_unloaded_the_cpu_answers_and_offloading_resumes_when_it_is_back(
    linear, theirs, triton, running, caplog
) -> None:
    publish(theirs, "2", other_weights())
    serve_versions(theirs, [1, 2])
    server = triton(theirs)
    async with offloading(running, linear, server.target) as client:
        async with load(client, QPS, 5 * SLA_S) as sending:
            await until(lambda: sending.offloaded() > QPS / 2)
            serve_versions(theirs, [2])
            await reload(server)
            await until_reason(client.address, "version 1 is not among 2")
            gone_s = time.monotonic()
            await until(lambda: len(sending.sent(since_s=gone_s)) > QPS)
            back_s = time.monotonic()
            serve_versions(theirs, [1, 2])
            await reload(server)
            # Refused for what it has, the server is asked every REFUSED_WAIT_S.
            await until(lambda: sending.offloaded(since_s=back_s) > 10, REFUSED_WAIT_S + RESUME_S)
        (shown,) = await accelerators(client.address)
        assert shown.ready
    assert set(sending.sent(gone_s, back_s)) == {"cpu"}
    assert sending.versions == {"1"}
    assert "accelerator refused" in caplog.text


async def test_our_version_that_comes_back_with_other_weights_is_refused_though_its_shapes_are_ours(
    linear, theirs, triton, running
) -> None:
    publish(theirs, "2", other_weights())
    server = triton(theirs)
    async with offloading(running, linear, server.target) as client:
        async with load(client, QPS, 5 * SLA_S) as sending:
            await until(lambda: sending.offloaded() > QPS / 2)
            serve_versions(theirs, [2])
            await reload(server)
            await until_reason(client.address, "version 1 is not among 2")
            gone_s = time.monotonic()
            (theirs / "linear" / "1" / "model.onnx").write_bytes(other_weights())
            serve_versions(theirs, [1, 2])
            await reload(server)
            await until_reason(client.address, "it has other weights", REFUSED_WAIT_S + RESUME_S)
    assert set(sending.sent(since_s=gone_s)) == {"cpu"}


async def test_our_version_reloaded_there_with_another_shape_is_no_longer_used(
    linear, theirs, triton, running, caplog
) -> None:
    server = triton(theirs)
    async with offloading(running, linear, server.target) as client:
        async with load(client, QPS, 5 * SLA_S) as sending:
            await until(lambda: sending.offloaded() > QPS / 2)
            (theirs / "linear" / "config.pbtxt").write_text(CONFIG.replace("dims: [ 2 ]", "dims: [ 9 ]"))
            await reload(server)
            await until_reason(client.address, 'input "ids" is [-1, 9] there, [-1, 2] here')
            gone_s = time.monotonic()
            await until(lambda: len(sending.sent(since_s=gone_s)) > QPS / 2)
    assert set(sending.sent(since_s=gone_s)) == {"cpu"}
