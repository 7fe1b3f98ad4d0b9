"""DeepRecSched online: completions in, operating points out.

A state machine without clock or threads, as the Batcher is: the live server and the simulator drive the same one. It
learns what batches take, which sizes come and how fast (``learning``), asks a model of the machine which point bears
the most (``planner``), and trusts the tail that it sees more than the one that it predicted.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from scheduler.evidence import Evidence
from scheduler.latency import LinearFit
from scheduler.measure import Sla
from scheduler.plan import OperatingPoint, Plan
from scheduler.planner import Forecast, Question, forecast
from scheduler.query import Batch, Query

LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
THRESHOLD_LADDER = (1, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)


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


class Why(StrEnum):
    """The kinds of decisions, for whoever counts them; a decision's ``reason`` says it with its numbers."""

    PINNED = "pinned"
    ACCELERATOR_GONE = "accelerator_gone"
    ACCELERATOR_BACK = "accelerator_back"
    WORSE = "worse_than_predicted"
    EXPLORES = "explores"
    BETTER = "better_predicted"
    DRIFTED = "run_times_drifted"


@dataclass(frozen=True)
class Decision:
    """One change: from now on ``plan``, with ``new`` as its point, holds for the model's queries that have not begun.

    ``predicted_tail_s`` and ``seen_tail_s``: seconds at the target's percentile, NaN where not known.
    """

    at_s: float
    model: str
    old: OperatingPoint
    new: OperatingPoint
    plan: Plan
    why: Why
    reason: str
    predicted_tail_s: float
    seen_tail_s: float


@dataclass(frozen=True)
class Seen:
    """What a window showed of one model: arrivals per second, and seconds at the target's percentile or NaN.

    ``predicted_s``: the tail that was predicted when the point last changed, NaN where nothing was.
    """

    qps: float
    tail_s: float
    predicted_s: float


@dataclass
class _Model:
    """What the controller keeps of one model."""

    plan: Plan
    accelerator: bool
    evidence: Evidence
    pinned: OperatingPoint | None = None
    previous: OperatingPoint | None = None  # where to step back to
    changed_s: float = -math.inf
    changed_qps: float = 0.0
    predicted_s: float = math.nan
    before: tuple[float, float] = (
        math.nan,
        0.0,
    )  # tail and candidates/s in the window before the last change
    probe_again_s: float = -math.inf
    resume_from: int | None = None  # the threshold to return to when the accelerator does
    shunned: dict[OperatingPoint, float] = field(default_factory=dict)  # point -> until when
    windows: int = 0
    asked: Question | None = None  # the question whose answer still counts


class Controller:
    """Chooses the operating point of every model once a window.

    ``cores``: workers of the Batcher. ``slots``: whole queries that the accelerator takes at once. A window has two
    halves: ``react`` ends it and changes what cannot wait, and asks the questions that a model of the machine must
    answer (``planner.forecast``: milliseconds, so a server asks another process); ``settle`` takes an answer. The
    simulator has both at once in ``decide``.
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
        self._models[model] = _Model(plan, accelerator, Evidence(prior, percentile))

    def remove(self, model: str) -> None:
        """Forget a model; KeyError when unknown."""
        del self._models[model]

    def retune(self, model: str) -> None:
        """Forget what was learnt of a model; its present plan is the first guess again, and a pin stays."""
        state = self._models[model]
        prior = LinearFit(state.plan.fixed_s, state.plan.per_candidate_s)
        state.evidence = Evidence(prior, state.evidence.percentile)
        state.shunned.clear()
        state.previous = state.asked = None
        state.windows = 0
        state.probe_again_s = -math.inf

    def set_accelerator(self, model: str, available: bool, now: float) -> list[Decision]:
        """Note that the accelerator came or went.

        When it went nothing is offloaded from now on; when it is back, what was offloaded before is again.
        """
        state = self._models[model]
        state.accelerator = available
        state.shunned.clear()
        state.asked = None
        point, decisions = state.plan.point, []
        if available:
            state.probe_again_s = -math.inf
            resume_from, state.resume_from = state.resume_from, None
            if resume_from is not None:
                back = replace(point, offload_from=resume_from)
                decisions.append(
                    self._change(model, back, now, Why.ACCELERATOR_BACK, "the accelerator is back")
                )
        elif point.offload_from is not None:
            state.resume_from = point.offload_from
            without = OperatingPoint(point.batch_size)
            decisions.append(
                self._change(model, without, now, Why.ACCELERATOR_GONE, "the accelerator is gone")
            )
        state.previous = None  # what was before had another accelerator
        return decisions

    def pin(self, model: str, point: OperatingPoint, now: float) -> Decision:
        """Hold a model at a point until ``unpin``; its threshold waits while there is no accelerator."""
        state = self._models[model]
        state.pinned, state.asked = point, None
        state.resume_from = None if state.accelerator else point.offload_from
        held = point if state.accelerator else OperatingPoint(point.batch_size)
        return self._change(model, held, now, Why.PINNED, "pinned")

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
        return Seen(state.evidence.mix.qps, state.evidence.tail_s, state.predicted_s)

    # ---- what is seen ----

    def observe_arrival(self, query: Query, now: float) -> None:
        """Note a query that arrived."""
        if self._ended_s != self._ended_s:
            self._ended_s = now
        self._models[query.model].evidence.add_arrival(query)

    def observe_batch(self, batch: Batch, run_s: float) -> None:
        """Note that a CPU batch took these seconds."""
        self._models[batch.model].evidence.add_batch(batch, run_s)

    def observe(self, query: Query, now: float) -> None:
        """Note that a query has its answer; of one sent to the accelerator what that takes is learnt too.

        Also where the CPU answered in the end, but for what an accelerator left behind that is gone.
        """
        state = self._models[query.model]
        if query.arrival_s >= state.changed_s:  # those before may have begun under another point
            state.evidence.add_latency(now - query.arrival_s)
        if query.offloaded:
            state.evidence.add_offloaded(query, now)
        elif state.accelerator and not math.isnan(query.tried_s):
            state.evidence.add_failed(query, now)

    # ---- what is decided ----

    def decide(self, now: float) -> list[Decision]:
        """End the window and return all that changes, every question answered on the spot."""
        decisions, questions = self.react(now)
        for question in questions:
            decision = self.settle(question, forecast(question), now)
            if decision is not None:
                decisions.append(decision)
        return decisions

    def react(self, now: float) -> tuple[list[Decision], list[Question]]:
        """End the window; return what changes at once and what is worth planning. Asked once every ``window_s``."""
        span_s = now - self._ended_s
        if not span_s > 0:
            return [], []
        self._ended_s = now
        keep = 0.5 ** (span_s / self.tuning.half_life_s)
        for state in self._models.values():
            state.evidence.end_window(span_s, keep, self.tuning.min_queries)
            state.windows += 1
        decisions, questions = [], []
        for model, state in self._models.items():
            if state.pinned is not None:
                continue
            decision = self._at_once(model, state, now)
            if decision is not None:
                decisions.append(decision)
            elif self._plans_now(state, now):
                questions.append(self._question(model, state, now))
        return decisions, questions

    def settle(self, question: Question, answer: Forecast, now: float) -> Decision | None:
        """Change to the point that the model of the machine likes best, if it promises enough.

        Nothing changes when the model was pinned, removed, moved or retuned, or its accelerator came or went, since
        the question was asked.
        """
        state = self._models.get(question.model)
        points, capacity = question.points, answer.capacity_qps
        if state is None or state.asked is not question:
            return None
        state.asked = None
        point, fit = points[0], state.evidence.cpu.fit
        if capacity.max() > (1 + self.tuning.gain) * capacity[0]:
            # Of points that promise nearly the same the nearest to the present one: no wandering on a plateau.
            good = np.flatnonzero(capacity >= (1 - self.tuning.gain / 2) * capacity.max())
            best = min(good.tolist(), key=lambda k: _distance(points[k], point))
            reason = f"{capacity[0]:.4g} -> {capacity[best]:.4g} queries/s within the target by the model"
            predicted_s = float(answer.tail_s[best])
            return self._change(question.model, points[best], now, Why.BETTER, reason, predicted_s)
        if _drifted(state.plan, fit):
            reason = "batches take other times than planned for"
            return self._change(question.model, point, now, Why.DRIFTED, reason)
        return None

    def _at_once(self, model: str, state: _Model, now: float) -> Decision | None:
        """Return what needs no model of the machine: a step back, or a step to where nothing is known."""
        back = self._step_back(model, state, now)
        if back is not None or not self._informed(state):
            return back
        exploring = self._explore(state, now)
        if exploring is None or exploring in state.shunned:
            return None
        return self._change(model, exploring, now, Why.EXPLORES, "explores: too little is known")

    def _informed(self, state: _Model) -> bool:
        """Whether there is traffic to plan for, and anything known of what batches take."""
        evidence = state.evidence
        return (
            evidence.window_qps > 0
            and evidence.mix.weight >= self.tuning.min_queries
            and evidence.cpu.weight >= 1
        )

    def _plans_now(self, state: _Model, now: float) -> bool:
        t, evidence = self.tuning, state.evidence
        if not self._informed(state):
            return False
        since_s = now - state.changed_s
        if (
            state.plan.point.offload_from is not None
            and not evidence.knows_accelerator
            and since_s < 2 * t.half_life_s
        ):
            return False  # the accelerator is being tried: wait for what it says
        # A model just begun, or still growing its batches, is planned every window.
        early = state.windows <= t.plan_every or (since_s < t.half_life_s / 4 and evidence.cpu.largest < 64)
        return early or state.windows % t.plan_every == 0

    def _step_back(self, model: str, state: _Model, now: float) -> Decision | None:
        """Undo a change that made things worse, unless more load explains it.

        A tail within the target before the change is worse when it is now above the target and above what was
        predicted. One that was late already says nothing, since a backlog outlives any change; but while there is
        a backlog the candidates scored per second are what the point bears.
        """
        t, evidence = self.tuning, state.evidence
        if state.previous is None or now - state.changed_s > t.plan_every * t.window_s:
            return None
        sla_s, (before_s, before_rate) = state.plan.sla_s, state.before
        predicted_s = t.worse * state.predicted_s if state.predicted_s > 0 else 0.0
        if before_s > sla_s:
            worse = evidence.tail_s > before_s and evidence.scored_rate < before_rate / t.worse
        else:
            worse = evidence.tail_s > max(sla_s, predicted_s) and (
                evidence.window_qps <= 1.25 * state.changed_qps
            )
        if not worse:
            return None
        state.shunned[state.plan.point] = now + t.cool_down_s
        tail_ms = evidence.tail_s * 1e3
        reason = f"steps back: p{evidence.percentile:g} of {tail_ms:.3g} ms is worse than predicted"
        decision = self._change(model, state.previous, now, Why.WORSE, reason, state.predicted_s)
        state.previous, state.predicted_s = None, math.nan  # the prediction was of the point that is left
        return decision

    def _explore(self, state: _Model, now: float) -> OperatingPoint | None:
        """Return a step to where nothing is known: sizes of batches, or the accelerator; None otherwise.

        A small step while all is well; where queries are late already there is nothing to keep safe.
        """
        point, evidence = state.plan.point, state.evidence
        sizes, share = evidence.mix.law()
        late = evidence.late(state.plan.sla_s)
        # Only trying them tells whether larger batches are cheaper: where queries are late though batches are as large
        # as they may be, and no larger ones were seen of late.
        full = evidence.cpu.seen(point.batch_size) and not evidence.cpu.seen(2 * point.batch_size)
        unknown = evidence.cpu.buckets < 3 or (late and full)
        if unknown and not state.plan.whole:
            growth = self.tuning.growth if late else 2
            size = int(min(growth * point.batch_size, sizes[-1], LADDER[-1], state.plan.largest_batch))
            # A batch that alone takes half the target holds up all others, whatever it saves.
            while size > point.batch_size and evidence.cpu.fit.run_s(size) > state.plan.sla_s / 2:
                size //= 2
            if size > point.batch_size:
                return replace(point, batch_size=size)
        if (
            state.accelerator
            and point.offload_from is None
            and not evidence.knows_accelerator
            and now >= state.probe_again_s
        ):
            state.probe_again_s = now + 4 * self.tuning.cool_down_s
            above = np.cumsum(share[::-1])[::-1]  # the share of queries at least as large
            k = int((above >= self.tuning.probe_share).sum()) - 1
            return replace(point, offload_from=max(1, int(sizes[k])))
        return None

    def _question(self, model: str, state: _Model, now: float) -> Question:
        """Ask what the present point, which comes first, and those within bounds would bear."""
        evidence, point = state.evidence, state.plan.point
        machine = evidence.machine(
            self._cores, self._slots, accelerator=state.accelerator, elsewhere=self._elsewhere(state)
        )
        points = (point, *(p for p in self._candidates(state, now) if p != point))
        sla = Sla(evidence.percentile, state.plan.sla_s)
        state.asked = Question(model, machine, sla, points, evidence.mix.qps)
        return state.asked

    def _elsewhere(self, state: _Model) -> float:
        """Return how many cores the other models keep busy; no more than the batcher lets them have of this one's."""
        others = [s.evidence for s in self._models.values() if s is not state and s.evidence.window_qps > 0]
        fair = self._cores * len(others) / (len(others) + 1)
        return min(sum(evidence.busy_cores for evidence in others), fair)

    def _candidates(self, state: _Model, now: float) -> list[OperatingPoint]:
        """Return the points within bounds: not beyond what is known by more than the growth, none shunned."""
        state.shunned = {p: until for p, until in state.shunned.items() if until > now}
        current = state.plan.point
        most = min(
            self.tuning.growth * max(state.evidence.cpu.largest, current.batch_size), state.plan.largest_batch
        )
        sizes = [n for n in LADDER if n <= most] or [1]
        if state.plan.whole:
            sizes = [current.batch_size]
        thresholds: list[int | None] = [None]
        if state.accelerator and state.evidence.knows_accelerator:
            thresholds += [*THRESHOLD_LADDER]
            if current.offload_from is not None:
                # A step at a time: what the accelerator takes under more load than it ever had is a guess.
                at = bisect_left(THRESHOLD_LADDER, current.offload_from)
                thresholds = [None, *THRESHOLD_LADDER[max(0, at - 2) : at + 3]]
        return [p for t in thresholds for n in sizes if (p := OperatingPoint(n, t)) not in state.shunned]

    def _change(
        self,
        model: str,
        point: OperatingPoint,
        now: float,
        why: Why,
        reason: str,
        predicted_s: float = math.nan,
    ) -> Decision:
        state = self._models[model]
        evidence, old = state.evidence, state.plan.point
        fit = evidence.cpu.fit
        state.plan = replace(
            state.plan,
            point=point,
            fixed_s=fit.fixed_s,
            per_candidate_s=fit.per_candidate_s,
            smallest_cut=min(fit.smallest_cut, point.batch_size),
        )
        if point != old:
            state.asked = None
            state.previous, state.changed_s, state.changed_qps = old, now, max(evidence.mix.qps, 1e-9)
            state.predicted_s = predicted_s
            state.before = (evidence.tail_s, evidence.scored_rate)
        return Decision(now, model, old, point, state.plan, why, reason, predicted_s, evidence.tail_s)


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
