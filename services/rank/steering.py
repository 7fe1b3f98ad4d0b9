"""The controller's loop: once a window it decides, and what it decides holds for later queries."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from dataclasses import dataclass

from scheduler.batching import Batcher
from scheduler.controller import Controller, Decision
from scheduler.plan import OperatingPoint, Plan
from services.rank.learnt_points import LearntPoints
from services.rank.model import ModelSpec

_log = logging.getLogger(__name__)

RECENT = 256
"""Decisions that are remembered, and that a slow watcher may be behind."""


@dataclass(frozen=True, slots=True)
class DatedDecision:
    """A decision with the wall-clock time at which it was made, in seconds since the epoch."""

    time_s: float
    spec: ModelSpec
    decision: Decision


class Steering:
    """Feeds the batcher with the controller's decisions, and tells watchers. Everything happens on the loop thread."""

    def __init__(self, controller: Controller, batcher: Batcher, learnt: LearntPoints) -> None:
        self._loop = asyncio.get_running_loop()
        self._controller = controller
        self._batcher = batcher
        self._learnt = learnt
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
        self._apply(self._controller.pin(spec.key, point, self._loop.time()))

    def unpin(self, spec: ModelSpec) -> None:
        """Let the controller choose again."""
        self._controller.unpin(spec.key)

    def retune(self, spec: ModelSpec) -> None:
        """Forget what was learnt of a model; its present plan is the first guess again."""
        plan = self._batcher.plan(spec.key)
        pinned = self._controller.pinned(spec.key)
        self._controller.remove(spec.key)
        self._controller.add(spec.key, plan, percentile=spec.sla.percentile)
        if pinned is not None:
            self.pin(spec, pinned)

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

    def close(self) -> None:
        """Decide no more."""
        self._next.cancel()

    def _turn(self) -> None:
        self._next = self._loop.call_later(self._controller.window_s, self._turn)
        for decision in self._controller.decide(self._loop.time()):
            self._apply(decision)

    def _apply(self, decision: Decision) -> None:
        spec = self._specs[decision.model]
        self._batcher.set_plan(decision.model, decision.plan)
        self._learnt.keep(spec, decision.new)
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
