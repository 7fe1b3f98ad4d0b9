"""DeepRecSched offline: find the operating point with the highest latency-bounded throughput.

The hill climb of the paper (its section 4, here with the ladders and stopping rules that make it robust against
noise), and the exhaustive grid against which it is judged. Both take any ``Measure``: live load on a server or the
simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.measure import Capacity, Measure, Measurement, Sla, feasible, max_qps
from scheduler.plan import OperatingPoint

BATCH_SIZES = (1, 2, 4, 8, 16, 25, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
THRESHOLDS: tuple[int | None, ...] = (1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, None)
"""The last, None, is never: no query is offloaded."""

NOISE = 0.03
"""Throughputs that differ by less than this share count as equal; above the tolerance of a capacity search."""

MAX_ROUNDS = 3
FALLS = 2
"""A climb ends after so many consecutive rungs that are worse than the best by more than the noise."""

_FLOOR = 1 / 64

Finished = Mapping[tuple[OperatingPoint, float], Measurement]
"""Measurements by (operating point, offered queries/s): what an interrupted tuning had already measured."""

Save = Callable[[OperatingPoint, float, Measurement], None]


@dataclass(frozen=True)
class Tried:
    """One operating point that was tried.

    ``qps``: its latency-bounded throughput; when ``pruned``, since it is no better than another point, only a rate
    that it is known to reach (0 if none). ``why``: what holds a higher rate back.
    """

    point: OperatingPoint
    qps: float
    why: str
    pruned: bool = False


@dataclass(frozen=True)
class Tuned:
    """The result of tuning: the best point, 0 queries/s when none meets the target at any rate.

    ``tried`` in the order taken, ``measurements``: how many runs that took, those remembered included.
    """

    point: OperatingPoint
    qps: float
    tried: tuple[Tried, ...]
    measurements: int
    rounds: int


def static_point(largest_query: int, cores: int) -> OperatingPoint:
    """Return the paper's static baseline: the largest query split evenly over all cores, no accelerator."""
    return OperatingPoint(-(-largest_query // cores))


def hill_climb(
    measure: Measure,
    sla: Sla,
    start_qps: float,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    thresholds: Sequence[int | None] = THRESHOLDS,
    noise: float = NOISE,
    tolerance: float = 0.02,
    finished: Finished | None = None,
    save: Save | None = None,
    progress: Callable[[Tried], None] | None = None,
) -> Tuned:
    """Climb the batch sizes from the first up, then the thresholds, then both about the best until nothing changes.

    A first climb takes every other rung, then one about its best takes the rungs between: the way up is where a
    climb spends its measurements. Changed batch sizes ask for the threshold again, at most MAX_ROUNDS times.
    ``thresholds`` empty: there is no accelerator. ``finished`` measurements are not taken again, each new one is
    given to ``save``, and each point to ``progress``; an exception from any of them, KeyboardInterrupt included,
    ends the climb and loses nothing that was saved. Raises ValueError without a batch size.
    """
    if not batch_sizes:
        raise ValueError("a climb needs at least one batch size")
    climb = _Climb(_Capacities(measure, sla, start_qps, tolerance, finished or {}, save), noise, progress)
    best = climb.along([OperatingPoint(n) for n in batch_sizes[::2]])
    best = climb.about(best, [OperatingPoint(n) for n in batch_sizes])
    rounds = 1
    if thresholds:
        # The climb over thresholds has its own best: it begins at 1, which may be far worse than no accelerator.
        best = climb.better(
            climb.along([OperatingPoint(best.point.batch_size, t) for t in thresholds[::2]]), best
        )
    while rounds < MAX_ROUNDS and best.point.offload_from is not None:
        rounds += 1
        before = best
        best = climb.about(best, [OperatingPoint(best.point.batch_size, t) for t in thresholds])
        best = climb.about(best, [OperatingPoint(n, best.point.offload_from) for n in batch_sizes])
        if best is before:
            break
    return Tuned(best.point, best.qps, tuple(climb.tried), climb.capacities.measurements, rounds)


def exhaustive(
    measure: Measure,
    sla: Sla,
    start_qps: float,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    thresholds: Sequence[int | None] = THRESHOLDS,
    tolerance: float = 0.02,
    finished: Finished | None = None,
    save: Save | None = None,
    progress: Callable[[Tried], None] | None = None,
) -> Tuned:
    """Measure every point of the grid: the oracle. The arguments are those of ``hill_climb``."""
    if not batch_sizes:
        raise ValueError("a grid needs at least one batch size")
    capacities = _Capacities(measure, sla, start_qps, tolerance, finished or {}, save)
    tried: list[Tried] = []
    for threshold in thresholds or (None,):
        for size in batch_sizes:
            point = OperatingPoint(size, threshold)
            found = capacities.find(point)
            tried.append(Tried(point, found.qps, found.why))
            if progress is not None:
                progress(tried[-1])
    best = max(tried, key=lambda each: each.qps)
    return Tuned(best.point, best.qps, tuple(tried), capacities.measurements, 1)


class _Capacities:
    """Latency-bounded throughput of points, each search beginning where the last one ended."""

    def __init__(
        self,
        measure: Measure,
        sla: Sla,
        start_qps: float,
        tolerance: float,
        finished: Finished,
        save: Save | None,
    ) -> None:
        self._measure = measure
        self._sla = sla
        self._start_qps = self._next_qps = start_qps
        self._tolerance = tolerance
        self._known = dict(finished)
        self._save = save
        self._taken: set[tuple[OperatingPoint, float]] = set()

    @property
    def measurements(self) -> int:
        """How many different runs were asked for."""
        return len(self._taken)

    def find(self, point: OperatingPoint, at_least_qps: float = 0.0) -> Capacity:
        """Search the point's highest rate within the target, from a rate that it is known to reach if any."""
        start_qps = at_least_qps or self._next_qps
        found = max_qps(
            lambda qps: self._take(point, qps),
            self._sla,
            start_qps,
            tolerance=self._tolerance,
            floor_qps=_FLOOR * min(start_qps, self._start_qps),
        )
        if found.qps > 0:
            self._next_qps = found.qps
        return found

    def meets(self, point: OperatingPoint, qps: float) -> bool:
        """Whether the point meets the target at one rate."""
        return feasible(self._take(point, qps), self._sla)

    def _take(self, point: OperatingPoint, qps: float) -> Measurement:
        self._taken.add((point, qps))
        measurement = self._known.get((point, qps))
        if measurement is None:
            measurement = self._measure(point, qps)
            if measurement.invalid is None:  # an invalid one is taken again, now and after an interruption
                self._known[point, qps] = measurement
                if self._save is not None:
                    self._save(point, qps, measurement)
        return measurement


class _Climb:
    """Walks along rungs, remembering every point tried."""

    def __init__(
        self, capacities: _Capacities, noise: float, progress: Callable[[Tried], None] | None
    ) -> None:
        self.capacities = capacities
        self.noise = noise
        self.progress = progress
        self.tried: list[Tried] = []

    def better(self, candidate: Tried, best: Tried) -> Tried:
        """Return the candidate if it is better by more than the noise: an improvement inside it is none."""
        return candidate if candidate.qps > best.qps * (1 + self.noise) else best

    def along(self, rungs: Sequence[OperatingPoint], best: Tried | None = None) -> Tried:
        """Climb until two consecutive rungs fall, and return the best, not the previous."""
        falls = 0
        for point in rungs:
            tried = self._try(point, best)
            fell = best is not None and tried.qps < best.qps * (1 - self.noise)
            falls = falls + 1 if fell else 0
            best = tried if best is None else self.better(tried, best)
            if falls >= FALLS:
                break
        assert best is not None
        return best

    def about(self, best: Tried, rungs: Sequence[OperatingPoint]) -> Tried:
        """Climb from the best point's rung upward, then downward, and return the best of all."""
        at = rungs.index(best.point)
        return self.along(rungs[:at][::-1], self.along(rungs[at + 1 :], best))

    def _try(self, point: OperatingPoint, best: Tried | None) -> Tried:
        """Return the point's throughput; of one that is no better than the best only that is found out."""
        known = next((t for t in self.tried if t.point == point and not t.pruned), None)
        if known is not None:
            return known
        tried = self._no_better(point, best) if best is not None and best.qps > 0 else None
        if tried is None:
            found = self.capacities.find(point, best.qps * (1 + self.noise) if best is not None else 0.0)
            tried = Tried(point, found.qps, found.why)
        self.tried.append(tried)
        if self.progress is not None:
            self.progress(tried)
        return tried

    def _no_better(self, point: OperatingPoint, best: Tried) -> Tried | None:
        """Return None for a point that is better by more than the noise; one or two rates tell."""
        worse_qps, better_qps = best.qps * (1 - self.noise), best.qps * (1 + self.noise)
        if not self.capacities.meets(point, worse_qps):
            return Tried(point, 0.0, f"misses the target at {worse_qps:.4g} queries/s", pruned=True)
        if not self.capacities.meets(point, better_qps):
            return Tried(point, worse_qps, f"misses the target at {better_qps:.4g} queries/s", pruned=True)
        return None
