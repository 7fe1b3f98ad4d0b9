"""What holds in whatever order arrivals, ends, failures, cancellations and plan changes come."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from scheduler.batching import Batcher
from scheduler.plan import POLICIES, OperatingPoint, Plan, Policy
from scheduler.query import Batch, Complete, Drop, DropReason, Instruction, Offload, Query, Run

MODELS = ("first", "second", "whole")

plans = st.builds(
    Plan,
    point=st.builds(OperatingPoint, st.integers(1, 40), st.none() | st.integers(20, 60)),
    sla_s=st.sampled_from([0.05, 0.5]),
    fixed_s=st.sampled_from([0.0, 0.001]),
    per_candidate_s=st.sampled_from([0.0, 0.001]),
    smallest_cut=st.integers(1, 20),
    largest_batch=st.sampled_from([8, 1 << 30]),
)


class AnyInterleaving(RuleBasedStateMachine):
    """A dispatcher that does what it is told, while everything that can happen to it happens."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queries: list[Query] = []
        self.running: dict[int, Batch] = {}
        self.offloaded: list[Query] = []
        self.cancelled: set[int] = set()
        self.ended: dict[int, Instruction] = {}
        self.scored: dict[int, Counter[int]] = {}

    @initialize(
        workers=st.integers(1, 3),
        policy=st.sampled_from(sorted(POLICIES)),
        plans=st.tuples(plans, plans, plans),
    )
    def start(self, workers: int, policy: str, plans: tuple[Plan, Plan, Plan]) -> None:
        self.workers = workers
        self.batcher = Batcher(workers, POLICIES[policy], max_waiting=150)
        for model, plan in zip(MODELS, plans, strict=True):
            self.change_plan(model, plan)

    @rule(model=st.sampled_from(MODELS), plan=plans)
    def change_plan(self, model: str, plan: Plan) -> None:
        whole = Plan(plan.point, plan.sla_s, plan.fixed_s, plan.per_candidate_s, 1, 1 << 30, whole=True)
        self.batcher.set_plan(model, whole if model == "whole" else plan)

    @rule(
        model=st.sampled_from(MODELS),
        size=st.integers(1, 70),
        patience_s=st.sampled_from([math.inf, math.inf, 0.0, 0.02]),
    )
    def arrive(self, model: str, size: int, patience_s: float) -> None:
        query = Query(model, size, self.now, self.now + patience_s)
        self.queries.append(query)
        self.scored[id(query)] = Counter()
        self.obey(self.batcher.arrive(query, self.now))

    @rule(gap_s=st.sampled_from([0.001, 0.01, 0.05, 20.0]))
    def wait(self, gap_s: float) -> None:
        self.now += gap_s

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def end_batch(self, data: st.DataObject, fails: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.running)))
        batch = self.running.pop(worker)
        if fails:
            self.obey(self.batcher.fail(worker, self.now))
            return
        for query, start, stop in batch.slices:
            self.scored[id(query)].update(range(start, stop))
        self.obey(self.batcher.finish(worker, self.now))

    @precondition(lambda self: self.offloaded)
    @rule(data=st.data(), fails=st.booleans())
    def end_offload(self, data: st.DataObject, fails: bool) -> None:
        query = self.offloaded.pop(data.draw(st.integers(0, len(self.offloaded) - 1)))
        if fails:
            self.obey(self.batcher.offload_failed(query, self.now))
            return
        self.scored[id(query)].update(range(query.size))
        self.obey(self.batcher.offload_finished(query))

    @precondition(lambda self: self.queries)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        query = data.draw(st.sampled_from(self.queries))
        self.batcher.cancel(query)
        if id(query) not in self.ended:
            self.cancelled.add(id(query))

    def obey(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Run):
                self.check_batch(instruction)
            elif isinstance(instruction, Offload):
                self.offloaded.append(instruction.query)
            else:
                query = instruction.query
                assert id(query) not in self.cancelled
                assert id(query) not in self.ended
                self.ended[id(query)] = instruction
                if isinstance(instruction, Complete):
                    # Every candidate was in exactly one batch that succeeded.
                    assert self.scored[id(query)] == Counter(range(query.size))
                elif instruction.reason is DropReason.EXPIRED:
                    assert query.expires_s <= self.now

    def check_batch(self, run: Run) -> None:
        assert run.worker not in self.running
        batch = run.batch
        assert batch.size == sum(part.stop - part.start for part in batch.slices) > 0
        for query, start, stop in batch.slices:
            assert query.model == batch.model
            assert 0 <= start < stop <= query.size
            assert id(query) not in self.cancelled
            assert id(query) not in self.ended
            assert query.expires_s > self.now
            assert query.plan is not None
            if query.plan.whole:
                assert batch.size == query.size
            else:
                assert batch.size <= min(query.plan.point.batch_size, query.plan.largest_batch)
        self.running[run.worker] = batch

    @invariant()
    def no_worker_idles_while_work_waits(self) -> None:
        if not hasattr(self, "batcher"):
            return
        assert self.batcher.idle_workers == self.workers - len(self.running)
        waiting = [self.batcher.waiting(model) for model in MODELS]
        assert min(waiting) >= 0
        if self.batcher.idle_workers:
            assert not any(waiting)

    def teardown(self) -> None:
        while self.running or self.offloaded:
            for worker, batch in sorted(self.running.items()):
                del self.running[worker]
                for query, start, stop in batch.slices:
                    self.scored[id(query)].update(range(start, stop))
                self.obey(self.batcher.finish(worker, self.now))
            while self.offloaded:
                query = self.offloaded.pop()
                self.scored[id(query)].update(range(query.size))
                self.obey(self.batcher.offload_finished(query))
        for query in self.queries:
            assert (id(query) in self.ended) != (id(query) in self.cancelled)
        if hasattr(self, "batcher"):
            for model in MODELS:
                assert self.batcher.waiting(model) == 0
                self.batcher.remove(model)


def test_every_query_ends_once_and_every_candidate_is_scored_once_in_any_interleaving() -> None:
    run_state_machine_as_test(
        AnyInterleaving, settings=settings(max_examples=150, stateful_step_count=60, deadline=None)
    )


arrivals = st.lists(
    st.tuples(st.floats(0.0, 0.02), st.integers(1, 60), st.sampled_from([math.inf, 0.03, 0.2])),
    min_size=1,
    max_size=30,
)


def starts(
    policy: Policy, plan: Plan, arrivals: list[tuple[float, int, float]], workers: int
) -> tuple[list[Query], list[tuple[float, Query]]]:
    """Run to the end with batches taking what was predicted; return the queries and (time, query) of each slice."""
    batcher = Batcher(workers, policy)
    batcher.set_plan("m", plan)
    queries, started = [], []
    ends: list[tuple[float, int]] = []

    def obey(instructions: list[Instruction], now: float) -> None:
        for run in instructions:
            if isinstance(run, Run):
                started.extend((now, part.query) for part in run.batch.slices)
                ends.append((now + plan.run_s(run.batch.size), run.worker))

    now = 0.0
    for gap_s, size, patience_s in [*arrivals, (1e9, 0, 0.0)]:
        now += gap_s
        while ends and min(ends)[0] <= now:
            end = min(ends)
            ends.remove(end)
            obey(batcher.finish(end[1], end[0]), end[0])
        if size:
            queries.append(Query("m", size, now, now + patience_s))
            obey(batcher.arrive(queries[-1], now), now)
    return queries, started


@given(arrivals, st.integers(1, 3), st.integers(1, 64))
@settings(max_examples=150, deadline=None)
def test_nothing_that_arrives_later_than_overtaking_times_its_work_passes_a_query(
    arrivals: list[tuple[float, int, float]], workers: int, batch_size: int
) -> None:
    policy = POLICIES["adaptive"]
    assert policy.overtaking is not None
    plan = Plan(OperatingPoint(batch_size), sla_s=0.05, fixed_s=1e-4, per_candidate_s=1e-4)
    queries, started = starts(policy, plan, [(gap, size, math.inf) for gap, size, _ in arrivals], workers)
    waits_until = {id(q): max(t for t, other in started if other is q) for q in queries}
    for at_s, passing in started:
        for query in queries:
            if query.arrival_s <= at_s < waits_until[id(query)]:
                bound_s = policy.overtaking * plan.run_s(query.size)
                assert passing.arrival_s <= query.arrival_s + bound_s + 1e-9


@given(arrivals, st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_among_waiting_queries_of_one_size_the_earlier_due_begins_first(
    arrivals: list[tuple[float, int, float]], workers: int
) -> None:
    plan = Plan(OperatingPoint(16), sla_s=0.05, fixed_s=1e-3, per_candidate_s=1e-3)
    alike = [(gap, 10, patience) for gap, _, patience in arrivals]
    _, started = starts(POLICIES["adaptive"], plan, alike, workers)
    first: dict[int, tuple[float, Query]] = {}
    for at_s, query in started:
        first.setdefault(id(query), (at_s, query))
    order = list(first.values())
    for k, (at_s, query) in enumerate(order):
        for _, later in order[k + 1 :]:
            assert later.arrival_s >= at_s or query.due_s <= later.due_s + 1e-12 or later is query


@given(arrivals, st.integers(1, 3), st.sampled_from(["static", "paper"]))
@settings(max_examples=60, deadline=None)
def test_static_and_paper_begin_queries_in_the_order_of_arrival(
    arrivals: list[tuple[float, int, float]], workers: int, name: str
) -> None:
    plan = Plan(OperatingPoint(16), sla_s=0.05, fixed_s=1e-3, per_candidate_s=1e-3)
    queries, started = starts(POLICIES[name], plan, [(g, n, math.inf) for g, n, _ in arrivals], workers)
    order = list(dict.fromkeys(id(query) for _, query in started))
    assert order == [id(query) for query in queries]
    assert len(started) == sum(math.ceil(query.size / 16) for query in queries)


def test_the_machine_above_sees_drops() -> None:
    batcher = Batcher(1, POLICIES["adaptive"], max_waiting=150)
    batcher.set_plan("m", Plan(OperatingPoint(10), sla_s=1.0))
    batcher.arrive(Query("m", 100, 0.0), 0.0)
    refused = Query("m", 100, 0.0)
    assert batcher.arrive(refused, 0.0) == [Drop(refused, DropReason.QUEUE_FULL)]
