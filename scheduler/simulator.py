"""One simulated node: the very Batcher and Controller of the live server, driven by a heap of events.

Time is a number. Events at one instant keep the order in which they were made, so a run is the same from the same
seed, and the schedule of queries is drawn before (``workload.draw_schedule``), the same for every policy compared.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scheduler.arrivals import POISSON, ArrivalLaw
from scheduler.attempt import attempt_s, is_hopeless
from scheduler.batching import Batcher
from scheduler.first_plan import untuned_plan
from scheduler.latency import LatencyProfile
from scheduler.measure import Measure, Measurement, Sla, summarise
from scheduler.plan import OperatingPoint, Plan, Policy
from scheduler.query import Batch, Complete, Instruction, Offload, Query, Run
from scheduler.service_law import ServiceLaw, measured
from scheduler.sizes import SizeLaw
from scheduler.workload import draw_schedule

F64Array = NDArray[np.float64]

_DEVICE, _TIME_OUT = -1, -2
"""Stand in an event where else the number of a worker does: an inference of the accelerator, an attempt's end."""


@dataclass(frozen=True)
class Node:
    """The simulated machine.

    ``cpu`` and ``accelerator``: a service law for each model; a model that the accelerator lacks must not be
    offloaded. ``accelerator_slots``: whole queries that the accelerator takes at once. ``front_end_s``: what each
    query costs the one thread before the batcher, which serves one query after the other.
    """

    cores: int
    cpu: Mapping[str, ServiceLaw]
    accelerator: Mapping[str, ServiceLaw] = field(default_factory=dict)
    accelerator_slots: int = 1
    front_end_s: float = 0.0


class Decided(Protocol):
    """What a decision must tell the simulator: from now on this plan holds for the model."""

    @property
    def model(self) -> str:
        """The model."""

    @property
    def plan(self) -> Plan:
        """Its new plan."""


class Steering(Protocol):
    """What steers a run: the Controller satisfies it."""

    window_s: float

    def observe_arrival(self, query: Query, now: float) -> None:
        """Note a query."""

    def observe_batch(self, batch: Batch, run_s: float) -> None:
        """Note that a batch has run for these seconds."""

    def observe(self, query: Query, now: float) -> None:
        """Note that a query is complete."""

    def decide(self, now: float) -> Sequence[Decided]:
        """Return what changes; asked once a window."""


@dataclass(frozen=True, eq=False)
class Simulated:
    """What a run showed.

    latency_s: float64 [Q] seconds from the arrival, infinite for queries without an answer. offloaded: bool [Q], those
    that the accelerator answered.
    batches: how many inferences the cores ran. busy_s: core seconds they took, device_s: those of the accelerator's
    slots, both up to the time that the run was told to count until. decisions: (seconds, decision).
    """

    latency_s: F64Array
    offloaded: NDArray[np.bool_]
    batches: int
    busy_s: float
    device_s: float
    decisions: tuple[tuple[float, Any], ...]


def simulate(
    node: Node,
    policy: Policy,
    plans: Mapping[str, Plan],
    arrival_s: F64Array,
    size: NDArray[np.integer[Any]],
    model: str | Sequence[str],
    *,
    seed: int | Sequence[int] = 0,
    deadline_s: F64Array | None = None,
    max_waiting: int = 1 << 20,
    controller: Steering | None = None,
    busy_until_s: float = math.inf,
) -> Simulated:
    """Run queries through a node.

    arrival_s: float64 [Q], ascending seconds. size: integers [Q], candidates. model: one for all, or [Q] of them.
    deadline_s: float64 [Q], the clients' own, on the clock of ``arrival_s``. busy_until_s: what the node does later,
    such as working off what waits at the end, is no part of its seconds at work. Raises KeyError for a model that the
    node or the plans lack.
    """
    batcher = Batcher(node.cores, policy, max_waiting)
    for name, plan in plans.items():
        batcher.set_plan(name, plan)
    latency_s = np.full(len(arrival_s), math.inf)
    offloaded = np.zeros(len(arrival_s), dtype=np.bool_)
    run = NodeRun(node, batcher, latency_s, offloaded, seed, controller, busy_until_s)
    heap = run.heap
    enter_s = _through_front_end(arrival_s, node.front_end_s).tolist()
    models = [model] * len(arrival_s) if isinstance(model, str) else model
    expires_s = [math.inf] * len(arrival_s) if deadline_s is None else deadline_s.tolist()
    for index, (name, n, arrived, entered, expires) in enumerate(
        zip(models, size.tolist(), arrival_s.tolist(), enter_s, expires_s, strict=True)
    ):
        if heap and heap[0][0] <= entered:
            run.until(entered)
        run.arrive(Query(name, n, arrived, expires, index), entered)
    run.until(math.inf)
    return Simulated(latency_s, offloaded, run.batches, run.busy_s, run.device_s, tuple(run.decisions))


def simulated_load(
    node: Node,
    policy: Policy,
    model: str,
    plan: Plan,
    sla: Sla,
    sizes: SizeLaw,
    *,
    queries: int = 10_000,
    seed: int = 0,
    arrivals: ArrivalLaw = POISSON,
) -> Measure:
    """Return the Measure that runs one model's load on a simulated node, its first tenth being the warm-up.

    ``plan`` gives all but the operating point. Every point and rate gets the same draws of the seed. What waits is
    bounded by twelve targets' work, so that a hopeless rate costs no more than a good one: p99.9 has failed by then.
    """
    per_s = plan.per_candidate_s or plan.fixed_s
    bound = 1 << 20 if per_s <= 0 else int(12 * sla.seconds * node.cores / per_s) + 2048

    def measure(point: OperatingPoint, qps: float) -> Measurement:
        schedule = draw_schedule(seed, arrivals, sizes, qps, count=queries)
        run = simulate(
            node,
            policy,
            {model: replace(plan, point=point)},
            schedule.arrival_s,
            schedule.size,
            model,
            seed=seed,
            max_waiting=bound,
        )
        window = float(schedule.arrival_s[queries // 10]), float(schedule.arrival_s[-1])
        return summarise(sla, schedule.arrival_s, run.latency_s, schedule.size, window=window)

    return measure


def profiled_load(
    profile: LatencyProfile,
    policy: Policy,
    sla: Sla,
    sizes: SizeLaw,
    *,
    queries: int = 10_000,
    seed: int = 0,
) -> Measure:
    """Return the Measure of a model on a simulated node of its profile's cores, without an accelerator.

    Raises ValueError for a profile without the backend ``cpu``.
    """
    cpu = profile.backend("cpu")
    node = Node(profile.cores, {profile.model: measured(cpu, profile.cores)})
    plan = untuned_plan(cpu.busy.fit(), sla.seconds)
    return simulated_load(node, policy, profile.model, plan, sla, sizes, queries=queries, seed=seed)


def _through_front_end(arrival_s: F64Array, each_s: float) -> F64Array:
    """When queries leave a thread that takes ``each_s`` for each in turn (Lindley's recursion, unrolled)."""
    if each_s <= 0:
        return arrival_s
    turn = np.arange(len(arrival_s)) * each_s
    return np.asarray(np.maximum.accumulate(arrival_s - turn) + turn + each_s)


class NodeRun:
    """One node at work: ``arrive`` hands it a query, ``until`` lets it work on, ``next_event_s`` says until when.

    latency_s, offloaded: [Q], written at the index that a query's payload is; nodes of a fleet share them. busy_s,
    device_s: seconds that cores and slots were at work before ``busy_until_s``.
    """

    def __init__(
        self,
        node: Node,
        batcher: Batcher,
        latency_s: F64Array,
        offloaded: NDArray[np.bool_],
        seed: int | Sequence[int],
        controller: Steering | None,
        busy_until_s: float = math.inf,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.batcher = batcher
        self.cpu = {name: law(rng) for name, law in node.cpu.items()}
        self.accelerator = {name: law(rng) for name, law in node.accelerator.items()}
        self.cores = node.cores
        self.free_slots = node.accelerator_slots
        self.slots = node.accelerator_slots
        self.queued: deque[Query] = deque()  # offloaded, waiting for a slot
        self.tried: set[int] = set()  # the queries whose attempt is under way
        # (time, counter, worker or _DEVICE or _TIME_OUT, what ran there, whether it failed)
        self.heap: list[tuple[float, int, int, Any, bool]] = []
        self.counter = 0
        self.latency_s = latency_s
        self.offloaded = offloaded
        self.batches = 0
        self.busy_s = 0.0
        self.device_s = 0.0
        self.busy_until_s = busy_until_s
        self.controller = controller
        self.decisions: list[tuple[float, Any]] = []
        self.next_decision_s = controller.window_s if controller else math.inf

    @property
    def next_event_s(self) -> float:
        """When something happens next unless a query arrives; infinite while nothing runs."""
        return self.heap[0][0] if self.heap else math.inf

    def until(self, time_s: float) -> None:
        """Run every event up to the time."""
        heap = self.heap
        while heap and heap[0][0] <= time_s:
            now, _, worker, what, failed = heappop(heap)
            if now >= self.next_decision_s:
                self.decide(now)
            if worker >= 0:
                if self.controller is not None and not failed:
                    self.controller.observe_batch(what, now - what.started_s)
                done = self.batcher.fail(worker, now) if failed else self.batcher.finish(worker, now)
                if done:
                    self.follow(done, now)
            elif worker == _DEVICE:
                self.accelerator_done(what, now, failed)
            elif what.payload in self.tried:
                self.give_up(what, now)

    def arrive(self, query: Query, now: float) -> None:
        """Hand the next query to the batcher."""
        if now >= self.next_decision_s:
            self.decide(now)
        if self.controller is not None:
            self.controller.observe_arrival(query, now)
        instructions = self.batcher.arrive(query, now)
        if instructions:
            self.follow(instructions, now)

    def follow(self, instructions: list[Instruction], now: float) -> None:
        """Do what the batcher says."""
        for instruction in instructions:
            if isinstance(instruction, Run):
                self.start(instruction.worker, instruction.batch, now)
            elif isinstance(instruction, Complete):
                query = instruction.query
                self.latency_s[query.payload] = now - query.arrival_s
                self.offloaded[query.payload] = query.offloaded
                if self.controller is not None:
                    self.controller.observe(query, now)
            elif isinstance(instruction, Offload):
                self.offload(instruction.query, now)

    def start(self, worker: int, batch: Batch, now: float) -> None:
        """Let a core run a batch."""
        busy = self.cores - self.batcher.idle_workers
        seconds = self.cpu[batch.model](batch.size, busy, now)
        failed = seconds == math.inf
        if failed:
            seconds = 0.0
        self.batches += 1
        self.busy_s += min(seconds, max(0.0, self.busy_until_s - now))
        self.counter += 1
        heappush(self.heap, (now + seconds, self.counter, worker, batch, failed))

    def offload(self, query: Query, now: float) -> None:
        """Begin an attempt, as the live dispatcher does."""
        limit_s = attempt_s(query, self.batcher.cpu_seconds(query, now), now)
        if limit_s <= 0:
            self.follow(self.batcher.offload_failed(query, now, tried=False), now)
            return
        self.tried.add(query.payload)
        self.queued.append(query)
        self.fill_slots(now)
        if limit_s < math.inf:
            self.counter += 1
            heappush(self.heap, (now + limit_s, self.counter, _TIME_OUT, query, False))

    def fill_slots(self, now: float) -> None:
        """Let the accelerator take what waits for it and was not given up."""
        while self.free_slots and self.queued:
            query = self.queued.popleft()
            if query.payload not in self.tried:
                continue
            self.free_slots -= 1
            seconds = self.accelerator[query.model](query.size, self.slots - self.free_slots, now)
            failed = seconds == math.inf
            if failed:
                seconds = 0.0
            self.device_s += min(seconds, max(0.0, self.busy_until_s - now))
            self.counter += 1
            heappush(self.heap, (now + seconds, self.counter, _DEVICE, query, failed))

    def accelerator_done(self, query: Query, now: float, failed: bool) -> None:
        """Free the slot, and tell the batcher unless the query was given up meanwhile."""
        self.free_slots += 1
        if query.payload in self.tried:
            if failed:
                self.give_up(query, now)
            else:
                self.tried.remove(query.payload)
                self.follow(self.batcher.offload_finished(query), now)
        self.fill_slots(now)

    def give_up(self, query: Query, now: float) -> None:
        """Give a query to the cores, unless they would miss its deadline; what the accelerator has begun it ends."""
        self.tried.remove(query.payload)
        if is_hopeless(query, self.batcher.cpu_seconds(query, now, others=False), now):
            self.batcher.cancel(query)
        else:
            self.follow(self.batcher.offload_failed(query, now), now)

    def decide(self, now: float) -> None:
        """Let the controller change plans; the windows without any event in them pass together."""
        assert self.controller is not None
        window_s = self.controller.window_s
        self.next_decision_s = (math.floor(now / window_s) + 1) * window_s
        for decision in self.controller.decide(now):
            self.batcher.set_plan(decision.model, decision.plan)
            self.decisions.append((now, decision))
