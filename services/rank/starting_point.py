"""Where a model begins: pinned or free, at what was asked for, learnt before, or timed just now."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scheduler.plan import OperatingPoint, Plan
from scheduler.tune import static_point
from services.rank.learnt_points import LearntPoints
from services.rank.model import ModelSpec
from services.rank.settings import ServeSettings

LARGEST_QUERY = 1000
"""The largest query of production traffic, as reported by the paper (not re-checked): what `static` divides by the
cores."""


@dataclass(frozen=True, slots=True)
class Start:
    """The first plan of a model, and whether its point is held."""

    plan: Plan
    pinned: bool


def starting_point(
    settings: ServeSettings, spec: ModelSpec, timed: Plan, learnt: LearntPoints, workers: int
) -> Start:
    """Return how a model begins.

    A batch size in the settings is held. `static` holds the paper's baseline, `paper` holds what was tuned offline
    and kept (else what warm-up found cheapest), `adaptive` begins there and is free.
    """
    kept = learnt.find(spec)
    if settings.batch_size:
        return Start(_at(timed, OperatingPoint(settings.batch_size)), pinned=True)
    if settings.policy == "static":
        return Start(_at(timed, static_point(LARGEST_QUERY, workers)), pinned=True)
    plan = timed if kept is None else _at(timed, OperatingPoint(min(kept.batch_size, spec.largest_batch)))
    return Start(plan, pinned=settings.policy == "paper")


def _at(plan: Plan, point: OperatingPoint) -> Plan:
    return replace(plan, point=point, smallest_cut=min(plan.smallest_cut, point.batch_size))
