"""The Batcher: arrivals in, batches out.

A state machine without clock, threads or I/O. Every event carries its time; the answer is a list of
instructions. The live dispatcher and the simulator drive the very same object, so a race in scheduling is tested by
a plain function call.

Batches are formed when a worker frees, not when a query arrives: small queries coalesce and large ones split by one
rule, and no timer delays a lone query.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from scheduler.plan import Plan, Policy
from scheduler.query import Batch, Complete, Drop, DropReason, Instruction, Offload, Query, Run, Slice

TRAFFIC_MEMORY_S = 10.0
"""A model counts as being in traffic for so long after its last arrival."""

_RECHECK_TRAFFIC_S = 1.0
_FEW = 64
"""So many queries say how their sizes spread."""

_FRESH = 1 / 512
"""The weight of the latest size in the lane's means."""

_MOST_DEAD = 64
"""A lane is swept when more queries than this, and more than half of those it holds, were given up."""


class _Lane:
    """The waiting queries of one model, how much of the workers the model has had, and how its sizes spread."""

    __slots__ = (
        "arrived",
        "batch_cap",
        "dead",
        "heap",
        "last_arrival_s",
        "mean",
        "model",
        "plan",
        "square",
        "used_s",
        "waiting",
    )

    def __init__(self, model: str, plan: Plan) -> None:
        self.model = model
        self.plan = plan
        self.heap: list[tuple[float, int, Query]] = []
        self.waiting = 0  # candidates that no worker has been given
        self.dead = 0  # queries in the heap that were given up
        self.used_s = 0.0  # virtual time: worker seconds handed out, see Batcher._choose_lane
        self.last_arrival_s = -math.inf
        self.batch_cap = plan.largest_batch
        self.arrived = 0
        self.mean = self.square = 0.0  # of the sizes, and of their squares

    def add_size(self, size: int) -> None:
        """Note the size of a query that arrived."""
        self.arrived += 1
        share = max(_FRESH, 1 / self.arrived)
        self.mean += share * (size - self.mean)
        self.square += share * (size * size - self.square)

    @property
    def spread(self) -> float:
        """The sizes' standard deviation over their mean, at most 1; 1 while little is known.

        It scales overtaking: serving short ones first buys nothing where all are about as long, and only delays some.
        """
        if self.arrived < _FEW:
            return 1.0
        return min(1.0, math.sqrt(max(0.0, self.square / (self.mean * self.mean) - 1)))


class Batcher:
    """Forms batches for a fixed number of workers that all models share.

    ``max_waiting``: per model, candidates that may wait; a query beyond them is answered with Drop(QUEUE_FULL).
    Models are added with :meth:`set_plan`, which also changes the plan of every query that has not begun; one whose
    first batch has started keeps the plan that it started with.
    """

    def __init__(self, workers: int, policy: Policy, max_waiting: int = 1 << 20) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self.policy = policy
        self.max_waiting = max_waiting
        self._lanes: dict[str, _Lane] = {}
        self._backlogged: dict[str, _Lane] = {}
        self._running: list[Batch | None] = [None] * workers
        self._idle = list(range(workers - 1, -1, -1))
        self._alone: deque[Slice] = deque()  # slices of failed shared batches, each to be run by itself
        self._sequence = 0
        self._fair_s = 0.0  # virtual time of the model furthest behind its share
        self._recheck_traffic_s = -math.inf

    # ---- what is asked of it ----

    def plan(self, model: str) -> Plan:
        """Return the plan that the next query of this model gets; KeyError for an unknown model."""
        return self._lanes[model].plan

    def waiting(self, model: str) -> int:
        """Return how many candidates of this model wait for a worker; KeyError for an unknown model."""
        retried = sum(
            part.stop - part.start
            for part in self._alone
            if part.query.model == model and not part.query.dropped
        )
        return self._lanes[model].waiting + retried

    def cpu_seconds(self, query: Query, now: float, *, others: bool = True) -> float:
        """Predict how long the workers would take to have scored a query that joined the queue now.

        All that waits is taken to go first, so this errs on the long side; without ``others`` only what waits of its
        own model, since late work of another yields. The query must have its plan.
        """
        plan = query.plan
        assert plan is not None
        ahead_s = 0.0
        for batch in self._running:
            if batch is not None:
                ahead_s += max(0.0, batch.started_s + batch.charged_s - now)
        for lane in self._backlogged.values():
            if not others and lane.model != query.model:
                continue
            largest = max(1, min(lane.plan.point.batch_size, lane.batch_cap))
            ahead_s += lane.plan.fixed_s * -(-lane.waiting // largest)
            ahead_s += lane.plan.per_candidate_s * lane.waiting
        workers = len(self._running)
        if plan.whole:
            return ahead_s / workers + plan.run_s(query.size)
        largest = min(plan.point.batch_size, plan.largest_batch)
        if self.policy.cut:
            largest = min(largest, max(-(-query.size // workers), plan.smallest_cut))
        rounds = -(-query.size // (largest * workers))
        return ahead_s / workers + rounds * plan.run_s(min(largest, query.size))

    @property
    def idle_workers(self) -> int:
        """How many workers have nothing to do."""
        return len(self._idle)

    # ---- events ----

    def set_plan(self, model: str, plan: Plan) -> None:
        """Add a model, or change what holds for those of its queries that have not begun."""
        lane = self._lanes.get(model)
        if lane is None:
            self._lanes[model] = _Lane(model, plan)
        else:
            lane.plan = plan
            self._replan(lane)
        self._recheck_traffic_s = -math.inf

    def remove(self, model: str) -> None:
        """Forget a model; KeyError when unknown, ValueError while something of it waits for a worker or runs.

        A query of it that the accelerator still has may finish; if it fails there, it is dropped.
        """
        if self.waiting(model):
            raise ValueError(f"{model} still has waiting queries")
        if any(batch is not None and batch.model == model for batch in self._running):
            raise ValueError(f"{model} still has running batches")
        del self._lanes[model]
        self._recheck_traffic_s = -math.inf

    def arrive(self, query: Query, now: float) -> list[Instruction]:
        """Take a new query in; KeyError for an unknown model, ValueError for a query without candidates."""
        lane = self._lanes[query.model]
        if query.size < 1:
            raise ValueError(f"a query has at least 1 candidate, not {query.size}")
        plan = query.plan = lane.plan
        due_s = query.arrival_s + plan.sla_s
        query.due_s = query.expires_s if query.expires_s < due_s else due_s
        if now - lane.last_arrival_s > TRAFFIC_MEMORY_S:
            self._recheck_traffic_s = -math.inf
        lane.last_arrival_s = now
        lane.add_size(query.size)
        if query.expires_s <= now:
            query.dropped = True
            return [Drop(query, DropReason.EXPIRED)]
        threshold = plan.point.offload_from
        if threshold is not None and query.size >= threshold:
            query.offloaded = True
            query.started_s = now
            return [Offload(query)]
        if lane.waiting + query.size > self.max_waiting and lane.waiting:
            query.dropped = True
            return [Drop(query, DropReason.QUEUE_FULL)]
        self._enqueue(lane, query)
        return self._feed_idle(now, []) if self._idle else []

    def finish(self, worker: int, now: float) -> list[Instruction]:
        """Note that the worker's batch has been scored, and give the worker its next one."""
        instructions: list[Instruction] = []
        for query, start, stop in self._release(worker, now).slices:
            query.scored += stop - start
            if query.scored == query.size and not query.dropped:
                instructions.append(Complete(query))
        if self._backlogged or self._alone:
            self._feed_idle(now, instructions)
        return instructions

    def fail(self, worker: int, now: float) -> list[Instruction]:
        """Note that the worker's batch failed: a lone query is dropped, batch-mates are each tried by themselves."""
        instructions: list[Instruction] = []
        batch = self._release(worker, now)
        if len(batch.slices) > 1:
            self._alone.extend(batch.slices)
        else:
            query = batch.slices[0].query
            if not query.dropped:
                self._forget(query)
                instructions.append(Drop(query, DropReason.FAILED))
        self._feed_idle(now, instructions)
        return instructions

    def offload_finished(self, query: Query) -> list[Instruction]:
        """Note that the accelerator has scored the query."""
        if query.dropped:
            return []
        query.scored = query.size
        query.batches += 1
        return [Complete(query)]

    def offload_failed(self, query: Query, now: float, *, tried: bool = True) -> list[Instruction]:
        """Note that the accelerator gave no answer: the CPU workers take the query over.

        ``tried``: whether it was sent the query at all. Not bounded by ``max_waiting``: the query was let in when it
        arrived, and whoever sends bounds what is on the way.
        """
        query.offloaded = False
        if query.dropped:
            return []
        if tried:
            query.tried_s = query.started_s
        query.started_s = math.nan
        lane = self._lanes.get(query.model)
        if lane is None or query.expires_s <= now:
            query.dropped = True
            return [Drop(query, DropReason.FAILED if lane is None else DropReason.EXPIRED)]
        query.plan = lane.plan
        self._enqueue(lane, query)
        return self._feed_idle(now, []) if self._idle else []

    def cancel(self, query: Query) -> None:
        """Give a query up: what is not running will never run. Harmless for one that has ended or never arrived."""
        if query.plan is not None and not query.dropped and query.scored < query.size:
            self._forget(query)

    # ---- forming batches ----

    def _enqueue(self, lane: _Lane, query: Query) -> None:
        if not lane.waiting:
            # A model that comes back does not bring the share it left unused.
            lane.used_s = max(lane.used_s, self._fair_s)
            self._backlogged[lane.model] = lane
        lane.waiting += query.size
        query.overtaking = (self.policy.overtaking or 0.0) * lane.spread
        self._sequence += 1
        heapq.heappush(lane.heap, (self._key(query), self._sequence, query))

    def _replan(self, lane: _Lane) -> None:
        """Give the lane's plan to every query that has not begun, and order them by what it predicts."""
        waiting = [(sequence, query) for _, sequence, query in lane.heap if not query.dropped]
        for _, query in waiting:
            if not query.handed:
                query.plan = lane.plan
        lane.heap[:] = [(self._key(query), sequence, query) for sequence, query in waiting]
        heapq.heapify(lane.heap)
        lane.dead = 0

    def _key(self, query: Query) -> float:
        if self.policy.overtaking is None:
            return query.arrival_s
        plan = query.plan
        assert plan is not None
        remaining = query.size - query.handed
        return query.due_s + query.overtaking * (plan.fixed_s + plan.per_candidate_s * remaining)

    def _forget(self, query: Query) -> None:
        query.dropped = True
        remaining = query.size - query.handed
        if query.offloaded or not remaining:
            return  # it is in no heap
        lane = self._lanes[query.model]
        lane.waiting -= remaining
        lane.dead += 1
        if not lane.waiting:
            self._retire(lane)
        elif lane.dead > _MOST_DEAD and 2 * lane.dead > len(lane.heap):
            lane.heap[:] = [entry for entry in lane.heap if not entry[2].dropped]
            heapq.heapify(lane.heap)
            lane.dead = 0

    def _retire(self, lane: _Lane) -> None:
        """Nothing of the lane waits any more: what its heap still holds was given up."""
        lane.heap.clear()
        lane.dead = 0
        self._backlogged.pop(lane.model, None)

    def _release(self, worker: int, now: float) -> Batch:
        batch = self._running[worker]
        if batch is None:
            raise ValueError(f"worker {worker} runs nothing")
        self._running[worker] = None
        self._idle.append(worker)
        lane = self._lanes.get(batch.model)
        if lane is not None:
            # The share counts what a batch took: it was debited what it was predicted to take.
            lane.used_s += now - batch.started_s - batch.charged_s
        return batch

    def _feed_idle(self, now: float, instructions: list[Instruction]) -> list[Instruction]:
        """Give the idle workers batches; what comes of it is added to the instructions."""
        while self._idle:
            batch = self._next_batch(now, instructions)
            if batch is None:
                break
            worker = self._idle.pop()
            self._running[worker] = batch
            instructions.append(Run(worker, batch))
        return instructions

    def _next_batch(self, now: float, instructions: list[Instruction]) -> Batch | None:
        while self._alone:
            part = self._alone.popleft()
            query = part.query
            if query.expires_s <= now and not query.dropped:
                self._forget(query)
                instructions.append(Drop(query, DropReason.EXPIRED))
            if not query.dropped:
                query.batches += 1
                return self._charged(self._lanes[query.model], [part], part.stop - part.start, now)
        while self._backlogged:
            if len(self._backlogged) == 1:
                (lane,) = self._backlogged.values()
                self._fair_s = max(self._fair_s, lane.used_s)
            else:
                lane = self._choose_lane(now, instructions)
            slices, size = self._fill(lane, now, instructions)
            if size:
                return self._charged(lane, slices, size, now)
        return None

    def _charged(self, lane: _Lane, slices: list[Slice], size: int, now: float) -> Batch:
        charged_s = lane.plan.run_s(size)
        lane.used_s += charged_s
        return Batch(lane.model, slices, size, now, charged_s)

    def _fill(self, lane: _Lane, now: float, instructions: list[Instruction]) -> tuple[list[Slice], int]:
        """Take slices off the lane, first in order first, up to what the first query's batch may hold."""
        slices: list[Slice] = []
        size = room = 0
        plan: Plan | None = None
        shares = self.policy.coalesce and not lane.plan.whole
        heap = lane.heap
        while heap:
            query: Query | None = heap[0][2]
            assert query is not None
            if query.dropped or query.expires_s <= now:
                query = self._head(lane, now, instructions)
                if query is None:
                    break
            if plan is None:
                room = self._room(lane, query, now)
            elif query.plan is not plan:
                # A batch keeps within the limit of every query in it, also while the plan changes.
                room = min(room, self._limit(lane, query, now) - size)
            plan = query.plan
            if room <= 0:
                break
            start = query.handed
            stop = self._hand(lane, query, room, now)
            slices.append(Slice(query, start, stop))
            size += stop - start
            room -= stop - start
            if room <= 0 or not shares:
                break
        return slices, size

    def _hand(self, lane: _Lane, query: Query, room: int, now: float) -> int:
        """Take up to ``room`` candidates of the lane's first query; return where they stop."""
        start, size = query.handed, query.size
        stop = start + room
        stop = min(stop, size)
        query.handed = stop
        query.batches += 1
        if start == 0:
            query.started_s = now
        lane.waiting -= stop - start
        if stop == size:
            heapq.heappop(lane.heap)
            if not lane.waiting:
                self._retire(lane)
        elif self.policy.overtaking is not None:
            # Less remains, so the key falls: the root stays the root.
            lane.heap[0] = (self._key(query), lane.heap[0][1], query)
        return stop

    def _head(self, lane: _Lane, now: float, instructions: list[Instruction]) -> Query | None:
        """Return the first live query of the lane; drop the expired ones met on the way."""
        heap = lane.heap
        while heap:
            query = heap[0][2]
            if query.dropped:
                heapq.heappop(heap)
                lane.dead -= 1
            elif query.expires_s <= now:
                self._forget(query)
                instructions.append(Drop(query, DropReason.EXPIRED))
            else:
                return query
        return None

    def _room(self, lane: _Lane, query: Query, now: float) -> int:
        """Return the most candidates of a batch that begins with this query, others' included."""
        limit = self._limit(lane, query, now)
        plan = query.plan
        assert plan is not None
        if plan.whole:
            return limit
        remaining = query.size - query.handed
        if self.policy.cut:
            chunk = self._chunk(lane, query, remaining, limit)
            limit = min(limit, chunk)
        if self.policy.coalesce:
            most = remaining if remaining > plan.merge_up_to else plan.merge_up_to
            limit = min(limit, most)
        return limit

    def _limit(self, lane: _Lane, query: Query, now: float) -> int:
        """Return the most candidates of a batch that this query is in."""
        plan = query.plan
        assert plan is not None
        if plan.whole:
            return query.size
        if now >= self._recheck_traffic_s:
            self._cap_batches(now)
        return plan.most if plan.most < lane.batch_cap else lane.batch_cap

    def _chunk(self, lane: _Lane, query: Query, remaining: int, limit: int) -> int:
        """Return the most candidates that one worker takes, so that all workers finish together.

        Idle workers share a query evenly. One worker that frees takes its share of all that waits, as in guided
        self-scheduling (Polychronopoulos and Kuck, 1987): large batches while the queue is long, smaller ones as
        it empties, so a batch size set too large costs little; but none whose fixed cost weighs much.
        """
        plan = query.plan
        assert plan is not None
        idle = len(self._idle)
        if idle > 1:
            rounds = -(-remaining // (limit * idle))
            query.cut = max(-(-remaining // (rounds * idle)), min(plan.smallest_cut, limit))
            return query.cut
        return query.cut or max(-(-lane.waiting // len(self._running)), plan.least_taken)

    def _cap_batches(self, now: float) -> None:
        """With several models in traffic no batch may run longer than half the tightest SLA among them."""
        self._recheck_traffic_s = now + _RECHECK_TRAFFIC_S
        busy = [
            lane
            for lane in self._lanes.values()
            if lane.waiting or now - lane.last_arrival_s <= TRAFFIC_MEMORY_S
        ]
        tightest_s = min((lane.plan.sla_s for lane in busy), default=math.inf)
        for lane in busy:
            plan = lane.plan
            lane.batch_cap = plan.largest_batch
            if len(busy) > 1 and plan.per_candidate_s > 0:
                fits = int((tightest_s / 2 - plan.fixed_s) / plan.per_candidate_s)
                lane.batch_cap = max(1, min(plan.largest_batch, fits))

    def _choose_lane(self, now: float, instructions: list[Instruction]) -> _Lane:
        """Choose among models: least slack first, except that late work beyond its model's fair share yields.

        The share is counted as virtual time: predicted worker seconds handed out. A model flooded beyond its share
        is late for ever; without this rule its lateness would win every comparison and break the others.
        """
        lanes = list(self._backlogged.values())
        fair_s = min(lane.used_s for lane in lanes)
        self._fair_s = max(self._fair_s, fair_s)
        chosen, best = lanes[0], (True, math.inf)
        for lane in lanes:
            query = self._head(lane, now, instructions)
            if query is None:
                continue
            if self.policy.overtaking is None:
                rank = (False, query.arrival_s)
            else:
                assert query.plan is not None
                slack_s = query.due_s - now - query.plan.run_s(query.size - query.handed)
                rank = (slack_s < 0 and lane.used_s > fair_s, slack_s)
            if rank < best:
                chosen, best = lane, rank
        return chosen
