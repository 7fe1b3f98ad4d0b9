"""What the controller learns of one model from its traffic: seconds by batch size, the size mix, the rate.

Noting one event is a few additions; what is noted fades with a half-life, so that a changed machine or a changed mix
is believed after a few of them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scheduler.latency import LinearFit, fit_line

F64Array = NDArray[np.float64]

_BUCKETS = 96
_TABLED = 1025
_FORGOTTEN = 1e-3
_SOME = 10.0
"""So many inferences say that batches of a size came; the first guess alone, which counts once a size, does not."""

_SHARED = 0.5
"""A query that was answered within this share of what its size takes, after the one before, had its batch."""


def _bucket(n: int) -> int:
    k = n.bit_length()
    return n if k < 4 else min(4 * (k - 2) + ((n >> (k - 3)) & 3), _BUCKETS - 1)


_TABLE = tuple(_bucket(n) for n in range(_TABLED))


def bucket(n: int) -> int:
    """Return the quarter-octave that a size is in: exact up to 8, then within 25 %."""
    return _TABLE[n] if n < _TABLED else _bucket(n)


class SizeMix:
    """Query sizes as a fading histogram, and the rate at which they arrive."""

    def __init__(self) -> None:
        self.count = [0.0] * _BUCKETS
        self.total = [0.0] * _BUCKETS
        self.arrived = 0
        self._weight = 0.0
        self._span_s = 0.0

    def add(self, n: int) -> None:
        """Note one query."""
        b = bucket(n)
        self.count[b] += 1.0
        self.total[b] += n
        self.arrived += 1

    def end_window(self, span_s: float, keep: float) -> None:
        """Let all that is known fade to ``keep`` of its weight, the window that ends included."""
        self._weight = (self._weight + self.arrived) * keep
        self._span_s = (self._span_s + span_s) * keep
        self.arrived = 0
        self.count = [c * keep for c in self.count]
        self.total = [t * keep for t in self.total]

    @property
    def qps(self) -> float:
        """The fading mean rate, queries/s; 0 before the first window ended."""
        return self._weight / self._span_s if self._span_s > 0 else 0.0

    @property
    def weight(self) -> float:
        """How many queries the histogram still stands for."""
        return sum(self.count)

    def law(self) -> tuple[F64Array, F64Array]:
        """Return float64 [K] sizes, ascending, and float64 [K] shares that sum to 1; empty without queries."""
        count, total = np.array(self.count), np.array(self.total)
        seen = count > _FORGOTTEN
        return total[seen] / count[seen], count[seen] / max(count[seen].sum(), _FORGOTTEN)


class Seconds:
    """The seconds that one backend takes by batch size: a line through the means and a tail about it."""

    def __init__(self, prior: LinearFit | None = None) -> None:
        self.fit = prior or LinearFit(0.0, 0.0)
        self.count = [0.0] * _BUCKETS
        self.size = [0.0] * _BUCKETS
        self.total_s = [0.0] * _BUCKETS
        self._ratios = [0.0, 0.0, 0.0]  # count, sum and sum of squares of seen over fitted

    def add(self, n: int, seconds: float) -> None:
        """Note one inference."""
        b = bucket(n)
        self.count[b] += 1.0
        self.size[b] += n
        self.total_s[b] += seconds
        fit = self.fit
        expected_s = fit.fixed_s + fit.per_candidate_s * n
        if expected_s > 0:
            ratio, ratios = seconds / expected_s, self._ratios
            ratios[0] += 1.0
            ratios[1] += ratio
            ratios[2] += ratio * ratio

    def end_window(self, keep: float) -> None:
        """Fit again, then let all that is known fade to ``keep`` of its weight."""
        count, size, total_s = np.array(self.count), np.array(self.size), np.array(self.total_s)
        seen = (count > 0.1) & (total_s > 0)
        if seen.any():
            n, s = size[seen] / count[seen], total_s[seen] / count[seen]
            # A bucket seen ten thousand times must not hide what the others say of the fixed part.
            self.fit = fit_line(n, s, np.minimum(count[seen], 50.0))
        self.count, self.size, self.total_s = (
            [v * keep for v in values] for values in (self.count, self.size, self.total_s)
        )
        self._ratios = [v * keep for v in self._ratios]

    @property
    def weight(self) -> float:
        """How many inferences the evidence still stands for."""
        return sum(self.count)

    @property
    def largest(self) -> int:
        """The largest size that is known, 0 if none."""
        return max((round(n / c) for c, n in zip(self.count, self.size, strict=True) if c > 0.1), default=0)

    def seen(self, n: int) -> bool:
        """Whether inferences of about this size or larger were seen of late, and not a few."""
        return sum(self.count[bucket(n) :]) >= _SOME

    @property
    def buckets(self) -> int:
        """Over how many quarter-octaves of sizes the evidence spreads."""
        return sum(1 for c in self.count if c > 0.5)

    @property
    def sigma(self) -> float:
        """The spread of the log-normal tail about the line."""
        count, total, squares = self._ratios
        if count < 2 or total <= 0:
            return 0.0
        return math.sqrt(math.log(max(1.0, squares * count / (total * total))))


class DeviceSeconds(Seconds):
    """The seconds that an accelerator is busy with a query, told from when queries were sent and when answers came.

    It is taken to work in order, as one device however many there are: a query that was sent before the last answer
    came had to wait for that. What it waited is no part of what it takes: who plans with both counts the queue twice,
    and shuns an accelerator that has room.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answered_s = -math.inf
        self._answered = [0.0] * _BUCKETS  # queries, however many shared a batch
        self._given_up = [0.0] * _BUCKETS
        self._batch: tuple[int, float] | None = (
            None  # candidates and seconds, until it is known who shared them
        )

    def add_answer(self, n: int, sent_s: float, now: float) -> None:
        """Note the answer to a query of so many candidates.

        One that waited and then came much sooner than it takes shared a batch with the one before, and is counted with
        it. Until anything is known only those that did not wait count.
        """
        waited = sent_s < self._answered_s
        seconds = now - max(sent_s, self._answered_s)
        self._answered_s = now
        self._answered[bucket(n)] += 1.0
        expected_s = self.fit.run_s(n)
        if waited and not expected_s > 0:
            return
        if not waited or seconds > _SHARED * expected_s:
            self._count_batch()
            self._batch = n, seconds
        elif self._batch is not None:
            self._batch = self._batch[0] + n, self._batch[1] + seconds

    def add_failed(self, n: int, sent_s: float, now: float) -> None:
        """Note a query that the accelerator did not answer in time, and that another did by now.

        That long is what offloading it took: by the queries alone that it answers, an accelerator which fails on the
        slow half of them would look fast. But where others were answered meanwhile and most queries of the size are,
        this one was given up in the queue, which says nothing of what it takes.
        """
        b = bucket(n)
        if sent_s < self._answered_s:
            self._given_up[b] += 1.0
            if self._given_up[b] <= self._answered[b]:
                return
        self.add(n, now - sent_s)

    def end_window(self, keep: float) -> None:
        """Fit again, then let all that is known fade to ``keep`` of its weight."""
        self._count_batch()
        super().end_window(keep)
        self._answered = [v * keep for v in self._answered]
        self._given_up = [v * keep for v in self._given_up]

    def _count_batch(self) -> None:
        if self._batch is not None:
            self.add(*self._batch)
            self._batch = None
