"""ControlService over a real socket: what was chosen, why, and overruling it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deeprecsys import AsyncRankClient
from deeprecsys.errors import InvalidQueryError, ModelNotFoundError
from deeprecsys.status import to_error
from deeprecsys.v1 import control_pb2, control_pb2_grpc
from scheduler.plan import OperatingPoint
from scheduler.sizes import PRODUCTION_MAX_SIZE
from services.rank.learnt_points import FILE, LearntPoints
from tests.services.rank.test_dispatcher import SPEC

QUERY = {"dense": np.zeros((60, 3), np.float32), "ids": np.zeros((60, 2), np.int32)}


@asynccontextmanager
async def control(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield control_pb2_grpc.ControlServiceStub(channel)


def pin_request(batch_size: int, model: str = "linear", **point: int) -> control_pb2.PinOperatingPointRequest:
    asked = control_pb2.OperatingPoint(batch_size=batch_size, **point)
    return control_pb2.PinOperatingPointRequest(model=model, point=asked)


async def operation(stub: Any, model: str = "linear") -> control_pb2.ModelOperation:
    response = await stub.ListOperatingPoints(control_pb2.ListOperatingPointsRequest(model=model))
    (found,) = response.models
    return found


async def test_a_pinned_point_is_used_by_the_next_query(repository, running) -> None:
    async with running(repository, workers=1) as address, control(address) as stub:
        async with AsyncRankClient(address) as client:
            for batch_size, batches in ((1, 60), (20, 3), (64, 1), (7, 9)):
                pinned = (await stub.PinOperatingPoint(pin_request(batch_size))).model
                assert (pinned.point.batch_size, pinned.pinned) == (batch_size, True)
                assert (await client.rank("linear", QUERY)).batches == batches
        assert (await operation(stub)).pinned
        freed = (await stub.UnpinOperatingPoint(control_pb2.UnpinOperatingPointRequest(model="linear"))).model
        assert (freed.pinned, freed.point.batch_size) == (False, 7)


async def test_a_point_that_cannot_be_run_is_refused_with_its_field(repository, running) -> None:
    async with running(repository) as address, control(address) as stub:
        for request, field in (
            (pin_request(0), "point.batch_size"),
            (pin_request(65), "point.batch_size"),
            (pin_request(4, offload_from=3), "point.offload_from"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.PinOperatingPoint(request)
            error = to_error(refused.value)
            assert isinstance(error, InvalidQueryError)
            assert [violation.field for violation in error.violations] == [field]
        for call in (stub.PinOperatingPoint(pin_request(1, "nope")), operation(stub, "nope")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert isinstance(to_error(refused.value), ModelNotFoundError)


async def test_every_decision_is_streamed_with_its_reason_recent_ones_first(repository, running) -> None:
    async with running(repository) as address, control(address) as stub:
        await stub.PinOperatingPoint(pin_request(3))
        watch = stub.WatchDecisions(control_pb2.WatchDecisionsRequest(model="linear"))
        first = (await watch.read()).decision
        await stub.PinOperatingPoint(pin_request(2, "two_task"))
        await stub.PinOperatingPoint(pin_request(5))
        second = (await watch.read()).decision
        watch.cancel()
    assert (first.new_point.batch_size, first.reason, first.model) == (3, "pinned", "linear")
    assert (second.old_point.batch_size, second.new_point.batch_size) == (3, 5)
    assert second.time.ToSeconds() > 1_700_000_000


async def test_a_watcher_does_not_hold_a_drain_up(repository, running) -> None:
    async with asyncio.timeout(20):
        async with running(repository) as address, control(address) as stub:
            watch = stub.WatchDecisions(control_pb2.WatchDecisionsRequest())
            await stub.PinOperatingPoint(pin_request(3))
            assert (await watch.read()).decision.reason == "pinned"


async def test_a_retune_keeps_what_is_pinned(repository, running) -> None:
    async with running(repository) as address, control(address) as stub:
        await stub.PinOperatingPoint(pin_request(3))
        again = (await stub.Retune(control_pb2.RetuneRequest(model="linear"))).model
        assert (again.pinned, again.point.batch_size) == (True, 3)


@pytest.mark.parametrize(
    ("settings", "batch_size", "pinned"),
    [
        ({"policy": "static", "workers": 20}, PRODUCTION_MAX_SIZE // 20, True),
        ({"policy": "adaptive", "batch_size": 9}, 9, True),
        ({"policy": "paper"}, None, True),
        ({"policy": "adaptive"}, None, False),
    ],
)
async def test_each_policy_begins_where_it_says(repository, running, settings, batch_size, pinned) -> None:
    async with running(repository, **settings) as address, control(address) as stub:
        found = await operation(stub)
    assert found.pinned is pinned
    assert batch_size in (None, found.point.batch_size)
    assert (found.sla_percentile, found.sla_seconds) == (95.0, 0.05)


async def test_a_learnt_point_is_where_the_next_start_begins(repository, running, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with running(repository, state_dir=state) as address, control(address) as stub:
        await stub.PinOperatingPoint(pin_request(13))
    assert not [path for path in state.iterdir() if path.name != FILE]
    async with running(repository, state_dir=state) as address, control(address) as stub:
        found = await operation(stub)
    assert (found.point.batch_size, found.pinned) == (13, False)
    async with running(repository, state_dir=state, policy="paper") as address, control(address) as stub:
        found = await operation(stub)
    assert (found.point.batch_size, found.pinned) == (13, True)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"a": 1}', "\x00", '{"m/1 p95 0.1s x": {"batch_size": "many"}}']
)
def test_a_state_file_that_cannot_be_read_counts_as_empty(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    points = LearntPoints(tmp_path)
    assert points.find(SPEC) is None
    points.keep(SPEC, OperatingPoint(8))
    assert LearntPoints(tmp_path).find(SPEC) == OperatingPoint(8)
    assert json.loads((tmp_path / FILE).read_text())


def test_a_state_directory_that_cannot_be_written_does_not_stop_the_service(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    points = LearntPoints(tmp_path / "file")
    points.keep(SPEC, OperatingPoint(8))
    assert "operating points cannot be kept" in caplog.text
    assert points.find(SPEC) == OperatingPoint(8)
