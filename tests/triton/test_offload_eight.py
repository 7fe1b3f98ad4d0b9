"""Parity through the service: the eight models score alike on the CPU and on a real Triton."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deeprecsys import AsyncRankClient
from deeprecsys.v1 import control_pb2, control_pb2_grpc
from services.models.candidates import random_candidates
from services.models.export import Exported
from services.models.spec import SLUGS, spec_for
from tests.triton.offloading_rig import until_offloaded

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def inputs_of(slug: str, size: int) -> dict[str, np.ndarray]:
    """Random inputs, the user's side once for all candidates."""
    spec = spec_for(slug, "tiny")
    inputs = dict(random_candidates(spec, size, np.random.default_rng([size, len(slug)])))
    return {name: a[:1] if name in {"profile", "behaviours"} else a for name, a in inputs.items()}


async def pin(stub: Any, slug: str, offload_from: int) -> None:
    point = control_pb2.OperatingPoint(batch_size=64, offload_from=offload_from)
    await stub.PinOperatingPoint(control_pb2.PinOperatingPointRequest(model=slug, point=point))


async def test_the_eight_score_alike_on_both_sides(exported: Mapping[str, Exported], triton, running) -> None:
    paths: list[Path] = [exported[slug].path for slug in SLUGS]
    repository = paths[0].parents[1]
    server = triton(repository)
    async with running(repository, triton=(server.target,)) as address:
        async with (
            AsyncRankClient(address, timeout_s=20) as client,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub: Any = control_pb2_grpc.ControlServiceStub(channel)
            for slug in SLUGS:
                await pin(stub, slug, 1)
                await until_offloaded(client, slug, inputs_of(slug, 1), limit_s=30)
                for size in (1, 7, 300):
                    inputs = inputs_of(slug, size)
                    await pin(stub, slug, 1)
                    offloaded = await client.rank(slug, inputs)
                    await pin(stub, slug, 0)
                    here = await client.rank(slug, inputs)
                    assert (offloaded.backend, here.backend) == ("triton", "cpu"), slug
                    np.testing.assert_allclose(offloaded.scores, here.scores, atol=1e-5, err_msg=slug)
                    assert np.ptp(here.scores) > 0 or size == 1, slug
