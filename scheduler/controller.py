"""DeepRecSched online: completions in, operating points out.

A state machine without clock or threads, as the Batcher is: the live server and the simulator drive the same one. It
learns what batches take, which sizes come and how fast (``learning``), asks a model of the machine which point bears
the most (``planner``), and trusts the tail that it sees more than the one that it predicted.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field, replace

import numpy as np

from scheduler.latency import LinearFit
from scheduler.learning import Seconds, SizeMix
from scheduler.measure import Sla, percentile
from scheduler.plan import OperatingPoint, Plan
from scheduler.planner import Machine, Outlook
from scheduler.query import Batch, Query

LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
THRESHOLD_LADDER = (1, 32, 64, 128, 192, 256, 384, 512, 768)

_ENOUGH = 5.0
"""So many offloaded queries say what the accelerator takes."""


@dataclass(frozen=True)
class Tuning:
    """How the controller behaves.

    ``window_s``: seconds between decisions. ``half_life_s``: evidence counts half after so long. ``plan_every``: every
    so many windows the machine is planned anew. ``gain``: the share of throughput that a new point must promise to be
    worth a change. ``worse``: a tail above this times what was predicted, and above the target, is taken back.
    ``cool_down_s``: a point taken back is not tried again for so long. ``growth``: the most that a batch size grows
    beyond what is known, in one step. ``min_queries``: fewer in a window say nothing of its tail. ``probe_share``: the
    largest queries, as a share of all, that try an accelerator of which nothing is known.
    """

    window_s: float = 1.0
    half_life_s: float = 15.0
    plan_every: int = 5
    gain: float = 0.05
    worse: float = 1.5
    cool_down_s: float = 60.0
    growth: float = 4.0
    min_queries: int = 50
    probe_share: float = 0.02


@dataclass(frozen=True)
class Decision:
    """One change: from now on ``plan``, with ``new`` as its point, holds for the model's next queries.

    ``predicted_tail_s`` and ``seen_tail_s``: seconds at the target's percentile, NaN where not known.
    """

    at_s: float
    model: str
    old: OperatingPoint
    new: OperatingPoint
    plan: Plan
    reason: str
    predicted_tail_s: float
    seen_tail_s: float


@dataclass(frozen=True)
class Seen:
    """What a window showed of one model: arrivals per second, and seconds at the target's percentile or NaN."""

    qps: float
    tail_s: float


@dataclass
class _Model:
    """What the controller keeps of one model."""

    plan: Plan
    percentile: float
    accelerator: bool
    cpu: Seconds
    device: Seconds = field(default_factory=Seconds)
    mix: SizeMix = field(default_factory=SizeMix)
    latencies_s: list[float] = field(default_factory=list)
    pinned: OperatingPoint | None = None
    previous: OperatingPoint | None = None  # where to step back to
    changed_s: float = -math.inf
    changed_qps: float = 0.0
    predicted_s: float = math.nan
    scored: int = 0  # candidates in this window
    rate: float = 0.0  # candidates/s in the last window
    seen_s: float = math.nan  # tail in the last window
    before: tuple[float, float] = (math.nan, 0.0)  # tail and rate in the window before the last change
    probe_again_s: float = -math.inf
    shunned: dict[OperatingPoint, float] = field(default_factory=dict)  # point -> until when
    windows: int = 0


class Controller:
    """Chooses the operating point of every model once a window.

    ``cores``: workers of the Batcher. ``slots``: whole queries that the accelerator takes at once.
    """

    def __init__(self, cores: int, tuning: Tuning | None = None, *, slots: int = 1) -> None:
        self.tuning = tuning or Tuning()
        self.window_s = self.tuning.window_s
        self._cores = cores
        self._slots = slots
        self._models: dict[str, _Model] = {}
        self._ended_s = math.nan

    # ---- what is served ----

    def add(self, model: str, plan: Plan, *, percentile: float = 95.0, accelerator: bool = False) -> None:
        """Steer a model from this plan on; its fixed_s and per_candidate_s are the first guess.

        ``percentile``: of the target that ``plan.sla_s`` is.
        """
        prior = LinearFit(plan.fixed_s, plan.per_candidate_s)
        self._models[model] = _Model(plan, percentile, accelerator, Seconds(prior))

    def remove(self, model: str) -> None:
        """Forget a model; KeyError when unknown."""
        del self._models[model]

    def set_accelerator(self, model: str, available: bool, now: float) -> list[Decision]:
        """Note that the accelerator came or went; when it went nothing is offloaded from now on."""
        state = self._models[model]
        state.accelerator = available
        point = state.plan.point
        state.shunned.clear()
        if available:
            state.device = Seconds()
            return []
        if point.offload_from is None:
            return []
        return [self._change(model, OperatingPoint(point.batch_size), now, "the accelerator is gone")]

    def pin(self, model: str, point: OperatingPoint, now: float) -> Decision:
        """Hold a model at a point until ``unpin``."""
        state = self._models[model]
        state.pinned = point
        return self._change(model, point, now, "pinned")

    def unpin(self, model: str) -> None:
        """Let the controller choose again, from the pinned point on."""
        state = self._models[model]
        state.pinned = state.previous = None

    def pinned(self, model: str) -> OperatingPoint | None:
        """Return the point that the model is held at, None when it is not."""
        return self._models[model].pinned

    def seen(self, model: str) -> Seen:
        """Return what the last window showed of a model."""
        state = self._models[model]
        return Seen(state.mix.qps, state.seen_s)

    # ---- what is seen ----

    def observe_arrival(self, query: Query, now: float) -> None:
        """Note a query that arrived."""
        if self._ended_s != self._ended_s:
            self._ended_s = now
        self._models[query.model].mix.add(query.size)

    def observe_batch(self, batch: Batch, run_s: float) -> None:
        """Note that a CPU batch took these seconds."""
        state = self._models[batch.model]
        state.scored += batch.size
        state.cpu.add(batch.size, run_s)

    def observe(self, query: Query, now: float) -> None:
        """Note that a query has its answer; of an offloaded one the seconds since it was sent are learnt too."""
        state = self._models[query.model]
        if query.arrival_s >= state.changed_s:  # those before had another point
            state.latencies_s.append(now - query.arrival_s)
        if query.offloaded:
            state.scored += query.size
            state.device.add(query.size, now - query.started_s)

    # ---- what is decided ----

    def decide(self, now: float) -> list[Decision]:
        """End the window and return what changes; to be asked once every ``window_s`` seconds."""
        span_s = now - self._ended_s
        if not span_s > 0:
            return []
        self._ended_s = now
        keep = 0.5 ** (span_s / self.tuning.half_life_s)
        decisions = []
        for model, state in self._models.items():
            window_qps = self._end_window(state, span_s, keep)
            if state.pinned is None:
                decision = self._decide_one(model, state, now, window_qps)
                if decision is not None:
                    decisions.append(decision)
        return decisions

    def _end_window(self, state: _Model, span_s: float, keep: float) -> float:
        """Sum the window up, let the past fade, and return the rate of arrivals in the window, queries/s."""
        latencies_s, state.latencies_s = state.latencies_s, []
        window_qps = state.mix.arrived / span_s
        state.rate, state.scored = state.scored / span_s, 0
        state.seen_s = math.nan
        if len(latencies_s) >= self.tuning.min_queries:
            state.seen_s = percentile(np.array(latencies_s), state.percentile)
        state.mix.end_window(span_s, keep)
        state.cpu.end_window(keep)
        state.device.end_window(keep)
        state.windows += 1
        return window_qps

    def _decide_one(self, model: str, state: _Model, now: float, window_qps: float) -> Decision | None:
        back = self._step_back(model, state, now, window_qps)
        if back is not None:
            return back
        if state.mix.weight < self.tuning.min_queries or state.cpu.weight < 1:
            return None
        exploring = self._explore(state, now)
        if exploring is not None and exploring not in state.shunned:
            return self._change(model, exploring, now, "explores: too little is known")
        early = now - state.changed_s < self.tuning.half_life_s / 4 and state.cpu.largest < 64
        if state.windows % self.tuning.plan_every and not early:
            return None
        return self._plan(model, state, now)

    def _step_back(self, model: str, state: _Model, now: float, window_qps: float) -> Decision | None:
        """Undo a change that made things worse, unless more load explains it.

        A tail within the target before the change is worse when it is now above the target and above what was
        predicted. One that was late already says nothing, since a backlog outlives any change; but while there is
        a backlog the candidates scored per second are what the point bears.
        """
        t = self.tuning
        if state.previous is None or now - state.changed_s > t.plan_every * t.window_s:
            return None
        sla_s, (before_s, before_rate) = state.plan.sla_s, state.before
        predicted_s = t.worse * state.predicted_s if state.predicted_s > 0 else 0.0
        if before_s > sla_s:
            worse = state.seen_s > before_s and state.rate < before_rate / t.worse
        else:
            worse = state.seen_s > max(sla_s, predicted_s) and window_qps <= 1.25 * state.changed_qps
        if not worse:
            return None
        state.shunned[state.plan.point] = now + t.cool_down_s
        tail_ms = state.seen_s * 1e3
        reason = f"steps back: p{state.percentile:g} of {tail_ms:.3g} ms is worse than predicted"
        decision = self._change(model, state.previous, now, reason, state.predicted_s)
        state.previous = None
        return decision

    def _explore(self, state: _Model, now: float) -> OperatingPoint | None:
        """Return a small step to where nothing is known: sizes of batches, or the accelerator; None otherwise."""
        point, sizes = state.plan.point, state.mix.law()[0]
        if state.cpu.buckets < 3 and not state.plan.whole and point.batch_size < min(sizes[-1], LADDER[-1]):
            return replace(point, batch_size=min(2 * point.batch_size, LADDER[-1]))
        if (
            state.accelerator
            and point.offload_from is None
            and state.device.weight < _ENOUGH
            and now >= state.probe_again_s
        ):
            state.probe_again_s = now + 4 * self.tuning.cool_down_s
            n, share = state.mix.law()
            above = np.cumsum(share[::-1])[::-1]  # the share of queries at least as large
            k = int((above >= self.tuning.probe_share).sum()) - 1
            return replace(point, offload_from=max(1, int(n[k])))
        return None

    def _plan(self, model: str, state: _Model, now: float) -> Decision | None:
        """Change to the point that the model of the machine likes best, if it promises enough."""
        point = state.plan.point
        if (
            point.offload_from is not None
            and state.device.weight < _ENOUGH
            and now - state.changed_s < 2 * self.tuning.half_life_s
        ):
            return None  # the accelerator is being tried: wait for what it says
        sla = Sla(state.percentile, state.plan.sla_s)
        points = [point, *(p for p in self._candidates(state, now) if p != point)]
        outlook = Outlook(self._machine(state), sla, points)
        sizes, shares = state.mix.law()
        capacity = outlook.capacity_qps(
            8 * self._cores / max(state.cpu.fit.run_s(float(sizes @ shares)), 1e-9)
        )
        if capacity.max() > (1 + self.tuning.gain) * capacity[0]:
            # Of points that promise nearly the same the nearest to the present one: no wandering on a plateau.
            good = np.flatnonzero(capacity >= (1 - self.tuning.gain / 2) * capacity.max())
            best = min(good.tolist(), key=lambda k: _distance(points[k], point))
            tail_s = float(outlook.tail_s(state.mix.qps)[best])
            reason = f"{capacity[0]:.4g} -> {capacity[best]:.4g} queries/s within the target by the model"
            return self._change(model, points[best], now, reason, tail_s)
        if _drifted(state.plan, state.cpu.fit):
            return self._change(model, point, now, "batches take other times than planned for")
        return None

    def _candidates(self, state: _Model, now: float) -> list[OperatingPoint]:
        """Return the points within bounds: not beyond what is known by more than the growth, none shunned."""
        state.shunned = {p: until for p, until in state.shunned.items() if until > now}
        current = state.plan.point
        most = min(self.tuning.growth * max(state.cpu.largest, current.batch_size), state.plan.largest_batch)
        sizes = [n for n in LADDER if n <= most] or [1]
        if state.plan.whole:
            sizes = [current.batch_size]
        thresholds: list[int | None] = [None]
        if state.accelerator and state.device.weight >= _ENOUGH:
            thresholds += [*THRESHOLD_LADDER]
            if current.offload_from is not None:
                # A step at a time: what the accelerator takes under more load than it ever had is a guess.
                at = bisect_left(THRESHOLD_LADDER, current.offload_from)
                thresholds = [None, *THRESHOLD_LADDER[max(0, at - 2) : at + 3]]
        return [p for t in thresholds for n in sizes if (p := OperatingPoint(n, t)) not in state.shunned]

    def _machine(self, state: _Model) -> Machine:
        sizes, shares = state.mix.law()
        known = state.accelerator and state.device.weight >= _ENOUGH
        return Machine(
            self._cores,
            state.cpu.fit,
            sizes,
            shares,
            accelerator=state.device.fit if known else None,
            slots=self._slots,
            sigma=min(state.cpu.sigma, 1.0),
        )

    def _change(
        self, model: str, point: OperatingPoint, now: float, reason: str, predicted_s: float = math.nan
    ) -> Decision:
        state = self._models[model]
        old, fit = state.plan.point, state.cpu.fit
        state.plan = replace(
            state.plan,
            point=point,
            fixed_s=fit.fixed_s,
            per_candidate_s=fit.per_candidate_s,
            smallest_cut=min(fit.smallest_cut, point.batch_size),
        )
        if point != old:
            state.previous, state.changed_s, state.changed_qps = old, now, max(state.mix.qps, 1e-9)
            state.predicted_s = predicted_s
            state.before = (state.seen_s, state.rate)
        return Decision(now, model, old, point, state.plan, reason, predicted_s, state.seen_s)


def _drifted(plan: Plan, fit: LinearFit) -> bool:
    """Whether the plan's seconds are off by a fifth or more for a typical batch or a small one."""
    return any(abs(fit.run_s(n) - plan.run_s(n)) > 0.2 * fit.run_s(n) for n in (8, plan.point.batch_size))


def _distance(point: OperatingPoint, other: OperatingPoint) -> float:
    """How far apart two points are, in octaves; offloading or not at all is further than any threshold."""
    apart = abs(math.log2(point.batch_size / other.batch_size))
    if (point.offload_from is None) != (other.offload_from is None):
        return apart + 100.0
    if point.offload_from is not None and other.offload_from is not None:
        apart += abs(math.log2(point.offload_from / other.offload_from))
    return apart
