"""What a fleet is: kinds of machines, groups of nodes, the traffic of a day, and what goes wrong in it.

All of it is data, and can be sent to another process. Seconds are those of the day, from its start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

import numpy as np

from scheduler.latency import BackendProfile
from scheduler.measure import Sla
from scheduler.plan import OperatingPoint
from scheduler.rate_curve import RateCurve
from scheduler.sizes import parse_sizes


class Origin(StrEnum):
    """Where the seconds of a kind come from; what rests on modelled ones must say so."""

    MEASURED = "measured"
    PUBLISHED = "published"
    MODELLED = "modelled"


@dataclass(frozen=True)
class MachineKind:
    """A kind of machine, with or without an accelerator: seconds by model, and what it costs.

    ``cpu``: what one core takes, ``busy`` with all cores at work. ``accelerator``: what whole queries take there,
    ``accelerator_slots`` of them at once. ``front_end_s``: seconds of the one thread before the batcher for each query.
    ``watts`` of all cores at work and ``idle_watts`` of none, ``accelerator_watts`` of the accelerator at work; all
    without what the rest of the machine takes. ``price``: per hour, in any currency that is the same for all.
    """

    name: str
    cores: int
    cpu: Mapping[str, BackendProfile]
    origin: Origin
    accelerator: Mapping[str, BackendProfile] = field(default_factory=dict)
    accelerator_slots: int = 1
    front_end_s: float = 0.0
    watts: float = 0.0
    idle_watts: float = 0.0
    accelerator_watts: float = 0.0
    accelerator_idle_watts: float = 0.0
    price: float = 0.0

    def power_watts(self, busy: float, accelerator_busy: float) -> float:
        """Return the mean power at these shares of its time at work (a straight line: TDP x utilisation over idle)."""
        cores = self.idle_watts + (self.watts - self.idle_watts) * min(1.0, busy)
        idle = self.accelerator_idle_watts
        return cores + idle + (self.accelerator_watts - idle) * min(1.0, accelerator_busy)


@dataclass(frozen=True)
class Group:
    """``count`` nodes of one kind with one operating point for each model that they serve.

    ``weight``: the share of queries that a node gets, beside those of the other groups; None: what its cores can do.
    """

    kind: MachineKind
    count: int
    points: Mapping[str, OperatingPoint]
    weight: float | None = None


@dataclass(frozen=True)
class Traffic:
    """One model's part of the traffic: its share of the queries, its target, and the law of its sizes.

    ``sizes``: (from_s, law) in ascending order, the first from 0: a mix that shifts has several.
    """

    model: str
    share: float
    sla: Sla
    sizes: tuple[tuple[float, str], ...] = ((0.0, "production"),)


class Trouble(StrEnum):
    """What goes wrong with a node, from one second to another."""

    FAILED = "failed"
    """It is gone, and what it had is lost; it comes back new."""
    DRAINED = "drained"
    """It gets no queries and finishes what it has; it comes back new."""
    SLOW = "slow"
    """Everything takes so many times as long."""


@dataclass(frozen=True)
class Event:
    """Trouble of some nodes (their numbers) in [from_s, until_s). ``times``: how much slower a slow one is."""

    trouble: Trouble
    nodes: tuple[int, ...]
    from_s: float
    until_s: float = math.inf
    times: float = 1.0


def rolling_restart(
    nodes: Sequence[int], from_s: float, each_s: float, at_once: int = 1
) -> tuple[Event, ...]:
    """Return the events of restarting nodes in turn, ``at_once`` together, each away for ``each_s``."""
    return tuple(
        Event(Trouble.DRAINED, tuple(nodes[k : k + at_once]), start_s, start_s + each_s)
        for k in range(0, len(nodes), at_once)
        for start_s in (from_s + each_s * (k // at_once),)
    )


@dataclass(frozen=True)
class FleetSpec:
    """A fleet, and the part of its day that is to be simulated.

    ``qps``: queries per second of the whole fleet where ``day`` is 1; arrivals are Poisson.
    ``policy``: one of POLICIES; ``steered``: with an online controller on each node, beginning at the group's points.
    ``noise``: the spread of the logarithm of how fast otherwise equal nodes are; ``noise_seed`` draws it, so that a
    node stays what it is from run to run.
    ``start_s`` to ``start_s + warmup_s + duration_s`` is simulated; the warm-up is not counted.
    ``sampled``: with a router that leaves nodes independent, so many nodes stand for all of them.
    ``max_waiting``: candidates that may wait per model and node.
    Raises ValueError for a fleet that cannot be run.
    """

    groups: tuple[Group, ...]
    traffic: tuple[Traffic, ...]
    qps: float
    router: str = "random"
    policy: str = "adaptive"
    steered: bool = False
    day: RateCurve = field(default_factory=RateCurve)
    events: tuple[Event, ...] = ()
    noise: float = 0.0
    noise_seed: int = 0
    start_s: float = 0.0
    warmup_s: float = 1.0
    duration_s: float = 10.0
    sampled: int | None = None
    max_waiting: int = 65_536

    def __post_init__(self) -> None:
        """Hold the parts against each other."""
        nodes = self.nodes
        _require(nodes >= 1 and bool(self.traffic), "a fleet has at least one node and one model")
        _require(self.qps > 0 and math.isfinite(self.qps), f"qps must be above 0, not {self.qps}")
        _require(
            self.duration_s > 0 and self.warmup_s >= 0, "duration_s must be above 0, warmup_s at least 0"
        )
        _require(self.noise >= 0, f"noise must be at least 0, not {self.noise}")
        names = [t.model for t in self.traffic]
        _require(len(set(names)) == len(names), f"a model has one share of the traffic: {names}")
        for traffic in self.traffic:
            served = any(traffic.model in group.points for group in self.groups)
            _require(served, f"{traffic.model} is served by no group")
            _require(traffic.share > 0, f"{traffic.model}: share must be above 0, not {traffic.share}")
        for event in self.events:
            wrong = [k for k in event.nodes if not 0 <= k < nodes]
            _require(not wrong, f"an event names node {wrong[:1]}, and there are {nodes}")
            _require(event.until_s > event.from_s, "an event ends after it begins")
            _require(event.times > 0, f"a slow node's times must be above 0, not {event.times}")
        _require(self.sampled is None or self.sampled >= 1, f"sampled must be at least 1, not {self.sampled}")

    @property
    def nodes(self) -> int:
        """How many nodes there are; they are numbered from 0, group after group."""
        return sum(group.count for group in self.groups)

    @property
    def group_of(self) -> tuple[Group, ...]:
        """The group of each node."""
        return tuple(group for group in self.groups for _ in range(group.count))

    @property
    def end_s(self) -> float:
        """When the simulated part ends."""
        return self.start_s + self.warmup_s + self.duration_s

    def slowness(self) -> list[float]:
        """Return by how much each node's seconds are longer than its kind's, log-normal about 1."""
        rng = np.random.default_rng([self.noise_seed, 0x0DE5])
        return np.exp(rng.normal(0.0, self.noise, self.nodes)).tolist() if self.noise else [1.0] * self.nodes

    def weights(self, model: str) -> list[float]:
        """Return each node's share of a model's queries beside the others': 0 where it does not serve it."""
        each = [self._weight(group) if model in group.points else 0.0 for group in self.groups]
        return [weight for weight, group in zip(each, self.groups, strict=True) for _ in range(group.count)]

    def _weight(self, group: Group) -> float:
        if group.weight is not None:
            return group.weight
        mix = [(t.share, t.sizes[0][1], t.model) for t in self.traffic if t.model in group.points]
        seconds = sum(
            share * group.kind.cpu[model].busy.fit().run_s(mean_size(sizes)) for share, sizes, model in mix
        )
        return group.kind.cores * sum(share for share, _, _ in mix) / seconds if seconds > 0 else 1.0


@cache
def mean_size(sizes: str) -> int:
    """Return the mean of a size law, in candidates."""
    return round(float(parse_sizes(sizes).draw(np.random.default_rng(0), 50_000).mean()))


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)
