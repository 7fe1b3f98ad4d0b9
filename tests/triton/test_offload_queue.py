"""A Triton whose queue is full or slow: the CPU answers in time, and nothing is scored there that nobody waits for.

Nothing here waits for time to pass: a query counts as sent when Triton's own metrics say that it is in the queue.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from deeprecsys import AsyncRankClient, Ranking
from tests.conftest import LINEAR_CONFIG, linear_model, write_model
from tests.triton.held_triton import Held, not_run, until_waiting
from tests.triton.offloading_rig import RESUME_S, expected, offloading, query, until

pytestmark = pytest.mark.triton


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    # A target so long that a server which is held does not count as hanging.
    write_model(place, "linear", linear_model(), LINEAR_CONFIG.replace('"50"', '"1000"'))
    return place


@pytest.fixture
def held(tmp_path: Path) -> Held:
    return Held(tmp_path / "held")


def begin(client: AsyncRankClient, number: int, timeout_s: float = 10.0) -> asyncio.Task[Ranking]:
    return asyncio.create_task(client.rank("linear", query(60, number), timeout_s=timeout_s))


async def fill(client: AsyncRankClient, server, held: Held, queued: int) -> list[asyncio.Task[Ranking]]:
    """Hold the server, and send it one query that runs and then so many that wait, each there before the next."""
    held.hold()
    begun = [begin(client, 0)]
    await until(held.is_running)
    for number in range(1, queued + 1):
        begun.append(begin(client, number))
        await until_waiting(server, count=number)
    return begun


async def until_one_is_not_run(server) -> None:
    async with asyncio.timeout(RESUME_S):
        while await asyncio.to_thread(not_run, server) != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def check(answers: list[Ranking]) -> None:
    for number, answer in enumerate(answers):
        assert abs(answer.scores - expected(query(60, number))).max() < 1e-5


async def test_what_a_full_queue_refuses_the_cpu_answers_at_once(
    linear, triton, running, held, caplog
) -> None:
    caplog.set_level(logging.INFO)
    server = triton(held.repository)
    async with offloading(running, linear, server.target) as client:
        there = await fill(client, server, held, queued=2)
        refused = await asyncio.gather(*(begin(client, number) for number in range(3, 8)))
        assert [answer.backend for answer in refused] == ["cpu"] * 5
        assert not any(task.done() for task in there)
        held.release()
        answers = await asyncio.gather(*there)
        assert [answer.backend for answer in answers] == ["triton"] * 3
        check([*answers, *refused])
    assert "accelerator away" not in caplog.text  # busy is not away


async def test_our_own_bound_on_queries_in_flight_sends_the_rest_to_the_cpu(
    linear, triton, running, held
) -> None:
    server = triton(held.repository)
    async with offloading(running, linear, server.target, triton_queries=2) as client:
        there = await fill(client, server, held, queued=1)
        rest = await asyncio.gather(begin(client, 2), begin(client, 3))
        assert [answer.backend for answer in rest] == ["cpu"] * 2
        await until_waiting(server, count=1)  # the queue had room, and yet nothing more was sent there
        held.release()
        answers = await asyncio.gather(*there)
        assert [answer.backend for answer in answers] == ["triton"] * 2
        check([*answers, *rest])


async def test_a_deadline_reaches_the_queue_and_the_cpu_answers_in_time(
    linear, triton, running, held
) -> None:
    server = triton(held.repository)
    async with offloading(running, linear, server.target) as client:
        (runs,) = await fill(client, server, held, queued=0)
        hurried = begin(client, 1, timeout_s=0.5)
        await until_waiting(server, count=1)  # it was there: the CPU's answer is its second try
        answer = await hurried  # after its deadline this would raise
        assert answer.backend == "cpu"
        assert not runs.done()
        held.release()
        assert (await runs).backend == "triton"
        await until_one_is_not_run(server)


async def test_a_client_that_gives_up_takes_its_query_out_of_the_queue(linear, triton, running, held) -> None:
    server = triton(held.repository)
    async with offloading(running, linear, server.target) as client:
        runs, given_up = await fill(client, server, held, queued=1)
        given_up.cancel()
        await asyncio.wait([given_up])
        # On one connection what is sent later arrives later: once this one waits, Triton knows of the cancellation.
        # (It counts what was cancelled as waiting until the queue moves.)
        behind = begin(client, 2)
        await until_waiting(server, count=2)
        held.release()
        assert [(await task).backend for task in (runs, behind)] == ["triton"] * 2
        await until_one_is_not_run(server)
