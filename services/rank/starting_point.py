"""Where a model begins: pinned or free, at what was asked for, learnt before, or timed just now."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scheduler.plan import OperatingPoint, Plan
from scheduler.sizes import PRODUCTION_MAX_SIZE
from scheduler.tune import static_point
from services.rank.learnt_points import LearntPoints
from services.rank.model import ModelSpec
from services.rank.settings import ServeSettings


@dataclass(frozen=True, slots=True)
class Start:
    """The first plan of a model, and whether its point is held."""

    plan: Plan
    pinned: bool


def starting_point(
    settings: ServeSettings, spec: ModelSpec, timed: Plan, learnt: LearntPoints, workers: int
) -> Start:
    """Return how a model begins.

    A batch size or a threshold in the settings is held. `static` holds the paper's baseline, `paper` holds what was
    tuned offline and kept (else what warm-up found cheapest), `adaptive` begins there and is free.
    """
    point, held = timed.point, settings.policy != "adaptive"
    kept = learnt.find(spec)
    if settings.policy == "static":
        point = static_point(PRODUCTION_MAX_SIZE, workers)
    elif kept is not None:
        # A free model learns anew whether to offload: the accelerator may be another one by now, or away.
        offload_from = kept.offload_from if held and settings.triton else None
        point = OperatingPoint(min(kept.batch_size, spec.largest_batch), offload_from)
    if settings.batch_size:
        point, held = OperatingPoint(settings.batch_size), True
    if settings.offload_from:
        point, held = OperatingPoint(point.batch_size, settings.offload_from), True
    return Start(_at(timed, point), held)


def _at(plan: Plan, point: OperatingPoint) -> Plan:
    return replace(plan, point=point, smallest_cut=min(plan.smallest_cut, point.batch_size))
