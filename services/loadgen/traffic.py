"""The queries of a run: each model's schedule and requests, and all of them merged by arrival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeprecsys.errors import InvalidSettingError, UnavailableError
from deeprecsys.v1 import rank_pb2
from scheduler.measure import Sla
from scheduler.arrivals import parse_arrivals
from scheduler.ids import parse_ids
from scheduler.sizes import I32Array, parse_sizes
from scheduler.workload import Schedule, draw_schedule
from services.loadgen.driver import Plan
from services.loadgen.request_pool import RequestPool, build_pool, largest_size
from services.loadgen.settings import LoadSettings, ModelShare


@dataclass(frozen=True, eq=False)
class Lane:
    """One model of a run: what the server says of it, its target, its part of the rate and its requests."""

    index: int
    share: ModelShare
    model: rank_pb2.Model
    sla: Sla
    part: float
    max_size: int
    pool: RequestPool


def make_lane(settings: LoadSettings, index: int, model: rank_pb2.Model, pool_queries: int | None) -> Lane:
    """Build the requests of one model for ``pool_queries`` sizes, or for the queries of a run at ``settings.qps``.

    Raises UnavailableError for a model that is not ready, and InvalidSettingError for settings that do not fit it.
    """
    share = settings.models[index]
    if not model.ready:
        raise UnavailableError(
            f"{share.name} is not ready: {model.unready_reason or 'the server gives no reason'}"
        )
    part = share.weight / sum(m.weight for m in settings.models)
    max_size = largest_size(model, settings.users)
    sizes = _schedule(settings, index, settings.qps * part, max_size, count=pool_queries).size
    pool = build_pool(
        model,
        sizes,
        seed=[settings.seed, index, 1],
        ids=parse_ids(settings.ids),
        users=settings.users,
        budget_bytes=settings.pool_bytes // len(settings.models),
        version=share.version,
    )
    return Lane(index, share, model, _sla(settings, model), part, max_size, pool)


def _sla(settings: LoadSettings, model: rank_pb2.Model) -> Sla:
    percentile = model.sla.percentile or 95.0
    seconds = settings.sla_s or model.sla.seconds
    if not seconds > 0:
        raise InvalidSettingError(f"the server gives no target for {model.name}: set one")
    return Sla(percentile, seconds)


def _schedule(
    settings: LoadSettings, index: int, qps: float, max_size: int, *, count: int | None = None
) -> Schedule:
    """Draw a model's queries: ``count`` of them, or those of warm-up and measured window."""
    duration_s = None if count is not None else settings.warmup_s + settings.duration_s
    return draw_schedule(
        [settings.seed, index],
        parse_arrivals(settings.arrivals),
        parse_sizes(settings.sizes),
        qps,
        duration_s=duration_s,
        count=count,
        max_size=max_size,
    )


@dataclass(frozen=True, eq=False)
class Traffic:
    """The merged queries of all models: ``plan`` [Q] by arrival, and for each query its lane and size."""

    plan: Plan
    lane: NDArray[np.int64]
    size: I32Array


def draw_traffic(
    settings: LoadSettings,
    lanes: Sequence[Lane],
    payloads: tuple[bytes, ...],
    qps: float,
    *,
    count: int | None = None,
) -> Traffic:
    """Draw every model's schedule, give each query a request of its size, and merge them by arrival.

    payloads: all requests, lane by lane. count: how many queries; those of the settings when None.
    """
    count = settings.count if count is None else count
    arrival_s, request, lane_of, size = [], [], [], []
    offset = 0
    for lane in lanes:
        its = None if count is None else max(1, round(count * lane.part))
        schedule = _schedule(settings, lane.index, qps * lane.part, lane.max_size, count=its)
        chosen = lane.pool.assign(schedule.size)
        arrival_s.append(schedule.arrival_s)
        request.append(chosen + offset)
        lane_of.append(np.full(len(schedule), lane.index))
        size.append(lane.pool.size[chosen])
        offset += len(lane.pool.payloads)
    merged_s = np.concatenate(arrival_s)
    order = np.argsort(merged_s, kind="stable")
    plan = Plan(merged_s[order], np.concatenate(request)[order], payloads)
    return Traffic(plan, np.concatenate(lane_of)[order], np.concatenate(size)[order])
