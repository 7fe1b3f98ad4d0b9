"""Percentiles of more latencies than memory should hold: a DDSketch, and a count of the queries without an answer.

DDSketch (Masson, Rim and Lee, VLDB 2019) counts values in buckets whose width is a share of the value. So every
percentile of the answered queries is off by at most ACCURACY of itself, whatever the law, and sketches of parts add up
exactly to the sketch of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ddsketch.ddsketch import BaseDDSketch
from ddsketch.mapping import LogarithmicMapping
from ddsketch.store import DenseStore
from numpy.typing import NDArray

ACCURACY = 0.005
"""The largest relative error of a percentile."""

_SHORTEST_S = 1e-9
"""Anything shorter is counted as this long."""


class LatencySketch:
    """Latencies in seconds of queries, of which ``failed`` had no answer and count as infinitely late."""

    def __init__(self) -> None:
        self._mapping, self._bins = LogarithmicMapping(ACCURACY), DenseStore()
        self._answered = BaseDDSketch(self._mapping, self._bins, DenseStore(), 0.0)
        self.failed = 0

    def add(self, latency_s: NDArray[np.float64]) -> None:
        """Add float64 [Q] seconds, each above 0 or infinite."""
        answered = latency_s[np.isfinite(latency_s)]
        self.failed += len(latency_s) - len(answered)
        if not len(answered):
            return
        answered = np.maximum(answered, _SHORTEST_S)
        # The sketch takes one value at a time, each with a weight: one of each bucket stands for all in it.
        bucket = np.ceil(np.log(answered) / math.log(self._mapping.gamma))
        _, first, count = np.unique(bucket, return_index=True, return_counts=True)
        for value, weight in zip(answered[first].tolist(), count.tolist(), strict=True):
            self._answered.add(value, weight)

    def merge(self, other: LatencySketch) -> None:
        """Add what another sketch holds."""
        self._answered.merge(other._answered)
        self.failed += other.failed

    @property
    def count(self) -> int:
        """How many queries were added, those without an answer among them."""
        return int(self._answered.count) + self.failed

    def percentile(self, percent: float) -> float:
        """Return the percentile in seconds, within ACCURACY of what ``measure.percentile`` returns."""
        n, answered = self.count, int(self._answered.count)
        if not n:
            return math.inf
        rank = math.ceil(percent / 100.0 * (n - 1) - 1e-9)
        if rank >= answered:
            return math.inf
        # Half a rank further, so that no rounding falls into the bucket before.
        quantile = min(1.0, (rank + 0.5) / (answered - 1)) if answered > 1 else 1.0
        seconds = self._answered.get_quantile_value(quantile)
        assert seconds is not None
        return seconds

    def values(self) -> list[tuple[float, int]]:
        """Return (seconds, queries) of every bucket, and last of those without an answer, infinitely late."""
        key = self._bins.offset
        found = [(self._mapping.value(key + k), int(w)) for k, w in enumerate(self._bins.bins) if w]
        return [*found, (math.inf, self.failed)] if self.failed else found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data that ``from_dict`` reads back: how many values each bucket has."""
        bins = {str(self._bins.offset + k): int(weight) for k, weight in enumerate(self._bins.bins) if weight}
        return {"failed": self.failed, "bins": bins}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencySketch:
        """Read what ``to_dict`` wrote."""
        made = cls()
        made.failed = data["failed"]
        for key, weight in data["bins"].items():
            made._answered.add(made._mapping.value(int(key)), weight)
        return made


def merged(sketches: Iterable[LatencySketch]) -> LatencySketch:
    """Return the sketch of all of them together."""
    whole = LatencySketch()
    for sketch in sketches:
        whole.merge(sketch)
    return whole


def blended(parts: Iterable[tuple[LatencySketch, float]], percent: float) -> float:
    """Return a percentile of a mixture: each part has its weight, however many queries it holds.

    So parts of a day count by their rates. Infinite where so large a share has no answer, and without queries.
    """
    weighed: dict[float, float] = {}
    for sketch, weight in parts:
        for seconds, count in sketch.values():
            weighed[seconds] = weighed.get(seconds, 0.0) + weight * count / sketch.count
    total, reached = sum(weighed.values()), 0.0
    for seconds in sorted(weighed):
        reached += weighed[seconds]
        if reached >= (percent / 100.0 - 1e-12) * total:
            return seconds
    return math.inf
