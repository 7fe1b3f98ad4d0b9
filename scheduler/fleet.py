"""A fleet, simulated: hundreds of nodes of several kinds through a part of a day.

Pure: the same spec and seed give the same result, in whichever process. A router that leaves nodes independent lets
each be simulated alone, so that a few sampled ones stand for all; with any other all nodes run in one loop of events.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from scheduler.controller import Controller
from scheduler.first_plan import untuned_plan
from scheduler.fleet_arrivals import Arrivals, Life, Steps, draw, lives, there
from scheduler.fleet_result import FleetSeen, NodeSeen, node_seen
from scheduler.fleet_spec import FleetSpec, Group, Trouble
from scheduler.latency import BackendProfile
from scheduler.plan import POLICIES, Plan
from scheduler.routed_fleet import simulate_routed
from scheduler.service_law import ServiceLaw, measured, slowed
from scheduler.simulator import Node, simulate

F64Array = NDArray[np.float64]

INDEPENDENT = "random"
"""The router that leaves nodes independent."""


def simulate_fleet(spec: FleetSpec, seed: int | Sequence[int], *, together: bool = False) -> FleetSeen:
    """Simulate a part of a fleet's day.

    ``together``: run all nodes in one loop also where the router leaves them independent. Raises ValueError for a
    policy or router that is unknown, and for sampled nodes with a router that couples them.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    members = Members(spec)
    if spec.router != INDEPENDENT or together:
        if spec.sampled is not None:
            raise ValueError(f"sampled nodes cannot stand for a fleet with the router {spec.router}")
        return simulate_routed(spec, seeds, members)
    return _simulate_apart(spec, seeds, members)


class Members:
    """Makes the simulated nodes of a fleet, each as slow as it is and with the troubles that it has."""

    def __init__(self, spec: FleetSpec) -> None:
        if spec.policy not in POLICIES:
            raise ValueError(f"unknown policy {spec.policy!r}; known: {', '.join(POLICIES)}")
        self.spec = spec
        self.lives = lives(spec)
        self.policy = POLICIES[spec.policy]
        self._slowness = spec.slowness()
        self._periods: list[list[tuple[float, float, float]]] = [[] for _ in range(spec.nodes)]
        for event in spec.events:
            if event.trouble is Trouble.SLOW:
                for node in event.nodes:
                    period = event.from_s - spec.start_s, event.until_s - spec.start_s, event.times
                    self._periods[node].append(period)
        self._group_of = spec.group_of
        by_group = [(group, _laws(group), self._plans(group)) for group in spec.groups]
        self._made = {id(group): (laws, plans) for group, laws, plans in by_group}

    def node(self, node: int) -> Node:
        """Return a node."""
        group = self._group_of[node]
        (cpu, accelerator), _ = self._made[id(group)]
        factor, periods = self._slowness[node], self._periods[node]
        return Node(
            group.kind.cores,
            {model: slowed(law, factor, periods) for model, law in cpu.items()},
            {model: slowed(law, factor, periods) for model, law in accelerator.items()},
            group.kind.accelerator_slots,
            group.kind.front_end_s,
        )

    def plans(self, node: int) -> Mapping[str, Plan]:
        """Return the plans that a node begins with."""
        return self._made[id(self._group_of[node])][1]

    def controller(self, node: int) -> Controller | None:
        """Return a new controller for a node, None for a fleet that is not steered."""
        if not self.spec.steered:
            return None
        kind = self._group_of[node].kind
        percentile = {t.model: t.sla.percentile for t in self.spec.traffic}
        made = Controller(kind.cores, slots=kind.accelerator_slots)
        for model, plan in self.plans(node).items():
            made.add(model, plan, percentile=percentile[model], accelerator=model in kind.accelerator)
        return made

    def _plans(self, group: Group) -> dict[str, Plan]:
        """Plan by the kind's seconds: nobody knows beforehand how slow one node is."""
        return {
            t.model: replace(
                untuned_plan(group.kind.cpu[t.model].busy.fit(), t.sla.seconds), point=group.points[t.model]
            )
            for t in self.spec.traffic
            if t.model in group.points
        }


def _laws(group: Group) -> tuple[dict[str, ServiceLaw], dict[str, ServiceLaw]]:
    def laws(backends: Mapping[str, BackendProfile], cores: int) -> dict[str, ServiceLaw]:
        return {m: measured(profile, cores) for m, profile in backends.items() if m in group.points}

    return laws(group.kind.cpu, group.kind.cores), laws(group.kind.accelerator, group.kind.accelerator_slots)


def _simulate_apart(spec: FleetSpec, seeds: list[int], members: Members) -> FleetSeen:
    """Simulate nodes one after the other, each with the Poisson arrivals that random routing leaves it."""
    span_s = spec.end_s - spec.start_s
    weights = {t.model: spec.weights(t.model) for t in spec.traffic}
    alive = {model: there(each, members.lives, span_s) for model, each in weights.items()}
    count = spec.nodes if spec.sampled is None else min(spec.sampled, spec.nodes)
    chosen = np.sort(np.random.default_rng([*seeds, 0]).permutation(spec.nodes)[:count]).tolist()
    seen = []
    for node in chosen:
        shares = [
            (t, partial(_share, weights[t.model][node], alive[t.model]), weights[t.model][node] / least)
            for t in spec.traffic
            if weights[t.model][node] > 0 and (least := alive[t.model].least) < math.inf
        ]
        arrivals = draw(spec, np.random.default_rng([*seeds, 1, node]), shares)
        seen.append(_node_alone(spec, [*seeds, 2, node], members, node, arrivals))
    rng = np.random.default_rng([*seeds, 3])
    part = count / spec.nodes
    nowhere = [
        (t, partial(_unrouted_share, part, alive[t.model]), part)
        for t in spec.traffic
        if alive[t.model].lacking
    ]
    lost = draw(spec, rng, nowhere).between(spec.warmup_s, span_s).models
    return FleetSeen(tuple(seen), spec.nodes, {m: lost.count(m) for m in set(lost)}, spec.duration_s)


def _share(weight: float, alive: Steps, time_s: F64Array) -> F64Array:
    return np.asarray(weight / np.maximum(alive.at(time_s), weight))


def _unrouted_share(part: float, alive: Steps, time_s: F64Array) -> F64Array:
    return np.asarray(part * (alive.at(time_s) <= 0))


def _node_alone(
    spec: FleetSpec, seeds: list[int], members: Members, node: int, arrivals: Arrivals
) -> NodeSeen:
    ran, busy_s, device_s, decisions = [], 0.0, 0.0, 0
    for k, life in enumerate(members.lives[node]):
        own = arrivals.between(life.begin_s, life.end_s)
        controller = members.controller(node)
        run = simulate(
            members.node(node),
            members.policy,
            members.plans(node),
            own.arrival_s,
            own.size,
            own.models,
            seed=[*seeds, k],
            max_waiting=spec.max_waiting,
            controller=controller,
            busy_until_s=min(life.lost_s, spec.end_s - spec.start_s),
        )
        latency_s = _lost(own, run.latency_s, life)
        ran.append((own.arrival_s, own.models, latency_s, run.offloaded & np.isfinite(latency_s)))
        busy_s += run.busy_s
        device_s += run.device_s
        decisions += len(run.decisions)
    return node_seen(spec, node, ran, busy_s=busy_s, device_s=device_s, decisions=decisions)


def _lost(arrivals: Arrivals, latency_s: F64Array, life: Life) -> F64Array:
    """Return the latencies with those infinite that the node had not answered when it was lost."""
    return np.asarray(np.where(arrivals.arrival_s + latency_s > life.lost_s, math.inf, latency_s))
