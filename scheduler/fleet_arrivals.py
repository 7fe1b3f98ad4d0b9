"""When queries reach a fleet and its nodes, and which nodes are there.

Arrivals at a fleet are Poisson with a rate that follows the day. A router that sends each query to a node at random
thins them: every node then sees a Poisson process of its own, independent of the others, which can be drawn alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scheduler.fleet_spec import FleetSpec, Traffic, Trouble
from scheduler.sizes import parse_sizes

F64Array = NDArray[np.float64]


@dataclass
class Life:
    """A node between its beginnings and ends, in seconds of the simulated part.

    It gets queries from ``begin_s`` until ``end_s``; what it has not answered by ``lost_s`` is lost.
    """

    begin_s: float
    end_s: float
    lost_s: float = math.inf


def lives(spec: FleetSpec) -> list[list[Life]]:
    """Return each node's lives within the simulated part."""
    away: list[list[tuple[float, float, bool]]] = [[] for _ in range(spec.nodes)]
    span_s = spec.end_s - spec.start_s
    for event in spec.events:
        from_s, until_s = event.from_s - spec.start_s, event.until_s - spec.start_s
        if event.trouble is Trouble.SLOW or until_s <= 0 or from_s >= span_s:
            continue
        for node in event.nodes:
            away[node].append((from_s, until_s, event.trouble is Trouble.FAILED))
    return [_lives(sorted(periods), span_s) for periods in away]


def _lives(away: Sequence[tuple[float, float, bool]], span_s: float) -> list[Life]:
    found: list[Life] = []
    begin_s = 0.0
    for from_s, until_s, lost in away:
        if from_s > begin_s:
            found.append(Life(begin_s, from_s))
        if lost and found:
            found[-1].lost_s = min(found[-1].lost_s, max(from_s, found[-1].end_s))
        begin_s = max(begin_s, until_s)
    if begin_s < span_s:
        found.append(Life(begin_s, span_s))
    return found


class Steps:
    """A sum that changes in steps, such as the weight of all nodes that are there."""

    def __init__(self, start: float, changes: Sequence[tuple[float, float]]) -> None:
        ordered = sorted(changes)
        self._time_s = np.array([at_s for at_s, _ in ordered])
        self._value = start + np.concatenate(([0.0], np.cumsum([by for _, by in ordered])))
        self._value[np.abs(self._value) < 1e-9 * max(1.0, start)] = 0.0

    def at(self, time_s: F64Array) -> F64Array:
        """Return the sum at these times (float64 [Q])."""
        return np.asarray(self._value[np.searchsorted(self._time_s, time_s, side="right")])

    @property
    def lacking(self) -> bool:
        """Whether it is 0 at some time."""
        return bool((self._value <= 0).any())

    @property
    def least(self) -> float:
        """The smallest sum above 0, infinite if it never is."""
        return float(min(self._value[self._value > 0], default=math.inf))


def there(weights: Sequence[float], nodes: Sequence[Sequence[Life]], span_s: float) -> Steps:
    """Return the summed weight of the nodes that get queries, over time."""
    start, changes = 0.0, []
    for weight, node in zip(weights, nodes, strict=True):
        for life in node:
            if life.begin_s <= 0:
                start += weight
            else:
                changes.append((life.begin_s, weight))
            if life.end_s < span_s:
                changes.append((life.end_s, -weight))
    return Steps(start, changes)


class Arrivals(NamedTuple):
    """Queries in order of arrival: float64 [Q] seconds of the simulated part, int32 [Q] candidates, [Q] models."""

    arrival_s: F64Array
    size: NDArray[np.int32]
    models: list[str]

    def between(self, from_s: float, until_s: float) -> Arrivals:
        """Return those that arrive from one time until before another."""
        first, last = np.searchsorted(self.arrival_s, [from_s, until_s]).tolist()
        return Arrivals(self.arrival_s[first:last], self.size[first:last], self.models[first:last])


Share = Callable[[F64Array], F64Array]
"""Times (float64 [Q]) -> the share of a model's queries that come here just then."""


def draw(spec: FleetSpec, rng: Generator, shares: Sequence[tuple[Traffic, Share, float]]) -> Arrivals:
    """Draw the queries of some models. ``shares``: by model, with the largest share that occurs."""
    parts = [_draw_model(spec, rng, traffic, share, most) for traffic, share, most in shares]
    arrival_s = np.concatenate([times for times, _ in parts]) if parts else np.empty(0)
    order = np.argsort(arrival_s, kind="stable")
    size = np.concatenate([sizes for _, sizes in parts]) if parts else np.empty(0, np.int32)
    which = np.repeat(np.arange(len(parts)), [len(times) for times, _ in parts])[order]
    names = [traffic.model for traffic, _, _ in shares]
    return Arrivals(arrival_s[order], size[order], [names[k] for k in which.tolist()])


def _draw_model(
    spec: FleetSpec, rng: Generator, traffic: Traffic, share: Share, most: float
) -> tuple[F64Array, NDArray[np.int32]]:
    """Draw one model's times and sizes: too many at an even rate, of which each stays by the rate at its time."""
    span_s = spec.end_s - spec.start_s
    part = traffic.share / sum(t.share for t in spec.traffic)
    bound_qps = spec.qps * part * spec.day.most(spec.start_s, spec.end_s) * most
    times = np.sort(rng.random(rng.poisson(bound_qps * span_s))) * span_s
    rate_qps = spec.qps * part * spec.day.at(times + spec.start_s) * share(times)
    times = times[rng.random(len(times)) * bound_qps < rate_qps]
    size = np.empty(len(times), dtype=np.int32)
    law = np.searchsorted([from_s for from_s, _ in traffic.sizes], times + spec.start_s, side="right") - 1
    for k, (_, sizes) in enumerate(traffic.sizes):
        size[law == k] = parse_sizes(sizes).draw(rng, int((law == k).sum()))
    return times, size
