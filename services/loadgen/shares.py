"""One schedule, driven by several processes: each one's share of it, and what they recorded as one."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.loadgen.driver import Limits, Plan
from services.loadgen.recording import NOT_SENT, UNFINISHED, Progress, Trace


@dataclass(frozen=True, eq=False)
class Share:
    """One driver's part of a plan.

    query: int64 [K], the index in the plan of each of its queries. arrival_s: float64 [K]. payload: int64 [K].
    limits, concurrency: its part of the run's.
    """

    query: NDArray[np.int64]
    arrival_s: NDArray[np.float64]
    payload: NDArray[np.int64]
    limits: Limits
    concurrency: int | None


def split(plan: Plan, limits: Limits, concurrency: int | None, drivers: int) -> list[Share]:
    """Deal the queries of a plan out in turn, to at most so many drivers that each has a query to send.

    What bounds the run is dealt out, too: a driver gives up after its share of the UNAVAILABLE answers that end a run.
    """
    most = len(plan.payload) if concurrency is None else min(concurrency, len(plan.payload))
    drivers = max(1, min(drivers, most))
    return [_share(plan, limits, concurrency, k, drivers) for k in range(drivers)]


def _share(plan: Plan, limits: Limits, concurrency: int | None, k: int, drivers: int) -> Share:
    query = np.arange(k, len(plan.payload), drivers, dtype=np.int64)
    arrival_s = plan.arrival_s[query]
    limit = limits.unavailable_limit
    # Every driver waits for answers until the same time, though its own last query may leave earlier.
    after_its_last_s = float(plan.arrival_s[-1] - arrival_s[-1]) if len(query) else 0.0
    part = dataclasses.replace(
        limits,
        drain_s=limits.drain_s + after_its_last_s,
        max_in_flight=math.ceil(limits.max_in_flight / drivers),
        max_in_flight_bytes=math.ceil(limits.max_in_flight_bytes / drivers),
        unavailable_limit=None if limit is None else math.ceil(limit / drivers),
    )
    in_flight = None if concurrency is None else len(range(k, concurrency, drivers))
    return Share(query, arrival_s, plan.payload[query], part, in_flight)


def merge_traces(shares: Sequence[Share], traces: Sequence[Trace], cut_short: str | None) -> Trace:
    """Return what the drivers recorded, as if one had driven; ``cut_short`` is why the run as a whole ended early."""
    query = np.concatenate([s.query[t.query] for s, t in zip(shares, traces, strict=True)])
    code = np.concatenate([t.code for t in traces])
    # A driver that came to its end before the others were cut has kept what had no answer.
    kept = np.ones(len(query), bool) if cut_short is None else (code != NOT_SENT) & (code != UNFINISHED)
    order = np.argsort(query, kind="stable")
    order = order[kept[order]]
    return Trace(
        query=query[order],
        scheduled_s=np.concatenate([t.scheduled_s for t in traces])[order],
        latency_s=np.concatenate([t.latency_s for t in traces])[order],
        lag_s=np.concatenate([t.lag_s for t in traces])[order],
        code=code[order],
        wall_s=max(t.wall_s for t in traces),
        cpu_s=sum(t.cpu_s for t in traces),
        cut_short=cut_short,
    )


def merge_progress(looks: Sequence[Progress], total: int) -> Progress:
    """Return one look at a run of ``total`` queries from the latest of each driver."""
    codes: Counter[str] = Counter()
    for look in looks:
        codes.update(look.codes)
    return Progress(
        elapsed_s=max(look.elapsed_s for look in looks),
        total_s=max(look.total_s for look in looks),
        sent=sum(look.sent for look in looks),
        total=total,
        codes=dict(codes),
        latest_s=np.concatenate([look.latest_s for look in looks]),
    )
