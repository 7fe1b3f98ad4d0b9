"""Tensors reach a real Triton through shared memory, whichever side is started anew, and nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deeprecsys.errors import InvalidSettingError
from services.rank.offloading import Offloader
from services.rank.shared_memory import PLACE, PREFIX
from services.rank.triton_endpoint import AttemptFailedError, Endpoint, EndpointBusyError
from services.rank.triton_link import Bounds
from services.rank.triton_memory import TensorMemory
from tests.conftest import LINEAR_CONFIG, TABLE, linear_model, write_model
from tests.triton.offloading_rig import accelerators, expected, offloading, query, until_offloaded

pytestmark = pytest.mark.triton

SHARED = 1 << 20

OWNER = """
import asyncio, sys
from services.rank.triton_endpoint import Endpoint
from services.rank.triton_memory import TensorMemory

async def own():
    await TensorMemory(4096).offer(Endpoint(sys.argv[1]))
    print("offered", flush=True)
    await asyncio.sleep(60)

asyncio.run(own())
"""


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    write_model(place, "linear", linear_model(), LINEAR_CONFIG)
    return place


async def regions(target: str) -> dict[str, Any]:
    """The regions that Triton has mapped, by name."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = await stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest())
    return dict(found.regions)


def names() -> set[str]:
    return {path.name for path in PLACE.glob(f"{PREFIX}*")}


async def check(client, size: int, *, user_side: bool = False) -> None:
    inputs = query(size, user_side=user_side)
    answer = await client.rank("linear", inputs)
    assert answer.backend == "triton"
    np.testing.assert_allclose(answer.scores, expected(inputs), atol=1e-5)


async def test_tensors_go_through_the_memory_and_it_is_gone_when_the_service_is(
    linear, triton, running
) -> None:
    server, before = triton(linear), names()
    async with offloading(running, linear, server.target, triton_shared_memory=SHARED) as client:
        (name,) = names() - before
        assert {n: region.byte_size for n, region in (await regions(server.target)).items()} == {name: SHARED}
        for size in (50, 999, 2000):
            await check(client, size)
            assert query(size)["ids"][:50].tobytes() in (PLACE / name).read_bytes()
        await check(client, 60, user_side=True)
        await asyncio.gather(*(check(client, 60 + number) for number in range(40)))
    assert names() == before
    assert await regions(server.target) == {}


async def test_what_does_not_fit_travels_in_messages(linear, triton, running) -> None:
    server = triton(linear)
    async with offloading(running, linear, server.target, triton_shared_memory=4096) as client:
        await check(client, 2000)


@pytest.mark.parametrize("mode", ["explicit", "none"])
async def test_a_server_that_is_started_anew_maps_it_again(linear, triton, running, mode) -> None:
    server = triton(linear, mode=mode)
    async with offloading(running, linear, server.target, triton_shared_memory=SHARED) as client:
        await check(client, 60)
        await asyncio.to_thread(server.start)  # another process, which has mapped nothing; it is told at once
        await until_offloaded(client)
        await check(client, 70)
        assert len(await regions(server.target)) == 1


async def test_what_a_killed_service_had_mapped_the_next_one_lets_go_of(linear, triton, running) -> None:
    server, before = triton(linear), names()
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, server.target, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert owner.stdout is not None
        assert await owner.stdout.readline() == b"offered\n"
        (left,) = names() - before
    finally:
        owner.kill()
        await owner.wait()
    async with offloading(running, linear, server.target, triton_shared_memory=SHARED) as client:
        await check(client, 60)
        assert left not in names()
        assert left not in await regions(server.target)
    assert names() == before


async def test_a_server_that_cannot_map_it_is_lent_nothing(linear, triton) -> None:
    """As on another host: what it is told to map is not there."""
    server, before = triton(linear), names()
    async with Endpointed(server.target) as (endpoint, memory):
        (name,) = names() - before
        (PLACE / name).unlink()
        with pytest.raises(AttemptFailedError, match="shared memory region"):
            await memory.offer(endpoint)
        with memory.lend(64) as block:
            assert block is None


class Endpointed:
    """An endpoint and memory for it, closed at the end."""

    def __init__(self, target: str) -> None:
        self._target = target

    async def __aenter__(self) -> tuple[Endpoint, TensorMemory]:
        self._endpoint, self._memory = Endpoint(self._target), TensorMemory(4096)
        return self._endpoint, self._memory

    async def __aexit__(self, *_: object) -> None:
        await self._memory.close(self._endpoint)
        await self._endpoint.close()


async def test_memory_of_a_call_that_was_given_up_is_not_used_again_at_once(linear, triton) -> None:
    server = triton(linear)
    async with Endpointed(server.target) as (endpoint, memory):
        await memory.offer(endpoint)
        with memory.lend(4096) as block:
            assert block is not None
        with pytest.raises(asyncio.CancelledError):
            with memory.lend(4096):
                raise asyncio.CancelledError
        with memory.lend(64) as block:
            assert block is None


async def test_memory_of_a_call_that_was_refused_is_free_at_once(linear, triton) -> None:
    server = triton(linear)
    async with Endpointed(server.target) as (endpoint, memory):
        await memory.offer(endpoint)
        with pytest.raises(EndpointBusyError):
            with memory.lend(4096):
                raise EndpointBusyError("full")
        with memory.lend(4096) as block:
            assert block is not None


async def test_where_the_memory_of_one_server_is_not_to_be_had_that_of_the_others_is_removed(
    monkeypatch,
) -> None:
    before, reserve, asked = names(), os.posix_fallocate, []

    def second_fails(file: int, begin: int, size: int) -> None:
        asked.append(size)
        if len(asked) == 2:
            raise OSError(28, "No space left on device")
        reserve(file, begin, size)

    monkeypatch.setattr(os, "posix_fallocate", second_fails)
    with pytest.raises(InvalidSettingError, match="No space left"):
        Offloader(["127.0.0.1:1", "127.0.0.1:2"], lambda *_: None, Bounds(shared_bytes=SHARED))
    assert names() == before


async def test_other_weights_under_the_same_name_are_refused(linear, triton, running, tmp_path) -> None:
    other = tmp_path / "other"
    write_model(other, "linear", linear_model(table=2 * TABLE), LINEAR_CONFIG)
    server = triton(other)
    async with running(linear, triton=(server.target,), offload_from=50) as address:
        async with asyncio.timeout(10):
            while "weights" not in (await accelerators(address))[0].reason:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert not (await accelerators(address))[0].ready


async def test_a_connection_that_is_lost_while_nothing_is_on_the_way_is_noticed(
    linear, triton, running
) -> None:
    server = triton(linear)
    async with offloading(running, linear, server.target) as client:
        server.send_signal(signal.SIGKILL)
        async with asyncio.timeout(5):
            while (await accelerators(client.address))[0].ready:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await accelerators(client.address))[0].reason
