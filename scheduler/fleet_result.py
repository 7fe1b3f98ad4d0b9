"""What a simulated fleet showed: per node, per model, and together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.fleet_spec import FleetSpec
from scheduler.sketch import LatencySketch, merged

F64Array = NDArray[np.float64]


@dataclass(frozen=True)
class NodeSeen:
    """One node: latencies by model of the queries that were routed to it after the warm-up.

    ``busy``, ``accelerator_busy``: the share of all simulated time, warm-up included, that its cores and its
    accelerator worked. ``offloaded``: how many of the queries the accelerator answered. ``decisions``: how often its
    controller changed a plan.
    """

    node: int
    latency: Mapping[str, LatencySketch]
    busy: float
    accelerator_busy: float
    offloaded: int
    decisions: int
    watts: float

    @property
    def queries(self) -> int:
        """How many queries it got."""
        return sum(sketch.count for sketch in self.latency.values())


@dataclass(frozen=True)
class FleetSeen:
    """What one part of a day showed.

    ``nodes``: those that were simulated, ``of_nodes`` in all. ``unrouted``: by model, queries for which no node was
    there; for sampled nodes their part of them. ``duration_s``: what was counted.
    """

    nodes: tuple[NodeSeen, ...]
    of_nodes: int
    unrouted: Mapping[str, int]
    duration_s: float

    def latency(self, model: str) -> LatencySketch:
        """Return the latencies of a model's queries over all nodes, those that could not be routed among them."""
        whole = merged(node.latency[model] for node in self.nodes if model in node.latency)
        whole.failed += self.unrouted.get(model, 0)
        return whole

    @property
    def models(self) -> tuple[str, ...]:
        """The models that had traffic."""
        return tuple(sorted({*self.unrouted, *(model for node in self.nodes for model in node.latency)}))

    @property
    def queries(self) -> int:
        """How many queries were counted."""
        return sum(node.queries for node in self.nodes) + sum(self.unrouted.values())

    @property
    def busy(self) -> float:
        """The mean share of time that the nodes' cores worked."""
        return float(np.mean([node.busy for node in self.nodes]))

    @property
    def watts(self) -> float:
        """The mean power of the whole fleet, as its kinds have it."""
        return float(np.mean([node.watts for node in self.nodes])) * self.of_nodes


def node_seen(
    spec: FleetSpec,
    node: int,
    ran: Sequence[tuple[F64Array, Sequence[str], F64Array, NDArray[np.bool_]]],
    *,
    busy_s: float,
    device_s: float,
    decisions: int,
) -> NodeSeen:
    """Sum one node up.

    ran: runs of (arrival_s float64 [Q] from the start of the simulated part, models [Q], latency_s [Q], offloaded bool
    [Q]). busy_s, device_s: seconds that cores and slots were at work in the simulated part.
    """
    kind = spec.group_of[node].kind
    latency: dict[str, LatencySketch] = {}
    offloaded = 0
    for arrival_s, models, latency_s, sent in ran:
        counted, names = arrival_s >= spec.warmup_s, np.asarray(models)
        for model in dict.fromkeys(models):
            own = names == model
            latency.setdefault(model, LatencySketch()).add(latency_s[own & counted])
        offloaded += int((sent & counted).sum())
    span_s = spec.warmup_s + spec.duration_s
    busy = busy_s / (kind.cores * span_s)
    device = device_s / (kind.accelerator_slots * span_s)
    return NodeSeen(
        node=node,
        latency=latency,
        busy=busy,
        accelerator_busy=device,
        offloaded=offloaded,
        decisions=decisions,
        watts=kind.power_watts(busy, device),
    )


@dataclass(frozen=True)
class Known:
    """A percentile over independent rounds: pooled seconds, and half the width of its 95 % interval."""

    seconds: float
    half_width_s: float

    @property
    def relative(self) -> float:
        """The half width as a share of the value; infinite where it is not known."""
        share = self.half_width_s / self.seconds if self.seconds > 0 else math.inf
        return share if math.isfinite(share) else math.inf


def known(rounds: Iterable[LatencySketch], percent: float) -> Known:
    """Return a percentile and how well it is known, from sketches of rounds with seeds of their own.

    The interval is Student's over the rounds' own percentiles. Without at least two rounds it is infinite.
    """
    sketches = list(rounds)
    pooled = merged(sketches).percentile(percent)
    each = np.array([sketch.percentile(percent) for sketch in sketches])
    k = len(each)
    if k < 2 or not np.isfinite(each).all():
        return Known(pooled, math.inf)
    return Known(pooled, student(k - 1) * float(each.std(ddof=1)) / math.sqrt(k))


def student(degrees: int) -> float:
    """Return the 97.5th percentile of Student's law, by its expansion about the normal one (from 4 degrees 0.5 %)."""
    z, v = 1.959963984540054, float(degrees)
    first = (z**3 + z) / (4 * v)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return z + first + second + third
