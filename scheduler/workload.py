"""The queries of a run: when each arrives and how many candidates it has.

Everything is drawn from a seed before a run starts, so that a live run, a simulated run and a repeated run see the
same queries at the same times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.arrivals import MAX_QUERIES, ArrivalLaw
from scheduler.law_text import require
from scheduler.sizes import SizeLaw

F64Array = NDArray[np.float64]
I32Array = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The queries of one run, drawn before it starts.

    arrival_s: float64 [Q], ascending, seconds from the start of the run, the first at or after 0.
    size: int32 [Q], candidates of each query, at least 1.
    """

    arrival_s: F64Array
    size: I32Array

    def __len__(self) -> int:
        return len(self.arrival_s)


def draw_schedule(
    seed: int | Sequence[int],
    arrival_law: ArrivalLaw,
    size_law: SizeLaw,
    qps: float,
    *,
    duration_s: float | None = None,
    count: int | None = None,
    max_size: int | None = None,
) -> Schedule:
    """Draw the queries of a run: those that arrive before ``duration_s``, or exactly ``count`` of them.

    Arrivals and sizes come from separate streams of the seed, so changing one law leaves the other's draws alone.
    Sizes above ``max_size`` are cut to it. Raises ValueError for a rate, duration or count that makes no schedule.
    """
    require(math.isfinite(qps) and qps > 0, f"the rate must be above 0 queries/s, not {qps}")
    require((duration_s is None) != (count is None), "give either a duration or a count")
    if duration_s is not None:
        require(
            math.isfinite(duration_s) and duration_s > 0, f"the duration must be above 0 s, not {duration_s}"
        )
    require(count is None or count >= 1, f"the count must be at least 1, not {count}")
    expected = count if count is not None else arrival_law.mean_count(qps, duration_s or 0.0)
    require(expected <= MAX_QUERIES, f"a schedule of {expected:.3g} queries exceeds {MAX_QUERIES}")
    arrivals, sizes = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    arrival_s = arrival_law.draw(arrivals, qps, duration_s=duration_s, count=count)
    size = size_law.draw(sizes, len(arrival_s))
    return Schedule(arrival_s, size if max_size is None else np.minimum(size, np.int32(max_size)))
