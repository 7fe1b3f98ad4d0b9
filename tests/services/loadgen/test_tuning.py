"""DeepRecSched offline on a live service: resumable, and pinned at its best."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import onnx
import pytest

from deeprecsys.errors import InvalidSettingError, UnavailableError
from deeprecsys.v1 import control_pb2, control_pb2_grpc
from scheduler.measure import Sla, summarise
from scheduler.plan import OperatingPoint
from scheduler.tune import Tuned
from services.loadgen.settings import LoadSettings, ModelShare
from services.loadgen.tuning import Finished, _Service, tune_live
from tests.conftest import write_model
from tests.services.rank.fake_triton import FakeTriton, fake_triton


def settings(address: str, model: str = "linear", qps: float = 40.0, duration_s: float = 0.4) -> LoadSettings:
    return LoadSettings(
        address,
        (ModelShare(model),),
        qps=qps,
        duration_s=duration_s,
        warmup_s=0.0,
        sizes="fixed:8",
        min_queries=3,
    )


def keys(path: Path) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [(entry["batch_size"], entry["qps"]) for entry in entries]


@pytest.mark.slow
async def test_a_tuning_measures_pins_its_best_and_goes_on_from_its_file(
    repository, running, tmp_path: Path
) -> None:
    path = tmp_path / "finished.jsonl"
    async with running(repository) as address:
        chosen = settings(address)
        tuned = await asyncio.to_thread(
            tune_live, chosen, Finished(path, chosen), grid=True, batch_sizes=(4, 16)
        )
        assert {tried.point for tried in tuned.tried} == {OperatingPoint(4), OperatingPoint(16)}
        first = keys(path)
        assert 2 <= len(first) <= tuned.measurements
        again = await asyncio.to_thread(
            tune_live, chosen, Finished(path, chosen), grid=True, batch_sizes=(4, 16)
        )
        assert keys(path)[: len(first)] == first
        assert len(set(keys(path))) == len(keys(path))  # nothing that was finished is measured again
        async with grpc.aio.insecure_channel(address) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)
            listed = await stub.ListOperatingPoints(control_pb2.ListOperatingPointsRequest(model="linear"))
    (model,) = listed.models
    assert (model.pinned, model.point.batch_size) == (True, again.point.batch_size)


def test_finished_measurements_survive_with_their_infinite_tails_and_a_torn_last_line(tmp_path: Path) -> None:
    path, chosen = tmp_path / "finished.jsonl", settings("127.0.0.1:1")
    sla = Sla(95.0, 0.1)
    arrays = (np.array([0.0, 0.1, 0.2]), np.array([0.01, math.inf, 0.02]), np.ones(3, int))
    measurement = summarise(sla, *arrays, window=(0.0, 0.3), min_count=1)
    assert math.isinf(measurement.p99_s)
    Finished(path, chosen).save(OperatingPoint(8), 12.5, measurement)
    with path.open("a") as file:
        file.write('{"batch_size": 8, "off')
    assert Finished(path, chosen).found == {(OperatingPoint(8), 12.5): measurement}
    for line in path.read_text().splitlines()[:2]:
        json.loads(line, parse_constant=pytest.fail)


def test_a_file_of_another_tuning_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "finished.jsonl"
    Finished(path, settings("127.0.0.1:1"))
    Finished(path, settings("127.0.0.1:2"))  # the same tuning, of a service that came back elsewhere
    other = LoadSettings("127.0.0.1:1", (ModelShare("two_task"),))
    with pytest.raises(InvalidSettingError, match="holds measurements under other settings"):
        Finished(path, other)
    with pytest.raises(InvalidSettingError, match="cannot use"):
        Finished(tmp_path, settings("127.0.0.1:1"))


# ---- thresholds ----

IDENTITY_CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
parameters { key: "sla_ms" value { string_value: "500" } }
"""


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """A repository of the model that the fake Triton has: `m`, whose output is its input."""
    shape = (onnx.TensorProto.FLOAT, ["batch", 1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "graph",
        [onnx.helper.make_tensor_value_info("x", *shape)],
        [onnx.helper.make_tensor_value_info("y", *shape)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    write_model(tmp_path / "identity", "m", model.SerializeToString(), IDENTITY_CONFIG)
    return tmp_path / "identity"


async def until(condition: Callable[[Any], bool], address: str) -> None:
    """Wait until something holds of the model's operation."""
    async with asyncio.timeout(10), grpc.aio.insecure_channel(address) as channel:
        stub = control_pb2_grpc.ControlServiceStub(channel)
        while True:
            (found,) = (await stub.ListOperatingPoints(control_pb2.ListOperatingPointsRequest())).models
            if condition(found):
                return
            await asyncio.sleep(0.02)


async def tuned_beside(
    fake: FakeTriton, running: Any, identity: Path, path: Path, thresholds: Sequence[int | None]
) -> tuple[Tuned, OperatingPoint]:
    """Tune on a service with this accelerator; return that and where the service was left."""
    async with running(identity, triton=(fake.address,)) as address:
        await until(lambda found: found.accelerators[0].ready, address)
        chosen = settings(address, "m", qps=1000.0, duration_s=0.1)
        tuned = await asyncio.to_thread(
            tune_live,
            chosen,
            Finished(path, chosen),
            batch_sizes=(4, 8),
            thresholds=tuple(thresholds),
        )
        left: list[OperatingPoint] = []

        def note(found: control_pb2.ModelOperation) -> bool:
            left.append(OperatingPoint(found.point.batch_size, found.point.offload_from or None))
            return bool(found.pinned)

        await until(note, address)
    return tuned, left[-1]


@pytest.mark.slow
async def test_beside_an_accelerator_the_threshold_is_climbed_after_the_batch_size(
    running, identity: Path, tmp_path: Path
) -> None:
    async with fake_triton() as fake:
        tuned, left = await tuned_beside(fake, running, identity, tmp_path / "finished.jsonl", (1, 4, None))
    points = [tried.point for tried in tuned.tried]
    assert points[:2] == [OperatingPoint(4), OperatingPoint(8)]
    assert [point.offload_from for point in points[2:]][:1] == [1]
    assert left == tuned.point


@pytest.mark.slow
async def test_without_thresholds_the_accelerator_is_left_out(
    running, identity: Path, tmp_path: Path
) -> None:
    async with fake_triton() as fake:
        tuned, left = await tuned_beside(fake, running, identity, tmp_path / "finished.jsonl", ())
    assert {tried.point.offload_from for tried in tuned.tried} == {None}
    assert left == tuned.point


@pytest.mark.slow
async def test_while_the_accelerator_is_away_nothing_is_tuned_but_the_cpu_on_request(
    running, identity: Path, tmp_path: Path
) -> None:
    path = tmp_path / "finished.jsonl"
    async with fake_triton() as fake:
        fake.down = (grpc.StatusCode.UNAVAILABLE, "not today")
        async with running(identity, triton=(fake.address,)) as address:
            await until(lambda found: "not today" in found.accelerators[0].reason, address)
            chosen = settings(address, "m", qps=1000.0, duration_s=0.1)
            with pytest.raises(UnavailableError, match="no accelerator takes m .*not today.*--cpu-only"):
                await asyncio.to_thread(tune_live, chosen, Finished(path, chosen), batch_sizes=(8,))
            tuned = await asyncio.to_thread(
                tune_live, chosen, Finished(path, chosen), batch_sizes=(8,), thresholds=()
            )
    assert tuned.point == OperatingPoint(8)


@pytest.mark.parametrize(
    ("offload_from", "ready", "invalid"), [(4, True, False), (4, False, True), (None, False, False)]
)
def test_a_run_that_should_offload_is_invalid_once_no_accelerator_is_there(
    offload_from: int | None, ready: bool, invalid: bool
) -> None:
    sla = Sla(95.0, 0.1)
    arrays = (np.array([0.0, 0.1]), np.array([0.01, 0.02]), np.ones(2, int))
    measured = summarise(sla, *arrays, window=(0.0, 0.2), min_count=1)
    lane = SimpleNamespace(sla=sla, model=SimpleNamespace(versions=["1"]))
    session = SimpleNamespace(
        settings=settings("127.0.0.1:1"),
        lanes=[lane],
        stopped=False,
        run=lambda _: SimpleNamespace(models=[SimpleNamespace(measurement=measured)]),
    )
    operation = control_pb2.ModelOperation(version="1")
    operation.accelerators.add(endpoint="gpu:8001", ready=ready, reason="gone")
    pinned: list[control_pb2.OperatingPoint] = []
    stub = SimpleNamespace(
        PinOperatingPoint=lambda request, timeout: pinned.append(request.point),
        ListOperatingPoints=lambda request, timeout: SimpleNamespace(models=[operation]),
    )
    service = _Service(SimpleNamespace(run=lambda result: result), session, stub)  # type: ignore[arg-type]
    found = service.measure(OperatingPoint(8, offload_from), 10.0)
    assert (found.invalid is not None) is invalid
    assert not invalid or "gpu:8001: gone" in str(found.invalid)
    assert [(point.batch_size, point.offload_from) for point in pinned] == [(8, offload_from or 0)]
