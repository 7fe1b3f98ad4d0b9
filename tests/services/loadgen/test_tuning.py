"""DeepRecSched offline on a live service: resumable, and pinned at its best."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import grpc
import numpy as np
import pytest

from deeprecsys.errors import InvalidSettingError
from deeprecsys.v1 import control_pb2, control_pb2_grpc
from scheduler.measure import Sla, summarise
from scheduler.plan import OperatingPoint
from services.loadgen.settings import LoadSettings, ModelShare
from services.loadgen.tuning import Finished, tune_live


def settings(address: str) -> LoadSettings:
    return LoadSettings(
        address,
        (ModelShare("linear"),),
        qps=40.0,
        duration_s=0.4,
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
