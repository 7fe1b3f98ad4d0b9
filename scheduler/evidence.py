"""What the controller knows of one model: its traffic, what its batches take, and the tail of the last window."""

from __future__ import annotations

import math

import numpy as np

from scheduler.latency import LinearFit
from scheduler.learning import DeviceSeconds, Seconds, SizeMix
from scheduler.measure import percentile
from scheduler.planner import Machine
from scheduler.query import Batch, Query

BELIEVED = (1, 4, 16, 64, 256)
"""Batch sizes at which the first guess counts as if it had been seen, until real batches outweigh it."""

ENOUGH_OFFLOADED = 5.0
"""So many offloaded queries say what the accelerator takes."""

MOST_SIGMA = 1.0


class Evidence:
    """One model's evidence; what was noted fades as windows end.

    ``prior``: seconds of a batch as they were timed before the first query; 0 and 0 when nothing was.
    ``percentile``: of the target.
    """

    def __init__(self, prior: LinearFit, percentile: float) -> None:
        self.percentile = percentile
        self.cpu = Seconds(prior)
        self.device = DeviceSeconds()
        self.mix = SizeMix()
        self.scored_rate = 0.0
        """Candidates scored a second in the last window, by whichever backend."""
        self.arriving_rate = 0.0
        """Candidates that arrived a second in the last window."""
        self.window_qps = 0.0
        """Queries that arrived a second in the last window."""
        self.tail_s = math.nan
        """Seconds at the target's percentile in the last window; NaN when too few queries say so."""
        self.busy_cores = 0.0
        """How many cores the model keeps busy, a fading mean."""
        self._latencies_s: list[float] = []
        self._scored = self._arrived = 0
        self._busy_s = self._span_s = 0.0
        if prior.per_candidate_s > 0:
            for n in BELIEVED:
                self.cpu.add(n, prior.run_s(n))

    def add_arrival(self, query: Query) -> None:
        """Note a query that arrived."""
        self._arrived += query.size
        self.mix.add(query.size)

    def add_batch(self, batch: Batch, run_s: float) -> None:
        """Note that a CPU batch took these seconds."""
        self._scored += batch.size
        self._busy_s += run_s
        self.cpu.add(batch.size, run_s)

    def add_offloaded(self, query: Query, now: float) -> None:
        """Note that the accelerator's answer to a query came."""
        self._scored += query.size
        self.device.add_answer(query.size, query.started_s, now)

    def add_failed(self, query: Query, now: float) -> None:
        """Note that a query which failed on the accelerator has its answer from the CPU."""
        self.device.add_failed(query.size, query.tried_s, now)

    def add_latency(self, seconds: float) -> None:
        """Note a query's latency under the present point."""
        self._latencies_s.append(seconds)

    def end_window(self, span_s: float, keep: float, min_queries: int) -> None:
        """Sum a window of ``span_s`` seconds up, and let the past fade to ``keep`` of its weight."""
        latencies_s, self._latencies_s = self._latencies_s, []
        self.window_qps = self.mix.arrived / span_s
        self.scored_rate, self._scored = self._scored / span_s, 0
        self.arriving_rate, self._arrived = self._arrived / span_s, 0
        self._span_s += span_s
        self.busy_cores = self._busy_s / self._span_s
        self._busy_s, self._span_s = self._busy_s * keep, self._span_s * keep
        self.tail_s = math.nan
        if len(latencies_s) >= min_queries:
            self.tail_s = percentile(np.array(latencies_s), self.percentile)
        self.mix.end_window(span_s, keep)
        self.cpu.end_window(keep)
        self.device.end_window(keep)

    def late(self, sla_s: float) -> bool:
        """Whether the last window missed the target, or scored clearly fewer candidates than arrived."""
        return self.tail_s > sla_s or self.scored_rate < 0.8 * self.arriving_rate

    @property
    def knows_accelerator(self) -> bool:
        """Whether enough queries were offloaded to say what the accelerator takes."""
        return self.device.weight >= ENOUGH_OFFLOADED

    def machine(self, cores: int, slots: int, *, accelerator: bool, elsewhere: float) -> Machine:
        """Return the machine as this model knows it; ``elsewhere``: cores that other models keep busy."""
        sizes, shares = self.mix.law()
        return Machine(
            cores,
            self.cpu.fit,
            sizes,
            shares,
            accelerator=self.device.fit if accelerator and self.knows_accelerator else None,
            slots=slots,
            sigma=min(self.cpu.sigma, MOST_SIGMA),
            elsewhere=elsewhere,
        )
