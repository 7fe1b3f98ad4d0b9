"""From the samples of a run to one-second windows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scheduler.measure import percentile
from services.loadgen.result import Samples

F64Array = NDArray[np.float64]

SETTLED_S = 30
"""A service has settled when its tail over the next so many seconds is within CLOSE of the settled one."""

CLOSE = 1.05


def tails(scheduled_s: F64Array, latency_s: F64Array, percent: float, duration_s: int) -> F64Array:
    """Return float64 [duration_s]: the percentile of the queries scheduled in each second, NaN where none were."""
    second = scheduled_s.astype(int)
    each = (latency_s[second == k] for k in range(duration_s))
    return np.array([percentile(inside, percent) if len(inside) else np.nan for inside in each])


def share_inside(tail_s: F64Array, sla_s: float) -> float:
    """Return the share of windows with queries whose tail is within the target; ValueError when none had any."""
    some = tail_s[~np.isnan(tail_s)]
    if not len(some):
        raise ValueError("no window had any query")
    return float((some <= sla_s).mean())


def settled_after(ours: Samples, best: Samples, percent: float, event_s: int, duration_s: int) -> int | None:
    """Return the seconds after an event from which the tail of SETTLED_S seconds is close to the settled one.

    ``best``: the pinned best point on the same schedule, whose tail in the same seconds is the settled one. None when
    it never gets there, or there are no such seconds in which every query of the best point has its answer.
    """
    for start in range(event_s, duration_s - SETTLED_S + 1):
        ours_s, best_s = (
            percentile(
                each.latency_s[(each.scheduled_s >= start) & (each.scheduled_s < start + SETTLED_S)], percent
            )
            for each in (ours, best)
        )
        if math.isfinite(best_s) and ours_s <= CLOSE * best_s:
            return start - event_s
    return None
