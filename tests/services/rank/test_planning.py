"""The planning process and the steering that asks it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from scheduler.batching import Batcher
from scheduler.controller import Controller, Tuning
from scheduler.latency import LinearFit
from scheduler.measure import Sla
from scheduler.plan import POLICIES, OperatingPoint, Plan
from scheduler.planner import Machine, Question, forecast
from scheduler.query import Query
from services.rank.learnt_points import LearntPoints
from services.rank.planning import Planning, PlanningLostError
from services.rank.steering import Steering
from tests.services.rank.test_dispatcher import SPEC

QUESTION = Question(
    "m",
    Machine(2, LinearFit(5e-4, 6e-5), np.array([10.0, 100.0, 400.0]), np.array([0.3, 0.5, 0.2])),
    Sla(95, 0.06),
    (OperatingPoint(8), OperatingPoint(64), OperatingPoint(256)),
    50.0,
)
ORPHAN_MAKER = """
import asyncio, os
from services.rank.planning import Planning
from tests.services.rank.test_planning import QUESTION

async def main():
    planning = Planning()
    await planning.answer(QUESTION)
    print(planning._process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "services.rank.planner_process" in p.cmdline()]


async def test_the_process_answers_as_the_planner_does_and_at_the_lowest_priority() -> None:
    planning = Planning()
    answer = await planning.answer(QUESTION)
    expected = forecast(QUESTION)
    np.testing.assert_allclose(answer.capacity_qps, expected.capacity_qps)
    np.testing.assert_allclose(answer.tail_s, expected.tail_s)
    (process,) = children()
    assert process.nice() == 19
    await planning.close()
    assert not children()


async def test_a_process_that_was_killed_is_missed_once_and_started_again() -> None:
    planning = Planning()
    await planning.answer(QUESTION)
    children()[0].kill()
    with pytest.raises(PlanningLostError):
        await planning.answer(QUESTION)
    assert (await planning.answer(QUESTION)).capacity_qps[0] > 0
    await planning.close()


async def test_a_question_given_up_leaves_no_half_answer_behind() -> None:
    planning = Planning()
    await planning.answer(QUESTION)
    asked = asyncio.create_task(planning.answer(QUESTION))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait([asked])
    other = Question("m", QUESTION.machine, QUESTION.sla, QUESTION.points[:2], 50.0)
    assert len((await planning.answer(other)).capacity_qps) == 2
    await planning.close()


def test_the_process_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN_MAKER], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        assert psutil.wait_procs([orphan], timeout=20)[0]


async def test_steering_applies_what_the_planning_process_prefers() -> None:
    controller = Controller(2, Tuning(window_s=0.05, min_queries=10))
    batcher = Batcher(2, POLICIES["adaptive"])
    steering = Steering(controller, batcher, LearntPoints(None))
    steering.add(SPEC, Plan(OperatingPoint(8), 0.06, 5e-4, 6e-5), None)
    now = asyncio.get_running_loop().time()
    for _ in range(200):
        controller.observe_arrival(Query(SPEC.key, 100, now), now)
    decided = steering.watch()
    async with asyncio.timeout(20):
        decision = (await decided.get()).decision
    assert decision.new.batch_size > 8
    assert batcher.plan(SPEC.key).point == decision.new
    await steering.close()
    assert not children()
