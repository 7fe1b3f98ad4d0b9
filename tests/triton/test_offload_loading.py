"""What a real Triton must have loaded before queries go there: at once, late, or never; the reason is there to see."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deeprecsys import AsyncRankClient
from tests.conftest import LINEAR_CONFIG, linear_model, write_model
from tests.triton.offloading_rig import (
    accelerators,
    expected,
    load,
    offloading,
    query,
    until,
    until_offloaded,
    until_reason,
)

pytestmark = pytest.mark.triton


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    write_model(place, "linear", linear_model(), LINEAR_CONFIG)
    return place


async def test_a_model_that_fails_to_load_is_named_with_its_reason_and_used_once_it_loads(
    linear, tmp_path, triton, running
) -> None:
    theirs = tmp_path / "theirs"
    file = write_model(theirs, "linear", linear_model(), LINEAR_CONFIG) / "1" / "model.onnx"
    file.rename(late := tmp_path / "late.onnx")
    server = triton(theirs)
    async with running(linear, triton=(server.target,), offload_from=50) as address:
        async with AsyncRankClient(address, timeout_s=5) as client:
            await until_reason(address, "NoSuchFile")
            assert (await client.rank("linear", query(60))).backend == "cpu"
            late.rename(file)
            await until_offloaded(client)
            (shown,) = await accelerators(address)
            assert (shown.ready, shown.reason) == (True, "")


async def test_a_server_that_loads_all_by_itself_is_used(linear, triton, running) -> None:
    server = triton(linear, mode="none")
    async with offloading(running, linear, server.target) as client:
        async with load(client, qps=50, timeout_s=5) as sending:
            await until(lambda: sending.offloaded() > 25)
        answer = await client.rank("linear", query(60, 7))
        assert answer.backend == "triton"
        assert abs(answer.scores - expected(query(60, 7))).max() < 1e-5


async def test_a_model_that_such_a_server_lacks_is_away_with_the_reason(
    linear, tmp_path, triton, running, caplog
) -> None:
    theirs = tmp_path / "theirs"
    write_model(theirs, "other", linear_model(), LINEAR_CONFIG)
    server = triton(theirs, mode="none")
    async with running(linear, triton=(server.target,), offload_from=50) as address:
        async with AsyncRankClient(address, timeout_s=5) as client:
            await until_reason(address, "explicit model load / unload is not allowed")
            answers = await asyncio.gather(*(client.rank("linear", query(60, k)) for k in range(5)))
            assert [answer.backend for answer in answers] == ["cpu"] * 5
    assert "accelerator away" in caplog.text
