"""A fleet whose router looks at the nodes: all of them run in one loop of events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scheduler.batching import Batcher
from scheduler.fleet_arrivals import Arrivals, Life, draw
from scheduler.fleet_result import FleetSeen, node_seen
from scheduler.fleet_spec import FleetSpec
from scheduler.plan import Plan, Policy
from scheduler.query import Batch, Query
from scheduler.routers import ROUTERS, Pool, split_by_size
from scheduler.simulator import Decided, Node, NodeRun, Steering
from scheduler.sizes import parse_sizes


class Makes(Protocol):
    """What makes the nodes: ``fleet.Members``."""

    lives: list[list[Life]]
    policy: Policy

    def node(self, node: int) -> Node:
        """Return a node."""

    def plans(self, node: int) -> Mapping[str, Plan]:
        """Return its plans."""

    def controller(self, node: int) -> Steering | None:
        """Return its controller."""


def simulate_routed(spec: FleetSpec, seeds: Sequence[int], members: Makes) -> FleetSeen:
    """Simulate all nodes of a fleet together; ValueError for an unknown router."""
    if spec.router not in ROUTERS:
        raise ValueError(f"unknown router {spec.router!r}; known: {', '.join(ROUTERS)}")
    everywhere = [(t, np.ones_like, 1.0) for t in spec.traffic]
    arrivals = draw(spec, np.random.default_rng([*seeds, 1]), everywhere)
    return _Loop(spec, seeds, members, arrivals).run()


class _Watch:
    """Takes a query off what its node has to do when it is answered, and passes all on to the node's controller."""

    def __init__(self, answered: Callable[[Query], None], inner: Steering | None) -> None:
        self.window_s = math.inf if inner is None else inner.window_s
        self._answered = answered
        self._inner = inner

    def observe_arrival(self, query: Query, now: float) -> None:
        """Note a query."""
        if self._inner is not None:
            self._inner.observe_arrival(query, now)

    def observe_batch(self, batch: Batch, run_s: float) -> None:
        """Note that a batch has run."""
        if self._inner is not None:
            self._inner.observe_batch(batch, run_s)

    def observe(self, query: Query, now: float) -> None:
        """Note that a query is complete."""
        self._answered(query)
        if self._inner is not None:
            self._inner.observe(query, now)

    def decide(self, now: float) -> Sequence[Decided]:
        """Return what changes."""
        return () if self._inner is None else self._inner.decide(now)


class _Member:
    """One life of a node: its run, when it is next looked at, and when its front end is free."""

    __slots__ = ("free_s", "front_end_s", "looked_at_s", "lost", "node", "run")

    def __init__(self, node: int, run: NodeRun, front_end_s: float) -> None:
        self.node = node
        self.run = run
        self.front_end_s = front_end_s
        self.free_s = 0.0
        self.looked_at_s = math.inf
        self.lost = False


class _Loop:
    """The state of one simulation."""

    def __init__(self, spec: FleetSpec, seeds: Sequence[int], members: Makes, arrivals: Arrivals) -> None:
        self.spec, self.seeds, self.members, self.arrivals = spec, list(seeds), members, arrivals
        queries = len(arrivals.arrival_s)
        self.latency_s = np.full(queries, math.inf)
        self.offloaded = np.zeros(queries, dtype=np.bool_)
        self.node_of = np.full(queries, -1, dtype=np.int32)
        self.route = ROUTERS[spec.router]
        self.uniform = _uniform(np.random.default_rng([*self.seeds, 0])).__next__
        self.outstanding = np.zeros(spec.nodes)
        self.weights = {t.model: spec.weights(t.model) for t in spec.traffic}
        self.weight = np.max([self.weights[t.model] for t in spec.traffic], axis=0).tolist()
        self.now_there: dict[int, _Member] = {}
        self.lived: list[list[_Member]] = [[] for _ in range(spec.nodes)]
        self.pools: dict[str, Pool | None] = {}
        # (time, counter, whose, the query that leaves its front end or None)
        self.heap: list[tuple[float, int, _Member, Query | None]] = []
        self.counter = count()
        self.changes = sorted(self._changes(), key=lambda change: change[0])

    def run(self) -> FleetSeen:
        """Run every query through the fleet."""
        arrival_s, size, models = self.arrivals
        changes = iter([*self.changes, (math.inf, lambda: None)])
        change_s, change = next(changes)
        for index, (now, n, model) in enumerate(zip(arrival_s.tolist(), size.tolist(), models, strict=True)):
            while change_s <= now:
                self.until(change_s)
                change()
                change_s, change = next(changes)
            if self.heap and self.heap[0][0] <= now:
                self.until(now)
            self.arrive(Query(model, n, now, payload=index), now)
        while change_s < math.inf:  # a node may still be lost with what it has
            self.until(change_s)
            change()
            change_s, change = next(changes)
        self.until(math.inf)
        return self._seen()

    def until(self, time_s: float) -> None:
        """Let every node do what is due."""
        heap = self.heap
        while heap and heap[0][0] <= time_s:
            now, _, member, query = heappop(heap)
            if member.lost:
                continue
            if query is not None:
                self.enter(member, query, now)
                continue
            if now >= member.looked_at_s:
                member.looked_at_s = math.inf
            member.run.until(now)
            self.look_again(member)

    def arrive(self, query: Query, now: float) -> None:
        """Send a query to a node."""
        pool = self.pools[query.model] if query.model in self.pools else self._pool(query.model)
        if pool is None:
            return
        node = self.route(pool, query.size, self.uniform)
        self.node_of[query.payload] = node
        self.outstanding[node] += query.size / self.weight[node]
        member = self.now_there[node]
        if member.front_end_s <= 0:
            self.enter(member, query, now)
            return
        member.free_s = max(member.free_s, now) + member.front_end_s
        heappush(self.heap, (member.free_s, next(self.counter), member, query))

    def enter(self, member: _Member, query: Query, now: float) -> None:
        """Hand a query to its node's batcher."""
        member.run.until(now)
        member.run.arrive(query, now)
        if query.dropped:  # refused: its node had too much waiting
            self.answered(member, query)
        self.look_again(member)

    def look_again(self, member: _Member) -> None:
        """Note when the node next does something."""
        next_s = member.run.next_event_s
        if next_s < member.looked_at_s:
            member.looked_at_s = next_s
            heappush(self.heap, (next_s, next(self.counter), member, None))

    def answered(self, member: _Member, query: Query) -> None:
        """Take a query off what a node has to do."""
        if self.now_there.get(member.node) is member:
            self.outstanding[member.node] -= query.size / self.weight[member.node]

    # ---- nodes that come and go ----

    def _changes(self) -> Iterator[tuple[float, Callable[[], None]]]:
        for node, node_lives in enumerate(self.members.lives):
            for k, life in enumerate(node_lives):
                if life.begin_s <= 0:
                    self.comes(node, k)
                else:
                    yield life.begin_s, partial(self.comes, node, k)
                if life.end_s < self.spec.end_s - self.spec.start_s:
                    yield life.end_s, partial(self.goes, node)
                if life.lost_s < math.inf:
                    yield life.lost_s, partial(self.lose, node, k)

    def comes(self, node: int, life: int) -> None:
        """Let a new node in the place of the one before."""
        made = self.members.node(node)
        batcher = Batcher(made.cores, self.members.policy, self.spec.max_waiting)
        for name, plan in self.members.plans(node).items():
            batcher.set_plan(name, plan)
        watch = _Watch(lambda query: self.answered(member, query), self.members.controller(node))
        seed = [*self.seeds, 2, node, life]
        until_s = min(self.members.lives[node][life].lost_s, self.spec.end_s - self.spec.start_s)
        run = NodeRun(made, batcher, self.latency_s, self.offloaded, seed, watch, until_s)
        member = _Member(node, run, made.front_end_s)
        self.outstanding[node] = 0.0
        self.now_there[node] = member
        self.lived[node].append(member)
        self.pools.clear()

    def goes(self, node: int) -> None:
        """Send a node no more queries."""
        del self.now_there[node]
        self.pools.clear()

    def lose(self, node: int, life: int) -> None:
        """Forget what a node has."""
        self.lived[node][life].lost = True

    def _pool(self, model: str) -> Pool | None:
        weights = self.weights[model]
        nodes = [node for node in sorted(self.now_there) if weights[node] > 0]
        pool = Pool(nodes, [weights[node] for node in nodes], self.outstanding) if nodes else None
        if pool is not None and self.spec.router == "size-aware":
            groups = self.spec.group_of
            preferred = {node for node in nodes if model in groups[node].kind.accelerator}
            law = next(t.sizes[0][1] for t in self.spec.traffic if t.model == model)
            pool.split = split_by_size(
                pool, preferred, parse_sizes(law).draw(np.random.default_rng(0), 20_000)
            )
        self.pools[model] = pool
        return pool

    # ---- what it showed ----

    def _seen(self) -> FleetSeen:
        arrival_s, _, models = self.arrivals
        names: NDArray[np.str_] = np.asarray(models, dtype=str)
        order = np.argsort(self.node_of, kind="stable")
        ends = np.searchsorted(self.node_of[order], np.arange(-1, self.spec.nodes), side="right").tolist()
        nobody = order[: ends[0]]
        late = nobody[arrival_s[nobody] >= self.spec.warmup_s]
        seen = []
        for node in range(self.spec.nodes):
            own = order[ends[node] : ends[node + 1]]
            ran = (arrival_s[own], names[own].tolist(), self.latency_s[own], self.offloaded[own])
            runs = [member.run for member in self.lived[node]]
            seen.append(
                node_seen(
                    self.spec,
                    node,
                    [ran],
                    busy_s=sum(run.busy_s for run in runs),
                    device_s=sum(run.device_s for run in runs),
                    decisions=sum(len(run.decisions) for run in runs),
                )
            )
        values, counts = np.unique(names[late], return_counts=True)
        unrouted = dict(zip(values.tolist(), counts.tolist(), strict=True))
        return FleetSeen(tuple(seen), self.spec.nodes, unrouted, self.spec.duration_s)


def _uniform(rng: Generator) -> Iterator[float]:
    while True:
        yield from rng.random(4096).tolist()
