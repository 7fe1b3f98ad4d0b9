"""Offloading to a server that does as it is told: what is sent, what comes back to the CPU, and who learns of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest

from deeprecsys.errors import OverloadedError
from scheduler.batching import Batcher
from scheduler.breaker import Patience
from scheduler.plan import POLICIES, OperatingPoint, Plan
from scheduler.query import Batch, Query
from services.rank.catalogue import ServedModel
from services.rank.dispatcher import Dispatcher, Scored
from services.rank.engine import EngineError
from services.rank.offloading import Offloader
from services.rank.triton_admission import take_sample
from services.rank.triton_link import Bounds
from tests.services.rank.fake_triton import FakeTriton, fake_triton
from tests.services.rank.test_dispatcher import SPEC as DECLARED
from tests.services.rank.test_dispatcher import HeldEngine, query

SPEC = replace(DECLARED, largest_batch=1 << 10)
HASTY = Patience(strikes=2, silent_s=0.0, first_wait_s=0.02, longest_wait_s=0.02)
UNAVAILABLE, INTERNAL = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL
LIMIT_S = 10.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - a test that looks from outside
            await asyncio.sleep(0.005)


class EchoEngine:
    """What the fake server computes: the inputs."""

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        return [inputs["x"]]


class Rig:
    """One dispatcher with one CPU worker, and an offloader of queries from two candidates on."""

    def __init__(self, dispatcher: Dispatcher, offloader: Offloader, engine: HeldEngine) -> None:
        self.dispatcher = dispatcher
        self.offloader = offloader
        self.engine = engine
        self.told: list[bool] = []
        self._model = ServedModel(SPEC, engine)

    async def send(self, *values: float, time_left_s: float | None = 5.0) -> asyncio.Task[Scored]:
        call = asyncio.create_task(self.dispatcher.score(self._model, query(*values), time_left_s))
        await asyncio.sleep(0)
        return call

    async def ask(self, *values: float, time_left_s: float | None = 5.0) -> Scored:
        return await (await self.send(*values, time_left_s=time_left_s))


class Seen:
    """An observer that keeps the queries that were answered."""

    def __init__(self) -> None:
        self.queries: list[Query] = []

    def observe_arrival(self, query: Query, now: float) -> None: ...

    def observe_batch(self, batch: Batch, run_s: float) -> None: ...

    def observe(self, query: Query, now: float) -> None:
        self.queries.append(query)


@asynccontextmanager
async def rig(
    *fakes: FakeTriton,
    ready: int | None = None,
    bounds: Bounds | None = None,
    per_candidate_s: float = 1e-4,
    observers: Sequence[Seen] = (),
) -> AsyncIterator[Rig]:
    batcher = Batcher(1, POLICIES["adaptive"], 1000)
    plan = Plan(OperatingPoint(4, offload_from=2), sla_s=0.2, fixed_s=1e-4, per_candidate_s=per_candidate_s)
    batcher.set_plan(SPEC.key, plan)
    told: list[bool] = []
    offloader = Offloader(
        [f.address for f in fakes], lambda _, available: told.append(available), bounds, HASTY
    )
    engine = HeldEngine()
    dispatcher = Dispatcher(batcher, 1, observers=observers, offloader=offloader)
    made = Rig(dispatcher, offloader, engine)
    made.told = told
    offloader.add(ServedModel(SPEC, EchoEngine()))
    wanted = len(fakes) if ready is None else ready
    try:
        await until(lambda: sum(state.ready for state in offloader.states(SPEC.key)) == wanted)
        yield made
    finally:
        engine.release(1000)
        await offloader.close()
        await dispatcher.close()


@pytest.fixture
async def fake() -> AsyncIterator[FakeTriton]:
    async with fake_triton() as made:
        yield made


async def test_large_queries_are_offloaded_and_small_ones_are_not(fake) -> None:
    async with rig(fake) as r:
        r.engine.release()
        assert (await r.ask(1)).backend == "cpu"
        scored = await r.ask(1, 2)
        assert (scored.backend, scored.batches) == ("triton", 1)
        assert scored.outputs[0].tolist() == [[1], [2]]
        assert r.told == [True]


async def test_a_query_beyond_what_the_server_takes_is_split_evenly(fake) -> None:
    async with rig(fake) as r:
        scored = await r.ask(*range(1, 18))
        assert sorted(fake.sizes) == [5, 6, 6]
        assert (scored.batches, scored.outputs[0][:, 0].tolist()) == (3, list(range(1, 18)))


async def test_a_server_that_dies_is_left_at_once_and_found_again(fake) -> None:
    async with rig(fake) as r:
        fake.down = (UNAVAILABLE, "Socket closed")
        r.engine.release(2)
        assert (await r.ask(1, 2)).backend == "cpu"
        assert (await r.ask(3, 4)).backend == "cpu"
        assert r.told == [True, False]
        (state,) = r.offloader.states(SPEC.key)
        assert "Socket closed" in state.reason
        fake.down = None
        await until(lambda: r.told == [True, False, True])
        assert (await r.ask(1, 2)).backend == "triton"
        assert len(fake.sizes) == 1  # not one query was sent to the dead server but the first


async def test_a_server_that_knows_no_shared_memory_is_sent_messages(fake, caplog) -> None:
    async with rig(fake, bounds=Bounds(shared_bytes=4096)) as r:
        assert (await r.ask(1, 2)).backend == "triton"
    assert "tensors travel in messages" in caplog.text


async def test_a_server_that_scores_a_sample_otherwise_is_refused(fake) -> None:
    fake.bias = 0.2
    async with rig(fake, ready=0) as r:
        await until(lambda: "weights" in r.offloader.states(SPEC.key)[0].reason)
        assert r.told == []


def test_a_sample_that_the_cpu_cannot_score_compares_with_nothing() -> None:
    class Broken(EchoEngine):
        def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
            return [inputs["x"] * np.float32(np.nan)]

    with pytest.raises(EngineError, match="not finite"):
        take_sample(ServedModel(SPEC, Broken()))


async def test_an_outage_is_not_learnt_as_what_an_accelerator_takes(fake) -> None:
    """Two servers may be there: what one that died left behind says nothing of the other."""
    seen = Seen()
    async with rig(fake, observers=[seen]) as r:
        fake.down = (UNAVAILABLE, "Socket closed")
        r.engine.release(2)
        assert (await r.ask(1, 2)).backend == "cpu"
    (answered,) = seen.queries
    assert math.isnan(answered.tried_s)


async def test_a_server_that_rounds_more_coarsely_is_taken(fake) -> None:
    fake.bias = 0.02
    async with rig(fake) as r:
        assert (await r.ask(1, 2)).backend == "triton"


async def test_a_lost_connection_is_noticed_while_nothing_is_on_the_way(fake) -> None:
    async with rig(fake) as r:
        await fake.server.stop(0)
        await until(lambda: r.told == [True, False])
        assert r.offloader.states(SPEC.key)[0].reason


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' has no available versions"),
        (INTERNAL, "Stub process 'm_0_0' is not healthy."),
        (UNAVAILABLE, "Server is stopping"),
    ],
)
async def test_signs_of_a_server_that_goes_are_not_the_clients_mistake(fake, code, details) -> None:
    async with rig(fake) as r:
        fake.fault = (code, details)
        r.engine.release()
        assert (await r.ask(1, 2)).backend == "cpu"
        assert r.told[:2] == [True, False]


@pytest.mark.parametrize("details", ["Exceeds maximum queue size", "Request timeout expired"])
async def test_a_busy_server_is_not_away(fake, details) -> None:
    async with rig(fake) as r:
        fake.fault = (UNAVAILABLE, f"[request id: <id_unknown>] {details}")
        r.engine.release(5)
        for _ in range(5):
            assert (await r.ask(1, 2)).backend == "cpu"
        assert r.told == [True]


async def test_one_query_that_fails_there_is_tried_here_and_held_against_nobody(fake) -> None:
    async with rig(fake) as r:
        r.engine.release(3)
        for _ in range(3):
            fake.fault = (INTERNAL, "onnx runtime error")
            assert (await r.ask(1, 2)).backend == "cpu"
            fake.fault = None
            assert (await r.ask(1, 2)).backend == "triton"
        assert r.told == [True]


async def test_when_time_runs_out_the_call_is_cancelled_and_the_cpu_answers_in_time(fake) -> None:
    async with rig(fake) as r:
        fake.held.clear()
        r.engine.release()
        started_s = time.monotonic()
        assert (await r.ask(1, 2, time_left_s=0.4)).backend == "cpu"
        assert time.monotonic() - started_s < 0.4
        await until(lambda: fake.cancelled == 1)


async def test_without_time_for_both_a_query_that_the_cpu_answers_in_time_is_not_sent(fake) -> None:
    async with rig(fake, per_candidate_s=0.1) as r:
        r.engine.release()
        assert (await r.ask(1, 2, 3, time_left_s=0.45)).backend == "cpu"
        assert not fake.sizes


async def test_a_query_that_the_cpu_would_be_late_with_is_sent(fake) -> None:
    async with rig(fake, per_candidate_s=10.0) as r:
        assert (await r.ask(1, 2, 3, time_left_s=5.0)).backend == "triton"
        assert (await r.ask(1, 2, 3, time_left_s=None)).backend == "triton"  # the target is 0.2 s


async def test_who_learns_from_queries_is_told_which_the_accelerator_failed_on(fake) -> None:
    seen = Seen()
    async with rig(fake, bounds=Bounds(queries=1), observers=[seen]) as r:
        r.engine.release(2)
        fake.fault = (INTERNAL, "onnx runtime error")
        await r.ask(1, 2)
        fake.fault = None
        fake.held.clear()
        there = await r.send(1, 2)
        await r.ask(1, 2)  # beyond our bound: it was never sent
        fake.held.set()
        await there
    sent = [query.offloaded or query.tried_s == query.arrival_s for query in seen.queries]
    assert [query.offloaded for query in seen.queries] == [False, False, True]
    assert sent == [True, False, True]


async def test_a_silent_server_loses_all_that_it_has_not_only_what_ran_out_of_time(fake) -> None:
    async with rig(fake) as r:
        fake.held.clear()
        hasty = [await r.send(1, k, time_left_s=0.3) for k in (2, 3)]
        patient = [await r.send(1, k, time_left_s=60) for k in (4, 5)]
        r.engine.release(10)
        scored = await asyncio.gather(*hasty, *patient)
        assert [s.backend for s in scored] == ["cpu"] * 4
        assert [s.outputs[0][1, 0] for s in scored] == [2, 3, 4, 5]
        assert r.told[:2] == [True, False]


async def test_a_server_that_hangs_loses_queries_that_have_all_the_time_in_the_world(fake) -> None:
    async with rig(fake) as r:
        fake.held.clear()
        r.engine.release(2)
        started_s = time.monotonic()
        scored = await asyncio.gather(r.ask(1, 2, time_left_s=600), r.ask(3, 4, time_left_s=600))
        assert [s.backend for s in scored] == ["cpu"] * 2
        assert 1.0 <= time.monotonic() - started_s < 3.0
        assert r.told[:2] == [True, False]


async def test_a_query_that_its_client_gives_up_is_cancelled_there_too(fake) -> None:
    async with rig(fake) as r:
        fake.held.clear()
        call = await r.send(1, 2)
        await until(lambda: fake.sizes == [2])
        call.cancel()
        await asyncio.wait([call])
        await until(lambda: fake.cancelled == 1)
        await r.dispatcher.drained()
        assert r.told == [True]


async def test_where_neither_side_can_answer_in_time_the_query_is_refused_early(fake) -> None:
    async with rig(fake, per_candidate_s=0.05) as r:
        running = await r.send(1, time_left_s=None)
        await r.engine.until_started()
        fake.held.clear()
        call = await r.send(1, 2, 3, 4, time_left_s=1.0)  # 0.2 s here, so it has time for an attempt
        await until(lambda: fake.sizes == [4])
        behind = [await r.send(k, time_left_s=None) for k in range(1, 40)]  # meanwhile the queue grows by 2 s
        fake.fault = (UNAVAILABLE, "Exceeds maximum queue size")
        fake.held.set()
        with pytest.raises(OverloadedError, match="too busy to answer in time") as refused:
            await call
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s > 1
        r.engine.release(1000)
        await asyncio.gather(running, *behind)


async def test_our_bounds_on_what_is_on_the_way_send_the_rest_to_the_cpu(fake) -> None:
    async with rig(fake, bounds=Bounds(queries=3, tensor_bytes=40)) as r:
        fake.held.clear()
        there = [await r.send(1, 2), await r.send(3, 4, 5, 6, 7, 8)]  # 8 and 24 bytes
        r.engine.release(2)
        assert (await r.ask(1, 2, 3)).backend == "cpu"  # 12 more are too much
        there.append(await r.send(1, 2))
        assert (await r.ask(1, 2)).backend == "cpu"  # a fourth query
        fake.held.set()
        assert [s.backend for s in await asyncio.gather(*there)] == ["triton"] * 3


async def test_the_server_with_the_least_candidates_on_the_way_gets_the_next(fake) -> None:
    async with fake_triton() as other, rig(fake, other) as r:
        fake.held.clear()
        other.held.clear()
        calls = [await r.send(*[1.0] * size) for size in (8, 2, 3, 2)]
        await until(lambda: len(fake.sizes) + len(other.sizes) == 4)
        assert sorted([sorted(fake.sizes), sorted(other.sizes)]) == [[2, 2, 3], [8]]
        fake.held.set()
        other.held.set()
        await asyncio.gather(*calls)


async def test_the_last_server_that_goes_is_what_counts(fake) -> None:
    async with fake_triton() as other, rig(fake, other) as r:
        r.engine.release(10)
        fake.down = (UNAVAILABLE, "gone")
        answers = [await r.ask(1, 2) for _ in range(4)]
        assert [s.backend for s in answers].count("cpu") <= 1
        assert r.told == [True]
        other.down = (UNAVAILABLE, "gone")
        assert (await r.ask(1, 2)).backend == "cpu"
        assert r.told == [True, False]


async def test_a_model_that_is_not_loaded_there_is_loaded(fake) -> None:
    fake.loaded = False
    async with rig(fake) as r:
        assert fake.loads == 1
        assert (await r.ask(1, 2)).backend == "triton"


async def test_a_model_that_differs_there_is_refused_with_what_differs(fake, caplog) -> None:
    fake.shape = [-1, 7]
    async with rig(fake, ready=0) as r:
        await until(lambda: "accelerator refused" in caplog.text)
        (state,) = r.offloader.states(SPEC.key)
        assert (state.endpoint, state.ready) == (fake.address, False)
        assert state.reason == 'input "x" is [-1, 7] there, [-1, 1] here'
        r.engine.release()
        assert (await r.ask(1, 2)).backend == "cpu"
        assert r.told == []
