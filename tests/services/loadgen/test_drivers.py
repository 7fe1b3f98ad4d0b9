"""Several driver processes drive as one would: the same queries, one trace, one end. The server is on a thread."""

import asyncio
import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from deeprecsys.client import build_request
from deeprecsys.errors import InternalError
from services.loadgen.driver import Limits, Plan
from services.loadgen.drivers import open_drivers
from services.loadgen.loop import precise_loop
from services.loadgen.run import run_load
from services.loadgen.settings import LoadSettings, ModelShare
from services.loadgen.transport import grpc_transport

REQUEST = build_request("tiny", {"dense": np.zeros((1, 4), dtype=np.float32)}).SerializeToString()


def settings(stand_in, **changes) -> LoadSettings:
    facts = {
        "target": stand_in.target,
        "models": (ModelShare("tiny", 2.0), ModelShare("other")),
        "qps": 300.0,
        "duration_s": 0.5,
        "warmup_s": 0.0,
        "min_queries": 1,
    }
    return LoadSettings(**{**facts, **changes})


def drivers_below(pid: int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(pid).children()
        if any("driver_process" in word for word in child.cmdline())
    ]


def test_two_drivers_send_what_one_would_send_and_report_it_as_one(stand_in_elsewhere):
    results, sent = [], []
    for drivers in (1, 2):
        stand_in_elsewhere.requests.clear()
        results.append(run_load(settings(stand_in_elsewhere, drivers=drivers)))
        sent.append(Counter(r.SerializeToString(deterministic=True) for r in stand_in_elsewhere.requests))
    one, two = results

    # Each driver process opens its connection with the smallest request of the first model.
    assert sum((sent[1] - sent[0]).values()) == 2
    assert sent[0] - sent[1] == Counter()
    assert (one.driver.processes, two.driver.processes) == (1, 2)
    for mine, other in zip(one.models, two.models, strict=True):
        assert mine.codes == other.codes
        assert np.array_equal(mine.samples.scheduled_s, other.samples.scheduled_s)
        assert np.array_equal(mine.samples.size, other.samples.size)
        assert np.isfinite(other.samples.latency_s).all()
    assert two.driver.cpu_s > 0
    assert not drivers_below(os.getpid())


def test_drivers_of_several_processes_run_before_others_all_or_none(stand_in_elsewhere):
    one, two = (run_load(settings(stand_in_elsewhere, drivers=n, duration_s=0.1)) for n in (1, 2))
    assert two.driver.before_others == one.driver.before_others


def test_a_closed_loop_over_two_drivers_answers_every_query(stand_in_elsewhere):
    asked = settings(stand_in_elsewhere, drivers=2, concurrency=5, count=60)
    result = run_load(asked)
    assert sum(model.codes["OK"] for model in result.models) == 60
    assert 1 <= stand_in_elsewhere.most_in_flight <= 5


def test_a_vanished_server_ends_all_drivers_and_the_reason_is_kept(stand_in_elsewhere):
    stand_in_elsewhere.behave = lambda nth, request: grpc.StatusCode.UNAVAILABLE if nth > 30 else None
    result = run_load(
        settings(stand_in_elsewhere, drivers=2, duration_s=600.0, qps=300, unavailable_limit=10)
    )
    assert result.cut_short == "the server is unavailable: 5 queries in a row failed"
    codes = sum((Counter(model.codes) for model in result.models), Counter())
    assert set(codes) == {"OK", "UNAVAILABLE"}
    assert codes["UNAVAILABLE"] >= 5


def test_progress_is_of_all_drivers_together(stand_in_elsewhere):
    seen = []
    run_load(settings(stand_in_elsewhere, drivers=2, duration_s=1.5, qps=200), seen.append)
    assert {look.total for look in seen} == {len(stand_in_elsewhere.requests) - 4}
    assert seen[-1].sent > seen[-1].total / 2
    assert set(seen[-1].codes) == {"OK"}


def over_two_processes(plan: Plan, connect, seen=None):
    """Drive a plan over two processes; ``seen`` is called with each look."""

    async def drive():
        async with connect() as transport, open_drivers(2, transport, connect, plan.payloads) as drivers:
            return await drivers.drive(
                plan, Limits(), concurrency=None, stop=asyncio.Event(), on_progress=seen
            )

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(drive())


def long_plan() -> Plan:
    return Plan(np.array([0.0, 0.0, 600.0, 600.0]), np.zeros(4, dtype=np.int64), (REQUEST,))


def test_a_driver_process_that_dies_is_an_error_and_leaves_no_other(stand_in_elsewhere):
    def kill_one(_look) -> None:
        drivers_below(os.getpid())[0].send_signal(signal.SIGKILL)

    connect = partial(grpc_transport, stand_in_elsewhere.target)
    with pytest.raises(InternalError, match="driver_process ended with exit code -9"):
        over_two_processes(long_plan(), connect, kill_one)
    assert not drivers_below(os.getpid())


def test_an_error_in_a_driver_process_is_told_and_leaves_no_other(stand_in_elsewhere):
    connect = partial(grpc_transport, stand_in_elsewhere.target, Path("no number"))
    with pytest.raises(TypeError), asyncio.Runner() as runner:
        runner.run(_opened(connect))

    # Here the first connection is made, and those of the processes are not.
    good = partial(grpc_transport, stand_in_elsewhere.target)
    with pytest.raises(InternalError, match="driver_process failed: TypeError"):
        with asyncio.Runner(loop_factory=precise_loop) as runner:
            runner.run(_opened(good, connect))
    assert not drivers_below(os.getpid())


async def _opened(first, rest=None) -> None:
    async with first() as transport, open_drivers(2, transport, rest or first, (REQUEST,)):
        pytest.fail("it cannot be opened")
