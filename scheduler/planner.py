"""The controller's model of the machine: what every operating point would bear, in closed form.

Queries of size n wait behind a batch in service (its residual, longer for larger batches) and behind the work that
goes before them, which under the batcher's order is the work of the smaller ones: the mean wait of a priority queue
(Cobham, 1954) with the cores as one fast server. Waits are taken as exponential with the probability of waiting at
all; the share of queries later than a limit follows by summing over sizes. The figures rank points; they are no
promise, so the controller checks the tail that it sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.latency import LinearFit
from scheduler.measure import P99_FACTOR, P999_FACTOR, Sla
from scheduler.plan import MERGE_FACTOR, OperatingPoint

F64Array = NDArray[np.float64]

_Z95 = 1.645
_MOST_ELSEWHERE = 0.9
"""Other models are never taken to hold more of the cores than this share: some rate is always borne."""


@dataclass(frozen=True)
class Machine:
    """What is known of one model on the machine: sizes and shares are float64 [K], sizes ascending.

    ``accelerator`` None: there is none, or nothing is known of it. ``slots``: what it takes at once. ``elsewhere``:
    how many of the cores other models keep busy.
    """

    cores: int
    cpu: LinearFit
    sizes: F64Array
    shares: F64Array
    accelerator: LinearFit | None = None
    slots: int = 1
    sigma: float = 0.0
    elsewhere: float = 0.0


@dataclass(frozen=True)
class Question:
    """What would these points of a model bear on this machine? ``points[0]`` is the present one.

    ``qps``: the present rate, at which the tails are wanted.
    """

    model: str
    machine: Machine
    sla: Sla
    points: tuple[OperatingPoint, ...]
    qps: float


@dataclass(frozen=True, eq=False)
class Forecast:
    """The answer, float64 [P] in the order of the points.

    capacity_qps: the latency-bounded throughput. tail_s: seconds at the target's percentile at the present rate.
    """

    capacity_qps: F64Array
    tail_s: F64Array


def forecast(question: Question) -> Forecast:
    """Answer a question: a few milliseconds for a grid."""
    machine = question.machine
    outlook = Outlook(machine, question.sla, list(question.points))
    mean_run_s = machine.cpu.run_s(float(machine.sizes @ machine.shares))
    capacity_qps = outlook.capacity_qps(8 * machine.cores / max(mean_run_s, 1e-9))
    return Forecast(capacity_qps, outlook.tail_s(question.qps))


class Outlook:
    """The operating points of a grid on one machine; arrays over points [P], over sizes too [P, K]."""

    def __init__(self, machine: Machine, sla: Sla, points: list[OperatingPoint]) -> None:
        self.points = points
        self._sla = sla
        n, fit, cores = machine.sizes, machine.cpu, machine.cores
        batch = np.array([p.batch_size for p in points], dtype=float)[:, None]
        threshold = np.array([math.inf if p.offload_from is None else p.offload_from for p in points])[
            :, None
        ]
        self._offloads = n[None, :] >= threshold
        self._share = machine.shares[None, :]
        on_cpu = np.where(self._offloads, 0.0, self._share)
        noise = 1 + machine.sigma**2
        least = fit.fixed_s / fit.per_candidate_s if fit.per_candidate_s > 0 else np.inf
        merged = np.minimum(batch, max(1.0, min(MERGE_FACTOR * least, 1e9)))
        batches = np.where(n[None, :] < merged, n[None, :] / merged, np.ceil(n[None, :] / batch))
        work_s = fit.fixed_s * batches + fit.per_candidate_s * n[None, :]
        run_s = fit.fixed_s + fit.per_candidate_s * np.clip(n[None, :], merged, batch)
        # Slices of one query run side by side, but none is smaller than the batch size or where cutting pays.
        slices = np.clip(n[None, :] / max(1.0, min(least, 1e9)), 1.0, cores)
        slices = np.maximum(slices, np.minimum(np.ceil(n[None, :] / batch), cores))
        self._own_s = (fit.fixed_s + fit.per_candidate_s * n[None, :] / slices) * math.exp(
            _Z95 * machine.sigma / 2
        )
        self._own_s = np.maximum(self._own_s, work_s / cores)
        self._cores = cores
        self._elsewhere = min(
            machine.elsewhere / cores, _MOST_ELSEWHERE
        )  # share of the cores, whatever comes here
        self._work_s = (on_cpu * work_s).sum(1, keepdims=True)  # core seconds for each query of the mix
        busy = on_cpu * work_s
        # The batch that a query finds in service: longer ones are met more often.
        self._residual_s = (
            (busy * run_s).sum(1, keepdims=True) / np.maximum(self._work_s, 1e-12) / 2 * noise / cores
        )
        self._before = np.cumsum(busy, axis=1)
        self._before_sq = np.cumsum(on_cpu * work_s**2, axis=1) * noise / (2 * cores**2)
        self._accelerated(machine, noise)

    def _accelerated(self, machine: Machine, noise: float) -> None:
        device = machine.accelerator or LinearFit(math.inf, 0.0)
        seconds = device.fixed_s + device.per_candidate_s * machine.sizes[None, :]
        self._device_s = np.broadcast_to(seconds * math.exp(_Z95 * machine.sigma / 2), self._offloads.shape)
        share = np.where(self._offloads, self._share, 0.0)
        seconds = np.where(self._offloads, seconds, 0.0)
        self._device_work_s = (share * seconds).sum(1, keepdims=True) / machine.slots
        self._device_sq = (share * seconds**2).sum(1, keepdims=True) * noise / (2 * machine.slots**2)

    def late(self, qps: F64Array, limit_s: F64Array | float) -> F64Array:
        """Return the share of queries later than the limits, at these rates: all float64 [P]."""
        rate = qps[:, None]
        load = np.clip(rate * self._work_s / self._cores + self._elsewhere, 0.0, 1.0)
        slack = np.maximum(1 - self._elsewhere - rate * self._before / self._cores, 1e-6)
        waits = load ** math.sqrt(2 * (self._cores + 1) - 1)  # Sakasegawa's probability of waiting
        waits = np.maximum(waits, 1e-9)
        wait_s = (self._residual_s * waits + rate * self._before_sq) / (slack * np.maximum(slack, 1 - load))
        over_s = np.maximum(np.reshape(limit_s, (-1, 1)) - self._own_s, 0.0)
        chance = np.minimum(np.maximum(waits, load), 1.0)
        late = np.where(
            self._own_s > np.reshape(limit_s, (-1, 1)),
            1.0,
            chance * np.exp(-over_s * chance / np.maximum(wait_s, 1e-12)),
        )
        late = np.where(self._offloads, self._late_device(rate, limit_s), late)
        late = np.where((load >= 1) & ~self._offloads, 1.0, late)
        return np.asarray((late * self._share).sum(1))

    def _late_device(self, rate: F64Array, limit_s: F64Array | float) -> F64Array:
        load = rate * self._device_work_s
        wait_s = rate * self._device_sq / np.maximum(1 - load, 1e-6) / np.maximum(load, 1e-9)
        over_s = np.maximum(np.reshape(limit_s, (-1, 1)) - self._device_s, 0.0)
        late = np.minimum(load, 1.0) * np.exp(-over_s / np.maximum(wait_s, 1e-12))
        return np.where((self._device_s > np.reshape(limit_s, (-1, 1))) | (load >= 1), 1.0, late)

    def capacity_qps(self, top_qps: float) -> F64Array:
        """Return float64 [P]: the highest rate, up to the top, at which each point meets the target's tail rule."""
        low, high = np.zeros(len(self.points)), np.full(len(self.points), top_qps)
        rules = (
            (self._sla.late_share, self._sla.seconds),
            (0.01, P99_FACTOR * self._sla.seconds),
            (0.001, P999_FACTOR * self._sla.seconds),
        )
        for _ in range(14):
            middle = (low + high) / 2
            meets = np.all([self.late(middle, limit_s) <= share for share, limit_s in rules], axis=0)
            low, high = np.where(meets, middle, low), np.where(meets, high, middle)
        return low

    def tail_s(self, qps: float) -> F64Array:
        """Return float64 [P]: the predicted seconds at the target's percentile; at most 100 targets."""
        rate = np.full(len(self.points), qps)
        low, high = np.zeros(len(self.points)), np.full(len(self.points), 100 * self._sla.seconds)
        for _ in range(20):
            middle = (low + high) / 2
            meets = self.late(rate, middle) <= self._sla.late_share
            low, high = np.where(meets, low, middle), np.where(meets, middle, high)
        return high
