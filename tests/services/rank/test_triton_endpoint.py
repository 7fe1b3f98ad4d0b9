"""One endpoint's channel: it is replaced whatever is on the way, and what is on the way ends nevertheless."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tritonclient.grpc import service_pb2

from services.rank.triton_endpoint import Endpoint, SilentError
from services.rank.triton_messages import infer_request
from tests.services.rank.fake_triton import FakeTriton, fake_triton
from tests.services.rank.test_dispatcher import SPEC, query
from tests.services.rank.test_offloading import until
from tests.triton.relay import Relay, relay

METADATA = service_pb2.ModelMetadataRequest(name="m", version="1")
LIMIT_S = 20.0


@pytest.fixture
async def fake() -> AsyncIterator[FakeTriton]:
    async with fake_triton() as made:
        yield made


@pytest.fixture
async def between(fake: FakeTriton) -> AsyncIterator[Relay]:
    async with relay(fake.address) as made:
        yield made


async def held_call(endpoint: Endpoint, fake: FakeTriton) -> asyncio.Task:
    """A call that is on the way until the server lets it go."""
    fake.held.clear()
    request = infer_request(SPEC, query(1, 2).inputs, 0, 2, ["y"], LIMIT_S)
    call = asyncio.create_task(endpoint.infer(request, LIMIT_S))
    await until(lambda: fake.sizes == [2])
    return call


async def test_a_host_that_vanished_is_found_again_though_a_call_to_it_has_not_ended(fake, between) -> None:
    endpoint = Endpoint(between.target)
    lasting = await held_call(endpoint, fake)
    between.vanish()
    with pytest.raises(SilentError):
        await endpoint.call("ModelMetadata", METADATA, 0.2)
    between.come_back()
    reopening = asyncio.create_task(endpoint.reopen())
    await asyncio.sleep(0)
    assert (await endpoint.call("ModelMetadata", METADATA, LIMIT_S)).versions == ["1"]
    assert not lasting.done()
    lasting.cancel()
    await reopening
    await endpoint.close()


async def test_what_is_on_the_way_when_a_channel_is_replaced_is_answered(fake, between) -> None:
    endpoint = Endpoint(between.target)
    lasting = await held_call(endpoint, fake)
    reopening = asyncio.create_task(endpoint.reopen())
    await asyncio.sleep(0)
    await endpoint.call("ModelMetadata", METADATA, LIMIT_S)
    assert not reopening.done()
    fake.held.set()
    assert (await lasting).outputs[0].shape == [2, 1]
    await reopening
    await endpoint.close()
