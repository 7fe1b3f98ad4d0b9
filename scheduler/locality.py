"""What the look-ups of tables have of locality: how many rows they spread over, and how soon they come back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

I64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Locality:
    """The locality of a sample of look-ups, each table's in the order in which they come.

    look_ups: in the sample, over ``tables``. distinct_share: rows that are touched, per look-up. top_percent_share:
    share of the look-ups that go to the most used hundredth of the rows touched, table by table (at least one row).
    mean_reuse_distance: mean LRU stack distance of the look-ups whose row came before (see ``scheduler.reuse``), in
    rows; None where none did. All depend on the sample's length: compare only samples of one length.
    """

    look_ups: int
    tables: int
    distinct_share: float
    top_percent_share: float
    mean_reuse_distance: float | None


def measure_locality(tables: Iterable[NDArray[Any]]) -> Locality | None:
    """Measure the look-ups of each table (integers [n], in order); None when there are none."""
    look_ups = count = touched = at_top = reused = distance = 0
    for ids in tables:
        if not len(ids):
            continue
        uses = np.sort(np.unique(ids, return_counts=True)[1])
        distances = stack_distances(ids)
        count += 1
        look_ups += len(ids)
        touched += len(uses)
        at_top += int(uses[-max(1, len(uses) // 100) :].sum())
        reused += int(np.count_nonzero(distances))
        distance += int(distances.sum())
    if not look_ups:
        return None
    mean = distance / reused if reused else None
    return Locality(look_ups, count, touched / look_ups, at_top / look_ups, mean)


def stack_distances(ids: NDArray[Any]) -> I64Array:
    """Return the LRU stack distance of each look-up of one table, int64 [n], 0 for a row's first; O(n log n)."""
    order = np.argsort(ids, kind="stable")
    again = ids[order[1:]] == ids[order[:-1]]
    previous = np.full(len(ids), -1, dtype=np.int64)
    previous[order[1:][again]] = order[:-1][again]
    use = np.flatnonzero(previous >= 0)
    before = previous[use]
    # Since the row's last use so many look-ups came, less those whose row came again since: one row, counted once.
    distance = np.zeros(len(ids), dtype=np.int64)
    distance[use] = use - before - _earlier_and_larger(before)
    return distance


def _earlier_and_larger(values: I64Array) -> I64Array:
    """Return for each of distinct values how many before it are larger, [n], bit by bit from the highest."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    found = np.zeros(len(values), dtype=np.int64)
    # Those that agree in the bits above lie together, in their first order: of two, the first larger one differs here.
    order = np.arange(len(values))
    for bit in reversed(range(len(values).bit_length())):
        sorted_rank = rank[order]
        prefix = sorted_rank >> (bit + 1)
        one = (sorted_rank >> bit) & 1
        ones_before = np.cumsum(one) - one
        in_group = ones_before - ones_before[np.searchsorted(prefix, prefix)]
        found[order] += np.where(one == 0, in_group, 0)
        order = order[np.argsort(sorted_rank >> bit, kind="stable")]
    return found
