"""The dispatcher against an engine that the test holds and releases: no sleeping, no luck with timing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from deeprecsys.errors import DeadlineExceededError, InternalError, OverloadedError
from scheduler.batching import Batcher
from scheduler.measure import Sla
from scheduler.plan import POLICIES, OperatingPoint, Plan
from services.rank.catalogue import ServedModel
from services.rank.dispatcher import Dispatcher, Scored
from services.rank.engine import EngineError
from services.rank.model import InputSpec, ModelSpec, OutputSpec
from services.rank.query_decoder import DecodedQuery

F32 = np.dtype("<f4")


class HeldEngine:
    """A stand-in for a backend: scores are the inputs; each run waits until the test lets it go."""

    def __init__(self) -> None:
        self.runs: list[list[float]] = []
        self.started = threading.Semaphore(0)
        self._go = threading.Semaphore(0)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        values = inputs["x"][:, 0].tolist()
        self.runs.append(values)
        self.started.release()
        assert self._go.acquire(timeout=30)
        if 666.0 in values:
            raise EngineError("poisoned")
        if 667.0 in values:
            raise ZeroDivisionError("nobody foresaw this")
        return [inputs["x"].copy() for _ in outputs]

    def release(self, runs: int = 1) -> None:
        self._go.release(runs)

    async def until_started(self) -> None:
        assert await asyncio.to_thread(self.started.acquire, timeout=30)


SPEC = ModelSpec(
    "m",
    "1",
    Path(),
    (InputSpec("x", F32, (1,)),),
    (OutputSpec("y", F32, (1,)),),
    "y",
    (),
    Sla(95, 0.1),
    1 << 20,
    whole=False,
)


def query(*values: float) -> DecodedQuery:
    x = np.array(values, dtype=F32).reshape(-1, 1)
    return DecodedQuery(len(values), (x,), 0, 0, None, ())


class Bench:
    """One dispatcher with one worker, and queries sent to it."""

    def __init__(self, dispatcher: Dispatcher, engine: HeldEngine) -> None:
        self.dispatcher = dispatcher
        self.engine = engine
        self._model = ServedModel(SPEC, engine)

    async def send(self, *values: float, time_left_s: float | None = None) -> asyncio.Task[Scored]:
        call = asyncio.create_task(self.dispatcher.score(self._model, query(*values), time_left_s))
        await asyncio.sleep(0)  # one turn of the loop: the query has arrived
        return call


@asynccontextmanager
async def bench(batch_size: int = 4, max_waiting: int = 100) -> AsyncIterator[Bench]:
    batcher = Batcher(1, POLICIES["adaptive"], max_waiting)
    batcher.set_plan("m/1", Plan(OperatingPoint(batch_size), sla_s=0.1))
    dispatcher = Dispatcher(batcher, 1)
    engine = HeldEngine()
    try:
        yield Bench(dispatcher, engine)
    finally:
        engine.release(1000)
        await dispatcher.close()


async def test_queries_that_wait_share_a_batch_and_get_their_own_scores() -> None:
    async with bench() as b:
        first = await b.send(1)
        await b.engine.until_started()
        others = [await b.send(2, 3), await b.send(4)]
        b.engine.release(2)
        assert (await first).outputs[0].tolist() == [[1]]
        assert [(await other).outputs[0].tolist() for other in others] == [[[2], [3]], [[4]]]
        assert b.engine.runs == [[1], [2, 3, 4]]


async def test_a_large_query_is_split_and_put_together_in_order() -> None:
    async with bench() as b:
        call = await b.send(*range(10))
        b.engine.release(3)
        scored = await call
        assert scored.outputs[0][:, 0].tolist() == list(range(10))
        assert scored.batches == 3
        assert [len(run) for run in b.engine.runs] == [4, 4, 2]


async def test_a_failing_query_fails_alone() -> None:
    async with bench() as b:
        first = await b.send(1)
        await b.engine.until_started()
        good, bad, also_good = await b.send(2), await b.send(666), await b.send(3)
        b.engine.release(5)  # the first, the shared batch, and each of the three alone
        assert (await first).outputs[0].tolist() == [[1]]
        assert (await good).outputs[0].tolist() == [[2]]
        assert (await also_good).outputs[0].tolist() == [[3]]
        with pytest.raises(InternalError, match="^the inference failed$"):
            await bad


async def test_a_worker_outlives_a_fault_that_nobody_foresaw(caplog: pytest.LogCaptureFixture) -> None:
    async with bench() as b:
        b.engine.release(2)
        with pytest.raises(InternalError, match="^the inference failed$"):
            await (await b.send(667))
        assert (await (await b.send(1))).outputs[0].tolist() == [[1]]
    assert "ZeroDivisionError: nobody foresaw this" in caplog.text


async def test_a_cancelled_query_is_not_run_and_leaves_no_one_hanging() -> None:
    async with bench() as b:
        first = await b.send(1)
        await b.engine.until_started()
        given_up, stays = await b.send(2), await b.send(3)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        b.engine.release(2)
        await first
        assert (await stays).outputs[0].tolist() == [[3]]
        assert b.engine.runs == [[1], [3]]
        await b.dispatcher.drained()


async def test_cancelling_a_running_query_leaves_its_batch_mates_their_answers() -> None:
    async with bench() as b:
        first = await b.send(1)
        await b.engine.until_started()
        mate, given_up = await b.send(2), await b.send(3)
        b.engine.release()
        await first
        await b.engine.until_started()
        given_up.cancel()
        b.engine.release()
        assert (await mate).outputs[0].tolist() == [[2]]


async def test_a_query_whose_deadline_passed_while_it_waited_is_not_run() -> None:
    async with bench() as b:
        first = await b.send(1)
        await b.engine.until_started()
        late = await b.send(2, time_left_s=0.0)
        b.engine.release()
        await first
        with pytest.raises(DeadlineExceededError, match="while the query was waiting"):
            await late
        assert b.engine.runs == [[1]]


async def test_a_full_queue_is_an_answer_and_not_a_delay() -> None:
    async with bench(max_waiting=3) as b:
        first = await b.send(1)
        await b.engine.until_started()
        fits, too_much = await b.send(2, 3, 4), await b.send(5)
        with pytest.raises(OverloadedError) as refused:
            await too_much
        assert refused.value.retry_after_s is not None
        b.engine.release(2)
        await first
        await fits


async def test_drained_waits_for_the_last_answer() -> None:
    async with bench() as b:
        call = await b.send(1)
        drained = asyncio.create_task(b.dispatcher.drained())
        await b.engine.until_started()
        assert not drained.done()
        assert b.dispatcher.in_flight == 1
        b.engine.release()
        await drained
        assert call.done() or await call
        assert b.dispatcher.in_flight == 0
