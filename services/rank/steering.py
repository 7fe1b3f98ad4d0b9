"""The controller's loop: once a window it decides, and what it decides holds for queries that have not begun."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from dataclasses import dataclass

from scheduler.batching import Batcher
from scheduler.controller import Controller, Decision, Why
from scheduler.plan import OperatingPoint, Plan
from scheduler.planner import Question
from services.rank.learnt_points import LearntPoints
from services.rank.model import ModelSpec
from services.rank.planning import Planning, PlanningLostError

_log = logging.getLogger(__name__)

ASK_AGAIN_S = 60.0
"""After the planning process was lost nothing is asked for so long: what killed it may kill the next."""

RECENT = 256
"""Decisions that are remembered, and that a slow watcher may be behind."""


@dataclass(frozen=True, slots=True)
class DatedDecision:
    """A decision with the wall-clock time at which it was made, in seconds since the epoch."""

    time_s: float
    spec: ModelSpec
    decision: Decision


class Steering:
    """Feeds the batcher with the controller's decisions, and tells watchers.

    Everything happens on the loop thread but the planning, which a process of its own does: one question after the
    other, of each model the newest. ``decided`` counts the decisions of each model, by its key, and kind.
    """

    def __init__(self, controller: Controller, batcher: Batcher, learnt: LearntPoints) -> None:
        self._loop = asyncio.get_running_loop()
        self._planning = Planning()
        self._questions: dict[str, Question] = {}
        self._ask_again_s = -math.inf
        self._settling: asyncio.Task[None] | None = None
        self._controller = controller
        self._batcher = batcher
        self._learnt = learnt
        self.decided: Counter[tuple[str, Why]] = Counter()
        self._specs: dict[str, ModelSpec] = {}
        self._recent: deque[DatedDecision] = deque(maxlen=RECENT)
        self._watchers: set[asyncio.Queue[DatedDecision]] = set()
        self._next = self._loop.call_later(controller.window_s, self._turn)

    def add(self, spec: ModelSpec, plan: Plan, pinned: OperatingPoint | None) -> None:
        """Serve a model from this plan on; ``pinned`` holds it at a point."""
        self._specs[spec.key] = spec
        self._batcher.set_plan(spec.key, plan)
        self._controller.add(spec.key, plan, percentile=spec.sla.percentile)
        if pinned is not None:
            self.pin(spec, pinned)

    def specs(self) -> list[ModelSpec]:
        """Return the models that are steered."""
        return list(self._specs.values())

    def pin(self, spec: ModelSpec, point: OperatingPoint) -> None:
        """Hold a model at a point."""
        self._apply(self._controller.pin(spec.key, point, self._loop.time()), keep=point)

    def unpin(self, spec: ModelSpec) -> None:
        """Let the controller choose again."""
        self._controller.unpin(spec.key)

    def retune(self, spec: ModelSpec) -> None:
        """Forget what was learnt of a model; its present plan is the first guess again, and a pin stays."""
        self._controller.retune(spec.key)

    def watch(self) -> asyncio.Queue[DatedDecision]:
        """Return a queue of the recent decisions and all to come; give it back with ``unwatch``."""
        queue: asyncio.Queue[DatedDecision] = asyncio.Queue(RECENT)
        for decision in self._recent:
            queue.put_nowait(decision)
        self._watchers.add(queue)
        return queue

    def unwatch(self, queue: asyncio.Queue[DatedDecision]) -> None:
        """Forget a watcher."""
        self._watchers.discard(queue)

    def set_accelerator(self, spec: ModelSpec, available: bool) -> None:
        """Note that the accelerator of a model came or went."""
        for decision in self._controller.set_accelerator(spec.key, available, self._loop.time()):
            self._apply(decision, keep=None)  # the threshold is to outlive an outage

    async def close(self) -> None:
        """Decide no more."""
        self._next.cancel()
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.wait([self._settling])
        await self._planning.close()

    def _turn(self) -> None:
        self._next = self._loop.call_later(self._controller.window_s, self._turn)
        now = self._loop.time()
        decisions, questions = self._controller.react(now)
        for decision in decisions:
            self._apply(decision, decision.new)
        if now < self._ask_again_s:
            return
        self._questions.update((question.model, question) for question in questions)
        if self._questions and self._settling is None:
            self._settling = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        """Ask what there is to ask, one after the other; after a loss nothing for a while."""
        try:
            while self._questions:
                question = self._questions.pop(next(iter(self._questions)))
                answer = await self._planning.answer(question)
                decision = self._controller.settle(question, answer, self._loop.time())
                if decision is not None:
                    self._apply(decision, decision.new)
        except PlanningLostError as error:
            self._ask_again_s = self._loop.time() + ASK_AGAIN_S
            self._questions.clear()
            extra = {"reason": str(error), "again_in_s": ASK_AGAIN_S}
            _log.warning("planning failed; the operating points stay", extra=extra)
        finally:
            self._settling = None

    def _apply(self, decision: Decision, keep: OperatingPoint | None) -> None:
        """Let a decision hold; ``keep``: the point for the next start, None to leave what is kept."""
        spec = self._specs[decision.model]
        self.decided[decision.model, decision.why] += 1
        self._batcher.set_plan(decision.model, decision.plan)
        if keep is not None:
            self._learnt.keep(spec, keep)
        dated = DatedDecision(time.time(), spec, decision)
        self._recent.append(dated)
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(dated)
        _log.info("operating point", extra=_evidence(decision))


def _evidence(decision: Decision) -> dict[str, object]:
    tails = {"predicted_tail_s": decision.predicted_tail_s, "seen_tail_s": decision.seen_tail_s}
    return {
        "model": decision.model,
        "batch_size": decision.new.batch_size,
        "offload_from": decision.new.offload_from,
        "old_batch_size": decision.old.batch_size,
        "old_offload_from": decision.old.offload_from,
        "reason": decision.reason,
        **{name: round(tail_s, 6) for name, tail_s in tails.items() if not math.isnan(tail_s)},
    }
