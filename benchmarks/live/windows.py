"""From the samples of a run to one-second windows."""

from __future__ import annotations

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
    """Return the share of windows with queries whose tail is within the target."""
    some = tail_s[~np.isnan(tail_s)]
    return float((some <= sla_s).mean())


def settled_after(ours: Samples, best: Samples, percent: float, event_s: int, duration_s: int) -> int | None:
    """Return the seconds after an event from which the tail of SETTLED_S seconds is close to the settled one.

    ``best``: the pinned best point on the same schedule, whose tail in the same seconds is the settled one. None when
    it never gets there.
    """
    for start in range(event_s, duration_s - SETTLED_S + 1):
        ours_s, best_s = (
            percentile(
                each.latency_s[(each.scheduled_s >= start) & (each.scheduled_s < start + SETTLED_S)], percent
            )
            for each in (ours, best)
        )
        if ours_s <= CLOSE * best_s:
            return start - event_s
    return None
