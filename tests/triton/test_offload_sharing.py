"""Two Triton servers: the one with the least candidates on the way gets the next query, however many come at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.rank.triton_admission import SAMPLE
from tests.conftest import LINEAR_CONFIG, linear_model, write_model
from tests.triton.held_triton import ONE_BY_ONE, Held, until_waiting
from tests.triton.offloading_rig import expected, offloading, query, until, until_scored

pytestmark = pytest.mark.triton
LARGEST = 64


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    write_model(place, "linear", linear_model(), LINEAR_CONFIG.replace('"50"', '"1000"'))
    return place


async def test_candidates_on_the_way_stay_level_whatever_order_the_sizes_come_in(
    linear, tmp_path, triton, running
) -> None:
    pair = [Held(tmp_path / name, ONE_BY_ONE) for name in ("one", "other")]
    servers = [triton(held.repository) for held in pair]
    # In turns one server would get every large query; by count of queries, or by chance, the two would drift apart.
    sizes = [LARGEST, 1] * 12
    async with offloading(running, linear, *(s.target for s in servers), offload_from=1) as client:
        await until_scored(*servers, count=len(servers) * SAMPLE)  # scored to be admitted
        for held in pair:
            held.hold()
        asked = [
            asyncio.create_task(client.rank("linear", query(size, number), timeout_s=10))
            for number, size in enumerate(sizes)
        ]
        await until(lambda: all(held.is_running() for held in pair))
        await until_waiting(*servers, count=len(sizes) - len(pair))
        for held in pair:
            held.release()
        answers = await asyncio.gather(*asked)
        assert [answer.backend for answer in answers] == ["triton"] * len(sizes)
        for number, answer in enumerate(answers):
            assert abs(answer.scores - expected(query(sizes[number], number))).max() < 1e-5
        one, other = await until_scored(*servers, count=len(servers) * SAMPLE + sum(sizes))
    assert abs(one - other) <= LARGEST
