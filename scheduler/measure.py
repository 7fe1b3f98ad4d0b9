"""Targets, measurements against them, and the search for the highest rate that stays within one.

One definition of a percentile holds everywhere: of n latencies in ascending order, percentile p is the one at index
ceil(p / 100 * (n - 1)), an observed value, never an interpolated one. A query that was refused, expired or failed
counts as infinitely late, so shedding load cannot improve a tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.plan import OperatingPoint

MAX_FAILED_SHARE = 0.001
MIN_COMPLETED_SHARE = 0.98
P99_FACTOR = 2.0
P999_FACTOR = 5.0


@dataclass(frozen=True)
class Sla:
    """A tail-latency target: this percentile of the query latencies stays within these seconds.

    Raises ValueError unless the percentile is above 0 and below 100 and the seconds are finite and above 0.
    """

    percentile: float
    seconds: float

    def __post_init__(self) -> None:
        if not 0.0 < self.percentile < 100.0:
            raise ValueError(f"a target's percentile is above 0 and below 100, not {self.percentile}")
        if not (math.isfinite(self.seconds) and self.seconds > 0.0):
            raise ValueError(f"a target's seconds are above 0, not {self.seconds}")

    @property
    def late_share(self) -> float:
        """The share of queries that may be later than the target."""
        return 1.0 - self.percentile / 100.0

    @property
    def min_count(self) -> int:
        """The fewest queries that say something about the tail: ten beyond the percentile (200 for p95)."""
        return math.ceil(10.0 / self.late_share - 1e-6)


@dataclass(frozen=True)
class Measurement:
    """What one run at one rate showed, over its window without the warm-up.

    ``count`` queries were scheduled in the window, ``failed`` of them got no answer; ``completed_qps`` and
    ``candidates_per_s`` count the answers that came within the window. Latencies are in seconds from the scheduled
    arrival; ``tail_s`` is the one at the target's percentile. ``kept_up`` is False when the backlog grew (see
    ``summarise``). ``invalid`` says why the numbers must not be used, None when they may.
    """

    offered_qps: float
    completed_qps: float
    candidates_per_s: float
    duration_s: float
    count: int
    failed: int
    p50_s: float
    p95_s: float
    p99_s: float
    p999_s: float
    max_s: float
    tail_s: float
    kept_up: bool
    invalid: str | None = None


Measure = Callable[[OperatingPoint, float], Measurement]
"""Load at (operating point, queries/s): live load on a server is one such function, the simulator another."""


def percentile(values: NDArray[Any], percent: float) -> float:
    """Return the value at index ceil(percent / 100 * (n - 1)) of the ascending values; infinity when there are none."""
    return percentiles(values, percent)[0]


def percentiles(values: NDArray[Any], *percents: float) -> tuple[float, ...]:
    """Return several percentiles as ``percentile`` defines them, sorting once."""
    n = len(values)
    if not n:
        return (math.inf,) * len(percents)
    ordered = np.sort(values)
    # Without the small subtraction 0.07 * 100 = 7.000000000000001 would count as index 8.
    return tuple(float(ordered[math.ceil(p / 100.0 * (n - 1) - 1e-9)]) for p in percents)


def summarise(
    sla: Sla,
    scheduled_s: NDArray[Any],
    latency_s: NDArray[Any],
    size: NDArray[Any],
    *,
    window: tuple[float, float],
    min_count: int | None = None,
    invalid: str | None = None,
) -> Measurement:
    """Summarise a run.

    scheduled_s, latency_s: [Q] seconds, latencies infinite for queries without an answer. size: [Q] candidates.
    window: start and end in seconds on the clock of ``scheduled_s``: queries scheduled before it are warm-up.
    min_count: fewer queries in the window make the run invalid; the target's ``min_count`` when None.
    invalid: a reason that the caller already has, such as a driver that fell behind.

    The run kept up when both hold. (1) Completions in the window were at least 98 % of arrivals, or the queries in
    flight grew by no more than a server within its target holds anyway: by Little's law at most rate x target, plus
    three Poisson deviations. (2) In the last fifth of the window the share of queries later than the target was no more
    than twice the allowed share plus three binomial deviations: a queue that grows slowly shows at the end first.
    """
    start_s, end_s = window
    inside = (scheduled_s >= start_s) & (scheduled_s < end_s)
    latency = latency_s[inside]
    count, duration_s = len(latency), end_s - start_s
    done_s = scheduled_s + latency_s
    done = (done_s > start_s) & (done_s <= end_s)
    p50, p95, p99, p999, worst, tail = percentiles(latency, 50, 95, 99, 99.9, 100, sla.percentile)
    needed = sla.min_count if min_count is None else min_count
    if invalid is None and count < needed:
        invalid = f"too short: {count} queries measured, {needed} needed for a p{sla.percentile:g}"
    return Measurement(
        offered_qps=_rate(count, duration_s),
        completed_qps=_rate(int(done.sum()), duration_s),
        candidates_per_s=_rate(int(size[done].sum(dtype=np.int64)), duration_s),
        duration_s=duration_s,
        count=count,
        failed=int(np.isinf(latency).sum()),
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        p999_s=p999,
        max_s=worst,
        tail_s=tail,
        kept_up=_drained(sla, scheduled_s, done_s, window)
        and _steady(sla, scheduled_s[inside], latency, window),
        invalid=invalid,
    )


def _rate(amount: float, duration_s: float) -> float:
    return amount / duration_s if duration_s > 0 else 0.0


def _drained(sla: Sla, scheduled_s: NDArray[Any], done_s: NDArray[Any], window: tuple[float, float]) -> bool:
    """Rule (1) of ``summarise``; failed queries are left to the rule on failures."""
    answered = np.isfinite(done_s)
    arrived_s, done_s = scheduled_s[answered], done_s[answered]
    start_s, end_s = window
    arrivals = int(((arrived_s >= start_s) & (arrived_s < end_s)).sum())
    completions = int(((done_s > start_s) & (done_s <= end_s)).sum())
    # The failed may be all: a window without answers says nothing of a backlog here.
    held = arrivals * _rate(sla.seconds, end_s - start_s)
    return completions >= MIN_COMPLETED_SHARE * arrivals or arrivals - completions <= held + 3 * math.sqrt(
        held
    )


def _steady(
    sla: Sla, scheduled_s: NDArray[Any], latency_s: NDArray[Any], window: tuple[float, float]
) -> bool:
    """Rule (2) of ``summarise``, for the queries of the window."""
    start_s, end_s = window
    last = latency_s[scheduled_s >= end_s - (end_s - start_s) / 5]
    if not len(last):
        return True
    allowed = sla.late_share
    limit = 2 * allowed + 3 * math.sqrt(allowed * (1 - allowed) / len(last))
    return float((last > sla.seconds).mean()) <= limit


def shortfall(measurement: Measurement, sla: Sla) -> str | None:
    """Return the first reason why a measurement does not show that its rate meets the target; None when it does.

    It does when it is valid, at most 0.1 % of the queries failed, completions kept up with arrivals, the target's
    percentile is within the target, p99 within twice and p99.9 within five times the target.
    """
    m = measurement
    if m.invalid is not None:
        return f"invalid: {m.invalid}"
    rules = (
        (m.failed <= MAX_FAILED_SHARE * m.count, f"{m.failed} of {m.count} queries failed"),
        (m.tail_s <= sla.seconds, _over(f"p{sla.percentile:g}", m.tail_s, sla.seconds)),
        (m.p99_s <= P99_FACTOR * sla.seconds, _over("p99", m.p99_s, P99_FACTOR * sla.seconds)),
        (m.p999_s <= P999_FACTOR * sla.seconds, _over("p99.9", m.p999_s, P999_FACTOR * sla.seconds)),
        (m.kept_up, f"completions fell behind: {m.completed_qps:.4g} of {m.offered_qps:.4g} queries/s"),
    )
    return next((reason for holds, reason in rules if not holds), None)


def feasible(measurement: Measurement, sla: Sla) -> bool:
    """Whether a measurement shows that its rate meets the target, by the rules of ``shortfall``."""
    return shortfall(measurement, sla) is None


def _over(name: str, value_s: float, limit_s: float) -> str:
    return f"{name} of {value_s * 1e3:.4g} ms is over {limit_s * 1e3:.4g} ms"


@dataclass(frozen=True)
class Probe:
    """One rate that a search tried, and why it does not count as met (None when it does)."""

    qps: float
    measurement: Measurement
    shortfall: str | None


@dataclass(frozen=True)
class Capacity:
    """The result of a search: the highest rate found within the target.

    ``qps`` is 0 and ``measurement`` None when no tried rate meets the target. ``why`` says what ended the search
    or what holds the next higher rate back. ``probes`` are all measurements, in the order taken.
    """

    qps: float
    measurement: Measurement | None
    probes: tuple[Probe, ...]
    why: str


def max_qps(
    measure: Callable[[float], Measurement],
    sla: Sla,
    start_qps: float,
    *,
    tolerance: float = 0.02,
    max_probes: int = 24,
    floor_qps: float | None = None,
    stride: float = 2.0,
    confirm_miss: bool = False,
) -> Capacity:
    """Find the highest rate within a target: go up (or down) by ``stride`` until bracketed, then bisect its logarithm.

    A small stride is for a start that is nearly right. Ends when the bracket is within ``tolerance``, after
    ``max_probes`` measurements, or when going down passes ``floor_qps`` (start_qps / 1024 when None). A measurement
    that is invalid is taken once more; still invalid it counts as not met, and two such rates before any was met end
    the search with the reason.
    With ``confirm_miss``, for a measure with noise, the lowest missed rate is measured once more at the end, since a
    disturbance from outside only ever makes a rate look worse; if it is met now, the search goes on from it.
    Raises ValueError for a start, tolerance or number of probes that is not above 0, or a stride not above 1.
    """
    if not (math.isfinite(start_qps) and start_qps > 0 and tolerance > 0 and max_probes > 0 and stride > 1):
        raise ValueError(
            "a search needs a start rate, a tolerance and a number of probes above 0, and a stride above 1"
        )
    floor_qps = start_qps / 1024 if floor_qps is None else floor_qps
    probes: list[Probe] = []
    met: Probe | None = None
    missed: Probe | None = None
    rate: float | None = start_qps
    confirmed: set[float] = set()
    while rate is not None and len(probes) < max_probes:
        probe = _probe(measure, sla, rate, probes, max_probes)
        if met is None and missed is not None and missed.measurement.invalid and probe.measurement.invalid:
            return Capacity(0.0, None, tuple(probes), f"{probe.shortfall} (at {rate:.4g} queries/s)")
        if probe.shortfall is not None:
            missed = probe
        else:
            met, missed = probe, None if missed is not None and missed.qps <= rate else missed
        rate = _next_rate(met, missed, tolerance, floor_qps, stride)
        bound = missed if confirm_miss and met is not None else None
        if rate is None and bound is not None and bound.qps not in confirmed:
            rate = bound.qps
            confirmed.add(rate)
    return _capacity(met, missed, tuple(probes), finished=rate is None)


def _probe(
    measure: Callable[[float], Measurement], sla: Sla, qps: float, probes: list[Probe], max_probes: int
) -> Probe:
    for _ in range(2):
        measurement = measure(qps)
        probes.append(Probe(qps, measurement, shortfall(measurement, sla)))
        if measurement.invalid is None or len(probes) >= max_probes:
            break
    return probes[-1]


def _next_rate(
    met: Probe | None, missed: Probe | None, tolerance: float, floor_qps: float, stride: float
) -> float | None:
    if met is None:
        assert missed is not None
        lower = missed.qps / stride
        return lower if lower >= floor_qps else None
    if missed is None:
        return met.qps * stride
    return None if missed.qps / met.qps <= 1 + tolerance else math.sqrt(met.qps * missed.qps)


def _capacity(
    met: Probe | None, missed: Probe | None, probes: tuple[Probe, ...], *, finished: bool
) -> Capacity:
    if missed is None:
        assert met is not None
        why = f"no rate tried misses the target; the search ended after {len(probes)} probes"
    else:
        why = f"at {missed.qps:.4g} queries/s: {missed.shortfall}"
        if not finished:
            why += f"; the search ended after {len(probes)} probes"
    if met is None:
        return Capacity(0.0, None, probes, f"no rate tried meets the target; {why}")
    return Capacity(met.qps, met.measurement, probes, why)
